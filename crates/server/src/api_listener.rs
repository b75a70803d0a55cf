//! Serves the API's router over TLS: bounded connections, a limit on handshakes and request heads, graceful end.
//!
//! **Invariant:** a client whose socket takes nothing of what is to be written is cut, so that its answers, with what they
//! hold, end. One of HTTP/2 that reads and answers pings but opens no window is not seen here.

use std::{sync::Arc, time::Duration};

use axum::Router;
use cove_ingress::{Guarded, ReadOut};
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
/// Longest time that a client may take no byte while some wait for it; then its connection is cut, as the ingress does sooner
/// (`IngressConfig::write_stall_timeout`). A stream that has nothing to say may be silent for longer.
const WRITE_STALL_TIMEOUT: Duration = Duration::from_secs(300);
/// How long open requests may finish when the server stops.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);
/// Wait after the kernel refused a connection (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts until `shutdown`, then lets open requests finish.
pub(crate) async fn serve(listener: TcpListener, tls: TlsAcceptor, router: Router, shutdown: CancellationToken) {
    serve_within(WRITE_STALL_TIMEOUT, listener, tls, router, shutdown).await;
}

async fn serve_within(
    write_stall_timeout: Duration,
    listener: TcpListener,
    tls: TlsAcceptor,
    router: Router,
    shutdown: CancellationToken,
) {
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
        // below TLS, whose own buffer takes bytes that no client has taken, and where a flush waits like a write
        let stream = Guarded::new(stream, write_stall_timeout);
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

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready, net::SocketAddr};

    use axum::{
        body::{Body, Bytes},
        routing::get,
    };
    use futures_util::{FutureExt as _, StreamExt as _, stream};
    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
    };
    use tokio_rustls::{TlsConnector, client::TlsStream};

    use super::*;
    use crate::tls::Authority;

    async fn ask(tls: &TlsConnector, address: SocketAddr, path: &str) -> TlsStream<TcpStream> {
        let stream = TcpStream::connect(address).await.unwrap();
        let mut stream = tls.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.flush().await.unwrap();
        // the answer has begun
        stream.read_exact(&mut [0; 8]).await.unwrap();
        stream
    }

    /// `/endless` cancels the token when its answer is let go, `/quiet` says its last word then.
    fn router(gone: &CancellationToken) -> Router {
        let (held, awaited) = (gone.clone(), gone.clone());
        let endless = move || {
            let held = held.clone().drop_guard();
            let piece = move || {
                let _held = &held;
                Ok::<_, Infallible>(Bytes::from_static(&[0; 1 << 16]))
            };
            ready(Body::from_stream(stream::repeat_with(piece)))
        };
        let quiet = move || {
            let first = stream::once(ready(Ok::<_, Infallible>("first")));
            let last = stream::once(awaited.clone().cancelled_owned().map(|()| Ok("last")));
            ready(Body::from_stream(first.chain(last)))
        };
        Router::new().route("/endless", get(endless)).route("/quiet", get(quiet))
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_is_cut_and_one_for_which_nothing_waits_is_not() {
        crate::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let certificate = authority.certify(&["localhost".to_owned()], &[]).unwrap();
        let server = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certificate)));
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_file(authority.ca_path()).unwrap()).unwrap();
        let client = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let client = TlsConnector::from(Arc::new(client));

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (gone, stop) = (CancellationToken::new(), CancellationToken::new());
        let acceptor = TlsAcceptor::from(Arc::new(server));
        let limit = Duration::from_millis(200);
        let serving = tokio::spawn(serve_within(limit, listener, acceptor, router(&gone), stop.clone()));

        let mut quiet = ask(&client, address, "/quiet").await;
        let _never_read = ask(&client, address, "/endless").await;
        // its answer is let go only when it is cut; the quiet one has said nothing for the whole limit by then
        let patience = Duration::from_secs(60);
        tokio::time::timeout(patience, gone.cancelled()).await.expect("who takes nothing is cut");
        let mut rest = String::new();
        tokio::time::timeout(patience, quiet.read_to_string(&mut rest)).await.expect("the answer ends").unwrap();
        assert!(rest.ends_with("5\r\nfirst\r\n4\r\nlast\r\n0\r\n\r\n"), "{rest}");
        stop.cancel();
        serving.await.unwrap();
    }
}
