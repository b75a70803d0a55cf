//! Consoles, files and logs of sessions: the driver, the monitor and the API's streams, as the data plane asks for them.
//!
//! **Invariant:** no identifier is in a row or in the server's log; a session is told by its GUID and its replica.

use std::{collections::HashMap, sync::Arc};

use axum::{
    body::Body,
    extract::{Query, Request},
    http::Uri,
    response::IntoResponse,
};
use cove_control_plane::{ControlPlane, SessionConsole};
use cove_model::{ResourceId, Session};
use cove_monitor::{ConsoleQuery, ConsoleRow, Monitor, session_columns};
use cove_runtime::Runtime;
use cove_sessions::{Answered, ConsoleAsked, Lease, LogsAsked, Refused, Tools, Whose, replica_of};
use cove_store::{SessionUse, Store};
use futures_util::{
    FutureExt, StreamExt,
    future::{self, BoxFuture},
    stream::BoxStream,
};
use serde::Deserialize;

use crate::reach::Reach;

/// Lines from the past when none are asked for, and at most; as those of apps.
const TAIL_DEFAULT: u32 = 20;
const TAIL_MAX: u32 = 300;
/// Sessions whose GUIDs one stream remembers.
const GUIDS_MAX: usize = 1000;

/// What carries tools out.
#[derive(Clone)]
pub(crate) struct SessionTools {
    pub(crate) plane: ControlPlane,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) store: Store,
    pub(crate) monitor: Monitor,
    pub(crate) reach: Reach,
}

/// How a line is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Output {
    /// `TimeStamp` and `Log`, as apps' streams.
    Json,
    /// Time and text.
    Text,
    /// All columns of `AppEnvSessionConsoleLogs_CL`.
    Row,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Params {
    follow: Option<bool>,
    tail_lines: Option<u32>,
    output: Option<Output>,
}

impl Tools for SessionTools {
    fn console(&self, lease: Lease, asked: ConsoleAsked, request: Request<Body>) -> BoxFuture<'static, Answered> {
        let (plane, replica, container) = (self.plane.clone(), replica_of(&lease), self.container_of(&lease));
        async move {
            let order = SessionConsole { replica, container, command: asked.command, tty: asked.tty };
            Ok(plane.session_console(order, request, Box::new(lease)).await?)
        }
        .boxed()
    }

    fn files(&self, lease: Lease, path: String, request: Request<Body>) -> BoxFuture<'static, Answered> {
        let (reach, replica, container) = (self.reach.clone(), replica_of(&lease), self.container_of(&lease));
        async move {
            let answer = reach.session_files((&replica, &container), &path, request, Box::new(lease)).await;
            Ok(answer.unwrap_or_else(IntoResponse::into_response))
        }
        .boxed()
    }

    fn logs(&self, asked: LogsAsked, query: String) -> BoxFuture<'static, Answered> {
        let answer = self.stream(&asked, &query);
        async move { answer }.boxed()
    }
}

impl SessionTools {
    /// The first container of a session that is no init container.
    fn container_of(&self, lease: &Lease) -> String {
        let session: &Session = &lease.allocation.session;
        let seen = self.runtime.observations().get(&session.key());
        let replica = seen.and_then(|all| all.iter().find(|one| one.name == session.replica).cloned());
        let mut containers = replica.into_iter().flat_map(|one| one.containers);
        containers.find(|container| !container.is_init).map(|container| container.name).unwrap_or_default()
    }

