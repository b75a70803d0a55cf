//! A small reader of XML into a tree: elements become members, repeated ones lists, attributes `-name`, text `#text`.
//!
//! An element with nothing but text is that text. No entities besides the five of XML and numeric ones, no DTD.
//!
//! **Invariant:** depth and work are bounded; an unknown construct is an error, never skipped in silence.

use serde_json::{Map, Value};

use super::super::Unreadable;

/// Deepest nesting read.
const DEPTH_MAX: usize = 64;

struct Element {
    name: String,
    members: Map<String, Value>,
    text: String,
}

/// The document as a tree whose only member is the root element.
pub(super) fn read(text: &str) -> Result<Value, Unreadable> {
    let wrong = |what: &str| Unreadable::new(format!("the document is no XML: {what}"));
    let mut open = vec![Element { name: String::new(), members: Map::new(), text: String::new() }];
    let mut rest = text;
    while let Some(at) = rest.find('<') {
        let (before, tag) = rest.split_at(at);
        let top = open.last_mut().ok_or_else(|| wrong("an end without a start"))?;
        top.text.push_str(&unescape(before).ok_or_else(|| wrong("an unknown entity"))?);
        if let Some(after) = tag.strip_prefix("<!--") {
            rest = after.split_once("-->").ok_or_else(|| wrong("a comment without an end"))?.1;
        } else if let Some(after) = tag.strip_prefix("<![CDATA[") {
            let (data, after) = after.split_once("]]>").ok_or_else(|| wrong("CDATA without an end"))?;
            top.text.push_str(data);
            rest = after;
        } else if let Some(after) = tag.strip_prefix("<?") {
            rest = after.split_once("?>").ok_or_else(|| wrong("an instruction without an end"))?.1;
        } else if tag.starts_with("<!") {
            return Err(wrong("a document type is not read"));
        } else if let Some(after) = tag.strip_prefix("</") {
            let (name, after) = after.split_once('>').ok_or_else(|| wrong("a tag without an end"))?;
            if open.len() < 2 || open.last().is_none_or(|element| element.name != name.trim()) {
                return Err(wrong("tags do not match"));
            }
            close(&mut open);
            rest = after;
        } else {
            let (inner, after) = tag_end(&tag[1..]).ok_or_else(|| wrong("a tag without an end"))?;
            let (inner, empty) = inner.strip_suffix('/').map_or((inner, false), |inner| (inner, true));
            if open.len() > DEPTH_MAX {
                return Err(wrong("it is nested too deep"));
            }
            open.push(start(inner).ok_or_else(|| wrong("attributes that cannot be read"))?);
            if empty {
                close(&mut open);
            }
            rest = after;
        }
    }
    let root = open.pop().filter(|root| open.is_empty() && root.members.len() == 1 && rest.trim().is_empty());
    root.map(|root| Value::Object(root.members)).ok_or_else(|| wrong("it has not one root element"))
}

/// Splits at the `>` that is not within quotes.
fn tag_end(text: &str) -> Option<(&str, &str)> {
    let mut quote = None;
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (None, '>') => return Some((&text[..at], &text[at + 1..])),
            (None, '"' | '\'') => quote = Some(character),
            (Some(open), other) if open == other => quote = None,
            _ => {}
        }
    }
    None
}

fn start(inner: &str) -> Option<Element> {
    let inner = inner.trim();
    let (name, mut rest) = inner.split_once(char::is_whitespace).unwrap_or((inner, ""));
    if name.is_empty() {
        return None;
    }
    let mut members = Map::new();
    loop {
        rest = rest.trim_start();
        if rest.is_empty() {
            return Some(Element { name: name.to_owned(), members, text: String::new() });
        }
        let (key, after) = rest.split_once('=')?;
        let after = after.trim_start();
        let quote = after.chars().next().filter(|quote| matches!(quote, '"' | '\''))?;
        let (value, after) = after[1..].split_once(quote)?;
        members.insert(format!("-{}", key.trim()), Value::String(unescape(value)?));
        rest = after;
    }
}

/// Takes the last open element into the one around it.
fn close(open: &mut Vec<Element>) {
    let Some(Element { name, mut members, text }) = open.pop() else { return };
    let text = text.trim();
    let value = if members.is_empty() {
        Value::String(text.to_owned())
    } else {
        if !text.is_empty() {
            members.insert("#text".to_owned(), Value::String(text.to_owned()));
        }
        Value::Object(members)
    };
    let Some(parent) = open.last_mut() else { return };
    match parent.members.get_mut(&name) {
        None => {
            parent.members.insert(name, value);
        }
        Some(Value::Array(items)) => items.push(value),
        Some(first) => *first = Value::Array(vec![first.take(), value]),
    }
}

fn unescape(text: &str) -> Option<String> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        let (name, after) = after.split_once(';')?;
        plain.push_str(before);
        plain.push(match name {
            "lt" => '<',
            "gt" => '>',
            "amp" => '&',
            "quot" => '"',
            "apos" => '\'',
            _ => {
                let number = name.strip_prefix('#')?;
                let code = number
                    .strip_prefix('x')
                    .map_or_else(|| number.parse().ok(), |hex| u32::from_str_radix(hex, 16).ok());
                char::from_u32(code?)?
            }
        });
        rest = after;
    }
    plain.push_str(rest);
    Some(plain)
}
