//! One order: prove the domain, ask for the certificate, take it.
//!
//! **Invariant:** a question of the authority is answered only while its order is open.

use std::time::{Duration, Instant};

use cove_base::Backoff;
use cove_control_plane::{Issued, Ordered};
use cove_ingress::Expected;
use cove_model::DomainValidation;
use instant_acme::{
    AuthorizationStatus, ChallengeType, Error, Identifier, NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};

use super::{Acme, txt};

/// Problems that pass by themselves (RFC 8555, 6.7); everything else is final.
const PASSING: [&str; 4] = ["rateLimited", "serverInternal", "badNonce", "accountDoesNotExist"];

/// Pause between two looks for a TXT record.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// Longest that an authority may take to look at a domain that is ready.
const PROOF_LIMIT: Duration = Duration::from_secs(240);

/// How the authority is asked whether the certificate is there.
fn polling() -> RetryPolicy {
    RetryPolicy::new().initial_delay(Duration::from_millis(250)).backoff(1.5).timeout(Duration::from_secs(240))
}

/// Why there is no certificate, in words.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The authority will not sign as things are.
    Refused(String),
    /// It may do so later.
    Later(String),
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        match error.downcast_ref::<Error>() {
            Some(Error::Api(problem)) => problem_of(problem),
            _ => Self::Later(format!("{error:#}")),
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        anyhow::Error::new(error).into()
    }
}

fn problem_of(problem: &Problem) -> Failure {
    let kind = problem.r#type.as_deref().and_then(|kind| kind.rsplit(':').next()).unwrap_or("");
    if PASSING.contains(&kind) { Failure::Later(problem.to_string()) } else { Failure::Refused(problem.to_string()) }
}

fn is_account_gone(error: &Error) -> bool {
    matches!(error, Error::Api(problem) if problem.r#type.as_deref().is_some_and(|kind| kind.ends_with(":accountDoesNotExist")))
}

impl Acme {
    /// Orders the certificate and waits for it.
    pub(super) async fn obtain(&self, ordered: &Ordered) -> Result<Issued, Failure> {
        let subject = &ordered.subject;
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(subject.clone())];
        let mut order = match account.new_order(&NewOrder::new(&identifiers)).await {
            Ok(order) => order,
            Err(error) if is_account_gone(&error) => {
                self.forget_account().await?;
                return Err(error.into());
            }
            Err(error) => return Err(error.into()),
        };
        let expected = self.prove(&mut order, ordered).await?;
        let proven = until_proven(&mut order).await;
        drop(expected);
        proven?;
        let (key_pem, csr) = request(subject, self.section.key)?;
        order.finalize_csr(&csr).await?;
        let chain_pem = order.poll_certificate(&polling()).await?;
        Ok(Issued { chain_pem, key_pem })
    }

    /// Makes the authority look at the domain; it finds the answers as long as what is given lives.
    async fn prove(&self, order: &mut Order, ordered: &Ordered) -> Result<Vec<Expected>, Failure> {
        let subject = &ordered.subject;
        let kind = match ordered.validation {
            DomainValidation::Http => ChallengeType::Http01,
            DomainValidation::Txt => ChallengeType::Dns01,
        };
        let mut expected = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            match authorization.status {
                AuthorizationStatus::Pending => {}
                AuthorizationStatus::Valid => continue,
                other => return Err(Failure::Later(format!("the authorization of '{subject}' is {other:?}"))),
            }
            let offered = authorization.challenge(kind.clone());
            let mut challenge = offered
                .ok_or_else(|| Failure::Refused(format!("the authority does not offer the challenge {kind:?}")))?;
            let answer = challenge.key_authorization();
            match ordered.validation {
                DomainValidation::Http => {
                    let question = self.challenges.expect(subject, &challenge.token, answer.as_str());
                    expected.push(question.map_err(|error| Failure::Later(error.to_string()))?);
                }
                DomainValidation::Txt => self.await_record(ordered, &answer.dns_value()).await?,
            }
            challenge.set_ready().await?;
        }
        Ok(expected)
    }
}

