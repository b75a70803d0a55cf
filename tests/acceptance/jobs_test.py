"""Jobs by hand, from end to end: `cove` and the Python SDK start executions, and what they did is looked at.

The commands of `az containerapp job` are in `commands_test`, schedules and events in other files.
"""

import subprocess
import unittest

import cove
import images
from sdk_test import GROUP, Anybody, SdkCase, client_of

SHELL = "cove.test/shell:latest"
ENDED = ("Succeeded", "Failed", "Stopped")


class Jobs(SdkCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        images.import_shell(cls.server, SHELL)

    def job(self, verb, name, *arguments):
        return self.server.command("containerapp", "job", *verb.split(), "-n", name, "-g", GROUP, *arguments)

    def create(self, name, script, *arguments, retries=0, timeout=600):
        return self.job(
            "create", name, "--environment", "sdkenv", "--replica-timeout", str(timeout),
            "--replica-retry-limit", str(retries), "--image", SHELL, "--cpu", "0.25", "--memory", "0.5Gi",
            "--command", "/srv/run", "--env-vars", f"SCRIPT={script}", *arguments,
        )  # fmt: skip

    def start(self, name, *arguments):
        return self.job("start", name, *arguments)["name"]

    def show(self, name, execution):
        return self.job("execution show", name, "--job-execution-name", execution)["properties"]

    def ended(self, name, execution, within_seconds=120):
        """The execution, once it has ended."""
        shown = {}

        def has_ended():
            shown.update(self.show(name, execution))
            return shown["status"] in ENDED

        cove.until(f"{execution} has ended", has_ended, within_seconds)
        return shown

    def lines(self, name, execution, replica=None):
        """What the first container of a replica wrote."""
        path = self.job("show", name)["id"]
        _, replicas = self.server.call("GET", f"{path}/executions/{execution}/replicas?api-version=2025-07-01")
        found = [one for one in replicas["value"] if replica in (None, one["name"])]
        self.assertTrue(found, replicas)
        words = ["containerapp", "job", "logs", "show", "-n", name, "-g", GROUP, "--execution", execution]
        words += ["--replica", found[0]["name"], "--tail", "300", "--format", "text", "--data-dir", str(self.server.data)]
        done = subprocess.run([cove.BINARY, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        self.assertEqual(done.returncode, 0, done.stderr)
        return [line.split("  ", 1)[1] for line in done.stdout.splitlines()]

    def test_all_lines_are_there_when_it_has_ended(self):
        script = 'i=0; while [ $i -lt 200 ]; do i=$((i+1)); echo "line $i"; done; echo "$CONTAINER_APP_JOB_EXECUTION_NAME"'
        self.create("lines", script)
        execution = self.start("lines")
        self.assertEqual(self.ended("lines", execution)["status"], "Succeeded")
        wanted = [f"line {number}" for number in range(1, 201)] + [execution]
        self.assertEqual(self.lines("lines", execution), wanted)

    def test_indexes_and_parallelism(self):
        script = "echo index $JOB_COMPLETION_INDEX"
        self.create("many", script, "--parallelism", "2", "--replica-completion-count", "3")
        execution = self.start("many")
        shown = self.ended("many", execution)
        self.assertEqual((shown["status"], shown["coveSucceeded"]), ("Succeeded", 3), shown)
        names = [one["name"] for one in shown["detailedStatus"]["replicas"]]
        written = sorted(line for name in names for line in self.lines("many", execution, name))
        self.assertEqual(written, ["index 0", "index 1", "index 2"])

    def test_failed_runs_are_tried_again_as_often_as_allowed(self):
        self.create("fails", "exit 3", retries=1)
        shown = self.ended("fails", self.start("fails"))
        self.assertEqual((shown["status"], shown["coveFailed"]), ("Failed", 2), shown)
        replicas = shown["detailedStatus"]["replicas"]
        self.assertEqual([one["containers"][0]["code"] for one in replicas], [3, 3])
        self.assertTrue(shown["reason"], shown)

    def test_a_replica_that_takes_too_long_is_ended(self):
        self.create("slow", "trap '' TERM; while :; do sleep 1; done", timeout=1)
        shown = self.ended("slow", self.start("slow"))
        self.assertEqual(shown["status"], "Failed", shown)
        self.assertIn("DeadlineExceeded", str(shown), shown)

    def test_an_image_that_does_not_exist(self):
        self.create("imageless", "true")
        execution = self.start("imageless", "--image", "cove.local/no-such:latest")
        shown = self.ended("imageless", execution)
        self.assertEqual(shown["status"], "Failed", shown)
        self.assertIn("no-such", shown["message"], shown)

    def test_suspended_jobs_start_nothing(self):
        self.create("sleepy", "true")
        self.assertEqual(self.job("suspend", "sleepy")["properties"]["runningState"], "Suspended")
        status, answer = self.server.call("POST", f"{self.job('show', 'sleepy')['id']}/start?api-version=2025-07-01")
        self.assertEqual((status, answer["error"]["code"]), (409, "JobSuspended"))
        self.job("resume", "sleepy")
        self.assertEqual(self.ended("sleepy", self.start("sleepy"))["status"], "Succeeded")

    def test_an_execution_survives_the_server(self):
        self.create("durable", "echo begun; sleep 5; echo done")
        execution = self.start("durable")
        cove.until("it runs", lambda: self.show("durable", execution)["status"] == "Running")
        self.server.kill()
        self.server.start()
        shown = self.ended("durable", execution)
        self.assertEqual((shown["status"], shown["coveFailed"]), ("Succeeded", 0), shown)
        self.assertEqual(len(shown["detailedStatus"]["replicas"]), 1, "it was started once")
        self.assertEqual(self.lines("durable", execution), ["begun", "done"])

    def test_the_sdk(self):
        self.create("sdkjob", "sleep 600")
        # another test starts the server anew, at another port
        client = self.enterContext(client_of(self.server, Anybody()))
        jobs = client.jobs
        first = jobs.begin_start(GROUP, "sdkjob").result(60)
        second = jobs.begin_start(GROUP, "sdkjob").result(60)
        listed = {one.name for one in client.jobs_executions.list(GROUP, "sdkjob")}
        self.assertEqual(listed, {first.name, second.name})
        jobs.begin_stop_execution(GROUP, "sdkjob", first.name).result(60)
        self.assertEqual(client.job_execution(GROUP, "sdkjob", first.name).properties.status, "Stopped")
        stopped = jobs.begin_stop_multiple_executions(GROUP, "sdkjob").result(60)
        self.assertEqual([one.name for one in stopped.value], [second.name])
        self.assertEqual(client.job_execution(GROUP, "sdkjob", second.name).properties.status, "Stopped")
        running = jobs.begin_start(GROUP, "sdkjob").result(60)
        self.assertTrue(running.id.endswith(f"/jobs/sdkjob/executions/{running.name}"))
        jobs.begin_delete(GROUP, "sdkjob").result(60)
        self.assertNotIn("sdkjob", [job.name for job in jobs.list_by_resource_group(GROUP)])


if __name__ == "__main__":
    unittest.main()
