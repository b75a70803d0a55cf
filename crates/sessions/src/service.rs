//! From a request to its pool, its session and an answer.
//!
//! There are two doors: below `/subscriptions/…/sessionPools/{pool}/` at the API's address, and the pool's own host behind the
//! ingress. What stands behind the pool goes to the session as it is, query included.

use std::{fmt, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use cove_model::{ResourceId, SESSION_POOL_KIND, SessionContainer, SessionIdentifier};
use cove_traffic::host_name;
use http::{Request, Uri, header, uri::PathAndQuery};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    answer::Refused,
    body::Counted,
    connections::Connections,
    e2b::{self, E2b, E2bPorts},
    interpreter,
    manage::Management,
    ports::{Limits, PoolInfo, Ports},
    snapshots,
    tools::Tool,
};

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Door {
    /// At the API's address: the path names the pool.
    Path,
    /// Behind the ingress: the host names the pool.
    Host,
}

/// The data plane of session pools.
pub struct Service {
    pub(crate) ports: Ports,
    pub(crate) limits: Limits,
    pub(crate) connections: Arc<Connections>,
    pub(crate) executions: interpreter::Executions,
    pub(crate) rooms: interpreter::Rooms,
    pub(crate) e2b: Option<Arc<E2b>>,
    requests: Arc<Semaphore>,
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("limits", &self.limits).finish_non_exhaustive()
    }
}

impl Service {
    /// A service that answers through `ports`.
    #[must_use]
    pub fn new(ports: Ports, limits: Limits) -> Arc<Self> {
        Self::with_e2b(ports, limits, None)
    }

    /// A service that has a door for E2B's SDKs too.
    #[must_use]
    pub fn with_e2b(ports: Ports, limits: Limits, e2b: Option<E2bPorts>) -> Arc<Self> {
        let connections = Arc::new(Connections::new(&limits));
        let requests = Arc::new(Semaphore::new(limits.requests_max));
        let (executions, rooms) = (interpreter::Executions::default(), interpreter::Rooms::default());
        let e2b = e2b.map(|ports| Arc::new(E2b::new(ports)));
        Arc::new(Self { ports, limits, connections, executions, rooms, e2b, requests })
    }

    /// Whether a request at the API's address is for a session: `/subscriptions/{s}/resourceGroups/{g}/sessionPools/{p}…`, or
    /// below `/e2b/`.
    #[must_use]
    pub fn is_for_sessions(uri: &Uri) -> bool {
        split_path(uri.path()).is_some() || uri.path().starts_with(e2b::API)
    }

    /// A router for the hosts of pools.
    pub fn router(self: &Arc<Self>) -> Router {
        let answer = |State(service): State<Arc<Self>>, request: Request<Body>| async move {
            service.handle(Door::Host, request).await
        };
        Router::new().fallback(answer).with_state(Arc::clone(self))
    }

