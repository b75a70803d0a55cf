//! Ways in: cloud metadata, OpenID configuration, token endpoint, device login, managed identity.
//!
//! Clients find all of these by the metadata alone. On a developer's machine any credentials are good and a device login
//! approves itself; with configured clients only those get tokens, and only by their secret.
//!
//! **Invariant:** errors of the token endpoint are OAuth's, not ARM's: clients read `error` and `error_description`.

use std::time::Duration;

use axum::response::Response;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cove_arm::{
    ArmError,
    identity_docs::{self, Authority, TokenAnswer, TokenClaims},
};
use cove_model::ResourceId;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    answer::{self, Answer, Refusal, with_header},
    call::Call,
    config::Auth,
    control_plane::{ControlPlane, random_word},
    identities,
    route::Route,
    token::{Claims, TokenError, Use, Who},
};

/// Life of a refresh token: as Entra's.
const REFRESH_LIFETIME: Duration = Duration::from_secs(90 * 24 * 3600);
/// Life of a device code.
const DEVICE_LIFETIME_SECS: u32 = 900;

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = vec![
        Route::open(Method::GET, "/metadata/endpoints", metadata_entra),
        Route::open(Method::GET, "/adfs/metadata/endpoints", metadata_adfs),
        Route::open(Method::GET, "/{tenant}/.well-known/openid-configuration", openid),
        Route::open(Method::GET, "/{tenant}/v2.0/.well-known/openid-configuration", openid),
        Route::open(Method::GET, "/{tenant}/discovery/v2.0/keys", keys),
        Route::open(Method::GET, "/{tenant}/discovery/keys", keys),
        Route::open(Method::GET, "/devicelogin", device_page),
        Route::open(Method::GET, "/msi/token", managed_identity),
    ];
    for base in ["/{tenant}/oauth2", "/{tenant}/oauth2/{version}"] {
        routes.push(Route::open(Method::POST, format!("{base}/token"), token));
        routes.push(Route::open(Method::POST, format!("{base}/devicecode"), device_code));
    }
    routes
}

async fn metadata_entra(plane: ControlPlane, call: Call) -> Answer {
    metadata(&plane, &call, Authority::Entra)
}

async fn metadata_adfs(plane: ControlPlane, call: Call) -> Answer {
    metadata(&plane, &call, Authority::Adfs)
}

/// One object for newer versions, a list of clouds for 2019 and for none.
fn metadata(plane: &ControlPlane, call: &Call, authority: Authority) -> Answer {
    let tenant = &plane.config().tenant;
    let wants_list = call.query("api-version").is_none_or(|version| version < "2020");
    let document = if wants_list {
        identity_docs::metadata_list(&call.origin, tenant, authority)
    } else {
        identity_docs::metadata(&call.origin, tenant, authority)
    };
    Ok(answer::json(200, &document))
}

async fn openid(plane: ControlPlane, call: Call) -> Answer {
    let is_v2 = call.path.to_ascii_lowercase().contains("/v2.0/");
    let document =
        identity_docs::openid_configuration(&call.origin, call.name("tenant"), &plane.config().tenant, is_v2);
    Ok(answer::json(200, &document))
}

/// Tokens are signed with a symmetric key, which nobody else gets: there are no public ones.
async fn keys(_: ControlPlane, _: Call) -> Answer {
    Ok(answer::json(200, &json!({ "keys": [] })))
}

async fn device_page(plane: ControlPlane, _: Call) -> Answer {
    let text = match plane.config().auth {
        Auth::OpenLoopback { .. } => "Nothing to do here: on this server a device login approves itself.\n",
        Auth::Clients(_) => "This server does not take device logins; log in as one of its configured clients.\n",
    };
    let mut response = Response::new(text.into());
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("text/plain; charset=utf-8"));
    Ok(response)
}

/// An OAuth error.
struct OauthError {
    status: u16,
    error: &'static str,
    description: String,
}

fn refuse(status: u16, error: &'static str, description: impl Into<String>) -> OauthError {
    OauthError { status, error, description: description.into() }
}

fn oauth(result: Result<Response, OauthError>) -> Answer {
    let response = result.unwrap_or_else(|refused| {
        let body = identity_docs::oauth_error(refused.error, &refused.description);
        answer::json(refused.status, &body)
    });
    Ok(with_header(response, "cache-control", "no-store"))
}

