//! Scheduled jobs in a world of their own: the real schedules and the real execution planner, beside a store that keeps
//! what is written, a host that runs replicas, a server that is killed between any two writes, and a clock that is set.
//!
//! **Invariant:** the same seed gives the same events, whatever machine runs it.

mod generate;
mod host;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
};

use cove_model::{
    EXECUTION_HISTORY_MAX, Execution, ExecutionCause, Job, ReplicaName, ReplicaObservation, RevisionName,
    execution_name,
};
use cove_reconcile::{ExecutionMemory, ExecutionView, Images, JobAction, JobSettings, plan_execution};
use cove_scaling::schedule::{Look, Policy, Schedule, due};
use jiff::{SignedDuration, Timestamp};

use crate::{Invariant, Violation, random::Random};
use host::Hosted;

/// The triggers look at the clock at least this often.
const LOOK_AGAIN_MS: u64 = 60_000;
/// A look comes at most this late.
const LATE_MS: u64 = 3_000;
/// Replicas that the host has room for.
const ROOM: u32 = 40;

/// A fault of the platform, made on purpose, that a check must find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum JobMutation {
    /// None.
    #[default]
    None,
    /// The store takes a second execution of the same cause.
    CausesNotUnique,
    /// What is settled is forgotten when the server is killed, and old causes with it.
    NothingSettled,
    /// Ticks are settled without being started.
    TicksLost,
    /// The planner is told of one more replica at once.
    TooParallel,
    /// Ended executions are planned anew.
    EndsForgotten,
}

/// What happened in a world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct JobStats {
    /// Events.
    pub events: u64,
    /// Executions.
    pub started: u64,
    /// Those that ended.
    pub ended: u64,
    /// Times the server was killed.
    pub crashes: u64,
    /// Times the clock was set.
    pub jumps: u64,
    /// Ticks that were left out.
    pub left_out: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum What {
    Look { job: usize, epoch: u32 },
    Plan { job: usize, execution: RevisionName, epoch: u32 },
    Runs { job: usize, replica: ReplicaName },
    Exits { job: usize, replica: ReplicaName },
    Crash,
    Restart,
    Jump,
}

struct JobWorld {
    job: Job,
    schedule: Schedule,
    policy: Policy,
    /// As saved, and as the running server knows it.
    saved: Timestamp,
    settled: Timestamp,
    executions: BTreeMap<RevisionName, Execution>,
    causes: BTreeMap<String, RevisionName>,
    /// Every tick that ever had an execution; the store forgets.
    ever: BTreeSet<Timestamp>,
    memory: BTreeMap<RevisionName, ExecutionMemory>,
    replicas: BTreeMap<ReplicaName, Hosted>,
    /// Every replica that was ever started.
    begun: BTreeSet<ReplicaName>,
    /// Since when nothing disturbed it, and what was settled then; `None` while the server is down.
    calm: Option<(u64, Timestamp)>,
    /// What was settled furthest; a clock that was set back passes those ticks again.
    furthest: Timestamp,
    number: u64,
}

/// A world of jobs.
pub struct JobSim {
    now_ms: u64,
    /// The clock on the wall, less the world's time.
    offset: Timestamp,
    heap: BinaryHeap<Reverse<(u64, u64, What)>>,
    number: u64,
    jobs: Vec<JobWorld>,
    epoch: u32,
    is_up: bool,
    random: Random,
    mutation: JobMutation,
    settings: JobSettings,
    images: Images,
    stats: JobStats,
    violations: Vec<Violation>,
}

impl std::fmt::Debug for JobSim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JobSim").field("now_ms", &self.now_ms).field("stats", &self.stats).finish_non_exhaustive()
    }
}

fn span(ms: u64) -> SignedDuration {
    SignedDuration::from_millis(i64::try_from(ms).unwrap_or(i64::MAX))
}

impl JobSim {
    /// The world of a seed.
    pub fn new(seed: u64) -> Self {
        generate::world(seed)
    }

    /// With a fault.
    #[must_use]
    pub fn with_mutation(mut self, mutation: JobMutation) -> Self {
        self.mutation = mutation;
        self
    }

    /// What must never happen and did.
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    /// What happened.
    pub fn stats(&self) -> JobStats {
        self.stats
    }

