//! The plan of one app: which revisions are kept, which is in charge, and what each should have.
//!
//! Single mode: the newest revision is brought up beside the one in charge, takes over when it is ready, and the old one
//! drains; one that never becomes ready leaves the old one in charge. Multiple mode: every active revision stands for
//! itself. Labels mode: so does every revision that a label names, and [`labels`] says who serves until it is ready.
//!
//! **Invariant:** the one in charge is never given up before its successor is ready.

use std::collections::BTreeSet;

use cove_model::{ActiveRevisionsMode, IdleState, ReplicaPhase, RevisionName, RevisionProvisioning};
use cove_traffic::{EndpointState, Endpoints};
use jiff::Timestamp;

use crate::{
    AppMemory, AppPhase, AppView, Outcome, Plan, RevisionView,
    assess::{Assessment, Port, assess},
    freezing::needs_life,
    labels::{self, Place},
    memory::RevisionMemory,
    outcome::outcome,
    plan::Action,
    replicas::{Want, after, control, endpoints},
    status::status,
    traffic::traffic,
};

/// What one revision is to its app this round.
#[derive(Clone, Debug)]
pub(crate) struct Role {
    /// `None` when it should not run.
    pub(crate) assessment: Option<Assessment>,
    /// It runs or is being brought up; otherwise it is inactive, replaced, or its app is stopped.
    pub(crate) is_kept: bool,
    pub(crate) is_newest: bool,
    pub(crate) is_in_charge: bool,
}

/// Plans one app. `memory` belongs to this app and to nobody else.
pub fn plan(view: &AppView<'_>, memory: &mut AppMemory, now: Timestamp) -> Plan {
    let mut plan = Plan { room: view.room.clone(), ..Plan::default() };
    forget_revisions(view, memory);
    if view.phase == AppPhase::Deleting {
        take_down(view, memory, now, &mut plan);
        return plan;
    }
    begin_attempt(view, memory);
    let places = labels::places(view, memory);
    let roles = roles(view, &places, memory, now);
    labels::remember(view, &places, &roles, memory);
    plan.traffic = traffic(view, &places, &roles);
    for (revision, role) in view.revisions.iter().zip(&roles).filter(|(_, role)| role.is_kept) {
        plan.kept.push(revision.revision.name.clone());
        if role.is_in_charge {
            plan.in_charge = Some(revision.revision.name.clone());
        }
    }
    for (revision, role) in view.revisions.iter().zip(&roles) {
        plan_revision(view, revision, role, memory, now, &mut plan);
    }
    settle_active(view, &roles, &mut plan);
    labels::settle_active(view, &places, &roles, &mut plan);
    prune(view, &mut plan);
    plan.replaces = replaced(view, &roles);
    if view.phase == AppPhase::InProgress {
        plan.outcome = outcome(view, &roles);
    }
    plan
}

fn forget_revisions(view: &AppView<'_>, memory: &mut AppMemory) {
    if memory.revisions.len() > view.revisions.len() {
        let names: BTreeSet<&RevisionName> = view.revisions.iter().map(|revision| &revision.revision.name).collect();
        memory.revisions.retain(|name, _| names.contains(name));
    }
}

fn take_down(view: &AppView<'_>, memory: &mut AppMemory, now: Timestamp, plan: &mut Plan) {
    let want = Want {
        count: 0,
        slots: 0,
        keep_frozen: false,
        keep_serving: false,
        at_once: true,
        port: Port::None,
        has_failed: false,
        reason: "the app is being deleted",
    };
    let mut is_empty = true;
    for revision in view.revisions {
        control(view, revision, memory, &want, now, plan);
        let name = &revision.revision.name;
        let pending = memory.revisions.get(name).is_some_and(|memory| !memory.notes.is_empty());
        is_empty &= revision.replicas.is_empty() && !pending;
        let endpoints = Endpoints { state: EndpointState::Inactive, ..Endpoints::default() };
        plan.endpoints.push((revision.revision.key(), endpoints));
        plan.existing.push((revision.revision.key(), 0));
    }
    if is_empty {
        plan.outcome = Some(Outcome::Deleted);
    }
}

/// A new generation gives a failed revision another chance: what was wrong may have been put right outside its template.
fn begin_attempt(view: &AppView<'_>, memory: &mut AppMemory) {
    if view.phase != AppPhase::InProgress || memory.attempt_generation == view.generation {
        return;
    }
    memory.attempt_generation = view.generation;
    for revision in view.revisions {
        if revision.revision.is_active
            && revision.status.provisioning == RevisionProvisioning::Failed
            && let Some(memory) = memory.revisions.get_mut(&revision.revision.name)
        {
            memory.new_attempt();
        }
    }
}

fn is_new_attempt(view: &AppView<'_>, revision: &RevisionView<'_>, memory: &AppMemory) -> bool {
    let began = memory.revisions.get(&revision.revision.name).and_then(|memory| memory.attempt_since);
    view.phase == AppPhase::InProgress
        && revision.status.provisioning == RevisionProvisioning::Failed
        && began.is_none()
}

