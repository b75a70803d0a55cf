"""Sessions that are virtual machines: Python and a container of one's own, files, kills of the server; and an OCI runtime.

Software emulates the processor where there is no KVM, so a machine takes seconds to start and each of them is used for much.
"""

import json
import os
import subprocess
import unittest
import urllib.parse

import cove
import python_image
import requests
from cove import SUBSCRIPTION, TENANT

GROUP = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/machines"
ENVIRONMENT = f"{GROUP}/providers/Microsoft.App/managedEnvironments/env"
POOLS = f"{GROUP}/providers/Microsoft.App/sessionPools"
VERSION = "api-version=2025-07-01"
AUDIENCE = "https://dynamicsessions.io"
IMAGE = "cove.test/session:1"
CONFIG = """
[api]
retry_after = 0

[controller]
provisioning_deadline = "900s"
drain_period = "2s"

[sessions]
ready_deadline = "600s"
"""


def interpreter(isolation, ready=0):
    return {
        "location": "eastus",
        "properties": {
            "poolManagementType": "Dynamic",
            "containerType": "PythonLTS",
            "coveIsolation": isolation,
            "scaleConfiguration": {"maxConcurrentSessions": 2, "readySessionInstances": ready},
            "dynamicPoolConfiguration": {
                "lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 3600}
            },
            "sessionNetworkConfiguration": {"status": "EgressDisabled"},
        },
    }


def custom(isolation, ready=0, containers=1):
    container = {"name": "main", "image": IMAGE, "resources": {"cpu": 0.25, "memory": "0.5Gi"}}
    return {
        "location": "eastus",
        "properties": {
            "environmentId": ENVIRONMENT,
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "coveIsolation": isolation,
            "customContainerTemplate": {
                "containers": [{**container, "name": f"c{number}"} for number in range(containers)],
                "ingress": {"targetPort": 80},
            },
            "scaleConfiguration": {"maxConcurrentSessions": 2, "readySessionInstances": ready},
            "dynamicPoolConfiguration": {
                "lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 3600}
            },
            "sessionNetworkConfiguration": {"status": "EgressDisabled"},
        },
    }


