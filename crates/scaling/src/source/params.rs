//! Reads the metadata of a rule: numbers, flags and lists with their defaults.
//!
//! Metadata values are strings, trimmed; an empty one counts as not given. The caller's lookup has already put
//! `…FromEnv` values and authentication parameters in their place.
//!
//! **Invariant:** everything wrong is collected; a default never stands in for a value that was given and is wrong.

/// The metadata of one rule could not be used; every reason, joined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .reasons.join("; "))]
pub struct MetadataError {
    /// One sentence per key that is wrong.
    pub reasons: Vec<String>,
}

/// A rule's metadata, being read.
pub(super) struct Params<'a> {
    lookup: &'a dyn Fn(&str) -> Option<String>,
    reasons: Vec<String>,
}

impl<'a> Params<'a> {
    pub(super) fn new(lookup: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { lookup, reasons: Vec::new() }
    }

    /// The trimmed value; `None` when it is missing or empty.
    pub(super) fn text(&self, key: &str) -> Option<String> {
        let value = (self.lookup)(key)?;
        let value = value.trim();
        (!value.is_empty()).then(|| value.to_owned())
    }

    /// A number of at least `least`; `None` as default makes the key required.
    pub(super) fn number(&mut self, key: &str, default: Option<f64>, least: f64) -> f64 {
        let Some(text) = self.text(key) else {
            if default.is_none() {
                self.wrong(format!("{key} is missing"));
            }
            return default.unwrap_or(least);
        };
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= least => number,
            _ => {
                let range = if least > f64::MIN { format!(" of at least {least}") } else { String::new() };
                self.wrong(format!("{key} is `{text}`; expected a number{range}"));
                least
            }
        }
    }

    /// A target: a number above zero, at least a thousandth since readings are compared in thousandths.
    pub(super) fn target(&mut self, key: &str, default: Option<f64>) -> f64 {
        self.number(key, default, 0.001)
    }

    /// An activation: any number, default 0.
    pub(super) fn activation(&mut self, key: &str) -> f64 {
        self.number(key, Some(0.0), f64::MIN)
    }

    /// A whole number of at least 1.
    pub(super) fn count(&mut self, key: &str, default: u64) -> u64 {
        let Some(text) = self.text(key) else { return default };
        match text.parse::<u64>() {
            Ok(count) if count >= 1 => count,
            _ => {
                self.wrong(format!("{key} is `{text}`; expected a whole number of at least 1"));
                default
            }
        }
    }

    /// `true` or `false`, in any case.
    pub(super) fn flag(&mut self, key: &str, default: bool) -> bool {
        match self.text(key).map(|text| text.to_ascii_lowercase()).as_deref() {
            None => default,
            Some("true" | "1" | "t") => true,
            Some("false" | "0" | "f") => false,
            Some(other) => {
                self.wrong(format!("{key} is `{other}`; expected true or false"));
                default
            }
        }
    }

    /// One of the words; the first is the default.
    pub(super) fn choice<T: Copy>(&mut self, key: &str, words: &[(&str, T)]) -> T {
        let (_, default) = words[0];
        let Some(text) = self.text(key) else { return default };
        if let Some((_, value)) = words.iter().find(|(word, _)| *word == text) {
            return *value;
        }
        let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        self.wrong(format!("{key} is `{text}`; expected one of {}", known.join(", ")));
        default
    }

    /// Parts between commas, trimmed, without empty ones.
    pub(super) fn list(&self, key: &str) -> Vec<String> {
        let text = self.text(key).unwrap_or_default();
        text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    }

    pub(super) fn required(&mut self, key: &str) -> String {
        self.text(key).unwrap_or_else(|| {
            self.wrong(format!("{key} is missing"));
            String::new()
        })
    }

    pub(super) fn wrong(&mut self, reason: impl Into<String>) {
        self.reasons.push(reason.into());
    }

    pub(super) fn finish<T>(self, value: T) -> Result<T, MetadataError> {
        if self.reasons.is_empty() { Ok(value) } else { Err(MetadataError { reasons: self.reasons }) }
    }
}
