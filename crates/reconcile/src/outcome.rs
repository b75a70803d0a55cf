//! What became of the generation that its user waits for.

use cove_model::RevisionProvisioning;

use crate::{AppView, Outcome, planner::Role};

/// The outcome, once there is one; the newest active revision decides.
pub(crate) fn outcome(view: &AppView<'_>, roles: &[Role]) -> Option<Outcome> {
    if view.app.is_stopped {
        let is_quiet = view.revisions.iter().all(|revision| revision.replicas.is_empty());
        return is_quiet.then_some(Outcome::Succeeded);
    }
    let Some((revision, role)) = view.revisions.iter().zip(roles).find(|(_, role)| role.is_newest) else {
        return Some(Outcome::Succeeded);
    };
    let assessment = role.assessment.as_ref()?;
    match assessment.provisioning {
        RevisionProvisioning::Provisioned => Some(Outcome::Succeeded),
        RevisionProvisioning::Failed => {
            let (app, name) = (view.app.id.name(), &revision.revision.name);
            let detail = assessment.message.as_deref().unwrap_or("it did not become ready");
            let others = roles.iter().any(|role| role.is_in_charge && !role.is_newest);
            let rest = if others { ". The revision before it still serves" } else { "" };
            Some(Outcome::Failed {
                code: "ContainerAppOperationError",
                message: format!(
                    "Failed to provision revision '{name}' for container app '{app}'. Error details: {detail}{rest}."
                ),
            })
        }
        RevisionProvisioning::Provisioning
        | RevisionProvisioning::Deprovisioning
        | RevisionProvisioning::Deprovisioned => None,
    }
}
