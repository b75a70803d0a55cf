//! Managed certificates from an authority outside, by ACME (RFC 8555): which are to be ordered, when, and what comes of it.
//!
//! Orders stand in the store; this loop looks at all of them whenever one changes or falls due, and speaks to the authority
//! (`order`) in tasks of their own. Nothing is remembered besides the account: an order that a restart cut off is begun
//! again, and authorities give back authorizations that are valid already.
//!
//! **Invariant:** the account's key and certificates' keys are only in memory and sealed in the store.
//! **Invariant:** an authority is asked again after a failure only after a wait that doubles up to a day.

mod order;
mod txt;

use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use cove_base::{Backoff, Clock};
use cove_control_plane::{ControlPlane, Ordered};
use cove_ingress::Challenges;
use cove_model::{DomainValidation, OrderState, ResourceId};
use cove_store::Store;
use instant_acme::{Account, AccountBuilder, AccountCredentials, ExternalAccountKey, NewAccount};
use jiff::{SignedDuration, Timestamp};
use order::Failure;
use tokio::{sync::Mutex, task::JoinSet};

use crate::config::AcmeSection;

/// Orders that are worked on at once.
const ORDERS_MAX: usize = 16;
/// Longest that an order may take which the authority proves by itself.
const ORDER_LIMIT: Duration = Duration::from_secs(600);
/// Longest that an order may take whose TXT record the domain's owner has to write.
const TXT_ORDER_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Shortest time between a renewal and the next of the same certificate, whatever its dates say.
const RENEWAL_PAUSE: SignedDuration = SignedDuration::from_hours(1);
/// First and longest wait after a failure.
const WAITS: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(24 * 3600));
/// Kind of the resources that are ordered.
const KIND: &str = "microsoft.app/managedenvironments/managedcertificates";

/// What speaks to the authority, and for whom.
pub(crate) struct Acme {
    section: AcmeSection,
    directory: String,
    store: Store,
    plane: ControlPlane,
    clock: Clock,
    challenges: Challenges,
    /// Made when first needed.
    account: Mutex<Option<Account>>,
}

/// When a certificate may be ordered again.
struct Waiting {
    backoff: Backoff,
    not_before: Timestamp,
}

/// What came of working on one certificate.
enum Outcome {
    Done,
    Again,
}

