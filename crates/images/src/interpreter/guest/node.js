// Runs JavaScript in one context, told by lines of JSON on descriptor 200; the answer goes to descriptor 201.
//
// Declarations stay from one piece of code to the next, since all of them are scripts of one context. Code with `await` at
// its top is run as an async function whose declarations of variables became global ones.
"use strict";

const fs = require("fs");
const net = require("net");
const vm = require("vm");
const util = require("util");
const path = require("path");
const { createRequire } = require("module");

const RESULT_MAX = 1 << 20;
// what the server takes; more than it would be taken for a program that never ends its line
const OUTPUTS_MAX = 8 << 20;
const LEVELS_MAX = 100;
const LINES_MAX = 200;
const LINE_MAX = 8000;
// code may put something else in its place
const complain = console.error.bind(console);
let outputs = [];
let left = OUTPUTS_MAX;

// An output as JSON, made where it is shown, so that nothing can fail when the answer is written.
function written(data) {
  const json = JSON.stringify(data);
  const size = Buffer.byteLength(json);
  if (size > left) {
    complain(`[an output was dropped: at most ${OUTPUTS_MAX} bytes in all are kept]`);
    return undefined;
  }
  readable(json);
  left -= size;
  return json;
}

// The value of a JSON text; one of too many levels would make the whole answer unreadable.
function readable(json) {
  const value = JSON.parse(json);
  if (levels(value) > LEVELS_MAX) throw new RangeError(`a value has at most ${LEVELS_MAX} levels`);
  return value;
}

function levels(value) {
  if (value === null || typeof value !== "object") return 0;
  return 1 + Object.values(value).reduce((most, one) => Math.max(most, levels(one)), 0);
}

function display(data) {
  if (outputs.length >= 64) return;
  let json;
  try {
    json = written(hasMediaTypes(data) ? data : bundle(data));
  } catch {
    // a value with a cycle, or a bigint, for a media type
    json = written(bundle(data));
  }
  if (json !== undefined) outputs.push(json);
}

function hasMediaTypes(data) {
  if (data === null || typeof data !== "object") return false;
  const kinds = Object.keys(data);
  return kinds.length > 0 && kinds.every((kind) => /^[\w.+-]+\/[\w.+-]+$/.test(kind));
}

const context = vm.createContext(
  Object.assign(Object.create(null), {
    console, process, Buffer, URL, URLSearchParams, TextEncoder, TextDecoder, AbortController, fetch: globalThis.fetch,
    setTimeout, setInterval, setImmediate, clearTimeout, clearInterval, clearImmediate, queueMicrotask, structuredClone,
    performance: globalThis.performance, require: createRequire(path.join(process.cwd(), "session.js")),
    __dirname: process.cwd(), display,
  }),
);
context.global = context;

function bundle(value) {
  const text = typeof value === "string" ? value : util.inspect(value, { depth: 4, maxStringLength: 10000 });
  const data = { "text/plain": text.slice(0, RESULT_MAX) };
  try {
    const json = JSON.stringify(value);
    if (json !== undefined && json.length <= RESULT_MAX) data["application/json"] = readable(json);
  } catch {
    // a value with a cycle, a bigint or too many levels is shown as text only
  }
  return data;
}

function failure(error) {
  try {
    return bounded(described(error));
  } catch {
    // what was thrown can throw itself, when it is asked for its words
    return { ename: "Error", evalue: "an error that cannot be shown", traceback: ["Uncaught error that cannot be shown"] };
  }
}

function described(error) {
  if (error === null || typeof error !== "object" || !("message" in error)) {
    const text = util.inspect(error);
    return { ename: "Error", evalue: typeof error === "string" ? error : text, traceback: [`Uncaught ${text}`] };
  }
  const lines = String(error.stack || error.message).slice(0, RESULT_MAX).split("\n");
  const own = lines.filter((line) => !line.includes("node:") && !line.includes(__filename));
  return { ename: String(error.name || "Error"), evalue: String(error.message), traceback: own };
}

