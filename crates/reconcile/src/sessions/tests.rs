//! Pools in a small world: what is ordered happens at once, what changes is on disk when the next plan is made.

use std::sync::Arc;

use cove_model::{
    AllocateError, Bytes, Container, MilliCpu, ReplicaPhase, ResourceId, Resources, SESSION_POOL_KIND, Scale,
    SessionContainer, SessionEgress, SessionIdentifier, SessionIsolation, SessionLifecycle, SnapshotError, SuspendRule,
    Template, generation_name,
};

use super::*;

struct World {
    pool: SessionPool,
    sessions: BTreeMap<ReplicaName, (Session, bool)>,
    suspended: BTreeMap<SessionIdentifier, (SnapshotId, Timestamp)>,
    replicas: BTreeMap<ReplicaName, ReplicaObservation>,
    memory: PoolMemory,
    settings: SessionSettings,
    now: Timestamp,
    room: u32,
    images: Images,
    is_deleted: bool,
    /// What is started never becomes ready.
    is_deaf: bool,
    /// What is started ends at once.
    is_crashing: bool,
    is_disk_full: bool,
    guids: u32,
    starts: Vec<Timestamp>,
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

fn pool(max: u32, ready: u32) -> SessionPool {
    let container = Container {
        name: "main".into(),
        image: "image".into(),
        command: vec![],
        args: vec![],
        env: vec![],
        resources: Resources { cpu: MilliCpu(250), memory: Bytes(1 << 29), ephemeral_storage: Bytes(1 << 30) },
        probes: vec![],
        volume_mounts: vec![],
    };
    let template = Template {
        init_containers: vec![],
        containers: vec![container],
        volumes: vec![],
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    };
    SessionPool {
        id: ResourceId::resource("s", "g", SESSION_POOL_KIND, "pool").unwrap(),
        environment: None,
        workload_profile: None,
        container: SessionContainer::Custom,
        template: Arc::new(template),
        target_port: 80,
        lifecycle: SessionLifecycle::Timed { cooldown_secs: 300 },
        sessions_max: max,
        sessions_ready: ready,
        egress: SessionEgress::Disabled,
        egress_rules: vec![],
        isolation: SessionIsolation::Hardened,
        registries: vec![],
        managed_identities: vec![],
        is_mcp_enabled: false,
        snapshot: None,
        suspend: None,
        generation: generation_name("pool", "v1").unwrap(),
    }
}

fn snapshot() -> SnapshotId {
    SnapshotId::new(&"a".repeat(32)).unwrap()
}

fn identifier(text: &str) -> SessionIdentifier {
    SessionIdentifier::new(text).unwrap()
}

impl World {
    fn new(max: u32, ready: u32) -> Self {
        Self {
            pool: pool(max, ready),
            sessions: BTreeMap::new(),
            suspended: BTreeMap::new(),
            replicas: BTreeMap::new(),
            memory: PoolMemory::new(7),
            settings: SessionSettings { refill_rest: SignedDuration::ZERO, ..SessionSettings::default() },
            now: at(1000),
            room: 1000,
            images: Images::Ready { exposed_ports: BTreeMap::new() },
            is_deleted: false,
            is_deaf: false,
            is_crashing: false,
            is_disk_full: false,
            guids: 0,
            starts: Vec::new(),
        }
    }