fn roles(view: &AppView<'_>, places: &[Place], memory: &mut AppMemory, now: Timestamp) -> Vec<Role> {
    let is_single = view.app.active_revisions_mode == ActiveRevisionsMode::Single;
    let newest = view.revisions.iter().rposition(|revision| revision.revision.is_active);
    let was_in_charge = view.revisions.iter().rposition(|revision| {
        revision.revision.is_active && revision.status.provisioning == RevisionProvisioning::Provisioned
    });
    let assessments: Vec<Option<Assessment>> = view
        .revisions
        .iter()
        .enumerate()
        .map(|(index, revision)| {
            if !revision.revision.is_active || view.app.is_stopped {
                return None;
            }
            let of_label = places.iter().find(|place| place.named == Some(index)).and_then(|place| place.before);
            let replaced =
                was_in_charge.filter(|at| is_single && *at != index).or(of_label).map(|at| &view.revisions[at]);
            let again = is_new_attempt(view, revision, memory);
            let memory = memory.revisions.entry(revision.revision.name.clone()).or_default();
            let initial = *memory.initial.get_or_insert_with(|| initial(revision, replaced));
            if again {
                let status = cove_model::RevisionStatus {
                    provisioning: RevisionProvisioning::Provisioning,
                    ..revision.status.clone()
                };
                let revision = RevisionView { status: &status, ..*revision };
                return Some(assess(view, &revision, memory, initial, now));
            }
            Some(assess(view, revision, memory, initial, now))
        })
        .collect();
    let is_ready = |assessment: &Option<Assessment>| {
        assessment.as_ref().is_some_and(|a| a.provisioning == RevisionProvisioning::Provisioned)
    };
    let serves = |assessment: &Option<Assessment>| assessment.as_ref().is_some_and(|a| a.ready > 0);
    let labelled = (!places.is_empty()).then(|| labels::wanted(places, |at| is_ready(&assessments[at])));
    let in_charge = assessments.iter().rposition(is_ready).or(was_in_charge);
    let in_charge = in_charge.or_else(|| assessments.iter().rposition(serves)).or(newest);
    let assessments = assessments.into_iter().enumerate();
    assessments
        .map(|(index, assessment)| {
            let is_newest = newest == Some(index);
            let is_in_charge = in_charge == Some(index);
            let is_wanted = match &labelled {
                Some(labelled) => labelled.contains(&index),
                None => !is_single || is_newest || is_in_charge,
            };
            Role { is_kept: assessment.is_some() && is_wanted, assessment, is_newest, is_in_charge }
        })
        .collect()
}

/// With how many replicas a revision begins: as many as the one that it replaces, within its own limits.
fn initial(revision: &RevisionView<'_>, replaced: Option<&RevisionView<'_>>) -> u32 {
    let scale = &revision.revision.template.scale;
    let least = scale.min_replicas.max(1);
    let running = replaced.map_or(0, |replaced| replaced.desired.unwrap_or_else(|| running(replaced)));
    running.min(scale.max_replicas).max(least)
}

fn running(revision: &RevisionView<'_>) -> u32 {
    let running = revision.replicas.iter().filter(|replica| replica.phase == ReplicaPhase::Running);
    u32::try_from(running.count()).unwrap_or(u32::MAX)
}

fn plan_revision(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    role: &Role,
    memory: &mut AppMemory,
    now: Timestamp,
    plan: &mut Plan,
) {
    let name = &revision.revision.name;
    let want = want(view, revision, role, memory, now, plan);
    let existing = control(view, revision, memory, &want, now, plan);
    let port = Port::of(view, revision).known();
    let mut endpoints = endpoints(revision, memory.revisions.get(name).map(Box::as_ref), port);
    endpoints.state = match &role.assessment {
        Some(assessment) if role.is_kept => match &assessment.message {
            Some(reason) if assessment.cannot_serve(revision, view.settings) => {
                EndpointState::Failed { reason: reason.clone() }
            }
            Some(_) | None => EndpointState::Hold,
        },
        // what is held goes elsewhere when it is told; by then the new routes are out
        Some(_) | None if !want.keep_serving => EndpointState::Inactive,
        Some(_) | None => EndpointState::Hold,
    };
    let key = revision.revision.key();
    let weight = plan.traffic.weights.iter().filter(|share| share.revision == key).map(|share| share.weight).sum();
    let status = status(view, revision, role, &want, weight);
    if status != *revision.status {
        plan.statuses.push((name.clone(), status));
    }
    plan.endpoints.push((key.clone(), endpoints));
    plan.existing.push((key, existing));
}

