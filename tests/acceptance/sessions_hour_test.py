"""A thousand sessions over an hour of virtual time, with real containers, while the server is killed twenty times.

Each session that nobody stops ends when its cool-down is over, to the second: 300 s after its last request, or after the start of
the server that took it over where that is later. What the machine has of processes, namespaces, mounts, control groups, interfaces,
rules, files and disk is counted before and after.
"""

import collections
import concurrent.futures
import datetime
import http.client
import json
import os
import pathlib
import random
import re
import sqlite3
import subprocess
import unittest

import cove
from az_test import SAMPLE
from sessions_test import AUDIENCE, ENVIRONMENT, GROUP, SessionCase, cgroup_of, count_kernel, pool_body

SESSIONS = int(os.environ.get("COVE_HOUR_SESSIONS", "1000"))
STEP_SECONDS = 18
STEPS = 3600 // STEP_SECONDS
COOL_DOWN_SECONDS = 300
# far enough apart that most sessions end by their own time and not by that of a server's start
KILLS_AT = {20: 4, 60: 4, 100: 4, 140: 4, 180: 4}
READY = {"shut": 4, "open": 1}
CONFIG = cove.CONFIG + "\n[capacity]\ncpu_overcommit = 1000\nmemory_overcommit = 1000\n"
ENDED = re.compile(r"Session '([0-9a-f-]+)' of pool '\w+' ended \((\w+)\)")


def files_below(folder):
    """The folders and files there, sessions' names left out, and how many bytes they take on disk."""
    names, size = [], 0
    for root, folders, files in os.walk(folder):
        # a session may be frozen before it has printed anything
        is_console = folder.name == "console" and root != str(folder)
        for name in [*folders, *(file for file in files if not is_console)]:
            path = os.path.join(root, name)
            try:
                size += os.lstat(path).st_blocks * 512
            except FileNotFoundError:
                continue
            names.append(re.sub(r"(shut|open)--[a-z0-9-]+", "SESSION", os.path.relpath(path, folder.parent)))
    return names, size


def count_all(server):
    """What a server has of this machine, by kind."""
    group = cgroup_of(server)
    name = group.removeprefix("cove-")
    helpers, namespaces = 0, collections.defaultdict(set)
    for folder in pathlib.Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if str(server.data).encode() not in (folder / "cmdline").read_bytes() and f"/{group}/" not in (
                folder / "cgroup"
            ).read_text():
                continue
            helpers += 1
            for kind in ("cgroup", "ipc", "mnt", "net", "pid", "user", "uts"):
                namespaces[kind].add(os.readlink(folder / "ns" / kind))
        except OSError:
            continue
    links = [entry.name for entry in pathlib.Path("/sys/class/net").iterdir()]
    rules = subprocess.run(["nft", "list", "table", "inet", f"cove_{name}"], capture_output=True, text=True, check=True)
    found = {path.name: files_below(path) for path in server.data.iterdir() if path.is_dir()}
    # what sessions printed stays, as lines of databases, which are bounded by themselves
    size = sum(size for name, (_, size) in found.items() if name not in ("logs", "monitor"))
    return {
        **count_kernel(server),
        "helpers": helpers,
        **{f"{kind} namespaces": len(found) for kind, found in sorted(namespaces.items())},
        "named namespaces": len(list(pathlib.Path(f"/run/cove/{name}/netns").iterdir())),
        "interfaces": len([link for link in links if link.startswith((f"v{name}", f"cv{name}"))]),
        "rules": rules.stdout,
        "files": collections.Counter(name for names, _ in found.values() for name in names),
        "MiB": size / (1 << 20),
    }


