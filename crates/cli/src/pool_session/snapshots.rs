//! Forks of sessions, snapshots of them, and suspended sessions.

use reqwest::Method;
use serde_json::{Value, json};

use super::{PoolRef, SessionRef};
use crate::{client::encode, failure::Failure, output::View, session::Session};

/// What `session fork` takes.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ForkArgs {
    #[command(flatten)]
    session: SessionRef,
    /// How many, 1..=20 [default: 1, or as many as there are targets].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=20))]
    count: Option<u8>,
    /// Identifiers of the new sessions [default: ones that are drawn].
    #[arg(long, num_args = 1..=20, value_name = "IDENTIFIER")]
    targets: Vec<String>,
    /// Begin anew with the files, whatever could be kept of the memory.
    #[arg(long)]
    no_memory: bool,
}

/// `session snapshot …`.
#[derive(Clone, Debug, clap::Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Keep the files of a session, as they are now, under a name.
    Create {
        #[command(flatten)]
        session: SessionRef,
        /// 1 to 63 lower case letters, digits and `-`.
        #[arg(long)]
        snapshot: String,
    },
    /// List the snapshots of a pool.
    List(PoolRef),
    /// Show a snapshot.
    Show(SnapshotRef),
    /// Delete a snapshot that no pool uses.
    Delete(SnapshotRef),
}

/// A snapshot by pool and name.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct SnapshotRef {
    #[command(flatten)]
    pool: PoolRef,
    /// Its name.
    #[arg(long)]
    snapshot: String,
}

/// Sessions that have the files of one.
pub(super) async fn fork(session: &Session, args: &ForkArgs) -> Result<(), Failure> {
    let mut body = json!({});
    if !args.targets.is_empty() {
        body["identifiers"] = json!(args.targets);
    }
    if let Some(count) = args.count {
        body["count"] = json!(count);
    }
    if args.no_memory {
        body["memory"] = json!(false);
    }
    print(session, Method::POST, &args.session.path(session, ".management/fork"), Some(&body)).await
}

/// Ends one and keeps its files, or begins one that was ended so.
pub(super) async fn turn(session: &Session, one: &SessionRef, verb: &str) -> Result<(), Failure> {
    print(session, Method::POST, &one.path(session, &format!(".management/{verb}")), None).await
}

pub(super) async fn snapshot(session: &Session, command: &SnapshotCommand) -> Result<(), Failure> {
    let one = |of: &SnapshotRef| {
        let rest = format!(".management/snapshots/{}", encode(&of.snapshot));
        of.pool.path(session, &rest, None)
    };
    match command {
        SnapshotCommand::Create { session: of, snapshot } => {
            let body = json!({ "name": snapshot });
            print(session, Method::POST, &of.path(session, ".management/snapshot"), Some(&body)).await
        }
        SnapshotCommand::List(pool) => {
            let mut all = session.client.get(&pool.path(session, ".management/snapshots", None)).await?;
            session.print(all["value"].take(), View::Plain)
        }
        SnapshotCommand::Show(of) => session.print(session.client.get(&one(of)).await?, View::Plain),
        SnapshotCommand::Delete(of) => session.client.text(Method::DELETE, &one(of), None).await.map(drop),
    }
}

async fn print(session: &Session, method: Method, path: &str, body: Option<&Value>) -> Result<(), Failure> {
    match session.client.raw(method, path, body).await? {
        Some(answer) => session.print(answer, View::Plain),
        None => Ok(()),
    }
}
