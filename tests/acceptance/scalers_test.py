"""Apps that scale by queues and databases of Debian, all at once: from nothing to replicas and back, on a virtual clock.

Redis, RabbitMQ, NATS, PostgreSQL, MariaDB, etcd and beanstalkd run beside the server, each in a folder of its own. The test
fills and empties the queues; the containers only run.
"""

import base64
import json
import os
import pathlib
import shutil
import socket
import subprocess
import tempfile
import time
import unittest
import urllib.request

import cove
from az_test import SAMPLE

GROUP, ENVIRONMENT = "rg", "env"
NOBODY = 65534


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def program(name):
    places = [*sorted(pathlib.Path("/usr/lib/postgresql").glob("*/bin"), reverse=True), "/usr/sbin", "/usr/lib/rabbitmq/bin"]
    found = shutil.which(name, path=os.pathsep.join(map(str, [*places, os.environ["PATH"]])))
    if not found:
        raise FileNotFoundError(f"{name} is missing: scripts/test installs it")
    return found


def until(what, is_true, seconds=120):
    end = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.1)


def http(method, url, body=None, **headers):
    """A call; its JSON, or None when nobody answers or the server refuses."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **headers}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read()
    except OSError:
        return None
    return json.loads(text) if text else {}


class Source:
    """A server of its own on a free port, and the queue in it that one rule reads."""

    def __init__(self):
        self.port, self.folder, self.others = free_port(), tempfile.TemporaryDirectory(), []
        self.dir = pathlib.Path(self.folder.name)
        try:
            self.process = self.run(*self.command())
            until(type(self).__name__, self.is_up)
        except BaseException:
            self.__exit__()
            raise

    def run(self, name, *arguments, **options):
        log = open(self.dir / "log", "ab")
        process = subprocess.Popen(
            [program(name), *map(str, arguments)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir, **options,
        )  # fmt: skip
        log.close()
        self.others.append(process)
        return process

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.others:
            process.kill()
            process.wait()
        self.folder.cleanup()

    def secret(self):
        """The authentication parameter that the rule takes from a secret, and its value; None = it needs none."""

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError((self.dir / "log").read_text())
        try:
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        except OSError:
            return False
        return True

    def say(self, *lines):
        """Sends lines and gives what comes within a moment after the last."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as sock:
            answer = b""
            for line in lines:
                sock.sendall(line.encode() + b"\r\n")
                answer += sock.recv(65536)
            return answer.decode()


class Redis(Source):
    kind = "redis"

    def command(self):
        return "redis-server", "--port", self.port, "--bind", "127.0.0.1", "--save", "", "--dir", self.dir

    def rule(self):
        return {"address": f"127.0.0.1:{self.port}", "listName": "jobs", "listLength": 5}

    def fill(self, count):
        self.say("RPUSH jobs " + " ".join("x" * count))

    def drain(self):
        self.say("DEL jobs")


class RedisStream(Redis):
    kind = "redis-streams"

    def rule(self):
        self.say("XGROUP CREATE jobs workers $ MKSTREAM")
        return {
            "host": "127.0.0.1", "port": self.port, "stream": "jobs", "consumerGroup": "workers", "lagCount": 5,
        }  # fmt: skip

    def fill(self, count):
        self.say(*["XADD jobs * n 1"] * count)

    def drain(self):
        self.say("XREADGROUP GROUP workers one NOACK STREAMS jobs >")


class RabbitMQ(Source):
    kind = "rabbitmq"

    def command(self):
        return ("true",)

    def is_up(self):
        if len(self.others) == 1:
            self.start()
        if self.process.poll() is not None:
            raise RuntimeError((self.dir / "log").read_text())
        return self.api("GET", "overview") is not None

    def start(self):
        self.management, distribution, nodes = free_port(), free_port(), free_port()
        self.run("epmd", "-port", nodes, "-address", "127.0.0.1")
        (self.dir / "plugins").write_text("[rabbitmq_management].")
        (self.dir / "rabbit.conf").write_text(
            f"management.tcp.port = {self.management}\nmanagement.tcp.ip = 127.0.0.1\n"
            "vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 10MB\n"
        )
        environment = {
            "HOME": self.dir, "RABBITMQ_NODENAME": f"cove{distribution}@localhost", "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1", "RABBITMQ_DIST_PORT": distribution, "ERL_EPMD_PORT": nodes,
            "RABBITMQ_MNESIA_BASE": self.dir / "mnesia", "RABBITMQ_LOG_BASE": self.dir / "logs", "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": self.dir / "plugins", "RABBITMQ_CONFIG_FILE": self.dir / "rabbit.conf",
            "RABBITMQ_PID_FILE": self.dir / "pid", "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # the script then becomes the server instead of waiting for it
            "RABBITMQ_ALLOW_INPUT": 1, "RABBITMQ_SERVER_START_ARGS": "-noinput",
        }  # fmt: skip
        script = os.path.realpath("/usr/lib/rabbitmq/bin/rabbitmq-server")
        self.process = self.run(script, env=os.environ | {key: str(value) for key, value in environment.items()})

    def api(self, method, path, body=None):
        login = base64.b64encode(b"guest:guest").decode()
        return http(method, f"http://127.0.0.1:{self.management}/api/{path}", body, Authorization=f"Basic {login}")

    def rule(self):
        assert self.api("PUT", "queues/%2F/jobs", {"durable": True}) is not None
        return {"host": f"amqp://guest:guest@127.0.0.1:{self.port}/", "queueName": "jobs", "mode": "QueueLength", "value": 5}

    def fill(self, count):
        message = {"properties": {}, "routing_key": "jobs", "payload": "x", "payload_encoding": "string"}
        for _ in range(count):
            assert self.api("POST", "exchanges/%2F/amq.default/publish", message)["routed"]

    def drain(self):
        assert self.api("DELETE", "queues/%2F/jobs/contents") is not None


