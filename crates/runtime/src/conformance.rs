//! What every driver must do, as a suite that runs against any of them.
//!
//! A driver's own tests call [`Suite::run`] with an image that listens on the target port at once and one that does not
//! exist. The suite uses only the contract, waits on the driver's notices with a limit, and removes what it made.
//!
//! **Invariant:** nothing here knows a driver.

use std::{collections::BTreeMap, future::Future, sync::Arc, time::Duration};

use cove_model::{
    Bytes, Container, EnvValue, EnvVar, MilliCpu, ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId, Resources,
    RevisionKey, RevisionName, Scale, SnapshotId, Template,
};
use tokio::time::timeout;

use crate::{
    ExecError, ExecRequest, ImagesState, ReplicaSpec, RestartPolicy, Runtime, RuntimeError, Sandbox, SandboxTier,
    SnapshotFailure, SnapshotOrder,
};

/// A driver under test and what it can run.
#[derive(Debug)]
pub struct Suite<'a> {
    /// The driver.
    pub runtime: &'a dyn Runtime,
    /// An image that opens `port` at once and ends on SIGTERM.
    pub image: &'a str,
    /// The port.
    pub port: u16,
    /// An image that cannot be had.
    pub missing_image: &'a str,
    /// An image that ends by itself with [`Suite::ending_code`] when it has the variable `SAMPLE_EXIT` with that value.
    pub ending_image: &'a str,
    /// The code, not 0.
    pub ending_code: i32,
    /// Longest wait for anything.
    pub limit: Duration,
}

/// What a driver did that it must not.
#[derive(Debug, thiserror::Error)]
#[error("{case}: {what}")]
pub struct Violation {
    /// Which rule.
    pub case: &'static str,
    /// What was seen.
    pub what: String,
}

fn ensure(case: &'static str, holds: bool, what: impl FnOnce() -> String) -> Result<(), Violation> {
    if holds { Ok(()) } else { Err(Violation { case, what: what() }) }
}

