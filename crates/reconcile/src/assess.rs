//! Whether a revision is being brought up, was ready, or has failed, and in whose words.
//!
//! A revision that was ready once stays `Provisioned`, whatever its replicas do later; one that never was fails with the
//! first of: images that cannot be had, no port to send to, a crash loop, a deadline. A failed one is still tried with
//! one replica, and heals when that becomes ready.

use cove_model::{ReplicaObservation, ReplicaPhase, RevisionProvisioning};
use jiff::{SignedDuration, Timestamp};

use crate::{
    Amount, AppView, Images, RevisionView, Settings,
    memory::{Note, RevisionMemory},
};

/// What is known of a revision this round.
#[derive(Clone, Debug)]
pub(crate) struct Assessment {
    pub(crate) provisioning: RevisionProvisioning,
    pub(crate) message: Option<String>,
    pub(crate) ready_at: Option<Timestamp>,
    pub(crate) port: Port,
    /// Ready replicas that take requests.
    pub(crate) ready: u32,
}

impl Assessment {
    /// Nothing of it is ready, and a request that waits would wait in vain.
    pub(crate) fn cannot_serve(&self, revision: &RevisionView<'_>, settings: &Settings) -> bool {
        if self.ready > 0 {
            return false;
        }
        let containers = || revision.replicas.iter().flat_map(|replica| &replica.containers);
        self.provisioning == RevisionProvisioning::Failed
            || containers().any(|c| !c.is_ready && c.last_exit.is_some() && c.restarts >= settings.crash_restarts_max)
    }
}

/// The port that requests go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// The app has no ingress.
    None,
    /// This one.
    Known(u16),
    /// The images must say, and they are not here yet.
    Unknown,
    /// The images do not say.
    Impossible(String),
}

impl Port {
    pub(crate) fn known(&self) -> Option<u16> {
        match self {
            Self::Known(port) => Some(*port),
            Self::None | Self::Unknown | Self::Impossible(_) => None,
        }
    }

    pub(crate) fn of(view: &AppView<'_>, revision: &RevisionView<'_>) -> Self {
        let Some(ingress) = &view.app.ingress else { return Self::None };
        if let Some(port) = ingress.target_port {
            return Self::Known(port);
        }
        let Images::Ready { exposed_ports } = revision.images else { return Self::Unknown };
        let containers = &revision.revision.template.containers;
        let exposed = containers.iter().find_map(|container| exposed_ports.get(&container.image).copied().flatten());
        exposed.map_or_else(
            || {
                let image = containers.first().map_or("", |container| container.image.as_str());
                Self::Impossible(format!(
                    "the ingress has no `targetPort`, and image `{image}` does not expose exactly one TCP port; \
                     set `ingress.targetPort` to the port that the app listens on"
                ))
            },
            Self::Known,
        )
    }
}

/// Whether this replica may take requests as far as the planner is concerned.
pub(crate) fn takes_requests(replica: &ReplicaObservation, note: Option<&Note>) -> bool {
    replica.phase == ReplicaPhase::Running
        && replica.is_ready
        && note.is_none_or(|note| note.drain_since.is_none() && note.stop_ordered_at.is_none() && !note.condemned)
}

/// Looks at one active revision of an app that is not stopped.
pub(crate) fn assess(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    memory: &mut RevisionMemory,
    initial: u32,
    now: Timestamp,
) -> Assessment {
    let settings = view.settings;
    let status = revision.status;
    memory.forget_old_failures(now, settings.failure_window);
    let ready = revision.replicas.iter().filter(|replica| takes_requests(replica, memory.notes.get(&replica.name)));
    let ready = u32::try_from(ready.count()).unwrap_or(u32::MAX);
    let port = Port::of(view, revision);
    let found =
        |provisioning, message, ready_at| Assessment { provisioning, message, ready_at, port: port.clone(), ready };
    match status.provisioning {
        RevisionProvisioning::Provisioned => {
            let trouble = (ready == 0).then(|| trouble(revision)).flatten();
            return found(RevisionProvisioning::Provisioned, trouble, status.ready_at);
        }
        RevisionProvisioning::Failed if ready == 0 => {
            return found(RevisionProvisioning::Failed, status.message.clone(), status.ready_at);
        }
        RevisionProvisioning::Failed
        | RevisionProvisioning::Provisioning
        | RevisionProvisioning::Deprovisioning
        | RevisionProvisioning::Deprovisioned => {}
    }
    let since = *memory.attempt_since.get_or_insert(now);
    memory.first_ready_at = (ready > 0).then(|| memory.first_ready_at.unwrap_or(now));
    let is_enough = ready >= initial
        || memory.first_ready_at.is_some_and(|first| now.duration_since(first) >= settings.switch_patience)
        || (ready > 0 && status.provisioning == RevisionProvisioning::Failed);
    if is_enough && ready > 0 {
        memory.provisioned_at = Some(now);
        return found(RevisionProvisioning::Provisioned, None, status.ready_at.or(Some(now)));
    }
    if let Some(why) = failure(view, revision, memory, &port, now.duration_since(since)) {
        return found(RevisionProvisioning::Failed, Some(why), status.ready_at);
    }
    let waits = shortage(view, revision).or_else(|| waiting_for(revision));
    found(RevisionProvisioning::Provisioning, waits, status.ready_at)
}

