//! Which replica and container a command means.

use serde_json::Value;

use super::{AppRef, replica};
use crate::{client::encode, failure::Failure, session::Session};

/// A replica's container, as flags.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct TargetArgs {
    #[command(flatten)]
    pub(super) app: AppRef,
    /// Revision [default: the latest].
    #[arg(long)]
    pub(super) revision: Option<String>,
    /// Replica [default: the newest].
    #[arg(long)]
    pub(super) replica: Option<String>,
    /// Container [default: the first].
    #[arg(long)]
    pub(super) container: Option<String>,
}

/// The container as the server shows it, with its endpoints.
pub(super) async fn container(session: &Session, args: &TargetArgs) -> Result<Value, Failure> {
    let path = replica::path(session, &args.app, args.revision.clone()).await?;
    let found = match &args.replica {
        Some(name) => session.client.get(&format!("{path}/{}", encode(name))).await?,
        None => session.client.list(&path).await?[0].take(),
    };
    if found.is_null() {
        return Err(Failure::not_found(format!("`{}` has no replica at the moment", args.app.name))
            .hint("wake the app with a request, or keep a replica with `update --min-replicas 1`"));
    }
    let empty = Vec::new();
    let containers = found["properties"]["containers"].as_array().unwrap_or(&empty);
    let wanted = |container: &&Value| args.container.as_deref().is_none_or(|name| container["name"] == name);
    containers.iter().find(wanted).cloned().ok_or_else(|| {
        let names: Vec<&str> = containers.iter().filter_map(|container| container["name"].as_str()).collect();
        let name = args.container.as_deref().unwrap_or("");
        Failure::not_found(format!("no container `{name}`; the replica has: {}", names.join(", ")))
    })
}
