"""Runs inside the image of `python_image`: `http PORT`, `tcp PORT` or `grpc PORT`, or several pairs at once."""

import http.server
import json
import os
import socketserver
import sys
import threading

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


KINDS = {"http": serve_http, "tcp": serve_tcp, "grpc": serve_grpc}


def main():
    pairs = list(zip(sys.argv[1::2], sys.argv[2::2]))
    threads = [threading.Thread(target=KINDS[kind], args=(int(port),)) for kind, port in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
