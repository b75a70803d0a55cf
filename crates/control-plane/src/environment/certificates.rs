//! `managedEnvironments/certificates`: uploaded ones; and `…/managedCertificates`: issued by this server's own authority, or
//! ordered at one outside (ACME) where the server is set up for that.
//!
//! Nobody outside signs for the names of one's own machine, so a managed certificate of the own authority is ready at once
//! and trusted by those who trust this server's CA; no proof of the domain is asked for, and the answer says so. One that is
//! ordered outside is `Pending` until it came.
//!
//! **Invariant:** a certificate that is shown as `Succeeded` is stored with its key, as the ingress serves it.

use std::{collections::BTreeMap, fmt, sync::Arc};

use cove_arm::{
    ArmError, Errors,
    environment::{
        certificate::{self, READ_ONLY},
        child,
    },
    schema::Schema,
};
use cove_model::{CERTIFICATE_KEY_SECRET, Certificate, OrderState};
use cove_store::{ResourceRow, SecretsChange};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    below, check_certificate_is_free, environment_of, orders, spec_of,
    x509::{self, CertificateFile},
};
use crate::{
    answer::Refusal,
    call::Call,
    control_plane::ControlPlane,
    crud::{self, Parsed, Resource, Write},
    environments,
    route::Route,
};

/// A certificate that was just made.
#[derive(Clone)]
pub struct Issued {
    /// Chain in PEM, leaf first.
    pub chain_pem: String,
    /// The leaf's key in PEM.
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

/// Makes a certificate for host names, or says why not.
pub type Issue = Arc<dyn Fn(&[String]) -> Result<Issued, String> + Send + Sync>;

pub(super) fn routes() -> Vec<Route> {
    let mut routes = crud::routes::<Uploaded>();
    routes.extend(crud::routes::<Managed>());
    routes
}

struct Uploaded;

impl Resource for Uploaded {
    const KIND: &'static str = "Microsoft.App/managedEnvironments/certificates";
    const PATH: &'static str = below!("certificates/{certificate}");
    const HAS_PATCH: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        environments::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &certificate::SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let mut upload = certificate::parse(doc, errors)?;
        let Some(value) = &upload.value else {
            // what was shown is sent back, or tags change: the file stays
            return match write.old {
                Some(old) => Ok(kept(old, upload.doc, &READ_ONLY)),
                None => Err(ArmError::invalid("properties.value", "A PFX or PEM file, base64, is required.").into()),
            };
        };
        let file = x509::read(value, &upload.password)?;
        put_facts(&mut upload.doc, &file);
        stored(write, upload.doc, file)
    }

    fn render(plane: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        let time = |name: &str| value["properties"][name].as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let now = plane.clock().now();
        let is_valid =
            time("issueDate").is_none_or(|from| from <= now) && time("expirationDate").is_some_and(|to| now < to);
        value["properties"]["valid"] = json!(is_valid);
        child::show_state(&mut value, &[]);
        Ok(value)
    }

    fn check_delete(plane: &ControlPlane, row: &ResourceRow) -> Result<(), Refusal> {
        check_certificate_is_free(plane, &environment_of(row)?, &row.id)
    }
}

struct Managed;

/// What a managed certificate tells besides Azure's own properties.
pub(super) const MANAGED_FACTS: [&str; 4] = ["issuer", "issueDate", "expirationDate", "thumbprint"];

/// Type of managed certificates.
pub(super) const MANAGED_KIND: &str = "Microsoft.App/managedEnvironments/managedCertificates";

impl Resource for Managed {
    const KIND: &'static str = MANAGED_KIND;
    const PATH: &'static str = below!("managedCertificates/{certificate}");
    const HAS_PATCH: bool = true;

    fn parent(plane: &ControlPlane, call: &Call) -> Result<ResourceRow, Refusal> {
        environments::require(plane, call)
    }

