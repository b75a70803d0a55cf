//! Server-sent events: which came, and whether one is missing.
//!
//! **Invariant:** a line is kept only while it is not whole, and at most [`LINE_MAX`] bytes of it.

use std::time::Instant;

use crate::loss::{Failure, LossKind};

/// Longest line in bytes.
const LINE_MAX: usize = 64 << 10;

/// One stream of events as it comes.
#[derive(Debug, Default)]
pub(crate) struct Events {
    line: Vec<u8>,
    /// Number in the last `id`.
    last: Option<u64>,
    /// Whether the event so far says anything.
    has_field: bool,
    pub(crate) count: u64,
    /// When the first event was whole.
    pub(crate) first_at: Option<Instant>,
}

impl Events {
    /// Takes the next bytes.
    pub(crate) fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let mut pieces = bytes.split(|byte| *byte == b'\n');
        let first = pieces.next().unwrap_or_default();
        self.line.extend_from_slice(first);
        for piece in pieces {
            let line = std::mem::take(&mut self.line);
            self.end_line(line.strip_suffix(b"\r").unwrap_or(&line))?;
            self.line.extend_from_slice(piece);
        }
        if self.line.len() > LINE_MAX {
            return Err(Failure::new(LossKind::Malformed, "a line of the events is longer than 64 KiB"));
        }
        Ok(())
    }

    fn end_line(&mut self, line: &[u8]) -> Result<(), Failure> {
        if line.is_empty() {
            if std::mem::take(&mut self.has_field) {
                self.count += 1;
                self.first_at.get_or_insert_with(Instant::now);
            }
            return Ok(());
        }
        // a line that begins with a colon is a comment
        self.has_field |= line[0] != b':';
        let id =
            line.strip_prefix(b"id:").and_then(|id| std::str::from_utf8(id.trim_ascii()).ok()?.parse::<u64>().ok());
        if let Some(id) = id {
            match self.last.replace(id) {
                Some(last) if last + 1 != id => {
                    return Err(Failure::new(LossKind::Content, format!("event {id} came after event {last}")));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Checks a stream that ended as it should.
    pub(crate) fn end(&self, wanted: Option<u64>) -> Result<(), Failure> {
        match wanted {
            Some(wanted) if wanted != self.count => {
                Err(Failure::new(LossKind::Content, format!("{} events instead of {wanted}", self.count)))
            }
            _ if !self.line.is_empty() || self.has_field => {
                Err(Failure::new(LossKind::Truncated, "the last event is not whole"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(stream: &str, chunk: usize) -> String {
        let mut events = Events::default();
        for piece in stream.as_bytes().chunks(chunk) {
            if let Err(failure) = events.take(piece) {
                return failure.to_string();
            }
        }
        match events.end(None) {
            Ok(()) => format!("{} events", events.count),
            Err(failure) => failure.to_string(),
        }
    }

    #[test]
    fn gaps_and_cut_events_are_seen_however_bytes_arrive() {
        for chunk in [1, 2, 3, 100] {
            assert_eq!(
                seen("id: 1\ndata: a\n\nid: 2\r\ndata: b\r\n\r\n: still here\n\ndata: c\n\n", chunk),
                "3 events"
            );
            assert_eq!(seen("id: 7\n\nid: 9\n\n", chunk), "wrong content: event 9 came after event 7");
            assert_eq!(seen("id: 1\n\nid: 2\ndata", chunk), "answer cut: the last event is not whole");
            assert_eq!(seen("id: 1\n\nid: 2\ndata: b\n", chunk), "answer cut: the last event is not whole");
        }
    }
}
