//! The controller against a fake driver, a real store and a virtual clock.

mod auth;
mod capacity;
mod edge;
mod fake;
mod frozen;
mod jobs;
mod resiliency;
mod sessions;
mod snapshots;

use std::{sync::Arc, time::Duration};

use cove_base::{Board, Clock};
use cove_model::{
    ActiveRevisionsMode, Bytes, Container, ContainerApp, DesiredCount, Environment, Ingress, IngressPolicies, MilliCpu,
    ReplicaName, ReplicaPhase, ResourceId, Resources, Revision, RevisionKey, RevisionName, RevisionProvisioning,
    RevisionStatus, Scale, Template, Transport,
};
use cove_reconcile::Amount;
use cove_runtime::Runtime;
use cove_scaling::ScaledRevision;
use cove_store::{Expect, NewOperation, NewRevision, OperationStatus, Provisioning, PutResource, SecretsChange, Store};
use cove_traffic::{EndpointState, Endpoints, RouteTable};
use jiff::{SignedDuration, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{Config, Controller, Deps, Handle, Sessions};
use fake::Fake;

/// What outlives a server.
type Kept = (tempfile::TempDir, Store, Arc<Fake>, Clock);

/// A platform without API, ingress and autoscaler: the test plays these.
struct Bench {
    dir: tempfile::TempDir,
    store: Store,
    fake: Arc<Fake>,
    clock: Clock,
    desired: Board<RevisionKey, DesiredCount>,
    endpoints: Board<RevisionKey, Endpoints>,
    drained: Board<ReplicaName, u64>,
    routes: watch::Receiver<Arc<RouteTable>>,
    scaled: Board<RevisionKey, Arc<ScaledRevision>>,
    events: mpsc::Receiver<cove_model::SystemEvent>,
    handle: Handle,
    sessions: Sessions,
    running: tokio::task::JoinHandle<()>,
    shutdown: CancellationToken,
    generation: u64,
}

fn app_id() -> ResourceId {
    ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap()
}

fn environment_id() -> ResourceId {
    ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap()
}

fn key(suffix: &str) -> RevisionKey {
    RevisionKey { app: app_id(), name: RevisionName::of("web", suffix).unwrap() }
}

fn template(image: &str) -> Template {
    let container = Container {
        name: "main".into(),
        image: image.into(),
        command: vec![],
        args: vec![],
        env: vec![],
        resources: Resources { cpu: MilliCpu(250), memory: Bytes(1 << 29), ephemeral_storage: Bytes(1 << 30) },
        probes: vec![],
        volume_mounts: vec![],
    };
    Template {
        init_containers: vec![],
        containers: vec![container],
        volumes: vec![],
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    }
}

impl Bench {
    async fn new() -> Self {
        Self::on_a_machine_with(Config::default().capacity).await
    }

    async fn on_a_machine_with(capacity: Amount) -> Self {
        let clock = Clock::virtual_at(Timestamp::from_second(1_000_000).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let fake = Arc::new(Fake::new(clock.clone()));
        let environment = Environment {
            id: environment_id(),
            default_domain: "env.localhost".into(),
            log_workspace: None,
            workload_profiles: vec![],
            suffix: None,
            limits: cove_model::RequestLimits::default(),
            names_callers: false,
        };
        let put = PutResource {
            spec: Some(serde_json::to_value(environment).unwrap()),
            provisioning: Provisioning::Succeeded,
            ..put(environment_id(), clock.now())
        };
        store.put(put).await.unwrap();
        let mut bench = Self::start((dir, store, fake, clock), 0, capacity);
        bench.routes.changed().await.unwrap();
        bench
    }

    fn start(kept: Kept, generation: u64, capacity: Amount) -> Self {
        let (dir, store, fake, clock) = kept;
        let desired = Board::default();
        let (endpoints, drained) = (Board::default(), Board::default());
        let (routes, routes_seen) = watch::channel(Arc::new(RouteTable::default()));
        let scaled = Board::default();
        let (events, events_seen) = mpsc::channel(10_000);
        let deps = Deps {
            store: store.clone(),
            runtime: Arc::clone(&fake) as Arc<dyn Runtime>,
            clock: clock.clone(),
            desired: desired.clone(),
            endpoints: endpoints.clone(),
            routes,
            drained: drained.clone(),
            open: None,
            scaled: scaled.clone(),
            loaded: watch::Sender::new(false),
            events,
        };
        let config = Config { name_seed: generation + 1, capacity, ..Config::default() };
        let controller = Controller::new(config, deps);
        let handle = controller.handle();
        let sessions = controller.sessions();
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(controller.run(shutdown.clone()));
        Self {
            dir,
            store,
            fake,
            clock,
            desired,
            endpoints,
            drained,
            routes: routes_seen,
            scaled,
            events: events_seen,
            handle,
            sessions,
            running,
            shutdown,
            generation,
        }
    }

    /// The server goes away and another one comes up on the same data.
    async fn restart(self) -> Self {
        self.running.abort();
        let _aborted = self.running.await;
        drop(self.shutdown);
        let kept = (self.dir, self.store, self.fake, self.clock);
        Self::start(kept, self.generation, Config::default().capacity)
    }

    /// A PUT of the app; gives its operation.
    async fn put(&mut self, suffix: &str, template: Template) -> String {
        let now = self.clock.now();
        let revision = Revision {
            name: RevisionName::of("web", suffix).unwrap(),
            app: app_id(),
            number: 0,
            template: template.clone(),
            ingress: None,
            is_active: true,
            created_at: now,
            activated_at: now,
            restart_generation: 0,
        };
        let revision = NewRevision { revision, doc: serde_json::json!({}) };
        self.put_app(app(template), Some(revision)).await
    }

    async fn put_app(&mut self, app: ContainerApp, revision: Option<NewRevision>) -> String {
        self.generation += 1;
        let operation = format!("op{}", self.generation);
        let id = app.id.clone();
        let put = PutResource {
            spec: Some(serde_json::to_value(app).unwrap()),
            operation: Some(NewOperation { id: operation.clone(), kind: "update".into() }),
            revision,
            ..put(id, self.clock.now())
        };
        self.store.put(put).await.unwrap();
        operation
    }

    fn want(&self, suffix: &str, replicas: u32) {
        self.desired.set(key(suffix), DesiredCount { replicas, reason: "test".into() });
    }

    async fn advance(&self, span: SignedDuration) {
        self.clock.advance(span);
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }

    async fn ended(&self, operation: &str) -> OperationStatus {
        let status = || self.store.operation(operation).unwrap().unwrap().status;
        self.until("the operation ends", || status() != OperationStatus::InProgress).await;
        status()
    }

    fn status(&self, suffix: &str) -> RevisionStatus {
        self.store.revision(&app_id(), key(suffix).name.as_str()).unwrap().unwrap().status
    }

    fn ready(&self, suffix: &str) -> usize {
        self.endpoints.get(&key(suffix)).map_or(0, |endpoints| endpoints.ready.len())
    }

    fn serves(&self, host: &str) -> Option<String> {
        let table = self.routes.borrow().clone();
        Some(table.app(host)?.choose(0)?.name.to_string())
    }

    /// Waits until something holds; both the clock and the store tell of changes, so looking again is cheap.
    async fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(tokio::time::Instant::now() < deadline, "not in time: {what}\n{:#?}", self.fake.world().log);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn app(template: Template) -> ContainerApp {
    ContainerApp {
        id: app_id(),
        environment: environment_id(),
        active_revisions_mode: ActiveRevisionsMode::Single,
        ingress: Some(Ingress {
            external: true,
            target_port: None,
            transport: Transport::Auto,
            allow_insecure: true,
            traffic: vec![],
            exposed_port: None,
            additional_ports: Vec::new(),
            custom_domains: Vec::new(),
            policies: IngressPolicies::default(),
        }),
        registries: vec![],
        max_inactive_revisions: 100,
        template,
        is_stopped: false,
        workload_profile: None,
    }
}

fn put(id: ResourceId, now: Timestamp) -> PutResource {
    PutResource {
        id,
        doc: serde_json::json!({}),
        spec: None,
        secrets: SecretsChange::Keep,
        provisioning: Provisioning::InProgress,
        operation: None,
        revision: None,
        expect: Expect::Anything,
        now,
    }
}

#[tokio::test]
async fn an_app_comes_up_sleeps_and_wakes_from_a_slot() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded);
    bench.until("it serves", || bench.ready("v1") == 1).await;
    assert_eq!(bench.serves("web.env.localhost").as_deref(), Some("web--v1"));
    assert_eq!(
        bench.endpoints.get(&key("v1")).unwrap().ready[0].address.port(),
        8080,
        "the port that the image exposes"
    );
    assert_eq!(bench.scaled.snapshot().len(), 1);
    assert_eq!(bench.handle.existing(&key("v1")), Some(1));

    bench.advance(SignedDuration::from_secs(1)).await;
    bench.until("a slot is made", || bench.fake.count("web--v1", ReplicaPhase::Prepared) == 1).await;
    bench.want("v1", 0);
    bench.advance(SignedDuration::from_secs(30)).await;
    bench.until("it drains", || bench.endpoints.get(&key("v1")).unwrap().draining.len() == 1).await;
    let name = bench.endpoints.get(&key("v1")).unwrap().draining[0].clone();
    bench.drained.set(name, 0);
    bench.advance(SignedDuration::from_secs(1)).await;
    bench.until("it is at zero", || bench.fake.count("web--v1", ReplicaPhase::Running) == 0).await;
    bench.until("that is written", || bench.status("v1").replicas == 0).await;
    assert_eq!(bench.endpoints.get(&key("v1")).unwrap().state, EndpointState::Hold);

    bench.fake.world().log.clear();
    bench.want("v1", 1);
    bench.until("it serves again", || bench.ready("v1") == 1).await;
    assert_eq!(bench.fake.world().log[0], "start web--v1", "a slot was started, nothing was made first");
    bench.advance(SignedDuration::from_secs(1)).await;
    bench.advance(SignedDuration::from_secs(1)).await;
    bench.until("the slot is replaced", || bench.fake.count("web--v1", ReplicaPhase::Prepared) == 1).await;
}

#[tokio::test]
async fn an_order_that_is_refused_is_given_again() {
    let mut bench = Bench::new().await;
    bench.fake.world().has_no_slots = true;
    bench.fake.world().refusals = 1;
    let operation = bench.put("v1", template("sample")).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded, "the clock stood still");
    assert_eq!(bench.ready("v1"), 1);
}

