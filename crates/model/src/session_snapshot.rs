//! Snapshots of sessions: what a session has written, kept as one more layer over the image of other sessions.
//!
//! A snapshot that has a name is a template; one that has an identifier is a session that was suspended. One that has
//! neither belongs to the sessions that were forked from it and goes with the last of them.
//!
//! **Invariant:** a snapshot never changes.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{ResourceId, SessionIdentifier};

/// Most sessions that one fork makes.
pub const FORKS_MAX: usize = 20;

/// How long a suspended session is kept where its pool does not say, in seconds: a day.
pub const SUSPENDED_KEEP_SECS: u32 = 86_400;

/// The rule of [`check_snapshot_name`] in words.
pub const SNAPSHOT_NAME_RULE: &str =
    "use 1 to 63 lower case letters, digits and `-`, start and end with a letter or digit";

/// Whether a text can be the name of a snapshot.
#[must_use]
pub fn check_snapshot_name(text: &str) -> bool {
    let chars_ok = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    (1..=63).contains(&text.len()) && chars_ok && !text.starts_with('-') && !text.ends_with('-')
}

/// Which snapshot: 32 hexadecimal digits, never used twice. It is the name of a folder.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(Arc<str>);

/// Why a text is no id of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the id of a snapshot has 32 digits of 0-9 and a-f")]
pub struct InvalidSnapshotId;

impl SnapshotId {
    /// Checks an id; the dashes of a UUID are left out.
    ///
    /// # Errors
    /// [`InvalidSnapshotId`].
    pub fn new(text: &str) -> Result<Self, InvalidSnapshotId> {
        let digits: String = text.chars().filter(|c| *c != '-').collect();
        let is_valid = digits.len() == 32 && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if is_valid { Ok(Self(digits.into())) } else { Err(InvalidSnapshotId) }
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = InvalidSnapshotId;
    fn try_from(text: String) -> Result<Self, InvalidSnapshotId> {
        Self::new(&text)
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> Self {
        id.0.as_ref().to_owned()
    }
}

/// A snapshot that is kept by itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionSnapshot {
    /// Its id.
    pub id: SnapshotId,
    /// The pool of the session that it is of; it goes with that pool.
    pub pool: ResourceId,
    /// What it is kept for.
    pub keep: SnapshotKeep,
    /// The session that it is of, as clients see it.
    pub session_guid: String,
    /// Bytes of the files that it holds.
    pub bytes: u64,
    /// Files, folders and links that it holds.
    pub files: u64,
    /// When it was taken.
    pub created_at: Timestamp,
}

/// What a snapshot is kept for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotKeep {
    /// A template under this name, until it is deleted.
    Named {
        /// By the rule of [`check_snapshot_name`].
        name: String,
    },
    /// A suspended session, until its next request.
    Suspended {
        /// Whose.
        identifier: SessionIdentifier,
        /// When it is given up.
        expires_at: Timestamp,
    },
}

impl SessionSnapshot {
    /// Its name, if it is a template.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.keep {
            SnapshotKeep::Named { name } => Some(name),
            SnapshotKeep::Suspended { .. } => None,
        }
    }

    /// Whose session it is, and until when, if it is a suspended one.
    #[must_use]
    pub fn suspended(&self) -> Option<(&SessionIdentifier, Timestamp)> {
        match &self.keep {
            SnapshotKeep::Named { .. } => None,
            SnapshotKeep::Suspended { identifier, expires_at } => Some((identifier, *expires_at)),
        }
    }
}

/// What all sessions of a pool begin with; Cove's field `coveSnapshot`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolSnapshot {
    /// As it was asked for: the name of a snapshot of this pool, or `pool/name` of another pool of the group.
    pub name: String,
    /// What that was when the pool was written.
    pub id: SnapshotId,
}

/// When idle sessions of a pool are suspended; Cove's field `coveSuspend`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SuspendRule {
    /// So long after the end of its last request, in seconds: 10 to the cool-down, default the cool-down.
    pub after_idle_secs: u32,
    /// How long it is kept then, in seconds: 60 to 2,592,000 (30 days), default [`SUSPENDED_KEEP_SECS`].
    pub keep_secs: u32,
}

/// Why a snapshot could not be taken, used or deleted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// There is no such pool, or it is being deleted.
    #[error("the session pool does not exist")]
    UnknownPool,
    /// The identifier has no session that runs.
    #[error("the session pool has no session of this identifier")]
    UnknownSession,
    /// There is no snapshot of this name.
    #[error("the session pool has no snapshot of this name")]
    UnknownSnapshot,
    /// The name, or one of the identifiers, is taken.
    #[error("{0}")]
    Taken(String),
    /// Something is in the way for now: open requests, another snapshot of the same session.
    #[error("{0}")]
    Busy(String),
    /// A pool begins its sessions from it.
    #[error("the snapshot is used by session pool `{0}`")]
    InUse(String),
    /// A limit of number or size, or a full disk.
    #[error("{0}")]
    NoRoom(String),
    /// What runs the session cannot.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
    /// The new sessions could not be allocated.
    #[error(transparent)]
    Allocate(#[from] crate::AllocateError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_ids_are_checked() {
        for name in ["a", "base-1", "0"] {
            assert!(check_snapshot_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "A", "a/b", "..", "a.b", &"a".repeat(64)] {
            assert!(!check_snapshot_name(name), "{name}");
        }
        let id = SnapshotId::new("0123abcd-0123-0123-0123-0123456789ab").unwrap();
        assert_eq!(id.as_str(), "0123abcd0123012301230123456789ab");
        for bad in ["", "..", "0123abcd", "g123abcd0123012301230123456789ab", "0123ABCD0123012301230123456789ab"] {
            assert!(SnapshotId::new(bad).is_err(), "{bad}");
        }
    }
}
