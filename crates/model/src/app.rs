//! A container app: its configuration (application scope) and its template (revision scope).

use serde::{Deserialize, Serialize};

use crate::{CustomDomain, IngressPolicies, PortMapping, ResourceId, Template};

/// What the user asked of one container app.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerApp {
    /// Its id.
    pub id: ResourceId,
    /// The environment it lives in.
    pub environment: ResourceId,
    /// Which revisions may be active.
    pub active_revisions_mode: ActiveRevisionsMode,
    /// The way in, if any.
    pub ingress: Option<Ingress>,
    /// Registry logins.
    pub registries: Vec<Registry>,
    /// Inactive revisions that are kept, 0..=100, default 100.
    pub max_inactive_revisions: u32,
    /// The newest template.
    pub template: Template,
    /// `start`/`stop`: a stopped app runs nothing and answers 404 at its ingress.
    pub is_stopped: bool,
    /// Workload profile that its replicas run on; `None` is `Consumption`.
    #[serde(default)]
    pub workload_profile: Option<String>,
}

/// Which revisions may be active.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ActiveRevisionsMode {
    /// The newest ready one.
    #[default]
    Single,
    /// Those the user activated; traffic weights split requests.
    Multiple,
    /// Those a label points to.
    Labels,
}

/// The way in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ingress {
    /// Reachable from outside the environment.
    pub external: bool,
    /// Port in the replica; `None` means "find it" (the only port the image exposes).
    pub target_port: Option<u16>,
    /// Protocol to the app.
    pub transport: Transport,
    /// Whether plain HTTP is served; otherwise it is redirected to HTTPS.
    pub allow_insecure: bool,
    /// Shares per revision; empty means all to the latest ready.
    pub traffic: Vec<TrafficWeight>,
    /// Port that clients use, transport `tcp` only; `None` is the target port.
    #[serde(default)]
    pub exposed_port: Option<u16>,
    /// More TCP ports, at most 5.
    #[serde(default)]
    pub additional_ports: Vec<PortMapping>,
    /// Host names of the user's own.
    #[serde(default)]
    pub custom_domains: Vec<CustomDomain>,
    /// Who may call, from where, and how replicas are kept.
    #[serde(default)]
    pub policies: IngressPolicies,
}

/// Protocol to the app.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// HTTP/1.1 now, HTTP/2 by detection later.
    #[default]
    Auto,
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    Http2,
    /// Raw TCP.
    Tcp,
}

/// A share of traffic.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrafficWeight {
    /// Revision by name, or the latest ready one when `None`.
    pub revision: Option<String>,
    /// Percent, 0..=100; all together 100.
    pub weight: u32,
    /// Label, if any.
    pub label: Option<String>,
}

/// A registry login.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registry {
    /// Host, with a port if any.
    pub server: String,
    /// User name.
    pub username: Option<String>,
    /// Name of the app's secret with the password.
    pub password_secret_ref: Option<String>,
    /// `system` or the id of a user-assigned identity.
    pub identity: Option<String>,
}
