//! A helper before it has a replica: made ahead, its first carrier already inside a cgroup.
//!
//! **Invariant:** a helper whose driver goes away before it was assigned leaves nothing behind.

#![expect(unsafe_code, reason = "signal dispositions and process names have no safe wrapper")]

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    rc::Rc,
    time::Duration,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, unshare},
    sys::{
        signal::{SigHandler, SigSet, Signal, signal},
        signalfd::{SfdFlags, SignalFd},
        socket::MsgFlags,
        wait::waitpid,
    },
    unistd::setsid,
};

use super::{
    carrier::{Answer, Carrier, kill},
    supervisor::Supervisor,
    zygote::Env,
};
use crate::protocol::{FromShim, ToShim, receive, send};

/// Longest wait for a carrier to get into its cgroup, milliseconds.
const ATTACH_LIMIT_MS: u16 = 20_000;

pub(super) fn run(env: &Rc<Env>, connection: OwnedFd, cgroup: &str) -> io::Result<()> {
    let signals = set_up()?;
    let carrier = match first_carrier(env, cgroup) {
        Ok(carrier) => carrier,
        Err(error) => {
            let message = error.to_string();
            send(connection.as_raw_fd(), &FromShim::Broken { message }, &[], MsgFlags::empty())?;
            let _ = env.cgroups.remove(cgroup, Duration::from_secs(1));
            return Err(error);
        }
    };
    send(connection.as_raw_fd(), &FromShim::Blank, &[], MsgFlags::empty())?;
    // The driver may have died in between; then this gives an error or nothing, the same as silence.
    let assigned = receive::<ToShim>(connection.as_raw_fd(), MsgFlags::empty());
    if let Ok(Some((ToShim::Assign { dir }, fds))) = assigned {
        let mut fds = fds.into_iter();
        if let Some(network) = fds.next() {
            return Supervisor::new(Rc::clone(env), dir, (network, fds.collect()), signals, connection, carrier)?.run();
        }
    }
    kill(carrier.pid);
    let _ = waitpid(carrier.pid, None);
    let removed = env.cgroups.remove(cgroup, Duration::from_secs(5));
    // The last helper of a driver that is gone takes the driver's own group along.
    if let Some((parent, _)) = cgroup.rsplit_once('/') {
        env.cgroups.remove_if_empty(parent);
    }
    removed
}

fn set_up() -> io::Result<SignalFd> {
    setsid()?;
    // SAFETY: no handler is installed; the zygote ignored it, we wait for children.
    unsafe { signal(Signal::SIGCHLD, SigHandler::SigDfl) }?;
    // SAFETY: the name is a C string that the kernel copies.
    unsafe { libc::prctl(libc::PR_SET_NAME, c"cove-shim".as_ptr()) };
    unshare(CloneFlags::CLONE_NEWNS)?;
    let mut mask = SigSet::empty();
    mask.add(Signal::SIGCHLD);
    mask.add(Signal::SIGTERM);
    mask.thread_block()?;
    Ok(SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?)
}

fn first_carrier(env: &Rc<Env>, cgroup: &str) -> io::Result<Carrier> {
    let group = format!("{cgroup}/c0");
    env.cgroups.create(&group)?;
    let carrier = Carrier::fork(env, &group)?;
    if let Err(error) = wait_attached(&carrier) {
        kill(carrier.pid);
        let _ = waitpid(carrier.pid, None);
        return Err(error);
    }
    Ok(carrier)
}

fn wait_attached(carrier: &Carrier) -> io::Result<()> {
    let mut fds = [PollFd::new(carrier.socket.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, PollTimeout::from(ATTACH_LIMIT_MS))?;
    match carrier.answer()? {
        Some(Answer::Attached) => Ok(()),
        Some(Answer::Failed { message }) => Err(io::Error::other(message)),
        _ => Err(io::Error::other("the first process of a helper ended")),
    }
}
