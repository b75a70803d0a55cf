//! Probes: when a container counts as started, ready, or in need of a restart.
//!
//! The first answer is not polled for: the helper tells the moment the container calls `listen`, and the first probe is
//! made then. Where the kernel cannot tell, or a container listens in a way that is not seen, a schedule of growing waits
//! takes over. After that the probes' own periods apply.
//!
//! The first answers belong to the start of a process, which takes real time: delays and thresholds until then are over
//! when either the machine's clock or a virtual one has passed them. Later probes follow the platform's clock alone.
//!
//! **Invariant:** a probe belongs to one run of one container: it ends with it and its findings are dropped after it.
//! **Invariant:** a container without any probe is ready when it runs; with ingress the first container is ready only
//! when the target port answers.

mod ask;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cove_model::{ContainerState, EventKind, Probe, ProbeAction, ProbeKind, ReplicaName};
use cove_runtime::{ReplicaSpec, SandboxTier};
use jiff::Timestamp;
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Inner, prepare::containers};
use crate::protocol::{ShimState, ToShim};
use ask::Way;

/// After a `listen` was told: the call itself may still be a moment away, so yield this long, then wait in growing steps.
const LISTEN_SPIN: Duration = Duration::from_millis(2);

/// Waits between first asks when no `listen` was told, milliseconds; the last is repeated.
const FIRST_WAITS_MS: [u64; 14] = [1, 1, 1, 2, 2, 5, 5, 10, 10, 20, 20, 50, 50, 100];

/// The same where the kernel tells of `listen`: only a safety net.
const FIRST_WAITS_TOLD_MS: [u64; 4] = [100, 200, 400, 500];

/// Longest that the restart of a container keeps a virtual clock from being moved on.
const RESTART_SEEN_LIMIT: Duration = Duration::from_secs(10);

/// What is known of one container's health.
#[derive(Debug, Default)]
pub(super) struct Health {
    pub(super) is_ready: bool,
    pub(super) is_started: bool,
    listening: Arc<Notify>,
    listens: u32,
    run: Option<(Timestamp, CancellationToken)>,
}

impl Health {
    /// Its run is over.
    pub(super) fn end(&mut self) {
        if let Some((_, stop)) = self.run.take() {
            stop.cancel();
        }
        self.is_ready = false;
        self.is_started = false;
        self.listens = 0;
    }
}

/// One run of one container that is to be probed.
struct Run {
    inner: Arc<Inner>,
    name: ReplicaName,
    spec: Arc<ReplicaSpec>,
    container: String,
    index: usize,
    restarts: u32,
    way: Way,
    since: Timestamp,
    listening: Arc<Notify>,
    /// The replica is frozen or about to be: nothing is asked of it, and no answer counts.
    rests: Arc<AtomicBool>,
    checks: Checks,
}

/// What is asked of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Checks {
    startup: Option<Probe>,
    readiness: Option<Probe>,
    liveness: Option<Probe>,
    /// The probes come from the platform: no initial delay, the first answer counts at once.
    is_startup_default: bool,
    is_readiness_default: bool,
}

impl Checks {
    /// ACA's defaults: with ingress, the first container gets TCP probes on the target port for each kind that it lacks.
    fn of(spec: &ReplicaSpec, index: usize) -> Self {
        let init = spec.template.init_containers.len();
        let probes = containers(&spec.template).nth(index).map(|(container, _)| &container.probes[..]).unwrap_or(&[]);
        let given = |kind| probes.iter().find(|probe| probe.kind == kind).cloned();
        let default = |kind, period_secs, timeout_secs, failure_threshold| {
            let port = spec.target_port.filter(|_| index == init)?;
            Some(Probe {
                kind,
                action: ProbeAction::Tcp { port },
                initial_delay_secs: 0,
                period_secs,
                timeout_secs,
                success_threshold: 1,
                failure_threshold,
            })
        };
        let startup = given(ProbeKind::Startup);
        let readiness = given(ProbeKind::Readiness);
        Self {
            is_startup_default: startup.is_none(),
            is_readiness_default: readiness.is_none(),
            startup: startup.or_else(|| default(ProbeKind::Startup, 1, 3, 240)),
            readiness: readiness.or_else(|| default(ProbeKind::Readiness, 5, 5, 48)),
            liveness: given(ProbeKind::Liveness),
        }
    }
}

