//! Real networks on the real kernel, each test in a machine of its own: a fresh network and mount namespace.
//!
//! The test thread moves into the namespaces first; all threads it starts, also the network's, are born there. So
//! tests run side by side, touch nothing of the host, and leave nothing: the last thread takes it all along.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

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
    let links = with_kernel(|kernel| kernel.links()).unwrap();
    let mut names: Vec<_> = links.into_iter().map(|link| link.name).collect();
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

/// Whether a connection from the calling thread's namespace comes about soon.
fn reaches(address: impl Into<IpAddr>, port: u16) -> io::Result<()> {
    TcpStream::connect_timeout(&SocketAddr::new(address.into(), port), Duration::from_millis(400)).map(drop)
}

/// Runs inside the namespace of `lease` and gives the result.
fn run_inside<T: Send + 'static>(lease: &NetnsLease, body: impl FnOnce() -> T + Send + 'static) -> T {
    inside(lease, body).join().unwrap()
}

#[test]
fn replicas_do_not_reach_each_other_nor_the_machine_but_the_allowed_ports() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "iso")).await.unwrap();
        assert!(network.capabilities().nat && network.capabilities().filter, "{:?}", network.capabilities());
        let elsewhere = Ipv4Addr::new(192, 0, 2, 9);
        give_address("lo", elsewhere);
        let (a, b) = (network.acquire().await.unwrap(), network.acquire().await.unwrap());
        let _server = inside(&b, || TcpListener::bind("0.0.0.0:80").map(|l| l.accept().map(drop))).thread();
        let gateway = network.gateway();
        let _allowed = TcpListener::bind((gateway, 80)).unwrap();
        let _other = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 8080)).unwrap();
        let to = b.address;
        run_inside(&a, move || {
            reaches(gateway, 80).expect("the ingress is reached");
            reaches(gateway, 8080).expect_err("another port of the gateway is not");
            reaches(elsewhere, 8080).expect_err("another address of the machine is not");
            let started = Instant::now();
            reaches(to, 80).expect_err("another replica is not reached");
            assert!(started.elapsed() < Duration::from_millis(200), "and says so at once");
            // Even a replica that rewires itself gets nowhere: first straight over the bridge, then by the gateway.
            add_route("eth0", to, 32, None);
            reaches(to, 80).expect_err("the port is isolated");
        });
        let c = network.acquire().await.unwrap();
        run_inside(&c, move || {
            add_route("eth0", to, 32, Some(gateway));
            reaches(to, 80).expect_err("the gateway does not forward between replicas");
        });
        network.purge().await.unwrap();
    });
}

#[test]
fn inside_a_replica_all_is_set_up() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "in")).await.unwrap();
        let lease = network.acquire().await.unwrap();
        let (unprivileged, kernel_links, v6) = run_inside(&lease, || {
            (
                fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap(),
                with_kernel(|kernel| kernel.links()).unwrap(),
                TcpListener::bind("[::]:80").map(drop).and_then(|()| TcpListener::bind("[::1]:81").map(drop)),
            )
        });
        assert_eq!(unprivileged.trim(), "0");
        v6.expect("programs that listen on IPv6 wildcards or ::1 work");
        assert!(kernel_links.iter().any(|link| link.name == "eth0" && link.is_up));
        assert_eq!(lease.mac, Mac::of(lease.address));
        assert!(network.subnet().contains(&lease.address));
        network.purge().await.unwrap();
    });
}

/// A second machine, at 192.0.2.2 behind the interface `out` (192.0.2.1) of this one.
struct World {
    lease: NetnsLease,
}

impl World {
    fn new(network: &Network, folder: &Path) -> Self {
        let path = folder.join("world");
        File::create(&path).unwrap();
        let pin = path.clone();
        let made = thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            loopback_up();
            mount(Some("/proc/thread-self/ns/net"), &pin, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        });
        made.join().unwrap();
        let namespace = File::open(&path).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&namespace);
        let peer = LinkUnspec::new_with_name("eth0").setns_by_fd(fd).build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name("out")
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        add_link(pair);
        give_address("out", Ipv4Addr::new(192, 0, 2, 1));
        let id = NetnsId { host: 2, nonce: 0 };
        let address = Ipv4Addr::new(192, 0, 2, 2);
        let lease = NetnsLease { id, path, address, mac: Mac::of(address), gateway: Ipv4Addr::new(192, 0, 2, 1) };
        let subnet = network.subnet();
        run_inside(&lease, move || {
            give_address("eth0", address);
            add_route("eth0", subnet.network(), subnet.prefix_len(), Some(Ipv4Addr::new(192, 0, 2, 1)));
        });
        Self { lease }
    }
}

