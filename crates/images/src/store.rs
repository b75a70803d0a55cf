//! The image store: one directory, and the one way from an image name to directories that can be mounted.
//!
//! [`ImageStore::ensure`] resolves the name, fetches what is missing, unpacks what is not unpacked. Callers who want the
//! same image at the same time share one such run, callers who want images that share a layer share that layer's fetch.
//!
//! A name that was imported, pushed here or built in means the local image; a registry is asked only about names that came
//! from one, and when it cannot be reached the image already here is used.
//!
//! **Invariant:** garbage collection never runs while anything is fetched or imported, and never takes an image that
//! somebody holds.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant, SystemTime};

use camino::Utf8Path;
use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, WeakShared};
use jiff::Timestamp;
use tokio::sync::{RwLock, Semaphore, watch};

use crate::blobs::Blobs;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Image, Manifest, diff_ids};
use crate::import;
use crate::index::{ImageSource, Index, IndexEntry};
use crate::layers::Layers;
use crate::mirrors::Mirrors;
use crate::pull::{Credentials, Remote, blocking};
use crate::reference::{ImageRef, OWN_REGISTRY, Version};
use crate::sample;

mod fetch;

/// How long a registry that could not be reached is not asked again when there is something to use instead.
const UNREACHABLE_FOR: Duration = Duration::from_secs(30);

/// Limits and habits of a store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// Registries (`host:port`) that may speak plain HTTP or show a certificate nobody signed. Loopback always may.
    pub insecure_registries: Vec<String>,
    /// Registries whose images are found elsewhere. Default none.
    pub mirrors: Mirrors,
    /// Longest wait for a connection. Default 5 s.
    pub connect_timeout: Duration,
    /// Longest silence within an answer. Default 30 s.
    pub read_timeout: Duration,
    /// Longest wait for a manifest or a login. Default 30 s.
    pub resolve_timeout: Duration,
    /// Longest transfer of one layer. Default 30 min.
    pub blob_timeout: Duration,
    /// Largest uncompressed layer in bytes. Default 64 GiB.
    pub layer_size_max: u64,
    /// Layers fetched at once, over all images. Default 4.
    pub fetches_max: usize,
    /// Layers unpacked at once, over all images. Default 2.
    pub unpacks_max: usize,
    /// How long garbage collection leaves what no image names, because a push may still be on its way. Default 1 h.
    pub gc_grace: Duration,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self {
            insecure_registries: Vec::new(),
            mirrors: Mirrors::default(),
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            resolve_timeout: Duration::from_secs(30),
            blob_timeout: Duration::from_secs(30 * 60),
            layer_size_max: 64 << 30,
            fetches_max: 4,
            unpacks_max: 2,
            gc_grace: Duration::from_secs(60 * 60),
        }
    }
}

/// When a registry is asked what a tag means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// A tag that is here means what it meant when it was pulled.
    IfNotPresent,
    /// The registry is asked each time; what is here is used when it cannot be reached. ACA asks when a revision is made.
    #[default]
    Always,
}

/// What [`ImageStore::ensure`] is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPhase {
    /// Asking the registry what the name means.
    #[default]
    Resolving,
    /// Fetching and unpacking layers.
    Fetching,
    /// Done.
    Ready,
}

/// How far [`ImageStore::ensure`] has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PullProgress {
    /// What it is doing.
    pub phase: PullPhase,
    /// Layers that are unpacked.
    pub layers_done: usize,
    /// Layers of the image.
    pub layers_total: usize,
    /// Bytes fetched, of those that were not here.
    pub fetched_bytes: u64,
    /// Bytes to fetch.
    pub total_bytes: u64,
}

/// One name of [`ImageStore::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedImage {
    /// Full name.
    pub name: String,
    /// What it stands for.
    pub digest: Digest,
    /// Where it came from.
    pub source: ImageSource,
    /// When the name was last set.
    pub updated_at: Timestamp,
    /// Bytes of its blobs that are here, compressed.
    pub size_bytes: u64,
}

/// What garbage collection did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GcReport {
    /// True if something was being fetched, so nothing was done.
    pub postponed: bool,
    /// Pulled names that were forgotten.
    pub names: Vec<String>,
    /// Blobs removed.
    pub blobs: usize,
    /// Unpacked layers removed.
    pub layers: usize,
    /// Bytes freed.
    pub freed_bytes: u64,
}

type PullResult = Result<Arc<Image>, ImageError>;
type PullFuture = BoxFuture<'static, PullResult>;
type PullKey = (ImageRef, Option<Credentials>, PullPolicy);

