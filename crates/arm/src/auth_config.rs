//! `containerApps/authConfigs`: authentication in front of an app, as the user configured it.
//!
//! Nothing asks callers to log in yet: [`NO_EFFECT`] says so wherever the configuration or its app is shown.
//!
//! **Invariant:** a configuration names secrets of its app, it never holds one.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    ArmError, Errors,
    environment::{asks_for_something, child::strip},
    node::Node,
    schema::Schema,
};

/// The only name that a configuration may have.
pub const NAME: &str = "current";

/// What is said of every configuration that is switched on.
pub const NO_EFFECT: &str = "authentication is NOT enforced yet: everybody who reaches the app is let in without a login; restrict callers with ipSecurityRestrictions, client certificates or in the app itself.";

static PLATFORM: Schema = Schema::Object(&[("enabled", &Schema::Bool), ("runtimeVersion", &Schema::TextOrAbsent)]);

static VALIDATION: Schema = Schema::Object(&[
    (
        "unauthenticatedClientAction",
        &Schema::Word(&["AllowAnonymous", "RedirectToLoginPage", "Return401", "Return403"]),
    ),
    ("redirectToProvider", &Schema::TextOrAbsent),
    ("excludedPaths", &Schema::List(&Schema::Text)),
]);

/// Body of a configuration.
pub static SCHEMA: Schema = Schema::Object(&[(
    "properties",
    &Schema::Object(&[
        ("platform", &PLATFORM),
        ("globalValidation", &VALIDATION),
        ("identityProviders", &Schema::Map(&Schema::Any)),
        ("login", &Schema::Map(&Schema::Any)),
        (
            "httpSettings",
            &Schema::Object(&[
                ("requireHttps", &Schema::Bool),
                ("routes", &Schema::Object(&[("apiPrefix", &Schema::TextOrAbsent)])),
                ("forwardProxy", &Schema::Map(&Schema::Any)),
            ]),
        ),
        (
            "encryptionSettings",
            &Schema::Object(&[
                ("containerAppAuthEncryptionSecretName", &Schema::TextOrAbsent),
                ("containerAppAuthSigningSecretName", &Schema::TextOrAbsent),
            ]),
        ),
    ]),
)]);

/// Properties, at any depth, that name a secret of the app.
const SECRET_NAMES: &[&str] = &[
    "clientSecretSettingName",
    "appSecretSettingName",
    "consumerSecretSettingName",
    "sasUrlSettingName",
    "containerAppAuthEncryptionSecretName",
    "containerAppAuthSigningSecretName",
];

/// Checks a document that has the kinds of [`SCHEMA`]; `secrets` are the names of the app's secrets.
///
/// # Errors
/// Every problem of name and body at once, those in `errors` included.
pub fn parse(name: &str, mut doc: Value, secrets: &BTreeSet<String>, mut errors: Errors) -> Result<Value, ArmError> {
    strip(&mut doc, &["coveWarnings"]);
    if !name.eq_ignore_ascii_case(NAME) {
        let shown: String = name.chars().take(80).collect();
        let message = format!("An authentication configuration is named '{NAME}', not '{shown}'.");
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
    let root = Node::root(&doc);
    let properties = root.get("properties");
    check_secrets(&properties, secrets, &mut errors);
    let redirect = properties.get("globalValidation").get("redirectToProvider");
    if let Some(provider) = redirect.text() {
        let providers = properties.get("identityProviders").members();
        let custom = properties.get("identityProviders").get("customOpenIdConnectProviders").members();
        let is_known = provider.eq_ignore_ascii_case("azureactivedirectory")
            || providers.iter().chain(&custom).any(|(name, _)| name.eq_ignore_ascii_case(provider));
        if !is_known {
            let shown: String = provider.chars().take(80).collect();
            let message = format!("'{shown}' is none of the configured identityProviders.");
            errors.invalid(&redirect.path, message);
        }
    }
    for path in properties.get("globalValidation").get("excludedPaths").items() {
        if path.text().is_none_or(|text| !text.starts_with('/')) {
            errors.invalid(&path.path, "An excluded path begins with '/'.");
        }
    }
    errors.into_result()?;
    Ok(doc)
}

fn check_secrets(node: &Node<'_>, secrets: &BTreeSet<String>, errors: &mut Errors) {
    for item in node.items() {
        check_secrets(&item, secrets, errors);
    }
    for (name, value) in node.members() {
        let names_secret = SECRET_NAMES.iter().any(|known| known.eq_ignore_ascii_case(name));
        match value.text().filter(|_| names_secret) {
            Some(secret) if !secret.is_empty() && !secrets.contains(secret) => {
                let shown: String = secret.chars().take(80).collect();
                let message = format!("The app has no secret '{shown}'; add it with 'az containerapp secret set'.");
                errors.push(ArmError::new(400, "ContainerAppSecretRefNotFound", message).at(&value.path));
            }
            _ => check_secrets(&value, secrets, errors),
        }
    }
}

/// Whether a stored configuration asks for callers to be checked: it is switched on, or has providers and is not
/// switched off.
#[must_use]
pub fn is_on(doc: &Value) -> bool {
    let enabled = doc.pointer("/properties/platform/enabled").and_then(Value::as_bool);
    enabled.unwrap_or_else(|| doc.pointer("/properties/identityProviders").is_some_and(asks_for_something))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{Nulls, normalise};

    fn check(name: &str, body: &Value) -> Result<Value, ArmError> {
        let mut errors = Errors::new();
        let doc = normalise(body, &SCHEMA, Nulls::Drop, &mut errors);
        parse(name, doc, &BTreeSet::from(["google-secret".to_owned()]), errors)
    }

    #[test]
    fn secrets_are_named_and_must_exist() {
        let google = |secret: &str| {
            json!({ "properties": {
                "platform": { "enabled": "true" },
                "globalValidation": { "unauthenticatedClientAction": "redirecttologinpage", "redirectToProvider": "google" },
                "identityProviders": { "google": { "registration": { "clientId": "x", "clientSecretSettingName": secret } } },
                "future": { "thing": 1 },
            } })
        };
        let doc = check("Current", &google("google-secret")).unwrap();
        assert_eq!(doc["properties"]["globalValidation"]["unauthenticatedClientAction"], "RedirectToLoginPage");
        assert_eq!(doc["properties"]["future"]["thing"], 1);
        assert!(is_on(&doc) && !is_on(&json!({ "properties": { "platform": { "enabled": false } } })));
        assert_eq!(check("current", &google("other")).unwrap_err().code, "ContainerAppSecretRefNotFound");
        assert_eq!(check("mine", &google("google-secret")).unwrap_err().code, "InvalidResourceName");
        let unknown =
            json!({ "properties": { "globalValidation": { "redirectToProvider": "x", "excludedPaths": ["a"] } } });
        assert_eq!(check("current", &unknown).unwrap_err().details.len(), 2);
    }
}
