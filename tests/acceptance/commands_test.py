"""Every command of core `az containerapp` that this server serves, with a look at its effect; and the table of them.

`docs/az-commands.md` is made by this test: a command stands there as working when it succeeded here. Run with
`COVE_WRITE_DOCS=1` to write it; otherwise the test fails when it is not what was seen.
"""

import json
import os
import pathlib
import subprocess
import sys
import textwrap
import unittest

import cove
import images
import pem
from az_test import AZ, SAMPLE, Az
from cove import SUBSCRIPTION, TENANT
from terminal import Terminal

DOCUMENT = pathlib.Path(__file__).resolve().parents[2] / "docs" / "az-commands.md"
GROUP, ENVIRONMENT = "MyRG", "myenv"
SHELL = "cove.test/shell:latest"

# Commands that this server does not serve yet, and why; the table says it in these words.
WAITING = {
    "containerapp github-action": "needs GitHub and a hosted registry build; use `cove containerapp up --source`",
}

LIST_OF_COMMANDS = """
from azure.cli.core import get_default_cli
from azure.cli.core.file_util import create_invoker_and_load_cmds_and_args
cli = get_default_cli()
create_invoker_and_load_cmds_and_args(cli)
for name in sorted(cli.invocation.commands_loader.command_table):
    if name.startswith("containerapp ") and not name.startswith("containerapp connection"):
        print(name)
"""

_shared = {}


class RecordingAz(Az):
    """`az` that remembers which commands succeeded."""

    def __init__(self, server):
        super().__init__(server)
        python = str(pathlib.Path(AZ).with_name("python"))
        listed = subprocess.run([python, "-c", LIST_OF_COMMANDS], env=self.environment, capture_output=True, text=True, timeout=300)
        self.commands = listed.stdout.split("\n")[:-1]
        if not self.commands:
            raise AssertionError(f"az does not list its commands: {listed.stderr}")
        self.passed = set()

    def record(self, arguments):
        words = []
        for word in arguments:
            if word.startswith("-"):
                break
            words.append(word)
        name = " ".join(words)
        if name in self.commands:
            self.passed.add(name)

    def __call__(self, *arguments):
        value = super().__call__(*arguments)
        self.record(arguments)
        return value


def setUpModule():
    server = cove.Server().__enter__()
    unittest.addModuleCleanup(server.__exit__, None, None, None)
    az = RecordingAz(server)
    unittest.addModuleCleanup(az.close)
    az("login", "--service-principal", "-u", "any", "-p", "any", "--tenant", TENANT)
    az("group", "create", "-n", GROUP, "-l", "eastus")
    images.import_shell(server, SHELL)
    _shared.update(server=server, az=az)


class Case(unittest.TestCase):
    """What all share: one server, one environment, one logged-in `az`."""

    @classmethod
    def setUpClass(cls):
        cls.server, cls.az = _shared["server"], _shared["az"]
        if "environment" not in _shared:
            _shared["environment"] = cls.az(
                "containerapp", "env", "create", "-n", ENVIRONMENT, "-g", GROUP, "-l", "eastus",
                "--logs-destination", "none",
            )  # fmt: skip
        cls.domain = _shared["environment"]["properties"]["defaultDomain"]

    def env(self, verb, *arguments):
        return self.az("containerapp", "env", *verb.split(), "-n", ENVIRONMENT, "-g", GROUP, *arguments)

    def app(self, verb, *arguments, name=None):
        return self.az("containerapp", *verb.split(), "-n", name or self.APP, "-g", GROUP, *arguments)

    def create(self, *arguments, name=None):
        app = self.app(
            "create", "--environment", ENVIRONMENT, "--image", SAMPLE, "--target-port", "80", "--ingress", "external",
            "--min-replicas", "0", "--max-replicas", "2", "--cpu", "0.25", "--memory", "0.5Gi", *arguments, name=name,
        )  # fmt: skip
        return app["properties"]["configuration"]["ingress"]["fqdn"]

    def file(self, name, text):
        path = self.server.directory / name
        path.write_text(textwrap.dedent(text))
        return str(path)

    def run(self, result=None):
        before = len(result.failures) + len(result.errors) if result else 0
        super().run(result)
        if result and len(result.failures) + len(result.errors) > before:
            print(f"--- the server's log at the end of {self.id()}:\n{self.server.log(30)}\n---", file=sys.stderr)
        return result


