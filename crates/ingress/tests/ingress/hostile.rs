//! Clients and apps that mean harm. Whatever they send, an app is given whole and well-formed requests only, each with what the
//! platform adds to it; nobody else notices; and nothing grows without bound.

mod app;
mod floods;
mod frames;
mod http1;
mod http2;
mod upstream;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use cove_ingress::IngressConfig;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use self::app::StrictApp;
use crate::world::{World, revision, route, soon, until};

const HOST: &str = "host: web.env.localhost\r\n";

/// Resident memory of this process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

/// Waits long enough for a busy machine, and not for ever.
fn impatient() -> IngressConfig {
    IngressConfig {
        header_timeout: Duration::from_secs(2),
        handshake_timeout: Duration::from_secs(2),
        write_stall_timeout: Duration::from_secs(2),
        stream_idle_timeout: Duration::from_secs(3),
        request_timeout: Duration::from_secs(6),
        ..IngressConfig::default()
    }
}

/// An ingress with the app `web` behind it.
async fn world_of(config: IngressConfig, app: &StrictApp) -> World {
    let world = World::with(config).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address()]);
    world
}

/// Nothing of the app is open any more.
async fn at_rest(world: &World) {
    until("nothing to be open", || world.handle.load(&revision("web", "v1")).open == 0).await;
}

/// A client that means well, all the time: each of its requests is answered with what it asked for.
struct Innocent {
    stop: CancellationToken,
    served: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Innocent {
    fn at(address: SocketAddr) -> Self {
        let (stop, served) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
        let task = tokio::spawn({
            let (stop, served) = (stop.clone(), Arc::clone(&served));
            async move {
                let mut stream = TcpStream::connect(address).await.unwrap();
                while !stop.is_cancelled() {
                    let path = format!("/innocent-{}", served.load(Ordering::SeqCst));
                    let request = format!("GET {path} HTTP/1.1\r\n{HOST}\r\n");
                    stream.write_all(request.as_bytes()).await.unwrap();
                    let (status, body) = soon("an innocent's answer", answer(&mut stream)).await;
                    assert_eq!((status, body.as_str()), (200, path.as_str()));
                    served.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        Self { stop, served, task }
    }

    /// Was served meanwhile, and is served still.
    async fn unharmed(self) {
        let before = self.served.load(Ordering::SeqCst);
        let (served, task) = (Arc::clone(&self.served), &self.task);
        until("innocents to be served", || served.load(Ordering::SeqCst) > before + 2 || task.is_finished()).await;
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

/// Reads one answer with a length.
async fn answer(stream: &mut TcpStream) -> (u16, String) {
    let (mut seen, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&seen).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.unwrap_or("0").parse().unwrap();
            if body.len() >= length {
                return (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned());
            }
        }
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "the connection ended in the middle of an answer: {text}");
        seen.extend_from_slice(&buffer[..count]);
    }
}

/// Sends bytes and nothing more, and reads until the connection's end.
async fn send(name: &str, address: SocketAddr, bytes: Vec<u8>) -> String {
    soon(name, async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let (mut reader, mut writer) = stream.split();
        let sending = async {
            let _closed_already = writer.write_all(&bytes).await;
        };
        let mut answer = Vec::new();
        let (_reset_is_an_end, ()) = tokio::join!(reader.read_to_end(&mut answer), sending);
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}
