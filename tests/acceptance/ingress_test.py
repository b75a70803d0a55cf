"""What `az` sets on the way in takes effect: with real gRPC, TCP, path routes, affinity, certificates and addresses."""

import concurrent.futures
import contextlib
import json
import pathlib
import queue
import socket
import ssl
import subprocess
import sys
import tempfile
import unittest

import grpc

import cove
import python_image
from az_test import ServerCase

IMAGE = "cove.local/python:latest"
GROUP, ENVIRONMENT = "rg", "env"


class Ingress(ServerCase):
    """One environment for all tests; every test makes its own apps."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        python_image.import_into(cls.server, IMAGE)
        cls.az("group", "create", "-n", GROUP, "-l", "eastus")
        environment = cls.az(
            "containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus", "--logs-destination", "none"
        )
        cls.domain = environment["properties"]["defaultDomain"]

    def create(self, name, serve, port, *arguments, ingress="external"):
        return self.az(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", IMAGE,
            "--ingress", ingress, "--target-port", str(port), "--min-replicas", "0", "--env-vars", f"NAME={name}",
            "--args", *serve, *arguments,
        )  # fmt: skip

    def host(self, name):
        return f"{name}.{self.domain}"

    def ask(self, host, path="/", **headers):
        status, text = self.server.request(host, path, headers)[:2]
        return status, json.loads(text) if status == 200 and text.startswith("{") else text

    def test_grpc(self):
        self.create("calls", ["grpc", "50051"], 50051, "--transport", "http2")
        address = self.server.http.removeprefix("http://")
        options = [("grpc.default_authority", self.host("calls"))]
        with grpc.insecure_channel(address, options) as channel:
            upper = channel.unary_unary("/cove.Test/Upper")
            # the first call wakes it
            answer, call = upper.with_call(b"hello", timeout=60)
            self.assertEqual(answer, b"HELLO")
            self.assertEqual(dict(call.trailing_metadata())["x-trailer"], "calls")
            with self.assertRaises(grpc.RpcError) as refused:
                upper(b"fail", timeout=60)
            self.assertEqual(refused.exception.code(), grpc.StatusCode.FAILED_PRECONDITION)
            self.assertEqual(refused.exception.details(), "as you wish")
            self.assertEqual(dict(refused.exception.trailing_metadata())["x-why"], "asked for")
            numbers = channel.unary_stream("/cove.Test/Count")(b"1000", timeout=60)
            self.assertEqual([int(number) for number in numbers], list(range(1000)))
            # an answer to each message before the next is said
            waiting = queue.Queue()
            waiting.put(b"message 0")
            heard = []
            for answer in channel.stream_stream("/cove.Test/Chat")(iter(waiting.get, None), timeout=60):
                heard.append(answer)
                waiting.put(f"message {len(heard)}".encode() if len(heard) < 50 else None)
            self.assertEqual(heard, [f"MESSAGE {number}".encode() for number in range(50)])
            with concurrent.futures.ThreadPoolExecutor(16) as pool:
                answers = list(pool.map(lambda n: upper(f"call {n}".encode(), timeout=60), range(300)))
            self.assertEqual(answers, [f"CALL {n}".encode() for n in range(300)])
        secure = grpc.ssl_channel_credentials(pathlib.Path(self.server.ca).read_bytes())
        options.append(("grpc.ssl_target_name_override", self.host("calls")))
        address = self.server.https.removeprefix("https://")
        with grpc.secure_channel(address, secure, options) as channel:
            self.assertEqual(channel.unary_unary("/cove.Test/Upper")(b"tls", timeout=60), b"TLS")

    def test_tcp(self):
        (port,) = cove.free_ports(1)
        self.create("db", ["tcp", "9000"], 9000, "--transport", "tcp", "--exposed-port", str(port))
        with contextlib.closing(cove.until("the port", lambda: self.connect(port))) as client:
            # held while it wakes, then half-closed
            client.sendall(b"one\ntwo\n")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(client.makefile().read(), "ONE\nTWO\ndb heard 2 lines\n")
        # an app of the environment reaches it by name
        self.create("caller", ["http", "8080"], 8080)
        self.assertEqual(self.ask(self.host("caller"))[0], 200)
        script = (
            "import socket; c = socket.create_connection(('db', %d), 30); c.sendall(b'inside\\n');"
            "c.shutdown(1); print(c.makefile().read())" % port
        )
        version = "python%d.%d" % sys.version_info[:2]
        said = self.in_replica("caller", [f"/usr/bin/{version}", "-c", script])
        self.assertIn("INSIDE\ndb heard 1 lines", said)
        # gone with its ingress
        self.az("containerapp", "ingress", "disable", "-n", "db", "-g", GROUP)
        cove.until("the port is closed", lambda: self.connect(port) is None)

    def connect(self, port):
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=60)
        except ConnectionRefusedError:
            return None

    def in_replica(self, app, command):
        """Runs a program in the network of an app's replica."""
        pid = self.pid_of(app)
        done = subprocess.run(
            ["nsenter", "--all", "--target", str(pid), *command],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90,
        )  # fmt: skip
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout

    def pid_of(self, app):
        """The process of an app, found by the name that its environment gives it."""
        wanted = f"CONTAINER_APP_NAME={app}\0".encode()
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                    if b"/app.py" in (entry / "cmdline").read_bytes():
                        return int(entry.name)
        self.fail(f"no process of {app} runs")

    def test_paths(self):
        self.create("front", ["http", "8080"], 8080)
        self.create("back", ["http", "8080"], 8080, ingress="internal")
        routes = [
            {
                "description": "api",
                "routes": [{"match": {"pathSeparatedPrefix": "/api"}, "action": {"prefixRewrite": "/"}}],
                "targets": [{"containerApp": "back"}],
            },
            {"description": "rest", "routes": [{"match": {"prefix": "/"}}], "targets": [{"containerApp": "front"}]},
        ]
        with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
            json.dump({"rules": routes}, file)
            file.flush()
            self.az(
                "containerapp", "env", "http-route-config", "create", "-g", GROUP, "-n", ENVIRONMENT,
                "-r", "site", "--yaml", file.name,
            )  # fmt: skip
        site = self.host("site")
        self.assertEqual(cove.until("the route", lambda: self.served(site, "/api/x?y=1")), ("back", "/x?y=1"))
        self.assertEqual(self.served(site, "/apix"), ("front", "/apix"))
        self.assertEqual(self.ask(self.host("back"))[0], 404, "its own host stays inside")
        self.az("containerapp", "env", "http-route-config", "delete", "-g", GROUP, "-n", ENVIRONMENT, "-r", "site", "-y")
        cove.until("the route is gone", lambda: self.ask(site)[0] == 404)

    def served(self, host, path):
        status, answer = self.ask(host, path)
        return (answer["name"], answer["path"]) if status == 200 else None

    def test_rules(self):
        self.create("rules", ["http", "8080"], 8080)
        host = self.host("rules")
        app = ("-n", "rules", "-g", GROUP)
        self.az(
            "containerapp", "ingress", "access-restriction", "set", *app, "--rule-name", "office", "--action", "Allow",
            "--ip-address", "192.0.2.0/24",
        )  # fmt: skip
        cove.until("the rule", lambda: self.ask(host)[0] == 403)
        self.assertIn("RBAC: access denied", self.ask(host)[1])
        self.az("containerapp", "ingress", "access-restriction", "remove", *app, "--rule-name", "office")
        cove.until("no rule", lambda: self.ask(host)[0] == 200)
        self.az(
            "containerapp", "ingress", "cors", "enable", *app, "--allowed-origins", "https://shop.example",
            "--allowed-methods", "GET", "PUT", "--max-age", "60",
        )  # fmt: skip
        asked = {"origin": "https://shop.example", "access-control-request-method": "PUT"}

        def preflight():
            status, text, fields = self.server.request(host, "/", asked, method="OPTIONS")
            return not text and fields

        fields = cove.until("the policy", preflight)
        self.assertEqual(fields["access-control-allow-origin"], "https://shop.example")
        self.assertEqual(fields["access-control-max-age"], "60")

    def test_affinity(self):
        self.create("sticky", ["http", "8080"], 8080, "--max-replicas", "3")
        app = ("-n", "sticky", "-g", GROUP)
        self.az("containerapp", "ingress", "sticky-sessions", "set", *app, "--affinity", "sticky")
        self.az("containerapp", "update", *app, "--min-replicas", "3")
        host = self.host("sticky")

        def replicas():
            return {self.ask(host)[1]["replica"] for _ in range(30)}

        cove.until("three replicas", lambda: len(self.az("containerapp", "replica", "list", *app)) == 3)
        for _ in range(3):
            status, text, fields = self.server.request(host, "/", {})
            self.assertEqual(status, 200)
            cookie, replica = fields["set-cookie"].split(";")[0], json.loads(text)["replica"]
            self.assertTrue(cookie.startswith("acaAffinity="), cookie)
            again = {self.ask(host, cookie=cookie)[1]["replica"] for _ in range(20)}
            self.assertEqual(again, {replica})

    def test_custom_domain(self):
        self.create("shop", ["http", "8080"], 8080)
        app = ("-n", "shop", "-g", GROUP)
        self.az("containerapp", "hostname", "add", *app, "--hostname", "shop.example")
        cove.until("plain HTTP", lambda: self.ask("shop.example")[0] == 200)
        with self.assertRaises(ssl.SSLError):
            self.server.leaf("shop.example")
        seen = set()
        for number in range(2):
            with tempfile.TemporaryDirectory() as folder:
                pem = pathlib.Path(folder) / "shop.pem"
                key = pathlib.Path(folder) / "shop.key"
                subprocess.run(
                    ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                     "-days", "30", "-subj", "/CN=shop.example", "-addext", "subjectAltName=DNS:shop.example",
                     "-keyout", str(key), "-out", str(pem)],
                    check=True, capture_output=True,
                )  # fmt: skip
                whole = ssl.PEM_cert_to_DER_cert(pem.read_text())
                pem.write_text(pem.read_text() + key.read_text())
                self.az(
                    "containerapp", "hostname", "bind", *app, "--environment", ENVIRONMENT,
                    "--hostname", "shop.example", "--certificate", self.upload(pem, number),
                )  # fmt: skip
                cove.until("its certificate", lambda: self.leaf_or_none("shop.example") == whole)
                seen.add(whole)
        self.assertEqual(len(seen), 2)

    def upload(self, pem, number):
        made = self.az(
            "containerapp", "env", "certificate", "upload", "-n", ENVIRONMENT, "-g", GROUP,
            "--certificate-file", str(pem), "--certificate-name", f"shop{number}",
        )  # fmt: skip
        return made["id"]

    def leaf_or_none(self, name):
        with contextlib.suppress(ssl.SSLError, ConnectionError):
            return self.server.leaf(name)

    def test_client_certificate(self):
        self.create("secure", ["http", "8080"], 8080)
        app = ("-n", "secure", "-g", GROUP)
        path = f"/subscriptions/{cove.SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps/secure"
        body = {"properties": {"configuration": {"ingress": {"clientCertificateMode": "require"}}}}
        self.az("rest", "--method", "patch", "--url", f"{self.server.api}{path}?api-version=2025-07-01",
                "--resource", f"{self.server.api}/", "--body", json.dumps(body))  # fmt: skip
        self.az("containerapp", "show", *app)
        host = self.host("secure")
        cove.until("it is required", lambda: self.ask(host)[0] == 403)
        with tempfile.TemporaryDirectory() as folder:
            key, pem = pathlib.Path(folder) / "key", pathlib.Path(folder) / "pem"
            subprocess.run(
                ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=client",
                 "-keyout", str(key), "-out", str(pem)],
                check=True, capture_output=True,
            )  # fmt: skip
            address, port = self.server.https.removeprefix("https://").rsplit(":", 1)
            for given, expected in ((False, 403), (True, 200)):
                context = ssl.create_default_context(cafile=self.server.ca)
                if given:
                    context.load_cert_chain(pem, key)
                with socket.create_connection((address, int(port)), timeout=60) as plain:
                    with context.wrap_socket(plain, server_hostname=host) as secure:
                        secure.sendall(f"GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n".encode())
                        text = secure.makefile().read()
                self.assertEqual(int(text.split()[1]), expected, text)
            self.assertIn('x-forwarded-client-cert": "Hash=', text)


if __name__ == "__main__":
    unittest.main()
