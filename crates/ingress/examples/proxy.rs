//! The ingress alone, for a profiler: `proxy LISTEN UPSTREAM THREADS` passes requests for the host `web` on to one upstream.
//!
//! `cargo run --release -p cove-ingress --example proxy 127.0.0.1:8000 127.0.0.1:8001 2`

use std::{net::SocketAddr, sync::Arc};

use cove_base::{Board, Clock};
use cove_ingress::{AuthSources, Ingress, IngressConfig, IngressListeners, IngressSources, bind};
use cove_model::{ReplicaName, ResourceId, RevisionKey, RevisionName, Transport};
use cove_traffic::{AppRoute, AppRouteState, Endpoint, EndpointState, Endpoints, Host, RouteTable, WeightedRevision};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

type Failed = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [listen, upstream, threads] = arguments.as_slice() else {
        return Err("usage: proxy LISTEN UPSTREAM THREADS".into());
    };
    let (listen, upstream): (SocketAddr, SocketAddr) = (listen.parse()?, upstream.parse()?);
    let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web")?;
    let revision = RevisionKey { app: app.clone(), name: RevisionName::of("web", "v1")? };
    let route = Arc::new(AppRoute {
        app,
        environment: ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env")?,
        external: true,
        allow_insecure: true,
        transport: Transport::Auto,
        policies: Arc::default(),
        revisions: vec![WeightedRevision { revision: revision.clone(), weight: 100 }],
        state: AppRouteState::Active,
    });
    let mut table = RouteTable::default();
    table.hosts.insert("web", Host::platform(route));
    let routes = watch::Sender::new(Arc::new(table));
    let endpoints = Board::default();
    let endpoint = Endpoint { replica: ReplicaName::new("web--v1-0")?, address: upstream, order: 0 };
    endpoints.set(revision, Endpoints { ready: vec![endpoint], draining: Vec::new(), state: EndpointState::Hold });
    let sources = IngressSources {
        routes: routes.subscribe(),
        endpoints,
        activate: Arc::new(|_| {}),
        clock: Clock::real(),
        certificates: None,
        environment_of: Arc::new(|_| None),
        app_of: Arc::new(|_| None),
        random: Arc::new(rand::random),
        auth: AuthSources::default(),
    };
    let listeners = IngressListeners { http: vec![bind(listen)?], ..IngressListeners::default() };
    let config = IngressConfig { threads: threads.parse()?, ..IngressConfig::default() };
    let (ingress, _wakes) = Ingress::new(config, sources, listeners)?;
    // as in the server, rows are made and somebody takes them
    let mut rows = ingress.handle().access_log().ok_or("the access log has a reader")?;
    tokio::spawn(async move { while rows.recv().await.is_some() {} });
    ingress.run(CancellationToken::new()).await?;
    Ok(())
}
