//! The access log: from the ingress to its files, and from there to `GET /cove/v1/http-logs`.

use std::{convert::Infallible, path::Path, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    extract::{Query, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use cove_ingress::{AccessLogConfig, IngressHandle};
use cove_monitor::{HttpLog, HttpLogConfig, HttpLogService, HttpQuery, MonitorError, http_columns};
use futures_util::StreamExt;
use serde::Deserialize;
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::LogsConfig,
    extensions::{Context, Failed, app_id},
};

/// Longest wait for the last rows.
const FINISH_LIMIT: Duration = Duration::from_secs(5);

/// Readers at once.
const READERS_MAX: usize = 64;
static READERS: Semaphore = Semaphore::const_new(READERS_MAX);

/// Rows given when no number is asked for, and at most.
const TAIL_DEFAULT: u32 = 20;
const TAIL_MAX: u32 = 10_000;

/// Opens the files in the data directory.
///
/// # Errors
/// When their directory cannot be made.
pub(crate) fn open(data_dir: &Path, config: &LogsConfig) -> Result<(HttpLog, HttpLogService), MonitorError> {
    HttpLog::open(HttpLogConfig {
        dir: data_dir.join("logs/http"),
        disk_max_bytes: config.http_disk_max.0,
        retention_days: config.retention_days,
    })
}

/// Writes the ingress's rows. It is none of the server's tasks: it must outlive the ingress, which outlives them when another
/// server takes over.
#[derive(Debug)]
pub(crate) struct Keeper {
    stop: CancellationToken,
    task: JoinHandle<Result<(), MonitorError>>,
}

impl Keeper {
    /// Begins with the requests that end from now on.
    pub(crate) fn start(service: HttpLogService, ingress: &IngressHandle) -> Self {
        let stop = CancellationToken::new();
        // nobody else takes them; an empty queue is as good as none
        let rows = ingress.access_log().unwrap_or_else(|| mpsc::channel(1).1);
        Self { task: tokio::spawn(service.run(rows, stop.clone())), stop }
    }

    /// Writes what has come, when the ingress has ended.
    pub(crate) async fn finish(self) {
        self.stop.cancel();
        match tokio::time::timeout(FINISH_LIMIT, self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(error = &error as &dyn std::error::Error, "the access log failed"),
            Ok(Err(error)) => tracing::error!(%error, "the access log failed"),
            Err(_late) => tracing::warn!("the last rows of the access log were not written in time"),
        }
    }
}

/// `[logs]` as the ingress takes it.
pub(crate) fn settings(config: &LogsConfig) -> AccessLogConfig {
    AccessLogConfig {
        which: config.http,
        sample_percent: config.http_sample_percent,
        rows_per_second_max: config.http_rows_per_second_max,
        has_query: config.http_query,
    }
}

/// The parameters of the log streams of the API, and two more.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Params {
    app: Option<String>,
    revision: Option<String>,
    only_errors: Option<bool>,
    follow: Option<bool>,
    tail_lines: Option<u32>,
}

/// Rows as JSON objects, one a line.
pub(crate) async fn show(
    State(context): State<Arc<Context>>,
    Query(params): Query<Params>,
) -> Result<Response, Failed> {
    let app = params.app.as_deref().map(app_id).transpose()?;
    let Ok(permit) = READERS.try_acquire() else {
        let message = format!("{READERS_MAX} readers of access logs are open already; close one");
        return Err(Failed(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message));
    };
    let query = HttpQuery {
        app: app.map(|app| app.to_string()),
        revision: params.revision,
        only_errors: params.only_errors.unwrap_or(false),
        tail: params.tail_lines.unwrap_or(TAIL_DEFAULT).min(TAIL_MAX),
        follow: params.follow.unwrap_or(false),
    };
    let rows = context.http_log.rows(&query).take_until(context.shutdown.clone().cancelled_owned());
    let lines = rows.scan((), move |(), row| {
        let _until_the_end = &permit;
        // a reader that failed once would fail for ever: its stream ends
        let row = row
            .inspect_err(|error| {
                tracing::error!(error = error as &dyn std::error::Error, "the access log could not be read");
            })
            .ok();
        std::future::ready(row.map(|row| Ok::<_, Infallible>(Bytes::from(format!("{}\n", http_columns(&row))))))
    });
    Ok(([(CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}
