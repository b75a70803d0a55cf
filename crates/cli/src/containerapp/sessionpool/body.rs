//! The JSON of a session pool from flags or a file, as az's extension makes it.

use std::path::PathBuf;

use reqwest::Method;
use serde_json::{Value, json};

use super::{
    super::{AppRef, create, template},
    KIND,
};
use crate::{client::Wait, failure::Failure, file, output::View, pairs, session::Session};

/// Image of a custom container without one, as az's.
const HELLO_WORLD: &str = "mcr.microsoft.com/k8se/quickstart:latest";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    pool: AppRef,
    /// Region [default: the environment's].
    #[arg(short, long)]
    location: Option<String>,
    /// The pool as YAML or JSON; other flags are ignored.
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
    /// What runs in a session.
    #[arg(
        long,
        ignore_case = true,
        value_parser = ["CustomContainer", "PythonLTS", "NodeLTS", "Shell"],
        default_value = "PythonLTS",
        value_name = "TYPE",
        help_heading = "Configuration"
    )]
    container_type: String,
    #[command(flatten)]
    settings: SettingArgs,
    /// Name or id of the environment; CustomContainer needs one.
    #[arg(long, help_heading = "Container")]
    environment: Option<String>,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Build the image of a PythonLTS, NodeLTS or Shell pool first when the server has it not; needs root here.
    #[arg(long)]
    build_image: bool,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct UpdateArgs {
    #[command(flatten)]
    pool: AppRef,
    /// The change as YAML or JSON; other flags are ignored.
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingArgs,
    #[command(flatten)]
    identity: IdentityArgs,
    /// Do not wait for the end.
    #[arg(long)]
    no_wait: bool,
}

#[derive(Clone, Debug, Default, clap::Args)]
struct IdentityArgs {
    /// An identity of its own.
    #[arg(long)]
    mi_system_assigned: bool,
    /// Names or ids of identities.
    #[arg(long, num_args = 1.., value_name = "ID")]
    mi_user_assigned: Vec<String>,
}

/// What can be set at the beginning and later.
#[derive(Clone, Debug, Default, clap::Args)]
struct SettingArgs {
    /// When a session ends: `Timed` after the cool-down, `OnContainerExit` with its container [default: Timed].
    #[arg(long, ignore_case = true, value_parser = ["Timed", "OnContainerExit"], value_name = "TYPE", help_heading = "Configuration")]
    lifecycle_type: Option<String>,
    /// Seconds without a request after which a session ends, with Timed: 300..=3600 [default: 300].
    #[arg(long, value_name = "SECONDS", conflicts_with = "max_alive_period", help_heading = "Configuration")]
    cooldown_period: Option<u32>,
    /// Seconds that a session lives at most, with OnContainerExit: 60..=86400 [default: 3600].
    #[arg(long, value_name = "SECONDS", help_heading = "Configuration")]
    max_alive_period: Option<u32>,
    /// `name=value …`; one empty text for none.
    #[arg(short, long, num_args = 0.., value_name = "NAME=VALUE", help_heading = "Configuration")]
    secrets: Option<Vec<String>>,
    /// Whether sessions reach the internet [default: EgressDisabled].
    #[arg(long, ignore_case = true, value_parser = ["EgressEnabled", "EgressDisabled"], value_name = "STATUS", help_heading = "Configuration")]
    network_status: Option<String>,
    /// What of the internet sessions may reach, nothing else then: `pypi.org`, `*.example.org:443`, `198.51.100.0/24:80,443`; one
    /// empty text for all of it. Says EgressEnabled too [default: all].
    #[arg(long, num_args = 1.., value_name = "HOST[:PORT,…]", help_heading = "Configuration")]
    egress_allow: Option<Vec<String>>,
    /// What stands between a session and this machine: hardened, vm, or an OCI runtime such as crun [default: the
    /// server's].
    #[arg(long, value_name = "KIND", help_heading = "Configuration")]
    isolation: Option<String>,
    /// What its sessions begin with besides the image: a snapshot of this pool by name, or `pool/name` of another one of the
    /// group.
    #[arg(long, value_name = "NAME", help_heading = "Configuration")]
    snapshot: Option<String>,
    /// Seconds without a request after which a session is suspended, its files kept: 10..=cooldown-period.
    #[arg(long, value_name = "SECONDS", help_heading = "Configuration")]
    suspend_after: Option<u32>,
    /// Seconds that suspended sessions are kept: 60..=2592000 [default: 86400]. Idle sessions are suspended then.
    #[arg(long, value_name = "SECONDS", help_heading = "Configuration")]
    suspend_keep: Option<u32>,
    /// `key=value …`
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE", help_heading = "Configuration")]
    tags: Option<Vec<String>>,
    /// Sessions that may be allocated at once: 1..=600 [default: 10].
    #[arg(long, value_name = "N", help_heading = "Scale")]
    max_sessions: Option<u32>,
    /// Sessions that are kept ready, 0..=max-sessions [default: 5].
    #[arg(long, value_name = "N", help_heading = "Scale")]
    ready_sessions: Option<u32>,
    #[command(flatten)]
    container: template::ContainerArgs,
    /// `key=value …`; `key=secretref:name` for a secret's value; one empty text for none.
    #[arg(long, num_args = 0.., value_name = "KEY=VALUE", help_heading = "Container")]
    env_vars: Option<Vec<String>>,
    /// Port in the session that requests go to, 1..=65535; CustomContainer needs it.
    #[arg(long, value_name = "PORT", help_heading = "Container")]
    target_port: Option<u16>,
    /// Registry of the image, such as `registry.example.com`.
    #[arg(long, value_name = "HOST", help_heading = "Registry")]
    registry_server: Option<String>,
    /// User at the registry.
    #[arg(long, value_name = "USER", help_heading = "Registry")]
    registry_username: Option<String>,
    /// Password at the registry, or `secretref:name`.
    #[arg(long, value_name = "PASSWORD", help_heading = "Registry")]
    registry_password: Option<String>,
    /// Identity for the registry: `system` or the id of one.
    #[arg(long, value_name = "ID", help_heading = "Registry")]
    registry_identity: Option<String>,
}

