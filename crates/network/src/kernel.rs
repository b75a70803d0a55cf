//! Speaks to the kernel about links, addresses, routes and neighbours of the host.
//!
//! A blocking face over `rtnetlink`: the threads of this crate may sleep in the kernel, tokio's may not, and a
//! thread that walks through network namespaces must not be one of tokio's.
//!
//! **Invariant:** the netlink socket belongs to the namespace the thread had at [`Kernel::new`], for good.
//! **Invariant:** every request ends within [`REQUEST_TIMEOUT`].

use std::fs::{self, File};
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use futures_util::TryStreamExt;
use ipnet::Ipv4Net;
use nix::errno::Errno;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage, State};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, LinkBridge, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use crate::error::NetworkError;
use crate::layout::{Layout, Mac};

/// Longest wait for one answer of the kernel; it waits for the kernel-wide lock of the network stack.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// One netlink connection to the host's network stack, driven by the calling thread.
pub(crate) struct Kernel {
    runtime: Runtime,
    handle: Handle,
    /// The network namespace of the thread when this was made: "the host".
    pub(crate) host: File,
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").finish_non_exhaustive()
    }
}

/// What we look at of an interface.
#[derive(Clone, Debug)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) controller: Option<u32>,
    pub(crate) mtu: u32,
    pub(crate) is_bridge: bool,
    pub(crate) is_up: bool,
}

impl Kernel {
    /// Connects in the network namespace of the calling thread.
    pub(crate) fn new() -> Result<Self, NetworkError> {
        let open = || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let (handle, _task) = connect(&runtime)?;
            Ok(Self { runtime, handle, host: File::open("/proc/thread-self/ns/net")? })
        };
        open().map_err(NetworkError::kernel("open a netlink socket"))
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// A second connection, in the network namespace that the thread is in now; `JoinHandle` owns the socket.
    pub(crate) fn connect_here(&self) -> io::Result<(Handle, JoinHandle<()>)> {
        connect(&self.runtime)
    }