class Apps(Case):
    APP = "apps"

    def test_life(self):
        host = self.create("--env-vars", "N=1")
        self.assertEqual(self.app("show")["name"], self.APP)
        self.assertIn(self.APP, [app["name"] for app in self.az("containerapp", "list", "-g", GROUP)])
        self.app("update", "--set-env-vars", "N=2")
        cove.until("the update is served", lambda: "N=2\n" in self.server.get(host, "/env")[1])
        usages = self.az("containerapp", "list-usages", "-l", "eastus")
        self.assertTrue(usages)
        identity = self.az("containerapp", "show-custom-domain-verification-id")
        self.assertEqual(len(identity), 64)
        code, out, error = self.az.run("containerapp", "browse", "-n", self.APP, "-g", GROUP)
        self.assertEqual(code, 0, error)
        self.az.record(["containerapp", "browse"])
        self.app("delete", "--yes")
        self.assertEqual(self.server.get(host)[0], 404)

    def test_up(self):
        words = [
            "containerapp", "up", "-n", "upped", "-g", GROUP, "--environment", ENVIRONMENT, "--image", SAMPLE,
            "--ingress", "external", "--target-port", "80", "-l", "eastus",
        ]  # fmt: skip
        code, out, error = self.az.run(*words)  # it knows no --output
        self.assertEqual(code, 0, f"{error}\n{out}")
        self.az.record(words)
        shown = self.app("show", name="upped")
        self.assertEqual(self.server.get(shown["properties"]["configuration"]["ingress"]["fqdn"])[0], 200)
        self.app("delete", "--yes", name="upped")

    def test_compose(self):
        path = self.file("compose.yaml", f"""\
            services:
              composed:
                image: {SAMPLE}
                ports: ["8080:80"]
                environment: ["COLOUR=blue"]
                deploy: {{resources: {{reservations: {{cpus: "0.5"}}}}}}
            """)
        made = self.az("containerapp", "compose", "create", "-g", GROUP, "--environment", ENVIRONMENT, "-f", path, "-l", "eastus")
        host = made[0]["properties"]["configuration"]["ingress"]["fqdn"]
        self.assertIn("COLOUR=blue\n", self.server.get(host, "/env")[1])
        self.app("delete", "--yes", name="composed")

    def test_yaml(self):
        path = self.file("app.yaml", f"""\
            location: eastus
            properties:
              environmentId: {_shared["environment"]["id"]}
              configuration: {{ingress: {{external: true, targetPort: 80}}}}
              template:
                containers: [{{name: main, image: "{SAMPLE}", env: [{{name: FROM, value: yaml}}]}}]
            """)
        app = self.app("create", "--yaml", path, name="yamled")
        host = app["properties"]["configuration"]["ingress"]["fqdn"]
        self.assertIn("FROM=yaml\n", self.server.get(host, "/env")[1])
        self.app("delete", "--yes", name="yamled")


