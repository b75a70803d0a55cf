"""The Python SDK against a real server: create, poll, read, change, list, delete."""

import re
import unittest

import cove
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceNotFoundError
from azure.core.rest import HttpRequest
from azure.identity import ClientSecretCredential
from azure.mgmt.appcontainers import ContainerAppsAPIClient
from cove import SUBSCRIPTION, TENANT

GROUP = "sdk-rg"
SAMPLE = "cove.local/sample:latest"


class Anybody:
    """A credential of a developer's machine."""

    def get_token(self, *_scopes, **_options):
        return AccessToken("anybody", 2_000_000_000)


def client_of(server, credential):
    return ContainerAppsAPIClient(
        credential,
        SUBSCRIPTION,
        base_url=server.api,
        credential_scopes=[f"{server.api}/.default"],
        connection_verify=server.ca,
        polling_interval=0,
    )


def group(client, method, name=GROUP, body=None):
    """A resource group; its SDK is another package, the request is the same."""
    url = f"/subscriptions/{SUBSCRIPTION}/resourcegroups/{name}?api-version=2024-11-01"
    answer = client.send_request(HttpRequest(method, url, json=body))
    answer.raise_for_status()
    return answer


class SdkCase(unittest.TestCase):
    """A server, a client, a group and an environment per class."""

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(cove.Server())
        cls.client = cls.enterClassContext(client_of(cls.server, Anybody()))
        group(cls.client, "PUT", body={"location": "eastus"})
        poller = cls.client.managed_environments.begin_create_or_update(
            GROUP, "sdkenv", {"location": "eastus", "properties": {"appLogsConfiguration": {"destination": "none"}}}
        )
        cls.environment = poller.result(120)

    def create(self, name, **scale):
        body = {
            "location": "eastus",
            "tags": {"made-by": "test"},
            "properties": {
                "environmentId": self.environment.id,
                "configuration": {
                    "ingress": {"external": True, "targetPort": 80},
                    "secrets": [{"name": "pw", "value": "hunter2"}],
                },
                "template": {
                    "containers": [
                        {
                            "name": "main",
                            "image": SAMPLE,
                            "resources": {"cpu": 0.25, "memory": "0.5Gi"},
                            "env": [{"name": "PASSWORD", "secretRef": "pw"}, {"name": "N", "value": "1"}],
                        }
                    ],
                    "scale": {"minReplicas": 0, "maxReplicas": 2, **scale},
                },
            },
        }
        return self.client.container_apps.begin_create_or_update(GROUP, name, body).result(120)

    def names_of_replicas(self, name, revision):
        replicas = self.client.container_apps_revision_replicas
        return [item.name for item in replicas.list_replicas(GROUP, name, revision).value]


