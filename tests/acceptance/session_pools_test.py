"""Session pools as a resource: `cove`, the Python SDK and `az` make, show, change, list and delete them.

Core `az` has no `sessionpool` (it is in the `containerapp` extension, which no package registry has): with `az` the same
requests go through `az rest` and `az resource`.
"""

import base64
import json
import os
import pathlib
import subprocess
import unittest

import az_test
import cove
import requests
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.identity import ClientSecretCredential
from cove import SUBSCRIPTION
from sdk_test import GROUP, SAMPLE, Anybody, SdkCase, client_of

VERSION = "2025-07-01"
AUDIENCE = "https://dynamicsessions.io"
SEED_CREATE = r"""
az containerapp sessionpool create \
    --name my-session-pool \
    --resource-group <RESOURCE_GROUP> \
    --environment <ENVIRONMENT> \
    --registry-server myregistry.azurecr.io \
    --registry-username <USER_NAME> \
    --registry-password <PASSWORD> \
    --container-type CustomContainer \
    --image myregistry.azurecr.io/my-container-image:1.0 \
    --cpu 0.25 --memory 0.5Gi \
    --target-port 80 \
    --cooldown-period 300 \
    --network-status EgressDisabled \
    --max-sessions 10 \
    --ready-sessions 5 \
    --env-vars "key1=value1" "key2=value2" \
    --location <LOCATION>
"""
SEED_SHOW = r"""
az containerapp sessionpool show \
    --name <SESSION_POOL_NAME> \
    --resource-group <RESOURCE_GROUP> \
    --query "properties.poolManagementEndpoint" \
    --output tsv
"""
FILLED = {
    "<RESOURCE_GROUP>": GROUP,
    "<ENVIRONMENT>": "sdkenv",
    "<USER_NAME>": "me",
    "<PASSWORD>": "pw",
    "<LOCATION>": "eastus",
    "<SESSION_POOL_NAME>": "my-session-pool",
    # the image of the seed is nobody's: the built-in one in its place
    "myregistry.azurecr.io/my-container-image:1.0": SAMPLE,
}


def filled(text):
    for name, value in FILLED.items():
        text = text.replace(name, value)
    return text


def pool_body(environment, **properties):
    return {
        "location": "eastus",
        "properties": {
            "environmentId": environment,
            "poolManagementType": "Dynamic",
            "containerType": "CustomContainer",
            "customContainerTemplate": {
                "containers": [{"name": "main", "image": SAMPLE, "resources": {"cpu": 0.25, "memory": "0.5Gi"}}],
                "ingress": {"targetPort": 80},
            },
            "scaleConfiguration": {"maxConcurrentSessions": 3, "readySessionInstances": 1},
            "dynamicPoolConfiguration": {
                "lifecycleConfiguration": {"lifecycleType": "Timed", "cooldownPeriodInSeconds": 300}
            },
            "sessionNetworkConfiguration": {"status": "EgressDisabled"},
            **properties,
        },
    }


