"""RFC 9113's rules for what a client may send, one case each: section, rule, what is sent, what must come.

Sections of RFC 7541 (HPACK) and 8441 (WebSocket) are named as `HPACK` and `8441`. Where the RFC leaves a choice, the case
says both. Where the server departs from it, `instead` is what it does, which must do no harm; the guide lists these cases.
"""

import dataclasses
import json
import struct

from h2_wire import (
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HAS_PRIORITY, HEADERS, PADDED, PING, PRIORITY, PUSH_PROMISE,
    RST_STREAM, SETTINGS, WINDOW_UPDATE, Alive, Also, Answer, Closed, Either, Goaway, Reset, Then, block, data, frame, goaway,
    headers, literal, ping, reset, settings, window_update,
)  # fmt: skip

PROTOCOL, SIZE, FLOW, CLOSED, COMPRESSION = (
    "PROTOCOL_ERROR", "FRAME_SIZE_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED", "COMPRESSION_ERROR",
)  # fmt: skip
HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, MAX_HEADER_LIST_SIZE = range(1, 7)
ENABLE_CONNECT_PROTOCOL = 8
MALFORMED = Either((Reset((PROTOCOL,)), Answer((400,))))
# The library's deviations. Frames and blocks that it cannot read end the connection with this code, whatever is wrong.
UNREADABLE = Goaway((PROTOCOL,))


@dataclasses.dataclass(frozen=True)
class Case:
    section: str
    rule: str
    sent: tuple
    must: object
    # settings of the client's preface
    begin: tuple = ()
    # a deviation: what comes instead of `must`
    instead: object = None


def seen(stream):
    """What the app says it was asked."""
    return json.loads(stream.body)


def field(stream, name):
    return [value for each, value in seen(stream)["fields"] if each == name]


def head(host, path="/", method="GET", **more):
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", host)]
    return fields + [(name.replace("_", "-"), value) for name, value in more.items()]


def cases(host):
    """All cases, for a host whose app is `conformance_app.serve_http`."""
    return [
        *of_frames(host), *of_states(host), *of_kinds(host), *of_settings(host), *of_flow(host), *of_continuation(host),
        *of_messages(host), *of_fields(host), *of_pseudo_fields(host), *of_compression(host), *of_tunnels(host),
    ]  # fmt: skip


def of_frames(host):
    get, whole = headers(head(host)), block(head(host))
    half = len(whole) // 2
    return [
        Case("4.1", "frames of unknown types are ignored", (frame(0xFA, 0xFF, 0, b"what"), get), Answer()),
        Case("4.1", "so are those of a stream", (frame(0xFA, 0, 1, b"what"), get), Answer()),
        Case("4.1", "flags without a meaning are ignored", (ping(flags=0xF6), get),
             Also(Answer(), lambda wire: b"12345678" in wire.pongs)),
        Case("4.1", "the reserved bit is ignored", (frame(PING, 0, 1 << 31, b"reserved"), get),
             Also(Answer(), lambda wire: b"reserved" in wire.pongs)),
        Case("4.2", "a frame of 2^14 bytes is taken",
             (headers(head(host, "/echo", "POST"), flags=END_HEADERS), data(b"x" * (1 << 14))),
             Answer(fits=lambda stream: stream.body == b"x" * (1 << 14))),
        Case("4.2", "larger DATA than allowed",
             (headers(head(host, "/", "POST"), flags=END_HEADERS), data(b"x" * ((1 << 14) + 1))),
             Either((Goaway((SIZE,)), Reset((SIZE,))))),
        Case("4.2", "larger HEADERS than allowed", (headers(block(head(host)) + literal(b"a", b"b" * 99) * 180),),
             Goaway((SIZE,))),
        Case("4.2", "larger CONTINUATION than allowed",
             (headers(whole, flags=END_STREAM), frame(CONTINUATION, END_HEADERS, 1, literal(b"a", b"b" * 99) * 180)),
             Goaway((SIZE,))),
        Case("4.2", "larger SETTINGS than allowed", (frame(SETTINGS, 0, 0, bytes(6) * 2731),), Goaway((SIZE,))),
        Case("4.3", "another stream's HEADERS within a header block",
             (headers(whole[:half], flags=END_STREAM), headers(head(host), 3)), Goaway((PROTOCOL,))),
        Case("4.3", "DATA within a header block", (headers(whole[:half], flags=0), data(b"x")), Goaway((PROTOCOL,))),
        Case("4.3", "PING within a header block", (headers(whole[:half], flags=END_STREAM), ping()), Goaway((PROTOCOL,))),
        Case("4.3", "SETTINGS within a header block", (headers(whole[:half], flags=END_STREAM), settings()),
             Goaway((PROTOCOL,))),
        Case("5.5", "a frame of an unknown type within a header block",
             (headers(whole[:half], flags=END_STREAM), frame(0xFA, 0, 0, b"what")), Goaway((PROTOCOL,))),
    ]  # fmt: skip


