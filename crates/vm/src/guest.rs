//! The guest's kernel and initial file system: made by one command, found ready by everyone else.
//!
//! The kernel is Debian's for clouds, taken out of its package and not installed. The initial file system is a few of its
//! modules and the agent. Kernel and modules are kept in a folder of the cache; the agent comes with this program, so a
//! newer program makes its own initial file system of the same kernel without fetching anything.
//!
//! **Invariant:** a folder or file in the cache is whole: it is made beside and renamed.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Stdio},
};

use camino::{Utf8Path, Utf8PathBuf};
use sha2::{Digest as _, Sha256};

mod archive;
mod kernel;

/// Folder of the cache unless said otherwise.
pub const CACHE: &str = "/var/cache/cove/vm";

/// The command that makes a guest.
pub const BUILD_COMMAND: &str = "cove image build-vm-guest";

/// Counts up when kernel or modules are made in another way.
const RECIPE: &str = "1";

/// Name of the link to the newest folder.
const CURRENT: &str = "current";

/// Debian's package of the newest kernel.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// Longest that one program may take, seconds.
const STEP_LIMIT_S: u32 = 600;

/// Modules that the guest loads, with all that these need.
const MODULES: [&str; 6] = ["virtio_mmio", "virtio_console", "virtio_blk", "virtio_net", "erofs", "overlay"];

/// A guest that machines can boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Guest {
    /// The kernel, uncompressed.
    pub kernel: Utf8PathBuf,
    /// The initial file system with this program's agent.
    pub initramfs: Utf8PathBuf,
    /// Release of the kernel, as `6.1.0-56-cloud-amd64`.
    pub release: String,
    /// Names kernel, modules and agent: the same name, the same bytes.
    pub version: String,
}

/// How to build.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Folder that keeps guests. Default of the command: [`CACHE`].
    pub cache: Utf8PathBuf,
    /// Make it anew although the cache has it.
    pub is_forced: bool,
}

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The cache has none.
    #[error("no guest for virtual machines is in `{cache}`; make one: {BUILD_COMMAND}")]
    None {
        /// Where it was looked for.
        cache: Utf8PathBuf,
    },
    /// No machine of this architecture.
    #[error("virtual machines need x86-64; this machine is {arch}")]
    Architecture {
        /// What this is.
        arch: &'static str,
    },
    /// A program is missing.
    #[error("`{program}` is needed to build the guest and was not found; a Debian or Ubuntu machine has it")]
    Missing {
        /// What was looked for.
        program: &'static str,
    },
    /// A program failed.
    #[error("{step} failed ({status}):\n{said}")]
    Failed {
        /// What was being done.
        step: &'static str,
        /// How it ended.
        status: String,
        /// Its last lines.
        said: String,
    },
    /// The package is not as expected.
    #[error("the kernel's package cannot be used: {0}")]
    Kernel(String),
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

fn io_error(action: &'static str, path: &Utf8Path) -> impl FnOnce(io::Error) -> GuestError + use<> {
    let path = path.to_owned();
    move |source| GuestError::Io { action, path, source }
}

/// The guest of the cache, with this program's agent in it.
///
/// # Errors
/// [`GuestError`]: there is none, or the cache cannot be written.
pub fn find(cache: &Utf8Path) -> Result<Guest, GuestError> {
    check_architecture()?;
    let none = || GuestError::None { cache: cache.to_owned() };
    let home = fs::read_link(cache.join(CURRENT)).map_err(|_| none())?;
    let name = home.to_str().ok_or_else(none)?.to_owned();
    let home = cache.join(&name);
    let kernel = home.join("vmlinux");
    if !kernel.exists() {
        return Err(none());
    }
    let agent = hex(crate::AGENT);
    let initramfs = home.join(format!("initramfs-{agent}"));
    if !initramfs.exists() {
        let path = home.join("modules");
        let mut content = fs::read(&path).map_err(io_error("read", &path))?;
        content.extend(archive::of(&[("init", 0o755, crate::AGENT)]));
        write_whole(&initramfs, &content)?;
    }
    let release = name.rsplit_once('_').map_or(name.as_str(), |(release, _)| release).to_owned();
    Ok(Guest { kernel, initramfs, release, version: format!("{name}-{agent}") })
}

/// Makes the guest, or finds it in the cache; `say` gets lines of progress. Blocks for some seconds.
///
/// # Errors
/// [`GuestError`], with what a program said last.
pub fn build(options: &GuestOptions, say: &dyn Fn(&str)) -> Result<Guest, GuestError> {
    check_architecture()?;
    let cache = &options.cache;
    let package = match newest_package()? {
        Some(package) => package,
        None => {
            say("fetching the lists of packages");
            run("fetching lists of packages", Command::new("apt-get").args(["update", "-qq"]), "apt-get")?;
            newest_package()?.ok_or_else(|| GuestError::Kernel(format!("apt knows no {PACKAGE}")))?
        }
    };
    let release = package.trim_start_matches("linux-image-").to_owned();
    let name = format!("{release}_{}", &hex(format!("{RECIPE} {}", MODULES.join(" ")).as_bytes())[..8]);
    let home = cache.join(&name);
    if options.is_forced || !home.join("vmlinux").exists() {
        say(&format!("fetching {package}"));
        make(options, &home, &package, &release)?;
    }
    let link = cache.join(format!(".{CURRENT}-{}", uuid::Uuid::new_v4().simple()));
    std::os::unix::fs::symlink(&name, &link).map_err(io_error("create", &link))?;
    fs::rename(&link, cache.join(CURRENT)).map_err(io_error("rename", &link))?;
    find(cache)
}

