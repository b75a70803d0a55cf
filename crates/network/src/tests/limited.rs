//! What a limited replica reaches of a small internet: what its rules name, whatever it or the names' owners try.

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::sync::{Arc, Mutex};

use cove_model::{EgressHost, EgressRule};
use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio_util::sync::CancellationToken;

use super::traffic::World;
use super::*;
use crate::dns;

/// What the names of this internet lead to: addresses, or another name.
const NAMES: [(&str, &[&str]); 8] = [
    ("pypi.test.", &["203.0.113.5"]),
    ("alias.test.", &["web.other.test."]),
    ("web.other.test.", &["203.0.113.6"]),
    // of an owner who means no good
    ("private.test.", &["db.corp.test."]),
    ("db.corp.test.", &["10.99.0.2"]),
    ("rebind.test.", &["169.254.169.254"]),
    ("azure.test.", &["168.63.129.16"]),
    ("mixed.test.", &["169.254.169.254", "203.0.113.7", "10.99.0.2"]),
];

fn rule(host: &str, ports: &[u16]) -> EgressRule {
    EgressRule { host: EgressHost::new(host).unwrap(), ports: ports.to_vec() }
}

/// A machine with an internet beside it: a resolver and servers at many addresses.
struct Internet {
    world: World,
    /// Names that anybody outside was asked for, as they were written.
    asked: Arc<Mutex<Vec<String>>>,
    shutdown: CancellationToken,
}

impl Internet {
    async fn new(network: &Network, folder: &Path) -> Self {
        let world = World::new(network, folder);
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (listening, ready) = std::sync::mpsc::channel();
        let log = Arc::clone(&asked);
        let _servers = inside(&world.lease, move || {
            for address in ["203.0.113.5", "10.99.0.2", "10.98.0.2", "169.254.169.254", "168.63.129.16"] {
                give_address("lo", address.parse().unwrap());
            }
            for port in [80, 443] {
                let listener = TcpListener::bind(("0.0.0.0", port)).unwrap();
                thread::spawn(move || {
                    listener.incoming().flatten().for_each(|stream| drop(thread::spawn(|| echo(stream))))
                });
            }
            let socket = UdpSocket::bind("0.0.0.0:53").unwrap();
            listening.send(()).unwrap();
            resolve(&socket, &log);
        });
        ready.recv_timeout(DEADLINE).unwrap();
        for net in [[203, 0, 113, 0], [10, 99, 0, 0], [10, 98, 0, 0], [169, 254, 169, 0], [168, 63, 129, 0]] {
            add_route("out", net.into(), 24, Some(world.lease.address));
        }
        let internet = Self { world, asked, shutdown: CancellationToken::new() };
        internet.serve_names(network, folder).await;
        internet
    }

    async fn serve_names(&self, network: &Network, folder: &Path) {
        let resolv_conf = folder.join("resolv.conf");
        fs::write(&resolv_conf, format!("nameserver {}\n", self.world.lease.address)).unwrap();
        let config = dns::DnsConfig {
            subnet: Some(network.subnet()),
            limits: Some(network.limits()),
            resolv_conf,
            ..dns::DnsConfig::new(network.gateway(), Arc::new(|_, _| None))
        };
        let server = dns::DnsServer::bind(config).await.unwrap();
        tokio::spawn(server.run(self.shutdown.clone()));
    }

    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

/// Answers as the owners of names do: everything at once, with little time to live. Names below `below.test.` are all there.
fn resolve(socket: &UdpSocket, log: &Mutex<Vec<String>>) {
    let names: BTreeMap<_, _> = NAMES.into();
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        let asked = Message::from_vec(&buffer[..length]).unwrap();
        let question = asked.queries[0].clone();
        log.lock().unwrap().push(format!("{} {}", question.name(), question.query_type()));
        let mut answer = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        answer.add_query(question.clone());
        let mut name = question.name().to_lowercase().to_string();
        if name.ends_with(".below.test.") {
            let record = RData::A(A::new(203, 0, 113, 8));
            answer.add_answer(Record::from_rdata(question.name().clone(), 1, record));
        }
        while let Some(found) = names.get(name.as_str()) {
            let owner = Name::from_ascii(&name).unwrap();
            let aliases: Vec<_> = found.iter().filter(|one| one.ends_with('.')).collect();
            for address in found.iter().filter(|one| !one.ends_with('.')) {
                answer.add_answer(Record::from_rdata(owner.clone(), 1, RData::A(A(address.parse().unwrap()))));
            }
            let Some(alias) = aliases.first() else { break };
            let target = Name::from_ascii(alias).unwrap();
            answer.add_answer(Record::from_rdata(owner, 1, RData::CNAME(CNAME(target))));
            name = (**alias).to_owned();
        }
        if answer.answers.is_empty() {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
    }
}

/// Runs in a replica while the DNS server goes on.
async fn in_replica<T: Send + 'static>(lease: &NetnsLease, body: impl FnOnce() -> T + Send + 'static) -> T {
    let lease = lease.clone();
    tokio::task::spawn_blocking(move || run_inside(&lease, body)).await.unwrap()
}

