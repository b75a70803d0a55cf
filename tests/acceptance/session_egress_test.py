"""What leaves a session, shown by the packets: every frame on every interface of this machine is captured while a session tries.

A session without egress sends nothing at all. One with egress shows that the capture works. One with rules reaches what they name.
"""

import contextlib
import json
import secrets
import socket
import threading
import unittest

import cove
import python_image
from machine import Machine
from sessions_test import AUDIENCE, ENVIRONMENT, GROUP, POOLS, SessionCase, cgroup_of, pool_body

IMAGE = "cove.test/egress:1"
# of nobody (RFC 5737), and of the internet for whoever looks at its number
INTERNET = "198.51.100.0/24"
ALL_FRAMES = 0x0003
SO_RCVBUFFORCE = 33
LOCALLY_MADE = b"\x02\xc0"  # how hardware addresses of replicas begin


class Capture:
    """Frames that contain a text, go to an address, or come from a hardware address of a replica of `own`; a context manager.

    `own` is what names of a server's network begin with: replicas of other servers are nobody's affair here.
    """

    def __init__(self, text, address, own):
        self._text, self._address, self._own = text, socket.inet_aton(address), own
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL_FRAMES))
        self._socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 << 20)
        self._mark = secrets.token_bytes(16)
        self._seen_mark = threading.Event()
        self._frames = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.frames()
        self._thread.join(10)
        self._socket.close()

    def _read(self):
        while not self._seen_mark.is_set():
            frame, (interface, *_) = self._socket.recvfrom(1 << 16)
            if self._mark in frame:
                self._seen_mark.set()
            elif self._text in frame or self._goes_there(frame) or self._is_of_own(interface, frame):
                self._frames.append((interface, frame))

    def _is_of_own(self, interface, frame):
        return frame[6:8] == LOCALLY_MADE and interface.startswith(self._own)

    def _goes_there(self, frame):
        """IPv4, with nothing before its head but that of Ethernet: this machine's own questions for hardware addresses are none."""
        return frame[12:14] == b"\x08\x00" and frame[30:34] == self._address

    def frames(self):
        """All of them: whatever was sent before this call has been read when a datagram of our own was."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(self._mark, ("127.0.0.1", 9))
        if not self._seen_mark.wait(30):
            raise AssertionError("the capture does not see a datagram on the loopback")
        dropped = int.from_bytes(self._socket.getsockopt(263, 6, 8)[4:8], "little")
        if dropped:
            raise AssertionError(f"the capture lost {dropped} frames")
        return self._frames


def answer_everything(listener, receiver):
    """A server in the internet: a word for each connection and datagram."""

    def connections():
        with contextlib.suppress(OSError):
            while True:
                stream, _ = listener.accept()
                with stream, contextlib.suppress(OSError):
                    stream.recv(100)
                    stream.sendall(b"hello")

    def messages():
        with contextlib.suppress(OSError):
            while True:
                _, sender = receiver.recvfrom(2000)
                receiver.sendto(b"hello", sender)

    for serve in (connections, messages):
        threading.Thread(target=serve, daemon=True).start()


class Egress(SessionCase):
    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server())
        cls.near, cls.far = (cls.enterClassContext(Machine(INTERNET)) for _ in range(2))
        for machine in (cls.near, cls.far):
            for port in (7001, 7002):
                cls.serve(machine, port)
        python_image.import_into(cls.server, IMAGE, main="egress_app.py")
        cls.arm("PUT", GROUP, {"location": "eastus"})
        body = {"location": "eastus", "properties": {"appLogsConfiguration": {"destination": "none"}}}
        cls.arm("PUT", ENVIRONMENT, body)
        cls.settle(ENVIRONMENT)
        rules = [{"action": "Allow", "host": cls.near.address, "ports": [7001]}, {"host": "pypi.org", "ports": [443]}]
        networks = {
            "shut": {"status": "EgressDisabled"},
            "open": {"status": "EgressEnabled"},
            "ruled": {"status": "EgressEnabled", "coveEgressRules": rules},
        }
        for name, network in networks.items():
            body = pool_body(3, 1, sessionNetworkConfiguration=network)
            body["properties"]["customContainerTemplate"]["containers"][0]["image"] = IMAGE
            cls.make_pool(name, body)
        cls.token = cls.token_for(AUDIENCE)

    @classmethod
    def serve(cls, machine, port):
        def sockets():
            listener = socket.create_server((machine.address, port))
            receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            receiver.bind((machine.address, port))
            return listener, receiver

        listener, receiver = machine.inside(sockets)
        cls.addClassCleanup(listener.close)
        cls.addClassCleanup(receiver.close)
        answer_everything(listener, receiver)

    def tearDown(self):
        for pool in ("shut", "open", "ruled"):
            self.ask(f"{self.base(pool)}/.management/stopSession?identifier=sender", "POST")

    def attempt(self, pool, address, port=7001, wait=1.5):
        """What became of each way out, and the frames that were seen meanwhile; `wait` is how long each hopes for an answer."""
        marker = "m" + secrets.token_hex(12)
        name = f"{marker}.example.org"
        body = json.dumps({"address": address, "port": port, "name": name, "marker": marker, "wait": wait})
        # names stand in questions as they are, their labels in lower case
        with Capture(marker.encode(), address, self.own()) as capture:
            status, content, _ = self.ask(f"{self.base(pool)}/try?identifier=sender", "POST", body)
            frames = capture.frames()
        self.assertEqual(status, 200, f"{content[:300]}\n{self.server.log(30)}")
        return json.loads(content), frames, marker.encode()

    def own(self):
        """What the bridge and the links of this server's network are named with."""
        name = cgroup_of(self.server).removeprefix("cove-")
        return f"cv{name}", f"v{name}"

    def test_without_egress_nothing_leaves(self):
        told, frames, _ = self.attempt("shut", self.near.address)
        for way, became in told.items():
            self.assertNotIn(became, ("answered", "sent"), way)
        self.assertEqual(frames, [], "no frame on any interface of this machine")

    def test_with_egress_the_capture_sees_it(self):
        told, frames, marker = self.attempt("open", self.near.address, wait=20)
        self.assertEqual((told["tcp"], told["udp"]), ("answered", "answered"), told)
        for way in ("raw_icmp", "frame", "tcp6"):
            self.assertNotIn(told[way], ("answered", "sent"), way)
        bridge, _ = self.own()
        with_marker = {interface for interface, frame in frames if marker in frame}
        self.assertIn(bridge, with_marker, "on the bridge")
        self.assertIn(self.near.link, with_marker, "and on its way out")
        question = [frame for interface, frame in frames if interface == bridge and b"\x07example\x03org" in frame]
        self.assertTrue(question, "a question for a name")

    def test_rules_name_all_that_is_reached(self):
        told, frames, marker = self.attempt("ruled", self.near.address, wait=20)
        self.assertEqual((told["tcp"], told["udp"]), ("answered", "answered"), told)
        self.check_refused(self.attempt("ruled", self.near.address, 7002))
        self.check_refused(self.attempt("ruled", self.far.address))
        # the next server tells the packet filter the rules of sessions that go on
        self.server.kill()
        self.server.start()
        told, _, _ = self.attempt("ruled", self.near.address, wait=20)
        self.assertEqual((told["tcp"], told["udp"]), ("answered", "answered"), told)
        self.check_refused(self.attempt("ruled", self.far.address))

    def check_refused(self, attempted):
        told, frames, marker = attempted
        for way, became in told.items():
            self.assertNotEqual(became, "answered", way)
        out = [interface for interface, _ in frames if not interface.startswith(self.own())]
        self.assertEqual(out, [], "neither a packet nor a name that no rule covers left this machine, or its bridge")

    def test_rules_are_shown_and_checked(self):
        shown = self.arm("GET", f"{POOLS}/ruled")["properties"]["sessionNetworkConfiguration"]
        self.assertEqual([rule["host"] for rule in shown["coveEgressRules"]], [self.near.address, "pypi.org"])
        words = ("-n", "flagged", "-g", "sessions", "--environment", "env", "--container-type", "CustomContainer")
        made = self.server.command(
            "sessionpool", "create", *words, "--image", IMAGE, "--target-port", "80", "--ready-sessions", "0",
            "--egress-allow", "*.example.org:443", "10.1.0.0/16",
        )  # fmt: skip
        network = made["properties"]["sessionNetworkConfiguration"]
        self.assertEqual(network["status"], "EgressEnabled")
        self.assertEqual(network["coveEgressRules"][0], {"action": "Allow", "host": "*.example.org", "ports": [443]})
        self.server.command("sessionpool", "delete", "-n", "flagged", "-g", "sessions", "--yes")
        bad = pool_body(sessionNetworkConfiguration={"status": "EgressDisabled", "coveEgressRules": [{"host": "http://x"}]})
        headers = {"Content-Type": "application/json"}
        status, answer = self.server.call("PUT", f"{POOLS}/bad?api-version=2025-07-01", json.dumps(bad), headers)
        self.assertEqual(status, 400, answer)
        self.assertIn("http://x", json.dumps(answer))


if __name__ == "__main__":
    unittest.main()
