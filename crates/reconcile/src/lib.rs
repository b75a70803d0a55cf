//! What must change so that the observed replicas of an app become what its user asked for.
//!
//! [`plan`] looks at one app: its revisions, the counts that the autoscaler wants, what the driver observed, what the
//! ingress reported drained; it gives steps with reasons, statuses, traffic, endpoints and the instant to look again.
//! Whoever calls it executes the steps, twice if need be, and calls it again when anything changed.
//!
//! **Invariant:** nothing here reads a clock, draws a random number or does IO; time, seeds and states are arguments.
//! **Invariant:** [`AppMemory`] may be lost at any time; that costs time (a drain begins again), never a serving replica.
//! **Invariant:** a plan whose steps were executed and observed is followed by one without steps.

mod assess;
mod freezing;
mod jobs;
mod labels;
mod line;
mod memory;
mod names;
mod outcome;
mod plan;
mod planner;
mod replicas;
mod room;
mod sessions;
mod settings;
mod slots;
mod status;
mod traffic;
mod view;

pub use freezing::{NeedsLife, needs_life};
pub use jobs::{
    BACKOFF_LIMIT_EXCEEDED, DEADLINE_EXCEEDED, ExecutionMemory, ExecutionPlan, ExecutionView, IMAGE_PULL_FAILURE,
    JobAction, JobEvent, JobSettings, JobStep, QUEUED, STOPPED, plan_execution,
};
pub use line::{Drawn, Kept, Waiting, sort_line};
pub use memory::AppMemory;
pub use plan::{Action, Outcome, Plan, Short, Step, Traffic};
pub use planner::plan;
pub use room::{Amount, Pool, Room};
pub use sessions::{
    Allocated, PoolMemory, PoolOutcome, PoolPlan, PoolView, SessionAction, SessionEvent, SessionSettings, SessionStep,
    SessionView, allocate, fork_sessions, plan_pool,
};
pub use settings::Settings;
pub use slots::{SlotCandidate, divide_slot_budget};
pub use traffic::hosts;
pub use view::{AppPhase, AppView, Images, RevisionView};

#[cfg(test)]
mod tests;
