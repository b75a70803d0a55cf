//! `cove load`: sends requests, alone or while an app changes, and says what became of them.
//!
//! Any URL will do; only `--during` needs a server. The report goes to stdout, the picture into it on a terminal and into a
//! file with `--svg`. Exit code 1 when a request was lost.

mod during;

use std::{
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use cove_load::{Content, Controls, Load, Pace, Plan, Protocol, Report, StartError, Target, Trust};
use reqwest::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use crate::{
    failure::Failure,
    output::View,
    session::{Globals, Session},
    text,
};
use during::Change;

/// Connections of a closed loop without `--connections`.
const CONNECTIONS_DEFAULT: usize = 10;
/// Connections that an open loop may take without `--connections`.
const CONNECTIONS_OF_RATE: usize = 1000;
/// How long a load is without `--duration` and `--requests`.
const DURATION_DEFAULT: Duration = Duration::from_secs(10);
/// Between two looks at whether all requests were sent.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Columns of the picture where there is no terminal.
const COLUMNS_DEFAULT: usize = 100;

#[derive(Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// http, https, ws or wss.
    url: String,
    /// Open loop: so many requests per second, whatever the answers do; latency counts from when each was due.
    #[arg(long, value_name = "N", help_heading = "How much")]
    rps: Option<f64>,
    /// Closed loop: so many connections, each sends when it was answered. With --rps: connections at most [default: 10; 1000].
    #[arg(short, long, value_name = "N", help_heading = "How much")]
    connections: Option<usize>,
    /// h2, grpc: requests at once per connection.
    #[arg(long, value_name = "N", default_value_t = 10, help_heading = "How much")]
    streams: usize,
    /// How long, such as 90s or 5m [default: 10s without --requests].
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "How much")]
    duration: Option<Duration>,
    /// How many requests.
    #[arg(long, value_name = "N", help_heading = "How much")]
    requests: Option<u64>,
    /// h1, h2, ws, sse or grpc [default: ws for ws:// and wss://, else h1].
    #[arg(long, value_enum, hide_possible_values = true, value_name = "PROTOCOL", help_heading = "What")]
    protocol: Option<Kind>,
    /// Method [default: GET, with a body POST].
    #[arg(long, value_name = "METHOD", help_heading = "What")]
    method: Option<Method>,
    /// `name: value`; can be given several times.
    #[arg(long = "header", value_name = "HEADER", value_parser = header, help_heading = "What")]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// Body, gRPC message, or end of each WebSocket message; @FILE reads it.
    #[arg(long, value_name = "TEXT", help_heading = "What")]
    body: Option<String>,
    /// ws: messages until a connection is closed and opened anew. sse, grpc: messages that each stream must have.
    #[arg(long, value_name = "N", help_heading = "What")]
    messages: Option<u64>,
    /// The only right status [default: all below 500].
    #[arg(long, value_name = "STATUS", help_heading = "What is right")]
    status: Option<u16>,
    /// What the content must be: any, echo (what was sent), or numbered (gRPC messages whose first field counts up).
    #[arg(long, value_enum, hide_possible_values = true, value_name = "WHAT", default_value_t = Check::Any, help_heading = "What is right")]
    check: Check,
    /// Longest a request may take; of sse the longest silence.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "30s", help_heading = "What is right")]
    timeout: Duration,
    /// Send nothing a second time: a refused connection, or an idle one that was closed, is a lost request too.
    #[arg(long, help_heading = "What is right")]
    strict: bool,
    /// Connect there, whatever the URL's host is.
    #[arg(long, value_name = "ADDRESS", help_heading = "Where")]
    connect: Option<SocketAddr>,
    /// Do not check certificates.
    #[arg(long, help_heading = "Where")]
    insecure: bool,
    /// PEM file of authorities to believe besides the system's and this server's.
    #[arg(long, value_name = "FILE", help_heading = "Where")]
    ca: Option<PathBuf>,
    /// Change an app meanwhile: deploy, scale-in or restart, and its name. The load lasts until that is done.
    #[arg(long, num_args = 2, value_names = ["WHAT", "APP"], help_heading = "Meanwhile")]
    during: Option<Vec<String>>,
    /// How often it is changed.
    #[arg(long, value_name = "N", default_value_t = 3, requires = "during", help_heading = "Meanwhile")]
    times: u32,
    /// Pause before each change.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "2s", help_heading = "Meanwhile")]
    every: Duration,
    /// Resource group of the app.
    #[arg(
        short = 'g',
        long = "resource-group",
        env = "AZURE_DEFAULTS_GROUP",
        hide_env = true,
        help_heading = "Meanwhile"
    )]
    group: Option<String>,
    /// Write the picture of latency over time.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    H1,
    H2,
    Ws,
    Sse,
    Grpc,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Check {
    Any,
    Echo,
    Numbered,
}

