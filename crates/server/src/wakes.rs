//! Puts the record of a wake together: what the ingress saw, and when the driver finished each phase.

use std::sync::Arc;

use cove_model::{ReplicaPhases, WakeRecord};
use cove_monitor::Monitor;
use cove_runtime::Runtime;
use cove_traffic::WakeObservation;
use jiff::Timestamp;
use tokio::sync::mpsc;

use crate::metrics::Metrics;

/// Keeps every wake that the ingress reports; ends with the ingress.
pub(crate) async fn keep(
    mut wakes: mpsc::Receiver<WakeObservation>,
    runtime: Arc<dyn Runtime>,
    monitor: Monitor,
    metrics: Arc<Metrics>,
) {
    while let Some(wake) = wakes.recv().await {
        let phases = runtime.phases(&wake.replica).unwrap_or_default();
        let record = record(&wake, &phases);
        metrics.wake(&record);
        if let Err(error) = monitor.record_wake(wake.revision.app.as_str(), record).await {
            tracing::error!(error = &error as &dyn std::error::Error, "a wake was not recorded");
        }
    }
}

/// Offsets from the first held request; phases that were over before it are `None`: the slot had them.
fn record(wake: &WakeObservation, phases: &ReplicaPhases) -> WakeRecord {
    let since = |at: Option<Timestamp>| {
        let passed = at?.duration_since(wake.accepted_at);
        u64::try_from(passed.as_micros()).ok()
    };
    let root_us = since(phases.root_at);
    let thawed_us = since(phases.thawed_at);
    WakeRecord {
        revision: wake.revision.clone(),
        replica: wake.replica.clone(),
        from_slot: phases.root_at.is_some() && root_us.is_none() && thawed_us.is_none(),
        thawed_us,
        accepted_at: wake.accepted_at,
        planned_us: since(phases.asked_at),
        network_us: since(phases.network_at),
        root_us,
        started_us: since(phases.started_at),
        listening_us: since(phases.listening_at),
        ready_us: since(phases.ready_at),
        first_byte_us: since(Some(wake.first_byte_at)),
    }
}