/// What a resolver answers in the calling thread's namespace: the code and the addresses.
fn ask_at(server: Ipv4Addr, name: &str, kind: RecordType) -> Option<(ResponseCode, Vec<Ipv4Addr>)> {
    ask_within(DEADLINE, server, name, kind)
}

fn ask_within(
    limit: Duration,
    server: Ipv4Addr,
    name: &str,
    kind: RecordType,
) -> Option<(ResponseCode, Vec<Ipv4Addr>)> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(limit)).unwrap();
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
    socket.send_to(&message.to_vec().unwrap(), (server, 53)).ok()?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    let answer = Message::from_vec(&buffer[..length]).unwrap();
    let addresses = answer.answers.iter().filter_map(|r| if let RData::A(a) = r.data { Some(a.0) } else { None });
    Some((answer.metadata.response_code, addresses.collect()))
}

/// An echo by ICMP from the calling thread's namespace.
fn ping(to: Ipv4Addr, limit: Duration) -> io::Result<()> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::empty(), SockProtocol::Icmp)?;
    let socket = UdpSocket::from(socket);
    socket.set_read_timeout(Some(limit))?;
    socket.send_to(&[8, 0, 0, 0, 0, 0, 0, 1], (to, 0))?;
    socket.recv(&mut [0; 64]).map(drop)
}

fn table(name: &str) -> String {
    let shown =
        std::process::Command::new("nft").args(["list", "table", "inet", &format!("cove_{name}")]).output().unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

const PYPI: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 5);
const ALIAS: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 6);
const MIXED: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 7);
const BELOW: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 8);
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);
const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

/// Every address of 203.0.113.0/24 is a server's.
fn all_of_203(world: &NetnsLease) {
    run_inside(world, || {
        for host in 6..=80 {
            with_kernel(|kernel| {
                let link = kernel.link("lo").unwrap().unwrap();
                let address = Ipv4Addr::new(203, 0, 113, host);
                kernel.wait("add", kernel.handle().address().add(link.index, address.into(), 32).execute()).unwrap();
            });
        }
    });
}

