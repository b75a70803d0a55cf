//! Revisions: immutable snapshots of a template, and what is known of them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{Ingress, ResourceId, RevisionName, Template};

/// A snapshot of an app's template; never changed but for `active`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revision {
    /// `<app>--<suffix>`.
    pub name: RevisionName,
    /// The app it belongs to.
    pub app: ResourceId,
    /// Counts the app's revisions from 1: newer is larger.
    pub number: u64,
    /// What it runs.
    pub template: Template,
    /// Port and protocol at the time; application-scope changes reach it through the app.
    pub ingress: Option<Ingress>,
    /// Whether the user or the mode keeps it active.
    pub is_active: bool,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it was last set active.
    pub activated_at: Timestamp,
    /// Rises when its replicas must be replaced (`revision restart`).
    pub restart_generation: u64,
}

/// What is known of a revision; written by the controller only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevisionStatus {
    /// ARM's `provisioningState`.
    pub provisioning: RevisionProvisioning,
    /// ARM's `runningState`.
    pub running: RevisionRunning,
    /// ARM's `healthState`.
    pub health: RevisionHealth,
    /// Replicas that exist (not slots).
    pub replicas: u32,
    /// Ready ones among them.
    pub ready: u32,
    /// Created-not-started slots.
    #[serde(default)]
    pub slots: u32,
    /// Frozen replicas: they hold memory and wake with what they know.
    #[serde(default)]
    pub frozen: u32,
    /// Percent of the app's traffic.
    pub traffic_weight: u32,
    /// Why it failed or waits, in words.
    pub message: Option<String>,
    /// Since when it could serve for the first time.
    pub ready_at: Option<Timestamp>,
}

/// ARM's `provisioningState` of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevisionProvisioning {
    /// Image and first replica are on their way.
    #[default]
    Provisioning,
    /// It was ready once.
    Provisioned,
    /// It never became ready; the message says why.
    Failed,
    /// Being taken down.
    Deprovisioning,
    /// Taken down.
    Deprovisioned,
}

/// ARM's `runningState` of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevisionRunning {
    /// Replicas serve.
    Running,
    /// Replicas are being started or stopped.
    #[default]
    Processing,
    /// Inactive.
    Stopped,
    /// Some replicas are unhealthy.
    Degraded,
    /// All are, or none could be started.
    Failed,
    /// Serves with as many as allowed.
    RunningAtMaxScale,
    /// Active, nothing runs, the next request wakes it.
    ScaledToZero,
    /// Not known.
    Unknown,
}

/// ARM's `healthState` of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RevisionHealth {
    /// A replica is ready, or it is rightly at zero.
    Healthy,
    /// None is though some should be.
    Unhealthy,
    /// Nothing to say.
    #[default]
    None,
}

macro_rules! as_arm_string {
    ($($kind:ident),*) => {$(
        impl $kind {
            /// ARM's spelling.
            #[must_use]
            pub fn as_arm(self) -> String {
                format!("{self:?}")
            }
        }
    )*};
}
as_arm_string!(RevisionProvisioning, RevisionRunning, RevisionHealth);

impl Revision {
    /// Its key on this server.
    #[must_use]
    pub fn key(&self) -> crate::RevisionKey {
        crate::RevisionKey { app: self.app.clone(), name: self.name.clone() }
    }
}
