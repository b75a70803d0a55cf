"""The server of an interpreter session: code, shell commands and files over HTTP on port 6000.

Cove's data plane is its only client; it speaks Azure's API to the outside and this small one to the session. The server
listens once the program that keeps the state answers, so a session that accepts a connection is ready. It runs as the
same ordinary user as the code, and what it says is not trusted outside.

Usage: serve.py python|node|shell
"""

import contextlib
import errno
import http.server
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.parse

import files
import kernels
import variables
from output import Outputs, written

PORT = 6000
BODY_MAX_BYTES = 8 << 20
WAITING_MAX = 16
# with what an interrupt or a restart takes, less than the server waits beside the time of the code
TURN_WITHIN_SECONDS = 100
SECONDS_MAX = 220
SILENCE_SECONDS = 60
LEAVE_WITHIN_SECONDS = 5
CHUNK = 1 << 18


class Busy(Exception):
    """Too many executions wait already, or one waited too long."""


def has_left(client):
    """Whether the other side of a connection has closed it, also when bytes of it are unread."""
    poll = select.poll()
    poll.register(client, select.POLLRDHUP)
    return bool(poll.poll(0))


class Session:
    """One program at a time, the others wait in turn."""

    def __init__(self, kind):
        self.kind = kind
        self.kernel = variables.Program(kind, {"python": kernels.Python, "node": kernels.Node, "shell": kernels.Shell}[kind]())
        # the shell of a pool that is none is started when it is first used
        self._shell = self.kernel if kind == "shell" else None
        # the connection of the request that a thread serves
        self.asked = threading.local()
        self._turn = threading.Lock()
        self._waiting = 0
        self._count = threading.Lock()

    @contextlib.contextmanager
    def turn(self):
        with self._count:
            if self._waiting >= WAITING_MAX:
                raise Busy(f"{WAITING_MAX} executions of this session wait already")
            self._waiting += 1
        try:
            if not self._turn.acquire(timeout=TURN_WITHIN_SECONDS):
                raise Busy(f"other executions kept this session busy for {TURN_WITHIN_SECONDS} seconds")
        finally:
            with self._count:
                self._waiting -= 1
        try:
            if has_left(self.asked.client):
                # code that nobody waits for must not run: its client may have sent it once more
                raise ConnectionError("the client left while it waited")
            yield
        finally:
            self._turn.release()

    def run(self, code, seconds, env, lasting):
        return self._answer(lambda outputs: self.kernel.run(code, outputs, seconds, env, lasting), seconds)

    def command(self, line, seconds, env):
        def of_shell(outputs):
            self._shell = self._shell or variables.Program("shell", kernels.Shell())
            return self._shell.run(line, outputs, seconds, env)

        return self._answer(of_shell, seconds)

    def program(self, arguments, seconds):
        """A program with arguments, without a shell."""

        def of_program(outputs):
            try:
                done = subprocess.Popen(
                    arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=kernels.HOME,
                    start_new_session=True,
                )  # fmt: skip
            except (OSError, ValueError) as error:
                outputs.stderr.add(f"{arguments[0]}: {error}\n")
                return 127
            kernels.expendable(done)
            readers = [
                threading.Thread(target=self._read, args=(stream, text), daemon=True)
                for stream, text in ((done.stdout, outputs.stdout), (done.stderr, outputs.stderr))
            ]
            for reader in readers:
                reader.start()
            try:
                code = done.wait(seconds)
            except subprocess.TimeoutExpired:
                raise kernels.TimedOut(restarted=False) from None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(done.pid, signal.SIGKILL)
                done.wait()
                for reader in readers:
                    reader.join(2)
            return code if code >= 0 else 128 - code

        return self._answer(of_program, seconds)

    @staticmethod
    def _read(stream, text):
        with stream:
            while data := stream.read1(1 << 16):
                text.add(data)

    def _answer(self, work, seconds):
        with self.turn():
            outputs, begun = Outputs(), time.monotonic()
            status, code = "Succeeded", None
            try:
                code = work(outputs)
            except kernels.TimedOut as late:
                status = "TimedOut"
                words = f"the execution took longer than {seconds} seconds and was interrupted"
                if late.restarted:
                    words += "; it did not answer that, so the interpreter was restarted and its state is lost"
                outputs.fail("TimeoutError", words, [words])
            except kernels.Died:
                words = "the interpreter ended while the code ran; it was restarted and its state is lost"
                outputs.fail("InterpreterDied", words, [words])
            if outputs.error is not None and status == "Succeeded":
                status = "Failed"
            return {
                "status": status,
                "exitCode": code if isinstance(code, int) else None,
                "stdout": outputs.stdout.text(),
                "stderr": outputs.stderr.text(),
                "result": outputs.result,
                "outputs": outputs.rich,
                "error": outputs.error,
                "milliseconds": round((time.monotonic() - begun) * 1000),
            }


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENCE_SECONDS
    server_version, sys_version = "cove-interpreter", ""
    session = None
    _has_begun = False

    def log_message(self, *_):
        """What is executed is said by clients, not by a log."""

    def _json(self, status, value):
        self._begin(status, "application/json", len(body := written(value)))
        self.wfile.write(body)

    def _begin(self, status, kind, length):
        self._has_begun = True
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(length))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()

    def _refuse(self, status, code, message):
        # what is left of the request's body would be taken for the next request
        self.close_connection = True
        if self._has_begun:
            # a second answer would be taken for the rest of the first
            return
        self._json(status, {"error": {"code": code, "message": message}})
        if self.command in ("POST", "PUT"):
            self._leave()

    def _leave(self):
        """Takes what the client still sends: a connection closed with bytes unread would destroy the answer on its way."""
        until = time.monotonic() + LEAVE_WITHIN_SECONDS
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            while (left := until - time.monotonic()) > 0:
                self.connection.settimeout(left)
                if not self.connection.recv(CHUNK):
                    return

    def _body(self):
        """The request's body in pieces."""
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            while True:
                length = int(self.rfile.readline(64).split(b";")[0].strip(), 16)
                if length == 0:
                    while self.rfile.readline(1024).strip():
                        pass
                    return
                while length:
                    piece = self.rfile.read(min(length, CHUNK))
                    if not piece:
                        raise ConnectionError("the request ended early")
                    length -= len(piece)
                    yield piece
                self.rfile.readline(8)
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0:
            piece = self.rfile.read(min(left, CHUNK))
            if not piece:
                raise ConnectionError("the request ended early")
            left -= len(piece)
            yield piece

    def _request(self):
        whole = bytearray()
        for piece in self._body():
            whole += piece
            if len(whole) > BODY_MAX_BYTES:
                raise files.Refused(413, "RequestTooLarge", f"a request has at most {BODY_MAX_BYTES} bytes")
        return json.loads(bytes(whole) or b"{}")

    def _route(self, method):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, errors="surrogateescape"))
        path = query.get("path", "")
        self._has_begun = False
        try:
            self._act(method, url.path, path)
        except files.Refused as refused:
            self._refuse(refused.status, refused.code, refused.message)
        except FileNotFoundError:
            self._refuse(404, "FileNotFound", "there is no such file or folder in this session")
        except Busy as busy:
            self._refuse(429, "TooManyExecutions", str(busy))
        except OSError as error:
            if isinstance(error, (ConnectionError, socket.timeout)):
                raise
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._refuse(507, "SessionDiskFull", "the session's disk is full; delete files")
            else:
                self._refuse(500, "SessionFailed", f"the session failed: {error.strerror}")
        except (ValueError, KeyError, TypeError) as error:
            self._refuse(400, "InvalidRequest", f"the request cannot be read: {error}")
        except RuntimeError as error:
            # an interpreter that ended and does not start again
            self._refuse(500, "SessionFailed", f"the session failed: {error}")
        except Exception as error:
            # whatever it is: a connection that closes unanswered says nothing
            self._refuse(500, "InterpreterFailed", f"the interpreter failed: {type(error).__name__}: {error}"[:300])

    def _act(self, method, route, path):
        match method, route:
            case "POST", "/execute":
                self._execute(self._request())
            case "GET", "/files":
                self._json(200, {"value": files.listed(path)})
            case "GET", "/file":
                self._json(200, files.metadata(path))
            case "PUT", "/file":
                self._json(200, files.put(path, self._body()))
            case "DELETE", "/file":
                files.delete(path)
                self._json(200, {})
            case "GET", "/content":
                with files.content(path) as (file, size):
                    self._begin(200, "application/octet-stream", size)
                    self._send(file, size)
            case "GET", "/health":
                self._json(200, {"kind": self.session.kind})
            case _:
                self._refuse(404, "NotFound", "there is no such path")

    def _send(self, file, size):
        while size:
            piece = file.read(min(size, CHUNK))
            if not piece:
                # code made it shorter meanwhile; the client must not take it for the whole
                self.close_connection = True
                return
            size -= len(piece)
            self.wfile.write(piece)

    def _execute(self, asked):
        self.session.asked.client = self.connection
        seconds = min(max(int(asked.get("seconds") or 60), 1), SECONDS_MAX)
        env, lasting = (dict(asked.get(name) or {}) for name in ("env", "lasting"))
        if "program" in asked:
            arguments = [str(one) for one in asked["program"]]
            if not arguments:
                raise ValueError("a program is needed")
            return self._json(200, self.session.program(arguments, seconds))
        if "command" in asked:
            return self._json(200, self.session.command(str(asked["command"]), seconds, env))
        if self.session.kind == "shell":
            return self._refuse(400, "NoSuchLanguage", "this session runs shell commands only")
        return self._json(200, self.session.run(str(asked["code"]), seconds, env, lasting))

    def do_GET(self):
        self._route("GET")

    def do_POST(self):
        self._route("POST")

    def do_PUT(self):
        self._route("PUT")

    def do_DELETE(self):
        self._route("DELETE")


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request, client_address):
        """A client that left is no news."""


