//! Connects the API's log streams to the monitor.

use std::sync::Arc;

use cove_control_plane::{ConsoleQuery, LogLine, LogStreams, SystemQuery};
use cove_model::SystemEvent;
use cove_monitor::Monitor;
use cove_runtime::{ExecError, ExecRequest, ExecSession, Runtime};
use futures_util::{
    StreamExt,
    future::{self, BoxFuture},
    stream::BoxStream,
};

/// The monitor and the driver, as the API sees them.
pub(crate) struct MonitorStreams(pub(crate) Monitor, pub(crate) Arc<dyn Runtime>);

impl LogStreams for MonitorStreams {
    fn console(&self, query: ConsoleQuery) -> BoxStream<'static, LogLine> {
        let query = cove_monitor::ConsoleQuery {
            app: query.app.to_string(),
            revision: Some(query.revision.to_string()),
            replica: Some(query.replica.to_string()),
            container: Some(query.container),
            tail: query.tail,
            follow: query.follow,
            as_copied: query.as_copied,
        };
        self.0
            .console(&query)
            .take_while(|row| future::ready(is_readable(row)))
            .filter_map(|row| future::ready(row.ok().map(|row| LogLine { at: row.at, text: row.log })))
            .boxed()
    }

    fn system(&self, query: SystemQuery) -> BoxStream<'static, SystemEvent> {
        let scope = Some(query.scope.to_string());
        let is_environment = query.scope.kind().eq_ignore_ascii_case("Microsoft.App/managedEnvironments");
        let (app, environment) = if is_environment { (None, scope) } else { (scope, None) };
        let query = cove_monitor::SystemQuery { app, environment, tail: query.tail, follow: query.follow };
        self.0
            .system(&query)
            .take_while(|row| future::ready(is_readable(row)))
            .filter_map(|row| future::ready(row.ok()))
            .boxed()
    }

    fn exec(&self, request: ExecRequest) -> BoxFuture<'static, Result<ExecSession, ExecError>> {
        self.1.exec(request)
    }

    fn tell(&self, event: SystemEvent) {
        if self.0.events().try_send(event).is_err() {
            tracing::debug!("a system event of the API was dropped: its keeper is behind or gone");
        }
    }
}

/// A reader that fails once would fail for ever: its stream ends.
fn is_readable<T>(row: &Result<T, cove_monitor::MonitorError>) -> bool {
    if let Err(error) = row {
        tracing::error!(error = error as &dyn std::error::Error, "logs could not be read");
    }
    row.is_ok()
}
