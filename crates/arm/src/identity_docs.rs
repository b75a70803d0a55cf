//! Documents of the identity side: cloud metadata, OpenID configuration, tokens, tenants, subscriptions.
//!
//! Clients find their way in from these alone. Every URL is given on the origin that the client used, because it sends
//! its token nowhere else.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use serde_json::{Value, json};

/// Name of the cloud; any but `AzureCloud`, whose login endpoint clients overwrite.
pub const CLOUD_NAME: &str = "Cove";

/// Shape of the login endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Authority {
    /// Entra ID: `https://HOST/`; service principal, device code, managed identity.
    Entra,
    /// ADFS: `https://HOST/adfs`; also user and password, and no instance discovery.
    Adfs,
}

/// The cloud's metadata as one object: `api-version` 2020-06-01 and later, asked by `az cloud register`.
#[must_use]
pub fn metadata(origin: &str, tenant: &str, authority: Authority) -> Value {
    let login = match authority {
        Authority::Entra => format!("{origin}/"),
        Authority::Adfs => format!("{origin}/adfs"),
    };
    let identity_provider = match authority {
        Authority::Entra => "AAD",
        Authority::Adfs => "ADFS",
    };
    json!({
        "name": CLOUD_NAME,
        "portal": format!("{origin}/portal"),
        "authentication": {
            "loginEndpoint": login,
            "audiences": [format!("{origin}/")],
            "tenant": match authority { Authority::Entra => tenant, Authority::Adfs => "adfs" },
            "identityProvider": identity_provider,
        },
        "graphAudience": format!("{origin}/"),
        "graph": format!("{origin}/"),
        "microsoftGraphResourceId": format!("{origin}/"),
        "resourceManager": format!("{origin}/"),
        "batch": format!("{origin}/"),
        "media": format!("{origin}/"),
        "gallery": format!("{origin}/"),
        "sqlManagement": format!("{origin}/"),
        "vmImageAliasDoc": format!("{origin}/"),
        "activeDirectoryDataLake": format!("{origin}/"),
        "logAnalyticsResourceId": origin,
        "logAnalyticslogAnalyticsResourceId": origin,
        "appInsightsResourceId": origin,
        "appInsightsTelemetryChannelResourceId": format!("{origin}/v2/track"),
        "ossrdbmsResourceId": origin,
        "synapseAnalyticsResourceId": origin,
        "attestationResourceId": origin,
        "suffixes": {
            "acrLoginServer": "azurecr.io",
            "azureDataLakeStoreFileSystem": "azuredatalakestore.net",
            "azureDataLakeAnalyticsCatalogAndJob": "azuredatalakeanalytics.net",
            "keyVaultDns": "vault.azure.net",
            "storage": "core.windows.net",
            "sqlServerHostname": "database.windows.net",
            "mysqlServerEndpoint": "mysql.database.azure.com",
            "postgresqlServerEndpoint": "postgres.database.azure.com",
            "mariadbServerEndpoint": "mariadb.database.azure.com",
            "synapseAnalytics": "dev.azuresynapse.net",
            "attestationEndpoint": "attest.azure.net",
        },
    })
}

/// The cloud's metadata as a list of clouds: `api-version=2019-05-01`, asked through `ARM_CLOUD_METADATA_URL`.
#[must_use]
pub fn metadata_list(origin: &str, tenant: &str, authority: Authority) -> Value {
    Value::Array(vec![metadata(origin, tenant, authority)])
}

/// The document at `/{tenant}[/v2.0]/.well-known/openid-configuration`; `tenant` as it stands in the URL (`adfs`,
/// `organizations`, a GUID), and `is_v2` says whether the URL had `v2.0`.
#[must_use]
pub fn openid_configuration(origin: &str, tenant: &str, issuer_tenant: &str, is_v2: bool) -> Value {
    let is_adfs = tenant.eq_ignore_ascii_case("adfs");
    let path = if is_v2 && !is_adfs { "oauth2/v2.0" } else { "oauth2" };
    let base = format!("{origin}/{tenant}/{path}");
    let issuer = if is_adfs { format!("{origin}/adfs") } else { issuer(origin, issuer_tenant) };
    json!({
        "issuer": issuer,
        "authorization_endpoint": format!("{base}/authorize"),
        "token_endpoint": format!("{base}/token"),
        "device_authorization_endpoint": format!("{base}/devicecode"),
        "end_session_endpoint": format!("{base}/logout"),
        "jwks_uri": format!("{origin}/{tenant}/discovery/v2.0/keys"),
        "userinfo_endpoint": format!("{origin}/oidc/userinfo"),
        "token_endpoint_auth_methods_supported": ["client_secret_post", "client_secret_basic"],
        "response_modes_supported": ["query", "fragment", "form_post"],
        "response_types_supported": ["code", "id_token", "code id_token"],
        "scopes_supported": ["openid", "profile", "email", "offline_access"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["HS256"],
        "claims_supported": ["sub", "iss", "aud", "exp", "iat", "tid", "oid", "preferred_username", "name"],
        "tenant_region_scope": "NA",
        "cloud_instance_name": origin,
    })
}

/// Issuer of tokens of a tenant.
#[must_use]
pub fn issuer(origin: &str, tenant: &str) -> String {
    format!("{origin}/{tenant}/v2.0")
}

/// What a token says.
#[derive(Clone, Debug)]
pub struct TokenClaims<'a> {
    /// Origin of the server.
    pub origin: &'a str,
    /// Tenant GUID.
    pub tenant: &'a str,
    /// Application id or user name that logged in.
    pub subject: &'a str,
    /// Stable GUID of the subject.
    pub object_id: &'a str,
    /// What the token is for: the resource, or the scope without `/.default`.
    pub audience: &'a str,
    /// Whether an application or a user logged in.
    pub is_application: bool,
    /// Now.
    pub issued_at: Timestamp,
    /// Seconds it is good for.
    pub lifetime_secs: u32,
}

