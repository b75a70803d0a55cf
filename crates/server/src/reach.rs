//! Into a running replica, under `/cove/v1`: a port of it as a byte stream, and files of its containers as tar streams.
//!
//! **Invariant:** paths are resolved by the kernel with the container's root as the root, see [`tree`].
//! **Invariant:** the number of open connections has a bound, and each has a limit.

mod tree;

use std::{
    any::Any,
    io::{self, Read, Write},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Query, Request, State},
    http::{HeaderValue, Method, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use cove_model::{ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId};
use cove_runtime::{ExecError, Runtime};
use futures_util::{StreamExt, stream};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::timeout,
};

use crate::extensions::Failed;

/// Forwarded connections and file transfers at once; one more is answered 429.
const OPEN_MAX: usize = 256;
/// Longest wait for a port of a replica.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longest wait for a client to finish the change of protocol.
const UPGRADE_LIMIT: Duration = Duration::from_secs(10);
/// Longest life of a forwarded connection or a transfer.
const WHOLE_LIMIT: Duration = Duration::from_secs(12 * 3600);
/// Longest wait for a client to take one piece of a tar stream.
const PIECE_LIMIT: Duration = Duration::from_secs(300);
/// Pieces of a tar stream that wait for their reader.
const PIECES_MAX: usize = 16;

/// What this file answers from.
#[derive(Clone)]
pub(crate) struct Reach {
    runtime: Arc<dyn Runtime>,
    open: Arc<Semaphore>,
}

pub(crate) fn router(runtime: Arc<dyn Runtime>) -> Router {
    let reach = Reach::new(runtime);
    Router::new()
        .route("/port-forward", get(port_forward))
        .route("/files", get(read_files).put(write_files))
        .with_state(reach)
}

impl Reach {
    pub(crate) fn new(runtime: Arc<dyn Runtime>) -> Self {
        Self { runtime, open: Arc::new(Semaphore::new(OPEN_MAX)) }
    }

    /// Files of a session: given as a tar stream (`GET`), or taken from one. `guard` is held until that is done.
    pub(crate) async fn session_files(
        &self,
        (replica, container): (&ReplicaName, &str),
        path: &str,
        request: Request,
        guard: Box<dyn Any + Send>,
    ) -> Result<Response, Failed> {
        let held = (self.place()?, guard);
        let (root, path) = self.root(replica, container, path).await?;
        if *request.method() == Method::GET {
            return give_files(held, root, path).await;
        }
        Ok(take_files(held, root, path, request).await?.into_response())
    }

    /// The root directory of a container and a path in it, absolute.
    async fn root(&self, replica: &ReplicaName, container: &str, path: &str) -> Result<(OwnedFd, String), Failed> {
        let root = self.runtime.root(replica, container).await.map_err(|error| match error {
            ExecError::NotRunning { .. } => Failed(StatusCode::NOT_FOUND, "ContainerNotFound", format!("{error}.")),
            other => Failed(StatusCode::CONFLICT, "ContainerNotReachable", format!("{other}.")),
        })?;
        tracing::info!(%replica, container, path, "files of a container are copied");
        Ok((root, format!("/{}", path.trim_start_matches('/'))))
    }

