//! `cove resource`, `cove rest` and `cove account`: everything by its id, any request, and who one is.

use reqwest::Method;
use serde_json::Value;

use crate::{
    client::{Wait, encode},
    failure::Failure,
    file,
    output::View,
    session::{Globals, Session, block_on},
    text,
};

/// Resources of every type.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum ResourceCommand {
    /// List resources of a group, or of all.
    List {
        /// Resource group.
        #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
        group: Option<String>,
        /// Only this type, such as Microsoft.App/containerApps.
        #[arg(long, value_name = "TYPE")]
        resource_type: Option<String>,
        /// Only this name.
        #[arg(short, long)]
        name: Option<String>,
        /// Only those with this tag: `key` or `key=value`.
        #[arg(long)]
        tag: Option<String>,
    },
    /// Show resources.
    Show(ResourceRef),
    /// Delete resources.
    Delete(ResourceRef),
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ResourceRef {
    /// Ids of the resources.
    #[arg(long, num_args = 1.., value_name = "ID")]
    ids: Vec<String>,
    /// Resource group.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
    group: Option<String>,
    /// Name of the resource.
    #[arg(short, long)]
    name: Option<String>,
    /// Type, such as Microsoft.App/containerApps.
    #[arg(long, value_name = "TYPE")]
    resource_type: Option<String>,
    /// Version of the API.
    #[arg(long, value_name = "VERSION")]
    api_version: Option<String>,
}

impl ResourceRef {
    fn paths(&self, session: &Session) -> Result<Vec<String>, Failure> {
        let paths = match (self.ids.as_slice(), &self.group, &self.resource_type, &self.name) {
            ([], Some(group), Some(kind), Some(name)) => vec![session.client.of(group, kind, name)],
            ([], ..) => {
                return Err(Failure::usage("which resource?")
                    .hint("add --ids, or --resource-group, --resource-type and --name"));
            }
            (ids, ..) => ids.to_vec(),
        };
        let version = self.api_version.as_ref().map(|version| format!("?api-version={version}")).unwrap_or_default();
        Ok(paths.into_iter().map(|path| format!("{path}{version}")).collect())
    }
}

/// Any request to the API, as `az rest`.
#[derive(Debug, clap::Args)]
pub(crate) struct RestArgs {
    /// GET, PUT, PATCH, POST, DELETE or HEAD.
    #[arg(short, long, default_value = "GET", ignore_case = true,
        value_parser = ["GET", "PUT", "PATCH", "POST", "DELETE", "HEAD"])]
    method: String,
    /// Path, or URL of this server; `{subscriptionId}` is filled in.
    #[arg(short, long, alias = "uri", alias = "url")]
    url: String,
    /// Body: JSON, or `@FILE`.
    #[arg(short, long)]
    body: Option<String>,
    /// Query parameters: `name=value …`
    #[arg(long, alias = "uri-parameters", num_args = 1.., value_name = "NAME=VALUE")]
    url_parameters: Vec<String>,
}

/// Who one is and where.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum AccountCommand {
    /// Show the subscription in use.
    Show,
    /// List subscriptions.
    List {
        /// az's flag; there is one cloud here.
        #[arg(long, hide = true)]
        all: bool,
    },
}

pub(crate) fn resource(command: ResourceCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let client = &session.client;
        match command {
            ResourceCommand::List { group, resource_type, name, tag } => {
                let scope = match &group {
                    Some(group) => client.group(group),
                    None => format!("/subscriptions/{}", client.subscription()),
                };
                let mut list = client.list(&format!("{scope}/resources")).await?;
                if let Some(list) = list.as_array_mut() {
                    list.retain(|resource| {
                        is(&resource["type"], resource_type.as_deref())
                            && is(&resource["name"], name.as_deref())
                            && has_tag(&resource["tags"], tag.as_deref())
                    });
                }
                session.print(list, View::Resources)
            }
            ResourceCommand::Show(found) => {
                let mut shown = Vec::new();
                for path in found.paths(&session)? {
                    shown.push(client.get(&path).await?);
                }
                let one = if shown.len() == 1 { shown.pop() } else { None };
                session.print(one.unwrap_or(Value::Array(shown)), View::Plain)
            }
            ResourceCommand::Delete(found) => {
                for path in found.paths(&session)? {
                    client.delete(&path, Wait::Done).await?;
                }
                Ok(())
            }
        }
    })
}

fn is(field: &Value, wanted: Option<&str>) -> bool {
    wanted.is_none_or(|wanted| field.as_str().is_some_and(|known| known.eq_ignore_ascii_case(wanted)))
}

fn has_tag(tags: &Value, wanted: Option<&str>) -> bool {
    match wanted.map(|wanted| wanted.split_once('=').unwrap_or((wanted, ""))) {
        None => true,
        Some((key, "")) => tags[key].is_string(),
        Some((key, value)) => tags[key] == value,
    }
}

pub(crate) fn rest(args: &RestArgs, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let mut path = args.url.replace("{subscriptionId}", session.client.subscription());
        for pair in &args.url_parameters {
            let (name, value) = crate::pairs::split(pair, "--url-parameters")?;
            let separator = if path.contains('?') { '&' } else { '?' };
            path.push_str(&format!("{separator}{}={}", encode(name), encode(value)));
        }
        let path = session.client.own(&path)?;
        let body = args.body.as_deref().map(|body| file::json(body, "--body")).transpose()?;
        let method = Method::from_bytes(args.method.to_ascii_uppercase().as_bytes())
            .map_err(|_| Failure::usage(format!("--method: `{}` is not a method", args.method)))?;
        match session.client.raw(method, &path, body.as_ref()).await? {
            Some(answer) => session.print(answer, View::Plain),
            None => Ok(()),
        }
    })
}

pub(crate) fn account(command: &AccountCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let mut list = session.client.list("/subscriptions").await?;
        let tenant = session.client.list("/tenants").await?;
        let accounts = list.as_array_mut().map(std::mem::take).unwrap_or_default();
        let accounts: Vec<Value> = accounts.into_iter().map(|found| account_of(&session, found, &tenant)).collect();
        match command {
            AccountCommand::List { .. } => session.print(Value::Array(accounts), View::Accounts),
            AccountCommand::Show => {
                let id = session.client.subscription();
                let found = accounts.into_iter().find(|account| account["id"] == id);
                session.print(
                    found.ok_or_else(|| Failure::not_found(format!("there is no subscription `{id}`")))?,
                    View::Accounts,
                )
            }
        }
    })
}

/// A subscription as `az account show` prints it.
fn account_of(session: &Session, found: Value, tenants: &Value) -> Value {
    let tenant = if found["tenantId"].is_string() { found["tenantId"].clone() } else { tenants[0]["tenantId"].clone() };
    let is_default = found["subscriptionId"] == session.client.subscription();
    serde_json::json!({
        "environmentName": "Cove",
        "homeTenantId": tenant,
        "id": found["subscriptionId"],
        "isDefault": is_default,
        "managedByTenants": [],
        "name": found["displayName"],
        "state": found["state"],
        "tenantId": tenant,
        "user": { "name": session.client.user(), "type": "servicePrincipal" },
    })
}

/// Scripts for shells.
pub(crate) fn completion(shell: clap_complete::Shell, mut command: clap::Command) {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "cove", &mut script);
    text::out(&String::from_utf8_lossy(&script));
}
