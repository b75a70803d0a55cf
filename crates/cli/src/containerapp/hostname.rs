//! `containerapp hostname` and `containerapp ssl`: host names of one's own.

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    AppRef,
    environment::certificate::{self, FileArgs, Filter},
    whole,
};
use crate::{
    client::encode,
    failure::Failure,
    output::{View, group_of},
    session::Session,
    text,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum HostnameCommand {
    /// List the app's host names.
    List {
        #[command(flatten)]
        app: AppRef,
        /// Region; this server has one.
        #[arg(short, long, hide = true)]
        location: Option<String>,
    },
    /// Add a host name without a certificate.
    Add {
        #[command(flatten)]
        app: AppRef,
        /// The host name.
        #[arg(long)]
        hostname: String,
        /// Region; this server has one.
        #[arg(short, long, hide = true)]
        location: Option<String>,
    },
    /// Bind a host name to a certificate; without one a managed certificate is made.
    Bind(Box<BindArgs>),
    /// Delete a host name.
    Delete {
        #[command(flatten)]
        app: AppRef,
        /// The host name.
        #[arg(long)]
        hostname: String,
        /// Region; this server has one.
        #[arg(short, long, hide = true)]
        location: Option<String>,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum SslCommand {
    /// Upload a certificate and bind a host name to it.
    Upload(Box<UploadArgs>),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct BindArgs {
    #[command(flatten)]
    app: AppRef,
    /// The host name.
    #[arg(long)]
    hostname: String,
    #[command(flatten)]
    filter: Filter,
    /// Name or id of the environment.
    #[arg(short, long)]
    environment: Option<String>,
    /// How the domain is proven for a managed certificate: HTTP, CNAME or TXT.
    #[arg(short, long, ignore_case = true, value_parser = ["HTTP", "CNAME", "TXT"])]
    validation_method: Option<String>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UploadArgs {
    #[command(flatten)]
    app: AppRef,
    /// The host name.
    #[arg(long)]
    hostname: String,
    /// Name or id of the environment.
    #[arg(short, long)]
    environment: String,
    #[command(flatten)]
    certificate: FileArgs,
    /// Region; this server has one.
    #[arg(short, long, hide = true)]
    location: Option<String>,
}

pub(super) async fn run(session: &Session, command: HostnameCommand) -> Result<(), Failure> {
    match command {
        HostnameCommand::List { app, .. } => {
            let found = session.client.get(&app.path(session)).await?;
            session.print(Value::Array(domains(&found)), View::Plain)
        }
        HostnameCommand::Add { app, hostname, .. } => {
            let name = hostname.to_lowercase();
            let mut domains = domains(&session.client.get(&app.path(session)).await?);
            if domains.iter().any(|domain| is_named(domain, &name)) {
                return Err(Failure::new(format!("the app has the host name `{name}` already")));
            }
            domains.push(json!({ "name": name, "bindingType": "Disabled" }));
            put(session, &app, domains).await
        }
        HostnameCommand::Bind(args) => bind(session, *args).await,
        HostnameCommand::Delete { app, hostname, yes, .. } => {
            session.confirm(&format!("Delete the host name `{hostname}`?"), yes)?;
            let mut domains = domains(&session.client.get(&app.path(session)).await?);
            let before = domains.len();
            domains.retain(|domain| !is_named(domain, &hostname));
            if domains.len() == before {
                return Err(Failure::not_found(format!("the app has no host name `{hostname}`")));
            }
            put(session, &app, domains).await
        }
    }
}

pub(super) async fn ssl(session: &Session, command: SslCommand) -> Result<(), Failure> {
    let SslCommand::Upload(args) = command;
    let name = args.hostname.to_lowercase();
    verify(session, &args.app, &name).await?;
    let path = session.client.environment(&args.app.group.group, &args.environment);
    let made = certificate::upload(session, &path, &args.certificate).await?;
    attach(session, &args.app, &name, &made["id"]).await
}

async fn bind(session: &Session, args: BindArgs) -> Result<(), Failure> {
    let name = args.hostname.to_lowercase();
    let by_id = args.filter.certificate.as_ref().filter(|name| name.starts_with('/'));
    if args.environment.is_none() && by_id.is_none() {
        return Err(Failure::usage("which environment has the certificate?").hint("add --environment NAME"));
    }
    verify(session, &args.app, &name).await?;
    if let Some(id) = by_id {
        return attach(session, &args.app, &name, &json!(id)).await;
    }
    let environment = args.environment.as_deref().unwrap_or_default();
    let path = session.client.environment(&args.app.group.group, environment);
    let is_named = args.filter.certificate.is_some() || args.filter.thumbprint.is_some();
    if is_named {
        let found =
            certificate::find(&session.client, &path, &args.filter, args.filter.thumbprint.is_none(), true).await?;
        let id = found.first().map(|found| found["id"].clone());
        let group = group_of(&path).unwrap_or_default();
        let missing =
            || Failure::not_found(format!("the environment `{environment}` of `{group}` has no such certificate"));
        return attach(session, &args.app, &name, &id.ok_or_else(missing)?).await;
    }
    let managed = certificate::find(&session.client, &path, &Filter::default(), true, false).await?;
    let usable = managed.into_iter().find(|certificate| {
        let properties = &certificate["properties"];
        properties["subjectName"].as_str().is_some_and(|subject| subject.eq_ignore_ascii_case(&name))
            && matches!(properties["provisioningState"].as_str(), Some("Succeeded" | "Pending"))
    });
    let certificate = match usable {
        Some(certificate) => certificate,
        None => {
            let method = args.validation_method.ok_or_else(|| {
                Failure::usage("how is the domain proven?").hint("add --validation-method HTTP, CNAME or TXT")
            })?;
            text::note(&format!("Creating a managed certificate for {name}"));
            let new = certificate::managed_name(&name);
            certificate::create_managed(&session.client, &path, &new, &name, &method).await?
        }
    };
    attach(session, &args.app, &name, &certificate["id"]).await
}

/// Whether the DNS of the host name is right, as the server sees it.
async fn verify(session: &Session, app: &AppRef, name: &str) -> Result<(), Failure> {
    let path = format!("{}/listCustomHostNameAnalysis?customHostname={}", app.path(session), encode(name));
    let answer = session.client.raw(Method::POST, &path, None).await?.unwrap_or_default();
    if answer["hasConflictOnManagedEnvironment"] == true {
        let other = answer["conflictingContainerAppResourceId"].as_str().unwrap_or("another app");
        return Err(Failure::new(format!("`{name}` belongs to {other} already")));
    }
    if answer["customDomainVerificationTest"].as_str().is_some_and(|test| test != "Passed") {
        let why = answer["customDomainVerificationFailureInfo"]["message"].as_str();
        return Err(Failure::new(why.unwrap_or("the DNS records of the host name are not set up")));
    }
    Ok(())
}

async fn attach(session: &Session, app: &AppRef, name: &str, certificate: &Value) -> Result<(), Failure> {
    let mut domains = domains(&session.client.get(&app.path(session)).await?);
    domains.retain(|domain| !is_named(domain, name));
    domains.push(json!({ "name": name, "bindingType": "SniEnabled", "certificateId": certificate }));
    put(session, app, domains).await
}

async fn put(session: &Session, app: &AppRef, domains: Vec<Value>) -> Result<(), Failure> {
    let body = json!({ "ingress": { "customDomains": domains } });
    let changed = whole::patch_configuration(session, &app.path(session), body).await?;
    session.print(Value::Array(self::domains(&changed)), View::Plain)
}

fn domains(app: &Value) -> Vec<Value> {
    app["properties"]["configuration"]["ingress"]["customDomains"].as_array().cloned().unwrap_or_default()
}

fn is_named(domain: &Value, name: &str) -> bool {
    domain["name"].as_str().is_some_and(|known| known.eq_ignore_ascii_case(name))
}
