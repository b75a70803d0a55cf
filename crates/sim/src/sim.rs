//! The event heap and the clock.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use cove_reconcile::Settings;
use cove_scaling::ScaleSettings;

use crate::{
    app::App,
    invariants::{Invariant, Mutation, Violation},
    random::Random,
};

/// What goes wrong in the world, and how often.
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// Mean life of a replica until it crashes, in seconds; 0 = never.
    pub crash_mean_secs: f64,
    /// Part of the observations that do not arrive; a look at everything every 10 s brings them.
    pub observations_lost: f64,
    /// Longest delay of an observation in milliseconds.
    pub observation_delay_ms: u64,
    /// Part of the requests that take minutes.
    pub long_requests: f64,
    /// Slots per revision.
    pub slots: u32,
}

impl Default for Faults {
    fn default() -> Self {
        Self { crash_mean_secs: 0.0, observations_lost: 0.0, observation_delay_ms: 2, long_requests: 0.0, slots: 1 }
    }
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Events.
    pub events: u64,
    /// Plans.
    pub plans: u64,
    /// Decisions of the autoscaler.
    pub decisions: u64,
    /// Requests.
    pub arrived: u64,
    /// Answered by a replica.
    pub answered: u64,
    /// Held on their way.
    pub held: u64,
    /// Held for too long.
    pub timed_out: u64,
    /// Refused because the app is stopped, failed or gone.
    pub refused: u64,
    /// Cut because a replica crashed or the server was killed.
    pub cut_by_fault: u64,
    /// Cut because they outlived drain and grace period.
    pub cut_after_grace: u64,
    /// Replicas started.
    pub starts: u64,
    /// Replicas frozen.
    pub freezes: u64,
}

/// Something that happens at an instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Event {
    Arrive { app: usize, count: u32 },
    Finish { app: usize, rev: usize, connections: u64 },
    Deadline { app: usize, rev: usize },
    Host { app: usize, rev: usize, epoch: u64, what: HostEvent },
    Pulled { app: usize, rev: usize },
    Observe { app: usize, rev: usize },
    Tick { app: usize, rev: usize },
    Wake { app: usize },
    Deploy { app: usize },
    Chaos,
}

/// Something that happens to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HostEvent {
    Prepared,
    Ready,
    Crash,
    StopEnds,
}

/// The world.
#[derive(Clone, Debug)]
pub struct Sim {
    pub(crate) now_ms: u64,
    heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    pub(crate) random: Random,
    pub(crate) apps: Vec<App>,
    pub(crate) settings: Settings,
    pub(crate) scaling: ScaleSettings,
    pub(crate) faults: Faults,
    pub(crate) mutation: Mutation,
    pub(crate) stats: Stats,
    pub(crate) violations: Vec<Violation>,
    pub(crate) next_epoch: u64,
    /// Servers that ran so far.
    pub(crate) servers: u64,
    /// Mean time between deploys of an app and between chaos, in milliseconds; 0 = none.
    pub(crate) deploy_mean_ms: f64,
    pub(crate) chaos_mean_ms: f64,
    /// Lines of what happened, when asked for.
    pub(crate) log: Option<Vec<String>>,
    /// Apps to plan after this event.
    pub(crate) dirty: VecDeque<usize>,
}

