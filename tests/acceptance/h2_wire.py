"""HTTP/2 as bytes: frames that a library would not send, and what comes back for them, until it is what is waited for."""

import dataclasses
import socket
import ssl
import struct

import hpack
import hyperframe.exceptions
import hyperframe.frame as frames

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED, HAS_PRIORITY = 0x1, 0x1, 0x4, 0x8, 0x20

CODES = (
    "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
    "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
)  # fmt: skip


def frame(kind, flags=0, stream=0, payload=b"", length=None):
    """A frame's bytes; `length` is what it claims to have, where that is a lie."""
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def block(fields):
    """Fields as a header block that needs no table."""
    encoder = hpack.Encoder()
    return encoder.encode([hpack.NeverIndexedHeaderTuple(name, value) for name, value in fields])


def literal(name, value):
    """A field as plain bytes, whatever is in it: literal, never indexed, not compressed."""
    assert len(name) < 127 and len(value) < 127
    return b"\x10" + bytes([len(name)]) + name + bytes([len(value)]) + value


def headers(fields, stream=1, flags=END_HEADERS | END_STREAM):
    """A request's head in one frame; `fields` may be a block already."""
    return frame(HEADERS, flags, stream, fields if isinstance(fields, bytes) else block(fields))


def data(payload, stream=1, flags=END_STREAM):
    return frame(DATA, flags, stream, payload)


def settings(*pairs, flags=0, stream=0):
    return frame(SETTINGS, flags, stream, b"".join(struct.pack(">HI", name, value) for name, value in pairs))


def window_update(increment, stream=0):
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def reset(stream=1, code=8):
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def ping(payload=b"12345678", flags=0, stream=0):
    return frame(PING, flags, stream, payload)


def goaway(last=0, code=0, stream=0):
    return frame(GOAWAY, 0, stream, struct.pack(">II", last, code))


@dataclasses.dataclass
class Stream:
    """What came for a stream."""

    status: int = None
    fields: dict = dataclasses.field(default_factory=dict)
    trailers: dict = None
    body: bytes = b""
    # bytes of each DATA frame
    parts: list = dataclasses.field(default_factory=list)
    is_ended: bool = False
    reset: str = None


