//! What a container finds when it starts: its root file system, its volumes, and the OCI configuration that says so.
//!
//! The root is an overlay of the image's layers with a fresh upper directory for every start. It is mounted in the
//! helper's own mount namespace, so it is gone when the helper and its containers are. Writes to it are `volatile`: the
//! directory is thrown away with the container, so nothing is ever synced to disk for it.
//!
//! A sandboxed container has a user namespace of its own, a root in memory that root inside owns ([`super::sandbox`]), no
//! capability, nothing of /sys, and sees of /proc what a program needs.
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
    unistd::{Gid, Uid, setfsgid, setfsuid},
};
use serde_json::{Value, json};

use super::{
    machine,
    sandbox::{IDS_PER_REPLICA, Stage},
    user::{self, User},
};
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

/// What a sandboxed container does not see besides [`MASKED`]: what tells of the machine and no program needs.
const MASKED_TOO: [&str; 23] = [
    "/proc/buddyinfo",
    "/proc/bus",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/fb",
    "/proc/interrupts",
    "/proc/iomem",
    "/proc/ioports",
    "/proc/kallsyms",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/kpagecount",
    "/proc/kpageflags",
    "/proc/modules",
    "/proc/pagetypeinfo",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/slabinfo",
    "/proc/swaps",
    "/proc/sysrq-trigger",
    "/proc/vmallocinfo",
    "/proc/zoneinfo",
];

/// Longest option string that mount(2) takes, less room for the other options.
const LOWER_BYTES_MAX: usize = 3500;

/// The folder of one start of one container, with a mounted root; unmounted and removed on drop.
#[derive(Debug)]
pub(crate) struct Bundle {
    /// Holds `config.json`.
    pub(crate) dir: Utf8PathBuf,
    /// Whom its program runs as, inside.
    pub(crate) uid: u32,
    /// With this group.
    pub(crate) gid: u32,
}

