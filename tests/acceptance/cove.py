"""A real `cove serve` for tests, on free ports and with a data directory of its own, and requests through its ingress.

Nothing outlives a test: the server is stopped with SIGTERM, and `cove purge` ends its replicas and deletes its data.
"""

import contextlib
import http.client
import json
import os
import pathlib
import random
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time

BINARY = os.environ.get("COVE_BIN", "target/debug/cove")
SUBSCRIPTION = "00000000-0000-0000-0000-0000000000aa"
TENANT = "00000000-0000-0000-0000-0000000000bb"
START_WITHIN_SECONDS = 60
STOP_WITHIN_SECONDS = 60

CONFIG = """
[api]
retry_after = 0

[controller]
provisioning_deadline = "60s"
drain_period = "2s"
"""
# for tests that read sources on a virtual clock: there a reading takes no time, however long a busy machine needs for it
READINGS = """
[autoscaler.settings]
read_deadline = "30s"
"""


class Server:
    """A running server; use it as a context manager. `options` are further ones of `cove serve`."""

    def __init__(self, config=CONFIG, options=()):
        self._options = list(options)
        self._directory = tempfile.TemporaryDirectory(prefix="cove-acceptance-")
        self.directory = pathlib.Path(self._directory.name)
        self.data = self.directory / "data"
        self._config = self.directory / "cove.toml"
        self._config.write_text(config)
        self.log_path = self.directory / "serve.log"
        self._process = None
        self.api = self.http = self.https = self.ca = None

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self._purge()
            self._directory.cleanup()
            raise
        return self

    def __exit__(self, *_):
        try:
            self.stop()
        finally:
            self._purge()
            self._directory.cleanup()

    def _purge(self):
        """Ends what outlives a server on purpose: replicas, network, cgroups. An interpreter's image has 20,000 files to delete."""
        command = [BINARY, "purge", "--yes", "--data-dir", str(self.data)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise AssertionError(f"`cove purge` failed with exit code {done.returncode}: {done.stderr}")

    def take_over(self):
        """Starts another one that takes over; what it gives waits until the old one has ended by itself."""
        old, old_log = self._process, self._log
        self.start("--take-over")

        def ended():
            try:
                code = old.wait(STOP_WITHIN_SECONDS)
            finally:
                old.kill()
                old.stdout.close()
                old_log.close()
            if code != 0:
                raise AssertionError(f"the old `cove serve` ended with exit code {code}:\n{self.log()}")

        return ended

    def start(self, *more):
        """Starts it and waits for its `cove ready` line."""
        arguments = [BINARY, "serve", "--config", str(self._config), "--data-dir", str(self.data), *self._options, *more]
        for way in ("--api", "--http", "--https"):
            arguments += [way, "127.0.0.1:0"]
        self._log = open(self.log_path, "ab")
        self._process = subprocess.Popen(
            arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        ready = threading.Event()
        threading.Thread(target=self._read, args=(ready,), daemon=True).start()
        if not ready.wait(START_WITHIN_SECONDS) or self._process.poll() is not None:
            log = self.log()
            self.stop()
            raise AssertionError(f"`cove serve` did not say `cove ready` within {START_WITHIN_SECONDS} s:\n{log}")
        endpoints = json.loads((self.data / "endpoints.json").read_text())
        self.api, self.http, self.https = (endpoints[name].rstrip("/") for name in ("api", "http", "https"))
        self.ca = endpoints["ca"]

    def _read(self, ready):
        for line in self._process.stdout:
            self._log.write(line.encode())
            self._log.flush()
            if line.startswith("cove ready"):
                ready.set()
        ready.set()  # it ended; start() sees that

    def call(self, method, path, body=None, headers=None):
        """A request to the API that no client would make: status and JSON."""
        context = ssl.create_default_context(cafile=self.ca)
        address = self.api.removeprefix("https://")
        connection = http.client.HTTPSConnection(address, context=context, timeout=60)
        try:
            connection.request(method, path, body=body, headers=headers or {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, json.loads(text) if text else None
        finally:
            connection.close()

    def command(self, *arguments, within_seconds=300):
        """A command of the CLI against this server that must succeed; its JSON."""
        line = [BINARY, *arguments, "--data-dir", str(self.data), "-o", "json"]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within_seconds)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(arguments)}: exit {done.returncode}\n{done.stderr}\n{done.stdout}")
        return json.loads(done.stdout) if done.stdout.strip() else None

    def kill(self):
        """Ends it as a power cut would; `start` then finds what it left."""
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()
        self._log.close()

    def stop(self):
        """Ends it as an operator would; kills it when it does not go."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_WITHIN_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
            raise AssertionError(f"`cove serve` did not end within {STOP_WITHIN_SECONDS} s of SIGTERM:\n{self.log()}")
        finally:
            self._process.stdout.close()
            self._log.close()
            self._process = None

    def log(self, lines=80):
        """The last lines that the server wrote."""
        with contextlib.suppress(OSError):
            return "\n".join(self.log_path.read_text(errors="replace").splitlines()[-lines:])
        return ""

    def get(self, host, path="/", timeout=60):
        """`GET` through the ingress: status and text of the answer."""
        address = self.http.removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=timeout)
        try:
            connection.request("GET", path, headers={"Host": host})
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def request(self, host, path="/", headers=None, method="GET", timeout=60):
        """A request through the ingress: status, text and headers of the answer, their names in lower case."""
        connection = http.client.HTTPConnection(self.http.removeprefix("http://"), timeout=timeout)
        try:
            connection.request(method, path, headers={"Host": host, **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return answer.status, text, {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def headers(self, host, method="GET", headers=None, timeout=60):
        """Headers of an answer through the ingress, names in lower case."""
        connection = http.client.HTTPConnection(self.http.removeprefix("http://"), timeout=timeout)
        try:
            connection.request(method, "/", headers={"Host": host, **(headers or {})})
            answer = connection.getresponse()
            answer.read()
            return {name.lower(): value for name, value in answer.getheaders()}
        finally:
            connection.close()

    def leaf(self, name):
        """The certificate that the ingress serves for a host name, as DER."""
        address, port = self.https.removeprefix("https://").rsplit(":", 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with socket.create_connection((address, int(port)), timeout=30) as plain:
            with context.wrap_socket(plain, server_hostname=name) as secure:
                return secure.getpeercert(binary_form=True)


def free_ports(count):
    """Ports that nobody has, below those that the kernel gives to connections: these come and go all the time."""
    found = []
    while len(found) < count:
        port = random.randint(20000, 32000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("0.0.0.0", port))
            if port not in found:
                found.append(port)
    return found


def until(what, check, within_seconds=60):
    """Asks `check` until its answer is true and gives that; fails when `within_seconds` have passed.

    Only for what has no event to wait on: another process's view of the server.
    """
    deadline = time.monotonic() + within_seconds
    pause = 0.02
    while True:
        last = check()
        if last:
            return last
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_seconds} s: {what}; last answer: {last!r}")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.5)
