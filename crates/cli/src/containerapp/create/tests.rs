//! Bodies against what az sends for the same flags, its nulls left out.

use clap::Parser as _;
use expect_test::{Expect, expect};

use super::*;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: CreateArgs,
}

fn text_of(flags: &str) -> String {
    let line = format!("cove containerapp -g rg -n myapp --environment myenv {flags}");
    let line = crate::words::joined(line.split_whitespace().map(Into::into));
    let args = Line::try_parse_from(&line[1..]).unwrap().args;
    match body(&args.name, &args.app) {
        Ok(body) => format!("{:#}\n", body["properties"]),
        Err(failure) => format!("{}\n    hint: {}\n", failure.text, failure.hint.unwrap_or_default()),
    }
}

fn check(flags: &str, expected: &Expect) {
    expected.assert_eq(&text_of(flags));
}

#[test]
fn the_seeds_basic_form_is_azs_body() {
    check(
        "--image i --cpu 0.5 --memory 1.0Gi --env-vars A=secretref:s B=x=y --ingress external --target-port 8080 \
         --transport http2 --exposed-port 8080 --min-replicas 0 --max-replicas 20 --scale-rule-name http-scaling \
         --scale-rule-type http --scale-rule-http-concurrency 10 --secrets s=v --workload-profile-name p",
        &expect![[r#"
            {
              "configuration": {
                "activeRevisionsMode": "single",
                "ingress": {
                  "external": true,
                  "targetPort": 8080,
                  "transport": "http2"
                },
                "secrets": [
                  {
                    "name": "s",
                    "value": "v"
                  }
                ]
              },
              "template": {
                "containers": [
                  {
                    "env": [
                      {
                        "name": "A",
                        "secretRef": "s"
                      },
                      {
                        "name": "B",
                        "value": "x=y"
                      }
                    ],
                    "image": "i",
                    "name": "myapp",
                    "resources": {
                      "cpu": 0.5,
                      "memory": "1.0Gi"
                    }
                  }
                ],
                "scale": {
                  "maxReplicas": 20,
                  "minReplicas": 0,
                  "rules": [
                    {
                      "http": {
                        "metadata": {
                          "concurrentRequests": "10"
                        }
                      },
                      "name": "http-scaling"
                    }
                  ]
                }
              },
              "workloadProfileName": "p"
            }
        "#]],
    );
}

#[test]
fn custom_rules_take_both_spellings() {
    let rule = "--image i --scale-rule-name r --scale-rule-metadata query=up threshold=5 --scale-rule-auth token=s";
    let azs = text_of(&format!("{rule} --scale-rule-type prometheus"));
    let seeds = text_of(&format!("{rule} --scale-rule-type custom --scale-rule-custom-type prometheus"));
    assert_eq!(azs, seeds);
    check(
        &format!("{rule} --scale-rule-type prometheus"),
        &expect![[r#"
        {
          "configuration": {
            "activeRevisionsMode": "single"
          },
          "template": {
            "containers": [
              {
                "image": "i",
                "name": "myapp"
              }
            ],
            "scale": {
              "rules": [
                {
                  "custom": {
                    "auth": [
                      {
                        "secretRef": "s",
                        "triggerParameter": "token"
                      }
                    ],
                    "metadata": {
                      "query": "up",
                      "threshold": "5"
                    },
                    "type": "prometheus"
                  },
                  "name": "r"
                }
              ]
            }
          }
        }
    "#]],
    );
}

#[test]
fn mode_idle_state_and_constants_are_set() {
    let line = "create -g rg -n web --environment e --scale-mode fast --scale-idle frozen --cooldown-period 60 \
        --scale-setting scaleDownWindowSeconds=60 fallback.failureThreshold=3 fallback.replicas=2 \
        --scale-setting fallback.behavior=currentReplicas";
    let args = Line::try_parse_from(line.split_whitespace()).unwrap().args;
    let expected = json!({
        "cooldownPeriod": 60, "coveMode": "fast", "coveIdle": "frozen",
        "coveSettings": { "scaleDownWindowSeconds": 60,
            "fallback": { "failureThreshold": 3, "replicas": 2, "behavior": "currentReplicas" } },
    });
    assert_eq!(body("web", &args.app).unwrap()["properties"]["template"]["scale"], expected);
}

#[test]
fn a_registrys_password_becomes_a_secret() {
    check(
        "--image r.example.com:5000/i --registry-server r.example.com:5000 --registry-username Me --registry-password pw",
        &expect![[r#"
            {
              "configuration": {
                "activeRevisionsMode": "single",
                "registries": [
                  {
                    "passwordSecretRef": "rexamplecom-5000-me",
                    "server": "r.example.com:5000",
                    "username": "Me"
                  }
                ],
                "secrets": [
                  {
                    "name": "rexamplecom-5000-me",
                    "value": "pw"
                  }
                ]
              },
              "template": {
                "containers": [
                  {
                    "image": "r.example.com:5000/i",
                    "name": "myapp"
                  }
                ]
              }
            }
        "#]],
    );
}

#[test]
fn words_and_suffixes_are_passed_on() {
    check(
        "--image i --command /bin/sh -c --args sleep --revision-suffix v2 --termination-grace-period 5 \
         --revisions-mode multiple",
        &expect![[r#"
            {
              "configuration": {
                "activeRevisionsMode": "multiple"
              },
              "template": {
                "containers": [
                  {
                    "args": [
                      "sleep"
                    ],
                    "command": [
                      "/bin/sh",
                      "-c"
                    ],
                    "image": "i",
                    "name": "myapp"
                  }
                ],
                "revisionSuffix": "v2",
                "terminationGracePeriodSeconds": 5
              }
            }
        "#]],
    );
}

#[test]
fn what_is_missing_is_asked_for() {
    let wrong = [
        "--image i --target-port 80",
        "--image i --registry-server r",
        "--image i --scale-rule-http-concurrency 5 --min-replicas 1",
        "--image i --scale-rule-auth a=b",
        "--image i --scale-rule-name r --scale-rule-type custom",
        "--image i --env-vars A",
    ];
    let said: String = wrong.into_iter().map(text_of).collect();
    expect![[r#"
        --target-port without --ingress
            hint: add --ingress external or internal
        a registry needs a user and a password
            hint: add --registry-username and --registry-password, or leave --registry-server out for anonymous pulls
        a scale rule needs a name
            hint: add --scale-rule-name
        a scale rule needs a name
            hint: add --scale-rule-name
        a custom scale rule needs a type
            hint: add --scale-rule-custom-type, such as `prometheus`
        --env-vars: `A` is not `key=value`
            hint: 
    "#]]
    .assert_eq(&said);
}
