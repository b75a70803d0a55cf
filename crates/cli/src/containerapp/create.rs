//! `containerapp create`: the app's body from flags or from a file.

use std::path::{Path, PathBuf};

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    dapr,
    environment::profile,
    template::{self, ContainerArgs, ScaleArgs},
};
use crate::{
    client::Wait,
    failure::Failure,
    file,
    output::View,
    pairs,
    session::{GroupArg, Session},
    text,
};

/// Image of an app without one, as az's.
const QUICKSTART: &str = "mcr.microsoft.com/k8se/quickstart:latest";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CreateArgs {
    /// Name of the app.
    #[arg(short, long)]
    pub(crate) name: String,
    #[command(flatten)]
    pub(crate) group: GroupArg,
    /// Name or id of the environment.
    #[arg(long)]
    pub(crate) environment: Option<String>,
    /// The app as YAML or JSON; other flags of the app are ignored.
    #[arg(long, value_name = "FILE")]
    pub(crate) yaml: Option<PathBuf>,
    /// Do not wait until the app runs.
    #[arg(long)]
    pub(crate) no_wait: bool,
    #[command(flatten)]
    pub(crate) app: AppArgs,
}

/// Everything of an app that flags can say.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct AppArgs {
    /// End of the revision's name.
    #[arg(long, value_name = "SUFFIX")]
    pub(crate) revision_suffix: Option<String>,
    /// Seconds between SIGTERM and SIGKILL [default: 30].
    #[arg(long, alias = "tgp", value_name = "SECONDS")]
    pub(crate) termination_grace_period: Option<u32>,
    /// Workload profile of the environment.
    #[arg(short = 'w', long, value_name = "NAME")]
    pub(crate) workload_profile_name: Option<String>,
    /// `key=value …`
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE")]
    pub(crate) tags: Vec<String>,
    /// Folder into which all secrets are mounted.
    #[arg(long, value_name = "PATH")]
    pub(crate) secret_volume_mount: Option<String>,
    /// Region; the environment's otherwise.
    #[arg(short, long, hide = true)]
    pub(crate) location: Option<String>,
    #[command(flatten)]
    pub(crate) container: ContainerArgs,
    /// `key=value …`; `key=secretref:name` for a secret's value.
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE", help_heading = "Container")]
    pub(crate) env_vars: Vec<String>,
    #[command(flatten)]
    pub(crate) scale: ScaleArgs,
    #[command(flatten)]
    pub(crate) ingress: IngressArgs,
    #[command(flatten)]
    pub(crate) configuration: ConfigurationArgs,
    #[command(flatten)]
    pub(crate) sidekick: SidekickArgs,
}

/// The way in.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Ingress")]
pub(crate) struct IngressArgs {
    /// Who may reach the app.
    #[arg(long, value_enum, ignore_case = true)]
    pub(crate) ingress: Option<IngressType>,
    /// Port that the app listens on.
    #[arg(long, value_name = "PORT")]
    pub(crate) target_port: Option<u16>,
    /// auto, http, http2 or tcp.
    #[arg(long)]
    pub(crate) transport: Option<String>,
    /// Port of a tcp ingress.
    #[arg(long, value_name = "PORT")]
    pub(crate) exposed_port: Option<u16>,
    /// Serve plain HTTP too.
    #[arg(long, num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) allow_insecure: Option<bool>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum IngressType {
    External,
    Internal,
}

/// Secrets, registry, revisions.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Configuration")]
pub(crate) struct ConfigurationArgs {
    /// `name=value …`
    #[arg(short, long, num_args = 0.., value_name = "NAME=VALUE")]
    pub(crate) secrets: Vec<String>,
    /// single or multiple.
    #[arg(long, value_name = "MODE")]
    pub(crate) revisions_mode: Option<String>,
    /// Registry of the image, such as `registry.example.com`.
    #[arg(long, value_name = "HOST")]
    pub(crate) registry_server: Option<String>,
    /// User at the registry.
    #[arg(long, value_name = "USER")]
    pub(crate) registry_username: Option<String>,
    /// Password at the registry, or `secretref:name`.
    #[arg(long, value_name = "PASSWORD")]
    pub(crate) registry_password: Option<String>,
    /// Identity for the registry: `system` or the id of one.
    #[arg(long, value_name = "ID")]
    pub(crate) registry_identity: Option<String>,
}

