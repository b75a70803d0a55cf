//! Files that commands read: YAML, JSON, texts.

use std::path::Path;

use serde_json::Value;

use crate::failure::Failure;

/// Largest file that is read, in bytes.
const FILE_MAX_BYTES: u64 = 16 * 1024 * 1024;

/// The text of a file; `-` is standard input.
pub(crate) fn text(path: &Path) -> Result<String, Failure> {
    if path.as_os_str() == "-" {
        return Ok(std::io::read_to_string(std::io::stdin())?);
    }
    let unread = |error: &dyn std::fmt::Display| Failure::new(format!("failed to read `{}`: {error}", path.display()));
    let size = std::fs::metadata(path).map_err(|error| unread(&error))?.len();
    if size > FILE_MAX_BYTES {
        return Err(unread(&format!("it has {size} bytes, more than {FILE_MAX_BYTES}")));
    }
    std::fs::read_to_string(path).map_err(|error| unread(&error))
}

/// The bytes of a file.
pub(crate) fn bytes(path: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(path).map_err(|error| Failure::new(format!("failed to read `{}`: {error}", path.display())))
}

/// A file in YAML or JSON.
pub(crate) fn yaml(path: &Path) -> Result<Value, Failure> {
    serde_saphyr::from_str(&text(path)?)
        .map_err(|error| Failure::new(format!("`{}` is not YAML: {error}", path.display())))
}

/// A flag's JSON: the text itself, or `@FILE`.
pub(crate) fn json(given: &str, flag: &str) -> Result<Value, Failure> {
    let text = match given.strip_prefix('@') {
        Some(path) => self::text(Path::new(path))?,
        None => given.to_owned(),
    };
    serde_json::from_str(&text).map_err(|error| Failure::usage(format!("{flag} is not JSON: {error}")))
}
