//! `sessionpool`, also `containerapp sessionpool`: pools of sandboxes that wait ready.

mod body;

use super::AppRef;
use crate::{client::Wait, failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum SessionpoolCommand {
    /// Create a session pool, or replace it.
    Create(Box<body::CreateArgs>),
    /// Change a session pool; sessions that are allocated keep what they began with.
    Update(Box<body::UpdateArgs>),
    /// Show a session pool; `properties.poolManagementEndpoint` is where requests go.
    Show(AppRef),
    /// List session pools of a group, or of all.
    List {
        /// Resource group.
        #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
        group: Option<String>,
    },
    /// Delete a session pool and end all its sessions.
    Delete {
        #[command(flatten)]
        pool: AppRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
}

/// ARM's type below `Microsoft.App`.
pub(crate) const KIND: &str = "sessionPools";

pub(super) async fn run(session: &Session, command: SessionpoolCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        SessionpoolCommand::Create(args) => body::create(session, *args).await,
        SessionpoolCommand::Update(args) => body::update(session, *args).await,
        SessionpoolCommand::Show(pool) => {
            session.print(client.get(&pool.path_of(session, KIND)).await?, View::SessionPools)
        }
        SessionpoolCommand::List { group } => {
            let scope = match &group {
                Some(group) => client.group(group),
                None => format!("/subscriptions/{}", client.subscription()),
            };
            let path = format!("{scope}/providers/Microsoft.App/{KIND}");
            session.print(client.list(&path).await?, View::SessionPools)
        }
        SessionpoolCommand::Delete { pool, yes, no_wait } => {
            session.confirm(&format!("Delete the session pool `{}` and end its sessions?", pool.name), yes)?;
            client.delete(&pool.path_of(session, KIND), Wait::unless(no_wait)).await
        }
    }
}