/// The fields of a form; a field given twice counts once, the first.
struct Form(Vec<(String, String)>);

impl Form {
    fn of(call: &Call) -> Self {
        let pairs = form_urlencoded::parse(&call.body);
        Self(pairs.map(|(name, value)| (name.into_owned(), value.into_owned())).collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
        found.filter(|value| !value.is_empty())
    }

    /// What the token is for: `resource`, or the first scope that is not one of OpenID's, without `/.default`.
    fn audience(&self, origin: &str) -> String {
        let scopes = self.get("scope").unwrap_or("").split(' ');
        let scope = scopes.filter(|scope| !scope.is_empty() && !OPENID_SCOPES.contains(scope)).map(|scope| {
            scope.strip_suffix("/.default").or_else(|| scope.strip_suffix("/user_impersonation")).unwrap_or(scope)
        });
        let resource = self.get("resource").or_else(|| scope.into_iter().next());
        resource.map_or_else(|| format!("{origin}/"), |text| text.chars().take(512).collect())
    }

    /// Client id and secret, from the form or from HTTP Basic.
    fn client(&self, call: &Call) -> (Option<String>, Option<String>) {
        if let Some(id) = self.get("client_id") {
            return (Some(id.to_owned()), self.get("client_secret").map(str::to_owned));
        }
        let basic = call.header(http::header::AUTHORIZATION).and_then(|value| value.strip_prefix("Basic "));
        let decoded =
            basic.and_then(|value| BASE64.decode(value.trim()).ok()).and_then(|bytes| String::from_utf8(bytes).ok());
        match decoded.as_deref().and_then(|text| text.split_once(':')) {
            Some((id, secret)) => (Some(id.to_owned()), Some(secret.to_owned())),
            None => (None, None),
        }
    }
}

const OPENID_SCOPES: [&str; 4] = ["openid", "profile", "email", "offline_access"];

async fn token(plane: ControlPlane, call: Call) -> Answer {
    oauth(grant(&plane, &call, &Form::of(&call)))
}

fn grant(plane: &ControlPlane, call: &Call, form: &Form) -> Result<Response, OauthError> {
    check_tenant(plane, call)?;
    let (client, secret) = form.client(call);
    let client = client.ok_or_else(|| refuse(400, "invalid_request", "The parameter 'client_id' is missing."))?;
    let is_open = matches!(plane.config().auth, Auth::OpenLoopback { .. });
    let only_clients = "This server gives tokens to its configured clients only, by client_id and client_secret.";
    match form.get("grant_type") {
        Some("client_credentials") => {
            check_client(plane, &client, secret.as_deref(), form)?;
            Ok(tokens(plane, call, form, &Who::client(&client), &client, false))
        }
        Some("password") if is_open => {
            let user = form
                .get("username")
                .ok_or_else(|| refuse(400, "invalid_request", "The parameter 'username' is missing."))?;
            Ok(tokens(plane, call, form, &Who::user(&client, user), &client, true))
        }
        Some("device_code" | "urn:ietf:params:oauth:grant-type:device_code") if is_open => {
            let code = form.get("device_code").or_else(|| form.get("code"));
            let claims = redeem(plane, code, Use::Device)?;
            Ok(tokens(plane, call, form, &claims.who(), &client, true))
        }
        Some("refresh_token") => {
            let claims = redeem(plane, form.get("refresh_token"), Use::Refresh)?;
            Ok(tokens(plane, call, form, &claims.who(), &client, true))
        }
        Some("authorization_code") => Err(refuse(
            400,
            "unsupported_grant_type",
            "Login by a browser is not implemented; use `az login --use-device-code` or a service principal.",
        )),
        Some("password" | "device_code" | "urn:ietf:params:oauth:grant-type:device_code") => {
            Err(refuse(400, "unauthorized_client", only_clients))
        }
        Some(other) => Err(refuse(
            400,
            "unsupported_grant_type",
            format!(
                "The grant type '{}' is not supported; use client_credentials, password, device_code or refresh_token.",
                other.chars().take(64).collect::<String>()
            ),
        )),
        None => Err(refuse(400, "invalid_request", "The parameter 'grant_type' is missing.")),
    }
}

/// `organizations`, `common` and `adfs` stand for the one tenant.
fn check_tenant(plane: &ControlPlane, call: &Call) -> Result<(), OauthError> {
    let given = call.name("tenant");
    let is_known = given.eq_ignore_ascii_case(&plane.config().tenant)
        || ["organizations", "common", "consumers", "adfs"].iter().any(|known| known.eq_ignore_ascii_case(given));
    // a developer's machine plays any tenant; with configured clients there is one
    if is_known || matches!(plane.config().auth, Auth::OpenLoopback { .. }) {
        return Ok(());
    }
    let given: String = given.chars().take(64).collect();
    Err(refuse(400, "invalid_request", format!("Tenant '{given}' was not found; use '{}'.", plane.config().tenant)))
}

fn check_client(plane: &ControlPlane, client: &str, secret: Option<&str>, form: &Form) -> Result<(), OauthError> {
    let Auth::Clients(clients) = &plane.config().auth else { return Ok(()) };
    if form.get("client_assertion").is_some() {
        return Err(refuse(401, "invalid_client", "Login by certificate is not implemented; use a client secret."));
    }
    let key = plane.token_key();
    // fingerprints compare without telling by their time how much was right
    let is_right = clients.iter().any(|known| {
        let id_is_right = known.client_id.eq_ignore_ascii_case(client);
        let secret_is_right = secret.is_some_and(|secret| key.fingerprint(secret) == key.fingerprint(&known.secret));
        id_is_right && secret_is_right
    });
    if is_right {
        return Ok(());
    }
    Err(refuse(401, "invalid_client", "The client is not known to this server or its secret is wrong."))
}

fn redeem(plane: &ControlPlane, token: Option<&str>, wanted: Use) -> Result<Claims, OauthError> {
    let token = token.ok_or_else(|| refuse(400, "invalid_request", "The code or refresh token is missing."))?;
    match plane.token_key().check(token, Timestamp::now()) {
        Ok(claims) if claims.cove_use == wanted => Ok(claims),
        Ok(_) => Err(refuse(400, "invalid_grant", "The token is of another kind than this grant needs.")),
        Err(TokenError::Expired) if wanted == Use::Device => {
            Err(refuse(400, "expired_token", "The device code has expired; start again."))
        }
        Err(error) => Err(refuse(400, "invalid_grant", format!("{error}."))),
    }
}

fn tokens(plane: &ControlPlane, call: &Call, form: &Form, who: &Who, client: &str, is_person: bool) -> Response {
    let audience = form.audience(&call.origin);
    let now = Timestamp::now();
    let (key, config) = (plane.token_key(), plane.config());
    let claims = |what: Use, audience: &str, lifetime: Duration| {
        let mut claims = Claims::new(&config.tenant, who, what, audience, now, lifetime);
        claims.iss = identity_docs::issuer(&call.origin, &config.tenant);
        key.sign(&claims)
    };
    let access = claims(Use::Access, &audience, config.token_lifetime);
    let refresh = is_person.then(|| claims(Use::Refresh, &audience, REFRESH_LIFETIME));
    let id = is_person.then(|| claims(Use::Id, client, config.token_lifetime));
    let scope = form.get("scope").map_or_else(|| format!("{audience}/.default"), str::to_owned);
    let body = identity_docs::token(&TokenAnswer {
        access_token: &access,
        claims: &shown(plane, call, who, &audience, now),
        scope: &scope,
        refresh_token: refresh.as_deref(),
        id_token: id.as_deref(),
    });
    answer::json(200, &body)
}

fn shown<'a>(
    plane: &'a ControlPlane,
    call: &'a Call,
    who: &'a Who,
    audience: &'a str,
    now: Timestamp,
) -> TokenClaims<'a> {
    TokenClaims {
        origin: &call.origin,
        tenant: &plane.config().tenant,
        subject: who.name(),
        object_id: &who.object_id,
        audience,
        is_application: who.user.is_none(),
        issued_at: now,
        lifetime_secs: u32::try_from(plane.config().token_lifetime.as_secs()).unwrap_or(u32::MAX),
    }
}

