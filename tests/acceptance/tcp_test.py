"""Ports of apps as `az` sets them: additional ones, who may have which, what the app is told of its client, new servers."""

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import threading
import unittest

import cove
import python_image
from az_test import ServerCase

IMAGE = "cove.local/python:latest"
GROUP, ENVIRONMENT, OTHER = "rg", "env", "other"

APP = """
properties:
  environmentId: %(environment)s
  configuration:
    activeRevisionsMode: Single
    ingress: %(ingress)s
  template:
    containers:
    - name: main
      image: %(image)s
      args: %(args)s
      env: [{name: NAME, value: %(name)s}]
    scale: {minReplicas: 0, maxReplicas: 1}
"""


def connect(port):
    try:
        return socket.create_connection(("127.0.0.1", port), timeout=60)
    except ConnectionRefusedError:
        return None


def say(port, text):
    """What the app at a port answers when it was told everything."""
    with contextlib.closing(cove.until(f"port {port}", lambda: connect(port))) as client:
        client.sendall(text.encode())
        client.shutdown(socket.SHUT_WR)
        return client.makefile().read()


class Ports(ServerCase):
    """Two environments for all tests; every test makes its own apps."""

    CONFIG = cove.CONFIG + """
[ingress]
drain_grace = "20s"
"""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        python_image.import_into(cls.server, IMAGE)
        cls.az("group", "create", "-n", GROUP, "-l", "eastus")
        made = [
            cls.az("containerapp", "env", "create", "-n", name, "-g", GROUP, "-l", "eastus", "--logs-destination", "none")
            for name in (ENVIRONMENT, OTHER)
        ]
        cls.ids = {environment["name"]: environment["id"] for environment in made}
        cls.domain = made[0]["properties"]["defaultDomain"]

    def file(self, name, args, ingress, environment=ENVIRONMENT):
        path = self.server.directory / f"{name}.yaml"
        values = {"environment": self.ids[environment], "ingress": json.dumps(ingress), "image": IMAGE}
        path.write_text(APP % {**values, "args": json.dumps(args), "name": name})
        return str(path)

    def put(self, verb, name, *parts, **more):
        path = self.file(name, *parts, **more)
        return self.az("containerapp", verb, "-n", name, "-g", GROUP, "--yaml", path)

    def refused(self, name, *parts, **more):
        path = self.file(name, *parts, **more)
        return self.az.refused("containerapp", "create", "-n", name, "-g", GROUP, "--yaml", path)

    def inside(self, app, port, host):
        """What an app of the environment hears when it says something to a port."""
        script = (
            f"import socket; c = socket.create_connection(('{host}', {port}), 30); c.sendall(b'inside\\n');"
            "c.shutdown(1); print(c.makefile().read())"
        )
        wanted = f"CONTAINER_APP_NAME={app}\0".encode()
        for entry in pathlib.Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if not entry.name.isdigit() or wanted not in (entry / "environ").read_bytes():
                    continue
                if b"/app.py" not in (entry / "cmdline").read_bytes():
                    continue
                version = "python%d.%d" % sys.version_info[:2]
                done = subprocess.run(
                    ["nsenter", "--all", "--target", entry.name, f"/usr/bin/{version}", "-c", script],
                    stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=90,
                )  # fmt: skip
                self.assertEqual(done.returncode, 0, done.stderr)
                return done.stdout
        self.fail(f"no process of {app} runs")

    def test_additional_ports(self):
        outer, inner, moved = cove.free_ports(3)
        ports = [
            {"targetPort": 9000, "exposedPort": outer, "external": True},
            {"targetPort": 9000, "exposedPort": inner, "external": False},
        ]
        ingress = {"external": True, "targetPort": 8080, "transport": "Auto", "additionalPortMappings": ports}
        args = ["http", "8080", "tcp", "9000"]
        made = self.put("create", "many", args, ingress)
        self.assertEqual(made["properties"]["configuration"]["ingress"]["additionalPortMappings"], ports)
        # it wakes for its additional port as for its own
        self.assertEqual(say(outer, "one\ntwo\n"), "ONE\nTWO\nmany heard 2 lines\n")
        self.assertEqual(self.server.get(f"many.{self.domain}")[0], 200)
        self.assertIsNone(connect(inner), "an internal port is not open outside")
        self.assertIn("INSIDE\nmany heard 1 lines", self.inside("many", inner, "many"))

        ports[0]["exposedPort"] = moved
        self.put("update", "many", args, ingress)
        self.assertEqual(say(moved, "x\n"), "X\nmany heard 1 lines\n")
        cove.until("the old port is closed", lambda: connect(outer) is None)
        # `ingress update` changes what it names and leaves the ports
        updated = self.az("containerapp", "ingress", "update", "-n", "many", "-g", GROUP, "--allow-insecure", "true")
        self.assertEqual(updated["additionalPortMappings"], ports)
        self.assertEqual(say(moved, "y\n"), "Y\nmany heard 1 lines\n")

        # who may have which
        mine = {"external": False, "targetPort": 9000, "exposedPort": inner, "transport": "Tcp"}
        self.assertIn("ExposedPortInUse", self.refused("second", ["tcp", "9000"], mine))
        mine["exposedPort"] = moved
        mine["external"] = True
        said = self.refused("second", ["tcp", "9000"], mine, environment=OTHER)
        self.assertIn("ExposedPortInUse", said)
        self.assertIn("many", said)
        # inside another environment it is free
        mine["external"] = False
        self.put("create", "second", ["tcp", "9000"], mine, environment=OTHER)
        self.assertEqual(say(moved, "z\n"), "Z\nmany heard 1 lines\n")
        six = [{"targetPort": 9000, "exposedPort": port} for port in cove.free_ports(6)]
        self.assertIn("may have 5", self.refused("six", args, {**ingress, "additionalPortMappings": six}))
        for name in ("many", "second"):
            self.az("containerapp", "delete", "-n", name, "-g", GROUP, "--yes")
        cove.until("the port is closed", lambda: connect(moved) is None)

    def test_proxy_protocol(self):
        (port,) = cove.free_ports(1)
        ingress = {"external": True, "targetPort": 9000, "exposedPort": port, "transport": "Tcp"}
        made = self.put("create", "told", ["tcp", "9000"], ingress)
        self.assertEqual(say(port, "hello\n"), "HELLO\ntold heard 1 lines\n")
        self.patch(made["id"], "v1")
        shown = self.az("rest", "--method", "get", *self.at(made["id"]))
        self.assertEqual(shown["properties"]["configuration"]["ingress"]["coveProxyProtocol"], "v1")
        with contextlib.closing(cove.until("the port", lambda: connect(port))) as client:
            own = client.getsockname()[1]
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
            heard = client.makefile(newline="").read()
        self.assertEqual(heard, f"PROXY TCP4 127.0.0.1 127.0.0.1 {own} {port}\r\nHELLO\ntold heard 2 lines\n")
        web = self.put("create", "web", ["http", "8080"], {"external": True, "targetPort": 8080, "transport": "Auto"})
        body = json.dumps({"properties": {"configuration": {"ingress": {"coveProxyProtocol": "v2"}}}})
        said = self.az.refused("rest", "--method", "patch", *self.at(web["id"]), "--body", body)
        self.assertIn("coveProxyProtocol is for TCP connections", said)

    def at(self, path):
        return "--url", f"{self.server.api}{path}?api-version=2025-07-01", "--resource", f"{self.server.api}/"

    def patch(self, path, version):
        """Sets what `az containerapp` has no word for, and waits until it is in force."""
        body = json.dumps({"properties": {"configuration": {"ingress": {"coveProxyProtocol": version}}}})
        self.az("rest", "--method", "patch", *self.at(path), "--body", body)
        state = lambda: self.az("rest", "--method", "get", *self.at(path))["properties"]["provisioningState"]
        cove.until("the change is in force", lambda: state() == "Succeeded")

    def test_a_new_server_takes_over(self):
        (port,) = cove.free_ports(1)
        ingress = {"external": True, "targetPort": 9000, "exposedPort": port, "transport": "Tcp"}
        self.put("create", "stays", ["tcp", "9000"], ingress)
        self.assertEqual(say(port, "one\n"), "ONE\nstays heard 1 lines\n")
        refused, stop = [], threading.Event()

        def keep_calling():
            while not stop.is_set():
                try:
                    with socket.create_connection(("127.0.0.1", port), timeout=60) as called:
                        called.shutdown(socket.SHUT_WR)
                        heard = called.makefile().read()
                    if heard != "stays heard 0 lines\n":
                        refused.append(heard)
                except OSError as error:
                    refused.append(error)

        caller = threading.Thread(target=keep_calling)
        caller.start()
        self.addCleanup(caller.join)
        self.addCleanup(stop.set)
        with contextlib.closing(connect(port)) as client:
            lines = client.makefile("rw")
            lines.write("before\n")
            lines.flush()
            self.assertEqual(lines.readline(), "BEFORE\n")
            ended = self.server.take_over()
            lines.write("after\n")
            lines.flush()
            self.assertEqual(lines.readline(), "AFTER\n")
            self.assertEqual(say(port, "new\n"), "NEW\nstays heard 1 lines\n")
            client.shutdown(socket.SHUT_WR)
            self.assertEqual(lines.read(), "stays heard 2 lines\n")
        stop.set()
        caller.join()
        ended()
        self.assertEqual(refused, [])
        self.assertEqual(self.az("containerapp", "show", "-n", "stays", "-g", GROUP)["name"], "stays")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    unittest.main()
