//! The hostile suite: a program that tries over a hundred ways out of its sandbox, one after the other, beside a neighbour.
//!
//! What is asserted is the outcome as the kernel and this machine show it: the attempts' own answers, the neighbour that
//! answers all the while, frames on the wire, log files, what is left afterwards. Times are printed, not asserted.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    os::linux::net::SocketAddrExt as _,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use cove_model::{Bytes, ReplicaName, ReplicaObservation, ReplicaPhase};
use cove_runtime::{ReplicaSpec, Runtime as _, Sandbox, SandboxEgress, SandboxTier};
use serde_json::json;

use crate::{
    effects,
    fixture::{Host, LIMIT, container, get, spec},
    sandbox::ask,
    shell_image::{add, import_layer, libraries_of},
    wire::Capture,
};

const IMAGE: &str = "cove.test/attacker:latest";

/// Attempts that reach for the internet: a replica with egress may.
const OUTWARD: [&str; 5] = ["internet-tcp", "internet-udp", "internet-icmp", "internet-ipv6", "dns-tunnel"];

/// What filters that a runtime installs itself answer with the end of the process: calls by another architecture's numbers.
const ENDED_BY_A_RUNTIME: [&str; 1] = ["x32-numbers"];

/// Attempts whose child, or whose container, the kernel ends.
const DEADLY: [&str; 6] =
    ["memory-bomb", "disk-fill-root", "disk-fill-tmp", "shared-memory-fill", "file-bomb", "pipe-bomb"];

async fn import(host: &Host) {
    let program = env!("CARGO_BIN_EXE_cove-attacker");
    let mut tar = tar::Builder::new(Vec::new());
    for library in libraries_of(program).into_iter().collect::<BTreeSet<_>>() {
        add(&mut tar, &library[1..], &fs::read(&library).unwrap(), 0o755);
    }
    add(&mut tar, "bin/cove-attacker", &fs::read(program).unwrap(), 0o755);
    add(&mut tar, "attacker-was-here", b"", 0o644);
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o1777);
    tar.append_data(&mut header, "tmp", &b""[..]).unwrap();
    let config = json!({ "Cmd": ["/bin/cove-attacker"] });
    import_layer(&host.images, host.dir.path(), IMAGE, &tar.into_inner().unwrap(), config).await;
}

fn attacker(name: &str, egress: SandboxEgress) -> ReplicaSpec {
    attacker_in(SandboxTier::Hardened, name, egress)
}

fn attacker_in(tier: SandboxTier, name: &str, egress: SandboxEgress) -> ReplicaSpec {
    let mut main = container("main", &[]);
    main.image = IMAGE.to_owned();
    main.resources.memory = Bytes(256 << 20);
    let sandbox = Sandbox { egress, tier, pids_max: 128, disk_bytes: 64 << 20, ..Sandbox::default() };
    ReplicaSpec { sandbox: Some(sandbox), ..spec(name, vec![main]) }
}

/// What the attempts are told of the outside.
struct Told {
    helper: String,
    file: String,
    /// Those of the machine when the attempts began.
    machine: BTreeSet<Ipv4Addr>,
    /// Whoever gets through to the machine is answered.
    _listener: TcpListener,
    addresses: String,
    socket: String,
}

impl Told {
    fn of(&self, attempt: &str) -> &str {
        match attempt {
            "signal-to-the-host" => &self.helper,
            "host-file" => &self.file,
            "machine-and-neighbours" => &self.addresses,
            "abstract-socket" => &self.socket,
            _ => "",
        }
    }
}

/// A neighbour that is asked over and over, until it is told to stop; gives the waits.
async fn probe(neighbour: ReplicaObservation, stop: Arc<AtomicBool>) -> Vec<Duration> {
    let mut waits = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let answer = get(&neighbour, 80, "/healthz").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "the neighbour answers: {answer}");
        waits.push(begun.elapsed());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    waits.sort_unstable();
    waits
}

/// Makes every attempt that is `wanted`; gives their answers.
async fn attack(host: &Host, name: &ReplicaName, told: &Told, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    attack_in(host, (name, &SandboxTier::Hardened), told, wanted, || Ok(())).await
}

/// The same, and looks at the host `after` each.
async fn attack_in(
    host: &Host,
    (name, tier): (&ReplicaName, &SandboxTier),
    told: &Told,
    wanted: impl Fn(&str) -> bool,
    after: impl Fn() -> Result<(), String>,
) -> Vec<(String, String)> {
    let list = ask(host, name, "list\n").await.unwrap();
    let mut answers = Vec::new();
    for attempt in list.split_whitespace().filter(|attempt| wanted(attempt)) {
        let request = format!("{attempt} {}\n", told.of(attempt));
        let answer = match ask(host, name, &request).await {
            Ok(answer) => answer.trim().to_owned(),
            Err(error) => format!("failed {error}"),
        };
        // an ended container is started again, as the contract has it
        host.wait_within(name, effects::start_limit(tier), |seen| seen.is_ready).await;
        if let Err(why) = after() {
            panic!("after {attempt}: {why}");
        }
        answers.push((attempt.to_owned(), answer));
    }
    answers
}

