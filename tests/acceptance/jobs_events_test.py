"""Event-driven jobs from end to end: a queue of 1,000 messages, executions that come for them, each message done once.

Redis, RabbitMQ, Azurite (a storage queue) and a broker of Kafka's protocol (Tansu, spoken to by librdkafka) run on a machine
beside this one; each has a job whose rule reads its queue. What the executions did stands in a Redis of the test's own. In the end the queues are empty, nothing was done twice, never more executions than the maximum
ran at once, and what `cove scale explain --job` says of the polls adds up to the executions that there are.
"""

import datetime
import re
import unittest

import cove
import python_image
import scalers_http_test
import scalers_kafka_test
import scalers_test
from machine import Machine

GROUP, ENVIRONMENT = "rg", "env"
IMAGE = "cove.local/job-workers:latest"
CLIENTS = ["pika", "confluent_kafka", "confluent_kafka.libs"]
MESSAGES, BATCH, EXECUTIONS_MAX = 1000, 25, 6
# of the topic; one execution at a time works at each
PARTITIONS = 8
WITHIN_SECONDS = 240


class Redis(scalers_test.Redis):
    def rule(self):
        return {"addressFromEnv": "SOURCE", "listName": "jobs", "listLength": BATCH}

    def fill(self, messages):
        self.ask("RPUSH", "jobs", *messages)

    def left(self):
        return super().left() + len(self.ask("KEYS", "taken:*"))


class RabbitMQ(scalers_test.RabbitMQ):
    def rule(self):
        return super().rule() | {"value": BATCH}

    def fill(self, messages):
        for message in messages:
            body = {"properties": {}, "routing_key": "jobs", "payload": message, "payload_encoding": "string"}
            assert self.api("POST", "exchanges/%2F/amq.default/publish", body)["routed"]


class StorageQueue(scalers_http_test.Azurite):
    kind = "azure-queue"

    def rule(self):
        self.ask("PUT", "jobs")
        return {"queueName": "jobs", "queueLength": BATCH}

    def secret(self):
        return "connection", self.connection

    def fill(self, messages):
        for message in messages:
            self.ask("POST", "jobs/messages", f"<QueueMessage><MessageText>{message}</MessageText></QueueMessage>".encode())

    def left(self):
        return super().left("jobs")


class Kafka(scalers_kafka_test.Broker):
    """Messages of a topic; the group's committed offsets say what is done."""

    kind, group, topic = "kafka", "workers", "jobs"

    def __enter__(self):
        super().__enter__()
        self.client = scalers_kafka_test.Script("kafka_client.py", f"bootstrap.servers={self.servers}")
        return self

    def __exit__(self, *_):
        self.client.__exit__()
        super().__exit__()

    def rule(self):
        self.client.ask(f"create {self.topic} {PARTITIONS}")
        # a group that never committed counts as one message a partition
        for partition in range(PARTITIONS):
            self.client.ask(f"commit {self.group} {self.topic} {partition} 0")
        place = {"bootstrapServers": self.servers, "topic": self.topic, "consumerGroup": self.group}
        return place | {"lagThreshold": BATCH}

    def secret(self):
        return None

    def source(self):
        return f"{self.servers}/{self.group}/{self.topic}"

    def fill(self, messages):
        self.client.ask(f"number {self.topic} {PARTITIONS} {len(list(messages))}")

    def left(self):
        return int(self.client.question(f"lag {self.group} {self.topic} {PARTITIONS}"))


SOURCES = [Redis, RabbitMQ, StorageQueue, Kafka]


class Events(unittest.TestCase):
    maxDiff = None

    def create(self, source):
        metadata, secret = [f"{key}={value}" for key, value in source.rule().items()], source.secret()
        auth = ["--secrets", f"own={secret[1]}", "--scale-rule-auth", f"{secret[0]}=own"] if secret else []
        place = "secretref:own" if secret else source.source()
        self.server.command(
            "containerapp", "job", "create", "-n", source.kind, "-g", GROUP, "--environment", ENVIRONMENT,
            "--trigger-type", "Event", "--replica-timeout", "300", "--replica-retry-limit", "0",
            "--min-executions", "0", "--max-executions", str(EXECUTIONS_MAX), "--polling-interval", "2",
            "--scale-rule-name", "rule", "--scale-rule-type", source.kind, "--scale-rule-metadata", *metadata, *auth,
            "--image", IMAGE, "--cpu", "0.25", "--memory", "0.5Gi", "--args", source.kind,
            "--env-vars", f"SOURCE={place}", f"LEDGER={self.ledger.source()}", f"BATCH={BATCH}",
        )  # fmt: skip

    def executions(self, kind):
        listed = self.server.command("containerapp", "job", "execution", "list", "-n", kind, "-g", GROUP)
        return [one["properties"] | {"name": one["name"]} for one in listed]

    def running(self, kind):
        return [one for one in self.executions(kind) if one["status"] not in ("Succeeded", "Failed", "Stopped")]

    def done(self, kind):
        pairs = self.ledger.ask("HGETALL", f"done:{kind}")
        return dict(zip(pairs[::2], map(int, pairs[1::2])))

    def is_through(self, kind):
        """All messages are done and no execution runs; never more of those than may."""
        running = self.running(kind)
        self.assertLessEqual(len(running), EXECUTIONS_MAX, running)
        return len(self.done(kind)) == MESSAGES and not running

    def check(self, source):
        kind, messages = source.kind, [str(number) for number in range(MESSAGES)]
        cove.until(f"the messages of {kind} are done", lambda: self.is_through(kind), WITHIN_SECONDS)
        self.assertEqual(self.done(kind), dict.fromkeys(messages, 1))
        self.assertEqual(source.left(), 0)
        executions = self.executions(kind)
        self.assertEqual({one["status"] for one in executions}, {"Succeeded"}, executions)
        self.assertGreaterEqual(len(executions), MESSAGES // BATCH)
        self.assertLessEqual(self.most_at_once(executions), EXECUTIONS_MAX)
        explained = self.server.command("scale", "explain", "--job", kind, "-g", GROUP)
        started = [re.match(r"started (\d+|none): ", one["words"]) for one in explained["value"]]
        self.assertTrue(all(started), explained)
        numbers = [int(one[1]) for one in started if one[1] != "none"]
        self.assertTrue(numbers and max(numbers) <= EXECUTIONS_MAX, explained)

    def most_at_once(self, executions):
        changes = []
        for one in executions:
            begin, end = (datetime.datetime.fromisoformat(one[key]) for key in ("startTime", "endTime"))
            changes += [(begin, 1), (end, -1)]
        most = now = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most

    def test_each_message_is_done_once(self):
        self.server = self.enterContext(cove.Server(cove.CONFIG))
        python_image.import_into(self.server, IMAGE, clients=CLIENTS, main="job_workers.py")
        machine = self.enterContext(Machine())
        self.ledger = self.enterContext(scalers_test.Redis(machine))
        sources = [self.enterContext(make(machine)) for make in SOURCES]
        self.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        self.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")
        for source in sources:
            self.create(source)
        for source in sources:
            self.assertEqual(self.executions(source.kind), [])
        for source in sources:
            source.fill(map(str, range(MESSAGES)))
        for source in sources:
            self.check(source)


if __name__ == "__main__":
    unittest.main()
