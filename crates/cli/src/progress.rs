//! What a long wait looks like: on a terminal one line with the elapsed time and the newest system event; warnings of
//! the platform, such as a registry that does not answer, in any case.
//!
//! **Invariant:** nothing goes to stdout.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{client::Client, text};

/// Waits shorter than this show nothing.
const QUIET: Duration = Duration::from_millis(400);
/// Time between two looks at the events.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Characters of the line.
const WIDTH: usize = 78;

/// A wait.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    client: &'a Client,
    since: Instant,
    /// Events up to here were seen.
    seen: Timestamp,
    looked_at: Option<Instant>,
    newest: Option<String>,
    /// Where events are read; `None`: not an app.
    events: Option<String>,
    is_shown: bool,
}

impl<'a> Progress<'a> {
    /// A wait for an operation on the resource at `path`.
    pub(crate) fn start(client: &'a Client, path: &str) -> Self {
        let events = path.contains("/containerApps/").then(|| {
            let path = path.replace("/providers/Microsoft.App", "");
            let app = path.split('/').take(7).collect::<Vec<_>>().join("/");
            format!("{app}/eventstream?follow=false&tailLines=50&output=json")
        });
        Self {
            client,
            since: Instant::now(),
            seen: Timestamp::now(),
            looked_at: None,
            newest: None,
            events,
            is_shown: text::shows_progress(),
        }
    }

    /// So many percent of the images are here, as the operation says.
    pub(crate) fn pulled(&mut self, percent: Option<u64>) {
        if let Some(percent) = percent {
            self.newest = Some(format!("pulling images: {percent} %"));
        }
    }

    /// Looks at the events and writes the line anew.
    pub(crate) async fn show(&mut self) {
        let elapsed = self.since.elapsed();
        if elapsed < QUIET {
            return;
        }
        if self.looked_at.is_none_or(|at| at.elapsed() >= LOOK_EVERY) {
            self.looked_at = Some(Instant::now());
            self.look().await;
        }
        if self.is_shown {
            let line = format!("{:>4}s  {}", elapsed.as_secs(), self.newest.as_deref().unwrap_or("working"));
            let line: String = line.chars().take(WIDTH).collect();
            let mut stderr = std::io::stderr().lock();
            let _closed = write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush());
        }
    }

    /// Reads the events since the last look. What cannot be read is not worth an error here.
    async fn look(&mut self) {
        let Some(path) = &self.events else { return };
        let Ok(response) = self.client.stream(path).await else { return };
        let Ok(text) = response.text().await else { return };
        for line in text.lines() {
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            let Some(at) = event["TimeStamp"].as_str().and_then(|at| at.parse::<Timestamp>().ok()) else { continue };
            if at <= self.seen {
                continue;
            }
            self.seen = at;
            let field = |name: &str| event[name].as_str().unwrap_or_default();
            let said = format!("{}: {}", field("Reason"), field("Msg"));
            if field("Type") == "Warning" {
                self.clear();
                text::note(&format!("warning: {said}"));
            }
            self.newest = Some(said);
        }
    }

    fn clear(&self) {
        if self.is_shown {
            let mut stderr = std::io::stderr().lock();
            let _closed = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}
