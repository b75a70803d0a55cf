//! Writing to the terminal: data to stdout, the rest to stderr.
//!
//! **Invariant:** a closed pipe ends nothing with a panic: what cannot be written is dropped.

use std::{
    io::{IsTerminal as _, Write as _},
    sync::atomic::{AtomicBool, Ordering},
};

/// Whether notes and progress are left out.
static ONLY_ERRORS: AtomicBool = AtomicBool::new(false);

/// `--only-show-errors`.
pub(crate) fn only_errors(is_asked: bool) {
    ONLY_ERRORS.store(is_asked, Ordering::Relaxed);
}

/// Writes what is good to know, one line.
pub(crate) fn note(line: &str) {
    if !ONLY_ERRORS.load(Ordering::Relaxed) {
        err(line);
    }
}

/// Whether progress may be drawn on stderr.
pub(crate) fn shows_progress() -> bool {
    stderr_is_terminal() && !ONLY_ERRORS.load(Ordering::Relaxed)
}

/// Writes data.
pub(crate) fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    let _closed = stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush());
}

/// Writes one line of data; false when nobody reads any more.
pub(crate) fn line(line: &str) -> bool {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_ok()
}

/// Writes what is not data, one line.
pub(crate) fn err(line: &str) {
    let mut stderr = std::io::stderr().lock();
    let _closed = writeln!(stderr, "{line}");
}

/// Whether people read stdout.
pub(crate) fn stdout_is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Whether people read stderr.
pub(crate) fn stderr_is_terminal() -> bool {
    std::io::stderr().is_terminal()
}
