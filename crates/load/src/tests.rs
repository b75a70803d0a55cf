//! The load test against servers that do what they should, and against servers that drop, delay, cut and lie on purpose.

mod faults;
mod http2;
mod pictures;
mod sockets;

use std::{future::Future, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{Load, Plan, Protocol, Report, Target};

/// Nothing here takes longer on any machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server that handles each connection, with its number, in a task of its own; ends with the test's runtime.
async fn server<F, Served>(serve: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> Served + Send + Sync + 'static,
    Served: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(accept(listener, serve));
    address
}

async fn accept<F, Served>(listener: TcpListener, serve: F)
where
    F: Fn(TcpStream, usize) -> Served + Send + Sync + 'static,
    Served: Future<Output = ()> + Send + 'static,
{
    let serve = Arc::new(serve);
    for number in 0.. {
        let Ok((stream, _)) = listener.accept().await else { return };
        tokio::spawn(serve(stream, number));
    }
}

/// Reads one HTTP/1.1 request, head and body; none at the end of the connection.
async fn request(stream: &mut TcpStream) -> Option<String> {
    let mut read = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&read);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            if body.len() >= length.unwrap_or(0) {
                return Some(text.into_owned());
            }
        }
        if stream.read_buf(&mut read).await.ok()? == 0 {
            return None;
        }
    }
}

async fn answer(stream: &mut TcpStream, text: &str) {
    // the client may have given up
    let _gone = stream.write_all(text.as_bytes()).await;
}

fn plan(address: SocketAddr, protocol: Protocol) -> Plan {
    let target = Target::parse(&format!("http://{address}/")).unwrap();
    Plan {
        requests: Some(1),
        pace: crate::Pace::Connections(1),
        timeout: Duration::from_secs(10),
        ..Plan::new(target, protocol)
    }
}

async fn run(plan: Plan) -> Report {
    let load = Load::start(plan).await.unwrap();
    let report = tokio::time::timeout(PATIENCE, load.finish()).await.expect("a load ends by itself");
    assert_eq!(report.counts.sent, report.counts.answered + report.counts.lost + report.unfinished, "{report:?}");
    report
}

/// What became of the requests in a line: `2 answered, 1 lost (truncated: 1), repeated (idle-closed: 1)`.
fn shown(report: &Report) -> String {
    let counts = report.counts;
    let losses: Vec<String> = report.losses.iter().map(|(kind, count)| format!("{kind:?}: {count}")).collect();
    let repeats: Vec<String> = report.repeated.iter().map(|(kind, count)| format!("{kind:?}: {count}")).collect();
    let mut text = format!("{} answered, {} lost", counts.answered, counts.lost);
    for (name, each) in [("", losses), (" repeated", repeats)] {
        if !each.is_empty() {
            text.push_str(&format!("{name} ({})", each.join(", ")));
        }
    }
    text
}
