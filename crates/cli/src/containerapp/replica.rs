//! `containerapp replica`.

use super::{AppRef, revision};
use crate::{client::encode, failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ReplicaCommand {
    /// List replicas of a revision.
    List {
        #[command(flatten)]
        app: AppRef,
        /// Revision [default: the latest].
        #[arg(long)]
        revision: Option<String>,
    },
    /// Show a replica.
    Show {
        #[command(flatten)]
        app: AppRef,
        /// Revision [default: the latest].
        #[arg(long)]
        revision: Option<String>,
        /// Name of the replica.
        #[arg(long)]
        replica: String,
    },
}

pub(crate) async fn run(session: &Session, command: ReplicaCommand) -> Result<(), Failure> {
    match command {
        ReplicaCommand::List { app, revision } => {
            let path = path(session, &app, revision).await?;
            session.print(session.client.list(&path).await?, View::Replicas)
        }
        ReplicaCommand::Show { app, revision, replica } => {
            let path = path(session, &app, revision).await?;
            session.print(session.client.get(&format!("{path}/{}", encode(&replica))).await?, View::Replicas)
        }
    }
}

/// The replicas of the revision, or of the latest one.
pub(super) async fn path(session: &Session, app: &AppRef, name: Option<String>) -> Result<String, Failure> {
    let path = app.path(session);
    let name = match name {
        Some(name) => name,
        None => revision::latest(&session.client.get(&path).await?)?.to_owned(),
    };
    Ok(format!("{path}/revisions/{}/replicas", encode(&name)))
}
