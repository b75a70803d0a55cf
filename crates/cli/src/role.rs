//! `cove role`: role definitions and assignments.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Client, Wait, encode},
    failure::Failure,
    output::View,
    session::{Globals, Session, block_on},
};

/// Role definitions and who has them.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum RoleCommand {
    /// Who has which role.
    #[command(subcommand)]
    Assignment(AssignmentCommand),
    /// The roles.
    #[command(subcommand)]
    Definition(DefinitionCommand),
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum AssignmentCommand {
    /// Give a role.
    Create {
        /// Principal: its object id, or the name of an identity.
        #[arg(long, alias = "assignee-object-id")]
        assignee: String,
        /// Kind of the principal.
        #[arg(long, default_value = "ServicePrincipal")]
        assignee_principal_type: String,
        /// Role, by name or id.
        #[arg(long)]
        role: String,
        /// What it is for: the id of a resource, group or subscription.
        #[arg(long)]
        scope: String,
        /// What the assignment is for.
        #[arg(long)]
        description: Option<String>,
        /// Id of the assignment [default: made].
        #[arg(short, long)]
        name: Option<String>,
    },
    /// List assignments.
    List {
        #[command(flatten)]
        filter: AssignmentFilter,
        /// All of the subscription.
        #[arg(long)]
        all: bool,
        /// Those of the scopes above too.
        #[arg(long, hide = true)]
        include_inherited: bool,
    },
    /// Take a role away.
    Delete {
        #[command(flatten)]
        filter: AssignmentFilter,
        /// Ids of assignments.
        #[arg(long, num_args = 1.., value_name = "ID")]
        ids: Vec<String>,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct AssignmentFilter {
    /// Principal: its object id, or the name of an identity.
    #[arg(long, alias = "assignee-object-id")]
    assignee: Option<String>,
    /// Role, by name or id.
    #[arg(long)]
    role: Option<String>,
    /// The id of a resource, group or subscription.
    #[arg(long)]
    scope: Option<String>,
    /// Resource group, instead of a scope.
    #[arg(short = 'g', long = "resource-group")]
    group: Option<String>,
}

#[derive(Debug, clap::Subcommand)]
pub(crate) enum DefinitionCommand {
    /// List roles.
    List {
        /// Only the one of this name.
        #[arg(short, long)]
        name: Option<String>,
        /// The id of a resource, group or subscription.
        #[arg(long)]
        scope: Option<String>,
        /// Only the ones that were added.
        #[arg(long, num_args = 0..=1, default_missing_value = "true", default_value = "false")]
        custom_role_only: bool,
    },
    /// Show a role.
    Show {
        /// Its name or id.
        #[arg(short, long, alias = "id")]
        name: String,
    },
}

pub(crate) fn run(command: RoleCommand, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        match command {
            RoleCommand::Assignment(command) => assignment(&session, command).await,
            RoleCommand::Definition(command) => definition(&session, command).await,
        }
    })
}

async fn assignment(session: &Session, command: AssignmentCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        AssignmentCommand::Create { assignee, assignee_principal_type, role, scope, description, name } => {
            let role = role_id(client, &scope, &role).await?;
            let name = name.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
            let path =
                format!("{}/providers/Microsoft.Authorization/roleAssignments/{name}", scope.trim_end_matches('/'));
            let mut body = json!({ "properties": { "roleDefinitionId": role,
                "principalId": principal(client, &assignee).await?, "principalType": assignee_principal_type } });
            if let Some(description) = description {
                body["properties"]["description"] = description.into();
            }
            let made = client.raw(Method::PUT, &path, Some(&body)).await?;
            session.print(flat(made.unwrap_or_default()), View::Assignments)
        }
        AssignmentCommand::List { filter, all, .. } => {
            let mut found = matching(client, &filter, all).await?;
            let roles = client.list(&format!("{}/roleDefinitions", root(client))).await?;
            for assignment in &mut found {
                let id = assignment["roleDefinitionId"].as_str().unwrap_or_default();
                let role = roles.as_array().and_then(|roles| roles.iter().find(|role| same_tail(&role["id"], id)));
                assignment["roleDefinitionName"] =
                    role.map(|role| role["properties"]["roleName"].clone()).unwrap_or_default();
            }
            session.print(Value::Array(found), View::Assignments)
        }
        AssignmentCommand::Delete { filter, ids, yes } => {
            let mut ids = ids;
            if ids.is_empty() {
                if filter.assignee.is_none()
                    && filter.role.is_none()
                    && filter.scope.is_none()
                    && filter.group.is_none()
                {
                    return Err(Failure::usage("which assignments?").hint("add --ids, --assignee, --role or --scope"));
                }
                let found = matching(client, &filter, false).await?;
                ids = found.iter().filter_map(|found| found["id"].as_str().map(str::to_owned)).collect();
            }
            session.confirm(&format!("Delete {} role assignments?", ids.len()), yes || ids.len() == 1)?;
            for id in ids {
                client.delete(&id, Wait::Done).await?;
            }
            Ok(())
        }
    }
}

