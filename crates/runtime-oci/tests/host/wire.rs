//! Frames on any interface of this machine but its loopback, taken by the kernel's own capture.
//!
//! **Invariant:** a frame that was there before [`Capture::frames`] is called and that matters is in the answer; a kernel that had
//! to drop one ends the test.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]
#![expect(unsafe_code, reason = "options of packet sockets have no safe wrapper")]

use std::{
    io, mem,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt},
};

/// Room for frames that wait to be looked at, bytes.
const ROOM: usize = 64 << 20;

/// Captures until it is dropped.
pub(crate) struct Capture {
    taken: Arc<Taken>,
    reader: Option<JoinHandle<()>>,
}

struct Taken {
    socket: OwnedFd,
    matters: fn(&[u8]) -> bool,
    frames: Mutex<Vec<Vec<u8>>>,
    is_over: AtomicBool,
}

impl Capture {
    /// Keeps frames that matter from now on.
    pub(crate) fn begin(matters: fn(&[u8]) -> bool) -> Self {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
        setsockopt(&socket, sockopt::RcvBufForce, &ROOM).unwrap();
        without_loopback(&socket).unwrap();
        let taken = Arc::new(Taken { socket, matters, frames: Mutex::default(), is_over: AtomicBool::new(false) });
        let reader = thread::spawn({
            let taken = Arc::clone(&taken);
            move || {
                while !taken.is_over.load(Ordering::Relaxed) {
                    let mut waits = [PollFd::new(taken.socket.as_fd(), PollFlags::POLLIN)];
                    match poll(&mut waits, 100_u16) {
                        Ok(_) | Err(Errno::EINTR) => {}
                        Err(error) => panic!("{error}"),
                    }
                    taken.drain();
                }
            }
        });
        Self { taken, reader: Some(reader) }
    }

    /// Those that were captured since the last call.
    pub(crate) fn frames(&self) -> Vec<Vec<u8>> {
        self.taken.drain();
        assert_eq!(dropped(&self.taken.socket).unwrap(), 0, "frames that the kernel dropped unseen");
        mem::take(&mut *self.taken.frames.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.taken.is_over.store(true, Ordering::Relaxed);
        let ended = self.reader.take().map(JoinHandle::join);
        assert!(thread::panicking() || ended.is_some_and(|ended| ended.is_ok()), "nobody captured any more");
    }
}

impl Taken {
    /// Reads what waits. Whoever returns from this knows that all that was there is in the list.
    fn drain(&self) {
        let mut frames = self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        let mut frame = vec![0; 1 << 16];
        loop {
            match recv(self.socket.as_raw_fd(), &mut frame, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from) {
                Ok(length) if (self.matters)(&frame[..length]) => frames.push(frame[..length].to_vec()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // an interface went down, which is told once
                Err(error) if error.kind() == io::ErrorKind::NetworkDown => {}
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// Leaves out the frames of the machine's loopback, on which other tests send much.
fn without_loopback(socket: &OwnedFd) -> io::Result<()> {
    let loopback = nix::net::if_::if_nametoindex("lo")?;
    let step = |code: u32, jump: (u8, u8), k: u32| libc::sock_filter {
        code: u16::try_from(code).unwrap(),
        jt: jump.0,
        jf: jump.1,
        k,
    };
    let interface = (libc::SKF_AD_OFF + libc::SKF_AD_IFINDEX).cast_unsigned();
    let mut filter = [
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, (0, 0), interface),
        step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, (0, 1), loopback),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), 0),
        step(libc::BPF_RET | libc::BPF_K, (0, 0), u32::MAX),
    ];
    let program = libc::sock_fprog { len: 4, filter: filter.as_mut_ptr() };
    let length = libc::socklen_t::try_from(mem::size_of_val(&program)).unwrap();
    // SAFETY: the program and its steps live until the call returns; the kernel copies them
    let set = unsafe {
        let option = (&raw const program).cast();
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, option, length)
    };
    Errno::result(set)?;
    Ok(())
}

/// How many frames found no room since this was asked last.
fn dropped(socket: &OwnedFd) -> io::Result<u32> {
    let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
    let mut length = libc::socklen_t::try_from(mem::size_of_val(&stats)).unwrap();
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `stats`
    let asked = unsafe {
        let option = (&raw mut stats).cast();
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, option, &raw mut length)
    };
    Errno::result(asked)?;
    Ok(stats.tp_drops)
}
