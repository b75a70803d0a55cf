//! The known properties of a document: their canonical names and kinds.
//!
//! Clients write `Name` for `name`, `"10"` for `10`, `consumption` for `Consumption`, and `null` for what they do not mean.
//! [`normalise`] turns all that into Azure's spelling before anything is read. Unknown properties pass as they are, as
//! long as nothing is built on them.
//!
//! **Invariant:** after [`normalise`] every known property has the kind its schema says, or was reported and left out.

use std::collections::BTreeMap;

use serde_json::{Map, Number, Value};

use crate::Errors;

/// What is known of a value.
#[derive(Debug)]
pub enum Schema {
    /// An object with known properties, in canonical spelling.
    Object(&'static [(&'static str, &'static Schema)]),
    /// A list of one kind.
    List(&'static Schema),
    /// An object whose keys the user chooses (tags, metadata).
    Map(&'static Schema),
    /// Text; numbers and booleans are taken as their text.
    Text,
    /// Text where `""` means absent.
    TextOrAbsent,
    /// A whole number, also as a string.
    Int,
    /// A number, also as a string.
    Number,
    /// A boolean, also as a string.
    Bool,
    /// One of Azure's words, in any case.
    Word(&'static [&'static str]),
    /// Anything; nulls inside are dropped.
    Any,
}

/// What a `null` means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nulls {
    /// Absent: PUT.
    Drop,
    /// "Remove this": members of objects in a merge patch. Inside lists nulls are always dropped.
    Keep,
}

/// Brings a document to canonical names and kinds; what does not fit is reported under its path and left out.
pub fn normalise(value: &Value, schema: &Schema, nulls: Nulls, errors: &mut Errors) -> Value {
    let mut walk = Walk { nulls, errors };
    walk.value(value, schema, "").unwrap_or(Value::Null)
}

/// The kind of a JSON value in words, for messages.
#[must_use]
pub fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

struct Walk<'e> {
    nulls: Nulls,
    errors: &'e mut Errors,
}

