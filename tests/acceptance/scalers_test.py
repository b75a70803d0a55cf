"""Apps that scale by queues and databases of Debian, all at once: from nothing to replicas and back, on a virtual clock.

Redis, RabbitMQ, NATS, PostgreSQL, MariaDB, etcd and beanstalkd run on a machine beside this one, each in a folder of its own.
The test fills the queues; the replicas that come for them do the jobs, and the queues are empty when they have done all. The
same with the hours of a cron rule, in which replicas do what has gathered before.
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
import crew
from machine import Machine
from resp import Redis as Client

GROUP, ENVIRONMENT = "rg", "env"
NOBODY = 65534
# what the image holds besides the standard library
CLIENTS = ["pika", "pg8000", "scramp", "asn1crypto", "dateutil", "pymysql"]
JOBS, REPLICAS = 15, 3


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
    """A server of its own on that machine, and the queue in it that one rule reads and one app's replicas empty."""

    def __init__(self, machine):
        self.machine, self.host, self.port = machine, machine.address, machine.port()
        self.folder, self.others = tempfile.TemporaryDirectory(), []
        self.dir = pathlib.Path(self.folder.name)
        try:
            self.process = self.run(*self.command())
            until(type(self).__name__, self.is_up)
        except BaseException:
            self.__exit__()
            raise

    def run(self, name, *arguments, **options):
        with open(self.dir / "log", "ab") as log:
            process = self.machine.inside(lambda: subprocess.Popen(
                [program(name), *map(str, arguments)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.dir, **options,
            ))  # fmt: skip
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

    def source(self):
        """Where a replica finds the jobs; it is in the container's variable `SOURCE`."""
        return f"{self.host}:{self.port}"

    def is_up(self):
        if self.process.poll() is not None:
            raise RuntimeError((self.dir / "log").read_text())
        try:
            socket.create_connection((self.host, self.port), 1).close()
        except OSError:
            return False
        return True

    def say(self, *lines):
        """Sends lines and gives what comes within a moment after the last."""
        with socket.create_connection((self.host, self.port), 10) as sock:
            answer = b""
            for line in lines:
                sock.sendall(line.encode() + b"\r\n")
                answer += sock.recv(65536)
            return answer.decode()


class Redis(Source):
    kind = "redis"

    def command(self):
        return "redis-server", "--port", self.port, "--bind", self.host, "--save", "", "--protected-mode", "no"

    def is_up(self):
        if not super().is_up():
            return False
        self.ask = Client(self.host, self.port)
        return True

    def __exit__(self, *_):
        if hasattr(self, "ask"):
            self.ask.close()
        super().__exit__()

    def rule(self):
        return {"addressFromEnv": "SOURCE", "listName": "jobs", "listLength": 5}

    def fill(self, count):
        self.ask("RPUSH", "jobs", *"x" * count)

    def left(self):
        return int(self.ask("LLEN", "jobs"))


class Cron(Redis):
    """Jobs that wait for the hours in which they are done."""

    kind = "cron"

    def rule(self):
        return {"timezone": "Europe/Prague", "start": "13 1 * * *", "end": "18 1 * * *", "desiredReplicas": REPLICAS}


class RedisStream(Redis):
    kind = "redis-streams"

    def rule(self):
        self.ask("XGROUP", "CREATE", "jobs", "workers", "$", "MKSTREAM")
        return {"host": self.host, "port": self.port, "stream": "jobs", "consumerGroup": "workers", "lagCount": 5}

    def fill(self, count):
        for _ in range(count):
            self.ask("XADD", "jobs", "*", "n", "1")

    def left(self):
        """Those that no consumer has asked for, and those that it has not acknowledged."""
        [group] = self.ask("XINFO", "GROUPS", "jobs")
        known = dict(zip(group[::2], group[1::2]))
        return int(known["lag"]) + int(known["pending"])


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
        self.management, distribution, nodes = (self.machine.port() for _ in range(3))
        self.run("epmd", "-port", nodes, "-address", "127.0.0.1")
        (self.dir / "plugins").write_text("[rabbitmq_management].")
        (self.dir / "rabbit.conf").write_text(
            f"management.tcp.port = {self.management}\nmanagement.tcp.ip = {self.host}\nloopback_users = none\n"
            "vm_memory_high_watermark.absolute = 512MB\ndisk_free_limit.absolute = 10MB\n"
        )
        environment = {
            "HOME": self.dir, "RABBITMQ_NODENAME": f"cove{distribution}@localhost", "RABBITMQ_NODE_PORT": self.port,
            "RABBITMQ_NODE_IP_ADDRESS": self.host, "RABBITMQ_DIST_PORT": distribution, "ERL_EPMD_PORT": nodes,
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
        return http(method, f"http://{self.host}:{self.management}/api/{path}", body, Authorization=f"Basic {login}")

    def rule(self):
        assert self.api("PUT", "queues/%2F/jobs", {"durable": True}) is not None
        return {"hostFromEnv": "SOURCE", "queueName": "jobs", "mode": "QueueLength", "value": 5}

    def source(self):
        return f"amqp://guest:guest@{self.host}:{self.port}/"

    def fill(self, count):
        message = {"properties": {}, "routing_key": "jobs", "payload": "x", "payload_encoding": "string"}
        for _ in range(count):
            assert self.api("POST", "exchanges/%2F/amq.default/publish", message)["routed"]

    def left(self):
        """Those that it still gives out; the counts that it shows are seconds old."""
        every = {"count": 1000, "ackmode": "ack_requeue_true", "encoding": "auto"}
        return len(self.api("POST", "queues/%2F/jobs/get", every))


class Nats(Source):
    kind = "nats-jetstream"

    def command(self):
        self.monitoring = self.machine.port()
        return "nats-server", "-js", "-a", self.host, "-p", self.port, "-m", self.monitoring, "-sd", self.dir

    def ask(self, subject, body=b""):
        """Publishes, and waits for the answer that JetStream gives to everything it takes."""
        with socket.create_connection((self.host, self.port), 10) as sock, sock.makefile("rb") as lines:
            lines.readline()
            sock.sendall(b'CONNECT {"verbose":false}\r\nSUB inbox 1\r\n')
            sock.sendall(f"PUB {subject} inbox {len(body)}\r\n".encode() + body + b"\r\n")
            while not (line := lines.readline()).startswith(b"MSG"):
                assert line and not line.startswith(b"-ERR"), line
                if line.startswith(b"PING"):
                    sock.sendall(b"PONG\r\n")
            answer = json.loads(lines.read(int(line.split()[-1])))
            assert "error" not in answer, answer
            return answer

    def rule(self):
        self.ask("$JS.API.STREAM.CREATE.JOBS", json.dumps({"name": "JOBS", "subjects": ["jobs"]}).encode())
        consumer = {"stream_name": "JOBS", "config": {"durable_name": "work", "ack_policy": "explicit"}}
        self.ask("$JS.API.CONSUMER.DURABLE.CREATE.JOBS.work", json.dumps(consumer).encode())
        return {
            "natsServerMonitoringEndpoint": f"{self.host}:{self.monitoring}", "account": "$G", "stream": "JOBS",
            "consumer": "work", "lagThreshold": 5,
        }  # fmt: skip

    def fill(self, count):
        for _ in range(count):
            self.ask("jobs", b"x")

    def left(self):
        told = self.ask("$JS.API.CONSUMER.INFO.JOBS.work")
        return told["num_pending"] + told["num_ack_pending"]


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
        with open(self.dir / "data" / "pg_hba.conf", "a") as rules:
            rules.write("host all all 0.0.0.0/0 scram-sha-256\n")
        return (
            "postgres", "-D", self.dir / "data", "-k", self.dir, "-h", self.host, "-p", self.port, "-c", "fsync=off",
        )  # fmt: skip

    def run(self, name, *arguments, **options):
        return super().run(name, *arguments, user=NOBODY, group=NOBODY, **options)

    def query(self, text):
        """What it says, and an end of line; None when it refuses."""
        command = [program("psql"), "-h", self.host, "-p", str(self.port), "-U", "cove", "-d", "postgres", "-Atc", text]
        done = subprocess.run(command, env=os.environ | {"PGPASSWORD": "secret"}, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def is_up(self):
        return super().is_up() and self.query("select 1")

    def rule(self):
        assert self.query("create table jobs(n int)")
        return {"query": "select count(*) from jobs", "targetQueryValue": 5}

    def secret(self):
        return "connection", f"postgresql://cove:secret@{self.host}:{self.port}/postgres?sslmode=disable"

    def fill(self, count):
        assert self.query(f"insert into jobs select generate_series(1, {count})")

    def left(self):
        return int(self.query("select count(*) from jobs"))


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
            f"--port={self.port}", f"--bind-address={self.host}", f"--init-file={self.dir / 'init.sql'}",
            "--innodb-buffer-pool-size=8M", "--skip-name-resolve",
        )  # fmt: skip

    def run(self, name, *arguments, **options):
        return super().run(name, *arguments, user=NOBODY, group=NOBODY, **options)

    def query(self, text):
        """What it says; None when it refuses."""
        command = [program("mariadb"), f"-h{self.host}", f"-P{self.port}", "-ucove", "-psecret", "-Ne", text]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.stdout if done.returncode == 0 else None

    def is_up(self):
        return super().is_up() and self.query("select 1")

    def rule(self):
        assert self.query("create database shop; create table shop.jobs(n int primary key)") is not None
        return {"query": "select count(*) from jobs", "queryValue": 5}

    def secret(self):
        return "connectionString", f"cove:secret@tcp({self.host}:{self.port})/shop"

    def fill(self, count):
        assert self.query("insert into shop.jobs values " + ",".join(f"({n})" for n in range(count))) is not None

    def left(self):
        return int(self.query("select count(*) from shop.jobs"))


class Etcd(Source):
    kind = "etcd"

    def command(self):
        own, peer = f"http://{self.source()}", f"http://{self.host}:{self.machine.port()}"
        return (
            "etcd", "--data-dir", self.dir / "data", "--listen-client-urls", own, "--advertise-client-urls", own,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}",
        )  # fmt: skip

    KEY = base64.b64encode(b"jobs").decode()

    def put(self, value):
        pair = {"key": self.KEY, "value": base64.b64encode(str(value).encode()).decode()}
        return http("POST", f"http://{self.source()}/v3/kv/put", pair) is not None

    def is_up(self):
        return super().is_up() and self.put(0)

    def rule(self):
        return {"endpoints": self.source(), "watchKey": "jobs", "value": 5}

    def fill(self, count):
        assert self.put(count)

    def left(self):
        [pair] = http("POST", f"http://{self.source()}/v3/kv/range", {"key": self.KEY})["kvs"]
        return int(base64.b64decode(pair["value"]))


class Beanstalkd(Source):
    kind = "beanstalkd"

    def command(self):
        return "beanstalkd", "-l", self.host, "-p", self.port

    def rule(self):
        return {"server": self.source(), "tube": "default", "value": 5}

    def fill(self, count):
        self.say(*["put 0 0 60 1\r\nx"] * count)

    def left(self):
        """Jobs of any state; only a deleted one is none."""
        told = dict(line.split(": ") for line in self.say("stats").splitlines() if line.startswith("current-jobs-"))
        return sum(int(told[f"current-jobs-{state}"]) for state in ("ready", "reserved", "delayed", "buried"))


SOURCES = [Redis, Cron, RedisStream, RabbitMQ, Nats, PostgreSQL, MariaDB, Etcd, Beanstalkd]


class Scalers(unittest.TestCase):
    maxDiff = None

    def create(self, source):
        """An app at zero that scales by the source and works at it; an app has the name of its rule's type."""
        secret = source.secret()
        auth = ["--secrets", f"own={secret[1]}", "--scale-rule-auth", f"{secret[0]}=own"] if secret else []
        variables = self.crew.variables("secretref:own" if secret else source.source())
        self.server.command(
            "containerapp", "create", "-n", source.kind, "-g", GROUP, "--environment", ENVIRONMENT, "--image", crew.IMAGE,
            "--cpu", "0.25", "--memory", "0.5Gi", "--min-replicas", "0", "--max-replicas", "5",
            "--args", source.kind, "--env-vars", *variables, "--scale-rule-name", "rule", "--scale-rule-type", source.kind,
            "--scale-rule-metadata", *[f"{key}={value}" for key, value in source.rule().items()], *auth,
        )  # fmt: skip

    def running(self, kind):
        listed = self.server.command("containerapp", "replica", "list", "-n", kind, "-g", GROUP)
        return [one["name"] for one in listed if one["properties"]["runningState"] == "Running"]

    def poll(self, how="30s"):
        """Some time passes; how many replicas of each app run then."""
        moved = self.server.command("clock", "advance", how)
        self.assertEqual(moved["unsettled"], [], self.server.log())
        return {source.kind: len(self.running(source.kind)) for source in self.sources}

    def all(self, count):
        return {source.kind: count for source in self.sources}

    def drain(self, source):
        """Its replicas do all the jobs, each its share, and each job once."""
        names = self.crew.come(source.kind, REPLICAS)
        self.assertEqual(sorted(names), sorted(self.running(source.kind)))
        self.assertEqual(source.left(), JOBS)
        done = self.crew.work(source.kind, JOBS // REPLICAS)
        self.assertEqual(done, dict.fromkeys(names, JOBS // REPLICAS), source.kind)
        self.assertEqual(source.left(), 0, source.kind)

    def test_replicas_come_for_each_drain_it_and_go(self):
        self.server = self.enterContext(cove.Server(cove.CONFIG + cove.READINGS, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        crew.import_into(self.server, *CLIENTS)
        machine = self.enterContext(Machine())
        self.crew = self.enterContext(crew.Crew(machine))
        self.sources = [self.enterContext(make(machine)) for make in SOURCES]
        self.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        self.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")
        for source in self.sources:
            self.create(source)
        for source in self.sources:
            self.crew.come(source.kind, 1)
        # the first replica lives one cool-down
        for _ in range(4):
            counts = self.poll("3m")
        self.assertEqual(counts, self.all(0), self.server.log())
        for source in self.sources:
            self.crew.begin(source.kind)
            source.fill(JOBS)
        # it is 00:12 in Greenwich, and 01:12 in Prague
        counts = [self.poll() for _ in range(5)]
        self.assertEqual(counts[0]["cron"], 0, counts)
        self.assertEqual(counts[1], self.all(REPLICAS) | {"cron": counts[1]["cron"]}, self.server.log())
        self.assertEqual(counts[-2:], [self.all(REPLICAS)] * 2, self.server.log())
        for source in self.sources:
            self.drain(source)
        self.assertEqual(self.poll("2m"), self.all(REPLICAS), self.server.log())
        for _ in range(4):
            counts = self.poll("2m")
        self.assertEqual(counts, self.all(0), self.server.log())


if __name__ == "__main__":
    unittest.main()