/// Tells and ends probes as a helper's new state asks for; gives those that are to begin, for [`begin`].
pub(super) fn follow(inner: &Arc<Inner>, replica: &mut super::Replica, state: &ShimState) -> Vec<Due> {
    let mut due = Vec::new();
    let way = || match replica.address {
        Some(address) if replica.spec.sandbox.is_none() => Some(Way::Address(address)),
        _ if replica.spec.sandbox.is_some() => Some(Way::Inside(Arc::clone(inner), replica.spec.name.clone())),
        _ => None,
    };
    let Some(way) = way() else { return due };
    for (index, (status, health)) in state.containers.iter().zip(&mut replica.health).enumerate() {
        let ContainerState::Running { since } = status.state else {
            health.end();
            continue;
        };
        if status.is_init {
            continue;
        }
        if health.run.as_ref().is_none_or(|(run, _)| *run != since) {
            health.end();
            let stop = inner.stop.child_token();
            health.run = Some((since, stop.clone()));
            health.listening = Arc::new(Notify::new());
            let run = Run {
                inner: Arc::clone(inner),
                name: replica.spec.name.clone(),
                spec: Arc::clone(&replica.spec),
                container: status.name.clone(),
                index,
                restarts: status.restarts,
                way: way.clone(),
                since,
                listening: Arc::clone(&health.listening),
                rests: Arc::clone(&replica.freezing.rests),
                checks: Checks::of(&replica.spec, index),
            };
            due.push(Due(run, stop));
        }
        if status.listens > health.listens {
            health.listens = status.listens;
            health.listening.notify_one();
        }
    }
    replica.is_ready = is_ready(replica);
    due
}

/// Probes that are to begin.
pub(super) struct Due(Run, CancellationToken);

pub(super) fn begin(due: Vec<Due>) {
    for Due(run, stop) in due {
        tokio::spawn(stop.run_until_cancelled_owned(run.probe()));
    }
}

/// Whether an OCI runtime of this machine runs it: those tell of no `listen`.
fn is_handled(spec: &ReplicaSpec) -> bool {
    spec.sandbox.as_ref().is_some_and(|sandbox| matches!(sandbox.tier, SandboxTier::Handler(_)))
}

fn is_ready(replica: &super::Replica) -> bool {
    let init = replica.spec.template.init_containers.len();
    replica.health.len() > init && replica.health[init..].iter().all(|health| health.is_ready)
}

impl Run {
    async fn probe(self) {
        // found frozen by a new driver: it was ready when it was frozen, and cannot be asked now
        let was_ready = self.rests();
        if let Some(startup) = self.checks.startup.clone().filter(|_| !was_ready)
            && let Err(message) = self.first_success(&startup, self.checks.is_startup_default).await
        {
            self.restart(&startup, &message);
            return;
        }
        self.found(|health| health.is_started = true);
        let readiness = async {
            match self.checks.readiness.clone() {
                None => self.found(|health| health.is_ready = true),
                Some(probe) => self.watch_readiness(&probe, was_ready).await,
            }
        };
        let liveness = async {
            if let Some(probe) = self.checks.liveness.clone() {
                self.watch_liveness(&probe).await;
            }
        };
        tokio::join!(readiness, liveness);
    }

    /// Waits for the first success; the probe's own period and threshold say when that is hopeless.
    async fn first_success(&self, probe: &Probe, is_default: bool) -> Result<(), String> {
        let clock = &self.inner.config.clock;
        if !is_default {
            let delay = Duration::from_secs(u64::from(probe.initial_delay_secs));
            tokio::select! { () = sleep(delay) => {}, () = clock.sleep(delay) => {} }
        }
        let limit =
            Duration::from_secs(u64::from(probe.period_secs.max(1)) * u64::from(probe.failure_threshold.max(1)));
        let deadline = Instant::now() + limit;
        let virtual_deadline = clock.is_virtual().then(|| clock.now() + limit);
        let tells = crate::seccomp::has_notices() && !is_handled(&self.spec);
        let waits = if tells { &FIRST_WAITS_TOLD_MS[..] } else { &FIRST_WAITS_MS[..] };
        let mut round = 0;
        loop {
            let message = match self.ask(probe).await {
                Ok(()) => return Ok(()),
                Err(message) => message,
            };
            if Instant::now() >= deadline || virtual_deadline.is_some_and(|deadline| clock.now() >= deadline) {
                return Err(message);
            }
            let wait = Duration::from_millis(waits[round.min(waits.len() - 1)]);
            round += 1;
            if timeout(wait, self.listening.notified()).await.is_ok() && self.ask_at_once(probe).await {
                return Ok(());
            }
        }
    }

    /// A `listen` was told: asks until it answers, for as long as that may take to go through.
    async fn ask_at_once(&self, probe: &Probe) -> bool {
        let begun = Instant::now();
        while begun.elapsed() < LISTEN_SPIN {
            if self.ask(probe).await.is_ok() {
                return true;
            }
            tokio::task::yield_now().await;
        }
        for wait_ms in [1, 2, 4, 8, 16, 32, 50] {
            if self.ask(probe).await.is_ok() {
                return true;
            }
            sleep(Duration::from_millis(wait_ms)).await;
        }
        false
    }

