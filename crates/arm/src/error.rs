//! The error envelope of Azure Resource Manager, and the collector that reports all problems of a request at once.
//!
//! Azure's own codes are used where they are known. `az` prints `(code) message`, so the message alone must say what is
//! wrong and what would be right; `target` and `details` are for programs.
//!
//! **Invariant:** no error text holds a secret's value.

use serde_json::{Value, json};

/// Most problems reported for one request; further ones are counted in a last entry.
pub const DETAILS_MAX: usize = 50;

/// An answer that is not a success.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("({code}) {message}")]
pub struct ArmError {
    /// HTTP status, 400..=599.
    pub status: u16,
    /// Azure's code, such as `ResourceNotFound`.
    pub code: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// Path of the property it is about, such as `properties.template.containers[0].image`.
    pub target: Option<String>,
    /// The single problems when there are several.
    pub details: Vec<ArmError>,
}

impl ArmError {
    /// An error with any status and code.
    #[must_use]
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), target: None, details: Vec::new() }
    }

    /// The same error about one property.
    #[must_use]
    pub fn at(mut self, target: impl Into<String>) -> Self {
        self.target = Some(target.into());
        self
    }

    /// 404 `ResourceNotFound`: `kind` is `Microsoft.App/containerApps`.
    #[must_use]
    pub fn resource_not_found(kind: &str, name: &str, group: &str) -> Self {
        let message = format!("The Resource '{kind}/{name}' under resource group '{group}' was not found.");
        Self::new(404, "ResourceNotFound", message)
    }

    /// 404 `ResourceGroupNotFound`.
    #[must_use]
    pub fn group_not_found(group: &str) -> Self {
        Self::new(404, "ResourceGroupNotFound", format!("Resource group '{group}' could not be found."))
    }

    /// 404 `SubscriptionNotFound`.
    #[must_use]
    pub fn subscription_not_found(subscription: &str) -> Self {
        Self::new(404, "SubscriptionNotFound", format!("The subscription '{subscription}' could not be found."))
    }

    /// 404 `ManagedEnvironmentNotFound`-like: the environment that an app names does not exist.
    #[must_use]
    pub fn environment_not_found(id: &str) -> Self {
        let message =
            format!("The managed environment '{id}' does not exist; create it first or correct `environmentId`.");
        Self::new(400, "ManagedEnvironmentNotFound", message).at("properties.environmentId")
    }

    /// 404 `RevisionNotFound`.
    #[must_use]
    pub fn revision_not_found(app: &str, revision: &str) -> Self {
        let message = format!("Revision '{revision}' of container app '{app}' was not found.");
        Self::new(404, "ContainerAppRevisionNotFound", message)
    }

    /// 404 for a replica.
    #[must_use]
    pub fn replica_not_found(revision: &str, replica: &str) -> Self {
        let message =
            format!("Replica '{replica}' of revision '{revision}' was not found; it may have been scaled in.");
        Self::new(404, "ContainerAppReplicaNotFound", message)
    }

    /// 404 `OperationNotFound`.
    #[must_use]
    pub fn operation_not_found(id: &str) -> Self {
        Self::new(
            404,
            "OperationNotFound",
            format!("The operation '{id}' was not found; finished ones are kept for a limited time."),
        )
    }

    /// 404 `NoRegisteredProviderFound`: a namespace or resource type that is not served.
    #[must_use]
    pub fn unknown_type(kind: &str) -> Self {
        let message = format!("The resource type '{kind}' is not served here.");
        Self::new(404, "InvalidResourceType", message)
    }

    /// 404 for a path that is nothing.
    #[must_use]
    pub fn unknown_path(path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        Self::new(404, "InvalidResourceType", format!("Nothing is served at '{path}'."))
    }

    /// 400 `InvalidRequestContent`: the body is not what it should be as a whole.
    #[must_use]
    pub fn invalid_content(message: impl Into<String>) -> Self {
        Self::new(400, "InvalidRequestContent", message)
    }

    /// 400 `InvalidApiVersionParameter`, `MissingApiVersionParameter` when it is absent.
    #[must_use]
    pub fn api_version(given: Option<&str>) -> Self {
        match given {
            None => Self::new(
                400,
                "MissingApiVersionParameter",
                "The api-version query parameter (?api-version=) is required for all requests.",
            ),
            Some(given) => Self::new(
                400,
                "InvalidApiVersionParameter",
                format!("The api-version '{given}' is invalid; a version is a date such as '2025-07-01'."),
            ),
        }
    }

    /// 400 with Azure's code for a property outside `properties.template.containers`.
    #[must_use]
    pub fn invalid(target: &str, message: impl Into<String>) -> Self {
        Self::new(400, "InvalidParameterValue", message).at(target)
    }

    /// 400 `ContainerAppInvalidName`.
    #[must_use]
    pub fn invalid_app_name(name: &str) -> Self {
        let message = format!("Container app name '{name}' is not valid: {}.", cove_model::APP_NAME_RULE);
        Self::new(400, "ContainerAppInvalidName", message)
    }

    /// 400 `InvalidResourceGroup`-like for a group name.
    #[must_use]
    pub fn invalid_group_name(name: &str) -> Self {
        let message = format!(
            "Resource group name '{name}' is not valid: use 1 to 90 letters, digits and `-_.()`, and do not end with a period."
        );
        Self::new(400, "InvalidResourceGroupName", message)
    }

    /// 409 `ContainerAppOperationInProgress`: another change of the same resource is still going on.
    #[must_use]
    pub fn operation_in_progress(id: &str) -> Self {
        let message = format!("Another operation on '{id}' is in progress; wait until it has finished and try again.");
        Self::new(409, "ContainerAppOperationInProgress", message)
    }

    /// 409 `RevisionAlreadyExists`-like: a suffix may be used once.
    #[must_use]
    pub fn revision_exists(revision: &str) -> Self {
        let message = format!("A revision named '{revision}' already exists; choose another revision suffix or none.");
        Self::new(409, "RevisionWithSuffixExists", message).at("properties.template.revisionSuffix")
    }

    /// 409 for anything else that the present state forbids.
    #[must_use]
    pub fn conflict(code: &str, message: impl Into<String>) -> Self {
        Self::new(409, code, message)
    }

    /// 409 `ManagedEnvironmentInUse`-like: apps still live in it.
    #[must_use]
    pub fn environment_in_use(name: &str, apps: &[String]) -> Self {
        let shown = apps.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!(
            "Managed environment '{name}' still holds {} container app(s) ({shown}); delete them first.",
            apps.len()
        );
        Self::new(409, "ManagedEnvironmentHasContainerApps", message)
    }

    /// 409: jobs still live in the environment.
    #[must_use]
    pub fn environment_has_jobs(name: &str, jobs: &[String]) -> Self {
        let shown = jobs.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        let message =
            format!("Managed environment '{name}' still holds {} job(s) ({shown}); delete them first.", jobs.len());
        Self::new(409, "ManagedEnvironmentHasContainerApps", message)
    }

    /// 409: session pools still live in the environment.
    #[must_use]
    pub fn environment_has_session_pools(name: &str, pools: &[String]) -> Self {
        let shown = pools.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
        let message = format!(
            "Managed environment '{name}' still holds {} session pool(s) ({shown}); delete them first.",
            pools.len()
        );
        Self::new(409, "ManagedEnvironmentHasContainerApps", message)
    }

    /// 412 `PreconditionFailed`: `If-Match` names another etag.
    #[must_use]
    pub fn precondition_failed(id: &str) -> Self {
        Self::new(
            412,
            "PreconditionFailed",
            format!("'{id}' was changed meanwhile; read it again and repeat the change."),
        )
    }

    /// 401 `InvalidAuthenticationToken`.
    #[must_use]
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(401, "InvalidAuthenticationToken", message)
    }

    /// 401 `ExpiredAuthenticationToken`.
    #[must_use]
    pub fn token_expired() -> Self {
        Self::new(401, "ExpiredAuthenticationToken", "The access token has expired; log in again.")
    }

    /// 403 `AuthorizationFailed`.
    #[must_use]
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(403, "AuthorizationFailed", message)
    }

    /// 405 for a path that exists with other methods.
    #[must_use]
    pub fn method_not_allowed(method: &str, path: &str) -> Self {
        let path: String = path.chars().take(200).collect();
        Self::new(405, "MethodNotAllowed", format!("The method '{method}' is not allowed at '{path}'."))
    }

    /// 413 `RequestEntityTooLarge`; the limit is in bytes.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        let message = format!("The request body is larger than {limit} bytes.");
        Self::new(413, "RequestEntityTooLarge", message)
    }

    /// 429 `TooManyRequests`.
    #[must_use]
    pub fn too_many_requests(message: impl Into<String>) -> Self {
        Self::new(429, "TooManyRequests", message)
    }

    /// 500 `InternalServerError`; the text never holds details of the inside.
    #[must_use]
    pub fn internal(request_id: &str) -> Self {
        let message =
            format!("The server failed to handle the request; its log has the cause under request id '{request_id}'.");
        Self::new(500, "InternalServerError", message)
    }

    /// 501 `NotImplemented`: Azure has `what`, Cove has not yet; `instead` says what to do.
    #[must_use]
    pub fn not_implemented(target: &str, what: &str, instead: &str) -> Self {
        Self::new(501, "NotImplemented", format!("{what}: not implemented yet; {instead}.")).at(target)
    }

    /// The message with the target before it, unless it speaks of it already.
    fn placed_message(&self) -> String {
        match &self.target {
            Some(target) if !self.message.contains(target.as_str()) => format!("{target}: {}", self.message),
            _ => self.message.clone(),
        }
    }

    /// `{"error": {…}}` as Azure writes it.
    #[must_use]
    pub fn to_json(&self) -> Value {
        json!({ "error": self.inner_json() })
    }

    /// What stands inside `error`: also the shape of `error` in a failed operation.
    #[must_use]
    pub fn inner_json(&self) -> Value {
        let mut value = json!({ "code": self.code, "message": self.message });
        if let Some(target) = &self.target {
            value["target"] = json!(target);
        }
        if !self.details.is_empty() {
            value["details"] = self.details.iter().map(Self::inner_json).collect();
        }
        value
    }
}

