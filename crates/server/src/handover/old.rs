//! The old server's side: gives its sockets away, then its state, and finishes what is open.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use anyhow::{Context, bail};
use cove_base::Board;
use cove_ingress::IngressHandle;
use cove_model::{ReplicaName, RevisionKey};
use cove_store::Store;
use cove_traffic::{Endpoints, RevisionLoad, RouteTable};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::{Notify, watch},
};

use super::{
    Predecessors,
    wire::{self, Place, Reader, Role, SOCKETS_AT_ONCE, ToNew, ToOld, VERSION, Writer},
};

/// Longest wait for the next word of a new server that takes sockets.
const WORD_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait until the new server serves: it reads all apps first.
const START_LIMIT: Duration = Duration::from_secs(120);
/// How often the new server is told what is open here.
const TELL_EVERY: Duration = Duration::from_millis(200);
/// Readings told at once.
const LOADS_AT_ONCE: usize = 256;
/// Wait after the kernel refused a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whom apps at zero are asked of: this server's autoscaler, or the next server.
#[derive(Clone, Debug, Default)]
pub(crate) struct Successor {
    inner: Arc<(Mutex<Wishes>, Notify)>,
}

#[derive(Debug, Default)]
struct Wishes {
    is_leaving: bool,
    revisions: BTreeSet<RevisionKey>,
}

impl Successor {
    fn lock(&self) -> MutexGuard<'_, Wishes> {
        self.inner.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the wish for a replica if this server decides nothing any more.
    pub(crate) fn takes(&self, revision: &RevisionKey) -> bool {
        let mut wishes = self.lock();
        if !wishes.is_leaving {
            return false;
        }
        wishes.revisions.insert(revision.clone());
        drop(wishes);
        self.inner.1.notify_one();
        true
    }

    fn begin(&self) {
        self.lock().is_leaving = true;
    }

    async fn wishes(&self) -> Vec<RevisionKey> {
        loop {
            let revisions = std::mem::take(&mut self.lock().revisions);
            if !revisions.is_empty() {
                return revisions.into_iter().collect();
            }
            self.inner.1.notified().await;
        }
    }
}

/// What a running server needs to leave.
pub(crate) struct Leaver {
    /// The door in the data directory.
    pub(crate) door: Door,
    /// Copies of its listening sockets; those of exposed ports are the ingress's to know.
    pub(crate) sockets: Vec<SocketCopy>,
    pub(crate) store: Store,
    pub(crate) ingress: IngressHandle,
    pub(crate) routes: watch::Sender<Arc<RouteTable>>,
    pub(crate) endpoints: Board<RevisionKey, Endpoints>,
    /// Open requests of draining replicas, those of servers before this one included.
    pub(crate) drained: Board<ReplicaName, u64>,
    pub(crate) predecessors: Predecessors,
    pub(crate) successor: Successor,
    /// How long open connections may go on.
    pub(crate) grace: Duration,
}

impl std::fmt::Debug for Leaver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leaver").field("sockets", &self.sockets).finish_non_exhaustive()
    }
}

/// A copy of a listening socket, and what it is.
pub(crate) type SocketCopy = (Role, SocketAddr, OwnedFd);

/// Copies a listening socket.
///
/// # Errors
/// No descriptor is left.
pub(crate) fn copy(role: Role, listener: &TcpListener) -> anyhow::Result<SocketCopy> {
    let socket = listener.as_fd().try_clone_to_owned().context("failed to copy a listening socket")?;
    Ok((role, listener.local_addr()?, socket))
}

/// Where new servers ask.
pub(crate) struct Door {
    listener: UnixListener,
    place: Place,
}

