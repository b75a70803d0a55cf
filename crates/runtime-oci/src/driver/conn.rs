//! A message socket on tokio.
//!
//! **Invariant:** sending never waits: a peer that is that far behind counts as gone.

#![expect(unsafe_code, reason = "registering a descriptor promises that it stays open")]

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
};

use nix::sys::socket::MsgFlags;
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::unix::AsyncFd;

use crate::protocol;

/// A non-blocking descriptor on tokio.
pub(super) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the `AsyncFd`, which gives it out only as a reference, so it stays open.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// A connected socket.
#[derive(Debug)]
pub(super) struct Conn(AsyncFd<OwnedFd>);

impl Conn {
    pub(super) fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self(register(fd)?))
    }

    pub(super) fn send<T: Serialize>(&self, message: &T, fds: &[RawFd]) -> io::Result<()> {
        protocol::send(self.0.as_raw_fd(), message, fds, MsgFlags::MSG_DONTWAIT)
    }

    /// The next message; `None` when the peer is gone. Cancel-safe.
    pub(super) async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<T>> {
        loop {
            let mut guard = self.0.readable().await?;
            let received = guard.try_io(|fd| protocol::receive(fd.as_raw_fd(), MsgFlags::MSG_DONTWAIT));
            if let Ok(received) = received {
                return Ok(received?.map(|(message, _)| message));
            }
        }
    }
}
