"""Apps that scale by Kafka's lag and by a scaler of one's own, from nothing to replicas and back, on a virtual clock.

Kafka is librdkafka's own cluster, the scaler a server on grpcio: the scripts that the tests of the `scalers` crate use. The
test produces and consumes; the containers only run.
"""

import json
import os
import pathlib
import subprocess
import unittest

import cove
from az_test import SAMPLE

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "crates" / "scalers" / "tests" / "servers"
GROUP, ENVIRONMENT = "rg", "env"


class Script:
    """A server of the scalers' tests: prints `ready ...`, answers lines, ends when its input does."""

    def __init__(self, name, *arguments):
        python = pathlib.Path(os.environ.get("COVE_VENV", "/var/cache/cove/venv") + "-scalers") / "bin" / "python"
        if not python.exists():
            raise FileNotFoundError(f"{python} is missing: scripts/test installs it")
        self.process = subprocess.Popen(
            [python, SCRIPTS / name, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        word, *self.ready = self.process.stdout.readline().split()
        assert word == "ready", word

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.communicate()

    def ask(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline().strip()
        assert answer == "ok", f"{line}: {answer}"


class Scalers(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cove.CONFIG, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        cls.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        cls.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")

    def create(self, name, kind, **metadata):
        self.server.command(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", SAMPLE,
            "--cpu", "0.25", "--memory", "0.5Gi", "--min-replicas", "0", "--max-replicas", "20",
            "--scale-rule-name", "rule", "--scale-rule-type", kind,
            "--scale-rule-metadata", *[f"{key}={value}" for key, value in metadata.items()],
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
        self.assertEqual(falling, [expected[-1]] * 10 + [0, 0], self.server.log())

    def test_kafka(self):
        kafka = self.enterContext(Script("kafka_client.py", "mock", "2"))
        for partition in range(4):
            kafka.ask(f"produce orders {partition} 1")
            kafka.ask(f"commit workers orders {partition} 1")
        servers = ",".join(kafka.ready)
        self.create("reader", "kafka", bootstrapServers=servers, topic="orders", consumerGroup="workers", lagThreshold=3)

        def fill():
            for partition in range(4):
                kafka.ask(f"produce orders {partition} 50")

        def drain():
            for partition in range(4):
                kafka.ask(f"commit workers orders {partition} 51")

        # 200 messages are work for 67, and four partitions for four
        self.climb_and_fall("reader", fill, drain, [1, 4, 4])

    def test_a_scaler_of_ones_own(self):
        scaler = self.enterContext(Script("external_scaler.py"))

        def say(value):
            values = json.dumps({"jobs": [[value, 0]]})
            own = {"specs": '[["jobs", 5, 0]]', "values": values, "active": "true" if value else "false"}
            scaler.ask(json.dumps(own))

        say(0)
        self.create("worker", "external", scalerAddress=f"127.0.0.1:{scaler.ready[0]}")
        self.climb_and_fall("worker", lambda: say(23), lambda: say(0), [1, 4, 5])


if __name__ == "__main__":
    unittest.main()
