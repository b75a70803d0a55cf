//! The clock of a server: which one, from when on, and where a virtual one's time is kept over a restart.
//!
//! The time is kept in `clock.json` of the data directory. While a clock is moved the file runs ahead of it by up to
//! [`AHEAD`], so that it need not be written at every step.
//!
//! **Invariant:** the kept time is never before the clock's: after `kill -9` nothing that was written down lies in the
//! future.

mod mover;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, bail};
use cove_base::Clock;
use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

pub(crate) use mover::{MoveError, Mover, Parts};

/// How far the kept time may be ahead of a clock that is being moved.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// Where the server gets its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClockKind {
    /// The machine's.
    #[default]
    Real,
    /// Stands still until advanced.
    Virtual {
        /// The time at the first start of a data directory; the machine's when `None`. Later starts go on where the last
        /// one ended.
        start: Option<Timestamp>,
    },
}

/// The content of the file.
#[derive(Debug, Serialize, Deserialize)]
struct Kept {
    /// The platform's time.
    now: Timestamp,
}

/// The file that keeps a virtual clock's time.
#[derive(Debug)]
pub(crate) struct KeptTime {
    path: PathBuf,
    kept: Timestamp,
}

/// The clock of a server, and for a virtual one where its time is kept.
///
/// # Errors
/// When the file cannot be read or written, or when a data directory would go back in time.
pub(crate) fn open(kind: ClockKind, data_dir: &Path) -> anyhow::Result<(Clock, Option<KeptTime>)> {
    let path = data_dir.join("clock.json");
    let kept = match fs::read(&path) {
        Ok(bytes) => {
            let kept: Kept = serde_json::from_slice(&bytes)
                .with_context(|| format!("`{}` does not hold a time; expected {{\"now\": \"…\"}}", path.display()))?;
            Some(kept.now)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).with_context(|| format!("failed to read `{}`", path.display())),
    };
    match kind {
        ClockKind::Real => {
            if let Some(kept) = kept.filter(|kept| *kept > Timestamp::now()) {
                bail!(
                    "this data directory lived on a virtual clock until {kept}, which is yet to come; start it with `--clock virtual` or use another --data-dir"
                );
            }
            if kept.is_some() {
                fs::remove_file(&path).with_context(|| format!("failed to remove `{}`", path.display()))?;
            }
            Ok((Clock::real(), None))
        }
        ClockKind::Virtual { start } => {
            let now = kept.or(start).unwrap_or_else(Timestamp::now);
            if let (Some(kept), Some(start)) = (kept, start)
                && kept != start
            {
                tracing::info!(%kept, %start, "the virtual clock goes on where it stood; its start counts for a new data directory");
            }
            let mut file = KeptTime { path, kept: now };
            file.write(now)?;
            Ok((Clock::virtual_at(now), Some(file)))
        }
    }
}

impl KeptTime {
    /// Makes sure that the kept time is at least `now` before the clock shows it; `target` is where it goes.
    fn before_move(&mut self, now: Timestamp, target: Timestamp) -> anyhow::Result<()> {
        if now <= self.kept {
            return Ok(());
        }
        self.write(now.saturating_add(AHEAD).unwrap_or(target).min(target))
    }

    fn write(&mut self, now: Timestamp) -> anyhow::Result<()> {
        let temporary = self.path.with_extension("json.tmp");
        let text = serde_json::to_string(&Kept { now })?;
        fs::write(&temporary, text + "\n")
            .and_then(|()| fs::rename(&temporary, &self.path))
            .with_context(|| format!("failed to write `{}`", self.path.display()))?;
        self.kept = now;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_virtual_clock_goes_on_where_it_stood() {
        let dir = tempfile::tempdir().unwrap();
        let start = at("2030-01-01T00:00:00Z");
        let (clock, file) = open(ClockKind::Virtual { start: Some(start) }, dir.path()).unwrap();
        assert_eq!(clock.now(), start);
        let (noon, night) = (at("2030-01-01T12:00:00Z"), at("2030-01-02T00:00:00Z"));
        let mut file = file.unwrap();
        file.before_move(noon, night).unwrap();
        drop(file);
        let (clock, file) = open(ClockKind::Virtual { start: Some(start) }, dir.path()).unwrap();
        assert_eq!(clock.now(), at("2030-01-01T12:05:00Z"), "killed on the way: ahead, not behind");
        file.unwrap().write(night).unwrap();
        let (clock, _) = open(ClockKind::Virtual { start: None }, dir.path()).unwrap();
        assert_eq!(clock.now(), night);
        let error = open(ClockKind::Real, dir.path()).unwrap_err().to_string();
        assert!(error.contains("lived on a virtual clock until 2030-01-02T00:00:00Z"), "{error}");
    }

    #[test]
    fn a_virtual_past_may_be_left_for_the_machines_time() {
        let dir = tempfile::tempdir().unwrap();
        let start = Some(at("2020-01-01T00:00:00Z"));
        open(ClockKind::Virtual { start }, dir.path()).unwrap();
        let (clock, file) = open(ClockKind::Real, dir.path()).unwrap();
        assert!(!clock.is_virtual() && file.is_none());
        assert!(!dir.path().join("clock.json").exists());
        fs::write(dir.path().join("clock.json"), "soon").unwrap();
        let error = open(ClockKind::Real, dir.path()).unwrap_err().to_string();
        assert!(error.contains("does not hold a time"), "{error}");
    }
}
