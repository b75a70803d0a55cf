"""Forks, snapshots and suspended sessions: files stay where processes do not, and nothing is left of any of them."""

import concurrent.futures
import json
import os
import pathlib
import random
import sqlite3
import subprocess
import sys
import threading
import urllib.parse

import cove
import python_image
from sessions_test import ENVIRONMENT, GROUP, POOLS, SessionCase, pool_body

IMAGE = "cove.test/forks:1"
KILLS = int(os.environ.get("COVE_FORK_KILLS", "8"))


def body(maximum=12, ready=1, **more):
    whole = pool_body(maximum, ready, **more)
    whole["properties"]["customContainerTemplate"]["containers"][0]["image"] = IMAGE
    return whole


class ForkCase(SessionCase):
    """A server with a pool whose sessions keep files."""

    config = cove.CONFIG

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cls.config))
        python_image.import_into(cls.server, IMAGE, main="fork_app.py")
        cls.arm("PUT", GROUP, {"location": "eastus"})
        environment = {"location": "eastus", "properties": {"appLogsConfiguration": {"destination": "none"}}}
        cls.arm("PUT", ENVIRONMENT, environment)
        cls.settle(ENVIRONMENT)
        cls.make_pool("pool", body())
        cls.token = cls.token_for("https://dynamicsessions.io")

    def manage(self, path, method="POST", send=None, pool="pool", expect=200):
        content = None if send is None else json.dumps(send)
        status, answer, _ = self.ask(f"{self.base(pool)}/.management/{path}", method, content)
        self.assertEqual(status, expect, f"{path}: {answer[:500]}\n{self.server.log(30)}")
        return json.loads(answer) if answer else None

    def refused(self, path, method="POST", send=None, pool="pool"):
        content = None if send is None else json.dumps(send)
        status, answer, _ = self.ask(f"{self.base(pool)}/.management/{path}", method, content)
        return status, json.loads(answer)["error"]["code"]

    def put(self, user, path, content, pool="pool"):
        status, answer, _ = self.ask(f"{self.base(pool)}/files/{path}?identifier={user}", "PUT", content)
        self.assertEqual(status, 200, f"{path}: {answer[:500]}\n{self.server.log(30)}")

    def file(self, user, path, pool="pool"):
        status, answer, _ = self.ask(f"{self.base(pool)}/files/{path}?identifier={user}")
        self.assertIn(status, (200, 404), answer[:500])
        return answer.decode() if status == 200 else None

    def calls(self, user, pool="pool"):
        return self.told(f"{self.base(pool)}/calls?identifier={user}")[0]

    def folders(self):
        return sorted(os.listdir(f"{self.server.data}/snapshots"))

    def rows(self):
        with sqlite3.connect(f"file:{self.server.data}/cove.db?mode=ro", uri=True) as db:
            return {row for (row,) in db.execute("SELECT id FROM session_snapshots")}

    def nothing_is_left(self):
        cove.until("all snapshots are gone", lambda: self.folders() == [], within_seconds=60)


