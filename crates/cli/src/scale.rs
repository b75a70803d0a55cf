//! `cove scale`: why an app has as many replicas as it has.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use serde_json::{Value, json};

use crate::{
    client::{Client, encode},
    failure::Failure,
    output::{Table, View},
    session::{Globals, Session, block_on},
    text, wakes,
};

/// Pause between two looks of `--follow`.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ScaleCommand {
    /// Show the last decisions with what they were taken from.
    Explain {
        #[command(flatten)]
        app: AppArg,
        /// Go on with decisions as they are taken.
        #[arg(long)]
        follow: bool,
    },
    /// End the cool-down now: an idle app goes to zero at once.
    Zero(AppArg),
    /// Check the scaling core against a file of expected decisions; needs no server.
    Vectors {
        /// The file; its own header describes its schema.
        file: PathBuf,
    },
}

/// An app by name or id.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AppArg {
    /// Name or id of the app.
    app: String,
    /// Resource group of the app.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
    group: Option<String>,
}

pub(crate) fn run(command: ScaleCommand, globals: &Globals) -> Result<(), Failure> {
    if let ScaleCommand::Vectors { file } = &command {
        return vectors(file);
    }
    block_on(async {
        let session = Session::open(globals).await?;
        let client = &session.client;
        match command {
            ScaleCommand::Explain { app, follow } => {
                let id = wakes::find_app(client, &app.app, app.group.as_deref()).await?;
                if follow {
                    return follow_decisions(&session, &id).await;
                }
                let revisions = explain(client, &id).await?;
                if !session.output.is_table() {
                    return session.print(revisions, View::Plain);
                }
                text::out(&describe(&revisions));
                Ok(())
            }
            ScaleCommand::Vectors { file } => vectors(&file),
            ScaleCommand::Zero(app) => {
                let id = wakes::find_app(client, &app.app, app.group.as_deref()).await?;
                let mut answer =
                    client.post(&format!("/cove/v1/scale/zero?app={}", encode(&id)), Some(&json!({}))).await?;
                session.print(answer["value"].take(), View::Plain)
            }
        }
    })
}

/// Runs the vectors of a file; fails unless every one passed.
fn vectors(file: &Path) -> Result<(), Failure> {
    let name = file.display();
    let json =
        std::fs::read_to_string(file).map_err(|error| Failure::new(format!("failed to read `{name}`: {error}")))?;
    let report =
        cove_scaling::vectors::run(&json).map_err(|error| Failure::new(format!("failed to run `{name}`: {error}")))?;
    text::out(&format!("{report}\n"));
    let failed = report.results.len() - report.passed();
    if failed == 0 {
        Ok(())
    } else {
        Err(Failure::new(format!("{failed} of {} vectors did not pass", report.results.len())))
    }
}

/// Count, limits and decisions of the active revisions.
pub(crate) async fn explain(client: &Client, app: &str) -> Result<Value, Failure> {
    let mut answer = client.get(&format!("/cove/v1/scale/explain?app={}", encode(app))).await?;
    Ok(answer["value"].take())
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn describe(revisions: &Value) -> String {
    let mut text = String::new();
    for revision in list(revisions) {
        let (limits, current) = (&revision["limits"], &revision["current"]);
        let word = |value: &Value| value.as_str().unwrap_or("never").chars().take(19).collect::<String>();
        text.push_str(&format!(
            "{}: {current} replicas, limits {}..{}\nlast active {}, next look {}\n\n",
            revision["revision"].as_str().unwrap_or_default(),
            limits["min"],
            limits["max"],
            word(&revision["lastActive"]),
            word(&revision["nextTick"]),
        ));
        let mut table = Table::new(["At", "Times", "Replicas", "Reason", "Requests open", "Rules"]);
        for decision in list(&revision["decisions"]) {
            table.row(row(decision));
        }
        text.push_str(&table.render());
        text.push('\n');
    }
    if text.is_empty() { "no active revision is scaled\n".to_owned() } else { text }
}

fn row(kept: &Value) -> [String; 6] {
    let decision = &kept["record"]["decision"];
    let at = decision["at"].as_str().unwrap_or_default().chars().take(19).collect();
    let (current, new) = (&decision["current"], &decision["new"]);
    let replicas = if current == new { new.to_string() } else { format!("{current} -> {new}") };
    let rules = list(&decision["rules"]).iter().map(rule_text).collect::<Vec<_>>().join(", ");
    let reason = decision["reason"].as_str().unwrap_or_default().to_owned();
    [at, kept["times"].to_string(), replicas, reason, decision["in_flight"].to_string(), rules]
}

/// `http 4.5/s asks for 5`
fn rule_text(rule: &Value) -> String {
    let name = rule["name"].as_str().unwrap_or_default();
    let reading = &rule["reading"];
    let read = if let Some(milli) = reading["value"]["milli"].as_u64() {
        format!("{}.{:02}", milli / 1000, milli % 1000 / 10)
    } else if let Some(count) = reading["replicas"]["count"].as_u64() {
        format!("{count} replicas")
    } else {
        format!("failed ({})", reading["error"]["reason"].as_str().unwrap_or_default())
    };
    match rule["proposal"].as_u64() {
        Some(proposal) => format!("{name} {read} asks for {proposal}"),
        None => format!("{name} {read}"),
    }
}

/// Prints every decision once, oldest first, until the reader goes away.
async fn follow_decisions(session: &Session, app: &str) -> Result<(), Failure> {
    let mut newest: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    let mut every = tokio::time::interval(FOLLOW_EVERY);
    loop {
        every.tick().await;
        for revision in list(&explain(&session.client, app).await?) {
            let name = revision["revision"].as_str().unwrap_or_default();
            for kept in list(&revision["decisions"]) {
                let at = kept["record"]["decision"]["at"].as_str().unwrap_or_default();
                if newest.get(name).is_some_and(|newest| newest.as_str() >= at) {
                    continue;
                }
                newest.insert(name.to_owned(), at.to_owned());
                let [at, _, replicas, reason, open, rules] = row(kept);
                let line = format!("{at}  {name}  {replicas:<8}  {reason:<18}  {open} open  {rules}");
                if !text::line(line.trim_end()) {
                    return Ok(());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn decisions_say_from_what_they_were_taken() {
        let decision = json!({"times": 2, "record": {"decision": {
            "at": "2026-01-01T00:00:15.5Z", "current": 1, "new": 4, "reason": "scale-up-limited", "in_flight": 12,
            "rules": [{"name": "http", "reading": {"value": {"milli": 45_500, "active": true}}, "proposal": 5},
                      {"name": "queue", "reading": {"error": {"reason": "no answer"}}}],
        }}});
        let revisions = json!([{"revision": "web--a", "current": 4, "lastActive": "2026-01-01T00:00:15.5Z",
            "nextTick": null, "limits": {"min": 0, "max": 10}, "decisions": [decision]}]);
        expect![[r#"
            web--a: 4 replicas, limits 0..10
            last active 2026-01-01T00:00:15, next look never

            At                   Times  Replicas  Reason            Requests open  Rules
            -------------------  -----  --------  ----------------  -------------  -----------------------------------------------
            2026-01-01T00:00:15  2      1 -> 4    scale-up-limited  12             http 45.50 asks for 5, queue failed (no answer)

        "#]]
        .assert_eq(&describe(&revisions));
    }
}
