//! `cove scale`: why an app has as many replicas as it has, and what other rules would do.

mod job;
mod plot;
mod rules;
mod try_out;

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use jiff::Timestamp;
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
    /// Show decisions with what they were taken from and why; they are kept for seven days.
    Explain(ExplainArgs),
    /// Try rules out on recorded readings or on a trace: replicas, cost, waits, beside today's.
    Simulate(Box<try_out::SimulateArgs>),
    /// Search for better rules on recorded requests or on a trace.
    Suggest(Box<try_out::SuggestArgs>),
    /// End the cool-down now: an idle app goes to zero at once.
    Zero(AppArg),
    /// Check the scaling core against a file of expected decisions; needs no server.
    Vectors {
        /// The file; its own header describes its schema.
        file: PathBuf,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct ExplainArgs {
    #[command(flatten)]
    app: AppArg,
    /// The name is a job's: what its schedule or its rules started, and why.
    #[arg(long, conflicts_with_all = ["revision", "at", "from", "to"])]
    job: bool,
    /// One revision. Default every active one.
    #[arg(long)]
    revision: Option<String>,
    /// The decision in force then: `2026-05-01T12:00:00Z`, `12:00` (UTC, the last one), or `2h` (ago).
    #[arg(long, conflicts_with_all = ["from", "to", "follow"])]
    at: Option<String>,
    /// Decisions from then on, written as for --at.
    #[arg(long, conflicts_with = "follow")]
    from: Option<String>,
    /// Decisions until then, written as for --at.
    #[arg(long, conflicts_with = "follow")]
    to: Option<String>,
    /// Go on with decisions as they are taken.
    #[arg(long)]
    follow: bool,
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
    match &command {
        ScaleCommand::Simulate(args) if !args.on().needs_server() => {
            return block_on(try_out::simulate_rules(args, None));
        }
        ScaleCommand::Suggest(args) if !args.on().needs_server() => {
            return block_on(try_out::suggest_rules(args, None));
        }
        _ => {}
    }
    block_on(async {
        let session = Session::open(globals).await?;
        let client = &session.client;
        match command {
            ScaleCommand::Explain(args) => explain_app(&args, &session).await,
            ScaleCommand::Simulate(args) => try_out::simulate_rules(&args, Some(&session)).await,
            ScaleCommand::Suggest(args) => try_out::suggest_rules(&args, Some(&session)).await,
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

async fn explain_app(args: &ExplainArgs, session: &Session) -> Result<(), Failure> {
    let client = &session.client;
    if args.job {
        return job::explain(session, &args.app.app, args.app.group.as_deref(), args.follow).await;
    }
    let id = wakes::find_app(client, &args.app.app, args.app.group.as_deref()).await?;
    let mut path = format!("/cove/v1/scale/explain?app={}", encode(&id));
    if let Some(revision) = &args.revision {
        path.push_str(&format!("&revision={}", encode(revision)));
    }
    if args.follow {
        return follow_decisions(session, &path).await;
    }
    if args.at.is_some() || args.from.is_some() || args.to.is_some() {
        let now = server_now(client).await?;
        for (name, given) in [("at", &args.at), ("from", &args.from), ("to", &args.to)] {
            if let Some(given) = given {
                path.push_str(&format!("&{name}={}", encode(&moment(given, now)?.to_string())));
            }
        }
    }
    let revisions = client.get(&path).await?["value"].take();
    if !session.output.is_table() {
        return session.print(revisions, View::Plain);
    }
    text::out(&describe(&revisions));
    Ok(())
}

/// The server's time: its clock may be virtual.
async fn server_now(client: &Client) -> Result<Timestamp, Failure> {
    let answer = client.get("/cove/v1/clock").await?;
    let now = answer["now"].as_str().and_then(|now| now.parse().ok());
    now.ok_or_else(|| Failure::new("the server did not say what time it is"))
}

/// An instant as people write it: a time, the last time of day (UTC), or a span before now.
fn moment(given: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(at) = given.parse::<Timestamp>() {
        return Ok(at);
    }
    if let Ok(time) = given.parse::<jiff::civil::Time>() {
        let today = now.to_zoned(jiff::tz::TimeZone::UTC);
        let at = today.date().to_datetime(time).to_zoned(jiff::tz::TimeZone::UTC).map(|at| at.timestamp());
        let day = jiff::SignedDuration::from_hours(24);
        return at
            .map(|at| if at > now { at.saturating_sub(day).unwrap_or(at) } else { at })
            .map_err(|error| Failure::usage(format!("`{given}`: {error}")));
    }
    let ago = cove_base::parse_duration(given).and_then(|ago| jiff::SignedDuration::try_from(ago).ok());
    let at = ago.and_then(|ago| now.checked_sub(ago).ok());
    at.ok_or_else(|| {
        Failure::usage(format!("`{given}` is no time; write `2026-05-01T12:00:00Z`, `12:00` or `2h` (ago)"))
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
        let name = revision["revision"].as_str().unwrap_or_default();
        if current.is_null() {
            text.push_str(&format!("{name}: not active any more\n\n"));
        } else {
            text.push_str(&format!(
                "{name}: {current} replicas, limits {}..{}\nlast active {}, next look {}\n\n",
                limits["min"],
                limits["max"],
                word(&revision["lastActive"]),
                word(&revision["nextTick"]),
            ));
        }
        let mut table = Table::new(["At", "Times", "Replicas", "Open", "Rules"]);
        for decision in list(&revision["decisions"]) {
            let [at, times, replicas, _, open, rules] = row(decision);
            table.row([at, times, replicas, open, rules]);
        }
        text.push_str(&table.render());
        text.push('\n');
        for decision in list(&revision["decisions"]) {
            let at = decision["at"].as_str().unwrap_or_default().chars().skip(11).take(8).collect::<String>();
            let words = decision["words"].as_str().or_else(|| decision["record"]["decision"]["reason"].as_str());
            text.push_str(&format!("{at} {}\n", words.unwrap_or_default()));
        }
        if revision["isCut"] == true {
            text.push_str("older decisions of that time are left out; ask for a shorter one\n");
        }
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
async fn follow_decisions(session: &Session, path: &str) -> Result<(), Failure> {
    let mut newest: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    let mut every = tokio::time::interval(FOLLOW_EVERY);
    loop {
        every.tick().await;
        for revision in list(&session.client.get(path).await?["value"]) {
            let name = revision["revision"].as_str().unwrap_or_default();
            for kept in list(&revision["decisions"]) {
                let at = kept["record"]["decision"]["at"].as_str().unwrap_or_default();
                if newest.get(name).is_some_and(|newest| newest.as_str() >= at) {
                    continue;
                }
                newest.insert(name.to_owned(), at.to_owned());
                let [at, _, replicas, reason, open, rules] = row(kept);
                let words = kept["words"].as_str().unwrap_or(&reason);
                let line = format!("{at}  {name}  {replicas:<8}  {open} open  {rules}  ({words})");
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
        let decision = json!({"times": 2, "at": "2026-01-01T00:00:15.5Z", "words": "1 to 4: http asks for 5; one step reaches 4", "record": {"decision": {
            "at": "2026-01-01T00:00:15.5Z", "current": 1, "new": 4, "reason": "scale-up-limited", "in_flight": 12,
            "rules": [{"name": "http", "reading": {"value": {"milli": 45_500, "active": true}}, "proposal": 5},
                      {"name": "queue", "reading": {"error": {"reason": "no answer"}}}],
        }}});
        let revisions = json!([{"revision": "web--a", "current": 4, "lastActive": "2026-01-01T00:00:15.5Z",
            "nextTick": null, "limits": {"min": 0, "max": 10}, "decisions": [decision]}]);
        expect![[r#"
            web--a: 4 replicas, limits 0..10
            last active 2026-01-01T00:00:15, next look never

            At                   Times  Replicas  Open  Rules
            -------------------  -----  --------  ----  -----------------------------------------------
            2026-01-01T00:00:15  2      1 -> 4    12    http 45.50 asks for 5, queue failed (no answer)

            00:00:15 1 to 4: http asks for 5; one step reaches 4

        "#]]
        .assert_eq(&describe(&revisions));
    }
}
