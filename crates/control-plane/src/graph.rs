//! The directory, as far as `az role` asks Microsoft Graph about it: service principals and users.
//!
//! It holds the managed identities, the configured clients and the caller. On a developer's machine, where every name can
//! log in, every client id and user name that is asked for by name is one as well: the same object id that its token has.
//! Applications are not made here: clients stand in the configuration.
//!
//! **Invariant:** an object id means one principal: a managed identity's is never taken for a client's name.

use cove_arm::ArmError;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal},
    auth::Caller,
    call::Call,
    config::Auth,
    control_plane::ControlPlane,
    identities,
    route::Route,
    token::{Use, Who},
};

/// Ids in one request, as Graph allows.
const IDS_MAX: usize = 1000;
/// Where clients and their secrets are.
const CLIENTS: &str = "name its clients under `api.clients` in the configuration, or use a managed identity";

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = vec![
        Route::data(Method::GET, "/v1.0/servicePrincipals", service_principals),
        Route::data(Method::GET, "/v1.0/servicePrincipals/{object}", service_principal),
        Route::data(Method::GET, "/v1.0/users", users),
        Route::data(Method::GET, "/v1.0/users/{object}", user),
        Route::data(Method::GET, "/v1.0/me", me),
        Route::data(Method::GET, "/v1.0/groups", none),
        Route::data(Method::GET, "/v1.0/applications", none),
        Route::data(Method::POST, "/v1.0/directoryObjects/getByIds", by_ids),
    ];
    for path in ["/v1.0/applications", "/v1.0/servicePrincipals", "/v1.0/users", "/v1.0/groups"] {
        routes.push(Route::data(Method::POST, path, not_here));
    }
    routes
}

/// Someone in the directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Principal {
    /// A managed identity: object id, client id, name, id of its resource.
    Identity { object: String, client: String, name: String, resource: String },
    /// A client program with a name of its own.
    Client(Who),
    /// A person.
    User(Who),
}

impl Principal {
    fn object(&self) -> &str {
        match self {
            Self::Identity { object, .. } => object,
            Self::Client(who) | Self::User(who) => &who.object_id,
        }
    }

    fn is_user(&self) -> bool {
        matches!(self, Self::User(_))
    }

    fn render(&self) -> Value {
        match self {
            Self::Identity { object, client, name, resource } => json!({
                "@odata.type": "#microsoft.graph.servicePrincipal",
                "id": object,
                "appId": client,
                "displayName": name,
                "appDisplayName": null,
                "accountEnabled": true,
                "servicePrincipalType": "ManagedIdentity",
                "servicePrincipalNames": [client],
                "alternativeNames": ["isExplicit=True", resource],
            }),
            Self::Client(who) => json!({
                "@odata.type": "#microsoft.graph.servicePrincipal",
                "id": who.object_id,
                "appId": who.client_id,
                "displayName": who.client_id,
                "appDisplayName": who.client_id,
                "accountEnabled": true,
                "servicePrincipalType": "Application",
                "servicePrincipalNames": [who.client_id],
                "alternativeNames": [],
            }),
            Self::User(who) => json!({
                "@odata.type": "#microsoft.graph.user",
                "id": who.object_id,
                "displayName": who.name(),
                "userPrincipalName": who.name(),
                "mail": null,
            }),
        }
    }
}

/// Everybody who is known without being asked for by name.
fn known(plane: &ControlPlane, call: &Call) -> Result<Vec<Principal>, Refusal> {
    let mut all: Vec<Principal> = identities::all(plane)?
        .into_iter()
        .map(|(row, ids)| Principal::Identity {
            object: ids.principal_id,
            client: ids.client_id,
            name: row.id.name().to_owned(),
            resource: row.id.to_string(),
        })
        .collect();
    if let Auth::Clients(clients) = &plane.config().auth {
        all.extend(clients.iter().map(|client| Principal::Client(Who::client(&client.client_id))));
    }
    if let Caller::Token(claims) = &call.caller {
        let who = claims.who();
        let me = if who.user.is_some() { Principal::User(who) } else { Principal::Client(who) };
        if !all.iter().any(|known| known.object() == me.object()) {
            all.push(me);
        }
    }
    Ok(all)
}

/// A token of one app's streams opens no directory.
fn check(call: &Call) -> Result<(), ArmError> {
    match &call.caller {
        Caller::Token(claims) if claims.cove_use == Use::Data => {
            Err(ArmError::unauthorized("The token is for log streams; log in for the directory."))
        }
        Caller::Token(_) | Caller::Anonymous => Ok(()),
    }
}

fn page(values: Vec<Principal>) -> Answer {
    let values: Vec<Value> = values.iter().map(Principal::render).collect();
    Ok(answer::json(200, &json!({ "value": values })))
}

async fn none(_: ControlPlane, call: Call) -> Answer {
    check(&call)?;
    page(Vec::new())
}

async fn not_here(_: ControlPlane, call: Call) -> Answer {
    check(&call)?;
    Err(ArmError::not_implemented("Microsoft Graph", "Making applications, users and groups", CLIENTS).into())
}

