"""Runs inside the image of `python_image`: a kind of server or worker and its port, such as `http PORT`, or several pairs."""

import hashlib
import http.server
import json
import os
import signal
import socketserver
import sys
import threading
import time

from resp import Redis

NAME = os.environ.get("NAME", "")
MEBIBYTE = b"x" * (1 << 20)
# held while a job is done
AT_WORK, IS_ENDING = threading.Lock(), threading.Event()


class Http(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("content-length") or 0))
        seen = {
            "name": NAME,
            "replica": os.environ.get("CONTAINER_APP_REPLICA_NAME"),
            "method": self.command,
            "path": self.path,
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }
        body = json.dumps(seen).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST = do_OPTIONS = answer


class Tcp(socketserver.StreamRequestHandler):
    """Says `NAME`, then everything that it is told, in capitals, until the client has said all; then how many lines."""

    def handle(self):
        lines = 0
        for line in self.rfile:
            lines += 1
            self.wfile.write(line.upper())
        self.wfile.write(f"{NAME} heard {lines} lines\n".encode())


def serve_http(port):
    http.server.ThreadingHTTPServer(("0.0.0.0", port), Http).serve_forever()


def serve_tcp(port):
    socketserver.ThreadingTCPServer.allow_reuse_address = True
    socketserver.ThreadingTCPServer(("0.0.0.0", port), Tcp).serve_forever()


def serve_grpc(port):
    from concurrent import futures

    import grpc

    def unary(request, context):
        if request == b"fail":
            context.set_trailing_metadata((("x-why", "asked for"),))
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, "as you wish")
        context.set_trailing_metadata((("x-trailer", NAME),))
        return request.upper()

    def chat(requests, context):
        for request in requests:
            yield request.upper()

    def count(request, context):
        for number in range(int(request)):
            yield str(number).encode()

    handlers = {
        "Upper": grpc.unary_unary_rpc_method_handler(unary),
        "Chat": grpc.stream_stream_rpc_method_handler(chat),
        "Count": grpc.unary_stream_rpc_method_handler(count),
    }
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=32))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("cove.Test", handlers),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def serve_flaky(port):
    """Fails on purpose: `/KEY/STATUS/TIMES` answers STATUS to the first TIMES requests for KEY, `/KEY/drop/TIMES` hangs up on
    them, `/KEY/hang/TIMES` never answers them. After that: 200 with how many there were and the body of this one."""
    asked, lock = {}, threading.Lock()

    class Flaky(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            told = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            key, what, times = self.path.strip("/").split("/")
            with lock:
                number = asked[key] = asked.get(key, 0) + 1
            if number <= int(times) and what in ("drop", "hang"):
                if what == "hang":
                    IS_ENDING.wait(60)
                self.close_connection = True
                return
            body = json.dumps({"number": number, "told": told}).encode()
            self.send_response(int(what) if number <= int(times) else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = answer

    http.server.ThreadingHTTPServer(("0.0.0.0", port), Flaky).serve_forever()


def redis(port):
    """Redis itself."""
    os.execv("/usr/bin/redis-server", ["redis-server", "--port", str(port), "--save", "", "--protected-mode", "no"])


def work(port):
    """Takes jobs of the app `redis`, at its port: all there are for each token on the list `tap`."""
    ask = Redis("redis", port)
    ask("HINCRBY", "done", os.environ["CONTAINER_APP_REPLICA_NAME"], "0")
    while ask("BLPOP", "tap", "0"):
        while ask("LPOP", "jobs"):
            ask("HINCRBY", "done", os.environ["CONTAINER_APP_REPLICA_NAME"], "1")


def take_all(port, do, rest=lambda: None):
    """Takes jobs of the app `redis`, at its port, until it shall end; one that was taken is done, whatever comes."""
    ask = Redis("redis", port)
    while not IS_ENDING.is_set():
        with AT_WORK:
            job = ask("LPOP", "jobs")
            if job:
                do()
                ask("HINCRBY", "done", os.environ["CONTAINER_APP_REPLICA_NAME"], "1")
        if not job:
            rest()
            time.sleep(0.25)


def crunch(port):
    """Each job costs a tenth of a second of processor time."""

    def do():
        end = time.thread_time() + 0.1
        while time.thread_time() < end:
            pass

    take_all(port, do)


def digest(port):
    """Keeps 300 MiB while there are jobs; each goes over a part of them."""
    kept = bytearray()

    def do():
        if not kept:
            for _ in range(300):
                kept.extend(MEBIBYTE)
        hashlib.sha256(memoryview(kept)[: 64 << 20]).digest()

    take_all(port, do, kept.clear)


KINDS = {
    "http": serve_http, "tcp": serve_tcp, "grpc": serve_grpc, "redis": redis, "work": work, "crunch": crunch,
    "digest": digest, "flaky": serve_flaky,
}  # fmt: skip


def main():
    def end(*_):
        IS_ENDING.set()
        with AT_WORK:
            os._exit(0)

    # the first process of a container gets no signal that it does not ask for
    signal.signal(signal.SIGTERM, end)
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2]))
    threads = [threading.Thread(target=KINDS[kind], args=(int(port),)) for kind, port in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
