//! The autoscaler and the triggers of jobs, wired.
//!
//! **Invariant:** both read rules through the same sources, so what is asked for an app and a job shares connections.

use std::sync::Arc;

use cove_autoscaler::RuleSources;
use cove_ingress::IngressHandle;

use super::{ESSENTIAL, HELPER, Opened, Options, Shared};
use crate::{job_triggers, ports::StoredCounts, rules};

/// What rules read.
pub(super) fn rule_sources(opened: &Opened, shared: &Shared, roots: cove_scalers::Roots) -> RuleSources {
    rules::sources(rules::Parts {
        clock: shared.clock.clone(),
        store: opened.store.clone(),
        runtime: opened.runtime.clone(),
        routes: shared.boards.routes.subscribe(),
        endpoints: shared.boards.endpoints.clone(),
        gateway: opened.network.gateway(),
        roots,
        plane: Arc::clone(&shared.plane),
        origin: shared.origin.clone(),
    })
}

pub(super) fn make(
    options: &Options,
    opened: &Opened,
    shared: &Shared,
    ingress: &IngressHandle,
    controller: &cove_controller::Handle,
    rules: RuleSources,
) -> cove_autoscaler::Service {
    let deps = cove_autoscaler::Deps {
        clock: shared.clock.clone(),
        revisions: shared.boards.scaled.clone(),
        load: Arc::new({
            let (ingress, predecessors) = (ingress.clone(), shared.predecessors.clone());
            move |revision| predecessors.with(revision, ingress.load(revision))
        }),
        existing: Arc::new({
            let controller = controller.clone();
            move |revision| controller.existing(revision)
        }),
        rules,
        desired: shared.boards.desired.clone(),
        counts: Some(Arc::new(StoredCounts {
            store: opened.store.clone(),
            runtime: tokio::runtime::Handle::current(),
        })),
        decisions: Some(shared.decisions.clone()),
        events: opened.monitor.events(),
    };
    cove_autoscaler::Service::new(options.config.autoscaler.clone(), deps)
}

/// Schedules and polls of jobs begin.
pub(super) fn start_job_triggers(options: &Options, opened: &Opened, shared: &Shared, rules: RuleSources) {
    let (config, jobs) = (&options.config.autoscaler, shared.boards.jobs.clone());
    let (service, follow) =
        job_triggers::make((&opened.store, &shared.clock), jobs, rules, config, opened.monitor.events());
    let _first = shared.jobs.set(service.handle());
    shared.tasks.spawn(HELPER, follow);
    shared.tasks.spawn(ESSENTIAL, service.run(shared.tasks.shutdown_token()));
}
