//! Who calls, and whether that is enough.
//!
//! **Invariant:** a JWT that is expired or not from this server is refused, even where no token at all is needed.

use cove_arm::ArmError;
use http::{HeaderMap, header};
use jiff::Timestamp;

use crate::{
    config::Auth,
    control_plane::ControlPlane,
    route::Access,
    token::{Claims, TokenError, Use},
};

/// Who calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Caller {
    /// No token, on a server that allows it.
    Anonymous,
    /// The claims of a token.
    Token(Box<Claims>),
}

impl Caller {
    /// What `systemData` shows.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Anonymous => "anonymous".to_owned(),
            Self::Token(claims) => claims.who().name().to_owned(),
        }
    }

    /// Whether a data-plane request on a resource is covered: any login is, a stream token only for its own resource.
    pub(crate) fn may_read(&self, key: &str) -> bool {
        match self {
            Self::Anonymous => true,
            Self::Token(claims) => claims.cove_use != Use::Data || claims.cove_scope.as_deref() == Some(key),
        }
    }
}

/// Checks a request's token.
///
/// # Errors
/// 401 with Azure's codes.
pub(crate) fn authenticate(plane: &ControlPlane, access: Access, headers: &HeaderMap) -> Result<Caller, ArmError> {
    if access == Access::Open {
        return Ok(Caller::Anonymous);
    }
    let allow_anonymous = matches!(plane.config().auth, Auth::OpenLoopback { allow_anonymous: true });
    let Some(value) = headers.get(header::AUTHORIZATION) else {
        return if allow_anonymous {
            Ok(Caller::Anonymous)
        } else {
            Err(ArmError::new(
                401,
                "AuthenticationFailed",
                "Authentication failed. The 'Authorization' header is missing; log in first.",
            ))
        };
    };
    let token = value.to_str().ok().and_then(bearer);
    // clocks of clients are real, also when the platform's clock is virtual
    match token.ok_or(TokenError::NotAToken).and_then(|token| plane.token_key().check(token, Timestamp::now())) {
        Ok(claims) => {
            let is_enough = match claims.cove_use {
                Use::Access => true,
                Use::Data => access == Access::Data,
                Use::Refresh | Use::Id | Use::Device => false,
            };
            if is_enough {
                return Ok(Caller::Token(Box::new(claims)));
            }
            Err(ArmError::unauthorized("The token is not an access token for this API; log in again."))
        }
        Err(TokenError::NotAToken) if allow_anonymous => Ok(Caller::Anonymous),
        Err(TokenError::Expired) => Err(ArmError::token_expired()),
        Err(error @ (TokenError::NotAToken | TokenError::Signature | TokenError::NotYet)) => {
            Err(ArmError::unauthorized(format!("The access token is invalid: {error}.")))
        }
    }
}

pub(crate) fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.trim().split_once(' ')?;
    scheme.eq_ignore_ascii_case("Bearer").then(|| token.trim())
}
