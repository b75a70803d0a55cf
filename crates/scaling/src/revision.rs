//! What the controller tells the autoscaler about a revision: the only thing the two share.
//!
//! **Invariant:** for one revision only `has_ingress` and `is_active` ever change; a change of scale properties is a new
//! revision.

use cove_model::{ResourceId, RevisionKey, Scale};
use jiff::Timestamp;

/// One revision whose count is to be decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaledRevision {
    /// The revision.
    pub revision: RevisionKey,
    /// The environment of its app, for events.
    pub environment: ResourceId,
    /// Limits, timings and rules.
    pub scale: Scale,
    /// Whether the app has ingress: then the default rule applies where there is none.
    pub has_ingress: bool,
    /// The revision it replaces in single mode; it starts with as many replicas.
    pub replaces: Option<RevisionKey>,
    /// When it became active.
    pub activated_at: Timestamp,
    /// `false` when it was deactivated or its app stopped: zero at once, and its history is forgotten.
    pub is_active: bool,
}