#[tokio::test]
async fn a_new_revision_takes_over_and_the_old_one_drains() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    bench.want("v1", 3);
    bench.until("v1 has three", || bench.ready("v1") == 3).await;
    let operation = bench.put("v2", template("better")).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded);
    assert_eq!(bench.serves("web.env.localhost").as_deref(), Some("web--v2"));
    bench.until("v2 begins with as many", || bench.ready("v2") == 3).await;
    assert_eq!(bench.ready("v1"), 3, "v1 still serves what was on its way");
    bench.advance(SignedDuration::from_secs(2)).await;
    bench.until("v1 drains", || bench.endpoints.get(&key("v1")).unwrap().draining.len() == 3).await;
    bench.advance(SignedDuration::from_secs(31)).await;
    bench.until("v1 is down", || bench.status("v1").provisioning == RevisionProvisioning::Deprovisioned).await;
    assert!(!bench.store.revision(&app_id(), "web--v1").unwrap().unwrap().revision.is_active);
    assert_eq!(bench.endpoints.get(&key("v1")).unwrap().state, EndpointState::Inactive);
    assert_eq!(bench.ready("v2"), 3);
}

#[tokio::test]
async fn a_revision_that_cannot_start_leaves_the_old_one_in_charge() {
    for (image, says) in [("missing", "was not found"), ("crashing", "no config"), ("deaf", "port 8080")] {
        let mut bench = Bench::new().await;
        {
            let mut world = bench.fake.world();
            world.missing.insert("missing".into());
            world.crashing.insert("crashing".into());
            world.deaf.insert("deaf".into());
        }
        let operation = bench.put("v1", template("sample")).await;
        bench.ended(&operation).await;
        let operation = bench.put("v2", template(image)).await;
        bench.until("v2 is tried", || bench.scaled.snapshot().len() == 2).await;
        if image == "deaf" {
            bench.until("v2 runs", || bench.fake.count("web--v2", ReplicaPhase::Running) == 1).await;
            bench.advance(SignedDuration::from_mins(11)).await;
        }
        assert_eq!(bench.ended(&operation).await, OperationStatus::Failed, "{image}");
        let failure = bench.store.operation(&operation).unwrap().unwrap().failure.unwrap();
        assert!(failure.message.contains(says), "{failure:?}");
        assert_eq!(bench.status("v2").provisioning, RevisionProvisioning::Failed);
        assert_eq!(bench.serves("web.env.localhost").as_deref(), Some("web--v1"));
        assert_eq!(bench.ready("v1"), 1);
        let operation = bench.put("v3", template("sample")).await;
        assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded, "a newer write supersedes");
        assert_eq!(bench.serves("web.env.localhost").as_deref(), Some("web--v3"));
    }
}

