//! What the service's tests cannot reach: a clock that goes back, bounds, and who may be started by a request.

use cove_model::{ResourceId, RevisionName, Scale, ScaleRule, ScaleRuleKind};

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn key(name: &str) -> RevisionKey {
    let app = ResourceId::resource("s", "rg", "Microsoft.App/containerApps", "web").unwrap();
    RevisionKey { app, name: RevisionName::new(name).unwrap() }
}

fn revision(name: &str, scale: Scale, has_ingress: bool) -> ScaledRevision {
    ScaledRevision {
        revision: key(name),
        environment: ResourceId::resource("s", "rg", "Microsoft.App/managedEnvironments", "env").unwrap(),
        scale,
        has_ingress,
        replaces: None,
        activated_at: at(0),
        is_active: true,
    }
}

fn take(table: &mut Table, list: &[ScaledRevision], existing: Option<u32>, now: i64) {
    let listed = |revision: &ScaledRevision| Listed {
        key: revision.revision.clone(),
        revision: Some(Arc::new(revision.clone())),
        existing,
    };
    table.take_changes(&list.iter().map(listed).collect::<Vec<_>>(), at(now));
}

fn table(now: i64, list: &[ScaledRevision]) -> Table {
    let mut table = Table::new(Config::default(), Board::default(), at(now));
    take(&mut table, list, None, now);
    table
}

/// Takes every tick that is due at `now` with no load.
fn round(table: &mut Table, now: i64) -> usize {
    round_with(table, now, &RevisionLoad::default())
}

/// Takes every tick that is due at `now`; event rules do not answer.
fn round_with(table: &mut Table, now: i64, load: &RevisionLoad) -> usize {
    let due = table.take_due(at(now));
    for (key, due) in &due {
        table.tick(key, due, load, Vec::new(), None);
        table.end_polling(key);
    }
    due.len()
}

#[test]
fn a_clock_set_back_neither_stalls_ticks_nor_keeps_apps_up() {
    let mut table = table(10_000, &[revision("web--v1", Scale::default(), true)]);
    assert_eq!(round(&mut table, 10_015), 1);
    assert_eq!(round(&mut table, 5_000), 0, "the clock went back");
    assert_eq!(table.next_due(), Some(at(5_015)));
    for tick in 1..=20 {
        assert_eq!(round(&mut table, 5_000 + 15 * tick), 1);
    }
    assert_eq!(table.scale_of(&key("web--v1")).unwrap().current, 1);
    round(&mut table, 5_315);
    assert_eq!(table.scale_of(&key("web--v1")).unwrap().current, 0);
}

#[test]
fn a_late_tick_runs_once_and_keeps_the_grid() {
    let mut table = table(0, &[revision("web--v1", Scale { min_replicas: 1, ..Scale::default() }, true)]);
    assert_eq!(round(&mut table, 100), 1);
    assert_eq!(round(&mut table, 100), 0);
    assert_eq!(table.next_due(), Some(at(105)));
}

#[test]
fn a_late_tick_divides_by_the_time_that_passed() {
    let mut table = table(0, &[revision("web--v1", Scale { min_replicas: 1, ..Scale::default() }, true)]);
    let web = key("web--v1");
    for (now, arrivals_total) in [(15, 150), (60, 600)] {
        assert_eq!(round_with(&mut table, now, &RevisionLoad { arrivals_total, ..RevisionLoad::default() }), 1);
    }
    assert_eq!(table.scale_of(&web).unwrap().current, 1, "10 a second in both, whatever the tick's delay");
}

#[test]
fn a_counter_that_starts_anew_is_not_a_pause() {
    let mut table = table(0, &[revision("web--v1", Scale { min_replicas: 1, ..Scale::default() }, true)]);
    let web = key("web--v1");
    for (now, arrivals_total) in [(15, 10_000), (30, 15 * 30)] {
        assert_eq!(round_with(&mut table, now, &RevisionLoad { arrivals_total, ..RevisionLoad::default() }), 1);
    }
    let scale = table.scale_of(&web).unwrap();
    assert_eq!(scale.decisions.last().unwrap().record.decision.want, Some(3));
}

