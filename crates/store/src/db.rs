//! The file itself: lock, migrations, the writer thread with group commit, the readers.

use std::{
    fs::File,
    io::{Read, Seek, Write},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use cove_base::{Board, Changes};
use cove_model::ResourceId;
use nix::fcntl::{Flock, FlockArg};
use rusqlite::{Connection, OpenFlags};
use tokio::sync::oneshot;

use crate::{
    StoreError,
    secrets::{self, Keyring},
};

/// Writes that wait for one commit at most; more wait for the next.
const GROUP_MAX: usize = 256;
/// Writes that may be queued; a writer beyond that waits.
const QUEUE_MAX: usize = 4096;
/// Read connections that are kept.
const READERS_MAX: usize = 4;
/// Page cache of each, KiB; the kernel holds the file's pages as well.
const READER_CACHE_KIB: i32 = 512;

/// Each entry brings the schema one version further; never edit one that was released.
const MIGRATIONS: &[Migration] = &[
    Migration { sql: include_str!("schema/1.sql"), then: |_, _| Ok(()) },
    Migration { sql: include_str!("schema/2.sql"), then: secrets::seal_clear_values },
    Migration { sql: include_str!("schema/3.sql"), then: |_, _| Ok(()) },
];

/// SQL, and what only the program can do, in one transaction.
struct Migration {
    sql: &'static str,
    then: fn(&Connection, &Keyring) -> Result<(), StoreError>,
}

/// The control plane's state. Cheap to clone; closed when the last clone goes.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    jobs: Mutex<Option<mpsc::SyncSender<Job>>>,
    writer: Mutex<Option<thread::JoinHandle<()>>>,
    readers: Mutex<Vec<Connection>>,
    changes: Board<ResourceId, u64>,
    sequence: Arc<AtomicU64>,
    keyring: Arc<Keyring>,
    lock: Mutex<Option<Flock<File>>>,
    /// The directory of a rehearsal, gone when the store goes; declared last, so dropped after the connections.
    _scratch: Option<crate::rehearsal::Scratch>,
}

type Job = Box<dyn Run>;

/// One queued write; `run` inside the transaction, `answer` after the commit.
trait Run: Send {
    fn run(&mut self, tx: &mut Tx<'_>) -> bool;
    fn answer(self: Box<Self>, committed: Result<(), rusqlite::Error>);
}

/// The open transaction of a write.
pub(crate) struct Tx<'a> {
    pub(crate) db: &'a Connection,
    dirty: Vec<(ResourceId, bool)>,
}

impl Tx<'_> {
    /// Tells readers of the change feed after the commit.
    pub(crate) fn changed(&mut self, id: &ResourceId) {
        self.dirty.push((id.clone(), true));
    }

    /// Tells them that it is gone.
    pub(crate) fn gone(&mut self, id: &ResourceId) {
        self.dirty.push((id.clone(), false));
    }
}

/// Keeps servers out of a data directory for as long as it lives.
#[derive(Debug)]
pub struct DirectoryLock {
    _lock: Flock<File>,
}

impl Store {
    /// Locks a data directory without opening what is in it: for deleting it, whatever state it is in.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when a server runs on it, else IO.
    pub fn lock(dir: &Path) -> Result<DirectoryLock, StoreError> {
        Ok(DirectoryLock { _lock: lock_directory(dir)? })
    }

