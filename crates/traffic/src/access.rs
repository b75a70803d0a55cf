//! What the ingress saw of one finished request: a row of the access log.
//!
//! Names and meanings follow Azure's table `ContainerAppHTTPLogs` where it has them; who shows rows makes its columns of this.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// How a request ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ending {
    /// The client was given the whole answer.
    #[default]
    Complete,
    /// The client left before it had the whole answer.
    ClientLeft,
    /// The app broke its answer off.
    AppCut,
    /// The app was silent inside its answer for too long.
    AppSilent,
}

impl Ending {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Complete, Self::ClientLeft, Self::AppCut, Self::AppSilent];

    /// As it is written in rows and metrics.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Complete => "complete",
            Self::ClientLeft => "client-left",
            Self::AppCut => "app-cut",
            Self::AppSilent => "app-silent",
        }
    }

    /// The other way; `None` for a word that is none of them.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|ending| ending.word() == word)
    }
}

/// One request, from its head to the end of its answer or of the connection that it was upgraded to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRecord {
    /// When its head had been read.
    pub started_at: Timestamp,
    /// Resource id of the app's environment; empty when no app was found.
    pub environment: String,
    /// Resource id of the app; empty when none was found.
    pub app: String,
    /// Revision name; empty when none was chosen.
    pub revision: String,
    /// The replica that answered, or the first that was tried; empty when there was none.
    pub replica: String,
    /// Its address.
    pub upstream: Option<SocketAddr>,
    /// How often it was sent to a replica; 0 when Cove answered without one.
    pub attempts: u32,
    /// Method.
    pub method: String,
    /// The host that was asked for.
    pub authority: String,
    /// The path that was asked for, with its query only if the configuration says so.
    pub path: String,
    /// `HTTP/1.0`, `HTTP/1.1`, `HTTP/2`.
    pub protocol: String,
    /// `User-Agent`.
    pub user_agent: String,
    /// `X-Forwarded-For` as the app got it; the client's address when no app did.
    pub forwarded_for: String,
    /// Who called, behind trusted proxies.
    pub client: IpAddr,
    /// Number of the connection that it came on, unique in a server's life.
    pub connection: u64,
    /// Status of the answer; 0 when the client left before there was one, as in Azure.
    pub status: u16,
    /// `x-cove-reason` when Cove answered itself; empty otherwise.
    pub reason: String,
    /// How it ended.
    pub ending: Ending,
    /// It became another protocol, such as WebSocket: times and bytes are those of the whole connection.
    pub is_upgraded: bool,
    /// Bytes of its body.
    pub received_bytes: u64,
    /// Bytes of the answer's body.
    pub sent_bytes: u64,
    /// From its head to its end, in microseconds.
    pub duration_us: u64,
    /// Until it had a replica, in microseconds: long while an app wakes. `None` when it never had one.
    pub wait_us: Option<u64>,
    /// Until the head of its answer was there, in microseconds. `None` without an answer.
    pub head_us: Option<u64>,
    /// `x-request-id`, the client's or ours.
    pub request_id: String,
    /// The trace id of `traceparent`, 32 hex digits.
    pub trace_id: String,
    /// Requests since the last row that have none, because the log was full or slow.
    pub left_out: u64,
}

impl AccessRecord {
    /// Something went wrong: a status of 400 or more, an answer that the app did not finish, or none at all.
    #[must_use]
    pub fn is_error(&self) -> bool {
        is_error(self.status, self.ending)
    }
}

/// Whether a request with this end counts as an error: see [`AccessRecord::is_error`].
#[must_use]
pub fn is_error(status: u16, ending: Ending) -> bool {
    status >= 400 || status == 0 || matches!(ending, Ending::AppCut | Ending::AppSilent)
}

/// Upper edges of the classes in which durations are counted, in microseconds; one more class is above the last.
pub const DURATION_EDGES_US: [u64; 14] = [
    1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000, 60_000_000,
];

/// What the ingress counted of one revision since it started: the numbers behind rate, errors and duration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RevisionTraffic {
    /// Answers by class of status, 1xx first.
    pub answers: [u64; 5],
    /// Requests whose client left before the whole answer was there.
    pub client_left: u64,
    /// Answers that the app broke off, or in which it was silent for too long.
    pub app_cut: u64,
    /// Requests by their whole duration: class `n` ends at `DURATION_EDGES_US[n]`, the last one has no end. Upgraded
    /// connections are not among them.
    pub durations: [u64; DURATION_EDGES_US.len() + 1],
    /// Sum of those durations in microseconds.
    pub duration_us_total: u64,
    /// Bytes of requests' bodies.
    pub received_bytes: u64,
    /// Bytes of answers' bodies.
    pub sent_bytes: u64,
    /// Open now, held and upgraded ones included.
    pub open: u64,
    /// Held now.
    pub held: u64,
    /// Durations of the last minutes; `None` when there was no request.
    pub recent: Option<Percentiles>,
}

/// Percentiles of durations in microseconds, each at most 3.2 % above the true one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Percentiles {
    /// How many requests they are made of.
    pub count: u64,
    /// Half of them were faster.
    pub p50_us: u64,
    /// 95 of 100 were faster.
    pub p95_us: u64,
    /// 99 of 100 were faster.
    pub p99_us: u64,
    /// The slowest.
    pub max_us: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endings_are_written_and_read() {
        for ending in Ending::ALL {
            assert_eq!(Ending::parse(ending.word()), Some(ending));
        }
        assert_eq!(Ending::parse("done"), None);
    }

    #[test]
    fn what_counts_as_an_error() {
        for (status, ending, expected) in [
            (200, Ending::Complete, false),
            (302, Ending::Complete, false),
            (200, Ending::ClientLeft, false),
            (404, Ending::Complete, true),
            (200, Ending::AppCut, true),
            (200, Ending::AppSilent, true),
            (0, Ending::ClientLeft, true),
        ] {
            assert_eq!(is_error(status, ending), expected, "{status} {ending:?}");
        }
    }
}