def of_states(host):
    get, post = headers(head(host)), headers(head(host, "/", "POST"), flags=END_HEADERS)
    third = headers(head(host), 3)
    # a stream that the server has answered to its end, and one that the client broke off
    done, gone = Answer(), (post, reset())
    open_streams = tuple(headers(head(host, "/", "POST"), 2 * n + 1, END_HEADERS) for n in range(251))
    return [
        Case("5.1", "idle: DATA", (data(b"x"),), Goaway((PROTOCOL, CLOSED))),
        Case("5.1", "idle: RST_STREAM", (reset(),), Goaway((PROTOCOL,))),
        Case("5.1", "idle: WINDOW_UPDATE", (window_update(100, 1),), Goaway((PROTOCOL,))),
        Case("5.1", "idle: CONTINUATION", (frame(CONTINUATION, END_HEADERS, 1, block(head(host))),), Goaway((PROTOCOL,))),
        Case("5.1", "idle: PRIORITY is taken", (frame(PRIORITY, 0, 1, bytes(4) + b"\x10"), get), Answer()),
        Case("5.1", "idle: an unknown frame is taken", (frame(0xFA, 0, 1, b"what"), get), Answer()),
        Case("5.1", "half-closed (remote): DATA", (get, data(b"x")), Either((Reset((CLOSED,)), Goaway((CLOSED,)))),
             instead=UNREADABLE),
        Case("5.1", "half-closed (remote): HEADERS", (get, get), Either((Reset((CLOSED,)), Goaway((CLOSED, PROTOCOL))))),
        Case("5.1", "half-closed (remote): CONTINUATION", (get, frame(CONTINUATION, END_HEADERS, 1, b"")),
             Goaway((PROTOCOL, CLOSED))),
        Case("5.1", "half-closed (remote): WINDOW_UPDATE is taken", (get, window_update(100, 1)), Answer()),
        Case("5.1", "half-closed (remote): PRIORITY is taken", (get, frame(PRIORITY, 0, 1, bytes(4) + b"\x10")), Answer()),
        Case("5.1", "half-closed (remote): RST_STREAM is taken", (get, reset(), third), Answer(stream=3)),
        Case("5.1", "closed by the client: DATA", (*gone, data(b"x")), Either((Reset((CLOSED,)), Goaway((CLOSED,))))),
        Case("5.1", "closed by the client: HEADERS", (*gone, post), Either((Reset((CLOSED,)), Goaway((CLOSED, PROTOCOL))))),
        Case("5.1", "closed by the client: CONTINUATION", (*gone, frame(CONTINUATION, END_HEADERS, 1, b"")),
             Goaway((PROTOCOL, CLOSED))),
        Case("5.1", "closed by the client: PRIORITY is taken", (*gone, frame(PRIORITY, 0, 1, bytes(4) + b"\x10"), third),
             Answer(stream=3)),
        Case("5.1", "closed by the client: WINDOW_UPDATE does no harm", (*gone, window_update(1, 1), third), Answer(stream=3)),
        Case("5.1", "closed by both: DATA", (get,), Then(done, (data(b"x"),), Either((Reset((CLOSED,)), Goaway((CLOSED,)))))),
        Case("5.1", "closed by both: HEADERS", (get,), Then(done, (get,), Goaway((CLOSED, PROTOCOL)))),
        Case("5.1", "closed by both: WINDOW_UPDATE and RST_STREAM are taken", (get,),
             Then(done, (window_update(1, 1), reset(), third), Answer(stream=3))),
        Case("5.1.1", "streams of clients have odd numbers", (headers(head(host), 2),), Goaway((PROTOCOL,))),
        Case("5.1.1", "numbers only grow", (headers(head(host), 5), third), Goaway((PROTOCOL, CLOSED))),
        Case("5.1.1", "numbers may be left out", (headers(head(host), 5), headers(head(host), 99)), Answer(stream=99)),
        Case("5.1.1", "HEADERS on stream 0", (headers(head(host), 0),), Goaway((PROTOCOL,))),
        Case("5.1.2", "more streams than allowed", open_streams,
             Either((Reset(("REFUSED_STREAM", PROTOCOL), 501), Goaway((PROTOCOL,))))),
        Case("5.1.2", "streams that ended leave room", (*open_streams[:250], reset(1), headers(head(host), 501)),
             Answer(stream=501)),
        Case("5.3.2", "priority in HEADERS means nothing",
             (headers(b"\x80\0\0\0\xff" + block(head(host)), flags=END_HEADERS | END_STREAM | HAS_PRIORITY),),
             # RFC 7540 had a stream that depends on itself as an error; this one depends on stream 0
             Answer()),
        Case("5.4.1", "GOAWAY names the last stream that was taken", (get,),
             Then(done, (headers(head(host), 2),), Also(Goaway((PROTOCOL,)), lambda wire: wire.goaway[1] == 1))),
        Case("5.4.2", "an error of one stream is none of another",
             (headers(head(host, "/", "POST", content_length="1"), 1, END_HEADERS),
              headers(head(host, "/echo", "POST"), 3, END_HEADERS), data(b"two", 1), data(b"other", 3)),
             Answer(stream=3, fits=lambda stream: stream.body == b"other")),
        Case("5.4.2", "frames that cross a reset are taken", (*gone, third), Answer(stream=3)),
    ]  # fmt: skip


