"""Scale rules as people write them: az's flags, YAML, ARM templates and the examples of the guide, right and wrong ones."""

import json
import pathlib
import re
import shlex

import cove
from az_test import SAMPLE, ServerCase

SCALERS = pathlib.Path(__file__).resolve().parents[2] / "docs" / "scalers"
BUS = {"queueName": "my-queue", "namespace": "service-bus-namespace", "messageCount": "5"}
BUS_AUTH = [{"secretRef": "connection-string-secret", "triggerParameter": "connection"}]
CONNECTION = "Endpoint=sb://example.servicebus.windows.net/;SharedAccessKeyName=k;SharedAccessKey=s"


def custom(name, scaler, metadata, **more):
    return {"name": name, "custom": {"type": scaler, "metadata": metadata, **more}}


# flags of `az containerapp create`, and the rule that they make
FORMS = {
    "http": (
        "--scale-rule-name azure-http-rule --scale-rule-type http --scale-rule-http-concurrency 100",
        {"name": "azure-http-rule", "http": {"metadata": {"concurrentRequests": "100"}}},
    ),
    "tcp": (
        "--transport tcp --ingress internal --target-port 8080 --env-vars PORT=8080 --scale-rule-name azure-tcp-rule --scale-rule-type tcp"
        " --scale-rule-tcp-concurrency 100",
        {"name": "azure-tcp-rule", "tcp": {"metadata": {"concurrentConnections": "100"}}},
    ),
    "service-bus": (
        f"--secrets 'connection-string-secret={CONNECTION}' --scale-rule-name azure-servicebus-queue-rule"
        " --scale-rule-type azure-servicebus --scale-rule-metadata queueName=my-queue namespace=service-bus-namespace"
        " messageCount=5 --scale-rule-auth connection=connection-string-secret",
        custom("azure-servicebus-queue-rule", "azure-servicebus", BUS, auth=BUS_AUTH),
    ),
    "prometheus": (
        "--scale-rule-name gpu-utilization --scale-rule-type prometheus --scale-rule-metadata"
        " serverAddress=http://prometheus:9090 query=avg(up) threshold=70",
        custom(
            "gpu-utilization",
            "prometheus",
            {"serverAddress": "http://prometheus:9090", "query": "avg(up)", "threshold": "70"},
        ),
    ),
}

# scale sections of ARM templates, as documented: what they hold, and the code that refuses them
QUEUE = {"accountName": "myaccount", "queueName": "queue1", "queueLength": "1"}
HTTP_RULE = {"name": "http-rule", "http": {"metadata": {"concurrentRequests": "100"}}}
SECTIONS = {
    "http": ({"minReplicas": 0, "maxReplicas": 5, "rules": [HTTP_RULE]}, None),
    "tcp": (
        {
            "minReplicas": 0,
            "maxReplicas": 5,
            "rules": [{"name": "tcp-rule", "tcp": {"metadata": {"concurrentConnections": "100"}}}],
        },
        None,
    ),
    "bus": (
        {
            "minReplicas": 0,
            "maxReplicas": 5,
            "rules": [custom("azure-servicebus-queue-rule", "azure-servicebus", BUS, auth=BUS_AUTH)],
        },
        None,
    ),
    "queue": (
        {"minReplicas": 0, "maxReplicas": 4, "rules": [custom("azure-queue", "azure-queue", QUEUE, identity="system")]},
        None,
    ),
    "queue-form": (
        {
            "rules": [
                {
                    "name": "q",
                    "azureQueue": {"accountName": "a", "queueName": "q", "queueLength": 1, "identity": "system"},
                }
            ]
        },
        None,
    ),
    "concurrent-connections-under-http": (
        {"rules": [{"name": "tcp-rule", "http": {"metadata": {"concurrentConnections": "100"}}}]},
        None,
    ),
    "swapped": ({"maxReplicas": 0, "minReplicas": 5, "rules": [HTTP_RULE]}, "MaxReplicasOutOfRange"),
    "min-above-max": ({"maxReplicas": 3, "minReplicas": 5, "rules": [HTTP_RULE]}, "MinGreaterThanMax"),
    "no-type": ({"rules": [{"name": "r", "custom": {"metadata": {}}}]}, "CustomTypeMissing"),
    "no-such-type": ({"rules": [custom("r", "abacus", {})]}, "CustomTypeUnknown"),
    "no-such-secret": (
        {"rules": [custom("r", "redis", {"listName": "l", "address": "r:6379"}, auth=[{"secretRef": "no"}])]},
        "AuthSecretNotFound",
    ),
}


