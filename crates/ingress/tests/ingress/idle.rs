//! What a connection costs that does nothing: the ingress runs in a process of its own, clients and app in this one.

use std::{
    net::SocketAddr,
    process::Stdio,
    sync::Arc,
    time::{Duration, Instant},
};

use cove_ingress::IngressConfig;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::world::{Backend, World, revision, route};

/// Set for the other processes: `app`, `ingress` and the app's address, or `clients` and the ingress's.
const ROLE: &str = "COVE_TEST_IDLE_ROLE";
/// Connections of each kind.
const CONNECTIONS: usize = 1000;
/// What one may cost.
const CONNECTION_BYTES_MAX: u64 = 64 << 10;
/// Two files each in the ingress: as many as there is room for where a process may have 20,000.
const WEBSOCKETS: usize = 9_900;
/// What all of them may cost, the process itself included: 500 MiB for 10,000.
const WEBSOCKETS_BYTES_MAX: u64 = (500 << 20) * WEBSOCKETS as u64 / 10_000;
const LIMIT: Duration = Duration::from_secs(120);
/// Connections that are opened at once.
const AT_ONCE: usize = 50;

/// Another process, which ends with this, and what it said of where it listens.
struct Process {
    child: Child,
    said: Vec<String>,
}

impl Process {
    async fn start(role: &str) -> Self {
        let test = concat!(module_path!(), "::the_others");
        let test = test.split_once("::").map_or(test, |(_, test)| test);
        let command = format!("ulimit -n $(ulimit -H -n) && exec \"$0\" --exact {test} --nocapture --test-threads=1");
        let mut child = Command::new("sh")
            .args(["-c".as_ref(), command.as_ref(), std::env::current_exe().unwrap().as_os_str()])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = tokio::time::timeout(LIMIT, async {
            loop {
                let line = lines.next_line().await.unwrap().expect("the process says where it listens");
                if let Some((_, rest)) = line.split_once("listens: ") {
                    return rest.split(' ').map(str::to_owned).collect();
                }
            }
        });
        Self { child, said: said.await.unwrap() }
    }

    fn address(&self, index: usize) -> SocketAddr {
        self.said[index].parse().unwrap()
    }

    fn certificate(&self) -> CertificateDer<'static> {
        let text = &self.said[2];
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        (0..text.len()).step_by(2).map(byte).collect::<Vec<u8>>().into()
    }

    /// Its memory, once it has settled.
    async fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.child.id().unwrap());
        let now = || {
            let status = std::fs::read_to_string(&path).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
            line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
        };
        let mut last = now();
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            let next = now();
            if next.abs_diff(last) < 64 << 10 {
                return next;
            }
            last = next;
        }
    }
}

/// The other processes run this until the test that started them lets go of their input; alone it has nothing to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_others() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut input = Vec::new();
    let (role, address) = role.split_once(' ').unwrap_or((&role, ""));
    match role {
        "app" => {
            let app = app().await;
            println!("listens: {}", app.address);
            tokio::io::stdin().read_to_end(&mut input).await.unwrap();
        }
        "clients" => {
            let address = address.parse().unwrap();
            let all = open(WEBSOCKETS, || websocket(address)).await;
            println!("listens: {}", all.len());
            tokio::io::stdin().read_to_end(&mut input).await.unwrap();
        }
        _ => {
            let (_world, line) = ingress(address.parse().unwrap()).await;
            println!("listens: {line}");
            tokio::io::stdin().read_to_end(&mut input).await.unwrap();
        }
    }
}

/// The ingress before an app, and what it says of itself.
async fn ingress(app: SocketAddr) -> (World, String) {
    let minutes = Duration::from_secs(600);
    let config = IngressConfig {
        connections_max: 30_000,
        header_timeout: minutes,
        idle_connection_timeout: minutes,
        // a crowd that opens at once is not what is measured
        trial_requests_max: u64::MAX,
        ..IngressConfig::default()
    };
    let world = World::with(config).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app]);
    let certificate: String = world.certificate.iter().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("{} {} {certificate}", world.http, world.https);
    (world, line)
}