    /// Answers one request.
    pub async fn handle(self: &Arc<Self>, door: Door, request: Request<Body>) -> Response {
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            let words = "Too many requests to sessions are open; try again in a moment.";
            return Refused::new(429, "TooManyRequests", words).into_response();
        };
        if let Some(e2b) =
            self.e2b.as_ref().filter(|_| door == Door::Path && request.uri().path().starts_with(e2b::API))
        {
            return counted(self.e2b(e2b, request).await, permit);
        }
        let answered = self.answer(door, request).await.unwrap_or_else(|refused| {
            tracing::debug!(code = refused.error.code, "a request to a session was refused");
            refused.into_response()
        });
        counted(answered, permit)
    }

    async fn answer(self: &Arc<Self>, door: Door, request: Request<Body>) -> Result<Response, Refused> {
        let begun = Instant::now();
        let found = self.find(door, &request);
        if is_mcp_path(door, request.uri()) {
            return match found {
                Ok((pool, rest)) if interpreter::is_mcp(&pool, &rest) => self.mcp(pool, request).await,
                found => {
                    // a path of a user's container, or a pool that is not: the same as without this name
                    (self.ports.check)(request.headers()).map_err(|_| interpreter::wrong_key())?;
                    let (pool, rest) = found?;
                    self.answer_for(pool, (door, &rest), request, begun).await
                }
            };
        }
        (self.ports.check)(request.headers())?;
        let (pool, rest) = found?;
        self.answer_for(pool, (door, &rest), request, begun).await
    }

    /// Answers who may ask for sessions of a pool.
    async fn answer_for(
        self: &Arc<Self>,
        pool: PoolInfo,
        (door, rest): (Door, &str),
        request: Request<Body>,
        begun: Instant,
    ) -> Result<Response, Refused> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        if let Some(asked) = snapshots::Asked::of(&pool, rest) {
            return asked.answer(&*self.ports.pools, &pool, request).await;
        }
        if let Some(asked) = Management::of(&pool, rest) {
            let base = interpreter::base_of(&request, door, &pool);
            return asked.answer(&*self.ports.pools, &pool, request.method(), (&base, &query)).await;
        }
        if let Some(tool) = Tool::of(rest) {
            return self.answer_tool(tool, &pool, request).await;
        }
        if pool.container != SessionContainer::Custom {
            return self.interpret(pool, (door, rest), request, begun).await;
        }
        let identifier = identifier_of(&query)?;
        self.check_length(request.headers())?;
        let path = path_of(rest, &query)?;
        let lease = self.ports.pools.allocate(&pool.id, &identifier).await?;
        self.forward(lease, path, request, begun).await
    }

    /// The pool, and the path behind it, which begins with a slash.
    fn find(&self, door: Door, request: &Request<Body>) -> Result<(PoolInfo, String), Refused> {
        let uri = request.uri();
        match door {
            Door::Host => {
                let field = request.headers().get(header::HOST).and_then(|value| value.to_str().ok());
                let host = field.or_else(|| uri.authority().map(http::uri::Authority::as_str)).unwrap_or_default();
                let pool = self.ports.pools.pool_at(&host_name(host)).ok_or_else(Refused::unknown_pool)?;
                Ok((pool, uri.path().to_owned()))
            }
            Door::Path => {
                let (id, rest) = split_path(uri.path()).ok_or_else(Refused::unknown_pool)?;
                let pool = self.ports.pools.pool(&id).ok_or_else(Refused::unknown_pool)?;
                Ok((pool, rest.to_owned()))
            }
        }
    }
}

/// A request is open until its answer has been read.
fn counted(answer: Response, permit: OwnedSemaphorePermit) -> Response {
    answer.map(|body| Body::new(Counted::new(body, permit)))
}

/// Whether a request may be for a pool's MCP server, which has a key instead of tokens.
fn is_mcp_path(door: Door, uri: &Uri) -> bool {
    let rest = match door {
        Door::Host => Some(uri.path()),
        Door::Path => split_path(uri.path()).map(|(_, rest)| rest),
    };
    rest.is_some_and(|rest| rest.trim_end_matches('/') == "/mcp")
}

/// The pool that a path names, and what stands behind it.
fn split_path(path: &str) -> Option<(ResourceId, &str)> {
    let mut rest = path.strip_prefix('/')?;
    let mut parts = [""; 6];
    for part in &mut parts {
        let at = rest.find('/').unwrap_or(rest.len());
        (*part, rest) = (&rest[..at], &rest[at..]);
        rest = rest.strip_prefix('/').unwrap_or(rest);
    }
    let [subscriptions, subscription, groups, group, pools, pool] = parts;
    let is_path = subscriptions.eq_ignore_ascii_case("subscriptions")
        && groups.eq_ignore_ascii_case("resourceGroups")
        && pools.eq_ignore_ascii_case("sessionPools");
    if !is_path || subscription.is_empty() || group.is_empty() || pool.is_empty() {
        return None;
    }
    let id = ResourceId::resource(subscription, group, SESSION_POOL_KIND, pool).ok()?;
    let behind = path.len() - rest.len();
    // the slash before the rest belongs to the session's path
    let rest = if path[..behind].ends_with('/') { &path[behind - 1..] } else { "/" };
    Some((id, rest))
}