/// Why a revision that never was ready will not be, if so.
fn failure(
    view: &AppView<'_>,
    revision: &RevisionView<'_>,
    memory: &RevisionMemory,
    port: &Port,
    tried_for: SignedDuration,
) -> Option<String> {
    let settings = view.settings;
    let is_late = tried_for >= settings.provisioning_deadline;
    if let Images::Failed { message, retryable } = revision.images
        && memory.images_asked_now
        && (!retryable || tried_for >= settings.images_patience)
    {
        return Some(message.clone());
    }
    if let Port::Impossible(why) = port {
        return Some(why.clone());
    }
    if let Some(why) = crash_loop(revision, settings) {
        return Some(why);
    }
    if memory.failures() >= settings.failed_replicas_max {
        return memory.last_failure.clone();
    }
    if tried_for >= settings.capacity_patience
        && let Some(why) = shortage(view, revision)
    {
        return Some(why);
    }
    if !is_late {
        return None;
    }
    let minutes = settings.provisioning_deadline.as_secs() / 60;
    let detail =
        trouble(revision).or_else(|| memory.last_failure.clone()).or_else(|| waiting_for(revision)).unwrap_or_default();
    let hint = port.known().map_or_else(String::new, |port| {
        format!("; check that the app listens on port {port} and that its probes can pass")
    });
    Some(format!("no replica became ready within {minutes} min: {detail}{hint}"))
}

/// A container that ends again and again, or whose program cannot be run at all.
fn crash_loop(revision: &RevisionView<'_>, settings: &Settings) -> Option<String> {
    let never_ready = revision.replicas.iter().filter(|replica| replica.ready_at.is_none());
    never_ready.flat_map(|replica| &replica.containers).find_map(|container| {
        let exit = container.last_exit.as_ref()?;
        let cannot_run = exit.reason == "ContainerCannotRun";
        (cannot_run || container.restarts >= settings.crash_restarts_max).then(|| exit_text(&container.name, exit))
    })
}

/// What is wrong with replicas of a revision that should be ready, in words.
pub(crate) fn trouble(revision: &RevisionView<'_>) -> Option<String> {
    let containers = revision.replicas.iter().flat_map(|replica| &replica.containers);
    containers
        .filter(|container| !container.is_ready)
        .find_map(|container| container.last_exit.as_ref().map(|exit| exit_text(&container.name, exit)))
}

fn exit_text(container: &str, exit: &cove_model::ContainerExit) -> String {
    let detail = exit.message.as_ref().map_or_else(String::new, |message| format!(": {message}"));
    format!("container `{container}` ended with exit code {} ({}){detail}", exit.code, exit.reason)
}

/// How a replica ended, for the record.
pub(crate) fn end_text(replica: &ReplicaObservation) -> String {
    replica
        .containers
        .iter()
        .find_map(|container| container.last_exit.as_ref().map(|exit| (container, exit)))
        .map_or_else(
            || match replica.phase {
                ReplicaPhase::Failed => format!("replica `{}` could not be made", replica.name),
                ReplicaPhase::Preparing
                | ReplicaPhase::Prepared
                | ReplicaPhase::Running
                | ReplicaPhase::Frozen
                | ReplicaPhase::Stopping
                | ReplicaPhase::Stopped => format!("replica `{}` ended unexpectedly", replica.name),
            },
            |(container, exit)| exit_text(&container.name, exit),
        )
}

/// What is short when nothing of a revision could be started for want of room.
fn shortage(view: &AppView<'_>, revision: &RevisionView<'_>) -> Option<String> {
    let is_started = |replica: &ReplicaObservation| replica.phase == ReplicaPhase::Running;
    if revision.replicas.iter().any(is_started) {
        return None;
    }
    view.room.shortage(Amount::of(&revision.revision.template))
}

/// What the revision waits for, in words.
fn waiting_for(revision: &RevisionView<'_>) -> Option<String> {
    match revision.images {
        Images::Unknown => Some("waiting for its images".to_owned()),
        Images::Pulling { percent } => Some(format!("pulling its images ({percent} %)")),
        Images::Failed { message, .. } => Some(message.clone()),
        Images::Ready { .. } => {
            let not_ready = revision.replicas.iter().filter(|replica| !replica.is_ready);
            let waiting =
                not_ready.flat_map(|replica| &replica.containers).find_map(|container| match &container.state {
                    cove_model::ContainerState::Waiting { reason, .. } => {
                        Some(format!("container `{}` waits: {reason}", container.name))
                    }
                    cove_model::ContainerState::Running { .. } | cove_model::ContainerState::Terminated => None,
                });
            waiting.or_else(|| Some("waiting for its replicas to be ready".to_owned()))
        }
    }
}
