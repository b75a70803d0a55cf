//! `customDomainConfiguration`: a domain of the user's own below which all apps of an environment answer, and its certificate.
//!
//! What a certificate file holds is read where the cryptography is, in the control plane.
//!
//! **Invariant:** the stored document never holds the file or its password.

use std::fmt;

use serde_json::Value;

use super::child::is_host_name;
use crate::{ArmError, Errors, node::Node, schema::Schema};

/// What may stand in `customDomainConfiguration`.
pub(super) static SCHEMA: Schema = Schema::Object(&[
    ("dnsSuffix", &Schema::TextOrAbsent),
    ("certificateValue", &Schema::TextOrAbsent),
    ("certificatePassword", &Schema::Text),
    (
        "certificateKeyVaultProperties",
        &Schema::Object(&[("identity", &Schema::TextOrAbsent), ("keyVaultUrl", &Schema::TextOrAbsent)]),
    ),
    ("customDomainVerificationId", &Schema::Text),
    ("subjectName", &Schema::Text),
    ("expirationDate", &Schema::Text),
    ("thumbprint", &Schema::Text),
]);

/// Where the suffix stands.
pub const TARGET: &str = "properties.customDomainConfiguration.dnsSuffix";

/// A suffix that is asked for; its `Debug` text has neither file nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct Asked {
    /// The domain, lower case.
    pub name: String,
    /// PFX or PEM file in base64; `None` keeps the one that is there.
    pub value: Option<String>,
    /// The file's password; empty when none.
    pub password: String,
}

impl fmt::Debug for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Asked").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Reports what cannot be.
pub(super) fn check(properties: &Node<'_>, errors: &mut Errors) {
    let domain = properties.get("customDomainConfiguration");
    let vault = domain.get("certificateKeyVaultProperties").get("keyVaultUrl");
    if vault.exists() {
        let instead = "upload the certificate as a PFX or PEM file in `certificateValue`";
        errors.push(ArmError::not_implemented(&vault.path, "A certificate from Key Vault", instead));
    }
    let suffix = domain.get("dnsSuffix");
    match suffix.text().map(str::trim) {
        None | Some("") => {
            let value = domain.get("certificateValue");
            if value.text().is_some_and(|text| !text.is_empty()) {
                errors.invalid(&value.path, "A certificate needs the dnsSuffix that it is for.");
            }
        }
        Some(name) if !is_host_name(name) => {
            let shown: String = name.chars().take(80).collect();
            errors.invalid(&suffix.path, format!("'{shown}' is not a domain such as 'apps.example.com'."));
        }
        Some(_) => {}
    }
}

/// Takes the file out of a document that was checked; what is asked for, if anything.
pub(super) fn take(doc: &mut Value) -> Option<Asked> {
    let domain = doc.pointer_mut("/properties/customDomainConfiguration")?.as_object_mut()?;
    let mut text = |name: &str| domain.remove(name).and_then(|value| value.as_str().map(str::to_owned));
    let (value, password) = (text("certificateValue"), text("certificatePassword").unwrap_or_default());
    let name = domain.get("dnsSuffix").and_then(Value::as_str).unwrap_or("").trim().to_ascii_lowercase();
    if name.is_empty() {
        if let Some(properties) = doc.get_mut("properties").and_then(Value::as_object_mut) {
            properties.remove("customDomainConfiguration");
        }
        return None;
    }
    domain.insert("dnsSuffix".to_owned(), Value::from(name.as_str()));
    Some(Asked { name, value: value.filter(|value| !value.is_empty()), password })
}