function bounded({ ename, evalue, traceback }) {
  const cut = (text) => text.slice(0, LINE_MAX);
  return { ename: cut(ename), evalue: cut(evalue), traceback: traceback.slice(0, LINES_MAX).map(cut) };
}

// What code consists of, as roughly as it takes to tell its outermost level from what is inside of functions and loops.
const SPACE = /(?:\s+|\/\/.*|\/\*[^]*?\*\/)+/y;
const WORD = /[\w$#\u0080-\uffff]+/y;
const TEXT = /'[^'\\\n]*(?:\\[^][^'\\\n]*)*'|"[^"\\\n]*(?:\\[^][^"\\\n]*)*"/y;
const TEMPLATE = /[^`\\$]*(?:(?:\\[^]?|\$(?!\{))[^`\\$]*)*(?:`|\$\{|$)/y;
const PATTERN = /\/(?![*/])[^/\\[\n]*(?:(?:\\.|\[[^\]\\\n]*(?:\\.[^\]\\\n]*)*\])[^/\\[\n]*)*\/\w*/y;
const DECLARED = /(?:const|let|var)\s+([A-Za-z_$][\w$]*)\s*=(?![=>])/y;
const FOLLOWED = /\s*(?:=(?![=>])|(?=[,;\n]|$))/y;
// after other words, and after what ends a value, a slash divides
const BEFORE_VALUE = /^(?:|[^\w$)\]}]|return|typeof|instanceof|in|of|new|delete|void|throw|case|do|else|await|yield)$/;

// The code with variables of its outermost level made global ones. Patterns, functions and classes stay as they are.
function withGlobals(code) {
  const open = [];
  let out = "";
  let at = 0;
  // the last piece that is no space, and whether it stands in a declaration that became an assignment
  let before = "";
  let isDeclaring = false;
  const next = (pattern, from = at) => {
    pattern.lastIndex = from;
    return pattern.exec(code);
  };
  const pass = (piece, kept = piece) => {
    out += kept;
    at += piece.length;
  };
  while (at < code.length) {
    let found = next(SPACE);
    if (found) {
      pass(found[0]);
      // where a new line begins with what cannot go on, the statement ended
      const isOver = found[0].includes("\n") && !BEFORE_VALUE.test(before) && /[\w$'"{]/.test(code[at] ?? "");
      if (isOver && open.length === 0) isDeclaring = false;
    } else if ((found = next(WORD))) {
      const word = found[0];
      const isOutermost = open.length === 0 && before !== ".";
      if (isOutermost && (found = next(DECLARED))) {
        pass(found[0], `globalThis.${found[1]} =`);
        isDeclaring = true;
        before = "=";
        continue;
      }
      if (isOutermost && isDeclaring && before === "," && (found = next(FOLLOWED, at + word.length))) {
        pass(word, `globalThis.${word}${found[0].endsWith("=") ? "" : " = undefined"}`);
      } else {
        pass(word);
      }
      before = word;
    } else if ((found = next(TEXT) ?? (BEFORE_VALUE.test(before) ? next(PATTERN) : null))) {
      pass(found[0]);
      before = ")";
    } else {
      const mark = code[at];
      pass(mark);
      let isTemplate = mark === "`";
      if ("([{".includes(mark)) open.push(mark);
      else if (")]}".includes(mark)) isTemplate = open.pop() === "${";
      else if (mark === ";" && open.length === 0) isDeclaring = false;
      before = mark;
      if (isTemplate) {
        found = next(TEMPLATE);
        pass(found[0]);
        before = found[0].endsWith("${") ? "{" : ")";
        if (before === "{") open.push("${");
      }
    }
  }
  return out;
}