class SessionPools(SdkCase):
    """The resource, with `cove` and the SDK."""

    def pools(self):
        return self.client.container_apps_session_pools

    def bash(self, line):
        """A line in which `az` is `cove`."""
        binary = pathlib.Path(cove.BINARY).resolve()
        script = f'set -e\naz() {{ {binary} "$@"; }}\n{line}\n'
        environment = {**os.environ, "COVE_DATA_DIR": str(self.server.data), "HOME": str(self.server.directory)}
        done = subprocess.run(
            ["bash", "-c", script], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
        )
        return done.returncode, done.stdout, done.stderr

    def create(self, name, **properties):
        return self.pools().begin_create_or_update(GROUP, name, pool_body(self.environment.id, **properties)).result(180)

    def test_the_seeds_commands(self):
        code, out, error = self.bash(filled(SEED_CREATE))
        self.assertEqual(code, 0, f"{error}\n{out}")
        made = json.loads(out)
        self.assertEqual(made["properties"]["provisioningState"], "Succeeded")
        self.assertEqual(
            made["properties"]["scaleConfiguration"], {"maxConcurrentSessions": 10, "readySessionInstances": 5}
        )
        container = made["properties"]["customContainerTemplate"]["containers"][0]
        self.assertEqual([one["name"] for one in container["env"]], ["key1", "key2"])
        self.assertNotIn('"pw"', out, "no answer holds a secret's value")
        code, out, error = self.bash(filled(SEED_SHOW))
        self.assertEqual((code, out.strip()), (0, made["properties"]["poolManagementEndpoint"]), error)
        self.assertTrue(out.startswith("https://"), out)
        pool = ("-n", "my-session-pool", "-g", GROUP)
        changed = self.server.command("containerapp", "sessionpool", "update", *pool, "--ready-sessions", "0")
        self.assertEqual(changed["properties"]["scaleConfiguration"]["readySessionInstances"], 0)
        listed = self.server.command("sessionpool", "list", "-g", GROUP)
        self.assertIn("my-session-pool", [one["name"] for one in listed])
        self.server.command("sessionpool", "delete", *pool, "--yes")
        code, _, error = self.bash(filled(SEED_SHOW))
        self.assertEqual(code, 3, error)

    def test_the_sdk(self):
        made = self.create("sdkpool", secrets=[{"name": "token", "value": "hush"}])
        self.assertEqual(made.properties.provisioning_state, "Succeeded")
        self.assertEqual(made.properties.scale_configuration.max_concurrent_sessions, 3)
        self.assertEqual([secret.name for secret in made.properties.secrets], ["token"])
        self.assertTrue(made.properties.pool_management_endpoint.startswith("https://"))
        self.assertEqual(self.pools().get(GROUP, "SDKPOOL").id, made.id, "names have no case")
        self.assertIn("sdkpool", [one.name for one in self.pools().list_by_resource_group(GROUP)])
        self.assertIn("sdkpool", [one.name for one in self.pools().list_by_subscription()])
        patch = {"properties": {"dynamicPoolConfiguration": {"lifecycleConfiguration": {"cooldownPeriodInSeconds": 600}}}}
        changed = self.pools().begin_update(GROUP, "sdkpool", patch).result(180)
        lifecycle = changed.properties.dynamic_pool_configuration.lifecycle_configuration
        self.assertEqual((lifecycle.cooldown_period_in_seconds, lifecycle.lifecycle_type), (600, "Timed"))
        with self.assertRaises(HttpResponseError) as refused:
            self.client.managed_environments.begin_delete(GROUP, "sdkenv").result(60)
        self.assertEqual(refused.exception.status_code, 409)
        self.pools().begin_delete(GROUP, "sdkpool").result(180)
        with self.assertRaises(ResourceNotFoundError):
            self.pools().get(GROUP, "sdkpool")

    def test_a_template_makes_a_pool(self):
        template = {
            "$schema": "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#",
            "contentVersion": "1.0.0.0",
            "parameters": {"environment": {"type": "string"}},
            "resources": [
                {
                    "type": "Microsoft.App/sessionPools",
                    "apiVersion": VERSION,
                    "name": "templatepool",
                    **pool_body("[parameters('environment')]"),
                }
            ],
            "outputs": {
                "endpoint": {
                    "type": "string",
                    "value": "[reference(resourceId('Microsoft.App/sessionPools', 'templatepool')).poolManagementEndpoint]",
                }
            },
        }
        path = self.server.directory / "pool-template.json"
        path.write_text(json.dumps(template))
        words = ("deployment", "group", "create", "-g", GROUP, "-n", "pool", "-f", str(path))
        made = self.server.command(*words, "-p", f"environment={self.environment.id}")
        pool = self.pools().get(GROUP, "templatepool")
        self.assertEqual(made["properties"]["outputs"]["endpoint"]["value"], pool.properties.pool_management_endpoint)
        self.assertEqual(pool.properties.provisioning_state, "Succeeded")
        again = ("deployment", "group", "what-if", "-g", GROUP, "-f", str(path), "--no-pretty-print")
        seen = self.server.command(*again, "-p", f"environment={self.environment.id}")
        self.assertEqual([one["changeType"] for one in seen["properties"]["changes"] if one["resourceId"] == pool.id], ["NoChange"], seen)
        self.pools().begin_delete(GROUP, "templatepool").result(180)

    def test_the_guides_quick_start(self):
        pool = self.create("quickpool")
        credential = ClientSecretCredential(
            cove.TENANT, "me", "any", authority=self.server.api, disable_instance_discovery=True,
            connection_verify=self.server.ca,
        )  # fmt: skip
        self.addCleanup(credential.close)
        token = credential.get_token(f"{AUDIENCE}/.default").token
        endpoint = self.server.api + pool.id.replace("/providers/Microsoft.App", "")

        def ask(identifier, token=token):
            return requests.post(
                f"{endpoint}/echo", params={"identifier": identifier}, headers={"Authorization": f"Bearer {token}"},
                json={"command": "echo 'Hello, world!'"}, verify=self.server.ca, timeout=90,
            )  # fmt: skip

        answer = ask("user-4711")
        self.assertEqual(answer.status_code, 200, f"{answer.text}\n{self.server.log(30)}")
        self.assertIn("Hello, world!", answer.text)
        self.assertEqual(ask("user-4711").headers["x-ms-session-guid"], answer.headers["x-ms-session-guid"])
        self.assertEqual(ask("no").status_code, 400, "three characters are too few")
        own = credential.get_token(f"{self.server.api}/.default").token
        self.assertIn(ask("user-4711", own).status_code, (401, 403), "a token for the API opens no session")
        words = ("-n", "quickpool", "-g", GROUP)
        listed = self.server.command("session", "list", *words)
        self.assertEqual([one["identifier"] for one in listed], ["user-4711"], listed)
        self.server.command("session", "stop", *words, "--identifier", "user-4711")
        self.assertEqual(self.server.command("session", "list", *words), [])
        self.pools().begin_delete(GROUP, "quickpool").result(180)

    def test_bad_input_is_refused_with_all_mistakes(self):
        body = pool_body(
            self.environment.id,
            scaleConfiguration={"maxConcurrentSessions": 1, "readySessionInstances": 2},
            dynamicPoolConfiguration={"lifecycleConfiguration": {"cooldownPeriodInSeconds": 299}},
        )
        with self.assertRaises(HttpResponseError) as refused:
            self.pools().begin_create_or_update(GROUP, "badpool", body).result(60)
        self.assertEqual(refused.exception.status_code, 400)
        text = str(refused.exception)
        self.assertIn("readySessionInstances", text)
        self.assertIn("300 to 3600", text)
        path = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/sessionPools"
        for name, code in (("Bad_Pool", "InvalidSessionPoolName"), ("ab", "InvalidSessionPoolName")):
            status, answer = self.server.call(
                "PUT", f"{path}/{name}?api-version={VERSION}", json.dumps(pool_body(self.environment.id)),
                {"Content-Type": "application/json"},
            )  # fmt: skip
            self.assertEqual((status, answer["error"]["code"]), (400, code), answer)
        other = pool_body(self.environment.id, coveIsolation="no-such-runtime")
        with self.assertRaises(HttpResponseError) as refused:
            self.pools().begin_create_or_update(GROUP, "otherpool", other).result(60)
        self.assertEqual(refused.exception.error.code, "SessionIsolationUnavailable")

    def test_an_image_that_cannot_be_had_fails_the_pool(self):
        body = pool_body(self.environment.id)
        body["properties"]["customContainerTemplate"]["containers"][0]["image"] = "cove.local/no-such:latest"
        with self.assertRaises(HttpResponseError) as failed:
            self.pools().begin_create_or_update(GROUP, "imageless", body).result(180)
        self.assertIn("no-such", str(failed.exception))
        self.assertEqual(self.pools().get(GROUP, "imageless").properties.provisioning_state, "Failed")
        self.pools().begin_delete(GROUP, "imageless").result(180)