class Forks(ForkCase):
    """What a fork, a snapshot and a suspended session keep, and what they do not."""

    def test_forks_find_the_files_and_go_their_own_ways(self):
        self.put("source", "start", "first")
        self.put("source", "srv/data/a.txt", "from the source")
        self.put("source", "etc/passwd", "replaced")
        self.ask(f"{self.base()}/files/usr/share/doc?identifier=source", "DELETE")
        self.ask(f"{self.base()}/move?from=/srv/data&to=/srv/moved&identifier=source", "POST")
        made = self.manage("sessions/source/fork?count=3&memory=false")
        self.assertEqual((made["kept"], made["memory"], made["count"]), ("files", False, 3))
        self.assertEqual(made["memoryReason"], "it was not asked for")
        users = [one["identifier"] for one in made["sessions"]]
        self.assertEqual(len(set(users)), 3)
        self.assertEqual(len({one["sessionId"] for one in made["sessions"]}), 3)
        for user in users:
            self.assertEqual(self.file(user, "srv/moved/a.txt"), "from the source")
            self.assertIsNone(self.file(user, "srv/data/a.txt"))
            self.assertEqual(self.file(user, "etc/passwd"), "replaced")
            told = self.calls(user)
            self.assertEqual((told["start"], told["calls"]), ("first", 4), "its processes began anew, with the files")
            self.put(user, "srv/moved/a.txt", f"of {user}")
        self.assertEqual(self.file("source", "srv/moved/a.txt"), "from the source")
        for user in users:
            self.assertEqual(self.file(user, "srv/moved/a.txt"), f"of {user}")
        self.assertIsNone(self.calls("source")["start"], "the source went on")

        # a fork of a fork has all of both, by the other spelling and with names of its own
        self.put(users[0], "more", "more")
        self.ask(f"{self.base()}/files/start?identifier={users[0]}", "DELETE")
        send = {"identifiers": ["second-1", "second-2"], "memory": False}
        made = self.manage(f"fork?identifier={users[0]}", send=send)
        self.assertEqual([one["identifier"] for one in made["sessions"]], ["second-1", "second-2"])
        for user in ("second-1", "second-2"):
            self.assertEqual((self.file(user, "more"), self.file(user, "etc/passwd")), ("more", "replaced"))
            self.assertEqual(self.file(user, "srv/moved/a.txt"), f"of {users[0]}")
            self.assertIsNone(self.calls(user)["start"], "what was removed is not there")
        self.assertEqual(len(self.folders()), 2)
        self.tearDown()
        self.nothing_is_left()

    def test_owners_modes_and_links_are_as_they_were(self):
        self.assertEqual(self.ask(f"{self.base()}/shapes?identifier=modes", "POST")[0], 200)
        made = self.manage("sessions/modes/fork")
        user = made["sessions"][0]["identifier"]
        for path in ("file", "link", "dir", "hard", "pipe", ""):
            source = self.told(f"{self.base()}/facts/shapes/{path}?identifier=modes")[0]
            self.assertEqual(self.told(f"{self.base()}/facts/shapes/{path}?identifier={user}")[0], source, path)

    def test_a_fork_is_all_or_nothing(self):
        self.put("whole", "a", "x")
        self.manage("sessions/whole/fork", send={"identifiers": ["taken-one"]})
        for path, send, expected in (
            ("sessions/whole/fork?count=0", None, (400, "InvalidQueryParameter")),
            ("sessions/whole/fork?memory=perhaps", None, (400, "InvalidQueryParameter")),
            ("sessions/whole/fork?count=21", None, (400, "InvalidQueryParameter")),
            ("sessions/whole/fork?count=2", {"identifiers": ["one-only"]}, (400, "InvalidQueryParameter")),
            ("sessions/whole/fork", {"identifiers": ["same", "same"]}, (400, "SessionIdentifierInvalid")),
            ("sessions/whole/fork", {"identifiers": ["a/b"]}, (400, "SessionIdentifierInvalid")),
            ("sessions/whole/fork", {"identifiers": ["fresh-one", "taken-one"]}, (409, "SessionSnapshotConflict")),
            ("sessions/whole/fork?count=11", None, (404, "SessionPoolFull")),
            ("sessions/nobody/fork", None, (404, "SessionNotFound")),
            ("sessions/whole/fork", "text", (400, "InvalidRequestContent")),
        ):
            self.assertEqual(self.refused(path, send=send), expected, (path, send))
        self.assertEqual(self.refused("sessions/whole/fork", "GET"), (405, "MethodNotAllowed"))
        _, content, _ = self.ask(f"{self.base()}/.management/listSessions")
        self.assertEqual([one["identifier"] for one in json.loads(content)["value"]], ["taken-one", "whole"])
        status, _, _ = self.ask(f"{self.base()}/.management/sessions/whole/fork", "POST", token="wrong")
        self.assertEqual(status, 401)
        cove.until("only the fork's snapshot is there", lambda: len(self.folders()) == 1, within_seconds=60)

    def test_what_is_written_meanwhile_is_in_a_fork_whole_or_not_at_all(self):
        self.put("busy", "srv/0", "0" * 100_000)
        end = threading.Event()
        failed = []

        def write():
            number = 0
            while not end.is_set():
                number += 1
                # renamed at once: a reader sees the old one or the new one
                status, answer, _ = self.ask(f"{self.base()}/files/srv/part?identifier=busy", "PUT", str(number % 10) * 100_000)
                moved = self.ask(f"{self.base()}/move?from=/srv/part&to=/srv/0&identifier=busy", "POST")[0]
                if (status, moved) != (200, 200):
                    failed.append((status, answer))

        writer = threading.Thread(target=write)
        writer.start()
        try:
            for number in range(3):
                made = self.manage("sessions/busy/fork", send={"identifiers": [f"busy-{number}"]})
                text = self.file(made["sessions"][0]["identifier"], "srv/0")
                self.assertEqual((len(text), len(set(text))), (100_000, 1))
        finally:
            end.set()
            writer.join()
        self.assertEqual(failed, [], "the source answered all the while")

    def test_a_snapshot_is_a_template_of_pools(self):
        self.put("maker", "start", "made ready")
        shown = self.manage("sessions/maker/snapshot", send={"name": "base"}, expect=201)
        self.assertEqual((shown["name"], shown["sizeInBytes"] > 0), ("base", True))
        self.put("maker", "start", "later")
        for send, expected in (
            ({"name": "base"}, (409, "SessionSnapshotConflict")),
            ({"name": "Not valid"}, (400, "InvalidParameterValue")),
            (None, (400, "InvalidParameterValue")),
        ):
            self.assertEqual(self.refused("snapshot?identifier=maker", send=send), expected)
        self.assertEqual([one["name"] for one in self.manage("snapshots", "GET")["value"]], ["base"])
        self.assertEqual(self.manage("snapshots/base", "GET")["sessionId"], shown["sessionId"])
        self.assertEqual(self.refused("snapshots/other", "GET"), (404, "SessionSnapshotNotFound"))

        bad = body(coveSnapshot="pool/other")
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        status, answer = self.server.call("PUT", f"{POOLS}/derived?api-version=2025-07-01", json.dumps(bad), headers)
        self.assertEqual((status, answer["error"]["code"]), (400, "SessionSnapshotNotFound"))
        self.make_pool("derived", body(4, 1, coveSnapshot="pool/base"))
        self.assertEqual(self.arm("GET", f"{POOLS}/derived")["properties"]["coveSnapshot"], "pool/base")
        for user in ("derived-1", "derived-2"):
            self.assertEqual(self.calls(user, "derived")["start"], "made ready")
        self.server.kill()
        self.server.start()
        self.assertEqual(self.calls("derived-3", "derived")["start"], "made ready", "it outlives the server")
        self.assertEqual(self.refused("snapshots/base", "DELETE"), (409, "SessionSnapshotInUse"))
        status, answer = self.server.call("DELETE", f"{POOLS}/pool?api-version=2025-07-01", None, headers)
        self.assertEqual((status, answer["error"]["code"]), (409, "SessionSnapshotInUse"))
        self.arm("PUT", f"{POOLS}/derived", body(4, 1))
        self.settle(f"{POOLS}/derived")
        self.manage("snapshots/base", "DELETE", expect=204)
        self.assertIsNone(self.calls("derived-4", "derived")["start"])
        self.assertEqual(self.calls("derived-1", "derived")["start"], "made ready", "old sessions keep what they began with")
        self.arm("DELETE", f"{POOLS}/derived")
        self.nothing_is_left()

    def test_a_suspended_session_comes_back_with_its_files(self):
        self.put("sleeper", "srv/notes", "remember this")
        before = self.calls("sleeper")
        shown = self.manage("suspend?identifier=sleeper")
        self.assertEqual((shown["state"], shown["identifier"]), ("Suspended", "sleeper"))
        self.assertEqual(self.code(f"{self.base()}/.management/session?identifier=sleeper"), (404, "SessionNotFound"))
        listed = self.manage("listSuspended", "GET")
        self.assertEqual([one["identifier"] for one in listed["value"]], ["sleeper"])
        self.assertEqual(self.refused("sessions/nobody/suspend"), (404, "SessionNotFound"))
        self.assertEqual(self.refused("sessions/nobody/resume"), (404, "SessionNotFound"))
        self.server.kill()
        self.server.start()
        self.assertEqual(self.file("sleeper", "srv/notes"), "remember this", "its next request resumes it")
        self.assertEqual(self.calls("sleeper")["calls"], 2, f"its processes began anew, after {before}")
        cove.until("no session is suspended", lambda: self.manage("listSuspended", "GET")["count"] == 0)
        # once more, resumed by name; and one that is given up
        self.put("sleeper", "srv/more", "and this")
        self.manage("sessions/sleeper/suspend")
        self.assertEqual(self.manage("sessions/sleeper/resume")["identifier"], "sleeper")
        self.assertEqual((self.file("sleeper", "srv/notes"), self.file("sleeper", "srv/more")), ("remember this", "and this"))
        self.manage("sessions/sleeper/suspend")
        self.assertEqual(self.ask(f"{self.base()}/.management/stopSession?identifier=sleeper", "POST")[0], 200)
        self.assertIsNone(self.file("sleeper", "srv/notes"), "it was given up")
        self.nothing_is_left()

    def test_idle_sessions_are_suspended_by_themselves(self):
        self.make_pool("idle", body(4, 0, coveSuspend={"afterIdleSeconds": 10, "keepSeconds": 60}))
        self.put("idle-user", "srv/a", "kept", "idle")
        suspended = lambda: self.manage("listSuspended", "GET", pool="idle")
        cove.until("it is suspended", lambda: suspended()["count"] == 1, within_seconds=40)
        self.assertEqual(self.file("idle-user", "srv/a", "idle"), "kept")
        self.manage("sessions/idle-user/suspend", pool="idle")
        self.arm("DELETE", f"{POOLS}/idle")
        self.nothing_is_left()

    def test_kills_in_the_middle_leave_no_half(self):
        draw = random.Random(11)
        self.put("victim", "srv/big", bytes(40 << 20))
        self.put("victim", "srv/a", "kept")
        kept = []
        for kill in range(KILLS):
            path, send = (
                ("sessions/victim/snapshot", {"name": f"kill-{kill}"}) if kill % 2 else
                ("sessions/victim/fork", {"identifiers": [f"kill-{kill}-1", f"kill-{kill}-2"]})
            )  # fmt: skip
            with concurrent.futures.ThreadPoolExecutor(1) as one:
                asked = one.submit(self.ask, f"{self.base()}/.management/{path}", "POST", json.dumps(send))
                concurrent.futures.wait([asked], timeout=draw.uniform(0, 0.25))
                self.server.kill()
                try:
                    status = asked.result()[0]
                except OSError:
                    status = None
            self.server.start()
            if "name" in send and status == 201:
                kept.append(send["name"])
            self.assertEqual(self.file("victim", "srv/a"), "kept", "the source goes on")
            for name in send.get("identifiers", []):
                self.ask(f"{self.base()}/.management/stopSession?identifier={name}", "POST")
        listed = [one["name"] for one in self.manage("snapshots", "GET")["value"]]
        self.assertLessEqual(set(kept), set(listed), "what was told is kept")
        cove.until("only kept ones are there", lambda: set(self.folders()) == self.rows(), within_seconds=60)
        for name in listed:
            self.manage(f"snapshots/{name}", "DELETE", expect=204)
        self.tearDown()
        self.nothing_is_left()


PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
CRIU = pathlib.Path(os.environ.get("COVE_CRIU", "/var/cache/cove/criu"), "criu")


def why_no_memory():
    """Why memory cannot be kept here, as a part of what an answer says; None where it can be."""
    if not CRIU.exists():
        raise AssertionError(f"{CRIU} is missing: run scripts/criu {CRIU.parent}, or scripts/test, which does")
    told = subprocess.run([CRIU, "check"], capture_output=True, text=True, timeout=60)
    return None if told.returncode == 0 else "CRIU"


class Memory(ForkCase):
    """Forks go on where their source was, and each its own way from there."""

    config = cove.CONFIG + f'\n[sessions]\ncriu = "{CRIU}"\n'

    def forked(self, user, users):
        made = self.manage(f"sessions/{user}/fork", send={"identifiers": users})
        why = why_no_memory()
        if why is None:
            self.assertEqual((made["memory"], made["kept"]), (True, "filesAndMemory"), f"{made}\n{self.server.log(30)}")
            self.assertTrue(all(one["memory"] for one in made["sessions"]), made)
        else:
            self.assertEqual((made["memory"], made["kept"]), (False, "files"))
            self.assertIn(why, made["memoryReason"])
        return why is None

    def test_forks_go_on_where_the_source_was(self):
        self.put("counter", "srv/a", "kept")
        for _ in range(4):
            before = self.calls("counter")
        self.assertEqual(before["calls"], 5)
        users = ["counter-1", "counter-2", "counter-3"]
        is_kept = self.forked("counter", users)
        first = 6 if is_kept else 1
        status = self.told(f"{self.base()}/status?identifier=counter")[0]
        seen = {status["host"]}
        for number, user in enumerate(users):
            # each is asked once more than the one before it
            for turn in range(number + 1):
                self.assertEqual(self.calls(user)["calls"], first + turn, user)
            own = self.told(f"{self.base()}/status?identifier={user}")[0]
            seen.add(own["host"])
            for name in ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Uid", "ids"):
                self.assertEqual(own[name], status[name], f"{name} of {user}: it is kept in as its source is")
            self.assertEqual(own["unshare"], status["unshare"], "what the filter refuses it refuses still")
            self.assertEqual(self.file(user, "srv/a"), "kept")
            self.put(user, "srv/a", user)
        self.assertEqual(len(seen), 4, "each has a name of its own")
        self.assertEqual(self.calls("counter")["calls"], 7, "the source went on")
        self.assertEqual(self.file("counter", "srv/a"), "kept")
        # a command beside what was brought back, a port that is opened only now, and a fork of a fork
        line = [cove.BINARY, "session", "exec", "-n", "pool", "-g", "sessions", "--data-dir", str(self.server.data)]
        line += ["-i", "counter-1", "--", PYTHON, "-c", "print(open('/srv/a').read(), end='')"]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        self.assertEqual((done.returncode, done.stdout), (0, "counter-1"), done.stderr)
        self.assertEqual(self.ask(f"{self.base()}/listen?identifier=counter-1", "POST")[0], 200)
        before = self.calls("counter-3")["calls"]
        if self.forked("counter-3", ["again"]):
            self.assertEqual(self.calls("again")["calls"], before + 1)
        self.assertEqual(self.file("again", "srv/a"), "counter-3")

    def test_forks_outlive_the_server(self):
        self.calls("keeper")
        is_kept = self.forked("keeper", ["keeper-1", "keeper-2"])
        self.calls("keeper-1")
        self.server.kill()
        self.server.start()
        self.assertEqual(self.calls("keeper-1")["calls"], 3 if is_kept else 2)
        self.assertEqual(self.calls("keeper-2")["calls"], 2 if is_kept else 1)
        self.assertEqual(self.calls("keeper")["calls"], 2)
        self.tearDown()
        self.nothing_is_left()

    def test_kills_of_the_server_while_memory_is_kept(self):
        draw = random.Random(7)
        self.assertEqual(self.ask(f"{self.base()}/grow?mib=60&identifier=victim", "POST")[0], 200)
        count = 1
        for kill in range(4):
            send = json.dumps({"identifiers": [f"killed-{kill}"]})
            with concurrent.futures.ThreadPoolExecutor(1) as one:
                asked = one.submit(self.ask, f"{self.base()}/.management/sessions/victim/fork", "POST", send)
                concurrent.futures.wait([asked], timeout=draw.uniform(0.02, 0.5))
                self.server.kill()
                asked.exception()
            self.server.start()
            count += 1
            self.assertEqual(self.calls("victim")["calls"], count, "the source goes on where it was")
            self.ask(f"{self.base()}/.management/stopSession?identifier=killed-{kill}", "POST")
        self.tearDown()
        self.nothing_is_left()

    def test_memory_that_cannot_be_kept_leaves_the_files(self):
        """A large file that is open and deleted keeps memory from being kept."""
        self.put("odd-one", "srv/a", "kept")
        self.assertEqual(self.ask(f"{self.base()}/odd?identifier=odd-one", "POST")[0], 200)
        made = self.manage("sessions/odd-one/fork", send={"identifiers": ["odd-two"]})
        self.assertEqual((made["memory"], made["kept"]), (False, "files"))
        self.assertIn("CRIU", made["memoryReason"])
        self.assertEqual(self.file("odd-two", "srv/a"), "kept")
        self.assertEqual(self.calls("odd-two")["calls"], 2, "it began anew")
        self.assertEqual(self.calls("odd-one")["calls"], 3, "the source went on")


