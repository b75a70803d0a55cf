//! Bodies against what az sends for the same flags, its nulls left out.

use clap::Parser as _;
use expect_test::{Expect, expect};

use super::*;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: CreateArgs,
}

fn check(flags: &str, expected: &Expect) {
    let line = format!("create -g rg -n myapp --environment myenv {flags}");
    let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
    let text = match body(&args.name, &args.app) {
        Ok(body) => format!("{:#}\n", body["properties"]),
        Err(failure) => format!("{} | {}\n", failure.text, failure.hint.unwrap_or_default()),
    };
    expected.assert_eq(&text);
}

#[test]
fn the_seeds_basic_form_is_azs_body() {
    check(
        "--image i --cpu 0.5 --memory 1.0Gi --env-vars A=secretref:s B=x=y --ingress external --target-port 8080 \
         --transport http2 --exposed-port 8080 --min-replicas 0 --max-replicas 20 --scale-rule-name http-scaling \
         --scale-rule-type http --scale-rule-http-concurrency 10 --secrets s=v --workload-profile-name p",
        &expect![[r#""#]],
    );
}

#[test]
fn custom_rules_take_both_spellings() {
    let metadata = "--scale-rule-metadata query=up threshold=5 --scale-rule-auth token=s";
    check(&format!("--image i --scale-rule-name r --scale-rule-type prometheus {metadata}"), &expect![[r#""#]]);
    check(
        &format!("--image i --scale-rule-name r --scale-rule-type custom --scale-rule-custom-type prometheus {metadata}"),
        &expect![[r#""#]],
    );
}

#[test]
fn a_registrys_password_becomes_a_secret() {
    check(
        "--image r.example.com:5000/i --registry-server r.example.com:5000 --registry-username Me --registry-password pw",
        &expect![[r#""#]],
    );
}

#[test]
fn words_and_suffixes_are_passed_on() {
    check(
        "--image i --command /bin/sh --args=-c sleep --revision-suffix v2 --termination-grace-period 5 --revisions-mode multiple --gpu-type nvidia-a100 --gpu-count 1",
        &expect![[r#""#]],
    );
}

#[test]
fn what_is_missing_is_asked_for() {
    check("", &expect![[r#""#]]);
    check("--image i --target-port 80", &expect![[r#""#]]);
    check("--image i --registry-server r", &expect![[r#""#]]);
    check("--image i --scale-rule-http-concurrency 5 --min-replicas 1", &expect![[r#""#]]);
    check("--image i --scale-rule-name r --scale-rule-type custom", &expect![[r#""#]]);
    check("--image i --env-vars A", &expect![[r#""#]]);
}
