//! From the stored document to what the ingress does: defaults, the providers that Azure knows by name, secrets.
//!
//! **Invariant:** a provider that cannot be used is left out and told in words; it never lets anybody in.

use std::{collections::BTreeMap, time::Duration};

use cove_model::{
    AllowedPrincipals, AuthOrigin, AuthPolicy, AuthProtocol, AuthProvider, SecretText, UnauthenticatedAction,
};
use serde_json::Value;

use crate::node::Node;

/// How long a login holds.
const SESSION_TIME: Duration = Duration::from_secs(8 * 3600);
/// How long a login may take.
const NONCE_TIME: Duration = Duration::from_secs(300);
/// How long after its end a login can be refreshed, in hours.
const REFRESH_HOURS: f64 = 72.0;
/// Longest time that is kept of any setting: a year.
const TIME_MAX: Duration = Duration::from_secs(366 * 24 * 3600);
/// Where the platform answers itself.
const API_PREFIX: &str = "/.auth";

/// A provider that Azure knows by name.
struct Known {
    /// Its member of `identityProviders`.
    member: &'static str,
    /// Its name in paths and headers.
    name: &'static str,
    /// Where its OpenID Connect configuration is; OAuth 2.0 has none.
    discovery: Option<&'static str>,
    /// Authorization, token and user endpoint of OAuth 2.0.
    endpoints: Option<[&'static str; 3]>,
    /// Members of `registration` with client id and the name of the secret.
    registration: [&'static str; 2],
    /// What is asked for when nothing is said.
    scopes: &'static [&'static str],
    /// Claim with the user's name.
    name_claim: Option<&'static str>,
}

const KNOWN: &[Known] = &[
    Known {
        member: "google",
        name: "google",
        discovery: Some("https://accounts.google.com/.well-known/openid-configuration"),
        endpoints: None,
        registration: ["clientId", "clientSecretSettingName"],
        scopes: &["openid", "profile", "email"],
        name_claim: None,
    },
    Known {
        member: "apple",
        name: "apple",
        discovery: Some("https://appleid.apple.com/.well-known/openid-configuration"),
        endpoints: None,
        registration: ["clientId", "clientSecretSettingName"],
        scopes: &["openid"],
        name_claim: Some("email"),
    },
    Known {
        member: "gitHub",
        name: "github",
        discovery: None,
        endpoints: Some([
            "https://github.com/login/oauth/authorize",
            "https://github.com/login/oauth/access_token",
            "https://api.github.com/user",
        ]),
        registration: ["clientId", "clientSecretSettingName"],
        scopes: &[],
        name_claim: Some("login"),
    },
    Known {
        member: "facebook",
        name: "facebook",
        discovery: None,
        endpoints: Some([
            "https://www.facebook.com/v19.0/dialog/oauth",
            "https://graph.facebook.com/v19.0/oauth/access_token",
            "https://graph.facebook.com/v19.0/me?fields=id,name,email",
        ]),
        registration: ["appId", "appSecretSettingName"],
        scopes: &["public_profile", "email"],
        name_claim: Some("name"),
    },
];

/// Providers that Azure has and Cove has not, with the reason.
const MISSING: &[(&str, &str)] =
    &[("twitter", "its logins need OAuth 1.0a"), ("azureStaticWebApps", "its logins belong to another service")];

/// What a configuration asks for; `None` when it is switched off. `secrets` are the app's.
#[must_use]
pub fn policy(doc: &Value, secrets: &BTreeMap<String, String>) -> Option<AuthPolicy> {
    if !super::is_on(doc) {
        return None;
    }
    let properties = Node::root(doc).get("properties");
    let validation = properties.get("globalValidation");
    let http = properties.get("httpSettings");
    let login = properties.get("login");
    let token_store = login.get("tokenStore");
    let hours = token_store.get("tokenRefreshExtensionHours").number().unwrap_or(REFRESH_HOURS);
    let derives =
        login.get("cookieExpiration").get("convention").text().is_some_and(|it| is(it, "IdentityProviderDerived"));
    let session_time = time_of(&login.get("cookieExpiration").get("timeToExpiration"));
    let providers = providers(&properties.get("identityProviders"), secrets);
    let redirect_to = validation.get("redirectToProvider").text().filter(|name| !name.is_empty()).map(provider_name);
    let sealing = ["containerAppAuthEncryptionSecretName", "containerAppAuthSigningSecretName"];
    let sealing = sealing.iter().filter_map(|name| secret(&properties.get("encryptionSettings").get(name), secrets));
    Some(AuthPolicy {
        action: match validation.get("unauthenticatedClientAction").text() {
            Some("AllowAnonymous") => UnauthenticatedAction::AllowAnonymous,
            Some("Return401") => UnauthenticatedAction::Return401,
            Some("Return403") => UnauthenticatedAction::Return403,
            _ => UnauthenticatedAction::RedirectToLoginPage,
        },
        redirect_to,
        excluded_paths: texts(&validation.get("excludedPaths")),
        api_prefix: match http.get("routes").get("apiPrefix").text().map(|prefix| prefix.trim_end_matches('/')) {
            None | Some("") => API_PREFIX.to_owned(),
            Some(prefix) => prefix.to_owned(),
        },
        logout_path: login.get("routes").get("logoutEndpoint").text().filter(|it| it.len() > 1).map(str::to_owned),
        requires_https: http.get("requireHttps").flag().unwrap_or(false),
        origin: origin(&http.get("forwardProxy")),
        providers,
        external_redirects: texts(&login.get("allowedExternalRedirectUrls")),
        session_time: if derives { None } else { Some(session_time.unwrap_or(SESSION_TIME)) },
        nonce_time: time_of(&login.get("nonce").get("nonceExpirationInterval")).unwrap_or(NONCE_TIME),
        checks_nonce: login.get("nonce").get("validateNonce").flag().unwrap_or(true),
        keeps_tokens: token_store.get("enabled").flag().unwrap_or(false),
        refresh_extension: hours_of(hours),
        sealing_secrets: sealing.collect(),
    })
}

/// What of a configuration that is switched on does not work as it is written, in words.
#[must_use]
pub fn warnings(doc: &Value) -> Vec<String> {
    let mut words = Vec::new();
    if !super::is_on(doc) {
        return words;
    }
    let properties = Node::root(doc).get("properties");
    let identity = properties.get("identityProviders");
    for (name, why) in MISSING {
        if is_wanted(&member(&identity, name)) {
            words.push(format!(
                "identityProviders.{name} is not available: {why}; nobody can log in with it. Use another provider."
            ));
        }
    }
    let apple_asks = member(&identity, "apple").get("login").get("scopes").items();
    if apple_asks.iter().any(|scope| scope.text().is_some_and(|scope| scope != "openid")) {
        words.push(
            "identityProviders.apple asks for 'openid' only: name and email need an answer by a form of another site."
                .to_owned(),
        );
    }
    let aad = member(&identity, "azureActiveDirectory").get("registration");
    if aad.members().iter().any(|(name, node)| name.starts_with("clientSecretCertificate") && node.text().is_some()) {
        words.push(
            "clientSecretCertificate… of azureActiveDirectory has no effect; use clientSecretSettingName.".to_owned(),
        );
    }
    let login = properties.get("login");
    if login.get("preserveUrlFragmentsForLogins").flag() == Some(true) {
        words
            .push("login.preserveUrlFragmentsForLogins has no effect: what follows '#' is lost by a login.".to_owned());
    }
    if login.get("tokenStore").get("azureBlobStorage").exists() {
        words.push("login.tokenStore keeps tokens on this machine, sealed; azureBlobStorage is not used.".to_owned());
    }
    let policy = policy(doc, &BTreeMap::new());
    if let Some(policy) = policy {
        let plain = |provider: &AuthProvider| {
            let endpoints = [&provider.discovery, &provider.token_endpoint, &provider.keys_endpoint];
            endpoints.iter().any(|it| it.as_ref().is_some_and(|it| it.starts_with("http://")))
        };
        for provider in policy.providers.iter().filter(|provider| plain(provider)) {
            let name = &provider.name;
            words.push(format!("The provider '{name}' is reached over plain HTTP: who is on the way can read and forge logins. Use https outside of tests."));
        }
        for name in wanted_names(&identity) {
            if !policy.providers.iter().any(|provider| is(&provider.name, &name)) {
                words.push(format!("The provider '{name}' has no client id; nobody can log in with it."));
            }
        }
        let lacks_addresses = |provider: &AuthProvider| {
            let needed =
                [&provider.issuer, &provider.authorization_endpoint, &provider.token_endpoint, &provider.keys_endpoint];
            provider.protocol == AuthProtocol::OpenId
                && provider.discovery.is_none()
                && needed.iter().any(|it| it.is_none())
        };
        for provider in policy.providers.iter().filter(|provider| lacks_addresses(provider)) {
            let name = &provider.name;
            words.push(format!("The provider '{name}' cannot be found: it needs wellKnownOpenIdConfiguration, or issuer, authorizationEndpoint, tokenEndpoint and certificationUri."));
        }
        if policy.providers.is_empty() && policy.action == UnauthenticatedAction::RedirectToLoginPage {
            words.push("There is no identity provider to send anybody to: every request is answered 401. Add one, or allow anonymous requests.".to_owned());
        }
    }
    words
}

/// The name in paths of what `redirectToProvider` and `identityProviders` name.
pub(super) fn provider_name(member: &str) -> String {
    if is(member, "azureactivedirectory") || is(member, "microsoft") || is(member, "aad") {
        return "aad".to_owned();
    }
    match KNOWN.iter().find(|known| is(member, known.member)) {
        Some(known) => known.name.to_owned(),
        None => member.to_owned(),
    }
}

/// Names of the providers that are there and can be had.
fn wanted_names(identity: &Node<'_>) -> Vec<String> {
    let built_in = KNOWN.iter().map(|known| (known.name, known.member)).chain([("aad", "azureActiveDirectory")]);
    let built_in = built_in.filter(|(_, of)| is_wanted(&member(identity, of))).map(|(name, _)| name.to_owned());
    let custom = member(identity, "customOpenIdConnectProviders").members();
    let custom = custom.into_iter().filter(|(_, node)| is_wanted(node)).map(|(name, _)| name.to_owned());
    built_in.chain(custom).collect()
}

/// Whether a custom provider cannot have this name.
pub(super) fn is_platform_name(name: &str) -> bool {
    let more = ["azureactivedirectory", "microsoft", "aad", "done", "x"];
    let missing = MISSING.iter().map(|(name, _)| *name);
    KNOWN.iter().map(|known| known.member).chain(missing).chain(more).any(|taken| is(taken, name))
}

fn providers(identity: &Node<'_>, secrets: &BTreeMap<String, String>) -> Vec<AuthProvider> {
    let mut all: Vec<AuthProvider> = Vec::new();
    all.extend(microsoft(&member(identity, "azureActiveDirectory"), secrets));
    for known in KNOWN {
        all.extend(named(known, &member(identity, known.member), secrets));
    }
    for (name, node) in member(identity, "customOpenIdConnectProviders").members() {
        if !all.iter().any(|other| is(&other.name, name)) {
            all.extend(custom(name, &node, secrets));
        }
    }
    all
}

fn microsoft(node: &Node<'_>, secrets: &BTreeMap<String, String>) -> Option<AuthProvider> {
    let registration = node.get("registration");
    let issuer = registration.get("openIdIssuer").text().unwrap_or("https://login.microsoftonline.com/common/v2.0");
    let issuer = issuer.trim_end_matches('/').trim_end_matches("/.well-known/openid-configuration");
    let validation = node.get("validation");
    let policy = validation.get("defaultAuthorizationPolicy");
    let checks = validation.get("jwtClaimChecks");
    let list = |nodes: [Node<'_>; 2]| nodes.iter().flat_map(texts).collect::<Vec<_>>();
    let mut provider = base("aad", node, &registration.get("clientId"))?;
    provider.discovery = Some(format!("{issuer}/.well-known/openid-configuration"));
    provider.client_secret = secret(&registration.get("clientSecretSettingName"), secrets);
    provider.scopes = ["openid", "profile", "email"].map(str::to_owned).to_vec();
    let parameters = texts(&node.get("login").get("loginParameters"));
    for parameter in parameters {
        match parameter.split_once('=') {
            Some(("scope", scopes)) => provider.scopes = scopes.split([' ', '+']).map(str::to_owned).collect(),
            Some((name, value)) => provider.login_parameters.push((name.to_owned(), value.to_owned())),
            None => {}
        }
    }
    provider.audiences = texts(&validation.get("allowedAudiences"));
    provider.audiences.push(format!("api://{}", provider.client_id));
    provider.allowed = AllowedPrincipals {
        identities: texts(&policy.get("allowedPrincipals").get("identities")),
        groups: list([policy.get("allowedPrincipals").get("groups"), checks.get("allowedGroups")]),
        applications: list([policy.get("allowedApplications"), checks.get("allowedClientApplications")]),
    };
    provider.challenges = node.get("login").get("disableWWWAuthenticate").flag() != Some(true);
    Some(provider)
}

fn named(known: &Known, node: &Node<'_>, secrets: &BTreeMap<String, String>) -> Option<AuthProvider> {
    let registration = node.get("registration");
    let [client, client_secret] = known.registration;
    let mut provider = base(known.name, node, &registration.get(client))?;
    provider.client_secret = secret(&registration.get(client_secret), secrets);
    provider.discovery = known.discovery.map(str::to_owned);
    let scopes = texts(&node.get("login").get("scopes"));
    provider.scopes = match scopes.is_empty() || known.member == "apple" {
        true => known.scopes.iter().map(|&scope| scope.to_owned()).collect(),
        false => scopes,
    };
    provider.name_claim = known.name_claim.map(str::to_owned);
    provider.audiences = texts(&node.get("validation").get("allowedAudiences"));
    if let Some([authorize, token, user]) = known.endpoints {
        provider.protocol = AuthProtocol::OAuth2;
        provider.accepts_bearer = false;
        provider.authorization_endpoint = Some(authorize.to_owned());
        provider.token_endpoint = Some(token.to_owned());
        provider.user_endpoint = Some(user.to_owned());
    }
    Some(provider)
}

fn custom(name: &str, node: &Node<'_>, secrets: &BTreeMap<String, String>) -> Option<AuthProvider> {
    let registration = node.get("registration");
    let addresses = registration.get("openIdConnectConfiguration");
    let address = |name: &str| addresses.get(name).text().filter(|it| !it.is_empty()).map(str::to_owned);
    let mut provider = base(name, node, &registration.get("clientId"))?;
    provider.discovery = address("wellKnownOpenIdConfiguration");
    provider.issuer = address("issuer");
    provider.authorization_endpoint = address("authorizationEndpoint");
    provider.token_endpoint = address("tokenEndpoint");
    provider.keys_endpoint = address("certificationUri");
    // `az` writes it in both places
    let names = [registration.get("clientCredential"), registration.clone()];
    provider.client_secret = names.iter().find_map(|node| secret(&node.get("clientSecretSettingName"), secrets));
    let scopes = texts(&node.get("login").get("scopes"));
    provider.scopes = if scopes.is_empty() { vec!["openid".to_owned()] } else { scopes };
    if !provider.scopes.iter().any(|scope| scope == "openid") {
        provider.scopes.insert(0, "openid".to_owned());
    }
    provider.name_claim = node.get("login").get("nameClaimType").text().filter(|it| !it.is_empty()).map(str::to_owned);
    Some(provider)
}

/// A provider with what all have; none without a client id, and none that is switched off.
fn base(name: &str, node: &Node<'_>, client_id: &Node<'_>) -> Option<AuthProvider> {
    if !is_wanted(node) {
        return None;
    }
    Some(AuthProvider {
        name: name.to_owned(),
        protocol: AuthProtocol::OpenId,
        discovery: None,
        issuer: None,
        authorization_endpoint: None,
        token_endpoint: None,
        keys_endpoint: None,
        user_endpoint: None,
        client_id: client_id.text().filter(|id| !id.is_empty())?.to_owned(),
        client_secret: None,
        scopes: Vec::new(),
        login_parameters: Vec::new(),
        name_claim: None,
        audiences: Vec::new(),
        allowed: AllowedPrincipals::default(),
        accepts_bearer: true,
        challenges: true,
    })
}

fn origin(node: &Node<'_>) -> AuthOrigin {
    let header = |name: &str| node.get(name).text().filter(|it| !it.is_empty()).map(str::to_ascii_lowercase);
    match node.get("convention").text() {
        Some(it) if is(it, "Standard") => AuthOrigin::Forwarded,
        Some(it) if is(it, "Custom") => {
            AuthOrigin::Headers { host: header("customHostHeaderName"), scheme: header("customProtoHeaderName") }
        }
        _ => AuthOrigin::Request,
    }
}

/// A member, whatever the case of its name: the documents of providers are kept as they came.
pub(super) fn member<'a>(node: &Node<'a>, name: &str) -> Node<'a> {
    let found = node.members().into_iter().find(|(known, _)| is(known, name));
    found.map_or_else(|| node.get(name), |(_, node)| node)
}

