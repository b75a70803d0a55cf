//! What a tick has to read.

use std::sync::Arc;
use std::time::Duration;

use cove_model::ScaleMode;
use cove_scaling::{RuleKind, cadence};
use jiff::{SignedDuration, Timestamp};

use super::Entry;
use crate::reader::Reader;

/// A tick that is later than this is decided at its own time, not at that of the cadence.
const LATE: SignedDuration = SignedDuration::from_secs(1);

/// What is to be read at one tick.
#[derive(Debug)]
pub(crate) struct Due {
    /// The time.
    pub(crate) now: Timestamp,
    /// The instant of the cadence.
    pub(crate) at: Timestamp,
    /// Http and tcp rules.
    pub(crate) load: bool,
    /// Cpu and memory rules.
    pub(crate) usage: bool,
    /// Event rules.
    pub(crate) readers: Vec<(usize, Arc<Reader>)>,
    /// Longest that they may take.
    pub(crate) deadline: Duration,
    /// Whether a decision is taken without waiting for the event rules.
    pub(crate) decides_now: bool,
    /// Whether one is taken when they have answered.
    pub(crate) decides_then: bool,
}

impl Entry {
    /// Sets the next tick: the cadence's first instant after `after`, or none while it sleeps.
    pub(crate) fn schedule(&mut self, after: Timestamp) {
        self.next = if self.sleeps() {
            self.sampled_at = None;
            None
        } else {
            // A revision without rules still has limits and a cool-down to follow.
            cadence::next_tick(&self.config, self.origin, after)
                .or_else(|| cadence::next_due(&self.config.settings, RuleKind::Event, self.origin, after))
        };
    }

    /// A source says that something changed: its revision is read at once.
    pub(crate) fn push(&mut self, now: Timestamp) {
        self.is_pushed = true;
        self.next = Some(self.next.map_or(now, |next| next.min(now)));
    }

    /// Whether a source said something that was not followed yet.
    pub(crate) fn is_pushed(&self) -> bool {
        self.is_pushed
    }

    /// What is due at `now`; the next tick is set.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Due {
        let after = std::mem::replace(&mut self.ticked_at, now);
        let settings = &self.config.settings;
        let became_due = |kind| cadence::was_due(settings, kind, self.origin, after, now);
        let has = |is: fn(RuleKind) -> bool| self.config.rules.iter().any(|rule| is(rule.kind));
        let has_window = now.duration_since(self.counting_since) >= cadence::step(settings, RuleKind::Http);
        let load = has(RuleKind::is_load) && became_due(RuleKind::Http) && has_window;
        let usage = has(RuleKind::is_resource) && became_due(RuleKind::Cpu);
        let is_polled = self.has_event_rules() && became_due(RuleKind::Event);
        // while event rules are being asked it waits for their answers
        let is_pushed = !self.is_polling && std::mem::take(&mut self.is_pushed);
        let mut readers = Vec::new();
        if (is_polled || is_pushed) && !self.is_polling {
            let all = self.rules.iter().enumerate();
            readers.extend(all.filter_map(|(index, rule)| Some((index, Arc::clone(rule.reader.as_ref()?)))));
        }
        self.is_polling |= !readers.is_empty();
        let waits = !readers.is_empty() && is_polled && self.mode == ScaleMode::Aca;
        let due = Due {
            now,
            at: self.instant(load, usage, is_polled, now),
            load,
            usage,
            decides_now: (load || usage || self.config.rules.is_empty()) && !waits,
            // A push starts what is at zero; between the polls of what runs it changes nothing.
            decides_then: is_polled || self.state.current == 0,
            readers,
            deadline: self.config.settings.read_deadline.unsigned_abs(),
        };
        self.schedule(now);
        due
    }

    /// The newest instant of the cadence that is due, unless it is long past.
    fn instant(&self, load: bool, usage: bool, event: bool, now: Timestamp) -> Timestamp {
        let kinds = [(load, RuleKind::Http), (usage, RuleKind::Cpu), (event, RuleKind::Event)];
        let newest = |kind| {
            let step = cadence::step(&self.config.settings, kind);
            let passed = now.duration_since(self.origin).as_nanos().rem_euclid(step.as_nanos().max(1));
            let passed = SignedDuration::try_from(Duration::from_nanos(u64::try_from(passed).ok()?)).ok()?;
            now.checked_sub(passed).ok()
        };
        let instants = kinds.into_iter().filter(|(is_due, _)| *is_due).filter_map(|(_, kind)| newest(kind));
        instants.max().filter(|at| now.duration_since(*at) <= LATE).unwrap_or(now)
    }
}
