//! The access log: which finished requests get a row, and the way of rows to their reader.
//!
//! A request never waits for its row. Rows of one second have a bound, and so has the queue to the reader; what has no row for
//! that reason is counted, and the next row says how many there were.
//!
//! **Invariant:** without a reader nothing is kept and nothing is copied.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use cove_model::AccessLog as Which;
use cove_traffic::{AccessRecord, Ending, is_error};
use tokio::sync::mpsc;

/// Rows that may wait for the reader.
const QUEUED_MAX: usize = 4096;
/// The golden ratio of the counter's range: any share of its multiples is even, however few are looked at.
const SAMPLE_STEP: u32 = 0x9e37_79b9;

/// `[logs]` of the server's configuration, as far as rows of requests are made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AccessLogConfig {
    /// Which requests get a row where their app does not say it. Default all.
    pub which: Which,
    /// Share of requests without an error that get a row, in percent, 0..=100. Default 100.
    pub sample_percent: u8,
    /// Rows of one second. Default 500; what goes beyond it is counted only.
    pub rows_per_second_max: u32,
    /// Whether paths are kept with their query, which may hold secrets. Default no.
    pub has_query: bool,
}

impl Default for AccessLogConfig {
    fn default() -> Self {
        Self { which: Which::All, sample_percent: 100, rows_per_second_max: 500, has_query: false }
    }
}

/// The way to the reader.
#[derive(Debug)]
pub(crate) struct AccessLog {
    pub(crate) config: AccessLogConfig,
    rows: OnceLock<mpsc::Sender<AccessRecord>>,
    /// A second in the upper half, its rows so far in the lower.
    window: AtomicU64,
    sampled: AtomicU32,
    /// Since the last row.
    left_out: AtomicU64,
    left_out_total: AtomicU64,
}

impl AccessLog {
    pub(crate) fn new(config: AccessLogConfig) -> Self {
        Self {
            config,
            rows: OnceLock::new(),
            window: AtomicU64::new(0),
            sampled: AtomicU32::new(0),
            left_out: AtomicU64::new(0),
            left_out_total: AtomicU64::new(0),
        }
    }

    /// The rows from now on; `None` when somebody has them already.
    pub(crate) fn reader(&self) -> Option<mpsc::Receiver<AccessRecord>> {
        let (sender, reader) = mpsc::channel(QUEUED_MAX);
        self.rows.set(sender).is_ok().then_some(reader)
    }

    /// Somebody reads rows.
    pub(crate) fn is_read(&self) -> bool {
        self.rows.get().is_some()
    }

    /// Requests that have no row because there were too many.
    pub(crate) fn left_out_total(&self) -> u64 {
        self.left_out_total.load(Ordering::Relaxed)
    }

    /// Whether a request that ended like this in second `now_secs` gets a row; `its` is what the app wishes.
    pub(crate) fn wants(&self, its: Option<Which>, (status, ending): (u16, Ending), now_secs: u64) -> bool {
        let is_wanted = || match its.unwrap_or(self.config.which) {
            Which::All => is_error(status, ending) || self.is_sampled(),
            Which::Errors => is_error(status, ending),
            Which::Off => false,
        };
        if !self.is_read() || !is_wanted() {
            return false;
        }
        let has_room = self.has_room(now_secs);
        if !has_room {
            self.leave_out(1);
        }
        has_room
    }

    /// Hands a row over, or counts it.
    pub(crate) fn keep(&self, mut record: AccessRecord) {
        let Some(rows) = self.rows.get() else { return };
        record.left_out = self.left_out.swap(0, Ordering::Relaxed);
        if let Err(error) = rows.try_send(record) {
            let (mpsc::error::TrySendError::Full(record) | mpsc::error::TrySendError::Closed(record)) = error;
            self.left_out.fetch_add(record.left_out, Ordering::Relaxed);
            self.leave_out(1);
        }
    }