#[test]
fn a_limited_replica_reaches_what_its_rules_name() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "lim")).await.unwrap();
        let internet = Internet::new(&network, folder.path()).await;
        all_of_203(&internet.world.lease);
        let gateway = network.gateway();
        let _server = TcpListener::bind((gateway, 80)).unwrap();
        let rules = [
            rule("pypi.test", &[80]),
            rule("alias.test", &[]),
            rule("*.below.test", &[443]),
            rule("203.0.113.64/26", &[80]),
            rule("10.98.0.0/24", &[443]),
        ];
        let one = network.acquire_limited(&rules).await.unwrap();
        let other = network.acquire_limited(&[rule("alias.test", &[80])]).await.unwrap();
        let free = network.acquire_confined().await.unwrap();
        assert!(crate::layout::limited(network.subnet()).contains(&one.address));
        assert!(!crate::layout::limited(network.subnet()).contains(&free.address));
        in_replica(&free, || {
            fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
            reaches(PYPI, 443).expect("one without rules reaches all of the internet");
            ping(PYPI, DEADLINE).expect("by ICMP too");
        })
        .await;
        in_replica(&one, move || {
            let refused = reaches(PYPI, 80).expect_err("an address that no name was answered with");
            assert_ne!(refused.kind(), io::ErrorKind::TimedOut, "it is told at once");
            for kind in [RecordType::AAAA, RecordType::TXT, RecordType::HTTPS] {
                assert_eq!(ask_at(gateway, "pypi.test.", kind), Some((ResponseCode::NoError, vec![])), "{kind}");
            }
            tries(PYPI, 80).expect_err("a name that was asked for something else");
            assert_eq!(ask_at(gateway, "PyPI.tEst.", RecordType::A), Some((ResponseCode::NoError, vec![PYPI])));
            reaches(PYPI, 80).expect("its own name's address");
            tries(PYPI, 443).expect_err("at another port");
            tries(ALIAS, 80).expect_err("another name's address");
            assert_eq!(ask_at(gateway, "alias.test.", RecordType::A), Some((ResponseCode::NoError, vec![ALIAS])));
            reaches(ALIAS, 80).expect("through an alias");
            reaches(ALIAS, 443).expect("at any port");
            assert_eq!(ask_at(gateway, "a.b.below.test.", RecordType::A), Some((ResponseCode::NoError, vec![BELOW])));
            reaches(BELOW, 443).expect("below a name");
            tries(BELOW, 80).expect_err("at another port");
            reaches(Ipv4Addr::new(203, 0, 113, 70), 80).expect("in a range");
            tries(Ipv4Addr::new(203, 0, 113, 70), 443).expect_err("at another port");
            tries(Ipv4Addr::new(203, 0, 113, 60), 80).expect_err("beside the range");
            reaches(Ipv4Addr::new(10, 98, 0, 2), 443).expect("a private range that a rule names");
            tries(PRIVATE, 443).expect_err("another one");
            tries(gateway, 80).expect_err("this machine");
        })
        .await;
        assert_eq!(internet.asked(), ["pypi.test. A", "alias.test. A", "a.b.below.test. A"], "and nothing else left");
        in_replica(&other, || {
            tries(PYPI, 80).expect_err("what another one was told is not its own");
            tries(ALIAS, 80).expect_err("nor is that of a name of both, before it asked itself");
        })
        .await;
        network.release(one.id);
        network.release(other.id);
        until(&network, |status| status.leaving == 0).await;
        assert!(!table("lim").contains("_any"), "{}", table("lim"));
        internet.shutdown.cancel();
        network.purge().await.unwrap();
    });
}

