"""Runs inside the image of `crew`: takes jobs of a source one by one, says there that they are done, and counts them.

`workers.py KIND`; the variable `SOURCE` says where the jobs are, `CREW` where the replica reports. Each kind is a class that
knows one job's way: `take` does one, and says whether there was any. Clients of PyPI where the protocol is more than lines.
"""

import os
import signal
import socket
import sys
import time

from resp import Redis

REPLICA, APP = os.environ["CONTAINER_APP_REPLICA_NAME"], os.environ["CONTAINER_APP_NAME"]
# a share is never more than there is, but a source may give back a moment later what the test has counted in it
JOB_WITHIN_SECONDS = 60


class Worker:
    """What a kind may leave as it is."""

    # seconds to wait for a share before `rest` is called; 0 = for ever
    patience = "0"

    def __init__(self, source, report):
        pass

    def rest(self):
        pass

    def close(self):
        pass


class List(Worker):
    """Jobs of a Redis list."""

    def __init__(self, source, report):
        self.ask = Redis(*source.split(":"))

    def take(self):
        return self.ask("LPOP", "jobs") is not None


class Stream(List):
    """Entries of a Redis stream, acknowledged for the group `workers`."""

    def take(self):
        found = self.ask("XREADGROUP", "GROUP", "workers", REPLICA, "COUNT", "1", "STREAMS", "jobs", ">")
        if not found:
            return False
        [[_, [[entry, _]]]] = found
        return self.ask("XACK", "jobs", "workers", entry) == "1"


class RabbitMQ(Worker):
    """Messages of a queue over AMQP, acknowledged one by one."""

    def __init__(self, source, report):
        import pika

        # a worker that waits for its share answers no heartbeats
        parameters = pika.URLParameters(source + "?heartbeat=0")
        self.channel = pika.BlockingConnection(parameters).channel()

    def take(self):
        method, _, _ = self.channel.basic_get("jobs")
        if method is None:
            return False
        self.channel.basic_ack(method.delivery_tag)
        return True


class Nats(Worker):
    """Messages of a pull consumer of JetStream, acknowledged one by one."""

    def __init__(self, source, report):
        host, port = source.split(":")
        self.socket = socket.create_connection((host, int(port)))
        self.lines = self.socket.makefile("rb")
        self.lines.readline()
        self.inbox = f"inbox.{REPLICA}"
        self.socket.sendall(b'CONNECT {"verbose":false,"headers":true}\r\nSUB %s 1\r\n' % self.inbox.encode())

    def ask(self, subject, body):
        """Publishes; the headers of the answer and where its sender wants to hear of it."""
        self.socket.sendall(f"PUB {subject} {self.inbox} {len(body)}\r\n{body}\r\n".encode())
        while not (line := self.lines.readline()).startswith((b"MSG", b"HMSG")):
            if not line or line.startswith(b"-ERR"):
                raise OSError(line.decode() or "the server closed the connection")
            if line.startswith(b"PING"):
                self.socket.sendall(b"PONG\r\n")
        words = line.decode().split()
        body = self.lines.read(int(words[-1]) + 2)
        sizes = 2 if words[0] == "HMSG" else 1
        headers = body[: int(words[-2])].decode() if sizes == 2 else ""
        return headers, words[3] if len(words) == 4 + sizes else None

    def take(self):
        headers, reply = self.ask("$JS.API.CONSUMER.MSG.NEXT.JOBS.work", '{"batch":1,"no_wait":true}')
        if headers.startswith("NATS/1.0 404"):
            return False
        if reply is None:
            raise OSError(headers)
        # the server says that it knows
        self.ask(reply, "+ACK")
        return True


class PostgreSQL(Worker):
    """Rows of a table, each removed in a transaction that others pass by."""

    JOB = "delete from jobs where ctid = (select ctid from jobs limit 1 for update skip locked)"

    def __init__(self, source, report):
        import urllib.parse

        import pg8000.dbapi

        url = urllib.parse.urlsplit(source)
        self.connection = pg8000.dbapi.connect(
            url.username, url.hostname, url.path.strip("/"), url.port, url.password, ssl_context=False
        )

    def take(self):
        cursor = self.connection.cursor()
        cursor.execute(self.JOB)
        done = cursor.rowcount == 1
        cursor.close()
        self.connection.commit()
        return done