#[test]
fn replicas_reach_the_world_as_the_machine_and_the_world_not_them() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "nat")).await.unwrap();
        assert!(network.capabilities().nat, "{:?}", network.capabilities());
        let world = World::new(&network, folder.path());
        let (listening, ready) = std::sync::mpsc::channel();
        let seen = inside(&world.lease, move || {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            listening.send(()).unwrap();
            listener.accept().unwrap().1.ip()
        });
        ready.recv_timeout(DEADLINE).unwrap();
        let lease = network.acquire().await.unwrap();
        let to = world.lease.address;
        run_inside(&lease, move || TcpStream::connect_timeout(&SocketAddr::from((to, 80)), DEADLINE).map(drop))
            .unwrap();
        assert_eq!(seen.join().unwrap(), IpAddr::from(world.lease.gateway));
        let _server = inside(&lease, || TcpListener::bind("0.0.0.0:80").map(|l| l.accept().map(drop))).thread();
        let to = lease.address;
        run_inside(&world.lease, move || reaches(to, 80).expect_err("replicas are not reached from outside"));
        network.purge().await.unwrap();
    });
}

#[test]
fn networks_live_side_by_side() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (one, two) =
            tokio::join!(Network::open(config(folder.path(), "one")), Network::open(config(folder.path(), "two")));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert!(!crate::layout::overlap(one.subnet(), two.subnet()));
        let (a, b) = (one.acquire().await.unwrap(), two.acquire().await.unwrap());
        for lease in [&a, &b] {
            let server = serve_one(lease);
            assert_eq!(fetch(lease.address, 80).unwrap().0, "ok");
            server.join().unwrap();
        }
        let _server = inside(&b, || TcpListener::bind("0.0.0.0:81").map(|l| l.accept().map(drop))).thread();
        let to = b.address;
        run_inside(&a, move || reaches(to, 81).expect_err("another network's replica is not reached"));
        one.purge().await.unwrap();
        let server = serve_one(&b);
        assert_eq!(fetch(b.address, 80).unwrap().0, "ok", "purging one leaves the other");
        server.join().unwrap();
        two.purge().await.unwrap();
    });
}

#[test]
fn after_a_crash_what_is_used_stays_and_the_rest_goes() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "crash")).await.unwrap();
        let (used, lost, broken) =
            (network.acquire().await.unwrap(), network.acquire().await.unwrap(), network.acquire().await.unwrap());
        let (subnet, bridge) = (network.subnet(), network.bridge());
        // A connection that lives through it all.
        let (listening, ready) = std::sync::mpsc::channel();
        let server = inside(&used, move || {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            listening.send(()).unwrap();
            let (mut stream, _) = listener.accept().unwrap();
            let mut byte = [0];
            while stream.read_exact(&mut byte).is_ok() {
                stream.write_all(&byte).unwrap();
            }
        });
        ready.recv_timeout(DEADLINE).unwrap();
        let mut stream = TcpStream::connect((used.address, 80)).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut echo = |byte: u8| {
            let mut back = [0];
            stream.write_all(&[byte]).and_then(|()| stream.read_exact(&mut back)).map(|()| back[0])
        };
        assert_eq!(echo(1).unwrap(), 1);
        until(&network, |status| status.ready == 3).await;
        drop(network);
        // Leftovers of every kind: a file, and a namespace that lost its interface, and an interface its namespace.
        let dir = used.path.parent().unwrap();
        fs::write(dir.join("nonsense"), "").unwrap();
        with_kernel(|kernel| kernel.delete_link("vcrash0003")).unwrap();
        assert_eq!(lost.id.host, 3, "the second of the network");
        nix::mount::umount2(&broken.path, nix::mount::MntFlags::MNT_DETACH).unwrap();

        let network = Network::open(config(folder.path(), "crash")).await.unwrap();
        assert_eq!((network.subnet(), network.bridge()), (subnet, bridge.clone()));
        let unknown = NetnsId { host: 999, nonce: 1 };
        let adopted = network.adopt(&BTreeSet::from([used.id, lost.id, unknown]));
        assert_eq!(adopted.kept, vec![used.clone()]);
        assert_eq!(adopted.missing, vec![lost.id, unknown]);
        // `lost`, and the three that were ready; `broken` went at open.
        assert_eq!(adopted.removed, 4);
        until(&network, |status| status.leaving == 0 && status.ready == 3).await;
        assert_eq!(interfaces().len(), 1 + 1 + 3, "{:?}", interfaces());
        assert_eq!(fs::read_dir(dir).unwrap().count(), 1 + 3);
        assert_eq!(echo(2).unwrap(), 2, "the open connection lost nothing");
        let next = network.acquire().await.unwrap();
        assert_ne!(next.address, used.address);
        network.purge().await.unwrap();
        assert!(echo(3).is_err());
        drop(stream);
        let _ = server;
    });
}

