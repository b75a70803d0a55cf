//! One client connection, from its first request to its end: HTTP/1 and HTTP/2 by the library, and around it what it leaves
//! open. Interim answers, quiet and stalled clients, the end while an answer is under way.
//!
//! **Invariant:** what is shared with other connections is looked at when it changed, not at every byte.

use std::{convert::Infallible, sync::Arc, time::Duration};

use cove_base::Rare;
use http::{HeaderValue, Request, Response, StatusCode, header};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use crate::{
    body::ResponseBody,
    interim::{self, Interim},
    io::{Guarded, Protocol},
    listen::Doors,
    proxy::Client,
    quiet::Activity,
    stall::{Counted, Progress, Watched},
    unread::{ClientBody, ReadOut},
    unreadable::{self, Answered},
};

/// Header fields that the library reads where it is not told another number; room for them costs nothing then.
const LIBRARY_FIELDS_MAX: usize = 100;
/// What the library reads of a head at least.
const HEAD_MIN_BYTES: usize = 8 << 10;

/// Serves a connection to its end.
pub(crate) async fn serve<S>(doors: &Arc<Doors>, stream: Guarded<S>, protocol: Protocol, client: Client)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = client.peer;
    let result = match protocol {
        Protocol::Http1 => http1(doors, stream, client).await,
        Protocol::Http2 => http2(doors, stream, client).await,
    };
    if let Err(error) = result {
        tracing::debug!(%peer, %error, "a connection ended with an error");
    }
}

async fn http1<S>(doors: &Arc<Doors>, stream: Guarded<S>, mut client: Client) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let peer = client.peer;
    // a connection that is asked to end while it is upgraded would say `close` in its 101, which clients refuse
    let (is_upgrading, mut upgrading) = watch::channel(false);
    let (interim, activity, answered) = (Interim::default(), Activity::new(), Answered::default());
    client.interim = Some(interim.clone());
    let client = Arc::new(client);
    let service = service_fn(|request: Request<Incoming>| {
        let (doors, client, answering) = (Arc::clone(doors), Arc::clone(&client), activity.answering());
        let answered = answered.clone();
        let upgrading = request.headers().contains_key(header::UPGRADE).then(|| is_upgrading.clone());
        if let Some(upgrading) = &upgrading {
            upgrading.send_replace(true);
        }
        async move {
            let request = ReadOut::of(request, &doors.drain);
            let response = answer(&doors, &client, request, upgrading).await;
            answered.set();
            Ok::<_, Infallible>(response.map(|body| body.keep(answering)))
        }
    });
    let config = &doors.proxy.shared.config;
    let mut builder = http1::Builder::new();
    // the time for a head is watched below: a timer of the library's own would be set and taken back for each request
    builder.header_read_timeout(None).max_buf_size(config.header_bytes_max.max(HEAD_MIN_BYTES));
    let fields_max = doors.proxy.shared.header_fields_max();
    if fields_max > LIBRARY_FIELDS_MAX {
        builder.max_headers(fields_max);
    }
    let stream = interim::Stream::new(stream, interim);
    let io = TokioIo::new(unreadable::Stream::new(stream, answered.clone(), Arc::clone(&doors.proxy.observer)));
    let connection = builder.serve_connection(io, service).with_upgrades();
    tokio::pin!(connection);
    let quiet = Rare::new(activity.quiet_for(config.header_timeout));
    let ended = Rare::new(async {
        doors.drain.cancelled().await;
        // once it is upgraded the connection ends here by itself
        let _all_answered = upgrading.wait_for(|is_upgrading| !is_upgrading).await;
    });
    tokio::select! {
        biased;
        result = connection.as_mut() => result,
        () = quiet => {
            tracing::debug!(%peer, "a connection was quiet for too long");
            Ok(())
        }
        () = ended => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    }
}

/// Answers one request of an HTTP/1 connection.
async fn answer(
    doors: &Doors,
    client: &Client,
    request: Request<ClientBody>,
    upgrading: Option<watch::Sender<bool>>,
) -> Response<ResponseBody> {
    // in its one place from the beginning: it is large, and each move would be a copy
    let answer = std::pin::pin!(doors.proxy.serve(client, request));
    let mut response = match &client.interim {
        Some(interim) => interim.until(answer).await,
        None => answer.await,
    };
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        if let Some(upgrading) = upgrading {
            upgrading.send_replace(false);
        }
        if doors.is_closed() {
            // the next request finds the server that takes connections now
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
    }
    response
}

async fn http2<S>(doors: &Arc<Doors>, stream: Guarded<S>, client: Client) -> hyper::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (peer, client) = (client.peer, Arc::new(client));
    // a stream of HTTP/1 stalls with its socket
    let progress = Arc::<Progress>::default();
    let service = service_fn(|request: Request<Incoming>| {
        let (doors, client, progress) = (Arc::clone(doors), Arc::clone(&client), Arc::clone(&progress));
        async move {
            let request = ReadOut::of(request, &doors.drain);
            let response = doors.proxy.serve(&client, request).await;
            Ok::<_, Infallible>(response.map(|body| Watched::new(body, Some(progress))))
        }
    });
    let config = &doors.proxy.shared.config;
    let connection = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(config.http2_streams_max)
        .enable_connect_protocol()
        .max_header_list_size(u32::try_from(config.header_bytes_max).unwrap_or(u32::MAX))
        .serve_connection(TokioIo::new(Counted::new(stream, Arc::clone(&progress))), service);
    tokio::pin!(connection);
    // the protocol tells clients that there is an end without cutting off what they begin meanwhile
    let served = async {
        tokio::select! {
            biased;
            result = connection.as_mut() => result,
            () = Rare::new(doors.closed.cancelled()) => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let stalled = Rare::new(progress.stalled(config.stream_idle_timeout));
    tokio::select! {
        biased;
        result = served => result,
        () = stalled => {
            tracing::debug!(%peer, "a client opens no window for its answers; its connection is ended");
            Ok(())
        }
    }
}
