//! Runs code in an interpreter, with variables of the environment set for a while or for good.

use std::collections::BTreeMap;

use cove_model::{ResourceId, SessionContainer};
use serde_json::{Value, json};

use super::{SECONDS_MAX, outcome::Outcome};
use crate::{answer::Refused, ports::Lease, service::Service};

/// Runs what `asked` says, as long as an execution may take.
pub(crate) async fn run(service: &Service, lease: &Lease, asked: Value) -> Result<Outcome, Refused> {
    service.run(lease, asked, SECONDS_MAX).await
}

/// Runs code with variables that are as before when it has ended.
pub(crate) async fn run_with(
    service: &Service,
    lease: &Lease,
    kind: SessionContainer,
    code: &str,
    envs: &BTreeMap<String, String>,
) -> Result<Outcome, Refused> {
    let asked = json!({ "code": code });
    if envs.is_empty() {
        return run(service, lease, asked).await;
    }
    run(service, lease, json!({ "code": set(kind, envs, true) })).await?;
    let outcome = run(service, lease, asked).await;
    run(service, lease, json!({ "code": restore(kind) })).await?;
    outcome
}

/// Sets variables for all code of a session of a built-in kind; commands get theirs each time.
pub(crate) async fn set_variables(
    service: &Service,
    lease: &Lease,
    pool: &ResourceId,
    envs: &BTreeMap<String, String>,
) -> Result<(), Refused> {
    let Some(pool) = service.ports.pools.pool(pool).filter(|_| !envs.is_empty()) else { return Ok(()) };
    if matches!(pool.container, SessionContainer::PythonLts | SessionContainer::NodeLts) {
        run(service, lease, json!({ "code": set(pool.container, envs, false) })).await?;
    }
    Ok(())
}

/// Code that sets variables; what was before is remembered if it is only for a while.
fn set(kind: SessionContainer, envs: &BTreeMap<String, String>, is_for_a_while: bool) -> String {
    // a JSON text in a JSON text is a literal in both languages
    let literal = json!(json!(envs).to_string()).to_string();
    match (kind, is_for_a_while) {
        (SessionContainer::NodeLts, false) => format!("Object.assign(process.env, JSON.parse({literal})); undefined"),
        (SessionContainer::NodeLts, true) => format!(
            "globalThis.__cove_env = {{ ...process.env }}; Object.assign(process.env, JSON.parse({literal})); undefined"
        ),
        (_, false) => format!("__import__('os').environ.update(__import__('json').loads({literal}))"),
        (_, true) => format!(
            "__cove_env = dict(__import__('os').environ)\n__import__('os').environ.update(__import__('json').loads({literal}))"
        ),
    }
}

/// Code that makes the variables as they were.
fn restore(kind: SessionContainer) -> &'static str {
    match kind {
        SessionContainer::NodeLts => {
            "for (const name of Object.keys(process.env)) if (!(name in globalThis.__cove_env)) delete process.env[name]; \
             Object.assign(process.env, globalThis.__cove_env); delete globalThis.__cove_env; undefined"
        }
        _ => "__import__('os').environ.clear()\n__import__('os').environ.update(__cove_env)\ndel __cove_env",
    }
}

/// A text as one word of a shell.
pub(crate) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_literals_of_the_language() {
        let envs = BTreeMap::from([("A".to_owned(), "it's \"x\"\n\\".to_owned())]);
        let code = set(SessionContainer::PythonLts, &envs, false);
        assert!(code.ends_with(r#"loads("{\"A\":\"it's \\\"x\\\"\\n\\\\\"}"))"#), "{code}");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
