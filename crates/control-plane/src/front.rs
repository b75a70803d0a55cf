//! The way of a request: limits, ids, who calls, which handler; and what an error or a panic looks like outside.
//!
//! **Invariant:** a handler runs in a task of its own, so that a client that goes away leaves no write half done.
//! **Invariant:** nothing is read beyond [`BODY_MAX`] bytes; nothing but a stream lasts longer than the request timeout.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    middleware::{self, Next},
    response::Response,
};
use bytes::Bytes;
use cove_arm::ArmError;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, header, request::Parts};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    answer::{self, with_header},
    auth::{self, Caller},
    call::Call,
    config::Auth,
    control_plane::{ControlPlane, new_id},
    not_built,
    route::{self, Access, Found, Route},
};

/// Largest body in bytes (ARM's own limit); a larger one is answered 413. Extensions set their own.
pub(crate) const BODY_MAX: usize = 4 * 1024 * 1024;

/// Every route of the API.
pub(crate) fn routes() -> Vec<Route> {
    let mut routes = crate::login::routes();
    routes.extend(crate::subscriptions::routes());
    routes.extend(crate::providers::routes());
    routes.extend(crate::groups::routes());
    routes.extend(crate::workspaces::routes());
    routes.extend(crate::identities::routes());
    routes.extend(crate::authorization::routes());
    routes.extend(crate::graph::routes());
    routes.extend(crate::registries::routes());
    routes.extend(crate::networks::routes());
    routes.extend(crate::environments::routes());
    routes.extend(crate::environment::routes());
    routes.extend(crate::storages::routes());
    routes.extend(crate::apps::routes());
    routes.extend(crate::app_actions::routes());
    routes.extend(crate::app_questions::routes());
    routes.extend(crate::auth_configs::routes());
    routes.extend(crate::custom_hosts::routes());
    routes.extend(crate::label_history::routes());
    routes.extend(crate::resiliency::routes());
    routes.extend(crate::revisions::routes());
    routes.extend(crate::replicas::routes());
    routes.extend(crate::jobs::routes());
    routes.extend(crate::job_actions::routes());
    routes.extend(crate::session_pools::routes());
    routes.extend(crate::session_pool_keys::routes());
    routes.extend(crate::executions::routes());
    routes.extend(crate::artifacts::routes());
    routes.extend(crate::operations::routes());
    routes.extend(crate::deployments::routes());
    routes.extend(crate::generic::routes());
    routes.extend(crate::streams::routes());
    routes.extend(crate::exec::routes());
    routes.extend(crate::locations::routes());
    routes.extend(crate::coverage::routes());
    routes.extend(not_built::routes());
    routes
}

/// The API, to be served over TLS.
pub fn router(plane: ControlPlane) -> Router {
    let extensions = plane.extensions().router();
    let extensions = extensions.layer(middleware::from_fn_with_state(plane.clone(), guard_extension));
    let all = plane.clone();
    Router::new()
        .nest("/cove/v1", extensions)
        .fallback(move |request: Request| answer_within_time(all.clone(), request, false))
        .layer(middleware::from_fn_with_state(plane, envelope))
}

/// Only the managed-identity endpoint `/msi/token`, to be served over plain HTTP on loopback: clients ask it so.
pub fn identity_router(plane: ControlPlane) -> Router {
    let identity = plane.clone();
    Router::new()
        .fallback(move |request: Request| answer_within_time(identity.clone(), request, true))
        .layer(middleware::from_fn_with_state(plane, envelope))
}

/// Request ids, the limit of requests, the host check, panics; around everything, extensions too.
async fn envelope(State(plane): State<ControlPlane>, mut request: Request, next: Next) -> Response {
    let ids = Ids::of(request.headers());
    request.extensions_mut().insert(ids.clone());
    let retry_after = plane.config().retry_after_secs;
    let method = request.method().clone();
    let path = request.uri().path().to_owned();
    let response = match admit(&plane, &request) {
        Err(error) => answer::error(&error, retry_after),
        Ok(place) => {
            request.extensions_mut().insert(place);
            let answered = std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await;
            answered.unwrap_or_else(|_| {
                tracing::error!(request_id = ids.request, %method, path, "a request panicked");
                answer::error(&ArmError::internal(&ids.request), retry_after)
            })
        }
    };
    tracing::debug!(request_id = ids.request, %method, path, status = response.status().as_u16(), "answered");
    let response = with_envelope(response, &method, &path, retry_after);
    ids.write(response)
}

