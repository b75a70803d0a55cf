//! gRPC calls: one message there, one or more back, and a status in the trailers.

use bytes::{BufMut as _, Bytes, BytesMut};
use http::HeaderMap;

use crate::{
    http2::Http2,
    loss::{Answer, Failure, LossKind},
    plan::Content,
    run::Run,
};

/// Longest message in bytes.
const MESSAGE_MAX: usize = 64 << 20;

/// The call's message with its prefix.
pub(crate) fn framed(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(message.len() + 5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    bytes.put_slice(message);
    bytes.freeze()
}

/// Makes a call; its messages are checked as they come.
pub(crate) async fn call(client: &Http2, run: &Run) -> Result<Answer, Failure> {
    let mut messages = Messages { content: run.plan.content, sent: &run.plan.body, buffer: BytesMut::new(), count: 0 };
    let heads = client.exchange(run, run.grpc_message.clone(), &mut |bytes| messages.take(bytes)).await?;
    match heads.answer.status {
        200 => messages.end(&heads.head, &heads.trailers, run.plan.messages)?,
        status => return Err(Failure::status(status, format!("answered {status} without gRPC"))),
    }
    Ok(Answer { messages: messages.count, ..heads.answer })
}

struct Messages<'a> {
    content: Content,
    sent: &'a [u8],
    buffer: BytesMut,
    count: u64,
}

impl Messages<'_> {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.buffer.extend_from_slice(bytes);
        while self.buffer.len() >= 5 {
            let length = u32::from_be_bytes([self.buffer[1], self.buffer[2], self.buffer[3], self.buffer[4]]);
            let length = usize::try_from(length).unwrap_or(usize::MAX);
            if length > MESSAGE_MAX {
                return Err(Failure::new(LossKind::Malformed, "a message is longer than 64 MiB"));
            }
            if self.buffer.len() < length + 5 {
                return Ok(());
            }
            let whole = self.buffer.split_to(length + 5);
            self.count += 1;
            self.check(&whole[5..])?;
        }
        Ok(())
    }

    fn check(&self, message: &[u8]) -> Result<(), Failure> {
        match self.content {
            Content::Any => Ok(()),
            Content::Echo if message == self.sent => Ok(()),
            Content::Echo => {
                Err(Failure::new(LossKind::Content, format!("message {} is not what was sent", self.count)))
            }
            Content::Numbered => match number(message) {
                Some(number) if number == self.count => Ok(()),
                found => {
                    Err(Failure::new(LossKind::Content, format!("message {} has the number {found:?}", self.count)))
                }
            },
        }
    }

    /// Checks how the call ended; gRPC puts the status into the head when there is nothing else.
    fn end(&self, head: &HeaderMap, trailers: &HeaderMap, wanted: Option<u64>) -> Result<(), Failure> {
        let status = trailers.get("grpc-status").or_else(|| head.get("grpc-status"));
        match status.map(|status| status.as_bytes()) {
            Some(b"0") => {}
            Some(status) => {
                let words = trailers.get("grpc-message").or_else(|| head.get("grpc-message"));
                let words = words.and_then(|words| words.to_str().ok()).unwrap_or_default();
                let text = format!("grpc-status {} {words}", String::from_utf8_lossy(status));
                return Err(Failure::new(LossKind::Status, text.trim_end()));
            }
            None => return Err(Failure::new(LossKind::Truncated, "the call ended without a grpc-status")),
        }
        if !self.buffer.is_empty() {
            return Err(Failure::new(LossKind::Truncated, "the last message is not whole"));
        }
        match wanted {
            Some(wanted) if wanted != self.count => {
                Err(Failure::new(LossKind::Content, format!("{} messages instead of {wanted}", self.count)))
            }
            None if self.count == 0 => Err(Failure::new(LossKind::Content, "the call has no message")),
            _ => Ok(()),
        }
    }
}

/// The first field of a message, where that is a varint.
fn number(message: &[u8]) -> Option<u64> {
    let (8, rest) = message.split_first().map(|(tag, rest)| (*tag, rest))? else { return None };
    let mut value = 0;
    for (place, byte) in rest.iter().enumerate().take(9) {
        value |= u64::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_from_the_first_field() {
        assert_eq!(number(&[8, 1]), Some(1));
        assert_eq!(number(&[8, 0xac, 0x02, 16, 1]), Some(300));
        assert_eq!(number(&[16, 1]), None);
        assert_eq!(number(&[8, 0x80]), None);
        assert_eq!(number(&[]), None);
    }
}
