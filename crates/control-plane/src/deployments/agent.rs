//! How a deployment acts: requests of this server to itself, and the wait for the operations that they begin.
//!
//! **Invariant:** every wait ends: by the operation, by a cancel, by a stop of the server, or at [`OPERATION_MAX`].

use std::time::Duration;

use bytes::Bytes;
use cove_arm::ArmError;
use cove_model::{RevisionKey, RevisionProvisioning, RevisionStatus};
use cove_store::{OperationRow, OperationStatus, StoreError};
use cove_template::{Evaluated, Known, LookupError, Need, TemplateError};
use http::{HeaderMap, HeaderValue, Method, header};
use http_body_util::{BodyExt, Limited};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{KIND, request::of_mistakes};
use crate::{
    answer::Refusal,
    auth::Caller,
    call::Call,
    control_plane::ControlPlane,
    front::{self, OwnRequest},
};

/// Longest that one resource may take.
const OPERATION_MAX: Duration = Duration::from_secs(3600);
/// Rounds of asking for what an expression needs; each answers at least one need that was not known before.
const ROUNDS_MAX: usize = 256;
/// Largest answer that is read.
const ANSWER_MAX: usize = 32 * 1024 * 1024;
/// Where a reference names no version.
const API_VERSION: &str = "2025-07-01";

/// Acts on a server for a caller.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) plane: ControlPlane,
    pub(crate) caller: Caller,
    pub(crate) origin: String,
    /// `x-ms-correlation-request-id` of all that it does.
    pub(crate) correlation: String,
}

/// An answer without its wire.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    /// Operation that was begun.
    pub(crate) operation: Option<String>,
    pub(crate) body: Value,
}

/// Why something is not done.
#[derive(Debug)]
pub(crate) enum Stopped {
    /// It failed.
    Failed(ArmError),
    /// The deployment was canceled.
    Canceled,
    /// The server stops; the next start ends the deployment.
    Shutdown,
}

impl From<ArmError> for Stopped {
    fn from(error: ArmError) -> Self {
        Self::Failed(error)
    }
}

impl Agent {
    /// Acts as the caller of a request.
    pub(crate) fn of(plane: &ControlPlane, call: &Call) -> Self {
        let given = call.header("x-ms-correlation-request-id").filter(|id| id.len() <= 64);
        Self {
            plane: plane.clone(),
            caller: call.caller.clone(),
            origin: call.origin.clone(),
            correlation: given.map_or_else(crate::control_plane::new_id, str::to_owned),
        }
    }

    /// The same on another stage.
    pub(crate) fn on(&self, plane: &ControlPlane) -> Self {
        Self { plane: plane.clone(), ..self.clone() }
    }

