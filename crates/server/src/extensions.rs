//! What only Cove has, under `/cove/v1`: wakes, executed plans, the access log, scaling explained, the virtual clock,
//! images, the key of secrets.
//!
//! Answers are JSON objects with a `value` list, errors have ARM's envelope, as on the rest of the API.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use camino::Utf8PathBuf;
use cove_images::ImageStore;
use cove_model::{ResourceId, RevisionKey};
use cove_monitor::{HttpLog, Monitor};
use cove_runtime::Runtime;
use cove_store::Store;
use jiff::SignedDuration;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    virtual_clock::{MoveError, Mover},
};

/// What the extensions read.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) store: Store,
    pub(crate) monitor: Monitor,
    pub(crate) autoscaler: cove_autoscaler::Handle,
    pub(crate) recording: cove_autoscaler::Recording,
    pub(crate) jobs: crate::job_triggers::JobCell,
    pub(crate) images: ImageStore,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) mover: Arc<Mover>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) http_log: HttpLog,
    /// Streams end with it.
    pub(crate) shutdown: CancellationToken,
}

/// Wakes given when no limit is asked for, and at most.
const WAKES_DEFAULT: u32 = 100;
const WAKES_MAX: u32 = 10_000;

pub(crate) fn router(context: Context) -> Router {
    let reach = crate::reach::router(Arc::clone(&context.runtime));
    Router::new()
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .route("/http-logs", get(crate::http_logs::show))
        .route("/ingress/stats", get(ingress_stats))
        .route("/wakes", get(wakes))
        .route("/plans", get(plans))
        .route("/scale/explain", get(crate::explain::explain))
        .route("/jobs/explain", get(crate::job_triggers::explain))
        .route("/scale/decisions", get(crate::explain::decisions))
        .route("/scale/zero", post(scale_to_zero))
        .route("/clock", get(clock))
        .route("/clock/advance", post(advance))
        .route("/images", get(images))
        .route("/images/import", post(import))
        .route("/secrets/rotate", post(rotate_secrets))
        .route("/sessions/usage", get(session_usage))
        .with_state(Arc::new(context))
        .merge(reach)
}

/// What sessions of a pool took.
async fn session_usage(
    State(context): State<Arc<Context>>,
    Query(query): Query<crate::sessions::usage::UsageQuery>,
) -> Result<Json<Value>, Failed> {
    crate::sessions::usage::show(&context.store, &query, context.mover.clock().now())
}

/// A new key for the secrets at rest; the answer is the number of values that were sealed anew.
async fn rotate_secrets(State(context): State<Arc<Context>>) -> Result<Json<Value>, Failed> {
    let rotated = context.store.rotate_secrets().await.map_err(internal)?;
    tracing::info!(rotated, "the secrets are sealed with a new key");
    Ok(Json(json!({ "rotated": rotated })))
}

/// An error in ARM's envelope.
pub(crate) struct Failed(pub(crate) StatusCode, pub(crate) &'static str, pub(crate) String);

impl IntoResponse for Failed {
    fn into_response(self) -> Response {
        let Self(status, code, message) = self;
        (status, Json(json!({"error": {"code": code, "message": message}}))).into_response()
    }
}

pub(crate) fn internal(error: impl std::fmt::Display) -> Failed {
    tracing::error!(%error, "an extension could not answer");
    Failed(
        StatusCode::INTERNAL_SERVER_ERROR,
        "InternalServerError",
        "the server could not answer; its log says why".into(),
    )
}

pub(crate) fn app_id(text: &str) -> Result<ResourceId, Failed> {
    ResourceId::parse(text).map_err(|error| Failed(StatusCode::BAD_REQUEST, "InvalidResourceId", error.to_string()))
}

#[derive(Deserialize)]
struct AppQuery {
    app: String,
}

#[derive(Deserialize)]
struct WakesQuery {
    app: Option<String>,
    limit: Option<u32>,
}

async fn health(State(context): State<Arc<Context>>) -> Json<Value> {
    let capabilities = context.runtime.capabilities();
    let seen = context.runtime.observations().snapshot();
    let count = |phase| seen.iter().flat_map(|(_, all)| all.iter()).filter(|replica| replica.phase == phase).count();
    let (slots, frozen) = (count(cove_model::ReplicaPhase::Prepared), count(cove_model::ReplicaPhase::Frozen));
    Json(json!({
        "status": "ok",
        "version": env!("CARGO_PKG_VERSION"),
        "now": context.mover.clock().now(),
        "virtualClock": context.mover.clock().is_virtual(),
        "slots": slots,
        "frozen": frozen,
        "runtime": capabilities,
    }))
}

async fn metrics(State(context): State<Arc<Context>>) -> Response {
    const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(CONTENT_TYPE, OPEN_METRICS)], context.metrics.text()).into_response()
}

#[derive(Deserialize)]
struct StatsQuery {
    app: Option<String>,
}

async fn ingress_stats(
    State(context): State<Arc<Context>>,
    Query(query): Query<StatsQuery>,
) -> Result<Json<Value>, Failed> {
    let app = query.app.as_deref().map(app_id).transpose()?;
    Ok(Json(context.metrics.ingress_stats(app.as_ref())))
}