fn path_of(rest: &str, query: &str) -> Result<PathAndQuery, Refused> {
    let path = if query.is_empty() { rest.to_owned() } else { format!("{rest}?{query}") };
    PathAndQuery::try_from(path).map_err(|_| Refused::new(400, "BadRequest", "The path cannot be passed on."))
}

/// A parameter of a query; more than one of the same name is refused, since nobody could say which counts.
pub(crate) fn parameter(query: &str, name: &str) -> Result<Option<String>, Refused> {
    let mut found = None;
    for pair in query.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        // a plus is a plus: identifiers may have it, and none has a space
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8().ok().map(String::from);
        if decoded(key).is_none_or(|key| key != name) {
            continue;
        }
        if found.is_some() {
            let words = format!("`{name}` stands more than once in the query; give it once.");
            return Err(Refused::new(400, "InvalidQueryParameter", words));
        }
        // what is not UTF-8 is no identifier: the empty text says so
        found = Some(decoded(value).unwrap_or_default());
    }
    Ok(found)
}

/// The identifier of a request.
pub(crate) fn identifier_of(query: &str) -> Result<SessionIdentifier, Refused> {
    let Some(text) = parameter(query, "identifier")? else {
        let words = "The query parameter `identifier` is missing; it says whose session is asked for.";
        return Err(Refused::new(400, "SessionIdentifierMissing", words));
    };
    SessionIdentifier::new(text).map_err(|error| Refused::new(400, "SessionIdentifierInvalid", format!("{error}.")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_the_pool_and_what_the_session_is_asked_for() {
        let base = "/subscriptions/S/resourceGroups/g/sessionPools/pool";
        for (path, rest) in [
            (base.to_owned(), "/"),
            (format!("{base}/"), "/"),
            (format!("{base}/api/upload"), "/api/upload"),
            (format!("{base}//x"), "//x"),
            ("/Subscriptions/s/resourcegroups/G/SESSIONPOOLS/pool/a/".to_owned(), "/a/"),
        ] {
            let (id, found) = split_path(&path).unwrap();
            assert_eq!(
                (id.key(), found),
                ("/subscriptions/s/resourcegroups/g/providers/microsoft.app/sessionpools/pool", rest),
                "{path}"
            );
        }
        for bad in [
            "/",
            "/subscriptions/s/resourceGroups/g/sessionPools",
            "/subscriptions/s/resourceGroups/g/sessionPools/",
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.App/sessionPools/pool",
            "/subscriptions//resourceGroups/g/sessionPools/pool",
        ] {
            assert_eq!(split_path(bad), None, "{bad}");
        }
    }

    #[test]
    fn an_identifier_stands_once_and_is_checked() {
        assert_eq!(identifier_of("api-version=1&identifier=a%2Bb+c").unwrap().as_str(), "a+b+c");
        for (query, code) in [
            ("", "SessionIdentifierMissing"),
            ("Identifier=abcd", "SessionIdentifierMissing"),
            ("identifier=", "SessionIdentifierInvalid"),
            ("identifier=abc", "SessionIdentifierInvalid"),
            ("identifier=a%2Fbcd", "SessionIdentifierInvalid"),
            ("identifier=%ff%feaa", "SessionIdentifierInvalid"),
            ("identifier=abcd&identifier=abcd", "InvalidQueryParameter"),
            ("identifier=abcd&%69dentifier=efgh", "InvalidQueryParameter"),
        ] {
            assert_eq!(identifier_of(query).unwrap_err().error.code, code, "{query}");
        }
    }
}
