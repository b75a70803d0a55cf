//! Templates of machines: the first machine of a pool's generation is saved when it is ready to be told, later ones go on
//! as copies of it.
//!
//! A template is a folder `<generation>-<key>` with the machine's state (devices and memory) and a link to its disk, below a
//! folder that is named after this start of the host: what was saved before it is of no use. The key covers all that the
//! machine began with, secrets too, so no two generations, images or sizes share one. The helper makes it beside and renames it.
//!
//! **Invariant:** a folder without `.part` is whole; what is not is removed when the driver opens.
//! **Invariant:** those that wait for a template are let go on whatever becomes of its maker, within [`MAKER_LIMIT`].

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_images::Image;
use cove_model::{EventKind, ReplicaName, RevisionKey};
use cove_runtime::{ReplicaSpec, Sandbox};
use sha2::{Digest as _, Sha256};

use super::{Inner, freeze, lock, prepare};
use crate::{
    layer_copy,
    protocol::{MachineOrder, ShimState, TemplateNews, TemplateOrder},
};

/// Counts up when machines are saved in another way.
const RECIPE: &str = "1";

/// Ending of what is not whole.
const PART: &str = ".part";

/// Longest wait for the machine that is to be saved.
const MAKER_LIMIT: Duration = Duration::from_secs(180);

/// Templates of generations that nobody has spoken of for so long after the start are removed.
const CLAIM_LIMIT: Duration = Duration::from_secs(600);

/// Free space of the disk that templates never take.
const KEPT_FREE_BYTES: u64 = 1 << 30;

/// What is known of templates.
#[derive(Debug)]
pub(super) struct Templates {
    dir: Utf8PathBuf,
    bytes_max: u64,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// Who is to be saved as what, and who waits for that.
    makers: BTreeMap<String, Maker>,
    /// Generations that somebody has spoken of.
    claimed: BTreeSet<String>,
}

#[derive(Debug)]
struct Maker {
    replica: ReplicaName,
    waiting: Vec<ReplicaName>,
}

/// What a machine does with templates.
pub(super) enum Choice {
    /// Nothing: it boots.
    Boot,
    /// This.
    Order(TemplateOrder),
    /// It waits: another is about to be saved.
    Wait,
}