/// How many replicas and slots a revision should have.
fn want(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    role: &Role,
    memory: &mut AppMemory,
    now: Timestamp,
    plan: &mut Plan,
) -> Want {
    let mine = memory.revisions.entry(revision.revision.name.clone()).or_default();
    let scale = &revision.revision.template.scale;
    let Some(assessment) = role.assessment.as_ref().filter(|_| role.is_kept) else {
        return want_nothing(view, revision, mine, now, plan);
    };
    mine.retired_at = None;
    mine.was_kept = true;
    let initial = mine.initial.unwrap_or(1);
    if assessment.provisioning == RevisionProvisioning::Provisioning
        && let Some(since) = mine.attempt_since
    {
        plan.wake(after(since, view.settings.provisioning_deadline));
        let patience_ends = after(since, view.settings.capacity_patience);
        if patience_ends > now {
            plan.wake(patience_ends);
        }
        if let Some(first) = mine.first_ready_at {
            plan.wake(after(first, view.settings.switch_patience));
        }
    }
    let (count, reason) = match assessment.provisioning {
        RevisionProvisioning::Provisioned => {
            let unknown = running(revision).max(scale.min_replicas);
            let fresh_until = mine.provisioned_at.map(|at| after(at, view.settings.fresh_hold));
            let is_fresh = fresh_until.is_some_and(|until| now < until);
            let least = if is_fresh { initial.max(scale.min_replicas) } else { scale.min_replicas };
            let desired = revision.desired.unwrap_or(unknown);
            if desired < least && is_fresh {
                fresh_until.into_iter().for_each(|until| plan.wake(until));
            }
            (desired.max(least), "the wanted number of replicas")
        }
        RevisionProvisioning::Failed => (1, "it failed and is tried again"),
        RevisionProvisioning::Provisioning
        | RevisionProvisioning::Deprovisioning
        | RevisionProvisioning::Deprovisioned => (revision.desired.unwrap_or(0).max(initial), "it is being brought up"),
    };
    let count = count.min(scale.max_replicas);
    let may_have_slots = assessment.provisioning == RevisionProvisioning::Provisioned && role_serves(view, role);
    let room = scale.max_replicas.saturating_sub(count);
    let slots = if may_have_slots { revision.slots_wanted.min(room) } else { 0 };
    let has_failed = assessment.provisioning == RevisionProvisioning::Failed;
    let is_asked = scale.idle == IdleState::Frozen && count == 0 && may_have_slots;
    let keep_frozen =
        is_asked && view.cannot_freeze.is_none() && needs_life(view.app, &revision.revision.template).is_none();
    let port = assessment.port.clone();
    Want { count, slots, keep_frozen, keep_serving: false, at_once: false, port, has_failed, reason }
}

/// What a revision should have that was replaced, deactivated or stopped with its app: nothing, after a moment.
fn want_nothing(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    mine: &mut RevisionMemory,
    now: Timestamp,
    plan: &mut Plan,
) -> Want {
    let retired_at = *mine.retired_at.get_or_insert(now);
    mine.initial = None;
    mine.attempt_since = None;
    let until = after(retired_at, view.settings.retire_settle);
    let is_known = mine.was_kept || revision.replicas.iter().any(|replica| replica.is_ready);
    let keep_serving = now < until && is_known;
    if keep_serving {
        plan.wake(until);
    }
    let reason = match (view.app.is_stopped, revision.revision.is_active) {
        (true, _) => "the app is stopped",
        (false, true) => "a newer revision took over",
        (false, false) => "the revision is inactive",
    };
    let port = Port::of(view, revision);
    Want { count: 0, slots: 0, keep_frozen: false, keep_serving, at_once: false, port, has_failed: false, reason }
}

fn role_serves(view: &AppView<'_>, role: &Role) -> bool {
    role.is_in_charge || view.app.active_revisions_mode != ActiveRevisionsMode::Single
}

/// In single mode, revisions that were replaced become inactive.
fn settle_active(view: &AppView<'_>, roles: &[Role], plan: &mut Plan) {
    if view.app.active_revisions_mode != ActiveRevisionsMode::Single || view.app.is_stopped {
        return;
    }
    let revisions = view.revisions.iter().zip(roles);
    if revisions.clone().any(|(revision, role)| revision.revision.is_active && !role.is_kept) {
        let kept = revisions.filter(|(_, role)| role.is_kept).map(|(revision, _)| revision.revision.name.clone());
        plan.step(Action::SetActive { active: kept.collect() }, "a newer revision took over");
    }
}

/// The oldest inactive revisions go when there are more than the app keeps.
fn prune(view: &AppView<'_>, plan: &mut Plan) {
    let inactive = view.revisions.iter().filter(|revision| !revision.revision.is_active);
    let limit = usize::try_from(view.app.max_inactive_revisions).unwrap_or(usize::MAX);
    let surplus = inactive.clone().count().saturating_sub(limit);
    for revision in inactive.filter(|revision| revision.replicas.is_empty()).take(surplus) {
        let revision = revision.revision.name.clone();
        plan.step(Action::DeleteRevision { revision }, "more inactive revisions than `maxInactiveRevisions`");
    }
}

fn replaced(view: &AppView<'_>, roles: &[Role]) -> Option<(RevisionName, RevisionName)> {
    if view.app.active_revisions_mode != ActiveRevisionsMode::Single {
        return None;
    }
    let newest = roles.iter().position(|role| role.is_kept && role.is_newest)?;
    let in_charge = roles.iter().position(|role| role.is_kept && role.is_in_charge)?;
    let name = |at: usize| view.revisions[at].revision.name.clone();
    (newest != in_charge).then(|| (name(newest), name(in_charge)))
}
