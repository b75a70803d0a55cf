//! `containerapp compose create`: an app per service of a compose file, as az makes them, and `x-azure-*` overrides.

mod service;

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};

use super::{create, source};
use crate::{
    client::Wait,
    failure::Failure,
    file,
    output::View,
    pairs,
    session::{GroupArg, Session},
    text,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ComposeCommand {
    /// Create an app per service.
    Create(Box<ComposeArgs>),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ComposeArgs {
    #[command(flatten)]
    group: GroupArg,
    /// Name or id of the environment; made when missing.
    #[arg(short, long)]
    environment: String,
    /// The compose file.
    #[arg(short = 'f', long, default_value = "./docker-compose.yml", value_name = "FILE")]
    compose_file_path: PathBuf,
    #[command(flatten)]
    registry: RegistryArgs,
    /// Transport of services: `service=http2 …`
    #[arg(long, alias = "transport", num_args = 1.., action = clap::ArgAction::Append, value_name = "SERVICE=TRANSPORT")]
    transport_mapping: Vec<String>,
    /// Region; this server has one.
    #[arg(short, long, default_value = "local")]
    location: String,
    /// `key=value …`
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE")]
    tags: Vec<String>,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct RegistryArgs {
    /// Registry of the images.
    #[arg(long, value_name = "HOST")]
    registry_server: Option<String>,
    /// User at the registry.
    #[arg(long, value_name = "USER")]
    registry_username: Option<String>,
    /// Password at the registry.
    #[arg(long, value_name = "PASSWORD")]
    registry_password: Option<String>,
}

pub(super) async fn run(session: &Session, command: ComposeCommand) -> Result<(), Failure> {
    let ComposeCommand::Create(args) = command;
    let client = &session.client;
    let mut compose = file::yaml(&args.compose_file_path)?;
    let folder = args.compose_file_path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or_else(|| Path::new(".")).to_owned();
    service::substitute(&mut compose, &service::variables(&folder))?;
    // everything is read before anything is made
    let services = service::read(&compose, &folder)?;
    for name in &services {
        for part in &name.ignored {
            text::note(&format!("{}: `{part}` has no meaning here and is left out", name.name));
        }
    }
    let path = client.environment(&args.group.group, &args.environment);
    let environment = match client.find(&path).await? {
        Some(environment) => environment,
        None => {
            text::note(&format!("Creating the environment `{}`", args.environment));
            let mut body = json!({ "location": args.location, "properties": { "workloadProfiles": [
                { "name": "Consumption", "workloadProfileType": "Consumption" }] } });
            if !args.tags.is_empty() {
                body["tags"] = pairs::object(&args.tags, "--tags")?;
            }
            client.write(Method::PUT, &path, Some(&body), Wait::Done).await?
        }
    };
    let mut made = Vec::new();
    for found in &services {
        let app = app(session, &args, found, &environment).await?;
        text::note(&format!("Creating the container app `{}`", found.name));
        let target = client.app(&args.group.group, &found.name);
        let app = client.write(Method::PUT, &target, Some(&app), Wait::Done).await?;
        create::say_url(session, &app);
        made.push(app);
    }
    session.print(Value::Array(made), View::Apps)
}

/// The body of a service's app.
async fn app(
    session: &Session,
    args: &ComposeArgs,
    found: &service::Service,
    environment: &Value,
) -> Result<Value, Failure> {
    let mut image = found.image.clone();
    if let Some(build) = &found.build {
        image = Some(source::build(session, &found.name, &build.context, build.dockerfile.as_deref()).await?.image);
    }
    let mut body = found.body(image.as_deref().unwrap_or_default());
    body["location"] = environment["location"].clone();
    body["properties"]["environmentId"] = environment["id"].clone();
    let configuration = &mut body["properties"]["configuration"];
    for pair in &args.transport_mapping {
        let (service, transport) = pairs::split(pair, "--transport-mapping")?;
        if service.eq_ignore_ascii_case(&found.name) && configuration["ingress"].is_object() {
            configuration["ingress"]["transport"] = transport.into();
        }
    }
    // an image that was built here needs no login
    if found.build.is_none() {
        let flags = create::ConfigurationArgs {
            registry_server: args.registry.registry_server.clone(),
            registry_username: args.registry.registry_username.clone(),
            registry_password: args.registry.registry_password.clone(),
            ..create::ConfigurationArgs::default()
        };
        let mut secrets = configuration["secrets"].as_array().cloned().unwrap_or_default();
        if let Some(registry) = create::registry(&flags, &mut secrets)? {
            configuration["registries"] = json!([registry]);
            configuration["secrets"] = Value::Array(secrets);
        }
    }
    Ok(body)
}
