//! What the machine and its workload profiles have, what every app takes of it, and who waits.
//!
//! **Invariant:** an app's share is what its last plan left running or starting; it is replaced as a whole, so that no
//! share is counted twice or forgotten. **Invariant:** whoever waits is planned anew when anything is given back.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use cove_model::{MilliCpu, ResourceId, RevisionName, WorkloadProfile};
use cove_reconcile::{Amount, Plan, Pool, Room};

use crate::{entry::Entry, events::About, service::Brain};

/// A workload profile of an environment.
pub(crate) type ProfileKey = (ResourceId, String);

/// Kind of the ids under which executions are counted.
const EXECUTION_KIND: &str = "Microsoft.App/jobs/executions";

/// Who takes what.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    used: Amount,
    profiles: HashMap<ProfileKey, Amount>,
    shares: HashMap<ResourceId, (ProfileKey, Amount)>,
    /// Apps that wait, in the order in which they began to.
    waiting: Vec<ResourceId>,
    /// Those among them that wait for memory.
    hungry: BTreeSet<ResourceId>,
    /// Apps that hold frozen replicas.
    frozen: BTreeSet<ResourceId>,
}

impl Ledger {
    /// What an app may still draw from.
    pub(crate) fn room(&self, machine: Amount, entry: &Entry) -> Room {
        self.room_in(machine, &entry.data.app.environment, entry.data.profile.as_ref())
    }

    /// What a replica in an environment, on a workload profile, may still draw from.
    pub(crate) fn room_in(&self, machine: Amount, environment: &ResourceId, profile: Option<&WorkloadProfile>) -> Room {
        let mut pools = vec![Pool { name: "this machine".to_owned(), total: machine, used: self.used }];
        if let Some((profile, (cpu, memory))) = profile.and_then(|p| Some((p, p.limit()?))) {
            let used = self.profiles.get(&profile_key(environment, Some(profile))).copied().unwrap_or_default();
            let WorkloadProfile { name, kind, max_nodes, .. } = profile;
            let name = format!("workload profile '{name}' ({kind}, at most {max_nodes} nodes)");
            pools.push(Pool { name, total: Amount { cpu, memory }, used });
        }
        Room { pools }
    }

    /// Replaces what an app takes; says whether something was given back.
    pub(crate) fn set(&mut self, app: &ResourceId, profile: ProfileKey, amount: Amount) -> bool {
        let old = self.forget(app);
        if amount != Amount::default() {
            self.used = self.used.plus(amount, 1);
            let used = self.profiles.entry(profile.clone()).or_default();
            *used = used.plus(amount, 1);
            self.shares.insert(app.clone(), (profile, amount));
        }
        amount.cpu < old.cpu || amount.memory < old.memory
    }

    /// An app that is gone takes nothing; gives what it took.
    pub(crate) fn forget(&mut self, app: &ResourceId) -> Amount {
        let Some((profile, amount)) = self.shares.remove(app) else { return Amount::default() };
        self.used = self.used.minus(amount);
        if let Some(used) = self.profiles.get_mut(&profile) {
            *used = used.minus(amount);
            if *used == Amount::default() {
                self.profiles.remove(&profile);
            }
        }
        amount
    }

    /// What executions of jobs take of a profile, or of the machine.
    pub(crate) fn by_executions(&self, of: Option<&ProfileKey>) -> Amount {
        let shares = self.shares.iter().filter(|(id, (profile, _))| {
            id.kind().eq_ignore_ascii_case(EXECUTION_KIND) && of.is_none_or(|of| of == profile)
        });
        shares.fold(Amount::default(), |sum, (_, (_, amount))| sum.plus(*amount, 1))
    }

    /// Some app waits for memory that frozen replicas hold.
    pub(crate) fn is_memory_short(&self) -> bool {
        !self.hungry.is_empty()
    }

