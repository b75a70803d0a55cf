//! What only the running platform knows: `reference()` and `list*()`, asked for as data and answered as data.
//!
//! An evaluation never waits. What it lacks it names as [`Need`]s; the caller fetches them and evaluates again.

use std::collections::BTreeMap;

use serde_json::Value;

/// Something an expression asks of the running platform. Ids compare without regard to case.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Need {
    /// The whole resource, as a GET answers it; `reference()` takes `properties` from it.
    Reference {
        /// Resource id, as the template wrote it.
        id: String,
        /// As written in the call, or of the resource in the template; `None` when neither says one.
        api_version: Option<String>,
    },
    /// The answer to `POST {id}/{function}`.
    List {
        /// `listKeys`, `listSecrets`, `listCredentials`, …, as written.
        function: String,
        /// Resource id.
        id: String,
        /// As written in the call.
        api_version: String,
        /// JSON text of the body, when the call has one.
        body: Option<String>,
    },
}

impl Need {
    /// The resource id that is asked about.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Reference { id, .. } | Self::List { id, .. } => id,
        }
    }
}

/// Why a need could not be met: the platform's own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct LookupError {
    /// ARM's code, `ResourceNotFound`.
    pub code: String,
    /// ARM's message.
    pub message: String,
}

/// Answers [`Need`]s.
pub trait Runtime {
    /// The answer, or `None` when it has not been fetched yet.
    fn lookup(&self, need: &Need) -> Option<Result<Value, LookupError>>;
}

/// Answers fetched so far.
#[derive(Clone, Debug, Default)]
pub struct Known(BTreeMap<Need, Result<Value, LookupError>>);

impl Known {
    /// Nothing fetched yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps an answer.
    pub fn insert(&mut self, need: Need, answer: Result<Value, LookupError>) {
        self.0.insert(need, answer);
    }
}

impl Runtime for Known {
    fn lookup(&self, need: &Need) -> Option<Result<Value, LookupError>> {
        self.0.get(need).cloned()
    }
}

/// An evaluation's outcome.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluated {
    /// The value.
    Ready(Value),
    /// Fetch these, then evaluate again; never empty, and never one that `lookup` has answered.
    Needs(Vec<Need>),
}
