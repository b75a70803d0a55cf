"""What the conformance tests share: a server with an app of each protocol, and connections of bytes to its ingress."""

import contextlib
import json
import os
import socket
import ssl
import time
import unittest

import cove
import python_image

IMAGE = "cove.local/conformance:latest"
GROUP, ENVIRONMENT = "conformance", "env"
VERSION = "api-version=2025-07-01"
PROVIDER = f"/subscriptions/{cove.SUBSCRIPTION}/resourceGroups/{GROUP}"
# no answer takes longer
WITHIN_SECONDS = 20


# server and hosts of each module that runs
_made = {}


class Case(unittest.TestCase):
    """One server per module, with `APPS`: name, transport and what `conformance_app.py` serves. They run from the start."""

    APPS = {}
    CONFIG = cove.CONFIG

    @classmethod
    def setUpClass(cls):
        if cls.__module__ in _made:
            cls.server, cls.hosts = _made[cls.__module__]
            return
        cls.server = cove.Server(cls.CONFIG).__enter__()
        unittest.addModuleCleanup(cls.server.__exit__, None, None, None)
        python_image.import_into(cls.server, IMAGE, packages=["websockets"], main="conformance_app.py")
        cls.put("", {"location": "eastus"}, "2024-03-01")
        environment = f"/providers/Microsoft.App/managedEnvironments/{ENVIRONMENT}"
        cls.put(environment, {"location": "eastus", "properties": {}})
        cls.hosts = {}
        for name, (transport, kind) in cls.APPS.items():
            cls.put(f"/providers/Microsoft.App/containerApps/{name}", cls.app(name, transport, kind, environment))
        for name in cls.APPS:
            made = cls.until_made(f"/providers/Microsoft.App/containerApps/{name}")
            cls.hosts[name] = made["properties"]["configuration"]["ingress"]["fqdn"]
        _made[cls.__module__] = (cls.server, cls.hosts)

    @staticmethod
    def app(name, transport, kind, environment):
        container = {
            "name": "main", "image": IMAGE, "args": [kind, "8080"], "resources": {"cpu": 0.5, "memory": "1Gi"},
        }  # fmt: skip
        ingress = {"external": True, "targetPort": 8080, "transport": transport, "allowInsecure": True}
        return {
            "location": "eastus",
            "properties": {
                "environmentId": PROVIDER + environment,
                "configuration": {"ingress": ingress},
                "template": {"containers": [container], "scale": {"minReplicas": 1, "maxReplicas": 1}},
            },
        }

    @classmethod
    def put(cls, path, body, version="2025-07-01"):
        url = f"{PROVIDER}{path}?api-version={version}"
        fields = {"content-type": "application/json"}
        status, answer = cls.server.call("PUT", url, json.dumps(body), fields)
        if status not in (200, 201):
            raise AssertionError(f"PUT {url}: {status} {answer}")
        return cls.until_made(path) if path and "containerApps" not in path else answer

    @classmethod
    def until_made(cls, path):
        def look():
            status, answer = cls.server.call("GET", f"{PROVIDER}{path}?{VERSION}")
            state = answer["properties"]["provisioningState"] if status == 200 else answer
            if state in ("Failed", "Canceled"):
                raise AssertionError(f"{path} is {state}: {answer}\n{cls.server.log()}")
            return answer if state == "Succeeded" else None

        return cove.until(f"{path} is made", look)

    @classmethod
    def address(cls, tls=False):
        host, port = (cls.server.https if tls else cls.server.http).split("//")[1].rsplit(":", 1)
        return host, int(port)

    @classmethod
    def connect(cls, host=None, protocols=None, versions=None):
        """A connection; with TLS if `protocols` says which ones to offer by ALPN, or `versions` which ones of TLS."""
        tls = protocols is not None or versions is not None
        stream = socket.create_connection(cls.address(tls), timeout=WITHIN_SECONDS)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not tls:
            return stream
        context = ssl.create_default_context(cafile=cls.server.ca)
        if protocols:
            context.set_alpn_protocols(protocols)
        if versions:
            context.minimum_version, context.maximum_version = versions
        with contextlib.closing(stream):
            return context.wrap_socket(stream, server_hostname=host)

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before and os.environ.get("COVE_SHOW_LOG"):
            print(f"--- the server's log at the end of {self.id()}:\n{self.server.log()}\n---")
        return result


class Deadline:
    """Time that a case has left, as a socket's timeout."""

    def __init__(self, seconds=WITHIN_SECONDS):
        self._end = time.monotonic() + seconds

    def left(self):
        return max(self._end - time.monotonic(), 0.001)