#[tokio::test]
async fn a_first_revision_that_cannot_start_fails_the_app_and_its_requests() {
    let mut bench = Bench::new().await;
    bench.fake.world().missing.insert("missing".into());
    let operation = bench.put("v1", template("missing")).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Failed);
    let state = bench.endpoints.get(&key("v1")).unwrap().state;
    assert!(matches!(&state, EndpointState::Failed { reason } if reason.contains("was not found")), "{state:?}");
    let mut reasons = vec![];
    while let Ok(event) = bench.events.try_recv() {
        reasons.push(event.reason);
    }
    let expected = ["ContainerAppCreation", "RevisionCreation", "RevisionFailed", "ContainerAppUpdateFailed"];
    assert_eq!(reasons, expected);
}

#[tokio::test]
async fn a_restarted_server_takes_everything_over_as_it_is() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    bench.want("v1", 2);
    bench.until("two serve", || bench.ready("v1") == 2).await;
    bench.until("that is written", || bench.status("v1").ready == 2).await;
    let stranger = bench.fake.world().replicas.values().next().unwrap().0.clone();
    bench.fake.world().log.clear();
    let bench = bench.restart().await;
    bench.until("they serve again", || bench.ready("v1") == 2).await;
    bench.until("the autoscaler is told", || bench.scaled.snapshot().len() == 1).await;
    assert!(bench.fake.world().log.iter().all(|line| !line.starts_with("stop")), "{:?}", bench.fake.world().log);
    bench.want("v1", 2);

    let gone = RevisionKey { app: app_id(), name: RevisionName::of("web", "gone").unwrap() };
    let name = ReplicaName::new("web--gone-1").unwrap();
    bench.fake.prepare(cove_runtime::ReplicaSpec { name, revision: gone, ..stranger }).unwrap();
    bench.until("what belongs to nobody ends", || bench.fake.count("web--gone", ReplicaPhase::Prepared) == 0).await;
    assert_eq!(bench.fake.count("web--v1", ReplicaPhase::Running), 2);
}

