//! `cove session`: the sessions of a pool, through the pool's own endpoint with a token for it.

mod interpreter;
mod snapshots;
mod tools;

use std::path::PathBuf;

use reqwest::Method;
use serde_json::Value;

use crate::{
    client::encode,
    failure::Failure,
    output::View,
    session::{Globals, GroupArg, Session, block_on},
    text,
};

/// Whom tokens for sessions are for.
const AUDIENCE: &str = "https://dynamicsessions.io";
/// Version of the sessions' API.
const VERSION: &str = "2025-10-02-preview";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum PoolSessionCommand {
    /// List the sessions of a pool that are allocated.
    List(PoolRef),
    /// Show the session of an identifier: since when, last request, end.
    Show(SessionRef),
    /// End the session of an identifier; its next request gets another one.
    #[command(visible_alias = "delete")]
    Stop(SessionRef),
    /// Make sessions that have the files of one as they are now, and its memory where that can be kept.
    #[command(after_help = "Example: cove session fork -n code -g MyRG -i user-1 --count 3")]
    Fork(snapshots::ForkArgs),
    /// Keep the files of sessions under names, for pools to begin with.
    #[command(subcommand)]
    Snapshot(snapshots::SnapshotCommand),
    /// End the session of an identifier and keep its files for its next request.
    Suspend(SessionRef),
    /// Begin the suspended session of an identifier again, with its files.
    Resume(SessionRef),
    /// Send a request to the session of an identifier and print the answer's body; a new identifier gets a session.
    Request {
        #[command(flatten)]
        session: SessionRef,
        /// Path in the container, with a query if any.
        #[arg(long, default_value = "/")]
        path: String,
        /// Method [default: GET, with a body POST].
        #[arg(long)]
        method: Option<String>,
        /// JSON to send.
        #[arg(long, value_name = "JSON")]
        body: Option<String>,
    },
    /// Run a command in the session of an identifier; its exit code is this one's. A new identifier gets a session.
    #[command(after_help = "Example: cove session exec -n pool -g MyRG -i user-1 -- ls -l /srv")]
    Exec {
        #[command(flatten)]
        session: SessionRef,
        /// Program and its arguments, behind `--`.
        #[arg(last = true, required = true, num_args = 1..)]
        command: Vec<String>,
    },
    /// A shell in the session of an identifier.
    Shell {
        #[command(flatten)]
        session: SessionRef,
        /// Which.
        #[arg(long, default_value = "sh")]
        shell: String,
    },
    /// Copy a file, or a directory, into the session of an identifier.
    #[command(
        after_help = "Examples: cove session upload -n code -g MyRG -i user-1 data.csv\n          cove session upload -n pool -g MyRG -i user-1 ./conf /tmp/"
    )]
    Upload {
        #[command(flatten)]
        session: SessionRef,
        /// A path here.
        source: PathBuf,
        /// Where to: a path in the session; of interpreters also a folder below /mnt/data [default there: /mnt/data].
        target: Option<String>,
    },
    /// Copy a file, or a directory, out of the session of an identifier.
    #[command(after_help = "Example: cove session download -n code -g MyRG -i user-1 result.csv")]
    Download {
        #[command(flatten)]
        session: SessionRef,
        /// A path in the session; of interpreters also a name below /mnt/data.
        source: String,
        /// Where to here [default: this directory].
        target: Option<PathBuf>,
    },
    /// Code and files of interpreters, with az's words.
    #[command(subcommand)]
    CodeInterpreter(Box<interpreter::CodeInterpreterCommand>),
    /// Print what sessions printed, also those that have ended, or the pool's events.
    Logs(Box<tools::LogsArgs>),
    /// Show what sessions took: seconds ready and allocated, processor time, memory; one by one and in sum.
    Usage {
        #[command(flatten)]
        pool: PoolRef,
        /// Sessions to show one by one, the newest first.
        #[arg(long, default_value_t = 100, value_name = "N", value_parser = clap::value_parser!(u32).range(0..=10_000))]
        limit: u32,
    },
}

/// A pool by name and group.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct PoolRef {
    /// Name of the session pool.
    #[arg(short, long, visible_alias = "pool")]
    name: String,
    #[command(flatten)]
    group: GroupArg,
}

/// A session by pool and identifier.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SessionRef {
    #[command(flatten)]
    pool: PoolRef,
    /// Who the session is for: 4 to 128 characters.
    #[arg(short, long)]
    identifier: String,
}

