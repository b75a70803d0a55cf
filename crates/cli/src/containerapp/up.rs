//! `containerapp up`: from an image to a URL with one command.

use reqwest::Method;
use serde_json::json;

use super::create::{self, AppArgs};
use crate::{client::Wait, failure::Failure, output::View, session::Session, text};

/// Group and environment where none is named.
const DEFAULT_NAME: &str = "cove";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpArgs {
    /// Name of the app.
    #[arg(short, long)]
    name: String,
    /// Resource group; made when missing.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true, default_value = DEFAULT_NAME)]
    group: String,
    /// Environment; made when missing.
    #[arg(long, default_value = DEFAULT_NAME)]
    environment: String,
    #[command(flatten)]
    app: AppArgs,
}

pub(crate) async fn run(session: &Session, args: UpArgs) -> Result<(), Failure> {
    let client = &session.client;
    let mut body = create::body(&args.name, &args.app)?;
    let group = client.group(&args.group);
    if client.find(&group).await?.is_none() {
        text::note(&format!("Creating the resource group `{}`", args.group));
        client.write(Method::PUT, &group, Some(&json!({ "location": "local" })), Wait::Done).await?;
    }
    let path = client.environment(&args.group, &args.environment);
    let environment = match client.find(&path).await? {
        Some(environment) => environment,
        None => {
            text::note(&format!("Creating the environment `{}`", args.environment));
            let body = json!({ "location": "local", "properties": {} });
            client.write(Method::PUT, &path, Some(&body), Wait::Done).await?
        }
    };
    body["location"] = environment["location"].clone();
    body["properties"]["environmentId"] = environment["id"].clone();
    let id = environment["id"].as_str().unwrap_or(&path).to_owned();
    create::place(session, &args.group, &id, &mut body, &args.app).await?;
    text::note(&format!("Creating the container app `{}`", args.name));
    let app = client.write(Method::PUT, &client.app(&args.group, &args.name), Some(&body), Wait::Done).await?;
    create::say_url(session, &app);
    session.print(app, View::Apps)
}
