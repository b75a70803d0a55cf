//! The guest's system: modules of the kernel, the image as root, devices, network; then what one run adds to it.
//!
//! All that does not depend on the run is done before the agent says that it is up, so that a machine that waits starts
//! its program at once.
//!
//! **Invariant:** the image is read-only; what is written lies in memory and has a limit.

use std::{
    fs::{self, File},
    io,
    net::Ipv4Addr,
    os::{fd::AsRawFd as _, unix::fs::PermissionsExt as _},
    path::Path,
};

use crate::{
    sys::{self, MOVE, NODEV, NOEXEC, NOSUID, READ_ONLY, REMOUNT},
    wire::Run,
};

/// Longest wait for a device of the machine.
const DEVICE_LIMIT_MS: u32 = 10_000;
const DEVICE_STEP_MS: i32 = 2;

/// Bytes of the file system in memory before the run says how many.
const FIRST_DISK: &str = "size=16m,mode=755";

const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

fn in_words<T>(what: &str, result: io::Result<T>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// The kernel's own file systems on the initial one, and its modules.
pub(crate) fn begin() -> Result<(), String> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        in_words(at, fs::create_dir_all(at))?;
        match sys::mount(kind, at, kind, NOSUID, "") {
            // the kernel mounts /dev by itself where it is built so
            Err(error) if error.raw_os_error() == Some(16) => {}
            other => in_words(at, other)?,
        }
    }
    in_words("the agent's priority", sys::prefer_self())?;
    let mut modules: Vec<_> =
        in_words("/modules", fs::read_dir("/modules"))?.flatten().map(|entry| entry.path()).collect();
    modules.sort();
    for module in &modules {
        in_words(&module.display().to_string(), sys::load_module(module))?;
    }
    // their memory is free again
    in_words("/modules", fs::remove_dir_all("/modules"))
}

/// Waits for something to be there.
pub(crate) fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T, String> {
    let mut waited_ms = 0;
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if waited_ms > DEVICE_LIMIT_MS {
            return Err(format!("{what} did not appear"));
        }
        waited_ms += DEVICE_STEP_MS.unsigned_abs();
        in_words(what, sys::poll(&mut [], DEVICE_STEP_MS))?;
    }
}

/// The port's device, by its name.
pub(crate) fn port() -> Result<String, String> {
    wait_for("the port", || {
        fs::read_dir("/sys/class/virtio-ports").ok()?.flatten().find_map(|entry| {
            let name = fs::read_to_string(entry.path().join("name")).ok()?;
            let device = format!("/dev/{}", entry.file_name().to_string_lossy());
            (name.trim() == crate::wire::PORT_NAME && Path::new(&device).exists()).then_some(device)
        })
    })
}

