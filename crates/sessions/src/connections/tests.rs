//! Connections that the session closes as a request is sent: kept ones, and new ones.

use std::sync::Arc;

use axum::body::Body;
use http_body_util::{BodyExt as _, Limited};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

/// Answers one request on each connection; the next one is read, and then the connection is closed.
async fn fickle() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 1024];
                let _asked = stream.read(&mut head).await;
                let _told = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                let _asked = stream.read(&mut head).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_request_that_may_be_repeated_is_sent_again_over_a_new_connection() {
    let address = fickle().await;
    let connections = Connections::new(&Limits::default());
    let dial: Dial = Arc::new(move |_, _| Box::pin(async move { TcpStream::connect(address).await?.into_std() }));
    let replica = ReplicaName::new("pool--a-b").unwrap();
    let ask = async |method: &str, body: &'static str| {
        let body = Limited::new(Body::from(body), 100);
        let request = Request::builder().method(method).uri("/x").header("host", "x").body(body).unwrap();
        let (answer, sender) = connections.send(&dial, (&replica, 80), request).await?;
        let whole = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&whole[..], b"ok");
        connections.keep(&replica, sender).await;
        Ok::<_, SendError>(())
    };
    ask("POST", "first").await.unwrap();
    for method in ["GET", "DELETE"] {
        ask(method, "").await.expect("it is sent again");
    }
    assert!(matches!(ask("POST", "again").await, Err(SendError::Http(_))), "whether it was taken cannot be known");
    ask("POST", "first").await.unwrap();
    assert!(matches!(ask("PUT", "a body").await, Err(SendError::Http(_))), "the body is gone");
}

/// Closes every other connection unanswered, the first one among them.
async fn shy() -> std::net::SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 0.. {
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let mut head = [0; 1024];
            let _asked = stream.read(&mut head).await;
            if number % 2 == 1 {
                let _told = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        }
    });
    address
}

#[tokio::test]
async fn a_new_connection_that_is_closed_unanswered_is_made_once_more() {
    let address = shy().await;
    let connections = Connections::new(&Limits::default());
    let dial: Dial = Arc::new(move |_, _| Box::pin(async move { TcpStream::connect(address).await?.into_std() }));
    let replica = ReplicaName::new("pool--a-b").unwrap();
    let ask = async |method: &str| {
        let body = Limited::new(Body::empty(), 100);
        let request = Request::builder().method(method).uri("/x").header("host", "x").body(body).unwrap();
        connections.send(&dial, (&replica, 80), request).await.map(|(answer, _)| answer.status().as_u16())
    };
    assert_eq!(ask("GET").await.unwrap(), 200);
    assert!(matches!(ask("POST").await, Err(SendError::Http(_))), "whether it was taken cannot be known");
    assert_eq!(ask("POST").await.unwrap(), 200);
}