    /// Runs `future` on this thread, with a limit.
    pub(crate) fn wait<T>(
        &self,
        action: impl Into<String>,
        future: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetworkError> {
        self.wait_io(async { tokio::time::timeout(REQUEST_TIMEOUT, future).await?.map_err(into_io) })
            .map_err(NetworkError::kernel(action))
    }

    /// Runs `future` on this thread; it limits itself.
    pub(crate) fn wait_io<T>(&self, future: impl Future<Output = io::Result<T>>) -> io::Result<T> {
        self.runtime.block_on(future)
    }

    /// Every interface of the host.
    pub(crate) fn links(&self) -> Result<Vec<Link>, NetworkError> {
        self.wait("list the interfaces", async {
            self.handle.link().get().execute().map_ok(|message| link_of(&message)).try_collect().await
        })
    }

    /// The interface `name`, or none.
    pub(crate) fn link(&self, name: &str) -> Result<Option<Link>, NetworkError> {
        self.wait(format!("look up interface `{name}`"), link_by_name(&self.handle, name))
    }

    /// Removes the interface `name`; it may be gone already.
    pub(crate) fn delete_link(&self, name: &str) -> Result<(), NetworkError> {
        self.wait(format!("remove interface `{name}`"), async {
            match link_by_name(&self.handle, name).await? {
                Some(link) => ignore(self.handle.link().del(link.index).execute().await, &[Errno::ENODEV]),
                None => Ok(()),
            }
        })
    }

    /// Addresses of the interface `index`.
    pub(crate) fn addresses(&self, index: Option<u32>) -> Result<Vec<(u32, Ipv4Net)>, NetworkError> {
        let all: Vec<_> = self.wait("list the addresses", async {
            self.handle.address().get().execute().try_collect::<Vec<_>>().await
        })?;
        let nets = all.into_iter().filter(|message| index.is_none_or(|index| message.header.index == index));
        Ok(nets
            .filter_map(|message| {
                let prefix = message.header.prefix_len;
                message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(IpAddr::V4(v4)) => {
                        Ipv4Net::new(*v4, prefix).ok().map(|net| (message.header.index, net))
                    }
                    _ => None,
                })
            })
            .collect())
    }

    /// Every range that this machine has an address in or a route to, but through the interface `except`.
    pub(crate) fn ranges_in_use(&self, except: Option<u32>) -> Result<Vec<Ipv4Net>, NetworkError> {
        let addresses = self.addresses(None)?;
        let mut ranges: Vec<_> =
            addresses.into_iter().filter(|(index, _)| Some(*index) != except).map(|(_, net)| net).collect();
        let routes: Vec<_> = self.wait("list the routes", async {
            let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
            self.handle.route().get(query).execute().try_collect::<Vec<_>>().await
        })?;
        for route in routes {
            let through =
                route.attributes.iter().find_map(|a| if let RouteAttribute::Oif(i) = a { Some(*i) } else { None });
            let to = route.attributes.iter().find_map(|a| match a {
                RouteAttribute::Destination(RouteAddress::Inet(v4)) => Some(*v4),
                _ => None,
            });
            let (Some(to), false) = (to, except.is_some() && through == except) else { continue };
            let prefix = route.header.destination_prefix_length;
            ranges.extend((prefix > 0).then(|| Ipv4Net::new(to, prefix).ok()).flatten());
        }
        Ok(ranges)
    }

    /// Largest packet that fits the interface of the default route; 1500 where there is none.
    pub(crate) fn uplink_mtu(&self) -> Result<u32, NetworkError> {
        let routes: Vec<_> = self.wait("list the routes", async {
            let query = RouteMessageBuilder::<Ipv4Addr>::new().build();
            self.handle.route().get(query).execute().try_collect::<Vec<_>>().await
        })?;
        let uplinks: Vec<u32> = routes
            .iter()
            .filter(|route| route.header.destination_prefix_length == 0)
            .flat_map(|route| &route.attributes)
            .filter_map(|a| if let RouteAttribute::Oif(index) = a { Some(*index) } else { None })
            .collect();
        let mtus = self.links()?.into_iter().filter(|link| uplinks.contains(&link.index)).map(|link| link.mtu);
        Ok(mtus.min().unwrap_or(1500).clamp(1280, 1500))
    }

    /// Creates the bridge or takes the one that exists, with the gateway address on it; returns its index.
    pub(crate) fn ensure_bridge(&self, layout: &Layout) -> Result<u32, NetworkError> {
        let name = layout.bridge();
        let gateway = layout.gateway();
        if let Some(link) = self.link(&name)? {
            if !link.is_bridge {
                return Err(NetworkError::BridgeNameTaken { name });
            }
        } else {
            let message = LinkMessageBuilder::<LinkBridge>::new(&name)
                .address(Mac::of(gateway).0.to_vec())
                .mcast_snooping(false)
                .build();
            self.wait(format!("create bridge `{name}`"), async {
                ignore(self.handle.link().add(message).execute().await, &[Errno::EEXIST])
            })?;
        }
        let link = self.link(&name)?.ok_or_else(|| NetworkError::Kernel {
            action: format!("find bridge `{name}` after creating it"),
            source: io::ErrorKind::NotFound.into(),
        })?;
        disable_ipv6(&name);
        self.wait(format!("give `{gateway}` to bridge `{name}`"), async {
            let add = self.handle.address().add(link.index, gateway.into(), layout.subnet.prefix_len());
            ignore(add.execute().await, &[Errno::EEXIST])
        })?;
        self.wait(format!("bring bridge `{name}` up"), async {
            self.handle.link().change(LinkUnspec::new_with_index(link.index).up().build()).execute().await
        })?;
        Ok(link.index)
    }
}

/// Keeps router advertisements, link-local addresses and their timers off a host interface.
///
/// A kernel without IPv6 has no such file, which is as good.
pub(crate) fn disable_ipv6(interface: &str) {
    let path = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    if let Err(error) = fs::write(&path, "1")
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::debug!(path, %error, "failed to turn IPv6 off");
    }
}

pub(crate) async fn link_by_name(handle: &Handle, name: &str) -> Result<Option<Link>, rtnetlink::Error> {
    let mut found = std::pin::pin!(handle.link().get().match_name(name).execute());
    match found.try_next().await {
        Ok(message) => Ok(message.as_ref().map(link_of)),
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -(Errno::ENODEV as i32) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes one of `errors` for success.
pub(crate) fn ignore(result: Result<(), rtnetlink::Error>, errors: &[Errno]) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error))
            if errors.iter().any(|errno| error.raw_code() == -(*errno as i32)) =>
        {
            Ok(())
        }
        other => other,
    }
}

pub(crate) fn into_io(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(error) => error.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

fn connect(runtime: &Runtime) -> io::Result<(Handle, JoinHandle<()>)> {
    let _context = runtime.enter();
    let (connection, handle, _events) = rtnetlink::new_connection()?;
    Ok((handle, runtime.spawn(connection)))
}

fn link_of(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        controller: None,
        mtu: 1500,
        is_bridge: false,
        is_up: false,
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Controller(index) => link.controller = Some(*index),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::OperState(state) => link.is_up = *state == State::Up,
            LinkAttribute::LinkInfo(infos) => {
                link.is_bridge = infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Bridge)));
            }
            _ => {}
        }
    }
    link
}
