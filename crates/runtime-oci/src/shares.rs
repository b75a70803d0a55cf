//! Where the shares of storages are on this machine, and how they get to a replica.
//!
//! A share is a directory below one root, made when it is first used, unless the configuration binds it to another
//! directory or to a real mount. A real mount is made once by the server, in its own folder, and stays until the server
//! purges it. A replica gets a copy of the mount as a descriptor (`open_tree`), so nothing depends on when a helper's
//! mount namespace was made, and a share that is unmounted later stays for replicas that run.
//!
//! **Invariant:** the names of a share never lead out of the root.
//! **Invariant:** of a template's mount options only known ones reach `mount`; the others are told.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{PermissionsExt as _, chown},
    },
    process::Stdio,
    time::Duration,
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_model::Share;
use cove_runtime::StorageBinding;
use nix::mount::{MntFlags, umount2};
use tokio::{io::AsyncReadExt as _, process::Command, time::timeout};

use crate::tree;

/// Most bytes of what `mount` said that are told.
const WORDS_BYTES_MAX: u64 = 1000;

/// Mode of a share's directory where the options do not say: Azure's.
const DIR_MODE_DEFAULT: u32 = 0o777;

/// Options that make sense for a directory of this machine.
const DIRECTORY_OPTIONS: [&str; 5] = ["uid", "gid", "dir_mode", "ro", "rw"];

/// Options that a template may hand to a real mount.
const MOUNT_OPTIONS: [&str; 34] = [
    "uid",
    "gid",
    "forceuid",
    "forcegid",
    "dir_mode",
    "file_mode",
    "ro",
    "rw",
    "nobrl",
    "mfsymlinks",
    "nosharesock",
    "cache",
    "actimeo",
    "acregmin",
    "acregmax",
    "acdirmin",
    "acdirmax",
    "noperm",
    "serverino",
    "noserverino",
    "vers",
    "nfsvers",
    "minorversion",
    "hard",
    "soft",
    "timeo",
    "retrans",
    "rsize",
    "wsize",
    "nconnect",
    "noresvport",
    "sync",
    "nolock",
    "proto",
];

/// `[storage]` of the server, as the driver needs it.
#[derive(Clone, Debug)]
pub struct SharesConfig {
    /// Shares are directories below it: `<root>/<account or server>/<share>`.
    pub root: Utf8PathBuf,
    /// Folder of the mount points of real mounts.
    pub mounts: Utf8PathBuf,
    /// Longest that a real mount may take. Default 30 s.
    pub mount_limit: Duration,
    /// Shares that are elsewhere.
    pub bindings: Vec<ShareBinding>,
}

/// Where one share is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShareBinding {
    /// Storage account, or server of an NFS share.
    pub owner: String,
    /// Share name; of NFS the exported path.
    pub share: String,
    /// Where it is.
    pub target: ShareTarget,
}

/// Where a share is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShareTarget {
    /// A directory of this machine, which must exist.
    Directory(Utf8PathBuf),
    /// A file system that the server mounts when it is first used.
    Mount {
        /// What `mount` is told: `//host/share`, `host:/path`, a device.
        source: String,
        /// Type of file system: `cifs`, `nfs4`, …
        kind: String,
        /// Options besides the template's.
        options: String,
    },
}

impl SharesConfig {
    /// The defaults below a folder.
    #[must_use]
    pub fn new(dir: &Utf8Path) -> Self {
        Self {
            root: dir.join("shares"),
            mounts: dir.join("mounts"),
            mount_limit: Duration::from_secs(30),
            bindings: Vec::new(),
        }
    }

    /// Unmounts every real mount and removes the mount points; replicas that run keep their copies.
    ///
    /// # Errors
    /// When one cannot be unmounted; then nothing below it was touched.
    pub fn unmount_all(&self) -> io::Result<()> {
        let entries = match fs::read_dir(&self.mounts) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let point = entry?.path();
            while umount2(&point, MntFlags::MNT_DETACH).is_ok() {}
            // only an empty directory is removed: never what is mounted there
            fs::remove_dir(&point)?;
        }
        fs::remove_dir(&self.mounts)
    }
}

/// A share that is there.
#[derive(Debug)]
pub(crate) struct OpenShare {
    /// A copy of its mount, attached nowhere.
    pub(crate) tree: OwnedFd,
    /// Containers may not write to it.
    pub(crate) is_read_only: bool,
    /// Options that do nothing here.
    pub(crate) ignored: Vec<String>,
}

