//! A driver in memory, for tests of what stands on a driver.
//!
//! Images are scripted by name: how long each step takes and how it ends. Time is tokio's, so it
//! stands still where a test stops that clock. Nothing is run; addresses are made up.
//!
//! **Invariant:** it passes the same [`crate::conformance`] suite as real drivers.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use cove_base::Board;
use cove_model::{
    ContainerExit, ContainerObservation, ContainerState, ReplicaName, ReplicaObservation, ReplicaPhase, ReplicaPhases,
    RevisionKey, SnapshotId,
};
use futures_util::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::sleep;

use crate::{
    Capabilities, ExecError, ExecRequest, ExecSession, ImagesState, RegistryLogin, ReplicaSpec, RestartPolicy, Runtime,
    RuntimeError, SandboxTier, SnapshotFacts, SnapshotFailure, SnapshotOrder,
};

/// How replicas of an image behave. The default does all at once and becomes ready.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FakeImage {
    /// How long a pull takes.
    pub pull_takes: Duration,
    /// How long making a slot takes.
    pub prepare_takes: Duration,
    /// How long it takes from start to ready.
    pub start_takes: Duration,
    /// How long it takes to end after SIGTERM; the grace cuts it short.
    pub stop_takes: Duration,
    /// How it ends.
    pub ending: FakeEnding,
}

/// How an image's replicas fare.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FakeEnding {
    /// They become ready and stay so.
    #[default]
    Ready,
    /// The image cannot be had, in these words.
    PullFails(String),
    /// Slots cannot be made.
    PrepareFails,
    /// They run and never become ready.
    NeverReady,
    /// They run for [`FakeImage::start_takes`] and end by themselves with this exit code. Where containers are started
    /// again they become ready instead.
    Exits(i32),
}

/// Runs nothing and says it does.
#[derive(Clone, Debug, Default)]
pub struct FakeRuntime {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    board: Board<RevisionKey, Arc<Vec<ReplicaObservation>>>,
}

#[derive(Debug, Default)]
struct State {
    scripts: BTreeMap<String, FakeImage>,
    images: BTreeMap<RevisionKey, ImagesState>,
    /// Image -> who answers what its replicas are dialed for.
    dials: BTreeMap<String, SocketAddr>,
    replicas: BTreeMap<ReplicaName, Fake>,
    used: BTreeSet<ReplicaName>,
    made: u32,
    snapshots: BTreeMap<SnapshotId, SnapshotFacts>,
    /// Why the next snapshots fail.
    snapshots_fail: Option<SnapshotFailure>,
}

#[derive(Debug)]
struct Fake {
    seen: ReplicaObservation,
    script: FakeImage,
    phases: ReplicaPhases,
    is_start_asked: bool,
    restart: RestartPolicy,
    image: String,
    /// What it begins with; one that is not there fails it.
    snapshot: Option<SnapshotId>,
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update<T>(&self, name: &ReplicaName, change: impl FnOnce(&mut Fake) -> T) -> Option<T> {
        let mut state = self.lock();
        let fake = state.replicas.get_mut(name)?;
        let result = change(fake);
        let revision = fake.seen.revision.clone();
        self.publish(&state, &revision);
        Some(result)
    }

    fn publish(&self, state: &State, revision: &RevisionKey) {
        let all: Vec<_> =
            state.replicas.values().map(|fake| &fake.seen).filter(|seen| seen.revision == *revision).cloned().collect();
        if all.is_empty() {
            self.board.remove(revision);
        } else {
            self.board.set(revision.clone(), Arc::new(all));
        }
    }
}

impl Fake {
    fn has_ended(&self) -> bool {
        matches!(self.seen.phase, ReplicaPhase::Stopped | ReplicaPhase::Failed)
    }

    fn end(&mut self, phase: ReplicaPhase, code: i32, reason: &str) {
        if self.has_ended() {
            return;
        }
        self.seen.phase = phase;
        self.seen.is_ready = false;
        for container in &mut self.seen.containers {
            container.state = ContainerState::Terminated;
            container.is_ready = false;
            container.is_started = false;
            container.last_exit =
                Some(ContainerExit { code, reason: reason.to_owned(), message: None, at: Timestamp::now() });
        }
    }
}

impl FakeRuntime {
    /// Scripts an image; others behave as the default.
    pub fn script(&self, image: &str, script: FakeImage) {
        self.inner.lock().scripts.insert(image.to_owned(), script);
    }

    /// Lets a replica end as a host failure would. Unknown names are fine.
    pub fn kill(&self, replica: &ReplicaName) {
        self.inner.update(replica, |fake| fake.end(ReplicaPhase::Stopped, 137, "Error"));
    }

