//! Labels mode: which revision serves a label, and which revisions are active.
//!
//! A label names a revision. Until that one is ready, the revision that served the label last goes on serving it, so that a
//! new revision takes over without a gap and one that never becomes ready changes nothing.
//!
//! **Invariant:** a revision that serves a label stays active, whatever the label names.

use std::collections::BTreeSet;

use cove_model::{ActiveRevisionsMode, RevisionName, RevisionProvisioning, TrafficWeight};

use crate::{AppMemory, AppView, Plan, plan::Action, planner::Role};

/// Where a weight's requests go, as indexes of the app's revisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// The revision that it names.
    pub(crate) named: Option<usize>,
    /// The revision that serves meanwhile.
    pub(crate) before: Option<usize>,
}

fn entries<'a>(view: &AppView<'a>) -> &'a [TrafficWeight] {
    let is_labels = view.app.active_revisions_mode == ActiveRevisionsMode::Labels;
    view.app.ingress.as_ref().filter(|_| is_labels).map_or(&[][..], |ingress| &ingress.traffic)
}

/// The places of all weights, in their order; none but in labels mode.
pub(crate) fn places(view: &AppView<'_>, memory: &AppMemory) -> Vec<Place> {
    let find = |name: &str| {
        let is_it = |revision: &crate::RevisionView<'_>| revision.revision.name.as_str().eq_ignore_ascii_case(name);
        view.revisions.iter().position(is_it)
    };
    let named: Vec<Option<usize>> =
        entries(view).iter().map(|entry| entry.revision.as_deref().and_then(find)).collect();
    let served = |at: usize| {
        let revision = &view.revisions[at];
        revision.revision.is_active && revision.status.provisioning == RevisionProvisioning::Provisioned
    };
    // after a restart nobody remembers; what is active without being named can only be kept for a label
    let guess = (0..view.revisions.len()).rev().find(|at| served(*at) && !named.contains(&Some(*at)));
    let place = |(entry, named): (&TrafficWeight, &Option<usize>)| {
        let label = entry.label.as_deref().unwrap_or("");
        let remembered = memory.labels.get(label).and_then(|name| find(name.as_str()));
        let before = remembered.or(guess).filter(|at| Some(*at) != *named && served(*at));
        Place { named: *named, before }
    };
    entries(view).iter().zip(&named).map(place).collect()
}

impl Place {
    /// The revision that serves: the named one when it is ready, else the one before.
    pub(crate) fn serving(self, is_ready: impl Fn(usize) -> bool) -> Option<usize> {
        match (self.named, self.before) {
            (Some(named), Some(_)) if is_ready(named) => Some(named),
            (_, Some(before)) => Some(before),
            (named, None) => named,
        }
    }
}

/// Remembers who is ready for which label.
pub(crate) fn remember(view: &AppView<'_>, places: &[Place], roles: &[Role], memory: &mut AppMemory) {
    let entries = entries(view);
    memory.labels.retain(|label, _| entries.iter().any(|entry| entry.label.as_deref() == Some(label)));
    for (entry, place) in entries.iter().zip(places) {
        let (Some(label), Some(serving)) = (&entry.label, place.serving(|at| is_ready(&roles[at]))) else { continue };
        if is_ready(&roles[serving]) {
            let name: &RevisionName = &view.revisions[serving].revision.name;
            memory.labels.insert(label.clone(), name.clone());
        }
    }
}

pub(crate) fn is_ready(role: &Role) -> bool {
    role.assessment.as_ref().is_some_and(|a| a.provisioning == RevisionProvisioning::Provisioned)
}

/// Revisions that labels want active: those named, and those that serve until the named ones are ready.
pub(crate) fn wanted(places: &[Place], is_ready: impl Fn(usize) -> bool) -> BTreeSet<usize> {
    places.iter().flat_map(|place| [place.named, place.serving(&is_ready)]).flatten().collect()
}

/// Makes active what labels want, and nothing else.
pub(crate) fn settle_active(view: &AppView<'_>, places: &[Place], roles: &[Role], plan: &mut Plan) {
    if view.app.active_revisions_mode != ActiveRevisionsMode::Labels || view.app.is_stopped || places.is_empty() {
        return;
    }
    let wanted = wanted(places, |at| is_ready(&roles[at]));
    let active = (0..view.revisions.len()).filter(|at| view.revisions[*at].revision.is_active);
    if !active.eq(wanted.iter().copied()) {
        let names = wanted.iter().map(|at| view.revisions[*at].revision.name.clone());
        plan.step(Action::SetActive { active: names.collect() }, "labels say which revisions are active");
    }
}
