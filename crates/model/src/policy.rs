//! What the ingress does with a request besides passing it on: who may call, from which origins, how replicas are kept.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{AuthPolicy, RequestLimits, Resiliency, ResourceId};

/// Rules of one app's way in; the default asks for nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IngressPolicies {
    /// Who may call: all allow or all deny, never mixed; empty lets everybody in.
    pub ip_restrictions: Vec<IpRestriction>,
    /// Cross-origin rules; `None` leaves them to the app.
    pub cors: Option<CorsPolicy>,
    /// `stickySessions.affinity: sticky`: a client stays at its replica, by cookie.
    pub is_sticky: bool,
    /// What is asked of the client at the TLS handshake.
    pub client_certificate: ClientCertificateMode,
    /// How calls to the app are kept from failing; the app's `resiliencyPolicies`.
    pub resiliency: Resiliency,
    /// How long and how large requests may be.
    pub limits: RequestLimits,
    /// `coveProxyProtocol`: a header that tells the app of a TCP connection who its client is; `None`: nothing is sent.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// `coveAccessLog`: which requests get a row of the access log; `None` leaves it to the server's `[logs] http`.
    pub access_log: Option<AccessLog>,
    /// Calls from apps of the same environment say which one calls: the environment's `peerAuthentication.mtls`.
    pub names_callers: bool,
    /// Who must log in; the app's `authConfigs/current` with its secrets, so it is never stored with the app.
    #[serde(skip)]
    pub auth: Option<Arc<AuthPolicy>>,
}

/// Which requests get a row of the access log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AccessLog {
    /// Every one.
    #[default]
    All,
    /// Those with a status of 400 or more, and those whose answer was cut.
    Errors,
    /// None.
    Off,
}

/// Version of the PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProxyProtocol {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// One line of `ipSecurityRestrictions`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpRestriction {
    /// Its name.
    pub name: String,
    /// Whether the range may call or may not.
    pub is_allow: bool,
    /// IPv4 or IPv6 network in CIDR notation, host bits cleared: `10.0.0.0/8`.
    pub range: String,
}

/// `corsPolicy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CorsPolicy {
    /// Origins, `*` for all.
    pub allowed_origins: Vec<String>,
    /// Methods, `*` for all.
    pub allowed_methods: Vec<String>,
    /// Request headers, `*` for all.
    pub allowed_headers: Vec<String>,
    /// Response headers that scripts may read.
    pub expose_headers: Vec<String>,
    /// How long a preflight answer may be kept, in seconds.
    pub max_age_secs: Option<u32>,
    /// Whether credentials may be sent.
    pub allow_credentials: bool,
}

/// `clientCertificateMode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ClientCertificateMode {
    /// Not asked for.
    #[default]
    Ignore,
    /// Asked for, passed on when given.
    Accept,
    /// Refused without one.
    Require,
}

/// A host name of the user's own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CustomDomain {
    /// Host name, lower case.
    pub name: String,
    /// The certificate that is served for it; `None` serves plain HTTP only (binding `Disabled`).
    pub certificate: Option<ResourceId>,
}

/// One of `additionalPortMappings`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    /// Reachable from outside the environment.
    pub external: bool,
    /// Port in the replica.
    pub target_port: u16,
    /// Port that clients use; the target port when not given.
    pub exposed_port: u16,
}
