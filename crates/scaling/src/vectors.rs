//! Checks the crate against a file of test vectors: inputs, and what must come out.
//!
//! The schema is in the header of `vectors/scaling_vectors.json`. A vector that asks for something this crate does not
//! decide is reported as unsupported, with what it asked for; it never counts as passed.
//!
//! **Invariant:** every vector of a file appears in the report exactly once.

mod decisions;
mod metrics;
mod others;

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// What came of a whole file.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// One per vector, in the file's order.
    pub results: Vec<VectorResult>,
}

/// What came of one vector.
#[derive(Clone, Debug)]
pub struct VectorResult {
    /// The vector's stable id.
    pub id: String,
    /// `decision`, `timeline`, `metric`, …
    pub kind: String,
    /// One line for people.
    pub title: String,
    /// Passed, failed, or not decided here.
    pub outcome: Outcome,
}

/// The three ends of a vector.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Every expected key is equal.
    Passed,
    /// A key differs.
    Failed {
        /// What the vector expects.
        expected: Value,
        /// What came out.
        got: Value,
    },
    /// The vector needs something that is not built, named here.
    Unsupported {
        /// What is missing.
        what: String,
    },
}

/// A file that is no vector file.
#[derive(Debug, thiserror::Error)]
#[error("not a file of scaling vectors: it needs a `vectors` list of objects with `id`, `kind`, `given` and `expect`")]
pub struct NotVectors {
    source: serde_json::Error,
}

#[derive(Deserialize)]
struct File {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    id: String,
    kind: String,
    #[serde(default)]
    title: String,
    given: Value,
    expect: Value,
}

/// Why a vector gave no result.
pub(crate) struct Unsupported(String);

impl Unsupported {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

impl From<serde_json::Error> for Unsupported {
    fn from(error: serde_json::Error) -> Self {
        Self(format!("input not understood: {error}"))
    }
}

/// Runs every vector of `json`.
pub fn run(json: &str) -> Result<Report, NotVectors> {
    let file: File = serde_json::from_str(json).map_err(|source| NotVectors { source })?;
    let results = file.vectors.into_iter().map(run_one).collect();
    Ok(Report { results })
}

fn run_one(vector: Vector) -> VectorResult {
    let Vector { id, kind, title, given, expect } = vector;
    let got = match kind.as_str() {
        "decision" => decisions::decision(given),
        "timeline" => decisions::timeline(given),
        "cadence" => decisions::cadence(given),
        "resource" => others::resource(given),
        "metric" => metrics::metric(given),
        "job" => others::job(given),
        "execution" => others::execution(given),
        "validate" => others::validate(given),
        other => Err(Unsupported::new(format!("vectors of kind `{other}`"))),
    };
    let outcome = match got {
        Err(Unsupported(what)) => Outcome::Unsupported { what },
        Ok(got) if matches(&expect, &got) => Outcome::Passed,
        Ok(got) => Outcome::Failed { expected: expect, got },
    };
    VectorResult { id, kind, title, outcome }
}

/// Whether every expected key is equal in what came out. Of an error only its presence counts, not its text.
fn matches(expect: &Value, got: &Value) -> bool {
    match (expect, got) {
        (Value::Object(expect), Value::Object(got)) => expect.iter().all(|(key, value)| match got.get(key) {
            Some(_) if key == "error" => true,
            Some(other) => matches(value, other),
            None => false,
        }),
        (Value::Array(expect), Value::Array(got)) => {
            expect.len() == got.len() && expect.iter().zip(got).all(|(expect, got)| matches(expect, got))
        }
        (Value::Number(expect), Value::Number(got)) => expect.as_f64() == got.as_f64(),
        (expect, got) => expect == got,
    }
}

impl Report {
    /// Vectors whose every key is equal.
    pub fn passed(&self) -> usize {
        self.results.iter().filter(|result| result.outcome == Outcome::Passed).count()
    }

    /// Vectors with a different result.
    pub fn failed(&self) -> impl Iterator<Item = &VectorResult> {
        self.results.iter().filter(|result| matches!(result.outcome, Outcome::Failed { .. }))
    }

    /// Vectors that ask for something not built.
    pub fn unsupported(&self) -> impl Iterator<Item = &VectorResult> {
        self.results.iter().filter(|result| matches!(result.outcome, Outcome::Unsupported { .. }))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for VectorResult { id, kind, title, outcome } in &self.results {
            match outcome {
                Outcome::Passed => {}
                Outcome::Failed { expected, got } => {
                    writeln!(f, "failed       {id} {kind}: {title}\n               expected {expected}, got {got}")?;
                }
                Outcome::Unsupported { what } => writeln!(f, "unsupported  {id} {kind}: {what}")?,
            }
        }
        write!(
            f,
            "{} vectors: {} passed, {} failed, {} unsupported",
            self.results.len(),
            self.passed(),
            self.failed().count(),
            self.unsupported().count()
        )
    }
}

#[cfg(test)]
mod tests;