fn check_architecture() -> Result<(), GuestError> {
    if crate::AGENT.is_empty() { Err(GuestError::Architecture { arch: std::env::consts::ARCH }) } else { Ok(()) }
}

fn newest_package() -> Result<Option<String>, GuestError> {
    let text = run("asking for the newest kernel", Command::new("apt-cache").args(["depends", PACKAGE]), "apt-cache");
    // apt fails when it does not know the package at all
    let text = match text {
        Err(GuestError::Failed { .. }) => return Ok(None),
        other => other?,
    };
    let words = text.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    Ok({ words }.find(|name| name.starts_with("linux-image-")).map(str::to_owned))
}

/// A folder that is deleted when it was not renamed away.
struct Temporary(Utf8PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn make(options: &GuestOptions, home: &Utf8Path, package: &str, release: &str) -> Result<(), GuestError> {
    let GuestOptions { cache, is_forced } = options;
    let work = Temporary(cache.join(format!(".work-{}", uuid::Uuid::new_v4().simple())));
    fs::create_dir_all(&work.0).map_err(io_error("create", &work.0))?;
    let mut fetch = Command::new("apt-get");
    fetch.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]).current_dir(&work.0);
    if run("fetching the kernel", &mut fetch, "apt-get").is_err() {
        // old lists name versions that are gone
        run("fetching lists of packages", Command::new("apt-get").args(["update", "-qq"]), "apt-get")?;
        run("fetching the kernel", &mut fetch, "apt-get")?;
    }
    let files = work.0.read_dir_utf8().map_err(io_error("list", &work.0))?;
    let archive = { files.flatten() }.find(|entry| entry.file_name().ends_with(".deb"));
    let archive = archive.ok_or_else(|| GuestError::Kernel("apt-get fetched no package".to_owned()))?;
    let unpacked = work.0.join("unpacked");
    let mut unpack = Command::new("dpkg-deb");
    unpack.args(["--extract", archive.path().as_str(), unpacked.as_str()]);
    run("unpacking the kernel", &mut unpack, "dpkg-deb")?;
    let made = work.0.join("made");
    fs::create_dir_all(&made).map_err(io_error("create", &made))?;
    let image = unpacked.join(format!("boot/vmlinuz-{release}"));
    let image = fs::read(&image).map_err(io_error("read", &image))?;
    write_whole(&made.join("vmlinux"), &kernel::uncompressed(&image).map_err(GuestError::Kernel)?)?;
    // a merged /usr has it there
    let tree = [format!("usr/lib/modules/{release}"), format!("lib/modules/{release}")].map(|path| unpacked.join(path));
    let tree = tree.iter().find(|path| path.exists()).ok_or_else(|| GuestError::Kernel("it has no modules".into()))?;
    let modules = kernel::modules(tree.as_std_path(), &MODULES).map_err(GuestError::Kernel)?;
    let named: Vec<_> =
        modules.iter().enumerate().map(|(at, (name, bytes))| (format!("modules/{at:02}-{name}.ko"), bytes)).collect();
    let mut files = vec![("modules", 0o40_755, &[][..])];
    files.extend(named.iter().map(|(name, bytes)| (name.as_str(), 0o644, bytes.as_slice())));
    write_whole(&made.join("modules"), &archive::of(&files))?;
    if *is_forced {
        match fs::remove_dir_all(home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", home)(error)),
            _ => {}
        }
    }
    match fs::rename(&made, home) {
        // somebody else made the same in the meantime
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.map_err(io_error("create", home)),
    }
}

/// A file that is there whole or not at all, for everybody to read.
pub(crate) fn write_whole(path: &Utf8Path, content: &[u8]) -> Result<(), GuestError> {
    let beside = path.with_file_name(format!(".{}", uuid::Uuid::new_v4().simple()));
    let written = fs::File::create(&beside).and_then(|mut file| {
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(0o644))?;
        fs::rename(&beside, path)
    });
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written.map_err(io_error("write", path))
}

/// Runs a program to its end and gives what it printed.
fn run(step: &'static str, command: &mut Command, program: &'static str) -> Result<String, GuestError> {
    let mut limited = Command::new("timeout");
    limited.args(["--kill-after=5", &STEP_LIMIT_S.to_string()]).arg(command.get_program()).args(command.get_args());
    if let Some(folder) = command.get_current_dir() {
        limited.current_dir(folder);
    }
    limited.env("LC_ALL", "C").stdin(Stdio::null());
    let output = limited.output().map_err(|_| GuestError::Missing { program: "timeout" })?;
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Some(127) => Err(GuestError::Missing { program }),
        Some(124 | 137) => {
            let said = format!("it took longer than {STEP_LIMIT_S} s; is a package source reachable from here?");
            Err(GuestError::Failed { step, status: output.status.to_string(), said })
        }
        _ => {
            let said = String::from_utf8_lossy(&output.stderr);
            let last: Vec<_> = said.lines().rev().take(15).collect();
            let said = last.into_iter().rev().collect::<Vec<_>>().join("\n");
            Err(GuestError::Failed { step, status: output.status.to_string(), said })
        }
    }
}

/// First half of the SHA-256, enough to tell contents of our own apart.
pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The path of a program in `PATH`, if it is there.
#[must_use]
pub fn program(name: &str) -> Option<Utf8PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let found = path.split(':').map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())?;
    Utf8PathBuf::from_path_buf(found).ok()
}
