//! Tokens: JWTs signed with HMAC-SHA256 and a key that stays in the store.
//!
//! They expire by the machine's clock even when the server runs on a virtual one, since clients compare with theirs.
//!
//! **Invariant:** a token is believed only when its signature is right and its time has not passed.

use std::time::Duration;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use jiff::Timestamp;
use ring::hmac;
use serde::{Deserialize, Serialize};

/// Longest token that is looked at.
const LENGTH_MAX: usize = 8192;
/// Clocks may differ by this much.
const LEEWAY_SECS: i64 = 60;

/// What a token may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Use {
    /// The API.
    Access,
    /// To get another access token.
    Refresh,
    /// To say who logged in; opens nothing.
    Id,
    /// Log streams of one app or environment.
    Data,
    /// To finish a device login.
    Device,
}

/// Content of a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claims {
    pub(crate) iss: String,
    pub(crate) aud: String,
    pub(crate) sub: String,
    pub(crate) oid: String,
    pub(crate) tid: String,
    pub(crate) appid: String,
    /// User name, for logins of people.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) upn: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) preferred_username: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) name: Option<String>,
    pub(crate) ver: String,
    /// What it opens.
    pub(crate) cove_use: Use,
    /// For [`Use::Data`]: id of the app or environment, in lower case.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) cove_scope: Option<String>,
    pub(crate) iat: i64,
    pub(crate) nbf: i64,
    pub(crate) exp: i64,
}

/// Why a token is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("the access token is not a JSON web token")]
    NotAToken,
    #[error("the access token's signature is not from this server; log in again")]
    Signature,
    #[error("the access token has expired; log in again")]
    Expired,
    #[error("the access token is not valid yet; check the clocks")]
    NotYet,
}

/// Signs and checks tokens.
#[derive(Clone, Debug)]
pub(crate) struct TokenKey(hmac::Key);

impl TokenKey {
    pub(crate) fn new(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The token with these claims.
    pub(crate) fn sign(&self, claims: &Claims) -> String {
        let payload = serde_json::to_vec(claims).expect("claims are plain JSON");
        let head = BASE64.encode(br#"{"alg":"HS256","typ":"JWT"}"#);
        let text = format!("{head}.{}", BASE64.encode(payload));
        let tag = hmac::sign(&self.0, text.as_bytes());
        format!("{text}.{}", BASE64.encode(tag))
    }

    /// The claims of a token that is genuine and valid at `now`.
    pub(crate) fn check(&self, token: &str, now: Timestamp) -> Result<Claims, TokenError> {
        if token.len() > LENGTH_MAX {
            return Err(TokenError::NotAToken);
        }
        let (text, tag) = token.rsplit_once('.').ok_or(TokenError::NotAToken)?;
        let (head, payload) = text.split_once('.').ok_or(TokenError::NotAToken)?;
        let is_json = |part: &str| {
            BASE64.decode(part).is_ok_and(|bytes| serde_json::from_slice::<serde_json::Map<_, _>>(&bytes).is_ok())
        };
        if !is_json(head) || !is_json(payload) {
            return Err(TokenError::NotAToken);
        }
        let tag = BASE64.decode(tag).map_err(|_| TokenError::Signature)?;
        hmac::verify(&self.0, text.as_bytes(), &tag).map_err(|_| TokenError::Signature)?;
        let payload = BASE64.decode(payload).map_err(|_| TokenError::NotAToken)?;
        let claims: Claims = serde_json::from_slice(&payload).map_err(|_| TokenError::Signature)?;
        if claims.exp <= now.as_second() {
            return Err(TokenError::Expired);
        }
        if claims.nbf > now.as_second() + LEEWAY_SECS {
            return Err(TokenError::NotYet);
        }
        Ok(claims)
    }

    /// A keyed fingerprint in hexadecimal: for ids that must not be guessed, such as workspace keys.
    pub(crate) fn fingerprint(&self, text: &str) -> [u8; 32] {
        let tag = hmac::sign(&self.0, text.as_bytes());
        let mut bytes = [0; 32];
        bytes.copy_from_slice(&tag.as_ref()[..32]);
        bytes
    }
}

impl Claims {
    /// Claims that hold from `now` for `lifetime`.
    pub(crate) fn new(tenant: &str, who: &Who, what: Use, audience: &str, now: Timestamp, lifetime: Duration) -> Self {
        let now = now.as_second();
        let user = who.user.clone();
        Self {
            iss: format!("https://sts.windows.net/{tenant}/"),
            aud: audience.to_owned(),
            sub: who.object_id.clone(),
            oid: who.object_id.clone(),
            tid: tenant.to_owned(),
            appid: who.client_id.clone(),
            upn: user.clone(),
            preferred_username: user.clone(),
            name: user,
            ver: "1.0".to_owned(),
            cove_use: what,
            cove_scope: None,
            iat: now,
            nbf: now,
            exp: now.saturating_add(i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX)),
        }
    }

    /// Who it was made for.
    pub(crate) fn who(&self) -> Who {
        Who { client_id: self.appid.clone(), object_id: self.oid.clone(), user: self.upn.clone() }
    }
}

/// Who logged in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Who {
    /// Application id of the client program or service principal.
    pub(crate) client_id: String,
    /// Object id: a GUID that follows from the name.
    pub(crate) object_id: String,
    /// User name, for people.
    pub(crate) user: Option<String>,
}

impl Who {
    /// A service principal.
    pub(crate) fn client(client_id: &str) -> Self {
        Self { client_id: client_id.to_owned(), object_id: object_id(client_id), user: None }
    }

    /// A person who uses a client program.
    pub(crate) fn user(client_id: &str, name: &str) -> Self {
        Self { client_id: client_id.to_owned(), object_id: object_id(name), user: Some(name.to_owned()) }
    }

    /// What `systemData` shows.
    pub(crate) fn name(&self) -> &str {
        self.user.as_deref().unwrap_or(&self.client_id)
    }
}

fn object_id(name: &str) -> String {
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, name.as_bytes()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_genuine_and_current_tokens_are_believed() {
        let key = TokenKey::new(b"secret");
        let now = Timestamp::from_second(1_000_000).unwrap();
        let claims = Claims::new("t", &Who::client("app"), Use::Access, "aud", now, Duration::from_secs(60));
        let token = key.sign(&claims);
        assert_eq!(key.check(&token, now), Ok(claims));
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(key.check(&token, at(1_000_060)), Err(TokenError::Expired));
        assert_eq!(key.check(&token, at(999_000)), Err(TokenError::NotYet));
        assert_eq!(TokenKey::new(b"other").check(&token, now), Err(TokenError::Signature));
        assert_eq!(key.check(&token[..token.len() - 4], now), Err(TokenError::Signature));
        // "alg: none" and friends: the header is never believed
        let payload = token.split('.').nth(1).unwrap();
        let unsigned = format!("{}.{payload}.", BASE64.encode(br#"{"alg":"none"}"#));
        assert_eq!(key.check(&unsigned, now), Err(TokenError::Signature));
        for garbage in ["", "x", "a.b.c", "..", &"a".repeat(9000)] {
            assert_eq!(key.check(garbage, now), Err(TokenError::NotAToken), "{garbage}");
        }
    }
}
