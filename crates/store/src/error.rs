//! What can go wrong with the store.

use cove_model::ResourceId;

/// Why a transaction did not happen; nothing was changed then.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another server holds the directory.
    #[error("data directory `{dir}` is in use by another server (process {pid}); stop it or choose another --data-dir")]
    InUse {
        /// The directory.
        dir: String,
        /// What the lock file says.
        pid: String,
    },
    /// The file was written by a newer Cove.
    #[error("the database has schema {found}, this Cove knows up to {known}; use a newer Cove")]
    TooNew {
        /// In the file.
        found: i64,
        /// In this binary.
        known: i64,
    },
    /// The resource is not what the caller thought it was.
    #[error("`{id}` was changed meanwhile")]
    Conflict {
        /// The resource.
        id: ResourceId,
    },
    /// It does not exist.
    #[error("`{id}` was not found")]
    NotFound {
        /// The resource.
        id: String,
    },
    /// The revision suffix is taken by other content.
    #[error("revision `{name}` exists already")]
    RevisionExists {
        /// The revision.
        name: String,
    },
    /// SQLite failed: disk full, file damaged.
    #[error("failed to read or write the database")]
    Sqlite(#[from] rusqlite::Error),
    /// A stored document cannot be read back.
    #[error("a stored document is damaged")]
    Damaged(#[from] serde_json::Error),
    /// A file operation failed.
    #[error("failed to {what}")]
    Io {
        /// To do what.
        what: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The writer has ended: the server is shutting down.
    #[error("the store is closed")]
    Closed,
}
