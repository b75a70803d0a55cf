//! `containerapp job`: containers that run and end.

mod artifacts;
mod body;
mod logs;

use std::path::PathBuf;

use serde_json::{Value, json};

use super::{
    AppRef,
    identity::{self, IdentityCommand},
    registry::{self, RegistryCommand},
    secret::{self, SecretCommand},
    template,
};
use crate::{
    client::{Wait, encode},
    failure::Failure,
    file,
    output::View,
    pairs,
    session::Session,
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum JobCommand {
    /// Create a job, or replace it.
    Create(Box<body::CreateArgs>),
    /// Change a job.
    Update(Box<body::UpdateArgs>),
    /// Show a job.
    Show(AppRef),
    /// List jobs of a group, or of all.
    List {
        /// Resource group.
        #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
        group: Option<String>,
    },
    /// Delete a job.
    Delete {
        #[command(flatten)]
        job: AppRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Start a job now, also with another template.
    Start(Box<StartArgs>),
    /// Stop an execution, or all.
    Stop {
        #[command(flatten)]
        job: AppRef,
        /// The execution.
        #[arg(long)]
        job_execution_name: Option<String>,
    },
    /// Start nothing until it is resumed; what runs goes on.
    Suspend(AppRef),
    /// Start again what the trigger asks for.
    Resume(AppRef),
    /// Output of executions.
    #[command(subcommand)]
    Logs(logs::LogsCommand),
    /// Files that executions left behind.
    #[command(subcommand)]
    Artifacts(artifacts::ArtifactsCommand),
    /// Replicas of executions.
    #[command(subcommand)]
    Replica(logs::ReplicaCommand),
    /// Executions of a job.
    #[command(subcommand)]
    Execution(ExecutionCommand),
    /// Secrets of a job.
    #[command(subcommand)]
    Secret(SecretCommand),
    /// Identities of a job.
    #[command(subcommand)]
    Identity(IdentityCommand),
    /// Logins of a job at registries.
    #[command(subcommand)]
    Registry(RegistryCommand),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ExecutionCommand {
    /// List executions.
    List(AppRef),
    /// Show an execution.
    Show {
        #[command(flatten)]
        job: AppRef,
        /// The execution.
        #[arg(long)]
        job_execution_name: String,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct StartArgs {
    #[command(flatten)]
    job: AppRef,
    #[command(flatten)]
    container: template::ContainerArgs,
    /// `key=value …`; `key=secretref:name` for a secret's value.
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE", help_heading = "Container")]
    env_vars: Vec<String>,
    /// The execution's template as YAML or JSON; other flags are ignored.
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
    /// Registry identity: sent as given.
    #[arg(long, hide = true)]
    registry_identity: Option<String>,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

const KIND: &str = "jobs";

pub(super) async fn run(session: &Session, command: JobCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        JobCommand::Create(args) => body::create(session, *args).await,
        JobCommand::Update(args) => body::update(session, *args).await,
        JobCommand::Show(job) => session.print(client.get(&job.path_of(session, KIND)).await?, View::Jobs),
        JobCommand::List { group } => {
            let scope = match &group {
                Some(group) => client.group(group),
                None => format!("/subscriptions/{}", client.subscription()),
            };
            session.print(client.list(&format!("{scope}/providers/Microsoft.App/jobs")).await?, View::Jobs)
        }
        JobCommand::Delete { job, yes, no_wait } => {
            session.confirm(&format!("Delete the job `{}`?", job.name), yes)?;
            client.delete(&job.path_of(session, KIND), Wait::unless(no_wait)).await
        }
        JobCommand::Start(args) => start(session, *args).await,
        JobCommand::Stop { job, job_execution_name } => {
            let one = job_execution_name.map(|name| format!("/{}", encode(&name))).unwrap_or_default();
            let path = format!("{}/stop{one}", job.path_of(session, KIND));
            session.print(client.post(&path, None).await?, View::Plain)
        }
        JobCommand::Suspend(job) => {
            let path = format!("{}/suspend", job.path_of(session, KIND));
            session.print(client.post(&path, None).await?, View::Jobs)
        }
        JobCommand::Resume(job) => {
            let path = format!("{}/resume", job.path_of(session, KIND));
            session.print(client.post(&path, None).await?, View::Jobs)
        }
        JobCommand::Logs(command) => logs::run(session, command).await,
        JobCommand::Artifacts(command) => artifacts::run(session, command).await,
        JobCommand::Replica(command) => logs::replica(session, command).await,
        JobCommand::Execution(ExecutionCommand::List(job)) => {
            let path = format!("{}/executions", job.path_of(session, KIND));
            session.print(client.list(&path).await?, View::Executions)
        }
        JobCommand::Execution(ExecutionCommand::Show { job, job_execution_name }) => {
            let path = format!("{}/executions/{}", job.path_of(session, KIND), encode(&job_execution_name));
            session.print(client.get(&path).await?, View::Executions)
        }
        JobCommand::Secret(command) => secret::run(session, command, KIND).await,
        JobCommand::Identity(command) => identity::run(session, command, KIND).await,
        JobCommand::Registry(command) => registry::run(session, command, KIND).await,
    }
}

async fn start(session: &Session, args: StartArgs) -> Result<(), Failure> {
    let body = match &args.yaml {
        Some(path) => {
            let mut file = file::yaml(path)?;
            if file["properties"]["template"].is_object() { file["properties"]["template"].take() } else { file }
        }
        None => {
            let env = pairs::environment(&args.env_vars, "--env-vars")?;
            let container = template::container(&args.container, &args.job.name, &env);
            // a name alone says nothing; what is left out is the job's
            let is_other = container.as_object().is_some_and(|fields| fields.len() > 1);
            if is_other { json!({ "containers": [container] }) } else { Value::Null }
        }
    };
    let path = format!("{}/start", args.job.path_of(session, KIND));
    let answer = session.client.post(&path, (!body.is_null()).then_some(&body)).await?;
    session.print(answer, View::Plain)
}
