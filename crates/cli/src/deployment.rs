//! `cove deployment`: templates at the scope of a group or of the subscription.

mod diff;
mod parameters;

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Wait, encode},
    failure::Failure,
    file,
    output::View,
    session::{Globals, Session, block_on},
    text,
};

/// Deployments of templates.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum DeploymentCommand {
    /// Deployments into a resource group.
    #[command(subcommand)]
    Group(ScopeCommand),
    /// Deployments into the subscription.
    #[command(subcommand)]
    Sub(ScopeCommand),
    /// What a deployment did, resource by resource.
    #[command(subcommand)]
    Operation(OperationCommand),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ScopeCommand {
    /// Deploy a template.
    Create(Box<CreateArgs>),
    /// Check a template without deploying it.
    Validate(TemplateArgs),
    /// Say what a template would change.
    WhatIf(Box<WhatIfArgs>),
    /// Show a deployment.
    Show(DeploymentRef),
    /// List deployments.
    List {
        #[command(flatten)]
        scope: ScopeArgs,
        /// Only those that match, such as `provisioningState eq 'Failed'`.
        #[arg(long, value_name = "ODATA")]
        filter: Option<String>,
    },
    /// Delete a deployment; its resources stay.
    Delete {
        #[command(flatten)]
        deployment: DeploymentRef,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Cancel a running deployment.
    Cancel(DeploymentRef),
    /// Print the template of a deployment.
    Export(DeploymentRef),
    /// What a deployment did.
    #[command(subcommand)]
    Operation(InnerCommand),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum InnerCommand {
    /// List operations.
    List(DeploymentRef),
    /// Show operations.
    Show {
        #[command(flatten)]
        deployment: DeploymentRef,
        /// Ids of the operations.
        #[arg(long, num_args = 1.., required = true)]
        operation_ids: Vec<String>,
    },
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum OperationCommand {
    /// Of deployments into a resource group.
    #[command(subcommand)]
    Group(InnerCommand),
    /// Of deployments into the subscription.
    #[command(subcommand)]
    Sub(InnerCommand),
}

/// Where a deployment lives.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ScopeArgs {
    /// Resource group.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
    group: Option<String>,
    /// Region, for deployments into the subscription; this server has one.
    #[arg(short, long, default_value = "local")]
    location: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DeploymentRef {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Name of the deployment.
    #[arg(short, long)]
    name: String,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct TemplateArgs {
    #[command(flatten)]
    scope: ScopeArgs,
    /// Name of the deployment [default: the template's file name].
    #[arg(short, long)]
    name: Option<String>,
    /// The template, JSON with comments.
    #[arg(short = 'f', long, value_name = "FILE")]
    template_file: Option<PathBuf>,
    /// Parameters: `name=value`, `@FILE`, a file, or JSON; the last one wins.
    #[arg(short, long, num_args = 1.., action = clap::ArgAction::Append, value_name = "PARAMETER")]
    parameters: Vec<String>,
    /// Incremental keeps what the template does not name; Complete deletes it.
    #[arg(long, ignore_case = true, default_value = "Incremental", value_parser = ["Incremental", "Complete"])]
    mode: String,
    /// az compiles Bicep with it; JSON needs none.
    #[arg(long, hide = true)]
    handle_extended_json_format: bool,
    /// Do not ask for missing parameters.
    #[arg(long, hide = true, num_args = 0..=1, default_missing_value = "true")]
    no_prompt: Option<bool>,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    template: TemplateArgs,
    /// Say first what would change, and ask.
    #[arg(short = 'c', long)]
    confirm_with_what_if: bool,
    /// Only say what would change.
    #[arg(short = 'w', long)]
    what_if: bool,
    /// Do not ask.
    #[arg(short, long)]
    yes: bool,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct WhatIfArgs {
    #[command(flatten)]
    template: TemplateArgs,
    /// The result as JSON.
    #[arg(long)]
    no_pretty_print: bool,
    /// FullResourcePayloads or ResourceIdOnly.
    #[arg(short, long, ignore_case = true, default_value = "FullResourcePayloads",
        value_parser = ["FullResourcePayloads", "ResourceIdOnly"])]
    result_format: String,
    /// Kinds of changes that are not shown, such as NoChange or Ignore.
    #[arg(short = 'x', long, num_args = 1.., value_name = "KIND")]
    exclude_change_types: Vec<String>,
}

/// The scope of the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    Group,
    Subscription,
}

impl ScopeArgs {
    /// Path of the deployments.
    fn path(&self, session: &Session, level: Level) -> Result<String, Failure> {
        let scope = match (level, &self.group) {
            (Level::Subscription, _) => format!("/subscriptions/{}", session.client.subscription()),
            (Level::Group, Some(group)) => session.client.group(group),
            (Level::Group, None) => return Err(Failure::usage("which resource group?").hint("add --resource-group")),
        };
        Ok(format!("{scope}/providers/Microsoft.Resources/deployments"))
    }
}

impl DeploymentRef {
    fn path(&self, session: &Session, level: Level) -> Result<String, Failure> {
        Ok(format!("{}/{}", self.scope.path(session, level)?, encode(&self.name)))
    }
}

impl TemplateArgs {
    fn path(&self, session: &Session, level: Level) -> Result<String, Failure> {
        let stem = self.template_file.as_deref().and_then(|file| file.file_stem());
        let name = self.name.clone().or_else(|| Some(stem?.to_string_lossy().into_owned()));
        let name = name.ok_or_else(|| Failure::usage("what is the deployment called?").hint("add --name"))?;
        Ok(format!("{}/{}", self.scope.path(session, level)?, encode(&name)))
    }

    fn body(&self, level: Level) -> Result<Value, Failure> {
        let path = self.template_file.as_deref().ok_or_else(|| {
            Failure::usage("which template?")
                .hint("add --template-file; Bicep must be compiled: az bicep build --file X")
        })?;
        if path.extension().is_some_and(|extension| extension == "bicep" || extension == "bicepparam") {
            return Err(Failure::usage(format!("`{}` is Bicep, which is compiled first", path.display()))
                .hint("az bicep build --file FILE, then name the .json file"));
        }
        let template = parameters::jsonc(&file::text(path)?, path)?;
        let parameters = parameters::read(&self.parameters, &template)?;
        let mut body = json!({ "properties": {
            "mode": self.mode, "template": template, "parameters": parameters } });
        if level == Level::Subscription {
            body["location"] = self.scope.location.as_str().into();
        }
        Ok(body)
    }
}

pub(crate) fn run(command: DeploymentCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        match command {
            DeploymentCommand::Group(command) => at(&session, command, Level::Group).await,
            DeploymentCommand::Sub(command) => at(&session, command, Level::Subscription).await,
            DeploymentCommand::Operation(OperationCommand::Group(inner)) => {
                operations(&session, inner, Level::Group).await
            }
            DeploymentCommand::Operation(OperationCommand::Sub(inner)) => {
                operations(&session, inner, Level::Subscription).await
            }
        }
    })
}

