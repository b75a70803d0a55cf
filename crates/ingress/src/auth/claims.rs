//! Who somebody is, as Azure tells it to the app: claims with their long names, and the headers made of them.
//!
//! **Invariant:** what a client writes into these headers never reaches the app, also not with `_` for `-`, nor can a client
//! take them away by naming them in `Connection`.

use base64::{Engine, engine::general_purpose::STANDARD};
use cove_model::{AllowedPrincipals, AuthProtocol, AuthProvider};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::jwt::Claims;

const PRINCIPAL: HeaderName = HeaderName::from_static("x-ms-client-principal");
const PRINCIPAL_ID: HeaderName = HeaderName::from_static("x-ms-client-principal-id");
const PRINCIPAL_NAME: HeaderName = HeaderName::from_static("x-ms-client-principal-name");
const PRINCIPAL_IDP: HeaderName = HeaderName::from_static("x-ms-client-principal-idp");

const NAME_ID: &str = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/nameidentifier";
const EMAIL: &str = "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/emailaddress";
const OBJECT_ID: &str = "http://schemas.microsoft.com/identity/claims/objectidentifier";
const ROLE: &str = "http://schemas.microsoft.com/ws/2008/06/identity/claims/role";

/// Claims that Azure gives longer names.
const LONG_NAMES: &[(&str, &str)] = &[
    ("sub", NAME_ID),
    ("email", EMAIL),
    ("oid", OBJECT_ID),
    ("tid", "http://schemas.microsoft.com/identity/claims/tenantid"),
    ("given_name", "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/givenname"),
    ("family_name", "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/surname"),
    ("upn", "http://schemas.xmlsoap.org/ws/2005/05/identity/claims/upn"),
];

/// Claims of one user that are kept.
const CLAIMS_MAX: usize = 500;
/// Longest value of the header with all claims.
const PRINCIPAL_BYTES_MAX: usize = 16 << 10;

/// A user, as a provider told of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Principal {
    /// Name of the provider in paths and headers.
    #[serde(rename = "p")]
    pub(crate) provider: String,
    /// What stays the same when the user is renamed.
    #[serde(rename = "i")]
    pub(crate) id: String,
    /// What people call the user.
    #[serde(rename = "n")]
    pub(crate) name: String,
    /// Type of the claim that the name is of.
    #[serde(rename = "t")]
    pub(crate) name_type: String,
    /// Types and values.
    #[serde(rename = "c", default)]
    pub(crate) claims: Vec<(String, String)>,
}

impl Principal {
    /// The user of claims that were checked, or of a provider's answer about its user; `None` when it names nobody.
    pub(crate) fn of(provider: &AuthProvider, claims: &Claims) -> Option<Self> {
        let text = |name: &str| claims.get(name).and_then(plain).filter(|it| !it.is_empty());
        let id = match provider.protocol {
            AuthProtocol::OpenId if provider.name == "aad" => text("oid").or_else(|| text("sub"))?,
            AuthProtocol::OpenId => text("sub")?,
            AuthProtocol::OAuth2 => text("id")?,
        };
        let usual = ["preferred_username", "upn", "email", "name", "nickname"];
        let named = provider.name_claim.as_deref().into_iter().chain(usual).find_map(|it| Some((it, text(it)?)));
        let (name_claim, name) = named.unwrap_or_else(|| ("sub", id.clone()));
        let mut all = Vec::new();
        for (claim, value) in claims {
            // it belonged to the login
            if claim == "nonce" {
                continue;
            }
            let kind = long_name(claim, provider);
            match value {
                Value::Array(items) => all.extend(items.iter().filter_map(|it| Some((kind.clone(), plain(it)?)))),
                other => all.extend(plain(other).map(|it| (kind, it))),
            }
        }
        all.truncate(CLAIMS_MAX);
        let name_type = long_name(name_claim, provider);
        Some(Self { provider: provider.name.clone(), id, name, name_type, claims: all })
    }

