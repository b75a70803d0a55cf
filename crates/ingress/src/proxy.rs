//! What happens to one request, phase by phase: find the app, check, admit, send, pass the answer back.

use std::{net::IpAddr, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use cove_model::ResourceId;
use cove_traffic::{AppRouteState, RouteTable, WakeObservation, host_name};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    upgrade::{OnUpgrade, on},
};
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    answer::{Refusal, redirect},
    body::{Held, RequestBody, ResponseBody},
    gate::{GateShared, Lease, Ticket},
    headers::{self, Via},
    io::Socket,
    routes::{AppGates, Gates, Snapshot},
    upgrade,
    upstream::{self, Answered},
};

/// What every request of one ingress needs.
pub(crate) struct Proxy {
    pub(crate) shared: Arc<GateShared>,
    pub(crate) gates: Gates,
    pub(crate) routes: watch::Receiver<Arc<RouteTable>>,
    pub(crate) snapshot: ArcSwap<Snapshot>,
    pub(crate) random: Arc<dyn Fn() -> u32 + Send + Sync>,
    pub(crate) wakes: mpsc::Sender<WakeObservation>,
    pub(crate) environment_of: Arc<dyn Fn(IpAddr) -> Option<ResourceId> + Send + Sync>,
    /// Long-lived connections must go now.
    pub(crate) evict: CancellationToken,
    /// Client connections, until they end or are upgraded.
    pub(crate) connections: TaskTracker,
    /// Upgraded connections.
    pub(crate) tunnels: TaskTracker,
    /// Port in redirects; 443 is left out.
    pub(crate) https_port: std::sync::OnceLock<u16>,
}

/// The way a connection came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// From outside, without TLS.
    Http,
    /// From outside, with TLS.
    Https,
    /// From a replica, without TLS.
    Internal,
}

/// Times that a waiting request follows its app from a revision that became inactive to the next.
const REROUTES_MAX: u32 = 3;

/// A client's end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    pub(crate) peer: IpAddr,
    pub(crate) side: Side,
    pub(crate) socket: Socket,
    /// Its share of the allowed connections, also after an upgrade.
    pub(crate) permit: Arc<OwnedSemaphorePermit>,
}

/// Where a request goes, or the answer that it gets right away.
enum Target {
    App(Arc<AppGates>),
    Redirect(HeaderValue),
}

impl Proxy {
    /// Answers one request.
    pub(crate) async fn serve(
        self: Arc<Self>,
        client: &Client,
        mut request: Request<Incoming>,
    ) -> Response<ResponseBody> {
        let accepted_at = self.shared.clock.now();
        let host = match self.check(&request) {
            Ok(host) => host,
            Err(refusal) => return self.refuse(&refusal, &request).map(ResponseBody::from),
        };
        let app = match self.target(client, &host, &request) {
            Ok(Target::App(app)) => app,
            Ok(Target::Redirect(location)) => return redirect(request.method(), location).map(ResponseBody::from),
            Err(refusal) => return self.refuse(&refusal, &request).map(ResponseBody::from),
        };
        let Some(gate) = app.choose((self.random)()) else {
            return self.refuse(&Refusal::NoRevision, &request).map(ResponseBody::from);
        };
        let mut ticket = gate.admit(accepted_at);
        let deadline = Instant::now() + self.shared.config.request_timeout;
        let wanted = headers::upgrade(request.version(), request.headers());
        let upgrade = wanted.map(|protocol| (protocol, on(&mut request)));
        let (accept, method) = (request.headers().get(header::ACCEPT).cloned(), request.method().clone());
        let leased = self.first_lease(client, &host, &mut ticket, deadline).await;
        let gate = Arc::clone(ticket.gate());
        let passed = match leased {
            Ok(lease) => self.pass(client, &host, (ticket, lease), request, upgrade, deadline).await,
            Err(refusal) => Err(refusal),
        };
        let response = passed.unwrap_or_else(|refusal| {
            let mut fields = HeaderMap::new();
            fields.extend(accept.map(|accept| (header::ACCEPT, accept)));
            tracing::debug!(revision = ?gate.key(), reason = refusal.status().1, "request not served by its app");
            refusal.response(&method, &fields).map(ResponseBody::from)
        });
        gate.count_answer(response.status());
        response
    }