/// Follows the store; ends only when dropped.
pub(crate) async fn follow(acme: Arc<Acme>) {
    let mut changes = acme.store.changes();
    let mut waits: BTreeMap<ResourceId, Waiting> = BTreeMap::new();
    let mut working = JoinSet::new();
    let mut worked_on: HashMap<tokio::task::Id, ResourceId> = HashMap::new();
    loop {
        let now = acme.clock.now();
        let orders = acme.plane.ordered_certificates().unwrap_or_else(|error| {
            tracing::warn!(%error, "the orders of certificates could not be read; it is tried at the next change");
            Vec::new()
        });
        waits.retain(|id, _| orders.iter().any(|order| order.id == *id));
        let mut next: Option<Timestamp> = None;
        for order in orders {
            let Some(at) = due_at(&order, acme.section.renew_before.0) else { continue };
            let at = waits.get(&order.id).map_or(at, |wait| at.max(wait.not_before));
            if at > now {
                next = Some(next.map_or(at, |next| next.min(at)));
            } else if working.len() < ORDERS_MAX && !worked_on.values().any(|id| *id == order.id) {
                let id = order.id.clone();
                let task = working.spawn(work(Arc::clone(&acme), order));
                worked_on.insert(task.id(), id);
            }
        }
        let due = async {
            match next {
                Some(at) => acme.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = changed(&mut changes) => {}
            () = due => {}
            Some(ended) = working.join_next_with_id() => {
                let (task, outcome) = match ended {
                    Ok((task, outcome)) => (task, outcome),
                    Err(panicked) => (panicked.id(), Outcome::Again),
                };
                if let Some(id) = worked_on.remove(&task) {
                    wait(&mut waits, id, &outcome, acme.clock.now());
                }
            }
        }
    }
}

/// Waits until a certificate changed.
async fn changed(changes: &mut cove_base::Changes<ResourceId>) {
    loop {
        if changes.next().await.iter().any(|id| id.kind().eq_ignore_ascii_case(KIND)) {
            return;
        }
    }
}

fn wait(waits: &mut BTreeMap<ResourceId, Waiting>, id: ResourceId, outcome: &Outcome, now: Timestamp) {
    let fresh = || Waiting { backoff: Backoff::new(WAITS.0, WAITS.1), not_before: now };
    let waiting = waits.entry(id).or_insert_with(fresh);
    let pause = match outcome {
        Outcome::Done => {
            waiting.backoff.reset();
            RENEWAL_PAUSE
        }
        Outcome::Again => SignedDuration::try_from(waiting.backoff.next_wait()).unwrap_or(RENEWAL_PAUSE),
    };
    waiting.not_before = now.saturating_add(pause).unwrap_or(Timestamp::MAX);
}

/// When a certificate is to be ordered; `None` when not at all. Renewals begin `renew_before` the end, for short-lived
/// certificates a third of their life before it.
fn due_at(order: &Ordered, renew_before: Duration) -> Option<Timestamp> {
    match (order.state, order.validity) {
        (OrderState::Failed, _) => None,
        (OrderState::Pending, _) | (OrderState::Succeeded, None) => Some(Timestamp::MIN),
        (OrderState::Succeeded, Some((from, to))) => {
            let third = to.duration_since(from) / 3;
            let before = SignedDuration::try_from(renew_before).unwrap_or(SignedDuration::MAX).min(third);
            Some(to.saturating_sub(before).unwrap_or(Timestamp::MIN))
        }
    }
}

/// Orders one certificate and writes down what came of it.
async fn work(acme: Arc<Acme>, ordered: Ordered) -> Outcome {
    let Ordered { id, subject, .. } = &ordered;
    tracing::info!(certificate = %id, host = subject, "a certificate is ordered");
    let (limit, late) = match ordered.validation {
        DomainValidation::Http => (ORDER_LIMIT, "the authority did not finish the order within 10 minutes"),
        DomainValidation::Txt => (TXT_ORDER_LIMIT, "the domain had no TXT record with the token within 24 hours"),
    };
    let limited = tokio::time::timeout(limit, Box::pin(acme.obtain(&ordered))).await;
    let late = || Err(Failure::Later(late.to_owned()));
    let (written, outcome) = match limited.unwrap_or_else(|_| late()) {
        Ok(issued) => (acme.plane.certificate_issued(id, &issued).await, Outcome::Done),
        Err(failure) => {
            let is_final = matches!(failure, Failure::Refused(_));
            let (Failure::Refused(text) | Failure::Later(text)) = &failure;
            tracing::warn!(certificate = %id, host = subject, error = text, is_final, "a certificate was not issued");
            (acme.plane.certificate_not_issued(id, text, is_final).await, Outcome::Again)
        }
    };
    match written {
        Ok(()) => outcome,
        Err(error) => {
            tracing::warn!(certificate = %id, error = &error as &dyn std::error::Error, "an order was not written down");
            Outcome::Again
        }
    }
}

impl Acme {
    /// What the configuration asks for; `None` when it names no authority. From now on the API leaves managed certificates
    /// to it.
    pub(crate) fn of(
        section: &AcmeSection,
        store: Store,
        plane: Option<&ControlPlane>,
        clock: Clock,
        challenges: Challenges,
    ) -> Option<Arc<Self>> {
        let (directory, plane) = (section.directory.clone()?, plane?.clone());
        plane.order_certificates_outside();
        let (section, account) = (section.clone(), Mutex::default());
        Some(Arc::new(Self { section, directory, store, plane, clock, challenges, account }))
    }

    /// The account at the authority: the one of this directory, or a new one.
    async fn account(&self) -> anyhow::Result<Account> {
        let mut kept = self.account.lock().await;
        if let Some(account) = &*kept {
            return Ok(account.clone());
        }
        let account = match self.store.sealed_setting(&self.setting())? {
            Some(text) => {
                let credentials: AccountCredentials =
                    serde_json::from_str(&text).context("the stored account of the authority is damaged")?;
                self.builder()?.from_credentials(credentials).await.context("failed to reach the authority")?
            }
            None => self.register().await?,
        };
        *kept = Some(account.clone());
        Ok(account)
    }

    async fn register(&self) -> anyhow::Result<Account> {
        let contact: Vec<&str> = self.section.contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            terms_of_service_agreed: self.section.terms_agreed,
            only_return_existing: false,
        };
        let external = self.section.external_account.as_ref().map(|external| {
            let key = external.key()?;
            anyhow::Ok(ExternalAccountKey::new(external.key_id.clone(), &key))
        });
        let external = external.transpose()?;
        let made = self.builder()?.create(&new, self.directory.clone(), external.as_ref()).await;
        let (account, credentials) = made.context("the authority gave no account")?;
        self.store.set_sealed_setting(self.setting(), serde_json::to_string(&credentials)?).await?;
        tracing::info!(directory = self.directory, account = account.id(), "an account at the authority was made");
        Ok(account)
    }

    /// Forgets the account, which the authority does not know any more.
    async fn forget_account(&self) -> anyhow::Result<()> {
        let mut kept = self.account.lock().await;
        *kept = None;
        self.register().await.map(|account| *kept = Some(account))
    }

    fn builder(&self) -> anyhow::Result<AccountBuilder> {
        match &self.section.root {
            Some(path) => Account::builder_with_root(Path::new(path.as_str()))
                .with_context(|| format!("`acme.root` names `{path}`, which cannot be used")),
            None => Account::builder().context("failed to set up TLS for the authority"),
        }
    }

    /// Name of the sealed setting that keeps the account.
    fn setting(&self) -> String {
        format!("acme.account {}", self.directory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn renewal_begins_in_time() {
        let month = Duration::from_secs(30 * 24 * 3600);
        let due = |state, validity: Option<(&str, &str)>| {
            let id = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap();
            let validity = validity.map(|(from, to)| (at(from), at(to)));
            let validation = DomainValidation::Http;
            let order = Ordered { id, subject: "shop.example".into(), state, validation, validity };
            due_at(&order, month).map(|at| at.to_string())
        };
        let days_90 = Some(("2026-01-01T00:00:00Z", "2026-04-01T00:00:00Z"));
        assert_eq!(due(OrderState::Succeeded, days_90).unwrap(), "2026-03-02T00:00:00Z", "30 days before");
        let days_6 = Some(("2026-01-01T00:00:00Z", "2026-01-07T00:00:00Z"));
        assert_eq!(due(OrderState::Succeeded, days_6).unwrap(), "2026-01-05T00:00:00Z", "a third before");
        assert_eq!(due(OrderState::Pending, None), Some(Timestamp::MIN.to_string()), "at once");
        assert_eq!(due(OrderState::Failed, None), None, "only a new PUT");
    }

    #[test]
    fn failures_are_tried_again_later_and_later() {
        let id = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap();
        let (mut waits, now) = (BTreeMap::new(), at("2026-01-01T00:00:00Z"));
        let mut seen = Vec::new();
        for outcome in [Outcome::Again, Outcome::Again, Outcome::Again, Outcome::Done, Outcome::Again] {
            wait(&mut waits, id.clone(), &outcome, now);
            seen.push(waits[&id].not_before.duration_since(now).as_secs());
        }
        assert_eq!(seen, [10, 20, 40, 3600, 10]);
    }
}
