"""The unmodified Azure CLI against a real server: every command is followed by a look at its real effect."""

import json
import os
import pathlib
import queue
import subprocess
import tempfile
import threading
import unittest
import uuid

import cove
from cove import TENANT

AZ = os.path.join(os.environ.get("COVE_VENV", "/var/cache/cove/venv"), "bin", "az")
SAMPLE = "cove.local/sample:latest"
QUICKSTART = "mcr.microsoft.com/k8se/quickstart:latest"
COMMAND_WITHIN_SECONDS = 600


class Az:
    """`az` with a configuration directory of its own, so that no test sees another's cloud, login or token."""

    def __init__(self, server, metadata="/metadata/endpoints"):
        self._directory = tempfile.TemporaryDirectory(prefix="cove-az-")
        home = pathlib.Path(self._directory.name)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "PYTHONUNBUFFERED": "1",  # `logs show --follow` prints into a pipe here
            "AZURE_CONFIG_DIR": str(home / "azure"),
            "AZURE_EXTENSION_DIR": str(home / "extensions"),
            "REQUESTS_CA_BUNDLE": server.ca,
            "SSL_CERT_FILE": server.ca,
            "AZURE_CORE_COLLECT_TELEMETRY": "no",
            "AZURE_EXTENSION_USE_DYNAMIC_INSTALL": "no",
            "AZURE_CORE_SURVEY_MESSAGE": "no",
            "AZURE_CORE_LOGIN_EXPERIENCE_V2": "off",
            "AZURE_CORE_NO_COLOR": "true",
            "AZURE_CORE_INSTANCE_DISCOVERY": "false",
        }
        if metadata:
            self.environment["ARM_CLOUD_METADATA_URL"] = f"{server.api}{metadata}?api-version=2019-05-01"

    def close(self):
        self._directory.cleanup()

    def run(self, *arguments):
        """Runs a command: exit code, standard output, standard error."""
        done = subprocess.run(
            [AZ, *arguments],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_SECONDS,
        )
        # `containerapp` draws a spinner into standard error whatever that is
        errors = [line for line in done.stderr.splitlines() if not line.endswith("Running ..")]
        return done.returncode, done.stdout, "\n".join(errors)

    def __call__(self, *arguments):
        """Runs a command that must succeed; its JSON."""
        code, out, error = self.run(*arguments, "--output", "json")
        if code != 0:
            raise AssertionError(f"az {' '.join(arguments)}: exit {code}\n{error}\n{out}")
        return json.loads(out) if out.strip() else None

    def refused(self, *arguments):
        """Runs a command that must fail; its message."""
        code, out, error = self.run(*arguments)
        if code == 0:
            raise AssertionError(f"az {' '.join(arguments)} should have failed\n{out}")
        return error

    def follow(self, *arguments):
        """Starts a command that goes on; its lines come through `Following.expect`."""
        return Following([AZ, *arguments], self.environment)


class Following:
    """A running command whose lines are waited for."""

    def __init__(self, arguments, environment):
        self._process = subprocess.Popen(
            arguments,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._lines = queue.Queue()
        self._seen = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put(None)

    def expect(self, text, within_seconds=60):
        """The next line that holds `text`."""
        while True:
            try:
                line = self._lines.get(timeout=within_seconds)
            except queue.Empty:
                raise AssertionError(f"no line with {text!r} within {within_seconds} s; seen: {self._seen}") from None
            if line is None:
                raise AssertionError(f"ended before a line with {text!r}; seen: {self._seen}")
            self._seen.append(line)
            if text in line:
                return line

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait(10)
        self._process.stdout.close()


class ServerCase(unittest.TestCase):
    """One server and one logged-in `az` per class."""

    CONFIG = cove.CONFIG

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server(cls.CONFIG))
        cls.az = Az(cls.server)
        cls.addClassCleanup(cls.az.close)
        cls.az("login", "--service-principal", "-u", "any", "-p", "any", "--tenant", TENANT)

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            print(f"--- the server's log at the end of {self.id()}:\n{self.server.log()}\n---")
        return result


