"""WebSockets go through as they are (RFC 6455): over HTTP/1.1 and streams of HTTP/2 (RFC 8441), with TLS and without.

In the order of Autobahn's test suite. Wherever a rule is broken it is the app that says so: the ingress passes what it gets
and invents nothing. Frames are made by hand, or by a real client library.
"""

import base64
import contextlib
import hashlib
import os
import random
import socket
import ssl
import struct
import unittest

import websockets.exceptions
import websockets.sync.client

import conformance
from conformance import Deadline
from h2_wire import Tunnel

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY_SUFFIX = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
WAYS = ("HTTP/1.1", "HTTP/1.1 with TLS", "HTTP/2", "HTTP/2 with TLS")


def frame(opcode, payload=b"", is_last=True, reserved=0, is_masked=True):
    """A frame's bytes as a client sends them."""
    head = bytes([(0x80 if is_last else 0) | reserved << 4 | opcode])
    mask_bit = 0x80 if is_masked else 0
    if len(payload) < 126:
        head += bytes([mask_bit | len(payload)])
    elif len(payload) < 1 << 16:
        head += bytes([mask_bit | 126]) + struct.pack(">H", len(payload))
    else:
        head += bytes([mask_bit | 127]) + struct.pack(">Q", len(payload))
    if not is_masked:
        return head + payload
    mask = os.urandom(4)
    repeated = int.from_bytes((mask * (len(payload) // 4 + 1))[: len(payload)], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ repeated).to_bytes(len(payload), "big")


def text(message, **options):
    return frame(TEXT, message.encode(), **options)


def close(code=None, reason=b""):
    return frame(CLOSE, b"" if code is None else struct.pack(">H", code) + reason)


class Socket:
    """A WebSocket of bytes: one connection or stream, behind its handshake."""

    def __init__(self, stream, status, fields, rest=b""):
        self.stream, self.status, self.fields, self.buffer = stream, status, fields, rest

    def send(self, *pieces):
        self.stream.sendall(b"".join(pieces))

    def read(self, count):
        while len(self.buffer) < count:
            part = self.stream.recv(1 << 16)
            if not part:
                raise EOFError(f"ended within {self.buffer[:40]!r}")
            self.buffer += part
        part, self.buffer = self.buffer[:count], self.buffer[count:]
        return part

    def rest(self):
        """All that comes until the end of the stream."""
        while part := self.stream.recv(1 << 16):
            self.buffer += part
        return self.buffer

    def frame(self):
        """The next frame: opcode, payload, whether it is the last of its message."""
        first, second = self.read(2)
        length = second & 0x7F
        if length >= 126:
            length = int.from_bytes(self.read(2 if length == 126 else 8), "big")
        assert not second & 0x80, "a server masks nothing"
        return first & 0x0F, self.read(length), bool(first & 0x80)

    def message(self):
        """The next message, whole."""
        opcode, payload, is_last = self.frame()
        while not is_last:
            _, part, is_last = self.frame()
            payload += part
        return opcode, payload

    def close_code(self):
        """The code of the close frame that comes next, and that it is the end."""
        opcode, payload = self.message()
        assert opcode == CLOSE, (opcode, payload[:40])
        return int.from_bytes(payload[:2], "big") if payload else None


class Case(conformance.Case):
    APPS = {"echo": ("auto", "websocket"), "bytes": ("auto", "bytes")}

    def open(self, way, app="echo", path="/", head=b"", **fields):
        """A WebSocket, one of the `WAYS`; `head` is sent together with the handshake's."""
        host = self.hosts[app]
        fields = {"sec-websocket-version": "13", **{name.replace("_", "-"): value for name, value in fields.items()}}
        is_http2, is_tls = "HTTP/2" in way, "TLS" in way
        stream = self.connect(host, ["h2" if is_http2 else "http/1.1"] if is_tls else None)
        self.addCleanup(stream.close)
        if is_http2:
            asked = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https" if is_tls else "http"),
                     (":path", path), (":authority", host), *fields.items()]  # fmt: skip
            tunnel = Tunnel(stream, asked, Deadline(60))
            return Socket(tunnel, tunnel.status, tunnel.fields)
        key = base64.b64encode(os.urandom(16)).decode()
        fields = {"host": host, "upgrade": "websocket", "connection": "Upgrade", "sec-websocket-key": key, **fields}
        lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items())]
        stream.sendall("\r\n".join([*lines, "", ""]).encode() + head)
        told = b""
        while b"\r\n\r\n" not in told:
            part = stream.recv(4096)
            self.assertTrue(part, told)
            told += part
        told, _, rest = told.partition(b"\r\n\r\n")
        status, *lines = told.decode().split("\r\n")
        answered = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        status = int(status.split()[1])
        if status == 101:
            accept = base64.b64encode(hashlib.sha1((key + KEY_SUFFIX).encode()).digest()).decode()
            self.assertEqual(answered["sec-websocket-accept"], accept)
            self.assertEqual((answered["upgrade"].lower(), answered["connection"].lower()), ("websocket", "upgrade"))
        return Socket(stream, status, answered, rest)

    def ways(self, *only):
        for self.way in only or WAYS:
            yield self.way

    def run(self, result=None):
        self.way = None
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            print(f"--- {self.id()} went wrong over {self.way}")
        return result


