//! The DNS suffix of an environment: reads its certificate, and sees that no other environment answers below it.
//!
//! **Invariant:** a stored suffix has a certificate with its key that is valid for `*.<suffix>`.

use cove_arm::{
    ArmError,
    environment::{Parsed, suffix},
};
use cove_model::{CERTIFICATE_KEY_SECRET, DnsSuffix, ResourceId};
use cove_store::ResourceRow;
use serde_json::{Value, json};

use super::x509::{self, CertificateFile};
use crate::{answer::Refusal, control_plane::ControlPlane, environments};

/// What the certificate tells of itself, shown with the suffix.
const FACTS: [&str; 3] = ["subjectName", "expirationDate", "thumbprint"];

/// Puts the suffix that is asked for into the environment; `old` is the environment as it is.
///
/// # Errors
/// 400 for a file that cannot be used or is for other names, 409 for a suffix that another environment has.
pub(crate) fn complete(
    plane: &ControlPlane,
    id: &ResourceId,
    old: Option<&ResourceRow>,
    parsed: &mut Parsed,
) -> Result<(), Refusal> {
    let Some(asked) = parsed.suffix.take() else { return Ok(()) };
    check_free(plane, id, &asked.name)?;
    let before = old.map(environments::model).transpose()?.and_then(|old| old.suffix);
    let (chain_pem, names) = match (&asked.value, before) {
        (Some(value), _) => {
            let file = x509::read(value, &asked.password)?;
            put_facts(&mut parsed.doc, &file.facts);
            let CertificateFile { chain_pem, key_pem, names, .. } = file;
            parsed.secrets.insert(CERTIFICATE_KEY_SECRET.to_owned(), Some(key_pem));
            (chain_pem, Some(names))
        }
        (None, Some(before)) => {
            let facts = old.and_then(|old| old.doc.pointer("/properties/customDomainConfiguration")).cloned();
            put_facts(&mut parsed.doc, &facts.unwrap_or_default());
            parsed.secrets.insert(CERTIFICATE_KEY_SECRET.to_owned(), None);
            let names = (before.name != asked.name).then(|| x509::names_in(&before.chain_pem));
            (before.chain_pem, names)
        }
        (None, None) => {
            let message = "A dnsSuffix needs a certificate: a PFX or PEM file, base64, in certificateValue.";
            let target = "properties.customDomainConfiguration.certificateValue";
            return Err(ArmError::invalid(target, message).into());
        }
    };
    let wanted = format!("*.{}", asked.name);
    if let Some(names) = names.filter(|names| !names.contains(&wanted)) {
        let message = format!("The certificate is for {} and not for '{wanted}'.", names.join(", "));
        return Err(ArmError::new(400, "CertificateSubjectMismatch", message).at(suffix::TARGET).into());
    }
    parsed.environment.suffix = Some(DnsSuffix { name: asked.name, chain_pem });
    Ok(())
}

/// Domains must not be nested: a host below both would be two apps'.
fn check_free(plane: &ControlPlane, id: &ResourceId, name: &str) -> Result<(), Refusal> {
    let is_below =
        |name: &str, domain: &str| name.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let platform = plane.config().domain.to_ascii_lowercase();
    let mut taken = vec![(platform, "this server".to_owned())];
    for row in plane.store().resources(environments::KIND, None)? {
        if row.id == *id {
            continue;
        }
        if let Some(suffix) = environments::model(&row)?.suffix {
            taken.push((suffix.name, format!("environment '{}'", row.id.name())));
        }
    }
    let other = taken.iter().find(|(domain, _)| is_below(name, domain) || is_below(domain, name));
    if let Some((domain, owner)) = other {
        let message = format!("The DNS suffix '{name}' meets '{domain}' of {owner}; choose another domain.");
        return Err(ArmError::conflict("DnsSuffixInUse", message).at(suffix::TARGET).into());
    }
    Ok(())
}

fn put_facts(doc: &mut Value, facts: &Value) {
    for name in FACTS {
        if let Some(fact) = facts.get(name).and_then(Value::as_str) {
            doc["properties"]["customDomainConfiguration"][name] = json!(fact);
        }
    }
}