    /// From now on snapshots fail so, or work again.
    pub fn fail_snapshots(&self, why: Option<SnapshotFailure>) {
        self.inner.lock().snapshots_fail = why;
    }

    /// Every name that was ever prepared.
    #[must_use]
    pub fn prepared(&self) -> BTreeSet<ReplicaName> {
        self.inner.lock().used.clone()
    }

    fn turn(&self, name: &ReplicaName, from: ReplicaPhase, to: ReplicaPhase) -> Result<(), RuntimeError> {
        let turned = self.inner.update(name, |fake| {
            if fake.has_ended() || fake.seen.phase == ReplicaPhase::Stopping {
                return Err(RuntimeError::Gone(name.clone()));
            }
            if fake.seen.phase == from {
                fake.seen.phase = to;
                fake.seen.is_ready = to == ReplicaPhase::Running && fake.seen.ready_at.is_some();
            }
            Ok(())
        });
        turned.unwrap_or_else(|| Err(RuntimeError::NotFound(name.clone())))
    }

    /// Who answers when a started replica of an image is dialed, at whatever port; without one nothing listens.
    pub fn answer_dials(&self, image: &str, at: SocketAddr) {
        self.inner.lock().dials.insert(image.to_owned(), at);
    }

    fn image_of(spec: &ReplicaSpec) -> &str {
        spec.template.containers.first().map_or("", |container| &container.image)
    }

    fn script_of(state: &State, spec: &ReplicaSpec) -> FakeImage {
        state.scripts.get(Self::image_of(spec)).cloned().unwrap_or_default()
    }
}

fn observation(spec: &ReplicaSpec, number: u32) -> ReplicaObservation {
    let init = spec.template.init_containers.iter().map(|container| (container, true));
    let containers = init.chain(spec.template.containers.iter().map(|container| (container, false)));
    ReplicaObservation {
        name: spec.name.clone(),
        revision: spec.revision.clone(),
        restart_generation: spec.restart_generation,
        phase: ReplicaPhase::Preparing,
        is_ready: false,
        address: Some(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 255, 0, 0)) + number)),
        containers: containers
            .map(|(container, is_init)| ContainerObservation {
                name: container.name.clone(),
                is_init,
                state: ContainerState::Waiting { reason: "ContainerCreating".to_owned(), until: None },
                is_ready: false,
                is_started: false,
                restarts: 0,
                last_exit: None,
            })
            .collect(),
        created_at: Timestamp::now(),
        started_at: None,
        ready_at: None,
    }
}

async fn run(inner: Arc<Inner>, name: ReplicaName) {
    let Some(script) = inner.update(&name, |fake| fake.script.clone()) else { return };
    sleep(script.prepare_takes).await;
    let lacks_files = {
        let state = inner.lock();
        let snapshot = state.replicas.get(&name).and_then(|fake| fake.snapshot.as_ref());
        snapshot.is_some_and(|id| !state.snapshots.contains_key(id))
    };
    let is_failed = lacks_files || matches!(script.ending, FakeEnding::PullFails(_) | FakeEnding::PrepareFails);
    let goes_on = inner.update(&name, |fake| {
        if is_failed {
            fake.end(ReplicaPhase::Failed, 128, "ContainerCannotRun");
        }
        if fake.seen.phase == ReplicaPhase::Preparing {
            fake.seen.phase = ReplicaPhase::Prepared;
            fake.phases.root_at = Some(Timestamp::now());
        }
        fake.seen.phase == ReplicaPhase::Prepared && fake.is_start_asked
    });
    if goes_on == Some(true) {
        start(inner, name).await;
    }
}

async fn start(inner: Arc<Inner>, name: ReplicaName) {
    let Some(Some(script)) = inner.update(&name, |fake| {
        if fake.seen.phase != ReplicaPhase::Prepared {
            return None;
        }
        let since = Timestamp::now();
        fake.seen.phase = ReplicaPhase::Running;
        fake.seen.started_at = Some(since);
        fake.phases.started_at = Some(since);
        for container in &mut fake.seen.containers {
            container.state = ContainerState::Running { since };
        }
        Some(fake.script.clone())
    }) else {
        return;
    };
    sleep(script.start_takes).await;
    if script.ending == FakeEnding::NeverReady {
        return;
    }
    inner.update(&name, |fake| {
        if fake.seen.phase != ReplicaPhase::Running {
            return;
        }
        if let (FakeEnding::Exits(code), RestartPolicy::Never) = (&script.ending, fake.restart) {
            fake.end(ReplicaPhase::Stopped, *code, if *code == 0 { "Completed" } else { "Error" });
            return;
        }
        let at = Timestamp::now();
        fake.seen.is_ready = true;
        fake.seen.ready_at = Some(at);
        fake.phases.listening_at = Some(at);
        fake.phases.ready_at = Some(at);
        for container in &mut fake.seen.containers {
            container.is_ready = true;
            container.is_started = true;
        }
    });
}