class LifeOfAnApp(ServerCase):
    """From a group to an app that serves, changes, logs, and is deleted again."""

    GROUP, ENVIRONMENT, APP = "MyRG", "myenv", "web"

    def app(self, verb, *arguments):
        return self.az("containerapp", *verb.split(), "-n", self.APP, "-g", self.GROUP, *arguments)

    def page(self, path="/"):
        return self.server.get(self.host, path)

    def env_of_app(self):
        status, text = self.page("/env")
        self.assertEqual(status, 200, text)
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def latest(self):
        return self.app("show")["properties"]["latestRevisionName"]

    def test_it(self):
        self.group_and_environment()
        self.create()
        self.update()
        self.replicas()
        self.revisions()
        self.logs()
        self.secrets()
        self.deactivate()
        self.multiple_revisions()
        self.delete()

    def group_and_environment(self):
        group = self.az("group", "create", "-n", self.GROUP, "-l", "eastus")
        self.assertEqual(group["properties"]["provisioningState"], "Succeeded")
        self.assertEqual(self.az("group", "exists", "-n", self.GROUP.lower()), True)
        environment = self.az(
            "containerapp", "env", "create", "-n", self.ENVIRONMENT, "-g", self.GROUP, "-l", "eastus",
            "--logs-destination", "none",
        )  # fmt: skip
        self.assertEqual(environment["properties"]["provisioningState"], "Succeeded")
        shown = self.az("containerapp", "env", "show", "-n", self.ENVIRONMENT, "-g", self.GROUP)
        self.assertEqual(shown["id"], environment["id"])
        names = [item["name"] for item in self.az("containerapp", "env", "list", "-g", self.GROUP)]
        self.assertEqual(names, [self.ENVIRONMENT])

    def create(self):
        app = self.app(
            "create", "--environment", self.ENVIRONMENT, "--image", QUICKSTART, "--target-port", "80",
            "--ingress", "external", "--min-replicas", "0", "--max-replicas", "3", "--cpu", "0.25", "--memory", "0.5Gi",
            "--env-vars", "GREETING=hello", "--scale-rule-name", "requests", "--scale-rule-http-concurrency", "20",
        )  # fmt: skip
        properties = app["properties"]
        self.assertEqual(properties["provisioningState"], "Succeeded")
        self.host = properties["configuration"]["ingress"]["fqdn"]
        self.assertTrue(self.host.startswith(f"{self.APP}."), self.host)
        status, text = self.page()
        self.assertEqual(status, 200, text)
        self.assertEqual(self.env_of_app()["GREETING"], "hello")
        shown = self.app("show")["properties"]
        self.assertEqual(shown["latestReadyRevisionName"], properties["latestRevisionName"])
        # `create` blanks metadata in what it prints, `show` does not
        self.assertEqual(shown["template"]["scale"]["rules"][0]["http"]["metadata"], {"concurrentRequests": "20"})
        listed = self.az("containerapp", "list", "-g", self.GROUP)
        self.assertEqual([item["name"] for item in listed], [self.APP])

    def update(self):
        first = self.latest()
        self.app("update", "--set-env-vars", "GREETING=bye", "--revision-suffix", "v2")
        self.assertEqual(self.latest(), f"{self.APP}--v2")
        cove.until("the new variable is served", lambda: self.env_of_app()["GREETING"] == "bye")
        self.app("update", "--image", SAMPLE)
        shown = self.app("show")["properties"]
        self.assertEqual(shown["template"]["containers"][0]["image"], SAMPLE)
        self.assertNotIn(shown["latestRevisionName"], (first, f"{self.APP}--v2"))
        self.assertEqual(self.env_of_app()["GREETING"], "bye")

    def replicas(self):
        self.app("update", "--min-replicas", "2", "--max-replicas", "4")
        listed = lambda: self.app("replica list")  # noqa: E731
        ready = lambda item: all(container["ready"] for container in item["properties"]["containers"])  # noqa: E731
        cove.until("two replicas are ready", lambda: len([item for item in listed() if ready(item)]) == 2)
        self.app("update", "--min-replicas", "1", "--max-replicas", "1")
        cove.until("one replica is ready", lambda: [ready(item) for item in listed()] == [True])
        name = listed()[0]["name"]
        shown = self.app("replica show", "--replica", name)
        self.assertEqual(shown["properties"]["runningState"], "Running")

    def revisions(self):
        latest = self.latest()
        active = {item["name"] for item in self.app("revision list")}
        self.assertEqual(active, {latest}, "in single mode the newest revision alone is active")
        everything = {item["name"] for item in self.app("revision list", "--all")}
        self.assertGreaterEqual(len(everything), 4)
        self.assertIn(f"{self.APP}--v2", everything)
        shown = self.app("revision show", "--revision", latest)["properties"]
        self.assertEqual((shown["active"], shown["trafficWeight"], shown["replicas"]), (True, 100, 1))
        self.assertEqual(shown["provisioningState"], "Provisioned")
        self.assertEqual(shown["healthState"], "Healthy")
        before = self.app("replica list")[0]["name"]
        self.app("revision restart", "--revision", latest)
        names = lambda: [item["name"] for item in self.app("replica list")]  # noqa: E731
        cove.until("another replica serves", lambda: before not in names() and names())
        self.assertEqual(self.page()[0], 200)

    def logs(self):
        before, after = (f"mark-{uuid.uuid4()}" for _ in range(2))
        self.page(f"/log?text={before}")
        command = ["containerapp", "logs", "show", "-n", self.APP, "-g", self.GROUP]
        with self.az.follow(*command, "--follow", "--tail", "20", "--format", "text") as following:
            following.expect(before)
            self.page(f"/log?text={after}")
            following.expect(after)
        code, out, error = self.az.run(*command, "--tail", "20")
        self.assertEqual(code, 0, error)
        logs = [json.loads(line)["Log"] for line in out.splitlines() if line.strip()]
        self.assertTrue(any(after in line for line in logs), logs)
        code, out, error = self.az.run(*command, "--type", "system", "--tail", "50")
        self.assertEqual(code, 0, error)
        events = [json.loads(line) for line in out.splitlines() if line.strip()]
        latest = self.latest()
        self.assertTrue(any(latest in json.dumps(event) for event in events), events)

    def secrets(self):
        self.app("secret set", "--secrets", "pw=hunter2", "other=x")
        names = {item["name"] for item in self.app("secret list")}
        self.assertEqual(names, {"pw", "other"})
        self.assertNotIn("hunter2", json.dumps(self.app("show")))
        self.assertEqual(self.app("secret show", "--secret-name", "pw")["value"], "hunter2")
        self.app("update", "--set-env-vars", "PASSWORD=secretref:pw")
        cove.until("the secret reaches the app", lambda: self.env_of_app().get("PASSWORD") == "hunter2")
        self.app("secret remove", "--secret-names", "other")
        self.assertEqual([item["name"] for item in self.app("secret list")], ["pw"])
        message = self.az.refused(
            "containerapp", "secret", "remove", "-n", self.APP, "-g", self.GROUP, "--secret-names", "pw"
        )
        self.assertIn("pw", message)

    def deactivate(self):
        latest = self.latest()
        self.app("revision deactivate", "--revision", latest)
        cove.until("a deactivated revision is not served", lambda: self.page()[0] == 404)
        cove.until("its replicas are gone", lambda: self.app("replica list", "--revision", latest) == [])
        self.assertFalse(self.app("revision show", "--revision", latest)["properties"]["active"])
        self.app("revision activate", "--revision", latest)
        cove.until("it serves again", lambda: self.page()[0] == 200)

    def multiple_revisions(self):
        self.app("revision set-mode", "--mode", "multiple")
        old = self.latest()
        self.app("ingress traffic set", "--revision-weight", f"{old}=100")
        self.app("update", "--set-env-vars", "GREETING=canary", "--revision-suffix", "canary")
        new = f"{self.APP}--canary"
        self.assertEqual(self.env_of_app()["GREETING"], "bye", "traffic stays where it was put")
        self.app("ingress traffic set", "--revision-weight", f"{old}=0", f"{new}=100")
        cove.until("traffic follows the weights", lambda: self.env_of_app()["GREETING"] == "canary")
        weights = {item.get("revisionName", "latest"): item["weight"] for item in self.app("ingress traffic show")}
        self.assertEqual({name for name, weight in weights.items() if weight}, {new})
        self.app("revision set-mode", "--mode", "single")
        cove.until("one revision is active", lambda: [item["name"] for item in self.app("revision list")] == [new])

    def delete(self):
        self.app("delete", "--yes")
        self.assertEqual(self.az("containerapp", "list", "-g", self.GROUP), [])
        self.assertEqual(self.page()[0], 404)
        message = self.az.refused("containerapp", "show", "-n", self.APP, "-g", self.GROUP)
        self.assertIn("ResourceNotFound", message)
        self.az("containerapp", "env", "delete", "-n", self.ENVIRONMENT, "-g", self.GROUP, "--yes")
        self.assertEqual(self.az("containerapp", "env", "list", "-g", self.GROUP), [])
        self.az("group", "delete", "-n", self.GROUP, "--yes")
        self.assertEqual(self.az("group", "exists", "-n", self.GROUP), False)


