//! Tests of [`crate::wire`]; apart from it, since the agent is compiled from that file alone.

use proptest::prelude::*;

use crate::wire::*;

fn run() -> Run {
    Run {
        process: Process {
            args: vec!["/bin/sh".into(), "-c".into(), "exit 3".into()],
            env: vec!["A=ü".into()],
            cwd: "/mnt".into(),
            user: "1000".into(),
        },
        hostname: "one".into(),
        files: vec![File { path: "/run/secret".into(), mode: 0o400, content: Bytes(vec![0, 255, 1]) }],
        empty_dirs: vec!["/scratch".into()],
        disk_bytes: 1 << 40,
        clock_unix_ns: u64::MAX,
        entropy: Bytes(vec![7; 32]),
        ports: vec![80, 65535],
        ..Run::default()
    }
}

fn to_guest() -> Vec<ToGuest> {
    let terminal = Terminal { columns: 80, rows: 24 };
    let exec = Exec { id: 9, process: run().process, terminal: Some(terminal) };
    vec![
        ToGuest::Run { run: Box::new(run()) },
        ToGuest::Exec { exec: Box::new(exec) },
        ToGuest::Stdin { id: 9, bytes: Bytes(vec![b'x'; CHUNK_BYTES_MAX]) },
        ToGuest::StdinEnd { id: 9 },
        ToGuest::Credit { id: 0, stream: Stream::Err, bytes: 17 },
        ToGuest::Resize { id: 9, terminal },
        ToGuest::Signal { id: 0, signal: 15 },
        ToGuest::Refresh { clock_unix_ns: 5, entropy: Bytes::default() },
        ToGuest::Ping { token: 77 },
        ToGuest::Quiesce {},
        ToGuest::Resume {
            clock_unix_ns: 6,
            entropy: Bytes(vec![1]),
            hostname: "two".into(),
            hosts: String::new(),
            is_copy: true,
        },
    ]
}

fn from_guest() -> Vec<FromGuest> {
    vec![
        FromGuest::Hello { version: VERSION },
        FromGuest::Started { id: 1 },
        FromGuest::Failed { id: 1, reason: "no such file".into() },
        FromGuest::Output { id: 0, stream: Stream::Out, bytes: Bytes(b"hi\n".to_vec()) },
        FromGuest::StdinTaken { id: 1, bytes: 4 },
        FromGuest::Listening { port: 8080 },
        FromGuest::Exited { id: 0, code: -1 },
        FromGuest::Pong { token: 77 },
        FromGuest::Quiet {},
        FromGuest::Note { text: "out of memory".into() },
    ]
}

fn all<T: Frame>(decoder: &mut Decoder) -> Result<Vec<T>, WireError> {
    std::iter::from_fn(|| decoder.take().transpose()).collect()
}

/// Frames come back whole however the bytes are cut.
fn check<T: Frame + PartialEq + std::fmt::Debug>(frames: &[T], piece: usize) {
    let mut bytes = Vec::new();
    for frame in frames {
        encode(frame, &mut bytes);
    }
    let mut decoder = Decoder::default();
    let mut back: Vec<T> = Vec::new();
    for piece in bytes.chunks(piece) {
        decoder.push(piece);
        back.extend(all(&mut decoder).unwrap());
    }
    assert_eq!(back, frames);
}

#[test]
fn frames_survive_any_cut() {
    for piece in [1, 2, 3, 7, 4096, usize::MAX] {
        check(&to_guest(), piece);
        check(&from_guest(), piece);
    }
}

#[test]
fn false_frames_are_errors() {
    let next = |bytes: &[u8]| {
        let mut decoder = Decoder::default();
        decoder.push(bytes);
        decoder.take::<FromGuest>()
    };
    assert_eq!(next(&[0, 0, 0]), Ok(None), "not all of it is there");
    assert_eq!(next(&u32::MAX.to_le_bytes()), Err(WireError::TooLong(u32::MAX as usize)), "told before it is read");
    assert_eq!(next(&[1, 0, 0, 0, 200]), Err(WireError::Kind(200)));
    let ends = WireError::Malformed("it ends within a value");
    assert_eq!(next(&[0, 0, 0, 0]), Err(ends.clone()));
    assert_eq!(next(&[3, 0, 0, 0, 6, 1, 2, 9]), Ok(Some(FromGuest::Listening { port: 513 })), "the rest is the next");
    assert_eq!(next(&[4, 0, 0, 0, 6, 1, 2, 3]), Err(WireError::Malformed("it goes on after its end")));
    assert_eq!(next(&[9, 0, 0, 0, 10, 255, 255, 255, 255, 1, 1, 1, 1]), Err(ends));
    assert_eq!(next(&[6, 0, 0, 0, 10, 1, 0, 0, 0, 255]), Err(WireError::Malformed("a text that is not UTF-8")));
    let list = [5, 0, 0, 0, 1, 255, 255, 255, 255];
    let mut decoder = Decoder::default();
    decoder.push(&list);
    assert_eq!(decoder.take::<ToGuest>(), Err(WireError::Malformed("a list that is longer than its frame")));
}

#[test]
fn secrets_are_not_printed() {
    let text = format!("{:?}", ToGuest::Run { run: Box::new(run()) });
    assert!(!text.contains("A=") && !text.contains("exit 3") && !text.contains("255"), "{text}");
}

proptest! {
    #[test]
    fn no_bytes_make_it_fail(bytes in proptest::collection::vec(any::<u8>(), 0..64), kind in 0u8..12) {
        let mut framed = u32::try_from(bytes.len() + 1).unwrap().to_le_bytes().to_vec();
        framed.push(kind);
        framed.extend(bytes);
        let mut decoder = Decoder::default();
        decoder.push(&framed);
        if let Ok(Some(frame)) = decoder.take::<FromGuest>() {
            let mut again = Vec::new();
            encode(&frame, &mut again);
            prop_assert_eq!(again, framed);
        }
    }
}
