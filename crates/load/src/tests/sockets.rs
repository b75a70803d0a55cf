//! WebSockets: every message must come back, and a connection must end with a close frame.

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::{
    WebSocketStream, accept_async,
    tungstenite::{
        Message,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

use super::{plan, request, run, server, shown};
use crate::{Pace, Plan, Protocol};

/// What a server does with the second message of its first connection.
#[derive(Clone, Copy)]
enum Second {
    Echo,
    Other,
    Close(CloseCode),
    CloseIdle,
    Drop,
}

async fn serve(mut socket: WebSocketStream<TcpStream>, number: usize, second: Second) {
    let mut count = 0;
    while let Some(Ok(message)) = socket.next().await {
        if message.is_close() {
            continue;
        }
        count += 1;
        let code = match second {
            _ if number > 0 || count != 2 => None,
            Second::Echo => None,
            Second::Other => {
                let _gone = socket.send(Message::text("other")).await;
                continue;
            }
            Second::Drop => return,
            Second::Close(code) => Some(code),
            Second::CloseIdle => {
                let _gone = socket.send(message).await;
                let frame = CloseFrame { code: CloseCode::Away, reason: "".into() };
                let _gone = socket.close(Some(frame)).await;
                continue;
            }
        };
        match code {
            Some(code) => {
                let _gone = socket.close(Some(CloseFrame { code, reason: "".into() })).await;
            }
            None => {
                let _gone = socket.send(message).await;
            }
        }
    }
}

async fn echoed(second: Second, change: impl FnOnce(Plan) -> Plan) -> (String, u64) {
    let address = server(move |stream, number| async move {
        if let Ok(socket) = accept_async(stream).await {
            serve(socket, number, second).await;
        }
    })
    .await;
    let report = run(change(Plan { requests: Some(5), ..plan(address, Protocol::WebSocket) })).await;
    (shown(&report), report.connections)
}

#[tokio::test]
async fn messages_that_do_not_come_back_are_lost() {
    let same = |plan: Plan| plan;
    let check = |(text, _): (String, u64), expected: &str| assert_eq!(text, expected);
    check(echoed(Second::Echo, same).await, "5 answered, 0 lost");
    check(echoed(Second::Other, same).await, "4 answered, 1 lost (Content: 1)");
    check(echoed(Second::Drop, same).await, "4 answered, 1 lost (Closed: 1)");
    check(echoed(Second::Close(CloseCode::Away), same).await, "5 answered, 0 lost repeated (CrossedClose: 1)");
    check(echoed(Second::Close(CloseCode::Error), same).await, "4 answered, 1 lost (Closed: 1)");
    let strict = |plan: Plan| Plan { is_strict: true, ..plan };
    check(echoed(Second::Close(CloseCode::Away), strict).await, "4 answered, 1 lost (Closed: 1)");
    // whether the next message crosses with it or finds it there is luck; nothing is lost either way
    let (text, connections) = echoed(Second::CloseIdle, same).await;
    assert!(text.starts_with("5 answered, 0 lost") && connections == 2, "{text}");
}

#[tokio::test]
async fn connections_are_closed_after_their_messages() {
    let two = |plan: Plan| Plan { messages: Some(2), ..plan };
    assert_eq!(echoed(Second::Echo, two).await, ("5 answered, 0 lost".to_owned(), 3));
    let many = |plan: Plan| Plan { requests: Some(300), pace: Pace::Connections(6), ..plan };
    assert_eq!(echoed(Second::Echo, many).await, ("300 answered, 0 lost".to_owned(), 6));
}

#[tokio::test]
async fn a_refused_handshake_says_its_status() {
    let address = server(|mut stream, _| async move {
        if request(&mut stream).await.is_some() {
            super::answer(&mut stream, "HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n").await;
        }
    })
    .await;
    let report = run(plan(address, Protocol::WebSocket)).await;
    assert_eq!(shown(&report), "0 answered, 1 lost (Status: 1)");
    assert_eq!(report.statuses.get(&503), Some(&1));
}