/// A place among the requests that are worked on; free again when the last clone is dropped.
#[derive(Clone, Debug)]
struct Place {
    _permit: Arc<OwnedSemaphorePermit>,
}

fn admit(plane: &ControlPlane, request: &Request) -> Result<Place, ArmError> {
    check_host(plane, request)?;
    let permit = Arc::clone(plane.requests()).try_acquire_owned().map_err(|_| {
        ArmError::too_many_requests("The server is working on as many requests as it can; try again soon.")
    })?;
    Ok(Place { _permit: Arc::new(permit) })
}

/// Errors that a library answered in its own words get ARM's envelope.
fn with_envelope(response: Response, method: &Method, path: &str, retry_after: u32) -> Response {
    let is_bare_error = response.status().is_client_error() && !response.headers().contains_key(header::CONTENT_TYPE);
    if !is_bare_error || method == Method::HEAD {
        return response;
    }
    let error = match response.status().as_u16() {
        404 => ArmError::unknown_path(path),
        405 => ArmError::method_not_allowed(method.as_str(), path),
        413 => ArmError::too_large(BODY_MAX),
        status => ArmError::new(status, "BadRequest", "The request is not valid."),
    };
    answer::error(&error, retry_after)
}

/// Keeps web pages out that made a name of theirs point to 127.0.0.1, or that post to us from another origin.
fn check_host(plane: &ControlPlane, request: &Request) -> Result<(), ArmError> {
    if !matches!(plane.config().auth, Auth::OpenLoopback { .. }) {
        return Ok(());
    }
    let is_ours = |host: &str| {
        let name = host
            .rsplit_once(':')
            .map_or(host, |(name, port)| if port.bytes().all(|b| b.is_ascii_digit()) { name } else { host });
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        matches!(name.as_str(), "localhost" | "[::1]")
            || name.ends_with(".localhost")
            || name.parse::<std::net::Ipv4Addr>().is_ok_and(|address| address.is_loopback())
            || plane.config().host_names.iter().any(|known| known.eq_ignore_ascii_case(&name))
    };
    let host = host_of(request.uri().authority().map(http::uri::Authority::as_str), request.headers());
    if host.as_deref().is_some_and(|host| !is_ours(host)) {
        let message =
            "This server answers to loopback names only; call it as 'localhost' or list the name in its configuration.";
        return Err(ArmError::new(403, "HostNotAllowed", message));
    }
    let origin = request.headers().get(header::ORIGIN).and_then(|value| value.to_str().ok());
    let is_foreign = |origin: &str| origin.split_once("://").is_none_or(|(_, host)| !is_ours(host));
    if origin.is_some_and(is_foreign) {
        return Err(ArmError::new(403, "OriginNotAllowed", "Web pages of other origins may not call this server."));
    }
    Ok(())
}

fn host_of(authority: Option<&str>, headers: &HeaderMap) -> Option<String> {
    let header = headers.get(header::HOST).and_then(|value| value.to_str().ok());
    authority.or(header).map(str::to_owned)
}

/// Extensions need what the API needs, but for the api-version.
async fn guard_extension(State(plane): State<ControlPlane>, request: Request, next: Next) -> Response {
    match auth::authenticate(&plane, Access::Arm, request.headers()) {
        Ok(_) => next.run(request).await,
        Err(error) => answer::error(&error, plane.config().retry_after_secs),
    }
}