/// `host`, or `host:port,port`.
fn egress_rule(text: &str) -> Result<Value, Failure> {
    let Some((host, ports)) = text.split_once(':') else { return Ok(json!({ "action": "Allow", "host": text })) };
    let ports: Result<Vec<u16>, _> = ports.split(',').map(str::parse).collect();
    let ports = ports.map_err(|_| {
        Failure::usage(format!("`{text}` has no list of ports behind the colon")).hint("write it as `pypi.org:80,443`")
    })?;
    Ok(json!({ "action": "Allow", "host": host, "ports": ports }))
}

impl SettingArgs {
    fn lifecycle(&self) -> Value {
        let mut value = json!({});
        let inferred = match (self.max_alive_period, self.cooldown_period) {
            (Some(_), _) => Some("OnContainerExit"),
            (None, Some(_)) => Some("Timed"),
            (None, None) => None,
        };
        if let Some(kind) = self.lifecycle_type.as_deref().or(inferred) {
            value["lifecycleType"] = kind.into();
        }
        if let Some(seconds) = self.cooldown_period {
            value["cooldownPeriodInSeconds"] = seconds.into();
        }
        if let Some(seconds) = self.max_alive_period {
            value["maxAlivePeriodInSeconds"] = seconds.into();
        }
        value
    }

    /// Properties that stand alone; what was not given appears nowhere.
    fn plain(&self) -> Result<Value, Failure> {
        let mut properties = json!({});
        let lifecycle = self.lifecycle();
        if lifecycle != json!({}) {
            properties["dynamicPoolConfiguration"] = json!({ "lifecycleConfiguration": lifecycle });
        }
        if let Some(status) = &self.network_status {
            properties["sessionNetworkConfiguration"] = json!({ "status": status });
        }
        if let Some(allowed) = &self.egress_allow {
            let network = &mut properties["sessionNetworkConfiguration"];
            let rules: Vec<Value> = allowed
                .iter()
                .filter(|text| !text.is_empty())
                .map(|text| egress_rule(text))
                .collect::<Result<_, _>>()?;
            if !rules.is_empty() && network["status"].is_null() {
                network["status"] = "EgressEnabled".into();
            }
            network["coveEgressRules"] = rules.into();
        }
        for (name, count) in
            [("maxConcurrentSessions", self.max_sessions), ("readySessionInstances", self.ready_sessions)]
        {
            if let Some(count) = count {
                properties["scaleConfiguration"][name] = count.into();
            }
        }
        if let Some(isolation) = &self.isolation {
            properties["coveIsolation"] = isolation.as_str().into();
        }
        if let Some(snapshot) = &self.snapshot {
            properties["coveSnapshot"] = snapshot.as_str().into();
        }
        for (name, secs) in [("afterIdleSeconds", self.suspend_after), ("keepSeconds", self.suspend_keep)] {
            if let Some(secs) = secs {
                properties["coveSuspend"][name] = secs.into();
            }
        }
        if self.container.gpu()?.is_some() {
            return Err(Failure::usage("sessions get no GPU yet").hint("leave --gpu-type and --gpu-count out"));
        }
        Ok(properties)
    }