    fn with_view<T>(&mut self, act: impl FnOnce(&PoolView<'_>, &mut PoolMemory, &mut dyn FnMut() -> String) -> T) -> T {
        let sessions: Vec<_> = self
            .sessions
            .values()
            .map(|(session, is_new)| SessionView {
                session,
                is_stored: true,
                is_new: *is_new,
                calls: 0,
                accessed_at: session.last_accessed_at.unwrap_or(self.now),
            })
            .collect();
        let replicas = self.replicas.iter().collect();
        let view = PoolView {
            pool: &self.pool,
            sessions: &sessions,
            suspended: &self.suspended,
            replicas: &replicas,
            images: &self.images,
            is_deleted: self.is_deleted,
            room: self.room,
            shortage: None,
            starts_free: self.settings.starts_max,
            freezes: true,
            settings: &self.settings,
        };
        let guids = &mut self.guids;
        let mut guid = || {
            *guids += 1;
            format!("guid-{guids}")
        };
        act(&view, &mut self.memory, &mut guid)
    }

    fn plan(&mut self) -> PoolPlan {
        let now = self.now;
        let plan = self.with_view(|view, memory, guid| plan_pool(view, memory, guid, now));
        for session in plan.changed.clone() {
            let is_new = self.sessions.get(&session.replica).is_none_or(|known| known.1);
            self.sessions.insert(session.replica.clone(), (session, is_new));
        }
        for name in &plan.forgotten {
            assert!(!self.replicas.contains_key(name), "a row goes last");
            self.sessions.remove(name);
        }
        self.suspended.retain(|_, (id, _)| !plan.unsuspended.contains(id));
        for step in &plan.steps {
            self.act(&step.action);
        }
        plan
    }

    fn act(&mut self, action: &SessionAction) {
        match action {
            SessionAction::EnsureImages => {}
            SessionAction::Start(name) => {
                let session = &self.sessions[name].0;
                assert!(session.ended.is_none() && !self.replicas.contains_key(name), "started once, alive");
                self.starts.push(self.now);
                let is_ready = !self.is_deaf && !self.is_crashing;
                let seen = ReplicaObservation {
                    name: name.clone(),
                    revision: session.key(),
                    restart_generation: 0,
                    phase: if self.is_crashing { ReplicaPhase::Stopped } else { ReplicaPhase::Running },
                    is_ready,
                    address: None,
                    containers: vec![],
                    created_at: self.now,
                    started_at: Some(self.now),
                    ready_at: is_ready.then_some(self.now),
                };
                self.replicas.insert(name.clone(), seen);
            }
            SessionAction::Freeze(name) => self.replicas.get_mut(name).unwrap().phase = ReplicaPhase::Frozen,
            SessionAction::Thaw(name) => {
                assert!(self.sessions[name].0.identifier.is_some());
                self.replicas.get_mut(name).unwrap().phase = ReplicaPhase::Running;
            }
            SessionAction::Suspend(name) if self.is_disk_full => {
                let accessed_at = self.sessions[name].0.last_accessed_at;
                self.memory.not_suspended(name, accessed_at);
            }
            SessionAction::Suspend(name) => {
                let session = &mut self.sessions.get_mut(name).unwrap().0;
                let keep = SignedDuration::from_secs(i64::from(self.pool.suspend.unwrap().keep_secs));
                let kept = (snapshot(), later(self.now, keep));
                self.suspended.insert(session.identifier.clone().unwrap(), kept);
                session.ended = Some(SessionEnded { at: self.now, reason: SessionEndReason::Suspended, message: None });
            }
            SessionAction::Stop { replica, .. } => {
                self.replicas.get_mut(replica).unwrap().phase = ReplicaPhase::Stopped
            }
            SessionAction::Remove(name) => drop(self.replicas.remove(name)),
        }
    }

    /// Plans until nothing changes any more.
    fn settle(&mut self) -> PoolPlan {
        for _ in 0..10_000 {
            let plan = self.plan();
            let is_quiet = plan.changed.is_empty() && plan.forgotten.is_empty() && plan.unsuspended.is_empty();
            if plan.steps.is_empty() && is_quiet {
                return plan;
            }
        }
        panic!("it never comes to rest");
    }

    fn allocate(&mut self, text: &str) -> Result<ReplicaName, AllocateError> {
        let (now, identifier) = (self.now, SessionIdentifier::new(text).unwrap());
        let allocated = self.with_view(|view, memory, guid| allocate(view, memory, &identifier, guid, now))?;
        Ok(match allocated {
            Allocated::Known(name) => name,
            Allocated::Given(session) | Allocated::New(session) => {
                let name = session.replica.clone();
                let is_new = self.sessions.get(&name).is_none_or(|known| known.1);
                self.sessions.insert(name.clone(), (*session, is_new));
                name
            }
        })
    }
}

#[test]
fn a_pool_is_filled_a_few_at_a_time_and_comes_to_rest_frozen() {
    let mut world = World::new(20, 10);
    let first = world.plan();
    assert_eq!((first.changed.len(), first.missing), (4, 6), "as many as may be started at once");
    let plan = world.settle();
    assert_eq!(plan.counts, SessionCounts { ready: 10, executing: 0, pending: 0 });
    assert_eq!((plan.frozen, plan.running, plan.outcome), (10, 0, PoolOutcome::Succeeded));
    world.pool.sessions_ready = 3;
    assert_eq!(world.settle().counts.ready, 3);
    assert_eq!(world.sessions.len(), 3, "nothing is left of the surplus");
    world.room = 0;
    world.pool.sessions_ready = 5;
    let plan = world.settle();
    assert_eq!((plan.counts.ready, plan.missing), (3, 2), "what runs stays, what is missing waits");
}

#[test]
fn the_oldest_ready_session_is_given_away_and_the_rest_kept_as_many_as_could_be() {
    let mut world = World::new(3, 2);
    world.settle();
    let first = world.allocate("user-1").unwrap();
    assert_eq!(world.allocate("user-1"), Ok(first.clone()));
    assert_ne!(world.allocate("user-2").unwrap(), first);
    let plan = world.settle();
    assert_eq!(plan.counts, SessionCounts { ready: 1, executing: 2, pending: 0 }, "only one more can be given away");
    assert_eq!(plan.serving.len(), 2);
    world.allocate("user-3").unwrap();
    assert_eq!(world.allocate("user-4"), Err(AllocateError::PoolFull { max: 3 }));
    assert_eq!(world.settle().counts, SessionCounts { ready: 0, executing: 3, pending: 0 });
    world.now = at(1300);
    let plan = world.settle();
    assert_eq!(plan.counts, SessionCounts { ready: 2, executing: 0, pending: 0 }, "all have cooled down");
}

#[test]
fn what_was_thawed_ahead_is_not_asked_again_unless_it_stays_frozen() {
    let mut world = World::new(10, 2);
    world.settle();
    let name = world.allocate("user-1").unwrap();
    world.memory.thaw_ordered(&name, world.now);
    let plan = world.plan();
    assert_eq!((plan.serving.len(), plan.steps.len()), (0, 0), "{:?}", plan.steps);
    assert!(plan.wake_at.is_some());
    world.now = later(world.now, world.settings.order_retry);
    let plan = world.plan();
    assert!(plan.steps.iter().any(|step| step.action == SessionAction::Thaw(name.clone())), "{:?}", plan.steps);
    assert_eq!(world.plan().serving, [name]);
}

#[test]
fn a_pool_is_filled_again_when_the_burst_is_over() {
    let mut world = World::new(100, 50);
    world.settle();
    world.settings.refill_rest = SignedDuration::from_millis(20);
    let begun = world.now;
    let ms = |ms| begun.checked_add(SignedDuration::from_millis(ms)).unwrap();
    for number in 0..5 {
        world.now = ms(15 * number);
        world.allocate(&format!("user-{number}")).unwrap();
        assert_eq!(world.plan().changed.len(), 0);
    }
    world.now = ms(79);
    let plan = world.plan();
    assert_eq!((plan.changed.len(), plan.wake_at.unwrap() <= ms(80)), (0, true));
    world.now = ms(80);
    assert_eq!(world.plan().changed.len(), 4);
    // one that never ends does not keep it empty
    for number in 0..26 {
        world.now = ms(100 + 20 * number);
        world.allocate(&format!("more-{number}")).unwrap();
        let changed = world.plan().changed.len();
        assert_eq!(changed > 0, number == 25, "{number}");
    }
}

#[test]
fn a_pool_without_ready_sessions_makes_one_when_it_is_asked() {
    let mut world = World::new(3, 0);
    assert_eq!(world.settle().outcome, PoolOutcome::Succeeded);
    let name = world.allocate("user-1").unwrap();
    assert_eq!(world.settle().serving, [name]);
    assert_eq!(world.sessions.len(), 1);
}

#[test]
fn what_is_lost_or_unknown_is_cleared_up() {
    let mut world = World::new(5, 2);
    world.settle();
    let mine = world.allocate("user-1").unwrap();
    world.settle();
    // the next server: nothing is remembered, one replica is gone, another is nobody's
    world.memory = PoolMemory::new(8);
    world.sessions.values_mut().for_each(|known| known.1 = false);
    world.replicas.remove(&mine);
    let name = ReplicaName::new("pool--v1-stranger").unwrap();
    let stranger = ReplicaObservation { name: name.clone(), ..world.replicas.values().next().unwrap().clone() };
    world.replicas.insert(name.clone(), stranger);
    let plan = world.settle();
    assert_eq!(plan.counts, SessionCounts { ready: 2, executing: 0, pending: 0 });
    assert!(!world.replicas.contains_key(&name) && !world.sessions.contains_key(&mine));
    world.is_deleted = true;
    assert_eq!(world.settle().outcome, PoolOutcome::Gone);
    assert!(world.sessions.is_empty() && world.replicas.is_empty());
}

#[test]
fn a_new_generation_replaces_what_nobody_has() {
    let mut world = World::new(5, 2);
    world.settle();
    let mine = world.allocate("user-1").unwrap();
    world.settle();
    world.pool.generation = generation_name("pool", "v2").unwrap();
    let plan = world.settle();
    assert_eq!(plan.serving, std::slice::from_ref(&mine));
    let old = world.sessions.values().filter(|(session, _)| session.generation != world.pool.generation);
    assert_eq!(old.map(|(session, _)| session.replica.clone()).collect::<Vec<_>>(), [mine]);
    assert_eq!(plan.counts.ready, 2);
}

#[test]
fn failures_are_tried_again_more_and_more_slowly() {
    for is_deaf in [true, false] {
        let mut world = World::new(5, 1);
        (world.is_deaf, world.is_crashing) = (is_deaf, !is_deaf);
        let mut failed_at = None;
        while world.now < at(1000 + 3600) {
            let plan = world.settle();
            if matches!(plan.outcome, PoolOutcome::Failed { reason: "SessionStartFailed", .. }) {
                failed_at.get_or_insert(world.starts.len());
            }
            world.now = plan
                .wake_at
                .expect("it is tried again some time")
                .max(later(world.now, SignedDuration::from_millis(1)));
        }
        assert_eq!(failed_at, Some(3), "the third failure in a row is told");
        assert!(world.starts.len() < 30, "{} starts in an hour", world.starts.len());
        world.is_deaf = false;
        world.is_crashing = false;
        while world.settle().counts.ready == 0 {
            world.now = later(world.now, SignedDuration::from_secs(60));
            assert!(world.now < at(1000 + 2 * 3600));
        }
        assert_eq!(world.settle().outcome, PoolOutcome::Succeeded);
    }
}

#[test]
fn what_ended_while_no_server_was_there_is_made_again_at_once() {
    for was_ready in [true, false] {
        let mut world = World::new(20, 10);
        world.settle();
        // the machine was restarted
        world.memory = PoolMemory::new(8);
        world.sessions.values_mut().for_each(|(_, is_new)| *is_new = false);
        for seen in world.replicas.values_mut() {
            seen.phase = ReplicaPhase::Failed;
            seen.is_ready = false;
            seen.ready_at = seen.ready_at.filter(|_| was_ready);
        }
        assert_eq!(world.settle().counts.ready, 10, "no time has passed");
        assert_eq!(world.sessions.len(), 10);
    }
}

#[test]
fn a_pool_that_is_written_again_asks_for_its_images_again() {
    let asks = |plan: &PoolPlan| plan.steps.iter().any(|step| step.action == SessionAction::EnsureImages);
    let mut world = World::new(5, 2);
    world.images = Images::Unknown;
    assert!(asks(&world.plan()));
    world.images = Images::Failed { message: "no such image".to_owned(), retryable: false };
    let plan = world.plan();
    assert!(matches!(plan.outcome, PoolOutcome::Failed { reason: "ImagePullFailure", .. }) && !asks(&plan));
    world.memory.written_again();
    let plan = world.plan();
    assert!(plan.outcome == PoolOutcome::Pending && asks(&plan) && plan.wake_at.is_some());
    let plan = world.plan();
    assert!(matches!(plan.outcome, PoolOutcome::Failed { .. }) && !asks(&plan), "it has failed again");
    world.memory.written_again();
    world.plan();
    world.images = Images::Ready { exposed_ports: BTreeMap::new() };
    world.settle();
    assert_eq!(world.plan().outcome, PoolOutcome::Succeeded);
    world.memory.written_again();
    assert_eq!(world.plan().outcome, PoolOutcome::Succeeded, "one that works goes on");
}

#[test]
fn an_idle_session_keeps_its_files_until_it_is_asked_for_or_its_time_is_over() {
    let mut world = World::new(5, 1);
    world.pool.suspend = Some(SuspendRule { after_idle_secs: 60, keep_secs: 1000 });
    world.settle();
    let first = world.allocate("user-1").unwrap();
    world.settle();
    world.now = at(1059);
    assert_eq!(world.settle().wake_at, Some(at(1060)));
    world.now = at(1060);
    let plan = world.settle();
    assert_eq!((plan.counts.executing, plan.wake_at), (0, Some(at(2060))));
    assert!(!world.replicas.contains_key(&first), "it has ended");
    assert!(world.suspended.contains_key(&identifier("user-1")));

    let again = world.allocate("user-1").unwrap();
    let session = world.sessions[&again].0.clone();
    assert_eq!((session.snapshot, session.identifier), (Some(snapshot()), Some(identifier("user-1"))));
    world.settle();
    assert!(world.suspended.is_empty(), "what serves has files of its own");

    world.now = at(1120);
    world.settle();
    assert_eq!(world.suspended.len(), 1);
    world.now = at(2120);
    world.settle();
    assert!(world.suspended.is_empty(), "its time is over");
    let fresh = world.allocate("user-1").unwrap();
    assert_eq!(world.sessions[&fresh].0.snapshot, None);
}

#[test]
fn what_cannot_be_suspended_cools_down() {
    let mut world = World::new(5, 0);
    world.pool.suspend = Some(SuspendRule { after_idle_secs: 60, keep_secs: 1000 });
    world.is_disk_full = true;
    world.allocate("user-1").unwrap();
    world.settle();
    world.now = at(1060);
    let plan = world.settle();
    assert_eq!((plan.counts.executing, plan.wake_at), (1, Some(at(1300))), "it goes on until its cool-down");
    assert_eq!(plan.serving.len(), 1);
    world.now = at(1300);
    assert_eq!(world.settle().counts.executing, 0);
    assert!(world.suspended.is_empty());
}

#[test]
fn a_resumed_session_that_fails_loses_no_files() {
    let mut world = World::new(5, 0);
    world.suspended.insert(identifier("user-1"), (snapshot(), at(1100)));
    world.is_crashing = true;
    world.allocate("user-1").unwrap();
    world.settle();
    assert!(world.suspended.contains_key(&identifier("user-1")));
    world.is_crashing = false;
    let again = world.allocate("user-1").unwrap();
    assert_eq!(world.sessions[&again].0.snapshot, Some(snapshot()));
}

#[test]
fn a_fork_is_all_or_nothing() {
    let mut world = World::new(4, 1);
    world.settle();
    world.allocate("user-1").unwrap();
    world.settle();
    let now = world.now;
    let fork = |world: &mut World, names: &[&str]| {
        let names: Vec<_> = names.iter().map(|name| identifier(name)).collect();
        world.with_view(|view, memory, guid| fork_sessions(view, memory, (&snapshot(), &names), guid, now))
    };
    assert!(matches!(fork(&mut world, &["fork-1", "user-1"]), Err(SnapshotError::Taken(_))));
    let full = fork(&mut world, &["fork-1", "fork-2", "fork-3", "fork-4"]);
    assert_eq!(full, Err(AllocateError::PoolFull { max: 4 }.into()));
    let made = fork(&mut world, &["fork-1", "fork-2", "fork-3"]).unwrap();
    for session in made {
        assert_eq!(session.snapshot, Some(snapshot()));
        world.sessions.insert(session.replica.clone(), (session, true));
    }
    let plan = world.settle();
    assert_eq!((plan.serving.len(), plan.counts.ready), (4, 0), "ready ones that could not be given away are too many");
}