impl Runtime for FakeRuntime {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            driver: "fake".to_owned(),
            slots: true,
            slot_bytes: 4 << 20,
            limits: false,
            egress: false,
            freezes: true,
            sandbox_tiers: vec![SandboxTier::Hardened],
            warnings: Vec::new(),
        }
    }

    fn ensure_images(&self, revision: &RevisionKey, images: &[String], _: &[RegistryLogin]) {
        let (wait, result) = {
            let mut state = self.inner.lock();
            if matches!(state.images.get(revision), Some(ImagesState::Pulling { .. } | ImagesState::Ready { .. })) {
                return;
            }
            state.images.insert(revision.clone(), ImagesState::Pulling { percent: 0 });
            let scripts: Vec<_> =
                images.iter().map(|image| (image, state.scripts.get(image).cloned().unwrap_or_default())).collect();
            let wait = scripts.iter().map(|(_, script)| script.pull_takes).max().unwrap_or_default();
            let failure = scripts.iter().find_map(|(image, script)| match &script.ending {
                FakeEnding::PullFails(words) => Some(format!("image `{image}`: {words}")),
                _ => None,
            });
            let ready =
                || ImagesState::Ready { exposed_ports: images.iter().map(|image| (image.clone(), None)).collect() };
            let failed =
                |message| ImagesState::Failed { reason: "ImagePullFailure".to_owned(), message, retryable: true };
            (wait, failure.map_or_else(ready, failed))
        };
        let (inner, revision) = (Arc::clone(&self.inner), revision.clone());
        tokio::spawn(async move {
            sleep(wait).await;
            inner.lock().images.insert(revision.clone(), result);
            inner.board.touch(&revision);
        });
    }

    fn forget_images(&self, revision: &RevisionKey) {
        self.inner.lock().images.remove(revision);
    }

    fn images(&self, revision: &RevisionKey) -> ImagesState {
        self.inner.lock().images.get(revision).cloned().unwrap_or_default()
    }

    fn prepare(&self, spec: ReplicaSpec) -> Result<(), RuntimeError> {
        if let Some(sandbox) = spec.sandbox.as_ref().filter(|sandbox| sandbox.tier != SandboxTier::Hardened) {
            return Err(RuntimeError::Unsupported(format!("the fake has no sandbox tier {:?}", sandbox.tier)));
        }
        let name = spec.name.clone();
        {
            let mut state = self.inner.lock();
            if state.replicas.contains_key(&name) {
                return Ok(());
            }
            state.made += 1;
            state.used.insert(name.clone());
            let fake = Fake {
                seen: observation(&spec, state.made),
                script: Self::script_of(&state, &spec),
                phases: ReplicaPhases { network_at: Some(Timestamp::now()), ..ReplicaPhases::default() },
                is_start_asked: false,
                restart: spec.restart,
                image: Self::image_of(&spec).to_owned(),
                snapshot: spec.sandbox.as_ref().and_then(|sandbox| sandbox.snapshot.clone()),
            };
            state.replicas.insert(name.clone(), fake);
            self.inner.publish(&state, &spec.revision);
        }
        tokio::spawn(run(Arc::clone(&self.inner), name));
        Ok(())
    }

    fn start(&self, name: &ReplicaName) -> Result<(), RuntimeError> {
        let asked = self.inner.update(name, |fake| {
            if fake.has_ended() || fake.seen.phase == ReplicaPhase::Stopping {
                return Err(RuntimeError::Gone(name.clone()));
            }
            fake.is_start_asked = true;
            fake.phases.asked_at.get_or_insert_with(Timestamp::now);
            Ok(fake.seen.phase == ReplicaPhase::Prepared)
        });
        if asked.ok_or_else(|| RuntimeError::NotFound(name.clone()))?? {
            tokio::spawn(start(Arc::clone(&self.inner), name.clone()));
        }
        Ok(())
    }

    fn freeze(&self, name: &ReplicaName) -> Result<(), RuntimeError> {
        self.turn(name, ReplicaPhase::Running, ReplicaPhase::Frozen)
    }

    fn thaw(&self, name: &ReplicaName) -> Result<(), RuntimeError> {
        self.turn(name, ReplicaPhase::Frozen, ReplicaPhase::Running)
    }

    fn stop(&self, name: &ReplicaName, grace: Duration) {
        let wait = self.inner.update(name, |fake| {
            if fake.has_ended() || fake.seen.phase == ReplicaPhase::Stopping {
                return None;
            }
            let is_slot = fake.seen.started_at.is_none();
            fake.seen.phase = ReplicaPhase::Stopping;
            fake.seen.is_ready = false;
            Some(if is_slot { Duration::ZERO } else { fake.script.stop_takes.min(grace) })
        });
        let Some(Some(wait)) = wait else { return };
        let (inner, name) = (Arc::clone(&self.inner), name.clone());
        tokio::spawn(async move {
            sleep(wait).await;
            inner.update(&name, |fake| fake.end(ReplicaPhase::Stopped, 0, "Completed"));
        });
    }

    fn remove(&self, name: &ReplicaName) {
        let mut state = self.inner.lock();
        if state.replicas.get(name).is_some_and(Fake::has_ended)
            && let Some(fake) = state.replicas.remove(name)
        {
            self.inner.publish(&state, &fake.seen.revision);
        }
    }

    fn observations(&self) -> &Board<RevisionKey, Arc<Vec<ReplicaObservation>>> {
        &self.inner.board
    }

    fn phases(&self, name: &ReplicaName) -> Option<ReplicaPhases> {
        self.inner.lock().replicas.get(name).map(|fake| fake.phases.clone())
    }

    fn exec(&self, _: ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>> {
        Box::pin(async { Err(ExecError::Unsupported) })
    }

    fn snapshot(
        &self,
        name: &ReplicaName,
        order: SnapshotOrder,
    ) -> BoxFuture<'static, Result<SnapshotFacts, SnapshotFailure>> {
        let mut state = self.inner.lock();
        let runs = |fake: &Fake| matches!(fake.seen.phase, ReplicaPhase::Running | ReplicaPhase::Frozen);
        let taken = match (state.snapshots_fail.clone(), state.replicas.get(name).is_some_and(runs)) {
            (Some(why), _) => Err(why),
            (None, false) => Err(SnapshotFailure::NotRunning),
            (None, true) => Ok(SnapshotFacts { bytes: 4096, files: 1, ..SnapshotFacts::default() }),
        };
        if let Ok(facts) = &taken {
            state.snapshots.insert(order.into, facts.clone());
        }
        Box::pin(std::future::ready(taken))
    }

    fn snapshots(&self) -> BTreeMap<SnapshotId, SnapshotFacts> {
        self.inner.lock().snapshots.clone()
    }

    fn remove_snapshot(&self, snapshot: &SnapshotId) -> BoxFuture<'static, io::Result<()>> {
        self.inner.lock().snapshots.remove(snapshot);
        Box::pin(std::future::ready(Ok(())))
    }

    fn dial(&self, name: &ReplicaName, _: u16) -> BoxFuture<'static, io::Result<TcpStream>> {
        let at = {
            let state = self.inner.lock();
            let found = state.replicas.get(name).filter(|fake| !fake.has_ended());
            found.ok_or(io::ErrorKind::NotFound).and_then(|fake| {
                let runs = matches!(fake.seen.phase, ReplicaPhase::Running | ReplicaPhase::Frozen);
                state.dials.get(&fake.image).filter(|_| runs).copied().ok_or(io::ErrorKind::ConnectionRefused)
            })
        };
        Box::pin(async move { tokio::net::TcpStream::connect(at?).await?.into_std() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conformance::Suite;

    #[tokio::test]
    async fn the_fake_keeps_the_contract() {
        let runtime = FakeRuntime::default();
        let slow = Duration::from_millis(5);
        runtime.script(
            "good",
            FakeImage {
                pull_takes: slow,
                prepare_takes: slow,
                start_takes: slow,
                stop_takes: slow,
                ending: FakeEnding::Ready,
            },
        );
        runtime.script(
            "bad",
            FakeImage { ending: FakeEnding::PullFails("no such tag".to_owned()), ..FakeImage::default() },
        );
        runtime.script("ends", FakeImage { ending: FakeEnding::Exits(3), ..FakeImage::default() });
        let suite = Suite {
            runtime: &runtime,
            image: "good",
            port: 80,
            missing_image: "bad",
            ending_image: "ends",
            ending_code: 3,
            limit: Duration::from_secs(60),
        };
        suite.run().await.unwrap();
        assert!(runtime.prepared().len() >= 5);
    }
}
