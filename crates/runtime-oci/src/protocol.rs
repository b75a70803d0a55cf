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
use cove_runtime::RestartPolicy;
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
    /// Give the directory that a container's files are written to: sent as [`RootGiven`] over the socket that is sent along.
    /// Until that socket is closed none of the replica's processes runs.
    Written {
        /// Container.
        container: String,
    },
    /// Keep the memory of a replica that is held by [`ToShim::Written`]; [`MemoryGiven`] comes over the socket that is sent
    /// along when that is done.
    Memory {
        /// Container, the only one.
        container: String,
        /// CRIU.
        program: Utf8PathBuf,
        /// Bytes that it may have.
        bytes_max: u64,
    },
    /// Give the replica's network namespace: sent as [`RootGiven`] over the socket that is sent along.
    Network,
    /// The peer of an exec went away: end its process.
    ExecEnd {
        /// Number of the exec.
        id: u64,
    },
}

/// Answer to [`ToShim::Root`], [`ToShim::Written`] and [`ToShim::Network`]; the descriptor comes along unless there is an error.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RootGiven {
    /// Why not.
    pub(crate) error: Option<String>,
}

/// Answer to [`ToShim::Memory`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemoryGiven {
    /// The folder of the images, whole, for whoever asked to take away; or why there is none.
    pub(crate) images: Result<Utf8PathBuf, String>,
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
    /// What happens when a container ends by itself.
    #[serde(default)]
    pub(crate) restart: RestartPolicy,
    /// Keeps its containers in.
    #[serde(default)]
    pub(crate) sandbox: Option<SandboxSpec>,
    /// When the replica was ordered.
    pub(crate) created_at: Timestamp,
    /// When its network was ready.
    pub(crate) network_at: Timestamp,
}

/// What keeps a replica's containers in.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct SandboxSpec {
    /// Host id that root inside has; the next [`crate::shim::IDS_PER_REPLICA`] belong to the replica too.
    pub(crate) first_id: u32,
    /// Processes and threads of a container at most.
    pub(crate) pids_max: u32,
    /// Bytes that a container may write at most.
    pub(crate) disk_bytes: u64,
    /// The OCI runtime of this machine that runs the containers; none: this program itself.
    #[serde(default)]
    pub(crate) handler: Option<HandlerSpec>,
    /// The machine that stands around the only container; none: it runs on this machine's kernel.
    #[serde(default)]
    pub(crate) machine: Option<Box<MachineOrder>>,
}

/// A machine for the only container of a replica.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct MachineOrder {
    /// What QEMU is told; paths as it sees them.
    pub(crate) spec: cove_vm::MachineSpec,
    /// Lower directories of what QEMU finds around it.
    pub(crate) layers: Vec<Utf8PathBuf>,
    /// Files of this machine and their names below [`crate::shim::PARTS_DIR`]: kernel, initial file system, disk.
    pub(crate) parts: Vec<(Utf8PathBuf, String)>,
    /// Memory of the container that QEMU runs in, bytes: the guest's and what QEMU itself takes.
    pub(crate) container_bytes: u64,
    /// Bytes that may be written inside.
    pub(crate) disk_bytes: u64,
    /// Processes and threads inside at most.
    pub(crate) tasks_max: u32,
    /// `/etc/resolv.conf` inside, where it differs from QEMU's own.
    pub(crate) resolv_conf: Option<String>,
    /// What it has to do with the template of its pool; none: it boots, and that is all.
    #[serde(default)]
    pub(crate) template: Option<TemplateOrder>,
}

/// A saved machine that others go on from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum TemplateOrder {
    /// Go on from it.
    Restore {
        /// Its folder.
        dir: Utf8PathBuf,
    },
    /// Be saved as it once the program listens.
    Save {
        /// Folder that is to be.
        dir: Utf8PathBuf,
        /// Port at which it is to listen.
        port: u16,
    },
}

/// What became of a [`TemplateOrder`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum TemplateNews {
    /// It was saved.
    Saved {
        /// Milliseconds that it stood still.
        ms: u64,
        /// Size of the file.
        bytes: u64,
    },
    /// It was not, and goes on all the same.
    NotSaved {
        /// In words.
        reason: String,
    },
    /// It goes on from the template.
    Restored {
        /// Milliseconds between the start of QEMU and the agent's answer.
        ms: u64,
    },
    /// It does not, and boots.
    NotRestored {
        /// In words.
        reason: String,
    },
}

/// An OCI runtime of this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HandlerSpec {
    /// What users call it.
    pub(crate) name: String,
    /// The program.
    pub(crate) program: Utf8PathBuf,
    /// Arguments before the verb.
    pub(crate) args: Vec<String>,
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
    /// One more above them, of a snapshot; only of sandboxed replicas.
    #[serde(default)]
    pub(crate) snapshot: Option<Utf8PathBuf>,
    /// What its processes begin with instead of its program; only of sandboxed replicas, and only the first time.
    #[serde(default)]
    pub(crate) memory: Option<MemoryOrder>,
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

/// Processes that a container begins with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryOrder {
    /// CRIU.
    pub(crate) program: Utf8PathBuf,
    /// Folder of the images.
    pub(crate) images: Utf8PathBuf,
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
    /// Orders to thaw it that were carried out; helpers of older versions do not say.
    #[serde(default)]
    pub(crate) thaws: Option<u64>,
    /// It understands [`ToShim::Written`]; helpers of older versions do not.
    #[serde(default)]
    pub(crate) gives_written: bool,
    /// It understands [`ToShim::Memory`]; helpers of older versions do not.
    #[serde(default)]
    pub(crate) gives_memory: bool,
    /// Whether it began with the memory that it was to begin with; none: there was none.
    #[serde(default)]
    pub(crate) restored: Option<bool>,
    /// Why not.
    #[serde(default)]
    pub(crate) restore_error: Option<String>,
    /// Processor time of it all in microseconds, once it has ended.
    #[serde(default)]
    pub(crate) cpu_us_total: Option<u64>,
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
    /// Of a machine: ports inside that accept connections.
    #[serde(default)]
    pub(crate) listening: Vec<u16>,
    /// Of a machine: what became of the template.
    #[serde(default)]
    pub(crate) template: Option<TemplateNews>,
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