class MySQL(Worker):
    """As in PostgreSQL."""

    def __init__(self, source, report):
        import re

        import pymysql

        user, password, host, port, database = re.fullmatch(r"(\w+):(\w+)@tcp\(([\d.]+):(\d+)\)/(\w+)", source).groups()
        self.connection = pymysql.connect(host=host, port=int(port), user=user, password=password, database=database)

    def take(self):
        with self.connection.cursor() as cursor:
            cursor.execute("select n from jobs limit 1 for update skip locked")
            row = cursor.fetchone()
            if row:
                cursor.execute("delete from jobs where n = %s", row)
        self.connection.commit()
        return row is not None


class Etcd(Worker):
    """A number of jobs at a key; whoever lowers it by one, in a transaction, has done one."""

    def __init__(self, source, report):
        self.url = f"http://{source}/v3/kv/"

    def ask(self, path, body):
        import json
        import urllib.request

        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    def take(self):
        import base64

        text = lambda value: base64.b64encode(str(value).encode()).decode()
        key = text("jobs")
        while True:
            [pair] = self.ask("range", {"key": key})["kvs"]
            count = int(base64.b64decode(pair["value"]))
            if count == 0:
                return False
            is_same = {"key": key, "target": "VALUE", "value": pair["value"]}
            lower = {"requestPut": {"key": key, "value": text(count - 1)}}
            if self.ask("txn", {"compare": [is_same], "success": [lower]}).get("succeeded"):
                return True


class Beanstalkd(Worker):
    """Jobs of the default tube, reserved and deleted."""

    def __init__(self, source, report):
        host, port = source.split(":")
        self.stream = socket.create_connection((host, int(port))).makefile("rwb")

    def say(self, line):
        self.stream.write(line.encode() + b"\r\n")
        self.stream.flush()
        return self.stream.readline().decode().split()

    def take(self):
        answer = self.say("reserve-with-timeout 0")
        if answer[0] != "RESERVED":
            return False
        _, job, size = answer
        self.stream.read(int(size) + 2)
        return self.say(f"delete {job}") == ["DELETED"]


class Kafka(Worker):
    """Messages of topics, each replica its partitions' share as the group says; committed one by one."""

    patience = "0.2"

    def __init__(self, source, report):
        from confluent_kafka import Consumer

        servers, group, topics = source.split("/")
        self.report, self.is_open, self.own = report, False, []
        self.consumer = Consumer({
            "bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False,
            "auto.offset.reset": "earliest", "partition.assignment.strategy": "roundrobin",
            "session.timeout.ms": 6000, "heartbeat.interval.ms": 500,
        })  # fmt: skip
        self.consumer.subscribe(topics.split(","), on_assign=self.assigned)

    def assigned(self, consumer, partitions):
        consumer.assign(partitions)
        self.own = partitions
        self.report("HSET", f"parts:{APP}", REPLICA, str(len(partitions)))
        if not self.is_open:
            consumer.pause(partitions)

    def poll(self, seconds):
        message = self.consumer.poll(seconds)
        if message is None:
            return False
        if message.error():
            raise OSError(str(message.error()))
        self.consumer.commit(message, asynchronous=False)
        return True

    def rest(self):
        if self.poll(0):
            raise OSError("a message came before the share")

    def take(self):
        if not self.is_open:
            self.is_open = True
            self.consumer.resume(self.own)
        return self.poll(60)

    def close(self):
        self.consumer.close()


class Document(Worker):
    """Jobs of the API of a test: one is given by `/take`, and `/done` takes it off the number that the rule reads."""

    def __init__(self, source, report):
        self.url = source

    def post(self, path):
        import urllib.request

        with urllib.request.urlopen(urllib.request.Request(self.url + path, b"", method="POST"), timeout=60) as answer:
            return answer.status, answer.read().decode()

    def take(self):
        status, job = self.post("/take")
        return status == 200 and self.post(f"/done/{job}")[0] == 200


def fields(connection):
    """Of a connection string such as `A=b;C=d`."""
    return dict(part.split("=", 1) for part in connection.split(";") if part)