    /// The registry's login; its password becomes a secret, named as az names it.
    fn registry(&self, secrets: &mut Vec<Value>) -> Result<Option<Value>, Failure> {
        let flags = create::ConfigurationArgs {
            registry_server: self.registry_server.clone(),
            registry_username: self.registry_username.clone(),
            registry_password: self.registry_password.clone(),
            registry_identity: self.registry_identity.clone(),
            ..create::ConfigurationArgs::default()
        };
        create::registry(&flags, secrets)
    }

    fn asks_for_container(&self) -> bool {
        let container = &self.container;
        container.image.is_some()
            || container.container_name.is_some()
            || container.cpu.is_some()
            || container.memory.is_some()
            || container.command.is_some()
            || container.args.is_some()
            || self.env_vars.is_some()
    }
}

/// Lays `identity` and who may use it over a body.
fn identify(session: &Session, group: &str, args: &IdentityArgs, registry: Option<&str>, body: &mut Value) {
    let (mut is_system, mut users) = (args.mi_system_assigned, args.mi_user_assigned.clone());
    let main: Vec<Value> = is_system
        .then(|| "system".to_owned())
        .into_iter()
        .chain(users.iter().map(|id| session.client.identity(group, id)))
        .map(|id| json!({ "identity": id, "lifecycle": "Main" }))
        .collect();
    match registry {
        Some(id) if id.eq_ignore_ascii_case("system") => is_system = true,
        Some(id) => users.push(id.to_owned()),
        None => {}
    }
    if let Some(identity) = create::identity(session, group, is_system, &users) {
        body["identity"] = identity;
    }
    if !main.is_empty() {
        body["properties"]["managedIdentitySettings"] = Value::Array(main);
    }
}

pub(super) async fn create(session: &Session, args: CreateArgs) -> Result<(), Failure> {
    let client = &session.client;
    let group = &args.pool.group.group;
    let mut body = match &args.yaml {
        Some(path) => file::yaml(path)?,
        None => body(&args)?,
    };
    if let Some(environment) = &args.environment {
        body["properties"]["environmentId"] = client.environment(group, environment).into();
    }
    if let Some(location) = &args.location {
        body["location"] = location.as_str().into();
    }
    if body["location"].as_str().is_none_or(str::is_empty) {
        let of = match body["properties"]["environmentId"].as_str() {
            Some(environment) => environment.to_owned(),
            None => client.group(group),
        };
        body["location"] = client.get(&of).await?["location"].take();
    }
    identify(session, group, &args.identity, args.settings.registry_identity.as_deref(), &mut body);
    let path = args.pool.path_of(session, KIND);
    let kind = body["properties"]["containerType"].as_str().unwrap_or_default();
    crate::interpreter::ensure(session, kind, args.build_image).await?;
    let made = client.write(Method::PUT, &path, Some(&body), Wait::unless(args.no_wait)).await?;
    session.print(made, View::SessionPools)
}

fn body(args: &CreateArgs) -> Result<Value, Failure> {
    let settings = &args.settings;
    let is_custom = args.container_type.eq_ignore_ascii_case("CustomContainer");
    if is_custom && args.environment.is_none() {
        return Err(Failure::usage("a pool of custom containers needs an environment").hint("add --environment NAME"));
    }
    let mut properties = settings.plain()?;
    properties["poolManagementType"] = "Dynamic".into();
    properties["containerType"] = args.container_type.as_str().into();
    let mut secrets = pairs::secrets(settings.secrets.as_deref().unwrap_or_default())?;
    if is_custom {
        let Some(port) = settings.target_port else {
            return Err(Failure::usage("a pool of custom containers needs a port").hint("add --target-port"));
        };
        let mut container = settings.container.clone();
        container.image.get_or_insert_with(|| HELLO_WORLD.to_owned());
        let env = pairs::environment(settings.env_vars.as_deref().unwrap_or_default(), "--env-vars")?;
        let mut custom = json!({
            "containers": [template::container(&container, &args.pool.name.to_lowercase(), &env)],
            "ingress": { "targetPort": port },
        });
        if let Some(registry) = settings.registry(&mut secrets)? {
            custom["registryCredentials"] = registry;
        }
        properties["customContainerTemplate"] = custom;
    } else if settings.asks_for_container() || settings.target_port.is_some() || settings.registry_server.is_some() {
        let message = format!("a pool of type {} has its own container", args.container_type);
        return Err(
            Failure::usage(message).hint("add --container-type CustomContainer, or leave the container's flags out")
        );
    }
    if !secrets.is_empty() {
        properties["secrets"] = Value::Array(secrets);
    }
    let mut body = json!({ "properties": properties });
    if let Some(tags) = &settings.tags {
        body["tags"] = pairs::object(tags, "--tags")?;
    }
    Ok(body)
}

