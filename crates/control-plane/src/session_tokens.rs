//! Tokens for the data plane of session pools: of this server and tenant, in time, and for `https://dynamicsessions.io`.
//!
//! The role *Azure ContainerApps Session Executor* is not asked for yet: whoever has such a token of this tenant may use every
//! pool.
//!
//! **Invariant:** a token for the API itself opens no session: a session's code that steals one from a careless client gets
//! no more than sessions.

use http::{HeaderMap, header};
use jiff::Timestamp;

use crate::{
    auth::bearer,
    control_plane::ControlPlane,
    token::{TokenError, Use},
};

/// The audience of sessions; a slash behind it is fine.
pub const SESSIONS_AUDIENCE: &str = "https://dynamicsessions.io";

/// Why a token does not open sessions.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionTokenError {
    /// There is none.
    #[error("the access token is missing")]
    Missing,
    /// It is not one of this server.
    #[error("{0}")]
    Invalid(String),
    /// Its time has passed.
    #[error("the access token has expired")]
    Expired,
    /// It is for something else.
    #[error("the access token is for `{0}`")]
    Audience(String),
    /// It is of another tenant.
    #[error("the access token is of another tenant")]
    Tenant,
}

impl ControlPlane {
    /// Checks the token of a request to a session.
    ///
    /// # Errors
    /// [`SessionTokenError`].
    pub fn check_session_token(&self, headers: &HeaderMap) -> Result<(), SessionTokenError> {
        let mut values = headers.get_all(header::AUTHORIZATION).iter();
        let value = values.next().ok_or(SessionTokenError::Missing)?;
        let invalid = |error: TokenError| SessionTokenError::Invalid(error.to_string());
        let token = value.to_str().ok().and_then(bearer).filter(|_| values.next().is_none());
        let token = token.ok_or_else(|| invalid(TokenError::NotAToken))?;
        // clocks of clients are real, also when the platform's clock is virtual
        let claims = self.token_key().check(token, Timestamp::now()).map_err(|error| match error {
            TokenError::Expired => SessionTokenError::Expired,
            TokenError::NotAToken | TokenError::Signature | TokenError::NotYet => invalid(error),
        })?;
        if claims.cove_use != Use::Access {
            return Err(SessionTokenError::Invalid("it is not an access token".to_owned()));
        }
        if claims.tid != self.config().tenant {
            return Err(SessionTokenError::Tenant);
        }
        if claims.aud.strip_suffix('/').unwrap_or(&claims.aud) != SESSIONS_AUDIENCE {
            return Err(SessionTokenError::Audience(claims.aud));
        }
        Ok(())
    }
}