class Sdk(SdkCase):
    """What the SDK does to apps and environments."""

    def test_the_life_of_an_app(self):
        apps, revisions = self.client.container_apps, self.client.container_apps_revisions
        app = self.create("sdkapp", minReplicas=1)
        self.assertEqual(app.properties.provisioning_state, "Succeeded")
        self.assertEqual(app.tags, {"made-by": "test"})
        host = app.properties.configuration.ingress.fqdn
        status, text = self.server.get(host, "/env")
        self.assertEqual(status, 200, text)
        self.assertIn("PASSWORD=hunter2\n", text)

        self.assertEqual(apps.get(GROUP, "SDKAPP").id, app.id, "names have no case")
        self.assertIn("sdkapp", [item.name for item in apps.list_by_resource_group(GROUP)])
        self.assertIn("sdkapp", [item.name for item in apps.list_by_subscription()])
        secrets = {item.name: item.value for item in apps.list_secrets(GROUP, "sdkapp").value}
        self.assertEqual(secrets, {"pw": "hunter2"})
        self.assertTrue(apps.get_auth_token(GROUP, "sdkapp").properties.token)

        first = app.properties.latest_revision_name
        replicas = self.client.container_apps_revision_replicas
        names = self.names_of_replicas("sdkapp", first)
        self.assertEqual(len(names), 1)
        self.assertEqual(replicas.get_replica(GROUP, "sdkapp", first, names[0]).name, names[0])

        container = app.properties.template.containers[0].as_dict()
        container["env"] = [{"name": "N", "value": "2"}]
        patch = {"properties": {"template": {"containers": [container]}}}
        apps.begin_update(GROUP, "sdkapp", patch).result(120)
        app = apps.get(GROUP, "sdkapp")
        second = app.properties.latest_revision_name
        self.assertNotEqual(first, second)
        self.assertEqual(app.properties.template.scale.min_replicas, 1, "a patch leaves the rest alone")
        cove.until("the patched variable is served", lambda: "N=2\n" in self.server.get(host, "/env")[1])
        everything = {item.name: item for item in revisions.list_revisions(GROUP, "sdkapp")}
        self.assertEqual(set(everything), {first, second})
        self.assertFalse(revisions.get_revision(GROUP, "sdkapp", first).properties.active)

        apps.begin_stop(GROUP, "sdkapp").result(120)
        cove.until("a stopped app is not served", lambda: self.server.get(host)[0] == 404)
        self.assertEqual(apps.get(GROUP, "sdkapp").properties.running_status, "Stopped")
        apps.begin_start(GROUP, "sdkapp").result(120)
        cove.until("a started app is served", lambda: self.server.get(host)[0] == 200)

        apps.begin_delete(GROUP, "sdkapp").result(120)
        with self.assertRaises(ResourceNotFoundError):
            apps.get(GROUP, "sdkapp")
        self.assertEqual(self.server.get(host)[0], 404)

    def test_an_app_at_zero_is_woken_by_its_first_request(self):
        app = self.create("zero", cooldownPeriod=1)
        host, latest = app.properties.configuration.ingress.fqdn, app.properties.latest_revision_name
        cove.until("it is scaled to zero", lambda: not self.names_of_replicas("zero", latest), within_seconds=120)
        self.assertEqual(self.server.get(host)[0], 200)
        cove.until("its replica is listed", lambda: len(self.names_of_replicas("zero", latest)) == 1)
        self.client.container_apps.begin_delete(GROUP, "zero").result(120)

    def test_a_put_of_what_was_read_changes_nothing(self):
        app = self.create("same")
        read = self.client.container_apps.get(GROUP, "same")
        again = self.client.container_apps.begin_create_or_update(GROUP, "same", read).result(120)
        self.assertEqual(again.properties.latest_revision_name, app.properties.latest_revision_name)
        secrets = {item.name: item.value for item in self.client.container_apps.list_secrets(GROUP, "same").value}
        self.assertEqual(secrets, {"pw": "hunter2"})
        self.client.container_apps.begin_delete(GROUP, "same").result(120)

    def test_all_mistakes_of_a_body_are_told_at_once(self):
        with self.assertRaises(HttpResponseError) as raised:
            self.create("bad", minReplicas=-1, maxReplicas=0)
        self.assertEqual(raised.exception.status_code, 400)
        targets = [item.target.rsplit(".", 1)[1] for item in raised.exception.error.details]
        self.assertEqual(targets, ["minReplicas", "maxReplicas"])

    def test_the_environment_is_read_and_listed(self):
        environments = self.client.managed_environments
        self.assertEqual(self.environment.properties.provisioning_state, "Succeeded")
        self.assertTrue(self.environment.properties.default_domain)
        self.assertEqual(environments.get(GROUP, "sdkenv").id, self.environment.id)
        self.assertIn("sdkenv", [item.name for item in environments.list_by_subscription()])
        second = environments.begin_create_or_update(GROUP, "second", {"location": "local", "properties": {}}).result(120)
        environments.begin_update(GROUP, second.name, {"location": "local", "tags": {"a": "b"}}).result(120)
        self.assertEqual(environments.get(GROUP, "second").tags, {"a": "b"})
        environments.begin_delete(GROUP, "second").result(120)
        with self.assertRaises(ResourceNotFoundError):
            environments.get(GROUP, "second")

    def test_a_client_secret_logs_in(self):
        credential = ClientSecretCredential(
            TENANT,
            "any",
            "any",
            authority=self.server.api,
            disable_instance_discovery=True,
            connection_verify=self.server.ca,
        )
        with client_of(self.server, credential) as client:
            names = [item.name for item in client.managed_environments.list_by_resource_group(GROUP)]
        self.assertIn("sdkenv", names)

    def test_bad_requests_are_answered_in_azures_envelope(self):
        app = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App/containerApps/raw"
        version = "?api-version=2025-07-01"
        cases = [
            ("PUT", app + version, b'{"location": ', 400, "InvalidRequestContent"),
            ("PUT", app + version, b"[" * 100_000, 400, "InvalidRequestContent"),
            ("PUT", app + version, b"[]", 400, "InvalidRequestContent"),
            ("GET", app, None, 400, "MissingApiVersionParameter"),
            ("GET", app + "?api-version=tomorrow", None, 400, "InvalidApiVersionParameter"),
            ("GET", app + version, None, 404, "ResourceNotFound"),
            ("GET", app.replace(GROUP, "nope") + version, None, 404, "ResourceGroupNotFound"),
        ]
        for method, path, body, status, code in cases:
            with self.subTest(path=path, body=(body or b"")[:20]):
                answer = self.server.call(method, path, body, {"Content-Type": "application/json"})
                self.assertEqual((answer[0], answer[1]["error"]["code"]), (status, code))


class Restart(SdkCase):
    """A server that is killed and started again."""

    def test_replicas_run_on_and_nothing_is_lost(self):
        app = self.create("kept", minReplicas=1)
        host, latest = app.properties.configuration.ingress.fqdn, app.properties.latest_revision_name
        before = self.names_of_replicas("kept", latest)
        replica, count = self.served(host)
        self.server.kill()
        self.server.start()
        type(self).client = self.enterContext(client_of(self.server, Anybody()))
        again = self.client.container_apps.get(GROUP, "kept")
        self.assertEqual(again.properties.latest_revision_name, latest)
        cove.until("the app is served", lambda: self.server.get(host)[0] == 200)
        self.assertEqual(self.names_of_replicas("kept", latest), before)
        after = self.served(host)
        self.assertEqual(after[0], replica)
        self.assertGreater(after[1], count, "its process was not started anew")
        secrets = {item.name: item.value for item in self.client.container_apps.list_secrets(GROUP, "kept").value}
        self.assertEqual(secrets, {"pw": "hunter2"})
        self.client.container_apps.begin_delete(GROUP, "kept").result(120)
        self.assertEqual(self.server.get(host)[0], 404)

    def served(self, host):
        """The replica that answers, and how many requests it has served since its process started."""
        status, text = self.server.get(host)
        self.assertEqual(status, 200, text)
        fields = dict(re.findall(r"<dt>([^<]*)<dd>([^<]*)", text))
        return fields["Replica"], int(fields["Requests served"])


if __name__ == "__main__":
    unittest.main()
