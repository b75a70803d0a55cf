"""gRPC's interop cases (grpc/doc/interop-test-descriptions.md) with the real grpcio on both sides, over h2c and TLS.

Those of them that need gRPC's own proto files do the same with plain bytes: what the ingress sees is no different.
"""

import contextlib
import itertools
import json
import pathlib
import queue
import threading
import unittest

import grpc

import conformance

SERVICE = "/grpc.testing.TestService"
LARGE_REQUEST, LARGE_RESPONSE = 271_828, 314_159
PAYLOADS = [(31_415, 27_182), (9, 8), (2_653, 1_828), (58_979, 45_904)]
# no call takes longer, unless it shall
WITHIN = conformance.WITHIN_SECONDS


def pattern(length):
    line = b"0123456789abcdef" * 4096
    return (line * (length // len(line) + 1))[:length]


class Calls:
    """The cases; `channel` is that of the class."""

    def unary(self, method, request, **options):
        return self.channel.unary_unary(f"{SERVICE}/{method}").with_call(request, timeout=WITHIN, **options)

    def full_duplex(self, requests, **options):
        options = {"timeout": WITHIN, **options}
        return self.channel.stream_stream(f"{SERVICE}/FullDuplexCall")(requests, **options)

    def test_empty_unary(self):
        self.assertEqual(self.unary("EmptyCall", b"")[0], b"")

    def test_large_unary(self):
        answer, _ = self.unary("UnaryCall", b"%d " % LARGE_RESPONSE + bytes(LARGE_REQUEST))
        self.assertEqual(answer, pattern(LARGE_RESPONSE))

    def test_very_large_unary(self):
        """More than any window."""
        answer, _ = self.unary("UnaryCall", b"%d " % (8 << 20) + bytes(8 << 20))
        self.assertEqual(answer, pattern(8 << 20))

    def compressed(self, **options):
        fields = [("x-compress", "1")]
        answer, call = self.unary("UnaryCall", b"%d " % LARGE_RESPONSE + bytes(LARGE_REQUEST), metadata=fields, **options)
        self.assertEqual(answer, pattern(LARGE_RESPONSE))

    def test_client_compressed_unary(self):
        self.compressed(compression=grpc.Compression.Gzip)
        self.compressed(compression=grpc.Compression.Deflate)
        metadata = dict(json.loads(self.unary("WhoAmI", b"", compression=grpc.Compression.Gzip)[0]))
        self.assertNotIn("content-encoding", metadata, "grpc-encoding is another thing")

    def test_server_compressed_unary(self):
        self.compressed(compression=grpc.Compression.NoCompression)

    def test_client_streaming(self):
        call = self.channel.stream_unary(f"{SERVICE}/StreamingInputCall")
        self.assertEqual(call((bytes(size) for size, _ in [(27_182, 0), (8, 0), (1_828, 0), (45_904, 0)]), timeout=WITHIN), b"74922")

    def test_client_compressed_streaming(self):
        call = self.channel.stream_unary(f"{SERVICE}/StreamingInputCall")
        answer = call((bytes(size) for size in (27_182, 45_904)), timeout=WITHIN, compression=grpc.Compression.Gzip)
        self.assertEqual(answer, b"73086")

    def test_server_streaming(self):
        sizes = [31_415, 9, 2_653, 58_979]
        call = self.channel.unary_stream(f"{SERVICE}/StreamingOutputCall")
        answers = call(",".join(map(str, sizes)).encode(), timeout=WITHIN)
        self.assertEqual([len(answer) for answer in answers], sizes)

    def test_many_small_messages(self):
        call = self.channel.unary_stream(f"{SERVICE}/StreamingOutputCall")
        answers = call(b",".join([b"1"] * 5_000), timeout=WITHIN * 3)
        self.assertEqual(sum(len(answer) for answer in answers), 5_000)

    def test_ping_pong(self):
        """Each message is sent when the answer to the one before has come."""
        requests, heard = queue.Queue(), []
        request, wanted = zip(*[(b"%d " % answer + bytes(size), answer) for answer, size in PAYLOADS])
        requests.put(request[0])
        for answer in self.full_duplex(iter(requests.get, None)):
            heard.append(len(answer))
            requests.put(request[len(heard)] if len(heard) < len(request) else None)
        self.assertEqual(heard, list(wanted))

    def test_empty_stream(self):
        call = self.full_duplex(iter(()))
        self.assertEqual(list(call), [])
        self.assertEqual(call.code(), grpc.StatusCode.OK)

    def test_half_duplex(self):
        """The server answers when the client has said all."""
        call = self.channel.stream_stream(f"{SERVICE}/HalfDuplexCall")
        answers = call((b"%d " % size for size in (10, 20, 30)), timeout=WITHIN)
        self.assertEqual([len(answer) for answer in answers], [10, 20, 30])

    def waiting_call(self):
        ended = threading.Event()

        def requests():
            yield b"begin"
            ended.wait(WITHIN)

        return self.channel.stream_stream(f"{SERVICE}/Wait")(requests(), timeout=WITHIN), ended

    def expect_cancelled(self, begin):
        """A call that is cancelled here is cancelled there."""
        before = int(self.unary("Cancelled", b"0")[0])
        call, ended = self.waiting_call()
        with contextlib.closing(_Setter(ended)):
            begin(call)
            call.cancel()
            self.assertEqual(call.code(), grpc.StatusCode.CANCELLED)
            self.assertGreater(int(self.unary("Cancelled", b"%d" % (before + 1))[0]), before)

    def test_cancel_after_begin(self):
        # the server has it when its first answer is here; the client's stream is still open
        self.expect_cancelled(next)

    def test_cancel_after_first_response(self):
        requests, call = queue.Queue(), None
        requests.put(b"31415 x")
        call = self.full_duplex(iter(requests.get, None))
        self.assertEqual(len(next(call)), 31_415)
        call.cancel()
        with self.assertRaises(grpc.RpcError) as ended:
            next(call)
        self.assertEqual(ended.exception.code(), grpc.StatusCode.CANCELLED)
        requests.put(None)

    def test_timeout_on_sleeping_server(self):
        before = int(self.unary("Cancelled", b"0")[0])
        # as long as it takes until the server has begun with it: of a call that never came it knows nothing
        for timeout in (0.3, 3, WITHIN):
            call, heard = self.channel.stream_stream(f"{SERVICE}/Wait")(iter([b"begin"]), timeout=timeout), []
            with self.assertRaises(grpc.RpcError) as late:
                heard.extend(call)
            self.assertEqual(late.exception.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
            if heard:
                break
        self.assertEqual(heard, [b"begun"])
        self.assertGreater(int(self.unary("Cancelled", b"%d" % (before + 1))[0]), before)

    def test_who_calls(self):
        metadata = dict(json.loads(self.unary("WhoAmI", b"")[0]))
        self.assertEqual(metadata["user-agent"].split("/")[0], "grpc-python")
        self.assertIn("x-forwarded-for", metadata)

    def status_of(self, code, message=""):
        fields = [("x-status", str(code)), ("x-message-bin", message.encode())]
        with self.assertRaises(grpc.RpcError) as refused:
            self.unary("UnaryCall", b"0 ", metadata=fields)
        return refused.exception.code().value[0], refused.exception.details()

    def test_status_code_and_message(self):
        self.assertEqual(self.status_of(2, "test status message"), (2, "test status message"))

    def test_all_status_codes(self):
        for code in range(1, 17):
            self.assertEqual(self.status_of(code, f"code {code}"), (code, f"code {code}"))

    def test_special_status_message(self):
        message = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"
        self.assertEqual(self.status_of(2, message), (2, message))

    def test_unimplemented_method(self):
        with self.assertRaises(grpc.RpcError) as refused:
            self.unary("UnimplementedCall", b"")
        self.assertEqual(refused.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_unimplemented_service(self):
        call = self.channel.unary_unary("/grpc.testing.UnimplementedService/UnimplementedCall")
        with self.assertRaises(grpc.RpcError) as refused:
            call(b"", timeout=WITHIN)
        self.assertEqual(refused.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_custom_metadata(self):
        initial, trailing = "test_initial_metadata_value", b"\x0a\x0b\x0a\x0b\xab\xab\xab"
        fields = [("x-grpc-test-echo-initial", initial), ("x-grpc-test-echo-trailing-bin", trailing)]
        answer, call = self.unary("UnaryCall", b"5 x", metadata=fields)
        self.assertEqual(answer, b"01234")
        stream = self.full_duplex(iter([b"5 x"]), metadata=fields)
        self.assertEqual(list(stream), [b"01234"])
        for each in (call, stream):
            self.assertEqual(dict(each.initial_metadata())["x-grpc-test-echo-initial"], initial)
            self.assertEqual(dict(each.trailing_metadata())["x-grpc-test-echo-trailing-bin"], trailing)

    def test_metadata_of_many_kinds(self):
        fields = [("x-empty", ""), ("x-many", "1"), ("x-many", "2"), ("x-any-bin", bytes(range(256))), ("x-long", "y" * 5_000)]
        seen = [tuple(pair) for pair in json.loads(self.unary("WhoAmI", b"", metadata=fields)[0])]
        for name, value in fields:
            self.assertIn((name, value if isinstance(value, str) else value.hex()), seen)

    def test_many_calls_on_one_connection(self):
        call = self.channel.unary_unary(f"{SERVICE}/UnaryCall")
        pending = [call.future(b"%d x" % number, timeout=WITHIN * 3) for number in range(500)]
        self.assertEqual([len(each.result()) for each in pending], list(range(500)))

    def test_slow_reader_holds_up_nobody(self):
        """One stream that is not read, and others that are."""
        unread = self.full_duplex((b"100000 x" for _ in range(100)), timeout=WITHIN * 3)
        next(unread)
        for _ in range(20):
            self.assertEqual(self.unary("UnaryCall", b"10000 x")[0], pattern(10_000))
        self.assertEqual(sum(len(answer) for answer in itertools.chain(unread)), 99 * 100_000)


class _Setter:
    def __init__(self, event):
        self.close = event.set


class _Apps(conformance.Case):
    APPS = {"calls": ("http2", "grpc")}

    def setUp(self):
        host = self.hosts["calls"]
        address = "%s:%d" % self.address(self.IS_TLS)
        limits = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        if self.IS_TLS:
            trust = grpc.ssl_channel_credentials(pathlib.Path(self.server.ca).read_bytes())
            channel = grpc.secure_channel(address, trust, [*limits, ("grpc.ssl_target_name_override", host)])
        else:
            channel = grpc.insecure_channel(address, [*limits, ("grpc.default_authority", host)])
        self.channel = self.enterContext(channel)


class Plain(Calls, _Apps):
    IS_TLS = False


class Tls(Calls, _Apps):
    IS_TLS = True


del _Apps

if __name__ == "__main__":
    unittest.main()
