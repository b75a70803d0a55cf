//! An image's layers as one read-only disk (EROFS), made once and kept.
//!
//! The layers are laid over each other by the kernel, in a mount namespace of the one program that reads them, and written
//! as one file, uncompressed: machines of the same image share its pages in the host's memory. A machine gets a link to
//! the file, so what the cache drops is still there for those that have it.
//!
//! **Invariant:** a disk in the cache is whole: it is made beside and renamed. Asked for by two at once it is made once.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    process::{Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

/// Bytes that the cache may hold unless said otherwise; disks of running machines are not dropped and may exceed it.
pub const CACHE_BYTES_MAX: u64 = 20 << 30;

/// Longest that making one may take, seconds.
const MAKE_LIMIT_S: u32 = 900;

/// End of the names of disks.
const SUFFIX: &str = ".erofs";

/// Counts up when disks are made in another way.
const RECIPE: &str = "1";

/// Lays `$1` (lower directories) over each other at `$2` and makes the disk `$3` of it.
const SCRIPT: &str = r#"set -e
mount -t overlay -o "ro,lowerdir=$1" overlay "$2"
exec mkfs.erofs --quiet --preserve-mtime "$3" "$2"
"#;

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The program is missing.
    #[error("`mkfs.erofs` was not found; install it: apt-get install -y erofs-utils")]
    Missing,
    /// It failed.
    #[error("the image's disk could not be made ({status}): {said}")]
    Failed {
        /// How it ended.
        status: String,
        /// Its last words.
        said: String,
    },
    /// The kernel takes at most a page of options.
    #[error("the image has {layers} layers with too long paths to lay over each other")]
    TooMany {
        /// How many.
        layers: usize,
    },
    /// The file system failed.
    #[error("failed to {action} `{path}`: {source}")]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// On what.
        path: Utf8PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
}

