//! Which revisions get an app's requests, and under which host names.
//!
//! `<app>.<domain>` and `<app>.internal.<domain>` follow the weights; `<app>--<suffix>.<domain>` is one revision,
//! `<app>---<label>.<domain>` the revision that a label points to.
//!
//! **Invariant:** weights add up to 100 or there are none.

use std::{collections::BTreeMap, sync::Arc};

use cove_model::{ActiveRevisionsMode, ContainerApp, RevisionKey, RevisionName, RevisionProvisioning};
use cove_traffic::{AppRoute, AppRouteState, WeightedRevision};

use crate::{
    AppView, Traffic,
    labels::{self, Place},
    planner::Role,
};

pub(crate) fn traffic(view: &AppView<'_>, places: &[Place], roles: &[Role]) -> Traffic {
    let Some(ingress) = &view.app.ingress else { return Traffic::default() };
    let kept = || view.revisions.iter().zip(roles).filter(|(_, role)| role.is_kept);
    let in_charge = kept().find(|(_, role)| role.is_in_charge);
    let latest = in_charge.map(|(revision, _)| revision.revision.name.clone());
    let mut traffic = Traffic { is_routed: true, ..Traffic::default() };
    traffic.active = kept().map(|(revision, _)| revision.revision.name.clone()).collect();
    traffic.state = match in_charge.and_then(|(_, role)| role.assessment.as_ref()) {
        _ if view.app.is_stopped => AppRouteState::Stopped,
        Some(assessment) if assessment.provisioning == RevisionProvisioning::Failed => {
            AppRouteState::Failed { reason: assessment.message.clone().unwrap_or_default() }
        }
        Some(_) | None => AppRouteState::Active,
    };
    let mut shares: Vec<(RevisionName, u32)> = Vec::new();
    if view.app.active_revisions_mode != ActiveRevisionsMode::Single {
        for (index, share) in ingress.traffic.iter().enumerate() {
            let serving = places.get(index).and_then(|place| place.serving(|at| labels::is_ready(&roles[at])));
            let named = share.revision.as_ref().and_then(|name| RevisionName::new(name.to_ascii_lowercase()).ok());
            let named = serving.map(|at| view.revisions[at].revision.name.clone()).or(named);
            let name = if share.revision.is_some() { named } else { latest.clone() };
            let Some(name) = name.filter(|name| traffic.active.contains(name)) else { continue };
            if let Some(label) = &share.label {
                traffic.labels.push((label.to_ascii_lowercase(), name.clone()));
            }
            match shares.iter_mut().find(|(other, _)| *other == name) {
                Some((_, weight)) => *weight = weight.saturating_add(share.weight),
                None if share.weight > 0 => shares.push((name, share.weight)),
                None => {}
            }
        }
    }
    if shares.is_empty() {
        shares.extend(latest.map(|name| (name, 100)));
    }
    make_hundred(&mut shares);
    let app = &view.app.id;
    let weighted = |(name, weight)| WeightedRevision { revision: RevisionKey { app: app.clone(), name }, weight };
    traffic.weights = shares.into_iter().map(weighted).collect();
    traffic
}

/// Scales shares to 100 in all: what pointed to a revision that is not there is shared by the rest.
fn make_hundred(shares: &mut [(RevisionName, u32)]) {
    let total: u64 = shares.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 100 || total == 0 {
        return;
    }
    let mut given = 0;
    for (_, weight) in shares.iter_mut() {
        *weight = u32::try_from(u64::from(*weight) * 100 / total).expect("at most 100");
        given += *weight;
    }
    for (_, weight) in shares.iter_mut().take(100_usize.saturating_sub(usize::try_from(given).unwrap_or(100))) {
        *weight += 1;
    }
}

/// Every host name of an app with its route.
#[must_use]
pub fn hosts(app: &ContainerApp, domain: &str, traffic: &Traffic) -> BTreeMap<String, AppRoute> {
    let mut hosts = BTreeMap::new();
    let Some(ingress) = app.ingress.as_ref().filter(|_| traffic.is_routed) else { return hosts };
    let policies = Arc::new(ingress.policies.clone());
    let route = |revisions: Vec<WeightedRevision>, state: AppRouteState| AppRoute {
        app: app.id.clone(),
        environment: app.environment.clone(),
        external: ingress.external,
        allow_insecure: ingress.allow_insecure,
        transport: ingress.transport,
        policies: Arc::clone(&policies),
        revisions,
        state,
    };
    let state_of_one = match &traffic.state {
        AppRouteState::Stopped => AppRouteState::Stopped,
        AppRouteState::Active | AppRouteState::Failed { .. } => AppRouteState::Active,
    };
    let name = app.id.name().to_ascii_lowercase();
    let domain = domain.to_ascii_lowercase();
    let all = |name: &str| [format!("{name}.{domain}"), format!("{name}.internal.{domain}")];
    for host in all(&name) {
        hosts.insert(host, route(traffic.weights.clone(), traffic.state.clone()));
    }
    let alone = |name: &RevisionName| {
        let revision = RevisionKey { app: app.id.clone(), name: name.clone() };
        route(vec![WeightedRevision { revision, weight: 100 }], state_of_one.clone())
    };
    for revision in &traffic.active {
        for host in all(revision.as_str()) {
            hosts.insert(host, alone(revision));
        }
    }
    for (label, revision) in &traffic.labels {
        for host in all(&format!("{name}---{label}")) {
            hosts.insert(host, alone(revision));
        }
    }
    hosts
}
