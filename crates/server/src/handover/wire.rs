//! What two servers say to each other: lines of JSON, and descriptors when they were asked for.
//!
//! **Invariant:** descriptors are sent only as the answer to a line that asks for them, and nothing else is sent before they
//! were taken: a reader that reads ahead cannot swallow them.

use std::{
    fs::File,
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail};
use cove_model::{ReplicaName, RevisionKey};
use cove_traffic::{Endpoints, RevisionLoad, RouteTable};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Interest},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    time::timeout,
};

/// Of this protocol; another one is refused.
pub(super) const VERSION: u32 = 1;
/// Name of the socket in the data directory.
const SOCKET_FILE: &str = "handover.sock";
/// Descriptors in one message; the kernel allows 253.
pub(super) const SOCKETS_AT_ONCE: usize = 64;
/// Longest line: a route table of more than a hundred thousand hosts.
const LINE_MAX: u64 = 256 << 20;
/// Longest time that the other side may take to read what it is told.
const WRITE_LIMIT: Duration = Duration::from_secs(30);

/// What a listening socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Role {
    /// ARM API.
    Api,
    /// Managed-identity endpoint.
    Identity,
    /// Apps over HTTP.
    Http,
    /// Apps over HTTPS.
    Https,
    /// Apps, from replicas.
    Internal,
    /// Apps, from replicas, with TLS.
    InternalTls,
    /// An exposed TCP port.
    Tcp,
    /// Names of apps, for replicas: datagrams.
    DnsUdp,
    /// Names of apps, for replicas: connections.
    DnsTcp,
}

/// What the new server says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToOld {
    /// It wants to take over.
    Hello {
        /// [`VERSION`].
        version: u32,
        /// Its process.
        pid: u32,
        /// Newest form of the database that it knows.
        schema: i64,
    },
    /// It waits for the next descriptors.
    More,
    /// It has all of them: the services may stop.
    Ready,
    /// It accepts connections.
    Serving,
    /// Hosts, apps, revisions.
    Routes(Box<RouteTable>),
    /// Where requests can go; `None`: nothing is known of the revision any more.
    Endpoints(Vec<(RevisionKey, Option<Endpoints>)>),
}

/// What the old server says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ToNew {
    /// It stays.
    Refused(String),
    /// What its descriptors are, in their order.
    Sockets(Vec<(Role, SocketAddr)>),
    /// The state is closed.
    Released,
    /// Requests wait for a replica of these.
    Activate(Vec<RevisionKey>),
    /// What it has seen of these since it stopped its services.
    Loads(Vec<(RevisionKey, RevisionLoad)>),
    /// Open requests of replicas that drain; `None`: such a replica drains no more.
    Drained(Vec<(ReplicaName, Option<u64>)>),
}

/// The socket's place. A path of any length would not fit an address: it is named through the directory's descriptor.
pub(super) struct Place {
    dir: File,
    path: PathBuf,
}

impl Place {
    pub(super) fn of(data_dir: &Path) -> io::Result<Self> {
        Ok(Self { dir: File::open(data_dir)?, path: data_dir.join(SOCKET_FILE) })
    }

    /// As it is bound and connected to.
    pub(super) fn address(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}/{SOCKET_FILE}", self.dir.as_raw_fd()))
    }

    /// As it is removed.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The reading half.
pub(super) struct Reader(BufReader<OwnedReadHalf>);

/// The writing half.
pub(super) struct Writer(OwnedWriteHalf);

pub(super) fn halves(stream: UnixStream) -> (Reader, Writer) {
    let (reader, writer) = stream.into_split();
    (Reader(BufReader::new(reader)), Writer(writer))
}

