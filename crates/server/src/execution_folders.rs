//! Folders of executions: read for the API, measured while executions run, removed with the history.
//!
//! The driver makes them; the store says which executions there are. A look every few seconds compares the two: it asks the
//! store about executions that have not ended and, when one of a job has ended, about all of that job's; everything is
//! compared at the start and from time to time.
//!
//! **Invariant:** a folder is removed only when the store was read and has no such execution, or newer ones take its place.
//! **Invariant:** nothing is removed below an execution that has not ended.

mod tree;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use camino::Utf8Path;
use cove_base::{Changes, Clock};
use cove_control_plane::{ArtifactList, Artifacts};
use cove_model::{
    ArtifactsVolume, Bytes, EventKind, Execution, JOB_KIND, ResourceId, RevisionKey, RevisionName, SystemEvent,
    VolumeKind,
};
use cove_runtime_oci::{ExecutionDirs, ExecutionPart};
use cove_store::{Store, StoreError};
use futures_util::{FutureExt as _, future::BoxFuture};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// Files that a list shows.
const LISTED_MAX: usize = 10_000;
/// Time between two looks: an execution holds more than it may for about as long at most.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Everything is compared this often.
const ALL_EVERY: Duration = Duration::from_secs(600);

/// The folders as the API reads them.
#[derive(Debug)]
pub(crate) struct Folders(pub(crate) ExecutionDirs);

impl Artifacts for Folders {
    fn list(&self, execution: &RevisionKey) -> BoxFuture<'static, io::Result<Option<ArtifactList>>> {
        let path = self.0.path(execution, ExecutionPart::Artifacts);
        off_the_loop(move || {
            let walked = tree::walk(&path, LISTED_MAX)?;
            Ok(walked.map(|walked| ArtifactList { files: walked.files, is_cut: walked.is_cut }))
        })
    }

    fn open(&self, execution: &RevisionKey, path: &str) -> BoxFuture<'static, io::Result<(File, u64)>> {
        let (root, path) = (self.0.path(execution, ExecutionPart::Artifacts), path.to_owned());
        off_the_loop(move || tree::open(&root, &path))
    }
}

fn off_the_loop<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> BoxFuture<'static, io::Result<T>> {
    async move { tokio::task::spawn_blocking(work).await.map_err(io::Error::other)? }.boxed()
}

/// Looks until shutdown.
pub(crate) async fn follow(
    dirs: ExecutionDirs,
    store: Store,
    clock: Clock,
    events: mpsc::Sender<SystemEvent>,
    stop: CancellationToken,
) {
    let mut keeper = Keeper::new(dirs, store.clone());
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let looked = tokio::task::spawn_blocking(move || {
            let found = keeper.look();
            (keeper, found)
        });
        let Ok((back, found)) = looked.await else { return };
        keeper = back;
        let too_large = found.unwrap_or_else(|error| {
            tracing::warn!(%error, "folders of executions are not looked after until the store can be read");
            // what was found before that was told to nobody
            keeper.too_large.clear();
            Vec::new()
        });
        for one in too_large {
            let (job, name) = (one.execution.job.clone(), one.execution.name.clone());
            if let Err(error) = store.stop_executions(job, Some(name), clock.now()).await {
                tracing::warn!(execution = %one.execution.key(), %error, "an execution whose artifacts are too large was not stopped; trying again");
                keeper.too_large.remove(&one.execution.key());
                continue;
            }
            if events.try_send(one.event(&clock)).is_err() {
                tracing::debug!(execution = %one.execution.key(), "a system event was dropped: its reader is behind or gone");
            }
        }
    }
}

/// An execution that holds more than it may.
#[derive(Debug)]
struct TooLarge {
    execution: Execution,
    bytes: u64,
    entries: u64,
    max_bytes: Bytes,
}