/// For who runs it with `--no-capture`.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn judge(answers: &[(String, String)]) {
    judge_but(answers, &[]);
}

/// `ended`: attempts whose process the kernel ends besides [`DEADLY`].
fn judge_but(answers: &[(String, String)], ended: &[&str]) {
    let is_contained = |(attempt, answer): &&(String, String)| {
        let may_end = DEADLY.contains(&attempt.as_str()) || ended.contains(&attempt.as_str());
        answer.starts_with("contained") || answer.is_empty() && may_end
    };
    let escaped: Vec<_> = answers.iter().filter(|answer| !is_contained(answer)).collect();
    for (attempt, answer) in answers {
        say(&format!("{attempt:28} {answer}"));
    }
    assert!(escaped.is_empty(), "{escaped:#?}");
}

/// The addresses that this machine has now.
fn of_machine() -> BTreeSet<Ipv4Addr> {
    let machine = fs::read_to_string("/proc/net/fib_trie").unwrap();
    let lines: Vec<_> = machine.lines().collect();
    let own = lines.windows(2).filter(|pair| pair[1].contains("host LOCAL"));
    let own = own.filter_map(|pair| pair[0].trim_start_matches([' ', '|', '-']).parse::<Ipv4Addr>().ok());
    own.filter(|address| !address.is_loopback()).collect()
}