async fn at(session: &Session, command: ScopeCommand, level: Level) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        ScopeCommand::Create(args) => create(session, *args, level).await,
        ScopeCommand::Validate(args) => {
            let path = format!("{}/validate", args.path(session, level)?);
            session.print(client.question(&path, &args.body(level)?).await?, View::Deployments)
        }
        ScopeCommand::WhatIf(args) => {
            let result = what_if(session, &args.template, level, &args.result_format).await?;
            let result = diff::without(result, &args.exclude_change_types);
            if args.no_pretty_print || session.output.is_asked() {
                return session.print(result, View::Plain);
            }
            text::out(&diff::render(&result, text::stdout_is_terminal()));
            Ok(())
        }
        ScopeCommand::Show(deployment) => {
            session.print(client.get(&deployment.path(session, level)?).await?, View::Deployments)
        }
        ScopeCommand::List { scope, filter } => {
            let filter = filter.map(|filter| format!("?$filter={}", encode(&filter))).unwrap_or_default();
            let path = format!("{}/{filter}", scope.path(session, level)?);
            session.print(client.list(&path).await?, View::Deployments)
        }
        ScopeCommand::Delete { deployment, no_wait } => {
            client.delete(&deployment.path(session, level)?, Wait::unless(no_wait)).await
        }
        ScopeCommand::Cancel(deployment) => {
            let path = format!("{}/cancel", deployment.path(session, level)?);
            client.post(&path, None).await.map(|_| ())
        }
        ScopeCommand::Export(deployment) => {
            let path = format!("{}/exportTemplate", deployment.path(session, level)?);
            let mut answer = client.post(&path, None).await?;
            session.print(answer["template"].take(), View::Plain)
        }
        ScopeCommand::Operation(inner) => operations(session, inner, level).await,
    }
}

async fn create(session: &Session, args: CreateArgs, level: Level) -> Result<(), Failure> {
    let path = args.template.path(session, level)?;
    if args.what_if || args.confirm_with_what_if {
        let result = what_if(session, &args.template, level, "FullResourcePayloads").await?;
        text::err(&diff::render(&result, text::stderr_is_terminal()));
        if args.what_if {
            return Ok(());
        }
        session.confirm("Deploy this?", args.yes)?;
    }
    let body = args.template.body(level)?;
    let made = session.client.write(Method::PUT, &path, Some(&body), Wait::unless(args.no_wait)).await?;
    session.print(made, View::Deployments)
}

async fn what_if(session: &Session, args: &TemplateArgs, level: Level, format: &str) -> Result<Value, Failure> {
    let path = format!("{}/whatIf", args.path(session, level)?);
    let mut body = args.body(level)?;
    body["properties"]["whatIfSettings"] = json!({ "resultFormat": format });
    let result = session.client.question(&path, &body).await?;
    if result["error"].is_object() {
        let (code, message) = (result["error"]["code"].as_str(), result["error"]["message"].as_str());
        return Err(Failure::new(format!("({}) {}", code.unwrap_or_default(), message.unwrap_or_default())));
    }
    Ok(result)
}

async fn operations(session: &Session, command: InnerCommand, level: Level) -> Result<(), Failure> {
    match command {
        InnerCommand::List(deployment) => {
            let path = format!("{}/operations", deployment.path(session, level)?);
            session.print(session.client.list(&path).await?, View::Operations)
        }
        InnerCommand::Show { deployment, operation_ids } => {
            let path = deployment.path(session, level)?;
            let mut found = Vec::new();
            for id in operation_ids {
                found.push(session.client.get(&format!("{path}/operations/{}", encode(&id))).await?);
            }
            session.print(Value::Array(found), View::Operations)
        }
    }
}
