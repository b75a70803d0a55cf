//! Forks of sessions, their snapshots, and suspended ones: Cove's own paths beside those of [`crate::manage`].
//!
//! They stand below `.management/`; the built-in kinds have those that begin with `sessions/` and `snapshots` at the top too.
//! A session is named by its identifier, in the path or in the query.
//!
//! **Invariant:** nothing here names a session that is not asked for by its identifier, but the list of suspended ones.

use axum::response::{IntoResponse, Response};
use cove_model::{
    FORKS_MAX, SNAPSHOT_NAME_RULE, SessionContainer, SessionIdentifier, SessionSnapshot, SnapshotError,
    check_snapshot_name,
};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    answer::Refused,
    manage::shown,
    ports::{Fork, PoolInfo, Pools},
    service::{identifier_of, parameter},
};

/// Bytes of a body at most: twenty identifiers, or a name.
const BODY_BYTES_MAX: usize = 64 << 10;

/// One of these paths.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// About a session; its identifier, where the path has it.
    OfSession(Verb, Option<String>),
    /// All templates of the pool.
    List,
    /// One of them.
    One(String),
    /// Suspended sessions.
    Suspended,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Fork,
    Snapshot,
    Suspend,
    Resume,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wanted {
    identifiers: Vec<String>,
    name: Option<String>,
    count: Option<usize>,
    memory: Option<bool>,
}

impl Asked {
    /// What a path asks for; `None`: something else.
    pub(crate) fn of(pool: &PoolInfo, path: &str) -> Option<Self> {
        const MANAGEMENT: &str = ".management/";
        let path = path.trim_matches('/');
        let is_own = path.get(..MANAGEMENT.len()).is_some_and(|start| start.eq_ignore_ascii_case(MANAGEMENT));
        let rest = if is_own { &path[MANAGEMENT.len()..] } else { path };
        if !is_own && pool.container == SessionContainer::Custom {
            return None;
        }
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        let parts: Vec<&str> = rest.split('/').collect();
        let is = |part: &str, word: &str| part.eq_ignore_ascii_case(word);
        match parts[..] {
            [word] if is(word, "snapshots") => Some(Self::List),
            [word, name] if is(word, "snapshots") => Some(Self::One(decoded(name))),
            [word, id, verb] if is(word, "sessions") => Some(Self::OfSession(Verb::of(verb)?, Some(decoded(id)))),
            [word] if is_own && is(word, "listSuspended") => Some(Self::Suspended),
            [word] if is_own => Some(Self::OfSession(Verb::of(word)?, None)),
            _ => None,
        }
    }

    /// Answers.
    pub(crate) async fn answer(
        self,
        pools: &dyn Pools,
        pool: &PoolInfo,
        request: Request<axum::body::Body>,
    ) -> Result<Response, Refused> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let kept = |keep: fn(&SessionSnapshot) -> Option<Value>| {
            let all: Vec<Value> = pools.snapshots(&pool.id).iter().filter_map(keep).collect();
            axum::Json(json!({ "count": all.len(), "value": all })).into_response()
        };
        match (self, request.method().clone()) {
            (Self::OfSession(verb, id), Method::POST) => {
                let identifier = match id {
                    None => identifier_of(&query)?,
                    Some(text) => SessionIdentifier::new(text).map_err(invalid)?,
                };
                let wanted = read(request).await?;
                match verb {
                    Verb::Fork => fork(pools, pool, &identifier, &query, wanted).await,
                    Verb::Snapshot => keep(pools, pool, &identifier, &query, wanted).await,
                    Verb::Suspend => suspend(pools, pool, &identifier).await,
                    Verb::Resume => resume(pools, pool, &identifier).await,
                }
            }
            (Self::List, Method::GET) => Ok(kept(shown_template)),
            (Self::Suspended, Method::GET) => Ok(kept(shown_suspended)),
            (Self::One(name), Method::GET) => {
                let all = pools.snapshots(&pool.id);
                let found = all.iter().find(|kept| kept.name() == Some(&name)).and_then(shown_template);
                found
                    .map(|found| axum::Json(found).into_response())
                    .ok_or_else(|| SnapshotError::UnknownSnapshot.into())
            }
            (Self::One(name), Method::DELETE) => {
                pools.delete_snapshot(&pool.id, &name).await?;
                Ok(StatusCode::NO_CONTENT.into_response())
            }
            _ => Err(Refused::new(405, "MethodNotAllowed", "The path is not for this method.")),
        }
    }
}

