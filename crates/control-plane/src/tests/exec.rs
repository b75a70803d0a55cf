//! Consoles over a real WebSocket.

use std::time::Duration;

use cove_runtime::{ExecError, ExecRequest, ExecSession, Resize};
use futures_util::{SinkExt, StreamExt};
use http::Request;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Error, Message, client::IntoClientRequest},
};

use super::{
    harness::{RG, World},
    streams::with_app,
};
use crate::Config;

const LIMIT: Duration = Duration::from_secs(20);

/// A driver whose every program writes its words, then its input back, and ends with 3; `nope` is not there.
pub(super) async fn run(request: ExecRequest) -> Result<ExecSession, ExecError> {
    if request.is_debug {
        return Err(ExecError::NotOnThisHost("install busybox-static".to_owned()));
    }
    if request.command[0] == "nope" {
        return Err(ExecError::Failed("`nope` was not found in the image's PATH".to_owned()));
    }
    let (stdin, mut input) = mpsc::channel::<Vec<u8>>(8);
    let (output_sender, output) = mpsc::channel(8);
    let (sizes_sender, mut sizes) = mpsc::channel(8);
    let resize = Resize::new(move |columns, rows| sizes_sender.try_send((columns, rows)).expect("there is room"));
    let (exit_sender, exit) = oneshot::channel();
    tokio::spawn(async move {
        let _ = output_sender.send((1, request.command.join("|").into_bytes())).await;
        loop {
            tokio::select! {
                Some((columns, rows)) = sizes.recv() => {
                    let _ = output_sender.send((2, format!("{columns}x{rows}").into_bytes())).await;
                }
                piece = input.recv() => match piece {
                    Some(piece) => {
                        let _ = output_sender.send((1, piece)).await;
                    }
                    None => break,
                }
            }
        }
        let _ = exit_sender.send(3);
    });
    Ok(ExecSession { stdin, output, resize, exit })
}

type Client = WebSocketStream<TcpStream>;

async fn connect(world: &World, query: &str) -> Result<Client, Error> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = world.router.clone();
    tokio::spawn(async move { axum::serve(listener, router).await });
    let path = format!("{RG}/containerApps/web/revisions/web--v1/replicas/web--v1-a/containers/web/{query}");
    let request = format!("ws://localhost:{}{path}", address.port()).into_client_request().unwrap();
    client_async(request, TcpStream::connect(address).await.unwrap()).await.map(|(client, _)| client)
}

/// The next message as text: bytes below a blank as `<n>`.
async fn next(client: &mut Client) -> String {
    loop {
        let message = tokio::time::timeout(LIMIT, client.next()).await.unwrap();
        match message {
            Some(Ok(Message::Binary(bytes))) => {
                return bytes.iter().map(|b| if *b < 32 { format!("<{b}>") } else { char::from(*b).into() }).collect();
            }
            Some(Ok(Message::Close(frame))) => return format!("close {}", frame.map(|f| f.to_string()).unwrap()),
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            other => return format!("{other:?}"),
        }
    }
}

async fn world() -> World {
    with_app(World::with_environment().await).await
}

#[tokio::test]
async fn a_console_as_az_and_cove_speak_it() {
    let world = world().await;
    let mut client = connect(&world, "exec?command=sh%20-c%20%27a%20b%27").await.unwrap();
    let hello = next(&mut client).await;
    assert!(hello.starts_with("<1>Successfully connected to container: 'web'"), "{hello}");
    assert_eq!(next(&mut client).await, "<0><1>sh|-c|a b");
    // az sends text frames
    client.send(Message::text("\0\x04{\"Width\": 80, \"Height\": 24}")).await.unwrap();
    assert_eq!(next(&mut client).await, "<0><2>80x24");
    client.send(Message::text("\0\0l")).await.unwrap();
    assert_eq!(next(&mut client).await, "<0><1>l");
    client.send(Message::binary(vec![0, 5])).await.unwrap();
    assert_eq!(next(&mut client).await, "<1>the command ended with exit code 3");
    assert_eq!(next(&mut client).await, "close exit code 3 (1000)");
}

#[tokio::test]
async fn what_cannot_run_is_said() {
    let world = world().await;
    let mut client = connect(&world, "exec?command=nope&tty=false").await.unwrap();
    let error = next(&mut client).await;
    assert!(error.starts_with("<2>failed to run the command: `nope` was not found"), "{error}");
    assert!(next(&mut client).await.starts_with("close the command was not run"));
    let Err(Error::Http(refused)) = connect(&world, "debug").await else { panic!("it must be refused") };
    assert_eq!(refused.status(), 501);
}

#[tokio::test]
async fn a_silent_console_is_closed() {
    let config = Config {
        heartbeat: Duration::from_millis(10),
        exec_idle: Duration::from_secs(2),
        retry_after_secs: 0,
        ..Config::default()
    };
    let world = with_app(World::with_environment_and(config).await).await;
    let mut client = connect(&world, "exec?command=sh&tty=false").await.unwrap();
    assert_eq!(next(&mut client).await, "<0><1>sh");
    assert_eq!(next(&mut client).await, "<2>nothing was typed or written for 2 s");
    assert!(next(&mut client).await.contains("(1001)"));
}

#[tokio::test]
async fn a_plain_request_is_told_to_upgrade() {
    let world = world().await;
    let path = format!("{RG}/containerApps/web/revisions/web--v1/replicas/web--v1-a/containers/web/exec?command=sh");
    let request = Request::builder().uri(path).header("host", "localhost").header("upgrade", "websocket");
    let refused = world.send(request.body(axum::body::Body::empty()).unwrap()).await;
    assert_eq!((refused.status, refused.code()), (426, "UpgradeRequired".into()));
}
