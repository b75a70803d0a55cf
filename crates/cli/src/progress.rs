//! What a long wait looks like: one line on stderr with the elapsed time and the newest system event.
//!
//! **Invariant:** where stderr is not a terminal nothing is written.

use std::{
    io::Write as _,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{client::Client, text};

/// Waits shorter than this show nothing.
const QUIET: Duration = Duration::from_millis(400);
/// Characters of the line.
const WIDTH: usize = 78;

/// A wait.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    client: &'a Client,
    since: Instant,
    started_at: jiff::Timestamp,
    /// Where the newest event is read; `None`: not an app.
    events: Option<String>,
    is_shown: bool,
}

impl<'a> Progress<'a> {
    /// A wait for an operation on the resource at `path`.
    pub(crate) fn start(client: &'a Client, path: &str) -> Self {
        let is_shown = text::shows_progress();
        let events = path.contains("/containerApps/").then(|| {
            let path = path.replace("/providers/Microsoft.App", "");
            let app = path.split('/').take(7).collect::<Vec<_>>().join("/");
            format!("{app}/eventstream?follow=false&tailLines=1&output=json")
        });
        Self { client, since: Instant::now(), started_at: jiff::Timestamp::now(), events, is_shown }
    }

    /// Writes the line anew.
    pub(crate) async fn show(&self) {
        let elapsed = self.since.elapsed();
        if !self.is_shown || elapsed < QUIET {
            return;
        }
        let newest = match &self.events {
            Some(path) => self.newest(path).await,
            None => None,
        };
        let line = format!("{:>4}s  {}", elapsed.as_secs(), newest.as_deref().unwrap_or("working"));
        let line: String = line.chars().take(WIDTH).collect();
        let mut stderr = std::io::stderr().lock();
        let _closed = write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush());
    }

    /// The newest event since the wait began. What cannot be read is not worth an error here.
    async fn newest(&self, path: &str) -> Option<String> {
        let response = self.client.stream(path).await.ok()?;
        let text = response.text().await.ok()?;
        let event: Value = serde_json::from_str(text.lines().last()?).ok()?;
        let at: jiff::Timestamp = event["TimeStamp"].as_str()?.parse().ok()?;
        let reason = event["Reason"].as_str()?;
        (at >= self.started_at).then(|| format!("{reason}: {}", event["Msg"].as_str().unwrap_or_default()))
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if self.is_shown {
            let mut stderr = std::io::stderr().lock();
            let _closed = write!(stderr, "\r\x1b[K").and_then(|()| stderr.flush());
        }
    }
}
