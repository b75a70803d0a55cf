"""What curl can do over HTTP/1 and HTTP/2, against an app in a replica; and what HTTP/1 allows that curl does not do."""

import contextlib
import json
import re
import socket
import ssl
import subprocess
import tempfile
import unittest
import zlib

import conformance
from conformance import WITHIN_SECONDS

# curl's words for: without TLS, and with it
HTTP1 = ("--http1.1",)
PRIOR = ("--http2-prior-knowledge",)
HTTP2 = ("--http2",)


def pattern(length):
    line = b"0123456789abcdef" * 4096
    return (line * (length // len(line) + 1))[:length]


class Answer:
    """What curl got: heads of all answers, the body of the last, and what curl says of itself."""

    def __init__(self, out, info):
        self.heads, self.body = [], out
        while re.match(rb"HTTP/[\d.]+ \d+", self.body):
            head, _, self.body = self.body.partition(b"\r\n\r\n")
            self.heads.append(head.decode())
        self.info = info

    @property
    def status(self):
        return int(self.heads[-1].split()[1])

    @property
    def statuses(self):
        return [int(head.split()[1]) for head in self.heads]

    def fields(self, index=-1):
        lines = self.heads[index].split("\r\n")[1:]
        return {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}

    @property
    def json(self):
        return json.loads(self.body)


class Case(conformance.Case):
    APPS = {"web": ("auto", "http")}

    def curl(self, *arguments, path="/", tls=False, paths=(), code=0):
        """Runs curl; `paths` are further ones of the same run."""
        host = self.hosts["web"]
        address, port = self.address(tls)
        address = socket.gethostbyname(address)
        urls = [f"http{'s' if tls else ''}://{host}:{port}{each}" for each in (path, *paths)]
        command = [
            "curl", "--silent", "--show-error", "--include", "--max-time", str(WITHIN_SECONDS), "--no-progress-meter", "--noproxy", "*",
            "--resolve", f"{host}:{port}:{address}", "--cacert", self.server.ca,
            "--write-out", "%{stderr}%{json}\n", *arguments, *urls,
        ]  # fmt: skip
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=WITHIN_SECONDS * 3)
        said = [line for line in done.stderr.decode(errors="replace").splitlines() if not line.startswith("{")]
        self.assertEqual(done.returncode, code, f"{' '.join(command)}: {said}")
        infos = [json.loads(line) for line in done.stderr.decode().splitlines() if line.startswith("{")]
        return Answer(done.stdout, infos)

    def ways(self):
        """Versions with and without TLS: curl's arguments, whether with TLS, and what the version is then called."""
        return (
            (HTTP1, False, "1.1"), (HTTP1, True, "1.1"), (PRIOR, False, "2"), (HTTP2, True, "2"), (("--http1.0",), False, "1.0"),
            (("--http1.0",), True, "1.0"),
        )  # fmt: skip


class Curl(Case):
    def test_versions(self):
        for version, tls, called in self.ways():
            answer = self.curl(*version, path="/a/b?c=d", tls=tls)
            self.assertEqual((answer.status, answer.json["method"], answer.json["path"]), (200, "GET", "/a/b?c=d"), version)
            # the answer has our version, as far as it goes: that of a 1.0 client is the lower one
            self.assertIn(answer.info[0]["http_version"], {"1.0": ("1", "1.0", "1.1")}.get(called, (called,)), version)
            fields = dict(answer.json["fields"])
            self.assertEqual(answer.json["version"], "HTTP/1.1", "the app is always asked in HTTP/1.1")
            self.assertEqual(fields["x-forwarded-proto"], "https" if tls else "http")
            self.assertEqual(fields["host"].split(":")[0], self.hosts["web"])

    def test_h2_upgrade_is_not_taken(self):
        """`Upgrade: h2c` is of the past (RFC 9113, 3.1): the answer is one of HTTP/1.1."""
        answer = self.curl(*HTTP2)
        self.assertEqual((answer.status, answer.info[0]["http_version"]), (200, "1.1"))
        fields = dict(answer.json["fields"])
        self.assertFalse({"upgrade", "http2-settings"} & set(fields), fields)

    def test_without_alpn(self):
        answer = self.curl("--no-alpn", tls=True)
        self.assertEqual((answer.status, answer.info[0]["http_version"]), (200, "1.1"))

    def test_tls_versions(self):
        for version in ("1.2", "1.3"):
            answer = self.curl(f"--tlsv{version}", "--tls-max", version, tls=True)
            self.assertEqual((answer.status, answer.info[0]["http_version"]), (200, "2"))
        # 35: no handshake
        self.curl("--tlsv1.0", "--tls-max", "1.1", "--ciphers", "DEFAULT@SECLEVEL=0", tls=True, code=35)

    def test_insecure(self):
        address, port = self.address(tls=True)
        done = subprocess.run(
            ["curl", "-sk", "--http2", "--max-time", str(WITHIN_SECONDS), f"https://{self.hosts['web']}:{port}/",
             "--connect-to", f"::{address}:{port}"],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
        )  # fmt: skip
        self.assertEqual(json.loads(done.stdout)["method"], "GET")

    def test_bodies(self):
        for version, tls, called in self.ways():
            for length in (0, 1, 70_000, 1 << 20):
                answer = self.curl(*version, path=f"/bytes/{length}", tls=tls)
                self.assertEqual((answer.body, answer.fields()["content-length"]), (pattern(length), str(length)), (version, length))
            answer = self.curl(*version, path="/close/100000", tls=tls)
            self.assertEqual(answer.body, pattern(100_000), version)

    def test_uploads(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(pattern(1 << 20))
            file.flush()
            for version, tls, called in self.ways():
                told = self.curl(*version, "--data-binary", f"@{file.name}", path="/echo", tls=tls)
                self.assertEqual(told.body, pattern(1 << 20), version)
                put = self.curl(*version, "--upload-file", file.name, tls=tls).json
                self.assertEqual((put["method"], put["length"]), ("PUT", 1 << 20))
                if called == "1.0":
                    # it has no chunks
                    continue
                # of unknown length: the app gets chunks
                chunked = self.curl(*version, "--header", "transfer-encoding: chunked", "--data-binary", f"@{file.name}", tls=tls)
                self.assertEqual(chunked.json["length"], 1 << 20)
                fields = dict(chunked.json["fields"])
                self.assertEqual(("transfer-encoding" in fields, "content-length" in fields), (True, False))

    def test_a_form(self):
        answer = self.curl("--form", "name=value", "--form", "file=@/proc/self/status;type=text/plain", path="/echo")
        self.assertIn(b'form-data; name="name"', answer.body)

    def test_expect_100_continue(self):
        with tempfile.NamedTemporaryFile() as file:
            file.write(pattern(200_000))
            file.flush()
            upload = ("--data-binary", f"@{file.name}", "--header", "expect: 100-continue", "--expect100-timeout", "60")
            # curl would wait for a minute: it goes on because it is told to
            answer = self.curl(*HTTP1, *upload, path="/echo")
            self.assertEqual((answer.statuses, answer.body), ([100, 200], pattern(200_000)))
            answer = self.curl(*HTTP1, *upload, tls=True)
            self.assertEqual((answer.statuses, answer.json["length"]), ([100, 200], 200_000))
            # over HTTP/2 none is sent, and curl goes on by itself after a second
            self.assertEqual(self.curl(*HTTP2, *upload[:4], tls=True).json["length"], 200_000)
            # a client of 1.0 gets no interim answer
            self.assertEqual(self.curl("--http1.0", *upload[:2]).statuses, [200])

    def test_ranges(self):
        for version, tls, _ in self.ways():
            answer = self.curl(*version, "--range", "10-19", path="/bytes/100", tls=tls)
            self.assertEqual((answer.status, answer.body), (206, pattern(100)[10:20]))
            self.assertEqual(answer.fields()["content-range"], "bytes 10-19/100")
            self.assertEqual(self.curl(*version, "--range", "500-", path="/bytes/100", tls=tls).status, 416)
        with tempfile.NamedTemporaryFile() as file:
            file.write(pattern(100)[:40])
            file.flush()
            self.curl("--continue-at", "-", "--output", file.name, "--no-include", path="/bytes/100")
            file.seek(0)
            self.assertEqual(file.read(), pattern(100))

    def test_head(self):
        for version, tls, _ in self.ways():
            answer = self.curl(*version, "--head", path="/bytes/5000", tls=tls)
            self.assertEqual((answer.status, answer.fields()["content-length"], answer.body), (200, "5000", b""))
            answer = self.curl(*version, "--head", path="/chunked/5000", tls=tls)
            self.assertEqual((answer.status, answer.body), (200, b""))

    def test_answers_without_a_body(self):
        for version, tls, _ in self.ways():
            for status in (204, 304):
                answer = self.curl(*version, path=f"/status/{status}", tls=tls)
                self.assertEqual((answer.status, answer.body), (status, b""))
                self.assertFalse({"content-length", "transfer-encoding"} & set(answer.fields()), answer.heads)

    def test_statuses_and_methods(self):
        for status in (201, 400, 401, 404, 418, 429, 500, 503):
            self.assertEqual(self.curl(path=f"/status/{status}").status, status)
        for method in ("DELETE", "OPTIONS", "PATCH", "QUERY"):
            for version, tls, _ in self.ways():
                self.assertEqual(self.curl(*version, "--request", method, tls=tls).json["method"], method)

    def test_trailers_of_answers(self):
        crc = str(zlib.crc32(pattern(50_000)))
        for version, tls, called in self.ways():
            # over HTTP/1.1 to those who say that they read them; curl prints them behind the body
            answer = self.curl(*version, "--header", "te: trailers", path="/chunked/50000", tls=tls)
            if called == "1.0":
                self.assertEqual(answer.body, pattern(50_000))
                self.assertNotIn("transfer-encoding", answer.fields())
                continue
            body, trailers = answer.body[:50_000], answer.body[50_000:].decode()
            self.assertEqual((body, trailers.strip()), (pattern(50_000), f"x-checksum: {crc}"), version)
        self.assertEqual(self.curl(*HTTP1, path="/chunked/50000").body, pattern(50_000))

    def test_early_hints(self):
        """An app's interim answers come before its answer: the app waits until they were seen."""
        answer = self.curl(*HTTP1, path="/hints")
        self.assertEqual((answer.statuses, answer.body), ([103, 102, 200], b"the answer"))
        # of several fields `fields` keeps the last; what `Connection` names stays on the app's side
        self.assertIn("link: </style.css>; rel=preload; as=style\r\nlink: </app.js>; rel=preload; as=script", answer.heads[0])
        self.assertNotIn("x-private", answer.heads[0])
        self.assertEqual(self.curl(*HTTP1, path="/hints", tls=True).statuses, [103, 102, 200])
        # HTTP/1.0 knows none, and over HTTP/2 the library sends none
        for version, tls in ((("--http1.0",), False), (PRIOR, False), (HTTP2, True)):
            answer = self.curl(*version, path="/hints", tls=tls)
            self.assertEqual((answer.statuses, answer.body), ([200], b"the answer"))

    def test_early_hints_are_early(self):
        with contextlib.closing(self.connect()) as stream:
            ask = f"GET %s HTTP/1.1\r\nhost: {self.hosts['web']}\r\n%s\r\n"
            stream.sendall((ask % ("/hints", "x-wait-for: early\r\n")).encode())
            reader = stream.makefile("rb")
            self.assertEqual(reader.readline(), b"HTTP/1.1 103 Early Hints\r\n")
            self.assertEqual(self.curl(path="/saw/early").status, 204)
            rest = b""
            while b"the answer" not in rest:
                rest += reader.readline() if b"content-length" not in rest else reader.read1()
            self.assertIn(b"HTTP/1.1 200 OK\r\n", rest)

    def test_connections_are_kept(self):
        for version, tls, called in self.ways():
            # the curl of Debian 12 fails at the second request of a connection with prior knowledge, whatever the server
            if called == "1.0" or version == PRIOR:
                continue
            answer = self.curl(*version, path="/?1", paths=["/?2", "/bytes/100000", "/chunked/5000", "/status/204", "/?3"], tls=tls)
            self.assertEqual([info["num_connects"] for info in answer.info], [1, 0, 0, 0, 0, 0], version)
        # one of 1.0 is over with its answer, unless it is asked to stay
        answer = self.curl("--http1.0", path="/?1", paths=["/?2"])
        self.assertEqual([info["num_connects"] for info in answer.info], [1, 1])

    def test_a_refused_upload(self):
        """An answer that comes before the body was read is passed on."""
        with tempfile.NamedTemporaryFile() as file:
            file.truncate(32 << 20)
            # over HTTP/2 this curl takes the RST_STREAM behind such an answer for an error; see `h2_cases` for that
            for tls in (False, True):
                answer = self.curl(*HTTP1, "--data-binary", f"@{file.name}", "--header", "expect:", path="/refuse/413", tls=tls)
                self.assertEqual((answer.status, answer.body), (413, b"not wanted\n"), tls)

    def test_many_at_once(self):
        """Over one connection of HTTP/2, and over some of HTTP/1.1."""
        for version, tls in ((HTTP1, False), (HTTP2, True)):
            paths = [f"/bytes/{length}" for length in range(1, 60)]
            answer = self.curl(*version, "--parallel", "--parallel-max", "20", "--no-include", path="/bytes/0", paths=paths, tls=tls)
            self.assertEqual([info["response_code"] for info in answer.info], [200] * 60)
            self.assertEqual(sum(info["size_download"] for info in answer.info), sum(range(60)))

    def test_large_heads(self):
        value = "v" * 20_000
        for version, tls, _ in self.ways():
            fields = dict(self.curl(*version, "--header", f"x-large: {value}", tls=tls).json["fields"])
            self.assertEqual(fields["x-large"], value)
            self.assertEqual(self.curl(*version, "--header", "x-empty;", tls=tls).status, 200)


class Raw(Case):
    """HTTP/1 as bytes."""

    def ask(self, *pieces, until_closed=True):
        with contextlib.closing(self.connect()) as stream:
            for piece in pieces:
                stream.sendall(piece.replace("HOST", self.hosts["web"]).replace("\n", "\r\n").encode())
            if not until_closed:
                return stream.recv(65536).decode()
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := stream.recv(65536):
                    answer += part
            return answer.decode()

    def test_pipelining(self):
        """Requests that are sent before the answers to others are answered in order."""
        many = "".join(f"GET /bytes/{length} HTTP/1.1\nhost: HOST\n\n" for length in range(20))
        answer = self.ask(many + "GET /bytes/20 HTTP/1.1\nhost: HOST\nconnection: close\n\n")
        lengths = [int(length) for length in re.findall(r"content-length: (\d+)", answer)]
        self.assertEqual(lengths, list(range(21)))
        # with bodies between them
        post = "POST /echo HTTP/1.1\nhost: HOST\n"
        answer = self.ask(
            post + "content-length: 5\n\nfirst" + post + "transfer-encoding: chunked\n\n6;x=y\nsecond\n0\n\n"
            + post + "connection: close\ncontent-length: 5\n\nthird"
        )  # fmt: skip
        self.assertEqual([word for word in re.findall("first|second|third", answer)], ["first", "second", "third"])
        self.assertEqual(answer.count("HTTP/1.1 200 OK"), 3)

    def test_chunks(self):
        """Extensions, capitals and zeros in sizes, trailers; each in pieces."""
        whole = (
            "POST / HTTP/1.1\nhost: HOST\ntransfer-encoding: chunked\nconnection: close\ntrailer: x-sum\n\n"
            "5;a=b\nhello\n00A\n0123456789\na;c=\"d\"\n0123456789\n0\nx-sum: 7\n\n"
        )  # fmt: skip
        for pieces in ([whole], list(whole.replace("HOST", self.hosts["web"]))):
            answer = self.ask(*pieces)
            self.assertTrue(answer.startswith("HTTP/1.1 200 "), answer)
            told = json.loads(answer.partition("\r\n\r\n")[2])
            self.assertEqual((told["length"], told["trailers"]), (25, {"x-sum": "7"}))

    def test_http_1_0(self):
        self.assertIn("connection: keep-alive", self.ask("GET / HTTP/1.0\nhost: HOST\nconnection: keep-alive\n\n", until_closed=False).lower())
        answer = self.ask("GET /chunked/1000 HTTP/1.0\nhost: HOST\n\n")
        head, _, body = answer.partition("\r\n\r\n")
        self.assertNotIn("transfer-encoding", head.lower())
        self.assertEqual(body, pattern(1_000).decode())
        self.assertRegex(self.ask("GET / HTTP/1.0\n\n"), r"^HTTP/1\.[01] 400 .*")

    def test_continue_is_said_once_and_only_when_asked(self):
        head = "POST /echo HTTP/1.1\nhost: HOST\ncontent-length: 4\nconnection: close\n"
        self.assertEqual(self.ask(head + "\nbody").count("100 Continue"), 0)
        with contextlib.closing(self.connect()) as stream:
            stream.sendall((head + "expect: 100-continue\n\n").replace("HOST", self.hosts["web"]).replace("\n", "\r\n").encode())
            self.assertEqual(stream.recv(4096), b"HTTP/1.1 100 Continue\r\n\r\n")
            stream.sendall(b"body")
            rest = b""
            while part := stream.recv(4096):
                rest += part
            self.assertTrue(rest.startswith(b"HTTP/1.1 200 OK\r\n") and rest.endswith(b"body"), rest)

    def test_an_answer_instead_of_continue(self):
        """Who is refused is not asked for the body."""
        head = "POST /x HTTP/1.1\nhost: nowhere.example\ncontent-length: 4\nexpect: 100-continue\nconnection: close\n\n"
        answer = self.ask(head)
        self.assertTrue(answer.startswith("HTTP/1.1 404 "), answer)

    def test_forms_of_targets(self):
        ask = "GET %s HTTP/1.1\nhost: HOST\nconnection: close\n\n"
        answer = self.ask(ask % "http://HOST/absolute?x")
        self.assertEqual(json.loads(answer.partition("\r\n\r\n")[2])["path"], "/absolute?x")
        self.assertTrue(self.ask((ask % "HOST:80").replace("GET", "CONNECT")).startswith("HTTP/1.1 405 "))

    def test_tls_ends_with_a_word(self):
        """The end of a body that only the connection's end tells is a close_notify, so that none can cut it (RFC 8446, 6.1)."""
        with contextlib.closing(self.connect(self.hosts["web"], ["http/1.1"])) as stream:
            stream.suppress_ragged_eofs = False
            stream.sendall(f"GET /close/1000 HTTP/1.0\r\nhost: {self.hosts['web']}\r\n\r\n".encode())
            answer = b""
            with contextlib.suppress(ssl.SSLZeroReturnError):
                while part := stream.recv(65536):
                    answer += part
            self.assertTrue(answer.endswith(pattern(1_000)))

    def test_an_idle_client_that_half_closes_is_let_go(self):
        with contextlib.closing(self.connect()) as stream:
            stream.shutdown(socket.SHUT_WR)
            self.assertEqual(stream.recv(4096), b"")


if __name__ == "__main__":
    unittest.main()
