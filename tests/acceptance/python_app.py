"""Runs inside the image of `python_image`: a kind of server or worker and its port, such as `http PORT`, or several pairs."""

import http.server
import json
import os
import signal
import socket
import socketserver
import sys
import threading
import time

NAME = os.environ.get("NAME", "")


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


def burn(port):
    """Answers HTTP; takes a processor while the file `/burn` is there, and 300 MiB while `/keep` is."""

    def work():
        kept = b""
        while True:
            if bool(kept) != os.path.exists("/keep"):
                kept = b"" if kept else b"x" * (300 << 20)
            if not os.path.exists("/burn"):
                time.sleep(0.1)

    threading.Thread(target=work, daemon=True).start()
    serve_http(port)


def redis(port):
    """Redis itself."""
    os.execv("/usr/bin/redis-server", ["redis-server", "--port", str(port), "--save", "", "--protected-mode", "no"])


class Redis:
    """As much of Redis' protocol as a worker needs."""

    def __init__(self, host, port):
        self.socket = socket.create_connection((host, port))
        self.stream = self.socket.makefile("rwb")

    def close(self):
        self.stream.close()
        self.socket.close()

    def __call__(self, *words):
        lines = [f"*{len(words)}"] + [line for word in words for line in (f"${len(word.encode())}", word)]
        self.stream.write(("\r\n".join(lines) + "\r\n").encode())
        self.stream.flush()
        return self.answer()

    def answer(self):
        line = self.stream.readline().decode().rstrip()
        kind, rest = line[:1], line[1:]
        if kind == "$":
            return None if rest == "-1" else self.stream.read(int(rest) + 2)[:-2].decode()
        if kind == "*":
            return None if rest == "-1" else [self.answer() for _ in range(int(rest))]
        if kind == "-":
            raise OSError(rest)
        return rest


def work(port):
    """Takes jobs of the app `redis`, at its port: all there are for each token on the list `tap`."""
    ask = Redis("redis", port)
    ask("HINCRBY", "done", os.environ["CONTAINER_APP_REPLICA_NAME"], "0")
    while ask("BLPOP", "tap", "0"):
        while ask("LPOP", "jobs"):
            ask("HINCRBY", "done", os.environ["CONTAINER_APP_REPLICA_NAME"], "1")


KINDS = {"http": serve_http, "tcp": serve_tcp, "grpc": serve_grpc, "burn": burn, "redis": redis, "work": work}


def main():
    # the first process of a container gets no signal that it does not ask for
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2]))
    threads = [threading.Thread(target=KINDS[kind], args=(int(port),)) for kind, port in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
