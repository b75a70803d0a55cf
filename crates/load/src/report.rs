//! What a load found, for programs (JSON) and for people (text).

use std::{collections::BTreeMap, fmt::Write as _, time::Duration};

use hdrhistogram::Histogram;
use serde::{Serialize, Serializer};

use crate::{
    loss::{LossKind, Repeat},
    plan::{Pace, Plan},
    recorder::{Counts, Record},
};

/// Percentiles in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Half were not slower.
    pub p50: f64,
    /// 90 % were not slower.
    pub p90: f64,
    /// 95 % were not slower.
    pub p95: f64,
    /// 99 % were not slower.
    pub p99: f64,
    /// 99.9 % were not slower.
    pub p999: f64,
    /// The slowest.
    pub max: f64,
    /// The mean.
    pub mean: f64,
}

/// Something that happened while the load ran.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mark {
    /// Its name.
    pub label: String,
    /// Since the load began, in seconds.
    #[serde(serialize_with = "seconds")]
    pub from: Duration,
    /// Its end.
    #[serde(serialize_with = "maybe_seconds")]
    pub to: Option<Duration>,
}

/// A stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Moment {
    /// Since the load began, in seconds.
    #[serde(serialize_with = "seconds")]
    pub at: Duration,
    /// Requests due then that were answered.
    pub answered: u64,
    /// Requests due then that were lost.
    pub lost: u64,
    /// Milliseconds.
    pub p50_ms: f64,
    /// Milliseconds.
    pub p99_ms: f64,
    /// Milliseconds.
    pub max_ms: f64,
}

/// All of it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was asked.
    pub url: String,
    /// How: `h1`, `h2`, `ws`, `sse` or `grpc`.
    pub protocol: &'static str,
    /// Requests per second of the schedule; none in a closed loop.
    pub rate: Option<f64>,
    /// Connections at most.
    pub connections_max: usize,
    /// How long it took, in seconds.
    #[serde(serialize_with = "seconds")]
    pub seconds: Duration,
    /// Sent, answered, lost, refused at first.
    #[serde(flatten)]
    pub counts: Counts,
    /// Sent and neither answered nor lost when the load was cut short.
    pub unfinished: u64,
    /// Due, but never sent: no connection was free until the end.
    pub unsent: u64,
    /// Requests that were sent again, by the reason that made it safe.
    pub repeated: BTreeMap<Repeat, u64>,
    /// Lost requests by kind.
    pub losses: BTreeMap<LossKind, u64>,
    /// The first losses in words.
    pub lost_first: Vec<String>,
    /// Answers by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Bytes of answers.
    pub bytes: u64,
    /// Messages or events inside of answers.
    pub messages: u64,
    /// Connections that were opened.
    pub connections: u64,
    /// From when a request was due (open loop) or sent (closed loop) until its answer was full; answered ones only.
    pub latency_ms: Latency,
    /// From when it was sent.
    pub service_ms: Latency,
    /// From when it was due until it was sent.
    pub wait_ms: Latency,
    /// Latency over time.
    pub timeline: Vec<Moment>,
    /// What happened meanwhile.
    pub marks: Vec<Mark>,
    /// Length of a moment of the timeline, in seconds.
    #[serde(serialize_with = "seconds")]
    pub moment: Duration,
}

fn seconds<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((value.as_secs_f64() * 1e3).round() / 1e3)
}

fn maybe_seconds<S: Serializer>(value: &Option<Duration>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => seconds(value, serializer),
        None => serializer.serialize_none(),
    }
}

#[expect(clippy::cast_precision_loss, reason = "latencies are far below 2^53 microseconds")]
fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

impl Latency {
    fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| ms(histogram.value_at_quantile(quantile).min(histogram.max()));
        Self {
            p50: at(0.5),
            p90: at(0.9),
            p95: at(0.95),
            p99: at(0.99),
            p999: at(0.999),
            max: ms(histogram.max()),
            mean: histogram.mean().round() / 1e3,
        }
    }
}

