"""What the ingress tells of requests: rows of the access log, metrics, latency, and the reasons of Cove's own answers."""

import http.client
import json
import os
import pathlib
import ssl
import subprocess

import cove
from az_test import QUICKSTART, Following, ServerCase

GROUP, ENVIRONMENT, APP = "rg", "env", "web"
REASONS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "reasons"


class Access(ServerCase):
    """One app at zero, created and changed with `az`, asked over the ingress."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.az("group", "create", "-n", GROUP, "-l", "eastus")
        cls.az("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus", "--logs-destination", "none")
        cls.app = cls.az(
            "containerapp", "create", "-n", APP, "-g", GROUP, "--environment", ENVIRONMENT, "--image", QUICKSTART,
            "--ingress", "external", "--target-port", "80", "--min-replicas", "0", "--cpu", "0.25", "--memory", "0.5Gi",
        )  # fmt: skip
        cls.host = cls.app["properties"]["configuration"]["ingress"]["fqdn"]

    def ask(self, path):
        """The text of one of the server's own pages."""
        context = ssl.create_default_context(cafile=self.server.ca)
        connection = http.client.HTTPSConnection(self.server.api.removeprefix("https://"), context=context, timeout=60)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            text = answer.read().decode()
            self.assertEqual(answer.status, 200, text)
            return text
        finally:
            connection.close()

    def all_rows(self):
        return [json.loads(line) for line in self.ask("/cove/v1/http-logs?tailLines=300").splitlines()]

    def command(self, *more):
        """`cove containerapp logs show --type http` for the app."""
        return [cove.BINARY, "containerapp", "logs", "show", "--type", "http", "-n", APP, "-g", GROUP, "--format", "json",
                "--data-dir", str(self.server.data), *more]  # fmt: skip

    def rows(self, *more):
        done = subprocess.run(
            self.command("--tail", "300", *more), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
        )
        self.assertEqual(done.returncode, 0, done.stderr)
        return [json.loads(line) for line in done.stdout.splitlines()]

    def row(self, path):
        """The row of the one request for a path; it is written within a moment of the request's end."""
        def find():
            return [row for row in self.all_rows() if row["Path"] == path]

        cove.until(f"the row of {path}", find)
        self.assertEqual(len(find()), 1, path)
        return find()[0]

    def metric(self, line):
        """The value of one series."""
        text = self.ask("/cove/v1/metrics")
        values = [it.removeprefix(line).strip() for it in text.splitlines() if it.startswith(line + " ")]
        self.assertEqual(len(values), 1, f"{line}\n{text}")
        return float(values[0])

    def test_rows_metrics_and_reasons(self):
        # the first one wakes the app, and is found again by its id
        trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
        headers = {"x-request-id": "wake-1", "traceparent": trace, "user-agent": "test/1"}
        self.assertEqual(self.server.request(self.host, "/healthz?token=secret", headers)[0], 200)
        row = self.row("/healthz")
        self.assertEqual(
            {name: row[name] for name in ("Method", "Authority", "StatusCode", "Protocol", "UserAgent", "RequestId", "BytesSent")},
            {"Method": "GET", "Authority": self.host, "StatusCode": 200, "Protocol": "HTTP/1.1", "UserAgent": "test/1",
             "RequestId": "wake-1", "BytesSent": 3},
        )  # fmt: skip
        revision = self.app["properties"]["latestRevisionName"]
        self.assertEqual((row["ContainerAppName"], row["RevisionName"], row["EnvironmentName"]), (APP, revision, ENVIRONMENT))
        self.assertTrue(row["ReplicaName"].startswith(revision), row)
        self.assertEqual((row["ResponseFlags"], row["ResponseCodeDetails"]), ("-", "via_upstream"))
        self.assertEqual((row["UpstreamRequestAttemptCount"], row["CoveTraceId"]), (1, trace.split("-")[1]))
        self.assertEqual(row["XForwardedFor"], "127.0.0.1")
        self.assertTrue(0 < row["CoveWaitMicros"] <= row["CoveFirstByteMicros"] <= row["CoveDurationMicros"], row)

        # the app's own error, and a body
        self.assertEqual(self.server.request(self.host, "/status?code=503")[0], 503)
        self.assertEqual(self.row("/status")["CoveReason"], "")
        self.assertEqual([row["Path"] for row in self.rows()], ["/healthz", "/status"])
        self.assertEqual(self.rows("--revision", revision), self.rows())
        self.assertEqual(self.rows("--revision", "web--none"), [])

        # an answer of Cove itself: the same reason in the header, the row, the metrics and a page
        status, text, headers = self.server.request("nobody." + self.host.split(".", 1)[1], "/nobody")
        self.assertEqual((status, headers["x-cove-reason"]), (404, "unknown-host"))
        self.assertEqual(json.loads(text)["error"]["code"], "unknown-host")
        self.assertRegex(headers["x-request-id"], r"^[0-9a-f-]{36}$")
        self.assertEqual(self.row("/nobody")["CoveReason"], "unknown-host")
        self.assertTrue((REASONS / "unknown-host.md").is_file())
        self.assertEqual(self.metric('cove_ingress_reasons_total{reason="unknown-host"}'), 1)

        labels = f'app="{APP}",resource_group="{GROUP}",revision="{revision}"'
        self.assertEqual(self.metric(f'cove_ingress_requests_total{{{labels},status_class="2xx"}}'), 1)
        self.assertEqual(self.metric(f'cove_ingress_requests_total{{{labels},status_class="5xx"}}'), 1)
        self.assertEqual(self.metric(f"cove_ingress_request_duration_seconds_count{{{labels}}}"), 2)
        self.assertEqual(self.metric(f"cove_ingress_open_requests{{{labels}}}"), 0)

        stats = self.server.command("ingress", "stats", APP)
        self.assertEqual([one["revision"] for one in stats["value"]], [revision])
        self.assertEqual((stats["value"][0]["requests"], stats["value"][0]["recent"]["count"]), (2, 2))
        self.assertGreater(stats["value"][0]["recent"]["p99Us"], 0)

        # who follows sees the next one; the app turns its rows off; a restarted server still has the old ones
        with Following(self.command("--follow", "--tail", "0"), dict(os.environ)) as following:
            # nothing says when it listens: one of the requests comes after that
            cove.until("a request that is seen", lambda: self.server.get(self.host, "/echo")[0] and self.seen(following))
        path = f"{self.app['id']}?api-version=2025-07-01"
        self.az("rest", "--method", "patch", "--url", f"{self.server.api}{path}", "--resource", f"{self.server.api}/",
                "--body", json.dumps({"properties": {"configuration": {"ingress": {"coveAccessLog": "off"}}}}))  # fmt: skip
        shown = self.az("containerapp", "show", "-n", APP, "-g", GROUP)
        self.assertEqual(shown["properties"]["configuration"]["ingress"]["coveAccessLog"], "off")
        cove.until("the change to hold", self.is_quiet)
        self.server.stop()
        self.server.start()
        self.assertEqual(self.row("/healthz")["RequestId"], "wake-1")

    def seen(self, following):
        try:
            return following.expect('"/echo"', within_seconds=1)
        except AssertionError as error:
            if "ended before" in str(error):
                raise
            return None

    def is_quiet(self):
        """Whether a request leaves no row: one that was made after it has its row, and it has none."""
        self.asked = getattr(self, "asked", 0) + 1
        quiet, mark = f"/quiet-{self.asked}", f"/mark-{self.asked}"
        self.server.get(self.host, quiet)
        self.server.get("nobody", mark)
        self.row(mark)
        return quiet not in [row["Path"] for row in self.all_rows()]