async fn outside(host: &Host, attacker: &ReplicaName, neighbour: &ReplicaObservation) -> Told {
    let machine = of_machine();
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let own = machine.iter().map(|address| SocketAddr::from((*address, port)));
    let own: Vec<_> = own.filter(|address| TcpStream::connect_timeout(address, LIMIT).is_ok()).take(8).collect();
    assert!(!own.is_empty(), "the machine itself reaches its addresses");
    let gateway = [80, 443, 8080].map(|port| SocketAddr::from((host.network.gateway(), port)));
    let others = gateway.into_iter().chain([(neighbour.address.unwrap(), 80).into()]);
    let addresses: Vec<_> = others.chain(own).map(|address| address.to_string()).collect();
    Told {
        helper: host.helper_pid(attacker).to_string(),
        file: host.dir.path().join("runtime/replicas").display().to_string(),
        machine,
        _listener: listener,
        addresses: addresses.join(" "),
        socket: format!("cove-test-{}", host.name()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_tries_to_get_out_is_kept_in() {
    suite(Host::new().await, SandboxTier::Hardened).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_tries_to_get_out_of_an_oci_runtime_is_kept_in() {
    suite(Host::with_handlers().await, SandboxTier::Handler("crun".to_owned())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_tries_to_get_out_of_a_machine_is_kept_in() {
    suite(Host::with_machines().await, SandboxTier::Vm).await;
}

/// All attempts, beside a neighbour.
async fn suite(host: Host, tier: SandboxTier) {
    import(&host).await;
    let neighbour = host.run(spec("web--v1-a", vec![container("main", &[])]), |seen| seen.is_ready).await;
    let order = attacker_in(tier.clone(), "pool--v1-a", SandboxEgress::None);
    let name = order.name.clone();
    let capture = Capture::begin(effects::is_leak);
    host.run(order, |seen| seen.is_ready).await;
    let told = outside(&host, &name, &neighbour).await;
    let address = std::os::unix::net::SocketAddr::from_abstract_name(&told.socket).unwrap();
    let _abstract = std::os::unix::net::UnixListener::bind_addr(&address).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let probing = tokio::spawn(probe(neighbour, Arc::clone(&stop)));
    let before = effects::Machine::of_host();
    let look = || {
        let left = if tier == SandboxTier::Vm { capture.frames().len() } else { 0 };
        if left > 0 { Err(format!("{left} frames left")) } else { before.is_as_it_was(&host, &name, &tier) }
    };
    let answers = attack_in(&host, (&name, &tier), &told, |_| true, look).await;
    stop.store(true, Ordering::Relaxed);
    let waits = probing.await.unwrap();
    let at = |share: usize| waits[(waits.len() - 1) * share / 100];
    let (p50, p99, longest) = (at(50), at(99), at(100));
    say(&format!("neighbour: {} answers, p50 {p50:?}, p99 {p99:?}, longest {longest:?}", waits.len()));
    match tier {
        SandboxTier::Hardened => judge(&answers),
        SandboxTier::Handler(_) => judge_but(&answers, &ENDED_BY_A_RUNTIME),
        SandboxTier::Vm => effects::judge(&answers),
    }
    assert!(answers.len() >= 60, "{}", answers.len());
    let logs = fs::read_dir(host.dir.path().join("logs").join(name.as_str())).unwrap().flatten();
    let logged: u64 = logs.map(|file| file.metadata().unwrap().len()).sum();
    assert!(logged < 16 << 20, "{logged} bytes of log after a flood");
    host.runtime().stop(&name, Duration::from_secs(5));
    host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn egress_reaches_no_machine_and_no_neighbour() {
    let answers = egress(Host::new().await, SandboxTier::Hardened).await;
    judge(&answers);
}

#[tokio::test(flavor = "multi_thread")]
async fn egress_of_a_machine_reaches_no_other_and_no_neighbour() {
    let answers = egress(Host::with_machines().await, SandboxTier::Vm).await;
    effects::judge(&answers);
}

/// Attempts at other machines by a replica that may reach the internet.
async fn egress(host: Host, tier: SandboxTier) -> Vec<(String, String)> {
    import(&host).await;
    let neighbour = host.run(spec("web--v1-a", vec![container("main", &[])]), |seen| seen.is_ready).await;
    let order = attacker_in(tier, "pool--v1-b", SandboxEgress::Internet);
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.is_ready).await;
    assert!(seen.address.is_some());
    let wanted =
        ["metadata", "machine-and-neighbours", "multicast", "broadcast", "frames-raw", "raw-icmp", "arp-spoof"];
    let is_wanted = |attempt: &str| {
        let is_network =
            wanted.contains(&attempt) || attempt.starts_with("private-") || attempt.starts_with("shared-1");
        !OUTWARD.contains(&attempt) && is_network || attempt.starts_with("take-") || attempt.ends_with("-route")
    };
    let deadline = Instant::now() + 4 * LIMIT;
    let answers = loop {
        let told = outside(&host, &name, &neighbour).await;
        let answers = attack(&host, &name, &told, is_wanted).await;
        // an address that another program took from this machine meanwhile is one of the internet's, which may be reached
        if of_machine().is_superset(&told.machine) {
            break answers;
        }
        assert!(Instant::now() < deadline, "the addresses of this machine change all the time: {:?}", told.machine);
    };
    assert!(answers.len() >= 12, "{answers:?}");
    host.finish().await;
    answers
}

/// The processes of a replica, by their helper.
fn processes(helper: nix::unistd::Pid) -> Vec<String> {
    let children = fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
    children.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_outlives_its_helper_or_its_stop() {
    let mut host = Host::new().await;
    import(&host).await;
    for (number, way) in ["stopped", "helper killed", "helper killed without a driver"].into_iter().enumerate() {
        let order = attacker(&format!("pool--v1-{number}"), SandboxEgress::None);
        let name = order.name.clone();
        host.run(order, |seen| seen.is_ready).await;
        let helper = host.helper_pid(&name);
        let all = processes(helper);
        assert!(!all.is_empty());
        match way {
            "stopped" => host.runtime().stop(&name, Duration::from_millis(100)),
            "helper killed" => nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap(),
            _ => {
                host.forget();
                nix::sys::signal::kill(helper, nix::sys::signal::Signal::SIGKILL).unwrap();
                host.open().await;
            }
        }
        host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
        let deadline = Instant::now() + LIMIT;
        for process in &all {
            while fs::exists(format!("/proc/{process}")).unwrap() {
                assert!(Instant::now() < deadline, "{way}: process {process} is still there");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        assert!(host.runtime().dial(&name, 80).await.is_err(), "{way}");
        host.runtime().remove(&name);
    }
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_egress_no_frame_leaves() {
    let host = Host::new().await;
    import(&host).await;
    let neighbour = host.run(spec("web--v1-a", vec![container("main", &[])]), |seen| seen.is_ready).await;
    let order = attacker("pool--v1-c", SandboxEgress::None);
    let name = order.name.clone();
    let is_answer = |frame: &[u8]| frame.windows(12).any(|part| part == b"HTTP/1.1 200");
    let (capture, control) = (Capture::begin(effects::is_leak), Capture::begin(is_answer));
    host.run(order, |seen| seen.is_ready).await;
    let told = outside(&host, &name, &neighbour).await;
    let sent = std::net::UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"203.0.113", (host.network.gateway(), 9));
    assert!(sent.is_ok());
    let is_attempt = |attempt: &str| {
        OUTWARD.contains(&attempt)
            || ["metadata", "machine-and-neighbours", "multicast", "broadcast", "raw-icmp", "frames-raw", "arp-spoof"]
                .contains(&attempt)
    };
    let answers = attack(&host, &name, &told, is_attempt).await;
    judge(&answers);
    assert_eq!(answers.len(), OUTWARD.len() + 7);
    assert_eq!(capture.frames().len(), 0, "TCP, UDP, ICMP or DNS left, or a name");
    // an interface of this machine's would have its other end there
    let inside = fs::read_to_string(format!("/proc/{}/net/dev", host.first_process(&name))).unwrap();
    let interfaces: Vec<_> = inside.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    assert_eq!(interfaces, ["lo"]);
    // The capture does see what leaves: a neighbour's answer passes the bridge.
    get(&neighbour, 80, "/healthz").await;
    assert!(!control.frames().is_empty(), "the capture sees nothing at all");
    host.finish().await;
}
