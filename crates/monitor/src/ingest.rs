//! Follows the files that drivers write and copies each line into the day files, once.
//!
//! The place up to which a container's files were read is kept in `offsets.json` beside the day files; it may lag after
//! a crash, since a line that is read again has the same key and is ignored.
//!
//! **Invariant:** a replica's directory is deleted only when its driver marked it as ended and all of it was written.

mod source;

use std::{
    collections::{BTreeMap, BTreeSet},
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use cove_runtime::logs::{ENDED_MARK, META_FILE};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    MonitorError,
    days::{Days, Write},
};
use source::Replica;

/// Rows written in one transaction at most.
const BATCH_ROWS_MAX: usize = 2000;
/// Between two looks at everything, in case a notice was lost (inotify queues can overflow) or lines could not be written.
const FULL_LOOK_EVERY: Duration = Duration::from_secs(10);
/// Readers that may wait to be told; beyond that they wait for a place.
const ASKED_MAX: usize = 256;
/// Longest that a reader waits for lines that are in the files already; then it is given what was copied.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(5);
/// Between two transactions at least; lines that arrive meanwhile share the next one, the first after a silence is not kept
/// waiting.
const GATHER: Duration = Duration::from_millis(10);

/// Asks the ingester to copy what is in the files now; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct CatchUp(mpsc::Sender<Question>);

/// Where the ingester is asked.
pub(crate) type Asked = mpsc::Receiver<Question>;

/// Whether all lines of an app, or of one of its replicas, are copied; answered once they are.
#[derive(Debug)]
pub(crate) struct Question {
    app: String,
    replica: Option<String>,
    told: oneshot::Sender<()>,
}

impl CatchUp {
    pub(crate) fn new() -> (Self, Asked) {
        let (sender, asked) = mpsc::channel(ASKED_MAX);
        (Self(sender), asked)
    }

    /// Returns once every line that they wrote before the call can be read, or after a while, or when nobody copies.
    pub(crate) async fn wait(&self, app: &str, replica: Option<&str>) {
        let (told, hears) = oneshot::channel();
        let question = Question { app: app.to_owned(), replica: replica.map(str::to_owned), told };
        let copied = async {
            if self.0.send(question).await.is_ok() {
                // an ingester that ends copies first and tells nobody
                let _ended = hears.await;
            }
        };
        if tokio::time::timeout(CATCH_UP_LIMIT, copied).await.is_err() {
            tracing::warn!(app, "log lines are written faster than copied: a reader was given those that are copied");
        }
    }
}

/// Copies lines until it is told to stop.
pub(crate) struct Ingester {
    dir: PathBuf,
    days: Days,
    asked: Asked,
    inotify: AsyncFd<Notices>,
    root: WatchDescriptor,
    watches: BTreeMap<WatchDescriptorKey, String>,
    replicas: BTreeMap<String, (WatchDescriptor, Replica)>,
}

/// What tokio can wait on.
#[derive(Debug)]
struct Notices(Inotify);

impl AsRawFd for Notices {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

type WatchDescriptorKey = String;

fn key(descriptor: WatchDescriptor) -> WatchDescriptorKey {
    format!("{descriptor:?}")
}

impl Ingester {
    pub(crate) fn open(dir: &Path, days: Days, asked: Asked) -> Result<Self, MonitorError> {
        let io = |what: &str| {
            let what = format!("{what} `{}`", dir.display());
            move |source: std::io::Error| MonitorError::Io { what, source }
        };
        let inotify =
            Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).map_err(|e| io("watch")(e.into()))?;
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        let root = inotify.add_watch(dir, flags).map_err(|e| io("watch")(e.into()))?;
        #[expect(unsafe_code, reason = "tokio has no safe way to wait on a descriptor of another crate's type")]
        // SAFETY: `Notices` owns the inotify descriptor for as long as it lives and always gives the same one
        let inotify = unsafe { AsyncFd::register(Notices(inotify)) }.map_err(|e| io("watch")(e.into()))?;
        Ok(Self {
            dir: dir.to_owned(),
            days,
            asked,
            inotify,
            root,
            watches: BTreeMap::new(),
            replicas: BTreeMap::new(),
        })
    }

    pub(crate) async fn run(mut self, shutdown: CancellationToken) -> Result<(), MonitorError> {
        let mut dirty = self.look_at_all();
        let mut asked: Vec<Question> = Vec::new();
        let mut look_at = Instant::now() + FULL_LOOK_EVERY;
        loop {
            if Instant::now() >= look_at {
                dirty.extend(self.look_at_all());
                look_at = Instant::now() + FULL_LOOK_EVERY;
            }
            self.copy_of_each(&mut dirty).await;
            self.answer(&mut asked, &dirty);
            if shutdown.is_cancelled() {
                self.copy_the_rest().await;
                return Ok(());
            }
            if !dirty.is_empty() {
                // some of it takes long: what arrives meanwhile gets its turn
                while let Ok(question) = self.asked.try_recv() {
                    asked.push(question);
                }
                self.read_notices(&mut dirty);
                continue;
            }
            let next_at = Instant::now() + GATHER;
            tokio::select! {
                () = shutdown.cancelled() => {}
                _ = self.asked.recv_many(&mut asked, ASKED_MAX), if !self.asked.is_closed() => {
                    self.read_notices(&mut dirty);
                }
                () = tokio::time::sleep_until(look_at) => {}
                ready = self.inotify.readable() => match ready {
                    Ok(mut guard) => {
                        guard.clear_ready();
                        drop(guard);
                        tokio::time::sleep_until(next_at).await;
                        self.read_notices(&mut dirty);
                    }
                    Err(source) => return Err(MonitorError::Io { what: "wait for log files".into(), source }),
                }
            }
        }
    }

