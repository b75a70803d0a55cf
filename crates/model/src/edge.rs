//! What an environment's edge knows besides its apps: certificates and path routing.

use serde::{Deserialize, Serialize};

use crate::{CustomDomain, ResourceId};

/// A certificate of an environment, uploaded or managed. Its private key is a secret of the resource, never in here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    /// Its id.
    pub id: ResourceId,
    /// Certificate chain in PEM, leaf first.
    pub chain_pem: String,
    /// Names it is valid for, lower case, wildcards as `*.example.com`.
    pub names: Vec<String>,
    /// How far its order is, when an authority outside signs it; `None` for uploaded ones and for those that the server's
    /// own authority signed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub order: Option<CertificateOrder>,
}

/// The order of a managed certificate at an authority outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CertificateOrder {
    /// How far it is.
    pub state: OrderState,
    /// How the domain is proven.
    pub validation: DomainValidation,
    /// What a TXT record of the domain must say, once the authority told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// What went wrong last, in words; a certificate that is there stays in use while its renewal fails.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// How far the order of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OrderState {
    /// Asked for; there is no certificate yet.
    Pending,
    /// There is a certificate.
    Succeeded,
    /// Refused by the authority; a new PUT tries again.
    Failed,
}

/// How an authority finds out that a domain is the asker's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DomainValidation {
    /// It asks the domain for a text over plain HTTP: Azure's `HTTP` and `CNAME`.
    Http,
    /// It looks for a TXT record, which the domain's owner writes: Azure's `TXT`.
    Txt,
}

/// Name of the secret that keeps a certificate's private key in PEM.
pub const CERTIFICATE_KEY_SECRET: &str = "private-key";

/// `httpRouteConfigs`: one host name whose paths lead to several apps.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRouteConfig {
    /// Its id; its host is `<name>.<default domain>`.
    pub id: ResourceId,
    /// More hosts.
    pub custom_domains: Vec<CustomDomain>,
    /// Rules; the first whose route matches serves.
    pub rules: Vec<HttpRouteRule>,
}

/// A rule: routes, and the apps that serve them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRouteRule {
    /// What is matched.
    pub routes: Vec<HttpRoute>,
    /// Who serves; weights together 100, or one alone.
    pub targets: Vec<HttpRouteTarget>,
}

/// One match.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRoute {
    /// How the path is compared.
    pub matcher: PathMatcher,
    /// Whether letter case matters; default true.
    pub is_case_sensitive: bool,
    /// What the matched part is replaced by.
    pub prefix_rewrite: Option<String>,
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatcher {
    /// The very path.
    Path(String),
    /// Begins with.
    Prefix(String),
    /// Begins with, followed by `/` or the end.
    PathSeparatedPrefix(String),
}

/// One app of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HttpRouteTarget {
    /// Name of an app of the environment.
    pub app: String,
    /// One of its revisions.
    pub revision: Option<String>,
    /// One of its labels.
    pub label: Option<String>,
    /// Share in percent; `None` when it is the only one.
    pub weight: Option<u32>,
}