class Nats(Source):
    kind = "nats-jetstream"

    def command(self):
        self.monitoring = free_port()
        return "nats-server", "-js", "-a", "127.0.0.1", "-p", self.port, "-m", self.monitoring, "-sd", self.dir

    def ask(self, subject, body=b""):
        """Publishes, and waits for the answer that JetStream gives to everything it takes."""
        with socket.create_connection(("127.0.0.1", self.port), 10) as sock, sock.makefile("rb") as lines:
            lines.readline()
            sock.sendall(b'CONNECT {"verbose":false}\r\nSUB inbox 1\r\n')
            sock.sendall(f"PUB {subject} inbox {len(body)}\r\n".encode() + body + b"\r\n")
            while not (line := lines.readline()).startswith(b"MSG"):
                assert line and not line.startswith(b"-ERR"), line
                if line.startswith(b"PING"):
                    sock.sendall(b"PONG\r\n")
            answer = json.loads(lines.read(int(line.split()[-1])))
            assert "error" not in answer, answer

    def rule(self):
        self.ask("$JS.API.STREAM.CREATE.JOBS", json.dumps({"name": "JOBS", "subjects": ["jobs"]}).encode())
        consumer = {"stream_name": "JOBS", "config": {"durable_name": "work", "ack_policy": "explicit"}}
        self.ask("$JS.API.CONSUMER.DURABLE.CREATE.JOBS.work", json.dumps(consumer).encode())
        return {
            "natsServerMonitoringEndpoint": f"127.0.0.1:{self.monitoring}", "account": "$G", "stream": "JOBS",
            "consumer": "work", "lagThreshold": 5,
        }  # fmt: skip

    def fill(self, count):
        for _ in range(count):
            self.ask("jobs", b"x")

    def drain(self):
        self.ask("$JS.API.STREAM.PURGE.JOBS")


class PostgreSQL(Source):
    kind = "postgresql"

    def command(self):
        os.chown(self.dir, NOBODY, NOBODY)
        (self.dir / "password").write_text("secret")
        subprocess.run(
            [program("initdb"), "-U", "cove", "-D", self.dir / "data", "--auth=scram-sha-256", "--no-sync", "--locale=C",
             f"--pwfile={self.dir / 'password'}"],
            user=NOBODY, group=NOBODY, check=True, stdout=subprocess.DEVNULL, cwd=self.dir,
        )  # fmt: skip
        return "postgres", "-D", self.dir / "data", "-k", self.dir, "-p", self.port, "-c", "fsync=off"

    def run(self, name, *arguments, **options):
        return super().run(name, *arguments, user=NOBODY, group=NOBODY, **options)

    def query(self, text):
        command = [program("psql"), "-h", "127.0.0.1", "-p", str(self.port), "-U", "cove", "-d", "postgres", "-qAtc", text]
        return subprocess.run(command, env=os.environ | {"PGPASSWORD": "secret"}, capture_output=True).returncode == 0

    def is_up(self):
        return super().is_up() and self.query("select 1")

    def rule(self):
        assert self.query("create table jobs(n int)")
        return {"query": "select count(*) from jobs", "targetQueryValue": 5}

    def secret(self):
        return "connection", f"postgresql://cove:secret@127.0.0.1:{self.port}/postgres?sslmode=disable"

    def fill(self, count):
        assert self.query(f"insert into jobs select generate_series(1, {count})")

    def drain(self):
        assert self.query("delete from jobs")


