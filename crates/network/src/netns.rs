//! Makes and destroys the network namespace of one replica.
//!
//! The thread moves into a fresh namespace, pins it with a bind mount and moves back; the rest is netlink through
//! two sockets, one on each side. What the replica needs is complete before anyone gets the lease: permanent
//! neighbour entries on both sides (a lost ARP costs a second) and a bridge port that already forwards.
//!
//! A replica has its address as a /32 with a route to the gateway alone, and an `unreachable` route for the rest of
//! the subnet: asking for another replica fails at once instead of timing out at the isolated port.
//!
//! **Invariant:** after every function the calling thread is in the namespace it came from; if that fails the
//! error is [`Fault::Lost`] and the thread must do nothing more.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::{
    Handle, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, NeighbourAddRequest, RouteMessageBuilder,
};
use tokio::task::JoinHandle;

use crate::error::NetworkError;
use crate::kernel::{Kernel, disable_ipv6, ignore, link_by_name};
use crate::layout::{INSIDE, Layout, Mac, NetnsId, NetnsLease};

/// Longest wait for an interface to be up after it has a carrier.
const UP_TIMEOUT: Duration = Duration::from_secs(10);

/// Index of `lo` in every network namespace.
pub(crate) const LO_INDEX: u32 = 1;

/// Why a namespace could not be made.
#[derive(Debug)]
pub(crate) enum Fault {
    /// This one failed; the thread can try again.
    Failed(NetworkError),
    /// The thread could not return to the host's namespace and is of no further use.
    Lost(NetworkError),
}

impl From<NetworkError> for Fault {
    fn from(error: NetworkError) -> Self {
        Self::Failed(error)
    }
}

/// The machine's side of a network: bridge index and packet size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Uplink {
    pub(crate) bridge_index: u32,
    pub(crate) mtu: u32,
}

/// Makes the folder of the namespaces a shared mount of its own.
///
/// Shared, so that unmounting a namespace here also drops it from the mount namespaces of replicas started since.
pub(crate) fn prepare_dir(dir: &Path) -> Result<(), NetworkError> {
    fs::create_dir_all(dir).map_err(NetworkError::state(dir))?;
    let none = None::<&str>;
    let share = || mount(none, dir, none, MsFlags::MS_SHARED, none);
    let result = share().or_else(|_not_a_mount| {
        mount(Some(dir), dir, none, MsFlags::MS_BIND, none)?;
        share()
    });
    result.map_err(|errno| NetworkError::kernel(format!("mount `{}`", dir.display()))(errno.into()))
}

/// Unmounts and removes the folder of the namespaces.
pub(crate) fn remove_dir(dir: &Path) -> Result<(), NetworkError> {
    while umount2(dir, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::state(dir)(error)),
        _ => Ok(()),
    }
}

