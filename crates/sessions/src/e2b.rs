//! An E2B-shaped door to pools (extension): sandboxes, code, commands and files for programs that were written with the `e2b`
//! and `e2b-code-interpreter` SDKs.
//!
//! A sandbox is a session of a pool whose identifier this module made up. The pool's own API key, the one of its MCP server,
//! is the API key; the template's name is the pool's. What runs in the sandbox (commands, files) goes through the driver's
//! exec, so any image with a shell can be a template; code goes to the interpreters of built-in kinds.
//! Source: the wire that `e2b` 2.x (PyPI) speaks: its REST API, and `envd`'s two services over Connect with JSON.
//!
//! **Invariant:** a key reaches sandboxes of its own pool, and a sandbox's token that sandbox only. **Invariant:** a sandbox
//! ends at its `endAt`, also when the server was down then.

use std::{fmt, sync::Arc};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use camino::Utf8PathBuf;
use cove_base::Clock;
use cove_runtime::{ExecError, ExecRequest, ExecSession};
use futures_util::future::BoxFuture;
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};

use crate::{answer::Refused, service::Service};

mod api;
mod boxes;
mod code;
mod connect;
mod files;
mod process;

use boxes::{Boxes, Sandbox};

/// Where the API stands; `E2B_API_URL` of the SDKs.
pub(crate) const API: &str = "/e2b/";
/// Where requests to sandboxes go, below [`API`]; `E2B_SANDBOX_URL`.
const SANDBOX: &str = "sandbox/";
/// The version of `envd` whose wire this is: raw uploads, users that need no name.
const ENVD_VERSION: &str = "0.5.7";
/// Ports that the SDKs name for code and for all else.
const CODE_PORT: &str = "49999";
const ENVD_PORT: &str = "49983";

/// Runs a command in a session.
pub type Exec = Arc<dyn Fn(ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>> + Send + Sync>;

/// What this door needs beyond [`crate::Ports`].
#[derive(Clone)]
pub struct E2bPorts {
    /// Commands.
    pub exec: Exec,
    /// Time.
    pub clock: Clock,
    /// Folder that keeps what sandboxes are, a small file each. Is made.
    pub dir: Utf8PathBuf,
}

impl fmt::Debug for E2bPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("E2bPorts").field("dir", &self.dir).finish_non_exhaustive()
    }
}

/// The door.
pub(crate) struct E2b {
    exec: Exec,
    clock: Clock,
    boxes: Arc<Boxes>,
    processes: process::Processes,
}

impl E2b {
    pub(crate) fn new(ports: E2bPorts) -> Self {
        Self {
            exec: ports.exec,
            clock: ports.clock.clone(),
            boxes: Arc::new(Boxes::new(ports.dir, ports.clock)),
            processes: process::Processes::default(),
        }
    }
}

impl Service {
    /// Takes up the sandboxes of the server before this one, and ends each at its time until `stopped`; their sessions are
    /// looked for once `known`.
    pub async fn keep_sandboxes(
        self: Arc<Self>,
        known: impl Future<Output = ()> + Send,
        stopped: impl Future<Output = ()> + Send,
    ) {
        if let Some(e2b) = &self.e2b {
            e2b.boxes.keep(&self.ports.pools, known, stopped).await;
        }
    }

    /// Answers a request below [`API`].
    pub(crate) async fn e2b(self: &Arc<Self>, e2b: &Arc<E2b>, request: Request<Body>) -> Response {
        let path = request.uri().path().strip_prefix(API).unwrap_or_default().trim_end_matches('/').to_owned();
        let answered = match path.strip_prefix(SANDBOX) {
            Some(inner) => self.in_sandbox(e2b, inner, request).await,
            None => self.e2b_api(e2b, &path, request).await,
        };
        answered.unwrap_or_else(|refused| refused_json(&refused))
    }

    /// A request to a sandbox: which one and which of its two services is said by headers.
    async fn in_sandbox(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        path: &str,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let port = text(request.headers(), "e2b-sandbox-port").to_owned();
        let sandbox = self.sandbox_of(e2b, request.headers())?;
        match (port.as_str(), request.method(), path) {
            (ENVD_PORT, &Method::GET, "health") => Ok(StatusCode::NO_CONTENT.into_response()),
            (ENVD_PORT, &Method::GET | &Method::POST, "files") => self.e2b_files(e2b, &sandbox, request).await,
            (ENVD_PORT, &Method::POST, path) if path.starts_with("filesystem.Filesystem/") => {
                self.e2b_filesystem(e2b, &sandbox, path, request).await
            }
            (ENVD_PORT, &Method::POST, path) if path.starts_with("process.Process/") => {
                self.e2b_process(e2b, &sandbox, path, request).await
            }
            (CODE_PORT, &Method::POST, "execute") => self.e2b_execute(e2b, &sandbox, request).await,
            (CODE_PORT, _, "contexts") => {
                Err(not_built("Contexts of code are not built: a sandbox has one, its default"))
            }
            (ENVD_PORT | CODE_PORT, ..) => Err(Refused::new(404, "NotFound", "A sandbox has no such path.")),
            _ => Err(not_built(
                "Ports of a sandbox other than those of code, files and commands are not reached by this door",
            )),
        }
    }

    /// The sandbox that a request's headers name, if its token is right and it still is.
    fn sandbox_of(&self, e2b: &E2b, headers: &HeaderMap) -> Result<Arc<Sandbox>, Refused> {
        // an unknown sandbox and a wrong token are not told apart: both say the sandbox is not there for this caller
        let gone = || Refused::new(502, "SandboxNotFound", "The sandbox was not found.");
        let sandbox = e2b.boxes.find(text(headers, "e2b-sandbox-id")).ok_or_else(gone)?;
        if !sandbox.is_token(text(headers, "x-access-token").as_bytes()) {
            return Err(Refused::new(401, "AuthenticationFailed", "`X-Access-Token` is not this sandbox's."));
        }
        if self.is_alive(e2b, &sandbox) { Ok(sandbox) } else { Err(gone()) }
    }

    /// Whether the session that a sandbox began with is still there.
    fn is_alive(&self, e2b: &E2b, sandbox: &Sandbox) -> bool {
        e2b.boxes.is_alive(sandbox, &*self.ports.pools)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn not_built(what: &str) -> Refused {
    Refused::new(501, "NotImplemented", format!("{what}; see the guide of session pools, E2B."))
}

/// A refusal in E2B's shape.
fn refused_json(refused: &Refused) -> Response {
    let status = StatusCode::from_u16(refused.error.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let body: Value =
        json!({ "code": status.as_u16(), "message": refused.error.message, "errorCode": refused.error.code });
    (status, axum::Json(body)).into_response()
}
