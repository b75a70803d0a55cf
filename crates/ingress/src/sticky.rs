//! Session affinity: a cookie that leads a client back to its replica, and to its revision when there are several.
//!
//! The cookie holds hashes of two names, nothing secret; a client that changes it reaches another replica of the same app, as
//! it could without.
//!
//! **Invariant:** a cookie never leads to a revision without a share of the requests, nor to a replica that takes none.

use cove_model::{ReplicaName, RevisionKey};
use http::{HeaderMap, HeaderValue, header};

/// Azure's name for it.
const COOKIE: &str = "acaAffinity";

/// Where a client was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Affinity {
    /// [`of_revision`].
    pub(crate) revision: u64,
    /// [`of_replica`].
    pub(crate) replica: u64,
}

/// What a cookie holds of a revision.
pub(crate) fn of_revision(revision: &RevisionKey) -> u64 {
    hash(revision.name.as_str())
}

/// What a cookie holds of a replica.
pub(crate) fn of_replica(replica: &ReplicaName) -> u64 {
    hash(replica.as_str())
}

/// FNV-1a: the same in every server, so that cookies outlive a restart.
fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}

impl Affinity {
    /// What a request's cookies say; the first one counts.
    pub(crate) fn read(headers: &HeaderMap) -> Option<Self> {
        let pairs = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
        let value = pairs.flat_map(|pairs| pairs.split(';')).find_map(|pair| {
            let (name, value) = pair.split_once('=')?;
            (name.trim() == COOKIE).then(|| value.trim().trim_matches('"'))
        })?;
        let is_hex = value.len() == 32 && value.bytes().all(|byte| byte.is_ascii_hexdigit());
        let part = |range| u64::from_str_radix(value.get(range)?, 16).ok();
        if !is_hex {
            return None;
        }
        Some(Self { revision: part(0..16)?, replica: part(16..32)? })
    }

    /// The field that a client keeps until its browser is closed.
    pub(crate) fn set_cookie(self) -> HeaderValue {
        let text = format!("{COOKIE}=\"{:016x}{:016x}\"; Path=/; HttpOnly", self.revision, self.replica);
        HeaderValue::try_from(text).expect("hex digits and fixed text are a header value")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_comes_back_as_it_was_sent() {
        let affinity = Affinity { revision: 7, replica: u64::MAX };
        let sent = affinity.set_cookie();
        let pair = sent.to_str().unwrap().split(';').next().unwrap().to_owned();
        let read = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::COOKIE, HeaderValue::try_from(text).unwrap());
            Affinity::read(&headers)
        };
        assert_eq!(read(&pair), Some(affinity));
        assert_eq!(read(&format!("a=b; {pair}; c=d")), Some(affinity));
        for bad in ["acaAffinity=", "acaAffinity=zz", "acaAffinity=+000000000000007+000000000000007", "other=1"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
