//! `/cove/v1/scale/explain` and `/cove/v1/scale/decisions`: why a revision has as many replicas as it has.
//!
//! `explain` shows runs of decisions with their reasons in words; `decisions` gives each of them, in pages, to whoever
//! wants to replay them. Both read the recording; where nothing is recorded, `explain` shows what is in memory.
//!
//! **Invariant:** an answer holds at most [`DECISIONS_MAX`] decisions per revision and says when it left some out.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::StatusCode,
};
use cove_autoscaler::{RecordedRevision, RecordingQuery};
use cove_model::{ResourceId, RevisionKey, RevisionName};
use cove_scaling::{
    DecisionRecord,
    explain::{Explained, Explainer},
};
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::extensions::{Context, Failed, active_revisions, app_id, internal};

/// Decisions given when no limit is asked for, and at most, per revision.
const DECISIONS_DEFAULT: usize = 1000;
const DECISIONS_MAX: usize = 10_000;
/// Runs shown when nothing is asked for.
const RUNS_DEFAULT: usize = 32;
/// How far `explain` looks back without `from`.
const LOOK_BACK: SignedDuration = SignedDuration::from_hours(24);
/// Further back than this nothing explains a decision: windows are shorter.
const BEFORE_MAX: SignedDuration = SignedDuration::from_hours(24);

#[derive(Debug, Deserialize)]
pub(crate) struct ExplainQuery {
    app: String,
    /// One revision; without it every active one, and with a time every recorded one.
    revision: Option<String>,
    /// The decision in force at this instant.
    at: Option<String>,
    from: Option<String>,
    to: Option<String>,
    /// Runs, or decisions, at most.
    limit: Option<usize>,
}

impl ExplainQuery {
    fn instant(name: &str, text: Option<&String>) -> Result<Option<Timestamp>, Failed> {
        let Some(text) = text else { return Ok(None) };
        let refused = |_| {
            let message = format!("`{name}` is `{text}`; write a time such as `2026-05-01T12:04:30Z`");
            Failed(StatusCode::BAD_REQUEST, "InvalidTime", message)
        };
        text.parse().map(Some).map_err(refused)
    }

    fn revision(&self) -> Result<Option<RevisionName>, Failed> {
        let Some(name) = &self.revision else { return Ok(None) };
        let refused =
            |error: cove_model::InvalidName| Failed(StatusCode::BAD_REQUEST, "InvalidRevisionName", error.to_string());
        RevisionName::new(name.as_str()).map(Some).map_err(refused)
    }
}

