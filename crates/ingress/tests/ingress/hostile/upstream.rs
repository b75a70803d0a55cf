//! Apps that lie about their answers: a client is told that something went wrong, and the next one gets its own answer.

use std::time::Duration;

use cove_ingress::IngressConfig;
use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{HOST, Innocent, at_rest, impatient, resident, send};
use crate::world::{Backend, World, parts, reason, revision, route, until};

/// What the app does behind its bytes.
#[derive(Clone, Copy)]
enum End {
    /// Waits for the next request.
    Keep,
    Close,
    /// Ends the connection in the kernel's hard way.
    Reset,
}

use End::{Close, Keep, Reset};

/// What the client gets.
enum Then {
    /// A whole answer with this status and body.
    Whole(u16, &'static str),
    /// An answer of the platform with this reason.
    Refused(&'static str),
    /// An answer of which the client can tell that it has no end.
    Cut,
}

use Then::{Cut, Refused, Whole};

type Case = (&'static str, &'static str, fn() -> Vec<u8>, End, Then);

const OK: &str = "HTTP/1.1 200 OK\r\n";
const INVALID: Then = Refused("upstream-invalid");
const CLOSED: Then = Refused("upstream-closed");

macro_rules! app {
    ($name:literal, $bytes:expr, $end:ident, $then:expr) => {
        app!($name, "GET", $bytes, $end, $then)
    };
    ($name:literal, $method:literal, $bytes:expr, $end:ident, $then:expr) => {
        ($name, $method, || $bytes.to_string().into_bytes(), $end, $then)
    };
}

/// A whole answer that nobody asked for.
const POISON: &str = "HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\npoisoned";

fn lengths() -> Vec<Case> {
    vec![
        app!("as it should be", format!("{OK}content-length: 2\r\n\r\nok"), Keep, Whole(200, "ok")),
        app!("longer than said", format!("{OK}content-length: 2\r\n\r\nokmore"), Keep, Whole(200, "ok")),
        app!("another answer behind it", format!("{OK}content-length: 2\r\n\r\nok{POISON}"), Keep, Whole(200, "ok")),
        app!(
            "another answer behind chunks",
            format!("{OK}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n{POISON}"),
            Keep,
            Whole(200, "2\r\nok\r\n0\r\n\r\n")
        ),
        app!("another answer behind nothing", format!("{OK}content-length: 0\r\n\r\n{POISON}"), Keep, Whole(200, "")),
        app!("another answer behind 204", format!("HTTP/1.1 204 No Content\r\n\r\n{POISON}"), Keep, Whole(204, "")),
        app!(
            "another answer behind 304",
            format!("HTTP/1.1 304 Not Modified\r\ncontent-length: 2\r\n\r\n{POISON}"),
            Keep,
            Whole(304, "")
        ),
        app!("a body for HEAD", "HEAD", format!("{OK}content-length: 8\r\n\r\npoisoned"), Keep, Whole(200, "")),
        app!(
            "a body of 204",
            "HTTP/1.1 204 No Content\r\ncontent-length: 8\r\n\r\npoisoned".to_owned(),
            Keep,
            Whole(204, "")
        ),
        app!("shorter than said", format!("{OK}content-length: 9\r\n\r\nok"), Close, Cut),
        app!("shorter than said, reset", format!("{OK}content-length: 9\r\n\r\nok"), Reset, Cut),
        app!("two lengths", format!("{OK}content-length: 2\r\ncontent-length: 3\r\n\r\nok"), Close, INVALID),
        app!("length with a sign", format!("{OK}content-length: +2\r\n\r\nok"), Close, INVALID),
        app!("negative length", format!("{OK}content-length: -1\r\n\r\n"), Close, INVALID),
        app!("no number", format!("{OK}content-length: x\r\n\r\n"), Close, INVALID),
        app!("length over 64 bits", format!("{OK}content-length: 99999999999999999999\r\n\r\n"), Close, INVALID),
        app!(
            "chunks and length",
            format!("{OK}content-length: 9\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
            Close,
            Whole(200, "2\r\nok\r\n0\r\n\r\n")
        ),
        app!("bad size of a chunk", format!("{OK}transfer-encoding: chunked\r\n\r\n2\r\nok\r\nzz\r\n"), Keep, Cut),
        app!(
            "chunk longer than said",
            format!("{OK}transfer-encoding: chunked\r\n\r\n2\r\nokay\r\n0\r\n\r\n"),
            Keep,
            Cut
        ),
        app!("chunks without end", format!("{OK}transfer-encoding: chunked\r\n\r\n2\r\nok\r\n"), Close, Cut),
        app!("half a chunk", format!("{OK}transfer-encoding: chunked\r\n\r\n9\r\nok"), Reset, Cut),
        app!("until the end", format!("{OK}\r\nok"), Close, Whole(200, "2\r\nok\r\n0\r\n\r\n")),
    ]
}

fn heads() -> Vec<Case> {
    vec![
        app!("nothing", "", Close, CLOSED),
        app!("nothing, reset", "", Reset, CLOSED),
        app!("half a line", "HTTP/1.1 20", Close, CLOSED),
        app!("half a head", format!("{OK}content-"), Close, CLOSED),
        app!("half a head, reset", format!("{OK}content-"), Reset, CLOSED),
        app!("another protocol", "SSH-2.0-app\r\n\r\n", Close, INVALID),
        app!("no version", "200 OK\r\n\r\n", Close, INVALID),
        app!("another version", "HTTP/3.0 200 OK\r\ncontent-length: 0\r\n\r\n", Close, INVALID),
        app!("no number for a status", "HTTP/1.1 abc OK\r\ncontent-length: 0\r\n\r\n", Close, INVALID),
        app!("a status of four digits", "HTTP/1.1 2000 OK\r\ncontent-length: 0\r\n\r\n", Close, INVALID),
        app!("a status of two digits", "HTTP/1.1 99 OK\r\ncontent-length: 0\r\n\r\n", Close, INVALID),
        app!("status 000", "HTTP/1.1 000 OK\r\ncontent-length: 0\r\n\r\n", Close, INVALID),
        app!("a fold", format!("{OK}x: a\r\n b\r\ncontent-length: 2\r\n\r\nok"), Close, INVALID),
        app!("nul in a value", format!("{OK}x: a\0b\r\ncontent-length: 2\r\n\r\nok"), Close, INVALID),
        app!(
            "bare return in a value",
            format!("{OK}x: a\rset-cookie: b\r\ncontent-length: 2\r\n\r\nok"),
            Close,
            INVALID
        ),
        app!("space in a name", format!("{OK}x y: a\r\ncontent-length: 2\r\n\r\nok"), Close, INVALID),
        app!("no name", format!("{OK}: a\r\ncontent-length: 2\r\n\r\nok"), Close, INVALID),
        app!(
            "a head without end",
            format!("{OK}{}", "x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n".repeat(100_000)),
            Close,
            INVALID
        ),
        app!("too many fields", format!("{OK}{}\r\n", "x: y\r\n".repeat(1000)), Close, INVALID),
        app!("a field without end", format!("{OK}x: {}", "y".repeat(4 << 20)), Close, INVALID),
        app!(
            "another protocol that nobody asked for",
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nraw",
            Keep,
            INVALID
        ),
        app!(
            "hints before",
            format!("{}{OK}content-length: 2\r\n\r\nok", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(3)),
            Keep,
            Whole(200, "ok")
        ),
        app!("hints without an answer", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(3), Close, CLOSED),
        app!(
            "the platform's own words",
            format!(
                "{OK}x-cove-reason: mine\r\nconnection: close, content-length\r\nkeep-alive: timeout=999999999999999999\r\ncontent-length: 2\r\n\r\nok"
            ),
            Keep,
            Whole(200, "ok")
        ),
    ]
}

/// Serves each path as its case says, and everything else well.
async fn liar(cases: fn() -> Vec<Case>) -> Backend {
    Backend::tcp(move |mut stream| async move {
        loop {
            let (mut head, mut buffer) = (String::new(), [0; 4096]);
            while !head.ends_with("\r\n\r\n") {
                match stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => return,
                    Ok(count) => head.push_str(&String::from_utf8_lossy(&buffer[..count])),
                }
            }
            let path = head.split(' ').nth(1).unwrap();
            let Some(number) = path.strip_prefix("/case-") else {
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len());
                if stream.write_all(answer.as_bytes()).await.is_err() {
                    return;
                }
                continue;
            };
            let (_, _, bytes, end, _) = &cases()[number.parse::<usize>().unwrap()];
            let _the_other_end_has_heard_enough = stream.write_all(&bytes()).await;
            match end {
                Keep => {}
                Close => return,
                Reset => {
                    stream.set_zero_linger().unwrap();
                    return;
                }
            }
        }
    })
    .await
}

fn all() -> Vec<Case> {
    [lengths(), heads()].into_iter().flatten().collect()
}

/// Of an answer whose connection ended: whether the client can tell that it is whole.
fn is_whole(answer: &str, is_head: bool) -> bool {
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return false };
    let (status, field) = (parts(answer).0, |name: &str| head.lines().find_map(|line| line.strip_prefix(name)));
    match (field("content-length: "), field("transfer-encoding: ")) {
        _ if is_head || matches!(status, 204 | 304) => body.is_empty(),
        (Some(length), None) => body.len() == length.parse::<usize>().unwrap(),
        (None, Some("chunked")) => body.ends_with("0\r\n\r\n"),
        _ => false,
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_app_says_beside_its_answer_reaches_nobody() {
    let app = liar(all).await;
    let world = World::with(impatient()).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    let innocent = Innocent::at(world.http);
    let before = resident();
    let cases = all();
    let ask = |number: usize, method: &str| {
        let request = format!("{method} /case-{number} HTTP/1.1\r\n{HOST}connection: close\r\n\r\n");
        async move { send("an answer", world.http, request.into_bytes()).await }
    };
    // again and again: what is left in a connection shows in a later request
    for _round in 0..3 {
        let answers = join_all(cases.iter().enumerate().map(|(number, (_, method, ..))| ask(number, method))).await;
        let mut wrong = Vec::new();
        for ((name, method, _, _, then), answer) in cases.iter().zip(answers) {
            // hints go through
            let answer = answer[answer.rfind("HTTP/1.1 ").unwrap_or(0)..].to_owned();
            let (status, body) = parts(&answer);
            let is_whole = is_whole(&answer, *method == "HEAD");
            let is_right = match then {
                Whole(code, text) => is_whole && (status, body.as_str(), reason(&answer)) == (*code, *text, ""),
                Refused(code) => is_whole && (status, reason(&answer)) == (502, *code),
                Cut => !is_whole && status == 200,
            };
            if !is_right || answer.contains("poisoned") {
                wrong.push(format!("{name}: {answer:.300}"));
            }
        }
        assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    }
    println!("{} cases", cases.len());
    innocent.unharmed().await;
    at_rest(&world).await;
    let reasons = world.handle.reasons();
    let count = |name: &str| reasons.iter().find(|(reason, _)| reason == name).map_or(0, |(_, count)| *count);
    let expected =
        |name: &str| cases.iter().filter(|case| matches!(&case.4, Refused(it) if *it == name)).count() as u64;
    for name in ["upstream-invalid", "upstream-closed"] {
        assert_eq!(count(name), 3 * expected(name), "{reasons:?}");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes");
}

/// An app that sends `bytes` again and again, for ever.
async fn endless(begin: &'static str, bytes: &'static str, rest: Duration) -> Backend {
    Backend::tcp(move |mut stream: TcpStream| async move {
        let _head = stream.read(&mut [0; 4096]).await;
        let mut next = stream.write_all(begin.as_bytes()).await;
        let many = bytes.repeat(1 + (16 << 10) / bytes.len());
        while next.is_ok() {
            next = stream.write_all(many.as_bytes()).await;
            tokio::time::sleep(rest).await;
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hints_without_end_end_with_the_requests_time() {
    let app = endless("", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n", Duration::from_millis(20)).await;
    let world =
        World::with(IngressConfig { request_timeout: Duration::from_secs(2), ..IngressConfig::default() }).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    let before = resident();
    let answer =
        send("an answer", world.http, format!("GET / HTTP/1.1\r\n{HOST}connection: close\r\n\r\n").into_bytes()).await;
    assert!(answer.contains("HTTP/1.1 504 ") && reason(&answer) == "upstream-timeout", "{answer:.300}");
    at_rest(&world).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_without_end_stops_where_its_client_does() {
    let app = endless("HTTP/1.1 200 OK\r\n\r\n", "more and more ", Duration::ZERO).await;
    let world = World::with(impatient()).await;
    world.route("web", route("web"));
    world.ready(&revision("web", "v1"), &[app.address]);
    let before = resident();
    // reads the begin and then nothing
    let mut stream = TcpStream::connect(world.http).await.unwrap();
    stream.write_all(format!("GET / HTTP/1.1\r\n{HOST}\r\n").as_bytes()).await.unwrap();
    let mut begin = [0; 12];
    stream.read_exact(&mut begin).await.unwrap();
    assert_eq!(&begin, b"HTTP/1.1 200");
    assert_eq!(world.handle.load(&revision("web", "v1")).open, 1);
    // the stall's limit: connection, request and the app's connection all end
    until("the client to be left", || world.handle.load(&revision("web", "v1")).open == 0).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes");
}