impl Door {
    /// Opens the door of a data directory; the caller holds its lock.
    ///
    /// # Errors
    /// The socket cannot be made.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::PermissionsExt as _;
        let place = Place::of(data_dir).context("failed to open the data directory")?;
        let _may_be_missing = std::fs::remove_file(place.path());
        let listener = UnixListener::bind(place.address())
            .with_context(|| format!("failed to listen on `{}`", place.path().display()))?;
        std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o600))
            .context("failed to restrict the socket for new servers to its owner")?;
        Ok(Self { listener, place })
    }

    /// Shuts it: whoever asks finds no server.
    fn shut(self) {
        let _may_be_another_servers = std::fs::remove_file(self.place.path());
    }
}

/// A new server that has this one's sockets.
pub struct Visitor {
    reader: Reader,
    writer: Writer,
    pid: u32,
}

impl std::fmt::Debug for Visitor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Visitor").field("pid", &self.pid).finish_non_exhaustive()
    }
}

impl Leaver {
    /// Waits for a new server that asks, and gives it the sockets. Who asks wrongly is sent away.
    pub(crate) async fn visitor(&self) -> Visitor {
        loop {
            let stream = match self.door.listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a new server was not heard");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            match self.receive(stream).await {
                Ok(visitor) => return visitor,
                Err(error) => tracing::warn!(error = format!("{error:#}"), "a new server did not take over"),
            }
        }
    }

    async fn receive(&self, stream: UnixStream) -> anyhow::Result<Visitor> {
        let user = stream.peer_cred().context("failed to learn who asks")?.uid();
        anyhow::ensure!(user == nix::unistd::geteuid().as_raw(), "a process of user {user} asked");
        let (mut reader, mut writer) = wire::halves(stream);
        let ToOld::Hello { version, pid, schema } = reader.expect(WORD_LIMIT).await? else {
            bail!("it did not say who it is");
        };
        if version != VERSION {
            let why = format!(
                "it speaks version {VERSION} of the take-over and not {version}; stop it, then start the other"
            );
            writer.say(&ToNew::Refused(why)).await?;
            bail!("process {pid} speaks version {version} of the take-over, not {VERSION}");
        }
        if schema < Store::schema() {
            let why = "its database is newer than the new server can read; use a newer program".to_owned();
            writer.say(&ToNew::Refused(why)).await?;
            bail!("process {pid} is of an older version that cannot read the database");
        }
        let mut sockets = Vec::new();
        for (role, address, socket) in &self.sockets {
            sockets.push((*role, *address, socket.try_clone().context("failed to copy a listening socket")?));
        }
        let ports = self.ingress.ports().into_iter().map(|(address, socket)| (Role::Tcp, address, socket));
        sockets.extend(ports);
        writer.say(&ToNew::Sockets(sockets.iter().map(|(role, address, _)| (*role, *address)).collect())).await?;
        let mut sockets: Vec<OwnedFd> = sockets.into_iter().map(|(_, _, socket)| socket).collect();
        while !sockets.is_empty() {
            let ToOld::More = reader.expect(WORD_LIMIT).await? else { bail!("it did not take the sockets") };
            let rest = sockets.split_off(sockets.len().min(SOCKETS_AT_ONCE));
            writer.descriptors(&sockets).await?;
            sockets = rest;
        }
        let ToOld::Ready = reader.expect(WORD_LIMIT).await? else { bail!("it did not say that it has the sockets") };
        Ok(Visitor { reader, writer, pid })
    }

    /// Stops taking decisions: apps at zero are the next server's from now on.
    pub(crate) fn begin(&self) {
        self.successor.begin();
    }

    /// Shuts the door, for a server that is stopped.
    pub(crate) fn stay_away(self) {
        self.door.shut();
    }

    /// After the services stopped and the state was closed: lets the visitor go on, and finishes what is open. When a visitor
    /// ends before it serves, `abandoned` is called and the next one is waited for.
    pub(crate) async fn leave(self, mut visitor: Visitor, abandoned: impl Fn()) {
        let counted = self.loads().into_iter().collect();
        loop {
            let pid = visitor.pid;
            let started = async {
                visitor.writer.say(&ToNew::Released).await?;
                match visitor.reader.expect(START_LIMIT).await? {
                    ToOld::Serving => Ok(()),
                    other => bail!("it said something unexpected: {other:?}"),
                }
            };
            let Err(error) = started.await else { break };
            tracing::error!(error = format!("{error:#}"), pid, "the new server has the state and does not serve");
            abandoned();
            visitor = self.visitor().await;
        }
        tracing::info!(pid = visitor.pid, "another server serves now; what is open here is finished");
        let Visitor { reader, writer, .. } = visitor;
        let link = async {
            let ended = tokio::select! {
                ended = follow(reader, &self.routes, &self.endpoints) => ended,
                ended = self.tell(writer, counted) => ended,
            };
            if let Err(error) = ended {
                tracing::warn!(error = format!("{error:#}"), "the new server is not heard any more");
            }
            // open requests may still be served by what is known
            std::future::pending::<()>().await;
        };
        let open = tokio::select! {
            open = self.ingress.retire(self.grace) => open,
            () = link => 0,
        };
        tracing::info!(cut = open, "this server has ended");
    }

    /// What this server and those before it have seen.
    fn loads(&self) -> Vec<(RevisionKey, RevisionLoad)> {
        let with_theirs = |(revision, load)| {
            let load = self.predecessors.with(&revision, load);
            (revision, load)
        };
        self.ingress.loads().into_iter().map(with_theirs).collect()
    }

    /// Tells the new server what is open here and what is waited for; ends only with an error.
    async fn tell(&self, mut writer: Writer, counted: HashMap<RevisionKey, RevisionLoad>) -> anyhow::Result<()> {
        let mut draining = self.drained.subscribe();
        let mut told: HashMap<RevisionKey, RevisionLoad> = HashMap::new();
        let mut every = tokio::time::interval(TELL_EVERY);
        loop {
            tokio::select! {
                revisions = self.successor.wishes() => writer.say(&ToNew::Activate(revisions)).await?,
                names = draining.next() => {
                    let value = |name| (name, None);
                    let mut values: Vec<(ReplicaName, Option<u64>)> = names.into_iter().map(value).collect();
                    values.iter_mut().for_each(|(name, open)| *open = self.drained.get(name));
                    writer.say(&ToNew::Drained(values)).await?;
                }
                _ = every.tick() => {
                    let mut changed = self.loads();
                    changed.iter_mut().for_each(|(revision, load)| *load = since(*load, counted.get(revision)));
                    changed.retain(|(revision, load)| told.get(revision).copied().unwrap_or_default() != *load);
                    for part in changed.chunks(LOADS_AT_ONCE) {
                        writer.say(&ToNew::Loads(part.to_vec())).await?;
                    }
                    told.extend(changed);
                }
            }
        }
    }
}