    async fn watch_readiness(&self, probe: &Probe, was_ready: bool) {
        let startup_answered = self.checks.startup.as_ref().is_some_and(|startup| startup.action == probe.action);
        if was_ready || self.checks.is_readiness_default && startup_answered {
            self.found(|health| health.is_ready = true);
        } else {
            while self.first_success(probe, self.checks.is_readiness_default).await.is_err() {
                self.tell_failure(probe, "it was not ready in time");
            }
            self.found(|health| health.is_ready = true);
        }
        let (mut successes, mut failures, mut is_ready) = (0, 0, true);
        let clock = &self.inner.config.clock;
        let mut worker = clock.worker("a readiness probe");
        loop {
            worker.wait(clock.sleep(Duration::from_secs(u64::from(probe.period_secs.max(1))))).await;
            if self.rests() {
                continue;
            }
            match self.ask(probe).await {
                _ if self.rests() => {}
                Ok(()) => {
                    failures = 0;
                    successes += 1;
                    if !is_ready && successes >= probe.success_threshold {
                        is_ready = true;
                        self.found(|health| health.is_ready = true);
                    }
                }
                Err(message) => {
                    successes = 0;
                    failures += 1;
                    self.tell_failure(probe, &message);
                    if is_ready && failures >= probe.failure_threshold {
                        is_ready = false;
                        self.found(|health| health.is_ready = false);
                    }
                }
            }
        }
    }

    async fn watch_liveness(&self, probe: &Probe) {
        let clock = &self.inner.config.clock;
        let mut worker = clock.worker("a liveness probe");
        worker.wait(clock.sleep(Duration::from_secs(u64::from(probe.initial_delay_secs)))).await;
        let mut failures = 0;
        loop {
            match self.ask(probe).await {
                _ if self.rests() => failures = 0,
                Ok(()) => failures = 0,
                Err(message) => {
                    failures += 1;
                    self.tell_failure(probe, &message);
                    if failures >= probe.failure_threshold {
                        self.restart(probe, &message);
                        // at work until the helper tells of the end, which drops this
                        sleep(RESTART_SEEN_LIMIT).await;
                        return;
                    }
                }
            }
            worker.wait(clock.sleep(Duration::from_secs(u64::from(probe.period_secs.max(1))))).await;
        }
    }

    fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    async fn ask(&self, probe: &Probe) -> Result<(), String> {
        let limit = Duration::from_secs(u64::from(probe.timeout_secs.max(1)));
        match timeout(limit, ask::ask(&self.way, &probe.action)).await {
            Ok(answer) => answer,
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        }
    }

    /// Notes a finding if this run is still the container's.
    fn found(&self, change: impl FnOnce(&mut Health)) {
        let first = self.inner.update(&self.name, |replica| {
            let health = &mut replica.health[self.index];
            if health.run.as_ref().is_none_or(|(since, _)| *since != self.since) {
                return None;
            }
            change(health);
            replica.is_ready = is_ready(replica);
            if !replica.is_ready || replica.ready_at.is_some() {
                return None;
            }
            let at = Timestamp::now();
            replica.ready_at = Some(at);
            if let Some(conn) = &replica.conn {
                // Lost only with the connection; connecting anew says it again.
                let _ = conn.send(&ToShim::Ready { at }, &[]);
            }
            Some(())
        });
        if first.flatten().is_some() {
            let message = format!("Replica '{}' is ready", self.name);
            self.inner.event(&self.spec, None, EventKind::Normal, "ReplicaReady", message);
        }
    }

    fn tell_failure(&self, probe: &Probe, message: &str) {
        let text = format!("{:?} probe failed: {message}", probe.kind);
        self.inner.event(&self.spec, Some(&self.container), EventKind::Warning, "ProbeFailed", text);
    }

    fn restart(&self, probe: &Probe, message: &str) {
        let kind = format!("{:?}", probe.kind).to_lowercase();
        let text = format!("the {kind} probe failed {} times: {message}", probe.failure_threshold);
        self.inner.event(
            &self.spec,
            Some(&self.container),
            EventKind::Warning,
            "ProbeFailed",
            format!("Container '{}' will be restarted: {text}", self.container),
        );
        self.inner.update(&self.name, |replica| {
            if let Some(conn) = &replica.conn {
                let _ = conn.send(
                    &ToShim::Restart {
                        container: self.container.clone(),
                        restarts: self.restarts,
                        reason: "ProbeFailure".to_owned(),
                        message: text.clone(),
                    },
                    &[],
                );
            }
        });
    }
}
