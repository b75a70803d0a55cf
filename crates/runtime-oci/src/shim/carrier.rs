//! A carrier is a child of the helper that is already in a container's cgroup and then makes that container.
//!
//! libcontainer forks the container's first process as a *sibling* of the carrier, so it is born inside the cgroup and
//! is the helper's child: attaching to cgroups, which on v1 waits for the whole kernel several times, is done before
//! anyone waits for the container. libcontainer itself sees an empty cgroup tree and leaves it alone.
//!
//! **Invariant:** a carrier does one order and ends; it holds no descriptor of the helper but its own socket.

#![expect(unsafe_code, reason = "fork, close_range and prctl have no safe wrapper")]

use std::{
    collections::HashMap,
    error::Error,
    ffi::CString,
    io,
    os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd},
    os::unix::{ffi::OsStrExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    rc::Rc,
};

use camino::{Utf8Path, Utf8PathBuf};
use libcontainer::{
    container::{Container, ContainerStatus, builder::ContainerBuilder},
    oci_spec::runtime::Spec,
    syscall::syscall::SyscallType,
    workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError},
};
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    libc,
    sched::{CloneFlags, setns, unshare},
    sys::{
        signal::{SigSet, SigmaskHow, Signal, sigprocmask},
        socket::MsgFlags,
    },
    unistd::{ForkResult, Pid, access, execv, fork},
};
use serde::{Deserialize, Serialize};

use super::{
    handler::Handled,
    memory::own_run_dir,
    user_ns::{self, Inside},
    zygote::Env,
};
use crate::{
    memory::{self, MemoryFacts},
    protocol::{HandlerSpec, pair, receive, send},
    seccomp::Filters,
};

/// What a carrier is to do; descriptors: network namespace, stdin, stdout, stderr, channel of the container, and for a
/// debug session the program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Order {
    /// Make a container.
    Create {
        id: String,
        bundle: Utf8PathBuf,
        state: Utf8PathBuf,
        is_sandboxed: bool,
        /// The runtime of this machine that makes it.
        handler: Option<HandlerSpec>,
    },
    /// Run a command in a container that runs.
    Exec {
        id: String,
        process: Utf8PathBuf,
        state: Utf8PathBuf,
        tty: bool,
        is_debug: bool,
        is_sandboxed: bool,
        /// Who it is in the container's user namespace, if that has one of its own.
        inside: Option<Inside>,
        /// The runtime of this machine that runs the container.
        handler: Option<HandlerSpec>,
    },
    /// Bring back what a container's processes were.
    Restore {
        program: Utf8PathBuf,
        /// Folder of the images, for this sandbox.
        images: Utf8PathBuf,
        /// Folder of what it says.
        work: Utf8PathBuf,
        root: Utf8PathBuf,
        stage: Utf8PathBuf,
        facts: Box<MemoryFacts>,
    },
}

/// What came of it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// It is in the cgroup.
    Attached,
    /// The first process waits for its start, or the command runs.
    Made { pid: i32 },
    /// In words for the user.
    Failed { message: String },
}

/// What the first process says over its channel before it becomes the program.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum FromInit {
    /// The filter's notices come through the descriptor sent along.
    Listener,
    /// The program could not be run.
    CannotRun { message: String },
}

/// A carrier as its helper sees it.
#[derive(Debug)]
pub(super) struct Carrier {
    pub(super) pid: Pid,
    pub(super) socket: OwnedFd,
}

impl Carrier {
    /// Forks a carrier that attaches itself to `cgroup` (which exists), then tells [`Answer::Attached`].
    pub(super) fn fork(env: &Rc<Env>, cgroup: &str) -> io::Result<Self> {
        let (ours, theirs) = pair()?;
        // SAFETY: this process has one thread, so the child may do anything.
        match unsafe { fork() }? {
            ForkResult::Parent { child } => Ok(Self { pid: child, socket: ours }),
            ForkResult::Child => {
                drop(ours);
                close_all_but(theirs.as_raw_fd());
                let code = i32::from(run(env, &theirs, cgroup).is_err());
                // SAFETY: ends this process without running destructors of what belongs to the parent.
                unsafe { libc::_exit(code) }
            }
        }
    }