impl Templates {
    /// Below `dir`; removes those of earlier starts of the host. `bytes_max` 0: there are none.
    pub(super) fn open(dir: &Utf8Path, bytes_max: u64) -> io::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        let boot = boot.trim();
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        for entry in dir.read_dir_utf8()?.flatten() {
            if entry.file_name() != boot || bytes_max == 0 {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let dir = dir.join(boot);
        DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
        Ok(Self { dir, bytes_max, known: Mutex::default() })
    }

    /// Whether there are any.
    pub(super) fn are_on(&self) -> bool {
        self.bytes_max > 0
    }

    fn whole(&self) -> Vec<(String, Utf8PathBuf)> {
        let entries = self.dir.read_dir_utf8().into_iter().flatten().flatten();
        { entries.filter(|entry| !entry.file_name().ends_with(PART)) }
            .map(|entry| (entry.file_name().to_owned(), entry.into_path()))
            .collect()
    }

    /// Removes whole ones, by their names; one that is gone already is none the worse.
    fn remove(&self, is_it: impl Fn(&str) -> bool) {
        for (name, path) in self.whole().into_iter().filter(|(name, _)| is_it(name)) {
            let part = self.dir.join(format!("{name}.removed{PART}"));
            let removed = fs::rename(&path, &part).and_then(|()| fs::remove_dir_all(&part));
            if let Err(error) = removed.or_else(|error| match error.kind() {
                io::ErrorKind::NotFound => Ok(()),
                _ => Err(error),
            }) {
                tracing::warn!(%path, %error, "a machine's template could not be removed");
            }
        }
    }

    /// Drops what was not used for longest until one more of this size fits; `false`: it never will.
    fn make_room(&self, bytes: u64) -> bool {
        if bytes > self.bytes_max {
            return false;
        }
        let mut all: Vec<_> = { self.whole().into_iter() }
            .map(|(name, path)| {
                let used = fs::metadata(&path).and_then(|meta| meta.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                let size = fs::metadata(path.join(crate::shim::STATE_FILE_OF_TEMPLATE)).map_or(0, |meta| meta.len());
                (used, size, name)
            })
            .collect();
        all.sort();
        let mut total: u64 = all.iter().map(|(_, size, _)| size).sum();
        for (_, size, name) in all {
            if total + bytes <= self.bytes_max {
                break;
            }
            self.remove(|other| other == name);
            total -= size;
        }
        let free = layer_copy::open_folder(&self.dir).and_then(|folder| layer_copy::free_bytes(&folder));
        total + bytes <= self.bytes_max && free.is_ok_and(|free| free >= bytes + KEPT_FREE_BYTES)
    }
}

fn hash(parts: &[&[u8]]) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update((part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

fn generation(revision: &RevisionKey) -> String {
    hash(&[&serde_json::to_vec(revision).unwrap_or_default()])
}

/// All that a machine begins with but its own name: the same key, the same machine.
fn key(inner: &Inner, spec: &ReplicaSpec, image: &Image, order: &MachineOrder) -> Option<String> {
    let sandbox = spec.sandbox.clone().map(|sandbox| Sandbox { is_ahead: false, ..sandbox });
    let of_all = ReplicaSpec { name: ReplicaName::new("any").ok()?, logins: Vec::new(), sandbox, ..spec.clone() };
    let authority = inner.config.ca_certificate.as_deref().unwrap_or_default();
    let parts = [
        serde_json::to_vec(&of_all).ok()?,
        format!("{:?} {:?}", image.layers, image.config).into_bytes(),
        // paths of kernel and initial file system name their content, and the disk's is of one replica
        serde_json::to_vec(&(&order.spec, &order.layers, &order.parts[..2])).ok()?,
        serde_json::to_vec(&(order.disk_bytes, order.tasks_max, &order.resolv_conf)).ok()?,
    ];
    let mut all: Vec<&[u8]> = vec![RECIPE.as_bytes(), authority.as_bytes()];
    all.extend(parts.iter().map(Vec::as_slice));
    Some(format!("{}-{}", generation(&spec.revision), hash(&all)))
}

/// Decides what a machine does with templates. Looks at the disk.
pub(super) fn choose(inner: &Arc<Inner>, spec: &ReplicaSpec, image: &Image, order: &MachineOrder) -> Choice {
    let templates = &inner.templates;
    let (Some(port), true) = (spec.target_port, templates.are_on()) else { return Choice::Boot };
    let Some(key) = key(inner, spec, image, order) else { return Choice::Boot };
    let dir = templates.dir.join(&key);
    let mut known = lock(&templates.known);
    known.claimed.insert(generation(&spec.revision));
    if dir.exists() {
        return Choice::Order(TemplateOrder::Restore { dir });
    }
    if let Some(maker) = known.makers.get_mut(&key).filter(|maker| maker.replica != spec.name) {
        if !maker.waiting.contains(&spec.name) {
            maker.waiting.push(spec.name.clone());
        }
        let maker = maker.replica.clone();
        drop(known);
        let is_wanted = spec.sandbox.as_ref().is_some_and(|sandbox| !sandbox.is_ahead);
        if let Some(maker) = lock(&inner.state).replicas.get(&maker).filter(|_| is_wanted) {
            // it is waited for, though not for its own sake
            freeze::weigh_as_usual(inner, maker);
        }
        return Choice::Wait;
    }
    if !templates.make_room(order.spec.memory_bytes) {
        return Choice::Boot;
    }
    known.makers.insert(key, Maker { replica: spec.name.clone(), waiting: Vec::new() });
    let (inner, maker, stop) = (Arc::clone(inner), spec.name.clone(), inner.stop.clone());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        tokio::time::sleep(MAKER_LIMIT).await;
        settled(&inner, &maker);
    }));
    Choice::Order(TemplateOrder::Save { dir, port })
}

/// The machine that was to be saved is saved or never will be: who waits goes on.
pub(super) fn settled(inner: &Arc<Inner>, maker: &ReplicaName) {
    let waiting: Vec<_> = {
        let mut known = lock(&inner.templates.known);
        { known.makers.extract_if(.., |_, known| known.replica == *maker) }.flat_map(|(_, made)| made.waiting).collect()
    };
    if !waiting.is_empty() {
        prepare::queue_again(inner, waiting);
    }
}

/// Takes one out of the line; `true` when it was there.
pub(super) fn abandon(inner: &Inner, name: &ReplicaName) -> bool {
    let mut known = lock(&inner.templates.known);
    let before: usize = known.makers.values().map(|maker| maker.waiting.len()).sum();
    known.makers.values_mut().for_each(|maker| maker.waiting.retain(|waiting| waiting != name));
    before != known.makers.values().map(|maker| maker.waiting.len()).sum::<usize>()
}

/// Somebody speaks of a generation: its templates are of use.
pub(super) fn claim(inner: &Inner, revision: &RevisionKey) {
    if inner.templates.are_on() {
        lock(&inner.templates.known).claimed.insert(generation(revision));
    }
}

/// A generation is gone: its templates go too.
pub(super) fn forget(inner: &Arc<Inner>, revision: &RevisionKey) {
    let of = generation(revision);
    lock(&inner.templates.known).claimed.remove(&of);
    let inner = Arc::clone(inner);
    let remove = move || inner.templates.remove(|name| name.starts_with(&of));
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(remove)),
        Err(_) => remove(),
    }
}

