"""Bad input to sessions that other tests do not have: huge and foreign identifiers, a session that dies in a call, an archive that
unpacks to more than a session may hold. Each is told what is wrong, and the platform and other sessions go on."""

import http.client
import io
import json
import ssl
import unittest
import zipfile

import cove
import requests
from sessions_test import POOLS, SessionCase

MIB = 1 << 20


class Input(SessionCase):
    def raw(self, target):
        """A request line as no client would write it; the status, or none when the connection was closed."""
        connection, parts = self.connect(self.base())
        connection.connect()
        try:
            head = b"GET " + parts.path.encode() + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
            connection.sock.sendall(head + f"Authorization: Bearer {self.token}\r\n\r\n".encode())
            line = connection.sock.makefile("rb").readline()
            return int(line.split()[1]) if line else None
        except (OSError, ssl.SSLError):
            return None
        finally:
            connection.close()

    def test_identifiers_that_are_huge_or_foreign(self):
        for many in (1000, 100_000, MIB):
            self.assertIn(self.raw(b"/echo?identifier=" + b"i" * many), (400, 414, 431, None), many)
        for foreign in ("größe", "用户用户", "\U0001f980" * 4):
            self.assertEqual(self.raw(b"/echo?identifier=" + foreign.encode()), 400, foreign)
            encoded = "".join(f"%{byte:02x}" for byte in foreign.encode())
            self.assertEqual(self.raw(b"/echo?identifier=" + encoded.encode()), 400, foreign)
        for separated in (b"a%2fb%2fc", b"a/../../bc", b"abcd%00", b"ab%0d%0acd", b"ab;cd%5c", b"%2e%2e%2f%2e%2e"):
            self.assertEqual(self.raw(b"/echo?identifier=" + separated), 400, separated)
        self.assertEqual(self.told(f"{self.base()}/echo?identifier=good-one")[0]["calls"], 1, "others go on")

    def test_a_refused_body_leaves_the_connection(self):
        """The answer comes before the body was sent, and the next request finds the connection as it was."""
        connection, parts = self.connect(self.base())
        connection.connect()
        for length in (10, 5 * MIB, 1):
            head = f"POST {parts.path}/echo?identifier=refused HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"
            connection.sock.sendall(head.encode())
            answer = http.client.HTTPResponse(connection.sock, method="POST")
            answer.begin()
            answer.read()
            self.assertEqual(answer.status, 401)
            connection.sock.sendall(bytes(length))
        connection.close()

    def test_a_session_that_dies_in_a_call(self):
        base = self.base()
        _, first = self.told(f"{base}/echo?identifier=mortal")
        self.told(f"{base}/echo?identifier=neighbour")
        connection, parts = self.connect(f"{base}/stream")
        connection.request("GET", f"{parts.path}?identifier=mortal", headers={"Authorization": f"Bearer {self.token}"})
        answer = connection.getresponse()
        self.assertEqual(answer.readline(), b"line 0\n")
        self.ask(f"{base}/exit?identifier=mortal", "POST")
        with self.assertRaises((http.client.IncompleteRead, OSError)):
            answer.read()
        connection.close()

        def is_fresh():
            status, _, seen = self.ask(f"{base}/echo?identifier=mortal")
            return status == 200 and seen["x-ms-session-guid"] != first["x-ms-session-guid"]

        cove.until("a fresh session answers", is_fresh)
        self.assertEqual(self.told(f"{base}/echo?identifier=neighbour")[0]["calls"], 2, "a neighbour goes on")


class Archive(SessionCase):
    """A shell of Cove's own, in which an archive is unpacked."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server())
        cls.arm("PUT", POOLS.split("/providers")[0], {"location": "eastus"})
        cls.server.command("image", "build-interpreter", "shell", within_seconds=1800)
        properties = {
            "poolManagementType": "Dynamic",
            "containerType": "Shell",
            "scaleConfiguration": {"maxConcurrentSessions": 3, "readySessionInstances": 1},
        }
        cls.make_pool("pool", {"location": "eastus", "properties": properties})
        cls.token = cls.token_for("https://dynamicsessions.io")

    def run_line(self, identifier, line):
        url = f"{self.base()}/executions?identifier={identifier}&api-version=2025-10-02-preview"
        body = json.dumps({"shellCommand": line, "timeoutInSeconds": 200})
        headers = {"Content-Type": "application/json"}
        status, content, _ = self.ask(url, "POST", body, headers=headers)
        self.assertEqual(status, 200, f"{content[:300]}\n{self.server.log(30)}")
        return json.loads(content)

    def test_a_zip_bomb_fills_its_own_session_only(self):
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("zeros", "w", force_zip64=True) as member:
                for _ in range(1024):
                    member.write(bytes(MIB))
            archive.writestr("../../../escaped", "out")
        url = f"{self.base()}/files"
        sent = requests.Session()
        sent.trust_env, sent.verify = False, self.server.ca
        answer = sent.post(
            url, params={"identifier": "bomber", "api-version": "2025-10-02-preview"}, timeout=120,
            headers={"Authorization": f"Bearer {self.token}"}, files={"file": ("bomb.zip", packed.getvalue())},
        )  # fmt: skip
        sent.close()
        self.assertEqual(answer.status_code, 200, answer.text)
        ran = self.run_line("bomber", "cd /mnt/data && python3 -m zipfile -e bomb.zip out; echo code $?; ls -la / | grep escaped")
        self.assertNotIn("code 0", ran["result"]["stdout"], ran)
        self.assertNotIn("escaped", ran["result"]["stdout"])
        self.assertEqual(self.run_line("neighbour", "echo fine")["result"]["stdout"], "fine\n")
        again = self.run_line("bomber", "rm -rf /mnt/data/out; echo free")
        self.assertEqual(again["result"]["stdout"], "free\n", "it is its own again when it makes room")


if __name__ == "__main__":
    unittest.main()
