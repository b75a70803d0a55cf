//! Replica counts over time as a plot: of characters in a terminal, as SVG in a file.
//!
//! **Invariant:** a plot shows at least one column and row; the highest count of a column is what is drawn.

use std::fmt::Write as _;

/// Rows of a terminal plot.
const ROWS: u32 = 8;
/// Colours of the lines in SVG.
const COLOURS: [&str; 4] = ["#1f6feb", "#d1440c", "#2da44e", "#8250df"];

/// One line: its name, and counts from an instant in milliseconds on.
pub(super) struct Line {
    pub(super) name: String,
    pub(super) steps: Vec<(u64, u32)>,
}

impl Line {
    fn highest(&self, from_ms: u64, to_ms: u64) -> u32 {
        let first = self.steps.partition_point(|(at, _)| *at <= from_ms).saturating_sub(1);
        let inside = self.steps[first..].iter().take_while(|(at, _)| *at < to_ms.max(from_ms + 1));
        inside.map(|(_, count)| *count).max().unwrap_or(0)
    }
}

/// One plot under the other, all of one height.
pub(super) fn terminal(lines: &[Line], until_ms: u64, width: usize) -> String {
    let columns = u64::try_from(width.saturating_sub(8).clamp(20, 120)).unwrap_or(20);
    let most = lines.iter().flat_map(|line| line.steps.iter().map(|(_, count)| *count)).max().unwrap_or(0).max(1);
    let rows = ROWS.min(most);
    let mut text = String::new();
    for line in lines {
        let _infallible = writeln!(text, "{}", line.name);
        let counts: Vec<u32> = (0..columns)
            .map(|column| line.highest(until_ms * column / columns, until_ms * (column + 1) / columns))
            .collect();
        for row in (1..=rows).rev() {
            // eighths of the row that are filled
            let fill = |count: &u32| {
                let eighths = (u64::from(*count) * u64::from(rows) * 8).div_ceil(u64::from(most));
                let inside = eighths.saturating_sub(u64::from(row - 1) * 8).min(8);
                [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'][usize::try_from(inside).unwrap_or(0)]
            };
            let label = if row == rows { most.to_string() } else { String::new() };
            let drawn: String = counts.iter().map(fill).collect();
            let _infallible = writeln!(text, "{label:>5} │{}", drawn.trim_end());
        }
        let _infallible = writeln!(text, "    0 └{}", "─".repeat(usize::try_from(columns).unwrap_or(20)));
    }
    let _infallible = writeln!(text, "      0 to {} s", until_ms / 1000);
    text
}

/// All lines in one picture.
pub(super) fn svg(lines: &[Line], until_ms: u64) -> String {
    const WIDTH: u64 = 960;
    const HEIGHT: u64 = 320;
    const LEFT: u64 = 48;
    const TOP: u64 = 24;
    let until_ms = until_ms.max(1);
    let most =
        u64::from(lines.iter().flat_map(|line| line.steps.iter().map(|(_, count)| *count)).max().unwrap_or(0).max(1));
    let x = |at_ms: u64| LEFT + at_ms.min(until_ms) * WIDTH / until_ms;
    let y = |count: u64| TOP + HEIGHT - count * HEIGHT / most;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {} {}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n",
        WIDTH + LEFT + 16,
        HEIGHT + TOP + 32 + 16 * u64::try_from(lines.len()).unwrap_or(0)
    );
    for mark in 0..=4u64 {
        let count = most * mark / 4;
        let _infallible = writeln!(
            text,
            "<path d=\"M{LEFT} {0}H{1}\" stroke=\"#d0d7de\"/><text x=\"{2}\" y=\"{3}\" text-anchor=\"end\">{count}</text>",
            y(count),
            LEFT + WIDTH,
            LEFT - 6,
            y(count) + 4
        );
        let second = until_ms / 1000 * mark / 4;
        let _infallible = writeln!(
            text,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{second} s</text>",
            x(until_ms * mark / 4),
            TOP + HEIGHT + 18
        );
    }
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()];
        let mut path = format!("M{LEFT} {}", y(0));
        for (at_ms, count) in &line.steps {
            let _infallible = write!(path, "H{}V{}", x(*at_ms), y(u64::from(*count)));
        }
        let _infallible = write!(path, "H{}", LEFT + WIDTH);
        let _infallible = writeln!(text, "<path d=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
        let place = TOP + HEIGHT + 36 + 16 * u64::try_from(index).unwrap_or(0);
        let name = line.name.replace('&', "&amp;").replace('<', "&lt;");
        let _infallible = writeln!(text, "<text x=\"{LEFT}\" y=\"{place}\" fill=\"{colour}\">{name}</text>");
    }
    text.push_str("</svg>\n");
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn a_climb_is_seen() {
        let lines = [Line { name: "today".into(), steps: vec![(0, 0), (5000, 1), (10_000, 4), (15_000, 2)] }];
        expect![[r#"
            today
                4 │          █████
                  │          █████
                  │          ██████████
                  │     ███████████████
                0 └────────────────────
                  0 to 20 s
        "#]]
        .assert_eq(&terminal(&lines, 20_000, 28));
        let picture = svg(&lines, 20_000);
        assert!(picture.starts_with("<svg") && picture.contains("H288V264"), "{picture}");
    }
}