    fn stream(&self, asked: &LogsAsked, query: &str) -> Answered {
        let wrong = |why: String| Refused::new(400, "InvalidQueryParameter", why);
        let uri = Uri::try_from(format!("/?{query}"))
            .map_err(|error| wrong(format!("The query cannot be read: {error}.")))?;
        let Query(params) = Query::<Params>::try_from_uri(&uri).map_err(|error| {
            wrong(format!(
                "{error}; `follow` is true or false, `tailLines` 0 to {TAIL_MAX}, `output` json, text or row."
            ))
        })?;
        let tail = params.tail_lines.unwrap_or(TAIL_DEFAULT);
        if tail > TAIL_MAX {
            return Err(wrong(format!("`tailLines` must be 0 to {TAIL_MAX}.")));
        }
        let follow = params.follow.unwrap_or(false);
        let output = params.output.unwrap_or(Output::Json);
        let session = match &asked.whose {
            Whose::Events => return Ok(self.plane.session_events(asked.pool.clone(), tail, follow)?),
            Whose::All => None,
            Whose::Identifier(identifier) => Some(self.store.newest_session_of(&asked.pool, identifier)),
            Whose::Guid(guid) => Some(self.store.session_by_guid(&asked.pool, guid)),
        };
        let session = session.transpose().map_err(|error| {
            tracing::error!(%error, "a session could not be looked up");
            Refused::new(500, "InternalServerError", "The session could not be looked up; the server's log says why.")
        })?;
        let one = match session {
            None => None,
            Some(Some(found)) => Some(found),
            Some(None) => {
                let words = "The session pool has had no such session, or it ended long ago.";
                return Err(Refused::new(404, "SessionNotFound", words));
            }
        };
        let is_over = one.as_ref().is_some_and(|one| one.ended_at.is_some());
        let lines = self.lines(&asked.pool, one.as_ref(), (tail, follow && !is_over), output);
        let (store, replica) = (self.store.clone(), one.map(|one| one.replica));
        let goes_on = move || match &replica {
            None => true,
            Some(replica) => {
                let found = store.session_of_replica(replica.as_str());
                found.is_ok_and(|found| found.is_some_and(|found| found.ended_at.is_none()))
            }
        };
        Ok(self.plane.session_lines(lines, output == Output::Text, Box::new(goes_on))?)
    }

    fn lines(
        &self,
        pool: &ResourceId,
        one: Option<&SessionUse>,
        (tail, follow): (u32, bool),
        output: Output,
    ) -> BoxStream<'static, String> {
        let query = ConsoleQuery {
            app: pool.to_string(),
            replica: one.map(|one| one.replica.to_string()),
            tail,
            follow,
            ..ConsoleQuery::default()
        };
        let is_one = one.is_some();
        let mut guids = Guids { store: self.store.clone(), known: HashMap::new() };
        let rows = self.monitor.console(&query).take_while(|row| {
            // a reader that fails once would fail for ever: its stream ends
            if let Err(error) = row {
                tracing::error!(error = error as &dyn std::error::Error, "logs could not be read");
            }
            future::ready(row.is_ok())
        });
        rows.filter_map(|row| future::ready(row.ok()))
            .map(move |row| match output {
                Output::Row => session_columns(&row, guids.of(&row.replica).as_deref()).to_string(),
                Output::Json => {
                    let mut line = serde_json::json!({ "TimeStamp": row.at.to_string(), "Log": row.log });
                    if !is_one {
                        line["PodName"] = row.replica.into();
                    }
                    line.to_string()
                }
                Output::Text => text_line(&row, is_one),
            })
            .boxed()
    }
}

/// A carriage return would move the terminal's cursor in the middle of a stream; a line is one line.
fn text_line(row: &ConsoleRow, is_one: bool) -> String {
    let text = row.log.replace(['\n', '\r'], " ");
    if is_one {
        return format!("{}  {text}", row.at);
    }
    let replica = row.replica.rsplit('-').next().unwrap_or_default();
    format!("{}  {replica}  {text}", row.at)
}

/// GUIDs of sessions by their replicas.
struct Guids {
    store: Store,
    known: HashMap<String, Option<String>>,
}

impl Guids {
    fn of(&mut self, replica: &str) -> Option<String> {
        if let Some(known) = self.known.get(replica) {
            return known.clone();
        }
        let found = self.store.session_of_replica(replica).ok().flatten().map(|one| one.guid);
        if self.known.len() >= GUIDS_MAX {
            self.known.clear();
        }
        self.known.insert(replica.to_owned(), found.clone());
        found
    }
}
