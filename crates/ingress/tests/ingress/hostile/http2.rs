//! Requests of HTTP/2 that would be two of HTTP/1.1, or none.

use futures_util::future::join_all;

use super::{
    Innocent, StrictApp, at_rest,
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, Heard, PING, PRIORITY, PUSH_PROMISE, SETTINGS,
        WINDOW_UPDATE, Wire, block, frame,
    },
    impatient, world_of,
};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The fields of a request with these added, or replaced where they are pseudo fields of it.
fn request(number: usize, more: &[(&[u8], &[u8])]) -> Fields {
    let path = format!("/case-{number}");
    let usual: [(&[u8], &[u8]); 4] = [
        (b":method", b"POST"),
        (b":scheme", b"http"),
        (b":authority", b"web.env.localhost"),
        (b":path", path.as_bytes()),
    ];
    let is_usual = |name: &[u8]| usual.iter().any(|(usual, _)| *usual == name);
    let value = |(name, value): &(&[u8], &[u8])| {
        let replaced = more.iter().find(|(other, _)| other == name).map_or(*value, |(_, value)| value);
        let text = String::from_utf8_lossy(replaced).replace("{}", &number.to_string());
        (name.to_vec(), if replaced.is_ascii() { text.into_bytes() } else { replaced.to_vec() })
    };
    let added = more.iter().filter(|(name, _)| !is_usual(name)).map(|(name, value)| (name.to_vec(), value.to_vec()));
    usual.iter().map(value).chain(added).collect()
}

fn without(number: usize, left_out: &[u8]) -> Fields {
    request(number, &[]).into_iter().filter(|(name, _)| name != left_out).collect()
}

/// What is sent on stream 1.
type Sent = fn(usize) -> Vec<u8>;

/// Fields, then a body of three bytes.
fn whole(fields: &Fields) -> Vec<u8> {
    [frame(HEADERS, END_HEADERS, 1, &block(fields)), frame(DATA, END_STREAM, 1, b"abc")].concat()
}

/// A body where none was announced.
const LENGTH_OF_NOTHING: &str = "length of nothing";

/// The app sees one such request with this body; `None`: it sees none.
type Case = (&'static str, Sent, Option<&'static str>);

macro_rules! fields {
    ($name:expr, [$(($field:expr, $value:expr)),*], $then:expr) => {
        ($name, |number| whole(&request(number, &[$((&$field[..], &$value[..])),*])), $then)
    };
}

fn of_fields() -> Vec<Case> {
    vec![
        fields!("nothing special", [], Some("abc")),
        fields!("transfer coding", [(b"transfer-encoding", b"chunked")], None),
        fields!("transfer coding and length", [(b"transfer-encoding", b"chunked"), (b"content-length", b"3")], None),
        fields!("connection", [(b"connection", b"close")], None),
        fields!("keep-alive", [(b"keep-alive", b"timeout=5")], None),
        fields!("proxy-connection", [(b"proxy-connection", b"close")], None),
        fields!("upgrade", [(b"upgrade", b"websocket")], None),
        fields!("te", [(b"te", b"gzip")], None),
        fields!("capitals", [(b"X-Capital", b"a")], None),
        fields!("line end in a value", [(b"x", b"a\r\nhost: other")], None),
        fields!("bare line end in a value", [(b"x", b"a\ncontent-length: 0")], None),
        fields!("bare return in a value", [(b"x", b"a\rb")], None),
        fields!("nul in a value", [(b"x", b"a\0b")], None),
        fields!("line end in a name", [(b"x\r\ny", b"a")], None),
        fields!("colon in a name", [(b"x: y\r\nz", b"a")], None),
        fields!("colon before a name", [(b":x", b"a")], None),
        fields!("space in a name", [(b"x y", b"a")], None),
        fields!("no name", [(b"", b"a")], None),
        fields!("other letters in a name", [(b"x\xe9", b"a")], None),
        fields!("status in a request", [(b":status", b"200")], None),
        fields!("length that is right", [(b"content-length", b"3")], Some("abc")),
        fields!("length too small", [(b"content-length", b"2")], None),
        fields!("length too large", [(b"content-length", b"4")], None),
        fields!(LENGTH_OF_NOTHING, [(b"content-length", b"0")], None),
        fields!("two lengths", [(b"content-length", b"3"), (b"content-length", b"4")], None),
        fields!("list of lengths", [(b"content-length", b"3, 3")], None),
        fields!("length with a sign", [(b"content-length", b"+3")], None),
    ]
}

