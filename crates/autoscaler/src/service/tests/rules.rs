//! Event, cpu and memory rules beside sources that the test writes: slow, failing, flapping, lying, dead.

mod recorded;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};

use cove_model::{Bytes, EnvValue, EnvVar, MilliCpu, ReplicaName, ScaleMode, ScaleRuleAuth};
use cove_scalers::{OpenError, ReadError, ReadFuture, Source};
use cove_scaling::resource::ReplicaPhase;
use cove_scaling::source::Answer;
use tokio::sync::watch;

use super::*;
use crate::resolve::Surroundings;
use crate::sources::ReplicaUsage;

/// What a source says.
#[derive(Clone, Debug)]
enum Says {
    Length(f64),
    Fails(&'static str),
    Nothing,
    /// The length, to whoever knows the password.
    Secret(&'static str, f64),
}

/// All sources of a test.
#[derive(Debug)]
struct Sources {
    says: Mutex<Says>,
    reads: AtomicU32,
    opened: AtomicU32,
    pushes: watch::Sender<u64>,
    surroundings: Mutex<Surroundings>,
    usage: Mutex<Vec<ReplicaUsage>>,
}

#[derive(Debug)]
struct Fake {
    of: Arc<Sources>,
    password: Option<String>,
}

impl Source for Fake {
    fn read(&self) -> ReadFuture<'_> {
        self.of.reads.fetch_add(1, Ordering::Relaxed);
        let says = self.of.says.lock().unwrap().clone();
        Box::pin(async move {
            match says {
                Says::Length(length) => Ok(Answer::Number(length)),
                Says::Fails(reason) => Err(ReadError::new(reason)),
                Says::Nothing => std::future::pending().await,
                Says::Secret(password, length) if self.password.as_deref() == Some(password) => {
                    Ok(Answer::Number(length))
                }
                Says::Secret(..) => Err(ReadError::new("the server refused the password")),
            }
        })
    }

    fn pushes(&self) -> Option<watch::Receiver<u64>> {
        Some(self.of.pushes.subscribe())
    }
}

impl Sources {
    fn new(says: Says) -> Arc<Self> {
        Arc::new(Self {
            says: Mutex::new(says),
            reads: AtomicU32::new(0),
            opened: AtomicU32::new(0),
            pushes: watch::Sender::new(0),
            surroundings: Mutex::default(),
            usage: Mutex::default(),
        })
    }

    fn say(&self, says: Says) {
        *self.says.lock().unwrap() = says;
    }

    fn reads(&self) -> u32 {
        self.reads.load(Ordering::Relaxed)
    }

    fn rules(self: &Arc<Self>) -> RuleSources {
        let (opened, around, used) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        RuleSources {
            surroundings: Arc::new(move |_| Ok(around.surroundings.lock().unwrap().clone())),
            usage: Arc::new(move |_| used.usage.lock().unwrap().clone()),
            ..RuleSources::of_open(Arc::new(move |trigger, _| {
                opened.opened.fetch_add(1, Ordering::Relaxed);
                if trigger.scaler != "redis" {
                    return Err(OpenError::Unknown(trigger.scaler.clone()));
                }
                let password = trigger.get("password").map(str::to_owned);
                Ok(Arc::new(Fake { of: Arc::clone(&opened), password }))
            }))
        }
    }
}

fn start(sources: &Arc<Sources>) -> Bench {
    Bench::start_with(Timestamp::UNIX_EPOCH, None, sources.rules())
}

/// The same, where some readings wait in vain: long enough for the others on a busy machine.
fn start_impatient(sources: &Arc<Sources>) -> Bench {
    Bench::start_within(SignedDuration::from_secs(2), Timestamp::UNIX_EPOCH, None, sources.rules())
}

fn list_rule(name: &str) -> ScaleRule {
    let metadata = [("address", "redis:6379"), ("listName", "jobs"), ("listLength", "5")];
    let kind = ScaleRuleKind::Custom {
        scaler: "redis".into(),
        metadata: metadata.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        auth: Vec::new(),
        identity: None,
    };
    ScaleRule { name: name.into(), kind }
}

fn worker(name: &str) -> ScaledRevision {
    let scale = Scale { max_replicas: 20, rules: vec![list_rule("q")], ..Scale::default() };
    ScaledRevision { has_ingress: false, ..revision(name, scale) }
}

impl Bench {
    /// Until nothing is due or under way.
    async fn settle(&self) {
        let due = || self.handle.shared.table().next_due();
        let is_quiet = || self.clock.unrest().is_empty() && due().is_none_or(|due| due > self.clock.now());
        until("everything is quiet", is_quiet).await;
    }

