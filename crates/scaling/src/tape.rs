//! Decisions of one revision as bytes: each as its difference from what the one before it let expect.
//!
//! A revision that idles takes the same decision again and again; such a decision is only its instant, and a run of them
//! is one entry. Instants are kept to the nanosecond, readings as they were, so that each decision can be taken again.
//! What is expected follows from the decision before it, never from the rules of scaling: bytes keep their meaning when
//! those change.
//!
//! **Invariant:** [`Reader`] gives back exactly what [`Writer`] was given, in its order.
//! **Invariant:** reading is total: damaged bytes give [`Damaged`], never a panic or an absurd allocation.

mod bytes;
mod fields;

use std::sync::Arc;

use jiff::Timestamp;

use crate::RuleOutcome;
use crate::config::ScaleConfig;
use crate::decide::{Decision, Reason};
use crate::reading::{Hold, Reading};
use crate::record::DecisionRecord;
use bytes::{Source, put_signed};

/// Bytes of a run after which it is ended; about a day of decisions every 30 s.
const RUN_BYTES_MAX: usize = 8 * 1024;

/// One entry of a tape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry<'a> {
    /// The configuration of the decisions that follow, as JSON.
    Config(&'a [u8]),
    /// One decision.
    One(&'a [u8]),
    /// Decisions as the one before them.
    Run(&'a [u8]),
}

/// Bytes that no writer wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the recording is damaged: {0}")]
pub struct Damaged(&'static str);

/// Writes one revision's tape.
#[derive(Debug, Default)]
pub struct Writer {
    config: Option<Arc<ScaleConfig>>,
    last: Option<Decision>,
    last_step_nanos: i64,
    run: Vec<u8>,
    run_since: Option<Timestamp>,
}

/// Reads one revision's tape.
#[derive(Debug, Default)]
pub struct Reader {
    config: Option<Arc<ScaleConfig>>,
    last: Option<Decision>,
    last_step_nanos: i64,
}

impl Writer {
    /// Adds a decision; `put` gets the entries that are complete.
    ///
    /// A decision that does not name the rules of its configuration is not one of [`crate::decide`], and one before 1970
    /// or after 2262 is nobody's; both are left out.
    pub fn push(&mut self, record: &DecisionRecord, put: &mut dyn FnMut(Entry<'_>)) {
        let decision = &record.decision;
        let names_rules = decision.rules.is_empty() || decision.rules.len() == record.config.rules.len();
        if !names_rules || !(0..=i128::from(i64::MAX)).contains(&decision.at.as_nanosecond()) {
            return;
        }
        let is_known =
            self.config.as_ref().is_some_and(|config| Arc::ptr_eq(config, &record.config) || *config == record.config);
        if !is_known {
            self.end_run(put);
            match serde_json::to_vec(&*record.config) {
                Ok(json) => put(Entry::Config(&json)),
                Err(_) => return,
            }
            self.config = Some(Arc::clone(&record.config));
            self.last = None;
            self.last_step_nanos = 0;
        }
        let blank = blank(&record.config);
        let last = self.last.as_ref().unwrap_or(&blank);
        let step = nanos_between(last.at, decision.at);
        if self.last.is_some() && fields::is_expected(last, decision) {
            if self.run.is_empty() {
                self.run_since = Some(decision.at);
            }
            put_signed(&mut self.run, step.wrapping_sub(self.last_step_nanos));
            self.last_step_nanos = step;
            self.last = Some(decision.clone());
            if self.run.len() >= RUN_BYTES_MAX {
                self.end_run(put);
            }
            return;
        }
        let mut bytes = Vec::with_capacity(32);
        put_signed(&mut bytes, step.wrapping_sub(self.last_step_nanos));
        let known = fields::put(&mut bytes, last, decision);
        self.end_run(put);
        put(Entry::One(&bytes));
        self.last_step_nanos = step;
        self.last = Some(known);
    }

    /// Since when decisions wait that are not put yet.
    pub fn run_since(&self) -> Option<Timestamp> {
        self.run_since
    }

    /// Puts the run that is open.
    pub fn end_run(&mut self, put: &mut dyn FnMut(Entry<'_>)) {
        if !self.run.is_empty() {
            put(Entry::Run(&self.run));
            self.run.clear();
            self.run.shrink_to(64);
            self.run_since = None;
        }
    }
}

impl Reader {
    /// Takes the next entry; `give` gets its decisions in their order.
    ///
    /// # Errors
    /// When the bytes are not a writer's; nothing of this tape can be read after that.
    pub fn take(&mut self, entry: Entry<'_>, give: &mut dyn FnMut(DecisionRecord)) -> Result<(), Damaged> {
        match entry {
            Entry::Config(json) => {
                let config = serde_json::from_slice(json).map_err(|_| Damaged("a configuration is no JSON"))?;
                *self = Self { config: Some(Arc::new(config)), last: None, last_step_nanos: 0 };
                Ok(())
            }
            Entry::One(bytes) => {
                let mut source = Source(bytes);
                let config = self.config.clone().ok_or(Damaged("a decision without configuration"))?;
                let last = self.last.take().unwrap_or_else(|| blank(&config));
                let at = self.next_instant(&last, &mut source)?;
                let (decision, known) = fields::take(&mut source, last, at)?;
                self.last = Some(known);
                give(DecisionRecord { config, decision });
                Ok(())
            }
            Entry::Run(bytes) => {
                let mut source = Source(bytes);
                let config = self.config.clone().ok_or(Damaged("a run without configuration"))?;
                while !source.0.is_empty() {
                    let last = self.last.take().ok_or(Damaged("a run without a decision before it"))?;
                    let at = self.next_instant(&last, &mut source)?;
                    let decision = fields::expected(last, at);
                    self.last = Some(decision.clone());
                    give(DecisionRecord { config: Arc::clone(&config), decision });
                }
                Ok(())
            }
        }
    }

    fn next_instant(&mut self, last: &Decision, source: &mut Source<'_>) -> Result<Timestamp, Damaged> {
        self.last_step_nanos = self.last_step_nanos.wrapping_add(source.signed()?);
        let nanos = last.at.as_nanosecond() + i128::from(self.last_step_nanos);
        Timestamp::from_nanosecond(nanos).map_err(|_| Damaged("an instant outside time"))
    }
}

/// What stands before the first decision.
fn blank(config: &ScaleConfig) -> Decision {
    let rule = |rule: &crate::Rule| RuleOutcome {
        name: Arc::clone(&rule.name),
        reading: Reading::Error { reason: "".into() },
        failures: 0,
        active: false,
        proposal: None,
    };
    Decision {
        at: Timestamp::UNIX_EPOCH,
        current: 0,
        existing: 0,
        in_flight: 0,
        hold: Hold::None,
        last_active: None,
        window_peak: None,
        seeded: false,
        rules: config.rules.iter().map(rule).collect(),
        active: false,
        want: None,
        stable: None,
        ceiling: None,
        recorded: None,
        new: 0,
        reason: Reason::Steady,
    }
}

/// Nanoseconds from one instant to another, both of 1970 to 2262.
fn nanos_between(from: Timestamp, to: Timestamp) -> i64 {
    let nanos = to.as_nanosecond() - from.as_nanosecond();
    i64::try_from(nanos).unwrap_or(0)
}

#[cfg(test)]
mod tests;
