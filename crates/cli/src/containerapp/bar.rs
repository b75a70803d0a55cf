//! Lines of a log on a terminal, with the last progress that a container told as a bar below them.
//!
//! Where nobody looks at a terminal, lines of progress are lines as all others.
//!
//! **Invariant:** the bar is the last line and is gone before another line is written.

use std::io::{self, Write};

use cove_model::ProgressLine;

/// Characters of the bar itself.
const WIDTH: usize = 30;
/// Characters of the whole line; a longer one would break and could not be taken back.
const LINE_MAX: usize = 79;

/// Where lines go.
#[derive(Debug)]
pub(super) struct Lines<W> {
    out: W,
    draws: bool,
    bar: Option<String>,
}

impl<W: Write> Lines<W> {
    /// `draws`: people follow the lines on a terminal.
    pub(super) fn new(out: W, draws: bool) -> Self {
        Self { out, draws, bar: None }
    }

    /// Writes a line `<time>  <text>`, or draws what it tells; false when nobody reads any more.
    pub(super) fn write(&mut self, line: &str) -> bool {
        self.try_write(line).is_ok()
    }

    fn try_write(&mut self, line: &str) -> io::Result<()> {
        if !self.draws {
            writeln!(self.out, "{line}")?;
            return self.out.flush();
        }
        let text = line.split_once("  ").map_or(line, |(_, text)| text);
        if let Some(progress) = ProgressLine::parse(text) {
            self.bar = Some(progress.bar(WIDTH).chars().take(LINE_MAX).collect());
        } else {
            if self.bar.is_some() {
                write!(self.out, "\r\x1b[K")?;
            }
            writeln!(self.out, "{line}")?;
        }
        if let Some(bar) = &self.bar {
            write!(self.out, "\r\x1b[K{bar}")?;
        }
        self.out.flush()
    }

    /// The stream has ended: what is drawn stays.
    pub(super) fn end(mut self) {
        if self.bar.is_some() {
            let _closed = writeln!(self.out).and_then(|()| self.out.flush());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(draws: bool, lines: &[&str]) -> String {
        let mut out = Vec::new();
        let mut all = Lines::new(&mut out, draws);
        for line in lines {
            assert!(all.write(line));
        }
        all.end();
        String::from_utf8(out).unwrap().replace("\r\x1b[K", "<")
    }

    #[test]
    fn a_bar_stays_below_the_lines() {
        let lines = ["T  one", "T  ::progress 50% loading", "T  two", "T  ::progress 100%"];
        let half = format!("[{}{}]  50 %  loading", "#".repeat(15), "-".repeat(15));
        let whole = format!("[{}] 100 %", "#".repeat(30));
        assert_eq!(written(true, &lines), format!("T  one\n<{half}<T  two\n<{half}<{whole}\n"));
        assert_eq!(written(false, &lines), lines.map(|line| format!("{line}\n")).concat());
        assert_eq!(written(true, &["T  ::progress 0/0"]), "T  ::progress 0/0\n");
    }
}