def of_kinds(host):
    get, post = headers(head(host)), headers(head(host, "/echo", "POST"), flags=END_HEADERS)
    whole = block(head(host))
    echoed = Answer(fits=lambda stream: stream.body == b"padded")
    return [
        Case("6.1", "DATA of stream 0", (data(b"x", 0),), Goaway((PROTOCOL,))),
        Case("6.1", "padding is taken away", (post, data(b"\x05padded" + bytes(5), flags=END_STREAM | PADDED)), echoed),
        Case("6.1", "padding of nothing", (post, data(b"\0padded", flags=END_STREAM | PADDED)), echoed),
        Case("6.1", "only padding", (post, data(b"\x05" + bytes(5), flags=PADDED), data(b"padded")), echoed),
        Case("6.1", "more padding than frame", (post, data(b"\x20short", flags=END_STREAM | PADDED)), Goaway((PROTOCOL,))),
        Case("6.1", "padding without its length", (post, data(b"", flags=END_STREAM | PADDED)), Goaway((PROTOCOL, SIZE))),
        Case("6.1", "empty DATA ends a body", (post, data(b"padded", flags=0), data(b"")), echoed),
        Case("6.2", "padded HEADERS", (headers(b"\x04" + whole + bytes(4), flags=END_HEADERS | END_STREAM | PADDED),), Answer()),
        Case("6.2", "padded HEADERS with priority",
             (headers(b"\x04\0\0\0\0\x10" + whole + bytes(4), flags=END_HEADERS | END_STREAM | PADDED | HAS_PRIORITY),), Answer()),
        Case("6.2", "more padding than HEADERS", (headers(b"\xff" + whole[:20], flags=END_HEADERS | END_STREAM | PADDED),),
             Goaway((PROTOCOL,))),
        Case("6.2", "HEADERS too short for its priority", (headers(b"\0\0", flags=END_HEADERS | END_STREAM | HAS_PRIORITY),),
             Goaway((PROTOCOL, SIZE))),
        Case("6.3", "PRIORITY of stream 0", (frame(PRIORITY, 0, 0, bytes(5)),), Goaway((PROTOCOL,))),
        Case("6.3", "PRIORITY of another length than 5", (get, frame(PRIORITY, 0, 1, bytes(4))),
             Either((Reset((SIZE,)), Goaway((SIZE,)))), instead=UNREADABLE),
        Case("6.4", "RST_STREAM of stream 0", (reset(0),), Goaway((PROTOCOL,))),
        Case("6.4", "RST_STREAM of another length than 4", (post, frame(RST_STREAM, 0, 1, bytes(3))), Goaway((SIZE,)), instead=UNREADABLE),
        Case("6.6", "PUSH_PROMISE of a client", (post, frame(PUSH_PROMISE, END_HEADERS, 1, bytes(3) + b"\x02" + whole)),
             Goaway((PROTOCOL,))),
        Case("6.7", "PING is answered with its bytes", (ping(b"\0\xff7bytes"),),
             Also(Alive(), lambda wire: b"\0\xff7bytes" in wire.pongs)),
        Case("6.7", "an answer to PING is not answered", (ping(b"unasked!", ACK),),
             Also(Alive(), lambda wire: b"unasked!" not in wire.pongs)),
        Case("6.7", "PING of a stream", (ping(stream=1),), Goaway((PROTOCOL,))),
        Case("6.7", "PING of another length than 8", (ping(b"1234567"),), Goaway((SIZE,)), instead=UNREADABLE),
        Case("6.8", "GOAWAY of a stream", (goaway(stream=1),), Goaway((PROTOCOL,))),
        Case("6.8", "what was begun is finished after a client's GOAWAY", (post, goaway(), data(b"padded")),
             Then(echoed_without_ping(), (), Closed())),
        Case("6.8", "GOAWAY too short", (frame(GOAWAY, 0, 0, bytes(7)),), Goaway((SIZE, PROTOCOL))),
        Case("6.8", "GOAWAY with words and an unknown code", (post, frame(GOAWAY, 0, 0, bytes(4) + b"\0\0\0\xee" + b"words"),
                                                             data(b"padded")), Then(echoed_without_ping(), (), Closed())),
        Case("6.9", "WINDOW_UPDATE of 0 for a stream", (post, window_update(0, 1)),
             Reset((PROTOCOL,)), instead=UNREADABLE),
        Case("6.9", "WINDOW_UPDATE of 0 for the connection", (window_update(0),), Goaway((PROTOCOL,))),
        Case("6.9", "WINDOW_UPDATE of another length than 4", (frame(WINDOW_UPDATE, 0, 0, bytes(3)),), Goaway((SIZE,)), instead=UNREADABLE),
        Case("6.9", "the reserved bit of WINDOW_UPDATE is ignored", (window_update((1 << 31) | 100), get), Answer()),
        Case("7", "unknown error codes do no harm", (post, reset(1, 0xEE), headers(head(host), 3)), Answer(stream=3)),
    ]  # fmt: skip


