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
    /// The name drawn for an execution is taken.
    #[error("execution `{name}` exists already")]
    ExecutionExists {
        /// The execution.
        name: String,
    },
    /// The job has as many executions that have not ended as it may.
    #[error("job `{job}` has {max} executions that have not ended")]
    TooManyExecutions {
        /// The job.
        job: String,
        /// How many it may have.
        max: usize,
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
    /// There are sealed secrets and no key.
    #[error(
        "`{path}` is missing, and the database has secrets that only it opens; bring it back from where you keep copies (nothing was changed)"
    )]
    SecretsKeyMissing {
        /// Where the key should be.
        path: String,
    },
    /// Others may read the key.
    #[error(
        "`{path}` may be read by others (mode {mode:o}); run `chmod 600` on it, and `cove secrets rotate` if they did"
    )]
    SecretsKeyReadable {
        /// The key's file.
        path: String,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds no key.
    #[error("`{path}` is damaged: a line must be `v1 ` and 32 bytes in base64; bring the file back from a copy")]
    SecretsKeyDamaged {
        /// The key's file.
        path: String,
    },
    /// The file holds another key.
    #[error(
        "`{path}` belongs to another database: key {key_id} that sealed this one is not in it; bring back the file that was kept with the database"
    )]
    SecretsKeyOther {
        /// The key's file.
        path: String,
        /// Id of the key that is needed.
        key_id: String,
    },
    /// A sealed value does not open: it was changed or moved.
    #[error("the secret `{name}` of `{owner}` is damaged; set it again")]
    SecretDamaged {
        /// The resource, or `settings`.
        owner: String,
        /// Name of the secret.
        name: String,
    },
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    NoRandom,
    /// The writer has ended: the server is shutting down.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// Whether one document or secret is damaged, and everything else can be read.
    pub fn is_of_one_document(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::SecretDamaged { .. })
    }

    /// Whether nothing could be written because there is no space left.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Sqlite(error) => {
                let error = error.sqlite_error();
                error.is_some_and(|error| {
                    // what SQLite cannot grow in memory that is shared has a code of its own
                    error.code == rusqlite::ErrorCode::DiskFull
                        || error.extended_code == rusqlite::ffi::SQLITE_IOERR_SHMSIZE
                })
            }
            Self::Io { source, .. } => {
                matches!(source.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
            }
            _ => false,
        }
    }
}
