//! JSON of clients: as a tree it takes many times its text, so the number of its values is bounded before it is read.

use serde_json::Value;

use crate::answer::Refused;

/// Values of one body, members' names among them. Code is one, a command has at most a thousand words.
const VALUES_MAX: usize = 10_000;

/// Reads a body.
pub(crate) fn tree(text: &[u8]) -> Result<Value, Refused> {
    let wrong = |words: String| Refused::new(400, "InvalidRequestContent", words);
    if has_many(text) {
        let instead = "put what is long into one text, or upload it as a file";
        return Err(wrong(format!("The body has more than {VALUES_MAX} values; {instead}.")));
    }
    serde_json::from_slice(text).map_err(|error| wrong(format!("The body is no JSON: {error}.")))
}

/// Whether there are more values than may be: each but the first is behind a comma, a colon or an opening bracket.
fn has_many(text: &[u8]) -> bool {
    let (mut count, mut is_text, mut is_escaped) = (0, false, false);
    for byte in text {
        match (is_text, byte) {
            (true, _) if is_escaped => is_escaped = false,
            (true, b'\\') => is_escaped = true,
            (_, b'"') => is_text = !is_text,
            (false, b',' | b':' | b'{' | b'[') => count += 1,
            _ => {}
        }
    }
    count > VALUES_MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_take_much_is_not_read() {
        let why = |text: &str| tree(text.as_bytes()).unwrap_err().error.message;
        let many = format!("[{}1]", "{\"\":0},".repeat(100_000));
        assert!(why(&many).contains("10000 values"));
        assert!(why(&"[".repeat(100_000)).contains("10000 values"));
        // what looks like it within a text is one value
        let text = serde_json::to_vec(&serde_json::json!({ "code": "\\\"[,{:".repeat(100_000), "last": [1] })).unwrap();
        assert_eq!(tree(&text).unwrap()["last"][0], 1);
        assert!(why("{").contains("no JSON"));
    }
}
