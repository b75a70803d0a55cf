//! `containerapp up`: from an image or a folder to a URL with one command.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::json;

use super::{
    create::{self, AppArgs, IngressType},
    source,
};
use crate::{client::Wait, failure::Failure, output::View, session::Session, text};

/// Image whose port is known, as az knows it.
const QUICKSTART: &str = "mcr.microsoft.com/k8se/quickstart";
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
    /// Folder with a Dockerfile to build.
    #[arg(long, value_name = "DIR", conflicts_with = "image")]
    source: Option<PathBuf>,
    /// Open the app in the browser afterwards.
    #[arg(long)]
    browse: bool,
    /// Repository to build from: by GitHub's workflows, which are not built here.
    #[arg(long, hide = true)]
    repo: Option<String>,
    /// Log Analytics workspace of a new environment.
    #[arg(long, hide = true, requires = "logs_workspace_key")]
    logs_workspace_id: Option<String>,
    /// Its key.
    #[arg(long, hide = true)]
    logs_workspace_key: Option<String>,
    #[command(flatten)]
    app: AppArgs,
}

pub(crate) async fn run(session: &Session, args: UpArgs) -> Result<(), Failure> {
    let client = &session.client;
    if args.repo.is_some() {
        return Err(Failure::usage("--repo builds with GitHub's workflows, which are not built here")
            .hint("clone the repository and name its folder with --source"));
    }
    let mut app = args.app.clone();
    if let Some(folder) = &args.source {
        let built = source::build(session, &args.name, folder, None).await?;
        app.container.image = Some(built.image);
        if app.ingress.target_port.is_none() && app.ingress.ingress.is_none() {
            app.ingress.target_port = built.port;
        }
    }
    guess_ingress(&mut app);
    let mut body = create::body(&args.name, &app)?;
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
            let mut body = json!({ "location": "local", "properties": { "workloadProfiles": [
                { "name": "Consumption", "workloadProfileType": "Consumption" }] } });
            if let (Some(id), Some(key)) = (&args.logs_workspace_id, &args.logs_workspace_key) {
                body["properties"]["appLogsConfiguration"] = json!({ "destination": "log-analytics",
                    "logAnalyticsConfiguration": { "customerId": id, "sharedKey": key } });
            }
            client.write(Method::PUT, &path, Some(&body), Wait::Done).await?
        }
    };
    body["location"] = environment["location"].clone();
    body["properties"]["environmentId"] = environment["id"].clone();
    let id = environment["id"].as_str().unwrap_or(&path).to_owned();
    create::place(session, &args.group, &id, &mut body, &app).await?;
    text::note(&format!("Creating the container app `{}`", args.name));
    let app = client.write(Method::PUT, &client.app(&args.group, &args.name), Some(&body), Wait::Done).await?;
    create::say_url(session, &app);
    if args.browse && !client.is_dry_run() {
        super::open(session, &app)?;
    }
    session.print(app, View::Apps)
}

/// As az: the quickstart listens on port 80; whoever names a port wants to be reached.
fn guess_ingress(app: &mut AppArgs) {
    let ingress = &mut app.ingress;
    if app.container.image.as_ref().is_some_and(|image| image.to_ascii_lowercase().contains(QUICKSTART)) {
        ingress.ingress.get_or_insert(IngressType::External);
        ingress.target_port.get_or_insert(80);
    }
    if ingress.target_port.is_some() {
        ingress.ingress.get_or_insert(IngressType::External);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ingress_is_guessed_as_az_does() {
        let check = |image: &str, port: Option<u16>| {
            let mut app = AppArgs::default();
            app.container.image = Some(image.to_owned());
            app.ingress.target_port = port;
            guess_ingress(&mut app);
            (app.ingress.ingress, app.ingress.target_port)
        };
        let external = Some(IngressType::External);
        assert_eq!(check("mcr.microsoft.com/k8se/quickstart:latest", None), (external, Some(80)));
        assert_eq!(check("web", Some(8080)), (external, Some(8080)));
        assert_eq!(check("web", None), (None, None));
    }
}