    pub(super) fn order(&self, order: &Order, fds: &[RawFd]) -> io::Result<()> {
        send(self.socket.as_raw_fd(), order, fds, MsgFlags::MSG_DONTWAIT)
    }

    pub(super) fn answer(&self) -> io::Result<Option<Answer>> {
        Ok(receive(self.socket.as_raw_fd(), MsgFlags::MSG_DONTWAIT)?.map(|(answer, _)| answer))
    }
}

/// Closes every descriptor above stderr but one.
pub(super) fn close_all_but(keep: RawFd) {
    let keep = libc::c_uint::try_from(keep).unwrap_or(3);
    for (first, last) in [(3, keep.saturating_sub(1)), (keep + 1, libc::c_uint::MAX)] {
        if first <= last {
            // SAFETY: closes numbers only; their owners in this copy of the parent's memory are never dropped.
            unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
        }
    }
}

fn run(env: &Rc<Env>, socket: &OwnedFd, cgroup: &str) -> io::Result<()> {
    let answer = |answer: &Answer| send(socket.as_raw_fd(), answer, &[], MsgFlags::empty());
    die_with_parent();
    // libcontainer draws names of sockets in a container's folder from a generator that is seeded by the clock: carriers that
    // are forked at once drew the same ones where a clock is coarse
    fastrand::seed(Pid::this().as_raw().unsigned_abs().into());
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    if let Err(error) = env.cgroups.attach(cgroup, Pid::this()) {
        return answer(&Answer::Failed { message: format!("failed to join cgroup: {error}") });
    }
    answer(&Answer::Attached)?;
    let Some((order, fds)) = receive::<Order>(socket.as_raw_fd(), MsgFlags::empty())? else { return Ok(()) };
    let is_sandbox = matches!(order, Order::Create { is_sandboxed: true, .. });
    let made = match hand_over(order, fds, answer) {
        Ok((order, fds)) => make(env, order, fds),
        Err(made) => made,
    };
    let made = made.and_then(|pid| {
        if is_sandbox {
            // before it is told of: nothing of the image runs yet
            user_ns::limit(pid).map_err(|error| format!("failed to bound the sandbox: {error}"))?;
        }
        Ok(pid)
    });
    answer(&match made {
        Ok(pid) => Answer::Made { pid },
        Err(error) => Answer::Failed { message: words(error.as_ref()) },
    })
}

/// The first process, or why there is none.
type Made = Result<i32, Box<dyn Error>>;

/// Gives the order to a runtime of this machine, if one is to carry it out: `Err` with what came of it; for a command
/// this process has become it then.
fn hand_over(
    order: Order,
    fds: Vec<OwnedFd>,
    answer: impl Fn(&Answer) -> io::Result<()>,
) -> Result<(Order, Vec<OwnedFd>), Made> {
    if let Order::Restore { program, images, work, root, stage, facts } = &order {
        return Err(Err(restore(program, (images, work), (root, stage), facts, fds)));
    }
    let (Order::Create { handler: Some(handler), .. } | Order::Exec { handler: Some(handler), .. }) = &order else {
        return Ok((order, fds));
    };
    if matches!(order, Order::Exec { is_debug: true, .. }) {
        return Err(Err(
            format!("`{}` takes no shell of this machine along; use an image with one", handler.name).into()
        ));
    }
    let Ok([network, stdin, stdout, stderr, _channel]) = <[OwnedFd; 5]>::try_from(fds) else {
        return Err(Err("a carrier's order came without its descriptors".into()));
    };
    if let Err(error) = setns(&network, CloneFlags::CLONE_NEWNET) {
        return Err(Err(error.into()));
    }
    drop(network);
    let stdio = [stdin, stdout, stderr];
    Err(match &order {
        Order::Create { id, bundle, state, .. } => {
            let handled = Handled::new(handler, state.clone(), id.clone());
            handled.create(bundle, stdio).map_err(Into::into)
        }
        Order::Restore { .. } => Err("what is brought back is no order of a runtime".into()),
        Order::Exec { id, process, state, tty, .. } => {
            let handled = Handled::new(handler, state.clone(), id.clone());
            // told before: afterwards this process is the command
            let _ = answer(&Answer::Made { pid: Pid::this().as_raw() });
            let error = handled.exec(process, *tty, &process.with_extension("pid"), stdio);
            Err(format!("failed to run `{}`: {error}", handler.name).into())
        }
    })
}