/// A pull that others can join.
#[derive(Clone)]
struct Running {
    result: WeakShared<PullFuture>,
    progress: watch::Receiver<PullProgress>,
}

/// The images of one directory; clones share it.
#[derive(Clone)]
pub struct ImageStore(pub(crate) Arc<Inner>);

impl std::fmt::Debug for ImageStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageStore").field("blobs", &self.0.blobs).finish_non_exhaustive()
    }
}

pub(crate) struct Inner {
    config: StoreConfig,
    pub(crate) blobs: Blobs,
    layers: Layers,
    index: Mutex<Index>,
    own_hosts: Mutex<BTreeSet<String>>,
    running: Mutex<HashMap<PullKey, Running>>,
    live: Mutex<HashMap<(ImageRef, Digest), Weak<Image>>>,
    unreachable: Mutex<HashMap<String, (Instant, ImageError)>>,
    layer_locks: Mutex<BTreeMap<Digest, Weak<tokio::sync::Mutex<()>>>>,
    /// The built-in image, once it was written by this process.
    sample: Mutex<Option<Digest>>,
    fetches: Semaphore,
    unpacks: Semaphore,
    /// Read by everything that adds, written by garbage collection.
    activity: Arc<RwLock<()>>,
}

/// A lock that is only held for a few lines which cannot panic.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no holder of this lock panics")
}

