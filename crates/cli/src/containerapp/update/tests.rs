//! Patches against what az sends for the same flags.

use clap::Parser as _;
use expect_test::{Expect, expect};

use super::*;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: UpdateArgs,
}

fn app() -> Value {
    json!({"properties": {"template": {
        "revisionSuffix": "a",
        "containers": [{"name": "web", "image": "old", "env": [{"name": "A", "value": "1"}, {"name": "B", "secretRef": "s"}],
            "resources": {"cpu": 0.5, "memory": "1Gi", "ephemeralStorage": "2Gi"}}],
        "scale": {"minReplicas": 0, "maxReplicas": 10},
    }}})
}

fn check(flags: &str, expected: &Expect) {
    let line = format!("update -g rg -n web {flags}");
    let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
    let text = match patch(&app(), &args) {
        Ok(patch) => patch.to_string(),
        Err(failure) => format!("{} | {}", failure.text, failure.hint.unwrap_or_default()),
    };
    expected.assert_eq(&text);
}

#[test]
fn only_what_changes_is_sent() {
    check("", &expect!["{}"]);
    check("--tags a=b", &expect![[r#"{"tags":{"a":"b"}}"#]]);
    check("--set-env-vars A=1", &expect!["{}"]);
    check(
        "--min-replicas 1",
        &expect![[
            r#"{"properties":{"template":{"containers":[{"env":[{"name":"A","value":"1"},{"name":"B","secretRef":"s"}],"image":"old","name":"web","resources":{"cpu":0.5,"ephemeralStorage":"2Gi","memory":"1Gi"}}],"revisionSuffix":null,"scale":{"maxReplicas":10,"minReplicas":1}}}}"#
        ]],
    );
    check(
        "--image new --cpu 1",
        &expect![[
            r#"{"properties":{"template":{"containers":[{"env":[{"name":"A","value":"1"},{"name":"B","secretRef":"s"}],"image":"new","name":"web","resources":{"cpu":1.0,"memory":"1Gi"}}],"revisionSuffix":null,"scale":{"maxReplicas":10,"minReplicas":0}}}}"#
        ]],
    );
}

#[test]
fn constants_of_the_autoscaler_are_taken_back() {
    let line = "update -g rg -n web --scale-mode default --scale-setting stepFloor= fallback= stepFactor=3";
    let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
    let scale = patch(&app(), &args).unwrap()["properties"]["template"]["scale"].take();
    let settings = json!({"stepFloor": null, "fallback": null, "stepFactor": 3});
    assert_eq!(scale, json!({"minReplicas": 0, "maxReplicas": 10, "coveMode": null, "coveSettings": settings}));
}

#[test]
fn variables_are_set_removed_and_replaced() {
    check(
        "--set-env-vars A=2 C=3 --remove-env-vars B",
        &expect![[
            r#"{"properties":{"template":{"containers":[{"env":[{"name":"A","value":"2"},{"name":"C","value":"3"}],"image":"old","name":"web","resources":{"cpu":0.5,"ephemeralStorage":"2Gi","memory":"1Gi"}}],"revisionSuffix":null,"scale":{"maxReplicas":10,"minReplicas":0}}}}"#
        ]],
    );
    check(
        "--replace-env-vars D=4",
        &expect![[
            r#"{"properties":{"template":{"containers":[{"env":[{"name":"D","value":"4"}],"image":"old","name":"web","resources":{"cpu":0.5,"ephemeralStorage":"2Gi","memory":"1Gi"}}],"revisionSuffix":null,"scale":{"maxReplicas":10,"minReplicas":0}}}}"#
        ]],
    );
    check(
        "--remove-all-env-vars",
        &expect![[
            r#"{"properties":{"template":{"containers":[{"env":[],"image":"old","name":"web","resources":{"cpu":0.5,"ephemeralStorage":"2Gi","memory":"1Gi"}}],"revisionSuffix":null,"scale":{"maxReplicas":10,"minReplicas":0}}}}"#
        ]],
    );
}

#[test]
fn containers_are_found_by_name() {
    check(
        "--container-name side --image i",
        &expect![[
            r#"{"properties":{"template":{"containers":[{"env":[{"name":"A","value":"1"},{"name":"B","secretRef":"s"}],"image":"old","name":"web","resources":{"cpu":0.5,"ephemeralStorage":"2Gi","memory":"1Gi"}},{"image":"i","name":"side"}],"revisionSuffix":null,"scale":{"maxReplicas":10,"minReplicas":0}}}}"#
        ]],
    );
    check(
        "--container-name side --cpu 1",
        &expect!["the app has no container `side` | add --image to add a container"],
    );
}
