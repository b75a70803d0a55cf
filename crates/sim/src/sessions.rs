//! Sessions of a pool in a world of their own: the real choice of a session and the real planner, beside a store that keeps what
//! is written, a host that runs replicas, users, a server that is killed between any two writes, and a clock that is set.
//!
//! **Invariant:** the same seed gives the same events, whatever machine runs it.

mod checks;
mod generate;
mod host;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use cove_model::{AllocateError, ReplicaName, ReplicaObservation, Session, SessionIdentifier, SessionPool};
use cove_reconcile::{
    Allocated, Images, PoolMemory, PoolView, SessionAction, SessionSettings, SessionView, allocate, plan_pool,
};
use jiff::{SignedDuration, Timestamp};

use crate::{Invariant, Violation, random::Random};

/// A fault of the platform, made on purpose, that a check must find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SessionMutation {
    /// None.
    #[default]
    None,
    /// A session is taken for stored before it is.
    ServedUnstored,
    /// Who asks is not looked for among those who have a session.
    IdentifierNotLookedUp,
    /// Open requests do not count.
    CallsNotCounted,
    /// The cool-down is a second too long.
    CoolDownTooLong,
    /// The host loses one stop in twenty.
    StopsLost,
    /// Each server names its replicas as the one before did, and what was is not looked at.
    NamesRepeated,
}

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SessionStats {
    /// Events.
    pub events: u64,
    /// Sessions that were given to an identifier.
    pub allocated: u64,
    /// Those that ended when their cool-down was over, and nothing had disturbed them: to the second.
    pub cooled_down: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that found the pool full.
    pub full: u64,
    /// Times the server was killed.
    pub crashes: u64,
    /// Times the clock was set.
    pub jumps: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    User,
    CallEnds { identifier: SessionIdentifier, replica: ReplicaName, epoch: u32 },
    Plan { epoch: u32 },
    Commit { epoch: u32 },
    Ready(ReplicaName),
    Exits(ReplicaName),
    Crash,
    Restart,
    Jump,
}

/// A session as the running server knows it.
struct Known {
    session: Session,
    version: u64,
    written: u64,
    is_new: bool,
}

/// A session that serves.
struct Live {
    replica: ReplicaName,
    calls: u32,
    accessed_at: Timestamp,
    /// Nothing but its own requests set its time: neither a start of the server nor a clock that was set.
    is_exact: bool,
}

/// What is on its way to the disk.
type Batch = (Vec<(Session, u64)>, Vec<ReplicaName>);

/// What is lost when the server is killed.
#[derive(Default)]
struct Server {
    sessions: BTreeMap<ReplicaName, Known>,
    memory: PoolMemory,
    live: BTreeMap<SessionIdentifier, Live>,
    waiting: BTreeMap<SessionIdentifier, u32>,
    outbox: BTreeSet<ReplicaName>,
    forgotten: Vec<ReplicaName>,
    writing: Option<Batch>,
    guids: u64,
    /// When it plans next.
    plan_at: Option<u64>,
}

/// A world of sessions.
pub struct SessionSim {
    now_ms: u64,
    /// The clock on the wall, less the world's time.
    offset: Timestamp,
    heap: BinaryHeap<Reverse<(u64, u64, What)>>,
    number: u64,
    pool: SessionPool,
    settings: SessionSettings,
    images: Images,
    /// The rows.
    disk: BTreeMap<ReplicaName, Session>,
    server: Option<Server>,
    replicas: BTreeMap<ReplicaName, ReplicaObservation>,
    /// Every replica that was ever started.
    begun: BTreeSet<ReplicaName>,
    /// Who was ever answered by a session.
    served: BTreeMap<ReplicaName, SessionIdentifier>,
    users: u64,
    is_quiet: bool,
    epoch: u32,
    random: Random,
    mutation: SessionMutation,
    stats: SessionStats,
    violations: Vec<Violation>,
}

impl std::fmt::Debug for SessionSim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionSim").field("now_ms", &self.now_ms).field("stats", &self.stats).finish_non_exhaustive()
    }
}

fn span(ms: u64) -> SignedDuration {
    SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
}