#[tokio::test]
async fn a_dead_replica_is_replaced() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    bench.want("v1", 1);
    bench.until("it serves", || bench.ready("v1") == 1).await;
    let first = bench.endpoints.get(&key("v1")).unwrap().ready[0].replica.clone();
    bench.fake.kill(&first);
    bench
        .until("another one serves", || {
            bench.endpoints.get(&key("v1")).is_some_and(|e| e.ready.len() == 1 && e.ready[0].replica != first)
        })
        .await;
    assert!(!bench.fake.world().replicas.contains_key(&first));
}

#[tokio::test]
async fn a_restart_rolls_without_a_gap() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    bench.want("v1", 2);
    bench.until("two serve", || bench.ready("v1") == 2).await;
    let old: Vec<_> = bench.endpoints.get(&key("v1")).unwrap().ready.into_iter().map(|e| e.replica).collect();
    bench.store.change_revision(key("v1"), |revision| revision.restart_generation += 1).await.unwrap();
    bench
        .until("new ones serve", || {
            let endpoints = bench.endpoints.get(&key("v1")).unwrap();
            assert!(endpoints.ready.len() >= 2, "never fewer than before");
            endpoints.ready.iter().all(|e| !old.contains(&e.replica))
        })
        .await;
    bench.advance(SignedDuration::from_secs(31)).await;
    bench.until("old ones are gone", || old.iter().all(|name| !bench.fake.world().replicas.contains_key(name))).await;
}