fn io_error(action: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> DiskError + use<> {
    let path = path.to_owned();
    move |source| DiskError::Io { action, path, source }
}

/// Disks of images, kept in one folder. Machines' folders must be on the same file system.
#[derive(Debug)]
pub struct Disks {
    dir: Utf8PathBuf,
    bytes_max: u64,
    making: Mutex<BTreeMap<String, Arc<Mutex<()>>>>,
}

impl Disks {
    /// The disks in `dir`, which is made; what an earlier process left unfinished is removed. One value per folder.
    ///
    /// # Errors
    /// [`DiskError::Io`].
    pub fn open(dir: Utf8PathBuf, bytes_max: u64) -> Result<Self, DiskError> {
        fs::create_dir_all(&dir).map_err(io_error("create", &dir))?;
        for entry in dir.read_dir_utf8().map_err(io_error("list", &dir))?.flatten() {
            if entry.file_name().starts_with(".work-") {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
        Ok(Self { dir, bytes_max, making: Mutex::default() })
    }

    /// Links the disk of an image to `at`; makes it first when it is not there. `layers` are the directories of the layers,
    /// topmost first, whose paths name their content. Blocks: at most for a quarter of an hour, usually for seconds.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn link(&self, layers: &[Utf8PathBuf], at: &Utf8Path) -> Result<(), DiskError> {
        let key = key(layers);
        let turn =
            { self.making.lock().unwrap_or_else(PoisonError::into_inner) }.entry(key.clone()).or_default().clone();
        let result = {
            let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
            self.link_in_turn(&key, layers, at)
        };
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        drop(turn);
        // the last of those who wait takes it away
        if making.get(&key).is_some_and(|turn| Arc::strong_count(turn) == 1) {
            making.remove(&key);
        }
        result
    }

    fn link_in_turn(&self, key: &str, layers: &[Utf8PathBuf], at: &Utf8Path) -> Result<(), DiskError> {
        let path = self.dir.join(format!("{key}{SUFFIX}"));
        match fs::hard_link(&path, at) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => {
                // says that it was used; a disk that cannot say so is dropped sooner
                let _ = fs::File::open(&path).and_then(|file| file.set_modified(SystemTime::now()));
                return other.map_err(io_error("link", at));
            }
        }
        let work = Temporary(self.dir.join(format!(".work-{}", uuid::Uuid::new_v4().simple())));
        let made = make(layers, &work.0)?;
        fs::rename(&made, &path).map_err(io_error("rename", &made))?;
        let linked = fs::hard_link(&path, at).map_err(io_error("link", at));
        self.make_room();
        linked
    }

    /// Drops what was not used for longest until the rest fits. What a machine has a link to gives no room and stays.
    fn make_room(&self) {
        let Ok(entries) = self.dir.read_dir_utf8() else { return };
        let mut disks: Vec<_> = { entries.flatten() }
            .filter(|entry| entry.file_name().ends_with(SUFFIX))
            .filter_map(|entry| Some((entry.metadata().ok()?, entry.into_path())))
            .collect();
        let mut bytes: u64 = disks.iter().map(|(meta, _)| meta.blocks() * 512).sum();
        disks.sort_by_key(|(meta, _)| meta.modified().unwrap_or(SystemTime::UNIX_EPOCH));
        for (meta, path) in disks.into_iter().filter(|(meta, _)| meta.nlink() == 1) {
            if bytes <= self.bytes_max {
                break;
            }
            if fs::remove_file(path).is_ok() {
                bytes -= meta.blocks() * 512;
            }
        }
    }
}

/// A folder that is deleted.
struct Temporary(Utf8PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn key(layers: &[Utf8PathBuf]) -> String {
    let mut hasher = Sha256::new();
    hasher.update(RECIPE);
    for layer in layers {
        hasher.update([0]);
        hasher.update(layer.as_str());
    }
    hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The lower directories as the mount takes them, and the folder that they are relative to.
fn lower(layers: &[Utf8PathBuf], empty: &Utf8Path) -> Result<(Utf8PathBuf, String), DiskError> {
    let mut base = layers.first().and_then(|layer| layer.parent()).unwrap_or_else(|| "/".into()).to_owned();
    while !layers.iter().all(|layer| layer.starts_with(&base)) && base.pop() {}
    let relative = layers.iter().map(|layer| layer.strip_prefix(&base).unwrap_or(layer));
    // an overlay without an upper directory has two lower ones at least
    let all: Vec<_> = relative.chain([empty]).map(|path| escape(path.as_str())).collect();
    let text = all.join(":");
    if text.len() > 4000 { Err(DiskError::TooMany { layers: layers.len() }) } else { Ok((base, text)) }
}

fn escape(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

fn make(layers: &[Utf8PathBuf], work: &Utf8Path) -> Result<Utf8PathBuf, DiskError> {
    let (empty, root, disk) = (work.join("empty"), work.join("root"), work.join("disk"));
    for path in [&empty, &root] {
        fs::create_dir_all(path).map_err(io_error("create", path))?;
    }
    let (base, lower) = lower(layers, &empty)?;
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "timeout", "--kill-after=5", &MAKE_LIMIT_S.to_string()]);
    command.args(["sh", "-c", SCRIPT, "sh", &lower, root.as_str(), disk.as_str()]).current_dir(base);
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(io_error("run", "unshare".into()))?;
    match output.status.code() {
        Some(0) => {}
        Some(127) => return Err(DiskError::Missing),
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last: Vec<_> = said.lines().rev().take(5).collect();
            let said = last.into_iter().rev().collect::<Vec<_>>().join("; ");
            return Err(DiskError::Failed { status: output.status.to_string(), said });
        }
    }
    // QEMU reads it as somebody who is nobody
    fs::set_permissions(&disk, fs::Permissions::from_mode(0o444)).map_err(io_error("change the mode of", &disk))?;
    Ok(disk)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    struct Place {
        _folder: tempfile::TempDir,
        root: Utf8PathBuf,
    }

    fn place() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        Place { _folder: folder, root }
    }

    /// A layer with one file.
    fn layer(place: &Place, name: &str, file: &str, content: &[u8]) -> Utf8PathBuf {
        let path = place.root.join("layers").join(name).join("fs");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join(file), content).unwrap();
        path
    }

    fn disks(place: &Place) -> Vec<String> {
        let entries = place.root.join("disks").read_dir_utf8().unwrap();
        entries.map(|entry| entry.unwrap().file_name().to_owned()).collect()
    }

    #[test]
    fn layers_become_one_disk_that_is_made_once() {
        let place = place();
        let below = layer(&place, "below", "both", b"below");
        symlink("both", below.join("link")).unwrap();
        let above = layer(&place, "above", "both", b"above: the topmost is seen");
        let all = Disks::open(place.root.join("disks"), u64::MAX).unwrap();
        let layers = [above, below];
        std::thread::scope(|scope| {
            for at in 0..4 {
                let (all, layers, at) = (&all, &layers, place.root.join(format!("machine-{at}")));
                scope.spawn(move || all.link(layers, &at).unwrap());
            }
        });
        let first = fs::metadata(place.root.join("machine-0")).unwrap();
        assert_eq!(first.nlink(), 5, "four machines and the cache have the same file");
        assert_eq!(disks(&place).len(), 1, "nothing is left of the making: {:?}", disks(&place));
        assert!(all.making.lock().unwrap().is_empty());
        let content = fs::read(place.root.join("machine-3")).unwrap();
        assert_eq!(content[1024..1028], 0xe0f5_e1e2u32.to_le_bytes(), "EROFS");
        let holds = |text: &[u8]| content.windows(text.len()).any(|bytes| bytes == text);
        assert!(holds(b"above: the topmost is seen") && !holds(b"below"));
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        assert!(!mounts.contains(place.root.as_str()), "no mount is left");
    }

    #[test]
    fn what_is_not_used_is_dropped() {
        let place = place();
        let all = Disks::open(place.root.join("disks"), 0).unwrap();
        let link = |name: &str| all.link(&[layer(&place, name, "file", name.as_bytes())], &place.root.join(name));
        link("one").unwrap();
        link("two").unwrap();
        assert_eq!(disks(&place).len(), 2, "both are in use");
        fs::remove_file(place.root.join("one")).unwrap();
        link("three").unwrap();
        assert_eq!(disks(&place).len(), 2, "the first was in the way");
        let gone = [layer(&place, "gone", "file", b"")];
        fs::remove_dir_all(gone[0].as_std_path()).unwrap();
        let error = all.link(&gone, &place.root.join("gone")).unwrap_err();
        assert!(matches!(&error, DiskError::Failed { said, .. } if !said.is_empty()), "{error}");
        fs::create_dir_all(place.root.join("disks/.work-left")).unwrap();
        Disks::open(place.root.join("disks"), 0).unwrap();
        assert_eq!(disks(&place).len(), 2);
    }

    #[test]
    fn long_lists_are_refused() {
        let layers: Vec<_> = (0..200).map(|at| format!("/data/layers/{at:032}/fs").into()).collect();
        assert!(matches!(lower(&layers, "/e".into()), Err(DiskError::TooMany { layers: 200 })));
        let (base, text) = lower(&layers[..2], "/e:,".into()).unwrap();
        assert_eq!(base, "/data/layers");
        assert_eq!(text, format!("{:032}/fs:{:032}/fs:/e\\:\\,", 0, 1));
    }
}