/// Collects the problems of a request, so that all are told at once.
#[derive(Clone, Debug, Default)]
pub struct Errors {
    found: Vec<ArmError>,
    more: usize,
}

impl Errors {
    /// No problems yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Notes a problem.
    pub fn push(&mut self, error: ArmError) {
        if self.found.len() < DETAILS_MAX {
            self.found.push(error);
        } else {
            self.more += 1;
        }
    }

    /// Notes a 400 about `target`.
    pub fn invalid(&mut self, target: &str, message: impl Into<String>) {
        self.push(ArmError::invalid(target, message));
    }

    /// Whether nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// One error for all: the only one itself with its target in the text, since `az` shows no more than that; or
    /// `InvalidRequestParameterWithDetails` with `details`.
    ///
    /// The status is 400 when any of them is the caller's mistake, else that of the first.
    ///
    /// # Errors
    /// When anything was noted.
    pub fn into_result(mut self) -> Result<(), ArmError> {
        if self.found.len() <= 1 {
            let Some(mut only) = self.found.pop() else { return Ok(()) };
            only.message = only.placed_message();
            return Err(only);
        }
        let status = if self.found.iter().any(|error| error.status == 400) { 400 } else { self.found[0].status };
        let texts: Vec<String> = self.found.iter().map(ArmError::placed_message).collect();
        let mut message = format!("{} problems. {}", self.found.len() + self.more, texts.join(" "));
        if self.more > 0 {
            message.push_str(&format!(" And {} more.", self.more));
        }
        let code = if status == 501 { "NotImplemented" } else { "InvalidRequestParameterWithDetails" };
        let mut error = ArmError::new(status, code, message);
        error.details = self.found;
        Err(error)
    }
}