    fn leave_out(&self, count: u64) {
        self.left_out.fetch_add(count, Ordering::Relaxed);
        self.left_out_total.fetch_add(count, Ordering::Relaxed);
    }

    fn is_sampled(&self) -> bool {
        let percent = u64::from(self.config.sample_percent);
        percent >= 100 || (u64::from(self.sampled.fetch_add(SAMPLE_STEP, Ordering::Relaxed)) * 100) >> 32 < percent
    }

    /// Counts a row into its second, if that has room.
    fn has_room(&self, now_secs: u64) -> bool {
        let max = u64::from(self.config.rows_per_second_max);
        let now = now_secs & u64::from(u32::MAX);
        let take = |window: u64| match (window >> 32, window & u64::from(u32::MAX)) {
            // a thread that read the clock before the second changed counts into the new one
            (second, rows) if second >= now => (rows < max).then(|| window + 1),
            _ => (max > 0).then_some(now << 32 | 1),
        };
        self.window.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok()
    }
}

/// The beginning of a text from outside, at most `bytes_max` long.
pub(crate) fn cut(text: &[u8], bytes_max: usize) -> String {
    let text = String::from_utf8_lossy(&text[..text.len().min(bytes_max)]);
    // half a character at the cut became a replacement mark
    text.trim_end_matches(char::REPLACEMENT_CHARACTER).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const DONE: (u16, Ending) = (200, Ending::Complete);
    const FAILED: (u16, Ending) = (502, Ending::Complete);

    fn log(config: AccessLogConfig) -> (AccessLog, mpsc::Receiver<AccessRecord>) {
        let log = AccessLog::new(config);
        let reader = log.reader().unwrap();
        (log, reader)
    }

    #[test]
    fn who_gets_a_row() {
        let unread = AccessLog::new(AccessLogConfig::default());
        assert!(!unread.wants(None, FAILED, 1));
        for (server, app, done, failed) in [
            (Which::All, None, true, true),
            (Which::Errors, None, false, true),
            (Which::Off, None, false, false),
            (Which::Off, Some(Which::All), true, true),
            (Which::All, Some(Which::Errors), false, true),
            (Which::All, Some(Which::Off), false, false),
        ] {
            let (log, _reader) = log(AccessLogConfig { which: server, ..AccessLogConfig::default() });
            assert_eq!((log.wants(app, DONE, 1), log.wants(app, FAILED, 1)), (done, failed), "{server:?} {app:?}");
            assert!(log.reader().is_none(), "there is one reader");
            assert_eq!(log.left_out_total(), 0, "what nobody wants is not left out");
        }
    }

    #[test]
    fn a_sample_is_even_and_leaves_no_error_out() {
        let config =
            AccessLogConfig { sample_percent: 20, rows_per_second_max: u32::MAX, ..AccessLogConfig::default() };
        let (log, _reader) = log(config);
        let kept = (0..1000).filter(|_| log.wants(None, DONE, 1)).count();
        assert!((198..=202).contains(&kept), "{kept}");
        assert!((0..100).all(|_| log.wants(None, FAILED, 1)));
    }

    #[test]
    fn rows_of_a_second_are_bounded_and_the_rest_is_counted() {
        let (log, _reader) = log(AccessLogConfig { rows_per_second_max: 3, ..AccessLogConfig::default() });
        let kept = |second| (0..10).filter(|_| log.wants(None, DONE, second)).count();
        assert_eq!((kept(7), kept(8), kept(7)), (3, 3, 0), "a late thread takes no room of a second that is over");
        assert_eq!(log.left_out_total(), 24);
        let (none, _reader) = self::log(AccessLogConfig { rows_per_second_max: 0, ..AccessLogConfig::default() });
        assert!(!none.wants(None, FAILED, 1));
    }

    #[test]
    fn texts_are_cut_between_characters() {
        for (text, max, expected) in [("path", 10, "path"), ("path", 2, "pa"), ("aé", 2, "a"), ("", 2, "")] {
            assert_eq!(cut(text.as_bytes(), max), expected);
        }
    }
}
