//! Real networks on the real kernel, each test in a machine of its own: a fresh network and mount namespace.
//!
//! The test thread moves into the namespaces first; all threads it starts, also the network's, are born there. So
//! tests run side by side, touch nothing of the host, and leave nothing: the last thread takes it all along.

use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use rtnetlink::LinkUnspec;

use crate::kernel::Kernel;
use crate::layout::NetnsLease;
use crate::network::{Network, NetworkConfig};
use crate::pool::PoolStatus;

const DEADLINE: Duration = Duration::from_secs(10);

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

fn loopback_up() {
    let kernel = Kernel::new().unwrap();
    let up = LinkUnspec::new_with_index(1).up().build();
    kernel.wait("up", kernel.handle().link().change(up).execute()).unwrap();
}

fn config(folder: &Path, name: &str) -> NetworkConfig {
    NetworkConfig { run_dir: folder.join("run"), pool_size: 3, ..NetworkConfig::new(folder.join(name), name) }
}

/// A thread inside the namespace of `lease`.
fn inside<T: Send + 'static>(
    lease: &NetnsLease,
    body: impl FnOnce() -> T + Send + 'static,
) -> thread::JoinHandle<T> {
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

/// Connects, reads to the end and says how long that took.
fn fetch(address: Ipv4Addr, port: u16) -> io::Result<(String, Duration)> {
    let started = Instant::now();
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok((text, started.elapsed()))
}

/// Waits until the pool looks as wanted.
async fn until(network: &Network, what: impl Fn(PoolStatus) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !what(network.status()) {
        assert!(Instant::now() < deadline, "the pool stays at {:?}", network.status());
        tokio::task::yield_now().await;
    }
}

fn interfaces() -> Vec<String> {
    let mut names: Vec<_> = Kernel::new().unwrap().links().unwrap().into_iter().map(|link| link.name).collect();
    names.retain(|name| name.starts_with("cv") || name.starts_with('v'));
    names.sort();
    names
}

#[test]
fn a_replica_answers_the_host_at_once() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "one")).await.unwrap();
        for _ in 0..8 {
            let lease = network.acquire().await.unwrap();
            let server = serve_one(&lease);
            let (text, took) = fetch(lease.address, 80).unwrap();
            assert_eq!(text, "ok");
            // A lost first ARP or SYN would cost a second.
            assert!(took < Duration::from_millis(900), "{took:?}");
            server.join().unwrap();
            network.release(lease.id);
        }
        until(&network, |status| status.leaving == 0 && status.ready == 3).await;
        network.purge().await.unwrap();
    });
}