fn root(client: &Client) -> String {
    format!("/subscriptions/{}/providers/Microsoft.Authorization", client.subscription())
}

/// Assignments that the filter names, flat as az shows them.
async fn matching(client: &Client, filter: &AssignmentFilter, all: bool) -> Result<Vec<Value>, Failure> {
    let scope = match (&filter.scope, &filter.group, all) {
        (Some(scope), _, _) => Some(scope.clone()),
        (None, Some(group), _) => Some(client.group(group)),
        _ => None,
    };
    let at = scope.clone().unwrap_or_else(|| format!("/subscriptions/{}", client.subscription()));
    let path = format!("{}/providers/Microsoft.Authorization/roleAssignments", at.trim_end_matches('/'));
    let mut found: Vec<Value> =
        client.list(&path).await?.as_array().map(|list| list.iter().cloned().map(flat).collect()).unwrap_or_default();
    let assignee = match &filter.assignee {
        Some(assignee) => Some(principal(client, assignee).await?),
        None => None,
    };
    let role = match &filter.role {
        Some(role) => Some(role_id(client, &at, role).await?),
        None => None,
    };
    found.retain(|assignment| {
        assignee.as_ref().is_none_or(|id| same(&assignment["principalId"], id))
            && role.as_ref().is_none_or(|id| same_tail(&assignment["roleDefinitionId"], id))
            && scope.as_ref().is_none_or(|scope| same(&assignment["scope"], scope.trim_end_matches('/')))
    });
    Ok(found)
}

fn same(field: &Value, text: &str) -> bool {
    field.as_str().is_some_and(|known| known.eq_ignore_ascii_case(text))
}

/// Ids of definitions differ in their scope, not in their last part.
fn same_tail(field: &Value, id: &str) -> bool {
    let tail = |id: &str| id.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    field.as_str().is_some_and(|known| tail(known) == tail(id))
}

/// The object id of a principal given by id, client id, name or resource id.
async fn principal(client: &Client, given: &str) -> Result<String, Failure> {
    let path =
        format!("/subscriptions/{}/providers/Microsoft.ManagedIdentity/userAssignedIdentities", client.subscription());
    let known = client.list(&path).await.unwrap_or_default();
    let found = known.as_array().and_then(|list| {
        list.iter().find(|identity| {
            [&identity["name"], &identity["id"], &identity["properties"]["clientId"]]
                .into_iter()
                .any(|field| same(field, given))
        })
    });
    if let Some(id) = found.and_then(|identity| identity["properties"]["principalId"].as_str()) {
        return Ok(id.to_owned());
    }
    if uuid::Uuid::parse_str(given).is_ok() {
        return Ok(given.to_owned());
    }
    Err(Failure::not_found(format!("there is no principal `{given}`"))
        .hint("an object id, or the name of an identity: cove identity list"))
}

/// The id of a role given by name, id or its last part.
async fn role_id(client: &Client, scope: &str, role: &str) -> Result<String, Failure> {
    if role.starts_with('/') {
        return Ok(role.to_owned());
    }
    let filter = encode(&format!("roleName eq '{}'", role.replace('\'', "''")));
    let path =
        format!("{}/providers/Microsoft.Authorization/roleDefinitions?$filter={filter}", scope.trim_end_matches('/'));
    let found = client.list(&path).await?;
    if let Some(id) = found[0]["id"].as_str() {
        return Ok(id.to_owned());
    }
    if uuid::Uuid::parse_str(role).is_ok() {
        return Ok(format!("{}/roleDefinitions/{role}", root(client)));
    }
    Err(Failure::not_found(format!("there is no role `{role}`")).hint("cove role definition list"))
}

/// Properties beside the id, as az shows them.
fn flat(mut resource: Value) -> Value {
    if let Value::Object(properties) = resource["properties"].take()
        && let Some(fields) = resource.as_object_mut()
    {
        fields.remove("properties");
        fields.extend(properties);
    }
    resource
}

async fn definition(session: &Session, command: DefinitionCommand) -> Result<(), Failure> {
    let client = &session.client;
    let (name, scope, is_custom) = match command {
        DefinitionCommand::List { name, scope, custom_role_only } => (name, scope, custom_role_only),
        DefinitionCommand::Show { name } => {
            let scope = format!("/subscriptions/{}", client.subscription());
            let id = role_id(client, &scope, &name).await?;
            return session.print(flat(client.get(&id).await?), View::Roles);
        }
    };
    let scope = scope.unwrap_or_else(|| format!("/subscriptions/{}", client.subscription()));
    let path = format!("{}/providers/Microsoft.Authorization/roleDefinitions", scope.trim_end_matches('/'));
    let mut roles: Vec<Value> =
        client.list(&path).await?.as_array().map(|list| list.iter().cloned().map(flat).collect()).unwrap_or_default();
    roles.retain(|role| {
        name.as_ref().is_none_or(|name| same(&role["roleName"], name) || same(&role["name"], name))
            && (!is_custom || same(&role["type"], "CustomRole"))
    });
    session.print(Value::Array(roles), View::Roles)
}
