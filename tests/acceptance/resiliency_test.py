"""Resiliency policies and time limits, set with `az`, against an app that fails on purpose.

`az containerapp resiliency` comes with az's extension, which no package index has; `az rest` sends what it sends.
"""

import concurrent.futures
import http.client
import itertools
import json
import subprocess
import unittest

import cove
import python_image
from az_test import ServerCase

IMAGE = "cove.local/python:latest"
GROUP, ENVIRONMENT, APP = "rg", "env", "flaky"
ID = f"/subscriptions/{cove.SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps/{APP}"
POLICY = f"{ID}/resiliencyPolicies/policy"
# what `--recommended` sends
RECOMMENDED = {
    "timeoutPolicy": {"responseTimeoutInSeconds": 60, "connectionTimeoutInSeconds": 5},
    "httpRetryPolicy": {
        "maxRetries": 3,
        "retryBackOff": {"initialDelayInMilliseconds": 1000, "maxIntervalInMilliseconds": 10000},
        "matches": {"errors": ["5xx"]},
    },
    "tcpRetryPolicy": {"maxConnectAttempts": 3},
    "circuitBreakerPolicy": {"consecutiveErrors": 5, "intervalInSeconds": 10, "maxEjectionPercent": 100},
}
PROBES = itertools.count()
QUICK = {"initialDelayInMilliseconds": 10, "maxIntervalInMilliseconds": 20}


