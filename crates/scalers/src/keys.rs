//! Reads metadata keys that say where a source is: flags, whole numbers, lists, TLS.
//!
//! **Invariant:** a default never stands in for a value that was given and is wrong.

use crate::source::{OpenError, Trigger};
use crate::tls::TlsOptions;

/// A value that must be there.
pub(crate) fn required<'a>(trigger: &'a Trigger, key: &str) -> Result<&'a str, OpenError> {
    trigger.get(key).ok_or_else(|| OpenError::metadata(format!("{key} is missing")))
}

/// `true` or `false`, in any case.
pub(crate) fn flag(trigger: &Trigger, key: &str, default: bool) -> Result<bool, OpenError> {
    let Some(text) = trigger.get(key) else { return Ok(default) };
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "t" => Ok(true),
        "false" | "0" | "f" => Ok(false),
        _ => Err(OpenError::metadata(format!("{key} is `{text}`; expected true or false"))),
    }
}

/// `enable` or `disable`; default disabled.
pub(crate) fn tls_switch(trigger: &Trigger, key: &str) -> Result<bool, OpenError> {
    match trigger.get(key) {
        None | Some("disable") => Ok(false),
        Some("enable") => Ok(true),
        Some(other) => Err(OpenError::metadata(format!("{key} is `{other}`; expected enable or disable"))),
    }
}

/// A whole number.
pub(crate) fn whole(trigger: &Trigger, key: &str, default: u32) -> Result<u32, OpenError> {
    let Some(text) = trigger.get(key) else { return Ok(default) };
    text.parse().map_err(|_| OpenError::metadata(format!("{key} is `{text}`; expected a whole number")))
}

/// Parts between commas, trimmed, without empty ones.
pub(crate) fn list(text: &str) -> Vec<&str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// `ca`, `cert`, `key`, `keyPassword` and `unsafeSsl`.
pub(crate) fn tls(trigger: &Trigger) -> Result<TlsOptions, OpenError> {
    TlsOptions::of(trigger, flag(trigger, "unsafeSsl", false)?)
}

/// The start of a text of others that is shown to people, on one line.
pub(crate) fn short(text: &str) -> String {
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    line.trim().to_owned()
}