async fn answer_within_time(plane: ControlPlane, request: Request, is_identity_only: bool) -> Response {
    let limit = plane.config().request_timeout;
    let retry_after = plane.config().retry_after_secs;
    let work = answer_one(plane, request, is_identity_only);
    match tokio::time::timeout(limit, work).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => answer::error(&error, retry_after),
        Err(_) => {
            let message = format!("The request was not complete within {} s.", limit.as_secs());
            answer::error(&ArmError::new(408, "RequestTimeout", message), retry_after)
        }
    }
}

async fn answer_one(plane: ControlPlane, request: Request, is_identity_only: bool) -> Result<Response, ArmError> {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path().to_owned();
    let segments = route::segments(&path).ok_or_else(|| ArmError::unknown_path(&path))?;
    if is_identity_only && !segments.first().is_some_and(|first| first.eq_ignore_ascii_case("msi")) {
        return Err(ArmError::unknown_path(&path));
    }
    let (access, handler, names) = match plane.table().find(&parts.method, &segments) {
        Found::Handler { access, handler, names } => (access, handler, names),
        Found::OtherMethods { access, allow } => {
            auth::authenticate(&plane, access, &parts.headers)?;
            let error = not_built::method(&parts.method, &path, &segments);
            return Ok(with_header(answer::error(&error, plane.config().retry_after_secs), "allow", &allow));
        }
        Found::Nothing => {
            auth::authenticate(&plane, Access::Arm, &parts.headers)?;
            return Err(not_built::path(&parts.method, &path, &segments));
        }
    };
    let caller = auth::authenticate(&plane, access, &parts.headers)?;
    let query = form_urlencoded::parse(parts.uri.query().unwrap_or("").as_bytes());
    let query: Vec<(String, String)> = query.map(|(name, value)| (name.into_owned(), value.into_owned())).collect();
    if access == Access::Arm {
        check_api_version(&query, &segments)?;
        check_subscription(&plane, &names)?;
    }
    let body = read_body(body).await?;
    // the place is given back when the work ends, not when its client leaves
    let place = parts.extensions.get::<Place>().cloned();
    let call = call_of(parts, path, names, query, body, caller);
    let request_id = call.request_id.clone();
    let work = handler(plane, call);
    let task = tokio::spawn(async move {
        let _place = place;
        work.await
    });
    match task.await {
        Ok(Ok(response)) => Ok(response),
        Ok(Err(refusal)) => Err(refusal.into_arm(&request_id)),
        Err(join) => {
            tracing::error!(request_id, is_panic = join.is_panic(), "a request's task ended early");
            Err(ArmError::internal(&request_id))
        }
    }
}

/// A request that this server makes to itself for a caller: what a deployment writes and reads.
#[derive(Debug)]
pub(crate) struct OwnRequest<'a> {
    /// Method.
    pub(crate) method: Method,
    /// Path without query; an id as a template makes it, any case.
    pub(crate) path: &'a str,
    /// The api-version that the template names.
    pub(crate) api_version: &'a str,
    /// JSON or nothing.
    pub(crate) body: Bytes,
    /// Headers, such as the correlation id.
    pub(crate) headers: HeaderMap,
    /// Origin that links lead to.
    pub(crate) origin: &'a str,
    /// For whom.
    pub(crate) caller: &'a Caller,
}

/// Answers a request of this server to itself: the same table, checks and handler as a client's, without the wire.
///
/// # Errors
/// What the client would have read.
pub(crate) async fn dispatch(plane: &ControlPlane, request: OwnRequest<'_>) -> Result<Response, ArmError> {
    let segments = route::segments(request.path).ok_or_else(|| ArmError::unknown_path(request.path))?;
    let (handler, names) = match plane.table().find(&request.method, &segments) {
        Found::Handler { access: Access::Arm, handler, names } => (handler, names),
        Found::Handler { .. } => return Err(ArmError::unknown_path(request.path)),
        Found::OtherMethods { .. } => return Err(not_built::method(&request.method, request.path, &segments)),
        Found::Nothing => return Err(not_built::path(&request.method, request.path, &segments)),
    };
    let query = vec![("api-version".to_owned(), request.api_version.to_owned())];
    check_api_version(&query, &segments)?;
    check_subscription(plane, &names)?;
    let call = Call {
        names,
        query,
        headers: request.headers,
        body: request.body,
        origin: request.origin.to_owned(),
        path: request.path.to_owned(),
        request_id: new_id(),
        caller: request.caller.clone(),
        is_own: true,
        upgrade: None,
    };
    let request_id = call.request_id.clone();
    handler(plane.clone(), call).await.map_err(|refusal| refusal.into_arm(&request_id))
}

