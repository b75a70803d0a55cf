//! A driver in memory: every order has its effect at once or when the test says so.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use cove_base::{Board, Clock};
use cove_model::{
    ContainerExit, ContainerObservation, ContainerState, ReplicaName, ReplicaObservation, ReplicaPhase, ReplicaPhases,
    RevisionKey, SnapshotId,
};
use cove_runtime::{
    Capabilities, ExecError, ExecRequest, ExecSession, ImagesState, RegistryLogin, ReplicaSpec, ReplicaUse, Runtime,
    RuntimeError, SnapshotFacts, SnapshotFailure, SnapshotOrder,
};
use futures_util::future::BoxFuture;

/// The driver.
#[derive(Debug)]
pub(crate) struct Fake {
    clock: Clock,
    board: Board<RevisionKey, Arc<Vec<ReplicaObservation>>>,
    world: Mutex<World>,
}

#[derive(Debug, Default)]
pub(crate) struct World {
    pub(crate) replicas: BTreeMap<ReplicaName, (ReplicaSpec, ReplicaObservation)>,
    images: BTreeMap<RevisionKey, ImagesState>,
    /// Images that do not exist.
    pub(crate) missing: BTreeSet<String>,
    /// Images whose containers crash for ever.
    pub(crate) crashing: BTreeSet<String>,
    /// Images whose port never answers.
    pub(crate) deaf: BTreeSet<String>,
    /// Orders to freeze are refused.
    pub(crate) cannot_freeze: bool,
    /// So many orders to make a replica are refused.
    pub(crate) refusals: u32,
    /// Replicas are only made when they are started.
    pub(crate) has_no_slots: bool,
    /// Every order for a replica, in order.
    pub(crate) log: Vec<String>,
    starts: BTreeMap<ReplicaName, u32>,
    /// Whole snapshots.
    pub(crate) snapshots: BTreeMap<SnapshotId, SnapshotFacts>,
    /// No snapshot can be taken.
    pub(crate) is_disk_full: bool,
    /// Processor time that every replica is said to have used, microseconds.
    pub(crate) cpu_us: Option<u64>,
    /// When the last start was ordered.
    pub(crate) last_start: Option<std::time::Instant>,
}

impl Fake {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { clock, board: Board::default(), world: Mutex::new(World::default()) }
    }

    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Replicas of a revision in a phase.
    pub(crate) fn count(&self, revision: &str, phase: ReplicaPhase) -> usize {
        let world = self.world();
        let of = |r: &&(ReplicaSpec, ReplicaObservation)| r.1.revision.name.as_str() == revision && r.1.phase == phase;
        world.replicas.values().filter(of).count()
    }

    /// A replica dies.
    pub(crate) fn kill(&self, name: &ReplicaName) {
        self.change(name, |observation| {
            observation.phase = ReplicaPhase::Stopped;
            observation.is_ready = false;
        });
    }

    /// A replica ends by itself with this code.
    pub(crate) fn exit(&self, name: &ReplicaName, code: i32) {
        let at = self.clock.now();
        self.change(name, |observation| {
            observation.phase = ReplicaPhase::Stopped;
            observation.is_ready = false;
            let reason = if code == 0 { "Completed" } else { "Error" };
            observation.containers[0].state = ContainerState::Terminated;
            observation.containers[0].last_exit =
                Some(ContainerExit { code, reason: reason.into(), message: None, at });
        });
    }

    fn change(&self, name: &ReplicaName, change: impl FnOnce(&mut ReplicaObservation)) {
        let mut world = self.world();
        let Some((_, observation)) = world.replicas.get_mut(name) else { return };
        change(observation);
        let key = observation.revision.clone();
        self.publish(&world, &key);
    }

    fn publish(&self, world: &World, key: &RevisionKey) {
        let mine = world.replicas.values().filter(|replica| replica.1.revision == *key);
        let all: Vec<_> = mine.map(|replica| replica.1.clone()).collect();
        if all.is_empty() {
            // a key without replicas still tells of its images
            self.board.remove(key);
        }
        self.board.set(key.clone(), Arc::new(all));
    }
}

