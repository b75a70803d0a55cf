//! The last decisions of one job's trigger: what `explain` shows.
//!
//! Polls that start nothing and say the same are kept as one entry with its newest time.
//!
//! **Invariant:** at most as many entries as the configuration says.

use std::collections::VecDeque;

use cove_scaling::job::JobPoll;
use cove_scaling::schedule::LeftOut;
use jiff::Timestamp;
use serde::Serialize;

/// What is known of a job's trigger.
#[derive(Clone, Debug, Default)]
pub struct JobTriggers {
    /// The next tick or poll; `None` while the job is suspended, or when no tick ever comes.
    pub next_at: Option<Timestamp>,
    /// Runs of equal decisions, oldest first.
    pub decisions: VecDeque<JobDecision>,
}

/// A decision, or a run of equal ones.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobDecision {
    /// When the run began.
    pub since: Timestamp,
    /// When it was taken last.
    pub at: Timestamp,
    /// Decisions in it.
    pub times: u32,
    /// In one line.
    pub words: String,
    /// What it was.
    #[serde(flatten)]
    pub kind: JobDecisionKind,
}

/// What was decided.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum JobDecisionKind {
    /// A poll of the rules.
    Poll(Box<JobPoll>),
    /// One or more ticks of the schedule came.
    Tick(Tick),
}

/// What became of the ticks since the last look.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tick {
    /// Ticks that were started.
    pub started: Vec<Timestamp>,
    /// Executions that ran were stopped for it.
    pub replaced: bool,
    /// Ticks that were not started.
    pub left_out: Vec<LeftOut>,
}

impl Tick {
    fn words(&self) -> String {
        let started = match &self.started[..] {
            [] => "started nothing".to_owned(),
            [tick] => format!("started the tick of {tick}"),
            [first, .., last] => format!("started {} ticks, from {first} to {last}", self.started.len()),
        };
        let replaced = if self.replaced { " in place of what ran" } else { "" };
        let left_out = |left: &LeftOut| {
            let ticks = if left.number == 1 { "tick" } else { "ticks" };
            format!("; left out {} {ticks} until {}: {}", left.number, left.last, left.why.words())
        };
        let left_out: String = self.left_out.iter().map(left_out).collect();
        format!("{started}{replaced}{left_out}")
    }
}

impl JobTriggers {
    /// Adds a decision.
    pub(super) fn push(&mut self, at: Timestamp, kind: JobDecisionKind, kept_max: usize) {
        if let (Some(last), JobDecisionKind::Poll(poll)) = (self.decisions.back_mut(), &kind)
            && let JobDecisionKind::Poll(before) = &last.kind
            && poll.repeats(before)
        {
            (last.at, last.times) = (at, last.times.saturating_add(1));
            last.kind = kind;
            return;
        }
        while self.decisions.len() >= kept_max.max(1) {
            self.decisions.pop_front();
        }
        let words = match &kind {
            JobDecisionKind::Poll(poll) => poll.words(),
            JobDecisionKind::Tick(tick) => tick.words(),
        };
        self.decisions.push_back(JobDecision { since: at, at, times: 1, words, kind });
    }
}
