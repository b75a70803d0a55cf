"""Executions of jobs while the server and the replicas are killed: each ends once, with the right status, and no line is lost.

    COVE_CHAOS_EXECUTIONS   how many executions; default 60
    COVE_CHAOS_SEED         which kills come when; default 1
"""

import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import re
import signal
import ssl
import time
import unittest
import urllib.parse

import cove
import images
from cove import SUBSCRIPTION

SHELL = "cove.test/shell:latest"
EXECUTIONS = int(os.environ.get("COVE_CHAOS_EXECUTIONS", "60"))
SEED = int(os.environ.get("COVE_CHAOS_SEED", "1"))
# The history keeps 100 of each outcome, so no job gets more.
PER_JOB = 100
RETRIES = 2
LINES = 100
VERSION = "api-version=2025-07-01"
GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/chaos"
ENVIRONMENT = f"{GROUP}/providers/Microsoft.App/managedEnvironments/env"
SCRIPT = (
    f'echo begin; i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo "line $i"; done; sleep 0.3; printf end'
)
ENDED = ("Succeeded", "Failed", "Stopped")


class Jobs(unittest.TestCase):
    def call(self, method, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        text = None if body is None else json.dumps(body)
        status, answer = self.server.call(method, f"{path}?{VERSION}", text, headers)
        self.assertLess(status, 300, f"{method} {path}: {answer}")
        return answer

    def settled(self, path):
        cove.until(f"{path} is there", lambda: self.call("GET", path)["properties"]["provisioningState"] == "Succeeded")

    def create(self):
        self.call("PUT", GROUP, {"location": "eastus"})
        self.call("PUT", ENVIRONMENT, {"location": "eastus", "properties": {"appLogsConfiguration": {"destination": "none"}}})
        self.settled(ENVIRONMENT)
        container = {
            "name": "main", "image": SHELL, "command": ["/srv/run"], "env": [{"name": "SCRIPT", "value": SCRIPT}],
            "resources": {"cpu": 0.25, "memory": "0.5Gi"},
        }  # fmt: skip
        configuration = {
            "triggerType": "Manual", "replicaTimeout": 120, "replicaRetryLimit": RETRIES,
            "manualTriggerConfig": {"parallelism": 1, "replicaCompletionCount": 1},
        }  # fmt: skip
        properties = {"environmentId": ENVIRONMENT, "configuration": configuration, "template": {"containers": [container]}}
        jobs = []
        for number in range(-(-EXECUTIONS // PER_JOB)):
            job = f"{GROUP}/providers/Microsoft.App/jobs/chaos{number}"
            self.call("PUT", job, {"location": "eastus", "properties": properties})
            self.settled(job)
            jobs.append(job)
        return jobs

    def executions(self, jobs):
        found = {}
        for job in jobs:
            path = f"{job}/executions"
            found.update({one["name"]: (job, one["properties"]) for one in self.call("GET", path)["value"]})
        return found

    def lines(self, job, execution, replica, token):
        """What a replica wrote."""
        endpoint = urllib.parse.urlsplit(replica["containers"][0]["logStreamEndpoint"])
        context = ssl.create_default_context(cafile=self.server.ca)
        connection = http.client.HTTPSConnection(self.server.api.removeprefix("https://"), context=context, timeout=60)
        try:
            path = f"{endpoint.path}?follow=false&output=text&tailLines=300"
            connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
            answer = connection.getresponse()
            text = answer.read().decode()
            self.assertEqual(answer.status, 200, text)
        finally:
            connection.close()
        return [line.split(" ", 1)[1].lstrip() for line in text.splitlines() if " " in line]

    def kill_replica(self, draw, names):
        """Kills the first process of a container of an execution; says whether there was one."""
        found = []
        for folder in pathlib.Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                variables = (folder / "environ").read_bytes().split(b"\0")
                status = (folder / "status").read_text()
            except OSError:
                continue
            if not re.search(r"^NSpid:.*\t1$", status, re.MULTILINE):
                continue
            name = next((v for v in variables if v.startswith(b"CONTAINER_APP_JOB_EXECUTION_NAME=")), b"=")
            if name.split(b"=", 1)[1].decode() in names:
                found.append(int(folder.name))
        if found:
            try:
                os.kill(draw.choice(sorted(found)), signal.SIGKILL)
            except ProcessLookupError:
                return 0
        return len(found)

    def test_every_execution_ends_once_with_the_right_status(self):
        draw = random.Random(SEED)
        self.server = self.enterContext(cove.Server())
        images.import_shell(self.server, SHELL)
        jobs = self.create()
        began = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            paths = [f"{jobs[number // PER_JOB]}/start" for number in range(EXECUTIONS)]
            names = {answer["name"] for answer in pool.map(lambda path: self.call("POST", path), paths)}
        print(f"accepted {EXECUTIONS} executions in {time.monotonic() - began:.2f} s", flush=True)
        self.assertEqual(len(names), EXECUTIONS)
        kills = servers = 0
        deadline = time.monotonic() + 120 + 3 * EXECUTIONS
        while True:
            found = self.executions(jobs)
            self.assertEqual(set(found), names, "none is forgotten, none is there twice")
            left = [name for name, (_, properties) in found.items() if properties["status"] not in ENDED]
            if not left:
                break
            self.assertLess(time.monotonic(), deadline, f"{len(left)} of {EXECUTIONS} do not end")
            if draw.random() < 0.5:
                servers += 1
                self.server.kill()
                self.kill_replica(draw, set(left))
                self.server.start()
            else:
                kills += sum(bool(self.kill_replica(draw, set(left))) for _ in range(5))
        print(f"{servers} servers and {kills} replicas were killed; {time.monotonic() - began:.1f} s in all", flush=True)
        self.check(found)

    def check(self, found):
        statuses = {}
        for name, (job, properties) in sorted(found.items()):
            statuses[properties["status"]] = statuses.get(properties["status"], 0) + 1
            succeeded, failed = properties["coveSucceeded"], properties["coveFailed"]
            wanted = (1, succeeded and failed <= RETRIES) if properties["status"] == "Succeeded" else (0, failed == RETRIES + 1)
            self.assertEqual((succeeded, bool(wanted[1])), (wanted[0], True), properties)
            replicas = self.call("GET", f"{job}/executions/{name}/replicas")["value"]
            states = [one["containers"][0] for one in properties["detailedStatus"]["replicas"]]
            # one that was being made when the server was killed has not run
            ran = [state for state in states if state["additionalInformation"] != "Interrupted"]
            self.assertEqual(len(ran), succeeded + failed, properties)
            codes = [state["code"] for state in ran]
            token = self.call("POST", f"{job}/getAuthToken")["properties"]["token"]
            whole = 0
            for replica in replicas:
                lines = self.lines(job, name, replica, token)
                self.assertLessEqual(lines.count("begin"), 1, f"{replica['name']} was started twice")
                whole += lines == ["begin", *(f"line {number}" for number in range(1, LINES + 1)), "end"]
            self.assertGreaterEqual(whole, codes.count(0), f"{name}: lines are missing: {lines[:5]} .. {lines[-5:]}")
        print(f"how they ended: {statuses}", flush=True)


if __name__ == "__main__":
    unittest.main()