class Jobs(Case):
    APP = "worker"

    def job(self, verb, *arguments):
        return self.az("containerapp", "job", *verb.split(), "-n", self.APP, "-g", GROUP, *arguments)

    def started(self, *arguments):
        return self.job("start", *arguments)["name"]

    def ended(self, execution):
        """The execution, once it has ended."""
        shown = {}

        def has_ended():
            shown.update(self.job("execution show", "--job-execution-name", execution)["properties"])
            return shown["status"] in ("Succeeded", "Failed", "Stopped")

        cove.until(f"{execution} has ended", has_ended, 120)
        return shown

    def test_life(self):
        made = self.job(
            "create", "--environment", ENVIRONMENT, "--trigger-type", "Manual", "--replica-timeout", "600",
            "--replica-retry-limit", "0", "--parallelism", "1", "--replica-completion-count", "1", "--image", SHELL,
            "--cpu", "0.25", "--memory", "0.5Gi", "--command", "/srv/run", "--env-vars", "SCRIPT=echo done; exit $CODE", "CODE=0",
            "--secrets", "first=one",
        )  # fmt: skip
        self.assertEqual(made["properties"]["provisioningState"], "Succeeded")
        self.assertIn(self.APP, [job["name"] for job in self.az("containerapp", "job", "list", "-g", GROUP)])
        self.assertEqual(self.job("show")["properties"]["configuration"]["replicaTimeout"], 600)
        first = self.started()
        self.assertEqual(self.ended(first)["status"], "Succeeded")
        second = self.started("--image", SHELL, "--command", "/srv/run", "--env-vars", "SCRIPT=exit 3")
        failed = self.ended(second)
        self.assertEqual(failed["status"], "Failed", failed)
        self.assertEqual(failed["detailedStatus"]["replicas"][0]["containers"][0]["code"], 3)
        self.job("update", "--set-env-vars", "SCRIPT=sleep 600", "--replica-retry-limit", "1")
        third, fourth = self.started(), self.started()
        listed = {one["name"]: one["properties"]["status"] for one in self.job("execution list")}
        self.assertEqual(set(listed), {first, second, third, fourth})
        self.job("stop", "--job-execution-name", third)
        self.assertEqual(self.ended(third)["status"], "Stopped")
        self.assertEqual([one["name"] for one in self.job("stop")["value"]], [fourth])
        self.assertEqual(self.ended(fourth)["status"], "Stopped")
        self.secrets()
        self.identities()
        self.registries()
        self.started()
        self.job("delete", "--yes")
        self.assertIn("was not found", self.az.refused("containerapp", "job", "show", "-n", self.APP, "-g", GROUP))

    def secrets(self):
        self.job("secret set", "--secrets", "second=two")
        self.assertEqual({one["name"] for one in self.job("secret list")}, {"first", "second"})
        self.assertEqual(self.job("secret show", "--secret-name", "second")["value"], "two")
        self.job("secret remove", "--secret-names", "second", "--yes")
        self.assertEqual({one["name"] for one in self.job("secret list")}, {"first"})

    def identities(self):
        self.assertEqual(self.job("identity assign", "--system-assigned")["type"], "SystemAssigned")
        self.assertEqual(len(self.job("identity show")["principalId"]), 36)
        self.job("identity remove", "--system-assigned", "--yes")
        self.assertEqual(self.job("identity show")["type"], "None")

    def registries(self):
        login = ["--username", "u", "--password", "p"]
        self.job("registry set", "--server", "registry.example.com", *login)
        self.assertEqual([one["server"] for one in self.job("registry list")], ["registry.example.com"])
        shown = self.job("registry show", "--server", "registry.example.com")
        self.assertEqual(shown["username"], "u")
        self.job("registry remove", "--server", "registry.example.com")
        self.assertFalse(self.job("registry list"))


class Revisions(Case):
    APP = "revs"

    def test_revisions_labels_and_replicas(self):
        host = self.create("--revision-suffix", "v1", "--env-vars", "N=1", "--min-replicas", "1")
        self.app("revision set-mode", "--mode", "multiple")
        self.app("revision copy", "--revision-suffix", "v2", "--set-env-vars", "N=2", "--from-revision", "revs--v1")
        names = {item["name"] for item in self.app("revision list")}
        self.assertEqual(names, {"revs--v1", "revs--v2"})
        self.assertTrue(self.app("revision show", "--revision", "revs--v2")["properties"]["active"])
        self.app("ingress traffic set", "--revision-weight", "revs--v1=100", "revs--v2=0")
        self.assertEqual({item.get("revisionName"): item["weight"] for item in self.app("ingress traffic show")}["revs--v1"], 100)
        self.assertIn("N=1\n", self.server.get(host, "/env")[1])

        self.app("revision label add", "--label", "blue", "--revision", "revs--v1", "--no-prompt")
        self.app("revision label add", "--label", "green", "--revision", "revs--v2", "--no-prompt")
        green = host.replace("revs.", "revs---green.", 1)
        cove.until("the label's address answers", lambda: "N=2\n" in self.server.get(green, "/env")[1])
        self.app("revision label swap", "--source", "blue", "--target", "green")
        cove.until("labels are swapped", lambda: "N=1\n" in self.server.get(green, "/env")[1])
        self.app("ingress traffic set", "--label-weight", "blue=100", "green=0")
        cove.until("traffic follows the label", lambda: "N=2\n" in self.server.get(host, "/env")[1])
        self.app("revision label remove", "--label", "green")
        cove.until("a label that was removed answers 404", lambda: self.server.get(green)[0] == 404)

        self.app("revision deactivate", "--revision", "revs--v1")
        self.assertFalse(self.app("revision show", "--revision", "revs--v1")["properties"]["active"])
        self.app("revision activate", "--revision", "revs--v1")
        self.assertTrue(self.app("revision show", "--revision", "revs--v1")["properties"]["active"])
        replicas = cove.until("a replica is listed", lambda: self.app("replica list", "--revision", "revs--v2"))
        name = replicas[0]["name"]
        self.assertEqual(self.app("replica show", "--replica", name, "--revision", "revs--v2")["name"], name)
        self.app("revision restart", "--revision", "revs--v2")
        listed = lambda: [item["name"] for item in self.app("replica list", "--revision", "revs--v2")]  # noqa: E731
        cove.until("another replica runs", lambda: listed() and name not in listed())
        self.app("delete", "--yes")