impl Walk<'_> {
    fn value(&mut self, value: &Value, schema: &Schema, path: &str) -> Option<Value> {
        if value.is_null() {
            return None;
        }
        match schema {
            Schema::Object(known) => match value {
                Value::Object(fields) => Some(self.object(fields, known, path)),
                _ => self.refuse(value, "an object", path),
            },
            Schema::Map(item) => match value {
                Value::Object(fields) => Some(self.map(fields, item, path)),
                _ => self.refuse(value, "an object", path),
            },
            Schema::List(item) => match value {
                Value::Array(items) => Some(self.list(items, item, path)),
                _ => self.refuse(value, "a list", path),
            },
            Schema::Text => self.text(value, path),
            Schema::TextOrAbsent => self.text(value, path).filter(|text| text != ""),
            Schema::Int => self.int(value, path),
            Schema::Number => self.number(value, path),
            Schema::Bool => self.bool(value, path),
            Schema::Word(words) => self.word(value, words, path),
            Schema::Any => Some(match self.nulls {
                Nulls::Drop => crate::patch::without_nulls(value),
                Nulls::Keep => value.clone(),
            }),
        }
    }

    fn object(&mut self, fields: &Map<String, Value>, known: &[(&'static str, &Schema)], path: &str) -> Value {
        let mut seen = BTreeMap::new();
        let mut out = Map::new();
        for (name, value) in fields {
            let found = known.iter().find(|(canonical, _)| canonical.eq_ignore_ascii_case(name));
            let canonical = found.map_or(name.as_str(), |(canonical, _)| *canonical);
            let path = join(path, canonical);
            if found.is_some() && seen.insert(canonical, name).is_some() {
                self.errors.invalid(&path, format!("'{canonical}' is given twice in different spellings."));
                continue;
            }
            let item = self.value(value, found.map_or(&Schema::Any, |(_, schema)| schema), &path);
            self.keep(&mut out, canonical, value, item);
        }
        Value::Object(out)
    }

    fn map(&mut self, fields: &Map<String, Value>, schema: &Schema, path: &str) -> Value {
        let mut out = Map::new();
        for (name, value) in fields {
            let item = self.value(value, schema, &join(path, name));
            self.keep(&mut out, name, value, item);
        }
        Value::Object(out)
    }

    fn keep(&self, out: &mut Map<String, Value>, name: &str, given: &Value, item: Option<Value>) {
        match item {
            Some(item) => drop(out.insert(name.to_owned(), item)),
            None if given.is_null() && self.nulls == Nulls::Keep => drop(out.insert(name.to_owned(), Value::Null)),
            None => {}
        }
    }

    fn list(&mut self, items: &[Value], schema: &Schema, path: &str) -> Value {
        let outer = std::mem::replace(&mut self.nulls, Nulls::Drop);
        let kept = items.iter().enumerate().filter_map(|(index, item)| {
            let path = format!("{path}[{index}]");
            self.value(item, schema, &path)
        });
        let kept = Value::Array(kept.collect());
        self.nulls = outer;
        kept
    }

    fn text(&mut self, value: &Value, path: &str) -> Option<Value> {
        match value {
            Value::String(_) => Some(value.clone()),
            Value::Number(number) => Some(Value::String(number.to_string())),
            Value::Bool(flag) => Some(Value::String(flag.to_string())),
            _ => self.refuse(value, "a string", path),
        }
    }

    fn int(&mut self, value: &Value, path: &str) -> Option<Value> {
        let number = match value {
            Value::Number(number) => number.as_i64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) => {
                let text = text.trim();
                text.parse().ok().or_else(|| whole(text.parse().ok()?))
            }
            _ => None,
        };
        match number {
            Some(number) => Some(Value::Number(number.into())),
            None => self.refuse(value, "a whole number", path),
        }
    }

    fn number(&mut self, value: &Value, path: &str) -> Option<Value> {
        let number = match value {
            Value::Number(_) => return Some(value.clone()),
            Value::String(text) => text.trim().parse().ok().and_then(Number::from_f64),
            _ => None,
        };
        match number {
            Some(number) => Some(Value::Number(number)),
            None => self.refuse(value, "a number", path),
        }
    }

    fn bool(&mut self, value: &Value, path: &str) -> Option<Value> {
        match value {
            Value::Bool(_) => Some(value.clone()),
            Value::String(text) if text.eq_ignore_ascii_case("true") => Some(Value::Bool(true)),
            Value::String(text) if text.eq_ignore_ascii_case("false") => Some(Value::Bool(false)),
            _ => self.refuse(value, "true or false", path),
        }
    }

    fn word(&mut self, value: &Value, words: &[&'static str], path: &str) -> Option<Value> {
        let found = value.as_str().and_then(|text| words.iter().find(|word| word.eq_ignore_ascii_case(text.trim())));
        match found {
            Some(word) => Some(Value::String((*word).to_owned())),
            None => self.refuse(value, &format!("one of {}", words.join(", ")), path),
        }
    }

    fn refuse(&mut self, value: &Value, wanted: &str, path: &str) -> Option<Value> {
        let path = if path.is_empty() { "body" } else { path };
        let given = match value {
            Value::String(text) => format!("'{}'", text.chars().take(64).collect::<String>()),
            Value::Number(number) => number.to_string(),
            other => kind_of(other).to_owned(),
        };
        self.errors.invalid(path, format!("the value is {given}; expected {wanted}."));
        None
    }
}

/// A whole number that a double holds exactly.
fn whole(number: f64) -> Option<i64> {
    #[expect(clippy::cast_possible_truncation, reason = "range and fraction are checked")]
    (number.fract() == 0.0 && number.abs() <= 9e15).then_some(number as i64)
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    static THING: Schema = Schema::Object(&[
        ("count", &Schema::Int),
        ("share", &Schema::Number),
        ("on", &Schema::Bool),
        ("mode", &Schema::Word(&["Single", "Multiple"])),
        ("url", &Schema::TextOrAbsent),
        ("meta", &Schema::Map(&Schema::Text)),
        ("items", &Schema::List(&Schema::Object(&[("name", &Schema::Text)]))),
    ]);

    #[test]
    fn spellings_become_one() {
        let given = json!({
            "COUNT": " 10 ", "Share": "0.25", "on": "TRUE", "mode": "single", "url": "", "meta": { "A": 1, "a": true },
            "items": [null, { "Name": "x", "name2": null }], "unknown": { "x": [null, 1] }, "nothing": null,
        });
        let mut errors = Errors::new();
        assert_eq!(
            normalise(&given, &THING, Nulls::Drop, &mut errors),
            json!({
                "count": 10, "share": 0.25, "on": true, "mode": "Single", "meta": { "A": "1", "a": "true" },
                "items": [{ "name": "x" }], "unknown": { "x": [1] },
            })
        );
        assert!(errors.is_empty());
    }

    #[test]
    fn a_patch_keeps_nulls_of_objects_only() {
        let given = json!({ "Count": null, "meta": { "a": null }, "items": [{ "name": null }], "x": { "y": null } });
        let mut errors = Errors::new();
        assert_eq!(
            normalise(&given, &THING, Nulls::Keep, &mut errors),
            json!({ "count": null, "meta": { "a": null }, "items": [{}], "x": { "y": null } })
        );
    }

    #[test]
    fn what_does_not_fit_is_told_and_left_out() {
        let given = json!({ "count": 1.5, "share": "x", "on": 1, "mode": "both", "items": {}, "Url": "a", "url": "b" });
        let mut errors = Errors::new();
        assert_eq!(normalise(&given, &THING, Nulls::Drop, &mut errors), json!({ "url": "a" }));
        let error = errors.into_result().unwrap_err();
        let targets: Vec<_> = error.details.iter().filter_map(|error| error.target.clone()).collect();
        assert_eq!(targets, ["count", "items", "mode", "on", "share", "url"]);
    }
}