def signature(key, text):
    import base64
    import hashlib
    import hmac

    return base64.b64encode(hmac.digest(key, text.encode(), hashlib.sha256)).decode()


class StorageQueue(Worker):
    """Messages of a storage queue, deleted one by one; the account's key signs."""

    def __init__(self, source, report):
        import base64

        self.connection = fields(source)
        sign = {"sv": "2020-10-02", "ss": "q", "srt": "sco", "sp": "rwdlacup", "se": "2099-01-01T00:00:00Z"}
        text = f"{self.connection['AccountName']}\n{sign['sp']}\nq\nsco\n\n{sign['se']}\n\n\n{sign['sv']}\n"
        self.sign = {**sign, "sig": signature(base64.b64decode(self.connection["AccountKey"]), text)}

    def ask(self, method, path, **query):
        import urllib.parse
        import urllib.request

        url = f"{self.connection['QueueEndpoint']}/jobs/{path}?{urllib.parse.urlencode({**query, **self.sign})}"
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
            return answer.read().decode()

    def take(self):
        import re

        found = self.ask("GET", "messages", numofmessages=1, visibilitytimeout=300)
        if "<QueueMessage>" not in found:
            return False
        message, receipt = (re.search(f"<{tag}>(.*)</{tag}>", found)[1] for tag in ("MessageId", "PopReceipt"))
        self.ask("DELETE", f"messages/{message}", popreceipt=receipt)
        return True


class ServiceBus(Worker):
    """Messages of the queue `my-queue`, locked and completed one by one; `CA` is the authority of the namespace, in base64."""

    def __init__(self, source, report):
        import base64
        import ssl

        self.connection = fields(source)
        self.host = self.connection["Endpoint"].removeprefix("sb://").strip("/")
        self.context = ssl.create_default_context(cadata=base64.b64decode(os.environ["CA"]).decode())

    def ask(self, method, path):
        import http.client
        import urllib.parse

        resource, until = urllib.parse.quote_plus(f"https://{self.host}/"), int(time.time()) + 300
        name = self.connection["SharedAccessKeyName"]
        sign = urllib.parse.quote_plus(signature(self.connection["SharedAccessKey"].encode(), f"{resource}\n{until}"))
        token = f"SharedAccessSignature sr={resource}&sig={sign}&se={until}&skn={name}"
        connection = http.client.HTTPSConnection(self.host, context=self.context, timeout=60)
        try:
            connection.request(method, path, headers={"Authorization": token, "Content-Length": "0"})
            answer = connection.getresponse()
            answer.read()
            return answer.status, answer.headers
        finally:
            connection.close()

    def take(self):
        import urllib.parse

        status, headers = self.ask("POST", "/my-queue/messages/head?timeout=0")
        if status == 204:
            return False
        if status != 201:
            raise OSError(f"the namespace answered {status}")
        status, _ = self.ask("DELETE", urllib.parse.urlsplit(headers["Location"]).path)
        if status != 200:
            raise OSError(f"a message was not completed: {status}")
        return True


KINDS = {
    "redis": List, "cron": List, "redis-streams": Stream, "rabbitmq": RabbitMQ, "nats-jetstream": Nats,
    "postgresql": PostgreSQL, "mysql": MySQL, "etcd": Etcd, "beanstalkd": Beanstalkd, "kafka": Kafka,
    "document": Document, "azure-queue": StorageQueue, "azure-servicebus": ServiceBus,
}  # fmt: skip


def does_one(worker):
    """Asks until there is a job and does it; false when none came."""
    until = time.monotonic() + JOB_WITHIN_SECONDS
    while not worker.take():
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def main():
    # the first process of a container gets no signal that it does not ask for
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    report = Redis(*os.environ["CREW"].split(":"))
    worker = KINDS[sys.argv[1]](os.environ["SOURCE"], report)
    report("HINCRBY", f"done:{APP}", REPLICA, "0")
    try:
        while True:
            share = report("BLPOP", f"tap:{REPLICA}", worker.patience)
            if not share:
                worker.rest()
                continue
            for _ in range(int(share[1])):
                if not does_one(worker):
                    print("there was no job", flush=True)
                    break
                report("HINCRBY", f"done:{APP}", REPLICA, "1")
    finally:
        worker.close()


if __name__ == "__main__":
    main()
