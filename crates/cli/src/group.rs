//! `cove group`: resource groups.

use reqwest::Method;
use serde_json::json;

use crate::{
    client::Wait,
    failure::Failure,
    output::View,
    pairs,
    session::{Globals, Session, block_on},
    text,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum GroupCommand {
    /// Create a resource group.
    Create {
        #[command(flatten)]
        name: Name,
        /// Region; this server has one.
        #[arg(short, long, default_value = "local")]
        location: String,
        /// `key=value …`
        #[arg(long, num_args = 0..)]
        tags: Vec<String>,
    },
    /// Show a resource group.
    Show(Name),
    /// List resource groups.
    List,
    /// Delete a resource group with everything in it.
    Delete {
        #[command(flatten)]
        name: Name,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Say `true` or `false`.
    Exists(Name),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Name {
    /// Name of the group.
    #[arg(short, long = "name", short_alias = 'g', alias = "resource-group")]
    name: String,
}

pub(crate) fn run(command: GroupCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let client = &session.client;
        match command {
            GroupCommand::Create { name, location, tags } => {
                let mut body = json!({ "location": location });
                if !tags.is_empty() {
                    body["tags"] = pairs::object(&tags, "--tags")?;
                }
                let group = client.write(Method::PUT, &client.group(&name.name), Some(&body), Wait::Done).await?;
                session.print(group, View::Groups)
            }
            GroupCommand::Show(name) => session.print(client.get(&client.group(&name.name)).await?, View::Groups),
            GroupCommand::List => {
                let path = format!("/subscriptions/{}/resourceGroups", client.subscription());
                session.print(client.list(&path).await?, View::Groups)
            }
            GroupCommand::Delete { name, yes, no_wait } => {
                session.confirm(&format!("Delete the resource group `{}` and everything in it?", name.name), yes)?;
                client.delete(&client.group(&name.name), Wait::unless(no_wait)).await
            }
            GroupCommand::Exists(name) => {
                let found = client.find(&client.group(&name.name)).await?;
                text::out(&format!("{}\n", found.is_some()));
                Ok(())
            }
        }
    })
}