class Rules(ServerCase):
    """One environment; every app in it scales by one rule."""

    GROUP, ENVIRONMENT = "scaling", "rules"
    CONFIG = cove.CONFIG + '\n[capacity]\ncores = 64\nmemory = "256GiB"\n'

    def test_it(self):
        self.az("group", "create", "-n", self.GROUP, "-l", "eastus")
        environment = self.az(
            "containerapp", "env", "create", "-n", self.ENVIRONMENT, "-g", self.GROUP, "-l", "eastus",
            "--logs-destination", "none",
        )  # fmt: skip
        self.environment = environment["id"]
        for name, (flags, rule) in FORMS.items():
            with self.subTest(form=name):
                self.form(name, flags, rule)
        self.template()
        self.wrong_templates()
        self.own_properties()
        for page in sorted(SCALERS.glob("*.md")):
            if page.name != "README.md":
                with self.subTest(page=page.name):
                    self.example(page)

    def form(self, name, flags, rule):
        self.az(
            "containerapp", "create", "-n", name, "-g", self.GROUP, "--environment", self.ENVIRONMENT, "--image", SAMPLE,
            "--min-replicas", "0", "--max-replicas", "5", *shlex.split(flags),
        )  # fmt: skip
        # what `create` prints has no metadata: az blanks it as it blanks secrets
        app = self.az("containerapp", "show", "-n", name, "-g", self.GROUP)
        scale = app["properties"]["template"]["scale"]
        # az sends an empty list where a rule has no auth
        rules = [json.loads(json.dumps(found).replace('"auth": [], ', "")) for found in scale["rules"]]
        self.assertEqual(rules, [rule])
        self.assertEqual((scale["minReplicas"], scale["maxReplicas"]), (0, 5))
        self.assertEqual([found["name"] for found in scale["coveEffective"]["rules"]], [rule["name"]])

    def app_of(self, name, scale):
        configuration = {"secrets": [{"name": "connection-string-secret", "value": CONNECTION}]}
        if any("tcp" in rule or "http" in rule for rule in scale["rules"]):
            transport = "tcp" if "tcp" in scale["rules"][0] else "auto"
            configuration["ingress"] = {"external": False, "targetPort": 80, "transport": transport}
            if transport == "tcp":
                configuration["ingress"]["exposedPort"] = 9090
        return {
            "type": "Microsoft.App/containerApps",
            "apiVersion": "2025-01-01",
            "name": name,
            "location": "eastus",
            "identity": {"type": "SystemAssigned"},
            "properties": {
                "environmentId": self.environment,
                "configuration": configuration,
                "template": {"containers": [{"name": "main", "image": SAMPLE}], "scale": scale},
            },
        }

    def deploy(self, *apps):
        template = {
            "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
            "contentVersion": "1.0.0.0",
            "resources": list(apps),
        }
        path = self.server.directory / "template.json"
        path.write_text(json.dumps(template))
        return ["deployment", "group", "create", "-g", self.GROUP, "-n", "scale", "-f", str(path)]

    def template(self):
        right = {f"arm-{name}"[:32].rstrip("-"): scale for name, (scale, code) in SECTIONS.items() if code is None}
        made = self.az(*self.deploy(*(self.app_of(name, scale) for name, scale in right.items())))
        self.assertEqual(made["properties"]["provisioningState"], "Succeeded")
        for name, scale in right.items():
            with self.subTest(template=name):
                properties = self.az("containerapp", "show", "-n", name, "-g", self.GROUP)["properties"]
                shown = properties["template"]["scale"]
                expected = {"minReplicas": 0, "maxReplicas": 10, "cooldownPeriod": 300, "pollingInterval": 30, **scale}
                self.assertEqual({key: shown[key] for key in expected}, {**expected, "rules": shown["rules"]})
                if name.startswith("arm-concurrent"):
                    # accepted, as in Azure: an http rule whose key is not read, so the default of 10 holds
                    self.assertEqual(shown["coveEffective"]["rules"][0], {"name": "tcp-rule", "kind": "http", "target": 10})
                    self.assertIn("`concurrentConnections` is not read", " ".join(properties["coveWarnings"]))
                else:
                    self.assertEqual(shown["rules"], scale["rules"])

    def wrong_templates(self):
        for name, (scale, code) in SECTIONS.items():
            if code is None:
                continue
            with self.subTest(template=name):
                error = self.az.refused(*self.deploy(self.app_of(f"wrong-{name}", scale)))
                self.assertIn(code, error)
                if name == "swapped":
                    self.assertIn("MinGreaterThanMax", error, "all errors at once")
        names = [app["name"] for app in self.az("containerapp", "list", "-g", self.GROUP)]
        self.assertEqual([name for name in names if name.startswith("wrong-")], [])

    def own(self, verb, *flags):
        place = ["-n", "own", "-g", self.GROUP]
        return self.server.command("containerapp", verb, *place, *flags)["properties"]

    def own_properties(self):
        """Mode, idle state and constants: set by `cove`, kept by `az`, shown by both."""
        made = self.own(
            "create", "--environment", self.ENVIRONMENT, "--image", SAMPLE, "--scale-mode", "fast", "--cooldown-period",
            "60", "--scale-setting", "scaleDownWindowSeconds=45", "fallback.failureThreshold=3", "fallback.replicas=2",
        )  # fmt: skip
        scale = made["template"]["scale"]
        settings = {
            "scaleDownWindowSeconds": 45,
            "fallback": {"failureThreshold": 3, "replicas": 2, "behavior": "static"},
        }
        self.assertEqual((scale["coveMode"], scale["coveSettings"]), ("fast", settings))
        effective = scale["coveEffective"]
        self.assertEqual((effective["mode"], effective["scaleDownWindowSeconds"]), ("fast", 45))
        self.assertEqual((effective["cooldownPeriodSeconds"], effective["loadSamplingSeconds"]), (60, 1))

        # a change of a constant is a new revision; the old one shows what it had
        changed = self.own("update", "--scale-mode", "aca", "--scale-setting", "stepFloor=8", "fallback=")
        first, second = made["latestRevisionName"], changed["latestRevisionName"]
        self.assertNotEqual(first, second)
        shown = changed["template"]["scale"]
        self.assertEqual(shown["coveSettings"], {"scaleDownWindowSeconds": 45, "stepFloor": 8})
        self.assertEqual(shown["coveEffective"]["loadSamplingSeconds"], 15)
        self.assertNotIn("fallback", shown["coveEffective"])
        revision = self.az("containerapp", "revision", "show", "-n", "own", "-g", self.GROUP, "--revision", first)
        self.assertEqual(revision["properties"]["template"]["scale"]["coveEffective"]["mode"], "fast")

        # az knows none of it, and keeps it
        updated = self.az("containerapp", "update", "-n", "own", "-g", self.GROUP, "--max-replicas", "7")["properties"]
        kept = updated["template"]["scale"]
        self.assertEqual((kept["maxReplicas"], kept["coveMode"], kept["coveSettings"]), (7, "aca", shown["coveSettings"]))
        self.assertEqual(kept["coveEffective"]["stepFloor"], 8)

        # what is shown can be sent back: no new revision
        path = self.server.directory / "own.json"
        path.write_text(json.dumps(self.az("containerapp", "show", "-n", "own", "-g", self.GROUP)))
        again = self.az("containerapp", "update", "-n", "own", "-g", self.GROUP, "--yaml", str(path))["properties"]
        self.assertEqual(again["latestRevisionName"], updated["latestRevisionName"])
        self.assertEqual(again["template"]["scale"], kept)

        status, body = self.server.call(
            "PATCH",
            f"/subscriptions/{cove.SUBSCRIPTION}/resourceGroups/{self.GROUP}/providers/Microsoft.App/containerApps/own"
            "?api-version=2025-01-01",
            json.dumps({"properties": {"template": {"scale": {"pollingInterval": 0, "coveSettings": {"stepFlor": 1, "stepFloor": 0}}}}}),
            {"Content-Type": "application/json"},
        )
        self.assertEqual(status, 400, body)
        self.assertEqual(body["error"]["code"], "InvalidRequestParameterWithDetails")
        codes = sorted(detail["code"] for detail in body["error"]["details"])
        self.assertEqual(codes, ["InvalidParameterValue", "InvalidParameterValue", "PollingIntervalInvalid"])

    def example(self, page):
        """The commands of a page, run; they make the rule that the page writes in ARM's form, and so does its YAML."""
        blocks = dict(re.findall(r"^```(yaml|json|sh)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE))
        name = f"page-{page.stem}"[:32]
        words = shlex.split(blocks["sh"].replace("\\\n", " "))
        self.assertEqual(words[:3], ["az", "containerapp", "create"])
        filled = {"web": name, "rg": self.GROUP, "env": self.ENVIRONMENT, "<IMAGE>": SAMPLE}
        words = [filled.get(word, word) for word in words[1:]]
        if "--secrets" in words:
            words = [word.replace("<VALUE>", "some-value") for word in words]
        made = self.server.command(*words, "--no-wait")
        expected = json.loads(blocks["json"])["properties"]["template"]["scale"]
        scale = made["properties"]["template"]["scale"]
        self.assertEqual({key: scale[key] for key in expected}, expected)

        path = self.server.directory / "page.yaml"
        path.write_text(blocks["yaml"].replace("<VALUE>", "some-value"))
        cove.until("it is made", lambda: self.server.command("containerapp", "show", "-n", name, "-g", self.GROUP))
        again = self.server.command("containerapp", "update", "-n", name, "-g", self.GROUP, "--yaml", str(path), "--no-wait")
        self.assertEqual(again["properties"]["template"]["scale"], scale)