impl Runtime for Fake {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "fake".into(),
            slots: !self.world().has_no_slots,
            slot_bytes: 4 << 20,
            limits: true,
            egress: false,
            freezes: true,
            sandbox_tiers: Vec::new(),
            warnings: vec![],
        }
    }

    fn ensure_images(&self, revision: &RevisionKey, images: &[String], _: &[RegistryLogin]) {
        let mut world = self.world();
        let missing = images.iter().find(|image| world.missing.contains(*image)).cloned();
        let state = match missing {
            Some(image) => ImagesState::Failed {
                reason: "ImagePullFailure".into(),
                message: format!("image `{image}` was not found"),
                retryable: false,
            },
            None => ImagesState::Ready { exposed_ports: images.iter().map(|i| (i.clone(), Some(8080))).collect() },
        };
        world.images.insert(revision.clone(), state);
        self.board.remove(revision);
        self.publish(&world, revision);
    }

    fn usage(&self, replica: &ReplicaName) -> Option<ReplicaUse> {
        let world = self.world();
        world.replicas.get(replica)?;
        world.cpu_us.map(|cpu_us| ReplicaUse { cpu_us_total: Some(cpu_us), memory_bytes: None })
    }

    fn images(&self, revision: &RevisionKey) -> ImagesState {
        self.world().images.get(revision).cloned().unwrap_or_default()
    }

    fn prepare(&self, spec: ReplicaSpec) -> Result<(), RuntimeError> {
        let mut world = self.world();
        if let Some(left) = world.refusals.checked_sub(1) {
            world.refusals = left;
            return Err(RuntimeError::Full { limit: 1, what: "replicas" });
        }
        assert!(!world.replicas.contains_key(&spec.name), "a name is used once");
        if let Some(snapshot) = spec.sandbox.as_ref().and_then(|sandbox| sandbox.snapshot.as_ref()) {
            assert!(world.snapshots.contains_key(snapshot), "what it begins with is there");
        }
        world.log.push(format!("prepare {}", spec.revision));
        let index = u8::try_from(world.log.len() % 250).unwrap();
        let observation = ReplicaObservation {
            name: spec.name.clone(),
            revision: spec.revision.clone(),
            restart_generation: spec.restart_generation,
            phase: ReplicaPhase::Prepared,
            is_ready: false,
            address: Some(Ipv4Addr::new(10, 0, 0, index)),
            containers: vec![ContainerObservation {
                name: "main".into(),
                is_init: false,
                state: ContainerState::Waiting { reason: "ContainerCreating".into(), until: None },
                is_ready: false,
                is_started: false,
                restarts: 0,
                last_exit: None,
            }],
            created_at: self.clock.now(),
            started_at: None,
            ready_at: None,
        };
        let key = spec.revision.clone();
        world.replicas.insert(spec.name.clone(), (spec, observation));
        self.publish(&world, &key);
        Ok(())
    }

    fn start(&self, replica: &ReplicaName) -> Result<(), RuntimeError> {
        let now = self.clock.now();
        let mut world = self.world();
        world.last_start = Some(std::time::Instant::now());
        *world.starts.entry(replica.clone()).or_default() += 1;
        assert_eq!(world.starts[replica], 1, "`{replica}` was started twice");
        let (crashing, deaf) = (world.crashing.clone(), world.deaf.clone());
        let Some((spec, observation)) = world.replicas.get_mut(replica) else {
            return Err(RuntimeError::NotFound(replica.clone()));
        };
        let image = spec.template.containers[0].image.clone();
        observation.phase = ReplicaPhase::Running;
        observation.started_at = Some(now);
        if crashing.contains(&image) {
            let container = &mut observation.containers[0];
            container.restarts = 9;
            container.last_exit =
                Some(ContainerExit { code: 1, reason: "Error".into(), message: Some("no config".into()), at: now });
        } else if !deaf.contains(&image) {
            observation.is_ready = true;
            observation.ready_at = Some(now);
            observation.containers[0].is_ready = true;
            observation.containers[0].state = ContainerState::Running { since: now };
        }
        let key = spec.revision.clone();
        world.log.push(format!("start {key}"));
        self.publish(&world, &key);
        Ok(())
    }

    fn freeze(&self, replica: &ReplicaName) -> Result<(), RuntimeError> {
        if self.world().cannot_freeze {
            return Err(RuntimeError::Unsupported("its helper is too old".into()));
        }
        self.change(replica, |observation| {
            observation.phase = ReplicaPhase::Frozen;
            observation.is_ready = false;
        });
        Ok(())
    }

    fn thaw(&self, replica: &ReplicaName) -> Result<(), RuntimeError> {
        self.change(replica, |observation| {
            observation.phase = ReplicaPhase::Running;
            observation.is_ready = true;
        });
        Ok(())
    }

    fn stop(&self, replica: &ReplicaName, _: Duration) {
        let known = self.world().replicas.get(replica).map(|replica| replica.1.revision.clone());
        if let Some(key) = known {
            self.world().log.push(format!("stop {key}"));
            self.kill(replica);
        }
    }

    fn remove(&self, replica: &ReplicaName) {
        let mut world = self.world();
        if let Some((spec, _)) = world.replicas.remove(replica) {
            self.publish(&world, &spec.revision);
        }
    }

    fn snapshot(
        &self,
        replica: &ReplicaName,
        order: SnapshotOrder,
    ) -> BoxFuture<'static, Result<SnapshotFacts, SnapshotFailure>> {
        let mut world = self.world();
        let taken = match world.replicas.get(replica).map(|replica| replica.1.phase) {
            Some(ReplicaPhase::Running) if world.is_disk_full || order.bytes_max < 4096 => {
                Err(SnapshotFailure::NoRoom("the disk is full".into()))
            }
            Some(ReplicaPhase::Running) => Ok(SnapshotFacts { bytes: 4096, files: 1, ..SnapshotFacts::default() }),
            _ => Err(SnapshotFailure::NotRunning),
        };
        if let Ok(facts) = &taken {
            world.snapshots.insert(order.into, facts.clone());
        }
        Box::pin(std::future::ready(taken))
    }

    fn snapshots(&self) -> BTreeMap<SnapshotId, SnapshotFacts> {
        self.world().snapshots.clone()
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> BoxFuture<'static, std::io::Result<()>> {
        self.world().snapshots.remove(snapshot);
        Box::pin(std::future::ready(Ok(())))
    }

    fn observations(&self) -> &Board<RevisionKey, Arc<Vec<ReplicaObservation>>> {
        &self.board
    }

    fn phases(&self, _: &ReplicaName) -> Option<ReplicaPhases> {
        None
    }

    fn exec(&self, _: ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>> {
        Box::pin(async { Err(ExecError::Unsupported) })
    }
}