    /// Claims as `/.auth/me` and the header list them.
    pub(crate) fn claim_list(&self) -> Value {
        self.claims.iter().map(|(kind, value)| json!({ "typ": kind, "val": value })).collect()
    }

    /// Writes the headers that tell the app who calls.
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        let mut insert = |name: HeaderName, text: &str| {
            // a name with other characters is told in the claims; a header would not come through
            if let Ok(value) = HeaderValue::try_from(text) {
                headers.insert(name, value);
            }
        };
        insert(PRINCIPAL_ID, &self.id);
        insert(PRINCIPAL_NAME, &self.name);
        insert(PRINCIPAL_IDP, &self.provider);
        let document = |claims: Value| {
            json!({ "auth_typ": self.provider, "claims": claims, "name_typ": self.name_type, "role_typ": ROLE })
                .to_string()
        };
        let mut text = STANDARD.encode(document(self.claim_list()));
        if text.len() > PRINCIPAL_BYTES_MAX {
            tracing::warn!(
                provider = self.provider,
                "a user has more claims than a header can hold; the app gets none of them"
            );
            text = STANDARD.encode(document(json!([])));
        }
        insert(PRINCIPAL, &text);
    }
}

/// Whether claims are of somebody who may pass; `is_bearer` for a token that an application sent by itself.
pub(crate) fn is_allowed(allowed: &AllowedPrincipals, claims: &Claims, is_bearer: bool) -> bool {
    let has = |name: &str, wanted: &[String]| match claims.get(name) {
        Some(Value::String(one)) => wanted.contains(one),
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).any(|one| wanted.iter().any(|it| it == one)),
        _ => false,
    };
    let is_person = allowed.identities.is_empty() && allowed.groups.is_empty()
        || has("oid", &allowed.identities)
        || has("sub", &allowed.identities)
        || has("groups", &allowed.groups);
    let applications = &allowed.applications;
    let is_application = applications.is_empty()
        || has("azp", applications)
        || has("appid", applications)
        // the token of a login was given to us
        || !is_bearer && !claims.contains_key("azp") && !claims.contains_key("appid");
    is_person && is_application
}

/// A header that only the platform may write.
pub(crate) fn is_ours(name: &HeaderName) -> bool {
    const BEGINS: [&[u8]; 2] = [b"x-ms-client-principal", b"x-ms-token-"];
    let name = name.as_str().as_bytes();
    // servers in CGI's tradition read `_` and `-` as the same
    let begins = |begin: &&[u8]| {
        name.len() >= begin.len() && begin.iter().zip(name).all(|(a, b)| a == b || (*a == b'-' && *b == b'_'))
    };
    name.starts_with(b"x") && BEGINS.iter().any(begins)
}

/// Removes what a client wrote into the platform's headers.
pub(crate) fn remove_ours(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers.keys().filter(|name| is_ours(name)).cloned().collect();
    for name in named {
        headers.remove(name);
    }
}

fn long_name(claim: &str, provider: &AuthProvider) -> String {
    if provider.protocol == AuthProtocol::OAuth2 {
        return match claim {
            "id" => NAME_ID.to_owned(),
            "email" => EMAIL.to_owned(),
            other => format!("urn:{}:{other}", provider.name),
        };
    }
    LONG_NAMES.iter().find(|(short, _)| *short == claim).map_or(claim, |(_, long)| long).to_owned()
}

