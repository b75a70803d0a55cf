//! Where container logs lie and how their lines look: written by the helper of a replica, read by `monitor`.
//!
//! `<log_dir>/<replica>/<container>.log`, each line in the CRI format `<RFC 3339 time> stdout|stderr F|P <text>`: `F` ends
//! a line of the container, `P` is a part of one longer than [`LINE_BYTES_MAX`]. A file that would outgrow
//! [`FILE_BYTES_MAX`] is renamed to `.log.<n>` (a larger `n` is newer) and a new one is begun, so reading `.log.1`,
//! `.log.2`, …, `.log` in turn gives every line in order. [`META_FILE`] beside them says whose logs they are.
//!
//! **Invariant:** a line is appended by one write, so a reader never sees the middle of one followed by another.
//! **Invariant:** nothing here does IO.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// Longest text of one log line, bytes; what is longer is cut into parts.
pub const LINE_BYTES_MAX: usize = 16 * 1024;

/// Size at which a log file is renamed and a new one begun, bytes.
pub const FILE_BYTES_MAX: u64 = 64 << 20;

/// Renamed files that are kept per container; older ones are removed.
pub const FILES_KEPT_MAX: usize = 8;

/// Name of the file that describes a replica's logs.
pub const META_FILE: &str = "meta.json";

/// Name of the file that says: nothing will be appended here any more.
pub const ENDED_MARK: &str = "ended";

/// Whose logs a folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogMeta {
    /// Resource id of the app.
    pub app: String,
    /// Resource id of the environment.
    pub environment: String,
    /// Revision name.
    pub revision: String,
    /// Replica name.
    pub replica: String,
    /// Its containers, init containers first.
    pub containers: Vec<LogContainer>,
    /// When the replica was made.
    pub created_at: Timestamp,
}

/// A container that has logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogContainer {
    /// Name in the template; the log file is `<name>.log`.
    pub name: String,
    /// Image as the user wrote it.
    pub image: String,
    /// Init container.
    pub is_init: bool,
}

/// Which output a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// The word in the file.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// One line of a log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CriLine<'a> {
    /// When its first byte was read.
    pub at: Timestamp,
    /// Where it came from.
    pub stream: LogStream,
    /// Whether the next line of the same stream goes on with it.
    pub is_partial: bool,
    /// The text, without a line end.
    pub text: &'a [u8],
}

/// Name of a container's current log file.
#[must_use]
pub fn file_name(container: &str) -> String {
    format!("{container}.log")
}

/// Parses a line without its line end; `None` when it does not have the format.
///
/// ```
/// let line = cove_runtime::logs::parse_cri_line(b"2026-01-02T03:04:05.5Z stderr F boom").unwrap();
/// assert_eq!((line.text, line.is_partial), (&b"boom"[..], false));
/// ```
#[must_use]
pub fn parse_cri_line(line: &[u8]) -> Option<CriLine<'_>> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let at = std::str::from_utf8(parts.next()?).ok()?.parse().ok()?;
    let stream = match parts.next()? {
        b"stdout" => LogStream::Stdout,
        b"stderr" => LogStream::Stderr,
        _ => return None,
    };
    let is_partial = match parts.next()? {
        b"F" => false,
        b"P" => true,
        _ => return None,
    };
    Some(CriLine { at, stream, is_partial, text: parts.next()? })
}

/// Appends a line with its line end to `out`. A line break inside `text` would make two lines: the caller splits.
pub fn write_cri_line(line: &CriLine<'_>, out: &mut Vec<u8>) {
    use std::io::Write as _;
    write!(out, "{:.9} {} {} ", line.at, line.stream.as_str(), if line.is_partial { 'P' } else { 'F' })
        .expect("writing to a Vec cannot fail");
    out.extend_from_slice(line.text);
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_survives_the_round_trip() {
        for (text, is_partial) in [("", false), (" two  spaces ", false), ("part", true), ("\u{fc}\u{1}", false)] {
            let at = "2026-11-21T22:00:00.000000001Z".parse().unwrap();
            let line = CriLine { at, stream: LogStream::Stdout, is_partial, text: text.as_bytes() };
            let mut out = Vec::new();
            write_cri_line(&line, &mut out);
            assert_eq!(out.pop(), Some(b'\n'));
            assert_eq!(parse_cri_line(&out), Some(line));
        }
    }

    #[test]
    fn what_is_no_line_is_refused() {
        for bad in
            ["", "x", "2026-11-21T22:00:00Z", "2026-11-21T22:00:00Z stdin F x", "2026-11-21T22:00:00Z stdout X x"]
        {
            assert_eq!(parse_cri_line(bad.as_bytes()), None, "{bad}");
        }
    }
}
