//! The line of executions that there is no room for; its order and its patience are decided by `cove_reconcile`.
//!
//! **Invariant:** when room is given back, the first of the line are looked at, at most [`LOOKED_MAX`] that still do not
//! fit; a long line costs no more than a short one.

use cove_model::RevisionKey;
use cove_reconcile::{Drawn, Kept, Waiting, sort_line};
use jiff::{SignedDuration, Timestamp};

use super::Jobs;
use crate::{
    capacity::{ProfileKey, profile_key},
    loader::profile_of_name,
    service::Brain,
};

/// Executions that are planned in vain before the rest of the line is left for the next time.
pub(super) const LOOKED_MAX: usize = 16;

/// The machine, or a profile.
type DrawnPool = Option<ProfileKey>;

impl Jobs {
    /// It is on its way to the disk.
    fn is_written(&self, key: &RevisionKey) -> bool {
        let entry = self.entries.get(&key.app).and_then(|job| job.executions.get(&key.name));
        entry.is_some_and(|entry| entry.pending.is_some())
    }

    /// What it draws from, as [`crate::capacity::Ledger::room_in`] has it.
    fn pools(&self, key: &RevisionKey) -> Option<Vec<DrawnPool>> {
        let job = self.entries.get(&key.app)?;
        let entry = job.executions.get(&key.name)?;
        let profile = profile_of_name(entry.stored.workload_profile.as_deref(), &job.data.profiles);
        let limited = profile.filter(|profile| profile.limit().is_some());
        let limited = limited.map(|profile| Some(profile_key(&job.data.environment, Some(profile))));
        Some(std::iter::once(None).chain(limited).collect())
    }

    /// Those that wait for room, in the order in which they get it.
    pub(super) fn line(&self, patience: SignedDuration, now: Timestamp) -> Vec<Waiting<RevisionKey>> {
        let waiting = self.waiting.iter().filter_map(|key| {
            let execution = &self.entries.get(&key.app)?.executions.get(&key.name)?.stored;
            let running = self.groups.get(group_of(key)).copied().unwrap_or(0);
            Some(Waiting::of(key.clone(), execution, running))
        });
        let mut line: Vec<_> = waiting.collect();
        sort_line(&mut line, patience, now);
        line
    }

    /// Notes whether an execution waits for room.
    pub(super) fn wait(&mut self, key: &RevisionKey, waits: bool) {
        let is_changed = if waits { self.waiting.insert(key.clone()) } else { self.waiting.remove(key) };
        self.is_line_changed |= is_changed;
        // whoever joins the line is looked at once: those before it may need more than there is, and it less
        self.has_room_changed |= is_changed && waits;
    }

    /// Notes how many replicas an execution has now.
    pub(super) fn count_replicas(&mut self, key: &RevisionKey, before: u32, now: u32) {
        let group = group_of(key);
        let count = self.groups.get(group).copied().unwrap_or(0).saturating_sub(before).saturating_add(now);
        if count == 0 {
            self.groups.remove(group);
        } else {
            self.groups.insert(group.to_owned(), count);
        }
    }
}

impl Brain {
    /// Goes through the line, as far as that may help anybody; gives the line as it was.
    pub(super) fn plan_line(&mut self, now: Timestamp) -> Vec<Waiting<RevisionKey>> {
        let patience = self.config.jobs.line_patience;
        let mut kept = Kept::default();
        let mut in_vain = 0;
        let line = self.jobs.line(patience, now);
        for next in &line {
            // one that is being written keeps its turn: it is planned when that is done, and the line with it
            if self.jobs.is_written(&next.key) {
                break;
            }
            let is_its_turn = self.jobs.pools(&next.key).is_some_and(|pools| kept.is_open(&pools));
            self.plan_guarded(&next.key, is_its_turn, now);
            if !self.jobs.waiting.contains(&next.key) {
                continue;
            }
            if next.is_old(patience, now) {
                self.keep_for(&next.key, &mut kept);
            }
            in_vain += 1;
            if in_vain >= LOOKED_MAX {
                break;
            }
        }
        line
    }

    /// It waited long and still does not fit.
    fn keep_for(&self, key: &RevisionKey, kept: &mut Kept<DrawnPool>) {
        let Some(job) = self.jobs.entries.get(&key.app) else { return };
        let (Some(entry), Some(pools)) = (job.executions.get(&key.name), self.jobs.pools(key)) else { return };
        let profile = profile_of_name(entry.stored.workload_profile.as_deref(), &job.data.profiles);
        let room = self.ledger.room_in(self.config.capacity, &job.data.environment, profile);
        let drawn = pools.into_iter().zip(room.pools).map(|(id, pool)| {
            let by_executions = self.ledger.by_executions(id.as_ref());
            Drawn { id, pool, by_executions }
        });
        kept.keep(entry.need, drawn.collect());
    }
}

/// Whose share it is.
fn group_of(key: &RevisionKey) -> &str {
    key.app.key().split("/providers/").next().unwrap_or_default()
}