class Hour(SessionCase):
    maxDiff = None

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(CONFIG, ["--clock", "virtual=2026-03-02T00:00:00Z"]))
        cls.arm("PUT", GROUP, {"location": "eastus"})
        body = {"location": "eastus", "properties": {"appLogsConfiguration": {"destination": "none"}}}
        cls.arm("PUT", ENVIRONMENT, body)
        cls.settle(ENVIRONMENT)
        for name, egress in (("shut", "EgressDisabled"), ("open", "EgressEnabled")):
            body = pool_body(400, READY[name], sessionNetworkConfiguration={"status": egress})
            body["properties"]["customContainerTemplate"]["containers"][0]["image"] = SAMPLE
            cls.make_pool(name, body)
        cls.token = cls.token_for(AUDIENCE)

    def tearDown(self):
        pass  # nothing is left, which is what the test shows

    def rows(self):
        with sqlite3.connect(f"file:{self.server.data}/cove.db?mode=ro", uri=True) as db:
            return [json.loads(doc) for (doc,) in db.execute("SELECT doc FROM sessions")]

    def at_rest(self):
        def rests():
            rows = self.rows()
            told = {row["replica"] for row in rows} == set(os.listdir(self.server.data / "console"))
            return told and len(rows) == sum(READY.values()) and all(row["identifier"] is None for row in rows)

        cove.until("only the ready sessions are left", rests, within_seconds=120)

    def advance(self, seconds):
        """Moves the clock; gives when each session ended for want of requests."""
        self.now += seconds
        target, events, is_there = json.dumps({"to": f"{self.time(self.now)}Z"}), [], False
        while not is_there:
            status, moved = self.server.call(
                "POST", "/cove/v1/clock/advance", target, {"content-type": "application/json"}
            )
            self.assertEqual(status, 200, moved)
            self.assertEqual((moved["leftOut"], moved["unsettled"]), (0, []), self.server.log())
            events += moved["events"]
            is_there = moved["isDone"]
        ended = {}
        for event in events:
            told = ENDED.search(event["message"])
            if told and told[2] != "Surplus":
                self.assertEqual(told[2], "CooledDown", event)
                at = datetime.datetime.fromisoformat(event["at"]) - self.began
                self.assertNotIn(told[1], ended, "a session ends once")
                ended[told[1]] = at.total_seconds()
        return ended

    def use(self, user):
        """One request of an identifier; which session answered."""
        pool = "open" if user % 10 == 9 else "shut"
        status, content, seen = self.ask(f"{self.base(pool)}/healthz?identifier=user-{user:04}")
        if status != 200:
            mine = [row for row in self.rows() if row["identifier"] == f"user-{user:04}"]
            self.fail(f"{user}, which had {self.live.get(user)}: {status} {content[:300]}\n{mine}\n{self.server.log(30)}")
        return seen["x-ms-session-guid"]

    def used(self, user, guid):
        """Notes a request that was answered."""
        known = self.live.get(user)
        if known is None:
            self.assertNotIn(guid, self.users, "a session is given to one identifier only")
            self.users[guid] = user
        else:
            self.assertEqual(known, guid, "an identifier keeps its session")
        self.live[user] = guid
        self.due[guid] = self.now + COOL_DOWN_SECONDS

    def kill_while_allocating(self, users):
        """The server is killed while these ask for sessions; whoever had an answer keeps what it told."""
        answers = {}
        with concurrent.futures.ThreadPoolExecutor(len(users)) as crowd:
            asked = {user: crowd.submit(self.use, user) for user in users}
            concurrent.futures.wait(asked.values(), timeout=self.draw.uniform(0, 0.1))
            self.server.kill()
            for user, one in asked.items():
                try:
                    answers[user] = one.result()
                except (OSError, http.client.HTTPException):
                    continue
        self.server.start()
        status, clock = self.server.call("GET", "/cove/v1/clock")
        self.assertEqual((status, clock["now"][:19]), (200, self.time(self.now)), "time stood still")
        for guid in self.live.values():
            self.due[guid] = self.now + COOL_DOWN_SECONDS
        for user, guid in answers.items():
            self.used(user, guid)
        for user in users:
            self.used(user, self.use(user))

    def time(self, second):
        return f"{self.began + datetime.timedelta(seconds=second):%Y-%m-%dT%H:%M:%S}"

    def end(self, ended):
        """Checks who ended while the clock moved, and when."""
        over = {guid: at for guid, at in self.due.items() if at <= self.now}
        self.assertEqual(ended, over, "each to the second, none too early, none too late")
        for guid in over:
            del self.due[guid], self.live[self.users[guid]]

    def test_a_thousand_sessions_and_twenty_kills(self):
        self.began = datetime.datetime.fromisoformat(self.server.command("clock", "show")["now"])
        self.now, self.draw = 0, random.Random(11)
        # identifiers' sessions, sessions' identifiers for good, and when each session is to end
        self.live, self.users, self.due = {}, {}, {}
        self.at_rest()
        self.advance(2)
        before = cove.until("what there is stands still", self.still)
        self.assertEqual(before["net namespaces"], sum(READY.values()) + 1, before)
        most, next_user, kills = 0, 0, 0
        for step in range(STEPS):
            share = SESSIONS * (step + 1) // STEPS
            for _ in range(KILLS_AT.get(step, 0)):
                users = list(range(next_user, min(next_user + 2, share)))
                next_user += len(users)
                self.kill_while_allocating(users + self.some())
                kills += 1
            for user in range(next_user, share):
                self.used(user, self.use(user))
            next_user = max(next_user, share)
            # some are used again: their time begins anew
            for user in self.some():
                self.used(user, self.use(user))
            most = max(most, len(self.live))
            self.end(self.advance(STEP_SECONDS))
        self.assertEqual((len(self.users), kills), (SESSIONS, sum(KILLS_AT.values())))
        self.end(self.advance(COOL_DOWN_SECONDS))
        self.assertEqual(self.live, {})
        self.at_rest()
        try:
            cove.until("nothing is left over", lambda: self.is_as(before), within_seconds=60)
        except AssertionError:
            self.fail(f"before and after: {self.difference}")
        before.update(rules=len(before["rules"].splitlines()), files=before["files"].total(), MiB=round(before["MiB"]))
        print(f"\nat most {most} at once; before and after: {before}")

    def some(self):
        """One of the identifiers that have a session, if there is any."""
        return self.draw.sample(sorted(self.live), min(1, len(self.live)))

    def still(self):
        """What there is, once it is what it was when it was asked before: spare networks are made in the background."""
        before, self.counted = getattr(self, "counted", None), count_all(self.server)
        return self.counted if before is not None and self.differing(before, self.counted) == {} else None

    def differing(self, before, after):
        """What is not the same. What the ready sessions take on disk differs by some blocks."""
        is_other = lambda kind: abs(after[kind] - before[kind]) > 1 if kind == "MiB" else after[kind] != before[kind]
        return {kind: (count, after[kind]) for kind, count in before.items() if is_other(kind)}

    def is_as(self, before):
        """Whether everything is as before; the difference is shown when it stays."""
        after = count_all(self.server)
        self.difference = self.differing(before, after)
        if "files" in self.difference:
            self.difference["files"] = (before["files"] - after["files"], after["files"] - before["files"])
        return not self.difference


if __name__ == "__main__":
    unittest.main()
