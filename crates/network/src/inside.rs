//! Network namespaces that lead nowhere, and sockets that are made inside a namespace.
//!
//! A replica that may not reach anything gets a namespace with its own loopback and nothing else: there is no interface a
//! packet could leave by, so there is nothing to filter and nothing to get wrong. It is reached by a socket that belongs to
//! its namespace and is used from here.
//!
//! **Invariant:** no thread of the caller changes its namespace: each step has a thread of its own that ends with it.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, connect, socket};
use rtnetlink::LinkUnspec;
use tokio::sync::oneshot;

use crate::kernel::Kernel;
use crate::netns::{LO_INDEX, set_defaults};

/// Sockets made ahead in a namespace.
const SPARE: usize = 2;

/// Makes a network namespace with a loopback interface and no other; it lives as long as somebody holds it.
///
/// # Errors
/// The kernel refuses.
pub async fn isolated() -> io::Result<OwnedFd> {
    on_a_thread("cove-net-alone", || {
        unshare(CloneFlags::CLONE_NEWNET)?;
        set_defaults()?;
        let kernel = Kernel::new().map_err(io::Error::other)?;
        let up = LinkUnspec::new_with_index(LO_INDEX).up().build();
        kernel
            .wait("bring `lo` up", async { kernel.handle().link().change(up).execute().await })
            .map_err(io::Error::other)?;
        Ok(File::open("/proc/thread-self/ns/net")?.into())
    })
    .await
}

/// A network namespace as seen by who connects to what listens in it.
#[derive(Debug)]
pub struct Inside {
    namespace: OwnedFd,
    /// Sockets that were made ahead, so that who connects waits for no thread.
    spare: Mutex<Vec<OwnedFd>>,
}

impl Inside {
    /// Takes the namespace; it stays as long as this does.
    pub fn new(namespace: OwnedFd) -> Self {
        Self { namespace, spare: Mutex::default() }
    }

    /// Connects to a port of the loopback address of the namespace; the stream does not block. The caller sets the limit.
    ///
    /// # Errors
    /// As of connecting: `ConnectionRefused` when nothing listens there.
    pub async fn dial(self: &Arc<Self>, port: u16) -> io::Result<TcpStream> {
        let spare = self.lock().pop();
        let socket = match spare {
            Some(socket) => socket,
            None => self.on_my_thread().await?,
        };
        if self.lock().is_empty() {
            let this = Arc::clone(self);
            // at the next time, if no thread can be had now
            let _ = thread::Builder::new().name("cove-dial".to_owned()).spawn(move || this.fill());
        }
        let SocketAddr::V4(to) = SocketAddr::from((Ipv4Addr::LOCALHOST, port)) else {
            return Err(io::ErrorKind::AddrNotAvailable.into());
        };
        match connect(socket.as_raw_fd(), &SockaddrIn::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        connected(TcpStream::from(socket)).await
    }

    fn lock(&self) -> MutexGuard<'_, Vec<OwnedFd>> {
        // A panic of a holder leaves whole values: a push or a pop.
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn on_my_thread(self: &Arc<Self>) -> io::Result<OwnedFd> {
        let this = Arc::clone(self);
        on_a_thread("cove-dial", move || this.make()).await
    }

    /// Makes a socket in the namespace; for a thread of its own, which is there from now on.
    fn make(&self) -> io::Result<OwnedFd> {
        setns(self.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(socket(AddressFamily::Inet, SockType::Stream, flags, SockProtocol::Tcp)?)
    }

    fn fill(&self) {
        while let Ok(socket) = self.make() {
            let mut spare = self.lock();
            spare.push(socket);
            if spare.len() >= SPARE {
                return;
            }
        }
    }
}

/// Waits until a stream is connected; over a loopback it mostly is.
async fn connected(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    let mut ready = [PollFd::new(stream.as_fd(), PollFlags::POLLOUT)];
    if poll(&mut ready, PollTimeout::ZERO)? == 0 {
        let waiting = tokio::net::TcpStream::from_std(stream)?;
        waiting.writable().await?;
        return match waiting.take_error()? {
            Some(error) => Err(error),
            None => waiting.into_std(),
        };
    }
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(stream),
    }
}

async fn on_a_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    thread::Builder::new().name(name.to_owned()).spawn(move || drop(sender.send(work())))?;
    receiver.await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use super::*;

    /// Listens inside a namespace and answers one connection.
    fn answer_once(inside: &Arc<Inside>) -> (u16, thread::JoinHandle<()>) {
        let (inside, (sender, port)) = (Arc::clone(inside), std::sync::mpsc::channel());
        let server = thread::spawn(move || {
            setns(inside.namespace.as_fd(), CloneFlags::CLONE_NEWNET).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            sender.send(listener.local_addr().unwrap().port()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            stream.write_all(b"inside").unwrap();
        });
        (port.recv().unwrap(), server)
    }

    #[tokio::test]
    async fn a_namespace_that_leads_nowhere_is_dialed() {
        let inside = Arc::new(Inside::new(isolated().await.expect("these tests need root")));
        let (port, server) = answer_once(&inside);
        let mut stream = inside.dial(port).await.unwrap();
        stream.set_nonblocking(false).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        server.join().unwrap();
        assert_eq!(text, "inside");
        for _ in 0..2 * SPARE {
            let refused = inside.dial(port).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
        let links = on_a_thread("cove-look", move || {
            setns(inside.namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
            let names: Vec<_> = Kernel::new().unwrap().links().unwrap().into_iter().map(|link| link.name).collect();
            Ok((names, std::fs::read_link("/proc/thread-self/ns/net")?))
        });
        let (names, theirs) = links.await.unwrap();
        assert_ne!(ours, theirs);
        assert!(!names.iter().any(|name| name.contains("eth")), "{names:?}");
        assert_eq!(std::fs::read_link("/proc/self/ns/net").unwrap(), ours, "no thread of ours moved");
    }
}
