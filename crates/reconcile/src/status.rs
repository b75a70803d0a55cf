//! What is told of a revision: ARM's three states, counts, a message.
//!
//! **Invariant:** counts come from what was observed, never from what was ordered.

use cove_model::{ReplicaPhase, RevisionHealth, RevisionProvisioning, RevisionRunning, RevisionStatus};

use crate::{AppView, RevisionView, assess::Assessment, planner::Role, replicas::Want};

pub(crate) fn status(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    role: &Role,
    want: &Want,
    traffic_weight: u32,
) -> RevisionStatus {
    let count = |phases: &[ReplicaPhase]| {
        let found = revision.replicas.iter().filter(|replica| phases.contains(&replica.phase));
        u32::try_from(found.count()).unwrap_or(u32::MAX)
    };
    let replicas = count(&[ReplicaPhase::Running, ReplicaPhase::Stopping]);
    let slots = count(&[ReplicaPhase::Prepared]);
    let frozen = count(&[ReplicaPhase::Frozen]);
    let Some(assessment) = role.assessment.as_ref().filter(|_| role.is_kept) else {
        let is_stopped_app = view.app.is_stopped && revision.revision.is_active;
        return RevisionStatus {
            provisioning: match (is_stopped_app, revision.replicas.is_empty()) {
                (true, _) => revision.status.provisioning,
                (false, true) => RevisionProvisioning::Deprovisioned,
                (false, false) => RevisionProvisioning::Deprovisioning,
            },
            running: if replicas == 0 { RevisionRunning::Stopped } else { RevisionRunning::Processing },
            health: RevisionHealth::None,
            replicas,
            ready: 0,
            slots,
            frozen,
            traffic_weight,
            message: None,
            ready_at: revision.status.ready_at,
        };
    };
    let ready = assessment.ready;
    let (running, health) = states(view, revision, assessment, want);
    RevisionStatus {
        provisioning: assessment.provisioning,
        running,
        health,
        replicas,
        ready,
        slots,
        frozen,
        traffic_weight,
        message: assessment.message.clone(),
        ready_at: assessment.ready_at,
    }
}

fn states(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    assessment: &Assessment,
    want: &Want,
) -> (RevisionRunning, RevisionHealth) {
    let is_troubled = assessment.message.is_some();
    match assessment.provisioning {
        RevisionProvisioning::Failed => (RevisionRunning::Failed, RevisionHealth::Unhealthy),
        RevisionProvisioning::Provisioning
        | RevisionProvisioning::Deprovisioning
        | RevisionProvisioning::Deprovisioned => (RevisionRunning::Processing, RevisionHealth::None),
        RevisionProvisioning::Provisioned => {
            let most = revision.revision.template.scale.max_replicas;
            match assessment.ready {
                0 if want.count == 0 => (RevisionRunning::ScaledToZero, RevisionHealth::Healthy),
                0 if assessment.cannot_serve(revision, view.settings) => {
                    (RevisionRunning::Failed, RevisionHealth::Unhealthy)
                }
                0 if is_troubled => (RevisionRunning::Degraded, RevisionHealth::Unhealthy),
                0 => (RevisionRunning::Processing, RevisionHealth::None),
                ready if ready >= most => (RevisionRunning::RunningAtMaxScale, RevisionHealth::Healthy),
                _ => (RevisionRunning::Running, RevisionHealth::Healthy),
            }
        }
    }
}