impl Reader {
    /// The next line; `None` when the other side is gone.
    pub(super) async fn next<T: DeserializeOwned>(&mut self) -> anyhow::Result<Option<T>> {
        let mut line = Vec::new();
        let read = (&mut self.0).take(LINE_MAX).read_until(b'\n', &mut line).await;
        match read {
            Ok(0) => return Ok(None),
            Ok(_) if line.ends_with(b"\n") => {}
            Ok(_) => bail!("the other server broke off in the middle of a line"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            Err(error) => return Err(error.into()),
        }
        let message = serde_json::from_slice(&line).context("the other server said what this one does not know")?;
        Ok(Some(message))
    }

    /// The next line of a server that must say something within `limit`.
    pub(super) async fn expect<T: DeserializeOwned>(&mut self, limit: Duration) -> anyhow::Result<T> {
        let next = timeout(limit, self.next()).await;
        next.with_context(|| format!("the other server said nothing for {} s", limit.as_secs()))??
            .context("the other server ended")
    }

    /// Descriptors that were asked for.
    pub(super) async fn descriptors(&mut self) -> anyhow::Result<Vec<OwnedFd>> {
        anyhow::ensure!(self.0.buffer().is_empty(), "the other server said more than it was asked for");
        let stream: &UnixStream = self.0.get_ref().as_ref();
        let receive = stream.async_io(Interest::READABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_AT_ONCE))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut byte = [0];
            let got = rustix::net::recvmsg(
                stream.as_fd(),
                &mut [IoSliceMut::new(&mut byte)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )?;
            if got.bytes == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let mut all = Vec::new();
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                    all.extend(descriptors);
                }
            }
            Ok(all)
        });
        timeout(WRITE_LIMIT, receive).await.context("no descriptors came")?.context("failed to receive descriptors")
    }
}

impl Writer {
    pub(super) async fn say<T: Serialize>(&mut self, message: &T) -> anyhow::Result<()> {
        let mut line = serde_json::to_vec(message).context("a message cannot be written")?;
        line.push(b'\n');
        timeout(WRITE_LIMIT, self.0.write_all(&line))
            .await
            .context("the other server does not read")?
            .context("the other server is gone")
    }

    /// Sends up to [`SOCKETS_AT_ONCE`] descriptors.
    pub(super) async fn descriptors(&mut self, sockets: &[OwnedFd]) -> anyhow::Result<()> {
        let stream: &UnixStream = self.0.as_ref();
        let borrowed: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
        let send = stream.async_io(Interest::WRITABLE, || {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_AT_ONCE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(&borrowed)) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            rustix::net::sendmsg(stream.as_fd(), &[IoSlice::new(b".")], &mut control, SendFlags::NOSIGNAL)?;
            Ok(())
        });
        timeout(WRITE_LIMIT, send)
            .await
            .context("the other server does not read")?
            .context("failed to send descriptors")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use cove_model::{ResourceId, RevisionName, Transport};
    use cove_traffic::{AppRoute, AppRouteState, Host, TcpRoute, WeightedRevision, short_name};

    use super::*;

    fn table() -> RouteTable {
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "db").unwrap();
        let environment = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap();
        let revision = RevisionKey { app: app.clone(), name: RevisionName::of("db", "v1").unwrap() };
        let route = Arc::new(AppRoute {
            app: app.clone(),
            environment: environment.clone(),
            external: true,
            allow_insecure: true,
            transport: Transport::Tcp,
            policies: Arc::default(),
            revisions: vec![WeightedRevision { revision, weight: 100 }],
            state: AppRouteState::Active,
        });
        let mut table = RouteTable::default();
        table.hosts.insert("db.env.localhost", Host::platform(Arc::clone(&route)));
        table.names.insert(&short_name(&environment, "db"), Arc::clone(&route));
        table.environments.insert(app.key(), environment.clone());
        let tcp = TcpRoute { route, external: true, target_port: None };
        Arc::make_mut(&mut table.tcp).insert((5432, environment), Arc::new(tcp));
        table
    }

    #[tokio::test]
    async fn lines_and_sockets_come_as_they_were_sent() {
        let (here, there) = UnixStream::pair().unwrap();
        let ((mut reader, _keep), (_other, mut writer)) = (halves(here), halves(there));
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        writer.say(&ToNew::Sockets(vec![(Role::Tcp, address)])).await.unwrap();
        let said = reader.expect(WRITE_LIMIT).await.unwrap();
        assert!(matches!(said, ToNew::Sockets(all) if all == [(Role::Tcp, address)]));
        writer.descriptors(&[OwnedFd::from(socket)]).await.unwrap();
        let received = reader.descriptors().await.unwrap().pop().unwrap();
        let received = std::net::TcpListener::from(received);
        assert_eq!(received.local_addr().unwrap(), address);
        writer.say(&ToOld::Routes(Box::new(table()))).await.unwrap();
        let said = reader.expect(WRITE_LIMIT).await.unwrap();
        assert!(matches!(said, ToOld::Routes(same) if *same == table()));
        drop((writer, _other));
        assert!(reader.next::<ToNew>().await.unwrap().is_none());
    }
}
