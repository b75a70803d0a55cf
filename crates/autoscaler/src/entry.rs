//! One revision: its configuration, state, newest readings and next tick.
//!
//! **Invariant:** `state` changes only with a decision, which is in the history then.

use std::sync::Arc;

use cove_model::{Scale, ScaleRuleKind};
use cove_scaling::measure::load_reading;
use cove_scaling::{
    Decision, DecisionRecord, Hold, Input, Reading, RuleKind, ScaleConfig, ScaleSettings, ScaleState, ScaledRevision,
    activate, cadence, decide,
};
use cove_traffic::RevisionLoad;
use jiff::{SignedDuration, Timestamp};

use crate::events::Subject;
use crate::history::History;

/// One active revision.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) subject: Subject,
    pub(crate) config: Arc<ScaleConfig>,
    pub(crate) state: ScaleState,
    pub(crate) history: History,
    /// The instant of its next tick; `None` while it sleeps at zero.
    pub(crate) next: Option<Timestamp>,
    scale: Scale,
    has_ingress: bool,
    /// Rules that nothing can read, with the scaler that is missing; by position.
    not_built: Vec<Option<Arc<str>>>,
    /// Instants of the cadence are multiples of a step from here.
    origin: Timestamp,
    ticked_at: Timestamp,
    readings: Vec<Reading>,
    arrivals_seen: u64,
    /// When `arrivals_seen` was read, unless the revision slept since.
    sampled_at: Option<Timestamp>,
}

impl Entry {
    /// An entry with the given state. Its cadence starts now: event rules are read at once, the others a step later.
    pub(crate) fn new(revision: &ScaledRevision, state: ScaleState, settings: &ScaleSettings, now: Timestamp) -> Self {
        let just_before = now.saturating_sub(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN);
        let mut entry = Self {
            subject: Subject { revision: revision.revision.clone(), environment: revision.environment.clone() },
            config: Arc::new(ScaleConfig::from_scale(&revision.scale, revision.has_ingress, settings)),
            state,
            history: History::default(),
            next: None,
            scale: revision.scale.clone(),
            has_ingress: revision.has_ingress,
            not_built: Vec::new(),
            origin: now,
            ticked_at: just_before,
            readings: Vec::new(),
            arrivals_seen: 0,
            sampled_at: None,
        };
        entry.forget_readings();
        entry.schedule(just_before);
        entry
    }

    /// Takes over what may change while a revision lives; says whether anything did.
    pub(crate) fn update(&mut self, revision: &ScaledRevision, settings: &ScaleSettings, now: Timestamp) -> bool {
        if self.scale == revision.scale && self.has_ingress == revision.has_ingress {
            return false;
        }
        self.scale = revision.scale.clone();
        self.has_ingress = revision.has_ingress;
        self.config = Arc::new(ScaleConfig::from_scale(&self.scale, self.has_ingress, settings));
        self.state.failures.clear();
        self.forget_readings();
        self.schedule(now);
        true
    }

    fn forget_readings(&mut self) {
        self.readings = self.config.rules.iter().map(|_| Reading::error("not read yet")).collect();
        self.not_built = self.scale.rules.iter().map(|rule| not_built(&rule.kind)).collect();
        self.not_built.resize(self.config.rules.len(), None);
    }

    /// Rules that cannot be read, with the missing scaler.
    pub(crate) fn unreadable(&self) -> impl Iterator<Item = (&str, &str)> {
        let rules = self.config.rules.iter().zip(&self.not_built);
        rules.filter_map(|(rule, scaler)| Some((&*rule.name, scaler.as_deref()?)))
    }

    /// Arrivals before this reading are history; those still open count as new.
    pub(crate) fn start_counting(&mut self, load: &RevisionLoad) {
        self.arrivals_seen = load.arrivals_total.saturating_sub(load.open);
    }

    /// Whether it waits for a request, and only for that.
    pub(crate) fn sleeps(&self) -> bool {
        self.state.current == 0 && self.config.sleeps_at_zero()
    }

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