/// Identities and Dapr of the app.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Identity and Dapr")]
pub(crate) struct SidekickArgs {
    /// Give it an identity of its own.
    #[arg(long)]
    pub(crate) system_assigned: bool,
    /// Names or ids of identities.
    #[arg(long, num_args = 1.., value_name = "ID")]
    pub(crate) user_assigned: Vec<String>,
    /// Turn Dapr on.
    #[arg(long, alias = "dapr-enabled", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub(crate) enable_dapr: Option<bool>,
    #[command(flatten)]
    pub(crate) dapr: dapr::DaprArgs,
}

pub(crate) async fn run(session: &Session, args: CreateArgs) -> Result<(), Failure> {
    let client = &session.client;
    let environment = args.environment.as_deref().map(|name| client.environment(&args.group.group, name));
    let mut body = match &args.yaml {
        Some(path) => from_file(path)?,
        None => body(&args.name, &args.app)?,
    };
    if let Some(environment) = &environment {
        body["properties"]["environmentId"] = environment.as_str().into();
    }
    let environment =
        body.pointer("/properties/environmentId").or_else(|| body.pointer("/properties/managedEnvironmentId"));
    let Some(environment) = environment.and_then(Value::as_str).map(str::to_owned) else {
        return Err(Failure::usage("the app needs an environment").hint("add --environment NAME"));
    };
    if body["location"].as_str().is_none_or(str::is_empty) {
        body["location"] = client.get(&environment).await?["location"].take();
    }
    place(session, &args.group.group, &environment, &mut body, &args.app).await?;
    let path = client.app(&args.group.group, &args.name);
    let app = client.write(Method::PUT, &path, Some(&body), Wait::unless(args.no_wait)).await?;
    say_url(session, &app);
    session.print(app, View::Apps)
}

/// What needs the server: identities by id, and the workload profile that GPU flags ask for.
pub(super) async fn place(
    session: &Session,
    group: &str,
    environment: &str,
    body: &mut Value,
    args: &AppArgs,
) -> Result<(), Failure> {
    let flags = &args.sidekick;
    if let Some(identity) = identity(session, group, flags.system_assigned, &flags.user_assigned) {
        body["identity"] = identity;
    }
    if let Some(kind) = args.container.gpu()?
        && body["properties"]["workloadProfileName"].is_null()
    {
        body["properties"]["workloadProfileName"] = profile::ensure(session, environment, kind).await?.into();
    }
    Ok(())
}

/// Where the app is, for people.
pub(super) fn say_url(session: &Session, app: &Value) {
    let ingress = &app["properties"]["configuration"]["ingress"];
    if let Some(fqdn) = ingress["fqdn"].as_str()
        && ingress["external"].as_bool() == Some(true)
    {
        let url = session.client.app_url(fqdn);
        text::note(&format!("Container app created. Access your app at {url}"));
    }
}

/// An app in YAML or JSON.
pub(super) fn from_file(path: &Path) -> Result<Value, Failure> {
    let body = file::yaml(path)?;
    if !body["properties"].is_object() {
        return Err(Failure::new(format!("`{}` has no `properties`", path.display()))
            .hint("write the app as `containerapp show -o yaml` prints it"));
    }
    Ok(body)
}

/// The body of the app, without its environment.
pub(super) fn body(name: &str, args: &AppArgs) -> Result<Value, Failure> {
    let mut flags = args.container.clone();
    flags.image.get_or_insert_with(|| {
        text::note(&format!("No --image: {QUICKSTART} is used, as az does."));
        QUICKSTART.to_owned()
    });
    let env = pairs::environment(&args.env_vars, "--env-vars")?;
    let mut template = json!({ "containers": [template::container(&flags, name, &env)] });
    if args.scale.is_given() {
        args.scale.apply(&mut template["scale"])?;
    }
    if let Some(suffix) = &args.revision_suffix {
        template["revisionSuffix"] = suffix.as_str().into();
    }
    if let Some(seconds) = args.termination_grace_period {
        template["terminationGracePeriodSeconds"] = seconds.into();
    }
    let mut body = json!({ "properties": { "configuration": configuration(args)?, "template": template } });
    if let Some(location) = &args.location {
        body["location"] = location.as_str().into();
    }
    if let Some(profile) = &args.workload_profile_name {
        body["properties"]["workloadProfileName"] = profile.as_str().into();
    }
    if !args.tags.is_empty() {
        body["tags"] = pairs::object(&args.tags, "--tags")?;
    }
    if let Some(path) = &args.secret_volume_mount {
        template::mount_secrets(&mut body["properties"]["template"], path);
    }
    Ok(body)
}