impl PoolRef {
    /// A path below the pool's endpoint at the API's own address.
    fn path(&self, session: &Session, rest: &str, identifier: Option<&str>) -> String {
        let separator = if rest.contains('?') { '&' } else { '?' };
        let identifier = identifier.map_or_else(String::new, |text| format!("&identifier={}", encode(text)));
        format!(
            "{}/sessionPools/{}/{}{separator}api-version={VERSION}{identifier}",
            session.client.group(&self.group.group),
            encode(&self.name),
            rest.trim_start_matches('/'),
        )
    }
}

impl SessionRef {
    fn path(&self, session: &Session, rest: &str) -> String {
        self.pool.path(session, rest, Some(&self.identifier))
    }
}

pub(crate) fn run(command: PoolSessionCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async { run_in(Session::open(globals).await?, command, globals).await })
}

pub(crate) async fn run_in(
    mut session: Session,
    command: PoolSessionCommand,
    globals: &Globals,
) -> Result<(), Failure> {
    if let PoolSessionCommand::Usage { pool, limit } = &command {
        // of the API itself, whose token it has
        return tools::usage(&session, pool, *limit).await;
    }
    session.client.log_in(&globals.place, AUDIENCE).await?;
    let client = &session.client;
    match command {
        PoolSessionCommand::List(pool) => session.print(list(&session, &pool).await?, View::Plain),
        PoolSessionCommand::Show(one) => {
            session.print(client.get(&one.path(&session, ".management/session")).await?, View::Plain)
        }
        PoolSessionCommand::Stop(one) => {
            client.text(Method::POST, &one.path(&session, ".management/stopSession"), None).await.map(drop)
        }
        PoolSessionCommand::Fork(args) => snapshots::fork(&session, &args).await,
        PoolSessionCommand::Snapshot(command) => snapshots::snapshot(&session, &command).await,
        PoolSessionCommand::Suspend(one) => snapshots::turn(&session, &one, "suspend").await,
        PoolSessionCommand::Resume(one) => snapshots::turn(&session, &one, "resume").await,
        PoolSessionCommand::Request { session: one, path, method, body } => {
            request(&session, &one, &path, method.as_deref(), body.as_deref()).await
        }
        PoolSessionCommand::Exec { session: one, command } => tools::run(&session, &one, &command).await,
        PoolSessionCommand::Shell { session: one, shell } => tools::run(&session, &one, &[shell]).await,
        PoolSessionCommand::Upload { session: one, source, target } => {
            tools::upload(&session, &one, &source, target.as_deref()).await
        }
        PoolSessionCommand::Download { session: one, source, target } => {
            tools::download(&session, &one, &source, target.as_deref()).await
        }
        PoolSessionCommand::CodeInterpreter(command) => interpreter::run(&session, *command).await,
        PoolSessionCommand::Logs(args) => tools::logs(&session, &args).await,
        PoolSessionCommand::Usage { pool, limit } => tools::usage(&session, &pool, limit).await,
    }
}

/// All pages.
async fn list(session: &Session, pool: &PoolRef) -> Result<Value, Failure> {
    let mut all: Vec<Value> = Vec::new();
    loop {
        let path = pool.path(session, &format!(".management/listSessions?skip={}", all.len()), None);
        let mut page = session.client.get(&path).await?;
        let more = page["nextLink"].is_string();
        let before = all.len();
        all.append(page["value"].as_array_mut().unwrap_or(&mut Vec::new()));
        if !more || all.len() == before {
            return Ok(Value::Array(all));
        }
    }
}

async fn request(
    session: &Session,
    one: &SessionRef,
    path: &str,
    method: Option<&str>,
    body: Option<&str>,
) -> Result<(), Failure> {
    let body: Option<Value> = body
        .map(|text| serde_json::from_str(text).map_err(|error| Failure::usage(format!("--body is not JSON: {error}"))))
        .transpose()?;
    let usual = if body.is_some() { "POST" } else { "GET" };
    let method = method.unwrap_or(usual).to_ascii_uppercase();
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| Failure::usage(format!("`{method}` is not a method")))?;
    if let Some(answer) = session.client.text(method, &one.path(session, path), body.as_ref()).await? {
        text::out(&answer);
    }
    Ok(())
}
