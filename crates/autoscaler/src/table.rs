//! All revisions, their ticks in order, and what is to be told; everything that the one lock guards.
//!
//! Synchronous on purpose: the wake path calls [`Table::activate`] from the ingress, and pays a lock and a few lines.
//!
//! **Invariant:** `due` holds exactly the entries whose `next` is set, under that instant.
//! **Invariant:** what is published on the board is an entry's `state.current`, in the order of the decisions.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use cove_base::Board;
use cove_model::{DesiredCount, RevisionKey, SystemEvent};
use cove_scaling::fast::FastSettings;
use cove_scaling::{DecisionRecord, Reason, RuleKind, ScaleConfig, ScaleState, ScaledRevision, cadence, effective};
use cove_traffic::RevisionLoad;
use jiff::{SignedDuration, Timestamp};

use crate::config::Config;
use crate::entry::{Due, Entry};
use crate::history::KeptDecision;
use crate::ports::{RevisionDecision, SavedCount};
use crate::reader::{Read, Reader};
use crate::sources::ReplicaUsage;

/// Most events and decisions that wait to be handed on; the oldest go first.
const OUTBOX_MAX: usize = 10_000;

/// Saved counts of revisions that nobody listed for this long are forgotten.
const UNCLAIMED_AFTER: SignedDuration = SignedDuration::from_mins(10);

/// Event rules that are first read in the same second; those of further revisions are spread over the polling interval, so
/// that thousands that come at once are not polled at once for ever.
const CROWD_MAX: usize = 50;

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

