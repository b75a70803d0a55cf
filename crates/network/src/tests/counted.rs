//! How much of the machine's connection table a session can take.

use std::cell::Cell;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cove_model::{EgressHost, EgressRule};

use super::traffic::World;
use super::*;
use crate::nft::{self, CONNECTIONS_MAX};

/// Connections that are tracked in the calling thread's namespace.
fn tracked() -> u32 {
    fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_count").unwrap().trim().parse().unwrap()
}

/// Connections of UDP, one for each port of `to` and each of our own, until `enough`.
fn flood(to: Ipv4Addr, enough: impl Fn() -> bool) {
    loop {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        for port in 1024..9216 {
            if enough() {
                return;
            }
            let _refused = socket.send_to(b"x", (to, port));
        }
    }
}

/// A network, and the address of a server outside at port 80.
async fn network_beside_a_server(folder: &Path, name: &str) -> (Arc<Network>, Ipv4Addr) {
    let network = Network::open(config(folder, name)).await.unwrap();
    let world = World::new(&network, folder);
    let (listening, ready) = std::sync::mpsc::channel();
    let _server = inside(&world.lease, move || {
        let listener = TcpListener::bind("0.0.0.0:80").unwrap();
        listening.send(()).unwrap();
        while listener.accept().is_ok() {}
    });
    ready.recv_timeout(DEADLINE).unwrap();
    (network, world.lease.address)
}

/// `attacker` takes all that it may have of the table, and no more; `other` has its own.
fn is_bounded(attacker: &NetnsLease, other: &NetnsLease, internet: Ipv4Addr) {
    run_inside(attacker, move || reaches(internet, 80).expect("before it took all it may have"));
    let (before, done) = (tracked(), Arc::new(AtomicBool::new(false)));
    let flooding = inside(attacker, {
        let done = Arc::clone(&done);
        move || flood(internet, || done.load(Ordering::Relaxed))
    });
    let begun = Instant::now();
    while tracked() < before + CONNECTIONS_MAX * 9 / 10 {
        assert!(begun.elapsed() < DEADLINE, "only {} connections came about", tracked() - before);
        thread::yield_now();
    }
    // some more may be on their way into the table while it is looked at
    let (full, most) = (Instant::now(), before + CONNECTIONS_MAX + 64);
    while full.elapsed() < SILENCE * 2 {
        let now = tracked();
        assert!(now <= most, "{} connections of one replica", now - before);
        thread::yield_now();
    }
    run_inside(attacker, move || tries(internet, 80).expect_err("none is left for it"));
    run_inside(other, move || reaches(internet, 80).expect("its neighbour has its own"));
    done.store(true, Ordering::Relaxed);
    flooding.join().unwrap();
}

#[test]
fn a_confined_replica_cannot_fill_the_table_of_connections() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (network, internet) = network_beside_a_server(folder.path(), "cnt").await;
        let (one, other) = (network.acquire_confined().await.unwrap(), network.acquire_confined().await.unwrap());
        is_bounded(&one, &other, internet);
        network.purge().await.unwrap();
    });
}

#[test]
fn nor_can_a_limited_one_by_what_its_rules_allow() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (network, internet) = network_beside_a_server(folder.path(), "lcnt").await;
        let all = [EgressRule { host: EgressHost::new("0.0.0.0/0").unwrap(), ports: vec![] }];
        let (one, other) = (network.acquire_limited(&all).await.unwrap(), network.acquire_limited(&all).await.unwrap());
        is_bounded(&one, &other, internet);
        network.purge().await.unwrap();
    });
}

#[test]
fn the_table_takes_more_of_an_app() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (network, internet) = network_beside_a_server(folder.path(), "acnt").await;
        let app = network.acquire().await.unwrap();
        let sent = Cell::new(0);
        run_inside(&app, move || flood(internet, || sent.replace(sent.get() + 1) >= CONNECTIONS_MAX + 200));
        assert!(tracked() > CONNECTIONS_MAX + 100, "{} connections of an app", tracked());
        network.purge().await.unwrap();
    });
}

#[test]
fn questions_of_confined_replicas_take_no_place_in_the_table() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "unt")).await.unwrap();
        let gateway = network.gateway();
        let resolver = UdpSocket::bind((gateway, 53)).unwrap();
        thread::spawn(move || {
            let mut asked = [0; 16];
            while let Ok((length, from)) = resolver.recv_from(&mut asked) {
                resolver.send_to(&asked[..length], from).unwrap();
            }
        });
        let mut rise = Vec::new();
        for lease in [network.acquire().await.unwrap(), network.acquire_confined().await.unwrap()] {
            let before = tracked();
            run_inside(&lease, move || {
                for _ in 0..50 {
                    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                    socket.set_read_timeout(Some(DEADLINE)).unwrap();
                    socket.send_to(b"?", (gateway, 53)).unwrap();
                    assert_eq!(socket.recv(&mut [0; 16]).unwrap(), 1);
                }
            });
            rise.push(tracked().saturating_sub(before));
        }
        assert!(rise[0] > 25, "an app's are tracked: {rise:?}");
        assert_eq!(rise[1], 0, "{rise:?}");
        network.purge().await.unwrap();
    });
}

/// Has `nft` refuse to count connections, as on a kernel without; in the calling thread's mount namespace.
fn forget_how_to_count(folder: &Path) {
    let (program, real, fake) = (nft::find().unwrap(), folder.join("nft.real"), folder.join("nft.fake"));
    fs::copy(&program, &real).unwrap();
    let script = format!(
        "#!/bin/sh\nasked=$(cat)\ncase $asked in *'ct count'*) echo 'no such file' >&2; exit 1;; esac\n\
         printf '%s\\n' \"$asked\" | {} \"$@\"\n",
        real.display()
    );
    fs::write(&fake, script).unwrap();
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
    mount(Some(&fake), &program, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

#[test]
fn nobody_is_let_out_confined_where_connections_cannot_be_counted() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let (able, internet) = network_beside_a_server(folder.path(), "able").await;
        assert_eq!(able.capabilities().warnings, Vec::<String>::new());
        let earlier = able.acquire_confined().await.unwrap();
        run_inside(&earlier, move || reaches(internet, 80).expect("one that is counted is let out"));
        able.close().await;
        forget_how_to_count(folder.path());
        let network = Network::open(config(folder.path(), "able")).await.unwrap();
        let capabilities = network.capabilities();
        assert!(capabilities.filter && capabilities.nat && !capabilities.bounds_connections, "{capabilities:?}");
        let warning = &capabilities.warnings[0];
        assert!(warning.contains("sessions get no egress") && warning.contains("nf_conncount"), "{warning}");
        for refused in [network.acquire_confined().await, network.acquire_limited(&[]).await] {
            assert!(refused.unwrap_err().to_string().contains("nf_conncount"));
        }
        let app = network.acquire().await.unwrap();
        run_inside(&app, move || reaches(internet, 80).expect("apps have their network"));
        run_inside(&earlier, move || tries(internet, 80).expect_err("one of an earlier run begins nothing new"));
        network.purge().await.unwrap();
    });
}
