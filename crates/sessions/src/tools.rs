//! Ways into a session beside its own port: a console, files, and what it printed. They stand below `.management/`, so that
//! no path of a container is taken away, and are carried out by whoever knows the driver and the logs.
//!
//! A console and files count as a request: they allocate a session, keep it in use, and set its cool-down anew. Logs do
//! neither: those of a session that has ended are asked for after it.
//!
//! **Invariant:** the token was checked before anything here.

use std::sync::Arc;

use axum::{body::Body, response::Response};
use cove_model::{ReplicaName, ResourceId, SessionIdentifier};
use futures_util::future::BoxFuture;
use http::{Method, Request};

use crate::{
    answer::Refused,
    ports::{Lease, PoolInfo},
    service::{Service, identifier_of, parameter},
};

/// What carries them out.
pub trait Tools: Send + Sync + 'static {
    /// Opens a console in the session over the WebSocket that the request asks for. The lease is held until it ends.
    fn console(&self, lease: Lease, asked: ConsoleAsked, request: Request<Body>) -> BoxFuture<'static, Answered>;

    /// Gives (`GET`) or takes (`PUT`) a tar stream of files below `path`. The lease is held until that is done.
    fn files(&self, lease: Lease, path: String, request: Request<Body>) -> BoxFuture<'static, Answered>;

    /// Streams what sessions printed, or the pool's events; the query's other parameters are `follow`, `tailLines`, `output`.
    fn logs(&self, asked: LogsAsked, query: String) -> BoxFuture<'static, Answered>;
}

/// An answer, or what is wrong.
pub type Answered = Result<Response, Refused>;

/// A command for a console.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsoleAsked {
    /// The command line; empty: a shell.
    pub command: String,
    /// With a terminal.
    pub tty: bool,
}

/// Whose output is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogsAsked {
    /// Of which pool.
    pub pool: ResourceId,
    /// Of which sessions.
    pub whose: Whose,
}

/// Which sessions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The newest one that an identifier got.
    Identifier(SessionIdentifier),
    /// The one of this GUID.
    Guid(String),
    /// All, those that wait ready among them.
    All,
    /// The pool itself: its system events.
    Events,
}

/// One of these paths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tool {
    Exec,
    Files,
    Logs,
    Events,
}

impl Tool {
    pub(crate) fn of(path: &str) -> Option<Self> {
        let path = path.trim_matches('/').to_ascii_lowercase();
        match path.strip_prefix(".management/")? {
            "exec" => Some(Self::Exec),
            "files" => Some(Self::Files),
            "logstream" => Some(Self::Logs),
            "eventstream" => Some(Self::Events),
            _ => None,
        }
    }
}

impl Service {
    /// Answers a path of this file.
    pub(crate) async fn answer_tool(
        self: &Arc<Self>,
        tool: Tool,
        pool: &PoolInfo,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let Some(tools) = self.ports.tools.clone() else {
            return Err(Refused::new(
                501,
                "NotImplemented",
                "This server has no way into sessions but their own port.",
            ));
        };
        let query = request.uri().query().unwrap_or_default().to_owned();
        match (tool, request.method()) {
            (Tool::Exec, &Method::GET) => {
                let asked = console_asked(&query)?;
                let lease = self.ports.pools.allocate(&pool.id, &identifier_of(&query)?).await?;
                tools.console(lease, asked, request).await
            }
            (Tool::Files, &(Method::GET | Method::PUT)) => {
                let path = parameter(&query, "path")?.filter(|path| !path.is_empty() && !path.contains('\0'));
                let words =
                    "The query parameter `path` is missing or not a path; name a file or directory of the session.";
                let path = path.ok_or_else(|| Refused::new(400, "InvalidQueryParameter", words))?;
                let lease = self.ports.pools.allocate(&pool.id, &identifier_of(&query)?).await?;
                tools.files(lease, path, request).await
            }
            (Tool::Logs, &Method::GET) => {
                let whose = match (parameter(&query, "identifier")?, parameter(&query, "session")?) {
                    (Some(_), Some(_)) => {
                        let words = "Give either `identifier` or `session`, not both.";
                        return Err(Refused::new(400, "InvalidQueryParameter", words));
                    }
                    (Some(_), None) => Whose::Identifier(identifier_of(&query)?),
                    (None, Some(guid)) => Whose::Guid(guid.chars().take(64).collect()),
                    (None, None) => Whose::All,
                };
                tools.logs(LogsAsked { pool: pool.id.clone(), whose }, query).await
            }
            (Tool::Events, &Method::GET) => {
                tools.logs(LogsAsked { pool: pool.id.clone(), whose: Whose::Events }, query).await
            }
            _ => Err(Refused::new(405, "MethodNotAllowed", "The path is not for this method.")),
        }
    }
}

fn console_asked(query: &str) -> Result<ConsoleAsked, Refused> {
    let tty = match parameter(query, "tty")?.as_deref().map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "true" | "1") => true,
        Some("false" | "0") => false,
        Some(_) => return Err(Refused::new(400, "InvalidQueryParameter", "`tty` must be true or false.")),
    };
    Ok(ConsoleAsked { command: parameter(query, "command")?.unwrap_or_default(), tty })
}

/// The replica of a lease: what drivers know it by.
#[must_use]
pub fn replica_of(lease: &Lease) -> ReplicaName {
    lease.allocation.session.replica.clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_paths_below_management_are_tools() {
        let of = |path: &str| Tool::of(path);
        assert_eq!((of("/.management/exec"), of("/.Management/LogStream/")), (Some(Tool::Exec), Some(Tool::Logs)));
        for path in ["/exec", "/logstream", "/files", "/.management/", "/.management/exec/more", "/x/.management/exec"]
        {
            assert_eq!(of(path), None, "{path}");
        }
    }

    #[test]
    fn a_console_has_a_terminal_unless_told_otherwise() {
        let asked = |query: &str| console_asked(query).map(|asked| (asked.command, asked.tty));
        assert_eq!(asked("identifier=abcd").unwrap(), (String::new(), true));
        assert_eq!(asked("command=ls%20-l&tty=false").unwrap(), ("ls -l".to_owned(), false));
        assert_eq!(asked("tty=perhaps").unwrap_err().error.code, "InvalidQueryParameter");
    }
}
