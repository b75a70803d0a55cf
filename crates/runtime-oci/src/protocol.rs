//! What the driver, the zygote and the helpers say to each other, and how: one JSON value per `SOCK_SEQPACKET` message.
//!
//! A message may carry file descriptors (a network namespace, the ends of pipes). State is sent whole whenever it
//! changed, so a reader that missed messages knows everything after the next one.
//!
//! **Invariant:** a message is at most [`MESSAGE_BYTES_MAX`]; what could be longer (specs) goes through a file.

use std::{
    collections::BTreeMap,
    io::{self, IoSlice, IoSliceMut},
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_model::{ContainerExit, ContainerState, ReplicaPhase, ReplicaPhases};
use jiff::Timestamp;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Longest message, bytes.
pub(crate) const MESSAGE_BYTES_MAX: usize = 64 * 1024;

/// Most file descriptors of one message.
pub(crate) const MESSAGE_FDS_MAX: usize = 24;

/// Name of the socket in a replica's folder where its helper listens.
pub(crate) const SOCKET_FILE: &str = "shim.sock";

/// Name of the file in a replica's folder that says what to run; mode 0600, it holds secrets.
pub(crate) const SPEC_FILE: &str = "spec.json";

/// Name of the file in a replica's folder with the helper's last state.
pub(crate) const STATE_FILE: &str = "state.json";

/// From the driver to the zygote.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToZygote {
    /// Make a helper that talks over the socket sent along; its first container's cgroup is `<cgroup>/c0`.
    Fork {
        /// Path of the helper's cgroup below the cgroup roots.
        cgroup: String,
    },
}

/// From the driver to a helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToShim {
    /// Be the helper of the replica in this folder; its network namespace is sent along, then the shares in the order of
    /// their volumes' names.
    Assign {
        /// Folder of the replica, holds [`SPEC_FILE`].
        dir: Utf8PathBuf,
    },
    /// Start the replica now or as soon as it is prepared.
    Start {
        /// When that was asked.
        asked_at: Timestamp,
    },
    /// The replica is ready: CPU limits apply from here on.
    Ready {
        /// When that was found.
        at: Timestamp,
    },
    /// Freeze the replica if all its containers run.
    Freeze,
    /// Let it go on.
    Thaw,
    /// End it: SIGTERM now, SIGKILL after the grace.
    Stop {
        /// Milliseconds between the two.
        grace_ms: u64,
    },
    /// End one container so that it is restarted.
    Restart {
        /// Name.
        container: String,
        /// How often it had been restarted when that was decided; an order that comes late does nothing.
        restarts: u32,
        /// Reason of its exit.
        reason: String,
        /// In words.
        message: String,
    },
    /// Run a command; stdin, stdout and stderr are sent along (the same terminal three times with `tty`).
    Exec {
        /// Number of the answer.
        id: u64,
        /// Container.
        container: String,
        /// Program and arguments.
        command: Vec<String>,
        /// Make the first descriptor the controlling terminal.
        tty: bool,
        /// A fourth descriptor is the program, and it runs as root.
        is_debug: bool,
    },
    /// Give the root directory of a container: sent as [`RootGiven`] over the socket that is sent along.
    Root {
        /// Container.
        container: String,
    },
    /// The peer of an exec went away: end its process.
    ExecEnd {
        /// Number of the exec.
        id: u64,
    },
}

/// Answer to [`ToShim::Root`]; the directory's descriptor comes along unless there is an error.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RootGiven {
    /// Why not.
    pub(crate) error: Option<String>,
}

/// From a helper to the driver.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromShim {
    /// It can be assigned.
    Blank,
    /// It cannot: why.
    Broken {
        /// In words.
        message: String,
    },
    /// All that it knows.
    State(Box<ShimState>),
    /// A command runs.
    ExecStarted {
        /// Number of the exec.
        id: u64,
    },
    /// A command ended or could not be run.
    ExecEnded {
        /// Number of the exec.
        id: u64,
        /// Exit code; 128 + signal when killed.
        code: i32,
        /// Why it could not be run.
        error: Option<String>,
    },
}

/// What a helper is to run.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ShimSpec {
    /// Replica name, also the host name inside.
    pub(crate) replica: String,
    /// Path of the replica's cgroup below the cgroup roots.
    pub(crate) cgroup: String,
    /// Folder of its log files.
    pub(crate) log_dir: Utf8PathBuf,
    /// Contents of `/etc/hosts`.
    pub(crate) hosts: String,
    /// Contents of `/etc/resolv.conf`.
    pub(crate) resolv_conf: String,
    /// Contents of [`crate::CA_FILE`], if there is one.
    #[serde(default)]
    pub(crate) ca_certificate: Option<String>,
    /// Containers, init containers first.
    pub(crate) containers: Vec<ContainerSpec>,
    /// Volumes by name.
    pub(crate) volumes: BTreeMap<String, VolumeSpec>,
    /// When the replica was ordered.
    pub(crate) created_at: Timestamp,
    /// When its network was ready.
    pub(crate) network_at: Timestamp,
}

/// A volume.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) enum VolumeSpec {
    /// An empty directory.
    EmptyDir,
    /// Files by relative path.
    Files(BTreeMap<String, String>),
    /// A share whose mount came as a descriptor.
    Share {
        /// Containers may not write to it.
        is_read_only: bool,
    },
}

