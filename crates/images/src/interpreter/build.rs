//! Makes the system of an interpreter from packages, or takes it from the cache.
//!
//! `mmdebstrap` unpacks Debian's packages without running their scripts, `pip` puts wheels beside them (wheels only: nothing
//! is compiled), and what scripts would have made, such as `/etc/passwd`, is written here. Both programs use this machine's
//! own configuration, so mirrors and proxies that it knows are used.

use std::{
    collections::VecDeque,
    fs,
    io::{BufRead as _, BufReader, Read},
    os::unix::{fs::PermissionsExt as _, process::CommandExt as _},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};

use super::{Interpreter, InterpreterError, PYTHON, SUITE, layout};
use crate::digest::Digest;

/// Longest that one program may take.
const STEP_LIMIT: Duration = Duration::from_secs(40 * 60);
/// Lines of a program's output that are kept for its failure.
const KEPT_LINES: usize = 15;

/// How to build.
#[derive(Clone, Debug)]
pub struct BuildOptions {
    /// Folder that keeps systems between builds. Default of the command: `/var/cache/cove/interpreters`.
    pub cache: Utf8PathBuf,
    /// Debian mirror to use instead of this machine's own sources.
    pub mirror: Option<String>,
    /// Make the system anew although the cache has it.
    pub is_forced: bool,
}

/// A built image, as an OCI layout.
#[derive(Clone, Debug)]
pub struct BuiltInterpreter {
    /// Folder to import.
    pub layout: Utf8PathBuf,
    /// Digest of its manifest.
    pub digest: Digest,
    /// Bytes of its layers, compressed.
    pub size_bytes: u64,
    /// Bytes of its files.
    pub unpacked_bytes: u64,
    /// The system came from the cache.
    pub is_from_cache: bool,
}

/// Builds the image of `kind`; `say` gets lines of progress. Blocks for minutes when the cache has nothing.
///
/// # Errors
/// [`InterpreterError`], with what a program said last.
pub fn build_interpreter(
    kind: Interpreter,
    options: &BuildOptions,
    say: &dyn Fn(&str),
) -> Result<BuiltInterpreter, InterpreterError> {
    let home = options.cache.join(format!("{}-{}", kind.as_str(), kind.recipe()));
    let is_from_cache = home.join(layout::SYSTEM).exists() && !options.is_forced;
    if !is_from_cache {
        make(kind, options, &home, say)?;
    }
    layout::write(kind, &home, is_from_cache)
}

/// A folder that is deleted when it was not renamed away.
struct Temporary(Utf8PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn make(
    kind: Interpreter,
    options: &BuildOptions,
    home: &Utf8Path,
    say: &dyn Fn(&str),
) -> Result<(), InterpreterError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(InterpreterError::NotRoot);
    }
    let work = Temporary(options.cache.join(format!(".work-{}", uuid::Uuid::new_v4().simple())));
    fs::create_dir_all(&work.0).map_err(io("create", &work.0))?;
    let root = work.0.join("root");
    let begun = Instant::now();
    say(&format!("fetching and unpacking {} Debian packages and what they need", kind.packages().len()));
    unpack(kind, options, &root, say)?;
    complete(&root)?;
    if !kind.requirements().is_empty() {
        say("fetching and unpacking Python packages");
        add_wheels(kind, &work.0, &root, say)?;
    }
    say("compiling Python's files");
    compile(&root, say)?;
    say("packing");
    let made = work.0.join("made");
    fs::create_dir_all(&made).map_err(io("create", &made))?;
    pack(&root, &made)?;
    match fs::remove_dir_all(home) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", home)(error)),
        _ => fs::rename(&made, home).map_err(io("create", home))?,
    }
    say(&format!("the system is ready after {} s", begun.elapsed().as_secs()));
    Ok(())
}

pub(super) fn io(action: &'static str, path: &Utf8Path) -> impl FnOnce(std::io::Error) -> InterpreterError + use<> {
    let path = path.to_owned();
    move |source| InterpreterError::Io { action, path, source }
}

