//! Requests of HTTP/1 that two readers may read differently, and what is no request at all.

use std::fmt::Write as _;

use futures_util::future::join_all;

use super::{HOST, Innocent, StrictApp, at_rest, impatient, send, world_of};
use crate::world::reason;

/// What becomes of a case.
enum Then {
    /// The app sees nothing; the client is answered with one of these, or not at all.
    Refused(&'static [u16]),
    /// The app sees one request with this body, and the client its answer.
    Passed(&'static str),
    /// The app sees a request that ends early or none; the client is not told that all went well.
    Broken,
}

use Then::{Broken, Passed, Refused};

const BAD: Then = Refused(&[400]);
const LARGE: Then = Refused(&[400, 414, 431]);

/// The begin of a request with a body, up to the fields that a case adds.
fn post(number: usize) -> String {
    format!("POST /case-{number} HTTP/1.1\r\n{HOST}")
}

/// A request that must never arrive where the text before it was the body of another.
fn hidden(number: usize) -> String {
    format!("GET /hidden-{number} HTTP/1.1\r\n{HOST}\r\n")
}

type Case = (&'static str, fn(usize) -> Vec<u8>, Then);

/// `fields` and what follows them in `POST /case-N`.
macro_rules! fields {
    ($name:literal, $text:expr, $then:expr) => {
        ($name, |number| [post(number).as_bytes(), &$text[..], hidden(number).as_bytes()].concat(), $then)
    };
}

/// A whole request with `{}` for the number of the case.
macro_rules! whole {
    ($name:literal, $text:expr, $then:expr) => {
        ($name, |number| $text.replace("{}", &number.to_string()).into_bytes(), $then)
    };
}

const CHUNKS: &str = "\r\n\r\n3\r\nabc\r\n0\r\n\r\n";

/// A coding in `POST /case-N` with a body in chunks.
macro_rules! coding {
    ($name:literal, $value:literal, $then:expr) => {
        fields!($name, concat!("transfer-encoding:", $value, "\r\n\r\n3\r\nabc\r\n0\r\n\r\n").as_bytes(), $then)
    };
}

/// Codings of a body.
fn codings() -> Vec<Case> {
    vec![
        fields!(
            "length, then chunks",
            format!("content-length: 4\r\ntransfer-encoding: chunked{CHUNKS}").as_bytes(),
            Passed("abc")
        ),
        fields!(
            "chunks, then length",
            format!("transfer-encoding: chunked\r\ncontent-length: 4{CHUNKS}").as_bytes(),
            Passed("abc")
        ),
        fields!(
            "chunks and a bad length",
            format!("transfer-encoding: chunked\r\ncontent-length: x{CHUNKS}").as_bytes(),
            Passed("abc")
        ),
        coding!("unknown coding", " xchunked", BAD),
        coding!("chunked not last", " chunked, identity", BAD),
        coding!("chunked not last, gzip", " chunked, gzip", BAD),
        coding!("identity", " identity", BAD),
        coding!("no coding", "", BAD),
        coding!("comma behind", " chunked,", BAD),
        coding!("comma before", " , chunked", BAD),
        coding!("twice in a list", " chunked, chunked", BAD),
        coding!("a coding that nobody undoes", " gzip, chunked", BAD),
        coding!("identity before", " identity, chunked", BAD),
        coding!("quoted", " \"chunked\"", BAD),
        coding!("with a parameter", " chunked;q=1", BAD),
        coding!("vertical tab before", " \x0bchunked", BAD),
        coding!("vertical tab behind", " chunked\x0b", BAD),
        coding!("form feed", " \x0cchunked", BAD),
        coding!("nul behind", " chunked\0", BAD),
        coding!("another letter", " \u{212a}hunked", BAD),
        fields!("no-break space", b"transfer-encoding:\xa0chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", BAD),
        fields!(
            "two fields",
            format!("transfer-encoding: chunked\r\nTransfer-Encoding: chunked{CHUNKS}").as_bytes(),
            BAD
        ),
        fields!(
            "two fields, one unknown",
            format!("transfer-encoding: x\r\ntransfer-encoding: chunked{CHUNKS}").as_bytes(),
            BAD
        ),
        fields!(
            "two fields, unknown last",
            format!("transfer-encoding: chunked\r\ntransfer-encoding: x{CHUNKS}").as_bytes(),
            BAD
        ),
        fields!("space before the colon", format!("transfer-encoding : chunked{CHUNKS}").as_bytes(), BAD),
        fields!("tab before the colon", format!("transfer-encoding\t: chunked{CHUNKS}").as_bytes(), BAD),
        fields!("nul in the name", format!("transfer\0-encoding: chunked{CHUNKS}").as_bytes(), BAD),
        fields!("folded before", format!("x: y\r\n transfer-encoding: chunked{CHUNKS}").as_bytes(), BAD),
        fields!("folded behind", format!("transfer-encoding:\r\n chunked{CHUNKS}").as_bytes(), BAD),
        fields!("bare return before", format!("x: y\rtransfer-encoding: chunked{CHUNKS}").as_bytes(), BAD),
        fields!(
            "mixed case, tab, no space",
            format!("tRANSFER-eNCODING:\tcHUNKED {CHUNKS}").replace(" \r\n", "\r\n").as_bytes(),
            Passed("abc")
        ),
        fields!(
            "only its name is like it",
            b"transfer_encoding: chunked\r\ncontent-length: 3\r\n\r\nabc",
            Passed("abc")
        ),
        whole!("in HTTP/1.0", format!("POST /case-{{}} HTTP/1.0\r\n{HOST}transfer-encoding: chunked{CHUNKS}"), BAD),
    ]
}

/// Lengths.
fn lengths() -> Vec<Case> {
    macro_rules! length {
        ($name:literal, $value:literal, $then:expr) => {
            fields!($name, concat!("content-length:", $value, "\r\n\r\nabc").as_bytes(), $then)
        };
    }
    vec![
        length!("plus", " +3", BAD),
        length!("minus", " -3", BAD),
        length!("hexadecimal", " 0x3", BAD),
        length!("inner space", " 3 3", BAD),
        length!("list of the same", " 3, 3", BAD),
        length!("list of others", " 3, 4", BAD),
        length!("empty", "", BAD),
        length!("exponent", " 1e1", BAD),
        length!("fraction", " 3.0", BAD),
        length!("other digits", " \u{0663}", BAD),
        length!("over 64 bits", " 18446744073709551619", BAD),
        length!("far over 64 bits", " 99999999999999999999999", BAD),
        length!("the largest number", " 18446744073709551615", LARGE),
        length!("zeros before", " 0003", Passed("abc")),
        length!("the same twice", " 3\r\ncontent-length: 3", Passed("abc")),
        length!("two", " 3\r\ncontent-length: 4", BAD),
        length!("two, other case", " 4\r\nContent-Length: 3", BAD),
        fields!("length, space before the colon", b"content-length : 3\r\n\r\nabc", BAD),
        whole!(
            "length in HTTP/1.0",
            format!("POST /case-{{}} HTTP/1.0\r\n{HOST}content-length: 3\r\n\r\nabc"),
            Passed("abc")
        ),
    ]
}

/// Bodies in chunks.
fn chunks() -> Vec<Case> {
    macro_rules! chunk {
        ($name:literal, $text:expr, $then:expr) => {
            fields!($name, [&b"transfer-encoding: chunked\r\n\r\n"[..], &$text[..]].concat(), $then)
        };
    }
    vec![
        chunk!("extension", b"3;a=b\r\nabc\r\n0;c\r\n\r\n", Passed("abc")),
        chunk!("quoted extension", b"3;a=\"b;c\"\r\nabc\r\n0\r\n\r\n", Passed("abc")),
        chunk!("extension without end", ["3;".as_bytes(), &[b'a'; 40 << 10]].concat(), BAD),
        chunk!("line end inside an extension", b"3;a\nabc\r\n0\r\n\r\n", BAD),
        chunk!("bare return inside an extension", b"3;a\rb\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("bare line end", b"3\nabc\r\n0\r\n\r\n", BAD),
        chunk!("bare return", b"3\rabc\r\n0\r\n\r\n", BAD),
        chunk!("0x", b"0x3\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("minus", b"-3\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("plus", b"+3\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("underscore", b"0_3\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("no size", b"\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("space inside", b"0 3\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("over 64 bits", b"10000000000000003\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("64 bits", b"ffffffffffffffff\r\nabc\r\n0\r\n\r\n", Broken),
        chunk!("longer than said", b"3\r\nabcd\r\n0\r\n\r\n", BAD),
        chunk!("no line end behind", b"3\r\nabc0\r\n\r\n", BAD),
        chunk!("shorter than said", b"6\r\nabc\r\n0\r\n\r\n", BAD),
        chunk!("last with a bare line end", b"3\r\nabc\r\n0\n\n", BAD),
        chunk!("trailers", b"3\r\nabc\r\n0\r\nx: y\r\n\r\n", Passed("abc")),
        chunk!(
            "trailers that frame",
            b"3\r\nabc\r\n0\r\ncontent-length: 9\r\ntransfer-encoding: chunked\r\nhost: other\r\n\r\n",
            Passed("abc")
        ),
        chunk!("a bad trailer", b"3\r\nabc\r\n0\r\nx : y\r\n\r\n", BAD),
        chunk!("trailers without end", [b"3\r\nabc\r\n0\r\n".to_vec(), b"x: y\r\n".repeat(20_000)].concat(), BAD),
    ]
}

/// Fields.
fn fields_of_heads() -> Vec<Case> {
    macro_rules! get {
        ($name:literal, $fields:literal, $then:expr) => {
            whole!($name, format!("GET /case-{{}} HTTP/1.1\r\n{HOST}{}\r\n", $fields), $then)
        };
    }
    vec![
        get!("nul", "x: a\0b\r\n", BAD),
        get!("bare return", "x: a\rb\r\n", BAD),
        get!("folded", "x: a\r\n b\r\n", BAD),
        get!("folded with a tab", "x: a\r\n\tb\r\n", BAD),
        get!("no colon", "xy\r\n", BAD),
        get!("no name", ": a\r\n", BAD),
        get!("space in a name", "x y: a\r\n", BAD),
        get!("parenthesis in a name", "x(: a\r\n", BAD),
        get!("letters of others in a name", "x\u{e9}: a\r\n", BAD),
        get!("return and return", "x: a\r\r\n", BAD),
        get!("escape", "x: \x1b[2J\r\n", BAD),
    ]
}

/// Request lines.
fn lines() -> Vec<Case> {
    vec![
        whole!("a first line that is folded", format!("GET /case-{{}} HTTP/1.1\r\n x: y\r\n{HOST}\r\n"), BAD),
        whole!("bare line ends", format!("GET /case-{{}} HTTP/1.1\n{}\n", HOST.replace('\r', "")), Passed("")),
        whole!("empty lines before", format!("\r\n\r\nGET /case-{{}} HTTP/1.1\r\n{HOST}\r\n"), Passed("")),
        whole!("own method", format!("get /case-{{}} HTTP/1.1\r\n{HOST}\r\n"), Passed("")),
        whole!("two spaces", format!("GET  /case-{{}} HTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!("tabs", format!("GET\t/case-{{}}\tHTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!("space behind", format!("GET /case-{{}} HTTP/1.1 \r\n{HOST}\r\n"), BAD),
        whole!("space in the target", format!("GET /case-{{}} x HTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!("nul in the target", format!("GET /case-{{}}\0 HTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!("return in the target", format!("GET /case-{{}}\r HTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!("tab in the target", format!("GET /case-{{}}\t HTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!("no path", format!("GET case-{{}} HTTP/1.1\r\n{HOST}\r\n"), Refused(&[400, 404])),
        whole!("a host for a target", format!("GET web.env.localhost HTTP/1.1\r\n{HOST}x-case: {{}}\r\n\r\n"), BAD),
        whole!("other version", format!("GET /case-{{}} HTTP/1.2\r\n{HOST}\r\n"), BAD),
        whole!("version 2", format!("GET /case-{{}} HTTP/2.0\r\n{HOST}\r\n"), BAD),
        whole!("small version", format!("GET /case-{{}} http/1.1\r\n{HOST}\r\n"), BAD),
        whole!("no version", "GET /case-{}\r\n\r\n", BAD),
        whole!("bad method", format!("G(T /case-{{}} HTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!("asterisk of another method", format!("GET * HTTP/1.1\r\n{HOST}x-case: {{}}\r\n\r\n"), BAD),
    ]
}

/// Hosts and targets.
fn hosts() -> Vec<Case> {
    vec![
        whole!("no host", "GET /case-{} HTTP/1.1\r\n\r\n", BAD),
        whole!("empty host", "GET /case-{} HTTP/1.1\r\nhost:\r\n\r\n", BAD),
        whole!("two hosts", format!("GET /case-{{}} HTTP/1.1\r\n{HOST}host: other\r\n\r\n"), BAD),
        whole!("the same host twice", format!("GET /case-{{}} HTTP/1.1\r\n{HOST}{HOST}\r\n"), BAD),
        whole!(
            "list of hosts",
            "GET /case-{} HTTP/1.1\r\nhost: web.env.localhost, other\r\n\r\n",
            Refused(&[400, 404])
        ),
        whole!("host with a user", "GET /case-{} HTTP/1.1\r\nhost: a@web.env.localhost\r\n\r\n", Refused(&[400, 404])),
        whole!("host with a path", "GET /case-{} HTTP/1.1\r\nhost: web.env.localhost/x\r\n\r\n", Refused(&[400, 404])),
        whole!(
            "host with two ports",
            "GET /case-{} HTTP/1.1\r\nhost: web.env.localhost:80:80\r\n\r\n",
            Refused(&[400, 404])
        ),
        whole!(
            "host with a word for a port",
            "GET /case-{} HTTP/1.1\r\nhost: web.env.localhost:x\r\n\r\n",
            Refused(&[400, 404])
        ),
        whole!("host with a space", "GET /case-{} HTTP/1.1\r\nhost: web.env.localhost x\r\n\r\n", Refused(&[400, 404])),
        whole!(
            "host with other letters",
            "GET /case-{} HTTP/1.1\r\nhost: web.env.localhost\u{e9}\r\n\r\n",
            Refused(&[400, 404])
        ),
        whole!("another host in the target", format!("GET http://other/case-{{}} HTTP/1.1\r\n{HOST}\r\n"), BAD),
        whole!(
            "a user in the target",
            format!("GET http://web.env.localhost@other/case-{{}} HTTP/1.1\r\n{HOST}\r\n"),
            BAD
        ),
        whole!(
            "the host in the target",
            format!("GET http://web.env.localhost/case-{{}} HTTP/1.1\r\n{HOST}\r\n"),
            Passed("")
        ),
        whole!("two slashes", format!("GET //other/case-{{}} HTTP/1.1\r\n{HOST}\r\n"), Passed("")),
        whole!("fragment", format!("GET /case-{{}}#/../admin HTTP/1.1\r\n{HOST}\r\n"), Passed("")),
        whole!(
            "tunnel",
            "CONNECT web.env.localhost:80 HTTP/1.1\r\nhost: web.env.localhost:80\r\nx-case: {}\r\n\r\n",
            Refused(&[405])
        ),
        whole!(
            "HTTP/2 later on",
            format!("GET /case-{{}} HTTP/1.1\r\n{HOST}\r\nPRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
            Passed("")
        ),
    ]
}

/// Fields that would change what others see.
fn abuse() -> Vec<Case> {
    vec![
        fields!("the length is of this hop only", b"connection: close, content-length\r\ncontent-length: 3\r\n\r\nabc", Passed("abc")),
        fields!("chunks are of this hop only", b"connection: close, transfer-encoding\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", Passed("abc")),
        fields!("the platform's fields are of this hop only", b"connection: close, host, x-forwarded-for, x-forwarded-proto, x-request-id, traceparent\r\ncontent-length: 3\r\n\r\nabc", Passed("abc")),
        fields!("what is hidden behind HTTP/2", b"connection: close, upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\ncontent-length: 3\r\n\r\nabc", Passed("abc")),
        fields!("HTTP/2 in a list", b"connection: close, upgrade\r\nupgrade: websocket, H2C\r\ncontent-length: 3\r\n\r\nabc", Passed("abc")),
        fields!("an upgrade with a body", b"connection: close, upgrade\r\nupgrade: websocket\r\ncontent-length: 3\r\n\r\nabc", Passed("abc")),
        fields!("others' words", b"connection: close\r\nx-forwarded-for: 6.6.6.6\r\nforwarded: for=6.6.6.6\r\nx-forwarded-client-cert: x\r\nproxy-connection: keep-alive\r\nkeep-alive: timeout=9\r\ncontent-length: 3\r\n\r\nabc", Passed("abc")),
        whole!("too many fields", {
            let mut text = format!("GET /case-{{}} HTTP/1.1\r\n{HOST}");
            (0..1000).for_each(|index| write!(text, "x-{index}: y\r\n").unwrap());
            text + "\r\n"
        }, LARGE),
        whole!("a huge field", format!("GET /case-{{}} HTTP/1.1\r\n{HOST}x: {}\r\n\r\n", "y".repeat(1 << 20)), LARGE),
        whole!("a huge name", format!("GET /case-{{}} HTTP/1.1\r\n{HOST}{}: y\r\n\r\n", "x".repeat(70_000)), LARGE),
        whole!("a huge target", format!("GET /case-{{}}/{} HTTP/1.1\r\n{HOST}\r\n", "x".repeat(70_000)), LARGE),
        whole!("a huge method", format!("{} /case-{{}} HTTP/1.1\r\n{HOST}\r\n", "X".repeat(70_000)), LARGE),
        whole!("no request", "\u{1}\u{2}\u{3}{}\r\n\r\n", BAD),
        whole!("another protocol", "SSH-2.0-client-{}\r\n", Refused(&[400])),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_read_in_two_ways() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    let innocent = Innocent::at(world.http);
    let cases: Vec<Case> =
        [codings(), lengths(), chunks(), fields_of_heads(), lines(), hosts(), abuse()].into_iter().flatten().collect();
    let all = cases.iter().enumerate().map(|(number, (name, bytes, _))| send(name, world.http, bytes(number)));
    let answers = join_all(all).await;
    let mut wrong = Vec::new();
    for (number, ((name, _, then), answer)) in cases.iter().zip(&answers).enumerate() {
        let status = answer.split(' ').nth(1).map_or(0, |code| code.parse::<u16>().unwrap_or(0));
        let (seen, hidden) = (app.seen(&format!("/case-{number}")), app.seen(&format!("/hidden-{number}")));
        // the number of one case may be the begin of another's
        let ends = |line: &str| {
            !line.split(&format!("/case-{number}")).nth(1).unwrap().starts_with(|next: char| next.is_ascii_digit())
        };
        let seen: Vec<_> = seen.iter().filter(|request| ends(&request.line)).collect();
        let is_right = match then {
            Refused(codes) => {
                seen.is_empty() && (answer.is_empty() || codes.contains(&status) && !reason(answer).is_empty())
            }
            Passed(body) => seen.len() == 1 && seen[0].body == body.as_bytes() && status == 200,
            Broken => seen.is_empty() && status != 200,
        };
        let is_hidden = hidden.iter().all(|request| request.line != format!("GET /hidden-{number}"));
        // who sent two whole requests may have both answered
        let may_follow = matches!(then, Passed(_)) && !answer.contains("connection: close");
        if !is_right || !is_hidden && !may_follow {
            wrong.push(format!("{name}: {} seen, {answer:.300}", seen.len()));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(app.wrong().is_empty(), "the app was sent {:#?}", app.wrong());
    println!("{} cases", cases.len());
    let told = |name: &str| answers.iter().filter(|answer| reason(answer) == name).count() as u64;
    for name in ["request-unreadable", "request-invalid", "head-too-large", "host-conflict"] {
        let count = world.handle.reasons().iter().find(|(reason, _)| reason == name).map_or(0, |(_, count)| *count);
        println!("{name}: {count}");
        assert!(count > 1 && count >= told(name), "{name} was told {} times and counted {count}", told(name));
    }
    innocent.unharmed().await;
    at_rest(&world).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_without_a_path_asks_for_the_root() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    for target in ["http://web.env.localhost", "http://web.env.localhost#x", "http://web.env.localhost?x"] {
        let request = format!("GET {target} HTTP/1.1\r\n{HOST}connection: close\r\n\r\n");
        let answer = send(target, world.http, request.into_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200 "), "{target}: {answer}");
    }
    let lines: Vec<String> = app.seen("").into_iter().map(|request| request.line).collect();
    assert_eq!(lines, ["GET /", "GET /", "GET /?x"]);
    assert!(app.wrong().is_empty(), "the app was sent {:#?}", app.wrong());
}