    async fn forward(&self, seconds: i64) {
        self.clock.advance(SignedDuration::from_secs(seconds)).unwrap();
        self.settle().await;
    }

    /// Counts after each of so many polls.
    async fn polls(&self, name: &str, number: u32) -> Vec<u32> {
        let mut counts = Vec::new();
        for _ in 0..number {
            self.forward(30).await;
            counts.push(self.count(name).unwrap());
        }
        counts
    }

    fn last(&self, name: &str) -> cove_scaling::Decision {
        self.handle.scale_of(&key(name)).unwrap().decisions.last().unwrap().record.decision.clone()
    }
}

#[tokio::test]
async fn a_queue_is_climbed_by_steps_and_left_after_the_window_and_the_cool_down() {
    let sources = Sources::new(Says::Length(50.0));
    let bench = start(&sources);
    bench.list(vec![worker("w--v1")]).await;
    bench.settle().await;
    assert_eq!((bench.count("w--v1"), sources.reads()), (Some(4), 1), "read at once");
    assert_eq!(bench.polls("w--v1", 3).await, [8, 10, 10]);
    sources.say(Says::Length(0.0));
    assert_eq!(bench.polls("w--v1", 10).await, [10; 10]);
    assert_eq!(bench.polls("w--v1", 2).await, [0, 0], "300 s after the last activity are exceeded");
    assert_eq!(sources.reads(), 16, "at zero it is read, too");
    sources.say(Says::Length(50.0));
    assert_eq!(bench.polls("w--v1", 4).await, [1, 4, 8, 10]);
    let decision = bench.last("w--v1");
    assert_eq!(decision.at, Timestamp::from_second(30 * 19).unwrap(), "at the instant of the cadence");
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_push_starts_what_is_at_zero_and_changes_nothing_else() {
    let sources = Sources::new(Says::Length(0.0));
    let bench = start(&sources);
    bench.list(vec![worker("w--v1")]).await;
    bench.settle().await;
    bench.polls("w--v1", 11).await;
    assert_eq!(bench.count("w--v1"), Some(0));
    bench.clock.advance(SignedDuration::from_secs(1)).unwrap();
    bench.settle().await;
    let push = async || {
        let reads = sources.reads();
        sources.pushes.send_modify(|count| *count += 1);
        until("the push is followed by a reading", || sources.reads() > reads).await;
        bench.settle().await;
    };
    push().await;
    assert_eq!(bench.count("w--v1"), Some(0), "inactive");
    sources.say(Says::Length(100.0));
    push().await;
    assert_eq!(bench.count("w--v1"), Some(1), "29 s before its poll");
    push().await;
    assert_eq!(bench.count("w--v1"), Some(1), "a step up waits for the poll");
    bench.forward(29).await;
    assert_eq!(bench.count("w--v1"), Some(4));
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_source_that_fails_is_slow_or_lies_is_told_once_and_takes_nothing_away() {
    let sources = Sources::new(Says::Length(40.0));
    let mut bench = start_impatient(&sources);
    bench.list(vec![worker("w--v1")]).await;
    bench.settle().await;
    assert_eq!(bench.polls("w--v1", 2).await, [8, 8]);
    bench.events();
    sources.say(Says::Fails("connection refused"));
    assert_eq!(bench.polls("w--v1", 40).await, [8; 40]);
    assert_eq!(bench.last("w--v1").rules[0].failures, 40);
    sources.say(Says::Nothing);
    assert_eq!(bench.polls("w--v1", 2).await, [8; 2]);
    sources.say(Says::Length(40.0));
    bench.polls("w--v1", 1).await;
    sources.say(Says::Nothing);
    bench.polls("w--v1", 1).await;
    for lie in [f64::NAN, f64::NEG_INFINITY, -7.0] {
        sources.say(Says::Length(lie));
        assert_eq!(bench.polls("w--v1", 1).await, [8], "{lie}");
    }
    sources.say(Says::Length(1e300));
    assert_eq!(bench.polls("w--v1", 3).await, [16, 20, 20]);
    expect![[r#"
        90 Warning KEDAScalerFailed: Rule `q` of `w--v1` cannot be read: connection refused. The replica count does not fall until it can
        1350 Normal KEDAScalersStarted: Rule `q` of `w--v1` can be read again
        1380 Warning KEDAScalerFailed: Rule `q` of `w--v1` cannot be read: no answer within 2 s. The replica count does not fall until it can
        1440 Normal KEDAScalersStarted: Rule `q` of `w--v1` can be read again
        1500 Normal SuccessfulRescale: Scaled `w--v1` from 8 to 16: rule `q` asks for 4294967295; this step reaches 16
        1530 Normal SuccessfulRescale: Scaled `w--v1` from 16 to 20: rule `q` asks for 4294967295; this step reaches 20
    "#]].assert_eq(&bench.events());
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_rotated_secret_heals_by_itself() {
    let sources = Sources::new(Says::Secret("old", 40.0));
    let around = |password: &str| Surroundings {
        env: vec![EnvVar { name: "PASSWORD".into(), value: EnvValue::SecretRef("redis".into()) }],
        secrets: BTreeMap::from([("redis".to_owned(), password.to_owned())]),
    };
    *sources.surroundings.lock().unwrap() = around("old");
    let mut bench = start(&sources);
    let mut revision = worker("w--v1");
    if let ScaleRuleKind::Custom { metadata, .. } = &mut revision.scale.rules[0].kind {
        metadata.insert("passwordFromEnv".into(), "PASSWORD".into());
    }
    bench.list(vec![revision]).await;
    bench.settle().await;
    assert_eq!(bench.polls("w--v1", 2).await, [8, 8]);
    assert_eq!(sources.opened.load(Ordering::Relaxed), 1, "one source for all good readings");
    sources.say(Says::Secret("new", 80.0));
    bench.polls("w--v1", 2).await;
    *sources.surroundings.lock().unwrap() = around("new");
    assert_eq!(bench.polls("w--v1", 1).await, [16]);
    let events = bench.events();
    assert!(events.contains("60 Normal") || events.contains("can be read again"), "{events}");
    assert!(events.contains("refused the password") && !events.contains("new\""), "{events}");
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn what_a_rule_lacks_is_said_by_name() {
    let sources = Sources::new(Says::Length(0.0));
    let mut bench = start(&sources);
    let mut unknown = worker("unknown--v1");
    let mut unreadable = worker("unreadable--v1");
    if let ScaleRuleKind::Custom { scaler, auth, .. } = &mut unknown.scale.rules[0].kind {
        *scaler = "solace-event-queue".into();
        auth.push(ScaleRuleAuth { secret_ref: "gone".into(), trigger_parameter: "password".into() });
    }
    if let ScaleRuleKind::Custom { metadata, .. } = &mut unreadable.scale.rules[0].kind {
        metadata.insert("listLength".into(), "many".into());
    }
    bench.list(vec![unknown, unreadable]).await;
    bench.settle().await;
    bench.polls("unknown--v1", 5).await;
    bench.polls("unreadable--v1", 5).await;
    // the two are read side by side
    let events = bench.events();
    let mut lines: Vec<_> = events.split_inclusive('\n').collect();
    lines.sort_unstable();
    let events = lines.concat();
    expect![[r#"
        0 Normal KEDAScalersStarted: Scaling of `unknown--v1` started: scale rules `q` (custom), 0 to 20 replicas
        0 Normal KEDAScalersStarted: Scaling of `unreadable--v1` started: scale rules `q` (custom), 0 to 20 replicas
        0 Warning KEDAScalerFailed: Rule `q` of `unknown--v1` cannot be read: scaler `solace-event-queue` is not built; the kinds that are: <all of them> (the app has no secret `gone`, which is `password`). The replica count does not fall until it can
        0 Warning KEDAScalerFailed: Rule `q` of `unreadable--v1` cannot be read: listLength is `many`; expected a number of at least 0.001. The replica count does not fall until it can
    "#]]
    .assert_eq(&events);
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_clock_that_jumps_is_one_poll() {
    let sources = Sources::new(Says::Length(40.0));
    let bench = start(&sources);
    bench.list(vec![worker("w--v1")]).await;
    bench.settle().await;
    bench.forward(24 * 3600 + 7).await;
    assert_eq!(sources.reads(), 2);
    bench.forward(23).await;
    assert_eq!(sources.reads(), 3, "the cadence is the old one");
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_window_shrinks_nothing_for_a_window() {
    let sources = Sources::new(Says::Length(50.0));
    let store = Arc::new(Kept::default());
    let bench = Bench::start_with(Timestamp::UNIX_EPOCH, Some(store.clone()), sources.rules());
    let with_one = |name: &str| {
        let mut revision = worker(name);
        revision.scale.min_replicas = 1;
        revision
    };
    bench.list(vec![with_one("w--v1")]).await;
    bench.settle().await;
    assert_eq!(bench.polls("w--v1", 3).await, [8, 10, 10]);
    sources.say(Says::Fails("gone"));
    bench.polls("w--v1", 2).await;
    let stopped_at = bench.clock.now() + SignedDuration::from_secs(11);
    bench.stop().await.unwrap();
    assert_eq!(store.counts.lock().unwrap()[&key("w--v1")].failures, [2]);

    sources.say(Says::Length(5.0));
    let mut bench = Bench::start_with(stopped_at, Some(store), sources.rules());
    bench.list(vec![with_one("w--v1")]).await;
    bench.settle().await;
    bench.forward(19).await;
    assert_eq!(bench.last("w--v1").at, Timestamp::from_second(180).unwrap(), "the cadence goes on");
    assert_eq!(bench.polls("w--v1", 10).await, [10; 10]);
    assert_eq!(bench.polls("w--v1", 1).await, [1]);
    let events = bench.events();
    assert!(events.contains("180 Normal KEDAScalersStarted: Rule `q` of `w--v1` can be read again"), "{events}");
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_thousand_rules_on_one_dead_host_delay_nobody() {
    let sources = Sources::new(Says::Nothing);
    let mut bench = start_impatient(&sources);
    let names: Vec<String> = (0..1000).map(|number| format!("w{number}--v1")).collect();
    bench.list(names.iter().map(|name| worker(name)).collect()).await;
    for _ in 0..30 {
        let now = bench.clock.advance(SignedDuration::from_secs(1)).unwrap();
        // begun, not ended: nobody waits for anybody
        let due = || bench.handle.shared.table().next_due();
        until("the readings have begun", || due().is_none_or(|due| due > now)).await;
    }
    bench.settle().await;
    let reads = sources.reads();
    assert!((1000..=1050).contains(&reads), "each is read once in its polling interval: {reads}");
    let events = bench.events();
    assert_eq!(events.matches("KEDAScalerFailed").count(), 1000);
    assert!(names.iter().all(|name| bench.count(name) == Some(1)));
    bench.stop().await.unwrap();
}

#[test]
fn rules_that_come_at_once_are_spread_over_the_polling_interval() {
    let mut table = Table::new(Config::default(), Board::default(), Timestamp::UNIX_EPOCH);
    let rules: Vec<ScaleRule> = (0..5).map(|number| list_rule(&format!("q{number}"))).collect();
    let listed: Vec<Listed> = (0..2000)
        .map(|number| {
            let scale = Scale { rules: rules.clone(), ..Scale::default() };
            let revision = ScaledRevision { has_ingress: false, ..revision(&format!("w{number}--v1"), scale) };
            Listed { key: revision.revision.clone(), revision: Some(Arc::new(revision)), existing: None }
        })
        .collect();
    table.take_changes(&listed, Timestamp::UNIX_EPOCH);
    let mut read = 0;
    for second in 0..30 {
        let due = table.take_due(Timestamp::from_second(second).unwrap());
        let rules: usize = due.iter().map(|(_, due)| due.readers.len()).sum();
        assert!(rules <= 600, "{rules} in second {second}; 333 in the mean");
        read += rules;
    }
    assert!(read >= 9_300, "{read}");
}

fn replica(number: u32, cpu_us_total: u64) -> ReplicaUsage {
    ReplicaUsage {
        name: ReplicaName::new(format!("w--v1-{number}")).unwrap(),
        phase: ReplicaPhase::Running,
        is_leaving: false,
        started_at: Some(Timestamp::UNIX_EPOCH),
        is_ready: Some(true),
        ready_at: Some(Timestamp::UNIX_EPOCH),
        cpu_us_total: Some(cpu_us_total),
        cpu_taken_at: None,
        memory_bytes: Some(900 << 20),
        cpu_request: MilliCpu(500),
        memory_request: Bytes(1 << 30),
    }
}

#[tokio::test]
async fn cpu_in_percent_of_the_request_decides() {
    let sources = Sources::new(Says::Nothing);
    let mut bench = start(&sources);
    let rule = |scaler: &str, kind: &str, value: &str| ScaleRule {
        name: scaler.into(),
        kind: ScaleRuleKind::Custom {
            scaler: scaler.into(),
            metadata: [("type", kind), ("value", value)].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            auth: Vec::new(),
            identity: None,
        },
    };
    let scale = Scale { rules: vec![rule("cpu", "Utilization", "50")], ..Scale::default() };
    let memory = Scale { rules: vec![rule("memory", "AverageValue", "300Mi")], ..Scale::default() };
    bench.list(vec![revision("c--v1", scale), revision("m--v1", memory)]).await;
    let mut counts = Vec::new();
    for step in 0..4_u64 {
        // a whole core: 200 % of what it requests
        *sources.usage.lock().unwrap() = vec![replica(1, step * 15_000_000)];
        bench.forward(15).await;
        counts.push((bench.count("c--v1").unwrap(), bench.count("m--v1").unwrap()));
    }
    assert_eq!(counts, [(1, 3), (4, 3), (4, 3), (4, 3)], "a rate takes two looks; 900 MiB are three times the target");
    *sources.usage.lock().unwrap() = Vec::new();
    for _ in 0..40 {
        bench.forward(15).await;
    }
    assert_eq!((bench.count("c--v1"), bench.count("m--v1")), (Some(4), Some(3)), "without a sample nothing changes");
    let events = bench.events();
    assert!(!events.contains("Failed"), "nothing runs, so nothing is wrong: {events}");
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn the_fast_mode_follows_open_requests_each_second() {
    let sources = Sources::new(Says::Nothing);
    let bench = start(&sources);
    let scale = Scale { mode: Some(ScaleMode::Fast), max_replicas: 30, ..Scale::default() };
    bench.list(vec![revision("web--v1", scale)]).await;
    bench.forward(1).await;
    bench.load("web--v1", |load| (load.open, load.arrivals_total, load.open_us_total) = (20, 20, 0));
    bench.forward(1).await;
    assert_eq!(bench.count("web--v1"), Some(3), "20 open and 20 % of room, 10 each");
    // nothing is open just now, but 50 were in the mean
    bench.load("web--v1", |load| (load.open, load.open_us_total) = (0, 50_000_000));
    bench.forward(1).await;
    assert_eq!(bench.count("web--v1"), Some(6));
    bench.stop().await.unwrap();
}
