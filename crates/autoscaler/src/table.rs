//! All revisions, their ticks in order, and what is to be told; everything that the one lock guards.
//!
//! Synchronous on purpose: the wake path calls [`Table::activate`] from the ingress, and pays a lock and a few lines.
//!
//! **Invariant:** `due` holds exactly the entries whose `next` is set, under that instant.
//! **Invariant:** what is published on the board is an entry's `state.current`, in the order of the decisions.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use cove_base::Board;
use cove_model::{DesiredCount, RevisionKey, SystemEvent};
use cove_scaling::{DecisionRecord, Reason, ScaleConfig, ScaleState, ScaledRevision};
use cove_traffic::RevisionLoad;
use jiff::{SignedDuration, Timestamp};

use crate::config::Config;
use crate::entry::Entry;
use crate::history::KeptDecision;
use crate::ports::{RevisionDecision, SavedCount};

/// Most events and decisions that wait to be handed on; the oldest go first.
const OUTBOX_MAX: usize = 10_000;

/// Saved counts of revisions that nobody listed for this long are forgotten.
const UNCLAIMED_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// What a request for a revision did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// It was at zero; its count is set now.
    Activated,
    /// Its count was above zero already.
    Running,
    /// It is at zero and has no http or tcp rule: a request does not start it.
    NotByRequest,
    /// No such active revision.
    Unknown,
}

/// What is known of one revision's scaling.
#[derive(Clone, Debug)]
pub struct RevisionScale {
    /// The count set last.
    pub current: u32,
    /// Last instant at which any rule was active.
    pub last_active: Option<Timestamp>,
    /// The next reading; `None` while it waits at zero for a request.
    pub next_tick: Option<Timestamp>,
    /// Limits, rules and settings.
    pub config: Arc<ScaleConfig>,
    /// Runs of equal decisions, oldest first.
    pub decisions: Vec<KeptDecision>,
}

/// What waits to be handed on outside the lock.
#[derive(Debug)]
pub(crate) enum Message {
    Event(Box<SystemEvent>),
    Decision(RevisionDecision),
}

/// What a change of the list asks of the caller, outside the lock.
#[derive(Debug, Default)]
pub(crate) struct Synced {
    /// New revisions whose load is to be given to [`Table::start_counting`].
    pub(crate) added: Vec<RevisionKey>,
}

#[derive(Debug)]
pub(crate) struct Table {
    config: Config,
    desired: Board<RevisionKey, DesiredCount>,
    /// Boxed: a map keeps room for more than it has.
    entries: HashMap<RevisionKey, Box<Entry>>,
    due: BTreeSet<(Timestamp, RevisionKey)>,
    /// Published at zero because they are not active.
    stopped: BTreeSet<RevisionKey>,
    /// Counts from before the start that no revision claimed yet.
    unclaimed: BTreeMap<RevisionKey, ScaleState>,
    unsaved: BTreeMap<RevisionKey, Option<ScaleState>>,
    outbox: VecDeque<Message>,
    dropped: u64,
    started_at: Timestamp,
    seen_at: Timestamp,
}

impl Table {
    pub(crate) fn new(config: Config, desired: Board<RevisionKey, DesiredCount>, now: Timestamp) -> Self {
        Self {
            config,
            desired,
            entries: HashMap::new(),
            due: BTreeSet::new(),
            stopped: BTreeSet::new(),
            unclaimed: BTreeMap::new(),
            unsaved: BTreeMap::new(),
            outbox: VecDeque::new(),
            dropped: 0,
            started_at: now,
            seen_at: now,
        }
    }

    /// Takes what was written down before the start; the first tick of each records its count as a proposal.
    pub(crate) fn restore(&mut self, saved: Vec<(RevisionKey, ScaleState)>) {
        let unseeded = |(key, state)| (key, ScaleState { seeded: false, ..state });
        self.unclaimed = saved.into_iter().map(unseeded).collect();
    }