/// A revision of the list that changed.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) key: RevisionKey,
    /// `None` = it is not listed any more.
    pub(crate) revision: Option<Arc<ScaledRevision>>,
    /// How many replicas of it exist; `None` = not known.
    pub(crate) existing: Option<u32>,
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
    /// Event rules by the second of their first reading, where that is still to come.
    crowds: BTreeMap<i64, usize>,
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
            crowds: BTreeMap::new(),
            started_at: now,
            seen_at: now,
        }
    }

    /// Takes what was written down before the start; the first tick of each records its count as a proposal.
    pub(crate) fn restore(&mut self, saved: Vec<(RevisionKey, ScaleState)>) {
        let unseeded = |(key, state)| (key, ScaleState { seeded: false, ..state });
        self.unclaimed = saved.into_iter().map(unseeded).collect();
    }

    /// Takes over what changed in the list; gives the new revisions, whose load is to be told to [`Table::start_counting`].
    pub(crate) fn take_changes(&mut self, changed: &[Listed], now: Timestamp) -> Vec<RevisionKey> {
        self.notice_time(now);
        let mut added = Vec::new();
        for Listed { key, revision, existing } in changed {
            match revision {
                None => {
                    self.end(key);
                    self.stopped.remove(key);
                    self.desired.remove(key);
                }
                Some(revision) if !revision.is_active => {
                    self.end(key);
                    self.stopped.insert(key.clone());
                    let reason = Reason::Stopped.to_string();
                    self.desired.set(key.clone(), DesiredCount { replicas: 0, reason });
                }
                Some(revision) if self.entries.contains_key(key) => self.update(revision, now),
                Some(revision) => {
                    self.begin(revision, *existing, now);
                    added.push(key.clone());
                }
            }
        }
        if now.duration_since(self.started_at) > UNCLAIMED_AFTER {
            let forgotten = std::mem::take(&mut self.unclaimed);
            self.unsaved.extend(forgotten.into_keys().map(|key| (key, None)));
        }
        added
    }

    fn begin(&mut self, revision: &Arc<ScaledRevision>, existing: Option<u32>, now: Timestamp) {
        let key = revision.revision.clone();
        self.stopped.remove(&key);
        let saved = self.unclaimed.remove(&key);
        let effective = effective(&revision.scale, &self.config.defaults());
        let config = ScaleConfig::from_effective(&revision.scale, revision.has_ingress, &effective);
        // the cadence of a revision goes on over a restart
        let origin = if saved.is_some() { revision.activated_at.min(now) } else { now };
        let origin = self.spread(&key, &config, origin, now);
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
        let entry = Box::new(Entry::new(revision, state, &self.config, origin, now));
        if reason == "started" {
            self.tell(Message::Event(Box::new(entry.subject.started(now, &entry.config))));
            if entry.config.rules.is_empty() && entry.config.min_replicas == 0 {
                self.tell(Message::Event(Box::new(entry.subject.no_way_to_start(now, &entry.config))));
            }
        }
        self.desired.set(key.clone(), DesiredCount { replicas: entry.state.current, reason: reason.to_owned() });
        self.unsaved.insert(key.clone(), Some(entry.state.clone()));
        self.arm(None, entry.next, &key);
        self.entries.insert(key, entry);
    }

    /// The origin of a cadence, moved where the second of its first reading is crowded.
    fn spread(&mut self, key: &RevisionKey, config: &ScaleConfig, origin: Timestamp, now: Timestamp) -> Timestamp {
        let rules = config.rules.iter().filter(|rule| rule.kind == RuleKind::Event).count();
        if rules == 0 {
            return origin;
        }
        self.crowds = self.crowds.split_off(&now.as_second());
        let just_before = now.saturating_sub(SignedDuration::from_nanos(1)).unwrap_or(Timestamp::MIN);
        let first = cadence::next_due(&config.settings, RuleKind::Event, origin, just_before).unwrap_or(now);
        let crowd = self.crowds.entry(first.as_second()).or_default();
        if *crowd + rules <= CROWD_MAX {
            *crowd += rules;
            return origin;
        }
        let step = cadence::step(&config.settings, RuleKind::Event);
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        let step_ms = u64::try_from(step.as_millis()).unwrap_or(u64::MAX).max(1);
        let later = SignedDuration::from_millis(i64::try_from(hasher.finish() % step_ms).unwrap_or(0));
        now.saturating_sub(step).and_then(|before| before.saturating_add(later)).unwrap_or(origin)
    }

    fn update(&mut self, revision: &Arc<ScaledRevision>, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(&revision.revision) else { return };
        let before = entry.next;
        if entry.update(revision, &self.config, now) {
            let next = entry.next;
            self.arm(before, next, &revision.revision);
        }
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

    /// Revisions whose tick has come, with what is to be read; each is asked for once.
    pub(crate) fn take_due(&mut self, now: Timestamp) -> Vec<(RevisionKey, Due)> {
        self.notice_time(now);
        let mut taken = Vec::new();
        while self.due.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.due.pop_first() else { break };
            if let Some(entry) = self.entries.get_mut(&key) {
                let due = entry.take_due(now);
                let next = entry.next;
                self.arm(None, next, &key);
                taken.push((key, due));
            }
        }
        taken
    }

    /// A source of the revision says that something changed.
    pub(crate) fn push(&mut self, key: &RevisionKey, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(key) else { return };
        let before = entry.next;
        entry.push(now);
        let next = entry.next;
        self.arm(before, next, key);
    }

    /// Takes what was read at a tick, and decides unless event rules are to be waited for; says whether the revision went
    /// to zero, where its load must be looked at again.
    pub(crate) fn tick(
        &mut self,
        key: &RevisionKey,
        due: &Due,
        load: &RevisionLoad,
        usage: Vec<ReplicaUsage>,
        existing: Option<u32>,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        let fast = if entry.is_fast() { entry.fast(&self.config) } else { FastSettings::default() };
        entry.observe(due, load, usage, &fast);
        due.decides_now && self.decide(key, due.at, load, existing)
    }

    /// Takes what event rules answered, and decides where the tick asks for it; says what [`Table::tick`] does.
    pub(crate) fn answer(
        &mut self,
        key: &RevisionKey,
        due: &Due,
        answers: Vec<(usize, Arc<Reader>, Read)>,
        load: &RevisionLoad,
        existing: Option<u32>,
    ) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        // another revision of this name may have begun meanwhile
        let to_zero = entry.take_answers(answers) && due.decides_then && self.decide(key, due.at, load, existing);
        if self.entries.get(key).is_some_and(|entry| entry.is_pushed()) {
            self.push(key, self.seen_at.max(due.now));
        }
        to_zero
    }

    /// The event rules of a tick were given up.
    pub(crate) fn end_polling(&mut self, key: &RevisionKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.end_polling();
        }
    }

    fn decide(&mut self, key: &RevisionKey, at: Timestamp, load: &RevisionLoad, existing: Option<u32>) -> bool {
        let Some(entry) = self.entries.get_mut(key) else { return false };
        let before = entry.next;
        let (record, events) = entry.decide(at, load, existing);
        let slept = record.decision.current == 0 && record.decision.new == 0;
        if record.decision.changes() || slept {
            // what fell asleep ticks no more, what woke ticks again
            entry.schedule(self.seen_at.max(at));
        }
        let next = entry.next;
        let to_zero = record.decision.current > 0 && record.decision.new == 0;
        self.arm(before, next, key);
        events.into_iter().for_each(|event| self.tell(Message::Event(Box::new(event))));
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

    /// The server stops: what was not worth writing down while it ran is.
    pub(crate) fn save_all(&mut self) {
        for (key, entry) in self.entries.iter().filter(|(_, entry)| entry.is_unsaved()) {
            self.unsaved.insert(key.clone(), Some(entry.state.clone()));
        }
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
        entry.history.push(Arc::clone(&record), self.config.decisions_kept);
        if entry.must_save(decision) {
            self.unsaved.insert(key.clone(), Some(entry.state.clone()));
        }
        if decision.changes() {
            let event = entry.subject.rescaled(decision, &record.config, entry.idle());
            self.tell(Message::Event(Box::new(event)));
        }
        self.tell(Message::Decision(RevisionDecision { revision: key.clone(), record }));
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