class MariaDB(Source):
    kind = "mysql"

    def command(self):
        os.chown(self.dir, NOBODY, NOBODY)
        (self.dir / "init.sql").write_text("create user cove@'%' identified by 'secret';\ngrant all on *.* to cove@'%';\n")
        subprocess.run(
            [program("mariadb-install-db"), "--no-defaults", f"--datadir={self.dir / 'data'}", "--skip-test-db",
             "--auth-root-authentication-method=normal"],
            user=NOBODY, group=NOBODY, check=True, stdout=subprocess.DEVNULL, cwd=self.dir,
        )  # fmt: skip
        return (
            "mariadbd", "--no-defaults", f"--datadir={self.dir / 'data'}", f"--socket={self.dir / 'socket'}",
            f"--port={self.port}", "--bind-address=127.0.0.1", f"--init-file={self.dir / 'init.sql'}",
            "--innodb-buffer-pool-size=8M", "--skip-name-resolve",
        )  # fmt: skip

    def run(self, name, *arguments, **options):
        return super().run(name, *arguments, user=NOBODY, group=NOBODY, **options)

    def query(self, text):
        command = [program("mariadb"), "-h127.0.0.1", f"-P{self.port}", "-ucove", "-psecret", "-e", text]
        return subprocess.run(command, capture_output=True).returncode == 0

    def is_up(self):
        return super().is_up() and self.query("select 1")

    def rule(self):
        assert self.query("create database shop; create table shop.jobs(n int)")
        return {"query": "select count(*) from jobs", "queryValue": 5}

    def secret(self):
        return "connectionString", f"cove:secret@tcp(127.0.0.1:{self.port})/shop"

    def fill(self, count):
        assert self.query("insert into shop.jobs values " + ",".join(["(1)"] * count))

    def drain(self):
        assert self.query("delete from shop.jobs")


class Etcd(Source):
    kind = "etcd"

    def command(self):
        own, peer = f"http://127.0.0.1:{self.port}", f"http://127.0.0.1:{free_port()}"
        return (
            "etcd", "--data-dir", self.dir / "data", "--listen-client-urls", own, "--advertise-client-urls", own,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        )  # fmt: skip

    def put(self, value):
        pair = {"key": base64.b64encode(b"jobs").decode(), "value": base64.b64encode(str(value).encode()).decode()}
        return http("POST", f"http://127.0.0.1:{self.port}/v3/kv/put", pair) is not None

    def is_up(self):
        return super().is_up() and self.put(0)

    def rule(self):
        return {"endpoints": f"127.0.0.1:{self.port}", "watchKey": "jobs", "value": 5}

    def fill(self, count):
        assert self.put(count)

    def drain(self):
        assert self.put(0)


class Beanstalkd(Source):
    kind = "beanstalkd"

    def command(self):
        return "beanstalkd", "-l", "127.0.0.1", "-p", self.port

    def rule(self):
        return {"server": f"127.0.0.1:{self.port}", "tube": "default", "value": 5}

    def fill(self, count):
        self.say(*["put 0 0 60 1\r\nx"] * count)

    def drain(self):
        while (answer := self.say("peek-ready")).startswith("FOUND"):
            self.say(f"delete {answer.split()[1]}")


SOURCES = [Redis, RedisStream, RabbitMQ, Nats, PostgreSQL, MariaDB, Etcd, Beanstalkd]


class Scalers(unittest.TestCase):
    maxDiff = None

    def create(self, source):
        """An app at zero that scales by the source; an app has the name of its rule's type."""
        metadata = [f"{key}={value}" for key, value in source.rule().items()]
        secret = source.secret()
        auth = ["--secrets", f"own={secret[1]}", "--scale-rule-auth", f"{secret[0]}=own"] if secret else []
        self.server.command(
            "containerapp", "create", "-n", source.kind, "-g", GROUP, "--environment", ENVIRONMENT, "--image", SAMPLE,
            "--cpu", "0.25", "--memory", "0.5Gi", "--min-replicas", "0", "--max-replicas", "5",
            "--scale-rule-name", "rule", "--scale-rule-type", source.kind, "--scale-rule-metadata", *metadata,
            *auth,
        )  # fmt: skip

    def running(self, kind):
        listed = self.server.command("containerapp", "replica", "list", "-n", kind, "-g", GROUP)
        return len([one for one in listed if one["properties"]["runningState"] == "Running"])

    def poll(self, how="30s"):
        """Some time passes; how many replicas of each app run then."""
        moved = self.server.command("clock", "advance", how)
        self.assertEqual(moved["unsettled"], [], self.server.log())
        return {source.kind: self.running(source.kind) for source in self.sources}

    def all(self, count):
        return {source.kind: count for source in self.sources}

    def test_each_fills_and_empties(self):
        self.server = self.enterContext(cove.Server(cove.CONFIG, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        self.sources = [self.enterContext(make()) for make in SOURCES]
        self.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        self.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")
        for source in self.sources:
            self.create(source)
        # the first replica lives one cool-down
        for _ in range(4):
            counts = self.poll("3m")
        self.assertEqual(counts, self.all(0), self.server.log())
        for source in self.sources:
            source.fill(15)
        self.assertEqual([self.poll() for _ in range(3)][1:], [self.all(3)] * 2, self.server.log())
        for source in self.sources:
            source.drain()
        self.assertEqual(self.poll("2m"), self.all(3), self.server.log())
        for _ in range(3):
            counts = self.poll("2m")
        self.assertEqual(counts, self.all(0), self.server.log())


if __name__ == "__main__":
    unittest.main()
