//! The sample over HTTP/2: pages, and gRPC with streams that are longer than any window.

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request};

use super::{PATIENCE, Sample};

/// Answer of a request: status, body, trailers.
struct Whole {
    status: u16,
    body: Vec<u8>,
    trailers: HeaderMap,
}

async fn connect(sample: &Sample) -> SendRequest<Bytes> {
    // the library takes few small frames that nobody has read yet, unless the window is large
    let mut builder = h2::client::Builder::new();
    builder.initial_connection_window_size(1 << 20);
    let (sender, connection) = builder.handshake(sample.connect().await).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn ask(sender: &SendRequest<Bytes>, path: &str, pieces: &[&[u8]]) -> Whole {
    let request = Request::post(format!("http://sample{path}"))
        .header("content-type", "application/grpc")
        .header("x-long", "a header that uses rare codes too: {}~|<>\\^`")
        .body(())
        .unwrap();
    let mut sender = sender.clone().ready().await.unwrap();
    let (response, mut stream) = sender.send_request(request, pieces.is_empty()).unwrap();
    for (index, piece) in pieces.iter().enumerate() {
        stream.send_data(Bytes::copy_from_slice(piece), index + 1 == pieces.len()).unwrap();
    }
    let answered = async {
        let response = response.await.unwrap();
        let status = response.status().as_u16();
        let mut incoming = response.into_body();
        let mut body = Vec::new();
        while let Some(piece) = incoming.data().await {
            let piece = piece.unwrap();
            incoming.flow_control().release_capacity(piece.len()).unwrap();
            body.extend_from_slice(&piece);
        }
        Whole { status, body, trailers: incoming.trailers().await.unwrap().unwrap_or_default() }
    };
    tokio::time::timeout(PATIENCE, answered).await.unwrap()
}

#[tokio::test]
async fn it_speaks_grpc() {
    let sample = Sample::start(&[]);
    let sender = connect(&sample).await;
    let healthy = ask(&sender, "/grpc.health.v1.Health/Check", &[&[0, 0, 0, 0, 0]]).await;
    assert_eq!(
        (healthy.body.as_slice(), &healthy.trailers["grpc-status"]),
        (&[0, 0, 0, 0, 2, 8, 1][..], &"0".parse().unwrap())
    );
    // the answer begins before the request has ended, and is larger than both windows
    let large = vec![7; 300_000];
    let echoed = ask(&sender, "/sample.Sample/Echo", &[b"\0\0\0\0\x03abc", &large]).await;
    assert_eq!(
        (echoed.status, echoed.body.len(), &echoed.trailers["grpc-status"]),
        (200, 300_008, &"0".parse().unwrap())
    );
    let counted = ask(&sender, "/sample.Sample/Count", &[&[0, 0, 0, 0, 3, 8, 0xac, 2]]).await;
    // numbers up to 127 take seven bytes with their prefix, the others eight
    assert_eq!(counted.body.len(), 127 * 7 + 173 * 8);
    assert!(counted.body.starts_with(&[0, 0, 0, 0, 2, 8, 1, 0, 0, 0, 0, 2, 8, 2]));
    assert!(counted.body.ends_with(&[0, 0, 0, 0, 3, 8, 0xac, 2]));
    let unknown = ask(&sender, "/sample.Sample/Nothing", &[]).await;
    assert_eq!(&unknown.trailers["grpc-status"], "12");
}

#[tokio::test]
async fn it_serves_pages_over_http2() {
    let sample = Sample::start(&[("CONTAINER_APP_REVISION", "web--1")]);
    let sender = connect(&sample).await;
    // the same names again and again: the table of the header compression is used
    for _ in 0..200 {
        let headers = ask(&sender, "/headers?a=1", &[]).await;
        assert_eq!(headers.trailers.get("grpc-status"), Some(&"12".parse().unwrap()));
    }
    let mut plain = sender.clone().ready().await.unwrap();
    let request = Request::get("http://sample/headers").header("x-mark", "ÄÖ~{}|").body(());
    let (response, _) = plain.send_request(request.unwrap(), true).unwrap();
    let mut incoming = response.await.unwrap().into_body();
    let shown = incoming.data().await.unwrap().unwrap();
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains(":path: /headers\n") && shown.contains("x-mark: ÄÖ~{}|\n"), "{shown}");
    let request = Request::get("http://sample/bytes?n=200000").body(()).unwrap();
    let (response, _) = plain.ready().await.unwrap().send_request(request, true).unwrap();
    let mut incoming = response.await.unwrap().into_body();
    let mut count = 0;
    while let Some(piece) = incoming.data().await {
        let piece = piece.unwrap();
        incoming.flow_control().release_capacity(piece.len()).unwrap();
        count += piece.len();
    }
    assert_eq!(count, 200_000);
}

#[tokio::test]
async fn it_finishes_open_streams_before_it_stops() {
    let sample = Sample::start(&[]);
    let sender = connect(&sample).await;
    let request =
        Request::post("http://sample/sample.Sample/Count").header("content-type", "application/grpc").body(()).unwrap();
    let mut sending = sender.clone().ready().await.unwrap();
    let (response, mut stream) = sending.send_request(request, false).unwrap();
    // twenty messages, ten milliseconds apart
    stream.send_data(Bytes::from_static(&[0, 0, 0, 0, 4, 8, 20, 16, 10]), true).unwrap();
    let mut incoming = response.await.unwrap().into_body();
    sample.terminate();
    let mut count = 0;
    while let Some(piece) = incoming.data().await {
        count += piece.unwrap().len();
    }
    assert_eq!(count, 20 * 7);
    assert_eq!(&incoming.trailers().await.unwrap().unwrap()["grpc-status"], "0");
    assert_eq!(sample.ended().await.code(), Some(0));
}