    /// Reads the rules that are due and decides.
    pub(crate) fn tick(&mut self, now: Timestamp, load: &RevisionLoad, existing: Option<u32>) -> Arc<DecisionRecord> {
        self.read(now, load);
        let input = Input {
            now,
            readings: &self.readings,
            existing: existing.unwrap_or(self.state.current),
            in_flight: load.open,
            hold: Hold::None,
        };
        let decision = decide(&self.config, &self.state, &input);
        self.ticked_at = now;
        let record = self.take(decision);
        self.schedule(now);
        record
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
        for (rule, reading) in self.config.rules.iter().zip(&mut self.readings) {
            if matches!(rule.kind, RuleKind::Http | RuleKind::Tcp) {
                *reading = load_reading(0, load.open, settings.load_sampling);
            }
        }
        self.arrivals_seen = load.arrivals_total;
        self.sampled_at = Some(now);
        let long_ago = settings.cooldown_period.saturating_add(SignedDuration::from_secs(1));
        let ended = now.saturating_sub(long_ago).unwrap_or(Timestamp::MIN);
        self.state.last_active = self.state.last_active.map(|last| last.min(ended));
        let input = Input {
            now,
            readings: &self.readings,
            existing: existing.unwrap_or(self.state.current),
            in_flight: load.open,
            hold: Hold::None,
        };
        let record = self.take(decide(&self.config, &self.state, &input));
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
        self.ticked_at = self.ticked_at.min(now);
        self.sampled_at = None;
        self.schedule(now);
    }

    fn take(&mut self, decision: Decision) -> Arc<DecisionRecord> {
        self.state.apply(&self.config, &decision);
        Arc::new(DecisionRecord { config: Arc::clone(&self.config), decision })
    }

    fn read(&mut self, now: Timestamp, load: &RevisionLoad) {
        let settings = &self.config.settings;
        let mut load_read: Option<Reading> = None;
        for (index, rule) in self.config.rules.iter().enumerate() {
            if !cadence::was_due(settings, rule.kind, self.origin, self.ticked_at, now) {
                continue;
            }
            let scaler = self.not_built.get(index).and_then(Option::as_deref);
            self.readings[index] = match (rule.kind, scaler) {
                (RuleKind::Http | RuleKind::Tcp, _) => {
                    let (seen, sampled_at) = (self.arrivals_seen, self.sampled_at);
                    load_read.get_or_insert_with(|| read_load(settings, load, seen, sampled_at, now)).clone()
                }
                (_, Some(scaler)) => Reading::error(format!("scaler `{scaler}` is not built yet")),
                (RuleKind::Event | RuleKind::Cpu | RuleKind::Memory, None) => Reading::error("nothing reads this rule"),
            };
        }
        if load_read.is_some() {
            self.arrivals_seen = load.arrivals_total;
            self.sampled_at = Some(now);
        }
    }
}

/// Arrivals since the last sample; a late tick divides by the time that passed.
fn read_load(
    settings: &ScaleSettings,
    load: &RevisionLoad,
    seen: u64,
    sampled_at: Option<Timestamp>,
    now: Timestamp,
) -> Reading {
    let passed = sampled_at.map_or(SignedDuration::ZERO, |at| now.duration_since(at));
    // A counter below its last value was started anew: all of it is new.
    let arrived = load.arrivals_total.checked_sub(seen).unwrap_or(load.arrivals_total);
    load_reading(arrived, load.open, passed.max(settings.load_sampling))
}

fn not_built(kind: &ScaleRuleKind) -> Option<Arc<str>> {
    match kind {
        ScaleRuleKind::Http { .. } | ScaleRuleKind::Tcp { .. } => None,
        ScaleRuleKind::Custom { scaler, .. } => Some(scaler.as_str().into()),
        ScaleRuleKind::AzureQueue { .. } => Some("azure-queue".into()),
    }
}