    /// Opens (or makes) `cove.db` in `dir`, brings it to the newest schema and locks the directory.
    ///
    /// # Errors
    /// [`StoreError::InUse`] when another server runs on it, [`StoreError::TooNew`] after a downgrade, one of
    /// `StoreError::SecretsKey…` when the key of its secrets is missing or not right, else IO.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let io = |what: String| move |source| StoreError::Io { what, source };
        std::fs::create_dir_all(dir).map_err(io(format!("create `{}`", dir.display())))?;
        let lock = lock_directory(dir)?;
        crate::rehearsal::remove_leftovers(dir)?;
        let path = dir.join("cove.db");
        let mut db = Connection::open(&path)?;
        restrict(&path).map_err(io(format!("restrict `{}` to its owner", path.display())))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(None, "synchronous", "FULL")?;
        db.pragma_update(None, "foreign_keys", "ON")?;
        db.busy_timeout(Duration::from_secs(5))?;
        db.pragma_update(None, "secure_delete", "ON")?;
        let keyring = Keyring::open(dir, &db)?;
        migrate(&mut db, &keyring)?;
        secrets::repair(&db, &keyring)?;
        let changes = Board::default();
        let sequence = Arc::new(AtomicU64::new(1));
        {
            let mut rows = db.prepare("SELECT id FROM resources")?;
            for id in rows.query_map([], |row| row.get::<_, String>(0))? {
                if let Ok(id) = ResourceId::parse(&id?) {
                    changes.set(id, 0);
                }
            }
        }
        Self::start(path, db, changes, sequence, Arc::new(keyring), (Some(lock), None))
    }

    /// Starts the writer on an open database.
    pub(crate) fn start(
        path: PathBuf,
        db: Connection,
        changes: Board<ResourceId, u64>,
        sequence: Arc<AtomicU64>,
        keyring: Arc<Keyring>,
        (lock, scratch): (Option<Flock<File>>, Option<crate::rehearsal::Scratch>),
    ) -> Result<Self, StoreError> {
        let (jobs, queue) = mpsc::sync_channel(QUEUE_MAX);
        let writer = thread::Builder::new()
            .name("store-writer".into())
            .spawn({
                let (changes, sequence) = (changes.clone(), Arc::clone(&sequence));
                move || write_loop(&db, &queue, &changes, &sequence)
            })
            .map_err(|source| StoreError::Io { what: "start the writer thread".into(), source })?;
        let inner = Inner {
            path,
            jobs: Mutex::new(Some(jobs)),
            writer: Mutex::new(Some(writer)),
            readers: Mutex::new(Vec::new()),
            changes,
            sequence,
            keyring,
            lock: Mutex::new(lock),
            _scratch: scratch,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The newest form of the database that this program knows.
    #[must_use]
    pub fn schema() -> i64 {
        i64::try_from(MIGRATIONS.len()).expect("a handful of migrations")
    }

    /// Ends all writing and unlocks the directory, whoever else still holds a clone: another process may open it then. What
    /// is written later fails with [`StoreError::Closed`]; what was handed over before is committed first. Blocks the caller.
    pub fn close(&self) {
        self.inner.end();
    }

    /// What opens and seals secrets.
    pub(crate) fn keyring(&self) -> &Arc<Keyring> {
        &self.inner.keyring
    }

    /// The file of the database.
    pub(crate) fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Notices of every resource that changes from now on; all that exist count as changed at first.
    #[must_use]
    pub fn changes(&self) -> Changes<ResourceId> {
        self.inner.changes.subscribe()
    }

    /// Makes readers of the change feed look at a resource again, without a write.
    pub fn touch(&self, id: &ResourceId) {
        let next = self.inner.sequence.fetch_add(1, Ordering::Relaxed);
        self.inner.changes.set(id.clone(), next);
    }

    /// Runs a read; short, local, never waits for the writer.
    pub(crate) fn read<T>(&self, f: impl FnOnce(&Connection) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let pooled = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let db = match pooled {
            Some(db) => db,
            None => open_reader(&self.inner.path)?,
        };
        let result = f(&db);
        let mut readers = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS_MAX {
            readers.push(db);
        }
        result
    }

    /// Runs a write in the writer thread; the answer comes after the commit.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(Queued { f: Some(f), result: None, answer });
        let jobs = self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StoreError::Closed)?;
        match jobs.try_send(job) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(job)) => {
                let sent = tokio::task::spawn_blocking(move || jobs.send(job).is_ok()).await.unwrap_or(false);
                if !sent {
                    return Err(StoreError::Closed);
                }
            }
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(StoreError::Closed),
        }
        answered.await.map_err(|_| StoreError::Closed)?
    }
}

impl Inner {
    fn end(&self) {
        drop(self.jobs.lock().unwrap_or_else(PoisonError::into_inner).take());
        if let Some(writer) = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // the writer never holds a `Store`, so this thread is not the writer
            let _ended = writer.join();
        }
        drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.end();
    }
}

