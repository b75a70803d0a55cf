//! The OCI runtimes of this machine that sessions may be given to: which there are, and which really run a container.
//!
//! A runtime is offered only after it ran one as sessions have it: ids of their own, no capability, a network that leads
//! nowhere. What was found is kept as long as neither the program nor the machine's boot changes.
//!
//! **Invariant:** a runtime that did not run the trial is never offered.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    probe,
    protocol::{HandlerSpec, write_atomically},
    seccomp,
    shim::{CGROUP_ROOT, IDS_PER_REPLICA},
    wait::wait,
};

/// Longest time of a trial.
const TRIAL_LIMIT: Duration = Duration::from_secs(20);

/// First id of the trial, which nobody else has.
const TRIAL_ID: u32 = 0x6ffe_0000;

/// Code that the trial's program ends with.
const TRIAL_CODE: i32 = 42;

/// Runtimes that are looked for on the PATH, with what each is told before the verb: control groups are ours.
const WELL_KNOWN: [(&str, &[&str]); 4] =
    [("crun", &["--cgroup-manager=disabled"]), ("krun", &["--cgroup-manager=disabled"]), ("runc", &[]), ("youki", &[])];

/// Where programs are looked for.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `[sessions.handlers.NAME]`: an OCI runtime of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HandlerConfig {
    /// The program. Default: that name on the PATH.
    pub path: Option<Utf8PathBuf>,
    /// Arguments before the verb. Default: for a well-known name what it needs, else none.
    pub args: Option<Vec<String>>,
}

/// A runtime and whether it ran the trial.
#[derive(Clone, Debug)]
pub struct Handler {
    /// What users call it.
    pub name: String,
    /// What it ran, or why it cannot be used.
    pub found: Result<String, String>,
    spec: HandlerSpec,
}

/// What a trial came to, and of what.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    stamp: String,
    found: Result<String, String>,
}

/// The runtimes that are configured, and those of [`WELL_KNOWN`] that are installed.
fn installed(configured: &BTreeMap<String, HandlerConfig>) -> Vec<HandlerSpec> {
    let on_path = |name: &str| {
        let mut folders = PATH.split(':').map(|folder| Utf8Path::new(folder).join(name));
        folders.find(|path| fs::metadata(path).is_ok_and(|found| found.is_file() && found.mode() & 0o111 != 0))
    };
    let usual = |name: &str| WELL_KNOWN.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, args)| args);
    let mut all: Vec<HandlerSpec> = Vec::new();
    for (name, config) in configured {
        let program = config.path.clone().or_else(|| on_path(name)).unwrap_or_else(|| name.into());
        let args = config.args.clone().unwrap_or_else(|| usual(name).iter().map(|arg| (*arg).to_owned()).collect());
        all.push(HandlerSpec { name: name.clone(), program, args });
    }
    for (name, args) in WELL_KNOWN.iter().filter(|(name, _)| !configured.contains_key(*name)) {
        if let Some(program) = on_path(name) {
            let args = args.iter().map(|arg| (*arg).to_owned()).collect();
            all.push(HandlerSpec { name: (*name).to_owned(), program, args });
        }
    }
    all
}

/// Finds them and lets each run a container that ends at once, unless `memory` says what came of that before. Blocks.
#[must_use]
pub fn find(configured: &BTreeMap<String, HandlerConfig>, memory: Option<&Utf8Path>) -> Vec<Handler> {
    let known: BTreeMap<String, Remembered> = memory
        .and_then(|path| fs::read(path).ok())
        .and_then(|text| serde_json::from_slice(&text).ok())
        .unwrap_or_default();
    let mut remembered = BTreeMap::new();
    let mut all = Vec::new();
    for spec in installed(configured) {
        let stamp = stamp(&spec);
        let found = match known.get(&spec.name).filter(|known| known.stamp == stamp && known.found.is_ok()) {
            Some(known) => known.found.clone(),
            None => try_out(&spec),
        };
        remembered.insert(spec.name.clone(), Remembered { stamp, found: found.clone() });
        all.push(Handler { name: spec.name.clone(), found, spec });
    }
    if let Some(path) = memory
        && remembered != known
        && let Ok(text) = serde_json::to_vec(&remembered)
    {
        // only a matter of time: the next start tries again
        let _ = write_atomically(path, &text);
    }
    all
}

impl Handler {
    /// What the helper is told, where it can be used.
    pub(crate) fn usable(&self) -> Option<&HandlerSpec> {
        self.found.is_ok().then_some(&self.spec)
    }
}

fn stamp(spec: &HandlerSpec) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let file = fs::metadata(&spec.program).map(|file| (file.len(), file.mtime(), file.ino())).unwrap_or_default();
    format!("{} {} {:?} {file:?}", boot.trim(), spec.program, spec.args)
}