class Ingress(Case):
    APP = "ways"

    def test_ingress(self):
        host = self.create()
        self.assertEqual(self.app("ingress show")["targetPort"], 80)
        self.app("ingress update", "--allow-insecure", "true")
        self.assertTrue(self.app("ingress show")["allowInsecure"])
        self.app("ingress disable")
        cove.until("without ingress nothing answers", lambda: self.server.get(host)[0] == 404)
        self.app("ingress enable", "--type", "external", "--target-port", "80", "--allow-insecure")
        cove.until("it answers again", lambda: self.server.get(host)[0] == 200)

        self.app("ingress access-restriction set", "--rule-name", "no", "--ip-address", "127.0.0.0/8", "--action", "Deny")
        self.assertEqual([rule["name"] for rule in self.app("ingress access-restriction list")], ["no"])
        cove.until("the client is refused", lambda: self.server.get(host)[0] == 403)
        self.app("ingress access-restriction remove", "--rule-name", "no")
        cove.until("the client is let in", lambda: self.server.get(host)[0] == 200)

        self.app("ingress cors enable", "--allowed-origins", "https://example.com", "--allowed-methods", "GET", "PUT")
        preflight = {"Origin": "https://example.com", "Access-Control-Request-Method": "PUT"}
        answer = cove.until("the preflight is answered", lambda: self.preflight(host, preflight))
        self.assertEqual(answer["access-control-allow-origin"], "https://example.com")
        self.app("ingress cors update", "--allowed-origins", "https://example.org", "--max-age", "60")
        self.assertEqual(self.app("ingress cors show")["allowedOrigins"], ["https://example.org"])
        cove.until("the old origin is out", lambda: not self.preflight(host, preflight))
        self.app("ingress cors disable")
        self.assertFalse(self.app("ingress cors show"))

        self.app("ingress sticky-sessions set", "--affinity", "sticky")
        self.assertEqual(self.app("ingress sticky-sessions show")["stickySessions"]["affinity"], "sticky")
        cove.until("a cookie keeps the client", lambda: self.server.headers(host).get("set-cookie"))
        self.app("delete", "--yes")

    def preflight(self, host, headers):
        answer = self.server.headers(host, method="OPTIONS", headers=headers)
        return answer if "access-control-allow-origin" in answer else None


