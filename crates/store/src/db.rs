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
    time::{Duration, Instant},
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
/// What need not wait for the disk is there so long after its commit at the latest, as long as the disk works.
const SYNC_AFTER: Duration = Duration::from_secs(1);
/// Read connections that are kept.
const READERS_MAX: usize = 4;
/// Page cache of each, KiB; the kernel holds the file's pages as well.
const READER_CACHE_KIB: i32 = 512;

/// Each entry brings the schema one version further; never edit one that was released.
const MIGRATIONS: &[Migration] = &[
    Migration { sql: include_str!("schema/1.sql"), then: |_, _| Ok(()) },
    Migration { sql: include_str!("schema/2.sql"), then: secrets::seal_clear_values },
    Migration { sql: include_str!("schema/3.sql"), then: |_, _| Ok(()) },
    Migration { sql: include_str!("schema/4.sql"), then: |_, _| Ok(()) },
    Migration { sql: include_str!("schema/5.sql"), then: |_, _| Ok(()) },
    Migration { sql: include_str!("schema/6.sql"), then: |_, _| Ok(()) },
    Migration { sql: include_str!("schema/7.sql"), then: |_, _| Ok(()) },
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
    /// Reads go to this transaction for as long as it is open: see [`Store::at_one_moment`].
    moment: Option<Arc<Mutex<Option<Connection>>>>,
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

/// What a commit is to outlive once it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outlives {
    /// The machine: the commit waits for the disk.
    Machine,
    /// This process, whatever ends it: the kernel has the bytes, and the disk [`SYNC_AFTER`] later. For what means little after
    /// the machine went down.
    Process,
}

/// One queued write; `run` inside the transaction, `answer` after the commit.
trait Run: Send {
    fn outlives(&self) -> Outlives;
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
        Ok(Self { inner: Arc::new(inner), moment: None })
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
        if let Some(moment) = &self.moment
            && let Some(db) = &*moment.lock().unwrap_or_else(PoisonError::into_inner)
        {
            return f(db);
        }
        let db = self.reader()?;
        let result = f(&db);
        self.give_back(db);
        result
    }

    /// Runs several reads on the state of one moment: no write comes between them, so what a write left together is read
    /// together. Reads of `f` go through the store that it gets; short, local, never waits for the writer.
    ///
    /// # Errors
    /// When the database cannot be read, and those of `f`.
    pub fn at_one_moment<T>(&self, f: impl FnOnce(&Self) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let db = self.reader()?;
        db.execute_batch("BEGIN")?;
        let moment = Arc::new(Mutex::new(Some(db)));
        let result = f(&Self { inner: Arc::clone(&self.inner), moment: Some(Arc::clone(&moment)) });
        let db = moment.lock().unwrap_or_else(PoisonError::into_inner).take();
        // one that does not end is closed with its connection
        if let Some(db) = db.filter(|db| db.execute_batch("COMMIT").is_ok()) {
            self.give_back(db);
        }
        result
    }

    fn reader(&self) -> Result<Connection, StoreError> {
        let pooled = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
        pooled.map_or_else(|| open_reader(&self.inner.path), Ok)
    }

    fn give_back(&self, db: Connection) {
        let mut readers = self.inner.readers.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() < READERS_MAX {
            readers.push(db);
        }
    }

    /// Runs a write in the writer thread; the answer comes when it is on disk.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.write_to(Outlives::Machine, f).await
    }

    /// Runs a write in the writer thread; the answer comes when the commit outlives what it is to outlive.
    pub(crate) async fn write_to<T: Send + 'static>(
        &self,
        outlives: Outlives,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(Queued { outlives, f: Some(f), result: None, answer });
        self.hand_over(job).await?;
        answered.await.map_err(|_| StoreError::Closed)?
    }

    /// Hands a write to the writer. Its own function: a sender that stays while the answer is awaited keeps
    /// [`Store::close`] from its end.
    async fn hand_over(&self, job: Job) -> Result<(), StoreError> {
        let jobs = self.inner.jobs.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(StoreError::Closed)?;
        let is_sent = match jobs.try_send(job) {
            Ok(()) => true,
            Err(mpsc::TrySendError::Full(job)) => {
                tokio::task::spawn_blocking(move || jobs.send(job).is_ok()).await.unwrap_or(false)
            }
            Err(mpsc::TrySendError::Disconnected(_)) => false,
        };
        if is_sent { Ok(()) } else { Err(StoreError::Closed) }
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
    outlives: Outlives,
    f: Option<F>,
    result: Option<Result<T, StoreError>>,
    answer: oneshot::Sender<Result<T, StoreError>>,
}

impl<T: Send, F: FnOnce(&mut Tx<'_>) -> Result<T, StoreError> + Send> Run for Queued<T, F> {
    fn outlives(&self) -> Outlives {
        self.outlives
    }

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

/// What is committed together: what waits, in its order. What need not wait for the disk does not wait with those that do,
/// unless it came after them; the first one that ends such a group is held for the next. Empty when nothing came until then.
fn next_group(queue: &mpsc::Receiver<Job>, held: &mut Option<Job>, until: Option<Instant>) -> Option<Vec<Job>> {
    let first = match (held.take(), until) {
        (Some(first), _) => first,
        (None, None) => queue.recv().ok()?,
        (None, Some(until)) => match queue.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(first) => first,
            Err(mpsc::RecvTimeoutError::Timeout) => return Some(Vec::new()),
            Err(mpsc::RecvTimeoutError::Disconnected) => return None,
        },
    };
    let outlives = first.outlives();
    let mut group = vec![first];
    while group.len() < GROUP_MAX
        && let Ok(job) = queue.try_recv()
    {
        if outlives == Outlives::Process && job.outlives() == Outlives::Machine {
            *held = Some(job);
            break;
        }
        group.push(job);
    }
    Some(group)
}

