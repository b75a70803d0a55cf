//! Signed tokens (RFC 7519): read, their signature checked with a provider's keys, their claims compared.
//!
//! `ring` checks the signatures, as it does for TLS; libraries that do more bring a second set of algorithms along.
//!
//! **Invariant:** the algorithm must be one of a short list and fit the key: `none` and `HS…` are refused whatever the key.
//! **Invariant:** claims are read by [`Token::verify`]'s caller only after the signature was found good.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde_json::{Map, Value};

/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 16 << 10;
/// Keys of one provider that are kept.
const KEYS_MAX: usize = 100;
/// How far clocks may differ, in seconds.
const LEEWAY_SECS: i64 = 300;

/// The claims of a token.
pub(crate) type Claims = Map<String, Value>;

/// Why a token does not count.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    /// Three parts of base64url with JSON were expected.
    #[error("it is not a signed token")]
    Malformed,
    /// `none`, `HS256`, or one that does not fit the key.
    #[error("its algorithm is not accepted")]
    Algorithm,
    /// The provider has no such key.
    #[error("its key is none of the provider's")]
    UnknownKey,
    /// Changed, or signed by somebody else.
    #[error("its signature is wrong")]
    Signature,
    /// `exp` has passed or is missing.
    #[error("it has expired")]
    Expired,
    /// `nbf` is to come.
    #[error("it is not valid yet")]
    TooEarly,
    /// `iss` is another.
    #[error("its issuer is not the provider")]
    Issuer,
    /// `aud` is another.
    #[error("it was made for another audience")]
    Audience,
    /// `nonce` is another.
    #[error("it belongs to another login")]
    Nonce,
    /// There is no `sub`.
    #[error("it names nobody")]
    Subject,
}

/// A token whose parts could be read.
pub(crate) struct Token<'a> {
    algorithm: String,
    key_id: Option<String>,
    signed: &'a str,
    signature: Vec<u8>,
    claims: Claims,
}

impl<'a> Token<'a> {
    /// Reads the parts; nothing is checked yet.
    ///
    /// # Errors
    /// [`TokenError::Malformed`], and [`TokenError::Algorithm`] for extensions that must be understood.
    pub(crate) fn parse(text: &'a str) -> Result<Self, TokenError> {
        if text.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(TokenError::Malformed)?;
        let bytes = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
        let object = |part: &str| match serde_json::from_slice(&bytes(part)?) {
            Ok(Value::Object(fields)) => Ok(fields),
            Ok(_) | Err(_) => Err(TokenError::Malformed),
        };
        let (header, claims) = (object(header)?, object(payload)?);
        if header.contains_key("crit") {
            return Err(TokenError::Algorithm);
        }
        let text_of = |name: &str| header.get(name).and_then(Value::as_str).map(str::to_owned);
        let algorithm = text_of("alg").ok_or(TokenError::Malformed)?;
        Ok(Self { algorithm, key_id: text_of("kid"), signed, signature: bytes(signature)?, claims })
    }

    /// The issuer that it claims, to find the provider whose keys to ask.
    pub(crate) fn claimed_issuer(&self) -> Option<&str> {
        self.claims.get("iss").and_then(Value::as_str)
    }

    /// Its claims, once one of the keys has signed them.
    ///
    /// # Errors
    /// [`TokenError::UnknownKey`] when newer keys may help; otherwise why it is refused.
    pub(crate) fn verify(&self, keys: &KeySet) -> Result<&Claims, TokenError> {
        let algorithm = Algorithm::of(&self.algorithm).ok_or(TokenError::Algorithm)?;
        let named = |key: &&Key| match (&self.key_id, &key.id) {
            (Some(wanted), Some(id)) => wanted == id,
            // a provider with one key need not name it
            (None, _) | (_, None) => true,
        };
        let mut error = TokenError::UnknownKey;
        for key in keys.keys.iter().filter(named) {
            match key.check(algorithm, self.signed.as_bytes(), &self.signature) {
                Ok(()) => return Ok(&self.claims),
                // one key that fits at all says more than one that does not
                Err(TokenError::Signature) => error = TokenError::Signature,
                Err(other) if error == TokenError::UnknownKey => error = other,
                Err(_) => {}
            }
        }
        Err(error)
    }
}

/// Algorithms that are accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Rsa(&'static str),
    Ec(&'static str),
    Ed,
}

impl Algorithm {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rsa("RS256"),
            "RS384" => Self::Rsa("RS384"),
            "RS512" => Self::Rsa("RS512"),
            "PS256" => Self::Rsa("PS256"),
            "PS384" => Self::Rsa("PS384"),
            "PS512" => Self::Rsa("PS512"),
            "ES256" => Self::Ec("P-256"),
            "ES384" => Self::Ec("P-384"),
            "EdDSA" | "Ed25519" => Self::Ed,
            _ => return None,
        })
    }
}

/// A provider's keys (RFC 7517), those that can sign.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    /// The only algorithm it is for.
    algorithm: Option<String>,
    kind: KeyKind,
}