pub(super) async fn update(session: &Session, args: UpdateArgs) -> Result<(), Failure> {
    let path = args.pool.path_of(session, KIND);
    let mut patch = match &args.yaml {
        Some(file) => file::yaml(file)?,
        None => patch(session.client.get(&path).await?, &args.settings)?,
    };
    // as az: the identities stay as they are unless a flag names some
    if args.identity.mi_system_assigned || !args.identity.mi_user_assigned.is_empty() {
        let group = &args.pool.group.group;
        identify(session, group, &args.identity, args.settings.registry_identity.as_deref(), &mut patch);
    }
    let changed = session.client.write(Method::PATCH, &path, Some(&patch), Wait::unless(args.no_wait)).await?;
    session.print(changed, View::SessionPools)
}

/// A list replaces a list: containers and secrets go whole, with what they had.
fn patch(mut pool: Value, settings: &SettingArgs) -> Result<Value, Failure> {
    let mut properties = settings.plain()?;
    let old = pool["properties"]["secrets"].as_array().cloned().unwrap_or_default();
    let mut secrets = match &settings.secrets {
        Some(given) => pairs::secrets(given)?,
        None => old.clone(),
    };
    let registry = settings.registry(&mut secrets)?;
    if settings.asks_for_container() || settings.target_port.is_some() || registry.is_some() {
        let mut custom = pool["properties"]["customContainerTemplate"].take();
        if custom.is_null() {
            return Err(Failure::usage("the pool has no container of its own"));
        }
        if settings.asks_for_container() {
            change_container(&mut custom, settings)?;
        }
        if let Some(port) = settings.target_port {
            custom["ingress"]["targetPort"] = port.into();
        }
        if let Some(registry) = registry {
            custom["registryCredentials"] = registry;
        }
        properties["customContainerTemplate"] = custom;
    }
    if secrets != old {
        // of a name that is given twice the last one counts
        let mut last: Vec<Value> = Vec::new();
        for secret in secrets {
            last.retain(|known| known["name"] != secret["name"]);
            last.push(secret);
        }
        properties["secrets"] = Value::Array(last);
    }
    let mut patch = json!({ "properties": properties });
    if let Some(tags) = &settings.tags {
        patch["tags"] = pairs::object(tags, "--tags")?;
    }
    Ok(patch)
}

