"""Scheduled jobs on a virtual clock, over a night in which clocks are set forward and the server is killed again and again.

Each tick has one execution: none is lost over the kills, none comes twice, and what comes while nobody looks follows the job's
policy.
"""

import json
import unittest

import cove
import python_image

GROUP, ENVIRONMENT = "rg", "env"
IMAGE = "cove.local/job-workers:latest"
API = "api-version=2025-07-01"
BASE = f"/subscriptions/{cove.SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App"


class Schedules(unittest.TestCase):
    maxDiff = None

    def put(self, name, schedule):
        body = {
            "location": "eastus",
            "properties": {
                "environmentId": f"{BASE}/managedEnvironments/{ENVIRONMENT}",
                "configuration": {
                    # the clock is not the machine's: a day passes while a container starts
                    "triggerType": "Schedule", "replicaTimeout": 864000, "scheduleTriggerConfig": schedule,
                },
                "template": {
                    "containers": [{
                        "name": "main", "image": IMAGE, "args": ["nothing"], "resources": {"cpu": 0.25, "memory": "0.5Gi"},
                    }]
                },
            },
        }  # fmt: skip
        status, answer = self.server.call(
            "PUT", f"{BASE}/jobs/{name}?{API}", json.dumps(body), {"Content-Type": "application/json"}
        )
        self.assertIn(status, (200, 201), answer)

    def advance(self, span):
        moved = self.server.command("clock", "advance", span)
        self.assertTrue(moved["isDone"], self.server.log())

    def die(self):
        self.server.kill()
        self.server.start()

    def started(self, name):
        """The times at which executions were asked for, oldest first, all of which have succeeded in the end."""
        return sorted(one["properties"]["startTime"][:16] for one in self.ended(name))

    def ended(self, name):
        def listed():
            found = self.server.command("containerapp", "job", "execution", "list", "-n", name, "-g", GROUP)
            return found if all(one["properties"]["status"] == "Succeeded" for one in found) else None

        return cove.until(f"the executions of {name} have succeeded", lambda: listed() or None, 120)

    def test_a_night_of_ticks(self):
        self.server = self.enterContext(cove.Server(cove.CONFIG, ["--clock", "virtual=2026-03-28T23:55:00Z"]))
        python_image.import_into(self.server, IMAGE, main="job_workers.py")
        self.server.command("group", "create", "-n", GROUP, "-l", "eastus")
        self.server.command("containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus")
        self.put("quarter", {"cronExpression": "*/15 * * * *"})
        # in Prague there is no half past two in this night; it comes at three, which is one in Greenwich
        self.put("night", {"cronExpression": "30 2 * * *", "coveTimeZone": "Europe/Prague"})
        self.put("hourly", {"cronExpression": "0 * * * *", "coveOverlap": "forbid"})
        for _ in range(4):
            self.advance("20m")
            self.die()
            # the clock does not wait for it: one that is still at work would forbid that of the next hour
            self.ended("hourly")
        self.advance("40m")
        self.assertEqual(
            self.started("quarter"),
            [f"2026-03-29T{minutes // 60:02}:{minutes % 60:02}" for minutes in range(0, 116, 15)],
        )
        self.assertEqual(self.started("night"), ["2026-03-29T01:00"])
        self.assertEqual(self.started("hourly"), ["2026-03-29T00:00", "2026-03-29T01:00"])
        explained = self.server.command("scale", "explain", "--job", "night", "-g", GROUP)
        self.assertEqual(explained["nextAt"], "2026-03-30T00:30:00Z")
        refused, answer = self.server.call(
            "PUT", f"{BASE}/jobs/bad?{API}", json.dumps({"location": "eastus", "properties": {
                "environmentId": f"{BASE}/managedEnvironments/{ENVIRONMENT}",
                "configuration": {"triggerType": "Schedule", "replicaTimeout": 60,
                                  "scheduleTriggerConfig": {"cronExpression": "0 24 * * *"}},
                "template": {"containers": [{"name": "main", "image": IMAGE}]},
            }}), {"Content-Type": "application/json"},
        )  # fmt: skip
        self.assertEqual(refused, 400, answer)
        self.assertIn("expected `*`, or 0 to 23", answer["error"]["message"])


if __name__ == "__main__":
    unittest.main()