#[derive(Debug)]
enum KeyKind {
    Rsa { n: Vec<u8>, e: Vec<u8> },
    Ec { curve: &'static str, point: Vec<u8> },
    Ed { point: Vec<u8> },
}

impl KeySet {
    /// Reads a document of keys; what cannot sign is left out.
    pub(crate) fn read(document: &Value) -> Option<Self> {
        let keys = document.get("keys")?.as_array()?;
        Some(Self { keys: keys.iter().filter_map(Key::read).take(KEYS_MAX).collect() })
    }
}

impl Key {
    fn read(key: &Value) -> Option<Self> {
        let text = |name: &str| key.get(name).and_then(Value::as_str);
        let bytes = |name: &str| URL_SAFE_NO_PAD.decode(text(name)?.trim_end_matches('=')).ok();
        if text("use").is_some_and(|it| it != "sig") {
            return None;
        }
        let kind = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let number = |name: &str| {
                    let bytes = bytes(name)?;
                    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
                    Some(bytes[zeros..].to_vec())
                };
                KeyKind::Rsa { n: number("n")?, e: number("e")? }
            }
            ("EC", Some(curve)) => {
                let (curve, len) = match curve {
                    "P-256" => ("P-256", 32),
                    "P-384" => ("P-384", 48),
                    _ => return None,
                };
                let (x, y) = (bytes("x")?, bytes("y")?);
                if x.len() != len || y.len() != len {
                    return None;
                }
                // uncompressed, as SEC 1 writes it
                KeyKind::Ec { curve, point: [vec![4], x, y].concat() }
            }
            ("OKP", Some("Ed25519")) => KeyKind::Ed { point: bytes("x")? },
            _ => return None,
        };
        Some(Self { id: text("kid").map(str::to_owned), algorithm: text("alg").map(str::to_owned), kind })
    }

    fn check(&self, algorithm: Algorithm, message: &[u8], signature: &[u8]) -> Result<(), TokenError> {
        let wrong = |_| TokenError::Signature;
        match (&self.kind, algorithm) {
            (KeyKind::Rsa { n, e }, Algorithm::Rsa(name)) => {
                if self.algorithm.as_deref().is_some_and(|only| only != name) {
                    return Err(TokenError::Algorithm);
                }
                let parameters = match name {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
                    _ => &signature::RSA_PSS_2048_8192_SHA512,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).map_err(wrong)
            }
            (KeyKind::Ec { curve, point }, Algorithm::Ec(wanted)) if *curve == wanted => {
                let kind = if wanted == "P-256" {
                    &signature::ECDSA_P256_SHA256_FIXED
                } else {
                    &signature::ECDSA_P384_SHA384_FIXED
                };
                UnparsedPublicKey::new(kind, point).verify(message, signature).map_err(wrong)
            }
            (KeyKind::Ed { point }, Algorithm::Ed) => {
                UnparsedPublicKey::new(&signature::ED25519, point).verify(message, signature).map_err(wrong)
            }
            _ => Err(TokenError::Algorithm),
        }
    }
}

/// What the claims of a token must say.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Expected<'a> {
    /// `iss`; `{tenantid}` stands for the claim `tid`.
    pub(crate) issuer: &'a str,
    /// One of these must be in `aud`.
    pub(crate) audiences: &'a [&'a str],
    /// Our client id, which must be `azp` where a token is for several audiences.
    pub(crate) client_id: &'a str,
    /// `nonce`, for a token that was asked for by a login.
    pub(crate) nonce: Option<&'a str>,
    /// Now, in seconds since 1970.
    pub(crate) now_secs: i64,
}

/// Compares claims whose signature is good.
///
/// # Errors
/// The first that differs.
pub(crate) fn check(claims: &Claims, expected: &Expected<'_>) -> Result<(), TokenError> {
    let text = |name: &str| claims.get(name).and_then(Value::as_str);
    let issuer = text("iss").ok_or(TokenError::Issuer)?;
    if issuer != expected.issuer && !is_tenant_of(issuer, expected.issuer, text("tid")) {
        return Err(TokenError::Issuer);
    }
    let audiences: Vec<&str> = match claims.get("aud") {
        Some(Value::String(one)) => vec![one.as_str()],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    if !audiences.iter().any(|audience| expected.audiences.contains(audience)) {
        return Err(TokenError::Audience);
    }
    // OpenID Connect Core 3.1.3.7: of an ID token for several, we must be the one that asked
    if expected.nonce.is_some() && audiences.len() > 1 && text("azp") != Some(expected.client_id) {
        return Err(TokenError::Audience);
    }
    let expires = seconds(claims, "exp").ok_or(TokenError::Expired)?;
    if expires.saturating_add(LEEWAY_SECS) <= expected.now_secs {
        return Err(TokenError::Expired);
    }
    if seconds(claims, "nbf").is_some_and(|begin| begin > expected.now_secs.saturating_add(LEEWAY_SECS)) {
        return Err(TokenError::TooEarly);
    }
    if expected.nonce.is_some_and(|nonce| text("nonce") != Some(nonce)) {
        return Err(TokenError::Nonce);
    }
    if text("sub").is_none_or(str::is_empty) {
        return Err(TokenError::Subject);
    }
    Ok(())
}

/// A time of the claims in seconds since 1970; providers also write fractions.
pub(crate) fn seconds(claims: &Claims, name: &str) -> Option<i64> {
    let value = claims.get(name)?;
    #[expect(clippy::cast_possible_truncation, reason = "`as` keeps a float inside the range of i64")]
    let whole = || value.as_f64().filter(|it| it.is_finite()).map(|it| it as i64);
    value.as_i64().or_else(whole)
}

/// Whether an issuer is that of a tenant where the provider serves many: `https://…/{tenantid}/v2.0`.
pub(crate) fn is_tenant_of(issuer: &str, pattern: &str, tenant: Option<&str>) -> bool {
    let Some((begin, end)) = pattern.split_once("{tenantid}") else { return false };
    let Some(tenant) = tenant.filter(|it| !it.is_empty()) else { return false };
    issuer.strip_prefix(begin).and_then(|rest| rest.strip_suffix(end)) == Some(tenant)
}

#[cfg(test)]
mod tests;
