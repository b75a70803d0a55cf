"""docs/api-coverage.md against a real server: what it marks as working works, what it marks as 501 answers 501."""

import base64
import hashlib
import pathlib
import re
import tempfile
import unittest

import cove
import pem
from azure.core.exceptions import HttpResponseError
from azure.core.paging import ItemPaged
from azure.core.polling import LROPoller
from cove import SUBSCRIPTION
from sdk_test import GROUP, SdkCase

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "api-coverage.md"
ENV = "sdkenv"
APP = "covapp"
LOCATION = "eastus"
RG = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/{GROUP}/providers/Microsoft.App"
SUB = f"/subscriptions/{SUBSCRIPTION}/providers/Microsoft.App"


def rows():
    """Operation, method, path and state of each line of the page."""
    pattern = re.compile(r"^\| (\w+\.\w+) \| (\w+) `([^`]+)` \| (.*) \|$")
    return [match.groups() for match in map(pattern.match, PAGE.read_text().splitlines()) if match]


class Coverage(SdkCase):
    """One server; the operations in an order in which each finds what it needs."""

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        directory = cls.enterClassContext(tempfile.TemporaryDirectory())
        certificate = pem.self_signed(directory, "shop.example.com", password="pw")
        cls.pfx = base64.b64encode(pathlib.Path(certificate.path).read_bytes()).decode()

    def gone(self, call):
        """There is none of these, and the answer says so in Azure's words."""
        with self.assertRaises(HttpResponseError) as raised:
            call()
        self.assertEqual((raised.exception.status_code, raised.exception.error.code), (404, "ResourceNotFound"))

    def latest(self):
        return self.client.container_apps.get(GROUP, APP).properties.latest_revision_name

    def environment_steps(self):
        client = self.client
        environments, names = client.managed_environments, client.namespaces
        body = {"location": LOCATION, "properties": {"appLogsConfiguration": {"destination": "none"}}}
        kind = "Microsoft.App/managedEnvironments/certificates"
        network, links = client.managed_environment_private_endpoint_connections, client.managed_environment_private_link_resources
        return [
            ("ManagedEnvironments.create_or_update", lambda: environments.begin_create_or_update(GROUP, "covenv", body)),
            ("ManagedEnvironments.update", lambda: environments.begin_update(GROUP, "covenv", {"tags": {"a": "b"}})),
            ("ManagedEnvironments.get", lambda: environments.get(GROUP, "covenv")),
            ("ManagedEnvironments.list_by_resource_group", lambda: environments.list_by_resource_group(GROUP)),
            ("ManagedEnvironments.list_by_subscription", environments.list_by_subscription),
            ("ManagedEnvironments.get_auth_token", lambda: environments.get_auth_token(GROUP, "covenv")),
            ("ManagedEnvironments.list_workload_profile_states", lambda: environments.list_workload_profile_states(GROUP, "covenv")),
            ("ManagedEnvironments.check_migration_eligibility", lambda: environments.check_migration_eligibility(GROUP, "covenv", {"targetMode": "Express"})),
            ("ManagedEnvironmentUsages.list", lambda: client.managed_environment_usages.list(GROUP, "covenv")),
            ("Namespaces.check_name_availability", lambda: names.check_name_availability(GROUP, "covenv", {"name": "x", "type": kind})),
            ("ManagedEnvironmentsDiagnostics.get_root", lambda: client.managed_environments_diagnostics.get_root(GROUP, "covenv")),
            ("ManagedEnvironmentDiagnostics.list_detectors", lambda: client.managed_environment_diagnostics.list_detectors(GROUP, "covenv")),
            ("ManagedEnvironmentDiagnostics.get_detector", lambda: client.managed_environment_diagnostics.get_detector(GROUP, "covenv", "certificateExpiry")),
            ("ManagedEnvironmentPrivateEndpointConnections.list", lambda: network.list(GROUP, "covenv")),
            ("ManagedEnvironmentPrivateEndpointConnections.get", lambda: self.gone(lambda: network.get(GROUP, "covenv", "x"))),
            ("ManagedEnvironmentPrivateLinkResources.list", lambda: links.list(GROUP, "covenv")),
            ("ManagedEnvironmentPrivateLinkResources.get", lambda: self.gone(lambda: links.get(GROUP, "covenv", "x"))),
            ("ManagedEnvironments.delete", lambda: environments.begin_delete(GROUP, "covenv")),
        ]  # fmt: skip

    def child_steps(self):
        client = self.client
        managed = {"location": LOCATION, "properties": {"subjectName": "m.example.com", "domainControlValidation": "CNAME"}}
        storage = {"properties": {"azureFile": {"accountName": "account", "accountKey": "a2V5", "accessMode": "ReadWrite", "shareName": "share"}}}
        route = {"properties": {"rules": [{"routes": [{"match": {"prefix": "/"}}], "targets": [{"containerApp": APP}]}]}}
        groups = [
            ("Certificates", client.certificates, "create_or_update", {"location": LOCATION, "properties": {"value": self.pfx, "password": "pw"}}, {"tags": {"a": "b"}}),
            ("ManagedCertificates", client.managed_certificates, "begin_create_or_update", managed, {"tags": {"a": "b"}}),
            ("MaintenanceConfigurations", client.maintenance_configurations, "create_or_update", {"properties": {"scheduledEntries": [{"weekDay": "Sunday", "startHourUtc": 1, "durationHours": 8}]}}, None),
            ("ManagedEnvironmentsStorages", client.managed_environments_storages, "create_or_update", storage, None),
            ("HttpRouteConfig", client.http_route_config, "create_or_update", route, {"properties": {"customDomains": []}}),
        ]  # fmt: skip
        steps = []
        for group, api, put, body, patch in groups:
            name = "default" if group == "MaintenanceConfigurations" else "covchild"
            delete = getattr(api, "delete", None) or api.begin_delete
            steps.append((f"{group}.create_or_update", lambda put=getattr(api, put), name=name, body=body: put(GROUP, ENV, name, body)))
            steps.append((f"{group}.get", lambda api=api, name=name: api.get(GROUP, ENV, name)))
            steps.append((f"{group}.list", lambda api=api: api.list(GROUP, ENV)))
            if patch is not None:
                steps.append((f"{group}.update", lambda api=api, name=name, patch=patch: api.update(GROUP, ENV, name, patch)))
            steps.append((f"{group}.delete", lambda delete=delete, name=name: delete(GROUP, ENV, name)))
        return steps

    def dapr_steps(self):
        components, policies = self.client.dapr_components, self.client.dapr_component_resiliency_policies
        component = {"properties": {"componentType": "state.redis", "version": "v1", "secrets": [{"name": "pw", "value": "x"}], "metadata": [{"name": "redisPassword", "secretRef": "pw"}]}}
        policy = {"properties": {"outboundPolicy": {"timeoutPolicy": {"responseTimeoutInSeconds": 15}}}}
        return [
            ("DaprComponents.create_or_update", lambda: components.create_or_update(GROUP, ENV, "state", component)),
            ("DaprComponents.get", lambda: components.get(GROUP, ENV, "state")),
            ("DaprComponents.list", lambda: components.list(GROUP, ENV)),
            ("DaprComponents.list_secrets", lambda: components.list_secrets(GROUP, ENV, "state")),
            ("DaprComponentResiliencyPolicies.create_or_update", lambda: policies.create_or_update(GROUP, ENV, "state", "p", policy)),
            ("DaprComponentResiliencyPolicies.get", lambda: policies.get(GROUP, ENV, "state", "p")),
            ("DaprComponentResiliencyPolicies.list", lambda: policies.list(GROUP, ENV, "state")),
            ("DaprComponentResiliencyPolicies.delete", lambda: policies.delete(GROUP, ENV, "state", "p")),
            ("DaprComponents.delete", lambda: components.delete(GROUP, ENV, "state")),
        ]  # fmt: skip

    def job_steps(self):
        jobs, executions = self.client.jobs, self.client.jobs_executions
        job = {
            "location": LOCATION,
            "properties": {
                "environmentId": self.environment.id,
                "configuration": {"triggerType": "Manual", "replicaTimeout": 600, "replicaRetryLimit": 0},
                "template": {"containers": [{"name": "main", "image": "cove.local/sample:latest", "resources": {"cpu": 0.25, "memory": "0.5Gi"}}]},
            },
        }

        def execution():
            return next(iter(executions.list(GROUP, "covjob"))).name

        return [
            ("Jobs.create_or_update", lambda: jobs.begin_create_or_update(GROUP, "covjob", job)),
            ("Jobs.get", lambda: jobs.get(GROUP, "covjob")),
            ("Jobs.list_by_resource_group", lambda: jobs.list_by_resource_group(GROUP)),
            ("Jobs.list_by_subscription", jobs.list_by_subscription),
            ("Jobs.list_secrets", lambda: jobs.list_secrets(GROUP, "covjob")),
            ("Jobs.list_detectors", lambda: jobs.list_detectors(GROUP, "covjob")),
            ("Jobs.get_detector", lambda: self.gone(lambda: jobs.get_detector(GROUP, "covjob", "x"))),
            ("Jobs.proxy_get", lambda: jobs.proxy_get(GROUP, "covjob", "rootApi")),
            ("Jobs.update", lambda: jobs.begin_update(GROUP, "covjob", {"tags": {"a": "b"}})),
            ("Jobs.suspend", lambda: jobs.begin_suspend(GROUP, "covjob")),
            ("Jobs.resume", lambda: jobs.begin_resume(GROUP, "covjob")),
            ("Jobs.start", lambda: jobs.begin_start(GROUP, "covjob")),
            ("JobsExecutions.list", lambda: executions.list(GROUP, "covjob")),
            ("Client.job_execution", lambda: self.client.job_execution(GROUP, "covjob", execution())),
            ("Jobs.stop_execution", lambda: jobs.begin_stop_execution(GROUP, "covjob", execution())),
            ("Jobs.stop_multiple_executions", lambda: jobs.begin_stop_multiple_executions(GROUP, "covjob")),
            ("Jobs.delete", lambda: jobs.begin_delete(GROUP, "covjob")),
        ]

    def session_pool_steps(self):
        pools = self.client.container_apps_session_pools
        pool = {
            "location": LOCATION,
            "properties": {
                "environmentId": self.environment.id,
                "containerType": "CustomContainer",
                "customContainerTemplate": {
                    "containers": [{"name": "main", "image": "cove.local/sample:latest", "resources": {"cpu": 0.25, "memory": "0.5Gi"}}],
                    "ingress": {"targetPort": 80},
                },
                "scaleConfiguration": {"maxConcurrentSessions": 2, "readySessionInstances": 0},
            },
        }
        group = "ContainerAppsSessionPools"
        return [
            (f"{group}.create_or_update", lambda: pools.begin_create_or_update(GROUP, "covpool", pool)),
            (f"{group}.get", lambda: pools.get(GROUP, "covpool")),
            (f"{group}.list_by_resource_group", lambda: pools.list_by_resource_group(GROUP)),
            (f"{group}.list_by_subscription", pools.list_by_subscription),
            (f"{group}.update", lambda: pools.begin_update(GROUP, "covpool", {"tags": {"a": "b"}})),
            (f"{group}.delete", lambda: pools.begin_delete(GROUP, "covpool")),
        ]

    def app_steps(self):
        client = self.client
        apps, revisions, replicas = client.container_apps, client.container_apps_revisions, client.container_apps_revision_replicas
        diagnostics, history = client.container_apps_diagnostics, client.container_apps_label_history
        auth, controls = client.container_apps_auth_configs, client.container_apps_source_controls
        network, links = client.container_app_private_endpoint_connections, client.container_app_private_link_resources
        functions, revision_functions = client.container_apps_functions, client.container_apps_revision_functions
        signed_out = {"properties": {"platform": {"enabled": False}}}

        def labelled():
            traffic = [{"revisionName": self.latest(), "weight": 100, "label": "blue"}]
            return {"properties": {"configuration": {"activeRevisionsMode": "Multiple", "ingress": {"traffic": traffic}}}}

        def replica():
            return self.names_of_replicas(APP, self.latest())[0]

        return [
            ("ContainerApps.create_or_update", lambda: self.create(APP, minReplicas=1)),
            ("ContainerApps.get", lambda: apps.get(GROUP, APP)),
            ("ContainerApps.list_by_resource_group", lambda: apps.list_by_resource_group(GROUP)),
            ("ContainerApps.list_by_subscription", apps.list_by_subscription),
            ("ContainerApps.list_secrets", lambda: apps.list_secrets(GROUP, APP)),
            ("ContainerApps.get_auth_token", lambda: apps.get_auth_token(GROUP, APP)),
            ("ContainerApps.list_custom_host_name_analysis", lambda: apps.list_custom_host_name_analysis(GROUP, APP, custom_hostname="shop.example.com")),
            ("ContainerApps.update", lambda: apps.begin_update(GROUP, APP, labelled())),
            ("ContainerAppsRevisions.list_revisions", lambda: revisions.list_revisions(GROUP, APP)),
            ("ContainerAppsRevisions.get_revision", lambda: revisions.get_revision(GROUP, APP, self.latest())),
            ("ContainerAppsRevisionReplicas.list_replicas", lambda: replicas.list_replicas(GROUP, APP, self.latest())),
            ("ContainerAppsRevisionReplicas.get_replica", lambda: replicas.get_replica(GROUP, APP, self.latest(), replica())),
            ("ContainerAppsRevisions.restart_revision", lambda: revisions.restart_revision(GROUP, APP, self.latest())),
            ("ContainerAppsRevisions.deactivate_revision", lambda: revisions.deactivate_revision(GROUP, APP, self.latest())),
            ("ContainerAppsRevisions.activate_revision", lambda: revisions.activate_revision(GROUP, APP, self.latest())),
            ("ContainerAppsDiagnostics.get_root", lambda: diagnostics.get_root(GROUP, APP)),
            ("ContainerAppsDiagnostics.list_revisions", lambda: diagnostics.list_revisions(GROUP, APP)),
            ("ContainerAppsDiagnostics.get_revision", lambda: diagnostics.get_revision(GROUP, APP, self.latest())),
            ("ContainerAppsDiagnostics.list_detectors", lambda: diagnostics.list_detectors(GROUP, APP)),
            ("ContainerAppsDiagnostics.get_detector", lambda: diagnostics.get_detector(GROUP, APP, next(iter(diagnostics.list_detectors(GROUP, APP))).name)),
            ("ContainerAppsAuthConfigs.create_or_update", lambda: auth.create_or_update(GROUP, APP, "current", signed_out)),
            ("ContainerAppsAuthConfigs.get", lambda: auth.get(GROUP, APP, "current")),
            ("ContainerAppsAuthConfigs.list_by_container_app", lambda: auth.list_by_container_app(GROUP, APP)),
            ("ContainerAppsAuthConfigs.delete", lambda: auth.delete(GROUP, APP, "current")),
            ("ContainerAppsLabelHistory.list_label_history", lambda: history.list_label_history(GROUP, APP)),
            ("ContainerAppsLabelHistory.get_label_history", lambda: history.get_label_history(GROUP, APP, "blue")),
            ("ContainerAppsLabelHistory.delete_label_history", lambda: history.delete_label_history(GROUP, APP, "blue")),
            ("ContainerAppPrivateEndpointConnections.list", lambda: network.list(GROUP, APP)),
            ("ContainerAppPrivateEndpointConnections.get", lambda: self.gone(lambda: network.get(GROUP, APP, "x"))),
            ("ContainerAppPrivateLinkResources.list", lambda: links.list(GROUP, APP)),
            ("ContainerAppPrivateLinkResources.get", lambda: self.gone(lambda: links.get(GROUP, APP, "x"))),
            ("ContainerAppsFunctions.list", lambda: functions.list(GROUP, APP)),
            ("ContainerAppsFunctions.get", lambda: self.gone(lambda: functions.get(GROUP, APP, "x"))),
            ("ContainerAppsRevisionFunctions.list", lambda: revision_functions.list(GROUP, APP, self.latest())),
            ("ContainerAppsRevisionFunctions.get", lambda: self.gone(lambda: revision_functions.get(GROUP, APP, self.latest(), "x"))),
            ("ContainerAppsSourceControls.list_by_container_app", lambda: controls.list_by_container_app(GROUP, APP)),
            ("ContainerAppsSourceControls.get", lambda: self.gone(lambda: controls.get(GROUP, APP, "current"))),
            ("ContainerApps.stop", lambda: apps.begin_stop(GROUP, APP)),
            ("ContainerApps.start", lambda: apps.begin_start(GROUP, APP)),
        ]  # fmt: skip

    def other_steps(self):
        client = self.client
        return [
            ("AvailableEnvironmentModes.list", lambda: client.available_environment_modes.list(LOCATION)),
            ("AvailableWorkloadProfiles.get", lambda: client.available_workload_profiles.get(LOCATION)),
            ("BillingMeters.get", lambda: client.billing_meters.get(LOCATION)),
            ("Usages.list", lambda: client.usages.list(LOCATION)),
            ("Operations.list", client.operations.list),
            ("Client.get_custom_domain_verification_id", client.get_custom_domain_verification_id),
            ("ContainerApps.delete", lambda: client.container_apps.begin_delete(GROUP, APP)),
        ]

    def test_what_is_marked_as_working_works(self):
        working = {operation for operation, _, _, state in rows() if state == "works"}
        self.assertGreater(len(working), 60, "the page has no table")
        steps = [*self.environment_steps(), *self.app_steps(), *self.child_steps(), *self.dapr_steps(), *self.job_steps(), *self.session_pool_steps(), *self.other_steps()]
        without = working - {operation for operation, _ in steps}
        self.assertEqual(without, set(), "operations that are marked as working have no call here")
        for operation, call in steps:
            if operation not in working:
                continue
            with self.subTest(operation=operation):
                answer = call()
                if isinstance(answer, LROPoller):
                    answer.result(120)
                elif isinstance(answer, ItemPaged):
                    list(answer)

    def test_what_is_marked_as_missing_answers_501(self):
        for operation, method, path, state in rows():
            if state == "works":
                continue
            with self.subTest(operation=operation):
                path = re.sub(r"\{(\w+)\}", "x", path.replace("{rg}", RG).replace("{sub}", SUB))
                headers = {"Content-Type": "application/json"}
                body = b"{}" if method in ("PUT", "PATCH", "POST") else None
                status, answer = self.server.call(method, f"{path}?api-version=2026-07-01", body, headers)
                self.assertEqual((status, answer["error"]["code"]), (501, "NotImplemented"))
                what, instead = state.removeprefix("501: ").split(": ", 1)
                self.assertIn(what, answer["error"]["message"])
                self.assertIn(instead, answer["error"]["message"])

    def test_a_managed_certificate_is_served(self):
        name = "managed.example.com"
        body = {"location": LOCATION, "properties": {"subjectName": name}}
        made = self.client.managed_certificates.begin_create_or_update(GROUP, ENV, "served", body).result(60)
        self.assertEqual(made.properties.provisioning_state, "Succeeded")
        self.create("named")
        domains = [{"name": name, "bindingType": "SniEnabled", "certificateId": made.id}]
        ingress = {"properties": {"configuration": {"ingress": {"customDomains": domains}}}}
        self.client.container_apps.begin_update(GROUP, "named", ingress).result(120)
        shown = self.client.managed_certificates.get(GROUP, ENV, "served").as_dict()["properties"]
        served = lambda: hashlib.sha1(self.server.leaf(name)).hexdigest().upper() == shown["thumbprint"]  # noqa: E731
        cove.until("the certificate is served", served)
        with self.assertRaises(HttpResponseError) as raised:
            self.client.managed_certificates.delete(GROUP, ENV, "served")
        self.assertEqual(raised.exception.error.code, "CertificateInUse")
        self.client.container_apps.begin_delete(GROUP, "named").result(120)
        cove.until("the app is gone", lambda: self.server.get(name)[0] == 404)
        self.client.managed_certificates.delete(GROUP, ENV, "served")

    def test_the_server_says_the_same_as_the_page(self):
        _, coverage = self.server.call("GET", "/cove/v1/coverage")
        said = {item["operation"]: item["state"] == "works" for item in coverage["value"]}
        self.assertEqual(said, {operation: state == "works" for operation, _, _, state in rows()})
        self.assertEqual(coverage["operations"], len(rows()))


if __name__ == "__main__":
    unittest.main()
