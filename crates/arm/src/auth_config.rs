//! `containerApps/authConfigs`: authentication in front of an app, as the user configured it.
//!
//! [`policy`] gives what the ingress does; [`warnings`] say what of it cannot be had.
//!
//! **Invariant:** a configuration names secrets of its app, it never holds one.

mod policy;

use std::collections::BTreeSet;

use serde_json::Value;

use crate::{
    ArmError, Errors,
    environment::{asks_for_something, child::strip},
    node::Node,
    schema::Schema,
};

pub use policy::{policy, warnings};

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

/// Longest name of a custom provider.
const PROVIDER_NAME_MAX: usize = 64;

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
    check_providers(&properties.get("identityProviders"), &mut errors);
    check_settings(&properties, &mut errors);
    let redirect = properties.get("globalValidation").get("redirectToProvider");
    if let Some(provider) = redirect.text() {
        let providers = properties.get("identityProviders").members();
        let custom = properties.get("identityProviders").get("customOpenIdConnectProviders").members();
        let wanted = policy::provider_name(provider);
        let is_known = wanted == "aad"
            || providers
                .iter()
                .chain(&custom)
                .any(|(name, _)| policy::provider_name(name).eq_ignore_ascii_case(&wanted));
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

/// Names and addresses of providers: they become parts of paths and headers, and are called.
fn check_providers(identity: &Node<'_>, errors: &mut Errors) {
    let issuer = policy::member(identity, "azureActiveDirectory").get("registration").get("openIdIssuer");
    check_address(&issuer, errors);
    for (name, node) in policy::member(identity, "customOpenIdConnectProviders").members() {
        let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        let is_taken = policy::is_platform_name(name);
        if name.is_empty() || name.len() > PROVIDER_NAME_MAX || !name.chars().all(is_plain) || is_taken {
            let shown: String = name.chars().take(80).collect();
            let message = format!(
                "'{shown}' cannot be the name of a provider: letters, digits, '-' and '_', at most {PROVIDER_NAME_MAX}, and not that of a built-in one."
            );
            errors.invalid(&node.path, message);
        }
        for (_, address) in node.get("registration").get("openIdConnectConfiguration").members() {
            if address.path.ends_with(".issuer") {
                // a name, not always an address that can be called
                continue;
            }
            check_address(&address, errors);
        }
    }
}

fn check_address(node: &Node<'_>, errors: &mut Errors) {
    let Some(text) = node.text().filter(|text| !text.is_empty()) else { return };
    let rest = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let is_address = rest.is_some_and(|rest| {
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        !host.is_empty() && !host.contains('@') && text.chars().all(|c| c.is_ascii_graphic())
    });
    if !is_address {
        errors.invalid(&node.path, "An address of a provider begins with https:// or http:// and names a host.");
    }
}

fn check_settings(properties: &Node<'_>, errors: &mut Errors) {
    let login = properties.get("login");
    let times =
        [login.get("cookieExpiration").get("timeToExpiration"), login.get("nonce").get("nonceExpirationInterval")];
    for time in times.iter().filter(|time| time.text().is_some_and(|text| policy::time_span(text).is_none())) {
        errors.invalid(
            &time.path,
            "A time is written 'hh:mm:ss', with days as 'd.hh:mm:ss', and is longer than nothing.",
        );
    }
    for path in
        [properties.get("httpSettings").get("routes").get("apiPrefix"), login.get("routes").get("logoutEndpoint")]
    {
        if path.text().is_some_and(|text| !text.is_empty() && (!text.starts_with('/') || text.len() < 2)) {
            errors.invalid(&path.path, "A path begins with '/' and has more than that.");
        }
    }
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

    #[test]
    fn providers_have_plain_names_and_addresses() {
        let custom = |name: &str, address: &str| {
            json!({ "properties": { "identityProviders": { "customOpenIdConnectProviders": { name: { "registration": {
                "clientId": "x", "openIdConnectConfiguration": { "wellKnownOpenIdConfiguration": address, "issuer": "any" } } } } } } })
        };
        for (name, address, is_good) in [
            ("own-1", "https://op.example/.well-known/openid-configuration", true),
            ("own", "http://127.0.0.1:9000/x", true),
            ("own", "op.example/x", false),
            ("own", "https://", false),
            ("own", "https://user@op.example/", false),
            ("own", "https://op.example/ x", false),
            ("own", "file:///etc/passwd", false),
            ("a b", "https://op.example/", false),
            ("a/b", "https://op.example/", false),
            ("AAD", "https://op.example/", false),
            ("google", "https://op.example/", false),
        ] {
            assert_eq!(check("current", &custom(name, address)).is_ok(), is_good, "{name} {address}");
        }
        let times = json!({ "properties": {
            "login": { "cookieExpiration": { "timeToExpiration": "8h" }, "nonce": { "nonceExpirationInterval": "00:10:00" },
                "routes": { "logoutEndpoint": "bye" } },
            "httpSettings": { "routes": { "apiPrefix": "/" } },
        } });
        assert_eq!(check("current", &times).unwrap_err().details.len(), 3);
    }
}
