//! `containerapp logs show`: the output of a container, the system events, or the requests.

use futures_util::StreamExt as _;
use serde_json::Value;

use super::{AppRef, bar::Lines, replica, revision};
use crate::{client::encode, failure::Failure, session::Session, text, wakes};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum LogsCommand {
    /// Print lines of a container, system events, or requests.
    Show(Box<ShowArgs>),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    app: AppRef,
    #[command(flatten)]
    stream: StreamArgs,
    /// Output of a container, events of the platform, or requests that ended (which az does not know).
    #[arg(short = 't', long = "type", value_enum, default_value_t = Kind::Console)]
    kind: Kind,
    /// Revision [default: the latest].
    #[arg(long)]
    revision: Option<String>,
    /// Replica, also one that is gone [default: the newest].
    #[arg(long)]
    replica: Option<String>,
    /// Container [default: the first].
    #[arg(long)]
    container: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    Console,
    System,
    Http,
    /// Rows of a table, of a session.
    #[value(skip)]
    Row,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StreamArgs {
    /// Go on with what is written from now on.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value = "false", value_name = "BOOL")]
    follow: bool,
    /// Lines from the past, 0..=300.
    #[arg(long, default_value_t = 20, value_name = "LINES", value_parser = clap::value_parser!(u32).range(0..=300))]
    tail: u32,
    /// json or text [default: text on a terminal, json otherwise].
    #[arg(long, value_enum)]
    format: Option<LineFormat>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum LineFormat {
    Json,
    Text,
}

pub(crate) async fn run(session: &Session, command: LogsCommand) -> Result<(), Failure> {
    let LogsCommand::Show(args) = command;
    let app = session.client.get(&args.app.path(session)).await?;
    let events = app["properties"]["eventStreamEndpoint"].as_str().unwrap_or_default().to_owned();
    if args.kind == Kind::System {
        return print(session, &events, &args.stream, Kind::System).await;
    }
    if args.kind == Kind::Http {
        let revision = args.revision.as_ref().map(|revision| format!("&revision={}", encode(revision)));
        let id = app["id"].as_str().unwrap_or_default();
        let endpoint = format!("/cove/v1/http-logs?app={}{}", encode(id), revision.unwrap_or_default());
        return print(session, &endpoint, &args.stream, Kind::Http).await;
    }
    let base = events.strip_suffix("/eventstream").unwrap_or(&events);
    let revision = match &args.revision {
        Some(revision) => revision.clone(),
        None => revision::latest(&app)?.to_owned(),
    };
    let (name, container) = container(session, &args, &revision, &app).await?;
    let endpoint = format!(
        "{base}/revisions/{}/replicas/{}/containers/{}/logstream",
        encode(&revision),
        encode(&name),
        encode(&container)
    );
    print(session, &endpoint, &args.stream, Kind::Console).await
}

/// Replica and container: those asked for, else the newest replica's first container.
async fn container(
    session: &Session,
    args: &ShowArgs,
    revision: &str,
    app: &Value,
) -> Result<(String, String), Failure> {
    let first = |containers: &Value| containers[0]["name"].as_str().unwrap_or_default().to_owned();
    if let Some(replica) = &args.replica {
        let container = args.container.clone();
        return Ok((replica.clone(), container.unwrap_or_else(|| first(&app["properties"]["template"]["containers"]))));
    }
    let path = replica::path(session, &args.app, Some(revision.to_owned())).await?;
    let replicas = session.client.list(&path).await?;
    let Some(name) = replicas[0]["name"].as_str() else {
        let fqdn = app["properties"]["configuration"]["ingress"]["fqdn"].as_str();
        let wake = fqdn.map(|fqdn| format!("wake it with a request to {}, or ", session.client.app_url(fqdn)));
        let hint = format!("{}see what happened with --type system", wake.unwrap_or_default());
        return Err(Failure::new(format!("revision `{revision}` has no replica at the moment")).hint(hint));
    };
    let container = args.container.clone().unwrap_or_else(|| first(&replicas[0]["properties"]["containers"]));
    Ok((name.to_owned(), container))
}

/// Prints the lines of a stream until it ends.
pub(crate) async fn print(session: &Session, endpoint: &str, args: &StreamArgs, kind: Kind) -> Result<(), Failure> {
    let format =
        args.format.unwrap_or_else(|| if text::stdout_is_terminal() { LineFormat::Text } else { LineFormat::Json });
    // events are JSON on the wire in any case; their text is made here
    let output = match kind {
        Kind::Console if format == LineFormat::Text => "text",
        Kind::Row => "row",
        Kind::Console | Kind::System | Kind::Http => "json",
    };
    let separator = if endpoint.contains('?') { '&' } else { '?' };
    let url = format!("{endpoint}{separator}follow={}&tailLines={}&output={output}", args.follow, args.tail);
    let mut stream = session.client.stream(&url).await?.bytes_stream();
    let mut rest: Vec<u8> = Vec::new();
    let draws = args.follow && output == "text" && text::stdout_is_terminal();
    let mut lines = Lines::new(std::io::stdout(), draws);
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| Failure::new(format!("the stream broke off: {error}")))?;
        rest.extend_from_slice(&piece);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line[..end]);
            if line.is_empty() {
                continue;
            }
            let line = match (format, kind) {
                (LineFormat::Text, Kind::System) => event(&line),
                (LineFormat::Text, Kind::Http) => request(&line),
                (LineFormat::Text, Kind::Console | Kind::Row) | (LineFormat::Json, _) => line.into_owned(),
            };
            if !lines.write(&line) {
                return Ok(());
            }
        }
    }
    lines.end();
    Ok(())
}