/// The network, if the machine has one, and the image as root. The machine may lack a disk: then there is nothing to run.
/// Gives the folder whose file system holds what is written; it is reached by this descriptor only.
pub(crate) fn prepare() -> Result<File, String> {
    in_words("loopback", sys::bring_up("lo", None))?;
    if Path::new("/sys/class/net/eth0").exists() {
        in_words("eth0", sys::bring_up("eth0", Some(ADDRESS)))?;
        in_words("the route", sys::add_default_route(GATEWAY))?;
    }
    // every port may be listened at, as in other containers
    in_words("ports", fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0"))?;
    if !Path::new("/sys/block/vda").exists() {
        return Err("the machine has no disk".to_owned());
    }
    wait_for("the disk", || Path::new("/dev/vda").exists().then_some(()))?;
    for path in ["/image", "/written", "/root"] {
        in_words(path, fs::create_dir_all(path))?;
    }
    in_words("the image", sys::mount("/dev/vda", "/image", "erofs", READ_ONLY | NODEV, ""))?;
    in_words("memory for files", sys::mount("written", "/written", "tmpfs", NODEV, FIRST_DISK))?;
    for path in ["/written/upper", "/written/work"] {
        in_words(path, fs::create_dir(path))?;
    }
    let layers = "lowerdir=/image,upperdir=/written/upper,workdir=/written/work";
    in_words("the root", sys::mount("root", "/root", "overlay", NODEV, layers))?;
    system_folders("/root")?;
    let written = in_words("/written", File::open("/written"))?;
    in_words("/root", std::env::set_current_dir("/root"))?;
    in_words("the root's place", sys::mount("/root", "/", "", MOVE, ""))?;
    in_words("the root", sys::chroot("."))?;
    in_words("the root", std::env::set_current_dir("/"))?;
    Ok(written)
}

fn system_folders(root: &str) -> Result<(), String> {
    let at = |path: &str| format!("{root}{path}");
    let place = |path: &str| in_words(path, fs::create_dir_all(at(path)));
    let mount = |kind: &str, path: &str, flags, options: &str| {
        in_words(path, sys::mount(kind, &at(path), kind, flags, options))
    };
    for path in ["/proc", "/sys", "/dev", "/tmp", "/etc"] {
        place(path)?;
    }
    mount("proc", "/proc", NOSUID | NODEV | NOEXEC, "")?;
    mount("sysfs", "/sys", NOSUID | NODEV | NOEXEC | READ_ONLY, "")?;
    mount("tmpfs", "/dev", NOSUID | NOEXEC, "size=64k,mode=755")?;
    for path in ["/dev/pts", "/dev/shm"] {
        place(path)?;
    }
    mount("devpts", "/dev/pts", NOSUID | NOEXEC, "newinstance,gid=5,mode=620,ptmxmode=666")?;
    mount("tmpfs", "/dev/shm", NOSUID | NODEV | NOEXEC, "mode=1777")?;
    let devices = [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
    for (name, major, minor) in devices {
        let path = at(&format!("/dev/{name}"));
        in_words(&path, sys::make_device(&path, major, minor))?;
        in_words(&path, fs::set_permissions(&path, fs::Permissions::from_mode(0o666)))?;
    }
    let links = [
        ("pts/ptmx", "ptmx"),
        ("/proc/self/fd", "fd"),
        ("/proc/self/fd/0", "stdin"),
        ("/proc/self/fd/1", "stdout"),
        ("/proc/self/fd/2", "stderr"),
    ];
    for (to, name) in links {
        in_words(name, std::os::unix::fs::symlink(to, at(&format!("/dev/{name}"))))?;
    }
    in_words("/tmp", fs::set_permissions(at("/tmp"), fs::Permissions::from_mode(0o1777)))
}

/// What one run adds: names, files, limits, time.
pub(crate) fn for_run(run: &Run, written: &File) -> Result<(), String> {
    in_words("the clock", sys::set_clock(run.clock_unix_ns))?;
    in_words("random numbers", sys::add_entropy(&run.entropy.0))?;
    let size = format!("size={}", run.disk_bytes.max(1 << 20));
    let place = format!("/proc/self/fd/{}", written.as_raw_fd());
    in_words("the limit of files", sys::mount("written", &place, "tmpfs", REMOUNT | NODEV, &size))?;
    if run.tasks_max > 0 {
        // the kernel's own threads count too
        let own = fs::read_dir("/proc").map_or(0, |entries| {
            { entries.flatten() }.filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok()).count()
        });
        let most = run.tasks_max as usize + own;
        in_words("the limit of processes", fs::write("/proc/sys/kernel/threads-max", most.max(64).to_string()))?;
    }
    rename(&run.hostname, &run.hosts)?;
    write_file("/etc/resolv.conf", run.resolv_conf.as_bytes(), 0o644)?;
    for file in &run.files {
        write_file(&file.path, &file.content.0, file.mode)?;
    }
    for path in &run.empty_dirs {
        in_words(path, fs::create_dir_all(path))?;
        let options = format!("size={},mode=1777", run.disk_bytes.max(1 << 20));
        in_words(path, sys::mount("tmpfs", path, "tmpfs", NOSUID | NODEV, &options))?;
    }
    Ok(())
}

/// Another name for the machine; `hosts` is left as it is when it is empty.
pub(crate) fn rename(hostname: &str, hosts: &str) -> Result<(), String> {
    in_words("the name", sys::set_hostname(hostname))?;
    write_file("/etc/hostname", format!("{hostname}\n").as_bytes(), 0o644)?;
    if hosts.is_empty() { Ok(()) } else { write_file("/etc/hosts", hosts.as_bytes(), 0o644) }
}

fn write_file(path: &str, content: &[u8], mode: u32) -> Result<(), String> {
    if let Some(parent) = Path::new(path).parent() {
        in_words(path, fs::create_dir_all(parent))?;
    }
    // a link of the image is replaced, not followed
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => in_words(path, Err(error))?,
        _ => {}
    }
    in_words(path, fs::write(path, content))?;
    in_words(path, fs::set_permissions(path, fs::Permissions::from_mode(mode)))
}
