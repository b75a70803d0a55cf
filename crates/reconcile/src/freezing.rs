//! Which replicas may be frozen when nothing needs them.
//!
//! A frozen process answers nobody. So a replica that somebody asks whether it lives is never frozen, and neither is one
//! that no request wakes: what a worker holds (a message, a lock) it gives back when it is told to end, not when it stands
//! still.

use std::fmt;

use cove_model::{ContainerApp, ProbeKind, Template};

/// Why a replica has to go on running, or to end, and cannot be frozen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NeedsLife {
    /// The app has no ingress: no request would wake it.
    NoIngress,
    /// A container's own probe asks it for as long as it lives.
    Probe {
        /// Container.
        container: String,
        /// `Liveness` or `Readiness`.
        kind: ProbeKind,
    },
}

impl fmt::Display for NeedsLife {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoIngress => f.write_str("the app has no ingress, so no request would wake it"),
            Self::Probe { container, kind } => write!(
                f,
                "container '{container}' has a {} probe, which a frozen container cannot answer",
                format!("{kind:?}").to_lowercase()
            ),
        }
    }
}

/// What keeps replicas of a template from being frozen; `None` when nothing does. The platform's own probe of the target
/// port rests while a replica is frozen; a startup probe is over by then.
#[must_use]
pub fn needs_life(app: &ContainerApp, template: &Template) -> Option<NeedsLife> {
    if app.ingress.is_none() {
        return Some(NeedsLife::NoIngress);
    }
    template.containers.iter().find_map(|container| {
        let probe = container.probes.iter().find(|probe| probe.kind != ProbeKind::Startup)?;
        Some(NeedsLife::Probe { container: container.name.clone(), kind: probe.kind })
    })
}