/// Becomes CRIU, which makes what it brings back a child of this process's own parent; says why not.
fn restore(
    program: &Utf8Path,
    folders: (&Utf8Path, &Utf8Path),
    (root, stage): (&Utf8Path, &Utf8Path),
    facts: &MemoryFacts,
    fds: Vec<OwnedFd>,
) -> Box<dyn Error> {
    let Ok([network, stdout, stderr]) = <[OwnedFd; 3]>::try_from(fds) else {
        return "a carrier's order came without its descriptors".into();
    };
    let prepared = || -> io::Result<()> {
        setns(&network, CloneFlags::CLONE_NEWNET)?;
        unshare(CloneFlags::CLONE_NEWNS)?;
        own_run_dir(&CString::new(stage.join(memory::RUN_DIR).as_str())?)?;
        for output in [&stdout, &stderr] {
            fcntl(output, FcntlArg::F_SETFD(FdFlag::empty()))?;
        }
        Ok(())
    };
    if let Err(error) = prepared() {
        return error.into();
    }
    drop(network);
    let outputs = [stdout.as_raw_fd(), stderr.as_raw_fd()];
    let mut command = memory::command(program);
    command.args(memory::restore_arguments(folders, (root, stage), outputs, facts));
    let error = command.exec();
    format!("`{program}` cannot be run: {error}").into()
}

fn make(env: &Rc<Env>, order: Order, mut fds: Vec<OwnedFd>) -> Made {
    let program = match &order {
        Order::Exec { is_debug: true, .. } => fds.pop(),
        Order::Exec { .. } | Order::Create { .. } | Order::Restore { .. } => None,
    };
    let fds: [OwnedFd; 5] = fds.try_into().map_err(|_| "a carrier's order came without its descriptors")?;
    let [network, stdin, stdout, stderr, channel] = fds;
    setns(&network, CloneFlags::CLONE_NEWNET)?;
    drop(network);
    let (id, state, tty, is_sandboxed) = match &order {
        Order::Create { id, state, is_sandboxed, .. } => (id, state, false, *is_sandboxed),
        Order::Exec { id, state, tty, is_sandboxed, .. } => (id, state, *tty, *is_sandboxed),
        Order::Restore { .. } => return Err("it is no container that is to be made".into()),
    };
    // The first process inherits the channel's number; it is closed when that becomes the program.
    let program = program.map(IntoRawFd::into_raw_fd);
    let filters = Rc::clone(&env.filters);
    let inside = inside_of(&order)?;
    let executor = Program { filters, is_sandboxed, inside, channel: channel.into_raw_fd(), tty, program };
    let builder = ContainerBuilder::new(id.clone(), SyscallType::default())
        .with_root_path(state.as_std_path())?
        .with_executor(executor)
        .with_stdin(stdin)
        .with_stdout(stdout)
        .with_stderr(stderr);
    match &order {
        Order::Create { bundle, .. } => {
            let mut container =
                builder.as_init(bundle.as_std_path()).with_systemd(false).with_detach(true).as_sibling(true).build()?;
            // it is written now, before any command can be asked for: libcontainer does not replace the file in one step
            container.set_status(ContainerStatus::Running).save()?;
            Ok(container.pid().ok_or("the container has no process")?.as_raw())
        }
        Order::Exec { process, .. } => {
            let pid = builder
                .as_tenant()
                .with_process(Some(process.as_std_path()))
                .with_detach(true)
                .as_sibling(true)
                .build()?;
            Ok(pid.as_raw())
        }
        Order::Restore { .. } => Err("it is no container that is to be made".into()),
    }
}