    fn refuse(&self, refusal: &Refusal, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        tracing::debug!(reason = refusal.status().1, "request refused");
        let mut response = refusal.response(request.method(), request.headers());
        if response.status() == StatusCode::BAD_REQUEST && request.version() != Version::HTTP_2 {
            // who sends this may mean the next bytes differently than we do
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }

    /// Refuses what must not be passed on; gives the host that the request names.
    fn check(&self, request: &Request<Incoming>) -> Result<String, Refusal> {
        if request.method() == Method::CONNECT {
            return Err(Refusal::ConnectMethod);
        }
        let max = self.shared.config.header_fields_max;
        if request.headers().len() > max {
            return Err(Refusal::TooManyHeaders { max });
        }
        headers::requested_host(request.uri(), request.headers()).map(str::to_owned)
    }

    fn target(&self, client: &Client, host: &str, request: &Request<Incoming>) -> Result<Target, Refusal> {
        let environment = match client.side {
            Side::Internal => (self.environment_of)(client.peer),
            Side::Http | Side::Https => None,
        };
        let app = self.lookup(&host_name(host), environment.as_ref()).ok_or(Refusal::UnknownHost)?;
        let route = &app.route;
        let is_inside = client.side == Side::Internal
            && environment.as_ref().is_none_or(|environment| *environment == route.environment);
        if !route.external && !is_inside {
            return Err(Refusal::AppInternal);
        }
        match &route.state {
            AppRouteState::Active => {}
            AppRouteState::Stopped => return Err(Refusal::AppStopped),
            AppRouteState::Failed { reason } => return Err(Refusal::RevisionFailed { reason: reason.clone() }),
        }
        if client.side == Side::Http && !route.allow_insecure && self.shared.config.redirect_http {
            return Ok(Target::Redirect(self.https_location(host, request.uri())?));
        }
        Ok(Target::App(app))
    }

    fn lookup(&self, name: &str, environment: Option<&ResourceId>) -> Option<Arc<AppGates>> {
        let find = |snapshot: &Snapshot| {
            let short = || snapshot.short_name(environment?, name);
            snapshot.host(name).or_else(short).cloned()
        };
        find(&self.snapshot.load()).or_else(|| {
            // a route that was published a moment ago must not be missed
            let table = self.routes.borrow().clone();
            let last = self.snapshot.load();
            if last.is_of(&table) {
                return None;
            }
            find(&self.gates.snapshot(&table, &last))
        })
    }

    fn https_location(&self, host: &str, uri: &Uri) -> Result<HeaderValue, Refusal> {
        let name = host_name(host);
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let location = match self.https_port.get() {
            Some(443) | None => format!("https://{name}{path}"),
            Some(port) => format!("https://{name}:{port}{path}"),
        };
        HeaderValue::try_from(location).map_err(|_| Refusal::HostConflict)
    }

    /// Waits for a replica. A request whose revision was replaced while it waited is routed anew: its ticket changes.
    async fn first_lease(
        &self,
        client: &Client,
        host: &str,
        ticket: &mut Ticket,
        deadline: Instant,
    ) -> Result<Lease, Refusal> {
        for _ in 0..REROUTES_MAX {
            match ticket.lease(&client.socket, deadline).await {
                Err(Refusal::RevisionInactive) => {}
                answer => return answer,
            }
            let environment = match client.side {
                Side::Internal => (self.environment_of)(client.peer),
                Side::Http | Side::Https => None,
            };
            let app = self.lookup(&host_name(host), environment.as_ref()).ok_or(Refusal::RevisionInactive)?;
            if app.route.state == AppRouteState::Stopped {
                return Err(Refusal::AppStopped);
            }
            let gate = app.choose((self.random)()).ok_or(Refusal::RevisionInactive)?;
            *ticket = gate.admit(ticket.accepted_at());
        }
        ticket.lease(&client.socket, deadline).await
    }

    /// Sends a request that has a replica and passes the answer back.
    async fn pass(
        self: &Arc<Self>,
        client: &Client,
        host: &str,
        (ticket, lease): (Ticket, Lease),
        request: Request<Incoming>,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
        deadline: Instant,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let version = request.version();
        let (mut head, body) = request.into_parts();
        self.prepare(client, host, &mut head, upgrade.as_ref().map(|(protocol, _)| protocol));
        let body = RequestBody::new(body);
        let sent = (head, body.clone());
        let answered = upstream::send(&self.shared, (&ticket, lease), &client.socket, sent, deadline).await?;
        self.note_wake(&ticket, &answered);
        if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (_, client_side) = upgrade.ok_or(Refusal::UpstreamInvalid)?;
            return upgrade::switch(self, client, ticket, answered, client_side);
        }
        let Answered { response, lease, connection, .. } = answered;
        let (mut head, incoming) = response.into_parts();
        let keep_alive = headers::keep_alive(&head.headers);
        headers::remove_hop_by_hop(&mut head.headers);
        head.version = version;
        let held = Held {
            ticket,
            lease,
            request: body,
            connection: Some(connection),
            keep_alive,
            tasks: self.shared.tasks.clone(),
        };
        let body = ResponseBody::upstream(incoming, held, self.shared.config.stream_idle_timeout);
        Ok(Response::from_parts(head, body))
    }

    /// Makes the client's head into the one for the replica.
    fn prepare(&self, client: &Client, host: &str, head: &mut Parts, upgrade: Option<&HeaderValue>) {
        headers::remove_hop_by_hop(&mut head.headers);
        // the client is told to go on when its body is first read, which is when a replica wants it
        head.headers.remove(header::EXPECT);
        if let Some(protocol) = upgrade {
            head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            head.headers.insert(header::UPGRADE, protocol.clone());
        }
        if let Ok(host) = HeaderValue::try_from(host) {
            head.headers.insert(header::HOST, host);
        }
        let via = Via { peer: client.peer, is_tls: client.side == Side::Https, host };
        headers::forward(&mut head.headers, via, &self.shared.config);
        headers::identify(&mut head.headers);
        headers::join_cookies(&mut head.headers);
        head.uri = headers::origin_form(&head.uri);
        head.version = Version::HTTP_11;
        head.extensions = http::Extensions::new();
    }

    fn note_wake(&self, ticket: &Ticket, answered: &Answered) {
        let Some(released_at) = answered.woken_at else { return };
        let wake = WakeObservation {
            revision: ticket.gate().key().clone(),
            replica: answered.lease.replica().name.clone(),
            accepted_at: ticket.accepted_at(),
            released_at,
            first_byte_at: self.shared.clock.now(),
        };
        if self.wakes.try_send(wake).is_err() {
            tracing::warn!(revision = ?ticket.gate().key(), "a wake's times were dropped: nobody reads them fast enough");
        }
    }
}
