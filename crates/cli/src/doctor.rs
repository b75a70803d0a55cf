//! `cove doctor`: what this machine can do, what is missing, what to do about it.

use std::path::Path;

use serde_json::{Value, json};

use crate::{
    failure::Failure,
    output::{Format, Output, Table, View},
    place::DataDir,
    text,
};

/// Free space below which images will not fit.
const FREE_MIN_BYTES: u64 = 1 << 30;
/// Without these the server runs and says what it cannot do.
const OPTIONAL: [&str; 9] = [
    "port notices",
    "freezing",
    "swap",
    "untrusted code",
    "nftables",
    "IPv4 forwarding",
    "OCI runtimes",
    "virtual machines",
    "memory of forks",
];

/// One answer.
struct Check {
    name: &'static str,
    state: State,
    detail: String,
    remedy: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    /// The server runs, with less.
    Limited,
    /// The server cannot run.
    Missing,
}

impl State {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

pub(crate) fn run(data_dir: &DataDir, config: Option<&Path>, output: &Output) -> Result<(), Failure> {
    let sessions = cove_server::Config::load(config)?.sessions;
    let mut checks: Vec<Check> = Vec::new();
    for probe in cove_runtime_oci::probe() {
        checks.push(check(probe.name, probe.ok, probe.detail, probe.remedy));
    }
    let guest = camino::Utf8Path::from_path(&sessions.vm_guest)
        .ok_or_else(|| Failure::new("`sessions.vm_guest` must be UTF-8"))?;
    let means = cove_runtime_oci::IsolationMeans { guest, handlers: &sessions.handlers, criu: &sessions.criu };
    for probe in cove_runtime_oci::probe_isolation(means) {
        checks.push(check(probe.name, probe.ok, probe.detail, probe.remedy));
    }
    for probe in cove_network::probe() {
        checks.push(check(probe.name, probe.ok, probe.detail, probe.remedy));
    }
    checks.push(disk(&data_dir.path()));
    let is_table = !matches!(output.format, Some(format) if format != Format::Table) && output.query.is_none();
    if is_table {
        text::out(&table(&checks));
    } else {
        let values = checks.iter().map(|check| {
            json!({"name": check.name, "state": check.state.word(), "found": check.detail, "remedy": check.remedy})
        });
        output.print(Value::Array(values.collect()), View::Plain)?;
    }
    let missing = checks.iter().filter(|check| check.state == State::Missing).count();
    match missing {
        0 => Ok(()),
        1 => Err(Failure::new("`cove serve` cannot work here: one need is missing")),
        missing => Err(Failure::new(format!("`cove serve` cannot work here: {missing} needs are missing"))),
    }
}

/// Which of Azure's operations work; needs no server, since it follows from the build.
pub(crate) fn coverage(output: &Output) -> Result<(), Failure> {
    let coverage = cove_server::coverage();
    if matches!(output.format, Some(format) if format != Format::Table) || output.query.is_some() {
        return output.print(coverage, View::Plain);
    }
    let mut table = Table::new(["Operation", "Method", "State"]);
    for operation in coverage["value"].as_array().into_iter().flatten() {
        let part = |name: &str| operation[name].as_str().unwrap_or_default();
        let state = match part("state") {
            "works" => "works".to_owned(),
            _ => format!("501: {}: {}", part("missing"), part("instead")),
        };
        table.row([part("operation"), part("method"), &state]);
    }
    let mut text = table.render();
    text.push_str(&format!(
        "\n{} of {} operations of api-version {} work.\n",
        coverage["working"],
        coverage["operations"],
        coverage["apiVersion"].as_str().unwrap_or_default(),
    ));
    text::out(&text);
    Ok(())
}

fn check(name: &'static str, ok: bool, detail: String, remedy: &'static str) -> Check {
    let state = match ok {
        true => State::Ok,
        // some controllers are missing: limits of that kind are not enforced
        false if OPTIONAL.contains(&name) || (name == "control groups" && detail.starts_with("version")) => {
            State::Limited
        }
        false => State::Missing,
    };
    Check { name, state, detail, remedy: remedy.to_owned() }
}

/// The closest folder that exists is where the data directory will be.
fn disk(dir: &Path) -> Check {
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or_else(|| Path::new("/"));
    let name = "data directory";
    let remedy = |text: &str| format!("{text}, or choose another folder with --data-dir");
    match nix::sys::statvfs::statvfs(there) {
        Ok(found) => {
            let free = found.blocks_available().saturating_mul(found.fragment_size());
            let is_read_only = found.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
            let detail = format!("{}: {} free", dir.display(), crate::output::columns::size(free));
            let (state, remedy) = match (is_read_only, free < FREE_MIN_BYTES) {
                (true, _) => (State::Missing, remedy("mount the file system writable")),
                (false, true) => (State::Limited, remedy("make room for images")),
                (false, false) => (State::Ok, String::new()),
            };
            Check { name, state, detail, remedy }
        }
        Err(error) => {
            let detail = format!("{}: {error}", there.display());
            Check { name, state: State::Missing, detail, remedy: remedy("repair the file system") }
        }
    }
}

fn table(checks: &[Check]) -> String {
    let mut table = Table::new(["Need", "State", "Found"]);
    for check in checks {
        table.row([check.name, check.state.word(), &check.detail]);
    }
    let mut text = table.render();
    let is_root = !checks.iter().any(|check| check.name == "root" && check.state != State::Ok);
    // without root most needs cannot even be tried
    let mut remedies =
        checks.iter().filter(|check| check.state != State::Ok && (is_root || check.name == "root")).peekable();
    if remedies.peek().is_some() {
        text.push_str("\nWhat to do:\n");
    }
    for check in remedies {
        text.push_str(&format!("  {}: {}\n", check.name, check.remedy));
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn what_is_missing_has_a_remedy() {
        let checks = [
            check("kernel", true, "6.1".into(), ""),
            check("port notices", false, "not available".into(), "use Linux 5.5 or newer"),
            check("control groups", false, "version 1, without cpu".into(), "mount cgroup v2"),
            check("root", false, "user 1000".into(), "start Cove with `sudo`"),
        ];
        expect![[r#"
            Need            State    Found
            --------------  -------  ----------------------
            kernel          ok       6.1
            port notices    limited  not available
            control groups  limited  version 1, without cpu
            root            missing  user 1000

            What to do:
              root: start Cove with `sudo`
        "#]]
        .assert_eq(&table(&checks));
        assert!(table(&checks[..3]).ends_with(
            "
What to do:
  port notices: use Linux 5.5 or newer
  control groups: mount cgroup v2
"
        ));
        assert_eq!(disk(Path::new("/tmp/does/not/exist/yet")).name, "data directory");
    }
}
