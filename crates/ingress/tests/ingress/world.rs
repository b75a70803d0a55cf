//! An ingress with its inputs in the test's hands, backends, and clients that read raw bytes.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cove_base::{Board, Clock};
use cove_ingress::{AuthSources, Ingress, IngressConfig, IngressHandle, IngressListeners, IngressSources, bind};
use cove_model::{ReplicaName, ResourceId, RevisionKey, RevisionName, SystemEvent, Transport};
use cove_traffic::{
    AppRoute, AppRouteState, Endpoint, EndpointState, Endpoints, Host, RouteTable, WakeObservation, WeightedRevision,
    short_name,
};
use futures_util::Stream;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

/// No wait of a test is longer.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

/// Fails the test when `future` takes too long.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, future).await.unwrap_or_else(|_| panic!("{what} did not happen in {LIMIT:?}"))
}

/// Looks every few milliseconds until `is_so`.
pub(crate) async fn until(what: &str, is_so: impl Fn() -> bool) {
    soon(what, async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A body that comes frame by frame.
pub(crate) fn streamed(frames: impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

pub(crate) fn text(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).boxed_unsync()
}

pub(crate) fn revision(app: &str, suffix: &str) -> RevisionKey {
    RevisionKey { app: app_id(app), name: RevisionName::of(app, suffix).unwrap() }
}

pub(crate) fn app_id(app: &str) -> ResourceId {
    ResourceId::resource("s", "g", "Microsoft.App/containerApps", app).unwrap()
}

pub(crate) fn environment(name: &str) -> ResourceId {
    ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", name).unwrap()
}

/// A route to `<app>--v1`.
pub(crate) fn route(app: &str) -> AppRoute {
    AppRoute {
        app: app_id(app),
        environment: environment("env"),
        external: true,
        allow_insecure: true,
        transport: Transport::Auto,
        policies: Arc::default(),
        revisions: vec![WeightedRevision { revision: revision(app, "v1"), weight: 100 }],
        state: AppRouteState::Active,
    }
}

pub(crate) struct World {
    pub(crate) handle: IngressHandle,
    pub(crate) routes: watch::Sender<Arc<RouteTable>>,
    pub(crate) endpoints: Board<RevisionKey, Endpoints>,
    pub(crate) wakes: mpsc::Receiver<WakeObservation>,
    pub(crate) activated: Arc<Mutex<Vec<RevisionKey>>>,
    pub(crate) told: Arc<Mutex<Vec<SystemEvent>>>,
    pub(crate) http: SocketAddr,
    pub(crate) https: SocketAddr,
    pub(crate) internal: SocketAddr,
    pub(crate) certificate: rustls::pki_types::CertificateDer<'static>,
    /// What TLS clients are shown from the next handshake on.
    pub(crate) shown: Arc<Mutex<Option<Arc<rustls::sign::CertifiedKey>>>>,
    shutdown: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

#[derive(Debug)]
struct OneCertificate(Arc<Mutex<Option<Arc<rustls::sign::CertifiedKey>>>>);

impl rustls::server::ResolvesServerCert for OneCertificate {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<rustls::sign::CertifiedKey>> {
        self.0.lock().unwrap().clone()
    }
}

/// A self-signed certificate for one name, and the same with its key.
pub(crate) fn made_certificate(
    name: &str,
) -> (rustls::pki_types::CertificateDer<'static>, Arc<rustls::sign::CertifiedKey>) {
    let made = rcgen::generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
    let der = made.cert.der().clone();
    (der.clone(), Arc::new(rustls::sign::CertifiedKey::new(vec![der], key)))
}

/// A listener on a free port.
pub(crate) fn bound() -> (tokio::net::TcpListener, SocketAddr) {
    let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

impl World {
    pub(crate) async fn start() -> Self {
        Self::with(IngressConfig::default()).await
    }

    pub(crate) async fn with(config: IngressConfig) -> Self {
        let listeners = [(); 3].map(|()| bind("127.0.0.1:0".parse().unwrap()).unwrap());
        Self::on(config, listeners, Vec::new()).await
    }

    /// With shares by chance, as a server has them.
    pub(crate) async fn by_chance() -> Self {
        let listeners = [(); 3].map(|()| bind("127.0.0.1:0".parse().unwrap()).unwrap());
        Self::made(IngressConfig::default(), listeners, Vec::new(), Arc::new(rand::random)).await
    }

    /// On sockets that are open already: HTTP, HTTPS, internal; and those of exposed ports.
    pub(crate) async fn on(
        config: IngressConfig,
        listeners: [TcpListener; 3],
        ports: Vec<std::net::TcpListener>,
    ) -> Self {
        // a low-discrepancy sequence: every share is met within a fraction of a percent
        let step = AtomicU32::new(0);
        let random = move || step.fetch_add(0x9e37_79b9, Ordering::Relaxed);
        Self::made(config, listeners, ports, Arc::new(random)).await
    }

    async fn made(
        config: IngressConfig,
        [http, https, internal]: [TcpListener; 3],
        ports: Vec<std::net::TcpListener>,
        random: Arc<dyn Fn() -> u32 + Send + Sync>,
    ) -> Self {
        let addresses = [&http, &https, &internal].map(|listener| listener.local_addr().unwrap());
        let routes = watch::Sender::new(Arc::new(RouteTable::default()));
        let endpoints = Board::default();
        let activated: Arc<Mutex<Vec<RevisionKey>>> = Arc::default();
        let told: Arc<Mutex<Vec<SystemEvent>>> = Arc::default();
        let (certificate, key) = made_certificate("web.env.localhost");
        let shown = Arc::new(Mutex::new(Some(key)));
        let certificates = Arc::new(OneCertificate(Arc::clone(&shown)));
        let sources = IngressSources {
            routes: routes.subscribe(),
            endpoints: endpoints.clone(),
            activate: {
                let activated = Arc::clone(&activated);
                Arc::new(move |revision: &RevisionKey| activated.lock().unwrap().push(revision.clone()))
            },
            clock: Clock::real(),
            certificates: Some(certificates),
            environment_of: Arc::new(|_| Some(environment("env"))),
            app_of: Arc::new(|_| Some(app_id("caller"))),
            random,
            auth: {
                let told = Arc::clone(&told);
                AuthSources { tell: Arc::new(move |event| told.lock().unwrap().push(event)), ..AuthSources::default() }
            },
        };
        let listeners = IngressListeners { http: vec![http], https: vec![https], internal: vec![internal] };
        // as in the server: connections are served by threads of their own
        let threads = if config.threads == 0 { 2 } else { config.threads };
        let config = IngressConfig { threads, ..config };
        let (ingress, wakes) = Ingress::new(config, sources, listeners).unwrap();
        let handle = ingress.handle();
        handle.inherit_ports(ports);
        let shutdown = CancellationToken::new();
        tokio::spawn(ingress.run(shutdown.clone()));
        let [http, https, internal] = addresses;
        Self { handle, routes, endpoints, wakes, activated, told, http, https, internal, certificate, shown, shutdown }
    }

    /// Adds hosts `<name>.env.localhost`.
    pub(crate) fn route(&self, name: &str, route: AppRoute) {
        let route = Arc::new(route);
        self.change(|table| {
            table.names.insert(&short_name(&route.environment, name), Arc::clone(&route));
            table.hosts.insert(&format!("{name}.env.localhost"), Host::platform(route));
        });
    }

    /// Changes the route table.
    pub(crate) fn change(&self, change: impl FnOnce(&mut RouteTable)) {
        self.routes.send_modify(|table| {
            let mut next = RouteTable::clone(table);
            change(&mut next);
            *table = Arc::new(next);
        });
    }

    /// Says which replicas are ready; they are named `<revision>-<index>`.
    pub(crate) fn ready(&self, revision: &RevisionKey, addresses: &[SocketAddr]) {
        self.endpoints.set(revision.clone(), endpoints(revision, addresses, &[]));
    }

    /// Says that the revision cannot run.
    pub(crate) fn failed(&self, revision: &RevisionKey, reason: &str) {
        let state = EndpointState::Failed { reason: reason.to_owned() };
        self.endpoints.set(revision.clone(), Endpoints { state, ..Endpoints::default() });
    }
}

pub(crate) fn replica(revision: &RevisionKey, index: usize) -> ReplicaName {
    ReplicaName::new(format!("{}-{index}", revision.name)).unwrap()
}

pub(crate) fn endpoints(revision: &RevisionKey, ready: &[SocketAddr], draining: &[usize]) -> Endpoints {
    let endpoint = |(index, address): (usize, &SocketAddr)| Endpoint {
        replica: replica(revision, index),
        address: *address,
        order: index as u64,
    };
    Endpoints {
        ready: ready.iter().enumerate().map(endpoint).collect(),
        draining: draining.iter().map(|&index| replica(revision, index)).collect(),
        state: EndpointState::Hold,
    }
}

/// An app's server; ends with its last handle.
pub(crate) struct Backend {
    pub(crate) address: SocketAddr,
    /// Connections it was sent.
    pub(crate) connections: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Backend {
    /// Serves HTTP/1.1 with `answer`.
    pub(crate) async fn http<F, R>(answer: F) -> Self
    where
        F: Fn(Request<Incoming>) -> R + Clone + Send + 'static,
        R: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::tcp(move |stream| {
            let answer = answer.clone();
            async move {
                let service = service_fn(move |request| {
                    let response = answer(request);
                    async move { Ok::<_, Infallible>(response.await) }
                });
                let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                let _the_client_left = connection.with_upgrades().await;
            }
        })
        .await
    }

    /// Answers every request with `name`.
    pub(crate) async fn named(name: &'static str) -> Self {
        Self::http(move |_| async move { Response::new(text(name)) }).await
    }

    /// Hands every connection to `serve`.
    pub(crate) async fn tcp<F, R>(serve: F) -> Self
    where
        F: Fn(TcpStream) -> R + Send + 'static,
        R: Future<Output = ()> + Send + 'static,
    {
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&connections);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                open.spawn(serve(stream));
            }
        });
        Self { address, connections, _tasks: tasks }
    }
}

/// Sends bytes and reads until the end of the stream.
pub(crate) async fn raw(address: SocketAddr, bytes: &str) -> String {
    soon("an answer", async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let _reset_is_an_end = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

/// `GET /` for a host on a connection of its own: the status line's code and the body.
pub(crate) async fn get(address: SocketAddr, host: &str) -> (u16, String) {
    let answer = raw(address, &format!("GET / HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n")).await;
    parts(&answer)
}

/// Status and body of a raw answer.
pub(crate) fn parts(answer: &str) -> (u16, String) {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((answer, ""));
    (head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0), body.to_owned())
}

/// The `x-cove-reason` of a raw answer.
pub(crate) fn reason(answer: &str) -> &str {
    answer.lines().find_map(|line| line.strip_prefix("x-cove-reason: ")).unwrap_or("")
}
