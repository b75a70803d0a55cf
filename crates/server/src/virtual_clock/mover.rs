//! Moves a virtual clock: from one instant that somebody waits for to the next, and lets the platform come to rest at each.
//!
//! At rest is a platform whose loops wait, whose notices are read, and whose replicas are where they were ordered to be.
//! Processes take real time to start and to stop, so that is waited for, [`SETTLE_LIMIT`] at most; a replica that did not
//! get there is named in the answer and not waited for again.
//!
//! **Invariant:** one move at a time; a call ends after about [`CALL_LIMIT`], and says whether the clock is where it was
//! to go.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use cove_base::{Board, Changes, Clock};
use cove_model::{
    ContainerState, DesiredCount, ReplicaName, ReplicaObservation, ReplicaPhase, RevisionKey, SystemEvent,
};
use cove_monitor::Monitor;
use cove_runtime::Runtime;
use cove_scaling::ScaledRevision;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{Mutex, broadcast};

use super::KeptTime;

/// Longest that one call goes on; then the caller asks again.
const CALL_LIMIT: Duration = Duration::from_secs(20);
/// Longest that the platform may take to come to rest at one instant.
const SETTLE_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks, when nothing tells of a change.
const LOOK_EVERY: Duration = Duration::from_millis(1);
/// After an instant at which something changed it must be at rest twice, this far apart.
const LOOK_TWICE: Duration = Duration::from_millis(3);
/// Longest wait for system events to be written down at the end.
const EVENTS_LIMIT: Duration = Duration::from_secs(20);
/// Count changes and system events in one answer; the oldest are left out, and how many is said.
const TOLD_MAX: usize = 1000;

/// What is asked whether it is at rest.
pub(crate) struct Parts {
    pub(crate) desired: Board<RevisionKey, DesiredCount>,
    pub(crate) endpoints: Board<RevisionKey, cove_traffic::Endpoints>,
    pub(crate) scaled: Board<RevisionKey, Arc<ScaledRevision>>,
    pub(crate) jobs: Board<cove_model::ResourceId, cove_autoscaler::TriggeredJob>,
    pub(crate) drained: Board<ReplicaName, u64>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) monitor: Monitor,
}

/// Why the clock was not moved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MoveError {
    #[error("the server runs on the machine's clock; start it with `cove serve --clock virtual`")]
    Real,
    #[error("the clock is being moved already; wait until that has ended")]
    Moving,
    #[error("it is {now} already and time does not go back; give a later time than that")]
    Past { now: Timestamp },
    #[error(transparent)]
    Keep(#[from] anyhow::Error),
}

/// Moves the clock; made once per server.
pub(crate) struct Mover {
    clock: Clock,
    parts: Parts,
    state: Option<Mutex<State>>,
}

struct State {
    kept: KeptTime,
    desired: Changes<RevisionKey>,
    observed: Changes<RevisionKey>,
    events: broadcast::Receiver<SystemEvent>,
    counts: BTreeMap<RevisionKey, u32>,
    /// Replicas on their way, by revision.
    on_the_way: BTreeMap<RevisionKey, BTreeSet<Leg>>,
    /// Those that took too long.
    given_up: BTreeSet<Leg>,
    /// When waiting for rest at the present instant began.
    settling_since: Option<Instant>,
}

/// A replica and where it stands.
type Leg = (ReplicaName, ReplicaPhase);

/// What a call did.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Moved {
    /// The time before.
    from: Timestamp,
    /// The time now.
    now: Timestamp,
    /// Where it is to go.
    to: Timestamp,
    /// Whether it is there; otherwise ask again.
    is_done: bool,
    /// Instants at which somebody waited for the time.
    steps: u64,
    /// Counts that changed, oldest first.
    changes: VecDeque<CountChange>,
    /// System events, oldest first.
    events: VecDeque<SystemEvent>,
    /// Changes and events that are too many for one answer.
    left_out: u64,
    /// What did not come to rest within the limit, in words.
    unsettled: Vec<String>,
}

/// A count that the autoscaler set.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct CountChange {
    at: Timestamp,
    app: String,
    revision: String,
    from: u32,
    to: u32,
    reason: String,
}

/// How waiting for rest ended.
enum Rest {
    /// All is at rest.
    Quiet,
    /// All but what is named.
    GivenUp(Vec<String>),
    /// The call's time is over.
    CallOver,
}

