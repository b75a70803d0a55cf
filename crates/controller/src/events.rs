//! System events of apps and revisions, with ACA's reasons.
//!
//! **Invariant:** telling never waits: when the reader is far behind, events are dropped and the drop is logged once.

use cove_base::Clock;
use cove_model::{ContainerApp, EventKind, ReplicaName, RevisionName, SystemEvent};
use tokio::sync::mpsc;

/// Who tells them.
#[derive(Clone, Debug)]
pub(crate) struct Teller {
    pub(crate) events: mpsc::Sender<SystemEvent>,
    pub(crate) clock: Clock,
}

/// What an event is about.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct About<'a> {
    pub(crate) revision: Option<&'a RevisionName>,
    pub(crate) replica: Option<&'a ReplicaName>,
}

impl Teller {
    pub(crate) fn normal(&self, app: &ContainerApp, about: About<'_>, reason: &str, message: String) {
        self.tell(EventKind::Normal, app, about, reason, message);
    }

    pub(crate) fn warning(&self, app: &ContainerApp, about: About<'_>, reason: &str, message: String) {
        self.tell(EventKind::Warning, app, about, reason, message);
    }

    fn tell(&self, kind: EventKind, app: &ContainerApp, about: About<'_>, reason: &str, message: String) {
        let event = SystemEvent {
            at: self.clock.now(),
            kind,
            reason: reason.to_owned(),
            message,
            environment: Some(app.environment.to_string()),
            app: Some(app.id.to_string()),
            revision: about.revision.map(ToString::to_string),
            replica: about.replica.map(ToString::to_string),
            container: None,
            source: "ContainerAppController".to_owned(),
        };
        if self.events.try_send(event).is_err() {
            tracing::debug!(app = %app.id, reason, "a system event was dropped: its reader is behind or gone");
        }
    }
}
