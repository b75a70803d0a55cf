//! Bodies as `az` sends them, every rule with its message, and starts with another template.

use std::collections::BTreeSet;

use cove_model::{
    Counts, ExecutionCause, ExecutionReplica, ExecutionStatus, JobStrategy, JobTrigger, MissedRuns, Overlap,
    ReplicaName, ResourceId, RevisionName, ScaleRuleKind,
};
use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

const ENVIRONMENT: &str = "/subscriptions/s1/resourceGroups/MyRG/providers/Microsoft.App/managedEnvironments/myenv";

fn id() -> ResourceId {
    ResourceId::resource("s1", "MyRG", "Microsoft.App/jobs", "train").unwrap()
}

fn put(body: &Value) -> Result<ParsedJob, ArmError> {
    parse_put(body, &PutContext { id: &id(), known_secrets: &BTreeSet::new() })
}

fn patched(stored: &ParsedJob, patch: &Value) -> Result<ParsedJob, ArmError> {
    let known = stored.secrets.keys().cloned().collect();
    parse_patch(&stored.doc, patch, &PutContext { id: &id(), known_secrets: &known })
}

/// The body of `az containerapp job create` with this configuration, nulls and all.
fn body(configuration: &Value) -> Value {
    let mut whole = json!({
        "replicaTimeout": 7200, "replicaRetryLimit": 3, "manualTriggerConfig": null, "scheduleTriggerConfig": null,
        "eventTriggerConfig": null, "registries": null, "identitySettings": null, "dapr": null,
        "secrets": [{ "name": "s", "value": "hush" }],
    });
    crate::patch::merge(&mut whole, configuration);
    json!({
        "location": "eastus", "tags": null, "identity": { "type": "None", "userAssignedIdentities": null },
        "properties": {
            "environmentId": ENVIRONMENT, "workloadProfileName": "Consumption", "configuration": whole,
            "template": { "initContainers": null, "volumes": null, "containers": [{
                "image": "cove.local/sample:latest", "name": "train", "command": null, "args": ["work"],
                "env": [{ "name": "A", "secretRef": "s" }, { "name": "EPOCHS", "value": 3 }],
                "resources": { "cpu": 0.5, "memory": "1Gi" },
            }] },
        },
    })
}

fn manual() -> Value {
    body(
        &json!({ "triggerType": "manual", "manualTriggerConfig": { "parallelism": "2", "replicaCompletionCount": null } }),
    )
}

fn event(scale: &Value) -> Value {
    body(&json!({ "triggerType": "Event", "eventTriggerConfig": { "scale": scale } }))
}

fn redis() -> Value {
    json!({ "name": "queue", "type": "redis", "azureQueue": null, "custom": null, "http": null,
        "metadata": { "address": "localhost:6379", "listName": "jobs", "listLength": 5 },
        "auth": [{ "secretRef": "s", "triggerParameter": "password" }] })
}