async fn wakes(State(context): State<Arc<Context>>, Query(query): Query<WakesQuery>) -> Result<Json<Value>, Failed> {
    let limit = query.limit.unwrap_or(WAKES_DEFAULT).min(WAKES_MAX);
    let rows = context.monitor.wakes(query.app, limit).await.map_err(internal)?;
    let value: Vec<Value> = rows
        .into_iter()
        .map(|row| {
            let mut value = serde_json::to_value(&row.wake).unwrap_or_default();
            value["app"] = row.app.into();
            value["revision"] = row.wake.revision.name.as_str().into();
            value
        })
        .collect();
    Ok(Json(json!({"value": value})))
}

async fn plans(State(context): State<Arc<Context>>, Query(query): Query<AppQuery>) -> Result<Json<Value>, Failed> {
    let plans = context.store.plans(&app_id(&query.app)?).map_err(internal)?;
    let value: Vec<Value> = plans
        .into_iter()
        .map(|plan| json!({"at": plan.at, "generation": plan.generation, "actions": plan.actions}))
        .collect();
    Ok(Json(json!({"value": value})))
}

/// The active revisions of an app.
pub(crate) fn active_revisions(context: &Context, app: &ResourceId) -> Result<Vec<RevisionKey>, Failed> {
    if context.store.resource(app).map_err(internal)?.is_none() {
        return Err(Failed(StatusCode::NOT_FOUND, "ResourceNotFound", format!("the app `{app}` was not found")));
    }
    let rows = context.store.revisions(app).map_err(internal)?;
    Ok(rows.into_iter().filter(|row| row.revision.is_active).map(|row| row.revision.key()).collect())
}

async fn scale_to_zero(
    State(context): State<Arc<Context>>,
    Query(query): Query<AppQuery>,
) -> Result<Json<Value>, Failed> {
    let mut value = Vec::new();
    for revision in active_revisions(&context, &app_id(&query.app)?)? {
        let is_done = context.autoscaler.end_cooldown(&revision);
        value.push(json!({"revision": revision.name, "isAtZero": is_done}));
    }
    Ok(Json(json!({"value": value})))
}

async fn clock(State(context): State<Arc<Context>>) -> Json<Value> {
    Json(context.mover.show())
}

#[derive(Deserialize)]
struct Advance {
    /// `5m`, `90s`, …; this or `to`.
    by: Option<String>,
    /// An instant, RFC 3339.
    to: Option<String>,
}

async fn advance(State(context): State<Arc<Context>>, Json(advance): Json<Advance>) -> Result<Response, Failed> {
    let refused = |code, message: String| Err(Failed(StatusCode::BAD_REQUEST, code, message));
    let moved = match (&advance.by, &advance.to) {
        (Some(by), None) => {
            let Some(by) = cove_base::parse_duration(by).and_then(|by| SignedDuration::try_from(by).ok()) else {
                let message = format!("`{by}` is not a duration; write `90s`, `5m` or `2h`");
                return Err(Failed(StatusCode::BAD_REQUEST, "InvalidDuration", message));
            };
            context.mover.advance(by).await
        }
        (None, Some(to)) => {
            let Ok(to) = to.parse() else {
                return refused("InvalidInstant", format!("`{to}` is not an instant; write `2026-01-31T08:00:00Z`"));
            };
            context.mover.advance_to(to).await
        }
        (Some(_), Some(_)) | (None, None) => {
            return refused("InvalidRequestContent", "give either `by`, a duration, or `to`, an instant".to_owned());
        }
    };
    moved.map(|moved| Json(moved).into_response()).map_err(not_moved)
}

fn not_moved(error: MoveError) -> Failed {
    let (status, code) = match error {
        MoveError::Real => (StatusCode::CONFLICT, "ClockIsReal"),
        MoveError::Moving => (StatusCode::CONFLICT, "ClockIsMoving"),
        MoveError::Past { .. } => (StatusCode::BAD_REQUEST, "InvalidInstant"),
        MoveError::Keep(_) => return internal(error),
    };
    Failed(status, code, error.to_string())
}

async fn images(State(context): State<Arc<Context>>) -> Json<Value> {
    let value: Vec<Value> = context
        .images
        .list()
        .into_iter()
        .map(|image| {
            json!({
                "name": image.name,
                "digest": image.digest.as_str(),
                "sizeBytes": image.size_bytes,
                "updatedAt": image.updated_at,
            })
        })
        .collect();
    Json(json!({"value": value}))
}

#[derive(Deserialize)]
struct Import {
    /// Path on the server's machine: an OCI layout or a `docker save` archive.
    path: Utf8PathBuf,
    /// Name to give, when the archive has none or another is wanted.
    name: Option<String>,
}

async fn import(State(context): State<Arc<Context>>, Json(import): Json<Import>) -> Result<Json<Value>, Failed> {
    let refused = |message: String| Failed(StatusCode::BAD_REQUEST, "InvalidImage", message);
    let name = import
        .name
        .map(|name| name.parse())
        .transpose()
        .map_err(|error: cove_images::InvalidImageRef| refused(error.to_string()))?;
    let names = context.images.import(&import.path, name.as_ref()).await.map_err(|error| {
        let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
        refused(format!("{error}{cause}"))
    })?;
    Ok(Json(json!({"value": names.iter().map(ToString::to_string).collect::<Vec<_>>()})))
}
