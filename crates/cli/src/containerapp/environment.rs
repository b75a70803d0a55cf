//! `containerapp env`: managed environments and what lives in them.

pub(crate) mod certificate;
mod change;
mod dapr_component;
mod http_route;
mod premium;
pub(crate) mod profile;
mod storage;

use reqwest::Method;
use serde_json::{Value, json};

use super::logs;
use crate::{
    client::Wait,
    failure::Failure,
    output::View,
    pairs,
    session::{GroupArg, Session},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum EnvironmentCommand {
    /// Create an environment.
    Create(Box<CreateArgs>),
    /// Show an environment.
    Show(EnvironmentRef),
    /// List environments of a group, or of all.
    List {
        /// Resource group.
        #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
        group: Option<String>,
    },
    /// Delete an environment; it must have no apps.
    Delete {
        #[command(flatten)]
        environment: EnvironmentRef,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
        /// Do not wait for the end.
        #[arg(long)]
        no_wait: bool,
    },
    /// Change an environment.
    Update(Box<change::UpdateArgs>),
    /// What of the environment's limits is in use.
    ListUsages(EnvironmentRef),
    /// System events of the environment and its apps.
    #[command(subcommand)]
    Logs(EnvironmentLogs),
    /// Certificates of the environment.
    #[command(subcommand)]
    Certificate(certificate::CertificateCommand),
    /// Dapr components of the environment.
    #[command(subcommand)]
    DaprComponent(dapr_component::DaprComponentCommand),
    /// Rules that route by path between apps.
    #[command(subcommand)]
    HttpRouteConfig(http_route::HttpRouteCommand),
    /// The premium way in of the environment.
    #[command(subcommand)]
    PremiumIngress(premium::PremiumCommand),
    /// Storages that apps of the environment mount.
    #[command(subcommand)]
    Storage(storage::StorageCommand),
    /// Workload profiles: the kinds of machines that apps ask for.
    #[command(subcommand)]
    WorkloadProfile(profile::ProfileCommand),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum EnvironmentLogs {
    /// Print events.
    Show {
        #[command(flatten)]
        environment: EnvironmentRef,
        #[command(flatten)]
        stream: logs::StreamArgs,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct EnvironmentRef {
    /// Name of the environment.
    #[arg(short, long)]
    pub(super) name: String,
    #[command(flatten)]
    pub(super) group: GroupArg,
}

impl EnvironmentRef {
    /// Its path.
    pub(super) fn path(&self, session: &Session) -> String {
        session.client.environment(&self.group.group, &self.name)
    }
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    environment: EnvironmentRef,
    /// Region; this server has one.
    #[arg(short, long, default_value = "local")]
    location: String,
    /// `key=value …`
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE")]
    tags: Vec<String>,
    /// Where logs go; this server keeps them itself.
    #[arg(long, value_name = "WHERE")]
    logs_destination: Option<String>,
    /// Id of a Log Analytics workspace.
    #[arg(long, value_name = "ID")]
    logs_workspace_id: Option<String>,
    /// Key of the workspace.
    #[arg(long, value_name = "KEY")]
    logs_workspace_key: Option<String>,
    /// Have workload profiles, as az by default.
    #[arg(short = 'w', long, num_args = 0..=1, default_missing_value = "true", default_value = "true", value_name = "BOOL")]
    enable_workload_profiles: bool,
    /// Spread over zones; one machine is one zone, so this is kept and has no effect.
    #[arg(short, long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    zone_redundant: Option<bool>,
    /// Subnet: not built, the server says so.
    #[arg(short = 's', long, hide = true)]
    infrastructure_subnet_resource_id: Option<String>,
    /// Only internal addresses: not built, the server says so.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", hide = true)]
    internal_only: Option<bool>,
    #[command(flatten)]
    settings: change::SettingsArgs,
    /// Network that Azure keeps for itself; has no meaning here.
    #[arg(long, hide = true)]
    platform_reserved_cidr: Option<String>,
    /// Address of Azure's own DNS; has no meaning here.
    #[arg(long, hide = true)]
    platform_reserved_dns_ip: Option<String>,
    /// Group of Azure's own resources; has no meaning here.
    #[arg(short = 'i', long, hide = true)]
    infrastructure_resource_group: Option<String>,
    /// Application Insights key of Dapr.
    #[arg(long, hide = true)]
    dapr_instrumentation_key: Option<String>,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

pub(crate) async fn run(session: &Session, command: EnvironmentCommand) -> Result<(), Failure> {
    let client = &session.client;
    let path = |found: &EnvironmentRef| client.environment(&found.group.group, &found.name);
    match command {
        EnvironmentCommand::Create(args) => {
            let body = body(&args)?;
            let wait = Wait::unless(args.no_wait);
            let made = client.write(Method::PUT, &path(&args.environment), Some(&body), wait).await?;
            session.print(made, View::Environments)
        }
        EnvironmentCommand::Show(found) => session.print(client.get(&path(&found)).await?, View::Environments),
        EnvironmentCommand::List { group } => {
            let scope = match &group {
                Some(group) => client.group(group),
                None => format!("/subscriptions/{}", client.subscription()),
            };
            let list = client.list(&format!("{scope}/providers/Microsoft.App/managedEnvironments")).await?;
            session.print(list, View::Environments)
        }
        EnvironmentCommand::Delete { environment, yes, no_wait } => {
            session.confirm(&format!("Delete the environment `{}`?", environment.name), yes)?;
            client.delete(&path(&environment), Wait::unless(no_wait)).await
        }
        EnvironmentCommand::Update(args) => change::run(session, *args).await,
        EnvironmentCommand::ListUsages(found) => {
            session.print(client.list(&format!("{}/usages", path(&found))).await?, View::Usages)
        }
        EnvironmentCommand::Certificate(command) => certificate::run(session, command).await,
        EnvironmentCommand::DaprComponent(command) => dapr_component::run(session, command).await,
        EnvironmentCommand::HttpRouteConfig(command) => http_route::run(session, command).await,
        EnvironmentCommand::PremiumIngress(command) => premium::run(session, command).await,
        EnvironmentCommand::Storage(command) => storage::run(session, command).await,
        EnvironmentCommand::WorkloadProfile(command) => profile::run(session, command).await,
        EnvironmentCommand::Logs(EnvironmentLogs::Show { environment, stream }) => {
            let found = client.get(&path(&environment)).await?;
            let endpoint = found["properties"]["eventStreamEndpoint"].as_str().unwrap_or_default();
            logs::print(session, endpoint, &stream, logs::Kind::System).await
        }
    }
}

fn body(args: &CreateArgs) -> Result<Value, Failure> {
    let mut body = json!({ "location": args.location, "properties": {} });
    let properties = &mut body["properties"];
    if let Some(destination) = args.logs_destination.as_deref().filter(|destination| *destination != "none") {
        properties["appLogsConfiguration"]["destination"] = destination.into();
    }
    if let (Some(id), Some(key)) = (&args.logs_workspace_id, &args.logs_workspace_key) {
        properties["appLogsConfiguration"] = json!({
            "destination": "log-analytics",
            "logAnalyticsConfiguration": { "customerId": id, "sharedKey": key },
        });
    }
    if args.enable_workload_profiles {
        properties["workloadProfiles"] = json!([{ "name": "Consumption", "workloadProfileType": "Consumption" }]);
    }
    if let Some(redundant) = args.zone_redundant {
        properties["zoneRedundant"] = redundant.into();
    }
    if let Some(subnet) = &args.infrastructure_subnet_resource_id {
        properties["vnetConfiguration"]["infrastructureSubnetId"] = subnet.as_str().into();
    }
    if let Some(internal) = args.internal_only {
        properties["vnetConfiguration"]["internal"] = internal.into();
    }
    for (name, value) in [
        ("platformReservedCidr", &args.platform_reserved_cidr),
        ("platformReservedDnsIP", &args.platform_reserved_dns_ip),
    ] {
        if let Some(value) = value {
            properties["vnetConfiguration"][name] = value.as_str().into();
        }
    }
    for (name, value) in [
        ("infrastructureResourceGroup", &args.infrastructure_resource_group),
        ("daprAIInstrumentationKey", &args.dapr_instrumentation_key),
    ] {
        if let Some(value) = value {
            properties[name] = value.as_str().into();
        }
    }
    args.settings.apply(properties)?;
    if !args.tags.is_empty() {
        body["tags"] = pairs::object(&args.tags, "--tags")?;
    }
    Ok(body)
}
