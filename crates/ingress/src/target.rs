//! Which app a request goes to, and whether its client may call it.
//!
//! **Invariant:** every rule of the app is checked before its gate counts the request: who is refused wakes nothing.

use std::{net::IpAddr, sync::Arc};

use cove_model::{ClientCertificateMode, ResourceId, Transport};
use cove_traffic::{AppRoute, AppRouteState, host_name, target_name};
use http::{HeaderMap, HeaderValue, Response, Uri, request::Parts};
use http_body_util::Full;

use crate::{
    answer::{Refusal, redirect},
    config::IngressConfig,
    headers,
    policy::Policy,
    proxy::{Client, Proxy, Side},
    routes::{AppGates, Snapshot, Target},
};

/// Where a request goes.
pub(crate) struct Found {
    pub(crate) app: Arc<AppGates>,
    /// The path to ask for, if a path routing rewrites it.
    pub(crate) path: Option<String>,
    /// The host can be reached over TLS.
    pub(crate) has_tls: bool,
    /// A path routing leads here: it publishes internal apps too.
    is_by_path: bool,
}

/// Whether a client may call, or the answer that it gets right away.
pub(crate) enum Admission {
    In,
    Answer(Box<Response<Full<bytes::Bytes>>>),
}

impl Proxy {
    /// The newest routes, also when the router has not come to them yet.
    pub(crate) fn snapshot_now(&self) -> Arc<Snapshot> {
        let table = self.routes.borrow().clone();
        let last = self.snapshot.load_full();
        if last.is_of(&table) { last } else { Arc::new(self.gates.snapshot(&table, &last)) }
    }

    /// The app of a request.
    ///
    /// # Errors
    /// A [`Refusal`] when there is none, or it does not answer here.
    pub(crate) fn find(&self, client: &Client, host: &str, uri: &Uri) -> Result<Found, Refusal> {
        let environment = self.environment(client);
        let find = |snapshot: &Snapshot| self.find_in(snapshot, &host_name(host), environment.as_ref(), uri.path());
        // a route that was published a moment ago must not be missed
        let found = find(&self.snapshot.load()).or_else(|| find(&self.snapshot_now()));
        check(client, environment.as_ref(), found)
    }

    /// The app of a request by the newest routes.
    ///
    /// # Errors
    /// A [`Refusal`] when there is none, or it does not answer here.
    pub(crate) fn find_anew(&self, client: &Client, host: &str, uri: &Uri) -> Result<Found, Refusal> {
        let environment = self.environment(client);
        let found = self.find_in(&self.snapshot_now(), &host_name(host), environment.as_ref(), uri.path());
        check(client, environment.as_ref(), found)
    }

    /// The environment of a replica that calls from inside.
    pub(crate) fn environment(&self, client: &Client) -> Option<ResourceId> {
        match client.side {
            Side::Internal | Side::InternalTls => (self.environment_of)(client.peer),
            Side::Http | Side::Https => None,
        }
    }

    /// `X-Forwarded-Client-Cert` for a call from an app of the same environment, where that is to be told: who is called and who
    /// calls, as SPIFFE ids. No certificate is behind it: the caller's address is, which its replica cannot change.
    pub(crate) fn caller(&self, client: &Client, called: &AppRoute, policy: &Policy) -> Option<HeaderValue> {
        if !policy.names_callers || self.environment(client)? != called.environment {
            return None;
        }
        let id = |app: &ResourceId| {
            let name = |id: &ResourceId| id.name().to_ascii_lowercase();
            format!("spiffe://{}/app/{}", name(&called.environment), name(app))
        };
        let caller = (self.app_of)(client.peer)?;
        HeaderValue::try_from(format!("By={};URI={}", id(&called.app), id(&caller))).ok()
    }

    fn find_in(
        &self,
        snapshot: &Snapshot,
        name: &str,
        environment: Option<&ResourceId>,
        path: &str,
    ) -> Option<Result<Found, Refusal>> {
        let app = |app: &Arc<AppGates>, has_tls| Found { app: Arc::clone(app), path: None, has_tls, is_by_path: false };
        let Some(host) = snapshot.host(name) else {
            return Some(Ok(app(snapshot.short_name(environment?, name)?, true)));
        };
        let routes = match &host.target {
            Target::App(it) => return Some(Ok(app(it, host.has_tls))),
            Target::Paths(routes) => routes,
        };
        let Some(matched) = routes.find(path, (self.random)()) else { return Some(Err(Refusal::NoPathRoute)) };
        let name = target_name(matched.target);
        Some(match snapshot.short_name(&routes.environment, &name) {
            Some(app) => {
                let app = Arc::clone(app);
                Ok(Found { app, path: matched.path, has_tls: host.has_tls, is_by_path: true })
            }
            None => Err(Refusal::RouteTargetMissing { name }),
        })
    }