impl Verb {
    fn of(word: &str) -> Option<Self> {
        let all =
            [("fork", Self::Fork), ("snapshot", Self::Snapshot), ("suspend", Self::Suspend), ("resume", Self::Resume)];
        all.into_iter().find(|(name, _)| word.eq_ignore_ascii_case(name)).map(|(_, verb)| verb)
    }
}

fn invalid(error: impl std::fmt::Display) -> Refused {
    Refused::new(400, "SessionIdentifierInvalid", format!("{error}."))
}

async fn read(request: Request<axum::body::Body>) -> Result<Wanted, Refused> {
    let limited = Limited::new(request.into_body(), BODY_BYTES_MAX);
    let wrong = |why: String| Refused::new(400, "InvalidRequestContent", format!("The body cannot be read: {why}."));
    let body = limited.collect().await.map_err(|error| wrong(error.to_string()))?.to_bytes();
    if body.is_empty() {
        return Ok(Wanted::default());
    }
    serde_json::from_slice(&body).map_err(|error| wrong(error.to_string()))
}

async fn fork(
    pools: &dyn Pools,
    pool: &PoolInfo,
    source: &SessionIdentifier,
    query: &str,
    wanted: Wanted,
) -> Result<Response, Refused> {
    let text = format!("`count` must be 1 to {FORKS_MAX}, and that of the `identifiers` where there are any.");
    let wrong = || Refused::new(400, "InvalidQueryParameter", text.clone());
    let asked = match parameter(query, "count")? {
        Some(text) => Some(text.parse::<usize>().map_err(|_| wrong())?),
        None => wanted.count,
    };
    let given = wanted.identifiers.len();
    let count = asked.unwrap_or_else(|| given.max(1));
    if !(1..=FORKS_MAX).contains(&count) || given > 0 && given != count {
        return Err(wrong());
    }
    let drawn = || format!("fork-{}", uuid::Uuid::new_v4());
    let texts = if given > 0 { wanted.identifiers } else { (0..count).map(|_| drawn()).collect() };
    let targets: Vec<_> = texts.into_iter().map(SessionIdentifier::new).collect::<Result<_, _>>().map_err(invalid)?;
    let mut names: Vec<_> = targets.iter().collect();
    names.sort();
    if names.windows(2).any(|pair| pair[0] == pair[1]) {
        return Err(Refused::new(
            400,
            "SessionIdentifierInvalid",
            "Each session of a fork has an identifier of its own.",
        ));
    }
    let memory = match parameter(query, "memory")?.as_deref() {
        Some("true") => true,
        Some("false") => false,
        Some(_) => {
            return Err(Refused::new(400, "InvalidQueryParameter", "`memory` must be `true` or `false`."));
        }
        None => wanted.memory.unwrap_or(true),
    };
    let made = pools.fork(&pool.id, source, &targets, memory).await?;
    Ok(axum::Json(shown_forks(&made)).into_response())
}

/// What was kept is what every one of them has; why one has less is told of all and of itself.
fn shown_forks(made: &[Fork]) -> Value {
    let sessions: Vec<Value> = made
        .iter()
        .map(|fork| {
            let mut session = shown(&fork.info);
            session["memory"] = fork.memory.is_ok().into();
            session
        })
        .collect();
    let missing = made.iter().find_map(|fork| fork.memory.clone().err());
    let mut all = json!({
        "kept": if missing.is_none() { "filesAndMemory" } else { "files" },
        "memory": missing.is_none(),
        "count": sessions.len(),
        "sessions": sessions,
    });
    if let Some(missing) = missing {
        all["memoryReason"] = missing.into();
    }
    all
}

async fn keep(
    pools: &dyn Pools,
    pool: &PoolInfo,
    source: &SessionIdentifier,
    query: &str,
    wanted: Wanted,
) -> Result<Response, Refused> {
    let name = match parameter(query, "name")? {
        Some(name) => Some(name),
        None => wanted.name,
    };
    let name = name.filter(|name| check_snapshot_name(name)).ok_or_else(|| {
        let text = format!("A snapshot needs a `name`, in the query or in the body: {SNAPSHOT_NAME_RULE}.");
        Refused::new(400, "InvalidParameterValue", text)
    })?;
    let kept = pools.keep_snapshot(&pool.id, source, &name).await?;
    Ok((StatusCode::CREATED, axum::Json(shown_template(&kept))).into_response())
}

