//! Answers: JSON with a status, and what becomes of the errors of this crate and of the store.
//!
//! **Invariant:** a caller never reads the inside of the server in an error; the log has it, under the request id.

use axum::{body::Body, response::Response};
use cove_arm::ArmError;
use cove_store::StoreError;
use http::{HeaderName, HeaderValue, StatusCode, header};
use serde_json::Value;

/// What a handler gives.
pub(crate) type Answer = Result<Response, Refusal>;

/// Why a handler does not answer as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    /// What the caller is told.
    #[error(transparent)]
    Arm(#[from] ArmError),
    /// What the store said.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A stored value cannot be read back, or something as bad.
    #[error("{0}")]
    Broken(String),
}

impl Refusal {
    /// The error for the caller; what only the operator may read is logged here, once.
    pub(crate) fn into_arm(self, request_id: &str) -> ArmError {
        match self {
            Self::Arm(error) => error,
            Self::Store(error) => from_store(error, request_id),
            Self::Broken(what) => {
                tracing::error!(request_id, error = %what, "request failed");
                ArmError::internal(request_id)
            }
        }
    }
}

fn from_store(error: StoreError, request_id: &str) -> ArmError {
    match error {
        StoreError::Conflict { id } => ArmError::conflict(
            "ConflictingConcurrentWriteNotAllowed",
            format!("'{id}' is being changed by several requests at once; try again."),
        ),
        StoreError::NotFound { id } => ArmError::new(404, "ResourceNotFound", format!("'{id}' was not found.")),
        StoreError::RevisionExists { name } => ArmError::revision_exists(&name),
        StoreError::ExecutionExists { name } => ArmError::conflict(
            "ConflictingConcurrentWriteNotAllowed",
            format!("An execution '{name}' is there already; start the job again."),
        ),
        StoreError::TooManyExecutions { job, max } => ArmError::too_many_requests(format!(
            "The job '{job}' has {max} executions that have not ended, which is the most; wait until some have, or stop them."
        )),
        StoreError::Closed => ArmError::new(503, "ServiceUnavailable", "The server is shutting down; try again later."),
        error @ (StoreError::InUse { .. }
        | StoreError::TooNew { .. }
        | StoreError::SecretsKeyMissing { .. }
        | StoreError::SecretsKeyReadable { .. }
        | StoreError::SecretsKeyDamaged { .. }
        | StoreError::SecretsKeyOther { .. }
        | StoreError::SecretDamaged { .. }
        | StoreError::NoRandom
        | StoreError::Sqlite(_)
        | StoreError::Damaged(_)
        | StoreError::Io { .. }) => {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::error!(request_id, %error, cause, "request failed in the store");
            if error.is_disk_full() {
                let message = "The disk of the server's data directory is full, and nothing was changed; free some space there, then try again.";
                return ArmError::new(507, "InsufficientStorage", message);
            }
            ArmError::internal(request_id)
        }
    }
}

/// A JSON answer.
pub(crate) fn json(status: u16, value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let json = HeaderValue::from_static("application/json; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// An answer without a body.
pub(crate) fn empty(status: u16) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// An error in ARM's envelope, with the headers that belong to its status.
pub(crate) fn error(error: &ArmError, retry_after_secs: u32) -> Response {
    let mut response = json(error.status, &error.to_json());
    let headers = response.headers_mut();
    if let Ok(code) = HeaderValue::from_str(&error.code) {
        headers.insert(HeaderName::from_static("x-ms-error-code"), code);
    }
    match error.status {
        401 => {
            let challenge = format!("Bearer error=\"invalid_token\", error_description=\"{}\"", error.code);
            if let Ok(challenge) = HeaderValue::from_str(&challenge) {
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
        }
        429 | 503 => {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_secs.max(1)));
        }
        _ => {}
    }
    response
}

/// Adds a header whose value this crate made.
pub(crate) fn with_header(mut response: Response, name: &'static str, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(HeaderName::from_static(name), value);
    }
    response
}

/// The same, with the resource's etag.
pub(crate) fn with_etag(response: Response, etag: &str) -> Response {
    with_header(response, "etag", etag)
}
