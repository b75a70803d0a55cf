//! Orders of managed certificates at an authority outside: what is to be ordered, and what became of it.
//!
//! The API writes an order down as `Pending`; whoever speaks to the authority reads the orders here, and says here what came.
//! Between the two there is only the store, so that an order which was begun before a restart is begun again after it.
//!
//! **Invariant:** a certificate that is served stays so until its renewal is here, however often that fails.

use std::collections::BTreeMap;

use cove_model::{CERTIFICATE_KEY_SECRET, Certificate, CertificateOrder, DomainValidation, OrderState, ResourceId};
use cove_store::{Expect, Provisioning, PutResource, ResourceRow, SecretsChange, StoreError};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    certificates::{Issued, MANAGED_FACTS, MANAGED_KIND},
    x509,
};
use crate::{control_plane::ControlPlane, crud, groups::TRIES_MAX};

/// Longest text about what went wrong that is kept.
const ERROR_MAX_CHARS: usize = 1000;

/// A managed certificate that an authority outside signs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ordered {
    /// The certificate.
    pub id: ResourceId,
    /// Host name it is for, lower case.
    pub subject: String,
    /// How far it is.
    pub state: OrderState,
    /// How the domain is proven.
    pub validation: DomainValidation,
    /// From when to when the certificate that is there is valid; `None` when there is none.
    pub validity: Option<(Timestamp, Timestamp)>,
}