/// Brings what was committed to the disk; says whether it is there. A disk that fails is told by commits that wait for it.
fn sync_log(db: &Connection) -> bool {
    let Some(path) = db.path() else { return true };
    match File::open(format!("{path}-wal")).and_then(|log| log.sync_data()) {
        Ok(()) => true,
        // a journal of another kind has no such file, and needs none of this
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Whether a commit waits for the disk: the database's own `synchronous`, or less for what need not.
struct Waits {
    own: i64,
    now: i64,
}

impl Waits {
    /// `synchronous=NORMAL`: in WAL mode a commit is a write to the kernel, and the log is on disk before a checkpoint.
    const NORMAL: i64 = 1;

    fn of(db: &Connection) -> Self {
        let own = db.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap_or(Self::NORMAL);
        Self { own, now: own }
    }

    fn set(&mut self, db: &Connection, outlives: Outlives) -> Result<(), rusqlite::Error> {
        let wanted = match outlives {
            Outlives::Machine => self.own,
            Outlives::Process => self.own.min(Self::NORMAL),
        };
        if wanted != self.now {
            db.pragma_update(None, "synchronous", wanted)?;
            self.now = wanted;
        }
        Ok(())
    }
}

fn write_loop(db: &Connection, queue: &mpsc::Receiver<Job>, changes: &Board<ResourceId, u64>, sequence: &AtomicU64) {
    let mut waits = Waits::of(db);
    let mut held = None;
    // when what only the kernel has is on disk at the latest
    let mut sync_at: Option<Instant> = None;
    while let Some(mut group) = next_group(queue, &mut held, sync_at) {
        if sync_at.is_some_and(|at| at <= Instant::now()) {
            sync_at = if sync_log(db) { None } else { Instant::now().checked_add(SYNC_AFTER) };
        }
        let Some(outlives) = group.first().map(|job| job.outlives()) else { continue };
        let mut tx = Tx { db, dirty: Vec::new() };
        let committed = waits.set(db, outlives).and_then(|()| run_group(&mut tx, &mut group));
        if committed.is_ok() {
            sync_at = match outlives {
                Outlives::Machine => None,
                Outlives::Process => sync_at.or_else(|| Instant::now().checked_add(SYNC_AFTER)),
            };
            for (id, exists) in std::mem::take(&mut tx.dirty) {
                let next = sequence.fetch_add(1, Ordering::Relaxed);
                if exists {
                    changes.set(id, next);
                } else {
                    changes.remove(&id);
                }
            }
        }
        let failed = committed.err().map(|error| {
            let code = error.sqlite_extended_error_code().unwrap_or(rusqlite::ffi::SQLITE_IOERR);
            (rusqlite::ffi::Error::new(code), error.to_string())
        });
        for job in group {
            job.answer(match &failed {
                None => Ok(()),
                Some((error, text)) => Err(rusqlite::Error::SqliteFailure(*error, Some(text.clone()))),
            });
        }
    }
}

/// All of a group, or nothing; no transaction is left open.
fn run_group(tx: &mut Tx<'_>, group: &mut [Job]) -> Result<(), rusqlite::Error> {
    let done = run_jobs(tx, group);
    // a full disk can have ended it already
    if done.is_err() && !tx.db.is_autocommit() {
        let _nothing_open = tx.db.execute_batch("ROLLBACK");
    }
    done
}

fn run_jobs(tx: &mut Tx<'_>, group: &mut [Job]) -> Result<(), rusqlite::Error> {
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
    tx.db.execute_batch("COMMIT")
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Asked(Outlives);

    impl Run for Asked {
        fn outlives(&self) -> Outlives {
            self.0
        }

        fn run(&mut self, _tx: &mut Tx<'_>) -> bool {
            true
        }

        fn answer(self: Box<Self>, _committed: Result<(), rusqlite::Error>) {}
    }

    #[test]
    fn what_need_not_wait_for_the_disk_waits_only_for_what_came_before() {
        use Outlives::{Machine, Process};
        let (sender, queue) = mpsc::sync_channel::<Job>(QUEUE_MAX);
        for outlives in [Process, Process, Machine, Process, Machine, Process] {
            sender.send(Box::new(Asked(outlives))).unwrap();
        }
        drop(sender);
        let mut held = None;
        let mut groups = Vec::new();
        while let Some(group) = next_group(&queue, &mut held, None) {
            groups.push((group[0].outlives(), group.len()));
        }
        assert_eq!(groups, [(Process, 2), (Machine, 4)]);
        let (_sender, queue) = mpsc::sync_channel::<Job>(1);
        assert!(next_group(&queue, &mut held, Some(Instant::now())).unwrap().is_empty(), "the log is to be synced");
    }

    #[test]
    fn a_commit_waits_for_the_disk_again_after_one_that_did_not() {
        let dir = tempfile::tempdir().unwrap();
        let db = Connection::open(dir.path().join("db")).unwrap();
        db.pragma_update(None, "journal_mode", "WAL").unwrap();
        let is = || db.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0)).unwrap();
        for (own, process) in [("FULL", 1), ("OFF", 0)] {
            db.pragma_update(None, "synchronous", own).unwrap();
            let (mut waits, before) = (Waits::of(&db), is());
            waits.set(&db, Outlives::Process).unwrap();
            assert_eq!(is(), process, "{own}");
            waits.set(&db, Outlives::Machine).unwrap();
            assert_eq!(is(), before, "{own}");
        }
    }
}
