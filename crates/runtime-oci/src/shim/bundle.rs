//! What a container finds when it starts: its root file system, its volumes, and the OCI configuration that says so.
//!
//! The root is an overlay of the image's layers with a fresh upper directory for every start. It is mounted in the
//! helper's own mount namespace, so it is gone when the helper and its containers are. Writes to it are `volatile`: the
//! directory is thrown away with the container, so nothing is ever synced to disk for it.
//!
//! **Invariant:** capabilities: those of Docker less `AUDIT_WRITE`, `MKNOD`, `NET_RAW`, `SETFCAP`, `SETPCAP`; no new
//! privileges; the filter of [`crate::seccomp`].

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    },
};

use camino::{Utf8Path, Utf8PathBuf};
use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::resource::{Resource, getrlimit},
};
use serde_json::{Value, json};

use super::user::{self, User};
use crate::{
    cgroup::Cgroups,
    protocol::{ContainerSpec, ShimSpec, VolumeSpec},
    tree::{self, make_dir_inside},
};

const CAPABILITIES: [&str; 9] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MASKED: [&str; 10] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Longest option string that mount(2) takes, less room for the other options.
const LOWER_BYTES_MAX: usize = 3500;

/// The folder of one start of one container, with a mounted root; unmounted and removed on drop.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Holds `config.json`.
    pub(crate) dir: Utf8PathBuf,
}

impl Bundle {
    /// Makes the folder `dir` with root and configuration.
    ///
    /// # Errors
    /// In words for the user.
    pub(crate) fn make(
        dir: &Utf8Path,
        replica_dir: &Utf8Path,
        replica: &ShimSpec,
        spec: &ContainerSpec,
        cgroups: &Cgroups,
        cgroup: &str,
    ) -> Result<Self, String> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |error: io::Error| match error.kind() {
                io::ErrorKind::StorageFull => {
                    format!("failed to {what}: the disk is full; free space in the data directory")
                }
                _ => format!("failed to {what}: {error}"),
            }
        };
        let bundle = Self { dir: dir.to_owned() };
        for name in ["upper", "work", "root", "empty"] {
            fs::create_dir_all(dir.join(name)).map_err(failed("make the container's folder"))?;
        }
        mount_root(dir, &spec.layers).map_err(failed("mount the container's root file system"))?;
        let root = dir.join("root");
        let user = user::resolve(&spec.user, root.as_std_path())?;
        make_dir_inside(root.as_std_path(), &spec.cwd, 0o755).map_err(failed("make the working directory"))?;
        attach_parts(replica_dir, replica, spec)?;
        let config = config(&root, replica_dir, replica, spec, &user, cgroups.views(cgroup));
        let text =
            serde_json::to_vec(&config).map_err(|error| format!("failed to write the configuration: {error}"))?;
        crate::protocol::write_atomically(&dir.join("config.json"), &text)
            .map_err(failed("write the container's configuration"))?;
        Ok(bundle)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = umount2(self.dir.join("root").as_std_path(), MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn mount_root(dir: &Utf8Path, layers: &[Utf8PathBuf]) -> io::Result<()> {
    let empty = [dir.join("empty")];
    let layers = if layers.is_empty() { &empty[..] } else { layers };
    // Relative names keep many layers within the option string, as all of them lie in one folder.
    let parent = layers[0].parent().filter(|parent| layers.iter().all(|layer| layer.parent() == Some(parent)));
    let lower: Vec<String> =
        layers.iter().map(|layer| escape(parent.map_or(layer.as_str(), |_| layer.file_name().unwrap_or("")))).collect();
    let lower = lower.join(":");
    if lower.len() > LOWER_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the image has {} layers, more than one mount takes; squash some", layers.len()),
        ));
    }
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},volatile",
        escape(dir.join("upper").as_str()),
        escape(dir.join("work").as_str())
    );
    if let Some(parent) = parent {
        nix::unistd::chdir(parent.as_std_path())?;
    }
    let mount = |options: &str| {
        mount(Some("overlay"), dir.join("root").as_std_path(), Some("overlay"), MsFlags::MS_NODEV, Some(options))
    };
    let result = match mount(&options) {
        // Kernels before 5.10 do not know `volatile`.
        Err(Errno::EINVAL) => mount(options.trim_end_matches(",volatile")),
        other => other,
    };
    nix::unistd::chdir("/")?;
    Ok(result?)
}

fn escape(path: &str) -> String {
    path.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
}

/// Makes the volumes and network files of a replica in its folder.
pub(crate) fn make_shared(dir: &Utf8Path, spec: &ShimSpec, shares: &[OwnedFd]) -> io::Result<()> {
    let mut shares = shares.iter();
    let etc = dir.join("etc");
    fs::create_dir_all(&etc)?;
    fs::write(etc.join("hosts"), &spec.hosts)?;
    fs::write(etc.join("resolv.conf"), &spec.resolv_conf)?;
    fs::write(etc.join("hostname"), format!("{}\n", spec.replica))?;
    if let Some(certificate) = &spec.ca_certificate {
        fs::write(etc.join("cove-ca.pem"), certificate)?;
    }
    for (name, volume) in &spec.volumes {
        let path = dir.join("volumes").join(name);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
        match volume {
            VolumeSpec::EmptyDir => fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))?,
            VolumeSpec::Share { .. } => {
                let share = shares.next().ok_or_else(|| io::Error::other("a share came without its mount"))?;
                tree::attach(share, &path)?;
            }
            VolumeSpec::Files(files) => {
                // In memory only: secrets do not go to the disk a second time.
                let options = "mode=755,size=4m,nr_inodes=4096";
                let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
                mount(Some("tmpfs"), path.as_std_path(), Some("tmpfs"), flags, Some(options))?;
                for (file, content) in files {
                    let file = path.join(file);
                    if let Some(parent) = file.parent() {
                        fs::create_dir_all(parent)?;
                    }
                    fs::write(&file, content)?;
                    fs::set_permissions(&file, fs::Permissions::from_mode(0o444))?;
                }
            }
        }
    }
    Ok(())
}