#[test]
fn a_manual_job_is_understood_and_shown() {
    let parsed = put(&manual()).unwrap();
    let job = &parsed.job;
    assert_eq!(job.trigger, JobTrigger::Manual(Counts { parallelism: 2, completions: 1 }));
    assert_eq!((job.replica_timeout_secs, job.replica_retry_limit, job.is_suspended), (7200, 3, false));
    assert_eq!((job.workload_profile.as_deref(), parsed.secrets["s"].as_deref()), (None, Some("hush")));
    let again = patched(&parsed, &json!({})).unwrap();
    assert_eq!((&again.job, &again.doc, &again.secrets["s"]), (&parsed.job, &parsed.doc, &None));
    assert!(!parsed.doc.to_string().contains("hush") && !format!("{parsed:?}").contains("hush"));
    let view = View {
        id: &id(),
        provisioning_state: "Succeeded",
        origin: "https://localhost:8443",
        outbound_ips: &["10.0.0.1".to_owned()],
        system_data: None,
    };
    let shown = render(&parsed.doc, job, &view);
    expect![[r#"
        {"triggerType":"Manual","replicaTimeout":7200,"replicaRetryLimit":3,"manualTriggerConfig":{"parallelism":2,"replicaCompletionCount":1},"scheduleTriggerConfig":null,"eventTriggerConfig":null,"secrets":[{"name":"s"}]} Ready Consumption East US"#]]
    .assert_eq(&sorted(&shown));
    assert_eq!(shown["properties"]["template"]["containers"][0]["resources"]["ephemeralStorage"], "2Gi");
    assert!(
        shown["properties"]["template"].get("scale").is_none() && shown["properties"].get("coveWarnings").is_none()
    );
    // what is shown can be sent back
    assert_eq!(patched(&parsed, &shown).unwrap().job, parsed.job);
}

fn sorted(shown: &Value) -> String {
    let properties = &shown["properties"];
    let configuration = &properties["configuration"];
    let names = [
        "triggerType",
        "replicaTimeout",
        "replicaRetryLimit",
        "manualTriggerConfig",
        "scheduleTriggerConfig",
        "eventTriggerConfig",
        "secrets",
    ];
    let members: Vec<String> = names.iter().map(|name| format!("\"{name}\":{}", configuration[name])).collect();
    format!(
        "{{{}}} {} {} {}",
        members.join(","),
        properties["runningState"].as_str().unwrap(),
        properties["workloadProfileName"].as_str().unwrap(),
        shown["location"].as_str().unwrap()
    )
}

#[test]
fn schedules_and_events_take_their_extensions() {
    let schedule = put(&body(&json!({ "triggerType": "Schedule", "scheduleTriggerConfig": {
        "cronExpression": " */5 * * * * ", "parallelism": 3, "coveTimeZone": "Europe/Berlin", "coveOverlap": "Forbid",
        "coveMissedRuns": "skip", "coveStartingDeadlineSeconds": 60 }, "covePriority": -5 })));
    let schedule = schedule.unwrap();
    let JobTrigger::Schedule(found) = &schedule.job.trigger else { panic!("{schedule:?}") };
    assert_eq!((found.cron.as_str(), found.time_zone.as_deref()), ("*/5 * * * *", Some("Europe/Berlin")));
    assert_eq!((found.overlap, found.missed), (Overlap::Forbid, MissedRuns::Skip));
    assert_eq!((found.starting_deadline_secs, schedule.job.priority), (Some(60), -5));
    let event = put(&event(&json!({ "maxExecutions": 12, "coveStrategy": "accurate", "rules": [redis()] }))).unwrap();
    let JobTrigger::Event(found) = &event.job.trigger else { panic!("{event:?}") };
    let scale = &found.scale;
    assert_eq!((scale.polling_interval_secs, scale.min_executions, scale.max_executions), (30, 0, 12));
    assert_eq!(scale.strategy, JobStrategy::Accurate);
    let ScaleRuleKind::Custom { scaler, metadata, auth, .. } = &scale.rules[0].kind else { panic!("{scale:?}") };
    assert_eq!((scaler.as_str(), metadata["listLength"].as_str(), auth.len()), ("redis", "5", 1));
}

#[test]
fn another_trigger_leaves_the_old_configuration_behind() {
    let stored = put(&manual()).unwrap();
    let patch = json!({ "properties": { "configuration": { "triggerType": "Schedule",
        "scheduleTriggerConfig": { "cronExpression": "0 2 * * *" } } } });
    let parsed = patched(&stored, &patch).unwrap();
    assert_eq!(parsed.job.trigger.as_arm(), "Schedule");
    assert!(parsed.doc.pointer("/properties/configuration/manualTriggerConfig").is_none());
    let limit = json!({ "properties": { "configuration": { "replicaTimeout": 60, "replicaRetryLimit": 0 } } });
    let parsed = patched(&stored, &limit).unwrap();
    assert_eq!((parsed.job.replica_timeout_secs, parsed.job.replica_retry_limit), (60, 0));
    assert_eq!(parsed.job.trigger, stored.job.trigger);
}

#[track_caller]
fn refused(body: &Value, expected: &Expect) {
    let error = put(body).unwrap_err();
    let all = if error.details.is_empty() { vec![error] } else { error.details };
    let lines: Vec<String> = all
        .iter()
        .map(|error| format!("{} at {}: {}\n", error.code, error.target.as_deref().unwrap_or("-"), error.message))
        .collect();
    expected.assert_eq(&lines.concat());
}

#[test]
fn everything_wrong_is_told_at_once() {
    refused(
        &body(&json!({ "triggerType": "Manual", "replicaTimeout": 0, "replicaRetryLimit": 1001,
            "manualTriggerConfig": { "parallelism": 0, "replicaCompletionCount": 1001 },
            "scheduleTriggerConfig": { "cronExpression": "x" }, "covePriority": 5000, "ingress": { "external": true } })),
        &expect![[r#"
            InvalidParameterValue at properties.configuration.ingress: 'properties.configuration.ingress' is a property of apps, not of jobs: nothing can call a job; leave it out.
            InvalidParameterValue at properties.configuration.scheduleTriggerConfig: scheduleTriggerConfig belongs to triggerType 'Schedule', and triggerType is 'Manual'; leave it out.
            InvalidParameterValue at properties.configuration.manualTriggerConfig.parallelism: The value 0 is not valid; expected 1 to 1000.
            InvalidParameterValue at properties.configuration.manualTriggerConfig.replicaCompletionCount: The value 1001 is not valid; expected 1 to 1000.
            InvalidParameterValue at properties.configuration.replicaTimeout: The value 0 is not valid; expected 1 to 2592000.
            InvalidParameterValue at properties.configuration.replicaRetryLimit: The value 1001 is not valid; expected 0 to 1000.
            InvalidParameterValue at properties.configuration.covePriority: The value 5000 is not valid; expected -1000 to 1000.
        "#]],
    );
    refused(
        &body(&json!({ "replicaTimeout": null })),
        &expect![[r#"
        InvalidParameterValue at properties.configuration.triggerType: triggerType is required: Manual, Schedule or Event.
        InvalidParameterValue at properties.configuration.replicaTimeout: replicaTimeout is required: the seconds that a replica may run, 1 to 2592000.
    "#]],
    );
    let cron =
        |text: &str| body(&json!({ "triggerType": "Schedule", "scheduleTriggerConfig": { "cronExpression": text } }));
    refused(
        &cron(""),
        &expect![[r#"
        InvalidParameterValue at properties.configuration.scheduleTriggerConfig.cronExpression: properties.configuration.scheduleTriggerConfig.cronExpression: A job with triggerType 'Schedule' needs a cronExpression of five fields, such as '0 2 * * *' (UTC).
    "#]],
    );
    refused(
        &cron("61 * * * *"),
        &expect![[r#"
        InvalidParameterValue at properties.configuration.scheduleTriggerConfig.cronExpression: properties.configuration.scheduleTriggerConfig.cronExpression: The cron expression '61 * * * *' is not valid: minute is `61`; expected `*`, or 0 to 59, with `-` for ranges, `/` for steps, `,` between them.
    "#]],
    );
}

#[test]
fn rules_of_jobs_are_checked() {
    refused(
        &event(&json!({ "rules": [] })),
        &expect![[r#"
        RulesRequired at properties.configuration.eventTriggerConfig.scale.rules: properties.configuration.eventTriggerConfig.scale.rules: The scale options provided for job 'train' are incorrect: an event-driven job needs at least one rule.
    "#]],
    );
    let rule = |kind: &str| json!({ "name": kind, "type": kind, "metadata": {}, "auth": [] });
    refused(
        &event(
            &json!({ "minExecutions": 20, "maxExecutions": 10, "pollingInterval": 0, "rules": [rule("http"), rule("tcp"), rule("nope")] }),
        ),
        &expect![[r#"
            PollingIntervalInvalid at properties.configuration.eventTriggerConfig.scale.pollingInterval: The scale options provided for job 'train' are incorrect: pollingInterval must be a whole number of seconds, at least 1.
            HttpRuleOnJob at properties.configuration.eventTriggerConfig.scale.rules[0]: The scale options provided for job 'train' are incorrect: a job has no ingress; use a custom rule.
            TcpRuleOnJob at properties.configuration.eventTriggerConfig.scale.rules[1]: The scale options provided for job 'train' are incorrect: a job has no ingress; use a custom rule.
            CustomTypeUnknown at properties.configuration.eventTriggerConfig.scale.rules[2]: The scale options provided for job 'train' are incorrect: `nope` is not a known scaler; known: activemq, apache-kafka, arangodb, artemis-queue, azure-blob, azure-eventhub, azure-log-analytics, azure-pipelines, azure-queue, azure-servicebus, beanstalkd, clickhouse, couchdb, cpu, cron, elasticsearch, etcd, external, external-push, github-runner, graphite, influxdb, kafka, loki, memory, metrics-api, mysql, nats-jetstream, opensearch, postgresql, prometheus, pulsar, rabbitmq, redis, redis-cluster, redis-cluster-streams, redis-sentinel, redis-sentinel-streams, redis-streams, solr.
            MinExecutionsOutOfRange at properties.configuration.eventTriggerConfig.scale.minExecutions: The scale options provided for job 'train' are incorrect: minExecutions is above maxExecutions (100 unless given).
        "#]],
    );
    refused(
        &event(&json!({ "minExecutions": -1, "maxExecutions": 1001, "rules": [redis()] })),
        &expect![[r#"
        MinExecutionsOutOfRange at properties.configuration.eventTriggerConfig.scale.minExecutions: The scale options provided for job 'train' are incorrect: minExecutions must be a whole number, at least 0.
        MaxExecutionsOutOfRange at properties.configuration.eventTriggerConfig.scale.maxExecutions: The scale options provided for job 'train' are incorrect: maxExecutions must not be above 1000.
    "#]],
    );
}

#[test]
fn executions_have_volumes_of_their_own() {
    let with = |volumes: &Value| {
        let mut body = manual();
        body["properties"]["template"]["volumes"] = volumes.clone();
        body
    };
    let volumes = json!([{ "name": "work", "storageType": "coveexecutiondir" },
        { "name": "out", "storageType": "CoveArtifacts", "coveKeepExecutions": "3", "coveMaxSize": "512Mi" }]);
    let parsed = put(&with(&volumes)).unwrap();
    let kept = cove_model::ArtifactsVolume { keep_executions: 3, max_bytes: cove_model::Bytes(512 << 20) };
    let kinds: Vec<_> = parsed.job.template.volumes.iter().map(|volume| volume.kind.clone()).collect();
    assert_eq!(kinds, [cove_model::VolumeKind::ExecutionDir, cove_model::VolumeKind::Artifacts(kept)]);
    let shown = crate::container_app::render_template(&parsed.job.template);
    assert_eq!(
        shown["volumes"][1],
        json!({ "name": "out", "storageType": "CoveArtifacts", "coveKeepExecutions": 3,
        "coveMaxSize": "0.5Gi" })
    );
    assert_eq!(patched(&parsed, &json!({})).unwrap().job, parsed.job);
    refused(
        &with(&json!([{ "name": "a", "storageType": "CoveArtifacts", "coveKeepExecutions": 0, "coveMaxSize": "1Ki" },
            { "name": "b", "storageType": "CoveArtifacts" }])),
        &expect![[r#"
            InvalidParameterValueInContainerTemplate at properties.template.volumes[0].coveMaxSize: '1Ki' is not a size of artifacts; expected '1Mi' to '1024Gi'.
            InvalidParameterValue at properties.template.volumes[0].coveKeepExecutions: The value 0 is not valid; expected 1 to 100.
            InvalidParameterValueInContainerTemplate at properties.template.volumes: A job may have one volume of type 'CoveArtifacts'; mount parts of it by subPath.
        "#]],
    );
}

fn started(body: &Value) -> Result<Option<cove_model::Template>, ArmError> {
    let parsed = put(&manual()).unwrap();
    parse_start(&parsed.job, &parsed.doc, &BTreeSet::from(["s".to_owned()]), body)
}

#[test]
fn a_start_replaces_what_it_gives() {
    for nothing in [json!({}), json!({ "containers": null }), json!({ "containers": [], "initContainers": [] })] {
        assert_eq!(started(&nothing).unwrap(), None);
    }
    // as `az containerapp job start --image … --env-vars …` sends it
    let other = json!({ "containers": [{ "name": "train", "image": "other:1", "command": null, "args": null,
        "env": [{ "name": "EPOCHS", "value": "9" }], "resources": { "cpu": 1.0 }, "volumeMounts": null }],
        "initContainers": null });
    let template = started(&other).unwrap().unwrap();
    let container = &template.containers[0];
    assert_eq!((container.image.as_str(), container.args.as_slice()), ("other:1", &["work".to_owned()][..]));
    assert_eq!((container.env.len(), container.resources.cpu.0, container.resources.memory.0), (1, 1000, 2 << 30));
    // without an image, and under another name
    let template = started(&json!({ "containers": [{ "name": "x", "env": [] }] })).unwrap().unwrap();
    assert_eq!((template.containers[0].name.as_str(), template.containers[0].env.len()), ("x", 0));
    assert_eq!(template.containers[0].image, "cove.local/sample:latest");
    let error = started(
        &json!({ "containers": [{ "name": "train", "image": " ", "env": [{ "name": "A", "secretRef": "no" }] }] }),
    );
    let error = error.unwrap_err();
    let codes: Vec<&str> = error.details.iter().map(|error| error.code.as_str()).collect();
    assert_eq!(codes, ["InvalidParameterValueInContainerTemplate", "ContainerAppSecretRefNotFound"]);
}

#[test]
fn an_execution_says_how_its_replicas_ended() {
    let parsed = put(&manual()).unwrap();
    let at: jiff::Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
    let replica = ExecutionReplica {
        name: ReplicaName::new("train-abc1234-x7k2q").unwrap(),
        index: 0,
        started_at: Some(at),
        ended_at: Some(at),
        exit_code: Some(3),
        reason: Some("Error".to_owned()),
    };
    let execution = cove_model::Execution {
        job: id(),
        name: RevisionName::new("train-abc1234").unwrap(),
        cause: ExecutionCause::Manual("x".to_owned()),
        environment: parsed.job.environment.clone(),
        workload_profile: None,
        template: std::sync::Arc::new(parsed.job.template.clone()),
        counts: parsed.job.trigger.counts(),
        replica_timeout_secs: 7200,
        replica_retry_limit: 0,
        priority: 0,
        status: ExecutionStatus::Failed,
        reason: Some("BackoffLimitExceeded".to_owned()),
        message: None,
        created_at: at,
        started_at: Some(at),
        ended_at: Some(at),
        succeeded: 0,
        failed: 1,
        replicas: vec![replica],
        stop_requested_at: None,
    };
    let shown = render_execution(&execution, &[]);
    assert_eq!(shown["id"], format!("{}/executions/train-abc1234", id()));
    let properties = &shown["properties"];
    assert_eq!((&properties["status"], &properties["endTime"]), (&json!("Failed"), &json!("2026-01-02T03:04:05Z")));
    assert_eq!(
        properties["detailedStatus"]["replicas"][0]["containers"],
        json!([{ "name": "train", "status": "Terminated", "code": 3, "additionalInformation": "Error" }])
    );
    let replica = render_replica(&execution, &execution.replicas[0], None, "https://h");
    assert_eq!(
        replica["containers"][0]["logStreamEndpoint"],
        "https://h/subscriptions/s1/resourceGroups/MyRG/jobs/train/executions/train-abc1234/replicas/train-abc1234-x7k2q/containers/train/logstream"
    );
    assert_eq!(replica["containers"][0]["runningStateDetails"], "Error with code 3");
    assert_eq!(render_stopped(&[execution])["value"][0]["name"], "train-abc1234");
}