async fn service_principals(plane: ControlPlane, call: Call) -> Answer {
    check(&call)?;
    let known = known(&plane, &call)?;
    let is_principal = |principal: &&Principal| !principal.is_user();
    let Some(filter) = call.query("$filter") else {
        return page(known.iter().filter(is_principal).cloned().collect());
    };
    let (field, wanted) = filter_of(filter, &["servicePrincipalNames", "appId", "displayName", "id"])?;
    let found: Vec<Principal> = known
        .iter()
        .filter(is_principal)
        .filter(|principal| {
            let shown = principal.render();
            let given = match field {
                "servicePrincipalNames" => &shown["appId"],
                other => &shown[other],
            };
            given.as_str().is_some_and(|given| given.eq_ignore_ascii_case(&wanted))
        })
        .cloned()
        .collect();
    let is_by_name = matches!(field, "servicePrincipalNames" | "appId");
    let is_open = matches!(plane.config().auth, Auth::OpenLoopback { .. });
    let is_object = known.iter().any(|principal| principal.object().eq_ignore_ascii_case(&wanted));
    if found.is_empty() && is_by_name && is_open && !is_object && !wanted.is_empty() {
        return page(vec![Principal::Client(Who::client(&wanted))]);
    }
    page(found)
}

async fn users(plane: ControlPlane, call: Call) -> Answer {
    check(&call)?;
    let known: Vec<Principal> = known(&plane, &call)?.into_iter().filter(Principal::is_user).collect();
    let Some(filter) = call.query("$filter") else { return page(known) };
    let (field, wanted) = filter_of(filter, &["userPrincipalName", "displayName", "mail", "id"])?;
    let is_open = matches!(plane.config().auth, Auth::OpenLoopback { .. });
    if field == "userPrincipalName" && is_open && wanted.contains('@') {
        return page(vec![Principal::User(Who::user("", &wanted))]);
    }
    page(known.into_iter().filter(|user| user.render()[field].as_str() == Some(wanted.as_str())).collect())
}

async fn service_principal(plane: ControlPlane, call: Call) -> Answer {
    one(&plane, &call, false)
}

async fn user(plane: ControlPlane, call: Call) -> Answer {
    one(&plane, &call, true)
}

fn one(plane: &ControlPlane, call: &Call, is_user: bool) -> Answer {
    check(call)?;
    let wanted = call.name("object");
    let found = known(plane, call)?
        .into_iter()
        .find(|principal| principal.is_user() == is_user && principal.object().eq_ignore_ascii_case(wanted));
    let is_open = matches!(plane.config().auth, Auth::OpenLoopback { .. });
    let named = || (is_user && is_open && wanted.contains('@')).then(|| Principal::User(Who::user("", wanted)));
    match found.or_else(named) {
        Some(principal) => Ok(answer::json(200, &principal.render())),
        None => {
            let shown: String = wanted.chars().take(100).collect();
            let message = format!(
                "Resource '{shown}' does not exist or one of its queried reference-property objects are not present."
            );
            Err(ArmError::new(404, "Request_ResourceNotFound", message).into())
        }
    }
}

async fn me(_: ControlPlane, call: Call) -> Answer {
    check(&call)?;
    match &call.caller {
        Caller::Token(claims) if claims.upn.is_some() => Ok(answer::json(200, &Principal::User(claims.who()).render())),
        Caller::Token(_) | Caller::Anonymous => {
            let message = "/me request is only valid with delegated authentication flow: log in as a user.";
            Err(ArmError::new(400, "BadRequest", message).into())
        }
    }
}

async fn by_ids(plane: ControlPlane, call: Call) -> Answer {
    check(&call)?;
    let body = call.object()?;
    let ids: Vec<&str> = body["ids"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if ids.len() > IDS_MAX {
        return Err(ArmError::invalid("ids", format!("{} ids are too many; send {IDS_MAX} at once.", ids.len())).into());
    }
    let known = known(&plane, &call)?;
    page(
        known
            .into_iter()
            .filter(|principal| ids.iter().any(|id| id.eq_ignore_ascii_case(principal.object())))
            .collect(),
    )
}

/// `field eq 'text'` or `field/any(c:c eq 'text')`.
fn filter_of(text: &str, known: &[&'static str]) -> Result<(&'static str, String), ArmError> {
    let invalid = || {
        let shown: String = text.chars().take(200).collect();
        let message = format!(
            "The filter '{shown}' is not supported; expected: field eq 'text', with one of {}.",
            known.join(", ")
        );
        ArmError::new(400, "Request_UnsupportedQuery", message)
    };
    let (field, rest) = match text.split_once("/any(") {
        Some((field, rest)) => (field, rest.strip_suffix(')').ok_or_else(invalid)?),
        None => (text.split(' ').next().unwrap_or(""), text),
    };
    let (_, value) = rest.split_once(" eq ").ok_or_else(invalid)?;
    let value = value.trim().strip_prefix('\'').and_then(|value| value.strip_suffix('\'')).ok_or_else(invalid)?;
    let field = known.iter().find(|known| known.eq_ignore_ascii_case(field.trim())).ok_or_else(invalid)?;
    Ok((field, value.replace("''", "'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_of_az_are_understood() {
        let known = ["servicePrincipalNames", "userPrincipalName"];
        let parsed = |text: &str| filter_of(text, &known).map_err(|error| error.code);
        assert_eq!(
            parsed("servicePrincipalNames/any(c:c eq 'a''b')").unwrap(),
            ("servicePrincipalNames", "a'b".to_owned())
        );
        assert_eq!(parsed("userPrincipalName eq 'me@local'").unwrap(), ("userPrincipalName", "me@local".to_owned()));
        for bad in ["", "displayName eq 'x'", "userPrincipalName eq x", "startswith(userPrincipalName,'x')"] {
            assert_eq!(parsed(bad).unwrap_err(), "Request_UnsupportedQuery", "{bad}");
        }
    }
}