/// Takes over what the new server says of routes and replicas.
async fn follow(
    mut reader: Reader,
    routes: &watch::Sender<Arc<RouteTable>>,
    endpoints: &Board<RevisionKey, Endpoints>,
) -> anyhow::Result<()> {
    while let Some(said) = reader.next().await? {
        match said {
            ToOld::Routes(table) => drop(routes.send_replace(Arc::new(*table))),
            ToOld::Endpoints(all) => {
                for (revision, value) in all {
                    match value {
                        Some(value) => drop(endpoints.set(revision, value)),
                        None => drop(endpoints.remove(&revision)),
                    }
                }
            }
            ToOld::Hello { .. } | ToOld::More | ToOld::Ready | ToOld::Serving => bail!("it said something unexpected"),
        }
    }
    bail!("it has ended")
}

/// A reading without what had been counted before: that was this server's own to report.
fn since(load: RevisionLoad, before: Option<&RevisionLoad>) -> RevisionLoad {
    let Some(before) = before else { return load };
    let last_arrival = load.last_arrival.filter(|at| Some(*at) != before.last_arrival);
    RevisionLoad {
        arrivals_total: load.arrivals_total.saturating_sub(before.arrivals_total),
        open_us_total: load.open_us_total.saturating_sub(before.open_us_total),
        last_arrival,
        ..load
    }
}
