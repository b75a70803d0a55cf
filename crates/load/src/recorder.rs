//! Everything that is counted while a load runs.
//!
//! **Invariant:** memory is the same after ten requests and after ten million. **Invariant:** every request that was begun is
//! in the end answered, lost or unfinished, once.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::{
    loss::{Answer, Failure, LossKind, Repeat},
    report::Mark,
    timeline::Timeline,
};

/// Longest latency that is told apart, in microseconds; an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Losses kept in words; all are counted.
const LOSSES_KEPT: usize = 20;
/// Marks kept; later ones are dropped.
const MARKS_MAX: usize = 2000;

/// Requests so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests that were begun.
    pub sent: u64,
    /// Requests with a full and right answer.
    pub answered: u64,
    /// Requests without one.
    pub lost: u64,
    /// Requests that met a refused connection first, and were answered or lost later.
    pub refused: u64,
}

#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) counts: Counts,
    /// Requests that were to be sent and found no connection until the end.
    pub(crate) unsent: u64,
    pub(crate) repeats: BTreeMap<Repeat, u64>,
    pub(crate) losses: BTreeMap<LossKind, u64>,
    /// The first losses in words.
    pub(crate) lost_texts: Vec<String>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) bytes: u64,
    pub(crate) messages: u64,
    /// Connections that were opened.
    pub(crate) connections: u64,
    /// Microseconds from when a request was due.
    pub(crate) latency: Histogram<u64>,
    /// Microseconds from when a request was sent.
    pub(crate) service: Histogram<u64>,
    /// Microseconds from when a request was due until it was sent.
    pub(crate) wait: Histogram<u64>,
    pub(crate) timeline: Timeline,
    pub(crate) marks: Vec<Mark>,
}

#[derive(Debug)]
pub(crate) struct Recorder {
    begun: Instant,
    record: Mutex<Record>,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).expect("the bounds are in order")
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

impl Recorder {
    pub(crate) fn new(begun: Instant) -> Self {
        let record = Record {
            counts: Counts::default(),
            unsent: 0,
            repeats: BTreeMap::new(),
            losses: BTreeMap::new(),
            lost_texts: Vec::new(),
            statuses: BTreeMap::new(),
            bytes: 0,
            messages: 0,
            connections: 0,
            latency: histogram(),
            service: histogram(),
            wait: histogram(),
            timeline: Timeline::default(),
            marks: Vec::new(),
        };
        Self { begun, record: Mutex::new(record) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When the load began.
    pub(crate) fn begun(&self) -> Instant {
        self.begun
    }

    pub(crate) fn sent(&self) {
        self.lock().counts.sent += 1;
    }

    /// A request was taken back before anything came of it, because the load ended.
    pub(crate) fn withdrawn(&self) {
        self.lock().counts.sent -= 1;
    }

    pub(crate) fn connected(&self) {
        self.lock().connections += 1;
    }

    pub(crate) fn refused(&self) {
        self.lock().counts.refused += 1;
    }

    pub(crate) fn repeated(&self, reason: Repeat) {
        *self.lock().repeats.entry(reason).or_default() += 1;
    }

    /// A request that was due at `due` and sent at `sent` was answered.
    pub(crate) fn answered(&self, due: Instant, sent: Instant, answer: Answer) {
        let at = answer.at.unwrap_or_else(Instant::now);
        let latency_us = micros(at.saturating_duration_since(due));
        let due_after = due.saturating_duration_since(self.begun);
        let mut record = self.lock();
        record.counts.answered += 1;
        *record.statuses.entry(answer.status).or_default() += 1;
        record.bytes += answer.bytes;
        record.messages += answer.messages;
        record.latency.saturating_record(latency_us);
        record.service.saturating_record(micros(at.saturating_duration_since(sent)));
        record.wait.saturating_record(micros(sent.saturating_duration_since(due)));
        record.timeline.answered(due_after, latency_us);
    }

    /// A request that was due at `due` was lost.
    pub(crate) fn lost(&self, due: Instant, failure: &Failure) {
        let due_after = due.saturating_duration_since(self.begun);
        let mut record = self.lock();
        record.counts.lost += 1;
        if let Some(status) = failure.status {
            *record.statuses.entry(status).or_default() += 1;
        }
        *record.losses.entry(failure.kind).or_default() += 1;
        record.timeline.lost(due_after);
        if record.lost_texts.len() < LOSSES_KEPT {
            record.lost_texts.push(format!("{:.3} s: {failure}", due_after.as_secs_f64()));
        }
    }

    /// Something else begins now; gives its number.
    pub(crate) fn mark(&self, label: &str) -> usize {
        let at = self.begun.elapsed();
        let mut record = self.lock();
        let number = record.marks.len();
        if number < MARKS_MAX {
            record.marks.push(Mark { label: label.to_owned(), from: at, to: None });
        }
        number
    }

    /// It ended.
    pub(crate) fn end_mark(&self, number: usize) {
        let at = self.begun.elapsed();
        if let Some(mark) = self.lock().marks.get_mut(number) {
            mark.to = Some(at);
        }
    }
}
