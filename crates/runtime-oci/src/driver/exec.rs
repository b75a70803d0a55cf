//! Commands run in a container: pipes or a terminal here, their other ends in the container.
//!
//! **Invariant:** dropping the session's ends ends the command.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd, RawFd},
    sync::Arc,
    time::Duration,
};

use cove_model::ReplicaName;
use cove_runtime::{ExecError, ExecRequest, ExecSession, Resize};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    pty::openpty,
    sys::socket::MsgFlags,
    unistd::pipe2,
};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, oneshot},
    time::timeout,
};

use super::{Inner, conn::register, lock};
use crate::protocol::{RootGiven, ToShim, pair, receive};

/// Longest wait for a command to run.
const START_LIMIT: Duration = Duration::from_secs(30);

/// Messages that wait in each direction.
const QUEUE_LEN_MAX: usize = 64;

/// Most bytes of one message.
const READ_BYTES_MAX: usize = 16 * 1024;

/// A command that was ordered.
#[derive(Debug)]
pub(super) struct Waiting {
    started: Option<oneshot::Sender<Result<(), ExecError>>>,
    exit: Option<oneshot::Sender<i32>>,
}

/// Our ends.
struct Ends {
    stdin: OwnedFd,
    outputs: Vec<(u8, OwnedFd)>,
    terminal: Option<OwnedFd>,
    theirs: Vec<OwnedFd>,
}

/// Where a statically linked shell of the host may be.
const HOST_SHELLS: [&str; 4] = ["/usr/bin/busybox", "/bin/busybox", "/usr/local/bin/busybox", "/sbin/busybox.static"];

/// Longest wait for a descriptor that a helper gives.
const ROOT_LIMIT: Duration = Duration::from_secs(10);

/// The root directory of a running container.
pub(super) async fn root(inner: Arc<Inner>, replica: ReplicaName, container: String) -> Result<OwnedFd, ExecError> {
    let order = ToShim::Root { container: container.clone() };
    ask(&inner, &replica, &order).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => ExecError::NotRunning { replica, container },
        io::ErrorKind::TimedOut => {
            ExecError::Failed(format!("the container did not answer within {} s", ROOT_LIMIT.as_secs()))
        }
        _ => ExecError::Failed(error.to_string()),
    })
}

/// Asks a helper for a descriptor; `NotFound`: there is no helper, or it has no such thing.
pub(super) async fn ask(inner: &Inner, replica: &ReplicaName, order: &ToShim) -> io::Result<OwnedFd> {
    Ok(ask_and_hold(inner, replica, order).await?.0)
}

