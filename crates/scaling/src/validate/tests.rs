//! Findings that the vectors do not cover.

use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn check(scale: Value, around: &Surroundings, expected: &Expect) {
    let findings = validate(&scale, around);
    let errors = findings.errors.iter().map(|f| format!("{:?} at {}: {}\n", f.code, f.place, f.message));
    let warnings = findings.warnings.iter().map(|f| format!("({:?}) at {}: {}\n", f.code, f.place, f.message));
    let hints = findings.hints.iter().map(|(place, message)| format!("(hint) at {place}: {message}\n"));
    // The list of all scalers changes with every scaler.
    let cut = |line: String| match line.split_once("; known: ") {
        Some((start, _)) => format!("{start}; known: …\n"),
        None => line,
    };
    expected.assert_eq(&errors.chain(warnings).chain(hints).map(cut).collect::<String>());
}

#[test]
fn every_mistake_is_reported_at_once() {
    let scale = json!({
        "minReplicas": 1.5, "maxReplicas": "10", "pollingInterval": 0, "cooldownPeriod": -1,
        "rules": [
            {"name": " ", "tcp": {"metadata": {"concurrentConnections": "0", "x": "1"}}},
            {"name": "a", "custom": {"type": "http"}},
            {"name": "b", "custom": {}},
            {"name": "c", "custom": {"type": "abacus"}},
            {"name": "d", "custom": {"type": "azure-servicebus", "metadata": {"topicName": "t"}}},
            {"name": "e", "custom": {"type": "cpu", "metadata": {"type": "Percent", "value": "lots"}}},
            {"name": "f", "azureQueue": {"queueLength": 0, "auth": [{"secretRef": "no"}]}},
            {"name": "g", "custom": {"type": "kafka", "metadata": {"bootstrapServersFromEnv": "B", "lag": "1"}}},
            7
        ]
    });
    check(
        scale,
        &Surroundings::default(),
        &expect![[r#"
            MinReplicasOutOfRange at minReplicas: minReplicas must be a whole number, 0 to 1000
            MaxReplicasOutOfRange at maxReplicas: maxReplicas must be a whole number, 1 to 1000
            PollingIntervalInvalid at pollingInterval: pollingInterval must be a whole number of seconds, at least 1
            CooldownPeriodInvalid at cooldownPeriod: cooldownPeriod must be a whole number of seconds, at least 0
            RuleNameMissing at rules[0]: a scale rule needs a name
            RuleNameMissing at rules[8]: a scale rule needs a name
            RuleTypeMissing at rules[8]: it needs one of http, tcp, custom and azureQueue
            TcpConcurrencyInvalid at rules[0].tcp: concurrentConnections must be a whole number, at least 1
            CustomTypeMissing at rules[2].custom: a custom rule needs a type, such as `redis`
            CustomTypeReserved at rules[1].custom: `http` is a rule of its own, not a custom type
            CustomTypeUnknown at rules[3].custom: `abacus` is not a known scaler; known: …
            MetadataInvalid at rules[4].custom: a topic needs a subscriptionName
            MetadataInvalid at rules[5].custom: type is `Percent`; expected one of Utilization, AverageValue
            MetadataInvalid at rules[5].custom: value must be a whole number of at least 1, or a quantity (`500m`, `200Mi`) for AverageValue
            MetadataInvalid at rules[6].azureQueue: azureQueue needs a queueName
            MetadataInvalid at rules[6].azureQueue: queueLength must be a whole number, at least 1
            MetadataInvalid at rules[7].custom: consumerGroup is missing
            AuthSecretNotFound at rules[6].azureQueue: there is no secret `no`
            AuthTriggerParameterMissing at rules[6].azureQueue: an auth entry needs a triggerParameter
            (UnknownMetadataKey) at rules[0].tcp: `x` is not read; known: …
            (UnknownMetadataKey) at rules[7].custom: `lag` is not read by `kafka`
            (hint) at rules[4].custom: every reading will fail: give connection by auth, or namespace and an identity
            (hint) at rules[6].azureQueue: every reading will fail: give connection by auth, or accountName and an identity
        "#]],
    );
}

#[test]
fn a_value_in_the_wrong_place_and_a_source_that_cannot_be_found_are_said() {
    let auth = |parameter: &str| json!([{"secretRef": "s", "triggerParameter": parameter}]);
    let sql = json!({"query": "SELECT 1", "targetQueryValue": 1, "host": "db", "port": 5432, "password": "p", "userName": "u"});
    let scale = json!({"rules": [
        {"name": "a", "custom": {"type": "redis", "metadata": {"listName": "l", "host": "redis"}}},
        {"name": "b", "custom": {"type": "redis", "metadata": {"listName": "l", "hostFromEnv": "H"}, "auth": auth("port")}},
        {"name": "c", "custom": {"type": "postgresql", "metadata": sql, "auth": auth("query")}},
        {"name": "d", "custom": {"type": "azure-servicebus", "metadata": {"queueName": "q", "namespace": "n"}, "identity": "system"}},
        {"name": "e", "azureQueue": {"queueName": "q", "accountName": "a"}},
        {"name": "f", "azureQueue": {"queueName": "q", "auth": auth("connection")}},
        {"name": "g", "custom": {"type": "azure-queue", "metadata": {"queueName": "q", "connection": "UseDevelopmentStorage"}}},
    ]});
    let around = Surroundings { secrets: ["s".to_owned()].into(), ..Surroundings::default() };
    check(
        scale,
        &around,
        &expect![[r#"
        (UnknownMetadataKey) at rules[2].custom: `password` is not read from metadata; give it by auth, or name a variable in passwordFromEnv
        (UnknownMetadataKey) at rules[2].custom: `query` of `postgresql` is metadata, not an auth parameter
        (hint) at rules[0].custom: every reading will fail: give address, or host and port
        (hint) at rules[2].custom: every reading will fail: give connection by auth, or host, port, userName and dbName
        (hint) at rules[4].azureQueue: every reading will fail: give connection by auth, or accountName and an identity
    "#]],
    );
}

#[test]
fn nonsense_is_no_panic() {
    for scale in [json!(null), json!([]), json!("x"), json!({"rules": {}}), json!({"rules": [null, [], "x"]})] {
        validate(&scale, &Surroundings::default());
        validate(&scale, &Surroundings { is_job: true, ..Surroundings::default() });
    }
}

#[test]
fn an_event_driven_job_needs_a_rule() {
    let job = Surroundings { is_job: true, ..Surroundings::default() };
    check(
        json!({"minExecutions": -1, "maxExecutions": 0}),
        &job,
        &expect![[r#"
        MinExecutionsOutOfRange at minExecutions: minExecutions must be a whole number, at least 0
        MaxExecutionsOutOfRange at maxExecutions: maxExecutions must be a whole number, at least 1
        RulesRequired at rules: an event-driven job needs at least one rule
    "#]],
    );
}

#[test]
fn cpu_rules_alone_never_reach_zero() {
    let rule = json!({"name": "c", "custom": {"type": "cpu", "metadata": {"type": "Utilization", "value": 50}}});
    let around = Surroundings { has_ingress: true, ..Surroundings::default() };
    check(
        json!({"rules": [rule]}),
        &around,
        &expect![[r#"
        (ResourceRulesNeverReachZero) at rules: cpu and memory rules alone never reach zero; at least 1 replica runs
    "#]],
    );
}
