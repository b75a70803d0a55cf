//! What code that nobody vouches for may reach, when it may not reach all of the internet: a list of names and ranges.
//!
//! **Invariant:** a name is lower case and without a final dot; a range has no bits behind its prefix.

use std::{fmt, net::Ipv4Addr, sync::Arc};

use serde::{Deserialize, Serialize};

/// Rules of one pool at most.
pub const EGRESS_RULES_MAX: usize = 64;

/// Ports of one rule at most.
pub const EGRESS_PORTS_MAX: usize = 16;

/// The rule of [`EgressHost::new`] in words.
pub const EGRESS_HOST_RULE: &str = "use a name such as `pypi.org`, all names below one as `*.example.org`, an IPv4 address, or a range such as `198.51.100.0/24`";

/// Something that may be reached; with any rule, nothing else may.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    /// What.
    pub host: EgressHost,
    /// TCP and UDP ports there, 1..=65535; none given = all.
    #[serde(default)]
    pub ports: Vec<u16>,
}

/// A name, all names below one, or a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum EgressHost {
    /// This name.
    Name(Arc<str>),
    /// Names that end with a dot and this one, at any depth; not the name itself.
    Below(Arc<str>),
    /// Addresses, whatever they are called.
    Range {
        /// The first one.
        address: Ipv4Addr,
        /// Bits that all of them share, 0..=32.
        prefix: u8,
    },
}

/// The text names nothing that a rule can be about.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{shown}' is not a host of an egress rule: {EGRESS_HOST_RULE}")]
pub struct InvalidEgressHost {
    /// The beginning of the text.
    pub shown: String,
}

impl EgressHost {
    /// Reads `pypi.org`, `*.example.org`, `198.51.100.7` or `198.51.100.0/24`.
    ///
    /// # Errors
    /// [`InvalidEgressHost`] with [`EGRESS_HOST_RULE`].
    pub fn new(text: &str) -> Result<Self, InvalidEgressHost> {
        let invalid = || InvalidEgressHost { shown: text.chars().take(80).collect() };
        if let Some(range) = range_of(text) {
            return range.ok_or_else(invalid);
        }
        let lower = text.to_ascii_lowercase();
        match lower.strip_prefix("*.") {
            Some(parent) if is_name(parent) => Ok(Self::Below(parent.into())),
            None if is_name(&lower) => Ok(Self::Name(lower.into())),
            _ => Err(invalid()),
        }
    }

    /// Whether a name (lower case, no final dot) is one of these.
    #[must_use]
    pub fn covers_name(&self, name: &str) -> bool {
        match self {
            Self::Name(own) => **own == *name,
            Self::Below(parent) => name
                .strip_suffix(&**parent)
                .and_then(|rest| rest.strip_suffix('.'))
                .is_some_and(|rest| !rest.is_empty()),
            Self::Range { .. } => false,
        }
    }
}

/// `None`: it has not the form of an address; `Some(None)`: it has, and is none.
fn range_of(text: &str) -> Option<Option<EgressHost>> {
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    if prefix.is_none() && !address.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return None;
    }
    let read = || {
        let address: Ipv4Addr = address.parse().ok()?;
        let prefix: u8 = match prefix {
            Some(text) => text.parse().ok().filter(|prefix| *prefix <= 32)?,
            None => 32,
        };
        let behind = u32::MAX.checked_shr(u32::from(prefix)).unwrap_or(0);
        (u32::from(address) & behind == 0).then_some(EgressHost::Range { address, prefix })
    };
    Some(read())
}

/// Labels of letters, digits, `-` and `_`, as names on the internet have them; the last one is no number.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    text.len() <= 253 && text.split('.').all(is_label) && !text.rsplit('.').next().is_none_or(is_number)
}

impl fmt::Display for EgressHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Below(parent) => write!(f, "*.{parent}"),
            Self::Range { address, prefix: 32 } => write!(f, "{address}"),
            Self::Range { address, prefix } => write!(f, "{address}/{prefix}"),
        }
    }
}

impl TryFrom<String> for EgressHost {
    type Error = InvalidEgressHost;

    fn try_from(text: String) -> Result<Self, InvalidEgressHost> {
        Self::new(&text)
    }
}

impl From<EgressHost> for String {
    fn from(host: EgressHost) -> Self {
        host.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_have_a_form() {
        for good in ["pypi.org", "*.example.org", "_acme.x-1.org", "198.51.100.7", "10.0.0.0/8", "0.0.0.0/0"] {
            assert_eq!(EgressHost::new(good).unwrap().to_string(), good);
        }
        assert_eq!(EgressHost::new("PyPI.org").unwrap().to_string(), "pypi.org");
        assert_eq!(EgressHost::new("1.2.3.4/32").unwrap().to_string(), "1.2.3.4");
        for bad in [
            "",
            "*",
            "*.",
            ".",
            "a..b",
            "pypi.org.",
            "-a.org",
            "a b.org",
            "exämple.org",
            "*.*.org",
            "a.*.org",
            "http://a.org",
            "a.org:443",
            "a.org/24",
            "1.2.3",
            "1.2.3.4.5",
            "1.2.3.4/33",
            "10.0.0.1/8",
            "::1",
            "300.1.1.1",
            "a.1",
            &format!("{}.org", "a".repeat(64)),
            &"a.".repeat(200),
        ] {
            assert!(EgressHost::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_star_stands_for_what_is_below() {
        let below = EgressHost::new("*.example.org").unwrap();
        for (name, covered) in [
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("example.org", false),
            (".example.org", false),
            ("badexample.org", false),
            ("example.org.evil.net", false),
        ] {
            assert_eq!(below.covers_name(name), covered, "{name}");
        }
        let name = EgressHost::new("pypi.org").unwrap();
        assert!(name.covers_name("pypi.org") && !name.covers_name("a.pypi.org") && !name.covers_name("xpypi.org"));
    }
}
