//! A driver of its own for each test, on this host, and the values that tests order.
//!
//! **Invariant:** everything a test made is gone after it, also when it failed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_images::{ImageStore, SAMPLE_IMAGE, StoreConfig};
use cove_model::{
    Bytes, Container, EnvValue, EnvVar, MilliCpu, ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId, Resources,
    RevisionKey, RevisionName, Scale, SystemEvent, Template,
};
use cove_network::{Network, NetworkConfig};
use cove_runtime::{ReplicaSpec, RestartPolicy, Runtime, RuntimeError, logs::parse_cri_line};
use cove_runtime_oci::{MachinesConfig, OciConfig, OciRuntime, ShareBinding, SharesConfig};
use cove_vm::guest::GuestOptions;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::mpsc,
    time::timeout,
};

/// Longest wait for anything; the machine may be busy with other tests.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A driver with its own network and folders, all of it removed at the end.
pub(crate) struct Host {
    pub(crate) dir: tempfile::TempDir,
    name: String,
    pub(crate) network: Arc<Network>,
    pub(crate) images: ImageStore,
    runtime: Option<Arc<OciRuntime>>,
    pub(crate) events: mpsc::Receiver<SystemEvent>,
    /// Shares that are not below the root, from the next [`Host::open`] on.
    pub(crate) bindings: Vec<ShareBinding>,
    /// OCI runtimes are looked for, from the next [`Host::open`] on.
    pub(crate) has_handlers: bool,
    /// Sessions may be machines, from the next [`Host::open`] on.
    pub(crate) has_machines: bool,
}

impl Host {
    pub(crate) async fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("r{:04x}{number:x}", std::process::id() & 0xffff);
        let mut config = NetworkConfig::new(dir.path().join("network"), &name);
        config.pool_size = 2;
        let network = Network::open(config).await.unwrap();
        let images =
            ImageStore::open(Utf8Path::from_path(dir.path()).unwrap().join("images").as_path(), StoreConfig::default())
                .unwrap();
        let mut host = Self {
            dir,
            name,
            network,
            images,
            runtime: None,
            events: mpsc::channel(1).1,
            bindings: Vec::new(),
            has_handlers: false,
            has_machines: false,
        };
        host.open().await;
        host
    }

    /// A host whose OCI runtimes can be used.
    pub(crate) async fn with_handlers() -> Self {
        let mut host = Self::new().await;
        host.forget();
        host.has_handlers = true;
        host.open().await;
        host
    }

    /// A host whose sessions may be machines. Needs Debian's `qemu-system-x86` and `erofs-utils`; the guest is built when it
    /// is not there yet.
    pub(crate) async fn with_machines() -> Self {
        let options = GuestOptions { cache: cove_vm::guest::CACHE.into(), is_forced: false };
        let built = tokio::task::spawn_blocking(move || match cove_vm::guest::find(&options.cache) {
            Ok(guest) => Ok(guest),
            Err(_) => cove_vm::guest::build(&options, &|_| {}),
        });
        built.await.unwrap().expect("the guest can be built");
        let mut host = Self::new().await;
        host.forget();
        host.has_machines = true;
        host.open().await;
        host
    }

    pub(crate) async fn open(&mut self) {
        let (sender, events) = mpsc::channel(1000);
        let path = |name: &str| Utf8Path::from_path(self.dir.path()).unwrap().join(name);
        let mut config = OciConfig::new(path("runtime"), path("logs"), &self.name);
        // In the example the helper is the example itself, the default.
        if let Some(program) = option_env!("CARGO_BIN_EXE_cove-shim") {
            config.shim_program = vec![program.to_owned()];
        }
        config.helpers_spare = 2;
        config.shares = self.shares();
        config.handlers = self.has_handlers.then(BTreeMap::new);
        config.machines = self.has_machines.then(|| MachinesConfig::new(&path("disks")));
        let runtime = OciRuntime::open(config, self.images.clone(), Arc::clone(&self.network), sender).await.unwrap();
        self.runtime = Some(runtime);
        self.events = events;
    }

    /// Where shares are.
    pub(crate) fn shares(&self) -> SharesConfig {
        let dir = Utf8Path::from_path(self.dir.path()).unwrap();
        SharesConfig { bindings: self.bindings.clone(), ..SharesConfig::new(dir) }
    }

    /// Part of the names of all that it makes.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn runtime(&self) -> &OciRuntime {
        self.runtime.as_ref().unwrap()
    }

    /// Ends the driver as a `kill -9` of the server would, without a word to anybody.
    pub(crate) fn forget(&mut self) {
        self.runtime = None;
    }

    /// The process that owns a replica, found by the socket it listens on.
    pub(crate) fn helper_pid(&self, replica: &ReplicaName) -> nix::unistd::Pid {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket, sockopt};
        use std::os::fd::AsRawFd as _;
        let dir = self.dir.path().join("runtime/replicas").join(replica.as_str());
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(&dir.join("shim.sock")).unwrap()).unwrap();
        nix::unistd::Pid::from_raw(getsockopt(&fd, sockopt::PeerCredentials).unwrap().pid())
    }

    /// The first process of its container: the helper's only child, once who made it has ended.
    pub(crate) fn first_process(&self, replica: &ReplicaName) -> nix::unistd::Pid {
        let helper = self.helper_pid(replica);
        let deadline = Instant::now() + LIMIT;
        loop {
            let children = std::fs::read_to_string(format!("/proc/{helper}/task/{helper}/children")).unwrap();
            if let [one] = children.split_whitespace().collect::<Vec<_>>()[..] {
                return nix::unistd::Pid::from_raw(one.parse().unwrap());
            }
            assert!(Instant::now() < deadline, "not one child but these: {children}");
            std::thread::yield_now();
        }
    }

    /// What a container wrote, line by line; nothing when it wrote nothing yet.
    pub(crate) fn log(&self, replica: &ReplicaName, container: &str) -> Vec<String> {
        let text = std::fs::read(self.log_path(replica, container)).unwrap_or_default();
        let lines = text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        lines.map(|line| String::from_utf8_lossy(parse_cri_line(line).unwrap().text).into_owned()).collect()
    }

    /// What a container wrote, once it wrote this line.
    pub(crate) async fn wait_log(&self, replica: &ReplicaName, container: &str, line: &str) -> Vec<String> {
        let find = async {
            loop {
                let all = self.log(replica, container);
                if all.iter().any(|found| found == line) {
                    return all;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        match timeout(LIMIT, find).await {
            Ok(all) => all,
            Err(_) => panic!("{line} is missing in {:#?}", self.log(replica, container)),
        }
    }

    /// Orders a replica, starts it and waits until it is as wanted.
    pub(crate) async fn run(
        &self,
        spec: ReplicaSpec,
        wanted: impl Fn(&ReplicaObservation) -> bool,
    ) -> ReplicaObservation {
        let name = spec.name.clone();
        self.runtime().prepare(spec).unwrap();
        self.runtime().start(&name).unwrap();
        self.wait(&name, wanted).await
    }

    /// Orders a replica that cannot run and waits until it failed. Preparing may have failed before it is to start.
    pub(crate) async fn run_in_vain(&self, spec: ReplicaSpec) -> ReplicaObservation {
        let name = spec.name.clone();
        self.runtime().prepare(spec).unwrap();
        match self.runtime().start(&name) {
            Ok(()) | Err(RuntimeError::Gone(_)) => {}
            Err(error) => panic!("{error}"),
        }
        self.wait(&name, |seen| seen.phase == ReplicaPhase::Failed).await
    }

    fn log_path(&self, replica: &ReplicaName, container: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.dir.path()).unwrap().join(format!("logs/{replica}/{container}.log"))
    }

    /// Waits until the replica is as wanted.
    pub(crate) async fn wait(
        &self,
        name: &ReplicaName,
        wanted: impl Fn(&ReplicaObservation) -> bool,
    ) -> ReplicaObservation {
        self.wait_within(name, LIMIT, wanted).await
    }

    /// The same with another limit.
    pub(crate) async fn wait_within(
        &self,
        name: &ReplicaName,
        limit: Duration,
        wanted: impl Fn(&ReplicaObservation) -> bool,
    ) -> ReplicaObservation {
        let mut changes = self.runtime().observations().subscribe();
        let find = async {
            loop {
                let all = self.runtime().observations().snapshot();
                let found = all.iter().flat_map(|(_, all)| all.iter()).find(|seen| seen.name == *name);
                if let Some(found) = found.filter(|seen| wanted(seen)) {
                    return found.clone();
                }
                changes.next().await;
            }
        };
        match timeout(limit, find).await {
            Ok(found) => found,
            Err(_) => panic!("{name}: {:?}", self.runtime().observations().snapshot()),
        }
    }

    pub(crate) async fn finish(mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.purge().await;
        }
        self.network.purge().await.unwrap();
    }
}