/// Answers requests, and upgrades those that ask for it.
async fn app() -> Backend {
    Backend::tcp(|mut stream| async move {
        loop {
            let (mut head, mut buffer) = (Vec::new(), [0; 1024]);
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => head.extend_from_slice(&buffer[..count]),
                }
            }
            let is_upgrade = String::from_utf8_lossy(&head).to_ascii_lowercase().contains("\r\nupgrade: websocket");
            // the answer to the key of RFC 6455, 1.3, which every client here sends
            let answer: &[u8] = if is_upgrade {
                b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                  sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
            } else {
                b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
            };
            if stream.write_all(answer).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// One answered request; what is given back keeps the connection open.
async fn http1<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Box<dyn Send> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("/").header("host", "web.env.localhost").body(Empty::<&[u8]>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    Box::new(sender)
}

async fn http2<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: S) -> Box<dyn Send> {
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::get("http://web.env.localhost/").body(Empty::<&[u8]>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    Box::new(sender)
}

/// An upgraded connection after one frame each way.
async fn websocket(address: SocketAddr) -> Box<dyn Send> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = "GET / HTTP/1.1\r\nhost: web.env.localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                   sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut answer, mut buffer) = (Vec::new(), [0; 512]);
    while !answer.ends_with(b"\r\n\r\n") {
        let count = stream.read(&mut buffer).await.unwrap();
        assert!(count > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..count]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    Box::new(stream)
}

/// Opens many, a few at a time.
async fn open<F, R>(count: usize, one: F) -> Vec<Box<dyn Send>>
where
    F: Fn() -> R,
    R: Future<Output = Box<dyn Send>> + Send + 'static,
{
    let (mut all, mut opening) = (Vec::with_capacity(count), JoinSet::new());
    let deadline = Instant::now() + LIMIT;
    while all.len() < count {
        while opening.len() < AT_ONCE.min(count - all.len()) {
            opening.spawn(one());
        }
        all.push(opening.join_next().await.unwrap().unwrap());
        assert!(Instant::now() < deadline, "{} of {count} are open after {LIMIT:?}", all.len());
    }
    all
}

fn tls(server: &Process, protocol: &[u8]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(server.certificate()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_connection_costs_little() {
    let app = Process::start("app").await;
    for kind in ["HTTP/1.1", "HTTP/2", "HTTP/1.1 over TLS", "HTTP/2 over TLS"] {
        let server = Process::start(&format!("ingress {}", app.said[0])).await;
        let (plain, secure) = (server.address(0), server.address(1));
        let connector = tls(&server, if kind.starts_with("HTTP/2") { b"h2" } else { b"http/1.1" });
        let one = || {
            let connector = connector.clone();
            async move {
                let secured = async {
                    let stream = TcpStream::connect(secure).await.unwrap();
                    connector.connect(ServerName::try_from("web.env.localhost").unwrap(), stream).await.unwrap()
                };
                match kind {
                    "HTTP/1.1" => http1(TcpStream::connect(plain).await.unwrap()).await,
                    "HTTP/2" => http2(TcpStream::connect(plain).await.unwrap()).await,
                    "HTTP/1.1 over TLS" => http1(secured.await).await,
                    _ => http2(secured.await).await,
                }
            }
        };
        // what is made once: worker threads, the first pages of the heap, the app's connections
        let first = open(2 * AT_ONCE, one).await;
        let before = server.resident().await;
        let all = open(CONNECTIONS, one).await;
        let each = server.resident().await.saturating_sub(before) / CONNECTIONS as u64;
        println!("{kind}: {:.1} KiB for an idle connection", each as f64 / 1024.0);
        assert!(each <= CONNECTION_BYTES_MAX, "{kind}: {each} bytes");
        drop((first, all));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_websockets_cost_little() {
    let app = Process::start("app").await;
    let server = Process::start(&format!("ingress {}", app.said[0])).await;
    let before = server.resident().await;
    let clients = Process::start(&format!("clients {}", server.address(0))).await;
    assert_eq!(clients.said, [WEBSOCKETS.to_string()]);
    let total = server.resident().await;
    let each = (total - before) as f64 / WEBSOCKETS as f64 / 1024.0;
    println!("{WEBSOCKETS} idle WebSockets: {} MiB, {each:.1} KiB for each", total >> 20);
    assert!(total <= WEBSOCKETS_BYTES_MAX, "{total} bytes");
}