    fn place(&self) -> Result<OwnedSemaphorePermit, Failed> {
        Arc::clone(&self.open).try_acquire_owned().map_err(|_| {
            let message = format!("{OPEN_MAX} forwarded ports and file transfers are open; close some and try again.");
            Failed(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", message)
        })
    }

    /// The replica that was asked for, else the newest of those that are fit best.
    fn replica(&self, app: &str, name: Option<&str>) -> Result<ReplicaObservation, Failed> {
        let app = ResourceId::parse(app)
            .map_err(|error| Failed(StatusCode::BAD_REQUEST, "InvalidResourceId", error.to_string()))?;
        let all = self.runtime.observations().snapshot();
        let running = all
            .into_iter()
            .filter(|(revision, _)| revision.app == app)
            .flat_map(|(_, replicas)| replicas.to_vec())
            .filter(|replica| replica.phase == ReplicaPhase::Running);
        let mut found: Vec<_> = running
            .filter(|replica| name.is_none_or(|name| replica.name.as_str().eq_ignore_ascii_case(name)))
            .collect();
        found.sort_by_key(|replica| (replica.is_ready, replica.created_at));
        found.pop().ok_or_else(|| {
            let message = match name {
                Some(name) => format!("Replica '{}' of '{}' does not run.", shown(name), app.name()),
                None => format!("No replica of '{}' runs; wake the app with a request first.", app.name()),
            };
            Failed(StatusCode::NOT_FOUND, "ContainerAppReplicaNotFound", message)
        })
    }
}

fn shown(text: &str) -> String {
    text.chars().take(100).collect()
}

#[derive(Deserialize)]
struct PortQuery {
    app: String,
    replica: Option<String>,
    port: u16,
}

async fn port_forward(
    State(reach): State<Reach>,
    Query(query): Query<PortQuery>,
    mut request: Request,
) -> Result<Response, Failed> {
    let is_asked = request
        .headers()
        .get(header::UPGRADE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.eq_ignore_ascii_case("tcp"));
    let Some(upgrade) = request.extensions_mut().remove::<OnUpgrade>().filter(|_| is_asked) else {
        let message = "A forwarded port needs `Connection: Upgrade` and `Upgrade: tcp` over HTTP/1.1.";
        return Err(Failed(StatusCode::UPGRADE_REQUIRED, "UpgradeRequired", message.to_owned()));
    };
    let place = reach.place()?;
    let replica = reach.replica(&query.app, query.replica.as_deref())?;
    let refused = |why: String| {
        let message = format!("Port {} of replica '{}' cannot be reached: {why}.", query.port, replica.name);
        Failed(StatusCode::BAD_GATEWAY, "PortNotReachable", message)
    };
    let address = replica.address.ok_or_else(|| refused("the replica has no address yet".to_owned()))?;
    let mut port = match timeout(CONNECT_LIMIT, TcpStream::connect((address, query.port))).await {
        Ok(Ok(port)) => port,
        Ok(Err(error)) => return Err(refused(error.to_string())),
        Err(_) => return Err(refused(format!("no answer within {} s", CONNECT_LIMIT.as_secs()))),
    };
    tracing::info!(replica = %replica.name, port = query.port, "a port is forwarded");
    tokio::spawn(async move {
        let _place = place;
        let Ok(Ok(client)) = timeout(UPGRADE_LIMIT, upgrade).await else { return };
        let mut client = TokioIo::new(client);
        let _ = timeout(WHOLE_LIMIT, tokio::io::copy_bidirectional(&mut client, &mut port)).await;
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static("tcp"));
    Ok(response)
}

#[derive(Deserialize)]
struct FilesQuery {
    app: String,
    replica: Option<String>,
    container: Option<String>,
    path: String,
}

impl FilesQuery {
    /// The container's root directory and the path in it, absolute.
    async fn open(&self, reach: &Reach) -> Result<(OwnedFd, String), Failed> {
        if self.path.is_empty() || self.path.contains('\0') {
            let message = "The path is empty or holds a zero byte; name a file or directory of the container.";
            return Err(Failed(StatusCode::BAD_REQUEST, "InvalidParameterValue", message.to_owned()));
        }
        let replica = reach.replica(&self.app, self.replica.as_deref())?;
        let container = match &self.container {
            Some(container) => container.clone(),
            None => replica.containers.iter().find(|c| !c.is_init).map(|c| c.name.clone()).unwrap_or_default(),
        };
        reach.root(&replica.name, &container, &self.path).await
    }
}

fn refuse(path: &str, error: &io::Error) -> Failed {
    let path = shown(path);
    match error.kind() {
        io::ErrorKind::NotFound => {
            Failed(StatusCode::NOT_FOUND, "PathNotFound", format!("'{path}' does not exist in the container."))
        }
        io::ErrorKind::FileTooLarge => {
            Failed(StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge", format!("'{path}': {error}."))
        }
        _ => Failed(StatusCode::CONFLICT, "PathNotUsable", format!("'{path}': {error}.")),
    }
}

async fn read_files(State(reach): State<Reach>, Query(query): Query<FilesQuery>) -> Result<Response, Failed> {
    let place = reach.place()?;
    let (root, path) = query.open(&reach).await?;
    give_files(place, root, path).await
}

/// A tar stream of what is at a path; `held` is kept until its end.
async fn give_files(held: impl Send + 'static, root: OwnedFd, path: String) -> Result<Response, Failed> {
    let (sender, pieces) = mpsc::channel::<io::Result<Bytes>>(PIECES_MAX);
    let (found_sender, found) = oneshot::channel();
    let inner = path.clone();
    tokio::task::spawn_blocking(move || {
        let _held = held;
        let found = match tree::find(&root, &inner) {
            Ok(found) => found,
            Err(error) => {
                let _gone = found_sender.send(Err(error));
                return;
            }
        };
        let _gone = found_sender.send(Ok(()));
        let mut writer = io::BufWriter::with_capacity(64 * 1024, Pieces(sender.clone()));
        let written = tree::pack(&root, &found, &inner, &mut writer).and_then(|()| writer.flush());
        if let Err(error) = written {
            tracing::debug!(%error, path = inner, "files of a container were not copied whole");
            let _gone = give(&sender, Err(error));
        }
    });
    let found = found.await.map_err(io::Error::other).and_then(|found| found);
    found.map_err(|error| refuse(&path, &error))?;
    let pieces = stream::unfold(pieces, |mut pieces| async move { Some((pieces.recv().await?, pieces)) });
    let mut response = Response::new(Body::from_stream(pieces));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/x-tar"));
    Ok(response)
}

/// Hands a piece to an async reader that takes it in time; for threads that may wait.
fn give(sender: &mpsc::Sender<io::Result<Bytes>>, piece: io::Result<Bytes>) -> io::Result<()> {
    let sending = async { timeout(PIECE_LIMIT, sender.send(piece)).await };
    match tokio::runtime::Handle::current().block_on(sending) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(io::ErrorKind::BrokenPipe.into()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// A writer whose pieces go to an async reader; ends with an error when the reader is gone or stands still.
struct Pieces(mpsc::Sender<io::Result<Bytes>>);

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        give(&self.0, Ok(Bytes::copy_from_slice(bytes)))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

async fn write_files(
    State(reach): State<Reach>,
    Query(query): Query<FilesQuery>,
    request: Request,
) -> Result<axum::Json<Value>, Failed> {
    let place = reach.place()?;
    let (root, path) = query.open(&reach).await?;
    take_files(place, root, path, request).await
}

/// Unpacks a tar stream at a path; `held` is kept until its end.
async fn take_files(
    held: impl Send + 'static,
    root: OwnedFd,
    path: String,
    request: Request,
) -> Result<axum::Json<Value>, Failed> {
    let (sender, pieces) = mpsc::channel::<io::Result<Bytes>>(PIECES_MAX);
    let target = path.clone();
    let unpacking = tokio::task::spawn_blocking(move || {
        let _held = held;
        tree::unpack(&root, &target, Arrived { pieces, rest: Bytes::new() })
    });
    let mut body = request.into_body().into_data_stream();
    let feed = async {
        while let Some(piece) = body.next().await {
            if sender.send(piece.map_err(io::Error::other)).await.is_err() {
                // it has failed, and says why below
                return;
            }
        }
        drop(sender);
    };
    if timeout(WHOLE_LIMIT, feed).await.is_err() {
        let message = format!("The upload was not complete within {} s.", WHOLE_LIMIT.as_secs());
        return Err(Failed(StatusCode::REQUEST_TIMEOUT, "RequestTimeout", message));
    }
    let unpacked = unpacking.await.map_err(io::Error::other).and_then(|result| result);
    let unpacked = unpacked.map_err(|error| refuse(&path, &error))?;
    Ok(axum::Json(json!({ "files": unpacked.files, "bytes": unpacked.bytes, "skipped": unpacked.skipped })))
}

/// A reader of pieces from an async writer.
struct Arrived {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.rest = piece?,
                None => return Ok(0),
            }
        }
        let length = self.rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&self.rest.split_to(length));
        Ok(length)
    }
}