/// Lets a runtime run one container.
fn try_out(spec: &HandlerSpec) -> Result<String, String> {
    if !fs::metadata(&spec.program).is_ok_and(|found| found.is_file()) {
        return Err(format!("`{}` is not there", spec.program));
    }
    let spec = spec.clone();
    // where it runs is as in a helper: mounts and a network of its own, and no control groups to be seen
    probe::on_a_thread(move || {
        let words = |error: nix::Error| error.to_string();
        unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNET).map_err(words)?;
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).map_err(words)?;
        let dir = Utf8Path::new(CGROUP_ROOT);
        let options = Some("mode=711,size=1m");
        mount(Some("tmpfs"), dir.as_std_path(), Some("tmpfs"), MsFlags::empty(), options).map_err(words)?;
        write_bundle(dir).map_err(|error| format!("failed to make a container to try: {error}"))?;
        run(&spec, dir)
    })
}

fn write_bundle(dir: &Utf8Path) -> std::io::Result<()> {
    let root = dir.join("root");
    for name in ["", "proc", "dev"] {
        fs::create_dir(root.join(name))?;
        fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
        chown(root.join(name), Some(TRIAL_ID), Some(TRIAL_ID))?;
    }
    fs::write(root.join("trial"), trial_program())?;
    fs::set_permissions(root.join("trial"), fs::Permissions::from_mode(0o755))?;
    let none: [&str; 0] = [];
    let ids = json!([{ "containerID": 0, "hostID": TRIAL_ID, "size": IDS_PER_REPLICA }]);
    let kinds = ["user", "pid", "mount", "ipc", "uts"].map(|kind| json!({ "type": kind }));
    let config = json!({
        "ociVersion": "1.0.2",
        "root": { "path": root, "readonly": false },
        "hostname": "trial",
        "process": {
            "terminal": false, "user": { "uid": 0, "gid": 0 }, "args": ["/trial"], "env": [], "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": { "bounding": none, "effective": none, "permitted": none, "inheritable": none,
                "ambient": none },
        },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755", "size=64k"] },
        ],
        "linux": { "namespaces": kinds, "uidMappings": ids, "gidMappings": ids, "seccomp": seccomp::profile(true),
            "maskedPaths": ["/proc/kcore"] },
    });
    fs::write(dir.join("config.json"), config.to_string())
}

fn run(spec: &HandlerSpec, dir: &Utf8Path) -> Result<String, String> {
    let (state, log) = (dir.join("state"), dir.join("log"));
    let mut command = Command::new(spec.program.as_str());
    command.env_clear().env("PATH", PATH).current_dir("/");
    command.args(["--root", state.as_str(), "--log", log.as_str()]).args(&spec.args);
    command.args(["run", "--bundle", dir.as_str(), "cove-trial"]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begun = Instant::now();
    let child = command.spawn().map_err(|error| format!("failed to run it: {error}"))?;
    let status = wait(child, TRIAL_LIMIT).map_err(|error| error.to_string())?;
    let status = status.ok_or_else(|| format!("a container did not end within {} s", TRIAL_LIMIT.as_secs()))?;
    if status.code() == Some(TRIAL_CODE) {
        return Ok(format!("ran a container in {} ms", begun.elapsed().as_millis()));
    }
    let said = fs::read_to_string(&log).unwrap_or_default();
    let last = said.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing of why");
    Err(format!("it ran no container ({status}): {}", last.chars().take(300).collect::<String>()))
}

/// A program of a few instructions that ends with [`TRIAL_CODE`] and needs nothing of any image.
fn trial_program() -> Vec<u8> {
    // x86-64: mov edi, 42; mov eax, 231 (exit_group); syscall. arm64: mov x0, 42; mov x8, 94; svc 0.
    let (machine, code): (u8, &[u8]) = match std::env::consts::ARCH {
        "aarch64" => (0xb7, &[0x40, 0x05, 0x80, 0xd2, 0xc8, 0x0b, 0x80, 0xd2, 0x01, 0x00, 0x00, 0xd4]),
        _ => (0x3e, &[0xbf, 42, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05]),
    };
    const BASE: u64 = 0x40_0000;
    const HEAD: u64 = 64 + 56;
    let size = HEAD + code.len() as u64;
    let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, machine, 0, 1, 0, 0, 0]);
    file.extend((BASE + HEAD).to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend([0; 8]);
    file.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 64, 0, 0, 0, 0, 0]);
    file.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for number in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(number.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_is_offered_after_it_ran_a_container_and_not_before() {
        let dir = tempfile::tempdir().unwrap();
        let memory = Utf8Path::from_path(dir.path()).unwrap().join("handlers.json");
        let fake = Utf8Path::from_path(dir.path()).unwrap().join("fake");
        fs::write(&fake, "#!/bin/sh\nexit 0\n").unwrap();
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).unwrap();
        let config = |path: &str| HandlerConfig { path: Some(path.into()), args: None };
        let configured =
            BTreeMap::from([("fake".to_owned(), config(fake.as_str())), ("none".to_owned(), config("/nowhere"))]);
        let all = find(&configured, Some(&memory));
        let of = |name: &str| all.iter().find(|handler| handler.name == name);
        let crun = of("crun").expect("`apt-get install crun`: the test tries a real runtime");
        assert_eq!(crun.found.as_ref().err(), None);
        assert!(of("fake").unwrap().found.as_ref().unwrap_err().contains("ran no container"), "{all:?}");
        assert!(of("none").unwrap().usable().is_none());
        assert_eq!(find(&configured, Some(&memory))[2].found, crun.found, "what worked is not tried again");
    }
}