impl Suite<'_> {
    /// Runs every case.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub async fn run(&self) -> Result<(), Violation> {
        self.images_are_told().await?;
        self.a_slot_starts_when_asked().await?;
        self.a_start_before_the_slot_counts().await?;
        self.a_slot_is_dismantled().await?;
        self.orders_may_be_given_twice().await?;
        if self.runtime.capabilities().freezes {
            self.what_is_frozen_is_thawed().await?;
            self.what_is_frozen_is_stopped().await?;
        }
        if self.runtime.capabilities().sandbox_tiers.contains(&SandboxTier::Hardened) {
            self.what_was_written_begins_another().await?;
        }
        self.what_ends_by_itself_stays_ended_where_it_is_to().await?;
        self.a_missing_image_fails_the_replica().await?;
        self.unknown_names_are_told().await
    }

    async fn images_are_told(&self) -> Result<(), Violation> {
        const CASE: &str = "images are told";
        let (good, bad) = (revision("images"), revision("none"));
        ensure(CASE, self.runtime.images(&good) == ImagesState::Unknown, || "known before anybody asked".to_owned())?;
        self.runtime.ensure_images(&good, &[self.image.to_owned()], &[]);
        self.runtime.ensure_images(&bad, &[self.missing_image.to_owned()], &[]);
        let state = self.wait_images(CASE, &good).await?;
        let is_ready = matches!(&state, ImagesState::Ready { exposed_ports } if exposed_ports.contains_key(self.image));
        ensure(CASE, is_ready, || format!("{state:?}"))?;
        let state = self.wait_images(CASE, &bad).await?;
        let is_told = matches!(&state, ImagesState::Failed { message, .. } if message.contains(self.missing_image));
        ensure(CASE, is_told, || format!("the message does not name the image: {state:?}"))
    }

    async fn a_slot_starts_when_asked(&self) -> Result<(), Violation> {
        const CASE: &str = "a slot starts when asked";
        let spec = self.spec("slot", self.image);
        let name = spec.name.clone();
        self.take(CASE, self.runtime.prepare(spec))?;
        let slot = self.wait(CASE, &name, |seen| seen.phase == ReplicaPhase::Prepared).await?;
        ensure(CASE, !slot.is_ready && slot.started_at.is_none(), || format!("a slot already runs: {slot:?}"))?;
        self.take(CASE, self.runtime.start(&name))?;
        let seen = self.wait(CASE, &name, |seen| seen.is_ready).await?;
        let is_whole = seen.phase == ReplicaPhase::Running
            && seen.address.is_some()
            && seen.started_at.is_some()
            && seen.ready_at.is_some()
            && seen.containers.iter().all(|container| container.is_ready && container.is_started);
        ensure(CASE, is_whole, || format!("ready, but: {seen:?}"))?;
        let phases = self.runtime.phases(&name).unwrap_or_default();
        let is_ordered =
            phases.asked_at.is_some() && phases.asked_at <= phases.started_at && phases.started_at <= phases.ready_at;
        ensure(CASE, is_ordered, || format!("phases are not in order: {phases:?}"))?;
        self.finish(CASE, &name).await
    }

    async fn a_start_before_the_slot_counts(&self) -> Result<(), Violation> {
        const CASE: &str = "a start before the slot is there counts";
        let spec = self.spec("early", self.image);
        let name = spec.name.clone();
        self.take(CASE, self.runtime.prepare(spec))?;
        self.take(CASE, self.runtime.start(&name))?;
        self.wait(CASE, &name, |seen| seen.is_ready).await?;
        self.finish(CASE, &name).await
    }

    async fn a_slot_is_dismantled(&self) -> Result<(), Violation> {
        const CASE: &str = "a slot is dismantled";
        let spec = self.spec("unused", self.image);
        let name = spec.name.clone();
        self.take(CASE, self.runtime.prepare(spec))?;
        self.wait(CASE, &name, |seen| seen.phase == ReplicaPhase::Prepared).await?;
        self.finish(CASE, &name).await?;
        // And one that is not even made yet.
        let spec = self.spec("abandoned", self.image);
        let name = spec.name.clone();
        self.take(CASE, self.runtime.prepare(spec))?;
        self.finish(CASE, &name).await
    }

    async fn orders_may_be_given_twice(&self) -> Result<(), Violation> {
        const CASE: &str = "orders may be given twice";
        let spec = self.spec("twice", self.image);
        let name = spec.name.clone();
        self.take(CASE, self.runtime.prepare(spec.clone()))?;
        self.take(CASE, self.runtime.prepare(spec))?;
        self.take(CASE, self.runtime.start(&name))?;
        self.take(CASE, self.runtime.start(&name))?;
        self.wait(CASE, &name, |seen| seen.is_ready).await?;
        self.take(CASE, self.runtime.start(&name))?;
        let count = self.runtime.observations().get(&revision("twice")).map_or(0, |all| all.len());
        ensure(CASE, count == 1, || format!("{count} replicas of one name"))?;
        self.runtime.stop(&name, self.limit);
        self.finish(CASE, &name).await
    }

    async fn what_is_frozen_is_thawed(&self) -> Result<(), Violation> {
        const CASE: &str = "what is frozen is thawed";
        let name = self.ready(CASE, "frozen").await?;
        let before = self.wait(CASE, &name, |seen| seen.is_ready).await?;
        for _ in 0..2 {
            self.take(CASE, self.runtime.freeze(&name))?;
            self.take(CASE, self.runtime.freeze(&name))?;
            let seen = self.wait(CASE, &name, |seen| seen.phase == ReplicaPhase::Frozen).await?;
            ensure(CASE, !seen.is_ready, || format!("frozen and ready: {seen:?}"))?;
            self.take(CASE, self.runtime.thaw(&name))?;
            self.take(CASE, self.runtime.thaw(&name))?;
            let seen = self.wait(CASE, &name, |seen| seen.is_ready).await?;
            let is_same = seen.started_at == before.started_at && seen.ready_at == before.ready_at;
            ensure(CASE, is_same && seen.address == before.address, || format!("thawed as another: {seen:?}"))?;
        }
        // the last order counts, whatever was seen in between
        self.take(CASE, self.runtime.freeze(&name))?;
        self.take(CASE, self.runtime.thaw(&name))?;
        self.wait(CASE, &name, |seen| seen.is_ready).await?;
        self.finish(CASE, &name).await?;
        let gone = self.runtime.thaw(&name);
        ensure(CASE, gone == Err(RuntimeError::NotFound(name.clone())), || format!("thaw after all gave {gone:?}"))
    }

    async fn what_is_frozen_is_stopped(&self) -> Result<(), Violation> {
        const CASE: &str = "what is frozen is stopped";
        let name = self.ready(CASE, "cold").await?;
        self.take(CASE, self.runtime.freeze(&name))?;
        self.wait(CASE, &name, |seen| seen.phase == ReplicaPhase::Frozen).await?;
        self.finish(CASE, &name).await
    }

    async fn what_was_written_begins_another(&self) -> Result<(), Violation> {
        const CASE: &str = "what was written begins another";
        let id = |digit: &str| SnapshotId::new(&digit.repeat(32)).expect("32 hexadecimal digits");
        let order = |into| SnapshotOrder { into, bytes_max: 64 << 20, is_for_good: true, memory: false };
        let sandboxed = |what: &str, snapshot| {
            let sandbox = Some(Sandbox { snapshot, ..Sandbox::default() });
            ReplicaSpec { sandbox, ..self.spec(what, self.image) }
        };
        let lost = self.runtime.snapshot(&self.spec("none", self.image).name, order(id("0"))).await;
        ensure(CASE, lost == Err(SnapshotFailure::NotRunning), || format!("of no replica: {lost:?}"))?;
        let source = self.ready_of(CASE, sandboxed("source", None)).await?;
        let taken = self.runtime.snapshot(&source, order(id("a"))).await;
        let listed = self.runtime.snapshots();
        let is_listed = taken.as_ref().ok() == listed.get(&id("a")) && listed.len() == 1;
        ensure(CASE, taken.is_ok() && is_listed, || format!("taken: {taken:?}, listed: {listed:?}"))?;
        self.wait(CASE, &source, |seen| seen.is_ready).await?;
        let fork = self.ready_of(CASE, sandboxed("fork", Some(id("a")))).await?;
        let missing = sandboxed("lacking", Some(id("b")));
        let name = missing.name.clone();
        self.take(CASE, self.runtime.prepare(missing))?;
        self.wait(CASE, &name, |seen| seen.phase == ReplicaPhase::Failed).await?;
        self.forget(CASE, &name).await?;
        self.finish(CASE, &fork).await?;
        self.finish(CASE, &source).await?;
        for _ in 0..2 {
            let removed = self.runtime.remove_snapshot(&id("a")).await;
            ensure(CASE, removed.is_ok(), || format!("removing gave {removed:?}"))?;
        }
        let left = self.runtime.snapshots();
        ensure(CASE, left.is_empty(), || format!("still listed: {left:?}"))
    }

    /// A replica that is ready.
    async fn ready(&self, case: &'static str, what: &str) -> Result<ReplicaName, Violation> {
        self.ready_of(case, self.spec(what, self.image)).await
    }

    async fn ready_of(&self, case: &'static str, spec: ReplicaSpec) -> Result<ReplicaName, Violation> {
        let name = spec.name.clone();
        self.take(case, self.runtime.prepare(spec))?;
        self.take(case, self.runtime.start(&name))?;
        self.wait(case, &name, |seen| seen.is_ready).await?;
        Ok(name)
    }

    async fn what_ends_by_itself_stays_ended_where_it_is_to(&self) -> Result<(), Violation> {
        const CASE: &str = "what ends by itself stays ended where it is to";
        let mut spec = self.spec("ends", self.ending_image);
        spec.restart = RestartPolicy::Never;
        spec.target_port = None;
        let value = EnvValue::Plain(self.ending_code.to_string());
        Arc::make_mut(&mut spec.template).containers[0].env = vec![EnvVar { name: "SAMPLE_EXIT".to_owned(), value }];
        let name = spec.name.clone();
        self.take(CASE, self.runtime.prepare(spec))?;
        self.take(CASE, self.runtime.start(&name))?;
        let seen = self.wait(CASE, &name, |seen| seen.phase == ReplicaPhase::Stopped).await?;
        let container = &seen.containers[0];
        let code = container.last_exit.as_ref().map(|exit| exit.code);
        let is_told = code == Some(self.ending_code) && container.restarts == 0 && seen.started_at.is_some();
        ensure(CASE, is_told, || format!("ended, but: {seen:?}"))?;
        let gone = self.runtime.start(&name);
        ensure(CASE, gone == Err(RuntimeError::Gone(name.clone())), || format!("start after its end gave {gone:?}"))?;
        self.forget(CASE, &name).await
    }

    async fn a_missing_image_fails_the_replica(&self) -> Result<(), Violation> {
        const CASE: &str = "a missing image fails the replica";
        let spec = self.spec("missing", self.missing_image);
        let name = spec.name.clone();
        self.take(CASE, self.runtime.prepare(spec))?;
        let seen = self.wait(CASE, &name, |seen| seen.phase == ReplicaPhase::Failed).await?;
        ensure(CASE, !seen.is_ready, || format!("failed and ready: {seen:?}"))?;
        let gone = self.runtime.start(&name);
        ensure(CASE, gone == Err(RuntimeError::Gone(name.clone())), || format!("start gave {gone:?}"))?;
        self.forget(CASE, &name).await
    }

    async fn unknown_names_are_told(&self) -> Result<(), Violation> {
        const CASE: &str = "unknown names are told";
        let name = self.spec("never", self.image).name;
        let answer = self.runtime.start(&name);
        ensure(CASE, answer == Err(RuntimeError::NotFound(name.clone())), || format!("start gave {answer:?}"))?;
        self.runtime.stop(&name, Duration::ZERO);
        self.runtime.remove(&name);
        let request = ExecRequest {
            replica: name.clone(),
            container: "main".to_owned(),
            command: vec!["true".to_owned()],
            tty: false,
            is_debug: false,
        };
        let is_told = |error: &ExecError| matches!(error, ExecError::NotRunning { .. } | ExecError::Unsupported);
        let answer = self.runtime.thaw(&name);
        let is_not_found = matches!(answer, Err(RuntimeError::NotFound(_) | RuntimeError::Unsupported(_)));
        ensure(CASE, is_not_found, || format!("thaw gave {answer:?}"))?;
        let ran = self.runtime.exec(request).await;
        ensure(CASE, ran.as_ref().is_err_and(is_told), || format!("a command ran nowhere: {ran:?}"))?;
        let root = self.runtime.root(&name, "main").await;
        ensure(CASE, root.as_ref().is_err_and(is_told), || format!("a root of nothing: {root:?}"))?;
        ensure(CASE, self.runtime.phases(&name).is_none(), || "phases of a replica that never was".to_owned())
    }

    /// Stops and forgets a replica.
    async fn finish(&self, case: &'static str, name: &ReplicaName) -> Result<(), Violation> {
        self.runtime.stop(name, self.limit);
        let seen = self.wait(case, name, |seen| seen.phase == ReplicaPhase::Stopped).await?;
        ensure(case, !seen.is_ready, || format!("stopped and ready: {seen:?}"))?;
        let gone = self.runtime.start(name);
        ensure(case, gone == Err(RuntimeError::Gone(name.clone())), || format!("start after stop gave {gone:?}"))?;
        self.forget(case, name).await
    }

    async fn forget(&self, case: &'static str, name: &ReplicaName) -> Result<(), Violation> {
        self.runtime.remove(name);
        self.runtime.remove(name);
        self.until(case, || format!("`{name}` is still observed"), || self.find(name).is_none().then_some(())).await
    }

    fn find(&self, name: &ReplicaName) -> Option<ReplicaObservation> {
        let all = self.runtime.observations().snapshot();
        all.iter().flat_map(|(_, all)| all.iter()).find(|seen| seen.name == *name).cloned()
    }

    async fn wait(
        &self,
        case: &'static str,
        name: &ReplicaName,
        wanted: impl Fn(&ReplicaObservation) -> bool,
    ) -> Result<ReplicaObservation, Violation> {
        let seen = || self.find(name);
        self.until(case, || format!("waited in vain: {:?}", seen()), || seen().filter(|seen| wanted(seen))).await
    }

    async fn wait_images(&self, case: &'static str, revision: &RevisionKey) -> Result<ImagesState, Violation> {
        let state = || self.runtime.images(revision);
        let is_over = |state: &ImagesState| matches!(state, ImagesState::Ready { .. } | ImagesState::Failed { .. });
        self.until(case, || format!("waited in vain: {:?}", state()), || Some(state()).filter(is_over)).await
    }

    /// Looks at each notice.
    fn until<T>(
        &self,
        case: &'static str,
        words: impl FnOnce() -> String,
        look: impl Fn() -> Option<T>,
    ) -> impl Future<Output = Result<T, Violation>> {
        let mut changes = self.runtime.observations().subscribe();
        async move {
            let found = async {
                loop {
                    if let Some(found) = look() {
                        return found;
                    }
                    changes.next().await;
                }
            };
            timeout(self.limit, found).await.map_err(|_| Violation { case, what: words() })
        }
    }

    fn take(&self, case: &'static str, result: Result<(), RuntimeError>) -> Result<(), Violation> {
        result.map_err(|error| Violation { case, what: error.to_string() })
    }

    fn spec(&self, what: &str, image: &str) -> ReplicaSpec {
        let revision = revision(what);
        let container = Container {
            name: "main".to_owned(),
            image: image.to_owned(),
            command: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            resources: Resources {
                cpu: MilliCpu(250),
                memory: Bytes(Bytes::GIB / 2),
                ephemeral_storage: Bytes(Bytes::GIB),
            },
            probes: Vec::new(),
            volume_mounts: Vec::new(),
        };
        ReplicaSpec {
            name: ReplicaName::new(format!("{}-r", revision.name)).expect("a revision's name and a letter are a name"),
            environment: resource("Microsoft.App/managedEnvironments", "conformance"),
            environment_domain: "conformance.localhost".to_owned(),
            restart_generation: 0,
            template: Arc::new(Template {
                init_containers: Vec::new(),
                containers: vec![container],
                volumes: Vec::new(),
                scale: Scale::default(),
                termination_grace_period_secs: 30,
            }),
            target_port: Some(self.port),
            secrets: BTreeMap::new(),
            platform_env: BTreeMap::new(),
            logins: Vec::new(),
            storages: BTreeMap::new(),
            restart: RestartPolicy::default(),
            sandbox: None,
            revision,
        }
    }
}

fn revision(suffix: &str) -> RevisionKey {
    let name = RevisionName::of("conformance", suffix).expect("suffixes here are lower case words");
    RevisionKey { app: resource("Microsoft.App/containerApps", "conformance"), name }
}

fn resource(kind: &str, name: &str) -> ResourceId {
    ResourceId::resource("sub", "conformance", kind, name).expect("all parts are given")
}
