//! `cove ingress stats`: requests, errors and latency of each revision, and why Cove itself answered.

use serde_json::Value;

use crate::{
    client::encode,
    failure::Failure,
    output::{Table, View},
    session::{Globals, Session, block_on},
    text,
    wakes::{find_app, millis},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum IngressCommand {
    /// Print requests, errors and latency of each revision since the server started.
    Stats(StatsArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct StatsArgs {
    /// Name or id of an app; all apps otherwise.
    app: Option<String>,
    /// Resource group of the app.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
    group: Option<String>,
}

pub(crate) fn run(command: IngressCommand, globals: &Globals) -> Result<(), Failure> {
    let IngressCommand::Stats(args) = command;
    block_on(async {
        let session = Session::open(globals).await?;
        let app = match &args.app {
            Some(name) => Some(find_app(&session.client, name, args.group.as_deref()).await?),
            None => None,
        };
        let query = app.map(|app| format!("?app={}", encode(&app))).unwrap_or_default();
        let stats = session.client.get(&format!("/cove/v1/ingress/stats{query}")).await?;
        if !session.output.is_table() {
            return session.print(stats, View::Plain);
        }
        text::out(&table(&stats));
        Ok(())
    })
}

fn table(stats: &Value) -> String {
    let titles = ["Revision", "Requests", "4xx", "5xx", "Cut", "Open", "Held", "p50 ms", "p95 ms", "p99 ms", "Max ms"];
    let mut table = Table::new(titles.to_vec());
    for one in stats["value"].as_array().map_or(&[][..], Vec::as_slice) {
        let count = |value: &Value| value.as_u64().unwrap_or_default().to_string();
        let time = |name: &str| one["recent"][name].as_u64().map(millis).unwrap_or_default();
        let cut = one["clientLeft"].as_u64().unwrap_or_default() + one["appCut"].as_u64().unwrap_or_default();
        table.row([
            one["revision"].as_str().unwrap_or_default().to_owned(),
            count(&one["requests"]),
            count(&one["answers"]["4xx"]),
            count(&one["answers"]["5xx"]),
            cut.to_string(),
            count(&one["open"]),
            count(&one["held"]),
            time("p50Us"),
            time("p95Us"),
            time("p99Us"),
            time("maxUs"),
        ]);
    }
    let mut text = table.render();
    if text.is_empty() {
        "no request came in since the server started\n".clone_into(&mut text);
    } else {
        text.push_str("\nlatency of the last 5 to 10 minutes, everything else since the server started\n");
    }
    let reasons = stats["reasons"].as_array().map_or(&[][..], Vec::as_slice);
    let reasons: Vec<String> = reasons
        .iter()
        .map(|reason| format!("{} {}", reason["reason"].as_str().unwrap_or_default(), reason["count"]))
        .collect();
    if !reasons.is_empty() {
        text.push_str(&format!("answers of Cove itself, over all apps: {}\n", reasons.join(", ")));
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_table_shows_rate_errors_and_latency() {
        let one = json!({"revision": "web--v1", "requests": 120, "answers": {"2xx": 110, "4xx": 8, "5xx": 2},
            "clientLeft": 1, "appCut": 1, "open": 3, "held": 0,
            "recent": {"count": 100, "p50Us": 1250, "p95Us": 8000, "p99Us": 25_000, "maxUs": 31_999}});
        let quiet = json!({"revision": "web--v2", "requests": 0, "answers": {}, "recent": null});
        let reasons = json!([{"reason": "unknown-host", "count": 4}]);
        expect![[r#"
            Revision  Requests  4xx  5xx  Cut  Open  Held  p50 ms  p95 ms  p99 ms  Max ms
            --------  --------  ---  ---  ---  ----  ----  ------  ------  ------  ------
            web--v1   120       8    2    2    3     0     1.2     8.0     25.0    31.9
            web--v2   0         0    0    0    0     0

            latency of the last 5 to 10 minutes, everything else since the server started
            answers of Cove itself, over all apps: unknown-host 4
        "#]]
        .assert_eq(&table(&json!({"value": [one, quiet], "reasons": reasons})));
        expect![[r#"
            no request came in since the server started
        "#]]
        .assert_eq(&table(&json!({"value": [], "reasons": []})));
    }
}
