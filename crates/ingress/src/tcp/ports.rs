//! Listening sockets of exposed ports: opened and closed as the route table says, taken over from the server before this one
//! and shown to the one after it.
//!
//! **Invariant:** a socket that is handed on never closes between two servers: clients find the port open all the time.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use cove_base::{OnCancel, OnError, TaskKind};
use cove_traffic::RouteTable;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config::IngressConfig,
    listen::{self, Doors},
};

const PORT: TaskKind = TaskKind { name: "ingress-tcp-port", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// Sockets of exposed ports that others may ask for.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// Taken over, until a route wants them.
    inherited: Mutex<BTreeMap<SocketAddr, std::net::TcpListener>>,
    /// Copies of those that are open.
    open: Mutex<BTreeMap<SocketAddr, OwnedFd>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sockets {
    /// Sockets of the server before this one.
    pub(crate) fn inherit(&self, sockets: Vec<std::net::TcpListener>) {
        let by_address = sockets.into_iter().filter_map(|socket| Some((socket.local_addr().ok()?, socket)));
        lock(&self.inherited).extend(by_address);
    }

    /// Copies of those that are open now, by address.
    pub(crate) fn copies(&self) -> Vec<(SocketAddr, OwnedFd)> {
        let open = lock(&self.open);
        open.iter().filter_map(|(address, socket)| Some((*address, socket.try_clone().ok()?))).collect()
    }

    /// The socket of an address, taken over or new; it can be asked for until what is given back is dropped.
    pub(super) fn open(self: &Arc<Self>, address: SocketAddr) -> io::Result<(TcpListener, Shown)> {
        let inherited = lock(&self.inherited).remove(&address);
        let listener = match inherited {
            Some(socket) => socket.set_nonblocking(true).and_then(|()| TcpListener::from_std(socket))?,
            None => listen::bind(address)?,
        };
        let copy = listener.as_fd().try_clone_to_owned()?;
        lock(&self.open).insert(address, copy);
        Ok((listener, Shown { sockets: Arc::clone(self), address }))
    }
}

/// A socket that can be asked for.
pub(super) struct Shown {
    sockets: Arc<Sockets>,
    address: SocketAddr,
}

impl Drop for Shown {
    fn drop(&mut self) {
        lock(&self.sockets.open).remove(&self.address);
    }
}

/// Listeners of exposed ports; follows the route table.
#[derive(Default)]
pub(crate) struct Ports {
    open: BTreeMap<SocketAddr, CancellationToken>,
}

impl Ports {
    /// Opens ports that are new in the table and closes those that are gone; open connections go on.
    pub(crate) fn follow(&mut self, doors: &Arc<Doors>, table: &RouteTable) {
        if doors.closed.is_cancelled() {
            // another server has them
            return;
        }
        let config = &doors.proxy.shared.config;
        let wanted: BTreeSet<SocketAddr> = table
            .tcp
            .iter()
            .flat_map(|((port, _), route)| addresses(config, route.external).map(|ip| SocketAddr::new(ip, *port)))
            .collect();
        if !table.hosts.is_empty() {
            // a table without any host has not been filled yet
            lock(&doors.ports.inherited).retain(|address, _| wanted.contains(address));
        }
        self.open.retain(|address, stop| {
            let stays = wanted.contains(address);
            if !stays {
                stop.cancel();
            }
            stays
        });
        for address in wanted {
            self.open.entry(address).or_insert_with(|| {
                let stop = doors.closed.child_token();
                let serve = super::serve_port(Arc::clone(doors), address, stop.clone());
                doors.proxy.shared.tasks.spawn(PORT, serve);
                stop
            });
        }
    }
}

/// Where a port is opened: the inner address always, the outer one if the app is external.
fn addresses(config: &IngressConfig, is_external: bool) -> impl Iterator<Item = IpAddr> {
    let outer =
        config.tcp_external.filter(|outer| is_external || config.tcp_internal.is_some() && outer.is_unspecified());
    // an unspecified outer address takes the inner connections too
    let inner = config.tcp_internal.filter(|_| outer.is_none_or(|outer| !outer.is_unspecified()));
    outer.into_iter().chain(inner)
}
