//! What is asked about sessions themselves: show, list, stop, and what the pool is.
//!
//! For pools of the user's own image these paths stand below `.management/`, since every other one is the container's; the
//! built-in kinds have them at the top as well, as in Azure.

use axum::response::{IntoResponse, Response};
use cove_model::{SessionContainer, SessionIdentifier};
use http::{Method, StatusCode, header};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    answer::Refused,
    ports::{PoolInfo, Pools, SessionInfo},
    service::{identifier_of, parameter},
};

/// Sessions in one page of a list.
const PAGE: usize = 100;

/// One of these paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Management {
    Stop,
    Session,
    List,
    Metadata,
}

impl Management {
    /// What a path asks for; `None`: it is for the session.
    pub(crate) fn of(pool: &PoolInfo, path: &str) -> Option<Self> {
        let path = path.trim_matches('/');
        let is_own = path.get(..MANAGEMENT.len()).is_some_and(|start| start.eq_ignore_ascii_case(MANAGEMENT));
        let word = if is_own { &path[MANAGEMENT.len()..] } else { path };
        if !is_own && pool.container == SessionContainer::Custom {
            return None;
        }
        let word = word.to_ascii_lowercase();
        match word.as_str() {
            "stopsession" if is_own => Some(Self::Stop),
            "session" => Some(Self::Session),
            "listsessions" => Some(Self::List),
            "metadata" => Some(Self::Metadata),
            _ => None,
        }
    }

    /// Answers; `base` is the pool's address as the client wrote it.
    pub(crate) async fn answer(
        self,
        pools: &dyn Pools,
        pool: &PoolInfo,
        method: &Method,
        (base, query): (&str, &str),
    ) -> Result<Response, Refused> {
        match (self, method) {
            (Self::Stop, &Method::POST) => {
                stop(pools, pool, &identifier_of(query)?).await?;
                let text = "Session stopped successfully";
                Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response())
            }
            (Self::Session, &Method::GET) => {
                let identifier = identifier_of(query)?;
                let found = pools.find(&pool.id, &identifier).ok_or_else(Refused::unknown_session)?;
                Ok(axum::Json(shown(&found)).into_response())
            }
            (Self::Session, &Method::DELETE) => {
                stop(pools, pool, &identifier_of(query)?).await?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            (Self::List, &Method::GET) => list(pools, pool, (base, query)),
            (Self::Metadata, &Method::GET) => Ok(axum::Json(metadata(pools, pool)).into_response()),
            _ => Err(Refused::new(405, "MethodNotAllowed", "The path is not for this method.")),
        }
    }
}

/// Where these paths stand.
const MANAGEMENT: &str = ".management/";

async fn stop(pools: &dyn Pools, pool: &PoolInfo, identifier: &SessionIdentifier) -> Result<(), Refused> {
    if pools.stop(&pool.id, identifier).await { Ok(()) } else { Err(Refused::unknown_session()) }
}

fn list(pools: &dyn Pools, pool: &PoolInfo, (base, query): (&str, &str)) -> Result<Response, Refused> {
    let skip = match parameter(query, "skip")? {
        None => 0,
        Some(text) => text
            .parse::<usize>()
            .map_err(|_| Refused::new(400, "InvalidQueryParameter", "`skip` must be a whole number, 0 or more."))?,
    };
    let all = pools.list(&pool.id);
    let page: Vec<Value> = all.iter().skip(skip).take(PAGE).map(shown).collect();
    let mut body = json!({ "value": page, "count": all.len() });
    if skip.saturating_add(PAGE) < all.len() {
        let next = format!("skip={}", skip + PAGE);
        let others = query.split('&').filter(|pair| !pair.is_empty() && !pair.starts_with("skip="));
        let query: Vec<&str> = others.chain([next.as_str()]).collect();
        body["nextLink"] = json!(format!("{base}/.management/listSessions?{}", query.join("&")));
    }
    Ok(axum::Json(body).into_response())
}

fn metadata(pools: &dyn Pools, pool: &PoolInfo) -> Value {
    json!({
        "name": pool.id.name(),
        "containerType": pool.container.as_arm(),
        "maxConcurrentSessions": pool.sessions_max,
        "allocatedSessions": pools.list(&pool.id).len(),
    })
}

pub(crate) fn shown(info: &SessionInfo) -> Value {
    let session = &info.session;
    let time = |at: Option<Timestamp>| at.map(|at| at.to_string());
    json!({
        "identifier": session.identifier,
        "sessionId": session.guid,
        "createdAt": time(session.allocated_at),
        "lastAccessedAt": time(session.last_accessed_at),
        "expireAt": time(Some(info.expires_at)),
        "etag": session.guid,
    })
}
