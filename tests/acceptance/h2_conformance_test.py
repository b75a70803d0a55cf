"""The ingress keeps RFC 9113: every case of `h2_cases`, over TLS and without, against a real server with a real app."""

import contextlib
import ssl

import conformance
import h2_cases
from conformance import Deadline
from h2_wire import PREFACE, Alive, Answer, Wire, data, headers, settings, window_update

# a case that gets no answer fails after this
CASE_SECONDS = 10


class Http2(conformance.Case):
    APPS = {"web": ("auto", "http")}

    def wire(self, tls):
        host = self.hosts["web"]
        return Wire(self.connect(host, ["h2"]) if tls else self.connect())

    def check(self, case, tls):
        deadline = Deadline(CASE_SECONDS)
        wire = self.wire(tls)
        with contextlib.closing(wire.socket):
            wire.begin(*case.begin, deadline=deadline)
            wire.send(*case.sent)
            try:
                good = (case.instead or case.must).check(wire, deadline)
            except AssertionError as error:
                wire.story.append(str(error))
                good = False
        self.assertTrue(good, f"{case.section}, {case.rule}: not {case.instead or case.must}; came: {', '.join(wire.story)}")

    def check_all(self, tls):
        cases = h2_cases.cases(self.hosts["web"])
        self.assertGreater(len(cases), 150)
        for case in cases:
            with self.subTest(section=case.section, rule=case.rule, tls=tls):
                self.check(case, tls)

    def test_cases_without_tls(self):
        self.check_all(tls=False)

    def test_cases_over_tls(self):
        self.check_all(tls=True)

    def test_3_4_the_server_begins_with_settings(self):
        for tls in (False, True):
            deadline, wire = Deadline(), self.wire(tls)
            with contextlib.closing(wire.socket):
                wire.send(PREFACE, settings())
                wire.until(lambda: wire.story, deadline)
                self.assertEqual(wire.story[0], "SettingsFrame")

    def test_3_4_what_is_sent_right_behind_the_preface_counts(self):
        deadline, wire = Deadline(), self.wire(tls=False)
        with contextlib.closing(wire.socket):
            wire.send(PREFACE, settings(), headers(h2_cases.head(self.hosts["web"])))
            self.assertTrue(Answer().check(wire, deadline), wire.story)

    def test_3_4_a_preface_may_come_in_pieces(self):
        deadline, wire = Deadline(), self.wire(tls=False)
        with contextlib.closing(wire.socket):
            for at in range(len(PREFACE)):
                wire.send(PREFACE[at : at + 1])
            wire.send(settings())
            self.assertTrue(Alive().check(wire, deadline), wire.story)

    def test_3_4_a_preface_that_is_none(self):
        # without TLS it is HTTP/1.1, and no good one
        with contextlib.closing(self.connect()) as stream:
            stream.sendall(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n")
            answer = b""
            with contextlib.suppress(ConnectionResetError):
                while part := stream.recv(4096):
                    answer += part
            self.assertTrue(answer == b"" or answer.startswith(b"HTTP/1.1 400"), answer)
        deadline, wire = Deadline(), self.wire(tls=True)
        with contextlib.closing(wire.socket):
            wire.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" + bytes(40))
            self.assertTrue(wire.until_closed(deadline), wire.story)
            self.assertFalse(wire.streams)

    def test_3_4_deviation_another_first_frame_than_settings_is_taken(self):
        """It should end the connection; the settings are then those of the RFC until some come."""
        deadline, wire = Deadline(), self.wire(tls=False)
        with contextlib.closing(wire.socket):
            wire.send(PREFACE, headers(h2_cases.head(self.hosts["web"])))
            self.assertTrue(Answer().check(wire, deadline), wire.story)

    def test_3_3_h2_is_chosen_by_alpn(self):
        host = self.hosts["web"]
        for offered, chosen in ((["h2", "http/1.1"], "h2"), (["http/1.1", "h2"], "h2"), (["http/1.1"], "http/1.1"), ([], None)):
            with contextlib.closing(self.connect(host, offered)) as stream:
                self.assertEqual(stream.selected_alpn_protocol(), chosen, offered)
        with self.assertRaises(ssl.SSLError):
            self.connect(host, ["spdy/3"]).close()

    def test_9_2_tls(self):
        host = self.hosts["web"]
        for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
            with contextlib.closing(self.connect(host, ["h2"], (version, version))) as stream:
                cipher, _, bits = stream.cipher()
                self.assertEqual((stream.version(), stream.compression()), (name, None))
                # none of the RFC's appendix A: no CBC, no key exchange without forward secrecy
                self.assertGreaterEqual(bits, 128)
                self.assertTrue("GCM" in cipher or "CHACHA20" in cipher, cipher)
                self.assertTrue(cipher.startswith(("TLS_", "ECDHE")), cipher)
                deadline, wire = Deadline(), Wire(stream)
                wire.begin(deadline=deadline)
                wire.send(headers(h2_cases.head(host)))
                self.assertTrue(Answer().check(wire, deadline), wire.story)

    def test_5_1_2_many_streams_at_once(self):
        deadline, wire = Deadline(60), self.wire(tls=False)
        host = self.hosts["web"]
        with contextlib.closing(wire.socket):
            wire.begin(deadline=deadline)
            wire.send(window_update(1 << 20))
            numbers = range(1, 400, 2)
            wire.send(*[headers(h2_cases.head(host, f"/?{number}"), number) for number in numbers])
            self.assertTrue(wire.until(lambda: sum(stream.is_ended for stream in wire.streams.values()) == 200, deadline),
                            wire.story[-9:])  # fmt: skip
            for number in numbers:
                self.assertEqual(h2_cases.seen(wire.streams[number])["path"], f"/?{number}")

    def test_6_9_a_large_body_both_ways(self):
        """Windows are kept on both sides of a body of some megabytes."""
        deadline, wire = Deadline(60), self.wire(tls=True)
        host, length = self.hosts["web"], 3 << 20
        with contextlib.closing(wire.socket):
            wire.begin((h2_cases.INITIAL_WINDOW_SIZE, (1 << 31) - 1), deadline=deadline)
            wire.send(window_update((1 << 31) - 1 - 65535))
            wire.send(headers(h2_cases.head(host, "/echo", "POST"), flags=4))
            window = wire.settings.get(h2_cases.INITIAL_WINDOW_SIZE, 65535)
            sent = 0
            while sent < length:
                granted = [sum(count for on, count in wire.updates if on == stream) for stream in (0, 1)]
                room = min(65535 + granted[0], window + granted[1]) - sent
                part = min(room, 1 << 14, length - sent)
                if part <= 0:
                    count = len(wire.updates)
                    self.assertTrue(wire.until(lambda count=count: len(wire.updates) > count, deadline), wire.story[-9:])
                    continue
                sent += part
                wire.send(data(b"z" * part, flags=1 if sent == length else 0))
            self.assertTrue(Answer().check(wire, deadline), wire.story[-9:])
            self.assertEqual(wire.streams[1].body, b"z" * length)
