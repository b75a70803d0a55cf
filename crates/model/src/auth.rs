//! Authentication in front of an app: who may pass without a login, whom logins are asked of, and how long they hold.
//!
//! The values are ready to use: defaults are filled in and secrets are resolved, so that the ingress needs no store.
//!
//! **Invariant:** a secret appears in no `Debug` text and is never serialised.

use std::{fmt, time::Duration};

/// What the ingress asks of the callers of one app.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthPolicy {
    /// What a client without a login gets.
    pub action: UnauthenticatedAction,
    /// Provider that clients are sent to, by its name in paths; `None` sends them to the first.
    pub redirect_to: Option<String>,
    /// Paths that need no login: the whole path, or everything below it when it ends in `*`.
    pub excluded_paths: Vec<String>,
    /// Begin of the paths that the platform itself answers, without a slash at its end. Default `/.auth`.
    pub api_prefix: String,
    /// A further path that logs out.
    pub logout_path: Option<String>,
    /// Plain HTTP is redirected or refused. Default false: a developer's machine is served without TLS.
    pub requires_https: bool,
    /// How the address that the browser uses is known.
    pub origin: AuthOrigin,
    /// Whom logins are asked of; names differ.
    pub providers: Vec<AuthProvider>,
    /// Addresses of other hosts that a login or logout may lead to; their queries do not count.
    pub external_redirects: Vec<String>,
    /// How long a login holds; `None` as long as the provider's token. Default 8 h.
    pub session_time: Option<Duration>,
    /// How long a login may take. Default 5 min.
    pub nonce_time: Duration,
    /// Whether the token must carry the nonce of its request. Default true.
    pub checks_nonce: bool,
    /// Tokens of providers are kept and given to the app.
    pub keeps_tokens: bool,
    /// How long after its end a login can still be refreshed. Default 72 h.
    pub refresh_extension: Duration,
    /// The user's own secrets that sessions are sealed with, besides the server's.
    pub sealing_secrets: Vec<SecretText>,
}

/// `unauthenticatedClientAction`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnauthenticatedAction {
    /// A browser is sent to the provider, others get 401.
    #[default]
    RedirectToLoginPage,
    /// Everybody passes; who has a login is named to the app.
    AllowAnonymous,
    /// 401.
    Return401,
    /// 403.
    Return403,
}

/// `forwardProxy.convention`: where scheme and host of an address that the browser uses come from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AuthOrigin {
    /// The request itself.
    #[default]
    Request,
    /// `X-Forwarded-Host` and `X-Forwarded-Proto`.
    Forwarded,
    /// Headers of these names; a missing one is read from the request.
    Headers {
        /// With the host.
        host: Option<String>,
        /// With the scheme.
        scheme: Option<String>,
    },
}

/// Whom logins are asked of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthProvider {
    /// Its name in paths and headers: `aad`, `google`, the user's own.
    pub name: String,
    /// How it tells who somebody is.
    pub protocol: AuthProtocol,
    /// Where its OpenID Connect configuration is read; what is set below comes before it.
    pub discovery: Option<String>,
    /// `iss` of its tokens.
    pub issuer: Option<String>,
    /// Where the browser is sent.
    pub authorization_endpoint: Option<String>,
    /// Where a code is exchanged for tokens.
    pub token_endpoint: Option<String>,
    /// Where its keys are read.
    pub keys_endpoint: Option<String>,
    /// Where the user is read with an access token.
    pub user_endpoint: Option<String>,
    /// Our name at the provider.
    pub client_id: String,
    /// Our secret at the provider; `None` for a public client.
    pub client_secret: Option<SecretText>,
    /// What is asked for.
    pub scopes: Vec<String>,
    /// Further parameters of the address that the browser is sent to.
    pub login_parameters: Vec<(String, String)>,
    /// Claim with the user's name; `None` takes the usual ones.
    pub name_claim: Option<String>,
    /// Audiences of bearer tokens besides the client id.
    pub audiences: Vec<String>,
    /// Who may pass; empty: every user of the provider.
    pub allowed: AllowedPrincipals,
    /// Bearer tokens in `Authorization` are accepted.
    pub accepts_bearer: bool,
    /// 401 answers name the provider in `WWW-Authenticate`.
    pub challenges: bool,
}

/// How a provider tells who somebody is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthProtocol {
    /// By a signed ID token (OpenID Connect).
    OpenId,
    /// By an answer of its API to an access token (plain OAuth 2.0).
    OAuth2,
}

/// Users, groups and applications that may pass; an empty list does not restrict.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllowedPrincipals {
    /// Object ids or subjects of users.
    pub identities: Vec<String>,
    /// Values of the claim `groups`.
    pub groups: Vec<String>,
    /// Client ids of the applications that tokens were given to.
    pub applications: Vec<String>,
}

/// A text that is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(String);

impl SecretText {
    /// Keeps a text.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(text)
    }

    /// The text itself.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}