    /// Takes the list of revisions: new ones begin, missing and inactive ones end.
    /// Takes over the list of revisions; `existing` says by position how many replicas of each exist.
    pub(crate) fn sync(&mut self, list: &[ScaledRevision], existing: &[Option<u32>], now: Timestamp) -> Synced {
        self.notice_time(now);
        let mut synced = Synced::default();
        let mut listed = BTreeSet::new();
        for (index, revision) in list.iter().enumerate() {
            listed.insert(&revision.revision);
            if !revision.is_active {
                self.end(&revision.revision);
                self.stopped.insert(revision.revision.clone());
                let reason = Reason::Stopped.to_string();
                self.desired.set(revision.revision.clone(), DesiredCount { replicas: 0, reason });
            } else if self.entries.contains_key(&revision.revision) {
                self.update(revision, now);
            } else {
                self.begin(revision, existing.get(index).copied().flatten(), now);
                synced.added.push(revision.revision.clone());
            }
        }
        let gone = |key: &&RevisionKey| !listed.contains(key);
        let gone: Vec<_> = self.entries.keys().chain(&self.stopped).filter(gone).cloned().collect();
        for key in gone {
            self.end(&key);
            self.stopped.remove(&key);
            self.desired.remove(&key);
        }
        if now.duration_since(self.started_at) > UNCLAIMED_AFTER {
            let forgotten = std::mem::take(&mut self.unclaimed);
            self.unsaved.extend(forgotten.into_keys().map(|key| (key, None)));
        }
        synced
    }

    fn begin(&mut self, revision: &ScaledRevision, existing: Option<u32>, now: Timestamp) {
        let key = revision.revision.clone();
        self.stopped.remove(&key);
        let settings = &self.config.settings;
        let saved = self.unclaimed.remove(&key);
        let config = ScaleConfig::from_scale(&revision.scale, revision.has_ingress, settings);
        let (mut state, reason) = match saved {
            Some(state) => (state, "restored"),
            None => {
                let replaced = revision.replaces.as_ref().and_then(|key| self.entries.get(key));
                (ScaleState::start(&config, replaced.map(|entry| entry.state.current), now), "started")
            }
        };
        // counts are written down a little late: what runs after a crash was wanted, and a restart shrinks nothing
        let running = existing.unwrap_or(0).min(config.max_replicas);
        if running > state.current {
            state.current = running;
            state.last_active = state.last_active.max(Some(now));
        }
        let entry = Box::new(Entry::new(revision, state, settings, now));
        let mut events = Vec::new();
        if reason == "started" {
            events.push(entry.subject.started(now, &entry.config));
            if entry.config.rules.is_empty() && entry.config.min_replicas == 0 {
                events.push(entry.subject.no_way_to_start(now, &entry.config));
            }
        }
        events.extend(entry.unreadable().map(|(rule, scaler)| entry.subject.not_built(now, rule, scaler)));
        events.into_iter().for_each(|event| self.tell(Message::Event(Box::new(event))));
        self.desired.set(key.clone(), DesiredCount { replicas: entry.state.current, reason: reason.to_owned() });
        self.unsaved.insert(key.clone(), Some(entry.state.clone()));
        self.arm(None, entry.next, &key);
        self.entries.insert(key, entry);
    }

