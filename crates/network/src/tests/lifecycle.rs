//! Opening, crashing, adopting, closing, purging; bursts; and what is said when something is missing.

use std::collections::BTreeSet;
use std::time::Instant;

use super::*;

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
            assert_eq!(fetch(lease.address, 80).unwrap(), "ok");
            server.join().unwrap();
        }
        let _server = inside(&b, || TcpListener::bind("0.0.0.0:81").map(|l| l.accept().map(drop))).thread();
        let to = b.address;
        run_inside(&a, move || tries(to, 81).expect_err("another network's replica is not reached"));
        one.purge().await.unwrap();
        let server = serve_one(&b);
        assert_eq!(fetch(b.address, 80).unwrap(), "ok", "purging one leaves the other");
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
        assert_eq!(fetch(lease.address, 80).unwrap(), "ok");
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

#[test]
fn a_firewall_that_drops_forwarded_packets_is_named() {
    on_own_machine(|| async {
        let docker = "table ip filter {\n chain FORWARD {\n type filter hook forward priority 0; policy drop;\n }\n}\n";
        let applied = crate::nft::apply(docker).await;
        applied.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "fw")).await.unwrap();
        let capabilities = network.capabilities();
        assert!(capabilities.filter && !capabilities.nat);
        expect_test::expect!["replicas cannot reach the outside: another firewall (Docker's?) drops forwarded packets; let it pass `iptables -I FORWARD -i cvfw -j ACCEPT` and `iptables -I FORWARD -o cvfw -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT`"].assert_eq(&capabilities.warnings.join("\n"));
        network.purge().await.unwrap();
    });
}
