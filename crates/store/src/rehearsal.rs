//! A copy of the store on which a change is tried out: what the copy says afterwards is what the change would do.
//!
//! The checks of a template before it runs, and its what-if, are the real handlers on such a copy: there is no second
//! implementation of any rule that could disagree with the first. The copy is made by SQLite in one read transaction, so
//! it is a consistent state; it lives in its own directory below the data directory and is deleted with the store.
//!
//! **Invariant:** nothing written to a rehearsal reaches the store it was made of.
//! **Invariant:** a rehearsal that a crash left behind is deleted when the data directory is opened again.

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cove_base::Board;
use rusqlite::{Connection, OpenFlags};

use crate::{Store, StoreError, db::restrict};

/// Directory of all rehearsals, below the data directory.
const DIRECTORY: &str = "rehearsals";

/// Makes the names of rehearsals of this process differ.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// A directory that is deleted when its store goes.
#[derive(Debug)]
pub(crate) struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // what stays is deleted at the next start
        let _stays = std::fs::remove_dir_all(&self.0);
    }
}

impl Store {
    /// A copy of everything, for trying a change out. Blocks for as long as reading the whole file takes.
    ///
    /// # Errors
    /// When the copy cannot be written: disk full, directory not writable.
    pub fn rehearsal(&self) -> Result<Self, StoreError> {
        let data = self.path().parent().unwrap_or_else(|| Path::new("."));
        let dir = data.join(DIRECTORY).join(NEXT.fetch_add(1, Ordering::Relaxed).to_string());
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
        made.map_err(|source| StoreError::Io { what: format!("create `{}`", dir.display()), source })?;
        let scratch = Scratch(dir.clone());
        let path = dir.join("cove.db");
        let name = path.to_str().ok_or_else(|| StoreError::Io {
            what: format!("name `{}` in SQL", path.display()),
            source: std::io::ErrorKind::InvalidFilename.into(),
        })?;
        let source = Connection::open_with_flags(
            self.path(),
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        source.busy_timeout(Duration::from_secs(5))?;
        source.execute("VACUUM INTO ?1", [name])?;
        drop(source);
        restrict(&path)
            .map_err(|source| StoreError::Io { what: format!("restrict `{}` to its owner", path.display()), source })?;
        let db = Connection::open(&path)?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        // it need not survive anything
        db.pragma_update(None, "synchronous", "OFF")?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        db.busy_timeout(Duration::from_secs(5))?;
        let keyring = Arc::clone(self.keyring());
        Self::start(path, db, Board::default(), Arc::new(AtomicU64::new(1)), keyring, (None, Some(scratch)))
    }
}

/// Deletes what a server that was killed left.
pub(crate) fn remove_leftovers(data: &Path) -> Result<(), StoreError> {
    let dir = data.join(DIRECTORY);
    match std::fs::remove_dir_all(&dir) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(StoreError::Io { what: format!("delete `{}`", dir.display()), source })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
