//! Why a command failed: the text for people, a hint, and the exit code.

use std::process::ExitCode;

/// Exit code of a command that failed.
const FAILED: u8 = 1;
/// Exit code of a command that was not understood.
const USAGE: u8 = 2;
/// Exit code when what was named does not exist, as az's.
const NOT_FOUND: u8 = 3;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct Failure {
    /// What is wrong.
    pub(crate) text: String,
    /// What to do about it.
    pub(crate) hint: Option<String>,
    code: u8,
}

impl Failure {
    /// It could not be done.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, code: FAILED }
    }

    /// The command makes no sense as written.
    pub(crate) fn usage(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, code: USAGE }
    }

    /// What was named is not there.
    pub(crate) fn not_found(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, code: NOT_FOUND }
    }

    /// Nothing to say: what was run ended with this code.
    pub(crate) fn exit(code: u8) -> Self {
        Self { text: String::new(), hint: None, code }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    pub(crate) fn is_not_found(&self) -> bool {
        self.code == NOT_FOUND
    }

    /// Says it on stderr; the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        if !self.text.is_empty() {
            crate::text::err(&format!("error: {}", self.text));
        }
        if let Some(hint) = &self.hint {
            crate::text::err(&format!("\nhint: {hint}"));
        }
        ExitCode::from(self.code)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::new(format!("{error:#}"))
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}