/// After replicas were found again: removes what is left of makers that are gone, and later what nobody speaks of.
pub(super) fn sweep(inner: &Arc<Inner>) {
    let mut makers = BTreeSet::new();
    {
        let state = lock(&inner.state);
        let mut known = lock(&inner.templates.known);
        for (name, replica) in state.replicas.iter().filter(|(_, replica)| replica.ended.is_none()) {
            makers.insert(name.to_string());
            known.claimed.insert(generation(&replica.spec.revision));
        }
    }
    for entry in inner.templates.dir.read_dir_utf8().into_iter().flatten().flatten() {
        let Some(name) = entry.file_name().strip_suffix(PART) else { continue };
        if !name.split_once('.').is_some_and(|(_, maker)| makers.contains(maker)) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
    let (inner, stop) = (Arc::clone(inner), inner.stop.clone());
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        tokio::time::sleep(CLAIM_LIMIT).await;
        let removed = tokio::task::spawn_blocking(move || {
            let claimed = lock(&inner.templates.known).claimed.clone();
            inner.templates.remove(|name| name.split_once('-').is_none_or(|(of, _)| !claimed.contains(of)));
        });
        let _ = removed.await;
    }));
}

/// Tells what became of a machine's template.
pub(super) fn tell(inner: &Inner, spec: &ReplicaSpec, old: &ShimState, new: &ShimState) {
    for (before, now) in old.containers.iter().zip(&new.containers) {
        let Some(news) = now.template.as_ref().filter(|_| before.template != now.template) else { continue };
        let name = &spec.name;
        let (kind, reason, message) = match news {
            TemplateNews::Saved { ms, bytes } => {
                let mib = bytes >> 20;
                let text =
                    format!("Machine '{name}' was saved in {ms} ms, {mib} MiB: others of its pool begin as copies");
                (EventKind::Normal, "MachineSaved", text)
            }
            TemplateNews::NotSaved { reason } => {
                let text = format!("Machine '{name}' could not be saved for others to begin as copies: {reason}");
                (EventKind::Warning, "MachineNotSaved", text)
            }
            TemplateNews::Restored { ms } => {
                let text = format!("Machine '{name}' began as a copy of one that was ready, in {ms} ms");
                (EventKind::Normal, "MachineRestored", text)
            }
            TemplateNews::NotRestored { reason } => {
                let text = format!("Machine '{name}' could not begin as a copy of one that was ready: {reason}");
                (EventKind::Warning, "MachineNotRestored", text)
            }
        };
        inner.event(spec, Some(&now.name), kind, reason, message);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A template of so many bytes that was used so many seconds after the epoch.
    fn add(templates: &Templates, name: &str, bytes: u64, used: u64) {
        let dir = templates.dir.join(name);
        fs::create_dir(&dir).unwrap();
        let state = fs::File::create(dir.join(crate::shim::STATE_FILE_OF_TEMPLATE)).unwrap();
        state.set_len(bytes).unwrap();
        fs::File::open(&dir).unwrap().set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(used)).unwrap();
    }

    fn names(templates: &Templates) -> Vec<String> {
        let mut names: Vec<_> = templates.whole().into_iter().map(|(name, _)| name).collect();
        names.sort();
        names
    }

    #[test]
    fn the_one_that_was_not_used_for_longest_makes_room() {
        let root = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(root.path()).unwrap();
        let templates = Templates::open(root, 1000).unwrap();
        add(&templates, "a-1", 400, 30);
        add(&templates, "b-1", 300, 10);
        add(&templates, "c-1", 300, 20);
        fs::create_dir(templates.dir.join("d-1.web.part")).unwrap();
        assert!(templates.make_room(300));
        assert_eq!(names(&templates), ["a-1", "c-1"]);
        assert!(templates.make_room(300));
        assert_eq!(names(&templates), ["a-1", "c-1"], "there was room for it");
        assert!(!templates.make_room(1001));
        assert_eq!(names(&templates), ["a-1", "c-1"], "what never fits drives nothing out");
        assert!(templates.dir.join("d-1.web.part").exists(), "it is being made");
    }

    #[test]
    fn those_of_an_earlier_start_of_the_host_are_removed() {
        let root = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(root.path()).unwrap();
        fs::create_dir_all(root.join("another-start/a-1")).unwrap();
        let templates = Templates::open(root, 1000).unwrap();
        add(&templates, "a-1", 400, 30);
        assert!(!root.join("another-start").exists());
        assert_eq!(names(&Templates::open(root, 1000).unwrap()), ["a-1"]);
        let none = Templates::open(root, 0).unwrap();
        assert!(!none.are_on() && names(&none).is_empty());
    }
}
