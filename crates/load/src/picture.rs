//! Latency over time as a picture: of characters in a terminal, as SVG in a file. What happened meanwhile is marked.
//!
//! Both have a logarithmic axis: a deploy that costs a request 300 ms and the half millisecond around it are seen in one.

use std::{fmt::Write as _, time::Duration};

use crate::report::{Moment, Report};

/// Rows of a terminal picture.
const ROWS: u32 = 10;
/// Marks that are written out below it.
const MARKS_SHOWN: usize = 12;

/// The axis: powers of ten of milliseconds.
#[derive(Clone, Copy, Debug)]
struct Axis {
    low: i32,
    high: i32,
}

impl Axis {
    fn of(moments: &[Moment]) -> Self {
        let seen = moments.iter().filter(|moment| moment.answered > 0);
        let (mut low, mut high) = (f64::MAX, 0.0_f64);
        for moment in seen {
            low = low.min(moment.p50_ms);
            high = high.max(moment.max_ms);
        }
        if high == 0.0 {
            return Self { low: 0, high: 1 };
        }
        #[expect(clippy::cast_possible_truncation, reason = "a power of ten of a time is small")]
        let (low, high) = (low.max(0.001).log10().floor() as i32, high.max(0.001).log10().ceil() as i32);
        Self { low, high: high.max(low + 1) }
    }

    /// From 0 at the bottom to 1 at the top.
    fn share(self, ms: f64) -> f64 {
        let place = ms.max(0.001).log10() - f64::from(self.low);
        (place / f64::from(self.high - self.low)).clamp(0.0, 1.0)
    }

    fn label(power: i32) -> String {
        match power {
            3.. => format!("{} s", 10_f64.powi(power - 3)),
            _ => format!("{} ms", 10_f64.powi(power)),
        }
    }
}

/// The picture for a terminal of so many columns; none where nothing was answered.
#[must_use]
pub fn terminal(report: &Report, width: usize) -> String {
    if report.counts.answered == 0 {
        return String::new();
    }
    let columns_max = width.saturating_sub(12).clamp(20, 120);
    let per_column = report.timeline.len().div_ceil(columns_max).max(1);
    let columns: Vec<Moment> = report.timeline.chunks(per_column).map(worst).collect();
    let axis = Axis::of(&columns);
    let mut text = String::new();
    for row in (1..=ROWS).rev() {
        let drawn: String = columns.iter().map(|moment| cell(axis, moment, row)).collect();
        let (below, above) = (f64::from(row - 1) / f64::from(ROWS), f64::from(row) / f64::from(ROWS));
        let power = (axis.low..=axis.high).find(|power| {
            let at = f64::from(power - axis.low) / f64::from(axis.high - axis.low);
            at > below + 1e-9 && at <= above + 1e-9
        });
        let label = power.map(Axis::label).unwrap_or_default();
        let _infallible = writeln!(text, "{label:>9} │{}", drawn.trim_end());
    }
    let bottom = Axis::label(axis.low);
    let _infallible = writeln!(text, "{bottom:>9} └{}", "─".repeat(columns.len()));
    let column_of = |at: Duration| {
        let column = at.as_nanos() / (report.moment.as_nanos().max(1) * per_column as u128);
        usize::try_from(column).unwrap_or(usize::MAX)
    };
    let mut marks = vec![' '; columns.len()];
    for mark in &report.marks {
        if let Some(place) = marks.get_mut(column_of(mark.from)) {
            *place = '▲';
        }
    }
    let lost: String = columns.iter().map(|moment| if moment.lost > 0 { 'x' } else { ' ' }).collect();
    let marks: String = marks.into_iter().collect();
    for (name, row) in [("lost", lost), ("marks", marks)] {
        if !row.trim().is_empty() {
            let _infallible = writeln!(text, "{name:>9}  {}", row.trim_end());
        }
    }
    let until = report.moment * u32::try_from(report.timeline.len()).unwrap_or(u32::MAX);
    let _infallible =
        writeln!(text, "{:>9}  0 to {:.1} s; █ half of the requests, ▒ 99 %, · the slowest", "", until.as_secs_f64());
    for mark in report.marks.iter().take(MARKS_SHOWN) {
        let ended = mark.to.map_or_else(|| "not ended".to_owned(), |to| format!("to {:.1} s", to.as_secs_f64()));
        let _infallible = writeln!(text, "        ▲  {} {:.1} s {ended}", mark.label, mark.from.as_secs_f64());
    }
    if report.marks.len() > MARKS_SHOWN {
        let _infallible = writeln!(text, "        ▲  and {} more", report.marks.len() - MARKS_SHOWN);
    }
    text
}

