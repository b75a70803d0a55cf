//! Lines with which a container says how far it is: `::progress 40% loading`, `::progress 3/10 images`.
//!
//! **Invariant:** what is read holds no control character, so it can be drawn on a terminal.

/// Longest text that is kept, in characters.
const TEXT_LENGTH_MAX: usize = 120;
/// Digits of a number at most.
const DIGITS_MAX: usize = 15;

/// How far something is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProgressLine {
    /// Thousandths that are done, 0..=1000.
    pub permille: u16,
    /// What it does; may be empty.
    pub text: String,
}

impl ProgressLine {
    /// Reads a line; `None` for any other line, also for one whose numbers make no sense (0/0, more than all).
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_start().strip_prefix("::progress")?;
        if !rest.starts_with([' ', '\t']) {
            return None;
        }
        let rest = rest.trim();
        let (amount, text) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        let permille = match (amount.strip_suffix('%'), amount.split_once('/')) {
            (Some(percent), _) => percent_of(percent)?,
            (None, Some((done, all))) => share_of(whole(done)?, whole(all)?)?,
            (None, None) => return None,
        };
        let is_drawn = |c: &char| !c.is_control() && !is_direction(*c);
        let text = text.trim().chars().filter(is_drawn).take(TEXT_LENGTH_MAX).collect();
        Some(Self { permille, text })
    }

    /// A bar of so many characters: `[####----]  50 %  loading`.
    #[must_use]
    pub fn bar(&self, width: usize) -> String {
        let filled = width * usize::from(self.permille) / 1000;
        let bar = format!("[{}{}] {:>3} %", "#".repeat(filled), "-".repeat(width - filled), self.permille / 10);
        if self.text.is_empty() { bar } else { format!("{bar}  {}", self.text) }
    }
}

/// Marks that change the direction of the text behind them.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn whole(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.len() <= DIGITS_MAX && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().ok()).flatten()
}

/// `40` or `40.25`, 0 to 100; cut to a thousandth of all.
fn percent_of(text: &str) -> Option<u16> {
    let (whole_part, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let (number, parts) = (whole(whole_part)?, whole(fraction)?);
    let tenth = fraction.bytes().next().map_or(0, |digit| u64::from(digit - b'0'));
    let permille = number.checked_mul(10)?.checked_add(tenth)?;
    let is_over = permille > 1000 || (permille == 1000 && parts > 0);
    if is_over { None } else { u16::try_from(permille).ok() }
}

fn share_of(done: u64, all: u64) -> Option<u16> {
    if all == 0 || done > all {
        return None;
    }
    u16::try_from(u128::from(done) * 1000 / u128::from(all)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_is_read() {
        let cases = [
            ("::progress 40% loading", 400, "loading"),
            ("  ::progress\t3/10 images  of 7 ", 300, "images  of 7"),
            ("::progress 0%", 0, ""),
            ("::progress 100% done", 1000, "done"),
            ("::progress 99.97% nearly", 999, "nearly"),
            ("::progress 100.0% done", 1000, "done"),
            ("::progress 0/1", 0, ""),
            ("::progress 7/7 all", 1000, "all"),
            ("::progress 2/3", 666, ""),
            ("::progress 5% \u{1b}[31mred\u{7}\u{202e}x", 50, "[31mredx"),
        ];
        for (line, permille, text) in cases {
            let read = ProgressLine::parse(line).unwrap_or_else(|| panic!("{line}"));
            assert_eq!((read.permille, read.text.as_str()), (permille, text), "{line}");
        }
        let long = ProgressLine::parse(&format!("::progress 1% {}", "é".repeat(1000))).unwrap();
        assert_eq!(long.text.chars().count(), TEXT_LENGTH_MAX);
    }

    #[test]
    fn other_lines_are_no_progress() {
        let lines = [
            "",
            "::progress",
            "::progress ",
            "::progress40%",
            "::progress 40",
            "::progress %",
            "::progress -1%",
            "::progress 101%",
            "::progress 100.1%",
            "::progress 1e1%",
            "::progress 0/0",
            "::progress 4/3",
            "::progress 3/",
            "::progress /3",
            "::progress 1/2/3",
            "::progress .5%",
            "::progress 1.%",
            "::progress +1%",
            "::progress 9999999999999999999999%",
            "::progress NaN%",
            "x ::progress 40%",
            "::progression 4%",
        ];
        for line in lines {
            assert_eq!(ProgressLine::parse(line), None, "{line}");
        }
    }

    #[test]
    fn bars_have_one_width() {
        let bar = |permille, text: &str| ProgressLine { permille, text: text.to_owned() }.bar(10);
        assert_eq!(bar(0, ""), "[----------]   0 %");
        assert_eq!(bar(455, "loading"), "[####------]  45 %  loading");
        assert_eq!(bar(1000, "done"), "[##########] 100 %  done");
    }
}
