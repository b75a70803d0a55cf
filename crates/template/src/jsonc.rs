//! Bodies of deployments: JSON as people and `az` write it, read with a position in every complaint.
//!
//! `az` puts the template's text into the body as it is in the file, after an unquoted key, so the parser takes comments,
//! trailing commas, unquoted and single-quoted keys, and strings over several lines. Plain JSON is a part of that.
//!
//! **Invariant:** what leaves this module is at most [`DEPTH_MAX`] deep; the parser's own recursion is bounded the same way.

use serde_json::{Map, Number, Value};

/// Deepest nesting of objects and lists.
pub const DEPTH_MAX: usize = 64;

/// A place in a text; both count from 1, columns in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column.
    pub column: usize,
}

/// Why a body could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}, line {}, column {}", position.line, position.column)]
pub struct BodyError {
    /// What is wrong.
    pub message: String,
    /// Where.
    pub position: Position,
}

/// Reads a body; JSON with comments, trailing commas, unquoted keys, single quotes and strings over lines.
///
/// The size of the input is the caller's to limit (ARM: 4 MB).
///
/// ```
/// let body = cove_template::parse_body(b"{ template: { /* mine */ 'a': [1, 2,], } }").unwrap();
/// assert_eq!(body["template"]["a"][1], 2);
/// ```
///
/// # Errors
/// [`BodyError`] with the position: syntax, a key given twice, nesting beyond 64, no UTF-8.
pub fn parse_body(bytes: &[u8]) -> Result<Value, BodyError> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| BodyError {
        message: "the text is not UTF-8".into(),
        position: position(&String::from_utf8_lossy(&bytes[..error.valid_up_to()]), error.valid_up_to()),
    })?;
    Parser::new(text, None).document()
}

/// Where in a body the value at `path` stands (`resources[2].name`), or its nearest container that exists.
///
/// Lines count from the one on which the value at `base` begins, so that `base = "properties.template"` gives lines of the
/// template's own file. `None` when the body cannot be read or `base` is not in it.
#[must_use]
pub fn locate(body: &[u8], base: &str, path: &str) -> Option<Position> {
    let text = std::str::from_utf8(body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body)).ok()?;
    let join = match (base.is_empty(), path.is_empty()) {
        (true, _) => path.to_owned(),
        (_, true) => base.to_owned(),
        _ if path.starts_with('[') => format!("{base}{path}"),
        _ => format!("{base}.{path}"),
    };
    let find = |target: &str| {
        let mut parser = Parser::new(text, Some(target));
        parser.document().ok()?;
        parser.search.and_then(|search| search.found)
    };
    let (_, start) = find(base).filter(|(len, _)| *len == base.len())?;
    let (_, at) = find(&join)?;
    let (start, at) = (position(text, start), position(text, at));
    Some(Position { line: at.line + 1 - start.line, column: at.column })
}

fn position(text: &str, at: usize) -> Position {
    let mut end = at.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let before = &text[..end];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    Position { line: before.matches('\n').count() + 1, column: before[line_start..].chars().count() + 1 }
}

/// The longest prefix of a wanted path that was seen, and where.
struct Search<'t> {
    target: &'t str,
    path: String,
    found: Option<(usize, usize)>,
}

impl Search<'_> {
    fn visit(&mut self, at: usize) {
        let len = self.path.len();
        let is_prefix = self.target.get(..len).is_some_and(|head| head.eq_ignore_ascii_case(&self.path))
            && self.target[len..].chars().next().is_none_or(|next| len == 0 || next == '.' || next == '[');
        if is_prefix && self.found.is_none_or(|(found, _)| len > found) {
            self.found = Some((len, at));
        }
    }
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    search: Option<Search<'t>>,
}

type Parsed<T> = Result<T, BodyError>;

impl<'t> Parser<'t> {
    fn new(text: &'t str, target: Option<&'t str>) -> Self {
        let search = target.map(|target| Search { target, path: String::new(), found: None });
        Self { text, at: 0, depth: 0, search }
    }