class Frames(Case):
    """Each of Autobahn's groups, over each way."""

    def test_1_lengths(self):
        lengths = (0, 1, 125, 126, 127, 128, 65_535, 65_536)
        for way in self.ways():
            socket = self.open(way)
            for length in lengths:
                message = "*" * length
                socket.send(text(message))
                self.assertEqual(socket.message(), (TEXT, message.encode()))
                socket.send(frame(BINARY, b"\xfe" * length))
                self.assertEqual(socket.message(), (BINARY, b"\xfe" * length))

    def test_1_frames_in_pieces(self):
        for way in self.ways():
            socket = self.open(way)
            whole = frame(BINARY, bytes(range(256)))
            for at in range(0, len(whole), 7):
                socket.send(whole[at : at + 7])
            self.assertEqual(socket.message(), (BINARY, bytes(range(256))))
            # and many at once
            socket.send(*[text(str(number)) for number in range(200)])
            self.assertEqual([socket.message() for _ in range(200)], [(TEXT, str(number).encode()) for number in range(200)])

    def test_2_pings(self):
        for way in self.ways():
            socket = self.open(way)
            for payload in (b"", b"hello", bytes(range(125)), b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"):
                socket.send(frame(PING, payload))
                self.assertEqual(socket.frame(), (PONG, payload, True))
            # an unasked pong is answered by nothing
            socket.send(frame(PONG, b"unasked"), frame(PING, b"asked"))
            self.assertEqual(socket.frame(), (PONG, b"asked", True))
            socket.send(*[frame(PING, b"%d" % number) for number in range(10)])
            self.assertEqual([socket.frame()[1] for _ in range(10)], [b"%d" % number for number in range(10)])
            # one of the app's
            socket.send(text("ping me"))
            opcode, payload, _ = socket.frame()
            self.assertEqual((opcode, payload), (PING, b"are you there"))
            socket.send(frame(PONG, payload))
            self.assertEqual(socket.message(), (TEXT, b"you are there"))

    def expect_code(self, code, *pieces):
        for way in self.ways():
            socket = self.open(way)
            socket.send(text("good"))
            self.assertEqual(socket.message(), (TEXT, b"good"))
            socket.send(*pieces)
            self.assertEqual(socket.close_code(), code)
            # the app's part is done; now it is the client's turn
            socket.send(close(code))
            self.assertEqual(socket.rest(), b"")

    def test_2_too_large_a_ping(self):
        self.expect_code(1002, frame(PING, bytes(126)))

    def test_2_a_ping_in_parts(self):
        self.expect_code(1002, frame(PING, b"part", is_last=False))

    def test_3_reserved_bits(self):
        for reserved in range(1, 8):
            self.expect_code(1002, frame(TEXT, b"x", reserved=reserved))

    def test_4_opcodes(self):
        for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
            self.expect_code(1002, frame(opcode, b"x"))

    def test_5_fragments(self):
        for way in self.ways():
            socket = self.open(way)
            socket.send(text("frag", is_last=False), frame(CONTINUATION, b"", is_last=False), frame(CONTINUATION, b"ment"))
            self.assertEqual(socket.message(), (TEXT, b"fragment"))
            socket.send(text("one ", is_last=False), frame(PING, b"between"), frame(CONTINUATION, b"two"))
            self.assertEqual(socket.frame(), (PONG, b"between", True))
            self.assertEqual(socket.message(), (TEXT, b"one two"))
            # those of the app come as it made them
            socket.send(text("in fragments"))
            parts = [socket.frame() for _ in range(5)]
            self.assertEqual([part[1] for part in parts], [b"in ", b"", b"frag", b"ments", b""])
            self.assertEqual([part[0] for part in parts], [TEXT, *[CONTINUATION] * 4])
            self.assertEqual([part[2] for part in parts], [False] * 4 + [True])

    def test_5_fragments_out_of_order(self):
        self.expect_code(1002, frame(CONTINUATION, b"of nothing"))
        self.expect_code(1002, text("one", is_last=False), text("two"))

    def test_6_text(self):
        for way in self.ways():
            socket = self.open(way)
            for message in ("Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\U0001f600\U0010ffff", "\0", "\ufeff\ufffe"):
                encoded = message.encode()
                socket.send(text(message))
                self.assertEqual(socket.message(), (TEXT, encoded))
                # cut within a letter
                socket.send(*[frame(CONTINUATION if at else TEXT, encoded[at : at + 1], is_last=at == len(encoded) - 1)
                              for at in range(len(encoded))])  # fmt: skip
                self.assertEqual(socket.message(), (TEXT, encoded))

    def test_6_no_text(self):
        for payload in (b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited", b"\xf4\x90\x80\x80", b"\xc0\xaf", b"\x80"):
            self.expect_code(1007, frame(TEXT, payload))

    def test_7_closing(self):
        for way in self.ways():
            for code in (None, 1000, 1001, 1003, 1007, 1011, 3000, 3999, 4000, 4999):
                socket = self.open(way)
                socket.send(close(code, b"" if code is None else b"over"))
                self.assertEqual(socket.close_code(), code)
                self.assertEqual(socket.rest(), b"", "nothing comes behind it")

    def test_7_the_app_closes(self):
        for way in self.ways():
            socket = self.open(way)
            socket.send(text("close with 4001"))
            self.assertEqual(socket.message(), (CLOSE, struct.pack(">H", 4001) + b"as you wish"))
            socket.send(close(4001))
            self.assertEqual(socket.rest(), b"")

    def test_7_bad_closing(self):
        for code in (0, 999, 1004, 1005, 1006, 1016, 2999, 5000, 65_535):
            self.expect_code(1002, close(code))
        self.expect_code(1002, frame(CLOSE, b"\x03"))
        self.expect_code(1002, close(1000, bytes(124)))
        self.expect_code(1007, close(1000, b"\xff"))

    def test_9_large_messages(self):
        for way in self.ways():
            socket = self.open(way)
            payload = random.Random(9).randbytes(1 << 20)
            for fragment in (len(payload), 65_536, 1_000):
                parts = [payload[at : at + fragment] for at in range(0, len(payload), fragment)]
                for number, part in enumerate(parts):
                    socket.send(frame(CONTINUATION if number else BINARY, part, is_last=number == len(parts) - 1))
                self.assertEqual(socket.message(), (BINARY, payload))

    def test_an_unmasked_frame(self):
        self.expect_code(1002, frame(TEXT, b"x", is_masked=False))


class Transparent(Case):
    """Bytes go through as they are, whatever they are."""

    def test_bytes_both_ways(self):
        for way in self.ways():
            socket = self.open(way, "bytes")
            sent = random.Random(1).randbytes(400_000)
            heard, at = b"", 0
            for size in cycled((1, 13, 1_000, 20_000, 65_536), len(sent)):
                socket.send(sent[at : at + size])
                heard += socket.read(size)
                at += size
            self.assertEqual(heard, sent)

    def test_the_end_of_one_direction(self):
        """The app still speaks when the client has said all."""
        for way in self.ways("HTTP/1.1", "HTTP/2", "HTTP/2 with TLS"):
            socket = self.open(way, "bytes")
            socket.send(b"last words ")
            self.assertEqual(socket.read(11), b"last words ")
            socket.stream.shutdown(1)
            self.assertEqual(socket.rest(), b"over")

    def test_bytes_behind_the_heads(self):
        """Those that come in one packet with a handshake's head are not lost."""
        first = bytes(range(250))
        for way in self.ways():
            self.assertEqual(self.open(way, "bytes", f"/first/{first.hex()}").read(250), first)
        for way in self.ways("HTTP/1.1", "HTTP/1.1 with TLS"):
            self.assertEqual(self.open(way, "bytes", head=first).read(250), first)

    def test_a_client_that_breaks_off(self):
        """The app's end of the tunnel ends too: it takes another, and all of them still work."""
        for way in self.ways():
            for _ in range(5):
                socket = self.open(way, "bytes", "/silent")
                socket.send(b"x")
                self.assertEqual(socket.read(1), b"x")
                break_off(socket.stream)
            socket = self.open(way, "bytes")
            socket.send(b"y")
            self.assertEqual(socket.read(1), b"y")

    def test_streams_of_one_connection_are_apart(self):
        host = self.hosts["bytes"]
        stream = self.connect(host, ["h2"])
        self.addCleanup(stream.close)
        asked = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "https"), (":path", "/"), (":authority", host),
                 ("sec-websocket-version", "13")]  # fmt: skip
        deadline = Deadline(60)
        first = Tunnel(stream, asked, deadline)
        tunnels = [first, *(Tunnel(None, asked, deadline, first.wire, number) for number in (3, 5, 7))]
        self.assertEqual([tunnel.status for tunnel in tunnels], [200] * 4)
        for length in (10, 10_000, 60_000):
            for tunnel in tunnels:
                tunnel.sendall(b"%d" % tunnel.number * length)
            for tunnel in tunnels:
                self.assertEqual(Socket(tunnel, 200, {}).read(length), b"%d" % tunnel.number * length)
        # the end of one is none of another
        first.reset()
        tunnels[1].shutdown(1)
        self.assertEqual(Socket(tunnels[1], 200, {}).rest(), b"over")
        tunnels[2].sendall(b"still here")
        self.assertEqual(Socket(tunnels[2], 200, {}).read(10), b"still here")


