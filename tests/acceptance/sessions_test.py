"""Sessions of a pool, as clients use them: by both addresses, with tokens, streaming, WebSocket, and while the server is killed."""

import base64
import concurrent.futures
import contextlib
import hashlib
import http.client
import json
import os
import pathlib
import random
import re
import socket
import sqlite3
import ssl
import subprocess
import unittest
import urllib.parse

import cove
import python_image
from cove import SUBSCRIPTION, TENANT

IMAGE = "cove.test/session:1"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/sessions"
ENVIRONMENT = f"{GROUP}/providers/Microsoft.App/managedEnvironments/env"
POOLS = f"{GROUP}/providers/Microsoft.App/sessionPools"
VERSION = "api-version=2025-07-01"
AUDIENCE = "https://dynamicsessions.io"
KILLS = int(os.environ.get("COVE_SESSION_KILLS", "20"))


def pool_body(maximum=10, ready=2, **more):
    return {
        "location": "eastus",
        "properties": {
            "environmentId": ENVIRONMENT,
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "customContainerTemplate": {
                "containers": [{"name": "main", "image": IMAGE, "resources": {"cpu": 0.25, "memory": "0.5Gi"}}],
                "ingress": {"targetPort": 80},
            },
            "scaleConfiguration": {"maxConcurrentSessions": maximum, "readySessionInstances": ready},
            "dynamicPoolConfiguration": {
                "lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 300}
            },
            "sessionNetworkConfiguration": {"status": "EgressDisabled"},
            **more,
        },
    }