impl SessionSim {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        generate::world(seed)
    }

    /// With a fault.
    #[must_use]
    pub fn with_mutation(mut self, mutation: SessionMutation) -> Self {
        self.mutation = mutation;
        self
    }

    /// What must never happen and did.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// What happened.
    pub fn stats(&self) -> SessionStats {
        self.stats
    }

    /// Lets time pass.
    pub fn advance(&mut self, ms: u64) {
        let until = self.now_ms + ms;
        while let Some(Reverse((at, _, _))) = self.heap.peek()
            && *at <= until
            && let Some(Reverse((at, _, what))) = self.heap.pop()
        {
            self.now_ms = at;
            self.stats.events += 1;
            self.happen(what);
        }
        self.now_ms = until;
    }

    /// Users and disturbances stay away until every session's time is over; then nothing may be left but what waits ready.
    pub fn settle(&mut self) {
        self.is_quiet = true;
        // a clock that was set back makes those times longer that were taken before
        self.advance(2 * 3_600_000);
        self.check_nothing_is_left();
    }

    fn wall(&self) -> Timestamp {
        self.offset + span(self.now_ms)
    }

    /// When the clock on the wall will show an instant.
    fn when(&self, wall: Timestamp) -> u64 {
        let ms = wall.duration_since(self.offset).as_millis();
        u64::try_from(ms).unwrap_or(0).max(self.now_ms)
    }

    fn push(&mut self, at_ms: u64, what: What) {
        self.number += 1;
        self.heap.push(Reverse((at_ms.max(self.now_ms), self.number, what)));
    }

    fn soon(&mut self, most_ms: u64) -> u64 {
        self.now_ms + self.random.between(1, most_ms)
    }

    fn violate(&mut self, invariant: Invariant, what: String) {
        self.violations.push(Violation { invariant, at_ms: self.now_ms, what });
    }

    fn happen(&mut self, what: What) {
        match what {
            What::User => self.user(),
            What::CallEnds { identifier, replica, epoch } if epoch == self.epoch => {
                self.call_ends(&identifier, &replica);
            }
            What::Plan { epoch } if epoch == self.epoch => {
                let due = self.server.as_mut().and_then(|server| server.plan_at.take_if(|at| *at == self.now_ms));
                if due.is_some() {
                    self.plan();
                }
            }
            What::Commit { epoch } if epoch == self.epoch => self.commit(),
            What::CallEnds { .. } | What::Plan { .. } | What::Commit { .. } => {}
            What::Ready(replica) => self.host_ready(&replica),
            What::Exits(replica) => self.host_exits(&replica),
            What::Crash => {
                self.crash();
                let at = self.now_ms + self.random.exponential(900_000.0);
                self.push(at, What::Crash);
            }
            What::Restart => self.restart(),
            What::Jump => self.jump(),
        }
    }

    /// Something changed: the server plans a moment later, if it is there.
    fn notice(&mut self) {
        let at = self.soon(5);
        self.plan_by(at);
    }

    /// The server plans then, or sooner.
    fn plan_by(&mut self, at: u64) {
        let epoch = self.epoch;
        if let Some(server) = self.server.as_mut()
            && server.plan_at.is_none_or(|known| at < known)
        {
            server.plan_at = Some(at);
            self.push(at, What::Plan { epoch });
        }
    }

    /// The server is killed; what it was writing is on disk as a whole, or not at all.
    fn crash(&mut self) {
        if self.is_quiet {
            return;
        }
        if let Some(server) = self.server.take() {
            self.stats.crashes += 1;
            if let Some(batch) = server.writing
                && self.random.chance(0.5)
            {
                self.keep(batch);
            }
            let at = self.soon(8_000);
            self.push(at, What::Restart);
        }
    }

    fn restart(&mut self) {
        self.epoch += 1;
        let known = |session: &Session| {
            let known = Known { session: session.clone(), version: 0, written: 0, is_new: false };
            (session.replica.clone(), known)
        };
        let names =
            if self.mutation == SessionMutation::NamesRepeated { 7 } else { u64::from(self.epoch) * 0x9e37_79b9 + 1 };
        self.server = Some(Server {
            sessions: self.disk.values().map(known).collect(),
            memory: PoolMemory::new(names),
            ..Server::default()
        });
        self.notice();
    }

    /// The clock on the wall is set, by up to ten minutes.
    fn jump(&mut self) {
        if self.is_quiet {
            return;
        }
        let by = span(self.random.between(1_000, 600_000));
        self.offset = if self.random.chance(0.5) { self.offset + by } else { self.offset - by };
        self.stats.jumps += 1;
        for live in self.server.iter_mut().flat_map(|server| server.live.values_mut()) {
            live.is_exact = false;
        }
        // a sleeper looks at the clock again
        self.notice();
        let at = self.now_ms + self.random.exponential(1_800_000.0);
        self.push(at, What::Jump);
    }

    /// A user asks for a session: a new one, or one who asked before.
    fn user(&mut self) {
        if self.is_quiet {
            return;
        }
        let is_new = self.users == 0 || self.random.chance(0.6);
        let number = if is_new {
            self.users += 1;
            self.users
        } else {
            self.random.between(self.users.saturating_sub(60).max(1), self.users)
        };
        let identifier = SessionIdentifier::new(format!("user-{number}")).expect("letters and digits");
        let again = self.now_ms + self.random.exponential(4_000.0);
        self.push(again, What::User);
        let is_looked_up = self.mutation != SessionMutation::IdentifierNotLookedUp;
        if is_looked_up && self.server.as_ref().is_some_and(|server| server.live.contains_key(&identifier)) {
            return self.call(&identifier);
        }
        self.allocate(identifier);
    }

    fn allocate(&mut self, identifier: SessionIdentifier) {
        let now = self.wall();
        let Some(mut server) = self.server.take() else { return };
        let mut memory = std::mem::take(&mut server.memory);
        let mut guids = server.guids;
        let mut guid = || {
            guids += 1;
            format!("guid-{guids}")
        };
        let mutation = self.mutation;
        let is_shown = |known: &&Known| {
            mutation != SessionMutation::IdentifierNotLookedUp || known.session.identifier.as_ref() != Some(&identifier)
        };
        let views = views(&server, mutation, now, is_shown);
        let replicas = self.replicas.iter().collect();
        let suspended = BTreeMap::new();
        let view = self.view(&views, &replicas, &suspended);
        let found = allocate(&view, &mut memory, &identifier, &mut guid, now);
        server.guids = guids;
        match found {
            Err(AllocateError::PoolFull { .. }) => self.stats.full += 1,
            Err(error) => self.violate(Invariant::OneIdentifierOneSession, format!("{identifier}: {error}")),
            Ok(Allocated::Known(_)) => *server.waiting.entry(identifier).or_default() += 1,
            Ok(Allocated::Given(session) | Allocated::New(session)) => {
                self.stats.allocated += 1;
                if self.host_thaw(&session.replica) {
                    memory.thaw_ordered(&session.replica, now);
                }
                change(&mut server, *session);
                *server.waiting.entry(identifier).or_default() += 1;
            }
        }
        server.memory = memory;
        self.server = Some(server);
        self.flush();
        self.notice();
    }

    fn view<'a>(
        &'a self,
        sessions: &'a [SessionView<'a>],
        replicas: &'a BTreeMap<&'a ReplicaName, &'a ReplicaObservation>,
        suspended: &'a BTreeMap<SessionIdentifier, (cove_model::SnapshotId, Timestamp)>,
    ) -> PoolView<'a> {
        PoolView {
            pool: &self.pool,
            sessions,
            suspended,
            replicas,
            images: &self.images,
            is_deleted: false,
            room: 1000,
            shortage: None,
            starts_free: self.settings.starts_max,
            freezes: true,
            settings: &self.settings,
        }
    }

    /// A request of an identifier whose session serves.
    fn call(&mut self, identifier: &SessionIdentifier) {
        let (now, epoch) = (self.wall(), self.epoch);
        let Some(live) = self.server.as_mut().and_then(|server| server.live.get_mut(identifier)) else { return };
        live.calls += 1;
        (live.accessed_at, live.is_exact) = (live.accessed_at.max(now), live.accessed_at <= now);
        let replica = live.replica.clone();
        self.stats.answered += 1;
        self.check_answer(identifier, &replica);
        let takes = if self.random.chance(0.02) { 900_000.0 } else { 2_000.0 };
        let at = self.now_ms + self.random.exponential(takes);
        self.push(at, What::CallEnds { identifier: identifier.clone(), replica, epoch });
    }

    fn call_ends(&mut self, identifier: &SessionIdentifier, replica: &ReplicaName) {
        let now = self.wall();
        let Some(live) = self.server.as_mut().and_then(|server| server.live.get_mut(identifier)) else { return };
        if live.replica != *replica {
            return;
        }
        live.calls -= 1;
        (live.accessed_at, live.is_exact) = (live.accessed_at.max(now), live.accessed_at <= now);
        self.notice();
    }

    /// One plan: what changed is written before its steps are planned, what is planned is carried out.
    fn plan(&mut self) {
        let now = self.wall();
        let Some(mut server) = self.server.take() else { return };
        let mut memory = std::mem::take(&mut server.memory);
        let mut guids = server.guids;
        let mut guid = || {
            guids += 1;
            format!("guid-{guids}")
        };
        let views = views(&server, self.mutation, now, |_| true);
        let replicas = self.replicas.iter().collect();
        let suspended = BTreeMap::new();
        let mut view = self.view(&views, &replicas, &suspended);
        let longer = self.pool_with_longer_cool_down();
        if self.mutation == SessionMutation::CoolDownTooLong {
            view.pool = &longer;
        }
        let plan = plan_pool(&view, &mut memory, &mut guid, now);
        server.guids = guids;
        server.memory = memory;
        let mut begun = Vec::new();
        for name in &plan.serving {
            let Some(known) = server.sessions.get(name) else { continue };
            let Some(identifier) = known.session.identifier.clone() else { continue };
            let is_exact = known.session.allocated_at.is_some_and(|at| at <= now) && !known.is_adopted();
            let live = Live { replica: name.clone(), calls: 0, accessed_at: now, is_exact };
            server.live.entry(identifier.clone()).or_insert(live);
            begun.extend(server.waiting.remove(&identifier).map(|count| (identifier, count)));
        }
        for session in plan.changed {
            self.check_end(&server, &session);
            if session.ended.is_some()
                && let Some(identifier) = &session.identifier
            {
                server.live.remove(identifier);
                server.waiting.remove(identifier);
            }
            change(&mut server, session);
        }
        for name in plan.forgotten {
            server.sessions.remove(&name);
            server.outbox.remove(&name);
            server.forgotten.push(name);
        }
        self.check_overdue(&server);
        self.server = Some(server);
        for step in &plan.steps {
            self.carry_out(&step.action);
        }
        for (identifier, count) in begun {
            (0..count).for_each(|_| self.call(&identifier));
        }
        if let Some(wake_at) = plan.wake_at {
            let at = self.when(wake_at).max(self.now_ms + 1);
            self.plan_by(at);
        }
        if plan.missing > 0 {
            self.plan_by(self.now_ms + 1_000);
        }
        self.flush();
        if self.random.chance(0.0002) {
            self.crash();
        }
    }

    fn carry_out(&mut self, action: &SessionAction) {
        match action {
            SessionAction::EnsureImages | SessionAction::Suspend(_) => {}
            SessionAction::Start(replica) => self.host_start(replica),
            SessionAction::Freeze(replica) => self.host_freeze(replica),
            SessionAction::Thaw(replica) => drop(self.host_thaw(replica)),
            SessionAction::Stop { replica, .. } => self.host_stop(replica),
            SessionAction::Remove(replica) => self.host_remove(replica),
        }
    }

    /// Hands over what is to be written, unless a batch is on its way.
    fn flush(&mut self) {
        let epoch = self.epoch;
        let Some(server) = self.server.as_mut() else { return };
        if server.writing.is_some() || server.outbox.is_empty() && server.forgotten.is_empty() {
            return;
        }
        let names = std::mem::take(&mut server.outbox);
        let found = names.iter().filter_map(|name| server.sessions.get(name));
        let saved = found.map(|known| (known.session.clone(), known.version)).collect();
        server.writing = Some((saved, std::mem::take(&mut server.forgotten)));
        let at = self.soon(20);
        self.push(at, What::Commit { epoch });
    }

    /// The batch is on disk, and the server hears of it.
    fn commit(&mut self) {
        let Some(batch) = self.server.as_mut().and_then(|server| server.writing.take()) else { return };
        self.keep(batch.clone());
        let Some(server) = self.server.as_mut() else { return };
        for (session, version) in batch.0 {
            if let Some(known) = server.sessions.get_mut(&session.replica) {
                known.written = version;
            }
        }
        self.flush();
        self.notice();
    }

    /// The store's part: one transaction.
    fn keep(&mut self, (saved, forgotten): Batch) {
        for (session, _) in saved {
            self.disk.insert(session.replica.clone(), session);
        }
        for name in forgotten {
            self.disk.remove(&name);
        }
        self.check_rows();
    }
}

