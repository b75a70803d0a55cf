"""Work of jobs that survives: a folder that retries share, artifacts that are kept, progress, and logs to the last byte."""

import glob
import json
import os
import pathlib
import sqlite3
import subprocess
import unittest

import cove
import images
from sdk_test import GROUP, SdkCase
from terminal import Terminal

SHELL = "cove.test/shell:latest"
VERSION = "api-version=2025-07-01"
ENDED = ("Succeeded", "Failed", "Stopped")
MIB = 1 << 20


class Work(SdkCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        images.import_shell(cls.server, SHELL)

    def path(self, name):
        return f"{self.environment.id.rsplit('/', 2)[0]}/jobs/{name}"

    def call(self, method, path, body=None):
        headers = {"Content-Type": "application/json", "Authorization": "Bearer anybody"}
        return self.server.call(method, f"{path}?{VERSION}", None if body is None else json.dumps(body), headers)

    def create(self, name, script, volumes=(), mounts=(), retries=0, parallelism=1):
        counts = {"parallelism": parallelism, "replicaCompletionCount": parallelism}
        configuration = {
            "triggerType": "Manual", "replicaTimeout": 300, "replicaRetryLimit": retries, "manualTriggerConfig": counts,
        }  # fmt: skip
        container = {
            "name": "main", "image": SHELL, "command": ["/srv/run"], "env": [{"name": "SCRIPT", "value": script}],
            "resources": {"cpu": 0.25, "memory": "0.5Gi"},
            "volumeMounts": [{"volumeName": volume, "mountPath": path} for volume, path in mounts],
        }  # fmt: skip
        template = {"containers": [container], "volumes": list(volumes), "terminationGracePeriodSeconds": 1}
        properties = {"environmentId": self.environment.id, "configuration": configuration, "template": template}
        path = self.path(name)
        status, answer = self.call("PUT", path, {"location": "eastus", "properties": properties})
        self.assertLess(status, 300, answer)
        cove.until("the job is there", lambda: self.call("GET", path)[1]["properties"]["provisioningState"] == "Succeeded")
        return path

    def start(self, path):
        status, answer = self.call("POST", f"{path}/start")
        self.assertEqual(status, 200, answer)
        return answer["name"]

    def ended(self, path, execution, within_seconds=120):
        shown = {}

        def has_ended():
            shown.update(self.call("GET", f"{path}/executions/{execution}")[1]["properties"])
            return shown["status"] in ENDED

        cove.until(f"{execution} has ended", has_ended, within_seconds)
        return shown

    def folders(self):
        return sorted(glob.glob(f"{self.server.data}/executions/*/*/*"))

    def rows(self, execution):
        """What the replicas of an execution wrote, as the log has it: replica to lines."""
        lines = {}
        for file in sorted(glob.glob(f"{self.server.data}/logs/*.db")):
            database = sqlite3.connect(f"file:{file}?mode=ro", uri=True)
            try:
                query = "SELECT replica, log FROM console WHERE revision = ? ORDER BY seq"
                for replica, line in database.execute(query, [execution]):
                    lines.setdefault(replica, []).append(line)
            finally:
                database.close()
        return lines

    def test_retries_and_replicas_work_in_one_folder(self):
        # each run counts itself; the first is killed with the server, the others fail until there were three
        script = (
            'cd "$COVE_WORK_DIR" || exit 9; echo run >> runs; while read -r x; do n=$((n+1)); done < runs; '
            'echo "run $n in $COVE_WORK_DIR"; [ $n = 1 ] && { while [ ! -e go ]; do sleep 0.1; done; exit 3; }; [ $n -ge 3 ]'
        )
        volume = {"name": "work", "storageType": "CoveExecutionDir"}
        path = self.create("shared", script, [volume], [("work", "/work")], retries=2)
        shown = self.call("GET", path)[1]["properties"]["template"]
        self.assertEqual(shown["volumes"], [volume])
        execution = self.start(path)
        cove.until("the first has begun", lambda: any(os.path.exists(f"{one}/runs") for one in self.folders()))
        [folder] = [one for one in self.folders() if f"/{execution}/" in one]
        self.server.kill()
        pathlib.Path(folder, "go").touch()
        self.server.start()
        ended = self.ended(path, execution)
        self.assertEqual((ended["status"], ended["coveFailed"]), ("Succeeded", 2), ended)
        self.assertEqual(pathlib.Path(folder, "runs").read_text(), "run\n" * 3)
        # another execution has one of its own
        second = self.start(path)
        cove.until("the second has its own", lambda: any(f"/{second}/" in one for one in self.folders()))
        self.call("POST", f"{path}/stop/{second}")
        self.ended(path, second)
        self.assertLess(self.call("DELETE", path)[0], 300)
        cove.until("the folders are gone", lambda: not [one for one in self.folders() if "/shared-" in one])

    def test_replicas_at_once_share_it(self):
        script = 'touch "$COVE_WORK_DIR/$JOB_COMPLETION_INDEX"; while [ ! -e $COVE_WORK_DIR/0 ] || [ ! -e $COVE_WORK_DIR/1 ]; do sleep 0.1; done'
        path = self.create("pair", script, [{"name": "w", "storageType": "CoveExecutionDir"}], [("w", "/w")], parallelism=2)
        ended = self.ended(path, self.start(path))
        self.assertEqual((ended["status"], ended["coveSucceeded"]), ("Succeeded", 2), ended)

    def test_artifacts_are_listed_fetched_and_kept_for_the_newest(self):
        script = (
            'cd "$COVE_ARTIFACTS_DIR"; mkdir -p out/deep; echo "$CONTAINER_APP_JOB_EXECUTION_NAME" > out/name; '
            "printf 'a b' > 'out/deep/a b%2F'; /bin/cp /srv/hello hello"
        )
        volume = {"name": "out", "storageType": "CoveArtifacts", "coveKeepExecutions": 2, "coveMaxSize": "5Mi"}
        path = self.create("artful", script, [volume], [("out", "/artifacts")])
        self.assertEqual(self.call("GET", path)[1]["properties"]["template"]["volumes"], [volume])
        names = []
        for _ in range(3):
            names.append(self.start(path))
            self.assertEqual(self.ended(path, names[-1])["status"], "Succeeded")
        base = f"{path}/executions/{names[2]}/artifacts"
        status, listed = self.call("GET", base)
        self.assertEqual(status, 200, listed)
        sizes = {one["name"]: one["properties"]["sizeBytes"] for one in listed["value"]}
        self.assertEqual(sizes, {"hello": 21, "out/deep/a b%2F": 3, "out/name": len(names[2]) + 1})
        cove.until("the first's are gone", lambda: self.call("GET", f"{path}/executions/{names[0]}/artifacts")[0] == 404)
        self.assertEqual(self.call("GET", f"{path}/executions/{names[1]}/artifacts")[0], 200)
        for wrong, expected in [
            ("none", (404, "ArtifactNotFound")), ("out", (409, "PathNotUsable")), ("%2e%2e/work", None),
            ("out/%2e%2e/%2e%2e/%2e%2e", None),
        ]:  # fmt: skip
            status, answer = self.call("GET", f"{base}/{wrong}")
            self.assertIn(status, (404, 409), (wrong, answer))
            if expected:
                self.assertEqual((status, answer["error"]["code"]), expected, answer)
        # a link that a container left, seen by the server as it is
        [folder] = [one for one in self.folders() if one.endswith(f"/{names[2]}/artifacts")]
        os.symlink("/etc/passwd", f"{folder}/stolen")
        os.symlink("/etc", f"{folder}/away")
        for wrong in ("stolen", "away/passwd"):
            status, answer = self.call("GET", f"{base}/{wrong}")
            self.assertEqual((status, answer["error"]["code"]), (409, "PathNotUsable"), answer)
        self.commands(names[2])

    def commands(self, execution):
        words = ["-n", "artful", "-g", GROUP]
        listed = self.server.command("job", "artifacts", "list", *words)
        self.assertEqual([one["name"] for one in listed], ["hello", "out/deep/a b%2F", "out/name"])
        target = self.server.directory / "fetched"
        whole = self.server.command
        whole("containerapp", "job", "artifacts", "download", "out", *words, "--target", str(target))
        files = {str(file.relative_to(target)): file.read_text() for file in target.rglob("*") if file.is_file()}
        self.assertEqual(files, {"out/name": f"{execution}\n", "out/deep/a b%2F": "a b"})

    def test_too_many_artifacts_end_the_execution(self):
        script = (
            'p=0123456789abcdef; for k in 1 2 3 4 5 6 7 8 9 10 11 12; do p=$p$p; done; '
            'while :; do echo "$p" >> "$COVE_ARTIFACTS_DIR/big"; sleep 0.02; done'
        )
        volume = {"name": "out", "storageType": "CoveArtifacts", "coveMaxSize": "1Mi"}
        path = self.create("greedy", script, [volume], [("out", "/artifacts")])
        execution = self.start(path)
        self.assertEqual(self.ended(path, execution)["status"], "Stopped")

        def told():
            words = ["containerapp", "job", "logs", "show", "-n", "greedy", "-g", GROUP, "--type", "system", "--tail", "50"]
            done = subprocess.run(
                [cove.BINARY, *words, "--data-dir", str(self.server.data)],
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            return "ArtifactsTooLarge" in done.stdout and "coveMaxSize" in done.stdout

        cove.until("an event says why", told)
        self.assertEqual(self.call("GET", f"{path}/executions/{execution}/artifacts")[0], 200, "what it wrote is kept")

    def test_apps_have_no_such_volumes(self):
        for word in ("CoveExecutionDir", "CoveArtifacts"):
            template = {
                "containers": [{"name": "web", "image": SHELL, "resources": {"cpu": 0.25, "memory": "0.5Gi"}}],
                "volumes": [{"name": "v", "storageType": word}],
            }  # fmt: skip
            app = self.path("web").replace("/jobs/", "/containerApps/")
            body = {"location": "eastus", "properties": {"environmentId": self.environment.id, "template": template}}
            status, answer = self.call("PUT", app, body)
            self.assertEqual(status, 400, answer)
            self.assertIn("belongs to executions of jobs", json.dumps(answer))

    def test_ten_megabytes_and_a_last_line_without_an_end(self):
        count, pad = 8192, "0123456789" * 128
        script = (
            "p=0123456789; for k in 1 2 3 4 5 6 7; do p=$p$p; done; i=0; "
            f'while [ $i -lt {count} ]; do i=$((i+1)); echo "$i $p"; done; printf "the very end"'
        )
        path = self.create("chatty", script)
        execution = self.start(path)
        self.assertEqual(self.ended(path, execution)["status"], "Succeeded")
        cove.until("the log has the end", lambda: "the very end" in [one[-1] for one in self.rows(execution).values()])
        [lines] = self.rows(execution).values()
        wanted = [f"{number} {pad}" for number in range(1, count + 1)] + ["the very end"]
        self.assertGreater(sum(map(len, wanted)), 10 * MIB)
        self.assertEqual(len(lines), len(wanted))
        self.assertTrue(lines == wanted, "some bytes are others")

    def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(self):
        script = (
            "sleep 2; echo begin; echo ::progress 40% loading; sleep 1; echo ::progress 3/4 images; echo ::progress 0/0; "
            "sleep 1; echo ::progress 100%"
        )
        path = self.create("steps", script)
        execution = self.start(path)
        cove.until("it runs", lambda: self.call("GET", f"{path}/executions/{execution}/replicas")[1]["value"])
        words = [cove.BINARY, "job", "logs", "--follow", "-n", "steps", "-g", GROUP, "--data-dir", str(self.server.data)]
        with Terminal(words, os.environ.copy()) as terminal:
            terminal.expect("begin")
            terminal.expect("[############------------------]  40 %  loading")
            terminal.expect("75 %  images")
            terminal.expect("::progress 0/0")
            terminal.expect("100 %")
            self.assertEqual(terminal.wait(), 0)
        self.ended(path, execution)
        words = ["containerapp", "job", "logs", "show", *words[4:], "--format", "text"]
        done = subprocess.run([cove.BINARY, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        written = [line.split("  ", 1)[1] for line in done.stdout.splitlines()]
        self.assertEqual(
            written, ["begin", "::progress 40% loading", "::progress 3/4 images", "::progress 0/0", "::progress 100%"]
        )


if __name__ == "__main__":
    unittest.main()