class Refusals(ServerCase):
    """What cannot be had is told, with what would be right; nothing is left half made."""

    CONFIG = cove.CONFIG.replace('"60s"', '"5s"')  # a registry that is down is asked until the deadline

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.az("group", "create", "-n", "rg", "-l", "local")
        cls.az("containerapp", "env", "create", "-n", "env", "-g", "rg", "-l", "local")

    def refused(self, name, *arguments):
        return self.az.refused(
            "containerapp", "create", "-n", name, "-g", "rg", "--environment", "env", *arguments
        )

    def test_values_off_the_table(self):
        message = self.refused("web", "--image", SAMPLE, "--cpu", "8", "--memory", "32Gi")
        self.assertIn("ContainerAppInvalidResourceTotal", message)
        self.assertIn("[cpu: 0.25, memory: 0.5Gi]", message)
        message = self.refused("web", "--image", SAMPLE, "--min-replicas", "5", "--max-replicas", "2")
        self.assertIn("MinGreaterThanMax", message)
        self.assertNotIn("web", [app["name"] for app in self.az("containerapp", "list", "-g", "rg")])

    def test_what_is_not_built(self):
        message = self.az.refused("containerapp", "github-action", "show", "-n", "x", "-g", "rg")
        self.assertIn("NotImplemented", message)

    def test_an_image_that_does_not_exist(self):
        message = self.refused("nope", "--image", "127.0.0.1:1/no/such:image", "--ingress", "external", "--target-port", "80")
        self.addCleanup(self.az, "containerapp", "delete", "-n", "nope", "-g", "rg", "--yes")
        self.assertIn("ImagePullFailure", message)
        self.assertIn("`127.0.0.1:1` cannot be reached", message)

    def test_a_workspace_is_made_for_an_environment_without_destination(self):
        environment = self.az("containerapp", "env", "show", "-n", "env", "-g", "rg")
        logs = environment["properties"]["appLogsConfiguration"]
        self.assertEqual(logs["destination"], "log-analytics")
        self.assertNotIn("sharedKey", json.dumps(environment))

    def test_a_group_that_does_not_exist(self):
        message = self.az.refused("containerapp", "list", "-g", "missing")
        self.assertIn("ResourceGroupNotFound", message)


