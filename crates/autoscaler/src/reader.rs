//! Reads one event rule: resolves its values, opens its source, asks, and says what the answer comes to.
//!
//! The first reading opens the source; after a failed one the values are resolved again and the source is opened anew,
//! as KEDA does, so that a rotated secret or a moved address heals by itself. What is dear, connections and how long a
//! dead host rests, is the scalers' and outlives a source.
//!
//! **Invariant:** a reading ends within its deadline; what it was doing then is dropped, and the next one starts afresh.
//! **Invariant:** one rule is read by one reading at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use cove_model::{RevisionKey, ScaleRuleKind};
use cove_scalers::{OpenError, Source};
use cove_scaling::source::Scaler;
use cove_scaling::{Reading, ScaledRevision};
use tokio::sync::{Mutex, Semaphore, watch};
use tokio::task::AbortHandle;

use crate::resolve::resolve;
use crate::sources::RuleSources;

/// Readings under way at once, over all rules; more wait, within their deadline.
const READINGS_MAX: usize = 2048;
/// Look-ups of variables and secrets at once: each takes a thread.
const LOOK_UPS_MAX: usize = 4;
/// A source that says again and again that it is active is listened to this often.
const PUSH_REST: Duration = Duration::from_millis(200);

/// What readings of all rules share.
pub(crate) struct Readers {
    sources: RuleSources,
    readings: Semaphore,
    look_ups: Semaphore,
    /// Told which revision a source pushed for.
    pushed: Box<dyn Fn(&RevisionKey) + Send + Sync>,
}

impl std::fmt::Debug for Readers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Readers").finish_non_exhaustive()
    }
}

impl Readers {
    pub(crate) fn new(sources: RuleSources, pushed: Box<dyn Fn(&RevisionKey) + Send + Sync>) -> Self {
        Self { sources, readings: Semaphore::new(READINGS_MAX), look_ups: Semaphore::new(LOOK_UPS_MAX), pushed }
    }
}

/// What one reading gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Read {
    pub(crate) reading: Reading,
    /// The value per replica, where the resolved metadata has one.
    pub(crate) target: Option<f64>,
}

/// One event rule of a revision that lives.
#[derive(Debug)]
pub(crate) struct Reader {
    revision: Arc<ScaledRevision>,
    /// Its place in the template's rules.
    index: usize,
    opened: Mutex<Option<Opened>>,
    /// The last reading did not end well.
    has_failed: AtomicBool,
}

#[derive(Debug)]
struct Opened {
    scaler: Scaler,
    source: Arc<dyn Source>,
    /// What could not be found when it was resolved.
    missing: Vec<String>,
    listening: Option<AbortHandle>,
}

impl Drop for Opened {
    fn drop(&mut self) {
        if let Some(listening) = &self.listening {
            listening.abort();
        }
    }
}

impl Reader {
    /// The reader of an event rule; `None` for the other rules. Opens nothing yet.
    pub(crate) fn new(revision: &Arc<ScaledRevision>, index: usize) -> Option<Arc<Self>> {
        let is_event = match &revision.scale.rules.get(index)?.kind {
            ScaleRuleKind::Http { .. } | ScaleRuleKind::Tcp { .. } => false,
            ScaleRuleKind::Custom { scaler, .. } => scaler != "cpu" && scaler != "memory",
            ScaleRuleKind::AzureQueue { .. } => true,
        };
        is_event.then(|| {
            Arc::new(Self {
                revision: Arc::clone(revision),
                index,
                opened: Mutex::new(None),
                has_failed: AtomicBool::new(false),
            })
        })
    }

    /// Asks the source once; a failure is a reading, too.
    pub(crate) async fn read(&self, with: &Arc<Readers>, deadline: Duration) -> Read {
        let outcome = tokio::time::timeout(deadline, self.ask(with)).await;
        let outcome = outcome.unwrap_or_else(|_| {
            self.has_failed.store(true, Ordering::Relaxed);
            Err(format!("no answer within {} s", deadline.as_secs_f64()))
        });
        outcome.unwrap_or_else(|reason| Read { reading: Reading::error(reason), target: None })
    }

    async fn ask(&self, with: &Arc<Readers>) -> Result<Read, String> {
        let closed = |_| "the server is stopping".to_owned();
        let _reading = with.readings.acquire().await.map_err(closed)?;
        let mut opened = self.opened.lock().await;
        // Set first: a reading that is dropped in the middle has failed.
        if self.has_failed.swap(true, Ordering::Relaxed) || opened.is_none() {
            self.open(&mut opened, with).await?;
        }
        let Some(Opened { scaler, source, missing, .. }) = &*opened else {
            return Err("its source is not open".to_owned());
        };
        let with_missing = |reason: &str| match missing.as_slice() {
            [] => reason.to_owned(),
            missing => format!("{reason} ({})", missing.join("; ")),
        };
        let answer = source.read().await.map_err(|error| with_missing(error.reason()))?;
        let reading = match scaler.reading(&answer) {
            Reading::Error { reason } => return Err(with_missing(&reason)),
            reading => reading,
        };
        self.has_failed.store(false, Ordering::Relaxed);
        Ok(Read { reading, target: scaler.target() })
    }

    /// Resolves the rule's values and opens its source.
    async fn open(&self, opened: &mut Option<Opened>, with: &Arc<Readers>) -> Result<(), String> {
        let around = {
            let _look_up = with.look_ups.acquire().await.map_err(|_| "the server is stopping".to_owned())?;
            let (surroundings, key) = (Arc::clone(&with.sources.surroundings), self.revision.revision.clone());
            let looked_up = tokio::task::spawn_blocking(move || surroundings(&key)).await;
            let looked_up = looked_up.map_err(|_| "its variables and secrets could not be read".to_owned())?;
            looked_up.map_err(|error| format!("its variables and secrets could not be read: {error}"))?
        };
        let kind = self.revision.scale.rules.get(self.index).map(|rule| &rule.kind);
        let resolved = kind.and_then(|kind| resolve(&self.revision.revision, kind, &around));
        let resolved = resolved.ok_or_else(|| "it has no event source".to_owned())?;
        *opened = None;
        let (trigger, missing) = (resolved.trigger, resolved.missing);
        let failed = |error: OpenError| match missing.as_slice() {
            [] => error.to_string(),
            missing => format!("{error} ({})", missing.join("; ")),
        };
        let scaler = Scaler::parse(&trigger.scaler, &|key| trigger.parameters.get(key).cloned());
        let scaler = scaler.map_err(|error| failed(error.into()))?;
        let scaler = scaler.ok_or_else(|| failed(OpenError::Unknown(trigger.scaler.clone())))?;
        let context = (with.sources.context)(&self.revision.revision, &self.revision.environment);
        let source = (with.sources.open)(&trigger, &context).map_err(failed)?;
        let listening = source.pushes().map(|pushes| {
            let (with, key) = (Arc::downgrade(with), self.revision.revision.clone());
            tokio::spawn(listen(pushes, with, key)).abort_handle()
        });
        *opened = Some(Opened { scaler, source, missing, listening });
        Ok(())
    }
}

/// Passes on that a source pushed, until the source is closed.
async fn listen(mut pushes: watch::Receiver<u64>, with: Weak<Readers>, key: RevisionKey) {
    while pushes.changed().await.is_ok() {
        let Some(readers) = with.upgrade() else { return };
        (readers.pushed)(&key);
        drop(readers);
        tokio::time::sleep(PUSH_REST).await;
    }
}
