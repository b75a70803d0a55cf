//! System events that the API itself tells about apps: what a write asked for and what has no effect.
//!
//! **Invariant:** a rehearsal tells nothing.

use cove_model::{ContainerApp, EventKind, SystemEvent};

use crate::control_plane::ControlPlane;

/// Tells a Warning per text.
pub(crate) fn warn(plane: &ControlPlane, app: &ContainerApp, texts: &[String]) {
    for text in texts {
        tell(plane, app, EventKind::Warning, "ConfigurationWarning", text.clone());
    }
}

/// Tells one event about an app.
pub(crate) fn tell(plane: &ControlPlane, app: &ContainerApp, kind: EventKind, reason: &str, message: String) {
    if plane.is_rehearsal() {
        return;
    }
    plane.streams().tell(SystemEvent {
        at: plane.clock().now(),
        kind,
        reason: reason.to_owned(),
        message,
        environment: Some(app.environment.to_string()),
        app: Some(app.id.to_string()),
        revision: None,
        replica: None,
        container: None,
        source: "ContainerAppController".to_owned(),
    });
}
