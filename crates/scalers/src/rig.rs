//! What tests share: real servers of their own on free ports, rules made of text, readings as text.
//!
//! **Invariant:** a server ends with its test, by its own process id, and its folder goes with it.
//! **Invariant:** a server that was stopped has no process left, of those that it started neither.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cove_base::Clock;
use cove_scaling::source::Scaler;
pub(crate) use cove_testing::free_port;
use tempfile::TempDir;

use crate::{Context, Scalers, Source, Trigger};

/// Of a reading that must succeed: the machine may be busy with other tests.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
/// Within which a server of a test must be up.
const START_MAX: Duration = Duration::from_secs(240);
/// `nobody`: who runs servers that refuse to run as root.
const NOBODY: u32 = 65534;

/// Asks `is_true` again and again until it says yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut is_true: impl FnMut() -> F) {
    let begun = Instant::now();
    while !is_true().await {
        assert!(begun.elapsed() < START_MAX, "{what}: not so within {START_MAX:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The server's program; Debian keeps some beside the path.
pub(crate) fn program(name: &str) -> PathBuf {
    let debian = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut places: Vec<PathBuf> = debian.map(|version| version.path().join("bin")).collect();
    places.sort();
    places.reverse();
    places.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    places.extend(["/usr/sbin", "/usr/bin", "/usr/lib/rabbitmq/bin"].map(PathBuf::from));
    let found = places.into_iter().map(|place| place.join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("`{name}` is missing; scripts/test installs what the tests need"))
}

/// One real server.
#[derive(Debug)]
pub(crate) struct Server {
    command: Command,
    child: Option<Child>,
    port: u16,
    dir: TempDir,
}

impl Server {
    /// Starts `name` on a free port with the arguments that `args` makes of its folder and port, and waits until it listens.
    pub(crate) async fn start(name: &str, args: impl FnOnce(&Path, u16) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().expect("a folder for the server");
        Self::start_in(dir, name, false, args).await
    }

    /// The same in a folder that was prepared, and as a user that is not root.
    pub(crate) async fn start_in(
        dir: TempDir,
        name: &str,
        is_nobody: bool,
        args: impl FnOnce(&Path, u16) -> Vec<String>,
    ) -> Self {
        let port = free_port();
        let mut command = Command::new(program(name));
        command.args(args(dir.path(), port)).current_dir(dir.path()).stdin(Stdio::null());
        if is_nobody {
            as_nobody(&mut command, dir.path());
        }
        let mut server = Self { command, child: None, port, dir };
        server.restart().await;
        server
    }

    /// A program by its path, in a folder that was prepared, with the environment that `variables` makes of its port.
    pub(crate) async fn start_with(
        dir: TempDir,
        path: &str,
        variables: impl FnOnce(&Path, u16) -> Vec<(String, String)>,
    ) -> Self {
        let port = free_port();
        let mut command = Command::new(path);
        command.envs(variables(dir.path(), port)).current_dir(dir.path()).stdin(Stdio::null());
        let mut server = Self { command, child: None, port, dir };
        server.restart().await;
        server
    }

    /// Starts it again on the same port.
    pub(crate) async fn restart(&mut self) {
        self.stop();
        let log = self.log();
        let file = File::options().create(true).append(true).open(&log).expect("the server's log");
        // every process of the server has the file open, and with it the lock
        file.lock().expect("nobody else writes it");
        self.command.stdout(file.try_clone().expect("one more handle")).stderr(file);
        let mut child = self.command.spawn().expect("the server starts");
        self.command.stdout(Stdio::null()).stderr(Stdio::null());
        let port = self.port;
        until("the server listens", || {
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("the server ended with {status}:\n{log}");
            }
            async move { tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_ok() }
        })
        .await;
        self.child = Some(child);
    }

    /// Ends it at once, as a crash does, and waits until the processes that it started have ended too.
    pub(crate) fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("it is our child");
            child.wait().expect("it is our child");
            File::open(self.log()).and_then(|log| log.lock()).expect("its log is there");
        }
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// Stops it in the middle of whatever it does; its connections stay open.
    pub(crate) fn pause(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn resume(&self) {
        self.signal("-CONT");
    }

    fn signal(&self, signal: &str) {
        let child = self.child.as_ref().expect("it runs");
        let status = Command::new("kill").args([signal, &child.id().to_string()]).status().expect("kill is there");
        assert!(status.success());
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs `command` as a user that is not root, who owns `dir`.
pub(crate) fn as_nobody(command: &mut Command, dir: &Path) {
    chown(dir, Some(NOBODY), Some(NOBODY)).expect("tests run as root");
    command.uid(NOBODY).gid(NOBODY);
}

/// Listens and never answers: a host that hangs.
#[derive(Debug)]
pub(crate) struct Silent {
    listener: TcpListener,
}

impl Silent {
    pub(crate) fn start() -> Self {
        Self { listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has free ports") }
    }

    pub(crate) fn address(&self) -> String {
        self.listener.local_addr().expect("it is bound").to_string()
    }

    pub(crate) fn port(&self) -> u16 {
        self.listener.local_addr().expect("it is bound").port()
    }
}

/// All scalers by the real clock.
pub(crate) fn scalers() -> Scalers {
    Scalers::new(Clock::real())
}

/// All scalers by a clock that stands still: a host that failed rests for as long as the test lasts.
pub(crate) fn scalers_at_rest() -> Scalers {
    Scalers::new(Clock::virtual_at(jiff::Timestamp::UNIX_EPOCH))
}

/// An environment in which the name `inside` leads to loopback.
pub(crate) fn context() -> Context {
    Context { hosts: Arc::new(|name| (name == "inside").then_some(Ipv4Addr::LOCALHOST.into())), tokens: None }
}

/// A rule: `key=value` per line.
pub(crate) fn trigger(scaler: &str, metadata: &str) -> Trigger {
    let pairs = metadata.lines().map(str::trim).filter(|line| !line.is_empty());
    Trigger {
        scaler: scaler.to_owned(),
        parameters: pairs
            .map(|pair| pair.split_once('=').expect("key=value"))
            .map(|(key, value)| (key.trim().to_owned(), value.trim().to_owned()))
            .collect(),
        metadata: BTreeMap::new(),
        identity: None,
        namespace: "group".into(),
        name: "app--1".into(),
    }
}

/// Opens a rule that is right.
pub(crate) fn open(scalers: &Scalers, scaler: &str, metadata: &str) -> Arc<dyn Source> {
    scalers.open(&trigger(scaler, metadata), &context()).expect("the metadata is right")
}

/// Why a rule cannot be opened.
pub(crate) fn wrong(scaler: &str, metadata: &str) -> String {
    match scalers().open(&trigger(scaler, metadata), &context()) {
        Ok(source) => format!("opened: {source:?}"),
        Err(error) => error.to_string(),
    }
}

/// One reading of a rule as the autoscaler takes it: `3 active`, `0 idle`, or what failed.
pub(crate) async fn read(scalers: &Scalers, scaler: &str, metadata: &str) -> String {
    let source = open(scalers, scaler, metadata);
    read_source(&source, &trigger(scaler, metadata), DEADLINE).await
}

/// The same of a source that is open already.
pub(crate) async fn read_source(source: &Arc<dyn Source>, trigger: &Trigger, deadline: Duration) -> String {
    let answer = match tokio::time::timeout(deadline, source.read()).await {
        Err(_) => return "late".to_owned(),
        Ok(Err(error)) => return format!("failed: {error}"),
        Ok(Ok(answer)) => answer,
    };
    let lookup = |key: &str| trigger.get(key).map(str::to_owned);
    let scaler = match Scaler::parse(&trigger.scaler, &lookup) {
        Ok(Some(scaler)) => scaler,
        Ok(None) => return "no such scaler".to_owned(),
        Err(error) => return format!("metadata: {error}"),
    };
    match scaler.measure(&answer) {
        Ok(metric) => format!("{} {}", metric.value, if metric.active { "active" } else { "idle" }),
        Err(error) => format!("unreadable: {error}"),
    }
}