    fn update(&mut self, revision: &ScaledRevision, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&revision.revision) else { return };
        let before = entry.next;
        if !entry.update(revision, &self.config.settings, now) {
            return;
        }
        let subject = entry.subject.clone();
        let events: Vec<_> = entry.unreadable().map(|(rule, scaler)| subject.not_built(now, rule, scaler)).collect();
        let next = entry.next;
        self.arm(before, next, &revision.revision);
        events.into_iter().for_each(|event| self.tell(Message::Event(Box::new(event))));
    }

    fn end(&mut self, key: &RevisionKey) {
        if let Some(entry) = self.entries.remove(key) {
            self.arm(entry.next, None, key);
            self.unsaved.insert(key.clone(), None);
        }
        if self.unclaimed.remove(key).is_some() {
            self.unsaved.insert(key.clone(), None);
        }
    }

    /// Requests counted before the revision was known are history, except those still open.
    pub(crate) fn start_counting(&mut self, key: &RevisionKey, load: &RevisionLoad) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.start_counting(load);
        }
    }

    /// Sets the count of a revision at zero, at once.
    pub(crate) fn activate(&mut self, key: &RevisionKey, now: Timestamp, open: u64) -> Activation {
        let Some(entry) = self.entries.get_mut(key) else { return Activation::Unknown };
        if entry.state.current > 0 {
            return Activation::Running;
        }
        let before = entry.next;
        let Some(record) = entry.activate(now, open) else { return Activation::NotByRequest };
        let next = entry.next;
        self.arm(before, next, key);
        self.note(key, record);
        Activation::Activated
    }

    /// Revisions whose tick has come; each is asked for once.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Vec<RevisionKey> {
        self.notice_time(now);
        let mut taken = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.due.pop_first() else { break };
            if let Some(entry) = self.entries.get_mut(&key) {
                entry.next = None;
                taken.push(key);
            }
        }
        taken
    }

    /// Takes one decision; says whether the revision went to zero, where its load must be looked at again.
    pub(crate) fn tick(
        &mut self,
        key: &RevisionKey,
        now: Timestamp,
        load: &RevisionLoad,
        existing: Option<u32>,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        let before = entry.next;
        let record = entry.tick(now, load, existing);
        let next = entry.next;
        let to_zero = record.decision.current > 0 && record.decision.new == 0;
        self.arm(before, next, key);
        self.note(key, record);
        to_zero
    }

    /// Takes a decision as if the cool-down were over; gives the count, `None` for an unknown revision.
    pub(crate) fn end_cooldown(
        &mut self,
        key: &RevisionKey,
        now: Timestamp,
        load: &RevisionLoad,
        existing: Option<u32>,
    ) -> Option<u32> {
        let entry = self.entries.get_mut(key)?;
        let before = entry.next;
        let record = entry.end_cooldown(now, load, existing);
        let next = entry.next;
        self.arm(before, next, key);
        let count = record.decision.new;
        self.note(key, record);
        Some(count)
    }

    /// Revisions that wait at zero for a request.
    pub(crate) fn sleeping(&self) -> Vec<RevisionKey> {
        self.entries.iter().filter(|(_, entry)| entry.sleeps()).map(|(key, _)| key.clone()).collect()
    }

    pub(crate) fn next_due(&self) -> Option<Timestamp> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(crate) fn has_sleepers(&self) -> bool {
        self.entries.len() > self.due.len()
    }

    pub(crate) fn scale_of(&self, key: &RevisionKey) -> Option<RevisionScale> {
        self.entries.get(key).map(|entry| RevisionScale {
            current: entry.state.current,
            last_active: entry.state.last_active,
            next_tick: entry.next,
            config: Arc::clone(&entry.config),
            decisions: entry.history.to_vec(),
        })
    }

    pub(crate) fn take_outbox(&mut self) -> (VecDeque<Message>, u64) {
        (std::mem::take(&mut self.outbox), std::mem::take(&mut self.dropped))
    }

    pub(crate) fn take_unsaved(&mut self) -> Vec<SavedCount> {
        std::mem::take(&mut self.unsaved).into_iter().collect()
    }

    pub(crate) fn has_unsaved(&self) -> bool {
        !self.unsaved.is_empty()
    }

    /// A batch could not be written: what did not change since is to be written again.
    pub(crate) fn put_back(&mut self, batch: Vec<SavedCount>) {
        for (key, state) in batch {
            self.unsaved.entry(key).or_insert(state);
        }
    }

    fn note(&mut self, key: &RevisionKey, record: Arc<DecisionRecord>) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let decision = &record.decision;
        tracing::debug!(revision = %key, from = decision.current, to = decision.new, reason = %decision.reason, "decided");
        if decision.changes() {
            let reason = decision.reason.to_string();
            self.desired.set(key.clone(), DesiredCount { replicas: decision.new, reason });
        }
        let differs = entry.history.push(Arc::clone(&record), self.config.decisions_kept);
        self.unsaved.insert(key.clone(), Some(entry.state.clone()));
        if decision.changes() {
            let event = entry.subject.rescaled(decision, &record.config);
            self.tell(Message::Event(Box::new(event)));
        }
        if differs {
            self.tell(Message::Decision(RevisionDecision { revision: key.clone(), record }));
        }
    }

    fn tell(&mut self, message: Message) {
        if self.outbox.len() >= OUTBOX_MAX {
            self.outbox.pop_front();
            self.dropped += 1;
        }
        self.outbox.push_back(message);
    }

    fn arm(&mut self, before: Option<Timestamp>, next: Option<Timestamp>, key: &RevisionKey) {
        if let Some(before) = before {
            self.due.remove(&(before, key.clone()));
        }
        if let Some(next) = next {
            self.due.insert((next, key.clone()));
        }
    }

    /// A clock that was set back would leave every tick far in the future.
    fn notice_time(&mut self, now: Timestamp) {
        if now < self.seen_at {
            tracing::warn!(seen = %self.seen_at, now = %now, "the clock was set back; ticks start anew");
            self.due.clear();
            for (key, entry) in &mut self.entries {
                entry.clock_set_back(now);
                self.due.extend(entry.next.map(|next| (next, key.clone())));
            }
            self.started_at = self.started_at.min(now);
        }
        self.seen_at = now;
    }
}

#[cfg(test)]
mod tests;
