//! The new server's side: asks, takes the sockets, waits for the state, and serves beside the old one until that ends.

use std::{
    collections::BTreeSet,
    io::ErrorKind,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use cove_base::{Backoff, Board};
use cove_model::RevisionKey;
use cove_store::{Store, StoreError};
use cove_traffic::{Endpoints, RouteTable};
use tokio::{net::UnixStream, sync::watch};

use super::{
    Predecessors, SocketCopy,
    predecessors::Predecessor,
    wire::{self, Place, Reader, Role, SOCKETS_AT_ONCE, ToNew, ToOld, VERSION, Writer},
};

/// Longest wait for an answer of the old server.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait until the old server has closed the state; its own limits are shorter.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait until a server that failed after it was given the state is gone.
const LOCK_LIMIT: Duration = Duration::from_secs(30);
/// Endpoints told at once.
const ENDPOINTS_AT_ONCE: usize = 256;

/// Listening sockets of the server before this one.
#[derive(Debug, Default)]
pub(crate) struct Inherited {
    sockets: Vec<SocketCopy>,
}

impl Inherited {
    /// The socket for an address as it is configured; port 0 takes whichever port there was.
    pub(crate) fn take(&mut self, role: Role, wanted: SocketAddr) -> Option<OwnedFd> {
        let fits = |address: &SocketAddr| {
            address.ip() == wanted.ip() && (wanted.port() == 0 || address.port() == wanted.port())
        };
        let at = self.sockets.iter().position(|(its, address, _)| *its == role && fits(address))?;
        Some(self.sockets.swap_remove(at).2)
    }

    /// All of exposed TCP ports.
    pub(crate) fn take_ports(&mut self) -> Vec<TcpListener> {
        let ports = self.sockets.extract_if(.., |(role, ..)| *role == Role::Tcp);
        ports.map(|(_, _, socket)| socket.into()).collect()
    }
}

/// Opens the state. Who takes over may find it held for a moment by one that had begun to and failed.
///
/// # Errors
/// Those of [`Store::open`].
pub(crate) async fn open_store(data_dir: &Path, takes_over: bool) -> Result<Store, StoreError> {
    let deadline = tokio::time::Instant::now() + LOCK_LIMIT;
    let mut backoff = Backoff::new(Duration::from_millis(10), Duration::from_millis(500));
    loop {
        match Store::open(data_dir) {
            Err(StoreError::InUse { .. }) if takes_over && tokio::time::Instant::now() < deadline => {
                tokio::time::sleep(backoff.next_wait()).await;
            }
            opened => return opened,
        }
    }
}

/// A server that is being taken over from.
pub(crate) struct TakeOver {
    reader: Reader,
    writer: Writer,
}

/// What the old server is told, and what it asks for.
pub(crate) struct Shared {
    pub(crate) routes: watch::Receiver<Arc<RouteTable>>,
    pub(crate) endpoints: Board<RevisionKey, Endpoints>,
    pub(crate) predecessors: Predecessors,
    pub(crate) activate: Arc<dyn Fn(&RevisionKey) + Send + Sync>,
}

impl TakeOver {
    /// Asks the server of a data directory for its sockets; `None` when none runs there.
    ///
    /// # Errors
    /// It refuses, is of another version, or does not answer.
    pub(crate) async fn ask(data_dir: &Path) -> anyhow::Result<Option<(Self, Inherited)>> {
        let place = Place::of(data_dir).context("failed to open the data directory")?;
        let stream = match UnixStream::connect(place.address()).await {
            Ok(stream) => stream,
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {
                return Ok(None);
            }
            Err(error) => return Err(error).context("failed to reach the server that runs"),
        };
        let (reader, writer) = wire::halves(stream);
        let mut this = Self { reader, writer };
        let hello = ToOld::Hello { version: VERSION, pid: std::process::id(), schema: Store::schema() };
        this.writer.say(&hello).await?;
        let told = match this.reader.expect(ANSWER_LIMIT).await? {
            ToNew::Sockets(told) => told,
            ToNew::Refused(why) => bail!("the server that runs stays: {why}"),
            other => bail!("the server that runs said something unexpected: {other:?}"),
        };
        let mut inherited = Inherited::default();
        for part in told.chunks(SOCKETS_AT_ONCE) {
            this.writer.say(&ToOld::More).await?;
            let sockets = this.reader.descriptors().await?;
            anyhow::ensure!(sockets.len() == part.len(), "the server that runs gave other sockets than it said");
            let named = part.iter().zip(sockets).map(|(&(role, address), socket)| (role, address, socket));
            inherited.sockets.extend(named);
        }
        Ok(Some((this, inherited)))
    }

    /// Lets the old server close the state, and waits until it has.
    ///
    /// # Errors
    /// It ended or takes too long.
    pub(crate) async fn release(&mut self) -> anyhow::Result<()> {
        self.writer.say(&ToOld::Ready).await?;
        match self.reader.expect(RELEASE_LIMIT).await? {
            ToNew::Released => Ok(()),
            other => bail!("the server that runs said something unexpected: {other:?}"),
        }
    }

    /// Says that connections are accepted here, and serves what is open over there until it is done.
    ///
    /// # Errors
    /// None that matters: the old server is gone then.
    pub(crate) async fn serve(self, shared: Shared) {
        let Self { reader, mut writer } = self;
        let predecessor = shared.predecessors.join();
        if let Err(error) = writer.say(&ToOld::Serving).await {
            tracing::warn!(error = format!("{error:#}"), "the server before this one is gone already");
            return;
        }
        let result = tokio::select! {
            result = hear(reader, &predecessor, &*shared.activate) => result,
            result = tell(writer, shared.routes, shared.endpoints) => result,
        };
        match result {
            Ok(()) => tracing::info!("the server before this one has ended"),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the server before this one is not followed any more");
            }
        }
    }
}

async fn hear(
    mut reader: Reader,
    predecessor: &Predecessor,
    activate: &(dyn Fn(&RevisionKey) + Send + Sync),
) -> anyhow::Result<()> {
    while let Some(said) = reader.next().await? {
        match said {
            ToNew::Activate(revisions) => revisions.iter().for_each(activate),
            ToNew::Loads(loads) => predecessor.loads(loads),
            ToNew::Drained(replicas) => predecessor.drained(replicas),
            ToNew::Refused(_) | ToNew::Sockets(_) | ToNew::Released => bail!("it said something unexpected"),
        }
    }
    Ok(())
}

/// Tells routes and endpoints as they change; ends only with an error.
async fn tell(
    mut writer: Writer,
    mut routes: watch::Receiver<Arc<RouteTable>>,
    endpoints: Board<RevisionKey, Endpoints>,
) -> anyhow::Result<()> {
    routes.mark_changed();
    let mut changes = endpoints.subscribe();
    loop {
        tokio::select! {
            changed = routes.changed() => {
                changed.context("the routes have ended")?;
                let table = RouteTable::clone(&routes.borrow_and_update());
                writer.say(&ToOld::Routes(Box::new(table))).await?;
            }
            revisions = changes.next() => {
                let revisions: Vec<RevisionKey> = BTreeSet::into_iter(revisions).collect();
                for part in revisions.chunks(ENDPOINTS_AT_ONCE) {
                    let values = part.iter().map(|revision| (revision.clone(), endpoints.get(revision)));
                    writer.say(&ToOld::Endpoints(values.collect())).await?;
                }
            }
        }
    }
}
