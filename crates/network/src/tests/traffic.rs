//! Who reaches whom: host, replicas, the world, and the DNS server on the gateway.

use std::net::UdpSocket;
use std::sync::Arc;

use super::*;
use crate::dns;

#[test]
fn a_replica_answers_the_host_at_once() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "one")).await.unwrap();
        for _ in 0..8 {
            let lease = network.acquire().await.unwrap();
            let server = serve_one(&lease);
            assert_eq!(fetch(lease.address, 80).unwrap(), "ok");
            server.join().unwrap();
            network.release(lease.id);
        }
        assert_eq!(connections_begun_anew(), 0, "a lost first ARP or SYN would cost a second");
        until(&network, |status| status.leaving == 0 && status.ready == 3).await;
        network.purge().await.unwrap();
    });
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
            tries(gateway, 8080).expect_err("another port of the gateway is not");
            tries(elsewhere, 8080).expect_err("another address of the machine is not");
            let refused = reaches(to, 80).expect_err("another replica is not reached");
            assert_ne!(refused.kind(), io::ErrorKind::TimedOut, "and says so at once");
            // Even a replica that rewires itself gets nowhere: first straight over the bridge, then by the gateway.
            add_route("eth0", to, 32, None);
            tries(to, 80).expect_err("the port is isolated");
        });
        network.open_gateway_ports(&[8080].into()).await.unwrap();
        run_inside(&a, move || reaches(gateway, 8080).expect("a port that was opened is reached"));
        network.open_gateway_ports(&[].into()).await.unwrap();
        run_inside(&a, move || {
            tries(gateway, 8080).expect_err("and not when it was closed again");
            reaches(gateway, 80).expect("what the configuration names stays open");
        });
        let c = network.acquire().await.unwrap();
        run_inside(&c, move || {
            add_route("eth0", to, 32, Some(gateway));
            tries(to, 80).expect_err("the gateway does not forward between replicas");
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
pub(super) struct World {
    pub(super) lease: NetnsLease,
}

impl World {
    pub(super) fn new(network: &Network, folder: &Path) -> Self {
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
        run_inside(&world.lease, move || tries(to, 80).expect_err("replicas are not reached from outside"));
        network.purge().await.unwrap();
    });
}

#[test]
fn a_replica_resolves_an_app_at_the_gateway() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "dns")).await.unwrap();
        let (gateway, subnet) = (network.gateway(), network.subnet());
        let lookup: dns::Lookup = Arc::new(move |client, name| {
            assert!(subnet.contains(&client));
            (dns::app_label(name, "dev.localhost") == Some("web")).then_some(gateway)
        });
        let server = dns::DnsServer::bind(dns::DnsConfig::new(gateway, lookup)).await.unwrap();
        let shutdown = tokio_util::sync::CancellationToken::new();
        tokio::spawn(server.run(shutdown.clone()));
        let lease = network.acquire().await.unwrap();
        let asked = tokio::task::spawn_blocking(move || {
            run_inside(&lease, move || {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.set_read_timeout(Some(DEADLINE))?;
                // A query for the address of `web`, by hand: id 7, one question.
                let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\0\0\x01\0\x01";
                socket.send_to(query, (gateway, 53))?;
                let mut answer = vec![0; 512];
                let length = socket.recv(&mut answer)?;
                answer.truncate(length);
                io::Result::Ok(answer)
            })
        });
        let answer = asked.await.unwrap().unwrap();
        assert!(answer.ends_with(&gateway.octets()), "{answer:?}");
        shutdown.cancel();
        network.purge().await.unwrap();
    });
}