/// The user namespace of the container that a command is for, if it has one of its own, and who the command is there.
fn inside_of(order: &Order) -> Result<Option<(RawFd, Inside)>, Box<dyn Error>> {
    let Order::Exec { id, state, inside: Some(who), .. } = order else { return Ok(None) };
    let container = Container::load(state.join(id).into_std_path_buf())?;
    let first = container.pid().ok_or("the container has no process")?;
    Ok(Some((user_ns::of(first.as_raw())?.into_raw_fd(), who.clone())))
}

/// What an error and its causes say; only our own part if one of them is ours.
fn words(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    match text.rsplit_once(OURS) {
        Some((_, ours)) => ours.to_owned(),
        None => text,
    }
}

/// Marks texts that are meant for the user.
const OURS: &str = "cove: ";

fn die_with_parent() {
    // SAFETY: sets a number in the kernel.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
}

/// Turns the container's first process into its program.
#[derive(Clone)]
struct Program {
    filters: Rc<Filters>,
    is_sandboxed: bool,
    /// The user namespace that it enters, and who it is there.
    inside: Option<(RawFd, Inside)>,
    channel: RawFd,
    tty: bool,
    /// Runs instead of what is found in the image.
    program: Option<RawFd>,
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let ours = |text: String| ExecutorValidationError::ArgValidationError(format!("{OURS}{text}"));
        if let Some((namespace, who)) = &self.inside {
            user_ns::enter(*namespace, who).map_err(|error| ours(format!("failed to enter the sandbox: {error}")))?;
        }
        // Only now: changing user and capabilities cleared what was set before.
        die_with_parent();
        if self.program.is_none() {
            find_program(spec).map_err(ours)?;
        }
        // Here and not right before the program: the kernel takes a millisecond to compile the filter, which a slot pays
        // ahead. What is left to do until then (wait for `start`, become the program) the filter allows.
        let is_root = match &self.inside {
            Some((_, who)) => who.uid == 0,
            None => spec.process().as_ref().is_none_or(|process| process.user().uid() == 0),
        };
        let filter = match (self.is_sandboxed, is_root) {
            (false, _) => &self.filters.app,
            (true, true) => &self.filters.sandboxed_root,
            (true, false) => &self.filters.sandboxed,
        };
        let listener =
            filter.install().map_err(|error| ours(format!("failed to install the seccomp filter: {error}")))?;
        if let Some(listener) = &listener {
            let _ = send(self.channel, &FromInit::Listener, &[listener.as_raw_fd()], MsgFlags::MSG_DONTWAIT);
        }
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        for (name, _) in std::env::vars_os() {
            // SAFETY: this process has one thread.
            unsafe { std::env::remove_var(name) };
        }
        for (name, value) in envs {
            if !name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0') {
                // SAFETY: this process has one thread.
                unsafe { std::env::set_var(name, value) };
            }
        }
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let message = match self.become_program(spec) {
            Ok(never) => match never {},
            Err(message) => message,
        };
        let _ = send(self.channel, &FromInit::CannotRun { message: message.clone() }, &[], MsgFlags::MSG_DONTWAIT);
        Err(ExecutorError::Other(format!("{OURS}{message}")))
    }
}