fn of_pseudo_fields() -> Vec<Case> {
    vec![
        fields!("hidden request in a path", [(b":path", b"/case-{} HTTP/1.1\r\nhost: other\r\n\r\nGET /hidden")], None),
        fields!("space in a path", [(b":path", b"/case-{} x")], None),
        fields!("nul in a path", [(b":path", b"/case-{}\0")], None),
        fields!("no slash", [(b":path", b"case-{}")], None),
        fields!("empty path", [(b":path", b"")], None),
        fields!("absolute path", [(b":path", b"http://other/case-{}")], None),
        fields!("asterisk", [(b":path", b"*")], None),
        fields!(
            "hidden request in a method",
            [(b":method", b"GET /hidden HTTP/1.1\r\nhost: web.env.localhost\r\n\r\nPOST")],
            None
        ),
        fields!("space in a method", [(b":method", b"POST x")], None),
        fields!("empty method", [(b":method", b"")], None),
        fields!("tunnel", [(b":method", b"CONNECT")], None),
        fields!("scheme that is a target", [(b":scheme", b"http://other/?")], None),
        fields!("line end in a scheme", [(b":scheme", b"http\r\nx: y")], None),
        fields!("line end in an authority", [(b":authority", b"web.env.localhost\r\nx: y")], None),
        fields!("space in an authority", [(b":authority", b"web.env.localhost x")], None),
        fields!("path in an authority", [(b":authority", b"web.env.localhost/x")], None),
        fields!("user in an authority", [(b":authority", b"a@web.env.localhost")], None),
        fields!("another host beside it", [(b"host", b"other")], None),
        fields!("the same host beside it", [(b"host", b"web.env.localhost")], Some("abc")),
        fields!("two hosts beside it", [(b"host", b"web.env.localhost"), (b"host", b"web.env.localhost")], None),
        fields!(
            "what the platform says",
            [(b"x-forwarded-for", b"6.6.6.6"), (b"forwarded", b"for=6.6.6.6"), (b"x-request-id", b"a b")],
            Some("abc")
        ),
        ("no authority, no host", |number| whole(&without(number, b":authority")), None),
        ("no method", |number| whole(&without(number, b":method")), None),
        ("no path", |number| whole(&without(number, b":path")), None),
        ("no scheme", |number| whole(&without(number, b":scheme")), None),
        (
            "a path twice",
            |number| {
                whole(&[(b":path".to_vec(), b"/other".to_vec())].into_iter().chain(request(number, &[])).collect())
            },
            None,
        ),
        (
            "a path behind other fields",
            |number| {
                let mut fields = request(number, &[(b"x", b"a")]);
                let path = fields.remove(3);
                fields.push(path);
                whole(&fields)
            },
            None,
        ),
    ]
}

/// `POST /case-N` without its end.
fn begin(number: usize) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, 1, &block(&request(number, &[])))
}

fn of_frames() -> Vec<Case> {
    vec![
        (
            "trailers that frame",
            |number| {
                let trailers: [(&[u8], &[u8]); 2] = [(b"content-length", b"9"), (b"host", b"other")];
                [
                    begin(number),
                    frame(DATA, 0, 1, b"abc"),
                    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&trailers)),
                ]
                .concat()
            },
            Some("abc"),
        ),
        // the library leaves them out
        (
            "pseudo fields in trailers",
            |number| {
                let trailers: [(&[u8], &[u8]); 1] = [(b":path", b"/other")];
                [
                    begin(number),
                    frame(DATA, 0, 1, b"abc"),
                    frame(HEADERS, END_HEADERS | END_STREAM, 1, &block(&trailers)),
                ]
                .concat()
            },
            Some("abc"),
        ),
        (
            "trailers without an end",
            |number| {
                let trailers: [(&[u8], &[u8]); 1] = [(b"x", b"y")];
                [begin(number), frame(DATA, 0, 1, b"abc"), frame(HEADERS, END_HEADERS, 1, &block(&trailers))].concat()
            },
            None,
        ),
        ("data before fields", |_| frame(DATA, END_STREAM, 1, b"abc"), None),
        ("an even stream", |number| frame(HEADERS, END_HEADERS | END_STREAM, 2, &block(&request(number, &[]))), None),
        (
            "fields of stream 0",
            |number| frame(HEADERS, END_HEADERS | END_STREAM, 0, &block(&request(number, &[]))),
            None,
        ),
        ("data of stream 0", |_| frame(DATA, END_STREAM, 0, b"abc"), None),
    ]
}

