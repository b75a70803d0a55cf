//! How much an evaluation may do: steps, bytes made, depth. What makes it impossible for a template to hang or fill memory.
//!
//! Bytes are counted when they are made and never given back, so a value that doubles with each variable ends early.
//!
//! **Invariant:** each loop of the language passes through [`Meter::step`], each copy of a value through [`Meter::bytes`].

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

/// Steps of one evaluation (a body, all outputs, all variables).
const STEPS_MAX: u64 = 10_000_000;
/// Bytes made by one evaluation.
const BYTES_MAX: u64 = 64 << 20;
/// Steps of all evaluations of one deployment.
const TOTAL_STEPS_MAX: u64 = 100_000_000;
/// Bytes made by all evaluations of one deployment.
const TOTAL_BYTES_MAX: u64 = 4 << 30;
/// Calls, accesses and nodes within each other during evaluation; a worker's stack of 2 MiB holds it.
pub(crate) const EVAL_DEPTH_MAX: u16 = 300;
/// Nesting of a value that is kept: ARM's, and what recursion over values relies on.
pub(crate) const VALUE_DEPTH_MAX: usize = 64;

/// Why an evaluation gave no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Something is wrong; the sentence says what and names the function.
    Failed(String),
    /// The platform refused a `reference` or `list*`.
    Refused {
        /// ARM's code.
        code: String,
        /// ARM's message.
        message: String,
    },
    /// Needs an answer that has not been fetched; the need is noted.
    Pending,
    /// Depends on something that is wrong and was reported where it stands.
    Reported,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self::Failed(message.into())
    }
}

/// What a whole deployment has used up, over all its evaluations.
#[derive(Debug, Default)]
pub(crate) struct Total {
    steps: AtomicU64,
    bytes: AtomicU64,
}

/// What one evaluation may still use.
#[derive(Debug)]
pub(crate) struct Meter<'t> {
    steps_left: Cell<u64>,
    bytes_left: Cell<u64>,
    total: &'t Total,
}

impl<'t> Meter<'t> {
    pub(crate) fn new(total: &'t Total) -> Self {
        let left = |max: u64, all: u64, used: &AtomicU64| max.min(all.saturating_sub(used.load(Ordering::Relaxed)));
        Self {
            steps_left: Cell::new(left(STEPS_MAX, TOTAL_STEPS_MAX, &total.steps)),
            bytes_left: Cell::new(left(BYTES_MAX, TOTAL_BYTES_MAX, &total.bytes)),
            total,
        }
    }

    pub(crate) fn step(&self, steps: usize) -> Result<(), Fault> {
        let steps = steps as u64;
        self.total.steps.fetch_add(steps, Ordering::Relaxed);
        let left = self.steps_left.get().checked_sub(steps).ok_or_else(|| {
            Fault::new(format!("the template does more than {STEPS_MAX} steps; make its loops and lists smaller"))
        })?;
        self.steps_left.set(left);
        Ok(())
    }

    pub(crate) fn bytes(&self, bytes: usize) -> Result<(), Fault> {
        let bytes = bytes as u64;
        self.total.bytes.fetch_add(bytes, Ordering::Relaxed);
        let left = self.bytes_left.get().checked_sub(bytes).ok_or_else(|| {
            Fault::new(format!("the template makes values of more than {} MiB; make them smaller", BYTES_MAX >> 20))
        })?;
        self.bytes_left.set(left);
        Ok(())
    }

    /// Counts a value that is about to be copied; a lone number takes no memory that lasts.
    pub(crate) fn copy(&self, value: &Value) -> Result<(), Fault> {
        let (size, nodes) = size(value);
        self.step(nodes)?;
        self.bytes(if is_scalar(value) { 0 } else { size })
    }

    /// Counts an item that is put into a list or object.
    pub(crate) fn item(&self, key: &str) -> Result<(), Fault> {
        self.bytes(48 + key.len())
    }
}

fn is_scalar(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(_) | Value::Number(_))
}

/// Bytes that a value takes, about, and how many nodes it has.
fn size(value: &Value) -> (usize, usize) {
    let add = |sum: (usize, usize), part: (usize, usize)| (sum.0 + part.0, sum.1 + part.1);
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => (32, 1),
        Value::String(text) => (32 + text.len(), 1),
        Value::Array(items) => items.iter().map(size).fold((32, 1), add),
        Value::Object(map) => map.iter().map(|(key, value)| add((48 + key.len(), 0), size(value))).fold((32, 1), add),
    }
}

/// Bytes of a value without what is nested in it: what a function that moved its arguments has made anew.
pub(crate) fn shallow(value: &Value) -> usize {
    match value {
        Value::String(text) => 32 + text.len(),
        Value::Array(items) => 32 + 32 * items.len(),
        Value::Object(map) => 32 + 96 * map.len(),
        _ => 0,
    }
}

/// Refuses a value that is nested deeper than a kept value may be.
pub(crate) fn check_depth(value: &Value) -> Result<(), Fault> {
    fn is_within(value: &Value, left: usize) -> bool {
        match value {
            Value::Array(items) => left > 0 && items.iter().all(|item| is_within(item, left - 1)),
            Value::Object(map) => left > 0 && map.values().all(|item| is_within(item, left - 1)),
            _ => true,
        }
    }
    if is_within(value, VALUE_DEPTH_MAX) {
        return Ok(());
    }
    Err(Fault::new(format!("the value is nested deeper than {VALUE_DEPTH_MAX} levels")))
}