impl Drop for Host {
    /// Also when the test failed.
    fn drop(&mut self) {
        let Some(runtime) = self.runtime.take() else { return };
        let network = Arc::clone(&self.network);
        tokio::task::block_in_place(|| {
            tokio::runtime::Handle::current().block_on(async {
                runtime.purge().await;
                let _ = network.purge().await;
            });
        });
    }
}

pub(crate) fn container(name: &str, env: &[(&str, &str)]) -> Container {
    Container {
        name: name.to_owned(),
        image: SAMPLE_IMAGE.to_owned(),
        command: Vec::new(),
        args: Vec::new(),
        env: env
            .iter()
            .map(|(name, value)| EnvVar { name: (*name).to_owned(), value: EnvValue::Plain((*value).to_owned()) })
            .collect(),
        resources: Resources { cpu: MilliCpu(500), memory: Bytes(128 << 20), ephemeral_storage: Bytes(1 << 30) },
        probes: Vec::new(),
        volume_mounts: Vec::new(),
    }
}

pub(crate) fn spec(name: &str, containers: Vec<Container>) -> ReplicaSpec {
    let app = ResourceId::resource("s", "rg", "Microsoft.App/containerApps", "web").unwrap();
    ReplicaSpec {
        name: ReplicaName::new(name).unwrap(),
        revision: RevisionKey { app, name: RevisionName::of("web", "v1").unwrap() },
        environment: ResourceId::resource("s", "rg", "Microsoft.App/managedEnvironments", "env").unwrap(),
        environment_domain: "env.localhost".to_owned(),
        restart_generation: 0,
        template: Arc::new(Template {
            init_containers: Vec::new(),
            containers,
            volumes: Vec::new(),
            scale: Scale::default(),
            termination_grace_period_secs: 30,
        }),
        target_port: Some(80),
        secrets: BTreeMap::new(),
        platform_env: BTreeMap::new(),
        logins: Vec::new(),
        storages: BTreeMap::new(),
        restart: RestartPolicy::default(),
        sandbox: None,
    }
}

pub(crate) async fn get(seen: &ReplicaObservation, port: u16, path: &str) -> String {
    let ask = async {
        let mut stream = TcpStream::connect((seen.address.unwrap(), port)).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text).await;
        text
    };
    timeout(LIMIT, ask).await.unwrap()
}
