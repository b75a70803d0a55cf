"""A server on a virtual clock: what takes minutes or a day in life takes seconds here, and ends the same each time.

Nothing here waits for time to pass: `cove clock advance` returns when the platform is at rest at the new time.
"""

import base64
import datetime
import json
import time
import unittest

import cove
import crew
import images
from az_test import SAMPLE, Az
from machine import Machine
from servicebus import ServiceBus

GROUP, ENVIRONMENT = "rg", "env"
MIDNIGHT = datetime.datetime(2026, 3, 2, tzinfo=datetime.timezone.utc)  # a Monday
SHELL = "cove.test/shell:latest"


def moment(text):
    """A time of an answer, to the second."""
    return datetime.datetime.fromisoformat(text[:19]).replace(tzinfo=datetime.timezone.utc)


def after(text):
    """Seconds from midnight to a time of an answer."""
    return round((moment(text) - MIDNIGHT).total_seconds())


class Clock(unittest.TestCase):
    maxDiff = None
    CONFIG = cove.CONFIG

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cls.CONFIG, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        cls.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        cls.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            print(f"--- the server's log at the end of {self.id()}:\n{self.server.log()}\n---")
        return result

    def create(self, name, *arguments, image=SAMPLE):
        app = self.server.command(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", image, *arguments
        )
        self.addCleanup(self.server.command, "containerapp", "delete", "-n", name, "-g", GROUP, "--yes")
        return app

    def replicas(self, name):
        """Replicas that run, those on their way out left aside."""
        listed = self.server.command("containerapp", "replica", "list", "-n", name, "-g", GROUP)
        return [replica for replica in listed if replica["properties"]["runningState"] == "Running"]

    def now(self):
        return after(self.server.command("clock", "show")["now"])

    def advance(self, *how):
        moved = self.server.command("clock", "advance", *how)
        self.assertTrue(moved["isDone"])
        self.assertEqual(moved["unsettled"], [])
        return moved

    def counts(self, moved, name):
        """When the count of an app changed, and to what."""
        return [(after(change["at"]), change["to"]) for change in moved["changes"] if change["app"] == name]

    def test_an_idle_app_goes_to_zero_after_its_cool_down(self):
        began, real = self.now(), time.monotonic()
        app = self.create("idle", "--ingress", "external", "--target-port", "80", "--min-replicas", "0")
        host = app["properties"]["configuration"]["ingress"]["fqdn"]
        self.assertEqual(self.now(), began, "time stands still")
        self.assertEqual(len(self.replicas("idle")), 1)
        moved = self.advance("5m")
        self.assertEqual(self.counts(moved, "idle"), [], "more than 300 s must pass")
        self.assertEqual(len(self.replicas("idle")), 1)
        moved = self.advance("30s")
        self.assertEqual(self.counts(moved, "idle"), [(began + 315, 0)])
        self.assertIn("KEDAScaleTargetDeactivated", [event["reason"] for event in moved["events"]])
        self.assertEqual(self.replicas("idle"), [])
        # a request wakes it, at a standstill
        self.assertEqual(self.server.get(host)[0], 200)
        # the request was let through by the ingress; what lists replicas hears of it beside that
        cove.until("the replica is listed", lambda: len(self.replicas("idle")) == 1)
        self.assertLess(time.monotonic() - real, 330, "it was not waited for")

    def test_a_cron_rule_over_a_day(self):
        now = self.now()
        noon = MIDNIGHT + datetime.timedelta(days=now // 86400 + 1)
        self.advance("--to", noon.strftime("%Y-%m-%dT00:00:00Z"))
        day = self.now()
        self.assertEqual(day % 86400, 0)
        self.create(
            "office", "--min-replicas", "0", "--scale-rule-name", "hours", "--scale-rule-type", "cron",
            "--scale-rule-metadata", "timezone=Europe/Prague", "start=0 8 * * *", "end=0 18 * * *", "desiredReplicas=3",
        )  # fmt: skip
        real = time.monotonic()
        moved = self.advance("24h")
        passed = time.monotonic() - real
        seen = [(second - day, count) for second, count in self.counts(moved, "office")]
        # Prague is an hour ahead in March. The first replica lives a cool-down; the last three one after 18:00.
        hour, poll = 3600, 30
        self.assertEqual([count for _, count in seen], [0, 1, 3, 0])
        first, wake, full, gone = (second for second, _ in seen)
        self.assertTrue(300 < first <= 300 + 2 * poll, seen)
        self.assertTrue(7 * hour <= wake < 7 * hour + poll, seen)
        self.assertEqual(full, wake + poll)
        self.assertTrue(17 * hour + 300 - poll <= gone <= 17 * hour + 300 + 2 * poll, seen)
        self.assertLess(passed, 24 * hour / 60, "a day is not waited for")
        # what was recorded is decided again as the live autoscaler did, and other hours are tried on it
        rules = self.server.directory / "rules.json"
        metadata = {"timezone": "Europe/Prague", "start": "0 8 * * *", "end": "0 12 * * *", "desiredReplicas": "3"}
        shorter = {"minReplicas": 0, "rules": [{"name": "hours", "custom": {"type": "cron", "metadata": metadata}}]}
        rules.write_text(json.dumps(shorter))
        begin, end = (f"{MIDNIGHT + datetime.timedelta(seconds=at):%Y-%m-%dT%H:%M:%SZ}" for at in (day, day + 24 * hour))
        tried = self.server.command(
            "scale", "simulate", "--app", "office", "-g", GROUP, "--rules", str(rules), "--from", begin, "--to", end
        )
        today, *_ = tried["replay"]["columns"]
        self.assertEqual((tried["replay"]["differing"], today["mostReplicas"]), (0, 3), tried)
        self.assertGreater(today["decisions"], 2000)

    def test_time_goes_on_after_the_server_was_killed(self):
        self.advance("10m")
        began = self.now()
        self.server.kill()
        self.server.start()
        self.assertEqual(self.now(), began)
        status, answer = self.server.call(
            "POST", "/cove/v1/clock/advance", '{"to": "2026-03-01T00:00:00Z"}', {"content-type": "application/json"}
        )
        self.assertEqual((status, answer["error"]["code"]), (400, "InvalidInstant"))
        status, answer = self.server.call(
            "POST", "/cove/v1/clock/advance", '{"by": "soon"}', {"content-type": "application/json"}
        )
        self.assertEqual((status, answer["error"]["code"]), (400, "InvalidDuration"))
        self.assertEqual(self.now(), began)

    def test_an_update_at_a_standstill(self):
        app = self.create("changed", "--ingress", "external", "--target-port", "80", "--min-replicas", "1")
        old = app["properties"]["latestRevisionName"]
        update = ["containerapp", "update", "-n", "changed", "-g", GROUP, "--set-env-vars", "A=b"]
        new = self.server.command(*update)["properties"]["latestRevisionName"]
        self.assertNotEqual(old, new)
        self.advance("2m")
        listed = self.server.command("containerapp", "revision", "list", "-n", "changed", "-g", GROUP)
        self.assertEqual([revision["name"] for revision in listed if revision["properties"]["active"]], [new])
        gone = [one["name"] for one in self.replicas("changed") if one["name"].startswith(old)]
        self.assertEqual(gone, [])

    def test_a_liveness_probe_follows_the_clock(self):
        images.import_shell(self.server, SHELL)
        path = self.server.directory / "probed.yaml"
        path.write_text(
            """
properties:
  template:
    scale: {minReplicas: 1, maxReplicas: 1}
    containers:
      - name: probed
        image: cove.test/shell:latest
        resources: {cpu: 0.25, memory: 0.5Gi}
        probes:
          - {type: Liveness, tcpSocket: {port: 9}, initialDelaySeconds: 20, periodSeconds: 20, failureThreshold: 3}
"""
        )
        self.create("probed", "--yaml", str(path))

        def restarts():
            return [one["properties"]["containers"][0]["restartCount"] for one in self.replicas("probed")]

        self.advance("59s")
        self.assertEqual(restarts(), [0])
        moved = self.advance("1s")
        self.assertIn("ProbeFailed", [event["reason"] for event in moved["events"]])
        # the replica counts as running again once its container does
        cove.until("the container is started again", lambda: restarts() == [1])


class ServiceBusExample(unittest.TestCase):
    """The example of Azure's article on scaling: a rule made by `az`, a double of Service Bus on a machine beside this one, and
    containers that complete its messages."""

    maxDiff = None

    def test_the_whole_climb_and_the_way_down(self):
        machine = self.enterContext(Machine())
        bus = self.enterContext(machine.inside(lambda: ServiceBus(address=machine.address)))
        workers = self.enterContext(crew.Crew(machine))
        config = cove.CONFIG + cove.READINGS + f'\n[scalers]\nca_certificates = ["{bus.ca}"]\n'
        server = self.enterContext(cove.Server(config, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        crew.import_into(server)
        az = Az(server)
        self.addCleanup(az.close)
        az("login", "--service-principal", "-u", "any", "-p", "any", "--tenant", cove.TENANT)
        az("group", "create", "-n", GROUP, "-l", "eastus")
        az("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus", "--logs-destination", "none")
        bus.namespace.set_queue("my-queue", 0)
        az(
            "containerapp", "create", "--name", "worker", "--resource-group", GROUP, "--environment", ENVIRONMENT,
            "--image", crew.IMAGE, "--cpu", "0.25", "--memory", "0.5Gi", "--min-replicas", "0", "--max-replicas", "20",
            "--args", "azure-servicebus", "--env-vars", *workers.variables("secretref:connection-string-secret"),
            f"CA={base64.b64encode(bus.ca.read_bytes()).decode()}",
            "--secrets", f"connection-string-secret={bus.connection_string()}",
            "--scale-rule-name", "azure-servicebus-queue-rule",
            "--scale-rule-type", "azure-servicebus",
            "--scale-rule-metadata", "queueName=my-queue", "namespace=service-bus-namespace", "messageCount=5",
            "--scale-rule-auth", "connection=connection-string-secret",
        )  # fmt: skip

        def poll():
            """One polling interval; how many replicas there are then."""
            moved = server.command("clock", "advance", "30s")
            self.assertEqual(moved["unsettled"], [], server.log())
            listed = az("containerapp", "replica", "list", "-n", "worker", "-g", GROUP)
            return len([one for one in listed if one["properties"]["runningState"] == "Running"])

        # an empty queue: the first replica lives one cool-down
        workers.come("worker", 1)
        server.command("clock", "advance", "5m")
        cooled = poll()
        counts = [cooled if cooled == 0 else poll()]
        workers.begin("worker")
        bus.namespace.set_queue("my-queue", 50)
        counts += [poll() for _ in range(5)]
        self.assertEqual(counts, [0, 1, 4, 8, 10, 10])
        # ten replicas, five messages each
        names = workers.come("worker", 10)
        self.assertEqual(workers.work("worker", 5), dict.fromkeys(names, 5))
        self.assertEqual(bus.namespace.entity("my-queue")["active"], 0)
        self.assertEqual(bus.namespace.completed, 50)
        # empty again: nothing happens for 300 s, then all go at once
        self.assertEqual([poll() for _ in range(12)], [10] * 10 + [0, 0])
        # a worker's message takes two calls
        self.assertGreater(bus.namespace.calls - 2 * 50, 15)
        self.assertEqual(bus.namespace.refused, 0)
        # a namespace that is down: the count is held, an event says why, and the next poll after it is back counts
        bus.namespace.set_queue("my-queue", 50)
        bus.namespace.status = 503
        moved = server.command("clock", "advance", "60s")
        self.assertEqual(moved["changes"], [])
        warnings = [event["message"] for event in moved["events"] if event["kind"] == "Warning"]
        self.assertEqual(len(warnings), 1, moved["events"])
        self.assertNotIn(bus.namespace.keys["RootManageSharedAccessKey"], warnings[0])
        bus.namespace.status = 0
        self.assertEqual(poll(), 1)


if __name__ == "__main__":
    unittest.main()
