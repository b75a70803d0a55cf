//! Real networks on the real kernel, each test in a machine of its own: a fresh network and mount namespace.
//!
//! The test thread moves into the namespaces first; all threads it starts, also the network's, are born there. So
//! tests run side by side, touch nothing of the host, and leave nothing: the last thread takes it all along.

use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::Duration;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::packet_route::link::{InfoData, InfoKind, InfoVeth, LinkMessage};
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use crate::error::NetworkError;
use crate::kernel::Kernel;
use crate::layout::{Mac, NetnsId, NetnsLease};
use crate::network::{Network, NetworkConfig};
use crate::pool::PoolStatus;

mod confined;
mod counted;
mod lifecycle;
mod limited;
mod traffic;

/// Longest wait for anything that must come; the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);
/// How long nothing must come for silence.
const SILENCE: Duration = Duration::from_millis(400);

/// Runs `test` on a thread that is a machine of its own.
fn on_own_machine<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let body = move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        loopback_up();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    if let Err(panic) = thread::spawn(body).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Talks to the kernel about the calling thread's namespace, on a thread of its own that may block.
fn with_kernel<T: Send>(body: impl FnOnce(&Kernel) -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(|| body(&Kernel::new().unwrap())).join().unwrap())
}

fn loopback_up() {
    let up = LinkUnspec::new_with_index(1).up().build();
    with_kernel(|kernel| kernel.wait("up", kernel.handle().link().change(up).execute())).unwrap();
}

fn config(folder: &Path, name: &str) -> NetworkConfig {
    NetworkConfig { run_dir: folder.join("run"), pool_size: 3, ..NetworkConfig::new(folder.join(name), name) }
}

/// A thread inside the namespace of `lease`.
fn inside<T: Send + 'static>(lease: &NetnsLease, body: impl FnOnce() -> T + Send + 'static) -> thread::JoinHandle<T> {
    let path = lease.path.clone();
    thread::spawn(move || {
        setns(File::open(path).unwrap(), CloneFlags::CLONE_NEWNET).unwrap();
        body()
    })
}

/// A server on port 80 of the replica that answers one connection with `ok`; it listens on return.
fn serve_one(lease: &NetnsLease) -> thread::JoinHandle<()> {
    let (listening, ready) = std::sync::mpsc::channel();
    let server = inside(lease, move || {
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)).unwrap();
        listening.send(()).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        stream.write_all(b"ok").unwrap();
    });
    ready.recv_timeout(DEADLINE).unwrap();
    server
}

/// Connects and reads to the end.
fn fetch(address: Ipv4Addr, port: u16) -> io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// How often the kernel began a connection of the calling thread's namespace anew, since nothing was heard of it.
fn connections_begun_anew() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/netstat").unwrap();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("TcpExt: ")).map(str::split_whitespace);
    let (names, counts) = (lines.next().unwrap(), lines.next().unwrap());
    names.zip(counts).find(|(name, _)| *name == "TCPSynRetrans").unwrap().1.parse().unwrap()
}

/// Waits until the pool looks as wanted.
async fn until(network: &Network, wanted: impl Fn(PoolStatus) -> bool) {
    if tokio::time::timeout(DEADLINE, network.wait_for(wanted)).await.is_err() {
        panic!("the pool stays at {:?}", network.status());
    }
}

fn interfaces() -> Vec<String> {
    let links = with_kernel(|kernel| kernel.links()).unwrap();
    let mut names: Vec<_> = links.into_iter().map(|link| link.name).collect();
    names.retain(|name| name.starts_with("cv") || name.starts_with('v'));
    names.sort();
    names
}

/// Gives `address`/24 to the interface `name` of the calling thread's namespace and sets it up.
fn give_address(name: &str, address: Ipv4Addr) {
    with_kernel(|kernel| {
        let link = kernel.link(name).unwrap().expect("the interface is there");
        kernel.wait("add", kernel.handle().address().add(link.index, address.into(), 24).execute()).unwrap();
        let up = LinkUnspec::new_with_index(link.index).up().build();
        kernel.wait("up", kernel.handle().link().change(up).execute()).unwrap();
    });
}

/// Adds a route of the calling thread's namespace: to `to` through `gateway`, or straight out of `interface`.
fn add_route(interface: &str, to: Ipv4Addr, prefix: u8, gateway: Option<Ipv4Addr>) {
    with_kernel(|kernel| {
        let link = kernel.link(interface).unwrap().expect("the interface is there");
        let mut route =
            RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(to, prefix).output_interface(link.index);
        if let Some(gateway) = gateway {
            route = route.gateway(gateway);
        } else {
            route = route.scope(RouteScope::Link);
            let neighbour = kernel.handle().neighbours().add(link.index, to.into());
            kernel.wait("neighbour", neighbour.link_layer_address(&Mac::of(to).0).execute()).unwrap();
        }
        kernel.wait("route", kernel.handle().route().add(route.build()).execute()).unwrap();
    });
}

/// Adds the interface that `message` describes.
fn add_link(message: LinkMessage) {
    with_kernel(|kernel| kernel.wait("add", kernel.handle().link().add(message).execute())).unwrap();
}

/// A connection from the calling thread's namespace that must come about.
fn reaches(address: impl Into<IpAddr>, port: u16) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), DEADLINE).map(drop)
}

/// The same of one that must not: it is refused, or nothing is heard of it.
fn tries(address: impl Into<IpAddr>, port: u16) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), SILENCE).map(drop)
}

/// Runs inside the namespace of `lease` and gives the result.
fn run_inside<T: Send + 'static>(lease: &NetnsLease, body: impl FnOnce() -> T + Send + 'static) -> T {
    inside(lease, body).join().unwrap()
}