class Handshakes(Case):
    """What is agreed upon is agreed upon by client and app."""

    def test_subprotocol_and_fields(self):
        for way in self.ways():
            socket = self.open(way, sec_websocket_protocol="other, superchat", origin="https://shop.example")
            self.assertEqual(socket.status, 200 if "HTTP/2" in way else 101)
            self.assertEqual(socket.fields["sec-websocket-protocol"], "superchat")
            # no extension was asked for
            self.assertNotIn("sec-websocket-extensions", socket.fields)
            if "HTTP/2" in way:
                self.assertFalse({"sec-websocket-accept", "upgrade", "connection"} & set(socket.fields))

    def test_versions(self):
        """An app that speaks no such version says so itself."""
        for way in self.ways():
            socket = self.open(way, sec_websocket_version="7")
            self.assertEqual(socket.status, 400)
            self.assertNotIn("x-cove-reason", socket.fields)

    def test_compression(self):
        """Compressed frames (RFC 7692) are the business of both ends: their bit and their bytes stay."""
        for way in self.ways():
            socket = self.open(way, sec_websocket_extensions="permessage-deflate; client_max_window_bits")
            self.assertIn("permessage-deflate", socket.fields["sec-websocket-extensions"])
            # `Hello`, as in RFC 7692, 7.2.3.1
            socket.send(frame(TEXT, bytes.fromhex("f248cdc9c90700"), reserved=4))
            first, second = socket.read(2)
            self.assertEqual(first, 0xC1)
            self.assertEqual(socket.read(second)[:2], bytes.fromhex("f248"))

    def test_a_real_client(self):
        for way in self.ways("HTTP/1.1", "HTTP/1.1 with TLS"):
            host, is_tls = self.hosts["echo"], "TLS" in way
            # this client reads in a thread of its own, and Python's TLS does not bear that while a ticket of TLS 1.3 comes
            older = (ssl.TLSVersion.TLSv1_2,) * 2 if is_tls else None
            stream = self.connect(host, ["http/1.1"] if is_tls else None, older)
            address = f"ws://{host}:{self.address(is_tls)[1]}/some/path?query"
            with websockets.sync.client.connect(
                address, sock=stream, subprotocols=["chat"], compression="deflate", max_size=None, proxy=None
            ) as socket:
                self.assertEqual(socket.subprotocol, "chat")
                self.assertEqual([extension.name for extension in socket.protocol.extensions], ["permessage-deflate"])
                for message in ("hello", "x" * (4 << 20), b"\0\xff" * 100_000, ""):
                    socket.send(message)
                    self.assertEqual(socket.recv(conformance.WITHIN_SECONDS), message)
                socket.send(["in ", "parts"])
                self.assertEqual(socket.recv(conformance.WITHIN_SECONDS), "in parts")
                self.assertTrue(socket.ping().wait(conformance.WITHIN_SECONDS))
                socket.send("close with 4001")
                with self.assertRaises(websockets.exceptions.ConnectionClosed) as closed:
                    socket.recv(conformance.WITHIN_SECONDS)
                self.assertEqual((closed.exception.rcvd.code, closed.exception.rcvd.reason), (4001, "as you wish"))

    def test_nothing_is_invented(self):
        """An idle WebSocket stays silent: the first bytes are those that the app was asked for."""
        for way in self.ways():
            socket = self.open(way, "bytes")
            socket.send(b"\x89\x00")
            self.assertEqual(socket.read(2), b"\x89\x00")
            self.assertEqual(socket.buffer, b"")


def cycled(sizes, total):
    """Sizes from a list, again and again, that make up `total`."""
    at = number = 0
    while at < total:
        size = min(sizes[number % len(sizes)], total - at)
        yield size
        at, number = at + size, number + 1


def break_off(stream):
    """Ends a connection without a word, or a stream by a reset."""
    if isinstance(stream, Tunnel):
        stream.reset()
        stream = stream.wire.socket
    with contextlib.suppress(OSError):
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


if __name__ == "__main__":
    unittest.main()
