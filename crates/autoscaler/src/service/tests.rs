//! The service on a clock moved by hand, with a load source the test writes.

use std::collections::HashMap;

use cove_model::{ResourceId, RevisionName, Scale, ScaleRule, ScaleRuleKind, SystemEvent};
use cove_scaling::{Reason, ScaleState, ScaledRevision};
use cove_traffic::RevisionLoad;
use expect_test::expect;
use tokio::sync::mpsc;

use super::*;
use crate::ports::{CountStore, RevisionDecision, SavedCount};
use crate::sources::RuleSources;

mod rules;

/// Longest wait for anything, by the machine's clock.
const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `done`. It sleeps in between: what runs on a blocking thread needs the processor too.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + LIMIT;
    while !done() {
        assert!(std::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

fn key(name: &str) -> RevisionKey {
    let app = name.split("--").next().unwrap();
    RevisionKey {
        app: ResourceId::resource("s", "rg", "Microsoft.App/containerApps", app).unwrap(),
        name: RevisionName::new(name).unwrap(),
    }
}

fn revision(name: &str, scale: Scale) -> ScaledRevision {
    ScaledRevision {
        revision: key(name),
        environment: ResourceId::resource("s", "rg", "Microsoft.App/managedEnvironments", "env").unwrap(),
        scale,
        has_ingress: true,
        replaces: None,
        activated_at: Timestamp::UNIX_EPOCH,
        is_active: true,
    }
}

fn queue_rule() -> Scale {
    let kind = ScaleRuleKind::Custom {
        scaler: "redis".into(),
        metadata: Default::default(),
        auth: Vec::new(),
        identity: None,
    };
    Scale { rules: vec![ScaleRule { name: "q".into(), kind }], ..Scale::default() }
}

/// What the sources say, and how often the load of a revision was asked for.
#[derive(Default)]
struct World {
    loads: HashMap<RevisionKey, RevisionLoad>,
    /// Loads to give out one by one before `loads` counts again.
    script: HashMap<RevisionKey, Vec<RevisionLoad>>,
    asked: HashMap<RevisionKey, u32>,
}

struct Bench {
    clock: cove_base::Clock,
    world: Arc<Mutex<World>>,
    revisions: Board<RevisionKey, Arc<ScaledRevision>>,
    events: mpsc::Receiver<SystemEvent>,
    decisions: mpsc::Receiver<RevisionDecision>,
    handle: Handle,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<Result<(), Error>>,
}

impl Bench {
    fn start(counts: Option<Arc<dyn CountStore>>) -> Self {
        Self::start_at(Timestamp::UNIX_EPOCH, counts)
    }

    fn start_at(now: Timestamp, counts: Option<Arc<dyn CountStore>>) -> Self {
        Self::start_with(now, counts, RuleSources::default())
    }

    fn start_with(now: Timestamp, counts: Option<Arc<dyn CountStore>>, rules: RuleSources) -> Self {
        Self::start_within(SignedDuration::try_from(LIMIT).unwrap(), now, counts, rules)
    }

    /// With a limit for each reading, of the machine's time.
    fn start_within(
        read_deadline: SignedDuration,
        now: Timestamp,
        counts: Option<Arc<dyn CountStore>>,
        rules: RuleSources,
    ) -> Self {
        let clock = cove_base::Clock::virtual_at(now);
        let world = Arc::new(Mutex::new(World::default()));
        let revisions = Board::default();
        let (event_sender, events) = mpsc::channel(10_000);
        let (decision_sender, decisions) = mpsc::channel(10_000);
        let source = Arc::clone(&world);
        let deps = Deps {
            clock: clock.clone(),
            revisions: revisions.clone(),
            load: Arc::new(move |key| {
                let mut world = source.lock().unwrap();
                *world.asked.entry(key.clone()).or_default() += 1;
                let scripted = world.script.get_mut(key).and_then(Vec::pop);
                scripted.unwrap_or_else(|| world.loads.get(key).copied().unwrap_or_default())
            }),
            existing: Arc::new(|_| None),
            rules,
            desired: Board::default(),
            counts,
            decisions: Some(decision_sender),
            events: event_sender,
        };
        let settings = cove_scaling::ScaleSettings { read_deadline, ..Default::default() };
        let config = Config { settings, save_after: SignedDuration::ZERO, ..Config::default() };
        let service = Service::new(config, deps);
        let (handle, shutdown) = (service.handle(), CancellationToken::new());
        let running = tokio::spawn(service.run(shutdown.clone()));
        Self { clock, world, revisions, events, decisions, handle, shutdown, running }
    }

    async fn list(&self, revisions: Vec<ScaledRevision>) {
        let keys: Vec<_> = revisions.iter().map(|revision| revision.revision.clone()).collect();
        for (gone, _) in self.revisions.snapshot().into_iter().filter(|(key, _)| !keys.contains(key)) {
            self.revisions.remove(&gone);
        }
        for revision in revisions {
            self.revisions.set(revision.revision.clone(), Arc::new(revision));
        }
        until("the list is taken", || keys.iter().all(|key| self.handle.desired().get(key).is_some())).await;
    }

    fn count(&self, name: &str) -> Option<u32> {
        self.handle.desired().get(&key(name)).map(|count| count.replicas)
    }

    fn load(&self, name: &str, change: impl FnOnce(&mut RevisionLoad)) {
        change(self.world.lock().unwrap().loads.entry(key(name)).or_default());
    }

    fn asked(&self, name: &str) -> u32 {
        self.world.lock().unwrap().asked.get(&key(name)).copied().unwrap_or(0)
    }

    /// Moves the clock one sampling step and waits until every tick of it was taken.
    async fn step(&self) {
        let now = self.clock.advance(SignedDuration::from_secs(15)).unwrap();
        let due = || self.handle.shared.table().next_due();
        let is_done = || due().is_none_or(|due| due > now) && self.clock.unrest().is_empty();
        until("the ticks are taken", is_done).await;
    }

    async fn steps(&self, number: u32) {
        for _ in 0..number {
            self.step().await;
        }
    }

    fn events(&mut self) -> String {
        let mut text = String::new();
        while let Ok(event) = self.events.try_recv() {
            let second = event.at.as_second();
            text += &format!("{second} {:?} {}: {}\n", event.kind, event.reason, event.message);
        }
        text.replace(&cove_scalers::Scalers::KINDS.join(", "), "<all of them>")
    }

    async fn stop(self) -> Result<(), Error> {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.running).await.unwrap().unwrap()
    }
}

#[tokio::test]
async fn an_idle_app_goes_to_zero_then_sleeps_until_a_request() {
    let mut bench = Bench::start(None);
    bench.list(vec![revision("web--v1", Scale::default())]).await;
    assert_eq!(bench.count("web--v1"), Some(1));
    bench.steps(20).await;
    assert_eq!(bench.count("web--v1"), Some(1), "300 s must be exceeded");
    bench.step().await;
    assert_eq!(bench.count("web--v1"), Some(0));
    assert_eq!(bench.handle.scale_of(&key("web--v1")).unwrap().next_tick, None, "nothing ticks at zero");

    bench.load("web--v1", |load| (load.open, load.arrivals_total) = (1, 1));
    assert_eq!(bench.handle.activate(&key("web--v1")), Activation::Activated);
    assert_eq!(bench.count("web--v1"), Some(1), "published before the call returns");
    assert_eq!(bench.handle.activate(&key("web--v1")), Activation::Running);
    assert_eq!(bench.handle.activate(&key("other--v1")), Activation::Unknown);
    bench.step().await;
    assert_eq!(bench.count("web--v1"), Some(1));
    expect![[r#"
        0 Normal KEDAScalersStarted: Scaling of `web--v1` started: scale rules `default-http` (http), 0 to 10 replicas
        315 Normal KEDAScaleTargetDeactivated: Scaled `web--v1` from 1 to 0: no activity for more than 300 s
        315 Normal KEDAScaleTargetActivated: Scaled `web--v1` from 0 to 1: a request arrived
    "#]]
    .assert_eq(&bench.events());
    while let Ok(decision) = bench.decisions.try_recv() {
        assert_eq!(decision.record.replay().unwrap(), decision.record.decision);
    }
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn load_climbs_by_steps_and_falls_after_the_window() {
    let bench = Bench::start(None);
    bench.list(vec![revision("web--v1", Scale::default())]).await;
    let mut counts = Vec::new();
    for _ in 0..4 {
        bench.load("web--v1", |load| load.arrivals_total += 15 * 250);
        bench.step().await;
        counts.push(bench.count("web--v1").unwrap());
    }
    assert_eq!(counts, [4, 8, 10, 10]);
    for _ in 0..20 {
        bench.load("web--v1", |load| load.arrivals_total += 15 * 15);
        bench.step().await;
        assert_eq!(bench.count("web--v1"), Some(10));
    }
    bench.load("web--v1", |load| load.arrivals_total += 15 * 15);
    bench.step().await;
    assert_eq!(bench.count("web--v1"), Some(2));
    let decisions = bench.handle.scale_of(&key("web--v1")).unwrap().decisions.into_iter();
    let reasons: String = decisions.map(|run| format!("{}x{} ", run.record.decision.reason, run.times)).collect();
    expect!["scale-up-limitedx1 scale-up-limitedx1 scale-up-limitedx1 steadyx1 stabilizedx20 scale-downx1 "]
        .assert_eq(&reasons);
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn requests_counted_before_the_revision_was_known_are_history() {
    let bench = Bench::start(None);
    bench.load("web--v1", |load| load.arrivals_total = 1_000_000);
    bench.list(vec![revision("web--v1", Scale::default())]).await;
    bench.step().await;
    assert_eq!(bench.count("web--v1"), Some(1));
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_lost_signal_costs_one_sampling_step() {
    let bench = Bench::start(None);
    bench.list(vec![revision("web--v1", Scale::default())]).await;
    bench.steps(21).await;
    assert_eq!(bench.count("web--v1"), Some(0));
    bench.load("web--v1", |load| (load.open, load.held) = (1, 1)); // and nobody calls activate
    bench.clock.advance(SignedDuration::from_secs(15)).unwrap();
    until("the sweep finds it", || bench.count("web--v1") == Some(1)).await;
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_request_that_races_the_step_to_zero_is_seen() {
    let bench = Bench::start(None);
    bench.list(vec![revision("web--v1", Scale::default())]).await;
    bench.steps(20).await;
    // Read as idle, then open when looked at again: the request came in between, and its own call found a count of 1.
    let idle = RevisionLoad::default();
    bench.world.lock().unwrap().script.insert(key("web--v1"), vec![RevisionLoad { open: 1, ..idle }, idle]);
    bench.step().await;
    assert_eq!(bench.count("web--v1"), Some(1));
    let decisions = bench.handle.scale_of(&key("web--v1")).unwrap().decisions;
    let reasons: Vec<_> = decisions.iter().rev().take(2).map(|run| run.record.decision.reason).collect();
    assert_eq!(reasons, [Reason::Activated, Reason::CooldownElapsed]);
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_rule_without_a_scaler_holds_the_count_and_says_so_once() {
    let mut bench = Bench::start(None);
    bench.list(vec![revision("worker--v1", queue_rule())]).await;
    bench.steps(100).await;
    assert_eq!(bench.count("worker--v1"), Some(1));
    let decisions = bench.handle.scale_of(&key("worker--v1")).unwrap().decisions;
    assert_eq!(decisions.last().unwrap().record.decision.reason, Reason::NoValidMetric);
    expect![[r#"
        0 Normal KEDAScalersStarted: Scaling of `worker--v1` started: scale rules `q` (custom), 0 to 10 replicas
        0 Warning KEDAScalerFailed: Rule `q` of `worker--v1` cannot be read: scaler `redis` is not built; the kinds that are: <all of them>. The replica count does not fall until it can
    "#]]
    .assert_eq(&bench.events());
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn a_replacing_revision_starts_with_as_many_replicas() {
    let bench = Bench::start(None);
    let old = revision("web--v1", Scale { min_replicas: 3, ..Scale::default() });
    bench.list(vec![old.clone()]).await;
    let new = ScaledRevision { replaces: Some(key("web--v1")), ..revision("web--v2", Scale::default()) };
    bench.list(vec![old.clone(), new.clone()]).await;
    assert_eq!(bench.count("web--v2"), Some(3));

    bench.list(vec![ScaledRevision { is_active: false, ..old }, new.clone()]).await;
    until("the old one is stopped", || bench.count("web--v1") == Some(0)).await;
    assert_eq!(bench.handle.activate(&key("web--v1")), Activation::Unknown);
    bench.list(vec![new]).await;
    until("the old one is gone", || bench.count("web--v1").is_none()).await;
    bench.stop().await.unwrap();
}

#[tokio::test]
async fn apps_at_zero_are_not_ticked() {
    let bench = Bench::start(None);
    let names: Vec<String> = (0..1000).map(|number| format!("app{number}--v1")).collect();
    bench.list(names.iter().map(|name| revision(name, Scale::default())).collect()).await;
    bench.clock.advance(SignedDuration::from_secs(315)).unwrap();
    until("all sleep", || names.iter().all(|name| bench.count(name) == Some(0))).await;
    let before = bench.asked("app7--v1");
    for _ in 0..5 {
        bench.clock.advance(SignedDuration::from_secs(3)).unwrap();
        tokio::task::yield_now().await;
    }
    until("one sweep", || bench.asked("app7--v1") == before + 1).await;
    assert_eq!(bench.handle.shared.table().next_due(), None);
    bench.stop().await.unwrap();
}

/// Keeps what it is given, after failing as often as it is told.
#[derive(Default)]
struct Kept {
    counts: Mutex<HashMap<RevisionKey, ScaleState>>,
    failures_left: Mutex<u32>,
    load_fails: bool,
}

impl CountStore for Kept {
    fn load(&self) -> Result<Vec<(RevisionKey, ScaleState)>, BoxError> {
        if self.load_fails {
            return Err("the disk is gone".into());
        }
        Ok(self.counts.lock().unwrap().iter().map(|(key, state)| (key.clone(), state.clone())).collect())
    }

    fn save(&self, batch: &[SavedCount]) -> Result<(), BoxError> {
        let mut left = self.failures_left.lock().unwrap();
        if *left > 0 {
            *left -= 1;
            return Err("the disk is full".into());
        }
        let mut counts = self.counts.lock().unwrap();
        for (key, state) in batch {
            match state {
                Some(state) => counts.insert(key.clone(), state.clone()),
                None => counts.remove(key),
            };
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_restart_keeps_counts_and_shrinks_nothing_for_a_window() {
    let store = Arc::new(Kept { failures_left: Mutex::new(2), ..Kept::default() });
    let bench = Bench::start(Some(store.clone()));
    let list = vec![revision("web--v1", Scale::default()), revision("idle--v1", Scale::default())];
    bench.list(list.clone()).await;
    for _ in 0..25 {
        bench.load("web--v1", |load| load.arrivals_total += 15 * 60);
        bench.step().await;
    }
    assert_eq!((bench.count("web--v1"), bench.count("idle--v1")), (Some(6), Some(0)));
    let stopped_at = bench.clock.now();
    bench.stop().await.unwrap();

    let bench = Bench::start_at(stopped_at + SignedDuration::from_secs(3600), Some(store.clone()));
    bench.list(list).await;
    assert_eq!((bench.count("web--v1"), bench.count("idle--v1")), (Some(6), Some(0)));
    for _ in 0..21 {
        assert_eq!(bench.count("web--v1"), Some(6));
        bench.load("web--v1", |load| load.arrivals_total += 15);
        bench.step().await;
    }
    bench.load("web--v1", |load| load.arrivals_total += 15);
    bench.step().await;
    assert_eq!(bench.count("web--v1"), Some(1), "the count recorded at the start has left the window");

    bench.list(Vec::new()).await;
    until("both are gone", || bench.count("web--v1").is_none() && bench.count("idle--v1").is_none()).await;
    bench.stop().await.unwrap();
    assert!(store.counts.lock().unwrap().is_empty(), "what is gone is forgotten");
}

#[tokio::test]
async fn saved_counts_that_cannot_be_read_stop_the_start() {
    let store = Arc::new(Kept { load_fails: true, ..Kept::default() });
    let bench = Bench::start(Some(store));
    let error = tokio::time::timeout(LIMIT, bench.running).await.unwrap().unwrap().unwrap_err();
    assert_eq!(error.to_string(), "failed to load the counts saved before the start");
}