impl Program {
    fn become_program(&self, spec: &Spec) -> Result<std::convert::Infallible, String> {
        let path = if self.program.is_some() { PathBuf::new() } else { find_program(spec)? };
        let shown = path.display().to_string();
        let c_string = |bytes: &[u8]| CString::new(bytes).map_err(|_| "an argument holds a zero byte".to_owned());
        let arguments = arguments(spec).iter().map(|arg| c_string(arg.as_bytes())).collect::<Result<Vec<_>, _>>()?;
        let path = c_string(path.as_os_str().as_bytes())?;
        if self.tty {
            // SAFETY: makes descriptor 0, which is open, the controlling terminal of this session.
            unsafe { libc::ioctl(0, libc::TIOCSCTTY, 0) };
        }
        // SAFETY: resets a disposition that Rust's start-up changed; there is no handler.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
        sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).map_err(|error| error.to_string())?;
        if let Some(program) = self.program {
            return self.become_descriptor(program, &arguments);
        }
        match execv(&path, &arguments) {
            Ok(never) => Ok(never),
            Err(nix::errno::Errno::ENOEXEC) => Err(format!(
                "`{shown}` is not a program that this machine can run; build the image for {}",
                std::env::consts::ARCH
            )),
            Err(nix::errno::Errno::ENOENT) => Err(format!(
                "`{shown}` needs an interpreter or loader that the image does not hold; add it or link statically"
            )),
            Err(error) => Err(format!("failed to run `{shown}`: {error}")),
        }
    }
}

impl Program {
    /// Runs a program of the host that the image does not hold; it is linked statically, so it needs nothing of the image.
    fn become_descriptor(&self, program: RawFd, arguments: &[CString]) -> Result<std::convert::Infallible, String> {
        let env: Vec<CString> = std::env::vars_os()
            .filter_map(|(name, value)| CString::new([name.as_bytes(), b"=", value.as_bytes()].concat()).ok())
            .collect();
        // SAFETY: the descriptor was sent along for this purpose and nothing else in this process owns it.
        let program = unsafe { OwnedFd::from_raw_fd(program) };
        match nix::unistd::fexecve(&program, arguments, &env) {
            Ok(never) => Ok(never),
            Err(error) => Err(format!("failed to run the shell that was brought along: {error}")),
        }
    }
}

fn arguments(spec: &Spec) -> &[String] {
    spec.process().as_ref().and_then(|process| process.args().as_deref()).unwrap_or(&[])
}

/// Where the program is, seen from inside the container.
fn find_program(spec: &Spec) -> Result<PathBuf, String> {
    let name = arguments(spec).first().map_or("", String::as_str);
    if name.is_empty() {
        return Err("there is no command: neither the app nor the image names one; set `command`".to_owned());
    }
    if name.contains('/') {
        let path = PathBuf::from(name);
        return match std::fs::metadata(&path) {
            Err(_) => Err(format!("`{name}` does not exist in the image; check `command` and `args`")),
            Ok(data) if data.is_dir() => {
                Err(format!("`{name}` is a folder in the image; `command` must name a program"))
            }
            Ok(_) if access(&path, nix::unistd::AccessFlags::X_OK).is_err() => {
                Err(format!("`{name}` may not be executed by the image's user; set its mode in the image"))
            }
            Ok(_) => Ok(path),
        };
    }
    let env = spec.process().as_ref().and_then(|process| process.env().as_deref()).unwrap_or(&[]);
    let search = env.iter().find_map(|entry| entry.strip_prefix("PATH=")).unwrap_or("/usr/bin:/bin");
    search
        .split(':')
        .map(|folder| Path::new(folder).join(name))
        .find(|path| {
            std::fs::metadata(path).is_ok_and(|data| data.is_file())
                && access(path, nix::unistd::AccessFlags::X_OK).is_ok()
        })
        .ok_or_else(|| format!("`{name}` was not found in the image's PATH (`{search}`); check `command` and `args`"))
}

/// Ends a process and does not wait for it.
pub(super) fn kill(pid: Pid) {
    let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
}

/// Takes over a descriptor by its number.
pub(super) fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: called once, with the number that the driver passed to this program for this purpose.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