async fn device_code(plane: ControlPlane, call: Call) -> Answer {
    let form = Form::of(&call);
    if matches!(plane.config().auth, Auth::Clients(_)) {
        let text = "This server gives tokens to its configured clients only, by client_id and client_secret.";
        return oauth(Err(refuse(400, "unauthorized_client", text)));
    }
    let Some(client) = form.get("client_id") else {
        return oauth(Err(refuse(400, "invalid_request", "The parameter 'client_id' is missing.")));
    };
    let who = Who::user(client, "developer@cove.localhost");
    let lifetime = Duration::from_secs(DEVICE_LIFETIME_SECS.into());
    let claims = Claims::new(&plane.config().tenant, &who, Use::Device, &call.origin, Timestamp::now(), lifetime);
    let code = plane.token_key().sign(&claims);
    let user_code = random_word(8)?.to_uppercase();
    let body = identity_docs::device_code(&call.origin, &code, &user_code, DEVICE_LIFETIME_SECS);
    oauth(Ok(answer::json(200, &body)))
}

impl ControlPlane {
    /// A token of an app's identity for an audience, as `/msi/token` gives it to its workloads: for the scale rules that the
    /// server reads in the app's name. `identity` is `system` or the id of a user-assigned identity; `origin` is the address
    /// of this API.
    ///
    /// # Errors
    /// In words, where the app has no such identity.
    pub fn identity_token(
        &self,
        app: &ResourceId,
        identity: &str,
        audience: &str,
        origin: &str,
    ) -> Result<String, String> {
        let unreadable = |_| "the identities could not be read".to_owned();
        let row = self.store().resource(app).map_err(unreadable)?.ok_or("the app is gone")?;
        let of_app = row.doc.pointer("/identity").cloned().unwrap_or_default();
        let client = if identity.eq_ignore_ascii_case("system") {
            let kind = of_app["type"].as_str().unwrap_or_default().to_ascii_lowercase();
            if !kind.contains("systemassigned") {
                return Err("the app has no system-assigned identity; assign one".to_owned());
            }
            identities::ids(&row).client_id
        } else {
            let assigned = of_app["userAssignedIdentities"].as_object();
            let is_assigned = assigned.is_some_and(|all| all.keys().any(|id| id.eq_ignore_ascii_case(identity)));
            if !is_assigned {
                return Err(format!("the identity `{identity}` is not assigned to the app"));
            }
            let id = ResourceId::parse(identity).map_err(|error| error.to_string())?;
            let row = self.store().resource(&id).map_err(unreadable)?;
            identities::ids(&row.ok_or_else(|| format!("the identity `{identity}` does not exist"))?).client_id
        };
        let audience = audience.strip_suffix("/.default").unwrap_or(audience);
        let lifetime = self.config().token_lifetime;
        let who = Who::client(&client);
        let mut claims = Claims::new(&self.config().tenant, &who, Use::Access, audience, Timestamp::now(), lifetime);
        claims.iss = identity_docs::issuer(origin, &self.config().tenant);
        Ok(self.token_key().sign(&claims))
    }
}