impl Sim {
    /// An empty world.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            now_ms: 0,
            heap: BinaryHeap::new(),
            sequence: 0,
            random: Random::new(seed),
            apps: Vec::new(),
            settings: Settings::default(),
            scaling: ScaleSettings::default(),
            faults: Faults::default(),
            mutation: Mutation::None,
            stats: Stats::default(),
            violations: Vec::new(),
            next_epoch: 0,
            servers: 1,
            deploy_mean_ms: 0.0,
            chaos_mean_ms: 0.0,
            log: None,
            dirty: VecDeque::new(),
        }
    }

    /// Breaks the platform on purpose.
    #[must_use]
    pub fn with_mutation(mut self, mutation: Mutation) -> Self {
        self.mutation = mutation;
        self
    }

    /// Keeps lines of what happens from now on.
    #[must_use]
    pub fn with_log(mut self) -> Self {
        self.log = Some(Vec::new());
        self
    }

    /// The lines kept.
    #[must_use]
    pub fn log(&self) -> &[String] {
        self.log.as_deref().unwrap_or_default()
    }

    /// What happened so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Broken promises, oldest first.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// Milliseconds since the world began.
    #[must_use]
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// Runs for a while; ends early at the first violation.
    pub fn advance(&mut self, span_ms: u64) {
        let end = self.now_ms + span_ms;
        while self.violations.is_empty()
            && let Some(Reverse((at, ..))) = self.heap.peek()
            && *at <= end
            && let Some(Reverse((at, _, event))) = self.heap.pop()
        {
            self.now_ms = at;
            self.stats.events += 1;
            self.happen(event);
            self.plan_dirty();
        }
        if self.violations.is_empty() {
            self.now_ms = end;
            self.check_account();
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Arrive { app, count } => self.arrive(app, count),
            Event::Finish { app, rev, connections } => self.finish(app, rev, connections),
            Event::Deadline { app, rev } => self.deadline(app, rev),
            Event::Host { app, rev, epoch, what } => self.host(app, rev, epoch, what),
            Event::Pulled { app, rev } => self.pulled(app, rev),
            Event::Observe { app, rev } => self.observe(app, rev),
            Event::Tick { app, rev } => self.tick(app, rev),
            Event::Wake { app } => {
                if self.apps[app].wake_ms == Some(self.now_ms) {
                    self.apps[app].wake_ms = None;
                    self.dirty.push_back(app);
                }
            }
            Event::Deploy { app } => self.random_write(app),
            Event::Chaos => self.chaos(),
        }
    }

    pub(crate) fn at(&mut self, at_ms: u64, event: Event) {
        self.sequence += 1;
        self.heap.push(Reverse((at_ms.max(self.now_ms), self.sequence, event)));
    }

    pub(crate) fn after(&mut self, span_ms: u64, event: Event) {
        self.at(self.now_ms + span_ms, event);
    }

    pub(crate) fn epoch(&mut self) -> u64 {
        self.next_epoch += 1;
        self.next_epoch
    }

    pub(crate) fn violated(&mut self, invariant: Invariant, what: String) {
        let violation = Violation { invariant, at_ms: self.now_ms, what };
        self.say(|| format!("VIOLATED {violation}"));
        self.violations.push(violation);
    }

    pub(crate) fn say(&mut self, line: impl FnOnce() -> String) {
        let now_ms = self.now_ms;
        if let Some(log) = &mut self.log {
            log.push(format!("{:>8}.{:03} {}", now_ms / 1000, now_ms % 1000, line()));
        }
    }

    /// Every request is somewhere.
    fn check_account(&mut self) {
        let waiting: usize = self.apps.iter().flat_map(|app| &app.revisions).map(|rev| rev.held.len()).sum();
        let open: u64 = self.apps.iter().flat_map(|app| &app.revisions).map(|rev| rev.open).sum();
        let s = self.stats;
        let known = s.answered + s.timed_out + s.refused + s.cut_by_fault + s.cut_after_grace + open;
        let known = known + u64::try_from(waiting).unwrap_or(u64::MAX);
        if known != s.arrived {
            let what = format!("{} requests arrived, {known} are accounted for", s.arrived);
            self.violated(Invariant::HeldRequestAnsweredOr504, what);
        }
        let late = self.now_ms.saturating_sub(crate::ingress::HOLD_MAX_MS);
        let held = self.apps.iter().flat_map(|app| &app.revisions).filter_map(|rev| rev.held.front());
        if held.min().is_some_and(|oldest| *oldest < late) {
            self.violated(Invariant::HeldRequestAnsweredOr504, "a request is held for longer than 240 s".to_owned());
        }
    }
}