class Hostnames(Case):
    APP = "named"

    def test_hostnames_and_certificates(self):
        self.create("--allow-insecure")
        one, two, three = ("one.example.test", "two.example.test", "three.example.test")
        self.app("hostname add", "--hostname", one)
        self.assertEqual([item["name"] for item in self.app("hostname list")], [one])
        cove.until("it answers under the name", lambda: self.server.get(one)[0] == 200)

        certificate = pem.self_signed(self.server.directory, two)
        uploaded = self.env("certificate upload", "--certificate-file", certificate.path, "--certificate-name", "mine")
        self.assertEqual(uploaded["name"], "mine")
        listed = self.env("certificate list", "--private-key-certificates-only")
        self.assertEqual([item["name"] for item in listed], ["mine"])
        self.app("hostname add", "--hostname", two)
        self.app("hostname bind", "--hostname", two, "--certificate", "mine", "--environment", ENVIRONMENT)
        cove.until("the certificate is served", lambda: self.server.leaf(two) == certificate.der)
        pfx = pem.self_signed(self.server.directory, three, password="pw")
        self.app("ssl upload", "--environment", ENVIRONMENT, "--hostname", three, "--certificate-file", pfx.path,
                 "--password", "pw", "--certificate-name", "third")  # fmt: skip
        cove.until("the uploaded one is served", lambda: self.server.leaf(three) == pfx.der)

        managed = self.env("certificate create", "--hostname", one, "--validation-method", "HTTP", "--certificate-name", "managed")
        self.assertEqual(managed["properties"]["subjectName"], one)
        self.app("hostname delete", "--hostname", two, "--yes")
        cove.until("the name is gone", lambda: self.server.get(two)[0] == 404)
        self.env("certificate delete", "--certificate", "mine", "--yes")
        self.assertNotIn("mine", [item["name"] for item in self.env("certificate list")])
        self.app("delete", "--yes")


class Environments(Case):
    def test_environments(self):
        self.az("containerapp", "env", "create", "-n", "second", "-g", GROUP, "-l", "eastus", "--logs-destination", "none")
        self.assertIn("second", [item["name"] for item in self.az("containerapp", "env", "list", "-g", GROUP)])
        self.az("containerapp", "env", "update", "-n", "second", "-g", GROUP, "--tags", "team=blue")
        self.assertEqual(self.az("containerapp", "env", "show", "-n", "second", "-g", GROUP)["tags"], {"team": "blue"})
        self.assertTrue(self.az("containerapp", "env", "list-usages", "-n", "second", "-g", GROUP))
        self.az("containerapp", "env", "delete", "-n", "second", "-g", GROUP, "--yes")
        self.assertNotIn("second", [item["name"] for item in self.az("containerapp", "env", "list", "-g", GROUP)])

    def test_workload_profiles(self):
        kinds = self.az("containerapp", "env", "workload-profile", "list-supported", "-l", "eastus")
        self.assertTrue({"Consumption", "D4", "E4", "NC24-A100"} <= {item["name"] for item in kinds})
        self.env("workload-profile add", "--workload-profile-name", "big", "--workload-profile-type", "D4", "--min-nodes", "0", "--max-nodes", "1")
        self.assertIn("big", [item["name"] for item in self.env("workload-profile list")])
        self.env("workload-profile update", "--workload-profile-name", "big", "--min-nodes", "0", "--max-nodes", "2")
        shown = self.env("workload-profile show", "--workload-profile-name", "big")
        self.assertEqual(shown["properties"]["maximumCount"], 2)
        self.env("premium-ingress add", "--workload-profile-name", "big", "--request-idle-timeout", "10")
        self.env("premium-ingress update", "--header-count-limit", "50")
        self.assertEqual(self.env("premium-ingress show")["headerCountLimit"], 50)
        self.env("premium-ingress remove", "--yes")
        self.env("workload-profile delete", "--workload-profile-name", "big")
        self.assertNotIn("big", [item["name"] for item in self.env("workload-profile list")])

    def test_dapr_components(self):
        path = self.file("component.yaml", """\
            componentType: state.redis
            version: v1
            metadata:
            - {name: redisHost, value: "localhost:6379"}
            - {name: redisPassword, secretRef: pw}
            secrets:
            - {name: pw, value: hunter2}
            scopes: [web]
            """)
        self.env("dapr-component set", "--dapr-component-name", "store", "--yaml", path)
        shown = self.env("dapr-component show", "--dapr-component-name", "store")
        self.assertEqual(shown["properties"]["componentType"], "state.redis")
        self.assertNotIn("hunter2", json.dumps(shown))
        self.assertEqual([item["name"] for item in self.env("dapr-component list")], ["store"])
        self.env("dapr-component remove", "--dapr-component-name", "store")
        self.assertEqual(self.env("dapr-component list"), [])

    def test_storage(self):
        self.env("storage set", "--storage-name", "files", "--azure-file-account-name", "account", "--azure-file-share-name",
                 "share", "--azure-file-account-key", "c2VjcmV0", "--access-mode", "ReadWrite")  # fmt: skip
        shown = self.env("storage show", "--storage-name", "files")
        self.assertEqual(shown["properties"]["azureFile"]["shareName"], "share")
        self.assertNotIn("c2VjcmV0", json.dumps(shown))
        self.assertEqual([item["name"] for item in self.env("storage list")], ["files"])
        self.env("storage remove", "--storage-name", "files", "--yes")
        self.assertEqual(self.env("storage list"), [])