async fn suspend(pools: &dyn Pools, pool: &PoolInfo, identifier: &SessionIdentifier) -> Result<Response, Refused> {
    let kept = pools.suspend(&pool.id, identifier).await?;
    Ok(axum::Json(shown_suspended(&kept)).into_response())
}

async fn resume(pools: &dyn Pools, pool: &PoolInfo, identifier: &SessionIdentifier) -> Result<Response, Refused> {
    let is_its = |kept: &SessionSnapshot| kept.suspended().is_some_and(|(known, _)| known == identifier);
    let is_known = pools.find(&pool.id, identifier).is_some() || pools.snapshots(&pool.id).iter().any(is_its);
    if !is_known {
        return Err(Refused::unknown_session());
    }
    let _lease = pools.allocate(&pool.id, identifier).await?;
    let found = pools.find(&pool.id, identifier).ok_or_else(Refused::unknown_session)?;
    Ok(axum::Json(shown(&found)).into_response())
}

fn shown_template(kept: &SessionSnapshot) -> Option<Value> {
    Some(json!({
        "name": kept.name()?,
        "createdAt": kept.created_at.to_string(),
        "sessionId": kept.session_guid,
        "sizeInBytes": kept.bytes,
        "files": kept.files,
    }))
}

fn shown_suspended(kept: &SessionSnapshot) -> Option<Value> {
    let (identifier, expires_at) = kept.suspended()?;
    Some(json!({
        "identifier": identifier,
        "state": "Suspended",
        "sessionId": kept.session_guid,
        "suspendedAt": kept.created_at.to_string(),
        "expireAt": expires_at.to_string(),
        "sizeInBytes": kept.bytes,
        "files": kept.files,
    }))
}

impl From<SnapshotError> for Refused {
    fn from(error: SnapshotError) -> Self {
        let sentence = |text: &str| {
            let mut text = text.to_owned();
            if let Some(first) = text.get_mut(..1) {
                first.make_ascii_uppercase();
            }
            format!("{text}.")
        };
        match error {
            SnapshotError::UnknownPool => Self::unknown_pool(),
            SnapshotError::UnknownSession => Self::unknown_session(),
            SnapshotError::UnknownSnapshot => {
                Self::new(404, "SessionSnapshotNotFound", "The session pool has no snapshot of this name.")
            }
            SnapshotError::Taken(text) => Self::new(409, "SessionSnapshotConflict", sentence(&text)),
            SnapshotError::Busy(text) => Self::new(409, "SessionBusy", sentence(&text)),
            SnapshotError::InUse(user) => Self::new(
                409,
                "SessionSnapshotInUse",
                format!(
                    "Session pool '{user}' begins its sessions from the snapshot; change its `coveSnapshot` first."
                ),
            ),
            SnapshotError::NoRoom(text) => Self::new(507, "InsufficientStorage", sentence(&text)),
            SnapshotError::Unsupported(text) => Self::new(409, "SessionSnapshotUnavailable", sentence(&text)),
            SnapshotError::Failed(text) => Self::new(500, "SessionSnapshotFailed", sentence(&text)),
            SnapshotError::Allocate(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ResourceId, SESSION_POOL_KIND};

    use super::*;

    #[test]
    fn both_spellings_of_a_path_are_known_and_nothing_of_a_container() {
        let pool = |container| PoolInfo {
            id: ResourceId::resource("s", "g", SESSION_POOL_KIND, "pool").unwrap(),
            container,
            sessions_max: 5,
        };
        let (own, python) = (pool(SessionContainer::Custom), pool(SessionContainer::PythonLts));
        let fork = |id: Option<&str>| Some(Asked::OfSession(Verb::Fork, id.map(str::to_owned)));
        for (path, of_own, of_python) in [
            ("/.management/fork", fork(None), fork(None)),
            ("/.Management/sessions/a%2Bb/Fork", fork(Some("a+b")), fork(Some("a+b"))),
            ("/sessions/user-1/fork", None, fork(Some("user-1"))),
            ("/snapshots", None, Some(Asked::List)),
            ("/.management/snapshots/base", Some(Asked::One("base".to_owned())), Some(Asked::One("base".to_owned()))),
            ("/.management/listSuspended", Some(Asked::Suspended), Some(Asked::Suspended)),
            ("/.management/session", None, None),
            ("/fork", None, None),
            ("/sessions/user-1/other", None, None),
        ] {
            assert_eq!((Asked::of(&own, path), Asked::of(&python, path)), (of_own, of_python), "{path}");
        }
    }
}