impl Mover {
    /// A mover of this clock; `kept` is there for a virtual one.
    pub(crate) fn new(clock: Clock, kept: Option<KeptTime>, parts: Parts) -> Self {
        let state = kept.map(|kept| {
            Mutex::new(State {
                kept,
                desired: parts.desired.subscribe(),
                observed: parts.runtime.observations().subscribe(),
                events: parts.monitor.listen(),
                counts: BTreeMap::new(),
                on_the_way: BTreeMap::new(),
                given_up: BTreeSet::new(),
                settling_since: None,
            })
        });
        Self { clock, parts, state }
    }

    /// The clock.
    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// What `cove clock show` says.
    pub(crate) fn show(&self) -> Value {
        let mut shown = json!({"now": self.clock.now(), "virtual": self.clock.is_virtual()});
        if self.clock.is_virtual() {
            shown["nextDue"] = json!(self.clock.next_due());
            shown["unrest"] = json!(self.clock.unrest());
        }
        shown
    }

    /// Moves the clock by a span.
    pub(crate) async fn advance(&self, by: SignedDuration) -> Result<Moved, MoveError> {
        let to = self.clock.now().saturating_add(by).unwrap_or(Timestamp::MAX);
        self.advance_to(to).await
    }

    /// Moves the clock to an instant, over every instant between that somebody waits for.
    pub(crate) async fn advance_to(&self, to: Timestamp) -> Result<Moved, MoveError> {
        let state = self.state.as_ref().ok_or(MoveError::Real)?;
        let mut state = state.try_lock().map_err(|_| MoveError::Moving)?;
        let from = self.clock.now();
        if to < from {
            return Err(MoveError::Past { now: from });
        }
        let mut moved = Moved {
            from,
            now: from,
            to,
            is_done: false,
            steps: 0,
            changes: VecDeque::new(),
            events: VecDeque::new(),
            left_out: 0,
            unsettled: Vec::new(),
        };
        if state.settling_since.is_some_and(|since| since.elapsed() > SETTLE_LIMIT + CALL_LIMIT) {
            // a caller that did not come back
            state.settling_since = None;
        }
        if state.settling_since.is_none() {
            // what others did since the last call is not of this one
            state.skip_events();
            state.counts =
                self.parts.desired.snapshot().into_iter().map(|(key, count)| (key, count.replicas)).collect();
        }
        let call_over = Instant::now() + CALL_LIMIT;
        loop {
            match self.settle(&mut state, &mut moved, call_over).await {
                Rest::CallOver => break,
                Rest::GivenUp(what) => moved.unsettled.extend(what),
                Rest::Quiet => {}
            }
            let now = self.clock.now();
            if now >= to {
                moved.is_done = true;
                break;
            }
            if Instant::now() >= call_over {
                break;
            }
            let next = self.clock.next_due().map_or(to, |due| due.min(to));
            state.kept.before_move(next, to)?;
            self.clock.advance_to(next);
            moved.steps += 1;
        }
        if moved.is_done {
            state.kept.write(to)?;
            self.events_written().await;
        }
        state.look(&self.parts, self.clock.now(), &mut moved);
        moved.now = self.clock.now();
        Ok(moved)
    }