/// `GET /scale/decisions`: every decision of `[from, to]`, oldest first; `isCut` says that more follow the last one.
pub(crate) async fn decisions(
    State(context): State<Arc<Context>>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Value>, Failed> {
    let app = app_id(&query.app)?;
    let read = RecordingQuery {
        app,
        revision: query.revision()?,
        from: ExplainQuery::instant("from", query.from.as_ref())?.unwrap_or(Timestamp::UNIX_EPOCH),
        to: ExplainQuery::instant("to", query.to.as_ref())?.unwrap_or(Timestamp::MAX),
        decisions_max: query.limit.unwrap_or(DECISIONS_DEFAULT).clamp(1, DECISIONS_MAX),
        newest: false,
    };
    let found = context.recording.read(read).await.map_err(internal)?;
    let value: Vec<Value> = found.iter().map(plain).collect();
    Ok(Json(json!({ "value": value })))
}

/// Decisions grouped by configuration, which is long and rarely changes.
fn plain(found: &RecordedRevision) -> Value {
    let mut spans: Vec<Value> = Vec::new();
    for decisions in found.decisions.chunk_by(|a, b| a.config == b.config) {
        let list: Vec<_> = decisions.iter().map(|record| &record.decision).collect();
        spans.push(json!({"config": &*decisions[0].config, "decisions": list}));
    }
    json!({"revision": found.revision.name, "spans": spans, "isCut": found.is_cut})
}

/// `GET /scale/explain`.
pub(crate) async fn explain(
    State(context): State<Arc<Context>>,
    Query(query): Query<ExplainQuery>,
) -> Result<Json<Value>, Failed> {
    let app = app_id(&query.app)?;
    let active = active_revisions(&context, &app)?;
    let asked = query.revision()?;
    let at = ExplainQuery::instant("at", query.at.as_ref())?;
    let from = ExplainQuery::instant("from", query.from.as_ref())?;
    let to = ExplainQuery::instant("to", query.to.as_ref())?;
    let shown_max = if from.is_some() { DECISIONS_DEFAULT } else { RUNS_DEFAULT };
    let limit = query.limit.unwrap_or(shown_max).clamp(1, DECISIONS_MAX);
    let has_time = at.or(from).or(to).is_some();
    let until = at.or(to).unwrap_or(Timestamp::MAX);
    let begin = from.unwrap_or_else(|| {
        let now = if until == Timestamp::MAX { context.mover.clock().now() } else { until };
        now.saturating_sub(LOOK_BACK).unwrap_or(Timestamp::MIN)
    });
    let read = RecordingQuery {
        app: app.clone(),
        revision: asked.clone(),
        from: begin.saturating_sub(BEFORE_MAX).unwrap_or(Timestamp::MIN),
        to: until,
        decisions_max: DECISIONS_MAX,
        newest: true,
    };
    let recorded = context.recording.read(read).await.map_err(internal)?;
    let mut keys: Vec<RevisionKey> = active.clone();
    keys.retain(|key| asked.as_ref().is_none_or(|name| *name == key.name));
    if has_time || asked.is_some() {
        let also = recorded.iter().map(|found| found.revision.clone()).filter(|key| !active.contains(key));
        keys.extend(also);
    }
    let mut value = Vec::new();
    for key in keys {
        let found = recorded.iter().find(|found| found.revision == key);
        let runs = match found {
            Some(found) => recorded_runs(&found.decisions, begin, at.is_some(), limit),
            None if !has_time => kept_runs(&context, &key),
            None => Vec::new(),
        };
        let is_cut = found.is_some_and(|found| {
            found.is_cut && found.decisions.first().is_some_and(|first| first.decision.at > begin)
        });
        value.extend(shown(&context, &key, runs, is_cut));
    }
    if value.is_empty() && asked.is_some() {
        return Err(nothing(&app, asked.as_ref()));
    }
    Ok(Json(json!({ "value": value })))
}

fn nothing(app: &ResourceId, revision: Option<&RevisionName>) -> Failed {
    let revision = revision.map(|name| format!(" of revision `{name}`")).unwrap_or_default();
    let message = format!(
        "no decision{revision} of `{}` is known at that time; they are kept for the days that `autoscaler.recording` says",
        app.name()
    );
    Failed(StatusCode::NOT_FOUND, "NoDecisionFound", message)
}

fn shown(context: &Context, key: &RevisionKey, runs: Vec<Value>, is_cut: bool) -> Option<Value> {
    let mut value = json!({"revision": key.name, "isActive": false, "decisions": runs, "isCut": is_cut});
    match context.autoscaler.scale_of(key) {
        Some(scale) => {
            value["isActive"] = true.into();
            value["current"] = scale.current.into();
            value["lastActive"] = json!(scale.last_active);
            value["nextTick"] = json!(scale.next_tick);
            value["limits"] = json!({"min": scale.config.min_replicas, "max": scale.config.max_replicas});
        }
        None if runs_are_empty(&value) => return None,
        None => {}
    }
    Some(value)
}

fn runs_are_empty(value: &Value) -> bool {
    value["decisions"].as_array().is_none_or(Vec::is_empty)
}

/// Runs of equal decisions since `begin`, or the newest decision alone.
fn recorded_runs(decisions: &[DecisionRecord], begin: Timestamp, only_last: bool, limit: usize) -> Vec<Value> {
    let mut explainer = Explainer::default();
    let mut runs: Vec<(Explained, u32, Timestamp)> = Vec::new();
    for record in decisions {
        let explained = explainer.explain(record);
        let decision = &record.decision;
        if decision.at < begin && !only_last {
            continue;
        }
        match runs.last_mut() {
            Some((last, times, _)) if repeats(&last.record, record) => {
                *last = explained;
                *times = times.saturating_add(1);
            }
            _ => runs.push((explained, 1, decision.at)),
        }
    }
    let limit = if only_last { 1 } else { limit };
    let skipped = runs.len().saturating_sub(limit);
    runs.iter().skip(skipped).map(|(explained, times, since)| run(explained, *times, *since)).collect()
}

fn repeats(last: &DecisionRecord, next: &DecisionRecord) -> bool {
    let (last, next) = (&last.decision, &next.decision);
    !next.changes() && last.new == next.new && last.reason == next.reason
}

/// What is in memory: all there is where nothing is recorded.
fn kept_runs(context: &Context, key: &RevisionKey) -> Vec<Value> {
    let Some(scale) = context.autoscaler.scale_of(key) else { return Vec::new() };
    let mut explainer = Explainer::default();
    scale.decisions.iter().map(|kept| run(&explainer.explain(&kept.record), kept.times, kept.since)).collect()
}

fn run(explained: &Explained, times: u32, since: Timestamp) -> Value {
    json!({
        "since": since,
        "at": explained.record.decision.at,
        "times": times,
        "record": explained.record,
        "words": explained.words,
        "peakAt": explained.peak_at,
        "windowUntil": explained.window_until,
        "cooldownUntil": explained.cooldown_until,
    })
}
