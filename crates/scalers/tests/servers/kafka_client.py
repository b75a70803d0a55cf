"""A client of Kafka (librdkafka) that does what its input says, one line each, and answers `ok` or what went wrong.

    create TOPIC PARTITIONS
    produce TOPIC PARTITION COUNT       one batch per message
    number TOPIC PARTITIONS COUNT       messages `0`, `1`, … one after another to each partition
    commit GROUP TOPIC PARTITION OFFSET
    lag GROUP TOPIC PARTITIONS          answered by how many messages the group has not committed
    topics                              answered by their names

Arguments: `mock BROKERS` for librdkafka's own cluster, or settings `name=value` of a client. It prints `ready` and, for a
mock, the addresses of its brokers.
"""

import os
import sys

from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

TIMEOUT = 30


class Client:
    def __init__(self, arguments):
        self.settings = {}
        ready = []
        if arguments[0] == "mock":
            self.cluster = Producer({"test.mock.num.brokers": int(arguments[1])})
            brokers = self.cluster.list_topics(timeout=TIMEOUT).brokers.values()
            ready = sorted(f"{broker.host}:{broker.port}" for broker in brokers)
            self.settings["bootstrap.servers"] = ",".join(ready)
        else:
            self.settings.update(argument.split("=", 1) for argument in arguments)
        self.producer = None
        self.consumers = {}
        print("ready", *ready, flush=True)

    def create(self, topic, partitions):
        admin = AdminClient(dict(self.settings))
        made = admin.create_topics([NewTopic(topic, int(partitions), 1)], request_timeout=TIMEOUT)
        made[topic].result(TIMEOUT)

    def topics(self):
        return " ".join(sorted(AdminClient(dict(self.settings)).list_topics(timeout=TIMEOUT).topics))

    def produce(self, topic, partition, count):
        self.producer = self.producer or Producer({**self.settings, "linger.ms": 0})
        for number in range(int(count)):
            self.producer.produce(topic, f"message {number}", partition=int(partition))
            # a message a batch: one of the brokers counts batches
            if self.producer.flush(TIMEOUT):
                raise TimeoutError("a message was not taken")

    def number(self, topic, partitions, count):
        self.producer = self.producer or Producer({**self.settings, "linger.ms": 0})
        for number in range(int(count)):
            self.producer.produce(topic, str(number), partition=number % int(partitions))
            if self.producer.flush(TIMEOUT):
                raise TimeoutError("a message was not taken")

    def consumer(self, group):
        if group not in self.consumers:
            self.consumers[group] = Consumer({**self.settings, "group.id": group, "enable.auto.commit": False})
        return self.consumers[group]

    def commit(self, group, topic, partition, offset):
        where = TopicPartition(topic, int(partition), int(offset))
        for done in self.consumer(group).commit(offsets=[where], asynchronous=False):
            if done.error:
                raise RuntimeError(str(done.error))

    def lag(self, group, topic, partitions):
        consumer = self.consumer(group)
        places = [TopicPartition(topic, partition) for partition in range(int(partitions))]
        committed = consumer.committed(places, timeout=TIMEOUT)
        ends = [consumer.get_watermark_offsets(place, timeout=TIMEOUT)[1] for place in places]
        return str(sum(end - max(place.offset, 0) for place, end in zip(committed, ends)))


def main():
    client = Client(sys.argv[1:])
    for line in sys.stdin:
        name, *words = line.split()
        try:
            answer = getattr(client, name)(*words) or "ok"
        except Exception as error:  # the test shows it
            answer = f"{type(error).__name__}: {error}"
        print(answer.replace("\n", " "), flush=True)
    # librdkafka waits for brokers that are gone; there is nothing left to lose
    os._exit(0)


if __name__ == "__main__":
    main()