    /// Waits until the platform is at rest at the present instant.
    async fn settle(&self, state: &mut State, moved: &mut Moved, call_over: Instant) -> Rest {
        let since = *state.settling_since.get_or_insert_with(Instant::now);
        let (mut has_stirred, mut quiet_since) = (false, None::<Instant>);
        loop {
            has_stirred |= state.look(&self.parts, self.clock.now(), moved);
            let unrest = self.unrest(state);
            if unrest.is_empty() {
                let since = *quiet_since.get_or_insert_with(Instant::now);
                if !has_stirred || since.elapsed() >= LOOK_TWICE {
                    state.settling_since = None;
                    return Rest::Quiet;
                }
            } else {
                quiet_since = None;
                if since.elapsed() >= SETTLE_LIMIT {
                    state.settling_since = None;
                    let late = state.on_the_way.values().flatten().cloned().collect::<Vec<_>>();
                    state.given_up.extend(late);
                    tracing::warn!(now = %self.clock.now(), ?unrest, "the platform did not come to rest in time");
                    return Rest::GivenUp(unrest);
                }
                if Instant::now() >= call_over {
                    return Rest::CallOver;
                }
            }
            tokio::select! {
                () = self.clock.rested() => {}
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// What is not at rest, in words.
    fn unrest(&self, state: &State) -> Vec<String> {
        let mut unrest: Vec<String> = self.clock.unrest().into_iter().map(str::to_owned).collect();
        let parts = &self.parts;
        let boards = [
            (parts.desired.is_read(), "counts that were not taken up"),
            (parts.scaled.is_read(), "revisions that were not taken up"),
            (parts.jobs.is_read(), "jobs that were not taken up"),
            (parts.endpoints.is_read(), "endpoints that were not taken up"),
            (parts.drained.is_read(), "drained replicas that were not taken up"),
            (parts.runtime.observations().is_read(), "observations that were not taken up"),
        ];
        unrest.extend(boards.into_iter().filter(|(is_read, _)| !is_read).map(|(_, what)| what.to_owned()));
        let on_the_way = state.on_the_way.values().flatten().filter(|leg| !state.given_up.contains(leg));
        unrest.extend(on_the_way.map(|(replica, phase)| match phase {
            ReplicaPhase::Running => format!("replica {replica} is not ready yet"),
            other => format!("replica {replica} is {}", format!("{other:?}").to_lowercase()),
        }));
        unrest
    }

    async fn events_written(&self) {
        let written = async {
            while !self.parts.monitor.is_caught_up() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
        };
        if tokio::time::timeout(EVENTS_LIMIT, written).await.is_err() {
            tracing::warn!("system events are written more slowly than the clock is moved; some are told later");
        }
    }
}

impl State {
    /// Takes note of what changed; says whether anything of weight did.
    fn look(&mut self, parts: &Parts, now: Timestamp, moved: &mut Moved) -> bool {
        let observed = self.observed.take();
        let has_observed = !observed.is_empty();
        for key in observed {
            let replicas = parts.runtime.observations().get(&key).unwrap_or_default();
            let legs: BTreeSet<Leg> = replicas.iter().filter_map(on_the_way).collect();
            if legs.is_empty() {
                self.on_the_way.remove(&key);
            } else {
                self.on_the_way.insert(key, legs);
            }
        }
        if has_observed {
            let on_the_way = &self.on_the_way;
            self.given_up.retain(|leg| on_the_way.values().any(|legs| legs.contains(leg)));
        }
        let counted = self.desired.take();
        let has_counted = !counted.is_empty();
        for key in counted {
            let Some(count) = parts.desired.get(&key) else {
                self.counts.remove(&key);
                continue;
            };
            let from = self.counts.insert(key.clone(), count.replicas).unwrap_or(0);
            if from == count.replicas {
                continue;
            }
            let change = CountChange {
                at: now,
                app: key.app.name().to_owned(),
                revision: key.name.to_string(),
                from,
                to: count.replicas,
                reason: count.reason,
            };
            moved.left_out += push(&mut moved.changes, change);
        }
        loop {
            match self.events.try_recv() {
                Ok(event) => moved.left_out += push(&mut moved.events, event),
                Err(broadcast::error::TryRecvError::Lagged(lost)) => moved.left_out += lost,
                Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed) => break,
            }
        }
        has_observed || has_counted
    }

    fn skip_events(&mut self) {
        while !matches!(
            self.events.try_recv(),
            Err(broadcast::error::TryRecvError::Empty | broadcast::error::TryRecvError::Closed)
        ) {}
    }
}

/// Appends within the bound; gives how many were left out for it.
fn push<T>(told: &mut VecDeque<T>, one: T) -> u64 {
    let is_full = told.len() >= TOLD_MAX;
    if is_full {
        told.pop_front();
    }
    told.push_back(one);
    u64::from(is_full)
}

/// A replica that is not where it was ordered to be. One that waits for its next try after a crash is: that wait is real
/// time, and nobody knows how it ends.
fn on_the_way(replica: &ReplicaObservation) -> Option<Leg> {
    let is_on_the_way = match replica.phase {
        ReplicaPhase::Preparing | ReplicaPhase::Stopping | ReplicaPhase::Stopped => true,
        ReplicaPhase::Running => {
            let starts = |state: &ContainerState| !matches!(state, ContainerState::Waiting { until: Some(_), .. });
            let is_started = replica.containers.iter().all(|container| container.is_init || container.is_started);
            !replica.is_ready
                && (replica.ready_at.is_none() || !is_started)
                && replica.containers.iter().all(|container| starts(&container.state))
        }
        _ => false,
    };
    is_on_the_way.then(|| (replica.name.clone(), replica.phase))
}

#[cfg(test)]
mod tests;