    /// Notes who waits for memory and who holds frozen replicas; gives who must give theirs back.
    fn note_frozen(&mut self, app: &ResourceId, is_hungry: bool, has_frozen: bool) -> Vec<ResourceId> {
        let was_short = self.is_memory_short();
        for (set, is_in) in [(&mut self.hungry, is_hungry), (&mut self.frozen, has_frozen)] {
            if is_in {
                set.insert(app.clone());
            } else {
                set.remove(app);
            }
        }
        if self.is_memory_short() && !was_short { self.frozen.iter().cloned().collect() } else { Vec::new() }
    }

    fn wait(&mut self, app: &ResourceId, waits: bool) {
        let at = self.waiting.iter().position(|waiting| waiting == app);
        match (at, waits) {
            (None, true) => self.waiting.push(app.clone()),
            (Some(at), false) => {
                self.waiting.remove(at);
            }
            (None, false) | (Some(_), true) => {}
        }
    }
}

/// Under what the ledger counts what runs on a profile.
pub(crate) fn profile_key(environment: &ResourceId, profile: Option<&WorkloadProfile>) -> ProfileKey {
    (environment.clone(), profile.map(|profile| profile.name.to_ascii_lowercase()).unwrap_or_default())
}

impl Brain {
    /// Notes what a plan takes, who waits, and tells it.
    pub(crate) fn note_capacity(&mut self, entry: &mut Entry, plan: &Plan) {
        let mut taken = Amount::default();
        for (revision, existing) in &plan.existing {
            let Some(known) = entry.known(&revision.name) else { continue };
            let draining = plan.endpoints.iter().find(|(key, _)| key == revision).map_or(0, |(_, e)| e.draining.len());
            let count = existing.saturating_add(u32::try_from(draining).unwrap_or(u32::MAX));
            taken = taken.plus(Amount::of(&known.revision.template), count);
        }
        for (revision, frozen) in &plan.frozen {
            let Some(known) = entry.known(&revision.name) else { continue };
            let memory = Amount { cpu: MilliCpu(0), ..Amount::of(&known.revision.template) };
            taken = taken.plus(memory, *frozen);
        }
        let id = entry.id().clone();
        let is_hungry = plan.short.iter().any(|short| short.lacks_memory);
        let holders = self.ledger.note_frozen(&id, is_hungry, !plan.frozen.is_empty());
        self.dirty.extend(holders);
        let profile = profile_key(&entry.data.app.environment, entry.data.profile.as_ref());
        let gave_back = self.ledger.set(&id, profile, taken);
        self.ledger.wait(&id, !plan.short.is_empty());
        if gave_back {
            self.jobs.room_changed();
            self.dirty.extend(self.ledger.waiting.iter().filter(|waiting| **waiting != id).cloned());
        }
        self.tell_shortage(entry, plan);
    }

    /// Something was given back outside a plan.
    pub(crate) fn release(&mut self, app: &ResourceId) {
        let amount = self.ledger.forget(app);
        self.ledger.note_frozen(app, false, false);
        self.ledger.wait(app, false);
        if amount != Amount::default() {
            self.room_is_back();
        }
    }

    /// Whoever waits for room is planned anew.
    pub(crate) fn room_is_back(&mut self) {
        self.jobs.room_changed();
        self.dirty.extend(self.ledger.waiting.iter().cloned());
    }

    /// One event when a revision begins to wait or waits for something else, one when it has what it needs.
    fn tell_shortage(&self, entry: &mut Entry, plan: &Plan) {
        let mut now: BTreeMap<RevisionName, u32> = BTreeMap::new();
        for short in &plan.short {
            now.insert(short.revision.clone(), short.missing);
            if entry.short.get(&short.revision) != Some(&short.missing) {
                let about = About { revision: Some(&short.revision), replica: None };
                let message = format!("{} replicas wait for room: {}", short.missing, short.message);
                self.teller.warning(&entry.data.app, about, "AssigningReplicaFailed", message);
            }
        }
        for revision in entry.short.keys().filter(|revision| !now.contains_key(*revision)) {
            let about = About { revision: Some(revision), replica: None };
            let message = format!("Revision '{revision}' waits for room no longer");
            self.teller.normal(&entry.data.app, about, "AssigningReplica", message);
        }
        entry.short = now;
    }
}
