//! The world of one simulation: events on a heap, replicas with slots, a queue.
//!
//! **Invariant:** a request is worked on once, in the order of arrival; an open request is never cut.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use cove_model::ScaleMode;
use jiff::Timestamp;

use super::{Fleet, Outcome, Policy, Request, WaitPercentiles};
use crate::cadence::next_tick;
use crate::config::ScaleConfig;
use crate::decide::{Decision, activate, decide};
use crate::measure::load_reading;
use crate::reading::{Hold, Input, Reading};
use crate::state::ScaleState;

/// A turn of direction this soon after the change before it is a reversal.
const REVERSAL_MS: u64 = 300_000;
/// Cool-downs after which a world without progress ends.
const COOLDOWNS_MAX: u64 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Finish { replica: usize },
    Ready { replica: usize },
    Arrive { request: usize },
    Tick,
}

struct Replica {
    started_ms: u64,
    is_ready: bool,
    is_draining: bool,
    open: u32,
}

pub(super) struct World<'a> {
    trace: &'a [Request],
    fleet: &'a Fleet,
    policy: &'a Policy,
    config: ScaleConfig,
    state: ScaleState,
    events: BinaryHeap<Reverse<(u64, Event)>>,
    now_ms: u64,
    tick_at_ms: Option<u64>,
    replicas: Vec<Replica>,
    /// Replicas that are not gone, oldest first.
    alive: Vec<usize>,
    queue: VecDeque<usize>,
    /// Arrivals of the sampling window.
    recent: VecDeque<u64>,
    open: u64,
    /// Open and held requests times milliseconds, since the last tick.
    load_ms: u64,
    load_since_ms: u64,
    waits: Vec<u64>,
    outcome: Outcome,
    last_change: Option<(u64, bool)>,
    last_event_ms: u64,
}

impl<'a> World<'a> {
    pub(super) fn new(policy: &'a Policy, trace: &'a [Request], fleet: &'a Fleet) -> Self {
        let config = policy.config.clone();
        Self {
            trace,
            fleet,
            policy,
            state: ScaleState { seeded: true, ..ScaleState::default() },
            config,
            events: BinaryHeap::new(),
            now_ms: 0,
            tick_at_ms: None,
            replicas: Vec::new(),
            alive: Vec::new(),
            queue: VecDeque::new(),
            recent: VecDeque::new(),
            open: 0,
            load_ms: 0,
            load_since_ms: 0,
            waits: Vec::with_capacity(trace.len()),
            outcome: Outcome { requests: u64::try_from(trace.len()).unwrap_or(u64::MAX), ..Outcome::default() },
            last_change: None,
            last_event_ms: trace.last().map_or(0, |request| request.at_ms),
        }
    }

    pub(super) fn run(mut self, until_ms: u64) -> Outcome {
        self.arrive_next(0);
        if !self.config.sleeps_at_zero() {
            self.arm_tick();
        }
        let cooldown_ms = u64::try_from(self.config.settings.cooldown_period.as_millis()).unwrap_or(0);
        let end_ms = until_ms.max(self.last_event_ms).saturating_add((cooldown_ms + 1000) * COOLDOWNS_MAX);
        while let Some(Reverse((at_ms, event))) = self.events.pop() {
            let done = self.waits.len() == self.trace.len() && self.open == 0;
            if (done && at_ms > until_ms) || (at_ms > end_ms && self.open == 0) {
                break;
            }
            self.now_ms = at_ms;
            self.handle(event);
        }
        self.finish(until_ms)
    }