impl TooLarge {
    fn event(&self, clock: &Clock) -> SystemEvent {
        let Self { execution, bytes, entries, max_bytes } = self;
        let message = format!(
            "The artifacts of execution '{}' take {bytes} bytes in {entries} files and directories; {} ({} bytes) in less than {} are allowed. An execution that runs is stopped; what it wrote is kept. Raise coveMaxSize of the volume, or write less.",
            execution.name,
            max_bytes.to_quantity(),
            max_bytes.0,
            tree::ENTRIES_MAX,
        );
        SystemEvent {
            at: clock.now(),
            kind: EventKind::Warning,
            reason: "ArtifactsTooLarge".to_owned(),
            message,
            environment: Some(execution.environment.to_string()),
            app: Some(execution.job.to_string()),
            revision: Some(execution.name.to_string()),
            replica: None,
            container: None,
            source: "ContainerAppController".to_owned(),
        }
    }
}

/// What is known of the folders.
struct Keeper {
    dirs: ExecutionDirs,
    store: Store,
    changes: Changes<ResourceId>,
    /// Jobs by the names of their folders; gone ones too until their folder is gone.
    jobs: BTreeMap<String, ResourceId>,
    /// Executions that have ended and whose folders may stay.
    settled: BTreeMap<String, BTreeSet<RevisionName>>,
    /// Told once each, and again after the store could not be read.
    too_large: BTreeSet<RevisionKey>,
    all_at: Option<Instant>,
    /// Nothing was looked at yet: what has ended ended before this server, which tells nothing of it.
    is_first: bool,
}

impl Keeper {
    fn new(dirs: ExecutionDirs, store: Store) -> Self {
        let changes = store.changes();
        let (jobs, settled, too_large) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { dirs, store, changes, jobs, settled, too_large, all_at: None, is_first: true }
    }

    /// Compares, removes, measures; gives what is too large for the first time.
    fn look(&mut self) -> Result<Vec<TooLarge>, StoreError> {
        // before the store is asked: what is made after that is another look's, and is not removed with what is gone
        let root = self.dirs.root().to_owned();
        let folders = names_in(&root).into_iter().map(|folder| {
            let there = names_in(&root.join(&folder));
            (folder, there)
        });
        let folders: Vec<(String, Vec<String>)> = folders.collect();
        let changed: Vec<ResourceId> =
            self.changes.take().into_iter().filter(|id| id.kind().eq_ignore_ascii_case(JOB_KIND)).collect();
        for id in changed {
            let folder = ExecutionDirs::job_folder(&id);
            self.settled.remove(&folder);
            self.jobs.insert(folder, id);
        }
        let is_all = self.all_at.is_none_or(|at| at.elapsed() >= ALL_EVERY);
        if is_all {
            self.settled.clear();
            for row in self.store.resources(JOB_KIND, None)? {
                self.jobs.insert(ExecutionDirs::job_folder(&row.id), row.id);
            }
            self.all_at = Some(Instant::now());
        }
        let mut too_large = Vec::new();
        for (folder, there) in folders {
            match self.jobs.get(&folder).cloned() {
                Some(job) if self.store.resource(&job)?.is_some() => {
                    self.look_at((&folder, there), &job, &mut too_large)?;
                }
                // a job that is gone, or that nobody has heard of in a whole look at the store
                Some(_) => {
                    self.jobs.remove(&folder);
                    self.settled.remove(&folder);
                    clear(&root.join(&folder), &there);
                }
                None if is_all => clear(&root.join(&folder), &there),
                None => {}
            }
        }
        self.is_first = false;
        Ok(too_large)
    }