fn is_wanted(node: &Node<'_>) -> bool {
    node.exists() && node.get("enabled").flag() != Some(false)
}

fn is(one: &str, other: &str) -> bool {
    one.eq_ignore_ascii_case(other)
}

fn texts(node: &Node<'_>) -> Vec<String> {
    node.items().iter().filter_map(Node::text).filter(|text| !text.is_empty()).map(str::to_owned).collect()
}

fn secret(node: &Node<'_>, secrets: &BTreeMap<String, String>) -> Option<SecretText> {
    secrets.get(node.text()?).map(|value| SecretText::new(value.clone()))
}

fn hours_of(hours: f64) -> Duration {
    Duration::try_from_secs_f64(hours.max(0.0) * 3600.0).map_or(TIME_MAX, |time| time.min(TIME_MAX))
}

fn time_of(node: &Node<'_>) -> Option<Duration> {
    time_span(node.text()?)
}

/// `hh:mm:ss`, with days before it as `d.hh:mm:ss`.
pub(super) fn time_span(text: &str) -> Option<Duration> {
    let (days, clock) = match text.split_once('.') {
        Some((days, clock)) => (days.parse::<u64>().ok()?, clock),
        None => (0, text),
    };
    let mut parts = clock.split(':').map(|part| part.parse::<u64>().ok());
    let (hours, minutes, seconds) = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    if parts.next().is_some() || minutes > 59 || seconds > 59 || days > 366 || hours > 24 * 366 {
        return None;
    }
    let time = Duration::from_secs(days * 86_400 + hours * 3600 + minutes * 60 + seconds);
    (!time.is_zero()).then(|| time.min(TIME_MAX))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(properties: &Value) -> AuthPolicy {
        let secrets = BTreeMap::from([("pw".to_owned(), "hush".to_owned())]);
        policy(&json!({ "properties": properties }), &secrets).unwrap()
    }

    #[test]
    fn what_is_not_said_is_as_azure_has_it() {
        let policy = read(&json!({ "platform": { "enabled": true } }));
        assert_eq!(policy.action, UnauthenticatedAction::RedirectToLoginPage);
        assert_eq!((policy.api_prefix.as_str(), policy.session_time), ("/.auth", Some(SESSION_TIME)));
        assert!(policy.checks_nonce && !policy.keeps_tokens && !policy.requires_https);
        assert!(
            super::policy(&json!({ "properties": { "platform": { "enabled": false } } }), &BTreeMap::new()).is_none()
        );
        assert!(super::policy(&json!({ "properties": {} }), &BTreeMap::new()).is_none());
    }

    #[test]
    fn each_kind_of_provider_is_read() {
        let policy = read(&json!({
            "platform": { "enabled": true },
            "globalValidation": { "redirectToProvider": "AzureActiveDirectory" },
            "identityProviders": {
                "azureActiveDirectory": {
                    "registration": { "openIdIssuer": "https://login.example/t/v2.0/", "clientId": "me", "clientSecretSettingName": "pw" },
                    "login": { "loginParameters": ["domain_hint=example.org", "scope=openid offline_access"] },
                    "validation": { "allowedAudiences": ["api"], "defaultAuthorizationPolicy": { "allowedPrincipals": { "groups": ["g"] } } },
                },
                "github": { "registration": { "clientId": "gh" } },
                "google": { "enabled": false, "registration": { "clientId": "off" } },
                "facebook": { "registration": { "appId": "fb", "appSecretSettingName": "pw" } },
                "customOpenIdConnectProviders": { "own": {
                    "registration": { "clientId": "c", "clientCredential": { "clientSecretSettingName": "pw" },
                        "openIdConnectConfiguration": { "wellKnownOpenIdConfiguration": "http://op/.well-known/openid-configuration" } },
                    "login": { "nameClaimType": "nickname", "scopes": ["profile"] },
                } },
            },
        }));
        let names: Vec<&str> = policy.providers.iter().map(|provider| provider.name.as_str()).collect();
        assert_eq!(names, ["aad", "github", "facebook", "own"]);
        assert_eq!(policy.redirect_to.as_deref(), Some("aad"));
        let aad = &policy.providers[0];
        assert_eq!(aad.discovery.as_deref(), Some("https://login.example/t/v2.0/.well-known/openid-configuration"));
        assert_eq!(aad.scopes, ["openid", "offline_access"]);
        assert_eq!(aad.login_parameters, [("domain_hint".to_owned(), "example.org".to_owned())]);
        assert_eq!(
            (aad.audiences.as_slice(), aad.allowed.groups.as_slice()),
            (&["api".into(), "api://me".into()][..], &["g".into()][..])
        );
        assert_eq!(aad.client_secret.as_ref().unwrap().reveal(), "hush");
        assert!(!format!("{policy:?}").contains("hush"));
        assert_eq!(policy.providers[1].protocol, AuthProtocol::OAuth2);
        assert_eq!(policy.providers[3].scopes, ["openid", "profile"]);
    }

    #[test]
    fn what_cannot_be_had_is_said() {
        let said = |properties: Value| warnings(&json!({ "properties": properties })).join("\n");
        let all = said(json!({
            "platform": { "enabled": true },
            "identityProviders": { "twitter": { "registration": { "consumerKey": "x" } } },
            "login": { "preserveUrlFragmentsForLogins": true },
        }));
        assert!(all.contains("twitter") && all.contains("'#'") && all.contains("no identity provider"), "{all}");
        assert_eq!(
            said(
                json!({ "platform": { "enabled": true }, "identityProviders": { "google": { "registration": { "clientId": "x" } } } })
            ),
            ""
        );
    }

    #[test]
    fn times_are_dot_net_spans() {
        for (text, expected) in [
            ("08:00:00", Some(28_800)),
            ("00:05", Some(300)),
            ("1.02:00:00", Some(93_600)),
            ("00:00:00", None),
            ("8h", None),
            ("00:60:00", None),
            ("-1:00:00", None),
            ("1:2:3:4", None),
        ] {
            assert_eq!(time_span(text).map(|time| time.as_secs()), expected, "{text}");
        }
    }
}
