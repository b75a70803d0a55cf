//! A server of a test: free ports, a folder of its own, purged at the end.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

const COVE: &str = env!("CARGO_BIN_EXE_cove");
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Short waits; an image that cannot be had fails soon.
const CONFIG: &str = r#"
[api]
retry_after = 0
[ingress]
drain_grace = "20s"
[controller]
drain_period = "1s"
fresh_hold = "1s"
provisioning_deadline = "30s"
[autoscaler]
save_after = "0s"
"#;

/// A running server.
pub(crate) struct Server {
    dir: tempfile::TempDir,
    child: Child,
    http: SocketAddr,
}

/// What a command said.
pub(crate) struct Ran {
    pub(crate) status: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Runs `cove` with the words of `line`.
pub(crate) fn cove(data_dir: &Path, line: &str) -> Ran {
    let mut command = Command::new(COVE);
    command.args(line.split_whitespace()).env("COVE_DATA_DIR", data_dir).stdin(Stdio::null());
    for name in ["COVE_ENDPOINT", "COVE_CA", "COVE_CLIENT_ID", "COVE_CLIENT_SECRET", "AZURE_DEFAULTS_GROUP"] {
        command.env_remove(name);
    }
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ran { status: output.status.code(), stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

/// Starts `cove` with both outputs piped.
pub(crate) fn spawn(line: &str) -> Child {
    let mut command = Command::new(COVE);
    command.args(line.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::start_with(CONFIG)
    }

    /// One that soon gives up apps that do not come up.
    pub(crate) fn start_impatient() -> Self {
        Self::start_with(&CONFIG.replace("provisioning_deadline = \"30s\"", "provisioning_deadline = \"5s\""))
    }

    fn start_with(config: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cove.toml"), config).unwrap();
        let (child, http) = launch(dir.path(), &[]);
        Self { dir, child, http }
    }

    /// A new server takes over from the one that runs, which is given back.
    pub(crate) fn take_over(&mut self) -> Child {
        let (child, http) = launch(self.dir.path(), &["--take-over"]);
        assert_eq!(http, self.http, "the ports stay");
        std::mem::replace(&mut self.child, child)
    }

    /// A new server with these lines in its file, which fails after it was given the state.
    pub(crate) fn fail_to_take_over(&self, lines: &str) -> Ran {
        let file = self.file("broken.toml", &format!("{CONFIG}{lines}"));
        let line =
            format!("serve --take-over --api 127.0.0.1:0 --http 127.0.0.1:0 --https 127.0.0.1:0 --config {file}");
        self.run(&line)
    }

    /// Where apps are reached.
    pub(crate) fn http(&self) -> SocketAddr {
        self.http
    }

    /// `kill -9`, and a new server on the same data.
    pub(crate) fn kill_and_start(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        (self.child, self.http) = launch(self.dir.path(), &[]);
    }

    /// Writes a file; its path.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Port of the ingress.
    pub(crate) fn http_port(&self) -> u16 {
        self.http.port()
    }

    /// What the server wrote.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub(crate) fn run(&self, line: &str) -> Ran {
        cove(&self.dir.path().join("data"), line)
    }

    /// Runs a command that must succeed; its stdout.
    pub(crate) fn ok(&self, line: &str) -> String {
        let Ran { status, stdout, stderr } = self.run(line);
        assert_eq!(status, Some(0), "cove {line}\n{stdout}\n{stderr}\n{}", self.log());
        stdout
    }

    /// `GET` through the ingress: status and body.
    pub(crate) fn get(&self, host: &str, path: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.http).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {host}\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let status = answer.split_whitespace().nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        (status, body)
    }
}

fn launch(dir: &Path, more: &[&str]) -> (Child, SocketAddr) {
    let data = dir.join("data");
    let log = std::fs::OpenOptions::new().append(true).create(true).open(dir.join("log")).unwrap();
    let mut command = Command::new(COVE);
    command.arg("serve").arg("--config").arg(dir.join("cove.toml")).arg("--data-dir").arg(&data);
    for way in ["--api", "--http", "--https"] {
        command.args([way, "127.0.0.1:0"]);
    }
    command.args(more);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
    let stdout = child.stdout.take().unwrap();
    let (told, ready) = mpsc::channel();
    thread::spawn(move || {
        let line = BufReader::new(stdout).lines().map_while(Result::ok).find(|line| line.starts_with("cove ready"));
        told.send(line.is_some())
    });
    if !matches!(ready.recv_timeout(READY_LIMIT), Ok(true)) {
        let _gone = child.kill();
        let _status = child.wait();
        panic!("the server is not ready:\n{}", std::fs::read_to_string(dir.join("log")).unwrap_or_default());
    }
    let endpoints = std::fs::read_to_string(data.join("endpoints.json")).unwrap();
    let endpoints: serde_json::Value = serde_json::from_str(&endpoints).unwrap();
    let port = endpoints["http"].as_str().unwrap().rsplit_once(':').unwrap().1.parse().unwrap();
    (child, SocketAddr::from(([127, 0, 0, 1], port)))
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _gone = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _status = self.child.wait();
        let data = self.dir.path().join("data");
        if data.join("cove.db").exists() {
            let purged = cove(&data, "purge --yes");
            if purged.status != Some(0) && !thread::panicking() {
                panic!("the server's replicas were not purged: {}", purged.stderr);
            }
        }
    }
}