#[test]
fn a_purge_leaves_nothing() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path(), "gone");
        let network = Network::open(config.clone()).await.unwrap();
        let lease = network.acquire().await.unwrap();
        assert_eq!(interfaces().first().map(String::as_str), Some("cvgone"));
        network.purge().await.unwrap();
        assert!(matches!(network.acquire().await, Err(NetworkError::Closed)));
        network.release(lease.id);
        assert_eq!(interfaces(), Vec::<String>::new());
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        assert!(!mounts.contains(folder.path().to_str().unwrap()), "{mounts}");
        let mut left: Vec<_> = [&config.run_dir, &config.state_dir]
            .into_iter()
            .flat_map(|dir| fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()))
            .collect();
        left.sort();
        assert_eq!(left, ["subnet.lock"]);
        let tables = std::process::Command::new(crate::nft::find().unwrap()).args(["list", "tables"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&tables.stdout), "");
        Network::purge_leftovers(&config).expect("once more is no error");
    });
}

#[test]
fn closing_keeps_what_is_leased_for_the_next_open() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "close")).await.unwrap();
        let lease = network.acquire().await.unwrap();
        network.close().await;
        assert_eq!(interfaces(), ["cvclose", "vclose0002"]);
        let network = Network::open(config(folder.path(), "close")).await.unwrap();
        assert_eq!(network.adopt(&BTreeSet::from([lease.id])).kept, vec![lease]);
        network.purge().await.unwrap();
    });
}

#[test]
fn a_burst_gets_distinct_namespaces_and_an_impatient_caller_loses_none() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "burst")).await.unwrap();
        until(&network, |status| status.ready == 3).await;
        let leases = futures_util::future::join_all((0..20).map(|_| network.acquire())).await;
        let leases: Vec<_> = leases.into_iter().map(Result::unwrap).collect();
        let addresses: BTreeSet<_> = leases.iter().map(|lease| lease.address).collect();
        assert_eq!(addresses.len(), 20);
        // Twenty callers that go away while they wait.
        {
            let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(network.acquire())).collect();
            for future in &mut waiting {
                let _ = futures_util::poll!(future);
            }
        }
        leases.iter().for_each(|lease| network.release(lease.id));
        until(&network, |s| s == PoolStatus { ready: 3, leased: 0, leaving: 0, waiting: 0 }).await;
        assert_eq!(interfaces().len(), 1 + 3);
        network.purge().await.unwrap();
    });
}