impl ImageStore {
    /// Opens the store in `dir`, which is made when missing, and clears what a killed process left half done.
    ///
    /// One process at a time: the caller holds the lock of its data directory. Blocks on the file system.
    pub fn open(dir: &Utf8Path, config: StoreConfig) -> Result<Self, ImageError> {
        use std::os::unix::fs::DirBuilderExt as _;
        // Not for other users of the machine: layers hold set-id programs.
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
        made.map_err(|error| ImageError::io("create", dir, error))?;
        let tmp = dir.join("tmp");
        match fs::remove_dir_all(&tmp) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(ImageError::io("clear", &tmp, error));
            }
            _ => fs::create_dir(&tmp).map_err(|error| ImageError::io("create", &tmp, error))?,
        }
        let (fetches, unpacks) = (Semaphore::new(config.fetches_max.max(1)), Semaphore::new(config.unpacks_max.max(1)));
        Ok(Self(Arc::new(Inner {
            blobs: Blobs::open(dir)?,
            layers: Layers::open(dir)?,
            index: Mutex::new(Index::open(dir)?),
            config,
            own_hosts: Mutex::default(),
            running: Mutex::default(),
            live: Mutex::default(),
            unreachable: Mutex::default(),
            layer_locks: Mutex::default(),
            sample: Mutex::default(),
            fetches,
            unpacks,
            activity: Arc::default(),
        })))
    }

    /// Says that `host` (such as `localhost:5000`) is the embedded registry, so its images are found without asking anyone.
    pub fn add_registry_host(&self, host: impl Into<String>) {
        lock(&self.0.own_hosts).insert(host.into());
    }

    /// Makes the image ready to run: resolved, fetched, verified, unpacked.
    ///
    /// Cheap when it is already here. `progress` is called at each change, on the caller's task. Dropping the future stops
    /// the work unless somebody else waits for the same image.
    pub async fn ensure(
        &self,
        reference: &ImageRef,
        credentials: Option<Credentials>,
        policy: PullPolicy,
        progress: impl Fn(PullProgress),
    ) -> Result<Arc<Image>, ImageError> {
        let canonical = self.canonical(reference);
        let is_elsewhere = canonical.registry != reference.registry && canonical.registry != OWN_REGISTRY;
        let credentials = credentials.filter(|_| !is_elsewhere);
        let key = (canonical, credentials, policy);
        let (result, mut changes) = self.join(key);
        tokio::pin!(result);
        let mut is_watching = true;
        loop {
            tokio::select! {
                result = &mut result => {
                    progress(*changes.borrow());
                    return result;
                }
                changed = changes.changed(), if is_watching => match changed {
                    Ok(()) => progress(*changes.borrow_and_update()),
                    Err(_) => is_watching = false,
                },
            }
        }
    }

    /// Joins the pull for `key`, or starts it.
    fn join(&self, key: PullKey) -> (impl Future<Output = PullResult> + use<>, watch::Receiver<PullProgress>) {
        let mut running = lock(&self.0.running);
        if let Some(known) = running.get(&key)
            && let Some(result) = known.result.upgrade()
            // One that has ended answers for its own time only.
            && result.peek().is_none()
        {
            return (result, known.progress.clone());
        }
        let (sender, progress) = watch::channel(PullProgress::default());
        let (store, key_then) = (self.clone(), key.clone());
        let work = async move {
            let (reference, credentials, policy) = key_then;
            let result = store.fetch(&reference, credentials.as_ref(), policy, &sender).await;
            sender.send_modify(|progress| progress.phase = PullPhase::Ready);
            result
        };
        let result = work.boxed().shared();
        running.retain(|_, other| other.result.upgrade().is_some_and(|other| other.peek().is_none()));
        if let Some(weak) = result.downgrade() {
            running.insert(key, Running { result: weak, progress: progress.clone() });
        }
        (result, progress)
    }

    /// The image if it is here and unpacked; asks nobody.
    pub fn get(&self, reference: &ImageRef) -> Option<Arc<Image>> {
        let reference = self.canonical(reference);
        let digest = match &reference.version {
            Version::Digest(digest) => digest.clone(),
            Version::Tag(_) => self.entry(&reference)?.digest,
        };
        self.0.live(&reference, &digest).or_else(|| self.0.load_unpacked(&reference, &digest))
    }

    /// Imports an OCI layout (directory or tar) or a `docker save` archive, either compressed or not.
    ///
    /// `name` is given to an image that carries none in the archive. Returns the names imported.
    pub async fn import(&self, path: &Utf8Path, name: Option<&ImageRef>) -> Result<Vec<ImageRef>, ImageError> {
        let _active = self.0.activity.clone().read_owned().await;
        let (store, path, name) = (self.clone(), path.to_owned(), name.cloned());
        blocking(move || {
            let imported = import::import(&store.0.blobs, &path, name.as_ref())?;
            for image in &imported {
                let names: Vec<_> = image.names.iter().map(|name| store.canonical(name).to_string()).collect();
                lock(&store.0.index).put(&names, &image.digest, ImageSource::Imported)?;
            }
            Ok(imported.into_iter().flat_map(|image| image.names).collect())
        })
        .await
    }

    /// All names known here, in order.
    pub fn list(&self) -> Vec<ListedImage> {
        let entries: Vec<_> = lock(&self.0.index).iter().map(|(name, entry)| (name.clone(), entry.clone())).collect();
        let listed = entries.into_iter().map(|(name, entry)| {
            let (blobs, _) = self.0.reachable([&entry.digest]);
            let size_bytes = blobs.iter().filter_map(|digest| self.0.blobs.size(digest)).sum();
            let IndexEntry { digest, source, updated_at } = entry;
            ListedImage { name, digest, source, updated_at, size_bytes }
        });
        listed.collect()
    }

    /// Forgets a name; its content goes with the next garbage collection. False if the name was not known.
    pub fn remove(&self, reference: &ImageRef) -> Result<bool, ImageError> {
        let name = self.canonical(reference).to_string();
        Ok(!lock(&self.0.index).retain(|known, _| known != name)?.is_empty())
    }

    /// Forgets pulled names that are not in `keep`, then removes blobs and layers that nothing names.
    ///
    /// `keep` holds the digests of images that the platform still refers to. Imported names and pushed tags stay until they
    /// are removed; what was pushed and has no tag any more goes like what was pulled. Images that somebody holds stay in
    /// any case. Blocks on the file system.
    pub fn gc(&self, keep: &[Digest]) -> Result<GcReport, ImageError> {
        let Ok(_alone) = self.0.activity.try_write() else {
            return Ok(GcReport { postponed: true, ..GcReport::default() });
        };
        let mut roots: BTreeSet<Digest> = keep.iter().cloned().collect();
        for image in lock(&self.0.live).values().filter_map(Weak::upgrade) {
            roots.extend([image.digest.clone(), image.manifest_digest.clone()]);
        }
        let mut report = GcReport::default();
        {
            let mut index = lock(&self.0.index);
            let is_fresh = |at: Timestamp| {
                SystemTime::now().duration_since(at.into()).is_ok_and(|age| age < self.0.config.gc_grace)
            };
            report.names = index.retain(|name, entry| match entry.source {
                ImageSource::Pulled => roots.contains(&entry.digest),
                ImageSource::Pushed if name.contains('@') => {
                    roots.contains(&entry.digest) || is_fresh(entry.updated_at)
                }
                ImageSource::Pushed | ImageSource::Imported | ImageSource::BuiltIn => true,
            })?;
            roots.extend(index.iter().map(|(_, entry)| entry.digest.clone()));
        }
        let (blobs, layers) = self.0.reachable(&roots);
        let now = SystemTime::now();
        let is_old = |meta: &fs::Metadata| {
            meta.modified().is_ok_and(|at| now.duration_since(at).is_ok_and(|age| age >= self.0.config.gc_grace))
        };
        for (record, meta) in self.0.layers.list()? {
            if !layers.contains(&record.diff_id) && is_old(&meta) {
                self.0.layers.remove(&record.diff_id)?;
                report.layers += 1;
                report.freed_bytes += record.size_bytes;
            }
        }
        for (digest, meta) in self.0.blobs.list()? {
            if !blobs.contains(&digest) && is_old(&meta) {
                self.0.blobs.remove(&digest)?;
                report.blobs += 1;
                report.freed_bytes += meta.len();
            }
        }
        Ok(report)
    }

    /// The name under which an image is stored: all names of the embedded registry are one, and a mirror stands for its
    /// registry.
    pub(crate) fn canonical(&self, reference: &ImageRef) -> ImageRef {
        let mut reference = reference.clone();
        if let Some(mirror) = self.0.config.mirrors.of(&reference.registry) {
            reference.registry = mirror;
        }
        if lock(&self.0.own_hosts).contains(&reference.registry) {
            OWN_REGISTRY.clone_into(&mut reference.registry);
        }
        reference
    }

    pub(crate) fn entry(&self, reference: &ImageRef) -> Option<IndexEntry> {
        lock(&self.0.index).get(&reference.to_string()).cloned()
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        lock(&self.0.index)
    }

    /// Keeps garbage collection away for as long as the guard lives.
    pub(crate) async fn active(&self) -> tokio::sync::OwnedRwLockReadGuard<()> {
        self.0.activity.clone().read_owned().await
    }

    fn remote(&self, reference: &ImageRef, credentials: Option<&Credentials>) -> Option<Remote> {
        (reference.registry != OWN_REGISTRY).then(|| Remote::new(reference, credentials, &self.0.config))
    }

    /// Writes the built-in image unless this process already did and it is still there.
    pub(crate) fn install_sample(&self) -> Result<Digest, ImageError> {
        let mut installed = lock(&self.0.sample);
        let named = lock(&self.0.index).get(sample::SAMPLE_IMAGE).map(|entry| entry.digest.clone());
        if let Some(digest) = &*installed
            && named.as_ref() == Some(digest)
        {
            return Ok(digest.clone());
        }
        let digest = sample::install(&self.0.blobs)?;
        *installed = Some(digest.clone());
        lock(&self.0.index).put(&[sample::SAMPLE_IMAGE.to_owned()], &digest, ImageSource::BuiltIn)?;
        Ok(digest)
    }
}

