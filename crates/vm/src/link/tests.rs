//! The link fed with what agents send, good ones and others.

use super::*;
use crate::wire::Frame;

fn frames<T: Frame>(bytes: &[u8]) -> Vec<T> {
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    std::iter::from_fn(|| decoder.take().unwrap()).collect()
}

fn bytes(frames: &[FromGuest]) -> Vec<u8> {
    let mut out = Vec::new();
    for frame in frames {
        encode(frame, &mut out);
    }
    out
}

fn sent(link: &mut Link) -> Vec<ToGuest> {
    let out = link.outgoing().to_vec();
    link.sent(out.len());
    frames(&out)
}

fn output(id: u32, length: usize) -> FromGuest {
    FromGuest::Output { id, stream: Stream::Out, bytes: Bytes(vec![b'x'; length]) }
}

fn up() -> Link {
    let mut link = Link::new();
    assert_eq!(link.receive(&bytes(&[FromGuest::Hello { version: VERSION }])), Ok(vec![LinkEvent::Up]));
    link.run(Run::default());
    assert_eq!(sent(&mut link).len(), 1);
    link
}

#[test]
fn output_is_given_back_once_it_was_passed_on() {
    let mut link = up();
    let chunks = vec![output(PROGRAM, CHUNK_BYTES_MAX); WINDOW_BYTES / CHUNK_BYTES_MAX];
    assert_eq!(link.receive(&bytes(&chunks)).unwrap().len(), chunks.len());
    assert_eq!(sent(&mut link), [], "nothing was passed on");
    link.taken(PROGRAM, Stream::Out, CHUNK_BYTES_MAX);
    link.taken(PROGRAM, Stream::Out, 1);
    let bytes = u32::try_from(CHUNK_BYTES_MAX + 1).unwrap();
    assert_eq!(sent(&mut link), [ToGuest::Credit { id: PROGRAM, stream: Stream::Out, bytes }]);
    link.receive(&self::bytes(&[output(PROGRAM, CHUNK_BYTES_MAX)])).unwrap();
}

#[test]
fn a_guest_that_sends_too_much_is_ended() {
    let mut link = up();
    let mut chunks = vec![output(PROGRAM, CHUNK_BYTES_MAX); WINDOW_BYTES / CHUNK_BYTES_MAX];
    chunks.push(output(PROGRAM, 1));
    let broken = Err(LinkError::Broken("it sent more output than it may"));
    assert_eq!(link.receive(&bytes(&chunks)).map(drop), broken);
    assert_eq!(up().receive(&bytes(&[output(PROGRAM, CHUNK_BYTES_MAX + 1)])).map(drop), broken);
}

#[test]
fn a_guest_that_does_not_read_gets_no_credit() {
    let mut link = up();
    let id = link.exec(Process::default(), None).unwrap();
    assert_eq!(link.stdin(id, &[0; 2 * WINDOW_BYTES]), WINDOW_BYTES);
    link.receive(&bytes(&[output(PROGRAM, 10)])).unwrap();
    link.taken(PROGRAM, Stream::Out, 10);
    let waiting = link.outgoing().len();
    assert!(waiting >= WINDOW_BYTES, "{waiting}");
    assert!(!frames::<ToGuest>(link.outgoing()).iter().any(|frame| matches!(frame, ToGuest::Credit { .. })));
    link.sent(waiting);
    assert!(matches!(sent(&mut link)[..], [ToGuest::Credit { bytes: 10, .. }]));
}

#[test]
fn input_waits_for_its_window() {
    let mut link = up();
    let id = link.exec(Process::default(), None).unwrap();
    assert_eq!(link.stdin(id, &[0; WINDOW_BYTES]), WINDOW_BYTES);
    assert_eq!((link.stdin_room(id), link.stdin(id, b"more")), (0, 0));
    let taken = FromGuest::StdinTaken { id, bytes: 3 };
    assert_eq!(link.receive(&bytes(&[taken])), Ok(vec![LinkEvent::Writable { id }]));
    assert_eq!(link.stdin(id, b"more"), 3);
    link.stdin_end(id);
    link.stdin_end(id);
    assert_eq!(link.stdin(id, b"late"), 0);
    let ends = sent(&mut link).iter().filter(|frame| matches!(frame, ToGuest::StdinEnd { .. })).count();
    assert_eq!(ends, 1);
    assert_eq!(link.stdin(PROGRAM, b"no"), 0, "the program has none");
}

#[test]
fn numbers_are_bounded_and_free_again() {
    let mut link = up();
    let ids: Vec<_> = (0..EXECS_MAX).map(|_| link.exec(Process::default(), None).unwrap()).collect();
    assert_eq!(link.exec(Process::default(), None), None);
    let over =
        [FromGuest::Exited { id: ids[0], code: 1 }, FromGuest::Failed { id: ids[1], reason: "x\ny".repeat(999) }];
    let events = link.receive(&bytes(&over)).unwrap();
    assert_eq!(events[0], LinkEvent::Exited { id: ids[0], code: 1 });
    assert!(matches!(&events[1], LinkEvent::Failed { reason, .. } if reason.len() == 1024 && !reason.contains('\n')));
    let again = link.exec(Process::default(), None).unwrap();
    assert!(!ids.contains(&again));
    assert_eq!(
        link.receive(&bytes(&[FromGuest::Exited { id: ids[0], code: 1 }])).map(drop),
        Err(LinkError::Broken("it spoke of a process that there is not"))
    );
}

#[test]
fn the_agent_must_introduce_itself() {
    let first = |frames: &[FromGuest]| Link::new().receive(&bytes(frames)).map(drop);
    let hello = FromGuest::Hello { version: VERSION };
    assert_eq!(first(&[FromGuest::Pong { token: 1 }]), Err(LinkError::Broken("it spoke before it said that it is up")));
    assert_eq!(first(&[hello.clone(), hello]), Err(LinkError::Broken("it said twice that it is up")));
    assert_eq!(first(&[FromGuest::Hello { version: 9 }]), Err(LinkError::Version { found: 9 }));
}

#[test]
fn a_copy_begins_with_new_windows() {
    let mut link = Link::to_restored();
    link.resume(1, vec![2; 32], "copy".into(), String::new());
    assert!(matches!(&sent(&mut link)[..], [ToGuest::Resume { hostname, .. }] if hostname == "copy"));
    link.receive(&bytes(&vec![output(PROGRAM, CHUNK_BYTES_MAX); WINDOW_BYTES / CHUNK_BYTES_MAX])).unwrap();
}