#[test]
fn without_nft_the_network_opens_and_says_what_is_missing() {
    on_own_machine(|| async {
        // An empty folder over each that holds the program, in this test's own mount namespace.
        while let Some(program) = crate::nft::find() {
            mount(Some("none"), program.parent().unwrap(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "nonft")).await.unwrap();
        let capabilities = network.capabilities();
        assert!(!capabilities.nat && !capabilities.filter);
        expect_test::expect!["replicas cannot reach the outside, and nothing keeps them from this machine's own ports: the program `nft` was not found; install the package `nftables`"].assert_eq(&capabilities.warnings.join("\n"));
        let lease = network.acquire().await.unwrap();
        let server = serve_one(&lease);
        assert_eq!(fetch(lease.address, 80).unwrap().0, "ok");
        server.join().unwrap();
        network.purge().await.unwrap();
    });
}

#[test]
fn what_cannot_be_opened_says_why() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        give_address("lo", Ipv4Addr::new(10, 99, 0, 1));
        let with_subnet = |name: &str, subnet: &str| NetworkConfig {
            subnet: Some(subnet.parse().unwrap()),
            ..config(folder.path(), name)
        };
        let mut said = String::new();
        for config in
            [config(folder.path(), "Not-a-name"), with_subnet("a", "8.8.0.0/20"), with_subnet("b", "10.99.0.0/20")]
        {
            let error = Network::open(config).await.unwrap_err();
            said += &format!("{error}\n");
        }
        add_link(LinkVeth::new("cvtaken", "other").build());
        said += &format!("{}\n", Network::open(config(folder.path(), "taken")).await.unwrap_err());
        fs::create_dir_all(folder.path().join("bad")).unwrap();
        fs::write(folder.path().join("bad/network.json"), "{").unwrap();
        let error = Network::open(config(folder.path(), "bad")).await.unwrap_err().to_string();
        said += &error.replace(folder.path().to_str().unwrap(), "DIR");
        expect_test::expect![[r#"
            `Not-a-name` is not a network name: 1 to 8 characters of a-z and 0-9 are
            `8.8.0.0/20` cannot be the subnet of replicas: a private range of prefix /16 to /26 can
            subnet `10.99.0.0/20` overlaps `10.99.0.1/24`, which this machine already uses; choose another subnet
            interface `cvtaken` exists and is not a bridge; remove it or use another network name
            `DIR/bad/network.json` is damaged; remove it to choose a subnet anew"#]]
        .assert_eq(&said);
        assert!(!interfaces().iter().any(|name| name == "cvbad"));
    });
}

#[test]
fn this_machine_passes_the_probes() {
    on_own_machine(|| async {
        let before = interfaces();
        let failed: Vec<_> = crate::probe().into_iter().filter(|probe| !probe.ok).collect();
        assert_eq!(failed, vec![]);
        assert_eq!(interfaces(), before);
    });
}

/// Prints how long things take; run with `--no-capture`.
#[test]
fn measure() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let big = NetworkConfig { pool_size: 100, ..config(folder.path(), "meter") };
        let network = Network::open(big.clone()).await.unwrap();
        let started = Instant::now();
        until(&network, |status| status.ready == 100).await;
        println!("fill a pool of 100: {:?} each", started.elapsed() / 100);
        let mut pooled = Vec::new();
        let mut leases = Vec::new();
        for _ in 0..100 {
            let started = Instant::now();
            leases.push(network.acquire().await.unwrap());
            pooled.push(started.elapsed());
        }
        print_quantiles("acquire from the pool", &mut pooled);
        let started = Instant::now();
        leases.iter().for_each(|lease| network.release(lease.id));
        until(&network, |status| status.leaving == 0).await;
        println!("remove 100: {:?} each", started.elapsed() / 100);
        network.purge().await.unwrap();

        let network = Network::open(NetworkConfig { pool_size: 0, ..big }).await.unwrap();
        let mut direct = Vec::new();
        for _ in 0..100 {
            let started = Instant::now();
            let lease = network.acquire().await.unwrap();
            direct.push(started.elapsed());
            network.release(lease.id);
            until(&network, |status| status.leaving == 0).await;
        }
        print_quantiles("make directly", &mut direct);
        let started = Instant::now();
        network.purge().await.unwrap();
        println!("purge: {:?}", started.elapsed());
    });
}

fn print_quantiles(what: &str, samples: &mut [Duration]) {
    samples.sort();
    println!("{what}: p50 {:?}, p95 {:?}", samples[samples.len() / 2], samples[samples.len() * 95 / 100]);
}
