//! The apps of the storm and what each is asked.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use cove_load::{Content, Controls, Load, Pace, Plan, Protocol, Report, Target};
use serde_json::{Value, json};

use crate::cove::{App, Cove, app_body, app_id, sample_template, versioned};

/// Requests per second of the app that scales, as planned and a twentieth of it when it is to scale in.
const SCALED_RPS: f64 = 400.0;
/// Requests per second that one replica of it is asked to carry: few, so that a slow machine answers enough for several.
const SCALED_PER_REPLICA: u32 = 50;
const SCALED_REPLICAS_MAX: u32 = 5;
/// Requests at once that one protocol may have open.
const OPEN_MAX: usize = 500;
const TIMEOUT: Duration = Duration::from_secs(30);
/// Messages of each gRPC stream and events of each stream of those.
const STREAM_MESSAGES: u8 = 10;
/// Messages of a WebSocket until it is opened anew.
const SOCKET_MESSAGES: u64 = 200;

/// Who is asked.
#[derive(Debug)]
pub(super) struct Apps {
    /// HTTP/1.1 pages, events, WebSockets.
    pub(super) web: App,
    /// gRPC.
    pub(super) rpc: App,
    /// Scales out and in.
    pub(super) scaled: App,
}

/// Loads at work.
pub(super) struct Loads {
    loads: Vec<(&'static str, Load)>,
    controls: Vec<(&'static str, Controls)>,
}

impl Apps {
    pub(super) async fn create(cove: &Cove) -> anyhow::Result<Self> {
        let mut scaled = sample_template(1, SCALED_REPLICAS_MAX, &[]);
        let requests = SCALED_PER_REPLICA.to_string();
        scaled["scale"]["rules"] = json!([{"name": "http", "http": {"metadata": {"concurrentRequests": requests}}}]);
        Ok(Self {
            web: put(cove, "web", "auto", template(0)).await?,
            rpc: put(cove, "rpc", "http2", template(0)).await?,
            scaled: put(cove, "scaled", "auto", scaled).await?,
        })
    }
}

/// The template of the apps that are deployed.
pub(super) fn template(version: u32) -> Value {
    sample_template(1, 1, &[("VERSION", &version.to_string())])
}

/// Asks for an app with this transport and waits until it is there.
pub(super) async fn put(cove: &Cove, name: &str, transport: &str, template: Value) -> anyhow::Result<App> {
    let id = app_id(name);
    let mut body = app_body(template);
    body["properties"]["configuration"]["ingress"]["transport"] = transport.into();
    cove.ask("PUT", &versioned(&id), Some(&body)).await?;
    let shown = cove.until_provisioned(&id).await?;
    let host = shown["properties"]["configuration"]["ingress"]["fqdn"].as_str().context("the app has no host name")?;
    Ok(App { id, host: host.to_owned() })
}

/// A tenth of a share of the rate per protocol; what is not a share is its own rate.
fn plans(apps: &Apps, ingress: SocketAddr, rps: f64) -> anyhow::Result<Vec<(&'static str, Plan)>> {
    let plan = |app: &App, path: &str, protocol: Protocol, per_second: f64| {
        let target = Target::parse(&format!("http://{}:{}{path}", app.host, ingress.port()))?;
        let connections_max =
            if matches!(protocol, Protocol::Http2 | Protocol::Grpc) { OPEN_MAX / 50 } else { OPEN_MAX };
        let pace = Pace::Rate { per_second, connections_max };
        let address = Some(ingress);
        anyhow::Ok(Plan {
            address,
            pace,
            streams: 50,
            timeout: TIMEOUT,
            status: Some(200),
            ..Plan::new(target, protocol)
        })
    };
    let messages = u64::from(STREAM_MESSAGES);
    let web = &apps.web;
    // {1: n, 2: 5}: so many messages, 5 ms apart
    let count = Bytes::copy_from_slice(&[8, STREAM_MESSAGES, 16, 5]);
    let echo = Bytes::from_static(b"a message of some length that comes back");
    let grpc = plan(&apps.rpc, "/sample.Sample/Echo", Protocol::Grpc, rps * 0.1)?;
    let stream = plan(&apps.rpc, "/sample.Sample/Count", Protocol::Grpc, rps * 0.04)?;
    let events = plan(web, &format!("/stream?n={STREAM_MESSAGES}&ms=10"), Protocol::Events, rps * 0.04)?;
    let sockets = plan(web, "/ws", Protocol::WebSocket, rps * 0.12)?;
    let post = plan(web, "/echo", Protocol::Http1, rps * 0.1)?;
    Ok(vec![
        ("h1", plan(web, "/healthz", Protocol::Http1, rps * 0.35)?),
        ("h1 bodies", Plan { method: http::Method::PUT, body: echo.clone(), content: Content::Echo, ..post }),
        ("h2", plan(web, "/healthz", Protocol::Http2, rps * 0.25)?),
        ("grpc", Plan { body: echo.clone(), content: Content::Echo, ..grpc }),
        ("grpc streams", Plan { body: count, content: Content::Numbered, messages: Some(messages), ..stream }),
        ("events", Plan { messages: Some(messages), ..events }),
        ("websockets", Plan { body: echo, messages: Some(SOCKET_MESSAGES), status: None, ..sockets }),
        (SCALED, plan(&apps.scaled, "/healthz", Protocol::Http1, SCALED_RPS)?),
    ])
}

/// The load of the app that scales.
const SCALED: &str = "h1 scaled";

impl Loads {
    pub(super) async fn start(apps: &Apps, ingress: SocketAddr, rps: u32) -> anyhow::Result<Self> {
        let mut loads = Vec::new();
        for (name, plan) in plans(apps, ingress, f64::from(rps))? {
            loads.push((name, Load::start(plan).await.with_context(|| format!("the load `{name}` did not start"))?));
        }
        let controls = loads.iter().map(|(name, load)| (*name, load.controls())).collect();
        Ok(Self { loads, controls })
    }

    /// Requests answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.controls.iter().map(|(_, controls)| controls.counts().answered).sum()
    }

    /// The load of the app that scales is so many times slower from now on.
    pub(super) fn slow_scaled(&self, times: f64) {
        let scaled = self.controls.iter().filter(|(name, _)| *name == SCALED);
        scaled.for_each(|(_, controls)| controls.slow_down(times));
    }

    /// Something begins; every picture shows it.
    pub(super) fn mark(&self, label: &str) -> Vec<usize> {
        self.controls.iter().map(|(_, controls)| controls.mark(label)).collect()
    }

    /// It ended.
    pub(super) fn end_mark(&self, marks: &[usize]) {
        self.controls.iter().zip(marks).for_each(|((_, controls), mark)| controls.end_mark(*mark));
    }

    /// Sends nothing more, waits for what is open.
    pub(super) async fn finish(self) -> Vec<(&'static str, Report)> {
        self.controls.iter().for_each(|(_, controls)| controls.stop());
        let mut reports = Vec::new();
        for (name, load) in self.loads {
            reports.push((name, load.finish().await));
        }
        reports
    }
}
