"""Into sessions and after them: commands, shells, files, logs, events, metrics; a pool whose image comes late; the guide's request."""

import contextlib
import datetime
import http.client
import json
import os
import pathlib
import re
import ssl
import subprocess
import sys
import unittest
import urllib.parse

import cove
import python_image
import sessions_test
import slow_registry
from cove import SUBSCRIPTION
from sessions_test import POOLS, VERSION, pool_body
from terminal import Terminal

IMAGE = "cove.test/tools:1"
PROGRAMS = ["/bin/sh", "/bin/cat", "/bin/ls", "/bin/sleep", "/usr/bin/stty"]
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
CLIENTS = os.environ.get("COVE_VENV", "/var/cache/cove/venv") + "-interpreter/bin/python"
GUIDE = pathlib.Path(__file__).parents[2] / "docs/guide"


class ToolsCase(sessions_test.SessionCase):
    """A pool whose image has a shell, and the CLI."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        python_image.import_into(cls.server, IMAGE, programs=PROGRAMS, main="session_app.py")
        body = pool_body(4, 1)
        body["properties"]["customContainerTemplate"]["containers"][0]["image"] = IMAGE
        cls.make_pool("tools", body)

    def base(self, name="tools"):
        return super().base(name)

    def line(self, verb, *rest, pool="tools", behind=()):
        """`cove session VERB` for a pool, what stands behind `--` last."""
        place = ["-n", pool, "-g", "sessions", "--data-dir", str(self.server.data)]
        return [cove.BINARY, "session", verb, *place, *rest, *(["--", *behind] if behind else [])]

    def run_line(self, line, expect=0, within_seconds=120, text=None):
        done = subprocess.run(
            line, input=text, stdin=subprocess.DEVNULL if text is None else None, capture_output=True, text=True,
            timeout=within_seconds,
        )  # fmt: skip
        self.assertEqual(done.returncode, expect, f"{line}\n{done.stderr}\n{done.stdout}\n{self.server.log(30)}")
        return done

    def cove(self, verb, *rest, **more):
        pool, behind = more.pop("pool", "tools"), more.pop("behind", ())
        return self.run_line(self.line(verb, *rest, pool=pool, behind=behind), **more)

    def exec(self, identifier, *command, **more):
        return self.cove("exec", "-i", identifier, behind=command, **more)

    def say(self, identifier, text, pool="tools"):
        """The session prints it to its console."""
        path = f"{self.base(pool)}/print?identifier={identifier}"
        status, content, headers = self.ask(path, "POST", text.encode())
        self.assertEqual(status, 200, content[:200])
        return headers["x-ms-session-guid"]


class Consoles(ToolsCase):
    """Commands and shells."""

    def test_a_command_has_its_words_its_input_and_its_exit_code(self):
        code = "import sys; print(sys.argv[1:]); print(sys.stdin.read().upper()); print('wrong', file=sys.stderr); sys.exit(7)"
        words = ["two words", "it's", '"quoted"', "$HOME", ""]
        done = self.exec("exec-user", PYTHON, "-c", code, *words, expect=7, text="typed")
        self.assertEqual(done.stdout, f"{words}\nTYPED\n")
        self.assertEqual(done.stderr, "wrong\n")
        self.assertEqual(self.exec("exec-user", "sh", "-c", "exit 0").stdout, "")
        done = self.exec("exec-user", "no-such-program", expect=255)
        self.assertIn("no-such-program", done.stderr)

    def handshake(self, base, query, token):
        """The status of a WebSocket handshake at `.management/exec`."""
        connection, parts = self.connect(f"{base}/.management/exec?{query}")
        try:
            headers = {
                "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
            }  # fmt: skip
            if token:
                headers["Authorization"] = f"Bearer {token}"
            connection.request("GET", f"{parts.path}?{parts.query}", headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("x-ms-error-code")
        finally:
            connection.close()

    def test_both_doors_and_what_is_refused(self):
        for base in (self.base(), self.endpoint("tools")):
            query = "identifier=a-door&command=sh"
            self.assertEqual(self.handshake(base, query, self.token)[0], 101, base)
            self.assertEqual(self.handshake(base, query, ""), (401, "AuthenticationFailed"))
            self.assertEqual(self.handshake(base, query, self.token_for(self.server.api))[0], 401)
            self.assertEqual(self.handshake(base, "identifier=abc", self.token), (400, "SessionIdentifierInvalid"))
            self.assertEqual(self.handshake(base, "command=sh", self.token), (400, "SessionIdentifierMissing"))
            self.assertEqual(self.handshake(base, f"{query}&tty=perhaps", self.token), (400, "InvalidQueryParameter"))
            quote = "identifier=a-door&command=" + urllib.parse.quote("sh -c 'no end")
            self.assertEqual(self.handshake(base, quote, self.token)[0], 400)
        self.assertEqual(self.code(f"{self.base()}/.management/exec?identifier=a-door"), (426, "UpgradeRequired"))
        self.assertEqual(self.code(f"{self.base()}/.management/exec?identifier=a-door", "POST"), (405, "MethodNotAllowed"))
        told, _ = self.told(f"{self.base()}/echo/exec?identifier=a-door")
        self.assertEqual(told["target"], "/echo/exec?identifier=a-door", "the container's own paths are its own")

    def test_a_shell_has_a_terminal(self):
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.server.directory)}
        with Terminal(self.line("shell", "-i", "shell-user"), environment) as terminal:
            terminal.type_until("stty size\n", "24 80")
            terminal.send("echo to$((40 + 2))gether\n")
            terminal.expect("to42gether")
            # said by what is to be interrupted: before that the shell itself might be
            terminal.send("sh -c \"echo be''gun; exec sleep 1000\"\n")
            terminal.expect("begun")
            terminal.send("\x03")
            terminal.send("echo af''ter\n")
            terminal.expect("after")
            terminal.send("exit 9\n")
            self.assertEqual(terminal.wait(), 9)


class Files(ToolsCase):
    """Files of a container of one's own, which knows nothing of them."""

    def test_files_go_in_and_come_back(self):
        here = self.server.directory / "files"
        (here / "deep").mkdir(parents=True)
        (here / "a b.txt").write_text("one")
        (here / "deep" / "run.sh").write_text("#!/usr/bin/sh\necho ran\n")
        (here / "deep" / "run.sh").chmod(0o755)
        self.cove("upload", "-i", "file-user", str(here), "/tmp/")
        self.assertEqual(self.exec("file-user", "/tmp/files/deep/run.sh").stdout, "ran\n")
        self.assertEqual(self.exec("file-user", "cat", "/tmp/files/a b.txt").stdout, "one")
        self.exec("file-user", "sh", "-c", "echo two > /tmp/files/deep/two; ls -n /tmp/files/deep/two")
        back = self.server.directory / "back"
        back.mkdir()
        self.cove("download", "-i", "file-user", "/tmp/files", str(back))
        self.assertEqual((back / "files/deep/two").read_text(), "two\n")
        self.assertEqual((back / "files/a b.txt").read_text(), "one")
        self.assertTrue(os.access(back / "files/deep/run.sh", os.X_OK))
        missing = self.cove("download", "-i", "file-user", "/tmp/none", str(back), expect=3)
        self.assertIn("/tmp/none", missing.stderr)
        self.assertEqual(self.exec("other-user", "ls", "/tmp").stdout, "", "a session of its own")