#[tokio::test]
async fn stop_start_and_delete() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    bench.want("v1", 1);
    bench.until("it serves", || bench.ready("v1") == 1).await;
    let stopped = ContainerApp { is_stopped: true, ..app(template("sample")) };
    let operation = bench.put_app(stopped, None).await;
    bench
        .until("requests are refused", || {
            let route = bench.routes.borrow().clone();
            route.app("web.env.localhost").is_some_and(|route| route.state == cove_traffic::AppRouteState::Stopped)
        })
        .await;
    bench.advance(SignedDuration::from_secs(2)).await;
    bench.until("it drains", || !bench.endpoints.get(&key("v1")).unwrap().draining.is_empty()).await;
    bench.advance(SignedDuration::from_secs(31)).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded);
    assert!(bench.fake.world().replicas.is_empty());

    let operation = bench.put_app(app(template("sample")), None).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded);
    bench.want("v1", 1);
    bench.until("it serves again", || bench.ready("v1") == 1).await;

    let operation = NewOperation { id: "gone".into(), kind: "delete".into() };
    bench.store.begin_delete(app_id(), operation, bench.clock.now()).await.unwrap();
    assert_eq!(bench.ended("gone").await, OperationStatus::Succeeded);
    assert!(bench.store.resource(&app_id()).unwrap().is_none());
    assert!(bench.fake.world().replicas.is_empty());
    bench
        .until("nothing is left", || bench.routes.borrow().hosts.is_empty() && bench.scaled.snapshot().is_empty())
        .await;
    assert_eq!(bench.endpoints.get(&key("v1")), None);
}

/// From the wanted count on the board to the start order, among many apps at zero. Debug build and a shared machine, so
/// the limit is generous; the printed median is the figure to look at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waking_one_of_many_apps_goes_straight() {
    const APPS: usize = 300;
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    let others = (0..APPS).map(|index| {
        let id = ResourceId::resource("s", "g", "Microsoft.App/containerApps", &format!("other{index}")).unwrap();
        let (store, now) = (bench.store.clone(), bench.clock.now());
        async move {
            let app = ContainerApp { id: id.clone(), ..app(template("sample")) };
            let spec = Some(serde_json::to_value(app).unwrap());
            store.put(PutResource { spec, ..put(id, now) }).await.unwrap();
        }
    });
    futures_util::future::join_all(others).await;
    let mut spans = Vec::new();
    for _ in 0..20 {
        bench.want("v1", 0);
        let asleep = || {
            bench.clock.advance(SignedDuration::from_secs(1));
            let count = |phase| bench.fake.count("web--v1", phase);
            (count(ReplicaPhase::Running), count(ReplicaPhase::Prepared)) == (0, 1)
        };
        bench.until("it is at zero with a slot", asleep).await;
        bench.fake.world().last_start = None;
        let begun = std::time::Instant::now();
        bench.want("v1", 1);
        bench.until("it is started", || bench.fake.world().last_start.is_some()).await;
        let started = bench.fake.world().last_start.unwrap();
        spans.push(started.duration_since(begun));
        bench.until("it serves", || bench.ready("v1") == 1).await;
    }
    spans.sort();
    println!("wanted to start order: median {:?}, most {:?}", spans[spans.len() / 2], spans[spans.len() - 1]);
}

