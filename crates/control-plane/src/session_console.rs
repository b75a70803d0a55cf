//! Consoles in sessions of pools and streams of what they print, for whoever has checked the token and found the session:
//! the same frames, lines, limits and places as those of apps.
//!
//! **Invariant:** what keeps a session in use is held until its console has ended.

use std::{any::Any, sync::Arc};

use axum::{body::Body, response::Response};
use cove_arm::ArmError;
use cove_model::{ReplicaName, ResourceId, RevisionKey};
use cove_runtime::ExecRequest;
use futures_util::{StreamExt, stream::BoxStream};
use http::Request;
use hyper::upgrade::OnUpgrade;

use crate::{
    answer::Refusal,
    control_plane::ControlPlane,
    exec,
    streams::{SystemQuery, event_line, respond},
    websocket::Handshake,
};

/// How far the images of a pool's generation are, in percent; `None`: they are not being pulled. Must not block.
pub type PulledPercent = Arc<dyn Fn(&RevisionKey) -> Option<u8> + Send + Sync>;

/// A command to run in a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionConsole {
    /// The session's replica.
    pub replica: ReplicaName,
    /// Its container.
    pub container: String,
    /// The command line, split as a shell does; empty: `sh`.
    pub command: String,
    /// With a terminal.
    pub tty: bool,
}

impl ControlPlane {
    /// Opens a console in a session over the WebSocket that `request` asks for; `guard` is dropped when it has ended.
    ///
    /// # Errors
    /// When the command cannot be read, the request is no handshake, or too many streams are open.
    pub async fn session_console(
        &self,
        asked: SessionConsole,
        mut request: Request<Body>,
        guard: Box<dyn Any + Send>,
    ) -> Result<Response, ArmError> {
        let command = exec::words_of(&asked.command).map_err(refused)?;
        let handshake = Handshake::of_parts(request.extensions_mut().remove::<OnUpgrade>(), request.headers())?;
        let SessionConsole { replica, container, tty, .. } = asked;
        let order = ExecRequest { replica, container, command, tty, is_debug: false };
        exec::begin(self, order, handshake, "a holder of a token for sessions", guard).await.map_err(refused)
    }

    /// Streams lines as those of an app's console.
    ///
    /// # Errors
    /// When too many streams are open.
    pub fn session_lines(
        &self,
        lines: BoxStream<'static, String>,
        as_text: bool,
        goes_on: Box<dyn Fn() -> bool + Send>,
    ) -> Result<Response, ArmError> {
        respond(self, lines, as_text, goes_on).map_err(refused)
    }

    /// Streams the system events of a pool.
    ///
    /// # Errors
    /// When too many streams are open.
    pub fn session_events(&self, scope: ResourceId, tail: u32, follow: bool) -> Result<Response, ArmError> {
        let lines = self.streams().system(SystemQuery { scope, tail, follow }).map(|event| event_line(&event));
        respond(self, lines.boxed(), false, Box::new(|| true)).map_err(refused)
    }

    /// Gives the API who knows how far images of session pools are. Later ones do not count.
    pub fn set_pulled_percent(&self, percent: PulledPercent) {
        let _there_already = self.pulled().set(percent);
    }
}

fn refused(refusal: Refusal) -> ArmError {
    refusal.into_arm("a session")
}