    /// Everything that is there, for as long as that takes within reason: replicas may outlive the server and go on writing.
    async fn copy_the_rest(&mut self) {
        let until = Instant::now() + CATCH_UP_LIMIT;
        let mut dirty = self.look_at_all();
        while !dirty.is_empty() && Instant::now() < until {
            self.copy_of_each(&mut dirty).await;
        }
    }

    /// Tells those who ask for what has nothing that waits; who waits no more is forgotten.
    fn answer(&self, asked: &mut Vec<Question>, dirty: &BTreeSet<String>) {
        let waits = |question: &Question| {
            let mut replicas = dirty.iter().filter_map(|name| self.replicas.get(name));
            replicas.any(|(_, replica)| replica.is_of(&question.app, question.replica.as_deref()))
        };
        for question in asked.extract_if(.., |question| question.told.is_closed() || !waits(question)) {
            let _gone = question.told.send(());
        }
    }

    /// Every replica directory, with a watch on each.
    fn look_at_all(&mut self) -> BTreeSet<String> {
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return BTreeSet::new() };
        let names: Vec<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
        for name in &names {
            self.watch(name);
        }
        self.replicas.keys().cloned().collect()
    }

    fn watch(&mut self, name: &str) {
        if self.replicas.contains_key(name) {
            return;
        }
        let path = self.dir.join(name);
        let flags = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_ONLYDIR;
        match self.inotify.get_ref().0.add_watch(&path, flags) {
            Ok(descriptor) => {
                self.watches.insert(key(descriptor), name.to_owned());
                self.replicas.insert(name.to_owned(), (descriptor, Replica::new(path)));
            }
            Err(error) => tracing::debug!(path = %path.display(), %error, "not a replica's log directory"),
        }
    }

    fn unwatch(&mut self, gone: WatchDescriptor) {
        let Some(name) = self.watches.remove(&key(gone)) else { return };
        if self.replicas.get(&name).is_some_and(|(descriptor, _)| *descriptor == gone) {
            self.replicas.remove(&name);
        }
    }

    fn read_notices(&mut self, dirty: &mut BTreeSet<String>) {
        // an overflow shows as an event without a watch: the full look every few seconds repairs it
        while let Ok(events) = self.inotify.get_ref().0.read_events() {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    dirty.extend(self.look_at_all());
                } else if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    // the folder was removed by somebody else; one may be made under the same name
                    self.unwatch(event.wd);
                } else if event.wd == self.root {
                    if let Some(name) = event.name.as_ref().and_then(|name| name.to_str()) {
                        self.watch(name);
                        dirty.insert(name.to_owned());
                    }
                } else if let Some(name) = self.watches.get(&key(event.wd)) {
                    dirty.insert(name.clone());
                }
            }
        }
    }

    /// Copies a batch of each, so that none that writes without end keeps the others waiting; leaves those that have more.
    async fn copy_of_each(&mut self, dirty: &mut BTreeSet<String>) {
        let mut ended = Vec::new();
        for name in std::mem::take(dirty) {
            let Some((_, replica)) = self.replicas.get_mut(&name) else { continue };
            match copy_batch(replica, &self.days).await {
                Ok(true) => {
                    dirty.insert(name);
                }
                Ok(false) if replica.path().join(ENDED_MARK).exists() => ended.push(name),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(replica = %name, error = &error as &dyn std::error::Error, "log lines were not copied");
                }
            }
        }
        if !ended.is_empty() {
            self.forget(&ended).await;
        }
    }

    /// Reads what is left of ended replicas, makes sure it is on disk, once for all, and deletes their directories.
    async fn forget(&mut self, ended: &[String]) {
        let mut copied = Vec::new();
        for name in ended {
            let Some((_, replica)) = self.replicas.get_mut(name) else { continue };
            if copy(replica, &self.days).await.is_ok() {
                copied.push(name);
            }
        }
        if self.days.write(Write::Flush).await.is_err() {
            return;
        }
        for name in copied {
            let Some((_, replica)) = self.replicas.get(name) else { continue };
            if let Err(error) = remove(replica.path()) {
                tracing::error!(replica = %name, %error, "copied log files were not deleted");
                continue;
            }
            if let Some((descriptor, _)) = self.replicas.remove(name) {
                self.watches.remove(&key(descriptor));
            }
        }
    }
}

/// Removes a replica's directory. What says whose lines they are goes first: when this is cut short, what is left is read by
/// nobody, and the next driver marks it as ended again.
fn remove(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path.join(META_FILE)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => std::fs::remove_dir_all(path),
    }
}

/// Copies everything that is there, batch by batch.
async fn copy(replica: &mut Replica, days: &Days) -> Result<(), MonitorError> {
    while copy_batch(replica, days).await? {}
    Ok(())
}

/// Copies a batch; `true` when there may be more.
async fn copy_batch(replica: &mut Replica, days: &Days) -> Result<bool, MonitorError> {
    let rows = replica.read(BATCH_ROWS_MAX)?;
    let is_full = rows.len() >= BATCH_ROWS_MAX;
    if !rows.is_empty() {
        days.write(Write::Console(rows)).await?;
        replica.commit();
    }
    replica.keep_place()?;
    Ok(is_full)
}
