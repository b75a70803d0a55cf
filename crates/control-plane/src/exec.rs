//! Consoles in containers, over Azure's WebSocket frames; the same for a debug shell that is brought along.
//!
//! Client: `00 00` input, `00 04` size of the terminal as JSON, `00 05` end of the input (ours). Server: `00 01` output,
//! `00 02` error output, `01` a word of the platform, `02` an error; the reason of the close tells the exit code (ours).
//!
//! **Invariant:** a session has a limit of silence and of length, and ends with the server; its command ends with it.
//! **Invariant:** who ran which program where is in the log; its arguments, which may hold secrets, are not.

use std::{
    any::Any,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use cove_arm::ArmError;
use cove_model::{ReplicaName, ReplicaPhase};
use cove_runtime::{ExecError, ExecRequest, ExecSession, Resize};
use futures_util::{Sink, SinkExt as _, Stream, StreamExt as _};
use http::Method;
use serde::Deserialize;
use tokio::{
    sync::{OwnedSemaphorePermit, mpsc},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_tungstenite::tungstenite::{
    Bytes, Error as SocketError, Message,
    protocol::{CloseFrame, frame::coding::CloseCode},
};

use crate::{
    answer::{Answer, Refusal},
    apps,
    call::Call,
    control_plane::ControlPlane,
    revisions,
    route::Route,
    streams::check_scope,
    websocket::{Handshake, Socket},
    words,
};

/// Longest command line, bytes.
const COMMAND_LENGTH_MAX: usize = 16 * 1024;
/// Longest wait for a client to take what it is sent.
const SEND_LIMIT: Duration = Duration::from_secs(60);
/// Longest wait for the rest of the output once the command has ended.
const REST_LIMIT: Duration = Duration::from_secs(2);
/// Longest wait for the exit code once the output has ended.
const EXIT_LIMIT: Duration = Duration::from_secs(30);
/// Longest wait for a client to finish its handshake.
const OPEN_LIMIT: Duration = Duration::from_secs(10);

pub(crate) fn routes() -> Vec<Route> {
    // the data plane has no `/providers/Microsoft.App` in its paths
    const REPLICA: &str = "/subscriptions/{subscription}/resourceGroups/{group}/containerApps/{app}/revisions/{revision}/replicas/{replica}";
    vec![
        Route::data(Method::GET, format!("{REPLICA}/containers/{{container}}/exec"), exec),
        Route::data(Method::GET, format!("{REPLICA}/containers/{{container}}/debug"), debug),
        Route::data(Method::GET, format!("{REPLICA}/debug"), debug),
    ]
}

async fn exec(plane: ControlPlane, call: Call) -> Answer {
    let command = words_of(call.query("command").unwrap_or(""))?;
    open(plane, call, command, false).await
}

/// The words of a command line; of an empty one, a shell.
pub(crate) fn words_of(line: &str) -> Result<Vec<String>, Refusal> {
    match words::split(line.trim()) {
        Some(words) if words.is_empty() => Ok(vec!["sh".to_owned()]),
        Some(words) => Ok(words),
        None => Err(ArmError::invalid("command", "The command has a quote that does not end.").into()),
    }
}

/// A shell of the host's in the container; a command is run by it.
async fn debug(plane: ControlPlane, call: Call) -> Answer {
    let mut command = vec!["sh".to_owned()];
    if let Some(line) = call.query("command").map(str::trim).filter(|line| !line.is_empty()) {
        command.extend(["-c".to_owned(), line.to_owned()]);
    }
    open(plane, call, command, true).await
}

/// The container that the path names, or the query, or the only one.
fn request(plane: &ControlPlane, call: &Call) -> Result<ExecRequest, Refusal> {
    let app = apps::require(plane, call)?;
    check_scope(call, &app.id)?;
    let revision = revisions::require(plane, call, &app)?.revision;
    let name = call.name("replica").to_ascii_lowercase();
    let not_found = || ArmError::replica_not_found(revision.name.as_str(), &name.chars().take(100).collect::<String>());
    let replica = ReplicaName::new(&name).map_err(|_| not_found())?;
    let replicas = plane.store().replicas(&revision.key())?;
    let lives = |phase| matches!(phase, ReplicaPhase::Running | ReplicaPhase::Stopping);
    if !replicas.iter().any(|found| found.name == replica && lives(found.phase)) {
        return Err(not_found().into());
    }
    let template = &revision.template;
    let first = template.containers.first().map_or("", |container| &container.name);
    let container = [call.name("container"), call.query("targetContainer").unwrap_or(""), first]
        .into_iter()
        .find(|name| !name.is_empty())
        .unwrap_or("")
        .to_owned();
    if !template.containers.iter().chain(&template.init_containers).any(|known| known.name == container) {
        let shown: String = container.chars().take(100).collect();
        let message = format!("Revision '{}' has no container '{shown}'.", revision.name);
        return Err(ArmError::new(404, "ContainerNotFound", message).into());
    }
    let tty = match call.query("tty").map(str::to_ascii_lowercase).as_deref() {
        None | Some("" | "true" | "1") => true,
        Some("false" | "0") => false,
        Some(_) => return Err(ArmError::invalid("tty", "tty is not valid; expected true or false.").into()),
    };
    Ok(ExecRequest { replica, container, command: Vec::new(), tty, is_debug: false })
}

async fn open(plane: ControlPlane, call: Call, command: Vec<String>, is_debug: bool) -> Answer {
    let request = ExecRequest { command, is_debug, ..request(&plane, &call)? };
    let handshake = Handshake::of(&call)?;
    begin(&plane, request, handshake, &call.caller.name(), Box::new(())).await
}

/// Runs a command and carries its bytes until it ends; `guard` is dropped then.
pub(crate) async fn begin(
    plane: &ControlPlane,
    request: ExecRequest,
    handshake: Handshake,
    who: &str,
    guard: Box<dyn Any + Send>,
) -> Answer {
    if request.command.iter().map(String::len).sum::<usize>() > COMMAND_LENGTH_MAX {
        return Err(
            ArmError::invalid("command", format!("The command is longer than {COMMAND_LENGTH_MAX} bytes.")).into()
        );
    }
    let permit = Arc::clone(plane.open_streams())
        .try_acquire_owned()
        .map_err(|_| ArmError::too_many_requests("Too many streams are open; close some and try again."))?;
    let started = plane.streams().exec(request.clone()).await;
    if let Err(ExecError::NotOnThisHost(what)) = &started {
        return Err(ArmError::not_implemented("debug", "A debug shell on this host", what).into());
    }
    tracing::info!(
        who,
        replica = %request.replica,
        container = request.container,
        program = request.command.first().map_or("", String::as_str),
        is_debug = request.is_debug,
        is_started = started.is_ok(),
        "a command runs in a container"
    );
    let answer = handshake.answer();
    let plane = plane.clone();
    tokio::spawn(async move {
        if let Ok(Ok(socket)) = timeout(OPEN_LIMIT, handshake.open()).await {
            talk(&plane, socket, started, &request, permit).await;
        }
        drop(guard);
    });
    Ok(answer)
}

/// How a session ended.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// The command ended.
    Exit(i32),
    /// The client went away.
    Gone,
    /// A limit was reached, in words.
    Limit(String),
}

async fn talk(
    plane: &ControlPlane,
    mut socket: Socket,
    started: Result<ExecSession, ExecError>,
    request: &ExecRequest,
    permit: OwnedSemaphorePermit,
) {
    let _place = permit;
    let session = match started {
        Ok(session) => session,
        Err(error) => {
            let _ = timeout(SEND_LIMIT, say(&mut socket, 2, &error.to_string())).await;
            close(&mut socket, CloseCode::Error, "the command was not run").await;
            return;
        }
    };
    if request.tty {
        let hello =
            format!("Successfully connected to container: '{}'. [ Replica: '{}' ]", request.container, request.replica);
        if timeout(SEND_LIMIT, say(&mut socket, 1, &hello)).await.is_err() {
            return;
        }
    }
    let config = plane.config();
    let limits = Limits { beat: config.heartbeat, idle: config.exec_idle, whole: config.exec_max };
    let end = tokio::select! {
        end = carry(&mut socket, session, limits) => end,
        () = plane.shutdown().cancelled() => End::Limit("the server is shutting down".to_owned()),
    };
    tracing::info!(replica = %request.replica, container = request.container, ?end, "a command's session ended");
    match end {
        End::Gone => {}
        End::Exit(code) => {
            if code != 0 {
                let _ =
                    timeout(SEND_LIMIT, say(&mut socket, 1, &format!("the command ended with exit code {code}"))).await;
            }
            close(&mut socket, CloseCode::Normal, &format!("exit code {code}")).await;
        }
        End::Limit(words) => {
            let _ = timeout(SEND_LIMIT, say(&mut socket, 2, &words)).await;
            close(&mut socket, CloseCode::Away, &words).await;
        }
    }
}

fn frame(head: &[u8], body: &[u8]) -> Message {
    Message::Binary(Bytes::from([head, body].concat()))
}

async fn say(socket: &mut Socket, kind: u8, text: &str) -> Result<(), SocketError> {
    socket.send(frame(&[kind], text.as_bytes())).await
}

async fn close(socket: &mut Socket, code: CloseCode, reason: &str) {
    // the protocol has room for 123 bytes
    let reason: String = reason.chars().take(100).collect();
    let frame = CloseFrame { code, reason: reason.into() };
    let goodbye = async {
        if socket.close(Some(frame)).await.is_ok() {
            // until the client has answered: it may still be reading
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    let _ = timeout(REST_LIMIT, goodbye).await;
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    beat: Duration,
    idle: Duration,
    whole: Duration,
}

/// When a session began and when a byte was last seen.
#[derive(Debug)]
struct Life {
    begun: Instant,
    seen_ms: AtomicU64,
}

impl Life {
    fn ms(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn touch(&self) {
        self.seen_ms.store(self.ms(), Ordering::Relaxed);
    }

    fn silent(&self) -> Duration {
        Duration::from_millis(self.ms().saturating_sub(self.seen_ms.load(Ordering::Relaxed)))
    }
}

/// Carries bytes both ways until one side ends. Input waits in a future of its own: a command that reads nothing must not
/// keep its output back.
async fn carry(socket: &mut Socket, session: ExecSession, limits: Limits) -> End {
    let life = Life { begun: Instant::now(), seen_ms: AtomicU64::new(0) };
    let (mut sink, mut stream) = socket.split();
    let ExecSession { stdin, output, resize, exit } = session;
    let reading = take_input(&mut stream, stdin, &resize, &life);
    let writing = give_output(&mut sink, output, exit, limits, &life);
    tokio::select! {
        () = reading => End::Gone,
        end = writing => end,
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Size {
    width: u16,
    height: u16,
}

/// Ends when the client does.
async fn take_input(
    stream: &mut (impl Stream<Item = Result<Message, SocketError>> + Unpin),
    stdin: mpsc::Sender<Vec<u8>>,
    resize: &Resize,
    life: &Life,
) {
    let mut stdin = Some(stdin);
    while let Some(Ok(message)) = stream.next().await {
        let bytes = match message {
            Message::Text(text) => Bytes::from(text),
            Message::Binary(bytes) => bytes,
            Message::Close(_) => return,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
        };
        life.touch();
        match (&bytes[..], &stdin) {
            ([0, 0, input @ ..], Some(sender)) if !input.is_empty() => {
                let is_taken = sender.send(input.to_vec()).await.is_ok();
                // it reads no more; what it still writes is wanted
                stdin = stdin.filter(|_| is_taken);
            }
            ([0, 4, size @ ..], _) => {
                if let Ok(Size { width, height }) = serde_json::from_slice(size) {
                    resize.set(width, height);
                }
            }
            ([0, 5, ..], _) => stdin = None,
            _ => {}
        }
    }
}

async fn give_output(
    sink: &mut (impl Sink<Message, Error = SocketError> + Unpin),
    mut output: mpsc::Receiver<(u8, Vec<u8>)>,
    mut exit: tokio::sync::oneshot::Receiver<i32>,
    limits: Limits,
    life: &Life,
) -> End {
    let mut beat = interval(limits.beat);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut code: Option<i32> = None;
    let mut deadline: Option<Instant> = None;
    loop {
        let message = tokio::select! {
            biased;
            piece = output.recv() => match piece {
                Some((stream, bytes)) => frame(&[0, stream], &bytes),
                None => {
                    // all was read: only the exit code is missing
                    let code = match code {
                        Some(code) => code,
                        None => match timeout(EXIT_LIMIT, &mut exit).await {
                            Ok(Ok(code)) => code,
                            Ok(Err(_)) | Err(_) => return End::Limit("the container ended before its command".to_owned()),
                        },
                    };
                    return End::Exit(code);
                }
            },
            ended = &mut exit, if code.is_none() => {
                match ended {
                    Ok(ended) => code = Some(ended),
                    Err(_) => return End::Limit("the container ended before its command".to_owned()),
                }
                // what it left running may keep the terminal open
                deadline = Some(Instant::now() + REST_LIMIT);
                continue;
            }
            () = at(deadline) => return End::Exit(code.unwrap_or(0)),
            _ = beat.tick() => {
                if life.silent() > limits.idle {
                    return End::Limit(format!("nothing was typed or written for {} s", limits.idle.as_secs()));
                }
                if life.begun.elapsed() > limits.whole {
                    return End::Limit(format!("a session may last {} s", limits.whole.as_secs()));
                }
                Message::Ping(Bytes::new())
            }
        };
        if !matches!(message, Message::Ping(_)) {
            life.touch();
        }
        match timeout(SEND_LIMIT, sink.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return End::Gone,
        }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