fn of_blocks() -> Vec<Case> {
    vec![
        (
            "another frame between fields",
            |number| {
                let fields = block(&request(number, &[]));
                [
                    frame(HEADERS, END_STREAM, 1, &fields[..9]),
                    frame(PING, 0, 0, &[0; 8]),
                    frame(CONTINUATION, END_HEADERS, 1, &fields[9..]),
                ]
                .concat()
            },
            None,
        ),
        (
            "fields of two streams mixed",
            |number| {
                let fields = block(&request(number, &[]));
                [frame(HEADERS, END_STREAM, 1, &fields[..9]), frame(CONTINUATION, END_HEADERS, 3, &fields[9..])]
                    .concat()
            },
            None,
        ),
        (
            "more than is padded",
            |number| {
                let fields = [&[0xff][..], &block(&request(number, &[]))].concat();
                frame(HEADERS, END_HEADERS | END_STREAM | 8, 1, &fields[..60])
            },
            None,
        ),
        ("a table that nobody has", |_| frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0xff, 0xff, 0xff, 0x0f]), None),
        (
            "a number without end",
            |_| frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&[0x00, 0x7f][..], &[0xff; 40]].concat()),
            None,
        ),
        ("a text longer than its block", |_| frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x00, 0x20, b'x']), None),
        (
            "a table larger than allowed",
            |number| {
                let fields = [&[0x3f, 0xff, 0xff, 0xff, 0x07][..], &block(&request(number, &[]))].concat();
                frame(HEADERS, END_HEADERS | END_STREAM, 1, &fields)
            },
            None,
        ),
    ]
}

fn of_other_frames() -> Vec<Case> {
    vec![
        ("a promise", |_| frame(PUSH_PROMISE, END_HEADERS, 1, &[0, 0, 0, 2]), None),
        (
            "a stream of itself",
            |number| [frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 9]), whole(&request(number, &[]))].concat(),
            None,
        ),
        (
            "a window of nothing more",
            |number| [begin(number), frame(WINDOW_UPDATE, 0, 1, &[0; 4]), frame(DATA, END_STREAM, 1, b"abc")].concat(),
            None,
        ),
        (
            "a window beyond its end",
            |number| {
                let more = frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]);
                [more.clone(), more, whole(&request(number, &[]))].concat()
            },
            None,
        ),
        (
            "a setting beyond its range",
            |number| [frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0xff, 0xff, 0xff]), whole(&request(number, &[]))].concat(),
            None,
        ),
        (
            "settings of odd size",
            |number| [frame(SETTINGS, 0, 0, &[0; 5]), whole(&request(number, &[]))].concat(),
            None,
        ),
        ("a ping of odd size", |number| [frame(PING, 0, 0, &[0; 7]), whole(&request(number, &[]))].concat(), None),
        (
            "a frame that is too large",
            |number| [frame(DATA, 0, 1, &vec![0; 20_000]), whole(&request(number, &[]))].concat(),
            None,
        ),
        (
            "a frame that nobody knows",
            |number| [frame(0x77, 0xff, 0, b"abc"), whole(&request(number, &[]))].concat(),
            Some("abc"),
        ),
        ("HTTP/1.1 later on", |_| b"GET /hidden HTTP/1.1\r\nhost: web.env.localhost\r\n\r\n".to_vec(), None),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_http2_is_two_requests_of_http1() {
    let app = StrictApp::start().await;
    let world = world_of(impatient(), &app).await;
    let innocent = Innocent::at(world.http);
    let cases: Vec<Case> =
        [of_fields(), of_pseudo_fields(), of_frames(), of_blocks(), of_other_frames()].into_iter().flatten().collect();
    let all = cases.iter().enumerate().map(|(number, (_, bytes, _))| async move {
        let mut wire = Wire::open(world.http, &[]).await;
        wire.send(&bytes(number)).await;
        wire.heard(1).await
    });
    let heard = join_all(all).await;
    let mut wrong = Vec::new();
    for (number, ((name, _, then), heard)) in cases.iter().zip(heard).enumerate() {
        let seen: Vec<_> =
            app.seen("/case-").into_iter().filter(|it| it.line == format!("POST /case-{number}")).collect();
        // the head alone is a whole request; it may be on its way when the rest shows that it is none
        let is_right = match then {
            None if *name == LENGTH_OF_NOTHING => {
                seen.len() <= 1 && seen.iter().all(|it| it.body.is_empty()) && !matches!(heard, Heard::Status(0..400))
            }
            Some(body) => heard == Heard::Status(200) && seen.len() == 1 && seen[0].body == body.as_bytes(),
            None => seen.is_empty() && !matches!(heard, Heard::Status(0..400)),
        };
        if !is_right {
            wrong.push(format!("{name}: {heard:?}, the app saw {seen:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(app.seen("hidden").is_empty() && app.seen("other").is_empty(), "{:?}", app.seen(""));
    assert!(app.wrong().is_empty(), "the app was sent {:#?}", app.wrong());
    println!("{} cases", cases.len());
    innocent.unharmed().await;
    at_rest(&world).await;
}
