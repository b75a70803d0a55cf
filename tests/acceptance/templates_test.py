"""`az deployment` and `az group export` against a real server: templates that deploy, preview, fail, and what they leave."""

import json
import pathlib
import re
import unittest

from az_test import ServerCase

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples" / "templates"
SAMPLE = "cove.local/sample:latest"


class Templates(ServerCase):
    """One group; every command of `az deployment group` on it."""

    GROUP = "templates"
    # sixteen apps start at once; and the SDK below `az deployment` takes a wait of 0 s for none given, and looks again
    # after 30 s
    CONFIG = ServerCase.CONFIG.replace('provisioning_deadline = "60s"', 'provisioning_deadline = "240s"').replace(
        "retry_after = 0", "retry_after = 1"
    )

    def group(self, verb, *arguments):
        return self.az("deployment", "group", *verb.split(), "-g", self.GROUP, *arguments)

    def what_if(self, *arguments):
        """The readable diff: exit code 0, its text."""
        code, out, error = self.az.run("deployment", "group", "what-if", "-g", self.GROUP, *arguments)
        self.assertEqual(code, 0, error)
        return out

    def test_shop(self):
        self.az("group", "create", "-n", self.GROUP, "-l", "eastus")
        shop = ["-n", "shop", "-f", str(EXAMPLES / "shop.json"), "-p", "apiKey=very-secret", f"image={SAMPLE}"]
        valid = self.group("validate", *shop)
        self.assertEqual(valid["properties"]["provisioningState"], "Succeeded")
        self.assertEqual(self.az("resource", "list", "-g", self.GROUP), [])
        self.assertIn("to create", self.what_if(*shop))
        made = self.group("create", *shop)
        properties = made["properties"]
        self.assertEqual(properties["provisioningState"], "Succeeded")
        self.assertEqual(properties["outputs"]["url"]["value"], "https://shop-gateway.shop-env.localhost")
        self.assertNotIn("very-secret", json.dumps(made))
        self.assertGreaterEqual(len(properties["outputResources"]), 20)
        kinds = {item["type"] for item in self.az("resource", "list", "-g", self.GROUP)}
        self.assertIn("Microsoft.App/containerApps", kinds)
        status, text = self.server.get("shop-gateway.shop-env.localhost", "/env")
        self.assertEqual(status, 200, text)
        self.assertIn("ROUTES=/=shop-web.shop-env.localhost;/api=shop-api.shop-env.localhost", text)
        self.no_change(shop)
        self.records()
        self.exported()

    def no_change(self, shop):
        again = self.what_if(*shop)
        self.assertIn("no change", again)
        self.assertIsNone(re.search(r"\d+ to (create|modify|delete|deploy)", again), again)
        changed = self.what_if(*shop[:-1], "image=cove.local/sample:v2", "workerCount=5")
        self.assertIn("properties.template.containers", changed)
        self.assertRegex(changed, r"to modify")

    def records(self):
        shown = self.group("show", "-n", "shop")
        self.assertEqual(shown["properties"]["parameters"]["apiKey"], {"type": "SecureString"})
        names = {item["name"] for item in self.group("list")}
        self.assertLessEqual({"shop", "shop-web", "shop-gateway"}, names)
        operations = self.az("deployment", "operation", "group", "list", "-g", self.GROUP, "-n", "shop")
        self.assertEqual({item["properties"]["provisioningState"] for item in operations}, {"Succeeded"})
        exported = self.group("export", "-n", "shop")
        self.assertEqual(exported, json.loads((EXAMPLES / "shop.json").read_text()))
        self.group("delete", "-n", "shop-gateway")
        self.assertIn("DeploymentNotFound", self.az.refused("deployment", "group", "show", "-g", self.GROUP, "-n", "shop-gateway"))
        self.assertIn("DeploymentCannotBeCancelled", self.az.refused("deployment", "group", "cancel", "-g", self.GROUP, "-n", "shop"))

    def exported(self):
        """A group's export, deployed to the group again, changes nothing but secrets that must be given."""
        template = self.az("group", "export", "-n", self.GROUP, "--include-parameter-default-value")
        path = self.server.directory / "exported.json"
        path.write_text(json.dumps(template))
        secure = [name for name, value in template["parameters"].items() if value["type"] == "SecureString"]
        given = [f"{name}=very-secret" for name in secure]
        self.assertTrue(given)
        text = self.what_if("-n", "exported", "-f", str(path), "-p", *given)
        self.assertIsNone(re.search(r"\d+ to (create|delete)", text), text)

    def test_mistakes(self):
        self.az("group", "create", "-n", "mistakes", "-l", "eastus")
        template = json.loads((EXAMPLES / "seed-http-rule.json").read_text())
        template["resources"]["app"]["properties"]["template"]["containers"][0]["resources"]["cpu"] = 9
        path = self.server.directory / "wrong.json"
        path.write_text(json.dumps(template, indent=2) + "\n// the end\n")
        error = self.az.refused("deployment", "group", "create", "-g", "mistakes", "-n", "wrong", "-f", str(path))
        self.assertIn("InvalidTemplateDeployment", error)
        self.assertIn("resources.app.properties.template.containers", error)
        self.assertEqual(self.az("resource", "list", "-g", "mistakes"), [])
        template["resources"]["app"]["properties"]["template"]["containers"][0]["resources"]["cpu"] = 0.25
        path.write_text(json.dumps(template))
        error = self.az.refused(
            "deployment", "group", "create", "-g", "mistakes", "-n", "wrong", "-f", str(path),
            "-p", "image=cove.local/no-such-image:1",
        )  # fmt: skip
        self.assertIn("DeploymentFailed", error)
        self.assertIn("resources.app", error)
        self.assertIn("Deployed: 'my-environment'", error)

    def test_subscription(self):
        teams = ["-n", "teams", "-l", "eastus", "-f", str(EXAMPLES / "subscription.json")]
        code, out, error = self.az.run("deployment", "sub", "what-if", *teams)
        self.assertEqual(code, 0, error)
        self.assertIn("to create", out)
        made = self.az("deployment", "sub", "create", *teams)
        self.assertEqual(made["properties"]["outputs"]["domains"]["value"], ["env-blue.localhost", "env-green.localhost"])
        self.assertEqual(self.az("deployment", "sub", "show", "-n", "teams")["location"], "eastus")
        self.assertTrue(self.az("group", "exists", "-n", "team-green"))
        shown = self.az(
            "resource", "show", "-g", "team-green", "-n", "env-green",
            "--resource-type", "Microsoft.App/managedEnvironments",
        )  # fmt: skip
        self.assertEqual(shown["name"], "env-green")

    def test_seeds(self):
        self.az("group", "create", "-n", "seeds", "-l", "eastus")
        for name, given in (
            ("http", []), ("tcp", []), ("custom", ["connectionString=Endpoint=sb://example/"]), ("identity", []),
        ):  # fmt: skip
            with self.subTest(name):
                template = str(EXAMPLES / f"seed-{name}-rule.json")
                made = self.az(
                    "deployment", "group", "create", "-g", "seeds", "-n", name, "-f", template,
                    "-p", f"image={SAMPLE}", *given,
                )  # fmt: skip
                self.assertEqual(made["properties"]["provisioningState"], "Succeeded")


if __name__ == "__main__":
    unittest.main()