    /// Lets time pass, then checks what the calm times hold.
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
        (0..self.jobs.len()).for_each(|job| self.end_calm(job));
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
            What::Look { job, epoch } if self.is_up && epoch == self.epoch => self.look(job),
            What::Plan { job, execution, epoch } if self.is_up && epoch == self.epoch => self.plan(job, &execution),
            What::Look { .. } | What::Plan { .. } => {}
            What::Runs { job, replica } => self.host_runs(job, &replica),
            What::Exits { job, replica } => self.host_exits(job, &replica),
            What::Crash => {
                self.crash();
                let hours = self.random.between(1, 6);
                let at = self.now_ms + self.random.between(0, hours * 3_600_000);
                self.push(at, What::Crash);
            }
            What::Restart => self.restart(),
            What::Jump => self.jump(),
        }
    }

    /// The server is killed; it comes back after a while.
    fn crash(&mut self) {
        if !self.is_up {
            return;
        }
        self.is_up = false;
        self.stats.crashes += 1;
        (0..self.jobs.len()).for_each(|job| self.end_calm(job));
        let away = if self.random.chance(0.5) { 5_000 } else { 2 * 3_600_000 };
        let at = self.soon(away);
        self.push(at, What::Restart);
    }

    fn restart(&mut self) {
        self.is_up = true;
        self.epoch += 1;
        for job in &mut self.jobs {
            job.memory.clear();
            job.settled = job.saved;
            if self.mutation == JobMutation::NothingSettled {
                job.settled = job.settled.saturating_sub(SignedDuration::from_mins(30)).unwrap_or(Timestamp::MIN);
                job.causes.clear();
            }
        }
        self.look_at_all(2_000);
    }

    /// The clock on the wall is set, by up to two hours.
    fn jump(&mut self) {
        (0..self.jobs.len()).for_each(|job| self.end_calm(job));
        let by = span(self.random.between(1_000, 2 * 3_600_000));
        self.offset = if self.random.chance(0.5) { self.offset + by } else { self.offset - by };
        self.stats.jumps += 1;
        if self.is_up {
            self.look_at_all(LOOK_AGAIN_MS);
        }
        let at = self.soon(8 * 3_600_000);
        self.push(at, What::Jump);
    }

    /// Every trigger and execution is looked at; calm begins when all of them were.
    fn look_at_all(&mut self, within_ms: u64) {
        let epoch = self.epoch;
        for job in 0..self.jobs.len() {
            let at = self.soon(within_ms);
            self.push(at, What::Look { job, epoch });
            for execution in self.jobs[job].executions.keys().cloned().collect::<Vec<_>>() {
                let at = self.soon(within_ms);
                self.push(at, What::Plan { job, execution, epoch });
            }
            self.jobs[job].calm = Some((self.now_ms + within_ms + LATE_MS, self.jobs[job].furthest));
        }
    }

    /// A calm time ends: each of its ticks has its execution.
    fn end_calm(&mut self, job: usize) {
        let world = &mut self.jobs[job];
        let Some((from_ms, settled)) = world.calm.take() else { return };
        if world.policy.overlap != cove_model::Overlap::Allow || from_ms + LATE_MS >= self.now_ms {
            return;
        }
        let (from, until) = (self.offset + span(from_ms), self.offset + span(self.now_ms - LATE_MS));
        let world = &self.jobs[job];
        let without = world.schedule.ticks_between(from.max(settled), until).find(|tick| !world.ever.contains(tick));
        if let Some(tick) = without {
            self.violate(Invariant::OneExecutionPerCronTick, format!("job {job} has no execution of {tick}"));
        }
    }

    /// One look of a job's trigger.
    fn look(&mut self, job: usize) {
        let (wall, epoch) = (self.wall(), self.epoch);
        let world = &self.jobs[job];
        let open: Vec<_> =
            world.executions.values().filter(|one| !one.status.is_final()).map(|one| one.name.clone()).collect();
        let look = Look { settled: world.settled, now: wall, is_running: !open.is_empty() };
        let found = due(&world.schedule, &world.policy, &look);
        let left_out: usize = found.left_out.iter().map(|left| left.number).sum();
        self.stats.left_out += u64::try_from(left_out).unwrap_or(0);
        let mut names = Vec::new();
        if self.mutation != JobMutation::TicksLost {
            for tick in &found.start {
                names.push(self.insert(job, *tick));
            }
        }
        if found.replaces {
            for name in open.iter().filter(|name| !names.contains(name)) {
                if let Some(old) = self.jobs[job].executions.get_mut(name) {
                    old.stop_requested_at.get_or_insert(wall);
                }
                let at = self.soon(50);
                self.push(at, What::Plan { job, execution: name.clone(), epoch });
            }
        }
        if !names.is_empty() && self.random.chance(0.02) {
            return self.crash();
        }
        let world = &mut self.jobs[job];
        (world.settled, world.saved) = (found.settled, found.settled);
        world.furthest = world.furthest.max(found.settled);
        let next = found.next_at.map_or(u64::MAX, |next| self.when(next)).min(self.now_ms + LOOK_AGAIN_MS);
        let at = next + self.random.between(0, LATE_MS - 500);
        self.push(at, What::Look { job, epoch });
    }

    /// The store's part: one execution per cause.
    fn insert(&mut self, job: usize, tick: Timestamp) -> RevisionName {
        let (wall, epoch) = (self.wall(), self.epoch);
        let cause = ExecutionCause::Tick(tick);
        let world = &mut self.jobs[job];
        if let Some(known) = world.causes.get(&cause.key())
            && self.mutation != JobMutation::CausesNotUnique
        {
            return known.clone();
        }
        world.number += 1;
        let name = execution_name(world.job.id.name(), &format!("{:07}", world.number)).expect("digits");
        world.causes.insert(cause.key(), name.clone());
        world.executions.insert(name.clone(), world.job.execution(name.clone(), cause, None, wall));
        let is_first = world.ever.insert(tick);
        let is_tick = world.schedule.next_after(tick - span(1)) == Some(tick) && tick <= wall;
        self.stats.started += 1;
        if !is_first || !is_tick {
            let what = if is_first { "that is none" } else { "a second time" };
            self.violate(Invariant::OneExecutionPerCronTick, format!("job {job} starts tick {tick} {what}"));
        }
        let at = self.soon(50);
        self.push(at, What::Plan { job, execution: name.clone(), epoch });
        name
    }

    /// One plan of an execution: stored first, then carried out.
    fn plan(&mut self, job: usize, name: &RevisionName) {
        let (wall, epoch) = (self.wall(), self.epoch);
        let used: usize =
            self.jobs.iter().map(|job| job.replicas.values().filter(|one| one.takes_room()).count()).sum();
        let world = &mut self.jobs[job];
        let Some(stored) = world.executions.get(name).cloned() else { return };
        let mut shown = stored.clone();
        match self.mutation {
            JobMutation::TooParallel => shown.counts.parallelism += 1,
            JobMutation::EndsForgotten if shown.status.is_final() => {
                shown.status = cove_model::ExecutionStatus::Running;
                shown.replicas.clear();
                shown.succeeded = 0;
            }
            _ => {}
        }
        let of_it = |one: &&Hosted| one.seen.revision.name == *name;
        let observed: Vec<ReplicaObservation> =
            world.replicas.values().filter(of_it).map(|one| one.seen.clone()).collect();
        let view = ExecutionView {
            execution: &shown,
            images: &self.images,
            replicas: &observed,
            room: ROOM.saturating_sub(u32::try_from(used).unwrap_or(u32::MAX)),
            shortage: None,
            is_job_deleted: false,
            settings: &self.settings,
        };
        let mut plan = plan_execution(&view, world.memory.entry(name.clone()).or_default(), wall);
        plan.execution.counts = stored.counts;
        self.keep(job, &stored, plan.execution);
        if self.random.chance(0.003) {
            return self.crash();
        }
        for step in plan.steps {
            match step.action {
                JobAction::EnsureImages => {}
                JobAction::Start { replica, .. } => self.host_start(job, name, replica),
                JobAction::Stop { replica, .. } => self.host_stop(job, &replica),
                JobAction::Remove { replica } => {
                    self.jobs[job].replicas.remove(&replica);
                }
            }
        }
        if let Some(wake_at) = plan.wake_at {
            let at = self.when(wake_at).max(self.now_ms + 1);
            self.push(at, What::Plan { job, execution: name.clone(), epoch });
        } else if plan.missing > 0 {
            let at = self.soon(5_000);
            self.push(at, What::Plan { job, execution: name.clone(), epoch });
        }
    }

    /// The store's part: what has ended stays as it is, and only so many of those stay.
    fn keep(&mut self, job: usize, stored: &Execution, planned: Execution) {
        let has_ended = stored.status.is_final();
        if has_ended && *stored != planned {
            let what = format!("execution {} of job {job} changed after its end", stored.name);
            self.violate(Invariant::ExecutionEndsOnce, what);
            return;
        }
        let counts = planned.counts;
        let is_over = planned.succeeded > counts.completions
            || planned.failed > planned.replica_retry_limit + counts.parallelism
            || planned.status == cove_model::ExecutionStatus::Succeeded && planned.succeeded < counts.completions;
        if is_over {
            let (name, good, bad) = (&planned.name, planned.succeeded, planned.failed);
            let what = format!("execution {name} of job {job} has {good} successes and {bad} failures");
            self.violate(Invariant::ExecutionEndsOnce, what);
        }
        let ends = planned.status.is_final() && !has_ended;
        let world = &mut self.jobs[job];
        world.executions.insert(planned.name.clone(), planned);
        if !ends {
            return;
        }
        self.stats.ended += 1;
        let finals: Vec<_> =
            world.executions.values().filter(|one| one.status.is_final()).map(|one| one.name.clone()).collect();
        for old in finals.iter().take(finals.len().saturating_sub(EXECUTION_HISTORY_MAX)) {
            world.executions.remove(old);
            world.memory.remove(old);
            world.causes.retain(|_, name| name != old);
        }
    }
}

#[cfg(test)]
mod tests;