// As the body of an async function, which gives a value when it is one expression; undefined when it is no code.
function wrapped(code) {
  for (const body of [`return (\n${code.trimEnd().replace(/;+$/, "")}\n)`, code]) {
    try {
      return new vm.Script(`(async () => {${body}\n})()`, { filename: "session.js" });
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
  }
  return undefined;
}

// `await` at the top is not allowed in a script.
function asynchronous(code) {
  const local = wrapped(code);
  // what is no code is told as such, and not looked at more closely
  if (local === undefined) return new vm.Script(code, { filename: "session.js" });
  return wrapped(withGlobals(code)) ?? local;
}

function isCode(code) {
  try {
    new vm.Script(code);
    return true;
  } catch {
    return false;
  }
}

function compiled(code) {
  // `await (x)` is also the call of a function of this name, except where no name may be `await`, such as here
  if (/\bawait\b/.test(code) && !isCode(`class A { static {\n${code}\n} }`)) return asynchronous(code);
  return new vm.Script(code, { filename: "session.js" });
}

// More than the server keeps of each stream, so that it sees that something is missing; what comes beyond is dropped, since
// code that prints without end never lets go of the thread that would send it. Code need not know.
const PRINTED_MAX = 2 << 20;
const streams = [process.stdout, process.stderr];
const room = new Map();
const writes = new Map();

for (const stream of streams) {
  const write = stream.write;
  writes.set(stream, write);
  stream.write = function (chunk, encoding, callback) {
    const left = room.get(stream) ?? PRINTED_MAX;
    const size = typeof chunk === "string" ? Buffer.byteLength(chunk) : (chunk?.length ?? 0);
    if (size > 0 && left <= 0) {
      const done = typeof encoding === "function" ? encoding : callback;
      if (done) process.nextTick(done);
      return true;
    }
    room.set(stream, left - size);
    return write.call(stream, chunk, encoding, callback);
  };
}

const exit = process.exit.bind(process);
let interrupted = () => {};
process.on("SIGINT", () => interrupted());

async function run(code) {
  outputs = [];
  left = OUTPUTS_MAX;
  room.clear();
  try {
    const stop = new Promise((_, reject) => {
      interrupted = () => reject(new Error("the execution was interrupted"));
    });
    const value = compiled(code).runInContext(context, { breakOnSigint: true });
    const settled = await Promise.race([value, stop]);
    return settled === undefined ? {} : { result: written(bundle(settled)) };
  } catch (error) {
    return { error: JSON.stringify(failure(error)) };
  } finally {
    interrupted = () => {};
  }
}

process.on("uncaughtException", (error) => complain(failure(error).traceback.join("\n")));
process.on("unhandledRejection", (error) => complain(failure(error).traceback.join("\n")));

// Code writes to pipes that are read while it runs; what it wrote has to be there before the answer is. Code may have put
// something else in the place of `write`.
function flushed(stream) {
  return new Promise((resolve) => writes.get(stream).call(stream, "", resolve));
}

// Each line is answered, whatever becomes of its code: nothing here may fail.
async function answer(line) {
  const ended = await run(JSON.parse(line).code);
  await Promise.all(streams.map(flushed));
  const fields = [`"outputs":[${outputs}]`];
  for (const [name, json] of Object.entries(ended)) {
    if (json !== undefined) fields.push(`"${name}":${json}`);
  }
  let bytes = Buffer.from(`{${fields}}\n`);
  while (bytes.length > 0) bytes = bytes.subarray(fs.writeSync(201, bytes));
}

let rest = "";
let work = Promise.resolve();
// Not as a file: that would be read by a thread, which a program that exits waits for.
new net.Socket({ fd: 200, readable: true, writable: false }).setEncoding("utf8").on("data", (text) => {
  rest += text;
  for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n")) {
    const line = rest.slice(0, end);
    rest = rest.slice(end + 1);
    // without an answer the server would wait in vain; a program that ended is one
    work = work.then(() => answer(line)).catch(() => exit(1));
  }
});