#[test]
fn ways_around_the_rules_lead_nowhere() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "byp")).await.unwrap();
        let internet = Internet::new(&network, folder.path()).await;
        all_of_203(&internet.world.lease);
        let gateway = network.gateway();
        let resolver = internet.world.lease.address;
        let names =
            ["pypi.test", "private.test", "rebind.test", "azure.test", "mixed.test", "0.0.0.0/1", "168.0.0.0/6"];
        let one = network.acquire_limited(&names.map(|name| rule(name, &[80]))).await.unwrap();
        in_replica(&one, move || {
            for name in ["c2VjcmV0.evil.test.", "secret.pypi.test.", "xpypi.test.", "test.", "."] {
                for kind in [RecordType::A, RecordType::TXT, RecordType::NULL, RecordType::ANY] {
                    assert_eq!(ask_at(gateway, name, kind), Some((ResponseCode::NXDomain, vec![])), "{name} {kind}");
                }
            }
            let asked = ask_within(SILENCE, resolver, "c2VjcmV0.evil.test.", RecordType::TXT);
            assert_eq!(asked, None, "the resolver itself");
        })
        .await;
        assert_eq!(internet.asked(), Vec::<String>::new(), "a name that no rule covers leaves by no way");
        in_replica(&one, move || {
            for name in ["private.test.", "rebind.test.", "azure.test."] {
                assert_eq!(ask_at(gateway, name, RecordType::A), Some((ResponseCode::NoError, vec![])), "{name}");
            }
            assert_eq!(ask_at(gateway, "mixed.test.", RecordType::A), Some((ResponseCode::NoError, vec![MIXED])));
            reaches(MIXED, 80).expect("what of it is of the internet");
            tries(METADATA, 80).expect_err("a name that leads to the machine's metadata");
            reaches(Ipv4Addr::new(168, 63, 129, 17), 80).expect("what a range around Azure's host has");
            tries(AZURE, 80).expect_err("that host, by a name or a range around it");
            tries(PRIVATE, 80).expect_err("a name that leads into a private network, or a range around it");
            fs::write("/proc/sys/net/ipv4/ping_group_range", "0 0").unwrap();
            ping(MIXED, SILENCE).expect_err("what is neither TCP nor UDP");
        })
        .await;
        let named = network.acquire_limited(&[rule("168.63.129.16", &[80])]).await.unwrap();
        in_replica(&named, || reaches(AZURE, 80).expect("a rule that names it")).await;
        // An answer with a thousand addresses under a name of one's own does not fill the kernel.
        let flood = network.acquire_limited(&[rule("*.below.test", &[])]).await.unwrap();
        let limits = network.limits();
        let client = limits.client(flood.address).unwrap();
        let many: Vec<_> = (0..255).map(|last| Ipv4Addr::new(203, 0, 112, last)).collect();
        let all = crate::limits::Ports::All;
        assert!(limits.learn(&client, &many, &all, Duration::ZERO).await);
        assert!(!limits.learn(&client, &[MIXED, PYPI], &all, Duration::ZERO).await, "one too many");
        assert!(limits.learn(&client, &many[..9], &all, Duration::ZERO).await, "what is known goes on");
        internet.shutdown.cancel();
        network.purge().await.unwrap();
    });
}

#[test]
fn the_rules_hold_over_a_restart() {
    on_own_machine(|| async {
        let folder = tempfile::tempdir().unwrap();
        let network = Network::open(config(folder.path(), "res")).await.unwrap();
        let internet = Internet::new(&network, folder.path()).await;
        all_of_203(&internet.world.lease);
        let gateway = network.gateway();
        let rules = [rule("pypi.test", &[80]), rule("203.0.113.64/26", &[80])];
        let lease = network.acquire_limited(&rules).await.unwrap();
        let mut stream = in_replica(&lease, move || {
            assert_eq!(ask_at(gateway, "pypi.test.", RecordType::A), Some((ResponseCode::NoError, vec![PYPI])));
            TcpStream::connect((PYPI, 80)).unwrap()
        })
        .await;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut says = |text: &[u8; 4]| {
            let mut heard = [0; 4];
            stream.write_all(text).and_then(|()| stream.read_exact(&mut heard)).map(|()| heard)
        };
        assert_eq!(&says(b"one!").unwrap(), b"one!");
        // as after `kill -9`: the table is made anew, and nobody has told the rules yet
        let again = Network::open(config(folder.path(), "res")).await.unwrap();
        in_replica(&lease, || {
            tries(PYPI, 80).expect_err("what was allowed before");
            tries(Ipv4Addr::new(203, 0, 113, 70), 80).expect_err("nor a range");
        })
        .await;
        assert_eq!(again.adopt(&[lease.id].into()).kept, std::slice::from_ref(&lease));
        again.limit(lease.id, &rules).await.unwrap();
        assert_eq!(&says(b"two!").unwrap(), b"two!", "a connection that stood goes on");
        in_replica(&lease, || {
            reaches(Ipv4Addr::new(203, 0, 113, 70), 80).expect("the range is back");
            tries(PYPI, 80).expect_err("the name was not asked for again");
        })
        .await;
        internet.shutdown.cancel();
        network.close().await;
        again.purge().await.unwrap();
    });
}