/// Why an order cannot be read or written down.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The store failed.
    #[error("the orders of certificates cannot be read or written")]
    Store(#[from] StoreError),
    /// What the authority gave cannot be served.
    #[error("the authority's certificate cannot be used: {0}")]
    Unusable(String),
    /// Stored values that cannot be read or written as text.
    #[error("a stored certificate is damaged")]
    Damaged(#[from] serde_json::Error),
}

/// What changes in a certificate.
enum Change<'a> {
    Issued(&'a Issued),
    Token(&'a str),
    Error { text: &'a str, is_final: bool },
}

impl ControlPlane {
    /// All orders, finished ones too.
    ///
    /// # Errors
    /// The store cannot be read. A damaged certificate is left out and logged.
    pub fn ordered_certificates(&self) -> Result<Vec<Ordered>, StoreError> {
        let rows = self.store().resources(MANAGED_KIND, None)?;
        Ok(rows.iter().filter_map(ordered).collect())
    }

    /// The authority signed.
    ///
    /// # Errors
    /// The certificate cannot be served, or cannot be stored.
    pub async fn certificate_issued(&self, id: &ResourceId, issued: &Issued) -> Result<(), OrderError> {
        self.change_order(id, Change::Issued(issued)).await
    }

    /// What a TXT record of the domain must say.
    ///
    /// # Errors
    /// It cannot be stored.
    pub async fn certificate_token(&self, id: &ResourceId, token: &str) -> Result<(), OrderError> {
        self.change_order(id, Change::Token(token)).await
    }

    /// It went wrong; `is_final` says that trying again makes no sense. A certificate that is there stays.
    ///
    /// # Errors
    /// It cannot be stored.
    pub async fn certificate_not_issued(&self, id: &ResourceId, text: &str, is_final: bool) -> Result<(), OrderError> {
        self.change_order(id, Change::Error { text, is_final }).await
    }

    /// Changes what is stored; nothing when it is gone or ordered no more.
    async fn change_order(&self, id: &ResourceId, change: Change<'_>) -> Result<(), OrderError> {
        for _ in 0..TRIES_MAX {
            let Some(row) = self.store().resource(id)? else { return Ok(()) };
            let Some((doc, certificate, secrets)) = changed(&row, &change)? else { return Ok(()) };
            let put = PutResource {
                id: row.id.clone(),
                doc,
                spec: Some(serde_json::to_value(&certificate)?),
                secrets,
                provisioning: Provisioning::Succeeded,
                operation: None,
                revision: None,
                expect: Expect::Generation(row.generation),
                now: self.clock().now(),
            };
            match self.store().put(put).await {
                Ok(_) => {
                    if let Change::Error { text, .. } = change {
                        crud::warn(self, id, vec![format!("The certificate was not issued: {text}")]);
                    }
                    return Ok(());
                }
                Err(StoreError::Conflict { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(StoreError::Conflict { id: id.clone() }.into())
    }
}

/// Document, model and secrets after a change; `None` when there is nothing to change.
fn changed(row: &ResourceRow, change: &Change<'_>) -> Result<Option<(Value, Certificate, SecretsChange)>, OrderError> {
    let (mut doc, mut secrets) = (row.doc.clone(), SecretsChange::Keep);
    let mut certificate: Certificate = serde_json::from_value(row.spec.clone().unwrap_or(Value::Null))?;
    let Some(order) = &mut certificate.order else { return Ok(None) };
    let before = order.clone();
    match change {
        Change::Issued(issued) => {
            let file = x509::from_pem_texts(&issued.chain_pem, &issued.key_pem)
                .map_err(|error| OrderError::Unusable(error.message))?;
            let is_new = certificate.chain_pem != file.chain_pem;
            let (state, validation) = (OrderState::Succeeded, before.validation);
            *order = CertificateOrder { state, validation, token: None, error: None };
            if !is_new && *order == before {
                return Ok(None);
            }
            for name in MANAGED_FACTS {
                doc["properties"][name] = file.facts[name].clone();
            }
            (certificate.chain_pem, certificate.names) = (file.chain_pem, file.names);
            let key = BTreeMap::from([(CERTIFICATE_KEY_SECRET.to_owned(), Some(file.key_pem))]);
            secrets = SecretsChange::Replace(key);
        }
        Change::Token(token) => order.token = Some((*token).to_owned()),
        Change::Error { text, is_final } => {
            order.error = Some(text.chars().take(ERROR_MAX_CHARS).collect());
            if *is_final && certificate.chain_pem.is_empty() {
                order.state = OrderState::Failed;
                order.token = None;
            }
        }
    }
    let is_same = certificate.order.as_ref() == Some(&before) && matches!(secrets, SecretsChange::Keep);
    Ok((!is_same).then_some((doc, certificate, secrets)))
}

fn ordered(row: &ResourceRow) -> Option<Ordered> {
    let spec = row.spec.clone()?;
    let certificate: Certificate = serde_json::from_value(spec)
        .inspect_err(|error| tracing::error!(id = %row.id, %error, "a stored certificate cannot be read"))
        .ok()?;
    let order = certificate.order?;
    let property = |name: &str| row.doc.pointer("/properties").and_then(|all| all.get(name)).and_then(Value::as_str);
    let time = |name: &str| property(name).and_then(|text| text.parse::<Timestamp>().ok());
    let is_there = !certificate.chain_pem.is_empty();
    Some(Ordered {
        id: row.id.clone(),
        subject: property("subjectName")?.to_ascii_lowercase(),
        state: order.state,
        validation: order.validation,
        validity: time("issueDate").zip(time("expirationDate")).filter(|_| is_there),
    })
}

/// A certificate that is asked for and not there yet.
pub(super) fn pending(id: &ResourceId, subject: &str, doc: &Value) -> Certificate {
    let method = doc.pointer("/properties/domainControlValidation").and_then(Value::as_str).unwrap_or("HTTP");
    let validation = if method.eq_ignore_ascii_case("TXT") { DomainValidation::Txt } else { DomainValidation::Http };
    let order = CertificateOrder { state: OrderState::Pending, validation, token: None, error: None };
    Certificate { id: id.clone(), chain_pem: String::new(), names: vec![subject.to_owned()], order: Some(order) }
}

/// The order of a stored certificate.
pub(super) fn order_of(row: &ResourceRow) -> Option<CertificateOrder> {
    let order = row.spec.as_ref()?.get("order")?.clone();
    serde_json::from_value(order).ok()
}

/// Shows how far an order is, as Azure does.
pub(super) fn show(value: &mut Value, order: &CertificateOrder) {
    let properties = &mut value["properties"];
    properties["provisioningState"] = match order.state {
        OrderState::Pending => json!("Pending"),
        OrderState::Succeeded => json!("Succeeded"),
        OrderState::Failed => json!("Failed"),
    };
    if let Some(token) = &order.token {
        properties["validationToken"] = json!(token);
    }
    if let Some(error) = &order.error {
        properties["error"] = json!(error);
    }
}
