"""Runs inside the image of `jobs_events_test`: one execution takes up to `BATCH` messages, says there which it did, and ends.

`job_workers.py KIND`, where `nothing` ends at once; the variable `SOURCE` says where the messages are, `LEDGER` is the Redis in which the test counts them.
A message is acknowledged after it is in the ledger, so what an execution leaves undone comes again, and shows there as two.
"""

import os
import sys

from resp import Redis

REPLICA = os.environ["CONTAINER_APP_REPLICA_NAME"]


class List:
    """Messages of a Redis list; one that is taken stands in the replica's own list until it is acknowledged."""

    def __init__(self, source):
        self.ask, self.own = Redis(*source.split(":")), f"taken:{REPLICA}"

    def take(self):
        return self.ask("LMOVE", "jobs", self.own, "LEFT", "RIGHT")

    def acknowledge(self, message):
        assert self.ask("LREM", self.own, "1", message) == "1"


class RabbitMQ:
    """Messages of a queue over AMQP, acknowledged one by one."""

    def __init__(self, source):
        import pika

        self.channel = pika.BlockingConnection(pika.URLParameters(source)).channel()

    def take(self):
        method, _, body = self.channel.basic_get("jobs")
        self.tag = method and method.delivery_tag
        return method and body.decode()

    def acknowledge(self, _):
        self.channel.basic_ack(self.tag)


class StorageQueue:
    """Messages of a storage queue, deleted one by one; the account's key signs."""

    def __init__(self, source):
        import base64
        import hashlib
        import hmac

        known = dict(part.split("=", 1) for part in source.split(";") if part)
        sign = {"sv": "2020-10-02", "ss": "q", "srt": "sco", "sp": "rwdlacup", "se": "2099-01-01T00:00:00Z"}
        text = f"{known['AccountName']}\n{sign['sp']}\nq\nsco\n\n{sign['se']}\n\n\n{sign['sv']}\n"
        digest = hmac.digest(base64.b64decode(known["AccountKey"]), text.encode(), hashlib.sha256)
        self.url, self.sign = known["QueueEndpoint"], {**sign, "sig": base64.b64encode(digest).decode()}

    def ask(self, method, path, **query):
        import urllib.parse
        import urllib.request

        url = f"{self.url}/jobs/{path}?{urllib.parse.urlencode({**query, **self.sign})}"
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=60) as answer:
            return answer.read().decode()

    def take(self):
        import re

        found = self.ask("GET", "messages", numofmessages=1, visibilitytimeout=300)
        tags = ("MessageId", "PopReceipt", "MessageText")
        matches = [re.search(f"<{tag}>(.*)</{tag}>", found) for tag in tags]
        if not all(matches):
            return None
        self.message, self.receipt, text = (match[1] for match in matches)
        return text

    def acknowledge(self, _):
        self.ask("DELETE", f"messages/{self.message}", popreceipt=self.receipt)


class Kafka:
    """Messages of a topic, committed one by one. A partition is one worker's at a time: it stands in the ledger whose."""

    def __init__(self, source):
        from confluent_kafka import Consumer

        servers, group, self.topic = source.split("/")
        self.ledger, self.own, self.ahead = Redis(*os.environ["LEDGER"].split(":")), None, 0
        self.consumer = Consumer({"bootstrap.servers": servers, "group.id": group, "enable.auto.commit": False})
        found = self.consumer.list_topics(self.topic, timeout=60).topics[self.topic].partitions
        self.others = sorted(found, key=lambda partition: hash((REPLICA, partition)))

    def next_partition(self):
        """Takes one that nobody has and that has messages; says whether there was one."""
        from confluent_kafka import TopicPartition

        self.release()
        while self.others:
            partition = self.others.pop()
            if self.ledger("SET", f"owner:{partition}", REPLICA, "NX") != "OK":
                continue
            self.own = partition
            place = TopicPartition(self.topic, partition)
            [place] = self.consumer.committed([place], timeout=60)
            begin, end = self.consumer.get_watermark_offsets(place, timeout=60)
            place.offset = max(place.offset, begin)
            self.ahead = end - place.offset
            if self.ahead > 0:
                self.consumer.assign([place])
                return True
            self.release()
        return False

    def take(self):
        if self.ahead == 0 and not self.next_partition():
            return None
        self.message = self.consumer.poll(60)
        if self.message is None or self.message.error():
            raise OSError(f"no message of {self.own}: {self.message and self.message.error()}")
        self.ahead -= 1
        return self.message.value().decode()

    def acknowledge(self, _):
        [done] = self.consumer.commit(self.message, asynchronous=False)
        if done.error:
            raise OSError(str(done.error))

    def release(self):
        if self.own is not None:
            assert self.ledger("DEL", f"owner:{self.own}") == "1"
            self.own = None

    def close(self):
        self.consumer.close()
        self.release()


KINDS = {"redis": List, "rabbitmq": RabbitMQ, "azure-queue": StorageQueue, "kafka": Kafka}


def main():
    if sys.argv[1] == "nothing":
        return
    worker = KINDS[sys.argv[1]](os.environ["SOURCE"])
    ledger = Redis(*os.environ["LEDGER"].split(":"))
    for number in range(int(os.environ["BATCH"])):
        message = worker.take()
        if not message:
            print(f"nothing left after {number}", flush=True)
            break
        ledger("HINCRBY", f"done:{sys.argv[1]}", message, "1")
        worker.acknowledge(message)
    if hasattr(worker, "close"):
        worker.close()


if __name__ == "__main__":
    main()
