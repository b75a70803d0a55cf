"""Rules whose source and whose replicas are all inside: a queue in an app of the environment, and what replicas use.

Redis is an app with a TCP port, the rule names it as its neighbours do, and the replicas drain it themselves.
"""

import shutil
import unittest

import cove
import python_image
from resp import Redis

IMAGE = "cove.local/worker:latest"
GROUP, ENVIRONMENT = "rg", "env"

class Case(unittest.TestCase):
    CONFIG, OPTIONS = cove.CONFIG, ()

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cls.CONFIG, cls.OPTIONS))
        programs = [shutil.which("redis-server") or "redis-server is missing: scripts/test installs it"]
        python_image.import_into(cls.server, IMAGE, programs=programs)
        cls.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        cls.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")

    def create(self, name, kind, port, *arguments):
        self.server.command(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", IMAGE,
            "--cpu", "0.25", "--memory", "0.5Gi", "--args", kind, str(port), *arguments,
        )  # fmt: skip
        self.addCleanup(self.server.command, "containerapp", "delete", "-n", name, "-g", GROUP, "--yes")

    def create_queue(self):
        """Redis in an app; its port, and a connection to it."""
        (port,) = cove.free_ports(1)
        self.create(
            "redis", "redis", port, "--ingress", "external", "--transport", "tcp",
            "--target-port", str(port), "--exposed-port", str(port), "--min-replicas", "1", "--max-replicas", "1",
        )  # fmt: skip
        ask = Redis("127.0.0.1", port)
        self.addCleanup(ask.close)
        return port, ask

    def replicas(self, name):
        listed = self.server.command("containerapp", "replica", "list", "-n", name, "-g", GROUP)
        return [one["name"] for one in listed if one["properties"]["runningState"] == "Running"]


class Queue(Case):
    CONFIG, OPTIONS = cove.CONFIG + cove.READINGS, ("--clock", "virtual=2026-03-02T00:00:00Z")

    def poll(self, how="30s"):
        moved = self.server.command("clock", "advance", how)
        self.assertEqual(moved["unsettled"], [], self.server.log())
        return len(self.replicas("worker"))

    def test_replicas_come_for_a_queue_and_drain_it(self):
        port, ask = self.create_queue()
        self.create(
            "worker", "work", port, "--min-replicas", "0", "--max-replicas", "5",
            "--scale-rule-name", "jobs", "--scale-rule-type", "redis",
            "--scale-rule-metadata", f"address=redis:{port}", "listName=jobs", "listLength=10",
        )  # fmt: skip
        # a first process that does not ask for SIGTERM yet would not get it
        cove.until("the first replica is up", lambda: self.at_work(ask, 1))
        self.poll("5m")
        self.assertIn(0, [self.poll() for _ in range(2)], self.server.log())
        ask("DEL", "done")
        for number in range(200):
            ask("RPUSH", "jobs", str(number))
        # 200 jobs are work for 20; five are allowed, four is the first step
        self.assertEqual([self.poll() for _ in range(3)], [1, 4, 5], self.server.log())
        workers = cove.until("all are at work", lambda: self.at_work(ask, 5))
        self.assertEqual(sorted(workers), sorted(self.replicas("worker")))
        for _ in range(5):
            ask("RPUSH", "tap", "open")
        cove.until("the queue is drained", lambda: ask("LLEN", "jobs") == "0")
        cove.until("each job is done once", lambda: sum(self.at_work(ask, 5).values()) == 200)
        falling = [self.poll() for _ in range(12)]
        self.assertEqual(falling, [5] * 10 + [0, 0], self.server.log())

    def at_work(self, ask, expected):
        """Jobs done per replica, once as many replicas have said that they are there."""
        pairs = ask("HGETALL", "done")
        return {pairs[at]: int(pairs[at + 1]) for at in range(0, len(pairs), 2)} if len(pairs) == 2 * expected else None


class Use(Case):
    """In real time: a processor is busy or it is not. Such rules keep one replica."""

    def grow_and_shrink(self, name, kind, work, percent):
        """Jobs keep the first replica busy; company comes, all work the rest off together, and company goes. A replica that
        works uses more than `percent` of what it asks for, one that has nothing to do less."""
        port, ask = self.create_queue()
        self.create(
            name, work, port, "--min-replicas", "1", "--max-replicas", "3", "--scale-rule-name", kind,
            "--scale-rule-type", kind, "--scale-rule-metadata", "type=Utilization", f"value={percent}",
            "--scale-setting", "resourceSamplingSeconds=1", "scaleDownWindowSeconds=1",
            "cpuInitialisationSeconds=0", "cpuReadinessDelaySeconds=0",
        )  # fmt: skip
        jobs = 0

        def give(count):
            nonlocal jobs
            jobs += count
            ask("RPUSH", "jobs", *"x" * count)

        def done():
            pairs = ask("HGETALL", "done")
            return dict(zip(pairs[::2], map(int, pairs[1::2])))

        def has_company():
            if (waiting := int(ask("LLEN", "jobs"))) < 8:
                give(8 - waiting)
            return len(done()) > 1 and len(self.replicas(name)) > 1

        cove.until("company comes and works", has_company)
        cove.until("the queue is drained", lambda: ask("LLEN", "jobs") == "0")
        cove.until("each job is done once", lambda: sum(done().values()) == jobs)
        cove.until("one is alone again", lambda: len(self.replicas(name)) == 1)
        self.assertEqual(sum(done().values()), jobs)

    def test_cpu(self):
        # on a busy machine it does not get all the time that it asks for
        self.grow_and_shrink("busy", "cpu", "crunch", 20)

    def test_memory(self):
        self.grow_and_shrink("full", "memory", "digest", 50)


if __name__ == "__main__":
    unittest.main()