impl Inner {
    fn live(&self, reference: &ImageRef, digest: &Digest) -> Option<Arc<Image>> {
        lock(&self.live).get(&(reference.clone(), digest.clone())).and_then(Weak::upgrade)
    }

    /// Remembers an image as in use; gives the one already known if there is one.
    fn hold(&self, image: Image) -> Arc<Image> {
        let mut live = lock(&self.live);
        let key = (image.reference.clone(), image.digest.clone());
        if let Some(known) = live.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        live.retain(|_, image| image.strong_count() > 0);
        let image = Arc::new(image);
        live.insert(key, Arc::downgrade(&image));
        image
    }

    /// All blobs below `roots` that are named, whether here or not, and the uncompressed digests of their layers.
    pub(crate) fn reachable<'a>(
        &self,
        roots: impl IntoIterator<Item = &'a Digest>,
    ) -> (BTreeSet<Digest>, BTreeSet<Digest>) {
        let (mut blobs, mut layers) = (BTreeSet::new(), BTreeSet::new());
        let mut open: Vec<Digest> = roots.into_iter().cloned().collect();
        while let Some(digest) = open.pop() {
            if !blobs.insert(digest.clone()) {
                continue;
            }
            let Ok(Some(bytes)) = self.blobs.read_json(&digest) else { continue };
            match Manifest::parse(&bytes, "blob") {
                Ok((Manifest::Index(manifests), _)) => open.extend(manifests.into_iter().map(|entry| entry.digest)),
                Ok((Manifest::Image { config, layers: blobs_of_layers }, _)) => {
                    let config_bytes = self.blobs.read_json(&config.digest).ok().flatten();
                    layers.extend(config_bytes.map(|bytes| diff_ids(&bytes)).unwrap_or_default());
                    blobs.insert(config.digest);
                    blobs.extend(blobs_of_layers.into_iter().map(|layer| layer.digest));
                }
                Err(_) => {}
            }
        }
        (blobs, layers)
    }
}

#[cfg(test)]
mod tests;