/// The worst of each over neighbouring moments.
fn worst(moments: &[Moment]) -> Moment {
    let mut all = Moment { at: Duration::ZERO, answered: 0, lost: 0, p50_ms: 0.0, p99_ms: 0.0, max_ms: 0.0 };
    all.at = moments.first().map(|moment| moment.at).unwrap_or_default();
    for moment in moments {
        all.answered += moment.answered;
        all.lost += moment.lost;
        all.p50_ms = all.p50_ms.max(moment.p50_ms);
        all.p99_ms = all.p99_ms.max(moment.p99_ms);
        all.max_ms = all.max_ms.max(moment.max_ms);
    }
    all
}

fn cell(axis: Axis, moment: &Moment, row: u32) -> char {
    let height = |ms: f64| axis.share(ms) * f64::from(ROWS);
    // a row is reached by what is above its middle; the lowest by everything
    let reached = |ms: f64| height(ms) > f64::from(row) - 0.5 || row == 1;
    match moment.answered {
        0 => ' ',
        _ if reached(moment.p50_ms) => '█',
        _ if reached(moment.p99_ms) => '▒',
        _ if reached(moment.max_ms) => '·',
        _ => ' ',
    }
}

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 320.0;
const LEFT: f64 = 64.0;
const TOP: f64 = 40.0;

/// The picture as a file.
#[must_use]
pub fn svg(report: &Report) -> String {
    let axis = Axis::of(&report.timeline);
    let until =
        report.moment.as_secs_f64() * f64::from(u32::try_from(report.timeline.len()).unwrap_or(u32::MAX).max(1));
    let x = |at: f64| LEFT + WIDTH * (at / until).clamp(0.0, 1.0);
    let y = |ms: f64| TOP + HEIGHT * (1.0 - axis.share(ms));
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"18\">{}</text>\n",
        WIDTH + LEFT + 24.0,
        HEIGHT + TOP + 56.0,
        escaped(&format!(
            "{} {}: {} answered, {} lost, {:.1} per second; p50 {:.2} ms, p99 {:.2} ms",
            report.protocol,
            report.url,
            report.counts.answered,
            report.counts.lost,
            report.per_second(),
            report.latency_ms.p50,
            report.latency_ms.p99
        ))
    );
    for mark in &report.marks {
        let (from, to) = (x(mark.from.as_secs_f64()), x(mark.to.map_or(until, |to| to.as_secs_f64())));
        let _infallible = writeln!(
            text,
            "<rect x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{HEIGHT}\" fill=\"#fff1c2\"><title>{} {:.1} s</title></rect>",
            (to - from).max(1.0),
            escaped(&mark.label),
            mark.from.as_secs_f64()
        );
        if report.marks.len() <= MARKS_SHOWN {
            let label = escaped(&mark.label);
            let _infallible =
                writeln!(text, "<text x=\"{:.1}\" y=\"{}\" fill=\"#8a6d00\">{label}</text>", from + 2.0, TOP + 12.0);
        }
    }
    for power in axis.low..=axis.high {
        let at = y(10_f64.powi(power));
        let _infallible = writeln!(
            text,
            "<path d=\"M{LEFT} {at:.1}H{:.1}\" stroke=\"#d0d7de\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT + WIDTH,
            LEFT - 6.0,
            at + 4.0,
            Axis::label(power)
        );
    }
    for quarter in 0..=4 {
        let at = until * f64::from(quarter) / 4.0;
        let _infallible = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{at:.1} s</text>",
            x(at),
            TOP + HEIGHT + 18.0
        );
    }
    lines(&mut text, report, x, y);
    text.push_str("</svg>\n");
    text
}

/// The three lines, the losses and what is what.
fn lines(text: &mut String, report: &Report, x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) {
    type Of = fn(&Moment) -> f64;
    let all: [(&str, &str, Of); 3] = [
        ("the slowest", "#d0b0a0", |moment| moment.max_ms),
        ("99 %", "#d1440c", |moment| moment.p99_ms),
        ("half of the requests", "#1f6feb", |moment| moment.p50_ms),
    ];
    let middle = report.moment.as_secs_f64() / 2.0;
    for ((name, colour, of), place) in all.into_iter().zip(0u32..) {
        let mut path = String::new();
        let mut is_drawn = false;
        for moment in &report.timeline {
            if moment.answered == 0 {
                is_drawn = false;
                continue;
            }
            let command = if is_drawn { 'L' } else { 'M' };
            let _infallible = write!(path, "{command}{:.1} {:.1}", x(moment.at.as_secs_f64() + middle), y(of(moment)));
            is_drawn = true;
        }
        let _infallible = writeln!(text, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
        let _infallible = writeln!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"{colour}\">{name}</text>",
            LEFT + 180.0 * f64::from(place),
            TOP + HEIGHT + 40.0
        );
    }
    for moment in report.timeline.iter().filter(|moment| moment.lost > 0) {
        let at = x(moment.at.as_secs_f64() + middle);
        let _infallible = writeln!(
            text,
            "<path d=\"M{at:.1} {TOP}v10\" stroke=\"#cf222e\" stroke-width=\"3\"><title>{} lost</title></path>",
            moment.lost
        );
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}
