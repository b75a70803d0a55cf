//! Serves the API's router over TLS: bounded connections, a limit on handshakes and request heads, graceful end.

use std::{sync::Arc, time::Duration};

use axum::Router;
use cove_ingress::ReadOut;
use http::Request;
use hyper::body::Incoming;
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{net::TcpListener, sync::Semaphore, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Connections at once; further ones wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 2048;
/// Longest TLS handshake.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for a request's head; also how long an idle connection stays open.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// How long open requests may finish when the server stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Wait after the kernel refused a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `shutdown`, then lets open requests finish.
pub(crate) async fn serve(listener: TcpListener, tls: TlsAcceptor, router: Router, shutdown: CancellationToken) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let graceful = GracefulShutdown::new();
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(Duration::from_secs(60));
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { break };
        let stream = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a connection to the API was not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            }
        };
        let _only_slower = stream.set_nodelay(true);
        let (tls, router, builder, watcher) = (tls.clone(), router.clone(), builder.clone(), graceful.watcher());
        let until = shutdown.clone();
        tokio::spawn(async move {
            let _slot = slot;
            let Ok(Ok(stream)) = timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await else { return };
            let router = router.map_request(move |request: Request<Incoming>| ReadOut::of(request, &until));
            let service = TowerToHyperService::new(router);
            let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
            if let Err(error) = watcher.watch(connection).await {
                tracing::debug!(error = %error, "a connection to the API ended early");
            }
        });
    }
    if timeout(DRAIN_LIMIT, graceful.shutdown()).await.is_err() {
        tracing::info!("open requests of the API were cut after the grace period");
    }
}
