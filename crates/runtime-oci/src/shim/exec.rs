//! Commands run in a container that runs.
//!
//! The driver makes pipes or a terminal and sends the container's ends along, so no byte of a session goes through the
//! helper; it only starts the command and tells how it ended.
//!
//! **Invariant:** at most [`EXECS_MAX`] at a time; the kernel ends them with the container.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    rc::Rc,
};

use camino::{Utf8Path, Utf8PathBuf};
use nix::{
    fcntl::{OFlag, open},
    sys::stat::Mode,
    unistd::Pid,
};
use serde_json::Value;

use super::{
    carrier::{Answer, Carrier, Order, kill},
    container::{Container, state_dir},
    sandbox::Stage,
    user_ns::Inside,
    zygote::Env,
};
use crate::protocol::{HandlerSpec, pair};

/// Most commands at a time in one replica.
pub(super) const EXECS_MAX: usize = 32;

/// A command on its way or running.
#[derive(Debug)]
pub(super) struct Exec {
    pub(super) id: u64,
    pub(super) carrier: Option<Carrier>,
    pub(super) pid: Option<Pid>,
    container: String,
    process: Utf8PathBuf,
    state: Utf8PathBuf,
    tty: bool,
    is_debug: bool,
    is_sandboxed: bool,
    inside: Option<Inside>,
    handler: Option<HandlerSpec>,
    stdio: Vec<OwnedFd>,
}

/// What is to be run.
#[derive(Debug)]
pub(super) struct Command {
    /// Program and arguments.
    pub(super) words: Vec<String>,
    /// With a terminal.
    pub(super) tty: bool,
    /// As root, and the program is the last descriptor.
    pub(super) is_debug: bool,
}

/// The root directory of a process that runs, its own mounts included.
pub(super) fn root_of(pid: Pid) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(open(format!("/proc/{pid}/root").as_str(), flags, Mode::empty())?)
}

/// What a carrier's answer means.
#[derive(Debug)]
pub(super) enum Step {
    Nothing,
    Started(Pid),
    Failed(String),
}

impl Exec {
    pub(super) fn begin(
        env: &Rc<Env>,
        (dir, stage): (&Utf8Path, Option<&Stage>),
        container: &Container,
        id: u64,
        command: &Command,
        stdio: Vec<OwnedFd>,
    ) -> Result<Self, String> {
        let bundle = container.bundle.as_ref().ok_or("the container is not running")?;
        let words = |error: io::Error| format!("failed to run the command: {error}");
        let config = std::fs::read(bundle.dir.join("config.json")).map_err(words)?;
        let config: Value = serde_json::from_slice(&config).map_err(|error| words(error.into()))?;
        let mut process = config["process"].clone();
        process["args"] = command.words.clone().into();
        if command.is_debug {
            process["user"] = serde_json::json!({ "uid": 0, "gid": 0 });
            process["cwd"] = "/".into();
        }
        let mut inside = None;
        if let Some(stage) = stage {
            let id = |name: &str| process["user"][name].as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or(0);
            let (uid, gid) = stage.owner(id("uid"), id("gid"));
            // so that it may open them again by their names, as /dev/stdout
            for fd in &stdio {
                nix::unistd::fchown(fd, Some(uid), Some(gid)).map_err(|error| words(error.into()))?;
            }
            if container.handler.is_none() {
                let groups = process["user"]["additionalGids"].as_array().into_iter().flatten();
                let groups = groups.filter_map(|gid| u32::try_from(gid.as_u64()?).ok()).collect();
                inside = Some(Inside { uid: id("uid"), gid: id("gid"), groups });
                // the machine's root without capabilities enters the user namespace and becomes that user there
                process["user"] = serde_json::json!({ "uid": 0, "gid": 0 });
            }
        }
        if command.tty
            && let Some(env) = process["env"].as_array_mut()
        {
            env.push("TERM=xterm".into());
        }
        let path = dir.join(format!("exec-{id}.json"));
        crate::protocol::write_atomically(&path, process.to_string().as_bytes()).map_err(words)?;
        let carrier = Carrier::fork(env, &container.cgroup).map_err(words)?;
        let state = state_dir(dir);
        Ok(Self {
            id,
            carrier: Some(carrier),
            pid: None,
            container: container.id(),
            process: path,
            state,
            tty: command.tty,
            is_debug: command.is_debug,
            is_sandboxed: stage.is_some(),
            inside,
            handler: container.handler.as_ref().map(|handled| handled.spec.clone()),
            stdio,
        })
    }

    /// The carrier has something to say.
    pub(super) fn carrier_answers(&mut self, network: &OwnedFd) -> Step {
        let Some(carrier) = &self.carrier else { return Step::Nothing };
        match carrier.answer() {
            Ok(Some(Answer::Attached)) => match self.order(network) {
                Ok(()) => Step::Nothing,
                Err(error) => Step::Failed(format!("failed to run the command: {error}")),
            },
            Ok(Some(Answer::Made { pid })) => {
                self.carrier = None;
                self.pid = Some(Pid::from_raw(pid));
                Step::Started(Pid::from_raw(pid))
            }
            Ok(Some(Answer::Failed { message })) => Step::Failed(message),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Step::Nothing,
            Ok(None) => Step::Failed("the process that runs the command ended".to_owned()),
            Err(error) => Step::Failed(error.to_string()),
        }
    }

    fn order(&mut self, network: &OwnedFd) -> io::Result<()> {
        let Some(carrier) = &self.carrier else { return Ok(()) };
        let (_ours, channel) = pair()?;
        let mut fds = vec![network.as_raw_fd()];
        fds.extend(self.stdio.iter().map(AsRawFd::as_raw_fd));
        // The program of a debug session, if any, comes last of what was sent along; the channel stands before it.
        fds.insert(fds.len().min(4), channel.as_raw_fd());
        let order = Order::Exec {
            id: self.container.clone(),
            process: self.process.clone(),
            state: self.state.clone(),
            tty: self.tty,
            is_debug: self.is_debug,
            is_sandboxed: self.is_sandboxed,
            inside: self.inside.clone(),
            handler: self.handler.clone(),
        };
        carrier.order(&order, &fds)?;
        // Only the command may hold its ends, or its peer never sees their end.
        self.stdio.clear();
        Ok(())
    }

    pub(super) fn end(&self) {
        let of_handler = self.handler.as_ref().and_then(|_| {
            // what was started; `pid` is the runtime's own process, which only passes on
            let text = std::fs::read_to_string(self.process.with_extension("pid")).ok()?;
            text.trim().parse().ok().map(Pid::from_raw).filter(|pid| pid.as_raw() > 1)
        });
        for pid in [of_handler, self.pid, self.carrier.as_ref().map(|carrier| carrier.pid)].into_iter().flatten() {
            kill(pid);
        }
    }
}

impl Drop for Exec {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.process);
        if self.handler.is_some() {
            for kind in ["pid", "log"] {
                let _ = std::fs::remove_file(self.process.with_extension(kind));
            }
        }
    }
}
