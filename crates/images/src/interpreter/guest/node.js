// Runs JavaScript in one context, told by lines of JSON on descriptor 200; the answer goes to descriptor 201.
//
// Declarations stay from one piece of code to the next, since all of them are scripts of one context. Code with `await` at
// its top is run as an async function whose declarations of variables became global ones.
"use strict";

const fs = require("fs");
const vm = require("vm");
const util = require("util");
const path = require("path");
const { createRequire } = require("module");

const RESULT_MAX = 1 << 20;
let outputs = [];

function display(data) {
  if (outputs.length < 64) outputs.push(data);
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
    if (json !== undefined && json.length <= RESULT_MAX) data["application/json"] = JSON.parse(json);
  } catch {
    // a value with a cycle, or a bigint, is shown as text only
  }
  return data;
}

function failure(error) {
  if (error === null || typeof error !== "object" || !("message" in error)) {
    return { ename: "Error", evalue: String(error), traceback: [`Uncaught ${util.inspect(error)}`] };
  }
  const lines = String(error.stack || error.message).split("\n");
  const own = lines.filter((line) => !line.includes("node:") && !line.includes(__filename));
  return { ename: String(error.name || "Error"), evalue: String(error.message), traceback: own };
}

// `await` at the top is not allowed in a script.
function asynchronous(code) {
  const free = code.replace(/^(\s*)(?:const|let|var)\s+([A-Za-z_$][\w$]*)\s*=/gm, "$1globalThis.$2 =");
  const lines = free.trimEnd().replace(/;+$/, "");
  for (const body of [`return (\n${lines}\n)`, free]) {
    try {
      return new vm.Script(`(async () => {${body}\n})()`, { filename: "session.js" });
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
  }
  return new vm.Script(code, { filename: "session.js" });
}

function compiled(code) {
  try {
    return new vm.Script(code, { filename: "session.js" });
  } catch (error) {
    if (/\bawait\b/.test(code)) return asynchronous(code);
    throw error;
  }
}

// More than the server keeps of each stream, so that it sees that something is missing; what comes beyond is dropped, since
// code that prints without end never lets go of the thread that would send it. Code need not know.
const PRINTED_MAX = 2 << 20;
const streams = [process.stdout, process.stderr];
const room = new Map();

for (const stream of streams) {
  const write = stream.write;
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

let interrupted = () => {};
process.on("SIGINT", () => interrupted());

async function run(code) {
  outputs = [];
  room.clear();
  try {
    const stop = new Promise((_, reject) => {
      interrupted = () => reject(new Error("the execution was interrupted"));
    });
    const value = compiled(code).runInContext(context, { breakOnSigint: true });
    const settled = await Promise.race([value, stop]);
    return settled === undefined ? { outputs } : { outputs, result: bundle(settled) };
  } catch (error) {
    return { outputs, error: failure(error) };
  } finally {
    interrupted = () => {};
  }
}

process.on("uncaughtException", (error) => console.error(failure(error).traceback.join("\n")));
process.on("unhandledRejection", (error) => console.error(failure(error).traceback.join("\n")));

// Code writes to pipes that are read while it runs; what it wrote has to be there before the answer is.
function flushed(stream) {
  return new Promise((resolve) => stream.write("", resolve));
}

let rest = "";
let work = Promise.resolve();
fs.createReadStream(null, { fd: 200 }).setEncoding("utf8").on("data", (text) => {
  rest += text;
  for (let end = rest.indexOf("\n"); end >= 0; end = rest.indexOf("\n")) {
    const line = rest.slice(0, end);
    rest = rest.slice(end + 1);
    work = work.then(async () => {
      const answer = await run(JSON.parse(line).code);
      await Promise.all([flushed(process.stdout), flushed(process.stderr)]);
      fs.writeSync(201, JSON.stringify(answer) + "\n");
    });
  }
});
