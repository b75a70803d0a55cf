"""A server in a session: tells what it was asked, remembers, streams, speaks WebSocket, ends when told to.

    ANY /echo…      what was asked: method, target, headers, size of the body, how many calls this process has had
    POST /body      the body back
    POST /print     prints the body
    GET  /stream    three lines; each after the first waits for a POST to /next
    GET  /ws        WebSocket: every text message comes back
    POST /exit      the process ends
"""

import base64
import hashlib
import http.server
import json
import os
import threading

PORT = int(os.environ.get("PORT", "80"))
MAGIC = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CALLS = []
NEXT = threading.Semaphore(0)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def body(self):
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            whole = b""
            while size := int(self.rfile.readline(), 16):
                whole += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return whole
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content, kind="application/json"):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def one(self):
        path = self.path.split("?")[0]
        if path == "/ws" and self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        if path == "/stream":
            return self.stream()
        content = self.body()
        CALLS.append(path)
        if path == "/body":
            return self.answer(content, "application/octet-stream")
        if path == "/print":
            print(content.decode(), flush=True)
        if path == "/next":
            NEXT.release()
        told = {
            "method": self.command, "target": self.path, "size": len(content), "calls": len(CALLS),
            "headers": {name.lower(): value for name, value in self.headers.items()},
        }  # fmt: skip
        self.answer(json.dumps(told).encode())
        if path == "/exit":
            self.wfile.flush()
            os._exit(7)
        return None

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = do_OPTIONS = one

    def stream(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            if number:
                NEXT.acquire()
            line = f"line {number}\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def websocket(self):
        key = self.headers["Sec-WebSocket-Key"] + MAGIC
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.wfile.flush()
        while True:
            head = self.rfile.read(2)
            if len(head) < 2:
                break
            size = head[1] & 0x7F
            if size == 126:
                size = int.from_bytes(self.rfile.read(2), "big")
            mask = self.rfile.read(4)
            content = bytes(byte ^ mask[at % 4] for at, byte in enumerate(self.rfile.read(size)))
            if head[0] & 0x0F == 8:
                self.wfile.write(bytes([0x88, len(content)]) + content)
                break
            size = bytes([len(content)]) if len(content) < 126 else bytes([126]) + len(content).to_bytes(2, "big")
            self.wfile.write(bytes([head[0] & 0x8F]) + size + content)
            self.wfile.flush()
        self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


# the image has none
os.makedirs("/tmp", exist_ok=True)
print(f"listening on {PORT}", flush=True)
Server(("0.0.0.0", PORT), Handler).serve_forever()
