//! What people and programs read.

use std::{collections::BTreeMap, time::Duration};

use expect_test::expect;

use crate::{Counts, Latency, LossKind, Mark, Moment, Repeat, Report, svg, terminal};

fn report() -> Report {
    let moment = |index: u32| {
        let is_slow = (10..13).contains(&index);
        Moment {
            at: Duration::from_millis(100) * index,
            answered: if index == 14 { 0 } else { 100 },
            lost: u64::from(index == 12),
            p50_ms: if is_slow { 12.0 } else { 0.4 },
            p99_ms: if is_slow { 300.0 } else { 2.0 },
            max_ms: if is_slow { 800.0 } else { 9.0 },
        }
    };
    let latency = Latency { p50: 0.4, p90: 2.0, p95: 12.0, p99: 300.0, p999: 700.0, max: 800.0, mean: 5.0 };
    Report {
        url: "http://web.env.localhost:8080/?a=1&b=<".to_owned(),
        protocol: "h1",
        rate: Some(1000.0),
        connections_max: 50,
        seconds: Duration::from_secs(3),
        counts: Counts { sent: 2903, answered: 2900, lost: 1, refused: 4 },
        unfinished: 2,
        unsent: 0,
        repeated: BTreeMap::from([(Repeat::IdleClosed, 3)]),
        losses: BTreeMap::from([(LossKind::Truncated, 1)]),
        lost_first: vec!["1.203 s: answer cut: the server closed the connection".to_owned()],
        statuses: BTreeMap::from([(200, 2890), (404, 10)]),
        bytes: 5800,
        messages: 0,
        connections: 12,
        latency_ms: latency,
        service_ms: latency,
        wait_ms: Latency::default(),
        timeline: (0..30).map(moment).collect(),
        marks: vec![Mark {
            label: "deploy 1".to_owned(),
            from: Duration::from_millis(950),
            to: Some(Duration::from_millis(1350)),
        }],
        moment: Duration::from_millis(100),
    }
}

#[test]
fn people_see_counts_and_a_picture() {
    expect![[r#"
        h1 http://web.env.localhost:8080/?a=1&b=<, 1000 per second on up to 50 connections, 3.0 s

        sent            2903
        answered        2900   966.7 per second, 200: 2890, 404: 10
        lost               1
                           1   answer cut
                           4   met a refused connection first, and were answered or lost later
                           2   open when the load was cut short
                           3   sent again: idle connections closed under a request
        received        5800   bytes of bodies, on 12 connections

        milliseconds        p50       p90       p95       p99     p99.9       max
        latency           0.400     2.000    12.000   300.000   700.000   800.000
        once sent         0.400     2.000    12.000   300.000   700.000   800.000
        to be sent        0.000     0.000     0.000     0.000     0.000     0.000
        lost at 1.203 s: answer cut: the server closed the connection
    "#]]
    .assert_eq(&report().text());
    expect![[r#"
        latency
              1 s │          ···
                  │          ▒▒▒
           100 ms │          ▒▒▒
                  │          ▒▒▒
                  │          ▒▒▒
            10 ms │··········███· ···············
                  │··········███· ···············
             1 ms │▒▒▒▒▒▒▒▒▒▒███▒ ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒
                  │██████████████ ███████████████
                  │██████████████ ███████████████
           0.1 ms └──────────────────────────────
             lost              x
            marks           ▲
                   0 to 3.0 s; █ half of the requests, ▒ 99 %, · the slowest
                ▲  deploy 1 0.9 s to 1.4 s
    "#]]
    .assert_eq(&format!("latency\n{}", terminal(&report(), 80)));
}

#[test]
fn a_picture_is_a_file_that_browsers_show() {
    let picture = svg(&report());
    assert!(picture.starts_with("<svg") && picture.ends_with("</svg>\n"), "{picture}");
    assert!(picture.contains("deploy 1") && picture.contains("1 lost</title>") && picture.contains("&amp;b=&lt;"));
    assert_eq!(picture.matches("<text").count(), picture.matches("</text>").count());
}

#[test]
fn programs_get_every_figure() {
    let json = serde_json::to_value(report()).unwrap();
    assert_eq!(json["sent"], 2903);
    assert_eq!(json["losses"]["truncated"], 1);
    assert_eq!(json["repeated"]["idle-closed"], 3);
    assert_eq!(json["statuses"]["200"], 2890);
    assert_eq!(json["latencyMs"]["p99"], 300.0);
    assert_eq!(json["marks"][0]["to"], 1.35);
    assert_eq!(json["timeline"].as_array().unwrap().len(), 30);
}
