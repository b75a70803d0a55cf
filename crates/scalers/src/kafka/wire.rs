//! Kafka's protocol as far as lag needs it: each question in one version that brokers since 0.11 and still 4.x know.
//!
//! One is also spoken in a newer version, [`OFFSET_FETCH_OF_GROUPS`], with the compact forms that Kafka has had since 2.4.
//!
//! **Invariant:** an answer that is cut, or says that it is longer than it is, is an error and never a panic.
//! **Invariant:** no question creates a topic.

use bytes::{BufMut, BytesMut};
use tokio_util::codec::LengthDelimitedCodec;

use crate::source::ReadError;

/// Bytes of one answer; a topic of 10,000 partitions needs about 1 MiB in its metadata.
const ANSWER_BYTES_MAX: usize = 4 << 20;
/// Who asks, in the brokers' logs.
const CLIENT_ID: &str = "cove";

/// Number of each question, and the version of it that is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Api {
    pub(super) name: &'static str,
    pub(super) key: i16,
    pub(super) version: i16,
}

pub(super) const LIST_OFFSETS: Api = Api { name: "ListOffsets", key: 2, version: 1 };
pub(super) const METADATA: Api = Api { name: "Metadata", key: 3, version: 4 };
pub(super) const OFFSET_FETCH: Api = Api { name: "OffsetFetch", key: 9, version: 2 };
/// Since Kafka 3.0, in the compact form.
pub(super) const OFFSET_FETCH_OF_GROUPS: Api = Api { name: "OffsetFetch", key: 9, version: 8 };
pub(super) const API_VERSIONS: Api = Api { name: "ApiVersions", key: 18, version: 0 };
pub(super) const FIND_COORDINATOR: Api = Api { name: "FindCoordinator", key: 10, version: 1 };
pub(super) const SASL_HANDSHAKE: Api = Api { name: "SaslHandshake", key: 17, version: 1 };
pub(super) const SASL_AUTHENTICATE: Api = Api { name: "SaslAuthenticate", key: 36, version: 0 };

/// Frames are a length and that many bytes.
pub(super) fn frames() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().max_frame_length(ANSWER_BYTES_MAX).new_codec()
}

/// A question, being written.
pub(super) struct Question(BytesMut);

impl Question {
    pub(super) fn new(api: Api) -> Self {
        let mut bytes = BytesMut::with_capacity(128);
        // The length is set at the end; answers come in the order of questions, so the number of all is 0.
        bytes.put_i32(0);
        bytes.put_i16(api.key);
        bytes.put_i16(api.version);
        bytes.put_i32(0);
        let mut question = Self(bytes);
        question.text(CLIENT_ID);
        question
    }

    /// In the compact form: fields with tags, of which there are none, end its header.
    pub(super) fn compact(api: Api) -> Self {
        let mut question = Self::new(api);
        question.no_tags();
        question
    }

    /// No fields with tags.
    pub(super) fn no_tags(&mut self) {
        self.compact_length(0);
    }

    /// Of a compact array or text: one more than its length, 0 = it is not there.
    pub(super) fn compact_length(&mut self, mut value: usize) {
        loop {
            let low = value.to_le_bytes()[0] & 0x7f;
            value >>= 7;
            if value == 0 {
                self.0.put_u8(low);
                return;
            }
            self.0.put_u8(low | 0x80);
        }
    }

    pub(super) fn compact_text(&mut self, text: &str) {
        self.compact_length(text.len() + 1);
        self.0.put_slice(text.as_bytes());
    }

    pub(super) fn text(&mut self, text: &str) {
        // A name from metadata is at most 64 KiB of template; what is longer no broker knows.
        let length = i16::try_from(text.len()).unwrap_or(i16::MAX);
        self.0.put_i16(length);
        self.0.put_slice(&text.as_bytes()[..usize::try_from(length).unwrap_or_default()]);
    }

    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.0.put_slice(bytes);
    }

    /// Of an array.
    pub(super) fn length(&mut self, length: usize) {
        self.0.put_i32(i32::try_from(length).unwrap_or(i32::MAX));
    }

    /// An array that is not there: all there are.
    pub(super) fn all(&mut self) {
        self.0.put_i32(-1);
    }

    pub(super) fn int8(&mut self, value: i8) {
        self.0.put_i8(value);
    }

    pub(super) fn int32(&mut self, value: i32) {
        self.0.put_i32(value);
    }

    pub(super) fn int64(&mut self, value: i64) {
        self.0.put_i64(value);
    }

    /// With its length in front.
    pub(super) fn finish(mut self) -> Vec<u8> {
        let length = i32::try_from(self.0.len() - size_of::<i32>()).unwrap_or(i32::MAX);
        self.0[..size_of::<i32>()].copy_from_slice(&length.to_be_bytes());
        self.0.to_vec()
    }
}

/// An answer, being read.
pub(super) struct Answer<'a> {
    api: Api,
    rest: &'a [u8],
}

impl<'a> Answer<'a> {
    /// Behind its header.
    pub(super) fn new(api: Api, frame: &'a [u8]) -> Result<Self, ReadError> {
        let mut answer = Self { api, rest: frame };
        match answer.int32()? {
            0 => Ok(answer),
            other => Err(ReadError::new(format!("{}: answer {other} to question 0", api.name))),
        }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let (taken, rest) = self.rest.split_first_chunk::<N>().ok_or_else(|| self.cut())?;
        self.rest = rest;
        Ok(*taken)
    }

