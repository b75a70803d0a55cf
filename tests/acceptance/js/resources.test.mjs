// The JavaScript management SDK against a real server: create, read, change, list and delete of every resource type.
//
// Run by `js_test.py`, which starts the server and makes the certificate.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { ContainerAppsAPIClient } from "@azure/arm-appcontainers";

const { COVE_API: api, COVE_SUBSCRIPTION: subscription, COVE_PFX: pfx } = process.env;
const GROUP = "jsgroup";
const ENVIRONMENT = "jsenv";
const anybody = { getToken: async () => ({ token: "anybody", expiresOnTimestamp: Date.now() + 3_600_000 }) };
const client = new ContainerAppsAPIClient(anybody, subscription, { endpoint: api });

// The group has another SDK; the request is the same.
async function group(method) {
  const url = `${api}/subscriptions/${subscription}/resourcegroups/${GROUP}?api-version=2024-11-01`;
  const answer = await fetch(url, {
    method,
    headers: { Authorization: "Bearer anybody", "Content-Type": "application/json" },
    body: method === "PUT" ? JSON.stringify({ location: "eastus" }) : undefined,
  });
  assert.ok(answer.ok, `${method} ${url}: ${answer.status}`);
}

async function names(pages) {
  const found = [];
  if (Symbol.asyncIterator in pages) {
    for await (const item of pages) found.push(item.name);
  } else {
    for (const item of (await pages).value) found.push(item.name); // a list without pages
  }
  return found;
}

const missing = (error) => error.statusCode === 404;

// What is made under the environment with one call, read, listed and deleted.
const children = [
  {
    what: "certificates",
    operations: client.certificates,
    body: () => ({
      certificateEnvelope: {
        location: "eastus",
        properties: { password: "pw", value: new Uint8Array(readFileSync(pfx)) },
      },
    }),
    check: (made) => assert.equal(made.properties.subjectName, "CN=js.example.test"),
  },
  {
    what: "managed certificates",
    operations: client.managedCertificates,
    body: () => ({
      managedCertificateEnvelope: {
        location: "eastus",
        properties: { subjectName: "managed.example.test", domainControlValidation: "HTTP" },
      },
    }),
    check: (made) => assert.equal(made.properties.subjectName, "managed.example.test"),
  },
  {
    what: "storages",
    operations: client.managedEnvironmentsStorages,
    body: () => ({
      properties: { azureFile: { accountName: "acc", accountKey: "a2V5", accessMode: "ReadOnly", shareName: "s" } },
    }),
    check: (made) => {
      assert.equal(made.properties.azureFile.accountName, "acc");
      assert.equal(made.properties.azureFile.accountKey, undefined, "the key is never echoed");
    },
  },
  {
    what: "Dapr components",
    operations: client.daprComponents,
    body: () => ({
      componentType: "state.redis",
      version: "v1",
      metadata: [{ name: "redisHost", value: "localhost:6379" }],
      secrets: [{ name: "pw", value: "hunter2" }],
    }),
    check: (made) => assert.equal(made.componentType, "state.redis"),
  },
  {
    what: "HTTP routes",
    operations: client.httpRouteConfig,
    body: () => ({
      httpRouteConfigEnvelope: {
        properties: {
          rules: [{ routes: [{ match: { prefix: "/x" } }], targets: [{ containerApp: "jsapp" }] }],
        },
      },
    }),
    check: (made) => assert.ok(made.properties.fqdn),
  },
  {
    what: "maintenance configurations",
    name: "default",
    operations: client.maintenanceConfigurations,
    body: () => ({ scheduledEntries: [{ weekDay: "Sunday", startHourUtc: 2, durationHours: 8 }] }),
    check: (made) => assert.equal(made.scheduledEntries[0].weekDay, "Sunday"),
  },
];