fn change_container(custom: &mut Value, settings: &SettingArgs) -> Result<(), Failure> {
    let containers = custom["containers"].as_array_mut().map_or(&mut [][..], Vec::as_mut_slice);
    let wanted = settings.container.container_name.as_deref();
    let container = match (containers.len(), wanted) {
        (1, _) => containers.first_mut(),
        (_, Some(name)) => containers.iter_mut().find(|container| container["name"] == name),
        (_, None) => {
            return Err(Failure::usage("the pool has several containers").hint("add --container-name"));
        }
    };
    let container = container.ok_or_else(|| Failure::not_found("the pool has no such container"))?;
    if let Some(name) = wanted {
        container["name"] = name.into();
    }
    template::apply(&settings.container, container);
    if let Some(variables) = &settings.env_vars {
        container["env"] = Value::Array(pairs::environment(variables, "--env-vars")?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: CreateArgs,
    }

    #[derive(clap::Parser)]
    struct Change {
        #[command(flatten)]
        args: UpdateArgs,
    }

    fn made(line: &str) -> Result<Value, String> {
        let args = Line::parse_from(format!("x -g rg -n My-Pool {line}").split_whitespace()).args;
        body(&args).map(|mut body| body["properties"].take()).map_err(|failure| failure.text)
    }

    fn changed(pool: Value, line: &str) -> Value {
        let args = Change::parse_from(format!("x -g rg -n pool {line}").split_whitespace()).args;
        patch(pool, &args.settings).map_err(|failure| failure.text).unwrap()["properties"].take()
    }

    #[test]
    fn rules_of_egress_are_hosts_with_ports() {
        let line = "--container-type Shell --egress-allow pypi.org:443 *.example.org:80,443 10.1.0.0/16";
        let network = json!({ "status": "EgressEnabled", "coveEgressRules": [
            { "action": "Allow", "host": "pypi.org", "ports": [443] },
            { "action": "Allow", "host": "*.example.org", "ports": [80, 443] },
            { "action": "Allow", "host": "10.1.0.0/16" },
        ] });
        assert_eq!(made(line).unwrap()["sessionNetworkConfiguration"], network);
        for bad in ["a.org:", "a.org:x", "a.org:70000", "http://a.org"] {
            assert!(made(&format!("--container-type Shell --egress-allow {bad}")).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_seeds_flags_become_azures_json() {
        let line = "--environment env --registry-server myregistry.azurecr.io --registry-username me --registry-password pw --container-type CustomContainer --image myregistry.azurecr.io/my-container-image:1.0 --cpu 0.25 --memory 0.5Gi --target-port 80 --cooldown-period 300 --network-status EgressDisabled --max-sessions 10 --ready-sessions 5 --env-vars key1=value1 key2=value2 --location eastus";
        assert_eq!(
            made(line).unwrap(),
            json!({
                "poolManagementType": "Dynamic",
                "containerType": "CustomContainer",
                "dynamicPoolConfiguration": { "lifecycleConfiguration":
                    { "lifecycleType": "Timed", "cooldownPeriodInSeconds": 300 } },
                "sessionNetworkConfiguration": { "status": "EgressDisabled" },
                "scaleConfiguration": { "maxConcurrentSessions": 10, "readySessionInstances": 5 },
                "customContainerTemplate": {
                    "containers": [{
                        "name": "my-pool", "image": "myregistry.azurecr.io/my-container-image:1.0",
                        "resources": { "cpu": 0.25, "memory": "0.5Gi" },
                        "env": [{ "name": "key1", "value": "value1" }, { "name": "key2", "value": "value2" }],
                    }],
                    "ingress": { "targetPort": 80 },
                    "registryCredentials": { "server": "myregistry.azurecr.io", "username": "me",
                        "passwordSecretRef": "myregistryazurecrio-me" },
                },
                "secrets": [{ "name": "myregistryazurecrio-me", "value": "pw" }],
            })
        );
    }

    #[test]
    fn what_is_missing_or_too_much_is_said_before_anything_is_sent() {
        let custom = "--container-type customcontainer";
        assert_eq!(made(""), Ok(json!({ "poolManagementType": "Dynamic", "containerType": "PythonLTS" })));
        assert_eq!(made(custom).unwrap_err(), "a pool of custom containers needs an environment");
        assert_eq!(made(&format!("{custom} --environment e")).unwrap_err(), "a pool of custom containers needs a port");
        assert_eq!(made("--image a").unwrap_err(), "a pool of type PythonLTS has its own container");
        assert!(Line::try_parse_from("x -g g -n n --cooldown-period 300 --max-alive-period 60".split(' ')).is_err());
        let ends = made(&format!("{custom} --environment e --target-port 1 --max-alive-period 60")).unwrap();
        assert_eq!(
            ends["dynamicPoolConfiguration"]["lifecycleConfiguration"],
            json!({ "lifecycleType": "OnContainerExit", "maxAlivePeriodInSeconds": 60 })
        );
    }

    #[test]
    fn a_change_says_what_it_changes() {
        let pool = json!({ "properties": {
            "secrets": [{ "name": "a" }],
            "customContainerTemplate": { "containers": [{ "name": "c", "image": "i:1", "env": [{ "name": "K", "value": "1" }] }],
                "ingress": { "targetPort": 80 } },
        } });
        assert_eq!(
            changed(pool.clone(), "--ready-sessions 0"),
            json!({ "scaleConfiguration": { "readySessionInstances": 0 } })
        );
        let other = changed(pool.clone(), "--image i:2 --target-port 81");
        assert_eq!(
            other,
            json!({ "customContainerTemplate": { "containers": [{ "name": "c", "image": "i:2", "env": [{ "name": "K", "value": "1" }] }],
                "ingress": { "targetPort": 81 } } })
        );
        let login = changed(pool, "--registry-server r.example.com --registry-username u --registry-password p");
        assert_eq!(login["secrets"], json!([{ "name": "a" }, { "name": "rexamplecom-u", "value": "p" }]));
    }
}