class SessionCase(unittest.TestCase):
    """A server with a pool, and requests to its sessions."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server())
        python_image.import_into(cls.server, IMAGE, main="session_app.py")
        cls.arm("PUT", GROUP, {"location": "eastus"})
        body = {"location": "eastus", "properties": {"appLogsConfiguration": {"destination": "none"}}}
        cls.arm("PUT", ENVIRONMENT, body)
        cls.settle(ENVIRONMENT)
        cls.make_pool("pool", pool_body())
        cls.token = cls.token_for(AUDIENCE)

    @classmethod
    def arm(cls, method, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        text = None if body is None else json.dumps(body)
        status, answer = cls.server.call(method, f"{path}?{VERSION}", text, headers)
        if status >= 300:
            raise AssertionError(f"{method} {path}: {status} {answer}")
        return answer

    @classmethod
    def settle(cls, path):
        def stands():
            state = cls.arm("GET", path)["properties"]["provisioningState"]
            if state == "Failed":
                raise AssertionError(f"{path} failed\n{cls.server.log()}")
            return state == "Succeeded"

        cove.until(f"{path} is there", stands, within_seconds=180)

    @classmethod
    def make_pool(cls, name, body):
        cls.arm("PUT", f"{POOLS}/{name}", body)
        cls.settle(f"{POOLS}/{name}")
        return cls.arm("GET", f"{POOLS}/{name}")["properties"]["poolManagementEndpoint"]

    @classmethod
    def token_for(cls, resource):
        form = urllib.parse.urlencode({
            "grant_type": "client_credentials", "client_id": "agent", "client_secret": "any", "scope": f"{resource}/.default",
        })  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, answer = cls.server.call("POST", f"/{TENANT}/oauth2/v2.0/token", form, headers)
        if status != 200:
            raise AssertionError(f"no token: {status} {answer}")
        return answer["access_token"]

    def base(self, name="pool"):
        return f"{self.server.api}/subscriptions/{SUBSCRIPTION}/resourceGroups/sessions/sessionPools/{name}"

    def endpoint(self, name="pool"):
        return self.arm("GET", f"{POOLS}/{name}")["properties"]["poolManagementEndpoint"].rstrip("/")

    def connect(self, url):
        """A connection to an address as it is written; names below `localhost` are this machine."""
        parts = urllib.parse.urlsplit(url)
        context = ssl.create_default_context(cafile=self.server.ca)
        connection = http.client.HTTPSConnection(parts.hostname, parts.port, context=context, timeout=90)
        connection._create_connection = lambda address, *rest: socket.create_connection(("127.0.0.1", address[1]), *rest)
        return connection, parts

    def ask(self, url, method="GET", body=None, token=None, headers=None):
        """A request to a session: status, bytes, headers in lower case."""
        connection, parts = self.connect(url)
        try:
            token = self.token if token is None else token
            own = {"Authorization": f"Bearer {token}"} if token else {}
            target = f"{parts.path}?{parts.query}" if parts.query else parts.path
            connection.request(method, target, body=body, headers={**own, **(headers or {})})
            answer = connection.getresponse()
            content = answer.read()
            return answer.status, content, {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def told(self, url, method="GET", body=None, headers=None):
        status, content, seen = self.ask(url, method, body, headers=headers)
        self.assertEqual(status, 200, f"{content[:500]}\n{self.server.log(30)}")
        return json.loads(content), seen

    def code(self, url, method="GET", **more):
        status, content, _ = self.ask(url, method, **more)
        return status, json.loads(content)["error"]["code"]

    def tearDown(self):
        base = self.base()
        _, content, _ = self.ask(f"{base}/.management/listSessions")
        for one in json.loads(content)["value"]:
            name = urllib.parse.quote(one["identifier"], safe="")
            self.ask(f"{base}/.management/stopSession?identifier={name}", "POST")


class Sessions(SessionCase):
    """What a session is asked, and what it is not."""

    def test_the_seeds_request_at_both_addresses(self):
        endpoint = self.endpoint()
        self.assertRegex(endpoint, r"^https://pool\.", "the seed's form: the pool's own host")
        body = json.dumps({"command": "echo 'Hello, world!'"})
        guids = []
        for base in (endpoint, self.base()):
            told, seen = self.told(f"{base}/echo/api?identifier=seed-user", "POST", body)
            self.assertEqual((told["method"], told["target"]), ("POST", "/echo/api?identifier=seed-user"))
            self.assertEqual(told["size"], len(body))
            self.assertNotIn("authorization", told["headers"], "the session never sees the token")
            guids.append(seen["x-ms-session-guid"])
        self.assertEqual(guids[0], guids[1], "both lead to the same session")
        told, _ = self.told(f"{self.base()}/echo?identifier=seed-user&api-version=2024-02-02-preview&x=1")
        self.assertEqual(told["target"], "/echo?identifier=seed-user&api-version=2024-02-02-preview&x=1")
        self.assertEqual(told["calls"], 3)

    def test_every_identifier_has_its_own_container(self):
        base = self.base()
        seen = {}
        for user in ("user-a", "user-b", "user-a", "user-c", "user-b", "user-a"):
            told, headers = self.told(f"{base}/echo?identifier={user}")
            guid, calls = seen.get(user, (headers["x-ms-session-guid"], 0))
            self.assertEqual((headers["x-ms-session-guid"], told["calls"]), (guid, calls + 1))
            seen[user] = (guid, calls + 1)
        self.assertEqual(len({guid for guid, _ in seen.values()}), 3)
        _, content, _ = self.ask(f"{base}/.management/listSessions")
        self.assertEqual([one["identifier"] for one in json.loads(content)["value"]], ["user-a", "user-b", "user-c"])
        status, content, _ = self.ask(f"{base}/.management/session?identifier=user-a")
        self.assertEqual((status, json.loads(content)["sessionId"]), (200, seen["user-a"][0]))
        self.assertEqual(self.ask(f"{base}/.management/session?identifier=user-a", "DELETE")[0], 204)
        self.assertEqual(self.code(f"{base}/.management/session?identifier=user-a"), (404, "SessionNotFound"))
        told, headers = self.told(f"{base}/echo?identifier=user-a")
        self.assertNotEqual(headers["x-ms-session-guid"], seen["user-a"][0])
        self.assertEqual(told["calls"], 1, "a fresh one")

    def test_methods_bodies_and_large_ones_pass_unchanged(self):
        base = self.base()
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
            told, _ = self.told(f"{base}/echo?identifier=methods", method, headers={"X-Own": "yes"})
            self.assertEqual((told["method"], told["headers"]["x-own"]), (method, "yes"))
        self.assertEqual(self.ask(f"{base}/echo?identifier=methods", "HEAD")[:2], (200, b""))
        whole = random.Random(1).randbytes(5 << 20)
        for url in (base, self.endpoint()):
            status, content, _ = self.ask(f"{url}/body?identifier=methods", "POST", whole)
            self.assertEqual((status, hashlib.sha256(content).digest()), (200, hashlib.sha256(whole).digest()))
        status, content, _ = self.ask(f"{base}/body?identifier=methods", "POST", iter([b"in ", b"parts"]))
        self.assertEqual((status, content), (200, b"in parts"))

    def test_an_answer_streams(self):
        for base in (self.base(), self.endpoint()):
            connection, parts = self.connect(f"{base}/stream")
            target = f"{parts.path}?identifier=streams"
            connection.request("GET", target, headers={"Authorization": f"Bearer {self.token}"})
            answer = connection.getresponse()
            self.assertEqual(answer.readline(), b"line 0\n")
            for number in (1, 2):
                self.told(f"{base}/next?identifier=streams", "POST")
                self.assertEqual(answer.readline(), b"line %d\n" % number)
            self.assertEqual(answer.read(), b"")
            connection.close()

    def test_a_websocket_goes_both_ways(self):
        for base in (self.base(), self.endpoint()):
            connection, parts = self.connect(f"{base}/ws")
            connection.connect()
            key = base64.b64encode(os.urandom(16)).decode()
            lines = [
                f"GET {parts.path}?identifier=sockets HTTP/1.1", f"Host: {parts.netloc}", "Connection: Upgrade",
                "Upgrade: websocket", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}",
                f"Authorization: Bearer {self.token}", "", "",
            ]  # fmt: skip
            connection.sock.sendall("\r\n".join(lines).encode())
            reader = connection.sock.makefile("rb")
            head = [reader.readline()]
            while head[-1] not in (b"\r\n", b""):
                head.append(reader.readline())
            self.assertTrue(head[0].startswith(b"HTTP/1.1 101"), head)
            for text in (b"hello", b"x" * 1000):
                mask = os.urandom(4)
                size = bytes([0x80 | len(text)]) if len(text) < 126 else bytes([0xFE]) + len(text).to_bytes(2, "big")
                masked = bytes(byte ^ mask[at % 4] for at, byte in enumerate(text))
                connection.sock.sendall(b"\x81" + size + mask + masked)
                first = reader.read(2)
                length = first[1] if first[1] < 126 else int.from_bytes(reader.read(2), "big")
                self.assertEqual(reader.read(length), text)
            connection.sock.sendall(b"\x88\x80" + os.urandom(4))
            connection.close()

    def test_only_a_token_for_sessions_opens_them(self):
        for base in (self.base(), self.endpoint()):
            url = f"{base}/echo?identifier=tokens"
            self.assertEqual(self.code(url, token=""), (401, "AuthenticationFailed"))
            for token in ("nonsense", self.token[:-8] + "A" * 8, "a.b.c"):
                self.assertEqual(self.code(url, token=token), (401, "AuthenticationFailed"))
            other = self.token_for("https://management.azure.com")
            self.assertEqual(self.code(url, token=other), (401, "AuthenticationFailed"))
            self.assertEqual(self.ask(url, token=self.token_for(f"{AUDIENCE}/"))[0], 200)
        # whoever has no token does not learn which pools there are
        self.assertEqual(self.code(f"{self.base('nobody')}/echo?identifier=tokens", token="")[0], 401)
        self.assertEqual(self.code(f"{self.base('nobody')}/echo?identifier=tokens"), (404, "SessionPoolNotFound"))

    def test_identifiers_that_are_none(self):
        base = self.base()
        self.assertEqual(self.code(f"{base}/echo"), (400, "SessionIdentifierMissing"))
        for bad in ("", "abc", "a%2Fb%2Fc", "..%2F..%2Fetc", "a%20b%20c", "gr%C3%B6%C3%9Fe", "ab%00cd", "%ff%fe%fd%fc", "x" * 129):
            self.assertEqual(self.code(f"{base}/echo?identifier={bad}"), (400, "SessionIdentifierInvalid"), bad)
        self.assertEqual(self.code(f"{base}/echo?identifier=abcd&identifier=efgh"), (400, "InvalidQueryParameter"))
        status, _, _ = self.ask(f"{base}/echo?identifier={'y' * 60000}")
        self.assertIn(status, (400, 414, 431))
        for good in ("abcd", "x" * 128, "user@example.com", "a%7Cb%24c%23d"):
            self.assertEqual(self.ask(f"{base}/echo?identifier={good}")[0], 200, good)

    def test_a_full_pool_is_404_until_one_is_stopped(self):
        self.make_pool("small", pool_body(2, 1))
        base = self.base("small")
        for user in ("user-1", "user-2"):
            self.told(f"{base}/echo?identifier={user}")
        self.assertEqual(self.code(f"{base}/echo?identifier=user-3"), (404, "SessionPoolFull"))
        self.told(f"{base}/echo?identifier=user-1")
        status, content, _ = self.ask(f"{base}/.management/stopSession?identifier=user-1", "POST")
        self.assertEqual((status, b"stopped" in content), (200, True))
        self.told(f"{base}/echo?identifier=user-3")
        self.arm("DELETE", f"{POOLS}/small")

    def test_a_session_that_ends_is_replaced(self):
        base = self.base()
        _, first = self.told(f"{base}/echo?identifier=mortal")
        with self.subTest("in the middle of a call"):
            self.ask(f"{base}/exit?identifier=mortal", "POST")

        def replaced():
            status, _, seen = self.ask(f"{base}/echo?identifier=mortal")
            return status == 200 and seen["x-ms-session-guid"] != first["x-ms-session-guid"]

        cove.until("a fresh session answers", replaced)

    def test_many_at_once_with_one_identifier_are_one_session(self):
        base = self.base()
        with concurrent.futures.ThreadPoolExecutor(20) as crowd:
            asked = [crowd.submit(self.told, f"{base}/echo?identifier=crowd") for _ in range(40)]
            answers = [one.result() for one in asked]
        self.assertEqual(len({seen["x-ms-session-guid"] for _, seen in answers}), 1)
        self.assertEqual(sorted(told["calls"] for told, _ in answers), list(range(1, 41)))


def cgroup_of(server):
    """Under which name a server's cgroups are: it is made from its data directory."""
    name = 0xCBF29CE484222325
    for byte in os.fsencode(server.data.resolve()):
        name = ((name ^ byte) * 0x100000001B3) % (1 << 64)
    return f"cove-{name >> 40:06x}"


