//! What must never happen, by name; and ways to break it on purpose, so that a test shows each check can fail.

use std::fmt;

/// A named promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Invariant {
    /// Weights of an app add up to 100 or there are none.
    TrafficSumsTo100,
    /// Replicas that are to stay are never more than the maximum.
    ReplicasWithinLimits,
    /// Zero is reached only when nothing was busy for a whole cool-down.
    ZeroOnlyAfterCoolDown,
    /// A request is neither refused nor cut by the platform while its app has a ready replica.
    NoRequestDroppedWhileReady,
    /// A held request is answered, or gets its 504 in time.
    HeldRequestAnsweredOr504,
    /// A draining replica gets nothing new.
    DrainedGetsNoNewRequest,
    /// Requests move to a new revision only when that is ready.
    OldRevisionServesUntilNewReady,
    /// A plan whose orders were given is followed by one without.
    PlanSettles,
    /// Outcomes are told for the newest generation only, and it rises.
    GenerationMonotone,
    /// A status never counts what was not observed.
    StatusNeverAheadOfObserved,
    /// Scale-in takes the least busy replica.
    LeastBusyGoesFirst,
    /// A tick of a job has one execution: never two, and one where nothing disturbed the server.
    OneExecutionPerCronTick,
    /// An execution has never more replicas at once than its parallelism.
    ParallelismBound,
    /// A replica of an execution is started once.
    ReplicaStartedOnce,
    /// An execution ends once, with the counts that its end needs.
    ExecutionEndsOnce,
    /// An identifier has one session, which is its own on disk before it answers, and a session has one identifier for good.
    OneIdentifierOneSession,
    /// A session ends for want of requests when its cool-down is over: to the second, and never while it is used.
    SessionCoolDownExact,
    /// When all sessions have ended, those that wait ready are all that is left.
    NoSessionLeaks,
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::TrafficSumsTo100 => "traffic-sums-to-100",
            Self::ReplicasWithinLimits => "replicas-within-limits",
            Self::ZeroOnlyAfterCoolDown => "zero-only-after-cool-down",
            Self::NoRequestDroppedWhileReady => "no-request-dropped-while-ready",
            Self::HeldRequestAnsweredOr504 => "held-request-answered-or-504",
            Self::DrainedGetsNoNewRequest => "drained-gets-no-new-request",
            Self::OldRevisionServesUntilNewReady => "old-revision-serves-until-new-ready",
            Self::PlanSettles => "plan-settles",
            Self::GenerationMonotone => "generation-monotone",
            Self::StatusNeverAheadOfObserved => "status-never-ahead-of-observed",
            Self::LeastBusyGoesFirst => "least-busy-goes-first",
            Self::OneExecutionPerCronTick => "one-execution-per-cron-tick",
            Self::ParallelismBound => "parallelism-bound",
            Self::ReplicaStartedOnce => "replica-started-once",
            Self::ExecutionEndsOnce => "execution-ends-once",
            Self::OneIdentifierOneSession => "one-identifier-one-session",
            Self::SessionCoolDownExact => "session-cool-down-exact",
            Self::NoSessionLeaks => "no-session-leaks",
        })
    }
}

/// A broken promise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: Invariant,
    /// When, in milliseconds of the world.
    pub at_ms: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.invariant, self.seconds(), self.what)
    }
}

impl Violation {
    fn seconds(&self) -> f64 {
        f64::from(u32::try_from(self.at_ms / 1000).unwrap_or(u32::MAX))
            + f64::from(u32::try_from(self.at_ms % 1000).expect("below 1000")) / 1000.0
    }
}

/// A fault in the platform itself, made on purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mutation {
    /// None.
    #[default]
    None,
    /// The planner is told that the busiest replicas are the least busy.
    VictimsInverted,
    /// A drain is executed as a stop.
    StopInsteadOfDrain,
    /// Freezes replicas without a drain.
    FreezeInsteadOfDrain,
    /// The ingress goes on sending to draining replicas.
    SendToDraining,
    /// The autoscaler's cool-down is a tenth of what it should be.
    ImpatientCoolDown,
    /// The planner forgets everything between two plans.
    NoMemory,
    /// The ingress does not tell the autoscaler that it holds a request, and nobody looks at deadlines.
    ForgottenHold,
    /// The planner is shown twice the maximum, and twice the count that was decided.
    NoUpperLimit,
    /// Requests go to the newest revision at once.
    SwitchAtOnce,
    /// One weight is a percent too high.
    WeightsUnchecked,
    /// Statuses count a replica more than was seen.
    HopefulStatus,
    /// Outcomes are told for the generation before.
    StaleOutcome,
}
