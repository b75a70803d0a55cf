//! What a confined replica reaches: the internet and its resolver, and nothing of this machine or its neighbours.

use std::net::UdpSocket;
use std::sync::Arc;

use super::traffic::World;
use super::*;
use crate::dns;

/// Where Azure's host answers its machines, and an address beside it.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const BESIDE_AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 17);

#[test]
fn a_confined_replica_reaches_the_internet_and_nothing_else() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "conf")).await.unwrap();
        let world = World::new(&network, folder.path());
        let (listening, ready) = std::sync::mpsc::channel();
        let _internet = inside(&world.lease, move || {
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            // a neighbour of the machine in a private network
            give_address("lo", Ipv4Addr::new(10, 99, 0, 2));
            listening.send(()).unwrap();
            while listener.accept().is_ok() {}
        });
        ready.recv_timeout(DEADLINE).unwrap();
        add_route("out", Ipv4Addr::new(10, 99, 0, 0), 24, Some(world.lease.address));
        let own = [[169, 254, 169, 254], [192, 168, 7, 1], [100, 64, 3, 1]].map(Ipv4Addr::from);
        own.iter().for_each(|address| give_address("lo", *address));
        let gateway = network.gateway();
        let _servers: Vec<_> =
            [53, 80, 443, 8080].map(|port| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap()).into();
        let app = network.acquire().await.unwrap();
        let (one, other) = (network.acquire_confined().await.unwrap(), network.acquire_confined().await.unwrap());
        let neighbours = [app.address, other.address];
        let internet = world.lease.address;
        let _app = inside(&app, || TcpListener::bind("0.0.0.0:80").map(|l| l.accept().map(drop))).thread();
        let _other = inside(&other, || TcpListener::bind("0.0.0.0:80").map(|l| l.accept().map(drop))).thread();
        run_inside(&app, move || {
            reaches(Ipv4Addr::new(10, 99, 0, 2), 80).expect("an app reaches a private network of the machine's");
            reaches(gateway, 80).expect("and the ingress");
        });
        run_inside(&one, move || {
            reaches(internet, 80).expect("the internet is reached");
            reaches(gateway, 53).expect("the resolver is reached");
            for port in [80, 443, 8080] {
                tries(gateway, port).expect_err("no other port of the gateway is");
            }
            for address in own.into_iter().chain([Ipv4Addr::new(192, 0, 2, 1)]) {
                tries(address, 80).expect_err("no other address of the machine is");
            }
            tries(Ipv4Addr::new(10, 99, 0, 2), 80).expect_err("no private network is");
            for neighbour in neighbours {
                tries(neighbour, 80).expect_err("no neighbour is");
            }
        });
        // Frames of another hardware address do not pass its port, even if it could send them.
        let resolver = UdpSocket::bind((gateway, 53)).unwrap();
        let hears = |limit| {
            let mut heard = [0; 16];
            resolver.set_read_timeout(Some(limit)).unwrap();
            resolver.recv(&mut heard).map(|length| heard[..length].to_vec())
        };
        let says = |text: &'static [u8], mac: Mac| {
            run_inside(&one, move || {
                with_kernel(|kernel| {
                    let link = kernel.link("eth0").unwrap().unwrap();
                    let change = LinkUnspec::new_with_index(link.index).address(mac.0.to_vec()).build();
                    kernel.wait("change", kernel.handle().link().change(change).execute()).unwrap();
                });
                UdpSocket::bind("0.0.0.0:0").unwrap().send_to(text, (gateway, 53)).unwrap();
            });
        };
        says(b"forged", other.mac);
        hears(SILENCE).expect_err("a forged frame");
        says(b"true", one.mac);
        assert_eq!(hears(DEADLINE).unwrap(), b"true");
        // Its last octets say what it is, so that the rules know it after a restart too.
        assert!(crate::layout::confined(network.subnet()).contains(&one.address));
        assert!(!crate::layout::confined(network.subnet()).contains(&app.address));
        network.purge().await.unwrap();
    });
}

#[test]
fn azures_host_of_the_machine_is_reached_by_no_replica() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "azure")).await.unwrap();
        let world = World::new(&network, folder.path());
        let (listening, ready) = std::sync::mpsc::channel();
        let _host = inside(&world.lease, move || {
            give_address("lo", AZURE);
            let listener = TcpListener::bind("0.0.0.0:80").unwrap();
            listening.send(()).unwrap();
            while listener.accept().is_ok() {}
        });
        ready.recv_timeout(DEADLINE).unwrap();
        add_route("out", Ipv4Addr::new(168, 63, 129, 0), 24, Some(world.lease.address));
        reaches(AZURE, 80).expect("the machine itself reaches it");
        for replica in [network.acquire().await.unwrap(), network.acquire_confined().await.unwrap()] {
            run_inside(&replica, || {
                reaches(BESIDE_AZURE, 80).expect("the address beside it is reached");
                tries(AZURE, 80).expect_err("it is not");
            });
        }
        network.purge().await.unwrap();
    });
}

#[test]
fn a_confined_replica_is_told_of_no_app() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "cdns")).await.unwrap();
        let gateway = network.gateway();
        let lookup: dns::Lookup = Arc::new(move |_, name| (name == "web.dev.localhost").then_some(gateway));
        let config = dns::DnsConfig { subnet: Some(network.subnet()), ..dns::DnsConfig::new(gateway, lookup) };
        let server = dns::DnsServer::bind(config).await.unwrap();
        let shutdown = tokio_util::sync::CancellationToken::new();
        tokio::spawn(server.run(shutdown.clone()));
        let (app, confined) = (network.acquire().await.unwrap(), network.acquire_confined().await.unwrap());
        let mut codes = Vec::new();
        for lease in [app, confined] {
            let asked = tokio::task::spawn_blocking(move || {
                run_inside(&lease, move || {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.set_read_timeout(Some(DEADLINE)).unwrap();
                    let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x03web\x03dev\x09localhost\0\0\x01\0\x01";
                    socket.send_to(query, (gateway, 53)).unwrap();
                    let mut answer = [0; 512];
                    socket.recv(&mut answer).unwrap();
                    answer[3] & 0xf
                })
            });
            codes.push(asked.await.unwrap());
        }
        assert_eq!(codes, [0, 3], "an app is told, a confined replica hears that there is no such name");
        shutdown.cancel();
        network.purge().await.unwrap();
    });
}
