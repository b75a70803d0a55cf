//! `cove containerapp`: az's nouns and verbs.

mod auth;
mod bar;
mod compose;
pub(crate) mod cp;
pub(crate) mod create;
mod dapr;
mod environment;
pub(crate) mod exec;
mod github;
mod hostname;
mod identity;
mod ingress;
mod job;
pub(crate) mod logs;
mod port_forward;
mod registry;
mod replica;
mod resiliency;
mod revision;
mod secret;
pub(crate) mod sessionpool;
mod source;
mod target;
mod template;
mod up;
mod update;
mod whole;

use std::process::{Command, Stdio};

use reqwest::Method;
use serde_json::Value;

pub(crate) use job::JobCommand;

use crate::{
    client::{Wait, encode},
    failure::Failure,
    output::View,
    session::{Globals, GroupArg, Session, block_on},
    text,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ContainerappCommand {
    /// Create a container app, or replace it.
    Create(Box<create::CreateArgs>),
    /// Create group, environment and app as needed; the short way.
    Up(Box<up::UpArgs>),
    /// Change a container app; a changed template makes a new revision.
    Update(Box<update::UpdateArgs>),
    /// Show a container app.
    Show {
        #[command(flatten)]
        app: AppRef,
        /// Show the values of secrets too.
        #[arg(long)]
        show_secrets: bool,
    },
    /// List container apps of a group, or of all.
    List {
        /// Resource group.
        #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
        group: Option<String>,
        /// Only apps of this environment (name or id).
        #[arg(long)]
        environment: Option<String>,
    },
    /// Delete a container app.
    Delete {
        #[command(flatten)]
        app: AppRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Start a stopped app.
    Start {
        #[command(flatten)]
        app: AppRef,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Stop an app: no replicas, whatever the load.
    Stop {
        #[command(flatten)]
        app: AppRef,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Environments: the boundary of apps that know each other.
    #[command(subcommand)]
    Env(environment::EnvironmentCommand),
    /// Revisions of an app.
    #[command(subcommand)]
    Revision(revision::RevisionCommand),
    /// Replicas of a revision.
    #[command(subcommand)]
    Replica(replica::ReplicaCommand),
    /// Output of containers and system events.
    #[command(subcommand)]
    Logs(logs::LogsCommand),
    /// Run a command in a running container.
    Exec(Box<exec::ExecArgs>),
    /// A shell that is brought along, in a container whose image has none.
    Debug(Box<exec::DebugArgs>),
    /// Listen here and carry connections to a port of a replica.
    PortForward(Box<port_forward::PortForwardArgs>),
    /// Copy files into a container, or out of it.
    Cp(Box<cp::CpArgs>),
    /// Secrets of an app.
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// Logins of an app at registries.
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// The way in to an app.
    #[command(subcommand)]
    Ingress(ingress::IngressCommand),
    /// What happens to calls of an app that fail.
    #[command(subcommand)]
    Resiliency(Box<resiliency::ResiliencyCommand>),
    /// Dapr of an app.
    #[command(subcommand)]
    Dapr(dapr::DaprCommand),
    /// Identities of an app.
    #[command(subcommand)]
    Identity(identity::IdentityCommand),
    /// Host names of one's own.
    #[command(subcommand)]
    Hostname(Box<hostname::HostnameCommand>),
    /// Certificates for host names.
    #[command(subcommand)]
    Ssl(hostname::SslCommand),
    /// Authentication in front of an app.
    #[command(subcommand)]
    Auth(Box<auth::AuthCommand>),
    /// Jobs: containers that run and end.
    #[command(subcommand)]
    Job(Box<JobCommand>),
    /// Session pools: sandboxes for untrusted code, ready before they are asked for.
    #[command(subcommand)]
    Sessionpool(Box<sessionpool::SessionpoolCommand>),
    /// Sessions of a session pool: the same as `cove session`.
    #[command(subcommand)]
    Session(Box<crate::pool_session::PoolSessionCommand>),
    /// Apps from a compose file.
    #[command(subcommand)]
    Compose(compose::ComposeCommand),
    /// Workflows of GitHub that deploy an app.
    #[command(subcommand)]
    GithubAction(Box<github::GithubCommand>),
    /// What of the subscription's limits is in use.
    ListUsages {
        /// Region; this server has one.
        #[arg(short, long, default_value = "local")]
        location: String,
    },
    /// Show the id that TXT records of host names hold.
    ShowCustomDomainVerificationId,
    /// Open an app in the browser.
    Browse(AppRef),
    #[command(external_subcommand)]
    Other(Vec<String>),
}

/// Nouns of az that the server does not serve.
const NOT_BUILT: [&str; 3] = ["add-on", "connection", "java"];

/// An app by name and group.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct AppRef {
    /// Name of the app.
    #[arg(short, long, alias = "app")]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) group: GroupArg,
}

impl AppRef {
    /// Its path.
    pub(crate) fn path(&self, session: &Session) -> String {
        self.path_of(session, "containerApps")
    }

    /// The path of a resource of another kind with this name.
    pub(crate) fn path_of(&self, session: &Session, kind: &str) -> String {
        session.client.resource(&self.group.group, kind, &self.name)
    }
}

pub(crate) fn run(command: ContainerappCommand, globals: &Globals) -> Result<(), Failure> {
    if let ContainerappCommand::Other(words) = &command {
        return Err(unknown(words));
    }
    block_on(async {
        let session = Session::open(globals).await?;
        let client = &session.client;
        match command {
            ContainerappCommand::Create(args) => create::run(&session, *args).await,
            ContainerappCommand::Up(args) => up::run(&session, *args).await,
            ContainerappCommand::Update(args) => update::run(&session, *args).await,
            ContainerappCommand::Show { app, show_secrets } => {
                let path = app.path(&session);
                let mut found = client.get(&path).await?;
                if show_secrets {
                    whole::fill_secrets(&session, &path, &mut found).await?;
                }
                session.print(found, View::Apps)
            }
            ContainerappCommand::List { group, environment } => list(&session, group, environment).await,
            ContainerappCommand::Delete { app, yes, no_wait } => {
                session.confirm(&format!("Delete the container app `{}`?", app.name), yes)?;
                client.delete(&app.path(&session), Wait::unless(no_wait)).await
            }
            ContainerappCommand::Start { app, no_wait } => act(&session, &app, "start", no_wait).await,
            ContainerappCommand::Stop { app, no_wait } => act(&session, &app, "stop", no_wait).await,
            ContainerappCommand::Env(command) => environment::run(&session, command).await,
            ContainerappCommand::Revision(command) => revision::run(&session, command).await,
            ContainerappCommand::Replica(command) => replica::run(&session, command).await,
            ContainerappCommand::Logs(command) => logs::run(&session, command).await,
            ContainerappCommand::Exec(args) => exec::exec(&session, *args).await,
            ContainerappCommand::Debug(args) => exec::debug(&session, *args).await,
            ContainerappCommand::PortForward(args) => port_forward::run(&session, *args).await,
            ContainerappCommand::Cp(args) => cp::run(&session, *args).await,
            ContainerappCommand::Secret(command) => secret::run(&session, command, "containerApps").await,
            ContainerappCommand::Registry(command) => registry::run(&session, command, "containerApps").await,
            ContainerappCommand::Ingress(command) => ingress::run(&session, command).await,
            ContainerappCommand::Resiliency(command) => resiliency::run(&session, *command).await,
            ContainerappCommand::Dapr(command) => dapr::run(&session, command).await,
            ContainerappCommand::Identity(command) => identity::run(&session, command, "containerApps").await,
            ContainerappCommand::Hostname(command) => hostname::run(&session, *command).await,
            ContainerappCommand::Ssl(command) => hostname::ssl(&session, command).await,
            ContainerappCommand::Auth(command) => auth::run(&session, *command).await,
            ContainerappCommand::Job(command) => job::run(&session, *command).await,
            ContainerappCommand::Sessionpool(command) => sessionpool::run(&session, *command).await,
            ContainerappCommand::Session(command) => crate::pool_session::run_in(session, *command, globals).await,
            ContainerappCommand::Compose(command) => compose::run(&session, command).await,
            ContainerappCommand::GithubAction(command) => github::run(&session, *command).await,
            ContainerappCommand::ListUsages { location } => {
                let path = client.provider(&format!("locations/{}/usages", encode(&location)));
                session.print(client.list(&path).await?, View::Usages)
            }
            ContainerappCommand::ShowCustomDomainVerificationId => {
                let path = client.provider("getCustomDomainVerificationId");
                session.print(client.post(&path, None).await?, View::Plain)
            }
            ContainerappCommand::Browse(app) => open(&session, &client.get(&app.path(&session)).await?),
            ContainerappCommand::Other(words) => Err(unknown(&words)),
        }
    })
}

fn unknown(words: &[String]) -> Failure {
    let word = words.first().map_or("", String::as_str);
    if NOT_BUILT.contains(&word) {
        return Failure::usage(format!("`containerapp {word}` is not built yet"))
            .hint("docs/guide and the table in the README say what is");
    }
    Failure::usage(format!("`containerapp {word}` is not a command")).hint("cove containerapp --help")
}

async fn list(session: &Session, group: Option<String>, environment: Option<String>) -> Result<(), Failure> {
    let client = &session.client;
    let scope = match &group {
        Some(group) => client.group(group),
        None => format!("/subscriptions/{}", client.subscription()),
    };
    let mut apps = client.list(&format!("{scope}/providers/Microsoft.App/containerApps")).await?;
    if let (Some(environment), Some(apps)) = (environment, apps.as_array_mut()) {
        let ending = format!("/{environment}").to_lowercase();
        apps.retain(|app| {
            let id = app["properties"]["environmentId"].as_str().unwrap_or_default().to_lowercase();
            id == environment.to_lowercase() || id.ends_with(&ending)
        });
    }
    session.print(apps, View::Apps)
}

/// Opens the app with the desktop's opener; without one its URL is all there is.
fn open(session: &Session, app: &Value) -> Result<(), Failure> {
    let fqdn = whole::ingress(app)?["fqdn"].as_str().unwrap_or_default();
    let url = session.client.app_url(fqdn);
    let opened = Command::new("xdg-open").arg(&url).stdin(Stdio::null()).stdout(Stdio::null()).status();
    if !opened.is_ok_and(|status| status.success()) {
        text::note(&format!("No browser was found; open it yourself: {url}"));
    }
    Ok(())
}

async fn act(session: &Session, app: &AppRef, verb: &str, no_wait: bool) -> Result<(), Failure> {
    let path = format!("{}/{verb}", app.path(session));
    let app = session.client.write(Method::POST, &path, None, Wait::unless(no_wait)).await?;
    session.print(app, View::Apps)
}
