//! HTTP/2 and gRPC against a server of frames: goodbyes, refusals, streams that are cut.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, Request, Response};

use super::{plan, run, server, shown};
use crate::{Content, Pace, Plan, Protocol};

type Answered = SendResponse<Bytes>;

/// A server that handles each stream, with its number over all connections.
async fn streams(handle: impl Fn(Request<RecvStream>, Answered, usize) + Send + Sync + 'static) -> SocketAddr {
    let handle = Arc::new(handle);
    let count = Arc::new(AtomicUsize::new(0));
    server(move |stream, _| {
        let (handle, count) = (Arc::clone(&handle), Arc::clone(&count));
        async move {
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, respond))) = connection.accept().await {
                handle(request, respond, count.fetch_add(1, Ordering::Relaxed));
            }
        }
    })
    .await
}

fn reply(respond: &mut Answered, body: &[u8], trailers: Option<(&'static str, &'static str)>) {
    let Ok(mut stream) = respond.send_response(Response::new(()), false) else { return };
    let _gone = stream.send_data(Bytes::copy_from_slice(body), trailers.is_none());
    if let Some((name, value)) = trailers {
        let mut fields = HeaderMap::new();
        fields.insert(name, value.parse().unwrap());
        let _gone = stream.send_trailers(fields);
    }
}

fn many(address: SocketAddr, protocol: Protocol) -> Plan {
    Plan { requests: Some(100), pace: Pace::Connections(2), streams: 5, ..plan(address, protocol) }
}

#[tokio::test]
async fn streams_share_connections() {
    let address = streams(|_, mut respond, _| reply(&mut respond, b"hello", None)).await;
    let report = run(many(address, Protocol::Http2)).await;
    assert_eq!(shown(&report), "100 answered, 0 lost");
    assert_eq!((report.bytes, report.connections), (500, 2));
}

#[tokio::test]
async fn refused_streams_are_sent_again_and_cut_ones_are_lost() {
    let address = streams(|_, mut respond, number| match number {
        10 => respond.send_reset(Reason::REFUSED_STREAM),
        20 => respond.send_reset(Reason::INTERNAL_ERROR),
        30 => {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            stream.send_data(Bytes::from_static(b"hel"), false).unwrap();
            // a reset takes back what was not sent yet
            tokio::spawn(async move {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                stream.send_reset(Reason::CANCEL);
            });
        }
        _ => reply(&mut respond, b"hello", None),
    })
    .await;
    let report = run(many(address, Protocol::Http2)).await;
    assert_eq!(
        shown(&report),
        "98 answered, 2 lost (Closed: 1, Truncated: 1) repeated (NotProcessed: 1)",
        "{:?}",
        report.lost_first
    );
}

#[tokio::test]
async fn a_goodbye_loses_nothing() {
    let address = server(|stream, _| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut count = 0;
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            reply(&mut respond, b"hello", None);
            count += 1;
            if count == 10 {
                connection.graceful_shutdown();
            }
        }
    })
    .await;
    let report = run(many(address, Protocol::Http2)).await;
    assert_eq!((report.counts.answered, report.counts.lost), (100, 0), "{:?}", report.lost_first);
    assert!(report.connections > 5, "{} connections", report.connections);
}

#[tokio::test]
async fn a_connection_that_is_cut_after_a_goodbye_loses_what_it_had_taken() {
    let address = server(|stream, number| async move {
        let Ok(mut connection) = h2::server::handshake(stream).await else { return };
        let mut taken = Vec::new();
        while let Some(Ok((_, mut respond))) = connection.accept().await {
            if number > 0 {
                reply(&mut respond, b"hello", None);
                continue;
            }
            taken.push(respond);
            if taken.len() == 3 {
                // GOAWAY with the third stream as the last one, and the end of the connection without their answers
                connection.abrupt_shutdown(Reason::NO_ERROR);
                let _said = std::future::poll_fn(|context| connection.poll_closed(context)).await;
                return;
            }
        }
    })
    .await;
    let one = Plan { requests: Some(10), pace: Pace::Connections(1), streams: 3, ..plan(address, Protocol::Http2) };
    let report = run(one).await;
    assert_eq!(report.counts.answered + report.counts.lost, 10);
    assert_eq!(report.counts.lost, 3, "{} {:?}", shown(&report), report.lost_first);
}

fn message(body: &[u8]) -> Vec<u8> {
    crate::grpc::framed(body).to_vec()
}

async fn called(body: Vec<u8>, trailers: (&'static str, &'static str), change: impl FnOnce(Plan) -> Plan) -> String {
    let address = streams(move |_, mut respond, _| reply(&mut respond, &body, Some(trailers))).await;
    let sent = Bytes::from_static(b"\x0a\x02hi");
    shown(&run(change(Plan { body: sent, ..plan(address, Protocol::Grpc) })).await)
}

#[tokio::test]
async fn calls_are_checked_to_their_status() {
    let (good, bad) = (("grpc-status", "0"), ("grpc-status", "5"));
    let echo = |plan: Plan| Plan { content: Content::Echo, ..plan };
    assert_eq!(called(message(b"\x0a\x02hi"), good, echo).await, "1 answered, 0 lost");
    assert_eq!(called(message(b"\x0a\x02ho"), good, echo).await, "0 answered, 1 lost (Content: 1)");
    assert_eq!(called(message(b""), bad, |plan| plan).await, "0 answered, 1 lost (Status: 1)");
    assert_eq!(called(message(b""), ("other", "0"), |plan| plan).await, "0 answered, 1 lost (Truncated: 1)");
    assert_eq!(called(Vec::new(), good, |plan| plan).await, "0 answered, 1 lost (Content: 1)");
    assert_eq!(called(message(b"long")[..7].to_vec(), good, |plan| plan).await, "0 answered, 1 lost (Truncated: 1)");
    let numbered = |messages: Option<u64>| move |plan: Plan| Plan { content: Content::Numbered, messages, ..plan };
    let stream = [message(&[8, 1]), message(&[8, 2]), message(&[8, 3])].concat();
    assert_eq!(called(stream.clone(), good, numbered(Some(3))).await, "1 answered, 0 lost");
    assert_eq!(called(stream, good, numbered(Some(4))).await, "0 answered, 1 lost (Content: 1)");
    let gap = [message(&[8, 1]), message(&[8, 3])].concat();
    assert_eq!(called(gap, good, numbered(None)).await, "0 answered, 1 lost (Content: 1)");
}
