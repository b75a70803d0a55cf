"""What goes wrong with jobs: each has its status, its event, and nothing is lost or left.

Mistakes in a request, a container that ignores SIGTERM, one that wants too much memory, a machine that is full, a disk that is
full, a source of events that is down, a stop before anything has begun, a delete while much runs, a thousand starts at once.
"""

import concurrent.futures
import http.server
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import unittest
import unittest.mock

import cove
import images
from cove import SUBSCRIPTION

SHELL = "cove.test/shell:latest"
VERSION = "api-version=2025-07-01"
NAME = "rg"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{NAME}"
ENVIRONMENT = f"{GROUP}/providers/Microsoft.App/managedEnvironments/env"
ENDED = ("Succeeded", "Failed", "Stopped")
# room for two replicas of half a core
SMALL = cove.CONFIG + '\n[capacity]\ncores = 1\nmemory = "4GiB"\ncpu_overcommit = 1\nmemory_overcommit = 1\n'
STARTS = 1000
DISK_MIB = 192
MANUAL = {"triggerType": "Manual", "replicaTimeout": 600, "manualTriggerConfig": {}}


class Case(unittest.TestCase):
    """A server, a group and an environment per class."""

    CONFIG = cove.CONFIG
    RESOURCES = {"cpu": 0.25, "memory": "0.5Gi"}

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cls.made())
        images.import_shell(cls.server, SHELL)
        for path, properties in ((GROUP, None), (ENVIRONMENT, {"appLogsConfiguration": {"destination": "none"}})):
            status, answer = cls.call("PUT", path, {"location": "eastus", "properties": properties or {}})
            assert status < 300, answer
        done = lambda: cls.call("GET", ENVIRONMENT)[1]["properties"]["provisioningState"] == "Succeeded"
        cove.until("the environment is there", done)

    @classmethod
    def made(cls):
        """The server, not started yet."""
        return cove.Server(cls.CONFIG)

    @classmethod
    def call(cls, method, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        return cls.server.call(method, f"{path}?{VERSION}", None if body is None else json.dumps(body), headers)

    def path(self, name):
        return f"{GROUP}/providers/Microsoft.App/jobs/{name}"

    def put(self, name, script="true", grace=1, **configuration):
        container = {
            "name": "main", "image": SHELL, "command": ["/srv/run"], "env": [{"name": "SCRIPT", "value": script}],
            "resources": self.RESOURCES,
        }  # fmt: skip
        properties = {
            "environmentId": ENVIRONMENT, "configuration": MANUAL | configuration,
            "template": {"containers": [container], "terminationGracePeriodSeconds": grace},
        }  # fmt: skip
        return self.call("PUT", self.path(name), {"location": "eastus", "properties": properties})

    def create(self, name, script="true", grace=1, **configuration):
        status, answer = self.put(name, script, grace, **configuration)
        self.assertLess(status, 300, answer)
        return self.path(name)

    def start(self, path):
        status, answer = self.call("POST", f"{path}/start")
        self.assertEqual(status, 200, answer)
        return answer["name"]

    def show(self, path, execution):
        status, answer = self.call("GET", f"{path}/executions/{execution}")
        self.assertEqual(status, 200, answer)
        return answer["properties"]

    def has(self, path, execution, *statuses):
        """The execution, once it has one of these."""

        def found():
            shown = self.show(path, execution)
            return shown if shown["status"] in statuses else None

        return cove.until(f"{execution} is {' or '.join(statuses)}", found, 120)

    def executions(self, path):
        status, answer = self.call("GET", f"{path}/executions")
        self.assertEqual(status, 200, answer)
        return {one["name"]: one["properties"] for one in answer["value"]}

    def events(self, name):
        """The reasons of a job's events."""
        words = ["containerapp", "job", "logs", "show", "-n", name, "-g", NAME, "--type", "system", "--tail", "300"]
        done = subprocess.run(
            [cove.BINARY, *words, "--format", "json", "--data-dir", str(self.server.data)],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        return done.stdout

    def told(self, name, reason, times=1):
        """There is an event of this reason, as often as it may be told."""
        count = lambda: self.events(name).count(f'"{reason}"')
        cove.until(f"{name} has {reason}", lambda: count() >= times)
        self.assertEqual(count(), times, self.events(name))

    def processes(self, text):
        """Processes of containers whose environment has this text."""
        found = []
        for folder in pathlib.Path("/proc").iterdir():
            if folder.name.isdigit():
                try:
                    if b"CONTAINER_APP_JOB_EXECUTION_NAME=" + text.encode() in (folder / "environ").read_bytes():
                        found.append(folder.name)
                except OSError:
                    continue
        return found


class Failures(Case):
    def test_mistakes_are_refused_and_nothing_is_made(self):
        schedule = lambda cron: {"triggerType": "Schedule", "manualTriggerConfig": None, "scheduleTriggerConfig": {"cronExpression": cron}}
        rule = lambda kind: {
            "triggerType": "Event", "manualTriggerConfig": None,
            "eventTriggerConfig": {"scale": {"rules": [{"name": "r", "type": kind, "metadata": {"concurrentRequests": "1"}}]}},
        }  # fmt: skip
        for configuration, code, word in [
            (schedule("61 * * * *"), "InvalidParameterValue", "0 to 59"),
            (schedule("* * *"), "InvalidParameterValue", "* * *"),
            (schedule(""), "InvalidParameterValue", "cronExpression"),
            (rule("http"), "HttpRuleOnJob", "no ingress"),
            (rule("tcp"), "TcpRuleOnJob", "no ingress"),
            ({"replicaTimeout": 0}, "InvalidParameterValue", "1 to"),
            ({"replicaRetryLimit": 1001}, "InvalidParameterValue", "0 to 1000"),
            ({"replicaRetryLimit": -1}, "InvalidParameterValue", "0 to 1000"),
        ]:
            status, answer = self.put("wrong", **configuration)
            self.assertEqual((status, answer["error"]["code"]), (400, code), (configuration, answer))
            self.assertIn(word, answer["error"]["message"])
            self.assertEqual(self.call("GET", self.path("wrong"))[0], 404)

    def test_a_container_that_ignores_sigterm_is_killed(self):
        path = self.create("deaf", "trap '' TERM; while :; do /bin/sleep 1; done", replicaTimeout=2)
        execution = self.start(path)
        shown = self.has(path, execution, *ENDED)
        self.assertEqual((shown["status"], shown["reason"], shown["coveFailed"]), ("Failed", "DeadlineExceeded", 1), shown)
        [replica] = shown["detailedStatus"]["replicas"]
        self.assertEqual(replica["containers"][0]["code"], 137, shown)
        self.assertEqual(self.processes(execution), [])
        self.told("deaf", "DeadlineExceeded")
        self.told("deaf", "ExecutionFailed")

    def test_too_much_memory(self):
        path = self.create("greedy", "p=0123456789abcdef; while :; do p=$p$p; done", replicaRetryLimit=1)
        shown = self.has(path, self.start(path), *ENDED)
        self.assertEqual((shown["status"], shown["coveFailed"]), ("Failed", 2), shown)
        for replica in shown["detailedStatus"]["replicas"]:
            self.assertEqual(replica["containers"][0]["code"], 137, shown)
            self.assertIn("OOMKilled", json.dumps(replica), shown)
        self.told("greedy", "ReplicaOOMKilled", 2)
        self.told("greedy", "ExecutionFailed")

    def test_a_stop_before_anything_has_begun(self):
        path = self.create("hasty", "echo begun; while :; do /bin/sleep 1; done")
        names = []
        for _ in range(20):
            names.append(self.start(path))
            status, answer = self.call("POST", f"{path}/stop/{names[-1]}")
            self.assertIn(status, (200, 202), answer)
        for name in names:
            shown = self.has(path, name, *ENDED)
            self.assertEqual((shown["status"], shown["coveFailed"]), ("Stopped", 0), shown)
        self.assertEqual(self.processes("hasty-"), [])
        self.told("hasty", "ExecutionStopped", len(names))

    def test_a_delete_while_much_runs(self):
        script = "trap '' TERM; while :; do /bin/sleep 1; done"
        path = self.create("doomed", script, manualTriggerConfig={"parallelism": 2, "replicaCompletionCount": 2})
        names = [self.start(path) for _ in range(4)]
        for name in names[:2]:
            self.has(path, name, "Running")
        self.assertEqual(self.call("DELETE", path)[0], 202)
        status, answer = self.call("POST", f"{path}/start")
        self.assertIn(status, (404, 409), answer)
        self.server.kill()
        self.server.start()
        cove.until("the job is gone", lambda: self.call("GET", path)[0] == 404)
        self.assertEqual(self.processes("doomed-"), [])
        # one of the same name begins afresh
        self.create("doomed")
        self.assertEqual(self.executions(path), {})
        self.assertEqual(self.has(path, self.start(path), *ENDED)["status"], "Succeeded")

    def test_a_source_that_is_down(self):
        answers = {"status": 503}

        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(answers["status"])
                self.end_headers()
                self.wfile.write(b'{"waiting": 2}')

            def log_message(self, *_):
                pass

        source = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=source.serve_forever, daemon=True).start()
        self.addCleanup(source.server_close)
        self.addCleanup(source.shutdown)
        metadata = {"url": f"http://127.0.0.1:{source.server_address[1]}/", "valueLocation": "waiting", "targetValue": "1"}
        scale = {
            "minExecutions": 0, "maxExecutions": 2, "pollingInterval": 1,
            "rules": [{"name": "source", "type": "metrics-api", "metadata": metadata}],
        }  # fmt: skip
        path = self.create(
            "waiter", "while :; do /bin/sleep 1; done", triggerType="Event", manualTriggerConfig=None,
            eventTriggerConfig={"scale": scale},
        )  # fmt: skip
        polls = lambda: self.server.command("scale", "explain", "--job", "waiter", "-g", NAME)["value"]
        cove.until("it was asked thrice", lambda: sum(one["times"] for one in polls()) >= 3)
        self.assertEqual(self.executions(path), {})
        self.told("waiter", "KEDAScalerFailed")
        answers["status"] = 200
        cove.until("two run", lambda: [one["status"] for one in self.executions(path).values()] == ["Running"] * 2)
        self.told("waiter", "KEDAScalerFailed")
        self.assertLess(self.call("DELETE", path)[0], 300)
        cove.until("the job is gone", lambda: self.call("GET", path)[0] == 404)


class Full(Case):
    """A machine on which two replicas have room."""

    CONFIG = SMALL
    RESOURCES = {"cpu": 0.5, "memory": "1Gi"}

    def test_what_does_not_fit_waits_with_its_place(self):
        path = self.create("line", "while [ ! -e /tmp/no ]; do /bin/sleep 1; done")
        names = []
        for _ in range(2):
            names.append(self.start(path))
            self.has(path, names[-1], "Running")
        names += [self.start(path) for _ in range(2)]

        def waits(at, place):
            shown = self.show(path, names[at])
            is_so = (shown["status"], shown.get("reason")) == ("Processing", "Queued")
            return is_so and shown["message"].startswith(f"place {place} in the line: ") and "core" in shown["message"]

        cove.until("the third is first in the line", lambda: waits(2, 1))
        cove.until("the fourth is second", lambda: waits(3, 2))
        self.told("line", "ExecutionQueued", 2)
        self.assertLess(self.call("POST", f"{path}/stop/{names[0]}")[0], 300)
        self.has(path, names[2], "Running")
        cove.until("the fourth is first", lambda: waits(3, 1))
        self.assertLess(self.call("POST", f"{path}/stop")[0], 300)
        for name in names:
            self.assertEqual(self.has(path, name, *ENDED)["status"], "Stopped")
        self.assertEqual(self.processes("line-"), [])

    def test_a_thousand_starts_at_once(self):
        path = self.create("crowd", "echo begun; while :; do /bin/sleep 1; done")
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            names = list(pool.map(self.start, [path] * STARTS))
        self.assertEqual(len(set(names)), STARTS)
        self.assertEqual(set(self.executions(path)), set(names), "none is lost")
        self.server.kill()
        self.server.start()
        found = self.executions(path)
        self.assertEqual(set(found), set(names), "none is forgotten")

        def live():
            return sum(one["status"] == "Running" for one in self.executions(path).values())

        cove.until("two run", lambda: live() == 2, 120)
        self.assertEqual(len({one for one in found if found[one]["status"] in ENDED}), 0)
        self.assertLess(self.call("POST", f"{path}/stop")[0], 300)
        cove.until("all have ended", lambda: all(one["status"] == "Stopped" for one in self.executions(path).values()), 240)
        # what the history has no room for is gone, the rest is there
        self.assertEqual(len(self.executions(path)), 100)
        self.assertEqual(self.processes("crowd-"), [])


class Disk(Case):
    """A server whose data is on a small disk."""

    @classmethod
    def made(cls):
        log = cls.enterClassContext(tempfile.NamedTemporaryFile(prefix="cove-log-"))
        cls.disk = pathlib.Path(tempfile.mkdtemp(prefix="cove-disk-"))
        cls.addClassCleanup(cls.disk.rmdir)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "cove-disk", cls.disk], check=True)
        # a helper that is just ending may still have a file of it open
        cls.addClassCleanup(subprocess.run, ["umount", "--lazy", cls.disk], check=True)
        with unittest.mock.patch.object(tempfile, "tempdir", str(cls.disk)):
            server = cove.Server(cls.CONFIG)
        # what it writes there shall not end with the disk
        server.log_path = pathlib.Path(log.name)
        return server

    def fill(self):
        """Leaves nothing of the disk."""
        # whatever happens: what is to be ended and removed needs some room
        self.addCleanup(os.truncate, self.disk / "filler", 0)
        with open(self.disk / "filler", "wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1):
                try:
                    while True:
                        file.write(bytes(size))
                except OSError:
                    continue

    def test_a_full_disk_loses_nothing(self):
        path = self.create("tight", "echo begun; while :; do /bin/sleep 1; done")
        execution = self.start(path)
        self.has(path, execution, "Running")
        self.fill()
        refusals = 0
        accepted = []
        for _ in range(200):
            status, answer = self.call("POST", f"{path}/start")
            if status == 200:
                accepted.append(answer["name"])
                continue
            self.assertEqual((status, answer["error"]["code"]), (507, "InsufficientStorage"), (answer, self.server.log(8)))
            refusals += 1
            if refusals == 3:
                break
        self.assertEqual(refusals, 3)
        # what is there can be read, and what runs goes on
        self.assertEqual(set(self.executions(path)), {execution, *accepted})
        self.assertTrue(self.processes(execution))
        os.truncate(self.disk / "filler", 0)
        self.assertLess(self.call("POST", f"{path}/stop")[0], 300)
        for name in (execution, *accepted):
            self.assertEqual(self.has(path, name, *ENDED)["status"], "Stopped")
        last = self.start(path)
        self.has(path, last, "Running")
        self.assertLess(self.call("POST", f"{path}/stop/{last}")[0], 300)
        self.assertEqual(self.has(path, last, *ENDED)["status"], "Stopped")
        self.assertEqual(self.processes("tight-"), [])


if __name__ == "__main__":
    unittest.main()