fn call_of(
    parts: Parts,
    path: String,
    names: Vec<(String, String)>,
    query: Vec<(String, String)>,
    body: Bytes,
    caller: Caller,
) -> Call {
    let host = host_of(parts.uri.authority().map(http::uri::Authority::as_str), &parts.headers);
    let is_host = |host: &String| {
        !host.is_empty()
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'[' | b']'))
    };
    let origin = format!("https://{}", host.filter(is_host).unwrap_or_else(|| "localhost".into()));
    let request_id = parts.extensions.get::<Ids>().map_or_else(new_id, |ids| ids.request.clone());
    let upgrade = parts.extensions.get::<hyper::upgrade::OnUpgrade>().cloned();
    Call { upgrade, names, query, headers: parts.headers, body, origin, path, request_id, caller, is_own: false }
}

fn check_api_version(query: &[(String, String)], segments: &[String]) -> Result<(), ArmError> {
    let given =
        query.iter().find(|(name, _)| name.eq_ignore_ascii_case("api-version")).map(|(_, value)| value.as_str());
    match given {
        Some(version) if cove_arm::provider::is_api_version(version) => {
            // what stands behind the last `providers/Microsoft.App/` is that provider's; extensions have versions of their own
            let provider = segments.iter().rposition(|segment| segment.eq_ignore_ascii_case("providers"));
            let behind = provider.map_or(&[][..], |at| &segments[at + 1..]);
            match behind {
                [namespace, kind, ..] if namespace.eq_ignore_ascii_case("Microsoft.App") => {
                    cove_arm::provider::check_app_api_version(version, kind)
                }
                _ => Ok(()),
            }
        }
        None | Some("") => Err(ArmError::api_version(None)),
        Some(version) => Err(ArmError::api_version(Some(&version.chars().take(64).collect::<String>()))),
    }
}

fn check_subscription(plane: &ControlPlane, names: &[(String, String)]) -> Result<(), ArmError> {
    let given = names.iter().find(|(name, _)| name == "subscription").map(|(_, value)| value);
    match given {
        Some(given) if !given.eq_ignore_ascii_case(&plane.config().subscription) => {
            Err(ArmError::subscription_not_found(given))
        }
        Some(_) | None => Ok(()),
    }
}

async fn read_body(body: Body) -> Result<Bytes, ArmError> {
    match Limited::new(body, BODY_MAX).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ArmError::too_large(BODY_MAX)),
        Err(_) => Err(ArmError::invalid_content("The request content ended early.")),
    }
}

/// The ids of a request: ours, and those that the client wants to find again.
#[derive(Clone, Debug)]
struct Ids {
    request: String,
    correlation: String,
    client: Option<HeaderValue>,
}

impl Ids {
    fn of(headers: &HeaderMap) -> Self {
        let given = |name: &str| headers.get(name).filter(|value| value.len() <= 128).cloned();
        let correlation = given("x-ms-correlation-request-id").and_then(|value| value.to_str().ok().map(str::to_owned));
        let returned = headers.get("x-ms-return-client-request-id").is_some_and(|value| value != "false");
        Self {
            request: new_id(),
            correlation: correlation.unwrap_or_else(new_id),
            client: given("x-ms-client-request-id").filter(|_| returned),
        }
    }

    fn write(self, response: Response) -> Response {
        let mut response = with_header(response, "x-ms-request-id", &self.request);
        if let Some(client) = self.client {
            response.headers_mut().insert("x-ms-client-request-id", client);
        }
        with_header(response, "x-ms-correlation-request-id", &self.correlation)
    }
}