impl Acme {
    /// Tells what the TXT record must say, and waits until it does: the authority looks only once.
    async fn await_record(&self, ordered: &Ordered, value: &str) -> Result<(), Failure> {
        let told = self.plane.certificate_token(&ordered.id, value).await;
        told.map_err(|error| Failure::Later(format!("{:#}", anyhow::Error::new(error))))?;
        let resolver = txt::resolver(self.section.resolver)?;
        while !txt::is_there(resolver, &ordered.subject, value).await? {
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

/// Waits until the authority has looked at the domain. Its authorizations are asked too: not every authority tells in the
/// order that one of them failed.
async fn until_proven(order: &mut Order) -> Result<(), Failure> {
    let mut backoff = Backoff::new(Duration::from_millis(100), LOOK_EVERY);
    let until = Instant::now() + PROOF_LIMIT;
    loop {
        let status = order.refresh().await?.status;
        match status {
            OrderStatus::Ready | OrderStatus::Valid => return Ok(()),
            OrderStatus::Invalid => return Err(denied(order).await?.unwrap_or_else(unexplained)),
            OrderStatus::Pending | OrderStatus::Processing => {}
        }
        if let Some(failure) = denied(order).await? {
            return Err(failure);
        }
        if Instant::now() > until {
            return Err(Failure::Later("the authority has not looked at the domain yet".to_owned()));
        }
        tokio::time::sleep(backoff.next_wait()).await;
    }
}

fn unexplained() -> Failure {
    Failure::Refused("the authority could not verify the domain and does not say why".to_owned())
}

/// What the authority says of the challenges of an order, if one failed.
async fn denied(order: &mut Order) -> Result<Option<Failure>, Failure> {
    let (mut is_denied, mut texts) = (false, Vec::new());
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let state = authorization.refresh().await?;
        is_denied |= !matches!(state.status, AuthorizationStatus::Pending | AuthorizationStatus::Valid);
        texts.extend(state.challenges.iter().filter_map(|challenge| challenge.error.as_ref()).map(ToString::to_string));
    }
    let failure = || if texts.is_empty() { unexplained() } else { Failure::Refused(texts.join("; ")) };
    Ok(is_denied.then(failure))
}

/// A new key in PEM, and the request for its certificate.
fn request(subject: &str, kind: crate::config::AcmeKey) -> anyhow::Result<(String, Vec<u8>)> {
    let key = KeyPair::generate_for(kind.algorithm())?;
    let mut params = CertificateParams::new(vec![subject.to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    let csr = params.serialize_request(&key)?;
    Ok((key.serialize_pem(), csr.der().to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_passes_by_itself_is_tried_again() {
        for (kind, is_final) in [
            ("urn:ietf:params:acme:error:rateLimited", false),
            ("urn:ietf:params:acme:error:serverInternal", false),
            ("urn:ietf:params:acme:error:accountDoesNotExist", false),
            ("urn:ietf:params:acme:error:rejectedIdentifier", true),
            ("urn:ietf:params:acme:error:caa", true),
            ("about:blank", true),
        ] {
            let problem = serde_json::json!({ "type": kind, "detail": "words", "status": 403 });
            let problem: Problem = serde_json::from_value(problem).unwrap();
            let failure = Failure::from(anyhow::Error::new(Error::Api(problem)).context("more words"));
            assert_eq!(matches!(failure, Failure::Refused(_)), is_final, "{failure:?}");
        }
    }

    #[test]
    fn a_request_is_for_the_subject() {
        for kind in [crate::config::AcmeKey::P256, crate::config::AcmeKey::P384] {
            let (key, csr) = request("shop.example", kind).unwrap();
            assert!(key.starts_with("-----BEGIN PRIVATE KEY-----"));
            assert!(csr.windows(12).any(|bytes| bytes == b"shop.example"));
        }
    }
}