    fn document(&mut self) -> Parsed<Value> {
        self.space()?;
        let value = self.value()?;
        self.space()?;
        if self.at < self.text.len() {
            return Err(self.error(format!("unexpected {} after the end of the value", self.found())));
        }
        Ok(value)
    }

    fn error(&self, message: impl Into<String>) -> BodyError {
        BodyError { message: message.into(), position: position(self.text, self.at) }
    }

    /// What stands here, in words.
    fn found(&self) -> String {
        match self.text[self.at..].chars().next() {
            Some(c) => format!("`{}`", c.escape_debug()),
            None => "end of the text".into(),
        }
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) -> Parsed<()> {
        loop {
            let rest = &self.text[self.at..];
            let trimmed = rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}');
            self.at += rest.len() - trimmed.len();
            if trimmed.starts_with("//") {
                self.at += trimmed.find('\n').unwrap_or(trimmed.len());
            } else if let Some(comment) = trimmed.strip_prefix("/*") {
                let Some(end) = comment.find("*/") else {
                    return Err(self.error("a comment `/*` without its `*/`"));
                };
                self.at += end + 4;
            } else {
                return Ok(());
            }
        }
    }

    fn value(&mut self) -> Parsed<Value> {
        if let Some(search) = &mut self.search {
            search.visit(self.at);
        }
        match self.peek() {
            Some(b'{') => self.nested(Self::object),
            Some(b'[') => self.nested(Self::list),
            Some(quote @ (b'"' | b'\'')) => self.string(quote).map(Value::String),
            Some(b'-' | b'+' | b'.' | b'0'..=b'9') => self.number(),
            Some(_) => self.word(),
            None => Err(self.error("a value is expected, found end of the text")),
        }
    }

    fn nested(&mut self, read: fn(&mut Self) -> Parsed<Value>) -> Parsed<Value> {
        if self.depth == DEPTH_MAX {
            return Err(self.error(format!("nested deeper than {DEPTH_MAX} levels")));
        }
        self.depth += 1;
        self.at += 1;
        let value = read(self)?;
        self.depth -= 1;
        Ok(value)
    }

    /// After an element: whether another may follow. The closing bracket is consumed.
    fn more(&mut self, close: u8) -> Parsed<bool> {
        self.space()?;
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.space()?;
            }
            Some(byte) if byte == close => {}
            _ => {
                let close = char::from(close);
                return Err(self.error(format!("`,` or `{close}` is expected, found {}", self.found())));
            }
        }
        if self.peek() == Some(close) {
            self.at += 1;
            return Ok(false);
        }
        Ok(true)
    }

    fn object(&mut self) -> Parsed<Value> {
        let mut map = Map::new();
        self.space()?;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            let start = self.at;
            let key = self.key()?;
            self.space()?;
            if self.peek() != Some(b':') {
                return Err(self.error(format!("`:` is expected after `{}`, found {}", shorten(&key), self.found())));
            }
            self.at += 1;
            self.space()?;
            let outer = self.enter(|path| {
                if !path.is_empty() {
                    path.push('.');
                }
                path.push_str(&key);
            });
            let value = self.value()?;
            self.leave(outer);
            if map.contains_key(&key) {
                self.at = start;
                return Err(self.error(format!("`{}` is given twice", shorten(&key))));
            }
            map.insert(key, value);
            if !self.more(b'}')? {
                return Ok(Value::Object(map));
            }
        }
    }

    fn list(&mut self) -> Parsed<Value> {
        let mut items = Vec::new();
        self.space()?;
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            let index = items.len();
            let outer = self.enter(|path| path.push_str(&format!("[{index}]")));
            items.push(self.value()?);
            self.leave(outer);
            if !self.more(b']')? {
                return Ok(Value::Array(items));
            }
        }
    }

    fn enter(&mut self, extend: impl FnOnce(&mut String)) -> usize {
        let Some(search) = &mut self.search else { return 0 };
        let outer = search.path.len();
        extend(&mut search.path);
        outer
    }

    fn leave(&mut self, outer: usize) {
        if let Some(search) = &mut self.search {
            search.path.truncate(outer);
        }
    }

    fn key(&mut self) -> Parsed<String> {
        match self.peek() {
            Some(quote @ (b'"' | b'\'')) => self.string(quote),
            _ => {
                let rest = &self.text[self.at..];
                let len =
                    rest.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '$' | '-'))).unwrap_or(rest.len());
                if len == 0 {
                    return Err(self.error(format!("a key is expected, found {}", self.found())));
                }
                self.at += len;
                Ok(rest[..len].to_owned())
            }
        }
    }

    fn word(&mut self) -> Parsed<Value> {
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !c.is_alphanumeric()).unwrap_or(rest.len());
        let value = match &rest[..len] {
            "true" => Value::Bool(true),
            "false" => Value::Bool(false),
            "null" => Value::Null,
            "" => return Err(self.error(format!("a value is expected, found {}", self.found()))),
            word => return Err(self.error(format!("`{}` is no value; write strings in quotes", shorten(word)))),
        };
        self.at += len;
        Ok(value)
    }

    fn number(&mut self) -> Parsed<Value> {
        let rest = &self.text[self.at..];
        let len = rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E')).unwrap_or(rest.len());
        // the fraction as std reads it: what is printed must be read as the same number
        let exact = |number: Number| match number.is_f64() {
            true => rest[..len].parse().ok().and_then(Number::from_f64).unwrap_or(number),
            false => number,
        };
        match rest[..len].parse::<Number>() {
            Ok(number) => {
                self.at += len;
                Ok(Value::Number(exact(number)))
            }
            Err(_) => Err(self.error(format!("`{}` is not a number", shorten(&rest[..len])))),
        }
    }

    fn string(&mut self, quote: u8) -> Parsed<String> {
        let open = self.at;
        self.at += 1;
        let mut string = String::new();
        loop {
            let rest = &self.text[self.at..];
            let Some(plain) = rest.bytes().position(|byte| byte == quote || byte == b'\\') else {
                self.at = open;
                return Err(self.error("a string without its closing quote"));
            };
            string.push_str(&rest[..plain]);
            self.at += plain;
            if self.peek() == Some(quote) {
                self.at += 1;
                return Ok(string);
            }
            self.escape(&mut string)?;
        }
    }

    fn escape(&mut self, string: &mut String) -> Parsed<()> {
        let escaped = self.text[self.at + 1..].chars().next();
        let plain = match escaped {
            Some('n') => '\n',
            Some('t') => '\t',
            Some('r') => '\r',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some(c @ ('"' | '\'' | '\\' | '/')) => c,
            Some('u') => return self.unicode(string),
            Some(c) => return Err(self.error(format!("`\\{}` is not an escape", c.escape_debug()))),
            None => return Err(self.error("a string ends in the middle of an escape")),
        };
        string.push(plain);
        self.at += 2;
        Ok(())
    }

    fn unicode(&mut self, string: &mut String) -> Parsed<()> {
        let first = self.hex4(self.at)?;
        let mut next = self.at + 6;
        let mut code = first;
        if (0xd800..0xdc00).contains(&first) && self.text[next..].starts_with("\\u") {
            let second = self.hex4(next)?;
            if (0xdc00..0xe000).contains(&second) {
                code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                next += 6;
            }
        }
        // half a pair says nothing: what .NET writes for it too
        string.push(char::from_u32(code).unwrap_or('\u{fffd}'));
        self.at = next;
        Ok(())
    }

    /// The number of the `\uXXXX` at `at`.
    fn hex4(&self, at: usize) -> Parsed<u32> {
        self.text
            .get(at + 2..at + 6)
            .filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
            .and_then(|digits| u32::from_str_radix(digits, 16).ok())
            .ok_or_else(|| self.error("`\\u` needs four hexadecimal digits"))
    }
}

/// A user's word for a message, cut when it is long.
fn shorten(word: &str) -> String {
    let short: String = word.chars().take(64).collect();
    if short.len() < word.len() { format!("{short}…") } else { short }
}

#[cfg(test)]
mod tests;
