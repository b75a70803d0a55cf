//! The metric of http and tcp rules: arrivals of the last 15 s divided by 15.
//!
//! The seeds define it as a rate, so requests longer than a second count less than one replica's slot; that is Azure's
//! documented behaviour. Open requests are activity, never part of the value.
//!
//! **Invariant:** the window is `[t - 15, t)`: an arrival belongs to exactly one of two adjoining windows.

use jiff::{SignedDuration, Timestamp};

use crate::reading::Reading;

/// The reading from arrivals in the window: `arrivals / window`, active if any arrived or any is open.
pub fn load_reading(arrivals: u64, open: u64, window: SignedDuration) -> Reading {
    let window_ms = u128::try_from(window.as_millis()).unwrap_or(0).max(1);
    // arrivals per second in thousandths = arrivals * 1000 / (ms / 1000), rounded half up.
    let milli = (u128::from(arrivals) * 1_000_000 + window_ms / 2) / window_ms;
    Reading::Value { milli: u64::try_from(milli).unwrap_or(u64::MAX), active: arrivals > 0 || open > 0 }
}

/// Arrivals of `[now - window, now)` out of `(instant, count)` pairs.
pub fn arrivals_in_window(
    arrivals: impl IntoIterator<Item = (Timestamp, u64)>,
    now: Timestamp,
    window: SignedDuration,
) -> u64 {
    arrivals
        .into_iter()
        .filter(|(at, _)| *at < now && now.duration_since(*at) <= window)
        .fold(0, |sum, (_, count)| sum.saturating_add(count))
}
