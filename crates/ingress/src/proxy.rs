//! What happens to one request, phase by phase: find the app, check, admit, send, pass the answer back.

use std::{net::IpAddr, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use bytes::Bytes;
use cove_model::{ReplicaName, ResourceId, Transport};
use cove_traffic::{RouteTable, WakeObservation};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version, header, request::Parts};
use http_body_util::Full;
use jiff::Timestamp;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc, watch},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    answer::{REASON_HEADER, Refusal, is_grpc},
    auth::{AuthShared, Verdict},
    body::{Held, ResponseBody},
    challenge::Challenges,
    client_certificate::TlsClient,
    gate::{GateShared, Lease, Ticket},
    headers::{self, Via},
    interim::Interim,
    io::Socket,
    observe::{Observer, Seen},
    request_body::RequestBody,
    routes::{AppGates, Gates, Snapshot},
    sticky::Affinity,
    target::{self, Admission, Found},
    unread::ClientBody,
    upgrade::{self, Wish},
    upstream::{self, Answered, Call},
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
    pub(crate) app_of: Arc<dyn Fn(IpAddr) -> Option<ResourceId> + Send + Sync>,
    /// Long-lived connections must go now.
    pub(crate) evict: CancellationToken,
    /// Client connections, until they end or are upgraded.
    pub(crate) connections: TaskTracker,
    /// Upgraded connections.
    pub(crate) tunnels: TaskTracker,
    /// Port in redirects; 443 is left out.
    pub(crate) https_port: std::sync::OnceLock<u16>,
    /// Questions of certificate authorities that are answered here.
    pub(crate) challenges: Challenges,
    /// Notes what happens to requests.
    pub(crate) observer: Arc<Observer>,
    /// What logins of all apps share.
    pub(crate) auth: AuthShared,
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
    /// From a replica, with TLS.
    InternalTls,
}

impl Side {
    /// With TLS.
    pub(crate) fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::InternalTls)
    }

    /// From a replica.
    pub(crate) fn is_internal(self) -> bool {
        matches!(self, Self::Internal | Self::InternalTls)
    }
}

/// Times that a waiting request follows its app from a revision that became inactive to the next.
pub(crate) const REROUTES_MAX: u32 = 3;

/// A client's end of a connection.
#[derive(Clone, Debug)]
pub(crate) struct Client {
    /// Number of the connection.
    pub(crate) connection: u64,
    pub(crate) peer: IpAddr,
    pub(crate) side: Side,
    pub(crate) socket: Socket,
    /// What the TLS handshake told.
    pub(crate) tls: Arc<TlsClient>,
    /// Its share of the allowed connections, also after an upgrade.
    pub(crate) permit: Arc<OwnedSemaphorePermit>,
    /// Where interim answers go, if its protocol has them.
    pub(crate) interim: Option<Interim>,
}

/// What the phases of one request share.
struct Exchange<'a> {
    client: &'a Client,
    host: &'a str,
    app: Arc<AppGates>,
    /// The path to ask for, if it is another than the client's.
    path: Option<String>,
    /// What the request's cookie says.
    affinity: Option<Affinity>,
    deadline: Instant,
    seen: &'a Arc<Seen>,
}