impl Report {
    pub(crate) fn new(plan: &Plan, record: &Record, passed: Duration) -> Self {
        let width = record.timeline.width();
        let moments = record.timeline.slots().iter().zip(0u32..).map(|(slot, index)| Moment {
            at: width * index,
            answered: slot.latency.len(),
            lost: slot.lost,
            p50_ms: ms(slot.latency.value_at_quantile(0.5)),
            p99_ms: ms(slot.latency.value_at_quantile(0.99)),
            max_ms: ms(slot.latency.max()),
        });
        let counts = record.counts;
        Self {
            url: plan.target.url.clone(),
            protocol: plan.protocol.name(),
            rate: match plan.pace {
                Pace::Rate { per_second, .. } => Some(per_second),
                Pace::Connections(_) => None,
            },
            connections_max: plan.connections_max(),
            seconds: passed,
            counts,
            unfinished: counts.sent.saturating_sub(counts.answered + counts.lost),
            unsent: record.unsent,
            repeated: record.repeats.clone(),
            losses: record.losses.clone(),
            lost_first: record.lost_texts.clone(),
            statuses: record.statuses.clone(),
            bytes: record.bytes,
            messages: record.messages,
            connections: record.connections,
            latency_ms: Latency::of(&record.latency),
            service_ms: Latency::of(&record.service),
            wait_ms: Latency::of(&record.wait),
            timeline: moments.collect(),
            marks: record.marks.clone(),
            moment: width,
        }
    }

    /// Answers per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a count is far below 2^53")]
    pub fn per_second(&self) -> f64 {
        self.counts.answered as f64 / self.seconds.as_secs_f64().max(1e-9)
    }

    /// For people, without the picture.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let pace = match self.rate {
            Some(rate) => format!("{rate} per second on up to {} connections", self.connections_max),
            None => format!("closed loop on {} connections", self.connections_max),
        };
        let Counts { sent, answered, lost, refused } = self.counts;
        let mut line = |line: String| {
            let _infallible = writeln!(text, "{line}");
        };
        line(format!("{} {}, {pace}, {:.1} s", self.protocol, self.url, self.seconds.as_secs_f64()));
        line(String::new());
        line(format!("sent      {sent:>10}"));
        line(format!("answered  {answered:>10}   {:.1} per second, {}", self.per_second(), self.statuses()));
        line(format!("lost      {lost:>10}"));
        for (kind, count) in &self.losses {
            line(format!("          {count:>10}   {}", kind.words()));
        }
        let others = [
            (refused, "met a refused connection first, and were answered or lost later"),
            (self.unfinished, "open when the load was cut short"),
            (self.unsent, "due, but no connection was free until the end: the server or the tool was too slow"),
        ];
        let repeated = self.repeated.iter().map(|(reason, count)| (*count, reason.words()));
        for (count, words) in others.into_iter().filter(|(count, _)| *count > 0) {
            line(format!("          {count:>10}   {words}"));
        }
        for (count, words) in repeated {
            line(format!("          {count:>10}   sent again: {words}"));
        }
        if self.messages > 0 {
            line(format!("messages  {:>10}   inside of the answers", self.messages));
        }
        line(format!("received  {:>10}   bytes of bodies, on {} connections", self.bytes, self.connections));
        line(String::new());
        line("milliseconds        p50       p90       p95       p99     p99.9       max".to_owned());
        let mut rows = vec![("latency", self.latency_ms)];
        if self.rate.is_some() {
            rows.extend([("once sent", self.service_ms), ("to be sent", self.wait_ms)]);
        }
        for (name, Latency { p50, p90, p95, p99, p999, max, .. }) in rows {
            line(format!("{name:<12} {p50:>10.3}{p90:>10.3}{p95:>10.3}{p99:>10.3}{p999:>10.3}{max:>10.3}"));
        }
        for lost in &self.lost_first {
            line(format!("lost at {lost}"));
        }
        text
    }

    fn statuses(&self) -> String {
        if self.statuses.is_empty() {
            return "no answer".to_owned();
        }
        let each: Vec<String> = self.statuses.iter().map(|(status, count)| format!("{status}: {count}")).collect();
        each.join(", ")
    }
}