struct Queued<T, F> {
    f: Option<F>,
    result: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send> Run for Queued<T, F> {
    fn run(&mut self, tx: &mut Tx<'_>) -> bool {
        let Some(f) = self.f.take() else { return false };
        let result = f(tx);
        let is_ok = result.is_ok();
        self.result = Some(result);
        is_ok
    }

    fn answer(self: Box<Self>, committed: Result<(), rusqlite::Error>) {
        let result = match (committed, self.result) {
            (Ok(()), Some(result)) | (Err(_), Some(result @ Err(_))) => result,
            (Err(error), _) => Err(error.into()),
            (Ok(()), None) => Err(StoreError::Closed),
        };
        let _caller_left = self.answer.send(result);
    }
}

fn write_loop(db: &Connection, queue: &mpsc::Receiver<Job>, changes: &Board<ResourceId, u64>, sequence: &AtomicU64) {
    while let Ok(first) = queue.recv() {
        let mut group = vec![first];
        while group.len() < GROUP_MAX {
            let Ok(job) = queue.try_recv() else { break };
            group.push(job);
        }
        let mut tx = Tx { db, dirty: Vec::new() };
        let committed = run_group(&mut tx, &mut group);
        if committed.is_ok() {
            for (id, exists) in std::mem::take(&mut tx.dirty) {
                let next = sequence.fetch_add(1, Ordering::Relaxed);
                if exists {
                    changes.set(id, next);
                } else {
                    changes.remove(&id);
                }
            }
        }
        let message = committed.as_ref().err().map(ToString::to_string);
        for job in group {
            job.answer(match &message {
                None => Ok(()),
                Some(text) => Err(rusqlite::Error::SqliteFailure(
                    rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_IOERR),
                    Some(text.clone()),
                )),
            });
        }
    }
}

fn run_group(tx: &mut Tx<'_>, group: &mut [Job]) -> Result<(), rusqlite::Error> {
    tx.db.execute_batch("BEGIN IMMEDIATE")?;
    for job in group.iter_mut() {
        tx.db.execute_batch("SAVEPOINT job")?;
        let dirty_before = tx.dirty.len();
        if job.run(tx) {
            tx.db.execute_batch("RELEASE job")?;
        } else {
            tx.dirty.truncate(dirty_before);
            tx.db.execute_batch("ROLLBACK TO job; RELEASE job")?;
        }
    }
    tx.db.execute_batch("COMMIT").inspect_err(|_| {
        let _nothing_open = tx.db.execute_batch("ROLLBACK");
    })
}

fn migrate(db: &mut Connection, keyring: &Keyring) -> Result<(), StoreError> {
    let found: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let known = Store::schema();
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    let done = usize::try_from(found).unwrap_or(0);
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(done) {
        let tx = db.transaction()?;
        tx.execute_batch(migration.sql)?;
        (migration.then)(&tx, keyring)?;
        tx.pragma_update(None, "user_version", i64::try_from(index + 1).expect("a handful of migrations"))?;
        tx.commit()?;
    }
    Ok(())
}

fn open_reader(path: &Path) -> Result<Connection, StoreError> {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX)?;
    db.busy_timeout(Duration::from_secs(5))?;
    // a negative number is a size in KiB, a positive one a number of pages
    db.pragma_update(None, "cache_size", -READER_CACHE_KIB)?;
    Ok(db)
}

fn lock_directory(dir: &Path) -> Result<Flock<File>, StoreError> {
    let path = dir.join("cove.lock");
    let file = File::options().read(true).write(true).create(true).truncate(false).open(&path);
    let file = file.map_err(|source| StoreError::Io { what: format!("open `{}`", path.display()), source })?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let pid = std::process::id().to_string();
            let written = lock.set_len(0).and_then(|()| lock.rewind()).and_then(|()| lock.write_all(pid.as_bytes()));
            written.map_err(|source| StoreError::Io { what: format!("write `{}`", path.display()), source })?;
            Ok(lock)
        }
        Err((mut file, _)) => {
            let mut pid = String::new();
            let _unknown_pid_is_fine = file.read_to_string(&mut pid);
            Err(StoreError::InUse { dir: dir.display().to_string(), pid })
        }
    }
}

pub(crate) fn restrict(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))
}