/// Debian's packages into `root`.
fn unpack(
    kind: Interpreter,
    options: &BuildOptions,
    root: &Utf8Path,
    say: &dyn Fn(&str),
) -> Result<(), InterpreterError> {
    let mut command = Command::new("mmdebstrap");
    command.args(["--variant=extract", "--mode=root", "--format=directory"]);
    command.arg(format!("--include={}", kind.packages().join(",")));
    command.args(["--aptopt=Acquire::http::Timeout \"20\"", "--aptopt=Acquire::https::Timeout \"20\""]);
    command.arg("--aptopt=Acquire::Retries \"2\"");
    for unneeded in ["doc", "man", "info", "lintian", "bug"] {
        command.arg(format!("--dpkgopt=path-exclude=/usr/share/{unneeded}/*"));
    }
    command.arg("--dpkgopt=path-exclude=/usr/share/locale/*/LC_MESSAGES/*");
    // `/bin` and the like as links, as every Debian has them
    command.arg("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr");
    command.args([SUITE, root.as_str()]);
    command.args(options.mirror.clone().or_else(sources));
    command.env("SOURCE_DATE_EPOCH", "0");
    let install = "apt-get install -y mmdebstrap";
    run("unpacking Debian's packages", &mut command, "mmdebstrap", install, say)
}

/// This machine's own sources, where they are of the release that is wanted.
fn sources() -> Option<String> {
    let release = fs::read_to_string("/etc/os-release").ok()?;
    if !release.lines().any(|line| line == format!("VERSION_CODENAME={SUITE}")) {
        return None;
    }
    let own = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"];
    own.into_iter().find(|path| fs::metadata(path).is_ok_and(|meta| meta.len() > 0)).map(str::to_owned)
}

/// What maintainer scripts would have made.
fn complete(root: &Utf8Path) -> Result<(), InterpreterError> {
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        fs::write(&path, text).map_err(io("write", &path))
    };
    write(
        "etc/passwd",
        "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\nsession:x:1000:1000:session:/mnt/data:/bin/bash\n",
    )?;
    write("etc/group", "root:x:0:\nnogroup:x:65534:\nsession:x:1000:\n")?;
    write("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\nnetworks: files\nservices: files\n")?;
    write("etc/hostname", "session\n")?;
    write("etc/resolv.conf", "")?;
    let awk = root.join("usr/bin/awk");
    if !awk.exists() {
        std::os::unix::fs::symlink("gawk", &awk).map_err(io("link", &awk))?;
    }
    let authorities = root.join("usr/share/ca-certificates/mozilla");
    let mut bundle = Vec::new();
    let mut files: Vec<_> = fs::read_dir(&authorities).map_err(io("list", &authorities))?.flatten().collect();
    files.sort_by_key(fs::DirEntry::file_name);
    for file in files {
        bundle.extend(fs::read(file.path()).map_err(io("read", &authorities))?);
    }
    let path = root.join("etc/ssl/certs");
    fs::create_dir_all(&path).map_err(io("create", &path))?;
    fs::write(path.join("ca-certificates.crt"), bundle).map_err(io("write", &path))?;
    let data = root.join("mnt/data");
    fs::create_dir_all(&data).map_err(io("create", &data))?;
    std::os::unix::fs::chown(&data, Some(1000), Some(1000)).map_err(io("change the owner of", &data))?;
    let tmp = root.join("tmp");
    fs::create_dir_all(&tmp).map_err(io("create", &tmp))?;
    fs::set_permissions(&tmp, fs::Permissions::from_mode(0o1777)).map_err(io("change the mode of", &tmp))?;
    run(
        "indexing libraries",
        Command::new("ldconfig").args(["-r", root.as_str()]),
        "ldconfig",
        "apt-get install -y libc-bin",
        &|_| {},
    )
}

/// PyPI's wheels into `root`, fetched by this machine's pip for the image's Python.
fn add_wheels(kind: Interpreter, work: &Utf8Path, root: &Utf8Path, say: &dyn Fn(&str)) -> Result<(), InterpreterError> {
    let list = work.join("requirements.txt");
    fs::write(&list, kind.requirements()).map_err(io("write", &list))?;
    let target = root.join(format!("usr/local/lib/python{PYTHON}/dist-packages"));
    fs::create_dir_all(&target).map_err(io("create", &target))?;
    let mut command = Command::new("python3");
    command.args(["-m", "pip", "install", "--no-compile", "--no-deps", "--only-binary=:all:", "--no-warn-conflicts"]);
    command.args(["--disable-pip-version-check", "--root-user-action=ignore", "--progress-bar=off", "--retries=2"]);
    command.args(["--implementation=cp", "--python-version", PYTHON, "--abi=cp311", "--abi=abi3", "--abi=none"]);
    for glibc in ["manylinux_2_36", "manylinux_2_28", "manylinux_2_17", "manylinux2014"] {
        command.arg(format!("--platform={glibc}_{}", std::env::consts::ARCH));
    }
    command.args(["--target", target.as_str(), "--requirement", list.as_str()]);
    let install = "apt-get install -y python3-pip";
    run("unpacking Python packages", &mut command, "python3", install, say)
}