/// Finds or makes a share; the error is for the user.
pub(crate) async fn open(config: &SharesConfig, binding: &StorageBinding, options: &str) -> Result<OpenShare, String> {
    let (owner, share) = match &binding.storage.share {
        Share::AzureFile { account, share } => (account, share),
        Share::NfsAzureFile { server, share } => (server, share),
    };
    let options = parse_options(options);
    let bound = config.bindings.iter().find(|bound| {
        bound.owner.eq_ignore_ascii_case(owner) && bound.share.trim_matches('/') == share.trim_matches('/')
    });
    let known: &[&str] = match bound.map(|bound| &bound.target) {
        Some(ShareTarget::Mount { .. }) => &MOUNT_OPTIONS,
        Some(ShareTarget::Directory(_)) | None => &DIRECTORY_OPTIONS,
    };
    let ignored = options.keys().filter(|name| !known.contains(&name.as_str())).cloned().collect();
    let shown = format!("share `{}` of `{owner}`", share.trim_matches('/'));
    let at =
        |path: &Utf8Path| tree::clone_at(path).map_err(|error| format!("failed to open {shown} at `{path}`: {error}"));
    let tree = match bound.map(|bound| &bound.target) {
        Some(ShareTarget::Directory(path)) if !path.is_dir() => {
            return Err(format!(
                "{shown} is bound to `{path}`, which is not a directory of this machine; make it, or change [storage] of the server"
            ));
        }
        Some(ShareTarget::Directory(path)) => at(path)?,
        Some(ShareTarget::Mount { source, kind, options: own }) => {
            let options = mount_options(own, &options);
            let mount = Mount {
                source,
                kind,
                options: &options,
                point: config.mounts.join(point_name(owner, share, &options)),
            };
            mount
                .ensure(binding, config.mount_limit)
                .await
                .map_err(|error| format!("failed to mount {shown}: {error}"))?;
            at(&mount.point)?
        }
        None => {
            let path = local_path(owner, share).ok_or_else(|| {
                format!("the names of {shown} are not valid: use letters, digits, `-`, `_`, `.` and `$`")
            })?;
            open_local(&config.root, &path, &options)
                .map_err(|error| format!("failed to open or make the directory of {shown}: {error}"))?
        }
    };
    let is_read_only = binding.storage.is_read_only || (options.contains_key("ro") && !options.contains_key("rw"));
    Ok(OpenShare { tree, is_read_only, ignored })
}

/// `a=1,b` as a table; the last of a name counts.
fn parse_options(text: &str) -> BTreeMap<String, String> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts
        .map(|part| part.split_once('=').unwrap_or((part, "")))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
        .collect()
}

fn mount_options(own: &str, given: &BTreeMap<String, String>) -> String {
    let mut all: Vec<String> =
        own.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect();
    let is_plain = |value: &str| value.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    for (name, value) in given {
        // read-only is a matter of the replica's mount: others may write
        if MOUNT_OPTIONS.contains(&name.as_str()) && !matches!(name.as_str(), "ro" | "rw") && is_plain(value) {
            all.push(if value.is_empty() { name.clone() } else { format!("{name}={value}") });
        }
    }
    all.join(",")
}

/// A folder name for a mount: different options are different mounts.
fn point_name(owner: &str, share: &str, options: &str) -> String {
    let hash = options
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '-' | '.') { c } else { '_' };
    let name: String = format!("{owner}_{}", share.trim_matches('/')).chars().map(plain).take(120).collect();
    format!("{}-{hash:016x}", name.trim_start_matches('.'))
}

/// `<owner>/<share>`; `None` when a name could lead elsewhere.
fn local_path(owner: &str, share: &str) -> Option<Utf8PathBuf> {
    let is_name = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'$'))
    };
    let mut path = Utf8PathBuf::new();
    let parts: Vec<&str> = share.trim_matches('/').split('/').collect();
    for part in std::iter::once(owner).chain(parts) {
        if !is_name(part) {
            return None;
        }
        path.push(part.to_ascii_lowercase());
    }
    Some(path)
}

/// Opens a share's directory below the root. A missing one is made with owner and mode of the options; one that is there is
/// left as it is. One share may hold another (`/a` and `/a/b` of one server), and containers write there: no link counts.
fn open_local(root: &Utf8Path, path: &Utf8Path, options: &BTreeMap<String, String>) -> io::Result<OwnedFd> {
    fs::create_dir_all(root)?;
    let (dir, is_new) = tree::make_beneath(root, path)?;
    if is_new {
        let number = |name: &str| options.get(name).and_then(|value| value.parse::<u32>().ok());
        let mode =
            options.get("dir_mode").and_then(|value| u32::from_str_radix(value, 8).ok()).unwrap_or(DIR_MODE_DEFAULT);
        let by_number = format!("/proc/self/fd/{}", dir.as_raw_fd());
        chown(&by_number, number("uid"), number("gid"))?;
        fs::set_permissions(&by_number, fs::Permissions::from_mode(mode & 0o7777))?;
    }
    tree::clone_of(&dir)
}