#[tokio::test]
async fn an_app_that_cannot_be_read_is_left_as_it_runs_and_keeps_no_other_from_starting() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    bench.want("v1", 1);
    bench.until("it serves", || bench.ready("v1") == 1).await;
    let damaged =
        PutResource { spec: Some(serde_json::json!({"nothing": "of an app"})), ..put(app_id(), bench.clock.now()) };
    bench.store.put(damaged).await.unwrap();
    bench.fake.world().log.clear();
    let mut bench = bench.restart().await;
    let mut other = app(template("sample"));
    other.id = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "other").unwrap();
    let revision = Revision {
        name: RevisionName::of("other", "v1").unwrap(),
        app: other.id.clone(),
        number: 0,
        template: template("sample"),
        ingress: None,
        is_active: true,
        created_at: bench.clock.now(),
        activated_at: bench.clock.now(),
        restart_generation: 0,
    };
    let revision = NewRevision { revision, doc: serde_json::json!({}) };
    let operation = bench.put_app(other, Some(revision)).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded);
    assert_eq!(bench.fake.count("web--v1", ReplicaPhase::Running), 1);
    assert!(bench.fake.world().log.iter().all(|line| !line.starts_with("stop")), "{:?}", bench.fake.world().log);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_is_loaded_with_the_revisions_of_its_generation() {
    let mut bench = Bench::new().await;
    let before = bench.put("v1", template("sample")).await;
    bench.ended(&before).await;
    let (store, shutdown) = (bench.store.clone(), CancellationToken::new());
    let (batches, mut loaded) = mpsc::channel(1);
    let loader = tokio::spawn(crate::loader::follow(store, batches, shutdown.clone()));
    let puts = tokio::spawn(async move {
        for number in 2..=200 {
            bench.put(&format!("v{number}"), template("sample")).await;
        }
        bench
    });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    let mut newest = 0;
    while newest < 200 {
        let batch = tokio::time::timeout_at(deadline, loaded.recv()).await.expect("all are loaded in time").unwrap();
        for app in batch.apps.into_iter().filter_map(|(_, app)| app) {
            newest = app.revisions.iter().map(|(revision, _)| revision.number).max().unwrap();
            assert_eq!(app.generation, newest);
        }
    }
    let _bench = puts.await.unwrap();
    shutdown.cancel();
    loader.await.unwrap();
}

#[tokio::test]
async fn loaders_end_at_shutdown_though_nobody_takes_what_they_read() {
    async fn ends<B: Default + std::fmt::Debug>(follow: impl AsyncFnOnce(mpsc::Sender<B>, CancellationToken)) {
        let (batches, _nobody_takes) = mpsc::channel(1);
        batches.try_send(B::default()).expect("there is room for one");
        let shutdown = CancellationToken::new();
        let following = follow(batches, shutdown.clone());
        let shut = async {
            tokio::task::yield_now().await;
            shutdown.cancel();
        };
        let both = async { tokio::join!(following, shut) };
        tokio::time::timeout(Duration::from_secs(20), both).await.expect("it ends");
    }
    let bench = Bench::new().await;
    let store = || bench.store.clone();
    ends(async |batches, shutdown| crate::loader::follow(store(), batches, shutdown).await).await;
    ends(async |batches, shutdown| crate::jobs::follow(store(), batches, shutdown).await).await;
    ends(async |batches, shutdown| crate::sessions::follow(store(), batches, shutdown).await).await;
}
