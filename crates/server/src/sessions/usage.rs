//! What sessions took, shown: `GET /cove/v1/sessions/usage?pool=ID[&limit=N]`. Answers for pools that are gone too.
//!
//! **Invariant:** no identifier is shown: a session is told by its GUID.

use axum::Json;
use cove_model::ResourceId;
use cove_store::{SessionUse, SessionUseSum, Store};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::extensions::{Failed, app_id, internal};

/// Sessions that are shown when no limit is asked for, and at most.
const LIMIT_DEFAULT: u32 = 100;
const LIMIT_MAX: u32 = 10_000;

#[derive(Deserialize)]
pub(crate) struct UsageQuery {
    pool: String,
    limit: Option<u32>,
}

/// The answer.
pub(crate) fn show(store: &Store, query: &UsageQuery, now: Timestamp) -> Result<Json<Value>, Failed> {
    let pool: ResourceId = app_id(&query.pool)?;
    let limit = query.limit.unwrap_or(LIMIT_DEFAULT).min(LIMIT_MAX);
    let sum = store.session_use_sum(&pool, now).map_err(internal)?;
    let one_by_one = store.session_uses(&pool, limit).map_err(internal)?;
    let sessions: Vec<Value> = one_by_one.iter().map(|one| shown(one, now)).collect();
    Ok(Json(json!({ "id": pool.to_string(), "at": now.to_string(), "total": total(&sum), "value": sessions })))
}

fn seconds(millis: u64) -> f64 {
    // exact to the millisecond up to 2^53 of them
    (millis as f64) / 1000.0
}

fn micros(micros: u64) -> f64 {
    (micros as f64) / 1e6
}

fn gib_seconds(kib_ms: u64) -> f64 {
    (kib_ms as f64) / f64::from(1 << 20) / 1000.0
}

fn total(sum: &SessionUseSum) -> Value {
    json!({
        "sessions": sum.sessions,
        "allocatedSessions": sum.allocated,
        "readySeconds": seconds(sum.ready_ms),
        "allocatedSeconds": seconds(sum.allocated_ms),
        "cpuSeconds": micros(sum.cpu_us),
        "coreSeconds": micros(sum.core_us),
        "memoryGiBSeconds": gib_seconds(sum.memory_kib_ms),
    })
}

fn shown(one: &SessionUse, now: Timestamp) -> Value {
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    json!({
        "sessionId": one.guid,
        "replica": one.replica.as_str(),
        "cores": f64::from(one.cpu.0) / 1000.0,
        "memoryGiB": gib_seconds((one.memory.0 >> 10).saturating_mul(1000)),
        "createdAt": time(Some(one.created_at)),
        "readyAt": time(one.ready_at),
        "allocatedAt": time(one.allocated_at),
        "endedAt": time(one.ended_at),
        "endReason": one.reason,
        "readySeconds": seconds(one.ready_ms(now)),
        "allocatedSeconds": seconds(one.allocated_ms(now)),
        "cpuSeconds": micros(one.cpu_us),
        "coreSeconds": micros(one.core_us(now)),
        "memoryGiBSeconds": gib_seconds(one.memory_kib_ms(now)),
    })
}
