//! `managedEnvironments/certificates` and `…/managedCertificates`: what may stand in a body. What a certificate file holds
//! is read where the cryptography is, in the control plane.
//!
//! **Invariant:** the document never holds the file, its password or a key.

use std::fmt;

use serde_json::Value;

use super::child::{check_location, is_host_name, required, strip};
use crate::{ArmError, Errors, node::Node, schema::Schema};

/// Body of an uploaded certificate.
pub static SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("tags", &Schema::Map(&Schema::Text)),
    (
        "properties",
        &Schema::Object(&[
            ("value", &Schema::TextOrAbsent),
            ("password", &Schema::Text),
            (
                "certificateKeyVaultProperties",
                &Schema::Object(&[("identity", &Schema::TextOrAbsent), ("keyVaultUrl", &Schema::TextOrAbsent)]),
            ),
        ]),
    ),
]);

/// Body of a managed certificate; `validationMethod` is how `az` spells `domainControlValidation`.
pub static MANAGED_SCHEMA: Schema = Schema::Object(&[
    ("location", &Schema::Text),
    ("tags", &Schema::Map(&Schema::Text)),
    (
        "properties",
        &Schema::Object(&[
            ("subjectName", &Schema::Text),
            ("domainControlValidation", &Schema::Word(&["CNAME", "HTTP", "TXT"])),
            ("validationMethod", &Schema::Word(&["CNAME", "HTTP", "TXT"])),
        ]),
    ),
]);

/// What a certificate says of itself; Azure gives it, a body cannot.
pub const READ_ONLY: [&str; 8] = [
    "subjectName",
    "subjectAlternativeNames",
    "issuer",
    "issueDate",
    "expirationDate",
    "thumbprint",
    "valid",
    "publicKeyHash",
];

/// A checked upload; its `Debug` text has neither file nor password.
#[derive(Clone, PartialEq, Eq)]
pub struct Upload {
    /// The document, without the file.
    pub doc: Value,
    /// The file, base64, when one came.
    pub value: Option<String>,
    /// Its password; empty when none.
    pub password: String,
}

impl fmt::Debug for Upload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upload").field("doc", &self.doc).finish_non_exhaustive()
    }
}

/// Checks the body of an upload.
///
/// # Errors
/// Every problem at once; 501 for a certificate in Key Vault.
pub fn parse(mut doc: Value, mut errors: Errors) -> Result<Upload, ArmError> {
    strip(&mut doc, &READ_ONLY);
    check_location(&doc, &mut errors);
    let vault = Node::root(&doc).get("properties").get("certificateKeyVaultProperties");
    if vault.get("keyVaultUrl").exists() {
        let instead = "upload the certificate as a PFX or PEM file in `value`";
        errors.push(ArmError::not_implemented(&vault.path, "A certificate from Key Vault", instead));
    }
    errors.into_result()?;
    let mut take = |name: &str| {
        let fields = doc.get_mut("properties").and_then(Value::as_object_mut);
        fields.and_then(|fields| fields.remove(name)).and_then(|value| value.as_str().map(str::to_owned))
    };
    let (value, password) = (take("value"), take("password").unwrap_or_default());
    Ok(Upload { doc, value, password })
}

/// A checked managed certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Managed {
    /// The document.
    pub doc: Value,
    /// Host name it is for, lower case.
    pub subject: String,
}

/// Checks the body of a managed certificate.
///
/// # Errors
/// Every problem at once.
pub fn parse_managed(mut doc: Value, mut errors: Errors) -> Result<Managed, ArmError> {
    strip(&mut doc, &["error", "validationToken", "issuer", "issueDate", "expirationDate", "thumbprint"]);
    check_location(&doc, &mut errors);
    let node = Node::root(&doc).get("properties").get("subjectName");
    let subject =
        required(&node, "The host name that the certificate is for", &mut errors).map(str::to_ascii_lowercase);
    match subject.as_deref() {
        Some(name) if name.contains('*') => {
            errors.invalid(&node.path, "A managed certificate cannot have a wildcard; upload a certificate instead.");
        }
        Some(name) if name.len() > 64 || !is_host_name(name) => errors.invalid(
            &node.path,
            format!("'{}' is not a host name of at most 64 characters.", name.chars().take(80).collect::<String>()),
        ),
        Some(_) | None => {}
    }
    errors.into_result()?;
    if let Some(fields) = doc.get_mut("properties").and_then(Value::as_object_mut)
        && let Some(method) = fields.remove("validationMethod")
    {
        fields.entry("domainControlValidation").or_insert(method);
    }
    Ok(Managed { doc, subject: subject.unwrap_or_default() })
}
