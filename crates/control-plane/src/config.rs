//! What the server tells this crate once, at its start.

use std::time::Duration;

use cove_model::{RequestLimits, SessionIsolation};
use cove_scaling::ScaleDefaults;

/// Settings of the API.
#[derive(Clone, Debug)]
pub struct Config {
    /// The one subscription, a GUID in lower case.
    pub subscription: String,
    /// The one tenant, a GUID in lower case.
    pub tenant: String,
    /// Suffix of environments' domains: `<environment>.<domain>`. Default `localhost`.
    pub domain: String,
    /// Address of the ingress that environments show as `staticIp`. Default `127.0.0.1`.
    pub static_ip: String,
    /// Who may call.
    pub auth: Auth,
    /// Hosts, besides loopback names, by which this server is called; only asked in [`Auth::OpenLoopback`], where it keeps
    /// web pages that rebind a name to 127.0.0.1 out. Default none.
    pub host_names: Vec<String>,
    /// Seconds that clients wait between two polls of an operation. Default 1; 0 in tests.
    pub retry_after_secs: u32,
    /// Life of access tokens. Default 1 h.
    pub token_lifetime: Duration,
    /// Silence after which a stream sends an empty line, so that dead clients are noticed. Default 15 s.
    pub heartbeat: Duration,
    /// Silence after which a console in a container is closed. Default 1 h.
    pub exec_idle: Duration,
    /// Longest console in a container. Default 12 h.
    pub exec_max: Duration,
    /// Longest that a request (not a stream) may take, its body included. Default 60 s; then 408.
    pub request_timeout: Duration,
    /// What the autoscaler gives to apps that set no mode and no constants: shown, and never decided by here. Default
    /// Azure's.
    pub scale_defaults: ScaleDefaults,
    /// Limits of requests where neither app nor environment says one: shown, and enforced by the ingress. Default Azure's.
    pub limit_defaults: RequestLimits,
    /// Session pools.
    pub sessions: Sessions,
}

/// What the server can do for session pools.
#[derive(Clone, Debug)]
pub struct Sessions {
    /// Isolation of a pool that does not say. Default [`SessionIsolation::Hardened`].
    pub default_isolation: SessionIsolation,
    /// What this machine can do; a pool that asks for another one is refused. Default [`SessionIsolation::Hardened`] only.
    pub isolations: Vec<SessionIsolation>,
    /// Port of the ingress for TLS, where it forwards `<pool>.<environment's domain>` to sessions; `None` shows endpoints as
    /// paths at the API's own address. Default `None`.
    pub https_port: Option<u16>,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            default_isolation: SessionIsolation::Hardened,
            isolations: vec![SessionIsolation::Hardened],
            https_port: None,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            subscription: "00000000-0000-0000-0000-0000000000aa".into(),
            tenant: "00000000-0000-0000-0000-0000000000bb".into(),
            domain: "localhost".into(),
            static_ip: "127.0.0.1".into(),
            auth: Auth::OpenLoopback { allow_anonymous: true },
            host_names: Vec::new(),
            retry_after_secs: 1,
            token_lifetime: Duration::from_secs(3600),
            heartbeat: Duration::from_secs(15),
            exec_idle: Duration::from_secs(3600),
            exec_max: Duration::from_secs(12 * 3600),
            request_timeout: Duration::from_secs(60),
            scale_defaults: ScaleDefaults::default(),
            limit_defaults: RequestLimits {
                request_timeout_secs: Some(240),
                idle_timeout_secs: Some(240),
                body_bytes_max: None,
                header_fields_max: Some(100),
                drain_grace_secs: Some(30),
            },
            sessions: Sessions::default(),
        }
    }
}

/// Who may call.
#[derive(Clone, Debug)]
pub enum Auth {
    /// A developer's machine: any credentials get a token. Only for servers bound to loopback.
    OpenLoopback {
        /// Whether requests with no token, or with one that is no JWT, are served too. Default true. An expired or
        /// wrongly signed JWT is refused always.
        allow_anonymous: bool,
    },
    /// Only these clients get tokens, and every request needs one.
    Clients(Vec<Client>),
}

/// A service principal of this server.
#[derive(Clone)]
pub struct Client {
    /// Application id.
    pub client_id: String,
    /// Its secret.
    pub secret: String,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("client_id", &self.client_id).finish_non_exhaustive()
    }
}