test("every resource type", async (t) => {
  await group("PUT");
  const environment = await client.managedEnvironments.createOrUpdate(GROUP, ENVIRONMENT, {
    location: "eastus",
    appLogsConfiguration: { destination: "none" },
  });

  await t.test("environments", async () => {
    assert.equal(environment.provisioningState, "Succeeded");
    await client.managedEnvironments.update(GROUP, ENVIRONMENT, { location: "eastus", tags: { team: "blue" } });
    const read = await client.managedEnvironments.get(GROUP, ENVIRONMENT);
    assert.deepEqual(read.tags, { team: "blue" });
    assert.deepEqual(await names(client.managedEnvironments.listByResourceGroup(GROUP)), [ENVIRONMENT]);
    assert.ok((await names(client.managedEnvironments.listBySubscription())).includes(ENVIRONMENT));
  });

  const body = {
    location: "eastus",
    environmentId: environment.id,
    configuration: { ingress: { external: true, targetPort: 80 }, secrets: [{ name: "pw", value: "hunter2" }] },
    template: {
      containers: [{ name: "main", image: "cove.local/sample:latest", resources: { cpu: 0.25, memory: "0.5Gi" } }],
      scale: { minReplicas: 1, maxReplicas: 2 },
    },
  };

  await t.test("apps, revisions, replicas, authentication, labels", async () => {
    const app = await client.containerApps.createOrUpdate(GROUP, "jsapp", body);
    assert.equal(app.provisioningState, "Succeeded");
    assert.deepEqual(await names(client.containerApps.listByResourceGroup(GROUP)), ["jsapp"]);
    assert.ok((await names(client.containerApps.listBySubscription())).includes("jsapp"));
    const secrets = await client.containerApps.listSecrets(GROUP, "jsapp");
    assert.deepEqual(secrets.value.map((secret) => [secret.name, secret.value]), [["pw", "hunter2"]]);

    const first = app.latestRevisionName;
    assert.deepEqual(await names(client.containerAppsRevisions.listRevisions(GROUP, "jsapp")), [first]);
    assert.equal((await client.containerAppsRevisions.getRevision(GROUP, "jsapp", first)).active, true);
    const replicas = await client.containerAppsRevisionReplicas.listReplicas(GROUP, "jsapp", first);
    assert.equal(replicas.value.length, 1);
    const name = replicas.value[0].name;
    assert.equal((await client.containerAppsRevisionReplicas.getReplica(GROUP, "jsapp", first, name)).name, name);
    await client.containerAppsRevisions.restartRevision(GROUP, "jsapp", first);

    await client.containerApps.update(GROUP, "jsapp", {
      location: "eastus",
      configuration: { activeRevisionsMode: "Multiple" },
    });
    await client.containerAppsRevisions.deactivateRevision(GROUP, "jsapp", first);
    assert.equal((await client.containerAppsRevisions.getRevision(GROUP, "jsapp", first)).active, false);
    await client.containerAppsRevisions.activateRevision(GROUP, "jsapp", first);

    const auth = client.containerAppsAuthConfigs;
    await auth.createOrUpdate(GROUP, "jsapp", "current", {
      platform: { enabled: true },
      globalValidation: { unauthenticatedClientAction: "AllowAnonymous" },
    });
    assert.equal((await auth.get(GROUP, "jsapp", "current")).platform.enabled, true);
    assert.deepEqual(await names(auth.listByContainerApp(GROUP, "jsapp")), ["current"]);
    await auth.delete(GROUP, "jsapp", "current");
    await assert.rejects(auth.get(GROUP, "jsapp", "current"), missing);
    assert.deepEqual(await names(client.containerAppsLabelHistory.listLabelHistory(GROUP, "jsapp")), []);
  });

  for (const child of children) {
    await t.test(child.what, async () => {
      const { operations, name = "child", body, check } = child;
      const make = body();
      const made = await operations.createOrUpdate(GROUP, ENVIRONMENT, name, make);
      check(made);
      check(await operations.get(GROUP, ENVIRONMENT, name));
      assert.deepEqual(await names(operations.list(GROUP, ENVIRONMENT)), [name]);
      await operations.delete(GROUP, ENVIRONMENT, name);
      await assert.rejects(operations.get(GROUP, ENVIRONMENT, name), missing);
    });
  }

  await t.test("session pools", async () => {
    const pools = client.containerAppsSessionPools;
    const made = await pools.createOrUpdate(GROUP, "jspool", {
      location: "eastus",
      environmentId: environment.id,
      containerType: "CustomContainer",
      customContainerTemplate: {
        containers: [{ name: "main", image: "cove.local/sample:latest", resources: { cpu: 0.25, memory: "0.5Gi" } }],
        ingress: { targetPort: 80 },
      },
      scaleConfiguration: { maxConcurrentSessions: 3, readySessionInstances: 0 },
    });
    assert.equal(made.provisioningState, "Succeeded");
    assert.match(made.poolManagementEndpoint, /^https:/);
    const scale = { maxConcurrentSessions: 4, readySessionInstances: 0 };
    await pools.update(GROUP, "jspool", { scaleConfiguration: scale });
    assert.equal((await pools.get(GROUP, "jspool")).scaleConfiguration.maxConcurrentSessions, 4);
    assert.deepEqual(await names(pools.listByResourceGroup(GROUP)), ["jspool"]);
    await pools.delete(GROUP, "jspool");
    await assert.rejects(pools.get(GROUP, "jspool"), missing);
  });

  await t.test("start, stop, delete", async () => {
    await client.containerApps.stop(GROUP, "jsapp");
    assert.equal((await client.containerApps.get(GROUP, "jsapp")).runningStatus, "Stopped");
    await client.containerApps.start(GROUP, "jsapp");
    await client.containerApps.delete(GROUP, "jsapp");
    await assert.rejects(client.containerApps.get(GROUP, "jsapp"), missing);
    await client.managedEnvironments.delete(GROUP, ENVIRONMENT);
    await assert.rejects(client.managedEnvironments.get(GROUP, ENVIRONMENT), missing);
    await group("DELETE");
  });
});