    fn look_at(
        &mut self,
        (folder, there): (&str, Vec<String>),
        job: &ResourceId,
        too_large: &mut Vec<TooLarge>,
    ) -> Result<(), StoreError> {
        let path = self.dirs.root().join(folder);
        let there: BTreeSet<RevisionName> = there.into_iter().filter_map(|name| RevisionName::new(name).ok()).collect();
        let settled = self.settled.get(folder).cloned().unwrap_or_default();
        // and those that have just ended
        let mut open = Vec::new();
        let mut is_news = false;
        for name in there.difference(&settled) {
            let key = RevisionKey { app: job.clone(), name: name.clone() };
            match self.store.execution(&key)? {
                Some(execution) if !execution.status.is_final() => open.push(execution),
                Some(execution) => {
                    is_news = true;
                    if !self.is_first {
                        open.push(execution);
                    }
                }
                None => is_news = true,
            }
        }
        for execution in open {
            self.measure(execution, too_large);
        }
        if is_news {
            // the newest first; those that the history has dropped are not among them
            let kept: Vec<Execution> = self.store.executions(job)?;
            self.keep(&path, job, &there, &kept);
            let ended = kept.into_iter().filter(|one| one.status.is_final() && there.contains(&one.name));
            self.settled.insert(folder.to_owned(), ended.map(|one| one.name).collect());
        }
        Ok(())
    }

    /// Removes what the history and the newest executions leave no place for.
    fn keep(&mut self, path: &Utf8Path, job: &ResourceId, there: &BTreeSet<RevisionName>, kept: &[Execution]) {
        let known: BTreeSet<&RevisionName> = kept.iter().map(|execution| &execution.name).collect();
        for name in there.iter().filter(|name| !known.contains(name)) {
            self.too_large.remove(&RevisionKey { app: job.clone(), name: name.clone() });
            remove(&path.join(name.as_str()));
        }
        let ended = kept.iter().filter(|one| one.status.is_final() && volume_of(one).is_some());
        // the newest execution's word counts
        let newest = kept.iter().find_map(volume_of).map_or(0, |volume| volume.keep_executions);
        for one in ended.skip(usize::try_from(newest).unwrap_or(usize::MAX)) {
            let old = path.join(one.name.as_str()).join(ExecutionPart::Artifacts.folder());
            if old.exists() {
                remove(&old);
            }
        }
    }

    fn measure(&mut self, execution: Execution, too_large: &mut Vec<TooLarge>) {
        let Some(volume) = volume_of(&execution) else { return };
        let key = execution.key();
        match tree::walk(&self.dirs.path(&key, ExecutionPart::Artifacts), 0) {
            Ok(Some(walked)) if walked.bytes > volume.max_bytes.0 || walked.entries >= tree::ENTRIES_MAX => {
                if self.too_large.insert(key) {
                    let (bytes, entries, max_bytes) = (walked.bytes, walked.entries, volume.max_bytes);
                    too_large.push(TooLarge { execution, bytes, entries, max_bytes });
                }
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(execution = %key, %error, "the artifacts of an execution cannot be measured"),
        }
    }
}

fn volume_of(execution: &Execution) -> Option<ArtifactsVolume> {
    execution.template.volumes.iter().find_map(|volume| match volume.kind {
        VolumeKind::Artifacts(artifacts) => Some(artifacts),
        _ => None,
    })
}

/// Names of the directories in a directory; none when it is not there.
fn names_in(path: &Utf8Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(path) else { return Vec::new() };
    let dirs = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect()
}

/// Removes these executions of a job that is gone, and its folder, unless there is something else in it: a job of the same
/// name may have begun meanwhile.
fn clear(path: &Utf8Path, there: &[String]) {
    for name in there {
        remove(&path.join(name));
    }
    match fs::remove_dir(path) {
        Ok(()) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {}
        Err(error) => tracing::warn!(%path, %error, "the folder of a job that is gone could not be removed"),
    }
}

/// Removes a folder and all in it; links in it are removed, not followed.
fn remove(path: &Utf8Path) {
    match fs::remove_dir_all(path) {
        Ok(()) => tracing::debug!(%path, "a folder of executions was removed"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%path, %error, "a folder of executions could not be removed"),
    }
}

/// The folders for the API.
pub(crate) fn for_api(dirs: &ExecutionDirs) -> Arc<dyn Artifacts> {
    Arc::new(Folders(dirs.clone()))
}

#[cfg(test)]
mod tests;