def echoed_without_ping():
    """An answer on a connection that may end right behind it."""

    class Way:
        def check(self, wire, deadline):
            return wire.until(lambda: 1 in wire.streams and wire.streams[1].is_ended, deadline) and (
                wire.streams[1].body == b"padded"
            )

    return Way()


def of_settings(host):
    get = headers(head(host))

    def value(name, value, must, rule, **instead):
        return Case("6.5.2", rule, (settings((name, value)), get), must, **instead)

    return [
        Case("6.5", "SETTINGS are acknowledged", (settings((MAX_CONCURRENT_STREAMS, 7)), settings()),
             Also(Alive(), lambda wire: wire.settings_acks == 3)),
        Case("6.5", "an acknowledgement with something in it", (settings((ENABLE_PUSH, 0), flags=ACK),), Goaway((SIZE,)), instead=UNREADABLE),
        Case("6.5", "SETTINGS of a stream", (settings((ENABLE_PUSH, 0), stream=1),), Goaway((PROTOCOL,))),
        Case("6.5", "SETTINGS of no multiple of 6 bytes", (frame(SETTINGS, 0, 0, bytes(5)),), Goaway((SIZE,)), instead=UNREADABLE),
        value(ENABLE_PUSH, 2, Goaway((PROTOCOL,)), "ENABLE_PUSH is 0 or 1"),
        value(ENABLE_PUSH, 1, Answer(), "ENABLE_PUSH of 1 is a client's right"),
        value(INITIAL_WINDOW_SIZE, 1 << 31, Goaway((FLOW,)), "INITIAL_WINDOW_SIZE of more than 2^31-1",
              instead=UNREADABLE),
        value(INITIAL_WINDOW_SIZE, (1 << 31) - 1, Answer(), "INITIAL_WINDOW_SIZE of 2^31-1"),
        value(MAX_FRAME_SIZE, (1 << 14) - 1, Goaway((PROTOCOL,)), "MAX_FRAME_SIZE of less than 2^14"),
        value(MAX_FRAME_SIZE, 1 << 24, Goaway((PROTOCOL,)), "MAX_FRAME_SIZE of more than 2^24-1"),
        value(MAX_FRAME_SIZE, (1 << 24) - 1, Answer(), "MAX_FRAME_SIZE of 2^24-1"),
        value(HEADER_TABLE_SIZE, 0, Answer(), "HEADER_TABLE_SIZE of 0"),
        value(HEADER_TABLE_SIZE, (1 << 32) - 1, Answer(), "HEADER_TABLE_SIZE of all ones"),
        value(MAX_HEADER_LIST_SIZE, 1, Answer((200, 500)), "MAX_HEADER_LIST_SIZE is advice"),
        value(0xFEED, 1, Answer(), "unknown settings are ignored"),
        value(ENABLE_CONNECT_PROTOCOL, 1, Answer(), "8441, 3: ENABLE_CONNECT_PROTOCOL means nothing from a client"),
        Case("6.5.3", "the last of several values counts",
             (settings((INITIAL_WINDOW_SIZE, 100), (INITIAL_WINDOW_SIZE, 1)), headers(head(host, "/bytes/5"))),
             Then(Parts(1), (window_update(4, 1),), Answer(fits=lambda stream: stream.parts[:1] == [1]))),
        Case("6.5.3", "settings hold from their acknowledgement on",
             (headers(head(host, "/", "POST"), flags=END_HEADERS), settings((ENABLE_PUSH, 0)), data(b"x")),
             Also(Answer(), lambda wire: wire.settings_acks == 2)),
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parts:
    """So many bytes of the body and, as a ping shows, no more."""

    count: int
    stream: int = 1

    def check(self, wire, deadline):
        def body():
            return len(wire.streams[self.stream].body) if self.stream in wire.streams else -1

        reached = wire.until(lambda: body() >= self.count, deadline)
        return reached and Alive().check(wire, deadline) and body() == self.count


def of_flow(host):
    five = headers(head(host, "/bytes/5"))
    most = (1 << 31) - 1
    return [
        Case("6.9.1", "no more is sent than the stream's window allows", (five,),
             Then(Parts(1), (window_update(4, 1),), Answer(fits=lambda stream: stream.body == b"01234")),
             ((INITIAL_WINDOW_SIZE, 1),)),
        Case("6.9.1", "nothing is sent into a window of nothing", (five,),
             Then(Parts(0), (window_update(1, 1), window_update(4, 1)), Answer()), ((INITIAL_WINDOW_SIZE, 0),)),
        Case("6.9.1", "an empty body needs no window", (headers(head(host, "/bytes/0")),), Answer(), ((INITIAL_WINDOW_SIZE, 0),)),
        Case("6.9.1", "no more is sent than the connection's window allows", (headers(head(host, "/bytes/70000")),),
             Then(Parts(65535), (window_update(100_000),), Answer(fits=lambda stream: len(stream.body) == 70_000)),
             ((INITIAL_WINDOW_SIZE, 1 << 20),)),
        Case("6.9.1", "the connection's window is that of all streams",
             (headers(head(host, "/bytes/40000")), headers(head(host, "/bytes/40000"), 3)),
             Then(Total(65535), (window_update(100_000),), Also(Total(80_000), lambda wire: wire.goaway is None)),
             ((INITIAL_WINDOW_SIZE, 1 << 20),)),
        Case("6.9.1", "a stream's window of more than 2^31-1", (five, window_update(most, 1), window_update(most, 1)),
             Reset((FLOW,)), ((INITIAL_WINDOW_SIZE, 0),)),
        Case("6.9.1", "a connection's window of more than 2^31-1", (window_update(most), window_update(most)), Goaway((FLOW,))),
        Case("6.9.2", "a smaller INITIAL_WINDOW_SIZE makes windows negative",
             (five,), Then(Parts(3), (settings((INITIAL_WINDOW_SIZE, 2)), window_update(1, 1), ping()),
                           Then(Parts(3), (window_update(2, 1),), Answer(fits=lambda stream: stream.body == b"01234"))),
             ((INITIAL_WINDOW_SIZE, 3),)),
        Case("6.9.2", "a larger INITIAL_WINDOW_SIZE opens windows of open streams",
             (five,), Then(Parts(0), (settings((INITIAL_WINDOW_SIZE, 5)),), Answer()), ((INITIAL_WINDOW_SIZE, 0),)),
        Case("6.9.2", "INITIAL_WINDOW_SIZE does not change the connection's window",
             (settings((INITIAL_WINDOW_SIZE, 1 << 20)), headers(head(host, "/bytes/70000"))),
             Then(Parts(65535), (window_update(5000),), Answer())),
        Case("6.9.2", "a setting that makes a window overflow",
             (five, window_update(most - 1, 1), settings((INITIAL_WINDOW_SIZE, 100))), Goaway((FLOW,)), ((INITIAL_WINDOW_SIZE, 1),)),
        Case("6.9.1", "frames are no larger than MAX_FRAME_SIZE", (headers(head(host, "/bytes/60000")),),
             Answer(fits=lambda stream: max(stream.parts) <= 1 << 14)),
        Case("5.2.2", "windows open while a body is read",
             (headers(head(host, "/echo", "POST"), flags=END_HEADERS), *[data(b"x" * 16_000, flags=0)] * 4, data(b"")),
             Also(Answer(fits=lambda stream: len(stream.body) == 64_000), lambda wire: any(on == 0 for on, _ in wire.updates))),
    ]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Total:
    """So many bytes on all streams and, as a ping shows, no more."""

    count: int

    def check(self, wire, deadline):
        def total():
            return sum(len(stream.body) for stream in wire.streams.values())

        return wire.until(lambda: total() >= self.count, deadline) and Alive().check(wire, deadline) and total() == self.count


def of_continuation(host):
    whole = block(head(host, x_long="y" * 300))
    thirds = [whole[at : at + 100] for at in range(0, len(whole), 100)]
    more = tuple(frame(CONTINUATION, 0, 1, part) for part in thirds[1:-1])
    last = frame(CONTINUATION, END_HEADERS, 1, thirds[-1])
    long = Answer(fits=lambda stream: field(stream, "x-long") == ["y" * 300])
    return [
        Case("6.10", "a header block in several frames", (headers(thirds[0], flags=END_STREAM), *more, last), long),
        Case("6.10", "frames with nothing in them",
             (headers(b"", flags=END_STREAM), frame(CONTINUATION, 0, 1, whole), frame(CONTINUATION, END_HEADERS, 1)), long),
        Case("6.10", "a block that is cut within a field",
             (headers(whole[:3], flags=END_STREAM), frame(CONTINUATION, END_HEADERS, 1, whole[3:])), long),
        Case("6.10", "CONTINUATION of stream 0", (headers(thirds[0], flags=END_STREAM), frame(CONTINUATION, 0, 0, thirds[1])),
             Goaway((PROTOCOL,))),
        Case("6.10", "CONTINUATION of another stream", (headers(thirds[0], flags=END_STREAM), frame(CONTINUATION, 0, 3, thirds[1])),
             Goaway((PROTOCOL,))),
        Case("6.10", "HEADERS within a header block",
             (headers(thirds[0], flags=END_STREAM), headers(b"".join(thirds[1:]))), Goaway((PROTOCOL,))),
        Case("6.10", "CONTINUATION behind END_HEADERS", (headers(whole), last), Goaway((PROTOCOL, CLOSED))),
        Case("6.10", "CONTINUATION behind a CONTINUATION with END_HEADERS",
             (headers(thirds[0], flags=0), *more, last, frame(CONTINUATION, END_HEADERS, 1, literal(b"a", b"b"))),
             Goaway((PROTOCOL, CLOSED))),
        Case("6.10", "CONTINUATION behind DATA",
             (headers(head(host, "/", "POST"), flags=END_HEADERS), data(b"x", flags=0), frame(CONTINUATION, END_HEADERS, 1, b"")),
             Goaway((PROTOCOL,))),
        Case("10.5.1", "a header block without end",
             (headers(whole[:0], flags=END_STREAM), *[frame(CONTINUATION, 0, 1, literal(b"a", b"b" * 99) * 100)] * 40),
             Goaway((PROTOCOL, "ENHANCE_YOUR_CALM", "INTERNAL_ERROR", COMPRESSION, SIZE))),
    ]  # fmt: skip


def of_messages(host):
    post = headers(head(host, "/", "POST"), flags=END_HEADERS)

    def sized(length, *more, stream=1, flags=END_HEADERS):
        return (headers(head(host, "/", "POST", content_length=length), stream, flags), *more)

    return [
        Case("8.1", "a request without a body", (headers(head(host)),), Answer(fits=lambda stream: seen(stream)["length"] == 0)),
        Case("8.1", "trailers end a request, and reach the app where the head announced them",
             (headers(head(host, "/", "POST", trailer="x-checksum"), flags=END_HEADERS), data(b"body", flags=0),
              headers([("x-checksum", "7")])),
             Answer(fits=lambda stream: seen(stream)["length"] == 4 and seen(stream)["trailers"] == {"x-checksum": "7"})),
        Case("8.1", "trailers without END_STREAM", (post, data(b"x", flags=0), headers([("x-checksum", "7")], flags=END_HEADERS)),
             Either((Reset((PROTOCOL,)), Goaway((PROTOCOL,)), Answer((400,))))),
        Case("8.1", "DATA behind trailers", (post, headers([("x-checksum", "7")]), data(b"x")),
             Either((Reset((CLOSED,)), Goaway((CLOSED,)))), instead=UNREADABLE),
        Case("8.1", "HEAD is answered without a body", (headers(head(host, "/bytes/100", "HEAD")),),
             Answer(fits=lambda stream: stream.body == b"" and stream.fields["content-length"] == "100")),
        Case("8.1", "trailers of an answer reach the client", (headers(head(host, "/chunked/50000")),),
             Answer(fits=lambda stream: len(stream.body) == 50_000 and "x-checksum" in stream.trailers)),
        Case("8.1", "an answer to a body that was not sent to its end", (headers(head(host, "/refuse/413", "POST"), flags=END_HEADERS),),
             Answer((413,))),
        Case("8.1", "a client that still sends is told to stop without an error",
             (headers(head(host, "/refuse/413", "POST"), flags=END_HEADERS), data(b"x" * 9_000, flags=0)),
             Also(Reset(("NO_ERROR",)), lambda wire: wire.streams[1].body == b"not wanted\n")),
        Case("8.1.1", "less body than content-length says", sized("5", data(b"four")), MALFORMED),
        Case("8.1.1", "more body than content-length says", sized("3", data(b"four")), MALFORMED),
        Case("8.1.1", "more body than content-length says, in parts", sized("3", data(b"tw", flags=0), data(b"o!")), MALFORMED),
        Case("8.1.1", "no body where content-length says one", sized("5", flags=END_HEADERS | END_STREAM), MALFORMED),
        Case("8.1.1", "a body where content-length says none", sized("0", data(b"x")), MALFORMED),
        Case("8.1.1", "the body that content-length says", sized("4", data(b"fo", flags=0), data(b"ur")),
             Answer(fits=lambda stream: seen(stream)["length"] == 4)),
        Case("8.1.1", "a content-length that is no number", sized("many", data(b"x")), MALFORMED),
        Case("8.1.1", "a content-length with a sign", sized("+1", data(b"x")), MALFORMED),
        Case("8.1.1", "several content-lengths that differ",
             (headers([*head(host, "/", "POST"), ("content-length", "1"), ("content-length", "2")], flags=END_HEADERS), data(b"x")),
             MALFORMED),
        Case("8.1.1", "less body than content-length says, before trailers",
             sized("5", data(b"four", flags=0), headers([("x-checksum", "7")])), MALFORMED),
    ]  # fmt: skip


def of_fields(host):
    whole = block(head(host))

    def raw(name, value):
        return (headers(whole + literal(name, value)),)

    def names(kinds):
        return [Case("8.2.1", f"a name with {what}", raw(name, b"x"), MALFORMED, instead=UNREADABLE) for what, name in kinds]

    def values(kinds, instead=UNREADABLE):
        return [Case("8.2.1", f"a value with {what}", raw(b"x-a", value), MALFORMED, instead=instead) for what, value in kinds]

    def of_connection(pairs):
        return [
            Case("8.2.2", f"`{name}: {value}` is of HTTP/1.1", (headers([*head(host), (name, value)]),), MALFORMED)
            for name, value in pairs
        ]

    return [
        *names((("a capital", b"X-a"), ("a space", b"x a"), ("a colon", b"x:a"), ("a control", b"x\x01a"), ("DEL", b"x\x7fa"),
                ("a line's end", b"x\na"), ("a zero", b"x\0a"), ("a letter beyond ASCII", b"x\xe4a"), ("nothing in it", b""))),
        *values((("a zero", b"a\0b"), ("a carriage return", b"a\rb"), ("a line's end", b"a\nb"))),
        *values((("a space before it", b" b"), ("a space behind it", b"b "), ("a tab before it", b"\tb")), instead=None),
        *of_connection((("connection", "keep-alive"), ("connection", "close"), ("keep-alive", "timeout=5"),
                        ("proxy-connection", "keep-alive"), ("transfer-encoding", "chunked"), ("upgrade", "websocket"),
                        ("te", "gzip"))),
        Case("8.2.2", "`te: trailers` is of both and reaches the app", (headers([*head(host), ("te", "trailers")]),),
             Answer(fits=lambda stream: field(stream, "te") == ["trailers"])),
        Case("8.2.3", "cookies in several fields become one",
             (headers([*head(host), ("cookie", "a=b"), ("cookie", "c=d"), ("cookie", "e=f")]),),
             Answer(fits=lambda stream: field(stream, "cookie") == ["a=b; c=d; e=f"])),
        Case("8.2", "fields of one name keep their order",
             (headers([*head(host), ("x-many", "1"), ("x-other", "o"), ("x-many", "2"), ("x-many", "3")]),),
             Answer(fits=lambda stream: field(stream, "x-many") == ["1", "2", "3"])),
        Case("8.2.1", "bytes beyond ASCII in a value reach the app", raw(b"x-a", b"\xc3\xa4"),
             Answer(fits=lambda stream: field(stream, "x-a") == ["\xc3\xa4"])),
        Case("8.2.1", "an empty value reaches the app", raw(b"x-a", b""), Answer(fits=lambda stream: field(stream, "x-a") == [""])),
        Case("10.5.1", "more fields than are taken", (headers([*head(host), *[(f"x-{n}", "y") for n in range(120)]]),),
             Answer((431,))),
        Case("10.5.1", "larger fields than are taken",
             (headers(whole + literal(b"x-a", b"y" * 120) * 60, flags=END_STREAM),
              *[frame(CONTINUATION, 0, 1, literal(b"x-a", b"y" * 120) * 120)] * 5, frame(CONTINUATION, END_HEADERS, 1)),
             Either((Answer((431,)), Reset((PROTOCOL, "ENHANCE_YOUR_CALM")), Goaway((PROTOCOL, "ENHANCE_YOUR_CALM", COMPRESSION))))),
    ]  # fmt: skip


def of_pseudo_fields(host):
    base = head(host)

    def case(rule, fields, must=MALFORMED, section="8.3", **instead):
        return Case(section, rule, (headers(fields),), must, **instead)

    def without(name):
        return [pair for pair in base if pair[0] != name]

    def changed(name, value):
        return [(each, value if each == name else old) for each, old in base]

    return [
        case("a pseudo-field behind a field", [*without(":path"), ("x-a", "b"), (":path", "/")]),
        case("an unknown pseudo-field", [*base, (":unknown", "x")], instead=UNREADABLE),
        case("a pseudo-field of answers", [*base, (":status", "200")]),
        *[case(f"{name} twice", [*base, (name, value)]) for name, value in base],
        Case("8.3", "pseudo-fields in trailers",
             (headers(head(host, "/", "POST"), flags=END_HEADERS), data(b"x", flags=0), headers([(":path", "/")])), MALFORMED,
             # they are dropped
             instead=Answer(fits=lambda stream: seen(stream)["trailers"] == {} and seen(stream)["path"] == "/")),
        *[case(f"no {name}", without(name), section="8.3.1") for name in (":method", ":scheme", ":path")],
        case("an empty :path", changed(":path", ""), section="8.3.1"),
        case("a :path that begins with no slash", changed(":path", "x"), section="8.3.1"),
        case("a :path with a space", changed(":path", "/a b"), section="8.3.1"),
        case("a :method with a space", changed(":method", "GET /"), section="8.3.1", instead=UNREADABLE),
        case("an empty :method", changed(":method", ""), section="8.3.1", instead=UNREADABLE),
        case("an empty :scheme", changed(":scheme", ""), section="8.3.1", instead=Answer()),
        case("an :authority with a user", changed(":authority", f"user@{host}"), section="8.3.1"),
        case("an :authority with a slash", changed(":authority", f"{host}/x"), section="8.3.1"),
        case("a host that differs from :authority", [*base, ("host", "other.example")], section="8.3.1"),
        case("a host that is :authority", [*base, ("host", host)], Answer(), section="8.3.1"),
        case("a host instead of :authority", [*without(":authority"), ("host", host)], Answer(), section="8.3.1"),
        case("neither host nor :authority", without(":authority"), section="8.3.1"),
        case("OPTIONS for all of the server", [(":method", "OPTIONS"), *changed(":path", "*")[1:]],
             Either((Answer((200, 204, 400, 404, 405)), Reset((PROTOCOL,)))), section="8.3.1"),
        case("an unknown method reaches the app", changed(":method", "QUERY"),
             Answer(fits=lambda stream: seen(stream)["method"] == "QUERY"), section="8.3.1"),
        case("a query reaches the app", changed(":path", "/a?b=c%20d&e"),
             Answer(fits=lambda stream: seen(stream)["path"] == "/a?b=c%20d&e"), section="8.3.1"),
    ]  # fmt: skip


def of_compression(host):
    whole = block(head(host))

    def bad(section, rule, fragment):
        return Case(f"HPACK {section}", rule, (headers(whole + fragment),), Goaway((COMPRESSION,)), instead=UNREADABLE)

    def good(section, rule, fragment, fits):
        return Case(f"HPACK {section}", rule, (headers(whole + fragment),), Answer(fits=fits))

    return [
        bad("2.3.3", "an index behind the tables", b"\xc6"),
        bad("6.1", "the index 0", b"\x80"),
        bad("2.3.3", "a name's index behind the tables", b"\x7e\x01x"),
        bad("5.1", "a number without end", b"\xff" + b"\xff" * 20),
        bad("5.1", "a number that is cut", b"\xff"),
        bad("5.2", "a text that is cut", b"\x10\x03x-"),
        bad("5.2", "padding of more than 7 bits", b"\x10\x82\x07\xff\x01a"),
        bad("5.2", "padding of zeros", b"\x10\x01a\x81\x00"),
        bad("5.2", "the end of text within a text", b"\x10\x01a\x84\xff\xff\xff\xff"),
        bad("4.2", "a size of the table behind a field", b"\x3f\xe1\x1f"),
        Case("HPACK 4.2", "a size of the table beyond what was allowed", (headers(b"\x3f\xe1\xff\x03" + whole),),
             Goaway((COMPRESSION,)), instead=UNREADABLE),
        Case("HPACK 4.2", "a smaller table", (headers(b"\x20" + whole),), Answer()),
        Case("4.3", "an error in a block ends the connection, whatever the stream's state",
             (headers(head(host, "/", "POST"), flags=END_HEADERS), reset(), headers(b"\x80", 3)), Goaway((COMPRESSION,)),
             instead=UNREADABLE),
        good("5.2", "Huffman's code", b"\x10\x03x-a\x81\x1f", lambda stream: field(stream, "x-a") == ["a"]),
        good("6.2.1", "a field that is kept is there in the same block", b"\x40\x03x-a\x01b" + b"\xbe",
             lambda stream: field(stream, "x-a") == ["b", "b"]),
        Case("HPACK 2.3.2", "a field that is kept is there in later blocks",
             (headers(whole + b"\x40\x03x-a\x01b"), headers(whole + b"\xbe", 3)),
             Answer(stream=3, fits=lambda stream: field(stream, "x-a") == ["b"])),
        Case("HPACK 2.3.2", "a block of a stream that was refused counts too",
             (headers(head(host) + [("connection", "close")]), headers(whole + b"\x40\x03x-a\x01b" + literal(b"te", b"gzip"), 3),
              headers(whole + b"\xbe", 5)), Answer(stream=5, fits=lambda stream: field(stream, "x-a") == ["b"])),
    ]  # fmt: skip


def of_tunnels(host):
    connect = [(":method", "CONNECT"), (":authority", f"{host}:80")]
    extended = [(":method", "CONNECT"), (":protocol", "websocket"), (":scheme", "http"), (":path", "/"), (":authority", host)]

    def without(name):
        return [pair for pair in extended if pair[0] != name]

    return [
        Case("8.5", "a tunnel to any address is refused", (headers(connect, flags=END_HEADERS),), Answer((405,))),
        Case("8.5", "CONNECT with a path", (headers([*connect, (":path", "/")], flags=END_HEADERS),),
             Either((Reset((PROTOCOL,)), Answer((400, 405))))),
        Case("8.5", "CONNECT without an authority", (headers(connect[:1], flags=END_HEADERS),),
             Either((Reset((PROTOCOL,)), Answer((400, 405))))),
        Case("8441 3", "the server says that it takes extended CONNECT", (),
             Also(Alive(), lambda wire: wire.settings.get(ENABLE_CONNECT_PROTOCOL) == 1)),
        Case("8441 4", ":protocol with another method", (headers([*head(host), (":protocol", "websocket")]),), MALFORMED),
        *[Case("8441 4", f"an extended CONNECT without {name}", (headers(without(name), flags=END_HEADERS),), MALFORMED)
          for name in (":scheme", ":path", ":authority")],
        Case("8441 4", "another protocol than WebSocket",
             (headers([(each, "connect-udp" if each == ":protocol" else value) for each, value in extended], flags=END_HEADERS),),
             Answer((405, 501))),
        Case("8441 5", "an app that does not switch opens no tunnel", (headers(extended, flags=END_HEADERS),), Answer((502,))),
    ]  # fmt: skip