/// Ids of the namespaces that exist; files that are none are removed.
pub(crate) fn list(dir: &Path) -> Result<Vec<NetnsId>, NetworkError> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).map_err(NetworkError::state(dir))? {
        let entry = entry.map_err(NetworkError::state(dir))?;
        let id = entry.file_name().to_str().and_then(|name| name.parse::<NetnsId>().ok());
        match id {
            Some(id) if is_namespace(&entry.path()) => ids.push(id),
            _ => {
                tracing::info!(path = %entry.path().display(), "removing what is no network namespace");
                let _ = fs::remove_file(entry.path());
            }
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Creates the namespace `id` and wires it to the bridge.
pub(crate) fn create(kernel: &Kernel, layout: &Layout, uplink: Uplink, id: NetnsId) -> Result<NetnsLease, Fault> {
    let path = layout.path(id);
    let result = make(kernel, layout, uplink, id, &path);
    if matches!(result, Err(Fault::Failed(_)))
        && let Err(error) = destroy(kernel, layout, uplink, id)
    {
        tracing::warn!(%id, %error, "failed to remove a half-made network namespace");
    }
    result
}

fn make(kernel: &Kernel, layout: &Layout, uplink: Uplink, id: NetnsId, path: &Path) -> Result<NetnsLease, Fault> {
    File::create_new(path).map_err(NetworkError::state(path))?;
    let (namespace, inside, connection) = enter_new(kernel, path)?;
    let wired = wire_host(kernel, layout, uplink, id, &namespace)
        .and_then(|()| wire_inside(kernel, layout, uplink, id, &inside))
        .and_then(|()| wait_up(kernel, &inside, INSIDE))
        .and_then(|()| wait_up(kernel, kernel.handle(), &layout.veth(id.host)))
        // The first port gives the bridge its carrier.
        .and_then(|()| wait_up(kernel, kernel.handle(), &layout.bridge()));
    // The socket would keep the namespace alive.
    connection.abort();
    drop(inside);
    let _ = kernel.wait_io(async { connection.await.map_err(io::Error::other) });
    wired?;
    Ok(layout.lease(id))
}

/// Creates a namespace, pins it at `path` and connects to it; the thread ends up where it was.
fn enter_new(kernel: &Kernel, path: &Path) -> Result<(File, Handle, JoinHandle<()>), Fault> {
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetworkError::kernel("create a network namespace")(errno.into()))?;
    let inside = || {
        let none = None::<&str>;
        mount(Some("/proc/thread-self/ns/net"), path, none, MsFlags::MS_BIND, none)?;
        set_defaults()?;
        let namespace = File::open(path)?;
        let (handle, connection) = kernel.connect_here()?;
        Ok((namespace, handle, connection))
    };
    let made = inside().map_err(NetworkError::kernel(format!("set up network namespace `{}`", path.display())));
    setns(&kernel.host, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| Fault::Lost(NetworkError::kernel("return to the host's network namespace")(errno.into())))?;
    Ok(made?)
}

/// Settings of the thread's network namespace, before it has interfaces.
pub(crate) fn set_defaults() -> io::Result<()> {
    // Images that listen on port 80 as an unprivileged user, and `ping` without capabilities, as in Azure and Docker.
    fs::write("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0")?;
    fs::write("/proc/sys/net/ipv4/ping_group_range", "0 2147483647")?;
    // `lo` keeps ::1; interfaces to come have no IPv6.
    disable_ipv6("default");
    Ok(())
}

fn wire_host(
    kernel: &Kernel,
    layout: &Layout,
    uplink: Uplink,
    id: NetnsId,
    namespace: &File,
) -> Result<(), NetworkError> {
    let veth = layout.veth(id.host);
    let address = layout.address(id.host);
    let mac = Mac::of(address);
    let links = kernel.handle().link();
    // The peer is not set up here: the kernel answers ENOTCONN to that.
    let peer = LinkUnspec::new_with_name(INSIDE)
        .address(mac.0.to_vec())
        .mtu(uplink.mtu)
        .setns_by_fd(namespace.as_raw_fd())
        .build();
    let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
        .name(&veth)
        .mtu(uplink.mtu)
        .controller(uplink.bridge_index)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .build();
    kernel.wait(format!("create veth pair `{veth}`"), links.add(pair).execute())?;
    disable_ipv6(&veth);
    kernel.wait(format!("connect `{veth}` to the bridge"), async {
        let Some(link) = link_by_name(kernel.handle(), &veth).await? else {
            return Err(rtnetlink::Error::RequestFailed);
        };
        // The forwarding entry below is the only one the port ever needs: no learning, no flooding, no spoofing.
        let port = LinkBridgePort::new(link.index)
            .isolated(true)
            .learning(false)
            .flood(false)
            .mcast_flood(false)
            .bcast_flood(false)
            .up();
        // Older kernels have no such lock, and no confined replicas.
        let port = if layout.confined().contains(&address) { port.locked(true) } else { port };
        links.set_port(port.build()).execute().await?;
        forwarding_entry(kernel.handle(), link.index, mac).execute().await?;
        neighbour(kernel.handle(), uplink.bridge_index, address).execute().await
    })
}

fn wire_inside(
    kernel: &Kernel,
    layout: &Layout,
    uplink: Uplink,
    id: NetnsId,
    inside: &Handle,
) -> Result<(), NetworkError> {
    let address = layout.address(id.host);
    let gateway = layout.gateway();
    kernel.wait(format!("configure network namespace `{id}`"), async {
        inside.link().change(LinkUnspec::new_with_index(LO_INDEX).up().build()).execute().await?;
        let Some(eth0) = link_by_name(inside, INSIDE).await? else {
            return Err(rtnetlink::Error::RequestFailed);
        };
        inside.address().add(eth0.index, address.into(), 32).execute().await?;
        let up = LinkUnspec::new_with_index(eth0.index).mtu(uplink.mtu).up().build();
        inside.link().change(up).execute().await?;
        let routes = inside.route();
        let to_gateway = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(gateway, 32)
            .output_interface(eth0.index)
            .scope(RouteScope::Link);
        routes.add(to_gateway.build()).execute().await?;
        let default = RouteMessageBuilder::<Ipv4Addr>::new().gateway(gateway).output_interface(eth0.index);
        routes.add(default.build()).execute().await?;
        let others = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(layout.subnet.network(), layout.subnet.prefix_len())
            .kind(RouteType::Unreachable);
        routes.add(others.build()).execute().await?;
        neighbour(inside, eth0.index, gateway).execute().await
    })
}

/// Waits until packets can leave the interface `name`, and for a port until the bridge forwards to it.
///
/// The kernel does both a moment after the carrier comes; from 6.8 on the question itself brings it up to date.
fn wait_up(kernel: &Kernel, handle: &Handle, name: &str) -> Result<(), NetworkError> {
    kernel.wait(format!("see `{name}` up"), async {
        let deadline = tokio::time::Instant::now() + UP_TIMEOUT;
        loop {
            let link = link_by_name(handle, name).await?;
            if link.is_some_and(|link| link.is_up) {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(rtnetlink::Error::RequestFailed);
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

/// Puts back what the host knows of the existing replica `id`; false when its interface is gone.
pub(crate) fn repair(kernel: &Kernel, layout: &Layout, uplink: Uplink, id: NetnsId) -> Result<bool, NetworkError> {
    let veth = layout.veth(id.host);
    let address = layout.address(id.host);
    let Some(link) = kernel.link(&veth)?.filter(|link| link.controller == Some(uplink.bridge_index)) else {
        return Ok(false);
    };
    kernel.wait(format!("restore the neighbour entries of `{veth}`"), async {
        forwarding_entry(kernel.handle(), link.index, Mac::of(address)).execute().await?;
        neighbour(kernel.handle(), uplink.bridge_index, address).execute().await
    })?;
    Ok(true)
}

/// Removes the namespace `id` with its interface and neighbour entry; any part may be gone already.
pub(crate) fn destroy(kernel: &Kernel, layout: &Layout, uplink: Uplink, id: NetnsId) -> Result<(), NetworkError> {
    unpin(&layout.path(id))?;
    kernel.delete_link(&layout.veth(id.host))?;
    let mut entry = neighbour(kernel.handle(), uplink.bridge_index, layout.address(id.host));
    let entry = entry.message_mut().clone();
    kernel.wait(format!("forget the neighbour `{id}`"), async {
        ignore(kernel.handle().neighbours().del(entry).execute().await, &[Errno::ENOENT, Errno::ENODEV])
    })
}

/// Unmounts and removes the file of a namespace.
pub(crate) fn unpin(path: &Path) -> Result<(), NetworkError> {
    while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetworkError::state(path)(error)),
        _ => Ok(()),
    }
}

/// True when `path` is a namespace that is mounted there, and not an ordinary file left by a crash.
fn is_namespace(path: &Path) -> bool {
    nix::sys::statfs::statfs(path).is_ok_and(|stat| stat.filesystem_type() == nix::sys::statfs::NSFS_MAGIC)
}

/// Request for the permanent neighbour entry of `address` behind the interface `index`.
fn neighbour(handle: &Handle, index: u32, address: Ipv4Addr) -> NeighbourAddRequest {
    handle.neighbours().add(index, address.into()).link_layer_address(&Mac::of(address).0).replace()
}

/// Request for the fixed forwarding entry of a replica's port.
fn forwarding_entry(handle: &Handle, port_index: u32, mac: Mac) -> NeighbourAddRequest {
    handle
        .neighbours()
        .add_bridge(port_index, &mac.0)
        .state(NeighbourState::Noarp)
        .flags(NeighbourFlags::Controller)
        .replace()
}