/// The same, with the socket that it came over: its end tells the helper that the descriptor is not needed any more.
pub(super) async fn ask_and_hold(
    inner: &Inner,
    replica: &ReplicaName,
    order: &ToShim,
) -> io::Result<(OwnedFd, AsyncFd<OwnedFd>)> {
    let (ours, theirs) = pair()?;
    fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    {
        let state = lock(&inner.state);
        let conn = state.replicas.get(replica).and_then(|replica| replica.conn.clone());
        conn.ok_or(io::ErrorKind::NotFound)?.send(order, &[theirs.as_raw_fd()])?;
    }
    drop(theirs);
    let socket = register(ours)?;
    let answer = async {
        loop {
            let mut guard = socket.readable().await?;
            let received = guard.try_io(|fd| receive::<RootGiven>(fd.as_raw_fd(), MsgFlags::MSG_DONTWAIT));
            if let Ok(received) = received {
                return received;
            }
        }
    };
    match timeout(ROOT_LIMIT, answer).await {
        Ok(Ok(Some((RootGiven { error: None }, fds)))) => {
            Ok((fds.into_iter().next().ok_or(io::ErrorKind::NotFound)?, socket))
        }
        Ok(Ok(Some((RootGiven { error: Some(error) }, _)))) => {
            tracing::debug!(%replica, error, "a helper gave nothing");
            Err(io::ErrorKind::NotFound.into())
        }
        Ok(Ok(None)) => Err(io::ErrorKind::NotFound.into()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A shell of the host that needs nothing of the image.
fn host_shell() -> Result<OwnedFd, ExecError> {
    let is_static = |path: &&&str| std::fs::read(path).is_ok_and(|bytes| is_static_program(&bytes));
    let found = HOST_SHELLS.iter().find(is_static).and_then(|path| std::fs::File::open(path).ok());
    found.map(OwnedFd::from).ok_or_else(|| {
        ExecError::NotOnThisHost(
            "the host has no statically linked shell; install one with `apt-get install busybox-static`".to_owned(),
        )
    })
}

/// A 64-bit ELF program without an interpreter.
fn is_static_program(bytes: &[u8]) -> bool {
    const INTERPRETER: u32 = 3;
    let number = |at: usize, length: usize| -> Option<u64> {
        let part = bytes.get(at..at.checked_add(length)?)?;
        Some(part.iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let has_interpreter = || -> Option<bool> {
        let (table, size, count) = (number(32, 8)?, number(54, 2)?, number(56, 2)?);
        for index in 0..count {
            let at = usize::try_from(table.checked_add(index * size)?).ok()?;
            if number(at, 4)? == u64::from(INTERPRETER) {
                return Some(true);
            }
        }
        Some(false)
    };
    bytes.starts_with(b"\x7fELF\x02\x01") && has_interpreter() == Some(false)
}

pub(super) fn started(inner: &Inner, name: &ReplicaName, id: u64) {
    let mut state = lock(&inner.state);
    let waiting = state.replicas.get_mut(name).and_then(|replica| replica.execs.get_mut(&id));
    if let Some(started) = waiting.and_then(|waiting| waiting.started.take()) {
        let _ = started.send(Ok(()));
    }
}

pub(super) fn ended(inner: &Inner, name: &ReplicaName, id: u64, code: i32, error: Option<String>) {
    let mut state = lock(&inner.state);
    let Some(waiting) = state.replicas.get_mut(name).and_then(|replica| replica.execs.remove(&id)) else { return };
    if let Some(started) = waiting.started {
        let _ = started.send(error.map_or(Ok(()), |error| Err(ExecError::Failed(error))));
    }
    if let Some(exit) = waiting.exit {
        let _ = exit.send(code);
    }
}

pub(super) async fn run(inner: Arc<Inner>, id: u64, request: ExecRequest) -> Result<ExecSession, ExecError> {
    let failed = |error: io::Error| ExecError::Failed(error.to_string());
    let not_running =
        || ExecError::NotRunning { replica: request.replica.clone(), container: request.container.clone() };
    if request.command.is_empty() {
        return Err(ExecError::Failed("there is no command to run".to_owned()));
    }
    let mut ends = if request.tty { terminal() } else { pipes() }.map_err(failed)?;
    if request.is_debug {
        ends.theirs.push(host_shell()?);
    }
    let (started_sender, started) = oneshot::channel();
    let (exit_sender, exit) = oneshot::channel();
    {
        let mut state = lock(&inner.state);
        let replica = state.replicas.get_mut(&request.replica).ok_or_else(not_running)?;
        let conn = replica.conn.clone().ok_or_else(not_running)?;
        let order = ToShim::Exec {
            id,
            container: request.container.clone(),
            command: request.command.clone(),
            tty: request.tty,
            is_debug: request.is_debug,
        };
        let fds: Vec<RawFd> = ends.theirs.iter().map(AsRawFd::as_raw_fd).collect();
        conn.send(&order, &fds).map_err(failed)?;
        replica.execs.insert(id, Waiting { started: Some(started_sender), exit: Some(exit_sender) });
    }
    drop(ends.theirs);
    match timeout(START_LIMIT, started).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => return Err(error),
        Ok(Err(_)) => return Err(not_running()),
        Err(_) => {
            end(&inner, &request.replica, id);
            let limit = START_LIMIT.as_secs();
            return Err(ExecError::Failed(format!("the command did not start within {limit} s")));
        }
    }
    let (stdin, stdin_taken) = mpsc::channel(QUEUE_LEN_MAX);
    let (output_sender, output) = mpsc::channel(QUEUE_LEN_MAX);
    tokio::spawn(write(register(ends.stdin).map_err(failed)?, stdin_taken, request.tty));
    for (stream, fd) in ends.outputs {
        let (sender, inner, name) = (output_sender.clone(), Arc::clone(&inner), request.replica.clone());
        let fd = register(fd).map_err(failed)?;
        tokio::spawn(async move {
            if !read(fd, stream, sender).await {
                end(&inner, &name, id);
            }
        });
    }
    let terminal = ends.terminal;
    let resize = Resize::new(move |columns, rows| {
        if let Some(terminal) = &terminal {
            resize_to(terminal, columns, rows);
        }
    });
    Ok(ExecSession { stdin, output, resize, exit })
}

fn end(inner: &Inner, name: &ReplicaName, id: u64) {
    let state = lock(&inner.state);
    if let Some(conn) = state.replicas.get(name).and_then(|replica| replica.conn.as_ref()) {
        let _ = conn.send(&ToShim::ExecEnd { id }, &[]);
    }
}

fn pipes() -> io::Result<Ends> {
    let (their_stdin, stdin) = pipe2(OFlag::O_CLOEXEC)?;
    let (stdout, their_stdout) = pipe2(OFlag::O_CLOEXEC)?;
    let (stderr, their_stderr) = pipe2(OFlag::O_CLOEXEC)?;
    for ours in [&stdin, &stdout, &stderr] {
        fcntl(ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    }
    let outputs = vec![(1, stdout), (2, stderr)];
    Ok(Ends { stdin, outputs, terminal: None, theirs: vec![their_stdin, their_stdout, their_stderr] })
}

fn terminal() -> io::Result<Ends> {
    let pty = openpty(None, None)?;
    for fd in [&pty.master, &pty.slave] {
        fcntl(fd, FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))?;
    }
    fcntl(&pty.master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let theirs = vec![pty.slave.try_clone()?, pty.slave.try_clone()?, pty.slave];
    let outputs = vec![(1, pty.master.try_clone()?)];
    Ok(Ends { stdin: pty.master.try_clone()?, outputs, terminal: Some(pty.master), theirs })
}

/// Closing a terminal's input is the user's `^D`; closing a pipe is its end.
async fn write(fd: AsyncFd<OwnedFd>, mut input: mpsc::Receiver<Vec<u8>>, tty: bool) {
    while let Some(bytes) = input.recv().await {
        if write_all(&fd, &bytes).await.is_err() {
            return;
        }
    }
    if tty {
        let _ = write_all(&fd, &[4]).await;
    }
}

async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut guard = fd.writable().await?;
        match guard.try_io(|fd| Ok(nix::unistd::write(fd.as_fd(), bytes)?)) {
            Ok(written) => bytes = &bytes[written?..],
            Err(_) => continue,
        }
    }
    Ok(())
}

/// `false` when the reader of the session went away first.
async fn read(fd: AsyncFd<OwnedFd>, stream: u8, output: mpsc::Sender<(u8, Vec<u8>)>) -> bool {
    loop {
        let mut buffer = vec![0; READ_BYTES_MAX];
        // a command that writes nothing must not outlive its session either
        let readable = tokio::select! {
            readable = fd.readable() => readable,
            () = output.closed() => return false,
        };
        let Ok(mut guard) = readable else { return true };
        match guard.try_io(|fd| Ok(nix::unistd::read(fd.as_fd(), &mut buffer)?)) {
            // A terminal whose last user is gone answers EIO.
            Ok(Ok(0) | Err(_)) => return true,
            Ok(Ok(length)) => {
                buffer.truncate(length);
                if output.send((stream, buffer)).await.is_err() {
                    return false;
                }
            }
            Err(_) => {}
        }
    }
}

#[expect(unsafe_code, reason = "the window size ioctl has no safe wrapper")]
fn resize_to(terminal: &OwnedFd, columns: u16, rows: u16) {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: reads one structure of the kind that this ioctl is defined for.
    unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_command_is_ended_when_its_reader_goes() {
        let Ends { outputs, theirs, .. } = pipes().unwrap();
        let (stream, fd) = outputs.into_iter().next().unwrap();
        let (sender, receiver) = mpsc::channel(1);
        let reading = tokio::spawn(read(register(fd).unwrap(), stream, sender));
        drop(receiver);
        let was_whole = timeout(Duration::from_secs(10), reading).await.expect("the reader ends").unwrap();
        assert!(!was_whole, "its command is to be ended");
        drop(theirs);
    }
}
