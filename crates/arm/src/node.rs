//! A place in a normalised document: its value, if any, and its path for messages.

use serde_json::Value;

/// A value with its path; absent values are nodes too, so that reading needs no checks on the way.
#[derive(Clone, Debug)]
pub(crate) struct Node<'a> {
    value: Option<&'a Value>,
    /// Path as it stands in error targets.
    pub(crate) path: String,
}

impl<'a> Node<'a> {
    /// The root of a document.
    pub(crate) fn root(value: &'a Value) -> Self {
        Self { value: Some(value), path: String::new() }
    }

    /// A member.
    pub(crate) fn get(&self, name: &str) -> Self {
        let path = if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) };
        Self { value: self.value.and_then(|value| value.get(name)).filter(|value| !value.is_null()), path }
    }

    /// The items of a list; none when absent.
    pub(crate) fn items(&self) -> Vec<Node<'a>> {
        let items = self.value.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let node = |(index, item)| Node { value: Some(item), path: format!("{}[{index}]", self.path) };
        items.iter().enumerate().map(node).collect()
    }

    /// The members of an object; none when absent.
    pub(crate) fn members(&self) -> Vec<(&'a str, Node<'a>)> {
        let Some(fields) = self.value.and_then(Value::as_object) else { return Vec::new() };
        let node = |(name, value): (&'a String, &'a Value)| {
            (name.as_str(), Node { value: Some(value), path: format!("{}.{name}", self.path) })
        };
        fields.iter().map(node).collect()
    }

    /// Whether it is there.
    pub(crate) fn exists(&self) -> bool {
        self.value.is_some()
    }

    /// The value, if it is there.
    pub(crate) fn value(&self) -> Option<&'a Value> {
        self.value
    }

    /// Its text, if it is there.
    pub(crate) fn text(&self) -> Option<&'a str> {
        self.value.and_then(Value::as_str)
    }

    /// Its whole number, if it is there.
    pub(crate) fn int(&self) -> Option<i64> {
        self.value.and_then(Value::as_i64)
    }

    /// Its number, if it is there.
    pub(crate) fn number(&self) -> Option<f64> {
        self.value.and_then(Value::as_f64)
    }

    /// Its flag, if it is there.
    pub(crate) fn flag(&self) -> Option<bool> {
        self.value.and_then(Value::as_bool)
    }
}