class Wire:
    """A connection; after `begin` both sides have said their settings."""

    def __init__(self, stream):
        self.socket = stream
        self.decoder = hpack.Decoder()
        self.decoder.max_allowed_table_size = 1 << 16
        self.buffer = b""
        self.streams = {}
        # all that came, in words
        self.story = []
        self.settings = None
        self.settings_acks = 0
        self.pongs = []
        self.goaway = None
        self.is_closed = False
        self.updates = []
        self._block = None

    def send(self, *pieces):
        """Sends bytes; a peer that closed meanwhile is found by reading."""
        try:
            self.socket.sendall(b"".join(pieces))
        except (BrokenPipeError, ConnectionResetError, ssl.SSLEOFError):
            # `SSLEOFError` is what Python's TLS makes of a broken pipe
            self.story.append("the peer took no more bytes")

    def begin(self, *pairs, deadline):
        self.send(PREFACE, settings(*pairs))
        self.until(lambda: self.settings is not None and self.settings_acks, deadline)

    def until(self, is_so, deadline):
        """Reads until `is_so`, the end of the stream or the deadline; says whether `is_so`."""
        while not is_so():
            if self.is_closed or not self._read_frame(deadline):
                return bool(is_so())
        return True

    def until_closed(self, deadline):
        return self.until(lambda: self.is_closed, deadline)

    def _read_frame(self, deadline):
        while len(self.buffer) < 9 or len(self.buffer) < 9 + int.from_bytes(self.buffer[:3], "big"):
            self.socket.settimeout(deadline.left())
            try:
                received = self.socket.recv(1 << 16)
            except (TimeoutError, socket.timeout):
                self.story.append("nothing more in time")
                return False
            except OSError as error:
                self.story.append(type(error).__name__)
                received = b""
            if not received:
                self.is_closed = True
                self.story.append("closed" if not self.buffer else f"closed after {self.buffer[:80]!r}")
                return True
            self.buffer += received
        try:
            head, length = frames.Frame.parse_frame_header(memoryview(self.buffer[:9]))
            head.parse_body(memoryview(self.buffer[9 : 9 + length]))
        except hyperframe.exceptions.HyperframeError as error:
            raise AssertionError(f"the server sent a bad frame: {error}, {self.buffer[:32]!r}") from error
        self.buffer = self.buffer[9 + length :]
        self._take(head)
        return True

    def _take(self, it):
        self.story.append(type(it).__name__ + (f" {it.stream_id}" if it.stream_id else ""))
        if self._block is not None and not isinstance(it, frames.ContinuationFrame):
            raise AssertionError("the server put another frame into a header block")
        stream = self.streams.setdefault(it.stream_id, Stream()) if it.stream_id else None
        match it:
            case frames.SettingsFrame():
                if "ACK" in it.flags:
                    self.settings_acks += 1
                else:
                    self.settings = {**(self.settings or {}), **it.settings}
                    self.send(settings(flags=ACK))
            case frames.PingFrame():
                if "ACK" in it.flags:
                    self.pongs.append(it.opaque_data)
                else:
                    self.send(ping(it.opaque_data, ACK))
            case frames.GoAwayFrame():
                self.goaway = (CODES[it.error_code], it.last_stream_id)
                self.story[-1] += f" {self.goaway[0]} {it.additional_data!r}"
            case frames.WindowUpdateFrame():
                self.updates.append((it.stream_id, it.window_increment))
            case frames.RstStreamFrame():
                stream.reset = CODES[it.error_code]
                self.story[-1] += f" {stream.reset}"
            case frames.HeadersFrame() | frames.ContinuationFrame():
                self._block = (self._block or b"") + it.data
                stream.is_ended |= "END_STREAM" in it.flags
                if "END_HEADERS" in it.flags:
                    self._take_fields(stream)
            case frames.DataFrame():
                stream.body += it.data
                stream.parts.append(len(it.data))
                stream.is_ended |= "END_STREAM" in it.flags
                self.story[-1] += f" {len(it.data)} bytes"

    def _take_fields(self, stream):
        fields = self.decoder.decode(self._block)
        self._block = None
        if stream.status is not None and stream.status >= 200:
            stream.trailers = dict(fields)
            return
        stream.fields = dict(fields)
        stream.status = int(stream.fields.pop(":status"))
        self.story[-1] += f" {stream.status}"


# What must come. Each is asked of a wire after all was sent; each reads only as far as it needs.


@dataclasses.dataclass(frozen=True)
class Goaway:
    """The connection ends, and a GOAWAY says why: one of these codes (RFC 9113, 5.4.1)."""

    codes: tuple

    def check(self, wire, deadline):
        wire.until(lambda: wire.goaway is not None and wire.goaway[0] != "NO_ERROR", deadline)
        said = wire.goaway and wire.goaway[0] in self.codes
        return bool(said and wire.until_closed(deadline))