    /// Sends a request to this server.
    ///
    /// # Errors
    /// What a client would have read.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        api_version: &str,
        body: Option<String>,
    ) -> Result<Reply, ArmError> {
        let mut headers = HeaderMap::new();
        if let Ok(value) = HeaderValue::from_str(&self.correlation) {
            headers.insert("x-ms-correlation-request-id", value);
        }
        let api_version = if api_version.is_empty() { API_VERSION } else { api_version };
        let request = OwnRequest {
            method,
            path,
            api_version,
            body: body.map_or_else(Bytes::new, Bytes::from),
            headers,
            origin: &self.origin,
            caller: &self.caller,
        };
        let response = front::dispatch(&self.plane, request).await?;
        let status = response.status().as_u16();
        let operation = begun(response.headers()).filter(|_| status < 300);
        let bytes =
            Limited::new(response.into_body(), ANSWER_MAX).collect().await.map(http_body_util::Collected::to_bytes);
        let bytes =
            bytes.map_err(|_| ArmError::new(500, "InternalServerError", "An answer was too large to be read."))?;
        let body: Value =
            if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap_or(Value::Null) };
        if status >= 400 {
            return Err(error_of(status, &body));
        }
        Ok(Reply { status, operation, body })
    }

    /// Waits for the end of an operation of this server.
    ///
    /// # Errors
    /// Its failure; a cancel; a stop of the server.
    pub(crate) async fn wait(&self, operation: &str, cancel: &CancellationToken) -> Result<OperationRow, Stopped> {
        let mut changes = self.plane.store().changes();
        let deadline = self.plane.clock().sleep(OPERATION_MAX);
        tokio::pin!(deadline);
        loop {
            let row = self.operation(operation)?;
            match row.status {
                OperationStatus::Succeeded => return Ok(row),
                OperationStatus::Failed | OperationStatus::Canceled => return Err(self.failure(&row).into()),
                OperationStatus::InProgress => {}
            }
            if self.plane.is_rehearsal() && !is_deployment(&row) {
                self.pretend(&row).await.map_err(|error| self.told(error))?;
                continue;
            }
            loop {
                tokio::select! {
                    changed = changes.next() => if changed.contains(&row.resource) { break },
                    () = cancel.cancelled() => return Err(Stopped::Canceled),
                    () = self.plane.shutdown().cancelled() => return Err(Stopped::Shutdown),
                    () = &mut deadline => {
                        let message = format!("The resource did not finish within {} minutes.", OPERATION_MAX.as_secs() / 60);
                        return Err(ArmError::new(504, "DeploymentTimedOut", message).at(row.resource.as_str()).into());
                    }
                }
            }
        }
    }

    fn operation(&self, id: &str) -> Result<OperationRow, Stopped> {
        let found = self.plane.store().operation(id).map_err(|error| self.told(error))?;
        Ok(found.ok_or_else(|| ArmError::operation_not_found(id))?)
    }

    fn told(&self, error: impl Into<Refusal>) -> ArmError {
        error.into().into_arm(&self.correlation)
    }

    /// No controller works on a rehearsal: what it would bring about is taken for done.
    async fn pretend(&self, operation: &OperationRow) -> Result<(), StoreError> {
        let (store, now) = (self.plane.store(), self.plane.clock().now());
        let row = store.resource(&operation.resource)?.filter(|_| operation.kind != "delete");
        let Some(row) = row else {
            return store.remove(operation.resource.clone(), now).await.map(drop);
        };
        if let Some(newest) = store.revisions(&row.id)?.pop() {
            let status = RevisionStatus {
                provisioning: RevisionProvisioning::Provisioned,
                ready_at: newest.status.ready_at.or(Some(now)),
                ..newest.status
            };
            let key = RevisionKey { app: row.id.clone(), name: newest.revision.name };
            store.set_revision_statuses(vec![(key, status)]).await?;
        }
        store.finish(row.id, row.generation, None, now).await
    }

    fn failure(&self, operation: &OperationRow) -> ArmError {
        if is_deployment(operation)
            && let Ok(Some(row)) = self.plane.store().resource(&operation.resource)
            && let Some(error) = super::record::Record::of(&row).ok().and_then(|record| record.error)
        {
            return error_of(409, &serde_json::json!({ "error": error }));
        }
        match &operation.failure {
            Some(failure) => ArmError::new(409, &failure.code, failure.message.clone()),
            None => ArmError::new(409, "OperationCanceled", "The operation was canceled or superseded by another one."),
        }
    }

    /// Evaluates with as many rounds of asking this server as the expressions need.
    ///
    /// # Errors
    /// What is wrong with the expressions.
    pub(crate) async fn evaluate(
        &self,
        evaluate: impl Fn(&Known) -> Result<Evaluated, Vec<TemplateError>> + Clone + Send + 'static,
    ) -> Result<Value, ArmError> {
        let mut known = Known::new();
        for _ in 0..ROUNDS_MAX {
            let (work, mine) = (evaluate.clone(), known);
            let ended = tokio::task::spawn_blocking(move || (work(&mine), mine)).await;
            let (evaluated, mine) =
                ended.map_err(|error| self.told(Refusal::Broken(format!("an evaluation ended early: {error}"))))?;
            known = mine;
            match evaluated.map_err(|mistakes| of_mistakes(&mistakes))? {
                Evaluated::Ready(value) => return Ok(value),
                Evaluated::Needs(needs) => {
                    for need in needs {
                        let answer = self.look_up(&need).await;
                        known.insert(need, answer);
                    }
                }
            }
        }
        let message = format!("The expressions ask for more than {ROUNDS_MAX} rounds of references.");
        Err(ArmError::new(400, "InvalidTemplate", message))
    }

    async fn look_up(&self, need: &Need) -> Result<Value, LookupError> {
        let reply = match need {
            Need::Reference { id, api_version } => {
                self.send(Method::GET, id, api_version.as_deref().unwrap_or(API_VERSION), None).await
            }
            Need::List { function, id, api_version, body } => {
                self.send(Method::POST, &format!("{id}/{function}"), api_version, body.clone()).await
            }
        };
        reply.map(|reply| reply.body).map_err(|error| LookupError { code: error.code, message: error.message })
    }
}

fn is_deployment(operation: &OperationRow) -> bool {
    operation.resource.kind().eq_ignore_ascii_case(KIND)
}

/// The id at the end of the link to the operation that an answer began.
fn begun(headers: &HeaderMap) -> Option<String> {
    let link = headers.get("azure-asyncoperation").or_else(|| headers.get(header::LOCATION))?.to_str().ok()?;
    let path = link.split('?').next().unwrap_or(link);
    path.rsplit('/').next().map(str::to_owned)
}

/// An error as it stands in an answer.
pub(crate) fn error_of(status: u16, body: &Value) -> ArmError {
    fn read(status: u16, error: &Value, depth: usize) -> ArmError {
        let text = |name: &str| error.get(name).and_then(Value::as_str);
        let code = text("code").unwrap_or("UnknownError");
        let mut found = ArmError::new(status, code, text("message").unwrap_or("The server did not say what is wrong."));
        found.target = text("target").map(str::to_owned);
        if depth > 0 {
            let details = error.get("details").and_then(Value::as_array);
            found.details = details.into_iter().flatten().map(|detail| read(status, detail, depth - 1)).collect();
        }
        found
    }
    read(status, body.get("error").unwrap_or(&Value::Null), 32)
}
