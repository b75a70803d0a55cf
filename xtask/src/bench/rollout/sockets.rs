//! WebSockets that are open while their revision is replaced: each goes on to echo until its replica's time to drain is over,
//! and then gets a close frame.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::{Part, ingress, this_deploy};
use crate::bench::stats::Samples;
use crate::cove::{Cove, sample_template};

/// The default of `controller.drain_period`: no stream may be cut before.
const DRAIN_PERIOD: Duration = Duration::from_secs(30);
/// How much later than that a stream may still be open.
const LATE_LIMIT: Duration = Duration::from_secs(15);
/// Between two messages of one client.
const MESSAGE_EVERY: Duration = Duration::from_millis(100);
/// Longest that one message may take.
const ECHO_LIMIT: Duration = Duration::from_secs(5);

type Socket = WebSocketStream<TcpStream>;

/// How one stream ended.
struct Ended {
    /// Since the deploy was asked for.
    after: Duration,
    code: u16,
    echoed: u64,
}

pub(super) async fn over_a_deploy(cove: &Cove, count: usize) -> anyhow::Result<Part> {
    let app = cove.create_app("streams", sample_template(1, 1, &[("VERSION", "0")])).await?;
    let address = ingress(cove)?;
    // when the deploy was asked for; streams are open before
    let (deployed, watching) = watch::channel(None::<Instant>);
    let mut streams = Vec::new();
    for _ in 0..count {
        let socket = open(address, &app.host).await?;
        streams.push(tokio::spawn(echo(socket, watching.clone())));
    }
    deployed.send_replace(Some(Instant::now()));
    this_deploy(cove, &app, "streams", 1).await?;
    let mut times = Vec::new();
    let mut failures = Vec::new();
    let mut echoed = 0;
    for stream in streams {
        match stream.await.context("a stream's task panicked")? {
            Ok(ended) if ended.after < DRAIN_PERIOD => {
                failures.push(format!("closed after {:?} with {}", ended.after, ended.code))
            }
            Ok(ended) => {
                echoed += ended.echoed;
                times.push(ended.after);
            }
            Err(error) => failures.push(format!("{error:#}")),
        }
    }
    let times: Samples = times.into_iter().collect();
    let mut lines = vec![
        format!(
            "{echoed} messages echoed; {} streams closed with a close frame, {} otherwise",
            times.len(),
            failures.len()
        ),
        format!("from the deploy to the close frame: {times}"),
    ];
    lines.extend(failures.iter().take(10).map(|failure| format!("failed: {failure}")));
    Ok(Part {
        title: format!("websockets ({count} open over a deploy, drain period {} s)", DRAIN_PERIOD.as_secs()),
        lines,
        json: json!({"streams": count, "failed": failures.len(), "echoed": echoed, "closed_after": times.to_json()}),
        is_clean: failures.is_empty(),
    })
}

async fn open(address: SocketAddr, host: &str) -> anyhow::Result<Socket> {
    let stream = TcpStream::connect(address).await.context("failed to connect")?;
    stream.set_nodelay(true)?;
    let (socket, _) = client_async(format!("ws://{host}/ws"), stream).await.context("no WebSocket")?;
    Ok(socket)
}

/// Sends a number, wants it back, again and again until a close frame comes.
async fn echo(mut socket: Socket, deployed: watch::Receiver<Option<Instant>>) -> anyhow::Result<Ended> {
    let since = || deployed.borrow().map(|at| at.elapsed());
    let mut echoed = 0;
    loop {
        if since().is_some_and(|passed| passed > DRAIN_PERIOD + LATE_LIMIT) {
            bail!("still open {LATE_LIMIT:?} after the drain period");
        }
        let said = echoed.to_string();
        // a send may fail when the close frame is already there: what is read says how it ended
        let sent = socket.send(Message::text(said.clone())).await;
        let heard = tokio::time::timeout(ECHO_LIMIT, socket.next()).await.context("no echo in time")?;
        match heard {
            Some(Ok(Message::Close(frame))) => {
                let after = since().context("closed before the deploy")?;
                return Ok(Ended { after, code: frame.map_or(1005, |frame| frame.code.into()), echoed });
            }
            Some(Ok(Message::Text(text))) => ensure!(text.as_str() == said, "`{said}` came back as `{text}`"),
            Some(Ok(other)) => bail!("an unexpected message: {other:?}"),
            Some(Err(error)) => return Err(error).context("cut without a close frame"),
            None => bail!("ended without a close frame"),
        }
        sent.context("failed to send")?;
        echoed += 1;
        tokio::time::sleep(MESSAGE_EVERY).await;
    }
}
