//! Traces: read from CSV, or made again from recorded readings of http and tcp rules.
//!
//! **Invariant:** a line that cannot be read is an error with its number, never left out.

use super::{Recorded, Request};
use crate::config::ScaleConfig;
use crate::reading::Reading;

/// Most requests of a trace.
pub const TRACE_MAX: usize = 5_000_000;
/// Shortest and longest request that is made again, in milliseconds.
const DURATION_MS: (u64, u64) = (20, 240_000);
/// Instants whose open requests are averaged for the duration of their requests.
const AVERAGED: usize = 20;

/// Why a trace cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A line.
    #[error(
        "line {line}: `{text}` is not `arrival,duration`: write seconds, or a time and seconds, such as `12.5,0.3`"
    )]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
    /// Too many of them.
    #[error("the trace has more than {TRACE_MAX} requests; cut it")]
    TooLong,
    /// None.
    #[error("the trace has no request")]
    Empty,
}

/// Reads `arrival,duration` in seconds, one request a line; arrivals may be times (`2026-05-01T12:00:00Z`). A first line
/// of words and lines that begin with `#` are left out. The trace begins at its first arrival, sorted.
pub fn parse_csv(text: &str) -> Result<Vec<Request>, TraceError> {
    let mut found: Vec<(f64, u64)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        let is_header = found.is_empty() && line.starts_with(|c: char| c.is_ascii_alphabetic());
        if line.is_empty() || line.starts_with('#') || is_header {
            continue;
        }
        let wrong = || TraceError::Line { line: index + 1, text: line.chars().take(80).collect() };
        let (arrival, duration) = line.split_once(',').ok_or_else(wrong)?;
        let duration = duration.split(',').next().unwrap_or(duration);
        let at = seconds_of(arrival.trim()).ok_or_else(wrong)?;
        let duration: f64 = duration.trim().parse().ok().filter(|d| (0.0..=1e7).contains(d)).ok_or_else(wrong)?;
        if found.len() >= TRACE_MAX {
            return Err(TraceError::TooLong);
        }
        found.push((at, crate::number::milli(duration)));
    }
    let first = found.iter().map(|(at, _)| *at).fold(f64::INFINITY, f64::min);
    if found.is_empty() {
        return Err(TraceError::Empty);
    }
    let mut trace: Vec<Request> = found
        .iter()
        .map(|(at, duration_ms)| Request { at_ms: crate::number::milli(at - first), duration_ms: *duration_ms })
        .collect();
    trace.sort_by_key(|request| request.at_ms);
    Ok(trace)
}

/// Seconds as given, or of 1970 for a time.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of this century are exact in a float")]
fn seconds_of(text: &str) -> Option<f64> {
    let number = text.parse::<f64>().ok().filter(|at| at.is_finite() && at.abs() < 1e12);
    number.or_else(|| Some(text.parse::<jiff::Timestamp>().ok()?.as_millisecond() as f64 / 1000.0))
}

/// Requests as they may have been: the arrivals that http and tcp rules of the mode `aca` read, spread over the time
/// before each reading, each as long as the open requests say by Little's law. `None` where no rule read arrivals.
pub fn rebuild(config: &ScaleConfig, recorded: &[Recorded]) -> Option<Vec<Request>> {
    let rule = config.rules.iter().find(|rule| rule.kind.is_load())?;
    let first = recorded.first()?.at;
    let window_ms = u64::try_from(config.settings.load_sampling.as_millis()).ok()?.max(1);
    let arrivals: Vec<(u64, u64, u64)> = recorded
        .iter()
        .filter_map(|tick| {
            let (_, reading) = tick.readings.iter().find(|(name, _)| *name == rule.name)?;
            let Reading::Value { milli, .. } = reading else { return None };
            let at_ms = u64::try_from(tick.at.duration_since(first).as_millis()).ok()?;
            let count = (u128::from(*milli) * u128::from(window_ms) + 500_000) / 1_000_000;
            Some((at_ms, u64::try_from(count).ok()?, tick.in_flight))
        })
        .collect();
    let mut trace = Vec::new();
    for (index, (at_ms, count, _)) in arrivals.iter().enumerate() {
        let near = &arrivals[index.saturating_sub(AVERAGED / 2)..(index + AVERAGED / 2).min(arrivals.len())];
        let open: u64 = near.iter().map(|(_, _, open)| open).sum();
        let arrived: u64 = near.iter().map(|(_, count, _)| count).sum();
        let duration_ms = (open * window_ms).checked_div(arrived).unwrap_or(0).clamp(DURATION_MS.0, DURATION_MS.1);
        for number in 0..*count {
            if trace.len() >= TRACE_MAX {
                return None;
            }
            let into_ms = (number * 2 + 1) * window_ms / (count * 2);
            trace.push(Request { at_ms: (at_ms + into_ms).saturating_sub(window_ms), duration_ms });
        }
    }
    trace.sort_by_key(|request| request.at_ms);
    Some(trace)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Rule, RuleKind, ScaleSettings};

    #[test]
    fn csv_takes_seconds_and_times() {
        let trace = parse_csv("arrival,duration\n# a remark\n12.5,0.3\n10, 2 ,ignored\n").unwrap();
        assert_eq!(trace, [Request { at_ms: 0, duration_ms: 2000 }, Request { at_ms: 2500, duration_ms: 300 }]);
        let trace = parse_csv("2026-05-01T12:00:00Z,1\n2026-05-01T12:00:01.5Z,1\n").unwrap();
        assert_eq!(trace[1].at_ms, 1500);
        assert_eq!(parse_csv("arrival,duration\n"), Err(TraceError::Empty));
        for wrong in ["1;2", "1,x", "1,-2", "x,1\ny,1", "NaN,1", "1,1\nyesterday,1"] {
            assert!(matches!(parse_csv(wrong), Err(TraceError::Line { .. } | TraceError::Empty)), "{wrong}");
        }
    }

    #[test]
    fn arrivals_are_made_again_from_their_rate() {
        let config = ScaleConfig {
            min_replicas: 0,
            max_replicas: 10,
            rules: vec![Rule::new("h", RuleKind::Http, 10.0)],
            settings: ScaleSettings::default(),
            fallback: None,
        };
        let tick = |index: i64| Recorded {
            at: jiff::Timestamp::from_second(1000 + 15 * index).unwrap(),
            readings: vec![("h".into(), Reading::Value { milli: 2000, active: true })],
            in_flight: 1,
            ..Recorded::default()
        };
        let trace = rebuild(&config, &(0..40).map(tick).collect::<Vec<_>>()).unwrap();
        assert_eq!(trace.len(), 40 * 30);
        assert!(trace.iter().all(|request| request.duration_ms == 500), "one open at two a second");
    }
}