@dataclasses.dataclass(frozen=True)
class Reset:
    """The stream is reset for one of these reasons; the connection and its other streams go on (5.4.2)."""

    codes: tuple
    stream: int = 1

    def check(self, wire, deadline):
        stream = wire.streams.setdefault(self.stream, Stream())
        # an answer instead of an error ends the wait; one that was there before does not
        may_end = not stream.is_ended and "NO_ERROR" not in self.codes
        wire.until(lambda: stream.reset or wire.goaway or stream.is_ended and may_end, deadline)
        return stream.reset in self.codes and Alive().check(wire, deadline)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The stream is answered, to its end, with one of these statuses; the connection goes on."""

    statuses: tuple = (200,)
    stream: int = 1
    fits: object = None

    def check(self, wire, deadline):
        stream = wire.streams.setdefault(self.stream, Stream())
        wire.until(lambda: stream.is_ended or stream.reset or wire.goaway, deadline)
        fits = stream.is_ended and stream.status in self.statuses and (self.fits is None or self.fits(stream))
        return fits and Alive().check(wire, deadline)


@dataclasses.dataclass(frozen=True)
class Alive:
    """Nothing is answered but a later ping: what was sent did no harm."""

    def check(self, wire, deadline):
        mark = b"alive%03d" % len(wire.pongs)
        wire.send(ping(mark))
        return wire.until(lambda: mark in wire.pongs, deadline) and wire.goaway is None


@dataclasses.dataclass(frozen=True)
class Closed:
    """The connection ends, with words or without."""

    def check(self, wire, deadline):
        return wire.until_closed(deadline)


@dataclasses.dataclass(frozen=True)
class Either:
    """What the RFC leaves to the server."""

    ways: tuple

    def check(self, wire, deadline):
        # each way reads on from where the one before stopped; all of them know what came already
        return any(way.check(wire, deadline) for way in self.ways)


@dataclasses.dataclass(frozen=True)
class Also:
    """Something about all that came, besides."""

    way: object
    fits: object

    def check(self, wire, deadline):
        return self.way.check(wire, deadline) and bool(self.fits(wire))


@dataclasses.dataclass(frozen=True)
class Then:
    """Something comes, then more is sent, then something else must come."""

    first: object
    sent: tuple
    last: object

    def check(self, wire, deadline):
        if not self.first.check(wire, deadline):
            return False
        wire.send(*self.sent)
        return self.last.check(wire, deadline)


class Tunnel:
    """A stream of an extended CONNECT (RFC 8441) that reads and writes like a socket."""

    INITIAL_WINDOW_SIZE, ROOM = 4, (1 << 31) - 1

    def __init__(self, stream, fields, deadline, wire=None, number=1):
        """On a new connection, or as another stream of `wire`; `status` says whether it is open."""
        self.deadline, self.number, self.at, self.sent = deadline, number, 0, 0
        self.wire = wire
        if wire is None:
            self.wire = Wire(stream)
            self.wire.begin((self.INITIAL_WINDOW_SIZE, self.ROOM), deadline=deadline)
            self.wire.send(window_update(self.ROOM - 65535))
            self.wire.sent_to_all = 0
        self.stream = self.wire.streams.setdefault(number, Stream())
        self.wire.send(headers(fields, number, END_HEADERS))
        self.wire.until(lambda: self.stream.status or self.stream.reset or self.wire.goaway, deadline)
        self.status, self.fields = self.stream.status, self.stream.fields

    def _room(self):
        granted = [sum(count for on, count in self.wire.updates if on == stream) for stream in (0, self.number)]
        window = self.wire.settings.get(self.INITIAL_WINDOW_SIZE, 65535)
        return min(65535 + granted[0] - self.wire.sent_to_all, window + granted[1] - self.sent)

    def sendall(self, payload):
        at = 0
        while at < len(payload):
            if not self.wire.until(lambda: self._room() > 0 or self.stream.reset, self.deadline) or self.stream.reset:
                raise ConnectionResetError(self.stream.reset or "no window")
            part = payload[at : at + min(self._room(), 1 << 14)]
            self.wire.send(data(part, self.number, 0))
            at += len(part)
            self.sent += len(part)
            self.wire.sent_to_all += len(part)

    def recv(self, most):
        self.wire.until(lambda: len(self.stream.body) > self.at or self.stream.is_ended or self.stream.reset, self.deadline)
        part = self.stream.body[self.at : self.at + most]
        if not part and not self.stream.is_ended:
            raise ConnectionResetError(self.stream.reset or "nothing in time")
        self.at += len(part)
        return part

    def shutdown(self, _how):
        self.wire.send(data(b"", self.number))

    def reset(self):
        self.wire.send(reset(self.number))

    def close(self):
        self.wire.socket.close()