fn config(
    root: &Utf8Path,
    replica_dir: &Utf8Path,
    replica: &ShimSpec,
    spec: &ContainerSpec,
    user: &User,
    cgroup_views: Vec<(&'static str, std::path::PathBuf)>,
) -> Value {
    let mut env = spec.env.clone();
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", user.home.as_deref().unwrap_or(if user.uid == 0 { "/root" } else { "/" })));
    }
    let limit = |resource, most: u64| {
        let hard = getrlimit(resource).map_or(1024, |(_, hard)| hard);
        most.min(hard)
    };
    let files = limit(Resource::RLIMIT_NOFILE, 1 << 20);
    json!({
        "ociVersion": "1.2.0",
        "root": { "path": root, "readonly": false },
        "hostname": replica.replica.chars().take(63).collect::<String>().trim_end_matches('-'),
        "process": {
            "terminal": false,
            "user": { "uid": user.uid, "gid": user.gid, "additionalGids": user.additional_gids },
            "args": spec.args,
            "env": env,
            "cwd": spec.cwd,
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
            "rlimits": [
                { "type": "RLIMIT_NOFILE", "hard": files, "soft": files },
                { "type": "RLIMIT_CORE", "hard": 0, "soft": 0 },
            ],
        },
        "mounts": mounts(replica_dir, spec, replica, cgroup_views),
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" }],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

fn mounts(
    replica_dir: &Utf8Path,
    spec: &ContainerSpec,
    replica: &ShimSpec,
    cgroup_views: Vec<(&'static str, std::path::PathBuf)>,
) -> Vec<Value> {
    let mut mounts = vec![
        json!({ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] }),
        json!({ "destination": "/dev/pts", "type": "devpts", "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] }),
        json!({ "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] }),
        json!({ "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
            "options": ["nosuid", "noexec", "nodev"] }),
        json!({ "destination": "/sys", "type": "sysfs", "source": "sysfs",
            "options": ["nosuid", "noexec", "nodev", "ro"] }),
    ];
    if cgroup_views.iter().any(|(name, _)| !name.is_empty()) {
        mounts.push(json!({ "destination": "/sys/fs/cgroup", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "noexec", "nodev", "mode=755", "size=64k"] }));
    }
    let bind = |source: &str, destination: &str, is_read_only: bool| {
        let mut options = vec!["rbind", "rprivate", "nosuid", "nodev"];
        options.push(if is_read_only { "ro" } else { "rw" });
        json!({ "destination": destination, "type": "bind", "source": source, "options": options })
    };
    for (name, folder) in cgroup_views {
        let destination = format!("/sys/fs/cgroup/{name}");
        mounts.push(bind(&folder.to_string_lossy(), destination.trim_end_matches('/'), true));
    }
    for file in ["hosts", "hostname", "resolv.conf"] {
        mounts.push(bind(replica_dir.join("etc").join(file).as_str(), &format!("/etc/{file}"), false));
    }
    if replica.ca_certificate.is_some() {
        mounts.push(bind(replica_dir.join("etc/cove-ca.pem").as_str(), crate::CA_FILE, true));
    }
    for (index, (name, path, sub_path)) in spec.mounts.iter().enumerate() {
        let source = match sub_path {
            None => replica_dir.join("volumes").join(name),
            Some(_) => part_dir(replica_dir, spec, index),
        };
        mounts.push(bind(source.as_str(), path, replica.volumes.get(name).is_some_and(is_read_only)));
    }
    mounts
}

fn is_read_only(volume: &VolumeSpec) -> bool {
    match volume {
        VolumeSpec::Files(_) => true,
        VolumeSpec::Share { is_read_only } => *is_read_only,
        VolumeSpec::EmptyDir => false,
    }
}

/// Where the part of a volume that a container mounts is attached, in the helper's mount namespace.
fn part_dir(replica_dir: &Utf8Path, spec: &ContainerSpec, index: usize) -> Utf8PathBuf {
    replica_dir.join("parts").join(format!("{}.{index}", spec.name))
}

/// Attaches the parts of volumes that a container mounts by `subPath`; missing directories are made.
fn attach_parts(replica_dir: &Utf8Path, replica: &ShimSpec, spec: &ContainerSpec) -> Result<(), String> {
    for (index, (name, _, sub_path)) in spec.mounts.iter().enumerate() {
        let Some(sub_path) = sub_path else { continue };
        let volume = replica_dir.join("volumes").join(name);
        let is_read_only = replica.volumes.get(name).is_some_and(is_read_only);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound if is_read_only => {
                format!("volume `{name}` is read-only and has no `{sub_path}`; make it or mount without subPath")
            }
            io::ErrorKind::NotFound => {
                format!("`{sub_path}` of volume `{name}` is a link that leads nowhere inside the volume")
            }
            _ => format!("failed to mount `{sub_path}` of volume `{name}`: {error}"),
        };
        if !is_read_only {
            make_dir_inside(volume.as_std_path(), sub_path, 0o777).map_err(failed)?;
        }
        fs::create_dir_all(replica_dir.join("parts")).map_err(failed)?;
        tree::attach_part(&volume, sub_path, &part_dir(replica_dir, spec, index)).map_err(failed)?;
    }
    Ok(())
}