impl TokenClaims<'_> {
    /// The claims as JSON.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let issued_at = self.issued_at.as_second();
        let mut claims = json!({
            "iss": issuer(self.origin, self.tenant),
            "aud": self.audience,
            "iat": issued_at,
            "nbf": issued_at,
            "exp": issued_at + i64::from(self.lifetime_secs),
            "tid": self.tenant,
            "oid": self.object_id,
            "sub": self.object_id,
            "ver": "2.0",
        });
        if self.is_application {
            claims["appid"] = json!(self.subject);
            claims["idtyp"] = json!("app");
        } else {
            for name in ["preferred_username", "upn", "unique_name", "name"] {
                claims[name] = json!(self.subject);
            }
            claims["idtyp"] = json!("user");
        }
        claims
    }
}

/// A JWT of the claims; `sign` gives the HMAC-SHA-256 of its argument. Clients do not check it, the server does.
#[must_use]
pub fn jwt(claims: &Value, sign: &dyn Fn(&[u8]) -> Vec<u8>) -> String {
    let header = json!({ "typ": "JWT", "alg": "HS256" });
    let signed =
        format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}

/// The claims of a token whose signature is right.
///
/// `None` when it is not a token, or not signed by `sign`; times are for the caller to check.
#[must_use]
pub fn verify_jwt(token: &str, sign: &dyn Fn(&[u8]) -> Vec<u8>) -> Option<Value> {
    let (signed, signature) = token.rsplit_once('.')?;
    let signature = URL_SAFE_NO_PAD.decode(signature).ok()?;
    let right = sign(signed.as_bytes());
    let differs = right.iter().zip(&signature).fold(0_u8, |sum, (a, b)| sum | (a ^ b));
    if right.len() != signature.len() || differs != 0 {
        return None;
    }
    let (_, claims) = signed.split_once('.')?;
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).ok()?).ok()
}

/// What is answered to a token request besides the access token.
#[derive(Clone, Debug)]
pub struct TokenAnswer<'a> {
    /// The access token.
    pub access_token: &'a str,
    /// Its claims.
    pub claims: &'a TokenClaims<'a>,
    /// Scope that was asked for.
    pub scope: &'a str,
    /// A refresh token, for users.
    pub refresh_token: Option<&'a str>,
    /// An id token, for users.
    pub id_token: Option<&'a str>,
}

/// The answer of `…/oauth2/[v2.0/]token`.
#[must_use]
pub fn token(answer: &TokenAnswer<'_>) -> Value {
    let claims = answer.claims;
    let client_info = json!({ "uid": claims.object_id, "utid": claims.tenant });
    let mut value = json!({
        "token_type": "Bearer",
        "expires_in": claims.lifetime_secs,
        "ext_expires_in": claims.lifetime_secs,
        "expires_on": (claims.issued_at.as_second() + i64::from(claims.lifetime_secs)).to_string(),
        "not_before": claims.issued_at.as_second().to_string(),
        "resource": claims.audience,
        "scope": answer.scope,
        "access_token": answer.access_token,
        "client_info": URL_SAFE_NO_PAD.encode(client_info.to_string()),
    });
    if let Some(refresh_token) = answer.refresh_token {
        value["refresh_token"] = json!(refresh_token);
    }
    if let Some(id_token) = answer.id_token {
        value["id_token"] = json!(id_token);
    }
    value
}