#[test]
fn without_ingress_or_rule_it_ends_at_zero_and_no_request_starts_it() {
    let mut table = table(0, &[revision("web--v1", Scale::default(), false)]);
    let mut now = 0;
    for _ in 0..100 {
        let Some(next) = table.next_due() else { break };
        now = next.as_second();
        round(&mut table, now);
    }
    assert_eq!(now, 330, "a decision every 30 s, 300 s exceeded");
    let (outbox, _) = table.take_outbox();
    let warned =
        |message: &Message| matches!(message, Message::Event(event) if event.message.contains("nothing starts"));
    assert!(outbox.iter().any(warned), "{outbox:?}");
    assert_eq!(table.activate(&key("web--v1"), at(400), 1), Activation::NotByRequest);
}

#[test]
fn ingress_switched_on_later_brings_the_default_rule() {
    let mut table = table(0, &[revision("web--v1", Scale::default(), false)]);
    take(&mut table, &[revision("web--v1", Scale::default(), true)], None, 5);
    assert_eq!(table.next_due(), Some(at(15)));
    assert_eq!(table.scale_of(&key("web--v1")).unwrap().config.rules.len(), 1);
}

#[test]
fn http_beside_an_unbuilt_rule_scales_out_and_never_in() {
    let rule = |name: &str, kind| ScaleRule { name: name.into(), kind };
    let custom = ScaleRuleKind::Custom {
        scaler: "kafka".into(),
        metadata: Default::default(),
        auth: Vec::new(),
        identity: None,
    };
    let http = ScaleRuleKind::Http { concurrent_requests: 10 };
    let scale = Scale { rules: vec![rule("h", http), rule("k", custom)], ..Scale::default() };
    let mut table = table(0, &[revision("web--v1", scale, true)]);
    let web = key("web--v1");
    let mut total = 0;
    for step in 0..100 {
        let now = 15 * step;
        total += if step == 5 { 15 * 30 } else { 0 };
        round_with(&mut table, now, &RevisionLoad { arrivals_total: total, ..RevisionLoad::default() });
    }
    let scale = table.scale_of(&web).unwrap();
    assert_eq!(scale.current, 3);
    assert_eq!(scale.decisions.last().unwrap().record.decision.reason, Reason::PartialErrorHold);
}

#[test]
fn memory_is_bounded() {
    let mut table = table(0, &[revision("web--v1", Scale::default(), true)]);
    let web = key("web--v1");
    for cycle in 0..20_000 {
        let now = 1_000 * i64::from(cycle);
        table.activate(&web, at(now), 1);
        round(&mut table, now + 999);
    }
    assert!(table.scale_of(&web).unwrap().decisions.len() <= Config::default().decisions_kept);
    let (outbox, dropped) = table.take_outbox();
    assert_eq!(outbox.len(), OUTBOX_MAX);
    assert!(dropped > 0);
}

#[test]
fn counts_that_nobody_claims_are_forgotten_but_not_at_once() {
    let mut table = Table::new(Config::default(), Board::default(), at(0));
    table.restore(vec![(key("web--old"), ScaleState::default())]);
    take(&mut table, &[], None, 5);
    assert!(table.take_unsaved().is_empty());
    take(&mut table, &[], None, 601);
    assert_eq!(table.take_unsaved(), [(key("web--old"), None)]);
}

#[test]
fn what_runs_after_a_crash_was_wanted() {
    let mut table = Table::new(Config::default(), Board::default(), at(1000));
    let saved = ScaleState { current: 0, last_active: Some(at(900)), ..ScaleState::default() };
    table.restore(vec![(key("web--v1"), saved)]);
    take(&mut table, &[revision("web--v1", Scale::default(), true)], Some(3), 1000);
    let scale = table.scale_of(&key("web--v1")).unwrap();
    assert_eq!((scale.current, scale.last_active), (3, Some(at(1000))));
    assert_eq!(table.desired.get(&key("web--v1")).unwrap().replicas, 3);
}
