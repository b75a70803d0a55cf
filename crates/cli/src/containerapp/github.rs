//! `containerapp github-action`: workflows of GitHub that deploy an app.
//!
//! az writes the workflow into the repository itself and tells Azure; here only the telling exists, and the server says
//! whether it is built.

use reqwest::Method;
use serde_json::{Value, json};

use super::AppRef;
use crate::{client::Wait, failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum GithubCommand {
    /// Show the connection.
    Show(AppRef),
    /// Connect an app with a repository.
    Add(Box<AddArgs>),
    /// Remove the connection.
    Delete {
        #[command(flatten)]
        app: AppRef,
        /// Access token of the repository.
        #[arg(long)]
        token: Option<String>,
        /// Log in with a browser.
        #[arg(long, hide = true)]
        login_with_github: bool,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AddArgs {
    #[command(flatten)]
    app: AppRef,
    /// `https://github.com/OWNER/REPOSITORY`.
    #[arg(long)]
    repo_url: String,
    /// Branch [default: main].
    #[arg(short, long)]
    branch: Option<String>,
    /// Access token of the repository.
    #[arg(long)]
    token: Option<String>,
    /// Log in with a browser.
    #[arg(long, hide = true)]
    login_with_github: bool,
    /// Registry for the images.
    #[arg(long)]
    registry_url: Option<String>,
    /// User at the registry.
    #[arg(long)]
    registry_username: Option<String>,
    /// Password at the registry.
    #[arg(long)]
    registry_password: Option<String>,
    /// Folder of the Dockerfile in the repository.
    #[arg(long)]
    context_path: Option<String>,
    /// Name of the image.
    #[arg(short, long)]
    image: Option<String>,
    /// Service principal that deploys.
    #[arg(long)]
    service_principal_client_id: Option<String>,
    /// Its secret.
    #[arg(long)]
    service_principal_client_secret: Option<String>,
    /// Its tenant.
    #[arg(long)]
    service_principal_tenant_id: Option<String>,
}

pub(super) async fn run(session: &Session, command: GithubCommand) -> Result<(), Failure> {
    let path = |app: &AppRef| format!("{}/sourcecontrols/current", app.path(session));
    match command {
        GithubCommand::Show(app) => session.print(session.client.get(&path(&app)).await?, View::Plain),
        GithubCommand::Add(args) => {
            let body = json!({ "properties": without_nulls(json!({
                "repoUrl": args.repo_url,
                "branch": args.branch.as_deref().unwrap_or("main"),
                "githubActionConfiguration": without_nulls(json!({
                    "githubPersonalAccessToken": args.token,
                    "contextPath": args.context_path,
                    "image": args.image,
                    "registryInfo": without_nulls(json!({ "registryUrl": args.registry_url,
                        "registryUserName": args.registry_username, "registryPassword": args.registry_password })),
                    "azureCredentials": without_nulls(json!({ "clientId": args.service_principal_client_id,
                        "clientSecret": args.service_principal_client_secret,
                        "tenantId": args.service_principal_tenant_id,
                        "subscriptionId": session.client.subscription() })),
                })),
            })) });
            let made = session.client.write(Method::PUT, &path(&args.app), Some(&body), Wait::Done).await?;
            session.print(made, View::Plain)
        }
        GithubCommand::Delete { app, .. } => session.client.delete(&path(&app), Wait::Done).await,
    }
}

fn without_nulls(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    object
}