class Routes(Case):
    APP = "routed"

    def test_http_routes(self):
        self.create()
        rules = """\
            rules:
            - description: all
              routes: [{match: {prefix: %s}, action: {prefixRewrite: /}}]
              targets: [{containerApp: routed}]
            """
        path = self.file("routes.yaml", rules % "/one")
        made = self.env("http-route-config create", "-r", "paths", "--yaml", path)
        host = made["properties"]["fqdn"]
        cove.until("the route serves", lambda: self.server.get(host, "/one/env")[0] == 200)
        self.assertEqual(self.server.get(host, "/two/env")[0], 404)
        self.env("http-route-config update", "-r", "paths", "--yaml", self.file("routes.yaml", rules % "/two"))
        cove.until("the new route serves", lambda: self.server.get(host, "/two/env")[0] == 200)
        self.assertEqual(self.env("http-route-config show", "-r", "paths")["name"], "paths")
        self.assertEqual([item["name"] for item in self.env("http-route-config list")], ["paths"])
        self.env("http-route-config delete", "-r", "paths", "--yes")
        cove.until("it is gone", lambda: self.server.get(host, "/two/env")[0] == 404)
        self.app("delete", "--yes")


class Consoles(Case):
    APP = "shells"

    def test_exec_and_logs(self):
        self.app("create", "--environment", ENVIRONMENT, "--image", SHELL, "--min-replicas", "1", "--cpu", "0.25", "--memory", "0.5Gi")
        ready = lambda: [r for r in self.app("replica list") if all(c["ready"] for c in r["properties"]["containers"])]  # noqa: E731
        cove.until("a replica is ready", ready)
        words = ["containerapp", "exec", "-n", self.APP, "-g", GROUP, "--command", "sh"]
        with Terminal([AZ, *words], self.az.environment) as terminal:
            terminal.expect("ctrl + D to exit")
            # az throws away what was typed before it reads: a person would type again
            terminal.type_until("stty size; cat /srv/hello; echo done-$((40+2))\r", "24 80")
            terminal.expect("hello from the image")
            terminal.expect("done-42")
            terminal.send("exit\r")
        self.az.record(words)
        code, out, error = self.az.run("containerapp", "logs", "show", "-n", self.APP, "-g", GROUP, "--tail", "20")
        self.assertEqual(code, 0, error)
        self.assertIn("begun", [json.loads(line)["Log"].split()[-1] for line in out.splitlines() if line.strip()])
        self.az.record(["containerapp", "logs", "show"])
        code, out, error = self.az.run("containerapp", "env", "logs", "show", "-n", ENVIRONMENT, "-g", GROUP, "--tail", "50")
        self.assertEqual(code, 0, error)
        self.assertTrue(all(json.loads(line) for line in out.splitlines() if line.strip()))
        self.assertIn(self.APP, out)
        self.az.record(["containerapp", "env", "logs", "show"])
        self.app("delete", "--yes")


