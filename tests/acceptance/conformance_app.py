"""Runs inside the image of the conformance tests: `http PORT`, `websocket PORT`, `bytes PORT` or `grpc PORT`."""

import asyncio
import base64
import hashlib
import http.server
import json
import os
import signal
import socketserver
import sys
import threading
import time
import zlib

KEY_SUFFIX = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
LINE = b"0123456789abcdef" * 4096


def pattern(length):
    """Bytes that say where they are."""
    return (LINE * (length // len(LINE) + 1))[:length]


class Http(http.server.BaseHTTPRequestHandler):
    """Answers by path, see `do`; counts the connections that it was sent."""

    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self):
        super().setup()
        type(self).connections += 1

    def handle_expect_100(self):
        # said only by the paths that want the body
        return True

    def body(self):
        """The request's body and its trailers."""
        if "chunked" not in (self.headers.get("transfer-encoding") or ""):
            return self.rfile.read(int(self.headers.get("content-length") or 0)), {}
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        trailers = {}
        while line := self.rfile.readline().strip():
            name, value = line.decode().split(":", 1)
            trailers[name.lower()] = value.strip()
        return b"".join(parts), trailers

    def say(self, status, body=b"", **fields):
        self.send_response(status)
        if status not in (204, 304):
            self.send_header("content-length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD" and status not in (204, 304):
            self.wfile.write(body)

    def do(self):
        path, _, query = self.path.partition("?")
        words = path.strip("/").split("/")
        getattr(self, f"on_{words[0]}", self.on_)(*words[1:])

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = do_QUERY = do

    def on_(self, *_):
        """What was asked."""
        body, trailers = self.body()
        seen = {
            "method": self.command,
            "path": self.path,
            "version": self.request_version,
            "fields": [[name.lower(), value] for name, value in self.headers.items()],
            "length": len(body),
            "sha256": hashlib.sha256(body).hexdigest(),
            "trailers": trailers,
            "connections": self.connections,
        }
        self.say(200, json.dumps(seen).encode(), content_type="application/json")

    def on_echo(self, *_):
        body, _ = self.body()
        self.say(200, body, x_length=str(len(body)))

    def on_bytes(self, length):
        """So many bytes, or a range of them."""
        self.body()
        whole = pattern(int(length))
        wanted = self.headers.get("range")
        if not wanted:
            return self.say(200, whole, accept_ranges="bytes", etag='"1"')
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        first, last = int(first), int(last or len(whole) - 1)
        if first >= len(whole):
            return self.say(416, content_range=f"bytes */{len(whole)}")
        part = whole[first : last + 1]
        return self.say(206, part, content_range=f"bytes {first}-{first + len(part) - 1}/{len(whole)}")

    def on_chunked(self, length):
        """In chunks, with a trailer that the head announces."""
        self.body()
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "x-checksum")
        self.end_headers()
        if self.command == "HEAD":
            return
        whole = pattern(int(length))
        for at in range(0, len(whole), 10_000):
            part = whole[at : at + 10_000]
            self.wfile.write(b"%x;some=extension\r\n%b\r\n" % (len(part), part))
        self.wfile.write(b"0\r\nx-checksum: %d\r\n\r\n" % zlib.crc32(whole))

    def on_close(self, length):
        """Without a length: the end of the stream is the end of the body."""
        self.body()
        self.send_response(200)
        self.send_header("connection", "close")
        self.end_headers()
        self.wfile.write(pattern(int(length)))

    def on_status(self, status):
        self.body()
        self.say(int(status), b"" if status in ("204", "304") else b"as you wish\n")

    def on_refuse(self, status):
        """Answers before the body is read."""
        self.close_connection = True
        self.say(int(status), b"not wanted\n", connection="close")

    def on_hints(self):
        """Two early hints and another interim answer before the answer."""
        self.body()
        self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>; rel=preload; as=style\r\n")
        self.wfile.write(b"link: </app.js>; rel=preload; as=script\r\nconnection: x-private\r\nx-private: 1\r\n\r\n")
        self.wfile.write(b"HTTP/1.1 102 Processing\r\n\r\n")
        # the client lets the answer come when it has seen them
        seen = self.headers.get("x-wait-for")
        if seen and not EVENTS[seen].wait(20):
            return self.say(500, b"nobody saw the hints")
        return self.say(200, b"the answer")

    def on_saw(self, name):
        EVENTS[name].set()
        self.say(204)

    def log_message(self, *_):
        pass


class Events(dict):
    """Events by name, made when first asked for."""

    lock = threading.Lock()

    def __getitem__(self, name):
        with self.lock:
            return self.setdefault(name, threading.Event())


EVENTS = Events()


def serve_http(port):
    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 256

    Server(("0.0.0.0", port), Http).serve_forever()


def serve_websocket(port):
    """Echoes messages; takes any subprotocol of `chat` and `superchat`, and compresses if asked."""
    from websockets.asyncio.server import serve

    async def echo(socket):
        async for message in socket:
            if message == "close with 4001":
                await socket.close(4001, "as you wish")
            elif message == "ping me":
                await (await socket.ping(b"are you there"))
                await socket.send("you are there")
            elif message == "in fragments":
                await socket.send(iter_of(["in ", "", "frag", "ments"]))
            else:
                await socket.send(message)

    async def iter_of(parts):
        for part in parts:
            yield part

    def choose(_socket, offered):
        return next((name for name in offered if name in ("chat", "superchat")), None)

    async def run():
        async with serve(echo, "0.0.0.0", port, max_size=None, ping_interval=None, select_subprotocol=choose) as server:
            await server.serve_forever()

    asyncio.run(run())


class Bytes(socketserver.StreamRequestHandler):
    """Switches to WebSocket, then says back every byte as it came, until the end of the stream; then `over`, unless the path
    is `/silent`. The path `/first/HEX` says those bytes in one write with the answer's head."""

    def handle(self):
        path = self.rfile.readline().split()[1].decode()
        fields = {}
        while line := self.rfile.readline().strip():
            name, value = line.split(b":", 1)
            fields[name.lower()] = value.strip()
        accept = base64.b64encode(hashlib.sha1(fields[b"sec-websocket-key"] + KEY_SUFFIX).digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n"
        first = bytes.fromhex(path.removeprefix("/first/")) if path.startswith("/first/") else b""
        self.wfile.write(head + b"sec-websocket-accept: " + accept + b"\r\n\r\n" + first)
        while said := self.rfile.read1(65536):
            self.wfile.write(said)
        if path != "/silent":
            self.wfile.write(b"over")


def serve_bytes(port):
    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address, daemon_threads, request_queue_size = True, True, 64

    Server(("0.0.0.0", port), Bytes).serve_forever()


def serve_grpc(port):
    """The methods of gRPC's interop tests, by bytes: a message is `NUMBER` of bytes to answer, a space, and a payload."""
    from concurrent import futures

    import grpc

    def sized(request):
        size, _, _ = request.partition(b" ")
        return pattern(int(size))

    def echo_metadata(context):
        asked = dict(context.invocation_metadata())
        if "x-grpc-test-echo-initial" in asked:
            context.send_initial_metadata((("x-grpc-test-echo-initial", asked["x-grpc-test-echo-initial"]),))
        if "x-grpc-test-echo-trailing-bin" in asked:
            context.set_trailing_metadata((("x-grpc-test-echo-trailing-bin", asked["x-grpc-test-echo-trailing-bin"]),))
        return asked

    def unary(request, context):
        asked = echo_metadata(context)
        if asked.get("x-compress"):
            context.set_compression(grpc.Compression.Gzip)
        if code := asked.get("x-status"):
            number = next(each for each in grpc.StatusCode if each.value[0] == int(code))
            context.abort(number, asked.get("x-message-bin", b"").decode())
        return sized(request)

    def empty(request, context):
        if request != b"":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not empty")
        return b""

    def collect(requests, context):
        return b"%d" % sum(len(request) for request in requests)

    def output(request, context):
        for size in request.split(b","):
            yield pattern(int(size))

    def full_duplex(requests, context):
        echo_metadata(context)
        for request in requests:
            for size in request.partition(b" ")[0].split(b","):
                yield pattern(int(size))

    def half_duplex(requests, context):
        yield from [sized(request) for request in list(requests)]

    def cancelled(request, context):
        """How many calls of `Wait` were seen to be cancelled."""
        with seen:
            if not seen.wait_for(lambda: count[0] >= int(request), timeout=20):
                context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, f"{count[0]} were cancelled")
            return b"%d" % count[0]

    def wait(requests, context):
        ended = threading.Event()

        def note():
            with seen:
                count[0] += 1
                seen.notify_all()
            ended.set()

        context.add_callback(note)
        yield b"begun"
        ended.wait(60)

    def whoami(request, context):
        """Metadata as it came, and whether the connection's peer spoke TLS to us."""
        return json.dumps([[name, value if isinstance(value, str) else value.hex()]
                           for name, value in context.invocation_metadata()]).encode()  # fmt: skip

    seen, count = threading.Condition(), [0]
    handlers = {
        "EmptyCall": grpc.unary_unary_rpc_method_handler(empty),
        "UnaryCall": grpc.unary_unary_rpc_method_handler(unary),
        "StreamingInputCall": grpc.stream_unary_rpc_method_handler(collect),
        "StreamingOutputCall": grpc.unary_stream_rpc_method_handler(output),
        "FullDuplexCall": grpc.stream_stream_rpc_method_handler(full_duplex),
        "HalfDuplexCall": grpc.stream_stream_rpc_method_handler(half_duplex),
        "Wait": grpc.stream_stream_rpc_method_handler(wait),
        "Cancelled": grpc.unary_unary_rpc_method_handler(cancelled),
        "WhoAmI": grpc.unary_unary_rpc_method_handler(whoami),
    }
    limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=64), options=limits)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("grpc.testing.TestService", handlers),))
    server.add_insecure_port(f"0.0.0.0:{port}")
    server.start()
    server.wait_for_termination()


def main():
    # the first process of a container gets no signal that it does not ask for
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    kind, port = sys.argv[1:]
    {"http": serve_http, "websocket": serve_websocket, "bytes": serve_bytes, "grpc": serve_grpc}[kind](int(port))


if __name__ == "__main__":
    main()
