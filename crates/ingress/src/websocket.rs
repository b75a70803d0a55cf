//! Follows WebSocket frames just far enough to know where one ends, so that a close frame of ours never lands inside another.
//!
//! **Invariant:** payloads are never read, only counted.

/// `1001 going away`, unmasked as a server sends it.
pub(crate) const GOING_AWAY: [u8; 4] = [0x88, 0x02, 0x03, 0xe9];

const OPCODE_CLOSE: u8 = 0x8;

/// One direction of a WebSocket.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    /// Bytes of a frame's head so far: 2 to 14.
    head: Vec<u8>,
    payload_left: u64,
    saw_close: bool,
}

impl Frames {
    /// Between two frames.
    pub(crate) fn is_at_boundary(&self) -> bool {
        self.head.is_empty() && self.payload_left == 0
    }

    /// A close frame began: its sender ends the conversation itself.
    pub(crate) fn saw_close(&self) -> bool {
        self.saw_close
    }

    /// Takes the next bytes; gives the place behind the last frame that ended in them.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut boundary = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.payload_left > 0 {
                let left = usize::try_from(self.payload_left).unwrap_or(usize::MAX);
                let step = left.min(bytes.len() - at);
                at += step;
                self.payload_left -= step as u64;
            } else {
                self.head.push(bytes[at]);
                at += 1;
                let Some(payload) = self.payload_of_whole_head() else { continue };
                self.saw_close |= self.head[0] & 0x0f == OPCODE_CLOSE;
                self.payload_left = payload;
                self.head.clear();
            }
            if self.is_at_boundary() {
                boundary = Some(at);
            }
        }
        boundary
    }

    /// The payload's length once the head is whole (RFC 6455, 5.2).
    fn payload_of_whole_head(&self) -> Option<u64> {
        let second = *self.head.get(1)?;
        let (length_bytes, mask_bytes) = (
            match second & 0x7f {
                126 => 2,
                127 => 8,
                _ => 0,
            },
            if second & 0x80 == 0 { 0 } else { 4 },
        );
        if self.head.len() < 2 + length_bytes + mask_bytes {
            return None;
        }
        if length_bytes == 0 {
            return Some(u64::from(second & 0x7f));
        }
        Some(self.head[2..2 + length_bytes].iter().fold(0, |length, &byte| length << 8 | u64::from(byte)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_found_however_bytes_arrive() {
        let mut stream = Vec::new();
        let mut ends = vec![0];
        for (payload, masked) in [(0_usize, false), (5, false), (125, true), (126, false), (70_000, true), (1, false)] {
            stream.push(0x82);
            let mask = if masked { 0x80 } else { 0 };
            match payload {
                0..126 => stream.push(mask | u8::try_from(payload).unwrap()),
                126..65_536 => {
                    stream.push(mask | 126);
                    stream.extend_from_slice(&u16::try_from(payload).unwrap().to_be_bytes());
                }
                _ => {
                    stream.push(mask | 127);
                    stream.extend_from_slice(&(payload as u64).to_be_bytes());
                }
            }
            stream.extend(std::iter::repeat_n(0x88, payload + if masked { 4 } else { 0 }));
            ends.push(stream.len());
        }
        for chunk in [1, 2, 3, 7, 1000, stream.len()] {
            let mut frames = Frames::default();
            let mut seen = 0;
            for piece in stream.chunks(chunk) {
                let expected = ends.iter().copied().filter(|end| (seen + 1..=seen + piece.len()).contains(end)).max();
                assert_eq!(frames.advance(piece).map(|at| at + seen), expected, "chunks of {chunk}");
                seen += piece.len();
                assert_eq!(frames.is_at_boundary(), ends.contains(&seen));
            }
            assert!(!frames.saw_close(), "payload bytes that look like a close frame are no close frame");
            frames.advance(&GOING_AWAY);
            assert!(frames.saw_close() && frames.is_at_boundary());
        }
    }
}
