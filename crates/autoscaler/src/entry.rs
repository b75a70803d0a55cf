//! One revision: its configuration, state, newest readings and next tick.
//!
//! A tick has up to three parts: [`Entry::take_due`] says what is to be read, [`Entry::observe`] takes what was read at
//! once (load, cpu and memory), [`Entry::decide`] decides, after the event rules have answered where some were due.
//!
//! **Invariant:** `state` changes only with a decision, which is in the history then.
//! **Invariant:** a decision of a tick carries the tick's instant of the cadence, not that of the last answer, and never
//! lies before an earlier one.

mod due;
mod rule;

use std::sync::Arc;

use cove_model::{IdleState, ScaleMode, SystemEvent};
use cove_scaling::fast::FastSettings;
use cove_scaling::measure::load_reading;
use cove_scaling::{
    Decision, DecisionRecord, Hold, Input, Reading, RuleKind, ScaleConfig, ScaleState, ScaledRevision, activate,
    decide, effective,
};
use cove_traffic::RevisionLoad;
use jiff::{SignedDuration, Timestamp};

pub(crate) use self::due::Due;
use self::rule::RuleState;
use crate::config::Config;
use crate::events::Subject;
use crate::history::History;
use crate::reader::{Read, Reader};
use crate::sources::ReplicaUsage;
use crate::usage::Meter;

/// One active revision.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) subject: Subject,
    pub(crate) config: Arc<ScaleConfig>,
    pub(crate) state: ScaleState,
    pub(crate) history: History,
    /// The instant of its next tick; `None` while it sleeps at zero.
    pub(crate) next: Option<Timestamp>,
    revision: Arc<ScaledRevision>,
    mode: ScaleMode,
    rules: Vec<RuleState>,
    /// Instants of the cadence are multiples of a step from here.
    origin: Timestamp,
    /// Since when arrivals are counted: the first window is over a sampling step later.
    counting_since: Timestamp,
    ticked_at: Timestamp,
    decided_at: Timestamp,
    /// Event rules are being asked; until they have answered none is asked again.
    is_polling: bool,
    /// A source said by itself that something changed.
    is_pushed: bool,
    arrivals_seen: u64,
    open_us_seen: u64,
    /// When the load was read, unless the revision slept since.
    sampled_at: Option<Timestamp>,
    meter: Option<Box<Meter>>,
    saved: Saved,
}

/// What was written down last of a state.
#[derive(Clone, Copy, Debug, Default)]
struct Saved {
    last_active: Option<Timestamp>,
    is_current: bool,
}

impl Entry {
    /// An entry with the given state, whose cadence starts at `origin`: event rules are read then, the others a step later.
    pub(crate) fn new(
        revision: &Arc<ScaledRevision>,
        state: ScaleState,
        config: &Config,
        origin: Timestamp,
        now: Timestamp,
    ) -> Self {
        let just_before = now.saturating_sub(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN);
        let effective = effective(&revision.scale, &config.defaults());
        let scale = ScaleConfig::from_effective(&revision.scale, revision.has_ingress, &effective);
        let mut entry = Self {
            subject: Subject { revision: revision.revision.clone(), environment: revision.environment.clone() },
            config: Arc::new(scale),
            state,
            history: History::default(),
            next: None,
            revision: Arc::clone(revision),
            mode: effective.mode,
            rules: Vec::new(),
            origin,
            counting_since: now,
            ticked_at: just_before,
            decided_at: just_before,
            is_polling: false,
            is_pushed: false,
            arrivals_seen: 0,
            open_us_seen: 0,
            sampled_at: None,
            meter: None,
            saved: Saved::default(),
        };
        entry.forget_readings();
        entry.schedule(just_before);
        entry
    }

    /// Takes over what may change while a revision lives; says whether anything did.
    pub(crate) fn update(&mut self, revision: &Arc<ScaledRevision>, config: &Config, now: Timestamp) -> bool {
        let before = std::mem::replace(&mut self.revision, Arc::clone(revision));
        if before.scale == revision.scale && before.has_ingress == revision.has_ingress {
            return false;
        }
        let effective = effective(&revision.scale, &config.defaults());
        self.config = Arc::new(ScaleConfig::from_effective(&revision.scale, revision.has_ingress, &effective));
        self.mode = effective.mode;
        self.state.failures.clear();
        self.forget_readings();
        self.is_polling = false;
        self.schedule(now);
        true
    }

    fn forget_readings(&mut self) {
        let of_rule = |index| RuleState::new(Reader::new(&self.revision, index), self.state.failures.get(index));
        self.rules = (0..self.config.rules.len()).map(of_rule).collect();
        self.meter = self.config.rules.iter().any(|rule| rule.kind.is_resource()).then(Box::default);
    }

