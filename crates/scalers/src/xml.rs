//! XML answers as a tree, whatever prefixes their names have.
//!
//! **Invariant:** bounded depth, no document types: see `cove_scaling::source::xml_tree`.

use serde_json::Value;

use crate::source::ReadError;

/// The document as a tree whose only member is its root element.
///
/// # Errors
/// `text` is no XML.
pub(crate) fn read(text: &str, place: &str) -> Result<Value, ReadError> {
    let text = text.trim_start_matches('\u{feff}');
    cove_scaling::source::xml_tree(text).map_err(|error| ReadError::new(format!("{place}: {error}")))
}

/// The first element `name` in `tree`.
pub(crate) fn child<'a>(tree: &'a Value, name: &'a str) -> Option<&'a Value> {
    children(tree, name).next()
}

/// The elements `name` in `tree`; prefixes of namespaces do not count.
pub(crate) fn children<'a>(tree: &'a Value, name: &'a str) -> impl Iterator<Item = &'a Value> {
    let members = tree.as_object().into_iter().flatten();
    let named = members.filter(move |(key, _)| key.rsplit(':').next() == Some(name) && !key.starts_with('-'));
    named.flat_map(|(_, value)| match value {
        Value::Array(items) => items.as_slice(),
        one => std::slice::from_ref(one),
    })
}

/// The text of an element, with or without attributes.
pub(crate) fn text(element: &Value) -> &str {
    element.as_str().or_else(|| element.get("#text")?.as_str()).unwrap_or_default()
}
