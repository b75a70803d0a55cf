//! Output formats against texts that people and scripts read.

use expect_test::{Expect, expect};
use serde_json::json;

use super::*;

fn apps() -> Value {
    let app = |name: &str, min: u64| {
        json!({
            "id": format!("/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/containerApps/{name}"),
            "name": name,
            "location": "local",
            "properties": {
                "provisioningState": "Succeeded",
                "runningStatus": "Running",
                "latestRevisionName": format!("{name}--a1"),
                "configuration": {"ingress": {"fqdn": format!("{name}.env.localhost"), "external": true}},
                "template": {"scale": {"minReplicas": min}},
            },
        })
    };
    json!([app("web", 0), app("worker", 2)])
}

fn check(format: Format, query: Option<&str>, value: Value, view: View, expected: &Expect) {
    let output = Output { format: Some(format), query: query.map(str::to_owned) };
    let now = "2026-01-01T01:00:00Z".parse().unwrap();
    expected.assert_eq(&output.render(value, view, now).unwrap());
}

#[test]
fn tables_have_the_columns_of_their_noun() {
    check(
        Format::Table,
        None,
        apps(),
        View::Apps,
        &expect![[r#"
        Name    ResourceGroup  State      Status   Replicas  LatestRevision  Fqdn
        ------  -------------  ---------  -------  --------  --------------  --------------------
        web     rg             Succeeded  Running  0..10     web--a1         web.env.localhost
        worker  rg             Succeeded  Running  2..10     worker--a1      worker.env.localhost
    "#]],
    );
    let revision = json!({"name": "web--a1", "properties": {
        "active": true, "createdTime": "2026-01-01T00:00:00Z", "trafficWeight": 100, "healthState": "Healthy",
        "provisioningState": "Provisioned", "runningState": "ScaledToZero", "replicas": 0,
    }});
    check(
        Format::Table,
        None,
        revision,
        View::Revisions,
        &expect![[r#"
        Name     Active  Age  Traffic  Health   State        Running       Replicas
        -------  ------  ---  -------  -------  -----------  ------------  --------
        web--a1  True    60m  100%     Healthy  Provisioned  ScaledToZero  0
    "#]],
    );
    check(Format::Table, None, json!([]), View::Apps, &expect![""]);
}

#[test]
fn a_query_keeps_the_order_of_its_columns() {
    let query = "[].{Name:name, Group:resourceGroup, Fqdn:properties.configuration.ingress.fqdn}";
    check(
        Format::Table,
        Some(query),
        apps(),
        View::Apps,
        &expect![[r#"
        Name    Group  Fqdn
        ------  -----  --------------------
        web     rg     web.env.localhost
        worker  rg     worker.env.localhost
    "#]],
    );
    check(
        Format::Tsv,
        Some(query),
        apps(),
        View::Apps,
        &expect![[r#"
        web	rg	web.env.localhost
        worker	rg	worker.env.localhost
    "#]],
    );
}

#[test]
fn tsv_prints_scalars_bare() {
    check(
        Format::Tsv,
        Some("[0].name"),
        apps(),
        View::Apps,
        &expect![[r#"
        web
    "#]],
    );
    check(
        Format::Tsv,
        Some("[0].properties.configuration.ingress.external"),
        apps(),
        View::Apps,
        &expect![[r#"
        true
    "#]],
    );
    check(
        Format::Tsv,
        Some("[].[name, properties.template, `[1, 2]`, missing]"),
        apps(),
        View::Apps,
        &expect![[r#"
        web		2	None
        worker		2	None
    "#]],
    );
    check(Format::Tsv, Some("[0].missing"), apps(), View::Apps, &expect![""]);
}

#[test]
fn yaml_and_json_hold_the_same() {
    let value = json!({"a": [1, "two", {"b": null, "c": true}], "d": "yes", "e": "", "f": "x: y", "g": 1.5});
    check(
        Format::Json,
        None,
        value.clone(),
        View::Plain,
        &expect![[r#"
        {
          "a": [
            1,
            "two",
            {
              "b": null,
              "c": true
            }
          ],
          "d": "yes",
          "e": "",
          "f": "x: y",
          "g": 1.5
        }
    "#]],
    );
    check(
        Format::Yaml,
        None,
        value.clone(),
        View::Plain,
        &expect![[r#"
        a:
        - 1
        - two
        - b: null
          c: true
        d: "yes"
        e: ""
        f: "x: y"
        g: 1.5
    "#]],
    );
    let output = Output { format: Some(Format::Yaml), query: None };
    let text = output.render(value.clone(), View::Plain, jiff::Timestamp::UNIX_EPOCH).unwrap();
    assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value);
    check(Format::None, None, value, View::Plain, &expect![""]);
}

#[test]
fn a_bad_query_is_a_usage_error() {
    let output = Output { format: Some(Format::Json), query: Some("[?".to_owned()) };
    let failure = output.render(apps(), View::Apps, jiff::Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(failure.text.starts_with("--query `[?`: "), "{}", failure.text);
}

#[test]
fn colours_change_no_character() {
    let json = pretty(&apps());
    let plain = coloured(&json).replace("\x1b[94m", "").replace("\x1b[32m", "").replace("\x1b[0m", "");
    assert_eq!(plain, json);
}

#[test]
fn sizes_and_ages_have_one_unit() {
    let sizes: Vec<String> = [0, 1023, 1024, 1_349_905, 5 << 30].into_iter().map(columns::size).collect();
    assert_eq!(sizes, ["0 B", "1023 B", "1.0 KiB", "1.2 MiB", "5.0 GiB"]);
    let spans: Vec<String> = [-3, 59, 119, 120, 7199, 90_000, 200_000].into_iter().map(columns::span).collect();
    assert_eq!(spans, ["0s", "59s", "119s", "2m", "119m", "25h", "2d"]);
}