class Resiliency(ServerCase):
    """One app; every test has its own policy and its own keys."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        python_image.import_into(cls.server, IMAGE)
        cls.az("group", "create", "-n", GROUP, "-l", "eastus")
        environment = cls.az(
            "containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus", "--logs-destination", "none"
        )
        cls.host = f"{APP}.{environment['properties']['defaultDomain']}"
        cls.az(
            "containerapp", "create", "-n", APP, "-g", GROUP, "--environment", ENVIRONMENT, "--image", IMAGE,
            "--ingress", "external", "--target-port", "8080", "--min-replicas", "1", "--max-replicas", "1",
            "--args", "flaky", "8080",
        )  # fmt: skip

    def rest(self, method, path, properties=None, version="2024-02-02-preview"):
        arguments = ["rest", "--method", method, "--url", f"{self.server.api}{path}?api-version={version}",
                     "--resource", f"{self.server.api}/"]  # fmt: skip
        if properties is not None:
            arguments += ["--body", json.dumps({"properties": properties})]
        return self.az(*arguments)

    def policy(self, errors=(), **parts):
        """Sets a policy for one test and waits until it holds: 418 tells, which is always worth a retry."""
        matches = {"errors": ["retriable-status-codes", *errors], "httpStatusCodes": [418]}
        self.rest("put", POLICY, {"httpRetryPolicy": {"maxRetries": 3, "retryBackOff": QUICK, "matches": matches}, **parts})
        self.addCleanup(self.is_retried, 418)
        self.addCleanup(self.rest, "delete", POLICY)
        self.is_retried(200)

    def is_retried(self, expected):
        """The controller reads a policy a moment after it was written."""
        cove.until("the policy", lambda: self.ask(f"/probe{next(PROBES)}/418/1")[0] == expected)

    def ask(self, path, body=None, headers=None):
        """Status, answer and reason."""
        connection = http.client.HTTPConnection(self.server.http.removeprefix("http://"), timeout=60)
        try:
            method = "GET" if body is None else "POST"
            connection.request(method, path, body=body, headers={"Host": self.host, **(headers or {})})
            answer = connection.getresponse()
            text = answer.read().decode(errors="replace")
            return answer.status, json.loads(text) if text.startswith("{") else text, answer.getheader("x-cove-reason")
        finally:
            connection.close()

    def test_life(self):
        made = self.rest("put", POLICY, RECOMMENDED)
        self.assertEqual(made["properties"].pop("provisioningState"), "Succeeded")
        self.assertEqual(made["properties"], RECOMMENDED, "as it was given, and nothing is without effect")
        self.assertEqual(made["type"], "Microsoft.App/containerApps/resiliencyPolicies")
        changed = self.rest("patch", POLICY, {"timeoutPolicy": {"responseTimeoutInSeconds": 20}})
        self.assertEqual(changed["properties"]["timeoutPolicy"], {"responseTimeoutInSeconds": 20, "connectionTimeoutInSeconds": 5})
        self.assertEqual(self.rest("get", POLICY)["properties"]["httpRetryPolicy"], RECOMMENDED["httpRetryPolicy"])
        listed = self.rest("get", f"{ID}/resiliencyPolicies")
        self.assertEqual([policy["name"] for policy in listed["value"]], ["policy"])
        second = self.az.refused("rest", "--method", "put", "--body", "{}", "--resource", f"{self.server.api}/", "--url",
                                 f"{self.server.api}{ID}/resiliencyPolicies/other?api-version=2024-02-02-preview")  # fmt: skip
        self.assertIn("ResiliencyPolicyExists", second)
        self.rest("delete", POLICY)
        self.assertEqual(self.rest("get", f"{ID}/resiliencyPolicies")["value"], [])

    def test_command_line(self):
        """`cove containerapp resiliency` has the flags of az's extension."""

        def policy(verb, *arguments):
            line = [cove.BINARY, "containerapp", "resiliency", verb, "-g", GROUP, "--container-app-name", APP, *arguments,
                    "--data-dir", str(self.server.data), "--output", "json"]  # fmt: skip
            done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
            self.assertEqual(done.returncode, 0, done.stderr)
            return json.loads(done.stdout) if done.stdout.strip() else None

        made = policy("create", "-n", "policy", "--recommended", "--timeout", "20")
        self.addCleanup(self.rest, "delete", POLICY)
        self.assertEqual(made["properties"]["timeoutPolicy"], {"responseTimeoutInSeconds": 20, "connectionTimeoutInSeconds": 5})
        policy("update", "-n", "policy", "--http-errors", "retriable-status-codes", "--http-codes", "418", "503",
               "--http-delay", "10", "--cb-max-ejection", "50")  # fmt: skip
        shown = policy("show", "-n", "policy")["properties"]
        matches = {"errors": ["retriable-status-codes"], "httpStatusCodes": [418, 503]}
        self.assertEqual(shown["httpRetryPolicy"]["matches"], matches)
        self.assertEqual((shown["httpRetryPolicy"]["maxRetries"], shown["circuitBreakerPolicy"]["maxEjectionPercent"]), (3, 50))
        self.is_retried(200)
        self.assertEqual([found["name"] for found in policy("list")], ["policy"])
        policy("delete", "-n", "policy", "--yes")
        self.assertEqual(policy("list"), [])

    def test_retries(self):
        self.assertEqual(self.ask("/before/503/1")[0], 503)
        self.policy(["5xx", "reset"])
        status, answer, _ = self.ask("/twice/503/2", body="hello " * 100)
        self.assertEqual((status, answer), (200, {"number": 3, "told": "hello " * 100}))
        self.assertEqual(self.ask("/drops/drop/2")[:2], (200, {"number": 3, "told": ""}))
        self.assertEqual(self.ask("/always/500/99")[:2], (500, {"number": 4, "told": ""}), "the app's last answer")
        self.assertEqual(self.ask("/other/404/1")[0], 404)
        # larger than what is kept
        self.assertEqual(self.ask("/large/503/1", body="x" * 100_000)[0], 503)

    def test_timeout_of_a_try(self):
        self.policy(timeoutPolicy={"responseTimeoutInSeconds": 1, "connectionTimeoutInSeconds": 2})
        # without the policy it would take a minute
        self.assertEqual(self.ask("/hang/hang/1")[::2], (504, "upstream-timeout"))

    def test_circuit_breaker(self):
        self.policy(circuitBreakerPolicy={"consecutiveErrors": 3, "intervalInSeconds": 30, "maxEjectionPercent": 100})
        for _ in range(3):
            self.assertEqual(self.ask("/broken/500/3")[::2], (500, None))
        self.assertEqual(self.ask("/fine/200/0")[::2], (503, "replicas-ejected"), "whatever is asked")
        cove.until("it is closed", lambda: self.ask("/fine/200/0")[0] == 200)
        code, out, error = self.az.run("containerapp", "logs", "show", "-n", APP, "-g", GROUP, "--type", "system", "--tail", "50")
        self.assertEqual(code, 0, error)
        self.assertIn("failed 3 times in a row; it gets no requests for 30 s.", out)

    def test_pool(self):
        self.policy(
            httpConnectionPool={"http1MaxPendingRequests": 2, "http2MaxRequests": 2},
            timeoutPolicy={"responseTimeoutInSeconds": 15, "connectionTimeoutInSeconds": 3},
        )
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            answers = list(pool.map(lambda number: self.ask(f"/pool{number}/hang/1")[::2], range(6)))
        self.assertEqual(answers.count((503, "pool-overflow")), 4, answers)
        self.assertEqual(answers.count((504, "upstream-timeout")), 2, answers)

    def test_limits(self):
        def limits():
            return self.az("containerapp", "show", "-n", APP, "-g", GROUP)["properties"]["configuration"]["ingress"][
                "coveEffectiveLimits"
            ]

        env = ("-n", ENVIRONMENT, "-g", GROUP)
        self.az("containerapp", "env", "premium-ingress", "add", *env, "--workload-profile-name", "Consumption",
                "--request-idle-timeout", "10", "--header-count-limit", "20", "--termination-grace-period", "1")  # fmt: skip
        shown = limits()
        self.assertEqual((shown["requestTimeoutSeconds"], shown["headerCountLimit"]), (600, 20))
        many = {f"x-{number}": "1" for number in range(30)}
        refused = cove.until("fewer fields", lambda: (a := self.ask("/few/200/0", headers=many))[0] == 431 and a)
        self.assertEqual(refused[2], "too-many-headers")
        self.az("containerapp", "env", "premium-ingress", "remove", *env, "--yes")
        cove.until("as before", lambda: self.ask("/few/200/0", headers=many)[0] == 200)
        self.assertEqual(limits()["requestTimeoutSeconds"], 240)

        own = {"coveRequestTimeoutSeconds": 2, "coveRequestBodyMaxBytes": 1000}
        self.rest("patch", ID, {"configuration": {"ingress": own}}, version="2025-07-01")
        cove.until("a small body", lambda: self.ask("/body/200/0", body="x" * 1001)[::2] == (413, "request-body-too-large"))
        self.assertEqual(self.ask("/body/200/0", body="x" * 1000)[0], 200)
        self.assertEqual(self.ask("/late/hang/1")[::2], (504, "upstream-timeout"))
        self.assertEqual(limits()["requestTimeoutSeconds"], 2)
        self.rest("patch", ID, {"configuration": {"ingress": dict.fromkeys(own)}}, version="2025-07-01")
        cove.until("any body", lambda: self.ask("/body/200/0", body="x" * 1001)[0] == 200)


if __name__ == "__main__":
    unittest.main()
