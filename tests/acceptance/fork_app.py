"""A server in a session that keeps files: its process counts, its files stay.

    PUT /files/PATH       the body is written to /PATH; folders on the way are made
    GET /files/PATH       what is there; 404 when nothing is
    DELETE /files/PATH    a file or a whole folder goes
    POST /move?from=&to=  a path is renamed
    POST /shapes          a folder /shapes with modes, links and a pipe
    GET /facts/PATH       mode, owner and group, target of a link
    GET /status           how it is kept in, and the name of its host
    POST /listen          a port is opened and connected to
    POST /grow?mib=       as much memory is taken and written to
    POST /odd             a file is held open that is large and deleted: memory with it is not kept
    GET /calls            how many calls this process has had, and what was in /start when it started
"""

import ctypes
import http.server
import json
import os
import pathlib
import shutil
import socket
import urllib.parse

CALLS = []
START = pathlib.Path("/start")
FOUND = START.read_text() if START.exists() else None


HELD = []


def status():
    lines = dict(line.split(":\t", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    names = ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Uid")
    told = {name: lines.get(name) for name in names}
    # a namespace of its own is refused
    told["unshare"] = ctypes.CDLL(None, use_errno=True).unshare(0x10000000)
    told["ids"] = pathlib.Path("/proc/self/uid_map").read_text().split()[0::2]
    told["host"] = socket.gethostname()
    return told


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, content):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def one(self):
        CALLS.append(self.path)
        parts = urllib.parse.urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            self.answer(200, self.carry_out(parts, body))
        except FileNotFoundError:
            self.answer(404, "nothing is there")
        except OSError as error:
            self.answer(507, str(error))

    def carry_out(self, parts, body):
        if parts.path == "/calls":
            return {"calls": len(CALLS), "start": FOUND}
        if parts.path == "/status":
            return status()
        if parts.path == "/listen":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                socket.create_connection(listener.getsockname(), timeout=5).close()
            return {}
        if parts.path == "/grow":
            HELD.append(os.urandom(1 << 20) * int(dict(urllib.parse.parse_qsl(parts.query))["mib"]))
            return {}
        if parts.path == "/odd":
            path = pathlib.Path("/odd")
            HELD.append(path.open("wb"))
            HELD[-1].write(bytes(48 << 20))
            HELD[-1].flush()
            path.unlink()
            return {}
        if parts.path == "/move":
            query = dict(urllib.parse.parse_qsl(parts.query))
            shutil.move(query["from"], query["to"])
            return {}
        if parts.path == "/shapes":
            shapes = pathlib.Path("/shapes")
            (shapes / "dir").mkdir(parents=True)
            (shapes / "dir").chmod(0o1777)
            (shapes / "file").write_text("x")
            (shapes / "file").chmod(0o4640)
            os.link(shapes / "file", shapes / "hard")
            os.symlink("/shapes/file", shapes / "link")
            os.mkfifo(shapes / "pipe", 0o622)
            return {}
        kind, _, rest = parts.path.lstrip("/").partition("/")
        path = pathlib.Path("/", rest)
        if kind == "facts":
            found = path.lstat()
            target = os.readlink(path) if path.is_symlink() else None
            return {"mode": found.st_mode & 0o7777, "uid": found.st_uid, "gid": found.st_gid, "target": target}
        if self.command == "GET":
            return path.read_bytes()
        if self.command == "DELETE":
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            return {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)
        return {}

    do_GET = do_PUT = do_POST = do_DELETE = one


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


Server(("0.0.0.0", int(os.environ.get("PORT", "80"))), Handler).serve_forever()