def main():
    # whoever started this may ignore it, and programs would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
    session = Session(sys.argv[1])
    Handler.session = session
    port = int(os.environ.get("COVE_INTERPRETER_PORT", PORT))
    server = Server(("0.0.0.0", port), Handler)
    # as the first process of the container it is the one that ends it
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    threading.Thread(target=reap, daemon=True).start()
    print(f"ready for {session.kind} on port {server.server_address[1]}", flush=True)
    server.serve_forever()


def reap():
    """Orphans of code become children of the first process; those of known programs are left to who waits for them."""
    if os.getpid() != 1:
        return
    seen = set()
    while True:
        time.sleep(5)
        dead = ended_children()
        # one that leads a group may be a program that is just being started; what is dead for longer is an orphan
        for pid, leads in dead.items():
            if not leads or (pid in seen and pid not in kernels.awaited()):
                with contextlib.suppress(OSError):
                    os.waitpid(pid, os.WNOHANG)
        seen = set(dead)


def ended_children():
    """The ids of children of this process that ended, and whether each leads a group, as what this process starts does."""
    found = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{int(entry)}/stat") as file:
                state, parent, group = file.read().rpartition(")")[2].split()[:3]
            if state == "Z" and parent == "1":
                found[int(entry)] = group == entry
    return found


if __name__ == "__main__":
    main()
