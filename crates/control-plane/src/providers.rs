//! Resource providers, as `az` asks for them before almost every command, and the list of resources.

use cove_arm::{ArmError, list, provider};
use cove_store::ResourceRow;
use http::Method;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer},
    call::Call,
    control_plane::ControlPlane,
    route::Route,
};

/// Kinds that `…/resources` lists, in Azure's spelling.
const LISTED: &[&str] = &[
    "Microsoft.App/containerApps",
    "Microsoft.App/managedEnvironments",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.OperationalInsights/workspaces",
];

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::GET, "/subscriptions/{subscription}/providers", all),
        Route::arm(Method::GET, "/subscriptions/{subscription}/providers/{namespace}", one),
        Route::arm(Method::POST, "/subscriptions/{subscription}/providers/{namespace}/register", one),
        Route::arm(Method::GET, "/subscriptions/{subscription}/resources", resources),
        Route::arm(Method::GET, "/subscriptions/{subscription}/resourceGroups/{group}/resources", group_resources),
    ]
}

async fn all(plane: ControlPlane, _: Call) -> Answer {
    Ok(answer::json(200, &list::render(provider::all(&plane.config().subscription), None)))
}

/// A namespace is served or it is not: registering one changes nothing.
async fn one(plane: ControlPlane, call: Call) -> Answer {
    let namespace = call.name("namespace");
    let document = provider::registered(&plane.config().subscription, namespace).ok_or_else(|| {
        let shown: String = namespace.chars().take(100).collect();
        ArmError::new(404, "InvalidResourceNamespace", format!("The resource namespace '{shown}' is invalid."))
    })?;
    Ok(answer::json(200, &document))
}

async fn resources(plane: ControlPlane, call: Call) -> Answer {
    let rows = listed(&plane, &call, &call.subscription_id()?)?;
    Ok(answer::json(200, &list::render(rows, None)))
}

async fn group_resources(plane: ControlPlane, call: Call) -> Answer {
    let group = crate::groups::require(&plane, &call)?;
    let rows = listed(&plane, &call, &group.id)?;
    Ok(answer::json(200, &list::render(rows, None)))
}

fn listed(
    plane: &ControlPlane,
    call: &Call,
    scope: &cove_model::ResourceId,
) -> Result<Vec<Value>, crate::answer::Refusal> {
    let wanted = call.query("$filter").map(Filter::parse).transpose()?.unwrap_or_default();
    let rows = plane.store().resources_below(scope)?;
    Ok(rows.iter().filter(|row| wanted.takes(row)).filter_map(summary).collect())
}

fn summary(row: &ResourceRow) -> Option<Value> {
    let kind = LISTED.iter().find(|kind| kind.eq_ignore_ascii_case(&row.kind))?;
    let location = row.doc.get("location").and_then(Value::as_str).unwrap_or("local");
    let mut value = json!({
        "id": row.id.as_str(),
        "name": row.id.name(),
        "type": kind,
        "location": provider::location_key(location),
    });
    if let Some(tags) = row.doc.get("tags") {
        value["tags"] = tags.clone();
    }
    Some(value)
}

/// The part of ARM's filter language that clients use: `field eq 'text'`, joined by `and`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter(Vec<(Field, String)>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Kind,
    Name,
    Group,
    Location,
}

impl Filter {
    fn parse(text: &str) -> Result<Self, ArmError> {
        let invalid = || {
            let shown: String = text.chars().take(200).collect();
            let expected =
                "field eq 'text', joined by 'and'; fields are resourceType, name, resourceGroup and location";
            ArmError::new(
                400,
                "InvalidFilterInQueryString",
                format!("The filter '{shown}' is not supported; expected {expected}."),
            )
        };
        let mut clauses = Vec::new();
        for clause in text.split(" and ").map(str::trim).filter(|clause| !clause.is_empty()) {
            let mut parts = clause.splitn(3, ' ');
            let (field, verb, value) = (parts.next().unwrap_or(""), parts.next(), parts.next());
            let field = match field.to_ascii_lowercase().as_str() {
                "resourcetype" => Field::Kind,
                "name" => Field::Name,
                "resourcegroup" => Field::Group,
                "location" => Field::Location,
                _ => return Err(invalid()),
            };
            let value = value.map(str::trim).and_then(|value| value.strip_prefix('\'')?.strip_suffix('\''));
            match (verb, value) {
                (Some(verb), Some(value)) if verb.eq_ignore_ascii_case("eq") => clauses.push((field, value.to_owned())),
                _ => return Err(invalid()),
            }
        }
        Ok(Self(clauses))
    }

    fn takes(&self, row: &ResourceRow) -> bool {
        self.0.iter().all(|(field, value)| match field {
            Field::Kind => row.kind.eq_ignore_ascii_case(value),
            Field::Name => row.id.name().eq_ignore_ascii_case(value),
            Field::Group => row.id.group_name().eq_ignore_ascii_case(value),
            Field::Location => {
                let location = row.doc.get("location").and_then(Value::as_str).unwrap_or("local");
                provider::location_key(location) == provider::location_key(value)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_clauses_joined_by_and() {
        let filter = Filter::parse("resourceType eq 'Microsoft.App/containerApps' and name eq 'web'").unwrap();
        assert_eq!(filter.0.len(), 2);
        for bad in ["resourceType ne 'x'", "name eq x", "tagName eq 'x'", "substringof('a', name)"] {
            assert_eq!(Filter::parse(bad).unwrap_err().code, "InvalidFilterInQueryString", "{bad}");
        }
    }
}