/// A system event for people.
fn event(line: &str) -> String {
    let Ok(event) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    let field = |name: &str| event[name].as_str().unwrap_or_default();
    let whose = [field("ReplicaName"), field("RevisionName"), field("ContainerAppName"), field("EnvironmentName")];
    let whose = whose.into_iter().find(|name| !name.is_empty()).unwrap_or_default();
    let mark = if field("Type") == "Warning" { "!" } else { " " };
    format!("{}{mark} {}  {whose}  {}", field("TimeStamp"), field("Reason"), field("Msg"))
}

/// A row of the access log for people.
fn request(line: &str) -> String {
    let Ok(row) = serde_json::from_str::<Value>(line) else { return line.to_owned() };
    let field = |name: &str| row[name].as_str().unwrap_or_default();
    let number = |name: &str| row[name].as_u64().unwrap_or_default();
    let time: String = field("StartTime").chars().take(23).collect();
    let mut text = format!(
        "{time}  {:>3} {:>8} ms  {} {}{}",
        number("StatusCode"),
        wakes::millis(number("CoveDurationMicros")),
        field("Method"),
        field("Authority"),
        field("Path")
    );
    let details = [field("RevisionName"), field("CoveReason"), field("CoveEnding")];
    for detail in details.into_iter().filter(|detail| !detail.is_empty() && *detail != "complete") {
        text.push_str("  ");
        text.push_str(detail);
    }
    if number("UpstreamRequestAttemptCount") > 1 {
        text.push_str(&format!("  {} tries", number("UpstreamRequestAttemptCount")));
    }
    match number("CoveRowsLeftOut") {
        0 => text,
        left_out => format!("(rows left out: {left_out})\n{text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_say_what_went_wrong() {
        let line = r#"{"StartTime":"2026-01-01T00:00:00.123456Z","StatusCode":502,"CoveDurationMicros":12345,"Method":"GET",
            "Authority":"web.env.localhost","Path":"/a","RevisionName":"web--a","CoveReason":"upstream-closed",
            "CoveEnding":"complete","UpstreamRequestAttemptCount":2,"CoveRowsLeftOut":0}"#;
        assert_eq!(
            request(line),
            "2026-01-01T00:00:00.123  502     12.3 ms  GET web.env.localhost/a  web--a  upstream-closed  2 tries"
        );
        assert_eq!(request("not json"), "not json");
    }

    #[test]
    fn events_name_the_closest_thing() {
        let line = r#"{"TimeStamp":"2026-01-01T00:00:00Z","Type":"Warning","Reason":"BackOff","RevisionName":"web--a","ReplicaName":"","ContainerAppName":"web","Msg":"m"}"#;
        assert_eq!(event(line), "2026-01-01T00:00:00Z! BackOff  web--a  m");
        assert_eq!(event("not json"), "not json");
    }
}