class WaysIn(unittest.TestCase):
    """The other ways in and the other logins; nothing is made here."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server())

    def az(self, metadata="/metadata/endpoints"):
        az = Az(self.server, metadata)
        self.addCleanup(az.close)
        return az

    def test_a_registered_cloud(self):
        az = self.az(metadata=None)
        az("cloud", "register", "-n", "Local", "--endpoint-resource-manager", f"{self.server.api}/")
        az("cloud", "set", "-n", "Local")
        az("login", "--service-principal", "-u", "any", "-p", "any", "--tenant", TENANT)
        self.assertEqual(az("account", "show")["tenantId"], TENANT)
        self.assertEqual(az("group", "list"), [])

    def test_a_device_code(self):
        az = self.az()
        az("login", "--use-device-code", "--tenant", TENANT)
        self.assertEqual(az("group", "list"), [])

    def test_a_user_and_a_password(self):
        az = self.az("/adfs/metadata/endpoints")
        az("login", "-u", "me@local", "-p", "any")
        self.assertEqual(az("account", "show")["user"]["name"], "me@local")
        self.assertEqual(az("group", "list"), [])

    def test_a_wrong_location_and_a_missing_group(self):
        az = self.az()
        az("login", "--service-principal", "-u", "any", "-p", "any", "--tenant", TENANT)
        self.assertIn("does not exist", az.refused("group", "create", "-n", "g", "-l", "atlantis"))
        self.assertEqual(az("group", "exists", "-n", "g"), False)


if __name__ == "__main__":
    unittest.main()