/// `GET /msi/token?resource=…` with `X-IDENTITY-HEADER`, as App Service and Container Apps give it to workloads.
async fn managed_identity(plane: ControlPlane, call: Call) -> Answer {
    let refused = |status: u16, message: &str| -> Answer {
        let body: Value = json!({ "statusCode": status, "message": message });
        Ok(answer::json(status, &body))
    };
    if matches!(plane.config().auth, Auth::Clients(_)) {
        return Err(Refusal::Arm(ArmError::not_implemented(
            "/msi/token",
            "Managed identity on a server with configured clients",
            "log in with a client_id and client_secret",
        )));
    }
    if call.header("x-identity-header").is_none_or(str::is_empty) {
        return refused(400, "The header X-IDENTITY-HEADER is missing; send the value of IDENTITY_HEADER.");
    }
    let Some(resource) = call.query("resource").filter(|resource| !resource.is_empty()) else {
        return refused(400, "The parameter 'resource' is missing.");
    };
    let audience = resource.strip_suffix("/.default").unwrap_or(resource);
    let client = call.query("client_id").or_else(|| call.query("clientid")).unwrap_or("system-assigned");
    let who = Who::client(&client.chars().take(128).collect::<String>());
    let now = Timestamp::now();
    let mut claims =
        Claims::new(&plane.config().tenant, &who, Use::Access, audience, now, plane.config().token_lifetime);
    claims.iss = identity_docs::issuer(&call.origin, &plane.config().tenant);
    let access = plane.token_key().sign(&claims);
    let body = identity_docs::managed_identity_token(&TokenAnswer {
        access_token: &access,
        claims: &shown(&plane, &call, &who, audience, now),
        scope: audience,
        refresh_token: None,
        id_token: None,
    });
    Ok(answer::json(200, &body))
}