    /// Arrivals before this reading are history; those still open count as new.
    pub(crate) fn start_counting(&mut self, load: &RevisionLoad) {
        self.arrivals_seen = load.arrivals_total.saturating_sub(load.open);
        self.open_us_seen = load.open_us_total;
    }

    /// What its last replica does at zero, as its template asks.
    pub(crate) fn idle(&self) -> IdleState {
        self.revision.scale.idle
    }

    /// Whether it waits for a request, and only for that.
    pub(crate) fn sleeps(&self) -> bool {
        self.state.current == 0 && self.config.sleeps_at_zero()
    }

    /// Takes the readings of load and of the replicas' use at a tick.
    pub(crate) fn observe(&mut self, due: &Due, load: &RevisionLoad, usage: Vec<ReplicaUsage>, fast: &FastSettings) {
        if due.load {
            self.observe_load(due.now, load, fast);
        }
        if due.usage
            && let Some(meter) = &mut self.meter
        {
            let look = meter.look(usage, due.now);
            for (index, rule) in self.config.rules.iter().enumerate().filter(|(_, rule)| rule.kind.is_resource()) {
                let (Some(given), Some(state)) = (self.revision.scale.rules.get(index), self.rules.get_mut(index))
                else {
                    continue;
                };
                let reading = look.reading(&self.config.settings, rule.kind, given, self.state.current);
                state.take(reading, !look.any_runs());
            }
        }
    }

    fn observe_load(&mut self, now: Timestamp, load: &RevisionLoad, fast: &FastSettings) {
        let settings = &self.config.settings;
        let passed = self.sampled_at.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
        let reading = match self.mode {
            ScaleMode::Aca => {
                // A counter below its last value was started anew: all of it is new.
                let arrived = load.arrivals_total.checked_sub(self.arrivals_seen).unwrap_or(load.arrivals_total);
                // A late tick divides by the time that passed.
                load_reading(arrived, load.open, passed.max(settings.load_sampling))
            }
            ScaleMode::Fast => {
                let open_us = load.open_us_total.checked_sub(self.open_us_seen).unwrap_or(load.open_us_total);
                let passed_us = u64::try_from(passed.as_micros()).unwrap_or(0);
                let mean_milli = open_us.saturating_mul(1000).checked_div(passed_us).unwrap_or(0);
                fast.open_reading(load.open, mean_milli)
            }
        };
        for (rule, state) in self.config.rules.iter().zip(&mut self.rules) {
            if rule.kind.is_load() {
                state.take(reading.clone(), false);
            }
        }
        self.arrivals_seen = load.arrivals_total;
        self.open_us_seen = load.open_us_total;
        self.sampled_at = Some(now);
    }

    /// The constants of the fast mode that are in force for it.
    pub(crate) fn fast(&self, config: &Config) -> FastSettings {
        let headroom_percent = effective(&self.revision.scale, &config.defaults()).headroom_percent;
        FastSettings { headroom_percent, ..config.fast.clone() }
    }

    /// Whether it needs [`Entry::fast`].
    pub(crate) fn is_fast(&self) -> bool {
        self.mode == ScaleMode::Fast
    }

    /// Takes the answers of event rules; says whether any was of a rule that is still there.
    pub(crate) fn take_answers(&mut self, answers: Vec<(usize, Arc<Reader>, Read)>) -> bool {
        let mut was_asked = false;
        for (index, reader, read) in answers {
            let Some(state) = self.rules.get_mut(index).filter(|state| state.is_read_by(&reader)) else { continue };
            state.take(read.reading, false);
            was_asked = true;
            let target_milli = read.target.map(cove_scaling::milli);
            if let (Some(rule), Some(target_milli)) = (self.config.rules.get(index), target_milli)
                && rule.target_milli != target_milli
            {
                // A target that is in the environment or a secret is known only now.
                Arc::make_mut(&mut self.config).rules[index].target_milli = target_milli;
            }
        }
        self.is_polling &= !was_asked;
        was_asked
    }

    /// Nobody will answer: the readings were given up.
    pub(crate) fn end_polling(&mut self) {
        self.is_polling = false;
    }

    /// Decides at `at` with the newest readings; also gives what is to be told of the rules.
    pub(crate) fn decide(
        &mut self,
        at: Timestamp,
        load: &RevisionLoad,
        existing: Option<u32>,
    ) -> (Arc<DecisionRecord>, Vec<SystemEvent>) {
        let at = at.max(self.decided_at);
        self.discount_old_failures();
        let readings: Vec<Reading> = self.rules.iter().map(|rule| rule.reading.clone()).collect();
        let input = Input {
            now: at,
            readings: &readings,
            existing: existing.unwrap_or(self.state.current),
            in_flight: load.open,
            hold: Hold::None,
        };
        let decision = decide(&self.config, &self.state, &input);
        let was_zero = self.state.current == 0;
        let record = self.take(decision);
        let events = self.news(at, was_zero);
        (record, events)
    }

