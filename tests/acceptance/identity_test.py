"""Identities, roles, registries, networks and secrets with the unmodified `az`, each followed by a look at its effect."""

import json
import subprocess
import unittest

import cove
import images
from az_test import SAMPLE, ServerCase

VALUE = "correct-horse-battery-staple"
IMAGE = "cove.local/ai-model:latest"


class Identities(ServerCase):
    GROUP = "MyRG"

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.az("group", "create", "-n", cls.GROUP, "-l", "eastus")
        cls.az("containerapp", "env", "create", "-n", "myenv", "-g", cls.GROUP, "-l", "eastus", "--logs-destination", "none")

    def app(self, verb, name, *arguments):
        return self.az("containerapp", *verb.split(), "-n", name, "-g", self.GROUP, *arguments)

    def create(self, name, *arguments, image=SAMPLE):
        return self.app("create", name, "--environment", "myenv", "--image", image, "--min-replicas", "0", *arguments)

    def test_identities_of_apps(self):
        made = self.az("identity", "create", "-n", "shared", "-g", self.GROUP)
        listed = self.az("identity", "list", "-g", self.GROUP)
        self.assertEqual([item["clientId"] for item in listed], [made["clientId"]])
        self.assertEqual(self.az("identity", "show", "-n", "shared", "-g", self.GROUP)["principalId"], made["principalId"])

        app = self.create("who", "--system-assigned", "--user-assigned", "shared")
        own = app["identity"]["principalId"]
        self.assertEqual(app["identity"]["tenantId"], cove.TENANT)
        [shared] = app["identity"]["userAssignedIdentities"].values()
        self.assertEqual((shared["principalId"], shared["clientId"]), (made["principalId"], made["clientId"]))

        left = self.app("identity remove", "who", "--user-assigned", "shared")
        self.assertEqual((left["type"], left["principalId"]), ("SystemAssigned", own))
        both = self.app("identity assign", "who", "--user-assigned", made["id"])
        self.assertEqual(both["principalId"], own)
        self.assertEqual(len(self.app("identity show", "who")["userAssignedIdentities"]), 1)
        none = self.az.refused(
            "containerapp", "identity", "assign", "-n", "who", "-g", self.GROUP, "--user-assigned", "nobody"
        )
        self.assertIn("nobody", none)

        self.app("delete", "who", "--yes")
        again = self.create("who", "--system-assigned")
        self.assertNotEqual(again["identity"]["principalId"], own)
        self.az("identity", "delete", "-n", "shared", "-g", self.GROUP)
        self.assertEqual(self.az("identity", "list", "-g", self.GROUP), [])

    def test_roles(self):
        identity = self.az("identity", "create", "-n", "worker", "-g", self.GROUP)
        [role] = self.az("role", "definition", "list", "--name", "AcrPull")
        self.assertEqual(role["roleType"], "BuiltInRole")
        scope = self.az("group", "show", "-n", self.GROUP)["id"]
        for assignee in (identity["principalId"], identity["clientId"]):
            made = self.az("role", "assignment", "create", "--assignee", assignee, "--role", "AcrPull", "--scope", scope)
            self.assertEqual((made["principalId"], made["principalType"]), (identity["principalId"], "ServicePrincipal"))
        [listed] = self.az("role", "assignment", "list", "--assignee", identity["principalId"], "--all")
        self.assertEqual((listed["roleDefinitionName"], listed["scope"]), ("AcrPull", scope))
        self.assertEqual(listed["principalName"], identity["clientId"])
        self.az("role", "assignment", "delete", "--assignee", identity["principalId"], "--role", "AcrPull", "--scope", scope)
        # another test of this class leaves an assignment of its own
        left = self.az("role", "assignment", "list", "--all")
        self.assertNotIn(identity["principalId"], [assignment["principalId"] for assignment in left])

        definition = {"Name": "Watcher", "Description": "d", "Actions": ["*/read"], "AssignableScopes": [scope]}
        custom = self.az("role", "definition", "create", "--role-definition", json.dumps(definition))
        self.assertEqual(custom["roleType"], "CustomRole")
        self.az("role", "definition", "delete", "--name", "Watcher", "--scope", scope)
        self.assertEqual(self.az("role", "definition", "list", "--name", "Watcher"), [])

    def test_an_image_of_a_registry_by_identity(self):
        images.import_shell(self.server, IMAGE)
        registry = self.az("acr", "create", "-n", "myregistry", "-g", self.GROUP, "--sku", "Basic", "--admin-enabled", "true")
        self.assertEqual(registry["loginServer"], "myregistry.azurecr.io")
        self.assertEqual(self.az("acr", "credential", "show", "-n", "myregistry")["username"], "myregistry")
        app = self.create(
            "model", "--registry-server", "myregistry.azurecr.io", "--registry-identity", "system",
            "--min-replicas", "1", image="myregistry.azurecr.io/ai-model:latest",
        )  # fmt: skip
        self.assertEqual(app["properties"]["provisioningState"], "Succeeded")
        self.assertEqual(app["properties"]["configuration"]["registries"][0]["identity"], "system")
        [assignment] = self.az("role", "assignment", "list", "--scope", registry["id"])
        self.assertEqual(assignment["principalId"], app["identity"]["principalId"])
        self.assertEqual(assignment["roleDefinitionName"], "AcrPull")
        listed = self.app("registry list", "model")
        self.assertEqual(listed[0]["server"], "myregistry.azurecr.io")

    def test_secrets(self):
        app = self.create("keeper", "--secrets", f"pass={VALUE}", "--env-vars", "PASS=secretref:pass")
        revision = app["properties"]["latestRevisionName"]
        self.assertEqual(self.app("secret list", "keeper"), [{"name": "pass"}])
        self.assertEqual(self.app("secret show", "keeper", "--secret-name", "pass")["value"], VALUE)
        self.app("secret set", "keeper", "--secrets", "other=x")
        refused = self.az.refused("containerapp", "secret", "remove", "-n", "keeper", "-g", self.GROUP, "--secret-names", "pass")
        self.assertIn("ContainerAppSecretInUse", refused)
        self.app("secret remove", "keeper", "--secret-names", "other")
        self.app("secret set", "keeper", "--secrets", f"pass={VALUE}-2")
        self.assertEqual(self.app("show", "keeper")["properties"]["latestRevisionName"], revision)
        for path in self.server.data.glob("*"):
            if path.is_file():
                self.assertNotIn(VALUE.encode(), path.read_bytes(), path)
        self.assertNotIn(VALUE, self.server.log(10_000))
        rotate = [cove.BINARY, "secrets", "rotate", "--data-dir", str(self.server.data), "-o", "json"]
        done = subprocess.run(rotate, capture_output=True, text=True, check=True, timeout=60)
        self.assertGreaterEqual(json.loads(done.stdout)["rotated"], 1)
        self.assertEqual(self.app("secret show", "keeper", "--secret-name", "pass")["value"], f"{VALUE}-2")

    def test_a_network_and_a_zone_redundant_environment(self):
        network = self.az(
            "network", "vnet", "create", "-n", "net", "-g", self.GROUP, "--address-prefixes", "10.0.0.0/16",
            "--subnet-name", "apps", "--subnet-prefixes", "10.0.0.0/23",
        )["newVNet"]  # fmt: skip
        subnet = network["subnets"][0]["id"]
        environment = self.az(
            "containerapp", "env", "create", "-n", "zones", "-g", self.GROUP, "-l", "eastus", "--logs-destination", "none",
            "--zone-redundant", "--infrastructure-subnet-resource-id", subnet,
        )  # fmt: skip
        self.assertEqual(environment["properties"]["zoneRedundant"], True)

    def test_a_workspace(self):
        workspace = self.az("monitor", "log-analytics", "workspace", "create", "-n", "logs-one", "-g", self.GROUP)
        keys = self.az("monitor", "log-analytics", "workspace", "get-shared-keys", "-n", "logs-one", "-g", self.GROUP)
        self.assertTrue(keys["primarySharedKey"])
        updated = self.az(
            "monitor", "log-analytics", "workspace", "update", "-n", "logs-one", "-g", self.GROUP, "--retention-time", "60"
        )
        self.assertEqual((updated["retentionInDays"], updated["customerId"]), (60, workspace["customerId"]))
        self.az("monitor", "log-analytics", "workspace", "delete", "-n", "logs-one", "-g", self.GROUP, "--yes")


if __name__ == "__main__":
    unittest.main()
