//! Settings of the ingress: limits and waits, with Azure's values as defaults where Azure has one.
//!
//! **Invariant:** every wait and every queue of this crate has its limit here.

use std::{net::IpAddr, time::Duration};

use ipnet::IpNet;

use crate::access::AccessLogConfig;

/// `[ingress]` of the server's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngressConfig {
    /// From the request's head to the response's head, time at zero included. Default 240 s, as in Azure; then 504.
    pub request_timeout: Duration,
    /// Longest silence of the app inside a response. Default 240 s; then the response is cut.
    pub stream_idle_timeout: Duration,
    /// Longest time to open a connection to a replica. Default 5 s.
    pub connect_timeout: Duration,
    /// Requests held at once for one revision. Default 1000; more are answered 503.
    pub held_per_revision_max: usize,
    /// Requests held at once over all revisions. Default 10000; more are answered 503.
    pub held_total_max: usize,
    /// Requests that a new replica gets at once before its first answer. Default 40: four times the default
    /// `concurrentRequests`.
    pub trial_requests_max: u64,
    /// After this time a new replica that has not answered yet gets requests without that limit. Default 2 s.
    pub trial_time: Duration,
    /// How long a replica that refused a connection gets nothing new. Default 250 ms.
    pub suspend_time: Duration,
    /// Connections tried for one request when connecting fails. Default 3.
    pub connect_attempts_max: u32,
    /// Idle connections kept per replica. Default 256.
    pub idle_connections_max: usize,
    /// How long an idle connection to a replica is kept. Default 60 s.
    pub idle_connection_timeout: Duration,
    /// Longest wait for a client's request head; also how long an idle HTTP/1 connection stays open. Default 30 s.
    pub header_timeout: Duration,
    /// Longest TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// Longest time a client may refuse to take bytes of a response. Default 60 s; then it is cut.
    pub write_stall_timeout: Duration,
    /// Size of a request's head. Default 64 KiB, at least 8 KiB; then 431.
    pub header_bytes_max: usize,
    /// Header fields of a request. Default 100, as in Azure; then 431.
    pub header_fields_max: usize,
    /// Size of a request's body where neither app nor environment says one; then 413. Default `None`: any.
    pub request_body_max: Option<u64>,
    /// Bytes of a request's body that are kept for another try, for apps with a retry policy. Default 64 KiB; a longer body is
    /// not retried.
    pub retry_body_max: usize,
    /// The same over all requests. Default 64 MiB; beyond it bodies are not kept.
    pub retry_bodies_max: usize,
    /// Client connections at once. Default 8192; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Streams at once in one HTTP/2 connection. Default 250.
    pub http2_streams_max: u32,
    /// Answer plain HTTP for apps without `allowInsecure` with a redirect to HTTPS, as Azure does. Default false:
    /// on a developer's machine plain HTTP is served.
    pub redirect_http: bool,
    /// Port in redirects to HTTPS. `None`: the port of the first HTTPS listener.
    pub https_port: Option<u16>,
    /// Peers whose `X-Forwarded-*` headers are believed and added to. Default none: they are replaced.
    pub trusted_proxies: Vec<IpNet>,
    /// Peers that begin each connection with a PROXY protocol header, which is believed; without one they are not served.
    /// Default none.
    pub proxy_protocol_peers: Vec<IpNet>,
    /// How long WebSockets of a draining replica stay open before they get a close frame. Default 30 s.
    pub websocket_drain_after: Duration,
    /// Address at which exposed TCP ports of external apps are opened. Default `None`: nowhere.
    pub tcp_external: Option<IpAddr>,
    /// Address at which replicas reach exposed TCP ports, those of internal apps too. Default `None`: nowhere.
    pub tcp_internal: Option<IpAddr>,
    /// Longest silence of a TCP connection, both directions together. Default 240 s; then it is closed.
    pub tcp_idle_timeout: Duration,
    /// How long open requests may go on when the server stops. Default 30 s.
    pub drain_grace: Duration,
    /// Threads that serve connections, each with its own. Default 0: the caller's runtime serves them.
    pub threads: usize,
    /// Which requests get a row of the access log; there are none until somebody reads them.
    pub access_log: AccessLogConfig,
}

impl Default for IngressConfig {
    fn default() -> Self {
        Self {
            request_timeout: Duration::from_secs(240),
            stream_idle_timeout: Duration::from_secs(240),
            connect_timeout: Duration::from_secs(5),
            held_per_revision_max: 1000,
            held_total_max: 10_000,
            trial_requests_max: 40,
            trial_time: Duration::from_secs(2),
            suspend_time: Duration::from_millis(250),
            connect_attempts_max: 3,
            idle_connections_max: 256,
            idle_connection_timeout: Duration::from_secs(60),
            header_timeout: Duration::from_secs(30),
            handshake_timeout: Duration::from_secs(10),
            write_stall_timeout: Duration::from_secs(60),
            header_bytes_max: 64 << 10,
            header_fields_max: 100,
            request_body_max: None,
            retry_body_max: 64 << 10,
            retry_bodies_max: 64 << 20,
            connections_max: 8192,
            http2_streams_max: 250,
            redirect_http: false,
            https_port: None,
            trusted_proxies: Vec::new(),
            proxy_protocol_peers: Vec::new(),
            websocket_drain_after: Duration::from_secs(30),
            tcp_external: None,
            tcp_internal: None,
            tcp_idle_timeout: Duration::from_secs(240),
            drain_grace: Duration::from_secs(30),
            threads: 0,
            access_log: AccessLogConfig::default(),
        }
    }
}
