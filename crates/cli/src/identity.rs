//! `cove identity`: user-assigned identities.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::Wait,
    failure::Failure,
    output::View,
    pairs,
    session::{Globals, GroupArg, Session, block_on},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum IdentityCommand {
    /// Create an identity.
    Create {
        #[command(flatten)]
        identity: IdentityRef,
        /// Region [default: the group's].
        #[arg(short, long)]
        location: Option<String>,
        /// `key=value …`
        #[arg(long, num_args = 0.., value_name = "KEY=VALUE")]
        tags: Vec<String>,
    },
    /// Show an identity.
    Show(IdentityRef),
    /// List identities of a group, or of all.
    List {
        /// Resource group.
        #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
        group: Option<String>,
    },
    /// Delete an identity.
    Delete(IdentityRef),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct IdentityRef {
    /// Name of the identity.
    #[arg(short, long)]
    name: String,
    #[command(flatten)]
    group: GroupArg,
}

pub(crate) fn run(command: IdentityCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let client = &session.client;
        let path = |identity: &IdentityRef| client.identity(&identity.group.group, &identity.name);
        match command {
            IdentityCommand::Create { identity, location, tags } => {
                let location = match location {
                    Some(location) => Value::from(location),
                    None => client.get(&client.group(&identity.group.group)).await?["location"].take(),
                };
                let mut body = json!({ "location": location });
                if !tags.is_empty() {
                    body["tags"] = pairs::object(&tags, "--tags")?;
                }
                let made = client.write(Method::PUT, &path(&identity), Some(&body), Wait::Done).await?;
                session.print(flat(made), View::Identities)
            }
            IdentityCommand::Show(identity) => {
                session.print(flat(client.get(&path(&identity)).await?), View::Identities)
            }
            IdentityCommand::List { group } => {
                let scope = match &group {
                    Some(group) => client.group(group),
                    None => format!("/subscriptions/{}", client.subscription()),
                };
                let path = format!("{scope}/providers/Microsoft.ManagedIdentity/userAssignedIdentities");
                let mut list = client.list(&path).await?;
                if let Some(list) = list.as_array_mut() {
                    list.iter_mut().for_each(|identity| *identity = flat(identity.take()));
                }
                session.print(list, View::Identities)
            }
            IdentityCommand::Delete(identity) => client.delete(&path(&identity), Wait::Done).await,
        }
    })
}

/// az shows an identity's properties beside its name.
fn flat(mut identity: Value) -> Value {
    if let Value::Object(properties) = identity["properties"].take()
        && let Some(fields) = identity.as_object_mut()
    {
        fields.remove("properties");
        fields.extend(properties);
    }
    identity
}