    fn finish(mut self, until_ms: u64) -> Outcome {
        self.now_ms = self.now_ms.max(until_ms);
        for index in self.alive.clone() {
            self.remove(index);
        }
        let unanswered = self.trace.len() - self.waits.len();
        let queued: Vec<usize> = self.queue.drain(..).collect();
        debug_assert_eq!(unanswered, queued.len(), "what was not answered is still held");
        for request in queued {
            self.waited(request);
        }
        self.outcome.wait_ms = WaitPercentiles::of(self.waits);
        self.outcome
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { request } => self.arrive(request),
            Event::Finish { replica } => {
                self.count_load();
                self.open -= 1;
                self.replicas[replica].open -= 1;
                if self.replicas[replica].is_draining && self.replicas[replica].open == 0 {
                    self.remove(replica);
                }
                self.dispatch();
            }
            Event::Ready { replica } => {
                self.replicas[replica].is_ready = true;
                self.dispatch();
            }
            Event::Tick => self.tick(),
        }
    }

    fn arrive_next(&mut self, request: usize) {
        if let Some(next) = self.trace.get(request) {
            self.events.push(Reverse((next.at_ms, Event::Arrive { request })));
        }
    }

    fn arrive(&mut self, request: usize) {
        self.count_load();
        self.arrive_next(request + 1);
        self.recent.push_back(self.now_ms);
        if !self.alive.iter().any(|at| self.replicas[*at].is_ready && !self.replicas[*at].is_draining) {
            self.outcome.cold_requests += 1;
        }
        self.queue.push_back(request);
        if let Some(decision) = activate(&self.config, &self.state, timestamp(self.now_ms), self.load()) {
            self.apply(&decision);
            if self.tick_at_ms.is_none() {
                self.arm_tick();
            }
        }
        self.dispatch();
    }

    /// Open and held requests.
    fn load(&self) -> u64 {
        self.open + u64::try_from(self.queue.len()).unwrap_or(u64::MAX)
    }

    fn count_load(&mut self) {
        let passed_ms = self.now_ms - self.load_since_ms;
        self.load_ms += self.load() * passed_ms;
        let least = self.config.min_replicas;
        if self.load() == 0 && least > 0 && self.state.current == least {
            self.outcome.idle_ms += passed_ms * u64::from(least);
        }
        self.load_since_ms = self.now_ms;
    }

    fn arm_tick(&mut self) {
        let next = next_tick(&self.config, Timestamp::UNIX_EPOCH, timestamp(self.now_ms));
        self.tick_at_ms = next.and_then(|at| u64::try_from(at.as_millisecond()).ok());
        if let Some(at_ms) = self.tick_at_ms {
            self.events.push(Reverse((at_ms, Event::Tick)));
        }
    }

    fn tick(&mut self) {
        let last_ms = self.load_since_tick();
        let reading = self.reading(last_ms);
        let readings: Vec<Reading> = self
            .config
            .rules
            .iter()
            .map(|rule| if rule.kind.is_load() { reading.clone() } else { Reading::error("not in the trace") })
            .collect();
        let input = Input {
            now: timestamp(self.now_ms),
            readings: &readings,
            existing: self.existing(),
            in_flight: self.load(),
            hold: Hold::None,
        };
        let decision = decide(&self.config, &self.state, &input);
        self.apply(&decision);
        self.tick_at_ms = None;
        if self.state.current > 0 || !self.config.sleeps_at_zero() {
            self.arm_tick();
        }
        self.dispatch();
    }

    /// The mean of open and held requests since the last tick, in thousandths.
    fn load_since_tick(&mut self) -> u64 {
        self.count_load();
        let step_ms = u64::try_from(self.config.settings.load_sampling.as_millis()).unwrap_or(1).max(1);
        let mean = self.load_ms.saturating_mul(1000) / step_ms;
        self.load_ms = 0;
        mean
    }

    fn reading(&mut self, mean_milli: u64) -> Reading {
        let window = self.config.settings.load_sampling;
        let window_ms = u64::try_from(window.as_millis()).unwrap_or(0);
        while self.recent.front().is_some_and(|at| at.saturating_add(window_ms) < self.now_ms) {
            self.recent.pop_front();
        }
        match self.policy.mode {
            ScaleMode::Aca => {
                // Arrivals of this very instant belong to the next window.
                let arrived = self.recent.iter().filter(|at| **at < self.now_ms).count();
                load_reading(u64::try_from(arrived).unwrap_or(u64::MAX), self.load(), window)
            }
            ScaleMode::Fast => self.policy.fast.open_reading(self.load(), mean_milli),
        }
    }

    fn apply(&mut self, decision: &Decision) {
        self.count_load();
        self.outcome.decisions += 1;
        self.state.apply(&self.config, decision);
        if decision.changes() {
            self.outcome.counts.push((self.now_ms, decision.new));
            let up = decision.new > decision.current;
            let turned = self.last_change.is_some_and(|(at, was)| was != up && self.now_ms - at <= REVERSAL_MS);
            self.outcome.reversals += u64::from(turned);
            self.last_change = Some((self.now_ms, up));
        }
        while self.existing() < self.state.current {
            self.start();
        }
        while self.existing() > self.state.current {
            if !self.stop_one() {
                break;
            }
        }
    }

    fn existing(&self) -> u32 {
        let there = self.alive.iter().filter(|at| !self.replicas[**at].is_draining).count();
        u32::try_from(there).unwrap_or(u32::MAX)
    }

    fn start(&mut self) {
        let ready_ms = self.now_ms.saturating_add(self.fleet.cold_start_ms);
        let replica = Replica { started_ms: self.now_ms, is_ready: false, is_draining: false, open: 0 };
        self.alive.push(self.replicas.len());
        self.replicas.push(replica);
        self.events.push(Reverse((ready_ms, Event::Ready { replica: self.replicas.len() - 1 })));
        self.outcome.starts += 1;
        let there = u32::try_from(self.alive.len()).unwrap_or(u32::MAX);
        self.outcome.most_replicas = self.outcome.most_replicas.max(there);
    }

    /// Takes the replica with the fewest open requests out, the newest of several.
    fn stop_one(&mut self) -> bool {
        let here = self.alive.iter().filter(|at| !self.replicas[**at].is_draining);
        let open = |at: &usize| (*at, self.replicas[*at].open);
        let Some((index, open)) = here.map(open).min_by_key(|(index, open)| (*open, Reverse(*index))) else {
            return false;
        };
        self.replicas[index].is_draining = true;
        if open == 0 {
            self.remove(index);
        }
        true
    }

    fn remove(&mut self, index: usize) {
        self.alive.retain(|at| *at != index);
        self.outcome.replica_ms += self.now_ms - self.replicas[index].started_ms;
    }

    /// Gives held requests to free slots, of the oldest replica first.
    fn dispatch(&mut self) {
        while let Some(&request) = self.queue.front() {
            let slots = self.fleet.slots.max(1);
            let free = |at: &&usize| {
                let replica = &self.replicas[**at];
                replica.is_ready && !replica.is_draining && replica.open < slots
            };
            let Some(&index) = self.alive.iter().find(free) else { return };
            self.queue.pop_front();
            self.replicas[index].open += 1;
            self.open += 1;
            self.waited(request);
            let done_ms = self.now_ms.saturating_add(self.trace[request].duration_ms);
            self.events.push(Reverse((done_ms, Event::Finish { replica: index })));
        }
    }

    fn waited(&mut self, request: usize) {
        let waited_ms = self.now_ms - self.trace[request].at_ms;
        self.outcome.violations += u64::from(waited_ms > self.fleet.wait_limit_ms);
        self.waits.push(waited_ms);
    }
}

fn timestamp(at_ms: u64) -> Timestamp {
    i64::try_from(at_ms).ok().and_then(|at| Timestamp::from_millisecond(at).ok()).unwrap_or(Timestamp::MAX)
}