def count_kernel(server):
    """What the sessions of a server take of this machine: processes, mounts, network namespaces, cgroups, folders."""
    group = cgroup_of(server)
    processes, namespaces = 0, set()
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # a process of a container: it has a PID namespace of its own
            ids = re.search(r"^NSpid:(.*)$", (folder / "status").read_text(), re.MULTILINE)
            if len(ids[1].split()) > 1 and f"/{group}/" in (folder / "cgroup").read_text():
                processes += 1
                namespaces.add(os.readlink(folder / "ns/net"))
        except OSError:
            continue
    find = ["find", "/sys/fs/cgroup", "-type", "d", "-path", f"*/{group}/*/c[0-9]*"]
    cgroups = subprocess.run(find, capture_output=True, text=True, check=False).stdout
    return {
        "processes": processes,
        "namespaces": len(namespaces),
        "cgroups": len(cgroups.splitlines()),
        "mounts": pathlib.Path("/proc/self/mountinfo").read_text().count(str(server.data)),
        "folders": len(list((server.data / "replicas/replicas").iterdir())),
    }


class Killed(SessionCase):
    """The server is killed while sessions are allocated; nobody's session is given to another, none is lost or left over."""

    def rows(self):
        with sqlite3.connect(f"file:{self.server.data}/cove.db?mode=ro", uri=True) as db:
            return [json.loads(doc) for (doc,) in db.execute("SELECT doc FROM sessions")]

    def at_rest(self):
        def rests():
            rows = self.rows()
            return len(rows) == 2 and all(row["identifier"] is None for row in rows)

        cove.until("only the two ready sessions are left", rests, within_seconds=120)

    def still(self):
        """What there is, once both ready sessions run and it is what it was when it was asked before: a row is written first."""
        before, self.counted = getattr(self, "counted", None), count_kernel(self.server)
        return self.counted if self.counted["namespaces"] == 2 and self.counted == before else None

    def test_kills_in_the_middle_of_allocations(self):
        self.at_rest()
        before = cove.until("both run and what there is stands still", self.still)
        draw = random.Random(7)
        for kill in range(KILLS):
            users = [f"kill-{kill}-{number}" for number in range(3)]
            with concurrent.futures.ThreadPoolExecutor(3) as crowd:
                asked = {user: crowd.submit(self.ask, f"{self.base()}/echo?identifier={user}") for user in users}
                concurrent.futures.wait(asked.values(), timeout=draw.uniform(0, 0.15))
                self.server.kill()
                answers = {}
                for user, one in asked.items():
                    try:
                        status, _, seen = one.result()
                        answers[user] = seen.get("x-ms-session-guid") if status == 200 else None
                    except (OSError, http.client.HTTPException):
                        answers[user] = None
            self.server.start()
            guids = {}
            for user in users:
                told, seen = self.told(f"{self.base()}/echo?identifier={user}")
                guids[user] = seen["x-ms-session-guid"]
                if answers[user] is not None:
                    self.assertEqual(guids[user], answers[user], "who had a session keeps it")
                    self.assertGreater(told["calls"], 1)
            self.assertEqual(len(set(guids.values())), 3)
            for user in users:
                self.ask(f"{self.base()}/.management/stopSession?identifier={user}", "POST")
        self.at_rest()
        with contextlib.suppress(AssertionError):
            cove.until("nothing is left over", lambda: count_kernel(self.server) == before)
        self.assertEqual(count_kernel(self.server), before)


if __name__ == "__main__":
    unittest.main()