impl Bundle {
    /// Makes the folder `dir` with root and configuration.
    ///
    /// # Errors
    /// In words for the user.
    pub(crate) fn make(
        dir: &Utf8Path,
        (replica_dir, stage): (&Utf8Path, Option<&Stage>),
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
        let mut bundle = Self { dir: dir.to_owned(), uid: 0, gid: 0 };
        make_folders(dir, stage, spec).map_err(failed("make the container's folder"))?;
        if let (Some(stage), Some(snapshot)) = (stage, &spec.snapshot) {
            let shown = dir.join("snapshot");
            let made = fs::create_dir(&shown).and_then(|()| stage.show_layers(snapshot, &shown));
            made.map_err(failed("show the snapshot that it begins with"))?;
        }
        mount_root(dir, stage, spec).map_err(failed("mount the container's root file system"))?;
        let root = dir.join("root");
        let user = user::resolve(&spec.user, root.as_std_path())?;
        (bundle.uid, bundle.gid) = (user.uid, user.gid);
        let made = as_root_inside(stage, || make_dir_inside(root.as_std_path(), &spec.cwd, 0o755));
        made.map_err(failed("make the working directory"))?;
        attach_parts(replica_dir, replica, spec)?;
        let mut config = config(&root, replica_dir, replica, spec, &user, cgroups.views(cgroup));
        if let Some(sandbox) = &replica.sandbox {
            harden(&mut config, sandbox.first_id, mounts(replica_dir, spec, replica, Vec::new()));
            if sandbox.handler.is_some() {
                // runtimes of distributions refuse versions that they do not know
                config["ociVersion"] = "1.0.2".into();
                config["linux"]["seccomp"] = crate::seccomp::profile(user.uid == 0);
            }
            if let (Some(order), Some(all)) = (&sandbox.machine, config["mounts"].as_array_mut()) {
                all.extend(machine::mounts(order, replica_dir));
            }
        }
        let text =
            serde_json::to_vec(&config).map_err(|error| format!("failed to write the configuration: {error}"))?;
        crate::protocol::write_atomically(&dir.join("config.json"), &text)
            .map_err(failed("write the container's configuration"))?;
        Ok(bundle)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for name in ["root", "snapshot", "layers", "disk", super::memory::SHOWN_DIR] {
            // of a sandbox the latter four
            let _ = umount2(self.dir.join(name).as_std_path(), MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Does something with files so that what it makes belongs to root inside.
fn as_root_inside(stage: Option<&Stage>, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let Some(stage) = stage else { return work() };
    let (uid, gid) = stage.owner(0, 0);
    setfsgid(gid);
    setfsuid(uid);
    let done = work();
    setfsuid(Uid::from_raw(0));
    setfsgid(Gid::from_raw(0));
    done
}

fn make_folders(dir: &Utf8Path, stage: Option<&Stage>, spec: &ContainerSpec) -> io::Result<()> {
    for name in ["root", "empty"] {
        fs::create_dir_all(dir.join(name))?;
    }
    if let Some(stage) = stage {
        fs::create_dir(dir.join("layers"))?;
        fs::create_dir(dir.join("disk"))?;
        stage.mount_disk(&dir.join("disk"), spec.memory_bytes, 0o711)?;
    }
    let disk = disk(dir, stage);
    for name in ["upper", "work"] {
        fs::create_dir_all(disk.join(name))?;
    }
    match stage {
        Some(stage) => stage.give(&disk.join("upper")),
        None => Ok(()),
    }
}

/// Where what a container writes is kept.
fn disk(dir: &Utf8Path, stage: Option<&Stage>) -> Utf8PathBuf {
    if stage.is_some() { dir.join("disk") } else { dir.to_owned() }
}

fn mount_root(dir: &Utf8Path, stage: Option<&Stage>, spec: &ContainerSpec) -> io::Result<()> {
    let layers = &spec.layers[..];
    let empty = [dir.join("empty")];
    let layers = if layers.is_empty() { &empty[..] } else { layers };
    // Relative names keep many layers within the option string, as all of them lie in one folder.
    // An unpacked layer is `layers/<digest>/fs`.
    let parent =
        layers[0].ancestors().skip(1).take(2).find(|above| layers.iter().all(|layer| layer.starts_with(above)));
    let named = |layer: &Utf8PathBuf| match parent.and_then(|parent| layer.strip_prefix(parent).ok()) {
        Some(name) => escape(name.as_str()),
        None => escape(layer.as_str()),
    };
    let snapshot = spec.snapshot.as_ref().filter(|_| stage.is_some()).map(|_| escape(dir.join("snapshot").as_str()));
    let lower: Vec<String> = snapshot.into_iter().chain(layers.iter().map(named)).collect();
    let lower = lower.join(":");
    if lower.len() > LOWER_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("the image has {} layers, more than one mount takes; squash some", layers.len()),
        ));
    }
    // whatever this machine's kernel does else: what is written must be a layer by itself
    let plain = if stage.is_some() { "redirect_dir=off,metacopy=off," } else { "" };
    let options = format!(
        "lowerdir={lower},upperdir={},workdir={},{plain}volatile",
        escape(disk(dir, stage).join("upper").as_str()),
        escape(disk(dir, stage).join("work").as_str())
    );
    match (parent, stage) {
        (Some(parent), Some(stage)) => {
            let shown = dir.join("layers");
            stage.show_layers(parent, &shown)?;
            nix::unistd::chdir(shown.as_std_path())?;
        }
        (Some(parent), None) => nix::unistd::chdir(parent.as_std_path())?,
        (None, Some(_)) => return Err(io::Error::other("its layers lie in several folders")),
        (None, None) => {}
    }
    let flags = if stage.is_some() { MsFlags::MS_NODEV | MsFlags::MS_NOSUID } else { MsFlags::MS_NODEV };
    let mount =
        |options: &str| mount(Some("overlay"), dir.join("root").as_std_path(), Some("overlay"), flags, Some(options));
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
pub(crate) fn make_shared(
    replica_dir: &Utf8Path,
    stage: Option<&Stage>,
    spec: &ShimSpec,
    shares: &[OwnedFd],
) -> io::Result<()> {
    let dir = stage.map_or(replica_dir, |stage| &stage.dir);
    let mut shares = shares.iter();
    let etc = dir.join("etc");
    fs::create_dir_all(&etc)?;
    fs::write(etc.join("hosts"), &spec.hosts)?;
    fs::write(etc.join("resolv.conf"), &spec.resolv_conf)?;
    fs::write(etc.join("hostname"), format!("{}\n", spec.replica))?;
    if let Some(certificate) = &spec.ca_certificate {
        fs::write(etc.join("cove-ca.pem"), certificate)?;
    }
    if let (Some(stage), Some(order)) = (stage, spec.sandbox.as_ref().and_then(|sandbox| sandbox.machine.as_deref())) {
        // all else goes to the guest over its link
        return machine::attach_parts(order, stage);
    }
    for (name, volume) in &spec.volumes {
        let path = dir.join("volumes").join(name);
        fs::DirBuilder::new().recursive(true).mode(0o755).create(&path)?;
        match volume {
            VolumeSpec::EmptyDir => match stage {
                None => fs::set_permissions(&path, fs::Permissions::from_mode(0o1777))?,
                Some(stage) => {
                    let memory = spec.containers.iter().map(|container| container.memory_bytes).min().unwrap_or(0);
                    stage.mount_disk(&path, memory, 0o1777)?;
                }
            },
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

/// Takes from a container's configuration what only code that somebody vouches for may have.
fn harden(config: &mut Value, first_id: u32, mounts: Vec<Value>) {
    let none: [&str; 0] = [];
    config["process"]["capabilities"] = json!({ "bounding": none, "effective": none, "permitted": none,
        "inheritable": none, "ambient": none });
    let limit = |resource, most: u64| most.min(getrlimit(resource).map_or(1024, |(_, hard)| hard));
    let files = limit(Resource::RLIMIT_NOFILE, 1 << 16);
    let locked = limit(Resource::RLIMIT_MEMLOCK, 8 << 20);
    // signals that wait, and timers: both count to the machine's root too, who made the namespace
    let signals = limit(Resource::RLIMIT_SIGPENDING, 256);
    config["process"]["rlimits"] = json!([
        { "type": "RLIMIT_NOFILE", "hard": files, "soft": files },
        { "type": "RLIMIT_CORE", "hard": 0, "soft": 0 },
        { "type": "RLIMIT_MEMLOCK", "hard": locked, "soft": locked },
        { "type": "RLIMIT_NICE", "hard": 0, "soft": 0 },
        { "type": "RLIMIT_RTPRIO", "hard": 0, "soft": 0 },
        { "type": "RLIMIT_SIGPENDING", "hard": signals, "soft": signals },
    ]);
    let ids = json!([{ "containerID": 0, "hostID": first_id, "size": IDS_PER_REPLICA }]);
    let linux = &mut config["linux"];
    linux["uidMappings"] = ids.clone();
    linux["gidMappings"] = ids;
    if let Some(namespaces) = linux["namespaces"].as_array_mut() {
        namespaces.insert(0, json!({ "type": "user" }));
    }
    linux["maskedPaths"] = MASKED.iter().chain(&MASKED_TOO).filter(|path| path.starts_with("/proc")).copied().collect();
    config["mounts"] = mounts.into_iter().filter_map(hardened_mount).collect();
}

/// Files of the platform in a container's own /etc.
const NETWORK_FILES: [&str; 3] = ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"];

/// A mount as a sandboxed container has it, if it has it.
fn hardened_mount(mut mount: Value) -> Option<Value> {
    match mount["type"].as_str() {
        // no view of the machine, and no queue that counts to nobody
        Some("sysfs" | "mqueue") => return None,
        Some("proc") => mount["options"].as_array_mut()?.push("hidepid=2".into()),
        // the platform's own files cannot be written to
        Some("bind") if mount["destination"].as_str().is_some_and(|path| NETWORK_FILES.contains(&path)) => {
            for option in mount["options"].as_array_mut()?.iter_mut().filter(|option| *option == "rw") {
                *option = "ro".into();
            }
        }
        _ => {}
    }
    Some(mount)
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
