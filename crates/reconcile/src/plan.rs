//! What the planner answers: steps with reasons, and everything others need to know.

use std::{fmt, time::Duration};

use cove_model::{ReplicaName, RevisionKey, RevisionName, RevisionStatus};
use cove_traffic::{AppRouteState, Endpoints, WeightedRevision};
use jiff::Timestamp;

use crate::Room;

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Get the revision's images.
    EnsureImages {
        /// Which.
        revision: RevisionName,
    },
    /// Make a slot.
    Prepare {
        /// Of this revision.
        revision: RevisionName,
        /// With this name, never used before.
        replica: ReplicaName,
        /// The port that shows it ready, if the app has ingress.
        target_port: Option<u16>,
    },
    /// Start a slot.
    Start {
        /// Of this revision.
        revision: RevisionName,
        /// Which.
        replica: ReplicaName,
    },
    /// Send it nothing new. Takes effect through the endpoints of the same plan.
    Drain {
        /// Which.
        replica: ReplicaName,
    },
    /// Send it requests again. Takes effect through the endpoints of the same plan.
    Undrain {
        /// Which.
        replica: ReplicaName,
    },
    /// Let nothing of it run, but keep it with all it knows. It has drained.
    Freeze {
        /// Of this revision.
        revision: RevisionName,
        /// Which.
        replica: ReplicaName,
    },
    /// Let a frozen one run again.
    Thaw {
        /// Of this revision.
        revision: RevisionName,
        /// Which.
        replica: ReplicaName,
    },
    /// End it.
    Stop {
        /// Which.
        replica: ReplicaName,
        /// Between SIGTERM and SIGKILL.
        grace: Duration,
    },
    /// Forget an ended one.
    Remove {
        /// Which.
        replica: ReplicaName,
    },
    /// Make these the active revisions, and no others.
    SetActive {
        /// Their names.
        active: Vec<RevisionName>,
    },
    /// Forget an old inactive revision.
    DeleteRevision {
        /// Which.
        revision: RevisionName,
    },
}

/// An action and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What.
    pub action: Action,
    /// Why.
    pub reason: &'static str,
}

/// What became of a generation of the app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It runs as asked.
    Succeeded,
    /// It does not, and waiting will not help.
    Failed {
        /// ARM error code.
        code: &'static str,
        /// What is wrong and what would be right.
        message: String,
    },
    /// Nothing of it is left; the resource can go.
    Deleted,
}

/// Where the app's requests go; [`crate::hosts`] makes host names of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Shares of the app's own host; add up to 100 unless empty.
    pub weights: Vec<WeightedRevision>,
    /// Active revisions, for their own hosts.
    pub active: Vec<RevisionName>,
    /// Label → revision.
    pub labels: Vec<(String, RevisionName)>,
    /// Whether the app serves.
    pub state: AppRouteState,
    /// Whether it has hosts at all.
    pub is_routed: bool,
}

/// What to do now, what is known, and when to look again even if nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// In this order.
    pub steps: Vec<Step>,
    /// Look again then.
    pub wake_at: Option<Timestamp>,
    /// Statuses that changed.
    pub statuses: Vec<(RevisionName, RevisionStatus)>,
    /// What became of the generation, once; repeated until the view says that it was told.
    pub outcome: Option<Outcome>,
    /// Where requests go.
    pub traffic: Traffic,
    /// Revisions that run or are being brought up; the autoscaler decides their counts.
    pub kept: Vec<RevisionName>,
    /// The revision that `latestRevision` means: the newest that was ready, else the newest.
    pub in_charge: Option<RevisionName>,
    /// Endpoints of every revision.
    pub endpoints: Vec<(RevisionKey, Endpoints)>,
    /// Replicas per revision that exist and are not on their way out, starting ones included.
    pub existing: Vec<(RevisionKey, u32)>,
    /// Frozen replicas per revision that are to stay: they hold memory, but no CPU.
    pub frozen: Vec<(RevisionKey, u32)>,
    /// In single mode: the newest revision and the one that it replaces.
    pub replaces: Option<(RevisionName, RevisionName)>,
    /// Revisions that should have more replicas than there is room for.
    pub short: Vec<Short>,
    /// What room this plan leaves.
    pub(crate) room: Room,
}

/// A revision that waits for room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Short {
    /// Which.
    pub revision: RevisionName,
    /// Replicas that wait.
    pub missing: u32,
    /// Memory is short, with or without CPU.
    pub lacks_memory: bool,
    /// What is short, in words.
    pub message: String,
}

impl Plan {
    pub(crate) fn step(&mut self, action: Action, reason: &'static str) {
        self.steps.push(Step { action, reason });
    }

    pub(crate) fn wake(&mut self, at: Timestamp) {
        self.wake_at = Some(self.wake_at.map_or(at, |old| old.min(at)));
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EnsureImages { revision } => write!(f, "ensure images of {revision}"),
            Self::Prepare { revision, replica, .. } => write!(f, "prepare {replica} of {revision}"),
            Self::Start { replica, .. } => write!(f, "start {replica}"),
            Self::Drain { replica } => write!(f, "drain {replica}"),
            Self::Undrain { replica } => write!(f, "undrain {replica}"),
            Self::Freeze { replica, .. } => write!(f, "freeze {replica}"),
            Self::Thaw { replica, .. } => write!(f, "thaw {replica}"),
            Self::Stop { replica, grace } => write!(f, "stop {replica} within {} s", grace.as_secs()),
            Self::Remove { replica } => write!(f, "remove {replica}"),
            Self::SetActive { active } => {
                f.write_str("set active")?;
                active.iter().try_for_each(|name| write!(f, " {name}"))
            }
            Self::DeleteRevision { revision } => write!(f, "delete revision {revision}"),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.action, self.reason)
    }
}