class Settings(Case):
    APP = "settings"

    def test_secrets_registries_identity_dapr(self):
        self.create()
        self.app("secret set", "--secrets", "pw=hunter2")
        self.assertEqual([item["name"] for item in self.app("secret list")], ["pw"])
        self.assertEqual(self.app("secret show", "--secret-name", "pw")["value"], "hunter2")

        self.app("registry set", "--server", "registry.example.test", "--username", "me", "--password", "x")
        self.assertEqual([item["server"] for item in self.app("registry list")], ["registry.example.test"])
        self.assertEqual(self.app("registry show", "--server", "registry.example.test")["username"], "me")
        self.app("registry remove", "--server", "registry.example.test")
        self.assertIn("no assigned registries", self.az.refused("containerapp", "registry", "list", "-n", self.APP, "-g", GROUP))

        given = self.app("identity assign", "--system-assigned")
        self.assertEqual(len(given["principalId"]), 36)
        mine = self.az("identity", "create", "-n", "mine", "-g", GROUP)
        given = self.app("identity assign", "--user-assigned", mine["id"])
        self.assertEqual([value["principalId"] for value in given["userAssignedIdentities"].values()], [mine["principalId"]])
        self.assertIn("SystemAssigned", self.app("identity show")["type"])
        self.app("identity remove", "--user-assigned", mine["id"])
        self.app("identity remove", "--system-assigned")
        self.assertEqual(self.app("identity show")["type"], "None")

        self.app("dapr enable", "--dapr-app-id", "settings", "--dapr-app-port", "80")
        self.assertTrue(self.app("show")["properties"]["configuration"]["dapr"]["enabled"])
        self.app("dapr disable")
        self.assertFalse(self.app("show")["properties"]["configuration"]["dapr"]["enabled"])
        self.app("secret remove", "--secret-names", "pw")
        self.assertFalse(self.app("secret list"))
        self.app("delete", "--yes")

    def test_authentication(self):
        self.create(name="authed")
        app = lambda verb, *arguments: self.app(f"auth {verb}", *arguments, name="authed")  # noqa: E731
        app("update", "--unauthenticated-client-action", "AllowAnonymous", "--enabled", "true")
        self.assertEqual(app("show")["globalValidation"]["unauthenticatedClientAction"], "AllowAnonymous")
        for provider in ("apple", "github", "google"):
            app(f"{provider} update", "--client-id", "id", "--client-secret", "s3cret-value", "--yes")
            self.assertEqual(app(f"{provider} show")["registration"]["clientId"], "id")
        app("facebook update", "--app-id", "id", "--app-secret", "s3cret-value", "--yes")
        self.assertEqual(app("facebook show")["registration"]["appId"], "id")
        app("twitter update", "--consumer-key", "id", "--consumer-secret", "s3cret-value", "--yes")
        self.assertEqual(app("twitter show")["registration"]["consumerKey"], "id")
        app("microsoft update", "--client-id", "id", "--client-secret", "s3cret-value", "--tenant-id", TENANT, "--yes")
        self.assertEqual(app("microsoft show")["registration"]["clientId"], "id")
        provider = ["--provider-name", "own"]
        address = "https://login.example.test/.well-known/openid-configuration"
        app("openid-connect add", *provider, "--client-id", "id", "--client-secret", "s3cret-value", "--openid-configuration", address, "--yes")
        app("openid-connect update", *provider, "--client-id", "other", "--yes")
        self.assertEqual(app("openid-connect show", *provider)["registration"]["clientId"], "other")
        app("openid-connect remove", *provider, "--yes")
        self.assertNotIn("s3cret-value", json.dumps(app("show")))
        self.app("delete", "--yes", name="authed")


class Table(Case):
    """The last, since `unittest` runs classes by name: what was seen is what the document says."""

    def test_document(self):
        az = self.az
        waiting = lambda name: next((why for start, why in WAITING.items() if name.startswith(start + " ")), None)  # noqa: E731
        lines = [
            "# Commands of core `az containerapp`",
            "",
            "Each is run by the unmodified `az` 2.91 against a running server, and its effect is looked at:",
            "`tests/acceptance/run commands_test`. Made by that test, not by hand.",
            "",
            f"{len(az.passed)} of {len(az.commands)} pass.",
            "",
            "| command | here |",
            "|---|---|",
        ]
        missing = []
        for name in az.commands:
            if name in az.passed:
                state = "works"
            else:
                state = waiting(name)
                if state is None:
                    missing.append(name)
            lines.append(f"| `az {name}` | {state} |")
        self.assertEqual(missing, [], "commands that did not succeed in this run")
        text = "\n".join(lines) + "\n"
        if os.environ.get("COVE_WRITE_DOCS") == "1":
            DOCUMENT.write_text(text)
        self.assertEqual(DOCUMENT.read_text(), text, "run with COVE_WRITE_DOCS=1 to write it")


if __name__ == "__main__":
    unittest.main()
