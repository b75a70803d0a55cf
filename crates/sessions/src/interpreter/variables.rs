//! Runs code and commands in an interpreter, with variables of the environment set for a while or for good.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{SECONDS_MAX, outcome::Outcome};
use crate::{answer::Refused, ports::Lease, service::Service};

/// Runs what `asked` says, as long as an execution may take.
async fn run(service: &Service, lease: &Lease, asked: Value) -> Result<Outcome, Refused> {
    service.run(lease, asked, SECONDS_MAX).await
}

/// Runs code with variables: `envs` are as before when it has ended, however it did; `lasting` are for all that its interpreter
/// runs. The session sets them within the turn of the code, so no other code sees them, and an interpreter that was started
/// anew gets its lasting ones again.
pub(crate) async fn run_with(
    service: &Service,
    lease: &Lease,
    code: &str,
    envs: &BTreeMap<String, String>,
    lasting: &BTreeMap<String, String>,
) -> Result<Outcome, Refused> {
    run(service, lease, json!({ "code": code, "env": envs, "lasting": lasting })).await
}

/// Runs a command in a session's shell, which may be another for each: it gets its `lasting` variables each time.
pub(crate) async fn run_command(
    service: &Service,
    lease: &Lease,
    line: &str,
    envs: &BTreeMap<String, String>,
    lasting: &BTreeMap<String, String>,
) -> Result<Outcome, Refused> {
    let lasting = lasting.iter().filter(|(name, _)| !envs.contains_key(*name));
    let set: String = lasting.map(|(name, value)| format!("{name}={} ", quoted(value))).collect();
    let line = if set.is_empty() { line.to_owned() } else { format!("export {set}\n{line}") };
    run(service, lease, json!({ "command": line, "env": envs })).await
}

/// A text as one word of a shell.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_word() {
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