impl Known {
    /// It was there when this server began.
    fn is_adopted(&self) -> bool {
        !self.is_new && self.version == 0
    }
}

/// The server takes the newest form of a session; it is to be written.
fn change(server: &mut Server, session: Session) {
    server.outbox.insert(session.replica.clone());
    match server.sessions.get_mut(&session.replica) {
        Some(known) => {
            known.version += 1;
            known.session = session;
        }
        None => {
            let known = Known { version: 1, written: 0, is_new: true, session };
            server.sessions.insert(known.session.replica.clone(), known);
        }
    }
}

fn views<'a>(
    server: &'a Server,
    mutation: SessionMutation,
    now: Timestamp,
    is_shown: impl Fn(&&'a Known) -> bool,
) -> Vec<SessionView<'a>> {
    let view = |known: &'a Known| {
        let live = known.session.identifier.as_ref().and_then(|identifier| server.live.get(identifier));
        let live = live.filter(|live| live.replica == known.session.replica);
        let (calls, accessed_at) = live.map_or((0, now), |live| (live.calls, live.accessed_at));
        SessionView {
            session: &known.session,
            is_stored: known.version == known.written || mutation == SessionMutation::ServedUnstored,
            is_new: known.is_new,
            calls: if mutation == SessionMutation::CallsNotCounted { 0 } else { calls },
            accessed_at,
        }
    };
    server.sessions.values().filter(is_shown).map(view).collect()
}

#[cfg(test)]
mod tests;