class SessionPoolsWithAz(unittest.TestCase):
    """The same resource with the unmodified core `az`."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server())
        cls.client = cls.enterClassContext(client_of(cls.server, Anybody()))
        cls.az = az_test.Az(cls.server)
        cls.addClassCleanup(cls.az.close)
        login = ("login", "--service-principal", "-u", "cove", "-p", "local", "--tenant", cove.TENANT)
        cls.ok(*login, "--output", "none")
        cls.ok("group", "create", "-n", GROUP, "-l", "eastus")
        cls.ok("containerapp", "env", "create", "-n", "sdkenv", "-g", GROUP, "-l", "eastus", "--logs-destination", "none")

    @classmethod
    def ok(cls, *arguments):
        code, out, error = cls.az.run(*arguments)
        assert code == 0, f"{' '.join(arguments)}: exit {code}\n{error}\n{out}"
        return json.loads(out) if out.strip().startswith(("{", "[")) else out.strip()

    def test_a_pool_by_rest_and_resource(self):
        scope = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App"
        pool = f"{scope}/sessionPools/azpool"
        body = self.server.directory / "pool.json"
        body.write_text(json.dumps(pool_body(f"{scope}/managedEnvironments/sdkenv")))
        made = self.ok("rest", "--method", "put", "--url", f"{pool}?api-version={VERSION}", "--body", f"@{body}")
        self.assertEqual(made["name"], "azpool")
        self.ok("resource", "wait", "--ids", pool, "--api-version", VERSION, "--custom", "properties.provisioningState=='Succeeded'")
        shown = self.ok("resource", "show", "--ids", pool, "--api-version", VERSION)
        self.assertEqual(shown["properties"]["containerType"], "CustomContainer")
        self.ok("resource", "tag", "--ids", pool, "--tags", "team=a")
        listed = self.ok("resource", "list", "-g", GROUP, "--resource-type", "Microsoft.App/sessionPools")
        self.assertEqual([one["name"] for one in listed], ["azpool"])
        self.ok("resource", "delete", "--ids", pool, "--api-version", VERSION)
        listed = self.ok("resource", "list", "-g", GROUP, "--resource-type", "Microsoft.App/sessionPools")
        self.assertEqual(listed, [])

    def test_a_token_for_sessions_has_their_audience(self):
        token = self.ok("account", "get-access-token", "--resource", AUDIENCE)["accessToken"]
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        self.assertEqual(claims["aud"].rstrip("/"), AUDIENCE)


if __name__ == "__main__":
    unittest.main()