impl Proxy {
    /// Answers one request.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        client: &Client,
        mut request: Request<ClientBody>,
    ) -> Response<ResponseBody> {
        let seen = self.observer.begin(client, &mut request, &self.shared.config);
        let response = self.answer(client, request, &seen).await;
        seen.answered(response)
    }

    async fn answer(
        self: &Arc<Self>,
        client: &Client,
        mut request: Request<ClientBody>,
        seen: &Arc<Seen>,
    ) -> Response<ResponseBody> {
        let host = match self.check(&request) {
            Ok(host) => host,
            Err(refusal) => return self.refuse(&refusal, &mut request).map(ResponseBody::from),
        };
        if request.method() == Method::CONNECT {
            // a WebSocket is asked for with GET, whatever HTTP/2 calls it
            *request.method_mut() = Method::GET;
        }
        if let Some(answer) = self.challenges.answer(request.method(), &host, request.uri().path()) {
            return answer.map(ResponseBody::from);
        }
        let found = match self.find(client, &host, request.uri()) {
            Ok(found) => found,
            Err(refusal) => return self.refuse(&refusal, &mut request).map(ResponseBody::from),
        };
        let app = Arc::clone(&found.app);
        seen.found(&app);
        let origin = app.policy.cors.as_ref().and_then(|cors| cors.allowed_origin(request.headers()));
        let head = (request.method(), request.uri(), request.headers());
        let mut response = match self.admit(client, &found, &host, head) {
            Ok(Admission::Answer(answer)) => return answer.map(ResponseBody::from),
            Ok(Admission::In) => match self.authenticate(client, &host, &found, &mut request).await {
                Ok(Verdict::Pass) => self.serve_app(client, &host, found, request, seen).await,
                Ok(Verdict::Answer(answer)) => answer.map(ResponseBody::from),
                Err(refusal) => self.refuse(&refusal, &mut request).map(ResponseBody::from),
            },
            Err(refusal) => self.refuse(&refusal, &mut request).map(ResponseBody::from),
        };
        if let (Some(cors), Some(origin)) = (&app.policy.cors, origin) {
            cors.decorate(&origin, response.headers_mut());
        }
        response
    }

    /// Serves a request that was let in.
    async fn serve_app(
        self: &Arc<Self>,
        client: &Client,
        host: &str,
        found: Found,
        mut request: Request<ClientBody>,
        seen: &Arc<Seen>,
    ) -> Response<ResponseBody> {
        let Found { app, path, .. } = found;
        let affinity = if app.policy.is_sticky { Affinity::read(request.headers()) } else { None };
        let known = affinity.and_then(|affinity| app.with_share().find(|gate| gate.affinity() == affinity.revision));
        let Some(gate) = known.or_else(|| app.choose((self.random)())) else {
            return self.refuse(&Refusal::NoRevision, &mut request).map(ResponseBody::from);
        };
        let mut ticket = gate.admit(seen.started_at());
        ticket.observed_by(seen);
        ticket.prefer(affinity.map(|affinity| affinity.replica));
        let deadline = Instant::now() + app.policy.limits.request_timeout(&self.shared.config);
        let exchange = Exchange { client, host, app, path, affinity, deadline, seen };
        // an app that speaks HTTP/2 is not asked to leave HTTP: it may answer as if the wish had not been there
        let is_http1 = exchange.app.route.transport != Transport::Http2;
        let wish = Wish::of(&mut request);
        if wish.as_ref().is_some_and(Wish::is_stream) && !is_http1 {
            return self.refuse(&Refusal::ConnectMethod, &mut request).map(ResponseBody::from);
        }
        let wish = wish.filter(|_| is_http1);
        let (accept, method) = (request.headers().get(header::ACCEPT).cloned(), request.method().clone());
        let kind = request.headers().get(header::CONTENT_TYPE).filter(|_| is_grpc(request.headers())).cloned();
        let route = &exchange.app.route;
        let leased = match exchange.app.policy.check(&request, (&ticket, route.transport), &self.shared.config) {
            Ok(()) => self.first_lease(&exchange, request.uri(), &mut ticket).await,
            Err(refusal) => Err(refusal),
        };
        let gate = Arc::clone(ticket.gate());
        let passed = match leased {
            Ok(lease) => self.pass(exchange, (ticket, lease), request, wish).await,
            Err(refusal) => Err(refusal),
        };
        let response = passed.unwrap_or_else(|refusal| {
            let mut fields = HeaderMap::new();
            fields.extend(accept.map(|accept| (header::ACCEPT, accept)));
            fields.extend(kind.map(|kind| (header::CONTENT_TYPE, kind)));
            tracing::debug!(revision = ?gate.key(), reason = refusal.status().1, "request not served by its app");
            refusal.response(&method, &fields).map(ResponseBody::from)
        });
        gate.count_answer(response.status());
        response
    }

    fn refuse(&self, refusal: &Refusal, request: &mut Request<ClientBody>) -> Response<Full<Bytes>> {
        tracing::debug!(reason = refusal.status().1, "request refused");
        let mut response = refusal.response(request.method(), request.headers());
        if response.status() == StatusCode::BAD_REQUEST && request.version() != Version::HTTP_2 {
            // who sends this may mean the next bytes differently than we do
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            request.body_mut().leave();
        }
        response
    }

    /// Refuses what must not be passed on; gives the host that the request names.
    fn check(&self, request: &Request<ClientBody>) -> Result<String, Refusal> {
        if request.method() == Method::CONNECT && !upgrade::is_websocket_stream(request) {
            return Err(Refusal::ConnectMethod);
        }
        let max = self.shared.header_fields_max();
        if request.headers().len() > max {
            return Err(Refusal::TooManyHeaders { max });
        }
        headers::check_framing(request.method(), request.uri(), request.headers())?;
        headers::check_values(request.version(), request.headers())?;
        headers::requested_host(request.uri(), request.headers()).map(str::to_owned)
    }

    /// Waits for a replica. A request whose revision was replaced while it waited is routed anew: its ticket changes.
    async fn first_lease(&self, exchange: &Exchange<'_>, uri: &Uri, ticket: &mut Ticket) -> Result<Lease, Refusal> {
        let Exchange { client, host, deadline, .. } = *exchange;
        for _ in 0..REROUTES_MAX {
            match ticket.lease(Some(&client.socket), deadline).await {
                Err(Refusal::RevisionInactive) => {}
                answer => return answer,
            }
            let app = match self.find_anew(client, host, uri) {
                Ok(found) => found.app,
                Err(Refusal::UnknownHost) => return Err(Refusal::RevisionInactive),
                Err(refusal) => return Err(refusal),
            };
            if app.route.app != exchange.app.route.app {
                // the rules of another app were not asked for this request
                return Err(Refusal::RevisionInactive);
            }
            let gate = app.choose((self.random)()).ok_or(Refusal::RevisionInactive)?;
            ticket.move_to(gate);
        }
        ticket.lease(Some(&client.socket), deadline).await
    }

    /// Sends a request that has a replica and passes the answer back.
    async fn pass(
        self: &Arc<Self>,
        exchange: Exchange<'_>,
        (ticket, lease): (Ticket, Lease),
        request: Request<ClientBody>,
        wish: Option<Wish>,
    ) -> Result<Response<ResponseBody>, Refusal> {
        let Exchange { client, deadline, .. } = exchange;
        let version = request.version();
        let (mut head, body) = request.into_parts();
        self.prepare(&exchange, &mut head, wish.as_ref())?;
        let is_http1 = version == Version::HTTP_11 && head.version == Version::HTTP_11;
        if let Some(interim) = client.interim.as_ref().filter(|_| is_http1) {
            interim.listen(&mut head);
        }
        let policy = &exchange.app.policy;
        let body = RequestBody::new(body, &policy.body_limits(&self.shared));
        body.observed_by(exchange.seen);
        let call = Call {
            shared: &self.shared,
            ticket: &ticket,
            resilience: &policy.resilience,
            transport: exchange.app.route.transport,
            client: &client.socket,
            random: &*self.random,
            deadline,
        };
        let answered = upstream::send(&call, lease, (head, body.clone())).await?;
        self.note_wake(&ticket, &answered.lease.replica().name, answered.woken_at);
        let cookie = exchange
            .app
            .policy
            .is_sticky
            .then(|| Affinity { revision: ticket.gate().affinity(), replica: answered.lease.replica().affinity });
        let cookie = cookie.filter(|cookie| exchange.affinity != Some(*cookie)).map(Affinity::set_cookie);
        let mut response = if answered.response.status() == StatusCode::SWITCHING_PROTOCOLS {
            upgrade::switch(self, client, ticket, answered, wish.ok_or(Refusal::UpstreamInvalid)?)?
        } else {
            wish.map_or(Ok(()), |wish| wish.check_refusal(answered.response.status()))?;
            let idle = exchange.app.policy.limits.idle_timeout(&self.shared.config);
            self.stream_back((version, idle), ticket, answered, body)
        };
        if let Some(cookie) = cookie {
            response.headers_mut().append(header::SET_COOKIE, cookie);
        }
        Ok(response)
    }

    /// The replica's answer as the client gets it.
    fn stream_back(
        &self,
        (version, idle): (Version, Duration),
        ticket: Ticket,
        answered: Answered,
        request: RequestBody,
    ) -> Response<ResponseBody> {
        let Answered { response, lease, mut connection, .. } = answered;
        if !request.is_over() {
            // the client still sends: neither direction may wait for the other
            connection.let_go(&self.shared.tasks);
        }
        let (mut head, incoming) = response.into_parts();
        let keep_alive = headers::keep_alive(&head.headers);
        headers::remove_hop_by_hop(&mut head.headers);
        // what it says is about Cove's own answers only
        head.headers.remove(REASON_HEADER);
        // hyper makes it fit a client of HTTP/1.0, and keeps the connection of one that asks for that
        head.version = if version == Version::HTTP_10 { Version::HTTP_11 } else { version };
        let held =
            Held { ticket, lease, request, connection: Some(connection), keep_alive, tasks: self.shared.tasks.clone() };
        let body = ResponseBody::upstream(incoming, held, idle);
        Response::from_parts(head, body)
    }

    /// Makes the client's head into the one for the replica.
    fn prepare(&self, exchange: &Exchange<'_>, head: &mut Parts, wish: Option<&Wish>) -> Result<(), Refusal> {
        let Exchange { client, host, .. } = *exchange;
        headers::remove_hop_by_hop(&mut head.headers);
        // the client is told to go on when its body is first read, which is when a replica wants it
        head.headers.remove(header::EXPECT);
        if let Some(wish) = wish {
            wish.ask(&mut head.headers);
        }
        let caller = self.caller(client, &exchange.app.route, &exchange.app.policy);
        // it may have been asked for by another app of the same connection
        let given = client.tls.forwarded.as_ref().filter(|_| exchange.app.policy.asks_certificate());
        let via = Via { certificate: given.or(caller.as_ref()), peer: client.peer, is_tls: client.side.is_tls(), host };
        headers::forward(&mut head.headers, via, &self.shared.config);
        exchange.seen.forwarded(&head.headers);
        headers::join_cookies(&mut head.headers);
        head.uri = headers::origin_form(&head.uri);
        if let Some(path) = &exchange.path {
            target::rewrite(head, path)?;
        }
        head.extensions = http::Extensions::new();
        if exchange.app.route.transport == Transport::Http2 {
            head.headers.remove(header::HOST);
            head.uri = headers::absolute_form(host, &head.uri)?;
            head.version = Version::HTTP_2;
        } else {
            if let Ok(host) = HeaderValue::try_from(host) {
                head.headers.insert(header::HOST, host);
            }
            head.version = Version::HTTP_11;
        }
        Ok(())
    }

    /// Tells about a wake, if this was the first request or connection to be held in one.
    pub(crate) fn note_wake(&self, ticket: &Ticket, replica: &ReplicaName, woken_at: Option<Timestamp>) {
        let Some(released_at) = woken_at else { return };
        let wake = WakeObservation {
            revision: ticket.gate().key().clone(),
            replica: replica.clone(),
            accepted_at: ticket.accepted_at(),
            released_at,
            first_byte_at: Timestamp::now(),
        };
        if self.wakes.try_send(wake).is_err() {
            tracing::warn!(revision = ?ticket.gate().key(), "a wake's times were dropped: nobody reads them fast enough");
        }
    }
}
