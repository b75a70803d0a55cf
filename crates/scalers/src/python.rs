//! Servers in Python for tests: started on a free port, ended with the test.
//!
//! The scripts lie in `tests/servers`; what they import is in `tests/servers/requirements.txt`, installed by
//! `scripts/test` into `$COVE_VENV-scalers` (default `/var/cache/cove/venv-scalers`).
//!
//! **Invariant:** a server prints `ready ...` as its first line, and dies with its test: its input closes.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// A running script.
#[derive(Debug)]
pub(crate) struct Script {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    /// The words after `ready`.
    pub(crate) ready: Vec<String>,
}

impl Script {
    /// Starts `tests/servers/NAME` and waits until it is ready.
    pub(crate) fn start(name: &str, arguments: &[&str]) -> Self {
        Self::start_by(&python(), name, arguments)
    }

    /// The same by Debian's own Python, which has Debian's packages.
    pub(crate) fn start_by_debian(name: &str, arguments: &[&str]) -> Self {
        Self::start_by(Path::new("/usr/bin/python3"), name, arguments)
    }

    fn start_by(python: &Path, name: &str, arguments: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/servers").join(name);
        let mut child = Command::new(python)
            .arg(script)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let input = child.stdin.take().expect("it is piped");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        let mut script = Self { child, input, output, ready: Vec::new() };
        let line = script.line();
        let ready = line.strip_prefix("ready").unwrap_or_else(|| panic!("{name} said {line:?} instead of ready"));
        script.ready = ready.split_whitespace().map(str::to_owned).collect();
        script
    }

    /// The number after `ready`.
    pub(crate) fn port(&self) -> u16 {
        self.ready[0].parse().expect("a port")
    }

    /// Sends a line and waits for the answer, one line.
    pub(crate) fn ask(&mut self, line: &str) -> String {
        writeln!(self.input, "{line}").expect("the script reads");
        self.line()
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the script prints text");
        line.trim_end().to_owned()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        // The test is over; a script that is gone already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A file of an installed package.
pub(crate) fn installed(path: &str) -> PathBuf {
    let python = python();
    let libraries = python.with_file_name("../lib");
    let versions = std::fs::read_dir(libraries).expect("an environment has libraries");
    let mut found = versions.flatten().map(|version| version.path().join("site-packages").join(path));
    found.find(|path| path.exists()).unwrap_or_else(|| panic!("{path} is not installed: see requirements.txt"))
}

fn python() -> PathBuf {
    let venv = std::env::var("COVE_VENV").unwrap_or_else(|_| "/var/cache/cove/venv".to_owned());
    let python = PathBuf::from(format!("{venv}-scalers/bin/python"));
    assert!(python.exists(), "{} is missing: scripts/test installs it", python.display());
    python
}