    /// A failed reading counts once, however many decisions are taken with it.
    fn discount_old_failures(&mut self) {
        for (failures, rule) in self.state.failures.iter_mut().zip(&self.rules) {
            if !rule.is_fresh {
                *failures = failures.saturating_sub(1);
            }
        }
    }

    /// What is to be told of the rules that were read since the last decision.
    fn news(&mut self, at: Timestamp, was_zero: bool) -> Vec<SystemEvent> {
        let mut events = Vec::new();
        for (index, rule) in self.rules.iter_mut().enumerate() {
            if rule.is_unread()
                && let Some(failures) = self.state.failures.get_mut(index)
            {
                *failures = 0;
            }
            let failures = self.state.failures.get(index).copied().unwrap_or(0);
            let Some(given) = self.config.rules.get(index) else { continue };
            let excused = rule.has_excuse || (was_zero && given.kind.is_resource());
            if let Some(news) = rule.news(at, failures, given.kind.is_resource(), excused) {
                events.push(self.subject.rule_news(at, given, news, &rule.reading));
            }
        }
        events
    }

    /// Decides as if the cool-down had just ended and nothing had arrived since: what a test or a benchmark asks for.
    /// Open requests still keep it running.
    pub(crate) fn end_cooldown(
        &mut self,
        now: Timestamp,
        load: &RevisionLoad,
        existing: Option<u32>,
    ) -> Arc<DecisionRecord> {
        let settings = &self.config.settings;
        for (rule, state) in self.config.rules.iter().zip(&mut self.rules) {
            if rule.kind.is_load() {
                state.take(load_reading(0, load.open, settings.load_sampling), false);
            }
        }
        self.arrivals_seen = load.arrivals_total;
        self.open_us_seen = load.open_us_total;
        self.sampled_at = Some(now);
        let long_ago = settings.cooldown_period.saturating_add(SignedDuration::from_secs(1));
        let ended = now.saturating_sub(long_ago).unwrap_or(Timestamp::MIN);
        self.state.last_active = self.state.last_active.map(|last| last.min(ended));
        let (record, _) = self.decide(now, load, existing);
        self.schedule(now);
        record
    }

    /// Activates it because a request arrived; `None` where that changes nothing.
    pub(crate) fn activate(&mut self, now: Timestamp, open: u64) -> Option<Arc<DecisionRecord>> {
        let decision = activate(&self.config, &self.state, now, open)?;
        let record = self.take(decision);
        self.schedule(now);
        Some(record)
    }

    /// The clock was set back: nothing may lie in its future.
    pub(crate) fn clock_set_back(&mut self, now: Timestamp) {
        self.state.clock_set_back(now);
        self.origin = self.origin.min(now);
        self.counting_since = self.counting_since.min(now);
        self.ticked_at = self.ticked_at.min(now);
        self.decided_at = self.decided_at.min(now);
        self.sampled_at = None;
        self.saved.last_active = self.saved.last_active.map(|last| last.min(now));
        self.rules.iter_mut().for_each(|rule| rule.health.clock_set_back(now));
        self.schedule(now);
    }

    fn take(&mut self, decision: Decision) -> Arc<DecisionRecord> {
        self.decided_at = decision.at;
        self.state.apply(&self.config, &decision);
        Arc::new(DecisionRecord { config: Arc::clone(&self.config), decision })
    }

    /// Whether the state must be written down now: after a crash a count, a failure that people know of, or half a
    /// minute of activity would be missing. The window needs no writing: a start records the count as a proposal.
    pub(crate) fn must_save(&mut self, decision: &Decision) -> bool {
        const ACTIVE_STEP: SignedDuration = SignedDuration::from_secs(30);
        let moved = match (self.saved.last_active, self.state.last_active) {
            (Some(saved), Some(last)) => last.duration_since(saved) >= ACTIVE_STEP,
            (saved, last) => saved != last,
        };
        let failures = |rule: &cove_scaling::RuleOutcome| rule.failures == 1 && rule.proposal.is_none();
        let must = decision.changes() || moved || decision.rules.iter().any(failures);
        self.saved.is_current = must;
        if must {
            self.saved.last_active = self.state.last_active;
        }
        must
    }

    /// Whether something of the state is not written down; asked when the server stops.
    pub(crate) fn is_unsaved(&self) -> bool {
        !self.saved.is_current
    }

    /// Whether any rule is an event rule.
    pub(crate) fn has_event_rules(&self) -> bool {
        self.config.rules.iter().any(|rule| rule.kind == RuleKind::Event)
    }
}