fn duration(text: &str) -> Result<Duration, String> {
    cove_base::parse_duration(text).ok_or_else(|| "write a time such as 500ms, 90s or 5m".to_owned())
}

fn header(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let wrong = || "write `name: value`".to_owned();
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    Ok((name.trim().parse().map_err(|_| wrong())?, value.trim().parse().map_err(|_| wrong())?))
}

pub(crate) fn run(args: LoadArgs, globals: &Globals) -> Result<(), Failure> {
    if globals.place.is_dry_run {
        return Err(Failure::usage("a load test cannot be tried dry: it sends requests or it is none"));
    }
    let change = args.during.as_deref().map(Change::parse).transpose()?;
    let mut plan = plan(&args, globals)?;
    if change.is_some() {
        // the changes say when it ends
        (plan.duration, plan.requests) = (None, None);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(async {
        let session = match &change {
            Some(_) => Some(Session::open(globals).await?),
            None => None,
        };
        let load = Load::start(plan).await.map_err(start_failure)?;
        let controls = load.controls();
        let interrupted = tokio::spawn(cut_at_interrupt(controls.clone()));
        let meanwhile = async {
            let (Some((change, app)), Some(session)) = (&change, &session) else { return Ok(()) };
            tokio::select! {
                changed = change_all(&args, session, *change, app, &controls) => changed,
                () = controls.stopped() => Ok(()),
            }
        };
        let (report, changed) = tokio::join!(load.finish(), meanwhile);
        interrupted.abort();
        Ok::<_, Failure>((report, changed))
    });
    // name look-ups may still hang; nobody waits for them
    runtime.shutdown_background();
    let (report, changed) = done?;
    show(&report, &args, globals)?;
    changed?;
    match report.counts.lost {
        0 => Ok(()),
        1 => Err(Failure::new("1 request was lost")),
        lost => Err(Failure::new(format!("{lost} requests were lost"))),
    }
}

/// Ctrl-C ends the load; what is there is shown.
async fn cut_at_interrupt(controls: Controls) {
    if tokio::signal::ctrl_c().await.is_ok() {
        controls.cut();
    }
}

/// Makes all changes, and stops the load when those, the time and the requests are over.
async fn change_all(
    args: &LoadArgs,
    session: &Session,
    change: Change,
    app: &str,
    controls: &Controls,
) -> Result<(), Failure> {
    let begun = Instant::now();
    let changed = async {
        let id = crate::wakes::find_app(&session.client, app, args.group.as_deref()).await?;
        during::change(session, change, &id, (args.times, args.every), controls).await
    }
    .await;
    if changed.is_ok() {
        // what comes right after the last change is seen too
        let least = args.duration.unwrap_or_default().max(begun.elapsed() + args.every);
        tokio::time::sleep_until((begun + least).into()).await;
        let wanted = args.requests.unwrap_or(0);
        while controls.counts().sent < wanted {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
    controls.stop();
    changed
}

fn plan(args: &LoadArgs, globals: &Globals) -> Result<Plan, Failure> {
    let usage = |error: &dyn std::fmt::Display| Failure::usage(error.to_string());
    let target = Target::parse(&args.url).map_err(|error| usage(&error))?;
    let protocol = match args.protocol {
        Some(Kind::H1) => Protocol::Http1,
        Some(Kind::H2) => Protocol::Http2,
        Some(Kind::Ws) => Protocol::WebSocket,
        Some(Kind::Sse) => Protocol::Events,
        Some(Kind::Grpc) => Protocol::Grpc,
        None if args.url.starts_with("ws") => Protocol::WebSocket,
        None => Protocol::Http1,
    };
    let pace = match args.rps {
        Some(per_second) => Pace::Rate { per_second, connections_max: args.connections.unwrap_or(CONNECTIONS_OF_RATE) },
        None => Pace::Connections(args.connections.unwrap_or(CONNECTIONS_DEFAULT)),
    };
    let body = match args.body.as_deref().map(|body| (body, body.strip_prefix('@'))) {
        None => Vec::new(),
        Some((_, Some(file))) => {
            std::fs::read(file).map_err(|error| Failure::new(format!("failed to read `{file}`: {error}")))?
        }
        Some((body, None)) => body.as_bytes().to_vec(),
    };
    let method = match &args.method {
        Some(method) => method.clone(),
        None if args.body.is_some() => Method::POST,
        None => Method::GET,
    };
    let unless_counted = args.requests.is_none().then_some(DURATION_DEFAULT);
    let mut headers = HeaderMap::new();
    for (name, value) in &args.headers {
        headers.append(name.clone(), value.clone());
    }
    Ok(Plan {
        address: args.connect,
        pace,
        streams: args.streams,
        duration: args.duration.or(unless_counted),
        requests: args.requests,
        method,
        headers,
        body: body.into(),
        timeout: args.timeout,
        status: args.status,
        content: match args.check {
            Check::Any => Content::Any,
            Check::Echo => Content::Echo,
            Check::Numbered => Content::Numbered,
        },
        messages: args.messages,
        trust: trust(args, globals)?,
        is_strict: args.strict,
        ..Plan::new(target, protocol)
    })
}

/// The system's authorities, this machine's server's where there is one, and the given ones.
fn trust(args: &LoadArgs, globals: &Globals) -> Result<Trust, Failure> {
    if args.insecure {
        return Ok(Trust::Anyone);
    }
    // a load of another server needs none here
    let mut pem = globals.place.find().ok().and_then(|found| std::fs::read(found.ca).ok()).unwrap_or_default();
    if let Some(file) = &args.ca {
        let read = std::fs::read(file);
        pem.extend(read.map_err(|error| Failure::new(format!("failed to read `{}`: {error}", file.display())))?);
    }
    Ok(if pem.is_empty() { Trust::System } else { Trust::And(pem) })
}

fn start_failure(error: StartError) -> Failure {
    match error {
        StartError::Plan(_) | StartError::Request(_) => Failure::usage(error.to_string()),
        StartError::Target(_) | StartError::Thread(_) => Failure::new(error.to_string()),
    }
}

fn show(report: &Report, args: &LoadArgs, globals: &Globals) -> Result<(), Failure> {
    if let Some(file) = &args.svg {
        let written = std::fs::write(file, cove_load::svg(report));
        written.map_err(|error| Failure::new(format!("failed to write `{}`: {error}", file.display())))?;
    }
    if globals.output.is_table() {
        let columns = terminal_size::terminal_size().map_or(COLUMNS_DEFAULT, |(width, _)| usize::from(width.0));
        text::out(&format!("{}\n{}", report.text(), cove_load::terminal(report, columns)));
        return Ok(());
    }
    let value = serde_json::to_value(report).map_err(|error| Failure::new(format!("the report: {error}")))?;
    globals.output.print(value, View::Plain)
}