    fn cut(&self) -> ReadError {
        ReadError::new(format!("{}: the answer ends too early", self.api.name))
    }

    pub(super) fn int16(&mut self) -> Result<i16, ReadError> {
        self.take().map(i16::from_be_bytes)
    }

    pub(super) fn int32(&mut self) -> Result<i32, ReadError> {
        self.take().map(i32::from_be_bytes)
    }

    pub(super) fn int64(&mut self) -> Result<i64, ReadError> {
        self.take().map(i64::from_be_bytes)
    }

    pub(super) fn flag(&mut self) -> Result<bool, ReadError> {
        self.take().map(|[byte]| byte != 0)
    }

    /// A text; one that is not there is empty.
    pub(super) fn text(&mut self) -> Result<String, ReadError> {
        let length = self.int16()?;
        let bytes = self.slice(length.into())?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], ReadError> {
        let length = self.int32()?;
        self.slice(length)
    }

    fn slice(&mut self, length: i32) -> Result<&'a [u8], ReadError> {
        let length = usize::try_from(length).unwrap_or(0);
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.cut())?;
        self.rest = rest;
        Ok(taken)
    }

    /// The elements of an array; one that is not there has none.
    pub(super) fn list<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        let count = usize::try_from(self.int32()?).unwrap_or(0);
        // Every element has at least one byte: an absurd count ends with the answer, and takes no memory before.
        (0..count).map(|_| one(self)).collect()
    }

    /// A length in the compact form; what is not there has none.
    fn compact_length(&mut self) -> Result<usize, ReadError> {
        let mut value = 0usize;
        for shift in (0..35).step_by(7) {
            let [byte] = self.take::<1>()?;
            value |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(value.saturating_sub(1));
            }
        }
        Err(self.cut())
    }

    pub(super) fn compact_text(&mut self) -> Result<String, ReadError> {
        let length = self.compact_length()?;
        let bytes = self.slice(i32::try_from(length).unwrap_or(i32::MAX))?;
        Ok(String::from_utf8_lossy(bytes).into_owned())
    }

    pub(super) fn compact_list<T>(
        &mut self,
        mut one: impl FnMut(&mut Self) -> Result<T, ReadError>,
    ) -> Result<Vec<T>, ReadError> {
        let count = self.compact_length()?;
        (0..count).map(|_| one(self)).collect()
    }

    /// Passes over fields with tags; a count of them is written without the one more.
    pub(super) fn tags(&mut self) -> Result<(), ReadError> {
        match self.take::<1>()? {
            [0] => Ok(()),
            _ => Err(ReadError::new(format!("{}: the answer has fields that are not known", self.api.name))),
        }
    }

    /// An error code; 0 is none.
    pub(super) fn error(&mut self) -> Result<Option<Code>, ReadError> {
        Ok(Some(Code(self.int16()?)).filter(|code| code.0 != 0))
    }
}

/// Why a broker did not do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Code(pub(super) i16);

impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self.0 {
            -1 => "UNKNOWN_SERVER_ERROR",
            3 => "UNKNOWN_TOPIC_OR_PARTITION",
            5 => "LEADER_NOT_AVAILABLE",
            6 => "NOT_LEADER_OR_FOLLOWER",
            7 => "REQUEST_TIMED_OUT",
            14 => "COORDINATOR_LOAD_IN_PROGRESS",
            15 => "COORDINATOR_NOT_AVAILABLE",
            16 => "NOT_COORDINATOR",
            17 => "INVALID_TOPIC_EXCEPTION",
            24 => "INVALID_GROUP_ID",
            29 => "TOPIC_AUTHORIZATION_FAILED",
            30 => "GROUP_AUTHORIZATION_FAILED",
            31 => "CLUSTER_AUTHORIZATION_FAILED",
            33 => "UNSUPPORTED_SASL_MECHANISM",
            34 => "ILLEGAL_SASL_STATE",
            35 => "UNSUPPORTED_VERSION",
            58 => "SASL_AUTHENTICATION_FAILED",
            69 => "GROUP_ID_NOT_FOUND",
            72 => "LISTENER_NOT_FOUND",
            other => return write!(f, "error {other}"),
        };
        f.write_str(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_has_its_length_in_front() {
        let mut question = Question::new(FIND_COORDINATOR);
        question.text("group");
        question.int8(0);
        let bytes = question.finish();
        assert_eq!(bytes[..4], (i32::try_from(bytes.len()).unwrap() - 4).to_be_bytes());
        assert_eq!(bytes[4..], *b"\0\x0a\0\x01\0\0\0\0\0\x04cove\0\x05group\0");
    }

    #[test]
    fn an_answer_that_is_cut_is_an_error() {
        let whole = [0, 0, 0, 0, 0, 0, 0, 1, 0, 2, b'a', b'b'];
        let read = |bytes: &[u8]| Answer::new(METADATA, bytes)?.list(Answer::text);
        assert_eq!(read(&whole), Ok(vec!["ab".to_owned()]));
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), Err(ReadError::new("Metadata: the answer ends too early")), "{end}");
        }
        assert!(read(&[0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff]).is_err());
        assert_eq!(read(&[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), Ok(Vec::new()));
        assert!(read(&[0, 0, 0, 9, 0, 0, 0, 0]).is_err(), "an answer to another question");
    }
}
