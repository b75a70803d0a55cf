//! Containers that an OCI runtime of this machine runs, as `crun` or `runsc`: its command line, driven from the helper.
//!
//! The configuration is the one that our own containers have (ids, no capabilities, the filter of system calls, masked
//! paths, limits), and what runs it is born in the same cgroup and network namespace. So logs, freezing, limits and the
//! end work as for ours. The helper is the reaper of what the runtime leaves behind, so it learns the exit code.
//!
//! **Invariant:** nothing here waits in the helper: its commands are children that are looked after by its loop, with a
//! limit each.

#![expect(unsafe_code, reason = "prctl has no safe wrapper")]

use std::{
    fs::{self, File},
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use nix::{libc, unistd::Pid};

use crate::{protocol::HandlerSpec, wait::wait};

/// Longest time of `create`.
const CREATE_LIMIT: Duration = Duration::from_secs(60);

/// Longest time of `delete`; what is left then ends with the control group.
pub(super) const DELETE_LIMIT: Duration = Duration::from_secs(15);

/// Most bytes of a runtime's own log that are read.
const LOG_BYTES_MAX: u64 = 64 << 10;

/// A container of a runtime.
#[derive(Clone, Debug)]
pub(super) struct Handled {
    pub(super) spec: HandlerSpec,
    state: Utf8PathBuf,
    id: String,
}

/// What the helper has on the way.
#[derive(Debug, Default)]
pub(super) struct Commands {
    /// `start`: when it fails the container has no program.
    pub(super) start: Option<Pid>,
    /// `delete`, and when it is not waited for any longer.
    pub(super) delete: Option<(Pid, Instant)>,
}

/// From now on what has lost its parent below this process is its child.
pub(super) fn become_reaper() -> io::Result<()> {
    // SAFETY: sets a number in the kernel.
    let done = unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

impl Handled {
    pub(super) fn new(spec: &HandlerSpec, state: Utf8PathBuf, id: String) -> Self {
        Self { spec: spec.clone(), state, id }
    }

    fn file(&self, kind: &str) -> Utf8PathBuf {
        self.state.join(format!("{}.{kind}", self.id))
    }

    fn command(&self, log: &Utf8Path) -> Command {
        let mut command = Command::new(self.spec.program.as_str());
        command.env_clear().env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.args(["--root", self.state.join("handler").as_str(), "--log", log.as_str()]).args(&self.spec.args);
        command
    }

    /// Makes the container whose first process waits for its start. Runs in a carrier.
    pub(super) fn create(&self, bundle: &Utf8Path, stdio: [OwnedFd; 3]) -> Result<i32, String> {
        let (log, pid_file) = (self.file("log"), self.file("pid"));
        let [stdin, stdout, stderr] = stdio;
        let mut command = self.command(&log);
        command.arg("create").args(["--bundle", bundle.as_str(), "--pid-file", pid_file.as_str(), &self.id]);
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let child = command.spawn().map_err(|error| format!("failed to run `{}`: {error}", self.spec.program))?;
        // the ends of the outputs that it holds would keep them open
        drop(command);
        let ended = wait(child, CREATE_LIMIT).map_err(|error| error.to_string())?;
        match ended {
            None => Err(format!("`{}` made no container within {} s", self.spec.name, CREATE_LIMIT.as_secs())),
            Some(status) if !status.success() => Err(self.words("create", &log)),
            Some(_) => {
                let text = fs::read_to_string(&pid_file).unwrap_or_default();
                text.trim().parse().map_err(|_| format!("`{}` told no process of the container", self.spec.name))
            }
        }
    }

    /// What a runtime wrote of its failure.
    pub(super) fn why_not(&self, verb: &str) -> String {
        self.words(verb, &self.file(&format!("{verb}.log")))
    }

    fn words(&self, verb: &str, log: &Utf8Path) -> String {
        use std::io::Read as _;
        let mut text = String::new();
        if let Ok(file) = File::open(log) {
            // what is not text has no words
            let _ = file.take(LOG_BYTES_MAX).read_to_string(&mut text);
        }
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing of why");
        let last = match serde_json::from_str::<serde_json::Value>(last) {
            Ok(line) => line["msg"].as_str().unwrap_or(last).to_owned(),
            Err(_) => last.to_owned(),
        };
        format!("`{} {verb}` failed: {}", self.spec.name, last.chars().take(500).collect::<String>())
    }

    fn begin(&self, verb: &str, arguments: &[&str]) -> io::Result<Pid> {
        let mut command = self.command(&self.file(&format!("{verb}.log")));
        command.arg(verb).args(arguments);
        let child = command.spawn()?;
        // the helper's loop waits for all its children
        i32::try_from(child.id()).map(Pid::from_raw).map_err(io::Error::other)
    }

    /// Lets the first process go on.
    pub(super) fn start(&self) -> io::Result<Pid> {
        self.begin("start", &[&self.id])
    }

    /// Sends a signal to the first process.
    pub(super) fn signal(&self, signal: &str) -> io::Result<Pid> {
        self.begin("kill", &[&self.id, signal])
    }

    /// Forgets the container, with all that still runs in it.
    pub(super) fn delete(&self) -> io::Result<Pid> {
        self.begin("delete", &["--force", &self.id])
    }

    /// Becomes a command in the container. Runs in a carrier.
    pub(super) fn exec(&self, process: &Utf8Path, tty: bool, pid_file: &Utf8Path, stdio: [OwnedFd; 3]) -> io::Error {
        let log = process.with_extension("log");
        let mut command = self.command(&log);
        command.arg("exec").args(["--process", process.as_str(), "--pid-file", pid_file.as_str()]);
        if tty {
            command.arg("--tty");
        }
        command.arg(&self.id);
        let [stdin, stdout, stderr] = stdio;
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        if tty {
            // a session of its own with this terminal, so that changes of its size are told
            let _ = nix::unistd::setsid();
            // SAFETY: called between becoming this process and the program, with calls of the kernel only.
            unsafe {
                command.pre_exec(|| {
                    libc::ioctl(0, libc::TIOCSCTTY, 0);
                    Ok(())
                });
            }
        }
        command.exec()
    }
}
