//! Request bodies: bytes to JSON, with limits and a position in every complaint.
//!
//! **Invariant:** a value that left this module is no deeper than asked, so recursion over it is bounded.

use serde_json::Value;

use crate::ArmError;

/// Deepest nesting that any Azure body needs, with room: ARM itself refuses beyond 64.
pub const DEPTH_MAX: usize = 64;

/// Parses a JSON body; an empty one is `null`.
///
/// # Errors
/// 400 `InvalidRequestContent` with line and column, or when it is nested deeper than `max_depth`.
pub fn parse(bytes: &[u8], max_depth: usize) -> Result<Value, ArmError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    let too_deep =
        || ArmError::invalid_content(format!("The request content is nested deeper than {max_depth} levels."));
    if depth(bytes) > max_depth {
        return Err(too_deep());
    }
    serde_json::from_slice(bytes).map_err(|error| {
        ArmError::invalid_content(format!("The request content was invalid and could not be deserialized: '{error}'."))
    })
}

/// Parses a body that must be a JSON object.
///
/// # Errors
/// As [`parse`], and 400 `InvalidRequestContent` when it is something else or empty.
pub fn parse_object(bytes: &[u8], max_depth: usize) -> Result<Value, ArmError> {
    match parse(bytes, max_depth)? {
        object @ Value::Object(_) => Ok(object),
        Value::Null => Err(ArmError::invalid_content("The request content is empty; a JSON object is expected.")),
        other => Err(ArmError::invalid_content(format!(
            "The request content is {}; a JSON object is expected.",
            crate::schema::kind_of(&other)
        ))),
    }
}

/// Deepest nesting of brackets outside strings; cheap, and right for everything that is JSON.
fn depth(bytes: &[u8]) -> usize {
    let (mut now, mut deepest, mut in_string, mut escaped) = (0_usize, 0_usize, false, false);
    for byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                now += 1;
                deepest = deepest.max(now);
            }
            b'}' | b']' if !in_string => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn complaints_name_the_position() {
        let message = |text: &str| parse_object(text.as_bytes(), 4).unwrap_err().message;
        expect!["The request content was invalid and could not be deserialized: 'expected value at line 2 column 5'."]
            .assert_eq(&message("{\n\"a\":}"));
        expect!["The request content is nested deeper than 4 levels."].assert_eq(&message("[[[[[]]]]]"));
        expect!["The request content is empty; a JSON object is expected."].assert_eq(&message(" \n"));
        expect!["The request content is a list; a JSON object is expected."].assert_eq(&message("[]"));
    }

    #[test]
    fn brackets_in_strings_are_text() {
        assert!(parse(br#"{"a":"[[[[[[\"[["}"#, 2).is_ok());
        assert!(parse("\u{feff}{}".as_bytes(), 2).is_ok());
    }
}