    fn schema() -> &'static Schema {
        &certificate::MANAGED_SCHEMA
    }

    fn parse(write: &Write<'_>, doc: Value, errors: Errors) -> Result<Parsed, Refusal> {
        let managed = certificate::parse_managed(doc, errors)?;
        if let Some(old) = write.old {
            let before = old.doc.pointer("/properties/subjectName").and_then(Value::as_str).unwrap_or("");
            if before.eq_ignore_ascii_case(&managed.subject) {
                let has_failed = orders::order_of(old).is_some_and(|order| order.state == OrderState::Failed);
                if has_failed && write.plane.orders_outside() {
                    return ordered(write, managed.doc, &managed.subject);
                }
                return Ok(kept(old, managed.doc, &MANAGED_FACTS));
            }
            let message =
                format!("It is for '{before}' and cannot be moved to another host name; make another certificate.");
            return Err(ArmError::conflict("CertificateSubjectCannotBeChanged", message)
                .at("properties.subjectName")
                .into());
        }
        if write.plane.orders_outside() {
            return ordered(write, managed.doc, &managed.subject);
        }
        let Some(issue) = write.plane.issue() else {
            let instead = "this server has no certificate authority; upload a certificate instead";
            return Err(ArmError::not_implemented("properties", "A managed certificate", instead).into());
        };
        let issued = issue(std::slice::from_ref(&managed.subject)).map_err(Refusal::Broken)?;
        let file = x509::from_pem_texts(&issued.chain_pem, &issued.key_pem)?;
        let mut doc = managed.doc;
        for name in MANAGED_FACTS {
            doc["properties"][name] = file.facts[name].clone();
        }
        stored(write, doc, file)
    }

    fn created(row: &ResourceRow) -> u16 {
        // clients look again only after 201
        let is_pending = orders::order_of(row).is_some_and(|order| order.state == OrderState::Pending);
        if is_pending { 201 } else { Self::CREATED }
    }

    fn render(_: &ControlPlane, _: &Call, row: &ResourceRow) -> Result<Value, Refusal> {
        let mut value = crud::envelope(row, Self::KIND);
        if let Some(order) = orders::order_of(row) {
            orders::show(&mut value, &order);
            return Ok(value);
        }
        let words = "Issued by this server's own authority: clients must trust its CA certificate. \
                     No proof of the domain was asked for.";
        child::show_state(&mut value, &[words.to_owned()]);
        Ok(value)
    }

    fn check_delete(plane: &ControlPlane, row: &ResourceRow) -> Result<(), Refusal> {
        check_certificate_is_free(plane, &environment_of(row)?, &row.id)
    }
}

/// A managed certificate that is to be ordered outside.
fn ordered(write: &Write<'_>, doc: Value, subject: &str) -> Result<Parsed, Refusal> {
    let spec = orders::pending(write.id, subject, &doc);
    Ok(Parsed { doc, spec: Some(spec_of(&spec)?), secrets: SecretsChange::Replace(BTreeMap::new()) })
}

fn put_facts(doc: &mut Value, file: &CertificateFile) {
    for (name, fact) in file.facts.as_object().into_iter().flatten() {
        doc["properties"][name.as_str()] = fact.clone();
    }
}

/// The new document with the facts of the old one; certificate and key stay.
fn kept(old: &ResourceRow, mut doc: Value, facts: &[&str]) -> Parsed {
    for name in facts {
        if let Some(fact) = old.doc.pointer(&format!("/properties/{name}")) {
            doc["properties"][*name] = fact.clone();
        }
    }
    Parsed { doc, spec: old.spec.clone(), secrets: SecretsChange::Keep }
}

fn stored(write: &Write<'_>, doc: Value, file: CertificateFile) -> Result<Parsed, Refusal> {
    let spec = Certificate { id: write.id.clone(), chain_pem: file.chain_pem, names: file.names, order: None };
    let secrets = BTreeMap::from([(CERTIFICATE_KEY_SECRET.to_owned(), Some(file.key_pem))]);
    Ok(Parsed { doc, spec: Some(spec_of(&spec)?), secrets: SecretsChange::Replace(secrets) })
}