/// A claim's value as text; objects as JSON.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::auth) fn provider(name: &str, protocol: AuthProtocol) -> AuthProvider {
        AuthProvider {
            name: name.to_owned(),
            protocol,
            discovery: None,
            issuer: None,
            authorization_endpoint: None,
            token_endpoint: None,
            keys_endpoint: None,
            user_endpoint: None,
            client_id: "me".to_owned(),
            client_secret: None,
            scopes: vec!["openid".to_owned()],
            login_parameters: Vec::new(),
            name_claim: None,
            audiences: Vec::new(),
            allowed: AllowedPrincipals::default(),
            accepts_bearer: true,
            challenges: true,
        }
    }

    fn claims(value: Value) -> Claims {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn a_user_is_told_as_azure_tells_it() {
        let told =
            claims(json!({ "sub": "s-1", "oid": "o-1", "email": "alice@example.org", "roles": ["reader", "writer"],
            "admin": true, "nonce": "n", "nothing": null }));
        let user = Principal::of(&provider("aad", AuthProtocol::OpenId), &told).unwrap();
        assert_eq!(
            (user.id.as_str(), user.name.as_str(), user.name_type.as_str()),
            ("o-1", "alice@example.org", EMAIL)
        );
        let mut headers = HeaderMap::new();
        user.write(&mut headers);
        assert_eq!(headers["x-ms-client-principal-id"], "o-1");
        assert_eq!(headers["x-ms-client-principal-idp"], "aad");
        let document: Value =
            serde_json::from_slice(&STANDARD.decode(&headers["x-ms-client-principal"]).unwrap()).unwrap();
        assert_eq!(document["auth_typ"], "aad");
        let has = |kind: &str, value: &str| {
            document["claims"].as_array().unwrap().iter().any(|it| it["typ"] == kind && it["val"] == value)
        };
        assert!(has(NAME_ID, "s-1") && has(OBJECT_ID, "o-1") && has("roles", "reader") && has("roles", "writer"));
        assert!(has("admin", "true") && !has("nonce", "n"));
        let hub = Principal::of(&provider("github", AuthProtocol::OAuth2), &claims(json!({ "id": 7, "login": "al" })));
        let hub = hub.unwrap();
        assert_eq!((hub.id.as_str(), hub.name.as_str()), ("7", "7"));
        assert!(Principal::of(&provider("own", AuthProtocol::OpenId), &claims(json!({ "email": "x" }))).is_none());
        let odd = Principal::of(
            &provider("own", AuthProtocol::OpenId),
            &claims(json!({ "sub": "a\r\nx: y", "name": "Zoë" })),
        );
        let mut headers = HeaderMap::new();
        odd.unwrap().write(&mut headers);
        assert!(!headers.contains_key("x-ms-client-principal-id") && headers.contains_key("x-ms-client-principal"));
    }

    #[test]
    fn only_listed_people_groups_and_applications_pass() {
        let list = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        for (identities, groups, applications, is_bearer, told, expected) in [
            ("", "", "", true, json!({ "sub": "a" }), true),
            ("a", "", "", true, json!({ "sub": "a" }), true),
            ("a", "", "", true, json!({ "sub": "b" }), false),
            ("a", "g", "", true, json!({ "sub": "b", "groups": ["h", "g"] }), true),
            ("", "g", "", true, json!({ "sub": "b", "groups": [] }), false),
            ("", "", "x", true, json!({ "sub": "b", "azp": "x" }), true),
            ("", "", "x", true, json!({ "sub": "b", "appid": "y" }), false),
            ("", "", "x", true, json!({ "sub": "b" }), false),
            ("", "", "x", false, json!({ "sub": "b" }), true),
            ("a", "", "x", true, json!({ "sub": "b", "azp": "x" }), false),
        ] {
            let allowed = AllowedPrincipals {
                identities: list(identities),
                groups: list(groups),
                applications: list(applications),
            };
            assert_eq!(is_allowed(&allowed, &claims(told.clone()), is_bearer), expected, "{allowed:?} {told}");
        }
    }

    #[test]
    fn a_client_cannot_write_them() {
        let mut headers = HeaderMap::new();
        let names = [
            "x-ms-client-principal",
            "X-MS-CLIENT-PRINCIPAL-ID",
            "x_ms_client_principal-name",
            "x-ms-token-aad-id-token",
        ];
        for name in names.into_iter().chain(["x-ms-version", "x-forwarded-for"]) {
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("mallory"));
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_static("again"));
        }
        remove_ours(&mut headers);
        let mut left: Vec<&str> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["x-forwarded-for", "x-ms-version"]);
    }
}
