//! `containerapp registry`: logins of an app at registries.

use serde_json::{Value, json};

use super::{AppRef, create, whole};
use crate::{failure::Failure, output::View, session::Session};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum RegistryCommand {
    /// List registries.
    List(AppRef),
    /// Show a registry.
    Show(ServerRef),
    /// Add a registry or change its login.
    Set {
        #[command(flatten)]
        registry: ServerRef,
        /// User at the registry.
        #[arg(long)]
        username: Option<String>,
        /// Password at the registry, or `secretref:name`.
        #[arg(long)]
        password: Option<String>,
        /// Identity for the registry: `system` or the id of one.
        #[arg(long, value_name = "ID")]
        identity: Option<String>,
    },
    /// Remove a registry.
    Remove(ServerRef),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ServerRef {
    #[command(flatten)]
    app: AppRef,
    /// Registry, such as `registry.example.com`.
    #[arg(long)]
    server: String,
}

/// `kind` is `containerApps` or `jobs`.
pub(crate) async fn run(session: &Session, command: RegistryCommand, kind: &str) -> Result<(), Failure> {
    match command {
        RegistryCommand::List(app) => {
            let app = session.client.get(&app.path_of(session, kind)).await?;
            session.print(Value::Array(registries(&app)), View::Plain)
        }
        RegistryCommand::Show(registry) => {
            let app = session.client.get(&registry.app.path_of(session, kind)).await?;
            let found = registries(&app).into_iter().find(|known| known["server"] == registry.server.as_str());
            session.print(found.ok_or_else(|| missing(&registry.server))?, View::Plain)
        }
        RegistryCommand::Set { registry, username, password, identity } => {
            let flags = create::ConfigurationArgs {
                registry_server: Some(registry.server.clone()),
                registry_username: username,
                registry_password: password,
                registry_identity: identity,
                ..create::ConfigurationArgs::default()
            };
            edit(session, &registry, kind, |secrets, list| {
                let Some(new) = create::registry(&flags, secrets)? else { return Ok(()) };
                list.push(new);
                Ok(())
            })
            .await
        }
        RegistryCommand::Remove(registry) => edit(session, &registry, kind, |_, _| Ok(())).await,
    }
}

fn registries(app: &Value) -> Vec<Value> {
    app.pointer("/properties/configuration/registries").and_then(Value::as_array).cloned().unwrap_or_default()
}

fn missing(server: &str) -> Failure {
    Failure::not_found(format!("the app has no registry `{server}`"))
}

/// Takes the registry out and lets `add` put it in again; a secret of the same name is replaced.
async fn edit(
    session: &Session,
    registry: &ServerRef,
    kind: &str,
    add: impl FnOnce(&mut Vec<Value>, &mut Vec<Value>) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let path = registry.app.path_of(session, kind);
    let changed = whole::edit(session, &path, false, |app| {
        let mut list = registries(app);
        let before = list.len();
        list.retain(|known| known["server"] != registry.server.as_str());
        let was_there = list.len() < before;
        let kept = list.len();
        let configuration = &mut app["properties"]["configuration"];
        let mut secrets = configuration["secrets"].as_array().cloned().unwrap_or_default();
        add(&mut secrets, &mut list)?;
        if list.len() == kept && !was_there {
            return Err(missing(&registry.server));
        }
        // the newest of a name wins
        let mut unique: Vec<Value> = Vec::new();
        for secret in secrets.into_iter().rev() {
            if !unique.iter().any(|known| known["name"] == secret["name"]) {
                unique.insert(0, secret);
            }
        }
        configuration["registries"] = Value::Array(list);
        if !unique.is_empty() {
            configuration["secrets"] = json!(unique);
        }
        Ok(())
    });
    session.print(Value::Array(registries(&changed.await?)), View::Plain)
}
