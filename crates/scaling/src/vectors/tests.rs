//! The project's own copy of the vectors, and the runner's own manners.

use std::collections::BTreeMap;

use expect_test::expect;

use super::*;

const VECTORS: &str = include_str!("../../vectors/scaling_vectors.json");

#[test]
fn the_vectors_pass() {
    let report = run(VECTORS).unwrap();
    assert_eq!(report.failed().count(), 0, "{report}");
    let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for result in &report.results {
        let count = counts.entry(&result.kind).or_default();
        count.1 += 1;
        count.0 += usize::from(result.outcome == Outcome::Passed);
    }
    let table: String = counts.iter().map(|(kind, (passed, all))| format!("{kind} {passed}/{all}\n")).collect();
    expect![[r#"
        cadence 3/3
        decision 79/79
        execution 5/5
        job 20/20
        metric 27/27
        resource 11/11
        timeline 9/9
        validate 18/18
    "#]]
    .assert_eq(&table);
}

#[test]
fn what_is_not_built_is_named_and_never_passes() {
    let report = run(r#"{"vectors": [
        {"id": "a", "kind": "prophecy", "given": {}, "expect": {}},
        {"id": "b", "kind": "metric", "given": {"metric": "astrology"}, "expect": {}},
        {"id": "c", "kind": "execution", "given": {"moon": 1}, "expect": {}},
        {"id": "d", "kind": "execution", "given": {}, "expect": {"run": 7}}
    ]}"#)
    .unwrap();
    expect![[r#"
        unsupported  a prophecy: vectors of kind `prophecy`
        unsupported  b metric: the metric `astrology`
        unsupported  c execution: input not understood: unknown field `moon`, expected one of `parallelism`, `replicaCompletionCount`, `replicaRetryLimit`, `succeeded`, `failed`, `stopped`
        failed       d execution: 
                       expected {"run":7}, got {"run":1,"status":"Running"}
        4 vectors: 0 passed, 1 failed, 3 unsupported"#]]
    .assert_eq(&report.to_string());
    assert!(run("[]").is_err());
}
