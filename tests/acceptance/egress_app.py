"""Code in a session that tries to send something out, by every way that a program without rights has, and tells what became of it.

    POST /try   {"address", "port", "name", "marker", "wait"}: a word for each way, `answered`, `sent` or the error
"""

import concurrent.futures
import http.server
import json
import os
import socket
import struct


def question(name):
    """A DNS question for the address of a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack(">6H", 4711, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", 1, 1)


def tcp(asked):
    with socket.create_connection((asked["address"], asked["port"]), timeout=asked["wait"]) as stream:
        stream.sendall(asked["marker"].encode())
        return "answered" if stream.recv(100) else "closed"


def datagrams(asked, kind, protocol, port, content):
    with socket.socket(socket.AF_INET, kind, protocol) as sender:
        sender.settimeout(asked["wait"])
        sender.sendto(content, (asked["address"], port))
        try:
            return "answered" if sender.recvfrom(1000) else "closed"
        except TimeoutError:
            return "sent"


def udp(asked):
    return datagrams(asked, socket.SOCK_DGRAM, 0, asked["port"], asked["marker"].encode())


def icmp(asked, kind=socket.SOCK_DGRAM):
    echo = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + asked["marker"].encode()
    # the kernel counts the sum of sockets for datagrams, not that of raw ones
    total = sum(struct.unpack(f">{(len(echo) + 1) // 2}H", echo + b"\0" * (len(echo) % 2)))
    total = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return datagrams(asked, kind, socket.IPPROTO_ICMP, 0, echo[:2] + struct.pack(">H", total) + echo[4:])


def raw_icmp(asked):
    return icmp(asked, socket.SOCK_RAW)


def frame(asked):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind(("lo", 0))
        sender.send(b"\xff" * 12 + b"\x08\x00" + asked["marker"].encode())
        return "sent"


def tcp6(asked):
    with socket.create_connection(("2001:db8::1", asked["port"]), timeout=asked["wait"]):
        return "answered"


def dns(asked):
    """By the resolver that the container was given."""
    return "answered" if socket.getaddrinfo(asked["name"], 80) else "empty"


def dns_elsewhere(asked):
    """A question to a resolver of one's own choice."""
    return datagrams(asked, socket.SOCK_DGRAM, 0, 53, question(asked["name"]))


WAYS = [tcp, udp, icmp, raw_icmp, frame, tcp6, dns, dns_elsewhere]


def became(way, asked):
    try:
        return way(asked)
    except OSError as error:
        return type(error).__name__ + f": {error}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with concurrent.futures.ThreadPoolExecutor(len(WAYS)) as crowd:
            told = dict(zip([way.__name__ for way in WAYS], crowd.map(lambda way: became(way, asked), WAYS)))
        content = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ.get("PORT", "80"))), Handler).serve_forever()