fn configuration(args: &AppArgs) -> Result<Value, Failure> {
    let flags = &args.configuration;
    let mode = flags.revisions_mode.as_deref().unwrap_or("single");
    let mut configuration = json!({ "activeRevisionsMode": mode });
    let mut secrets = pairs::secrets(&flags.secrets)?;
    if let Some(registry) = registry(flags, &mut secrets)? {
        configuration["registries"] = json!([registry]);
    }
    if !secrets.is_empty() {
        configuration["secrets"] = Value::Array(secrets);
    }
    if let Some(ingress) = args.ingress.body()? {
        configuration["ingress"] = ingress;
    }
    if let Some(dapr) = args.sidekick.dapr.body(args.sidekick.enable_dapr) {
        configuration["dapr"] = dapr;
    }
    Ok(configuration)
}

/// The registry; its password becomes a secret, named as az names it.
pub(super) fn registry(flags: &ConfigurationArgs, secrets: &mut Vec<Value>) -> Result<Option<Value>, Failure> {
    let Some(server) = &flags.registry_server else {
        if flags.registry_username.is_some() || flags.registry_password.is_some() {
            return Err(Failure::usage("the registry has no name").hint("add --registry-server"));
        }
        return Ok(None);
    };
    if let Some(identity) = &flags.registry_identity {
        return Ok(Some(json!({ "server": server, "identity": identity })));
    }
    let (Some(user), Some(password)) = (&flags.registry_username, &flags.registry_password) else {
        return Err(Failure::usage("a registry needs a user and a password").hint(
            "add --registry-username and --registry-password, or leave --registry-server out for anonymous pulls",
        ));
    };
    let secret = if let Some(name) = password.strip_prefix("secretref:") {
        if !secrets.iter().any(|secret| secret["name"] == name) {
            return Err(Failure::usage(format!("--registry-password: there is no secret `{name}`"))
                .hint("add it with --secrets"));
        }
        name.to_owned()
    } else {
        let name: String = format!("{}-{user}", server.replace('.', ""))
            .to_ascii_lowercase()
            .chars()
            .map(|char| if char.is_ascii_alphanumeric() { char } else { '-' })
            .collect();
        secrets.push(json!({ "name": name, "value": password }));
        name
    };
    Ok(Some(json!({ "server": server, "username": user, "passwordSecretRef": secret })))
}

impl IngressArgs {
    fn body(&self) -> Result<Option<Value>, Failure> {
        let Some(kind) = self.ingress else {
            if self.target_port.is_some() {
                return Err(
                    Failure::usage("--target-port without --ingress").hint("add --ingress external or internal")
                );
            }
            return Ok(None);
        };
        let transport = self.transport.as_deref().unwrap_or("auto");
        let mut ingress = json!({ "external": kind == IngressType::External, "transport": transport });
        if let Some(port) = self.target_port {
            ingress["targetPort"] = port.into();
        }
        // az drops it for everything else
        if let Some(port) = self.exposed_port.filter(|_| transport == "tcp") {
            ingress["exposedPort"] = port.into();
        }
        if let Some(allowed) = self.allow_insecure {
            ingress["allowInsecure"] = allowed.into();
        }
        Ok(Some(ingress))
    }
}

/// The identities that flags ask for; a name is of the group.
pub(super) fn identity(session: &Session, group: &str, is_system: bool, users: &[String]) -> Option<Value> {
    let users: serde_json::Map<String, Value> =
        users.iter().map(|id| (session.client.identity(group, id), json!({}))).collect();
    match (is_system, users.is_empty()) {
        (false, true) => None,
        (true, true) => Some(json!({ "type": "SystemAssigned" })),
        (false, false) => Some(json!({ "type": "UserAssigned", "userAssignedIdentities": users })),
        (true, false) => Some(json!({ "type": "SystemAssigned,UserAssigned", "userAssignedIdentities": users })),
    }
}

#[cfg(test)]
mod tests;