class Limits(ForkCase):
    """A server that keeps no more than 8 MiB."""

    config = cove.CONFIG + "\n[sessions]\nsnapshots_mib_max = 8\n"

    def test_what_is_too_large_is_refused_and_nothing_is_left(self):
        self.put("large", "srv/big", bytes(9 << 20))
        for path in ("sessions/large/fork", "sessions/large/suspend", "snapshot?identifier=large&name=big"):
            self.assertEqual(self.refused(path), (507, "InsufficientStorage"), path)
        self.assertEqual(len(self.file("large", "srv/big")), 9 << 20, "the session goes on")
        self.nothing_is_left()


INTERPRETERS = """
[api]
retry_after = 0

[controller]
provisioning_deadline = "300s"

[sessions]
ready_deadline = "300s"
"""


class Interpreter(ForkCase):
    """A session that runs Python, forked: what was uploaded is there, what one fork writes no other sees."""

    config = INTERPRETERS + f'criu = "{CRIU}"\n'

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cls.config))
        cls.arm("PUT", GROUP, {"location": "eastus"})
        cls.server.command("image", "build-interpreter", "python", within_seconds=1800)
        whole = pool_body(6, 0)
        for name in ("environmentId", "customContainerTemplate"):
            del whole["properties"][name]
        whole["properties"]["containerType"] = "PythonLTS"
        cls.make_pool("pool", whole)
        cls.token = cls.token_for("https://dynamicsessions.io")

    def run_code(self, user, code):
        send = json.dumps({"codeInputType": "inline", "executionType": "synchronous", "code": code})
        url = f"{self.base()}/executions?api-version=2025-10-02-preview&identifier={urllib.parse.quote(user)}"
        status, answer, _ = self.ask(url, "POST", send, headers={"Content-Type": "application/json"})
        told = json.loads(answer)
        self.assertEqual((status, told.get("status")), (200, "Succeeded"), answer[:800])
        return told["result"]["executionResult"]

    def upload(self, user, name, content):
        form = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n{content}\r\n--x--\r\n'
        url = f"{self.base()}/files?api-version=2025-10-02-preview&identifier={user}"
        status, answer, _ = self.ask(url, "POST", form, headers={"Content-Type": "multipart/form-data; boundary=x"})
        self.assertEqual(status, 200, answer[:500])

    def names(self, user):
        url = f"{self.base()}/files?api-version=2025-10-02-preview&identifier={urllib.parse.quote(user)}"
        _, answer, _ = self.ask(url)
        return sorted(one["name"] for one in json.loads(answer)["value"])

    def test_three_forks_of_a_session_with_an_uploaded_file(self):
        self.upload("coder", "data.csv", "1,2,3")
        self.run_code("coder", "x = 41; open('/mnt/data/made.txt', 'w').write('made')")
        status, answer, _ = self.ask(f"{self.base()}/sessions/coder/fork?count=3&memory=false", "POST")
        self.assertEqual(status, 200, f"{answer[:500]}\n{self.server.log(30)}")
        users = [one["identifier"] for one in json.loads(answer)["sessions"]]
        for number, user in enumerate(users):
            self.assertEqual(self.names(user), ["data.csv", "made.txt"])
            code = f"n = len(open('/mnt/data/data.csv').read()); open('/mnt/data/only-{number}', 'w').write('x'); [n, 'x' in globals()]"
            self.assertEqual(self.run_code(user, code), [5, False], "files are kept, variables are not")
        for number, user in enumerate(users):
            self.assertEqual(self.names(user), ["data.csv", "made.txt", f"only-{number}"])
        self.assertEqual(self.names("coder"), ["data.csv", "made.txt"])
        self.tearDown()
        self.nothing_is_left()

    def test_variables_go_on_in_forks(self):
        self.run_code("thinker", "import random; counter = 41; made = [random.random()]; counter")
        made = self.manage("sessions/thinker/fork", send={"identifiers": [f"thought-{one}" for one in range(3)]})
        is_kept = why_no_memory() is None
        self.assertEqual(made["memory"], is_kept, f"{made}\n{self.server.log(30)}")
        for number in range(3):
            for turn in range(number + 1):
                code = "counter = globals().get('counter', 0) + 1; counter"
                self.assertEqual(self.run_code(f"thought-{number}", code), (42 if is_kept else 1) + turn)
        self.assertEqual(self.run_code("thinker", "counter"), 41)