class Progress(ToolsCase):
    """A pool whose image comes slowly."""

    def test_how_far_the_images_are_is_told(self):
        # a layer that the server does not have yet
        layer, config = python_image.parts(main="session_app.py", programs=["/bin/sleep"])
        with slow_registry.Registry(layer, config) as registry:
            body = pool_body(1, 1)
            body["properties"]["customContainerTemplate"]["containers"][0]["image"] = registry.image
            self.arm("PUT", f"{POOLS}/slow", body)
            self.assertTrue(registry.asked.wait(60), self.server.log())

            def percent():
                told = self.arm("GET", f"{POOLS}/slow")["properties"]
                self.assertEqual(told["provisioningState"], "InProgress")
                return told.get("coveProgress", {}).get("imagesPulledPercent", 0)

            cove.until("half of it is pulled", lambda: 40 <= percent() <= 60, 60)
            registry.may_end.set()
            self.settle(f"{POOLS}/slow")
        self.assertNotIn("coveProgress", self.arm("GET", f"{POOLS}/slow")["properties"])
        told, _ = self.told(f"{self.base('slow')}/echo?identifier=slow-user")
        self.assertEqual(told["target"], "/echo?identifier=slow-user")


class Logs(ToolsCase):
    """What sessions printed, and what happened to them."""

    def logged(self, *rest, **more):
        return self.cove("logs", "--format", "json", "--tail", "300", *rest, **more).stdout

    def until_logged(self, text, *rest):
        return cove.until(f"{text!r} is logged", lambda: (text in (out := self.logged(*rest))) and out, 60)

    def test_lines_of_ready_live_and_ended_sessions(self):
        self.until_logged("listening on 80")
        guid = self.say("log-user", "hello from log-user's session")
        mine = self.until_logged("hello from", "-i", "log-user")
        self.assertIn("listening on 80", mine, "what it printed while it waited is its own")
        self.say("other-user", "of another")
        self.until_logged("of another", "-i", "other-user")
        self.assertNotIn("of another", self.logged("-i", "log-user"))
        self.assertIn("hello from", self.logged("--session", guid))
        self.cove("stop", "-i", "log-user")
        self.assertIn("hello from", self.logged("-i", "log-user"), "it has ended")
        rows = [json.loads(line) for line in self.logged("-i", "log-user", "--rows").splitlines()]
        row = next(row for row in rows if "hello" in row["Log"])
        self.assertEqual(
            (row["Type"], row["SessionPoolName"], row["EnvironmentName"], row["Stream"], row["CoveSessionId"]),
            ("AppEnvSessionConsoleLogs_CL", "tools", "env", "stdout", guid),
        )
        self.assertEqual(row["_ResourceId"].lower(), f"{POOLS}/tools".lower())
        whole = self.logged("--rows").replace("hello from log-user", "")
        self.assertNotIn("log-user", whole, "an identifier is a secret")
        self.assertIn("had no such session", self.cove("logs", "-i", "never-seen", expect=3).stderr)
        _, told, _ = self.ask(f"{self.base()}/.management/logstream?identifier=log-user&tailLines=301")
        self.assertIn("tailLines", json.loads(told)["error"]["message"])
        self.assertEqual(self.ask(f"{self.base()}/.management/logstream", token="")[0], 401)

    def test_following_ends_with_the_session(self):
        self.say("followed", "before")
        self.until_logged("before", "-i", "followed")
        line = self.line("logs", "-i", "followed", "--follow", "--format", "text")
        with subprocess.Popen(line, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as reader:
            try:
                lines = iter(reader.stdout.readline, "")
                self.assertTrue(any("before" in line for line in lines))
                self.say("followed", "while it is read")
                self.assertTrue(any("while it is read" in line for line in lines))
                self.cove("stop", "-i", "followed")
                self.assertEqual(reader.wait(90), 0)
            finally:
                reader.kill()

    def test_events_tell_a_session_s_life(self):
        guid = self.say("event-user", "x")
        self.cove("stop", "-i", "event-user")

        def reasons():
            lines = self.logged("--type", "system").splitlines()
            events = [json.loads(line) for line in lines]
            mine = [event["Reason"] for event in events if guid in event["Msg"]]
            pool = [event["Reason"] for event in events]
            return mine == ["SessionAllocated", "SessionEnded"] and "SessionPoolRefilled" in pool

        cove.until("the events are told", reasons)

    def events(self, reason, pool):
        told = [json.loads(line) for line in self.logged("--type", "system", pool=pool).splitlines()]
        return [event for event in told if event["Reason"] == reason]

    def test_events_tell_how_containers_died(self):
        guid = self.say("doomed", "x")
        self.told(f"{self.base()}/exit?identifier=doomed", "POST")

        def ended():
            return next((event for event in self.events("SessionEnded", "tools") if guid in event["Msg"]), None)

        self.assertIn("ended (ContainerExited): exit code 7", cove.until("its end is told", ended)["Msg"])
        self.assertNotEqual(self.say("doomed", "x"), guid, "the next request gets a fresh one")
        # one that never becomes ready
        body = pool_body(2, 1)
        container = body["properties"]["customContainerTemplate"]["containers"][0]
        container.update(image=IMAGE, command=["sh", "-c", "echo it is broken; exit 3"])
        self.arm("PUT", f"{POOLS}/broken", body)
        event = cove.until("its failure is told", lambda: self.events("SessionFailed", "broken"))[0]
        self.assertRegex(event["Msg"], r"^Session '[0-9a-f-]{36}' of pool 'broken' ended \(Failed\): .*exit code 3")
        self.assertEqual(event["Type"], "Warning")
        failed = lambda: self.arm("GET", f"{POOLS}/broken")["properties"]["provisioningState"] == "Failed"  # noqa: E731
        cove.until("the pool has failed", failed, 120)
        printed = lambda: "it is broken" in self.logged(pool="broken")  # noqa: E731
        cove.until("what it printed is kept", printed)
        self.arm("DELETE", f"{POOLS}/broken")


class Usage(ToolsCase):
    """What sessions took, counted."""

    BURN = "import time\nwhile time.process_time() < 2: pass\nprint(time.process_time())"

    def usage(self):
        pool = urllib.parse.quote(f"{POOLS}/tools", safe="")
        status, answer = self.server.call("GET", f"/cove/v1/sessions/usage?pool={pool}")
        self.assertEqual(status, 200, answer)
        return answer

    def one(self, guid):
        usage = self.usage()
        return next(one for one in usage["value"] if one["sessionId"] == guid), usage["at"]

    def between(self, begin, end):
        begin, end = (datetime.datetime.fromisoformat(at.replace("Z", "+00:00")) for at in (begin, end))
        return max(0.0, (end - begin).total_seconds())

    def check_times(self, one, until):
        """The seconds are those between the row's own times, whatever became of the server meanwhile."""
        allocated = self.between(one["allocatedAt"], until)
        ready = self.between(one["readyAt"], one["allocatedAt"])
        self.assertAlmostEqual(one["allocatedSeconds"], allocated, delta=0.002)
        self.assertAlmostEqual(one["readySeconds"], ready, delta=0.002)
        self.assertAlmostEqual(one["coreSeconds"], 0.25 * allocated, delta=0.002)
        self.assertAlmostEqual(one["memoryGiBSeconds"], 0.5 * (ready + allocated), delta=0.002)

    def restart(self):
        self.server.kill()
        self.server.start()

    def test_nothing_is_lost_or_counted_twice_over_killed_servers(self):
        guid = self.say("metered", "x")
        self.exec("metered", PYTHON, "-c", self.BURN)
        cove.until("its processor time is seen", lambda: self.one(guid)[0]["cpuSeconds"] >= 2)
        before, _ = self.one(guid)
        self.restart()
        one, at = self.one(guid)
        for name in ("readyAt", "allocatedAt", "createdAt", "endedAt"):
            self.assertEqual(one[name], before[name], name)
        self.assertIsNone(one["endedAt"])
        self.assertGreaterEqual(one["cpuSeconds"], before["cpuSeconds"])
        self.check_times(one, at)
        self.assertEqual(self.say("metered", "x"), guid, "it is still there")
        took = float(self.exec("metered", PYTHON, "-c", self.BURN).stdout)
        folder = self.server.data / "replicas/replicas" / one["replica"]
        self.assertTrue(folder.exists())
        # killed as soon as its end is written down: its last processor time is not yet
        self.cove("stop", "-i", "metered")
        self.restart()
        cove.until("nothing is left of it", lambda: not folder.exists())
        one, _ = self.one(guid)
        self.assertGreaterEqual(one["cpuSeconds"], 4, "what it used last was written down first")
        self.assertLess(one["cpuSeconds"], before["cpuSeconds"] + took + 1.8, "two seconds more would be the first ones again")
        self.assertEqual(one["endReason"], "Stopped")
        self.check_times(one, one["endedAt"])
        # those that live go on while it is asked; what has ended stands still
        self.restart()
        self.assertEqual(self.one(guid)[0], one)
        shown = self.server.command("session", "usage", "-n", "tools", "-g", "sessions")
        self.assertIn(one, shown["value"])
        self.assertEqual(shown["total"]["sessions"], len(shown["value"]))
        for name in ("allocatedSeconds", "readySeconds", "cpuSeconds", "coreSeconds", "memoryGiBSeconds"):
            self.assertAlmostEqual(shown["total"][name], sum(row[name] for row in shown["value"]), places=2, msg=name)
        self.assertNotIn("metered", json.dumps(shown), "an identifier is a secret")

    def test_metrics_have_azure_s_names(self):
        self.say("measured", "x")
        connection = http.client.HTTPSConnection(
            self.server.api.removeprefix("https://"), context=ssl.create_default_context(cafile=self.server.ca), timeout=60
        )
        with contextlib.closing(connection):
            connection.request("GET", "/cove/v1/metrics")
            text = connection.getresponse().read().decode()
        self.assertRegex(text, r'cove_PoolExecutingPodCount\{poolName="tools",resource_group="sessions"\} 1\n')
        for name in ("cove_PoolReadyPodCount", "cove_PoolPendingPodCount"):
            self.assertIn(f'{name}{{poolName="tools"', text)
        self.assertRegex(text, r'cove_session_allocations_total\{outcome="new"\} [1-9]')
        self.assertIn("cove_session_allocation_seconds_bucket", text)


class Interpreters(unittest.TestCase):
    """A pool of a built-in kind whose image is not there yet."""

    CONFIG = cove.CONFIG.replace('provisioning_deadline = "60s"', 'provisioning_deadline = "300s"') + """
[sessions]
ready_deadline = "300s"
"""
    GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/late"

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cls.CONFIG))
        cls.arm("PUT", cls.GROUP, {"location": "eastus"})

    @classmethod
    def arm(cls, method, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        text = None if body is None else json.dumps(body)
        status, answer = cls.server.call(method, f"{path}?{VERSION}", text, headers)
        if status >= 300:
            raise AssertionError(f"{method} {path}: {status} {answer}")
        return answer

    def pool(self, name):
        return self.arm("GET", f"{self.GROUP}/providers/Microsoft.App/sessionPools/{name}")["properties"]

    def line(self, *words):
        return [cove.BINARY, *words[:2], "--data-dir", str(self.server.data), *words[2:]]

    def run_line(self, *words, expect=0, within_seconds=300):
        done = subprocess.run(
            self.line(*words), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=within_seconds
        )
        self.assertEqual(done.returncode, expect, f"{words}\n{done.stderr}\n{done.stdout}\n{self.server.log(40)}")
        return done

    def test_a_pool_works_once_its_image_is_there(self):
        create = ["sessionpool", "create", "-n", "shells", "-g", "late", "--container-type", "Shell"]
        counts = ["--max-sessions", "4", "--ready-sessions", "1"]
        done = self.run_line(*create, *counts, expect=1)
        self.assertIn("cove image build-interpreter shell", done.stderr, "it says how, and fetches nothing by itself")
        self.assertEqual(self.pool("shells")["provisioningState"], "Failed")
        self.server.command("image", "build-interpreter", "shell", within_seconds=1800)
        cove.until("the pool works, nobody having written it", lambda: self.pool("shells")["provisioningState"] == "Succeeded", 300)
        self.assertNotIn("coveFailure", self.pool("shells"))
        place = ["-n", "shells", "-g", "late", "-i", "shell-user"]
        self.assertEqual(self.run_line("session", "exec", *place, "--", "bash", "-c", "echo $((6 * 7))").stdout, "42\n")
        file = self.server.directory / "a b.txt"
        file.write_text("through its own file API")
        self.run_line("session", "upload", *place, str(file))
        self.assertEqual(self.run_line("session", "exec", *place, "--", "cat", "/mnt/data/a b.txt").stdout, file.read_text())
        target = self.server.directory / "back.txt"
        self.run_line("session", "download", *place, "a b.txt", str(target))
        self.assertEqual(target.read_text(), file.read_text())
        self.run_line("sessionpool", "delete", "-n", "shells", "-g", "late", "-y")


class CustomGuide(ToolsCase):
    """The guide's request to a container of one's own."""

    def test_the_guide_s_request(self):
        text = (GUIDE / "session-pools.md").read_text()
        snippets = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
        environment = {
            "PATH": os.environ["PATH"], "COVE_API": self.server.api, "COVE_CA": self.server.ca, "COVE_POOL": self.base(),
        }  # fmt: skip
        done = subprocess.run(
            [CLIENTS, "-c", "\n".join(snippets[:2])], env=environment, capture_output=True, text=True, timeout=120
        )
        self.assertEqual(done.returncode, 0, f"{done.stderr}\n{self.server.log(20)}")
        self.assertIn("200", done.stdout)
        self.assertIn("/api/run?identifier=user-4711", done.stdout)


if __name__ == "__main__":
    unittest.main()