/// The answer of a managed-identity endpoint: numbers as strings, as App Service gives them.
#[must_use]
pub fn managed_identity_token(answer: &TokenAnswer<'_>) -> Value {
    let claims = answer.claims;
    json!({
        "access_token": answer.access_token,
        "expires_on": (claims.issued_at.as_second() + i64::from(claims.lifetime_secs)).to_string(),
        "resource": claims.audience,
        "token_type": "Bearer",
        "client_id": claims.subject,
    })
}

/// The answer of `…/devicecode`.
#[must_use]
pub fn device_code(origin: &str, device_code: &str, user_code: &str, lifetime_secs: u32) -> Value {
    let url = format!("{origin}/devicelogin");
    json!({
        "device_code": device_code,
        "user_code": user_code,
        "verification_uri": url,
        "verification_url": url,
        "expires_in": lifetime_secs,
        "interval": 1,
        "message": format!("To sign in, open {url} and enter the code {user_code}."),
    })
}

/// An OAuth error: `invalid_client`, `invalid_grant`, `authorization_pending`, …
#[must_use]
pub fn oauth_error(error: &str, description: &str) -> Value {
    json!({ "error": error, "error_description": description, "error_codes": [] })
}

/// An item of `/tenants`.
#[must_use]
pub fn tenant(tenant: &str) -> Value {
    json!({
        "id": format!("/tenants/{tenant}"),
        "tenantId": tenant,
        "countryCode": "US",
        "displayName": CLOUD_NAME,
        "defaultDomain": "cove.localhost",
        "domains": ["cove.localhost"],
        "tenantCategory": "Home",
        "tenantType": "AAD",
    })
}

/// `/subscriptions/{id}`, also an item of `/subscriptions`.
#[must_use]
pub fn subscription(subscription: &str, tenant: &str) -> Value {
    json!({
        "id": format!("/subscriptions/{subscription}"),
        "subscriptionId": subscription,
        "tenantId": tenant,
        "displayName": CLOUD_NAME,
        "state": "Enabled",
        "subscriptionPolicies": {
            "locationPlacementId": "Public_2014-09-01",
            "quotaId": "PayAsYouGo_2014-09-01",
            "spendingLimit": "Off",
        },
        "authorizationSource": "RoleBased",
        "managedByTenants": [],
        "tags": {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(text: &[u8]) -> Vec<u8> {
        text.iter().fold(vec![7; 4], |mut sum, byte| {
            sum.rotate_left(1);
            sum[0] ^= byte;
            sum
        })
    }

    fn claims(is_application: bool) -> TokenClaims<'static> {
        TokenClaims {
            origin: "https://localhost:8443",
            tenant: "t-1",
            subject: "me@local",
            object_id: "o-1",
            audience: "https://localhost:8443/",
            is_application,
            issued_at: Timestamp::from_second(1_000).unwrap(),
            lifetime_secs: 3600,
        }
    }

    #[test]
    fn a_token_is_read_back_and_a_changed_one_is_not() {
        let token = jwt(&claims(false).to_json(), &sign);
        assert_eq!(token.split('.').count(), 3);
        let read = verify_jwt(&token, &sign).unwrap();
        assert_eq!((read["tid"].as_str(), read["exp"].as_i64()), (Some("t-1"), Some(4_600)));
        let (head, tail) = token.split_at(token.len() / 2);
        for bad in ["", ".", "..", "a.b.c", &token[1..], &format!("{head}x{tail}"), token.rsplit_once('.').unwrap().0] {
            assert_eq!(verify_jwt(bad, &sign), None, "{bad}");
        }
        assert_eq!(verify_jwt(&token, &|_| Vec::new()), None);
    }

    #[test]
    fn answers_have_what_clients_read() {
        let claims = claims(true);
        let answer =
            TokenAnswer { access_token: "x", claims: &claims, scope: "s", refresh_token: None, id_token: None };
        let value = token(&answer);
        assert_eq!(value["expires_in"], 3600);
        assert!(value["client_info"].is_string() && value.get("refresh_token").is_none());
        assert_eq!(managed_identity_token(&answer)["expires_on"], "4600");
        let list = metadata_list("https://localhost:8443", "t-1", Authority::Entra);
        assert_eq!(list[0]["authentication"]["loginEndpoint"], "https://localhost:8443/");
        assert_ne!(list[0]["name"], "AzureCloud");
        let adfs = metadata("https://localhost:8443", "t-1", Authority::Adfs);
        assert_eq!(adfs["authentication"]["loginEndpoint"], "https://localhost:8443/adfs");
        let document = openid_configuration("https://h", "organizations", "t-1", true);
        assert_eq!(document["token_endpoint"], "https://h/organizations/oauth2/v2.0/token");
        let document = openid_configuration("https://h", "adfs", "t-1", false);
        assert_eq!(document["token_endpoint"], "https://h/adfs/oauth2/token");
    }
}