    /// Checks the app's rules.
    ///
    /// # Errors
    /// A [`Refusal`] for who may not call.
    pub(crate) fn admit(
        &self,
        client: &Client,
        found: &Found,
        host: &str,
        (method, uri, fields): (&http::Method, &Uri, &HeaderMap),
    ) -> Result<Admission, Refusal> {
        let (config, policy) = (&self.shared.config, &found.app.policy);
        if !policy.lets_in(headers::client_address(fields, client.peer, config)) {
            return Err(Refusal::IpNotAllowed);
        }
        if client.side == Side::Http && !found.app.route.allow_insecure && config.redirect_http && found.has_tls {
            let location = self.https_location(host, uri)?;
            return Ok(Admission::Answer(Box::new(redirect(method, location))));
        }
        if let Some(answer) = policy.cors.as_ref().and_then(|cors| cors.preflight(method, fields)) {
            return Ok(Admission::Answer(Box::new(answer)));
        }
        check_certificate(policy.client_certificate, client, fields, config)?;
        Ok(Admission::In)
    }

    pub(crate) fn https_location(&self, host: &str, uri: &Uri) -> Result<HeaderValue, Refusal> {
        let name = host_name(host);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let location = match self.https_port.get() {
            Some(443) | None => format!("https://{name}{path}"),
            Some(port) => format!("https://{name}:{port}{path}"),
        };
        HeaderValue::try_from(location).map_err(|_| Refusal::HostConflict)
    }
}

/// Whether what was found answers this client.
fn check(
    client: &Client,
    environment: Option<&ResourceId>,
    found: Option<Result<Found, Refusal>>,
) -> Result<Found, Refusal> {
    let found = found.ok_or(Refusal::UnknownHost)??;
    let route = &found.app.route;
    let is_inside =
        client.side.is_internal() && environment.is_none_or(|environment| *environment == route.environment);
    if !route.external && !is_inside && !found.is_by_path {
        return Err(Refusal::AppInternal);
    }
    if route.transport == Transport::Tcp {
        return Err(Refusal::TcpOnly);
    }
    match &route.state {
        AppRouteState::Active => Ok(found),
        AppRouteState::Stopped => Err(Refusal::AppStopped),
        AppRouteState::Failed { reason } => Err(Refusal::RevisionFailed { reason: reason.clone() }),
    }
}

fn check_certificate(
    mode: ClientCertificateMode,
    client: &Client,
    fields: &HeaderMap,
    config: &IngressConfig,
) -> Result<(), Refusal> {
    if mode == ClientCertificateMode::Ignore || client.tls.forwarded.is_some() {
        return Ok(());
    }
    if headers::is_trusted(client.peer, config) && fields.contains_key(headers::X_FORWARDED_CLIENT_CERT) {
        return Ok(());
    }
    match mode {
        // opened for another host: the client could not know that a certificate is wanted
        _ if client.side.is_tls() && !client.tls.was_asked => Err(Refusal::Misdirected),
        ClientCertificateMode::Require => Err(Refusal::ClientCertificateRequired),
        ClientCertificateMode::Ignore | ClientCertificateMode::Accept => Ok(()),
    }
}

/// Puts the path that a path routing asks for into a request's target; the query stays.
///
/// # Errors
/// [`Refusal::Internal`] when the rewritten path is no target.
pub(crate) fn rewrite(head: &mut Parts, path: &str) -> Result<(), Refusal> {
    let target = match head.uri.query() {
        Some(query) => format!("{path}?{query}"),
        None => path.to_owned(),
    };
    head.uri = target.parse().map_err(|_| Refusal::Internal)?;
    Ok(())
}

/// Whether TLS clients of a host are asked for a certificate; in `environment`, apps have short names too.
pub(crate) fn asks_certificate(snapshot: &Snapshot, environment: Option<&ResourceId>, host: &str) -> bool {
    match snapshot.host(host).map(|host| &host.target) {
        Some(Target::App(app)) => app.policy.asks_certificate(),
        Some(Target::Paths(routes)) => {
            let mut targets = routes.rules.iter().flat_map(|rule| &rule.targets);
            targets.any(|target| {
                let app = snapshot.short_name(&routes.environment, &target_name(target));
                app.is_some_and(|app| app.policy.asks_certificate())
            })
        }
        None => environment
            .and_then(|environment| snapshot.short_name(environment, host))
            .is_some_and(|app| app.policy.asks_certificate()),
    }
}

/// The address of a TCP client, which no proxy can speak for.
pub(crate) fn may_connect(app: &AppGates, peer: IpAddr) -> bool {
    app.policy.lets_in(peer)
}