/// The ordinary user cannot write compiled files beside the sources, and without them each start takes seconds longer.
fn compile(root: &Utf8Path, say: &dyn Fn(&str)) -> Result<(), InterpreterError> {
    let mut command = Command::new("chroot");
    command.args([root.as_str(), "/usr/bin/python3", "-m", "compileall", "-q", "--invalidation-mode=unchecked-hash"]);
    let local = format!("/usr/local/lib/python{PYTHON}");
    command.arg(format!("/usr/lib/python{PYTHON}"));
    if root.join(&local[1..]).exists() {
        command.arg(local);
    }
    run("compiling Python's files", &mut command, "chroot", "apt-get install -y coreutils", say)
}

/// The tree as one layer: no set-id programs, the same bytes for the same files.
fn pack(root: &Utf8Path, made: &Utf8Path) -> Result<(), InterpreterError> {
    let mut command = Command::new("tar");
    command.args(["--create", "--sort=name", "--mtime=@0", "--numeric-owner", "--mode=u-s,g-s", "--xattrs"]);
    command.args([
        "--exclude=./dev/*",
        "--exclude=./var/cache/*",
        "--exclude=./var/lib/apt/*",
        "--exclude=./var/log/*",
    ]);
    command.args(["--directory", root.as_str(), "."]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let missing = |_| InterpreterError::Missing { program: "tar", install: "apt-get install -y tar" };
    let mut child = command.spawn().map_err(missing)?;
    let stream = child.stdout.take().expect("it was asked for");
    let packed = layout::keep_system(stream, made);
    if packed.is_err() {
        let _ = child.kill();
    }
    let output = child.wait_with_output().map_err(io("pack", root))?;
    packed?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).lines().take(KEPT_LINES).collect::<Vec<_>>().join("\n");
    let program = "tar".to_owned();
    Err(InterpreterError::Failed { step: "packing", program, status: output.status.to_string(), said })
}

/// Runs a program to its end; its lines are progress.
fn run(
    step: &'static str,
    command: &mut Command,
    program: &'static str,
    install: &'static str,
    say: &dyn Fn(&str),
) -> Result<(), InterpreterError> {
    // its children end with it when it takes too long
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
    let mut child = command.spawn().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => InterpreterError::Missing { program, install },
        _ => InterpreterError::Failed {
            step,
            program: program.into(),
            status: "not started".into(),
            said: error.to_string(),
        },
    })?;
    let (sender, lines) = mpsc::sync_channel(64);
    for stream in [child.stdout.take().map(boxed), child.stderr.take().map(boxed)].into_iter().flatten() {
        let sender = sender.clone();
        thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);
    let (end, mut said) = (Instant::now() + STEP_LIMIT, VecDeque::new());
    loop {
        match lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(line) if line.trim().is_empty() => {}
            Ok(line) => {
                let line: String = line.chars().take(400).collect();
                say(&format!("  {line}"));
                said.push_back(line);
                if said.len() > KEPT_LINES {
                    said.pop_front();
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let group = Pid::from_raw(i32::try_from(child.id()).expect("process ids fit"));
                let _ = killpg(group, Signal::SIGKILL);
                let _ = child.wait();
                return Err(InterpreterError::TooLong { step, minutes: STEP_LIMIT.as_secs() / 60 });
            }
        }
    }
    let status = child.wait().map_err(io("wait for", Utf8Path::new(program)))?;
    if status.success() {
        return Ok(());
    }
    let mut said = Vec::from(said).join("\n");
    if said.contains("No module named pip") {
        said.push_str(&format!("\ninstall it: {install}"));
    }
    Err(InterpreterError::Failed { step, program: program.to_owned(), status: status.to_string(), said })
}

fn boxed(stream: impl Read + Send + 'static) -> Box<dyn Read + Send> {
    Box::new(stream)
}