/// A container that a helper is to run.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct ContainerSpec {
    /// Name in the template.
    pub(crate) name: String,
    /// Init container.
    pub(crate) is_init: bool,
    /// Lower directories, topmost first.
    pub(crate) layers: Vec<Utf8PathBuf>,
    /// Program and arguments, not empty.
    pub(crate) args: Vec<String>,
    /// `NAME=value`.
    pub(crate) env: Vec<String>,
    /// Absolute working directory.
    pub(crate) cwd: String,
    /// User as the image names it; empty for root.
    pub(crate) user: String,
    /// Signal that asks it to stop.
    pub(crate) stop_signal: Option<String>,
    /// CPU quota in thousandths of a core, set once the replica is ready.
    pub(crate) cpu_milli: u32,
    /// Memory limit in bytes.
    pub(crate) memory_bytes: u64,
    /// Volume name, absolute path inside, relative part of the volume.
    pub(crate) mounts: Vec<(String, String, Option<String>)>,
}

impl std::fmt::Debug for ContainerSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without the environment, which holds secrets.
        f.debug_struct("ContainerSpec").field("name", &self.name).finish_non_exhaustive()
    }
}

/// All that a helper knows of its replica; also the content of [`STATE_FILE`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShimState {
    /// Where the replica stands.
    pub(crate) phase: ReplicaPhase,
    /// Why it failed: reason, words.
    pub(crate) failure: Option<(String, String)>,
    /// Its containers in the order of the spec.
    pub(crate) containers: Vec<ContainerStatus>,
    /// When what happened.
    pub(crate) phases: ReplicaPhases,
    /// Start was asked.
    pub(crate) is_start_asked: bool,
    /// It understands orders to freeze; helpers of older versions do not.
    #[serde(default)]
    pub(crate) freezes: bool,
    /// Why the last order to freeze it was not carried out.
    #[serde(default)]
    pub(crate) freeze_error: Option<String>,
}

/// All that a helper knows of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ContainerStatus {
    /// Name in the template.
    pub(crate) name: String,
    /// Init container.
    pub(crate) is_init: bool,
    /// Where it stands.
    pub(crate) state: ContainerState,
    /// Times it was restarted.
    pub(crate) restarts: u32,
    /// How it ended last.
    pub(crate) last_exit: Option<ContainerExit>,
    /// How often `listen` was called since its last start.
    pub(crate) listens: u32,
}

/// A pair of connected sockets, closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Sends a message; with `MSG_DONTWAIT` in `flags` it fails with `WouldBlock` when the peer is far behind.
pub(crate) fn send<T: Serialize>(fd: RawFd, message: &T, fds: &[RawFd], flags: MsgFlags) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MESSAGE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("a message of {} bytes is longer than {MESSAGE_BYTES_MAX}", bytes.len()),
        ));
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(fd, &[IoSlice::new(&bytes)], control, flags | MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}

/// Receives a message and its descriptors; `None` when the peer is gone.
pub(crate) fn receive<T: DeserializeOwned>(fd: RawFd, flags: MsgFlags) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_BYTES_MAX];
    let mut control = nix::cmsg_space!([RawFd; MESSAGE_FDS_MAX]);
    let (length, fds) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        let message = recvmsg::<()>(fd, &mut slices, Some(&mut control), flags | MsgFlags::MSG_CMSG_CLOEXEC)?;
        let mut fds = Vec::new();
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(rights) = control {
                fds.extend(rights.into_iter().map(own));
            }
        }
        if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "a message was cut off"));
        }
        (message.bytes, fds)
    };
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..length])?, fds)))
}

#[expect(unsafe_code, reason = "received descriptors come as numbers")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just installed this descriptor for us and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Connects to a helper's socket; goes through the folder's descriptor because socket paths are short.
pub(crate) fn connect(dir: &Utf8Path) -> io::Result<OwnedFd> {
    use nix::sys::socket::{UnixAddr, connect, socket};
    let folder = std::fs::File::open(dir)?;
    let address = UnixAddr::new(format!("/proc/self/fd/{}/{SOCKET_FILE}", folder.as_raw_fd()).as_str())?;
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(fd.as_raw_fd(), &address)?;
    Ok(fd)
}

/// Writes a file that is either the old or the new one (of this boot: helpers do not outlive it); mode 0600.
pub(crate) fn write_atomically(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    file.write_all(bytes)?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_carry_values_and_descriptors() {
        let (a, b) = pair().unwrap();
        let order = ToShim::Stop { grace_ms: 7 };
        send(a.as_raw_fd(), &order, &[a.as_raw_fd()], MsgFlags::empty()).unwrap();
        let (order, fds) = receive::<ToShim>(b.as_raw_fd(), MsgFlags::empty()).unwrap().unwrap();
        assert!(matches!(order, ToShim::Stop { grace_ms: 7 }));
        assert_eq!(fds.len(), 1);
        drop((a, fds));
        assert!(receive::<ToShim>(b.as_raw_fd(), MsgFlags::empty()).unwrap().is_none());
    }

    #[test]
    fn a_message_that_is_too_long_is_refused() {
        let (a, _b) = pair().unwrap();
        let text = "x".repeat(MESSAGE_BYTES_MAX);
        assert_eq!(send(a.as_raw_fd(), &text, &[], MsgFlags::empty()).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
