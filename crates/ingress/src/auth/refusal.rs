//! Why a request did not get past the login, in words that help its user and tell an attacker nothing.

use http::{HeaderValue, StatusCode};

use super::{fetch::FetchError, jwt::TokenError, provider::ProviderDown};

/// Why the ingress did not let somebody in, or could not log somebody in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthRefusal {
    /// Nobody is logged in, and the app does not send its callers to a login page.
    #[error("this app needs a login; log in with a browser or send a bearer token of its identity provider")]
    LoginRequired {
        /// The answer names the way to authenticate.
        is_challenged: bool,
    },
    /// The app answers everybody without a login so.
    #[error("this app lets in only who is logged in")]
    LoginForbidden,
    /// A token in `Authorization` that does not count.
    #[error("the bearer token is not accepted: {0}")]
    TokenInvalid(TokenError),
    /// Logged in, but none of those that the app lets in.
    #[error("you are logged in, but this app does not let you in; ask its owner")]
    PrincipalNotAllowed,
    /// The provider did not log the user in.
    #[error("the login failed: {0}")]
    LoginFailed(String),
    /// No login of this browser leads here, or it took too long.
    #[error("this login was begun in another browser or too long ago; begin it again")]
    LoginStateInvalid,
    /// A login or logout that would lead to another site.
    #[error(
        "the address to go to afterwards is not allowed; it must be on this host or listed in `allowedExternalRedirectUrls`"
    )]
    RedirectNotAllowed,
    /// Below the prefix there is no such thing.
    #[error("there is nothing at this path; the platform answers at `login/<provider>`, `logout`, `me` and `refresh`")]
    PathUnknown,
    /// Not a method for this path.
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// The app has no such provider.
    #[error("this app has no identity provider of this name")]
    ProviderUnknown,
    /// Plain HTTP.
    #[error("this app is served over HTTPS only; call it so")]
    HttpsRequired,
    /// The provider is down.
    #[error("{0}")]
    ProviderDown(String),
    /// There is no refresh token.
    #[error(
        "this login cannot be refreshed: the token store is off, or the provider gave no refresh token; ask for the scope `offline_access`"
    )]
    NoRefreshToken,
    /// A body that cannot be read.
    #[error("the request's body is not what this path expects, or too long")]
    BodyInvalid,
    /// The session could not be written.
    #[error("the login could not be kept; see the server's log")]
    NotKept,
}

impl AuthRefusal {
    /// Status and code; one line per case, so that a new case must choose.
    pub(crate) fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::LoginRequired { .. } => (StatusCode::UNAUTHORIZED, "login-required"),
            Self::LoginForbidden => (StatusCode::FORBIDDEN, "login-forbidden"),
            Self::TokenInvalid(_) => (StatusCode::UNAUTHORIZED, "token-invalid"),
            Self::PrincipalNotAllowed => (StatusCode::FORBIDDEN, "principal-not-allowed"),
            Self::LoginFailed(_) => (StatusCode::UNAUTHORIZED, "login-failed"),
            Self::LoginStateInvalid => (StatusCode::BAD_REQUEST, "login-state-invalid"),
            Self::RedirectNotAllowed => (StatusCode::BAD_REQUEST, "redirect-not-allowed"),
            Self::PathUnknown => (StatusCode::NOT_FOUND, "auth-path-unknown"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "auth-method-not-allowed"),
            Self::ProviderUnknown => (StatusCode::NOT_FOUND, "identity-provider-unknown"),
            Self::HttpsRequired => (StatusCode::FORBIDDEN, "https-required"),
            Self::ProviderDown(_) => (StatusCode::SERVICE_UNAVAILABLE, "identity-provider-unavailable"),
            Self::NoRefreshToken => (StatusCode::FORBIDDEN, "no-refresh-token"),
            Self::BodyInvalid => (StatusCode::BAD_REQUEST, "auth-body-invalid"),
            Self::NotKept => (StatusCode::INTERNAL_SERVER_ERROR, "login-not-kept"),
        }
    }

    /// `WWW-Authenticate` of the answer.
    pub(crate) fn challenge(&self) -> Option<HeaderValue> {
        match self {
            Self::LoginRequired { is_challenged: true } => Some(HeaderValue::from_static("Bearer")),
            Self::TokenInvalid(_) => Some(HeaderValue::from_static("Bearer error=\"invalid_token\"")),
            _ => None,
        }
    }
}

impl From<ProviderDown> for AuthRefusal {
    fn from(down: ProviderDown) -> Self {
        Self::ProviderDown(down.to_string())
    }
}

/// What a provider's answer to a login means.
pub(crate) fn of_login(provider: &str, error: &FetchError) -> AuthRefusal {
    match error {
        FetchError::Unreachable(why) => {
            AuthRefusal::ProviderDown(format!("the identity provider `{provider}` cannot be asked: {why}"))
        }
        FetchError::Refused { code, .. } if code.is_empty() => {
            AuthRefusal::LoginFailed(format!("the identity provider `{provider}` refused it"))
        }
        FetchError::Refused { code, .. } => {
            AuthRefusal::LoginFailed(format!("the identity provider `{provider}` refused it with `{code}`"))
        }
    }
}