struct Mount<'a> {
    source: &'a str,
    kind: &'a str,
    options: &'a str,
    point: Utf8PathBuf,
}

impl Mount<'_> {
    /// Mounts it unless it is.
    async fn ensure(&self, binding: &StorageBinding, limit: Duration) -> Result<(), String> {
        let words = |error: io::Error| error.to_string();
        fs::create_dir_all(&self.point).map_err(words)?;
        if tree::is_mounted(&self.point).map_err(words)? {
            return Ok(());
        }
        let mut command = Command::new("mount");
        command.args(["-t", self.kind]);
        if !self.options.is_empty() {
            command.args(["-o", self.options]);
        }
        command.arg(self.source).arg(&self.point);
        if let (Some(key), Share::AzureFile { account, .. }) = (&binding.account_key, &binding.storage.share) {
            // as mount.cifs takes them: not on a command line that everybody can read
            command.env("USER", account).env("PASSWD", key);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut child = command.spawn().map_err(|error| format!("failed to run `mount`: {error}"))?;
        let stderr = child.stderr.take();
        let work = async {
            let mut said = String::new();
            if let Some(stderr) = stderr {
                let _ = stderr.take(WORDS_BYTES_MAX).read_to_string(&mut said).await;
            }
            (child.wait().await, said)
        };
        match timeout(limit, work).await {
            Ok((Ok(status), _)) if status.success() => Ok(()),
            Ok((Ok(_), said)) => Err(format!("`mount -t {}` said: {}", self.kind, said.trim().replace('\n', "; "))),
            Ok((Err(error), _)) => Err(error.to_string()),
            Err(_) => Err(format!("`mount -t {} {}` did not end within {} s", self.kind, self.source, limit.as_secs())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        let check = |owner: &str, share: &str| local_path(owner, share).map(Utf8PathBuf::into_string);
        assert_eq!(check("Acct", "data"), Some("acct/data".to_owned()));
        assert_eq!(check("x.file.core.windows.net", "/acct/nfs"), Some("x.file.core.windows.net/acct/nfs".to_owned()));
        for (owner, share) in
            [("..", "x"), ("a", "../b"), ("a", ""), ("a/b", "c"), ("a", "b//c"), ("", "x"), ("a", "b\0")]
        {
            assert_eq!(check(owner, share), None, "{owner} {share}");
        }
    }

    #[test]
    fn only_known_options_reach_a_mount() {
        let given = parse_options("uid=1000, nobrl,credentials=/etc/shadow,suid,vers=3.0,ro,cache=a b");
        assert_eq!(mount_options("sec=sys", &given), "sec=sys,nobrl,uid=1000,vers=3.0");
        assert_ne!(point_name("a", "s", "x"), point_name("a", "s", "y"));
    }

    #[test]
    fn a_new_directory_gets_what_the_options_say() {
        let dir = tempfile::tempdir().unwrap();
        use std::os::unix::fs::MetadataExt as _;
        let root = Utf8Path::from_path(dir.path()).unwrap().join("shares");
        open_local(&root, Utf8Path::new("acct/data"), &parse_options("uid=1000,gid=1001,dir_mode=0750")).unwrap();
        let data = fs::metadata(root.join("acct/data")).unwrap();
        assert_eq!((data.uid(), data.gid(), data.mode() & 0o7777), (1000, 1001, 0o750));
        open_local(&root, Utf8Path::new("acct/data"), &parse_options("uid=7")).unwrap();
        assert_eq!(fs::metadata(root.join("acct/data")).unwrap().uid(), 1000);
    }

    #[test]
    fn a_link_in_one_share_leads_no_other_share_out() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap().join("shares");
        fs::create_dir_all(dir.path().join("secret")).unwrap();
        open_local(&root, Utf8Path::new("server/outer"), &BTreeMap::new()).unwrap();
        // as a container with the outer share could do it
        std::os::unix::fs::symlink(dir.path(), root.join("server/outer/inner")).unwrap();
        for path in ["server/outer/inner", "server/outer/inner/secret", "server/outer/inner/new"] {
            assert!(open_local(&root, Utf8Path::new(path), &BTreeMap::new()).is_err(), "{path}");
        }
        assert!(!dir.path().join("new").exists());
    }
}