class Machines(unittest.TestCase):
    """One server whose guest was built before it started."""

    @classmethod
    def setUpClass(cls):
        line = [cove.BINARY, "image", "build-vm-guest", "-o", "json"]
        built = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900)
        if built.returncode != 0:
            raise AssertionError(f"{' '.join(line)}: exit {built.returncode}\n{built.stderr}\n{built.stdout}")
        cls.kernel = json.loads(built.stdout)["release"]
        cls.server = cls.enterClassContext(cove.Server(CONFIG))
        cls.arm("PUT", GROUP, {"location": "eastus"})
        body = {"location": "eastus", "properties": {"appLogsConfiguration": {"destination": "none"}}}
        cls.arm("PUT", ENVIRONMENT, body)
        there = lambda: cls.arm("GET", ENVIRONMENT)["properties"]["provisioningState"] == "Succeeded"  # noqa: E731
        cove.until("the environment is there", there, 180)
        cls.server.command("image", "build-interpreter", "python", within_seconds=1800)
        python_image.import_into(cls.server, IMAGE, main="session_app.py")
        form = urllib.parse.urlencode({
            "grant_type": "client_credentials", "client_id": "agent", "client_secret": "any", "scope": f"{AUDIENCE}/.default",
        })  # fmt: skip
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        status, answer = cls.server.call("POST", f"/{TENANT}/oauth2/v2.0/token", form, headers)
        if status != 200:
            raise AssertionError(f"no token: {status} {answer}")
        cls.http = cls.enterClassContext(requests.Session())
        cls.http.trust_env, cls.http.verify = False, cls.server.ca
        cls.http.headers["Authorization"] = f"Bearer {answer['access_token']}"

    @classmethod
    def put(cls, path, body):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        return cls.server.call("PUT", f"{path}?{VERSION}", json.dumps(body), headers)

    @classmethod
    def arm(cls, method, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        text = None if body is None else json.dumps(body)
        status, answer = cls.server.call(method, f"{path}?{VERSION}", text, headers)
        if status >= 300:
            raise AssertionError(f"{method} {path}: {status} {answer}")
        return answer

    def pool(self, name, body):
        """A pool that is there until the test ends."""
        self.arm("PUT", f"{POOLS}/{name}", body)
        self.addCleanup(self.arm, "DELETE", f"{POOLS}/{name}")
        seen = {}

        def has_settled():
            seen.update(self.arm("GET", f"{POOLS}/{name}")["properties"])
            return seen["provisioningState"] in ("Succeeded", "Failed")

        cove.until(f"{name} is settled", has_settled, within_seconds=900)
        self.assertEqual(seen["provisioningState"], "Succeeded", seen)
        return seen

    def ask(self, method, pool, path, identifier, expect=200, **more):
        base = f"{self.server.api}/subscriptions/{SUBSCRIPTION}/resourceGroups/machines/sessionPools/{pool}"
        parameters = {"api-version": "2025-10-02-preview", "identifier": identifier}
        answer = self.http.request(method, f"{base}/{path}", params=parameters, timeout=600, **more)
        self.assertEqual(answer.status_code, expect, f"{answer.text[:1000]}\n{self.server.log(30)}")
        return answer

    def run_code(self, pool, code, identifier="user-1"):
        body = {"codeInputType": "inline", "executionType": "synchronous", "code": code}
        ran = self.ask("POST", pool, "executions", identifier, json=body).json()
        self.assertEqual(ran["status"], "Succeeded", ran)
        return ran["result"]

    def events(self, pool):
        """Reasons and words of what the pool's system log tells."""
        line = [cove.BINARY, "session", "logs", "-n", pool, "-g", "machines", "--data-dir", str(self.server.data)]
        line += ["--format", "json", "--type", "system", "--tail", "300"]
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [(event["Reason"], event["Msg"]) for event in map(json.loads, done.stdout.splitlines())]

    def copies(self, pool):
        return [words for reason, words in self.events(pool) if reason == "MachineRestored"]

    def test_python_runs_on_a_kernel_of_its_own_and_outlives_the_server(self):
        shown = self.pool("python", interpreter("vm", ready=1))
        self.assertEqual(shown["coveIsolation"], "vm")
        release = self.run_code("python", "import os, platform; kept = 42; platform.release()")["executionResult"]
        self.assertEqual(release, self.kernel)
        self.assertNotEqual(release, os.uname().release)
        shown = self.run_code("python", "import numpy; int(numpy.arange(10).sum())")
        self.assertEqual(shown["executionResult"], 45)
        content = os.urandom(1 << 20)
        self.ask("POST", "python", "files", "user-1", files={"file": ("a.bin", content)})
        self.assertEqual(self.ask("GET", "python", "files/a.bin/content", "user-1").content, content)
        size = self.run_code("python", "os.path.getsize('/mnt/data/a.bin')")["executionResult"]
        self.assertEqual(size, len(content))
        # the one that waits now is a copy of what the first was before anybody had it
        cove.until("another waits", lambda: len(self.copies("python")) == 1, within_seconds=900)
        self.assertIn("MachineSaved", [reason for reason, _ in self.events("python")])
        theirs = "import os, platform; [platform.release(), 'kept' in globals(), os.listdir('/mnt/data'), os.uname().nodename]"
        release, kept, files, node = self.run_code("python", theirs, "user-2")["executionResult"]
        self.assertEqual((release, kept, files), (self.kernel, False, []))
        self.assertNotEqual(node, self.run_code("python", "os.uname().nodename")["executionResult"])
        self.run_code("python", "kept = 7; open('/mnt/data/b.txt', 'w').write('second')", "user-2")
        self.server.kill()
        self.server.start()
        self.assertEqual(self.run_code("python", "kept")["executionResult"], 42, "the machine went on")
        self.assertEqual(self.run_code("python", "kept", "user-2")["executionResult"], 7, "the copy went on")
        self.assertEqual(self.run_code("python", "os.listdir('/mnt/data')", "user-2")["executionResult"], ["b.txt"])
        # there is room for a third when the second is gone; it is a copy too, though the server is another
        self.ask("POST", "python", ".management/stopSession", "user-2")
        cove.until("a third waits", lambda: len(self.copies("python")) == 2, within_seconds=900)
        self.assertEqual(self.run_code("python", "'kept' in globals()", "user-3")["executionResult"], False)
        self.assertEqual(self.ask("GET", "python", "files/a.bin/content", "user-1").content, content)

    def test_a_container_of_ones_own_waits_frozen_and_is_asked(self):
        self.pool("own", custom("vm", ready=1))
        told = self.ask("POST", "own", "echo/a", "user-2", data=b"12345").json()
        self.assertEqual((told["method"], told["size"]), ("POST", 5), told)

    def test_an_oci_runtime_of_the_host(self):
        shown = self.pool("crun", custom("handler:crun"))
        self.assertEqual(shown["coveIsolation"], "crun")
        told = self.ask("POST", "crun", "echo/a", "user-3", data=b"12345").json()
        self.assertEqual((told["method"], told["size"]), ("POST", 5), told)

    def test_what_cannot_be_had_is_refused(self):
        for body in (custom("handler:none-of-this-name"), custom("vm", containers=2)):
            status, answer = self.put(f"{POOLS}/refused", body)
            self.assertEqual((status, answer["error"]["code"]), (400, "SessionIsolationUnavailable"), answer)


if __name__ == "__main__":
    unittest.main()
