//! Types of parameters, outputs and user functions: built-in ones, and those of `definitions`.
//!
//! **Invariant:** a complaint never shows a secure value.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use crate::functions::{get, kind_of, member};
use crate::meter::VALUE_DEPTH_MAX;

/// Longest chain of `$ref`.
const REF_CHAIN_MAX: usize = 32;

/// The definitions of a template, by name.
pub(crate) type Types = BTreeMap<String, Type>;

/// A type with its constraints.
#[derive(Clone, Debug, Default)]
pub(crate) struct Type {
    pub(crate) shape: Shape,
    pub(crate) is_secure: bool,
    is_nullable: bool,
    allowed: Option<Vec<Value>>,
    length: (Option<u64>, Option<u64>),
    range: (Option<i64>, Option<i64>),
}

/// What a value must look like.
#[derive(Clone, Debug, Default)]
pub(crate) enum Shape {
    #[default]
    Any,
    String,
    Int,
    Bool,
    Object {
        properties: BTreeMap<String, Type>,
        others: Others,
    },
    Array {
        /// Types of the first items.
        prefix: Vec<Type>,
        items: Others,
    },
    /// One of several objects, told apart by a property.
    Tagged {
        property: String,
        mapping: BTreeMap<String, Type>,
    },
    /// `#/definitions/name`.
    Ref(String),
}

/// What may follow beside what is listed.
#[derive(Clone, Debug, Default)]
pub(crate) enum Others {
    #[default]
    Any,
    None,
    Of(Box<Type>),
}

impl Others {
    fn kind(&self) -> Option<&Type> {
        match self {
            Self::Any | Self::None => None,
            Self::Of(kind) => Some(kind),
        }
    }
}

impl Type {
    /// Reads a definition.
    pub(crate) fn parse(value: &Value, depth: usize) -> Result<Self, String> {
        if depth == 0 {
            return Err(format!("the type is nested deeper than {VALUE_DEPTH_MAX} levels"));
        }
        let mut this = Self { is_nullable: flag(value, "nullable")?, ..Self::default() };
        if let Some(reference) = member(value, "$ref") {
            let name = reference.as_str().and_then(|text| text.strip_prefix("#/definitions/"));
            let name = name.ok_or("`$ref` must be written as \"#/definitions/name\"")?;
            this.shape = Shape::Ref(name.to_owned());
        } else {
            let name = member(value, "type")
                .and_then(Value::as_str)
                .ok_or("`type` is missing; write string, int, bool, object or array")?;
            this.is_secure = name.to_ascii_lowercase().starts_with("secure");
            this.shape = match name.to_ascii_lowercase().as_str() {
                "string" | "securestring" => Shape::String,
                "int" => Shape::Int,
                "bool" => Shape::Bool,
                "object" | "secureobject" => object_shape(value, depth)?,
                "array" => array_shape(value, depth)?,
                _ => {
                    return Err(format!(
                        "the type '{name}' is not valid; write string, securestring, int, bool, object, secureObject or array"
                    ));
                }
            };
        }
        if let Some(allowed) = member(value, "allowedValues") {
            this.allowed = Some(allowed.as_array().ok_or("`allowedValues` must be an array")?.clone());
        }
        this.length = (count(value, "minLength")?, count(value, "maxLength")?);
        this.range = (integer(value, "minValue")?, integer(value, "maxValue")?);
        Ok(this)
    }

    /// The type that a chain of `$ref` ends at.
    pub(crate) fn resolve<'t>(&'t self, types: &'t Types) -> Result<&'t Self, String> {
        let mut this = self;
        for _ in 0..REF_CHAIN_MAX {
            let Shape::Ref(name) = &this.shape else { return Ok(this) };
            this = types.get(name).ok_or_else(|| format!("refers to the definition '{name}', which does not exist"))?;
        }
        Err(format!("refers to definitions through more than {REF_CHAIN_MAX} others, or in a circle"))
    }

    /// Whether null is a value of it.
    pub(crate) fn is_nullable(&self, types: &Types) -> bool {
        self.is_nullable || self.resolve(types).is_ok_and(|end| end.is_nullable)
    }

    /// Whether values must never be shown: it is secure, or a part of it is.
    pub(crate) fn is_secret(&self, types: &Types) -> bool {
        self.holds_secret(types, &mut BTreeSet::new())
    }

    /// Whether it or anything within is secure; `seen` are the definitions on the way, which may name themselves.
    fn holds_secret<'t>(&'t self, types: &'t Types, seen: &mut BTreeSet<&'t str>) -> bool {
        let within: Vec<&Type> = match &self.shape {
            Shape::Any | Shape::String | Shape::Int | Shape::Bool => Vec::new(),
            Shape::Object { properties, others } => properties.values().chain(others.kind()).collect(),
            Shape::Array { prefix, items } => prefix.iter().chain(items.kind()).collect(),
            Shape::Tagged { mapping, .. } => mapping.values().collect(),
            Shape::Ref(name) if seen.insert(name) => types.get(name).into_iter().collect(),
            Shape::Ref(_) => Vec::new(),
        };
        self.is_secure || within.into_iter().any(|kind| kind.holds_secret(types, seen))
    }

    /// ARM's word for the type.
    pub(crate) fn name(&self, types: &Types) -> &'static str {
        let Ok(end) = self.resolve(types) else { return "Object" };
        match (&end.shape, end.is_secure) {
            (Shape::String, false) => "String",
            (Shape::String, true) => "SecureString",
            (Shape::Int, _) => "Int",
            (Shape::Bool, _) => "Bool",
            (Shape::Array { .. }, _) => "Array",
            (_, true) => "SecureObject",
            _ => "Object",
        }
    }

    /// Checks a value; the complaint completes "the value …".
    pub(crate) fn check(&self, types: &Types, value: &Value) -> Result<(), String> {
        self.check_at(types, value, &mut String::new())
    }

    fn check_at(&self, types: &Types, value: &Value, at: &mut String) -> Result<(), String> {
        let place = |at: &str| if at.is_empty() { String::new() } else { format!("at '{at}' ") };
        if value.is_null() && self.is_nullable(types) {
            return Ok(());
        }
        let end = self.resolve(types).map_err(|error| format!("{}{error}", place(at)))?;
        let expected = end.shape.check(types, value, at)?;
        if let Some(expected) = expected {
            return Err(format!("{}must be {expected}; {} is given", place(at), kind_of(value)));
        }
        for one in [self, end] {
            one.constraints(value, end.is_secure || self.is_secure).map_err(|error| format!("{}{error}", place(at)))?;
        }
        Ok(())
    }

    fn constraints(&self, value: &Value, is_secret: bool) -> Result<(), String> {
        if let Some(allowed) = &self.allowed
            && !self.is_allowed(allowed, value)
        {
            let list = shown_list(allowed);
            let given = if is_secret { "The value".to_owned() } else { format!("The value '{}'", plain(value)) };
            return Err(format!("is not valid. {given} is not part of the allowed value(s): '{list}'"));
        }
        let length = match value {
            Value::String(text) => Some(text.encode_utf16().count()),
            Value::Array(items) => Some(items.len()),
            _ => None,
        };
        if let Some(length) = length.and_then(|length| u64::try_from(length).ok()) {
            if let Some(least) = self.length.0.filter(|least| length < *least) {
                return Err(format!("is not valid. Its length must be at least {least}; it is {length}"));
            }
            if let Some(most) = self.length.1.filter(|most| length > *most) {
                return Err(format!("is not valid. Its length must be at most {most}; it is {length}"));
            }
        }
        let Some(number) = value.as_i64() else { return Ok(()) };
        if let Some(least) = self.range.0.filter(|least| number < *least) {
            return Err(format!("is not valid. It must be at least {least}"));
        }
        if let Some(most) = self.range.1.filter(|most| number > *most) {
            return Err(format!("is not valid. It must be at most {most}"));
        }
        Ok(())
    }

    fn is_allowed(&self, allowed: &[Value], value: &Value) -> bool {
        let equal = |a: &Value, b: &Value| match (a, b) {
            (Value::String(a), Value::String(b)) => a.eq_ignore_ascii_case(b),
            (a, b) => a == b,
        };
        let is_one = |value: &Value| allowed.iter().any(|one| equal(one, value));
        match (value, &self.shape) {
            // for arrays the allowed values are those of the items, unless they are arrays themselves
            (Value::Array(items), _) if !allowed.iter().any(Value::is_array) => items.iter().all(is_one),
            _ => is_one(value),
        }
    }
}

impl Shape {
    /// What was expected when the value is of another kind; an error when something within is wrong.
    fn check(&self, types: &Types, value: &Value, at: &mut String) -> Result<Option<&'static str>, String> {
        match (self, value) {
            (Self::Any | Self::Ref(_), _) | (Self::String, Value::String(_)) | (Self::Bool, Value::Bool(_)) => Ok(None),
            (Self::Int, Value::Number(number)) if number.is_i64() => Ok(None),
            (Self::Object { properties, others }, Value::Object(map)) => {
                check_object(types, properties, others, map, at).map(|()| None)
            }
            (Self::Array { prefix, items }, Value::Array(list)) => {
                check_array(types, prefix, items, list, at).map(|()| None)
            }
            (Self::Tagged { property, mapping }, Value::Object(map)) => {
                let tag = get(map, property).and_then(Value::as_str);
                let known = || mapping.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                let Some(kind) = tag.and_then(|tag| mapping.get(tag)) else {
                    return Err(format!("must have '{property}' as one of: {}", known()));
                };
                kind.check_at(types, value, at).map(|()| None)
            }
            (Self::String, _) => Ok(Some("a string")),
            (Self::Int, _) => Ok(Some("an integer")),
            (Self::Bool, _) => Ok(Some("a boolean")),
            (Self::Array { .. }, _) => Ok(Some("an array")),
            (Self::Object { .. } | Self::Tagged { .. }, _) => Ok(Some("an object")),
        }
    }
}

/// Checks with `at` made longer by a step.
fn within(at: &mut String, step: &str, check: impl FnOnce(&mut String) -> Result<(), String>) -> Result<(), String> {
    let len = at.len();
    if !at.is_empty() && !step.starts_with('[') {
        at.push('.');
    }
    at.push_str(step);
    check(at)?;
    at.truncate(len);
    Ok(())
}

fn check_object(
    types: &Types,
    properties: &BTreeMap<String, Type>,
    others: &Others,
    map: &serde_json::Map<String, Value>,
    at: &mut String,
) -> Result<(), String> {
    for (name, kind) in properties {
        match get(map, name) {
            Some(value) => within(at, name, |at| kind.check_at(types, value, at))?,
            None if kind.is_nullable(types) => {}
            None => return Err(format!("must have the property '{name}'")),
        }
    }
    let listed = |name: &str| properties.keys().any(|known| known.eq_ignore_ascii_case(name));
    for (name, value) in map.iter().filter(|(name, _)| !listed(name)) {
        match others {
            Others::Any => {}
            Others::None => return Err(format!("has the property '{name}', which its type does not allow")),
            Others::Of(kind) => within(at, name, |at| kind.check_at(types, value, at))?,
        }
    }
    Ok(())
}

fn check_array(types: &Types, prefix: &[Type], items: &Others, list: &[Value], at: &mut String) -> Result<(), String> {
    if list.len() < prefix.len() {
        return Err(format!("must have at least {} items; it has {}", prefix.len(), list.len()));
    }
    for (index, value) in list.iter().enumerate() {
        let kind = match (prefix.get(index), items) {
            (Some(kind), _) => kind,
            (None, Others::Of(kind)) => kind,
            (None, Others::Any) => return Ok(()),
            (None, Others::None) => return Err(format!("must have {} items; it has {}", prefix.len(), list.len())),
        };
        within(at, &format!("[{index}]"), |at| kind.check_at(types, value, at))?;
    }
    Ok(())
}

fn object_shape(value: &Value, depth: usize) -> Result<Shape, String> {
    if let Some(discriminator) = member(value, "discriminator") {
        let property = member(discriminator, "propertyName").and_then(Value::as_str);
        let property = property.ok_or("`discriminator` must have a `propertyName`")?.to_owned();
        let mapping = named(member(discriminator, "mapping"), depth)?;
        return Ok(Shape::Tagged { property, mapping });
    }
    Ok(Shape::Object {
        properties: named(member(value, "properties"), depth)?,
        others: others(member(value, "additionalProperties"), depth)?,
    })
}

fn array_shape(value: &Value, depth: usize) -> Result<Shape, String> {
    let prefix = match member(value, "prefixItems") {
        None => Vec::new(),
        Some(items) => {
            let items = items.as_array().ok_or("`prefixItems` must be an array")?;
            items.iter().map(|item| Type::parse(item, depth - 1)).collect::<Result<_, _>>()?
        }
    };
    Ok(Shape::Array { prefix, items: others(member(value, "items"), depth)? })
}

fn others(value: Option<&Value>, depth: usize) -> Result<Others, String> {
    match value {
        None | Some(Value::Bool(true) | Value::Null) => Ok(Others::Any),
        Some(Value::Bool(false)) => Ok(Others::None),
        Some(value) => Ok(Others::Of(Box::new(Type::parse(value, depth - 1)?))),
    }
}

fn named(value: Option<&Value>, depth: usize) -> Result<BTreeMap<String, Type>, String> {
    let Some(value) = value else { return Ok(BTreeMap::new()) };
    let map = value.as_object().ok_or("`properties` must be an object")?;
    let one = |(name, value): (&String, &Value)| {
        let kind = Type::parse(value, depth - 1).map_err(|error| format!("property '{name}': {error}"))?;
        Ok((name.clone(), kind))
    };
    map.iter().map(one).collect()
}

fn flag(value: &Value, name: &str) -> Result<bool, String> {
    match member(value, name) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(_) => Err(format!("`{name}` must be true or false")),
    }
}

fn integer(value: &Value, name: &str) -> Result<Option<i64>, String> {
    member(value, name).map(|value| value.as_i64().ok_or_else(|| format!("`{name}` must be an integer"))).transpose()
}

fn count(value: &Value, name: &str) -> Result<Option<u64>, String> {
    member(value, name).map(|value| value.as_u64().ok_or_else(|| format!("`{name}` must be 0 or more"))).transpose()
}

fn plain(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    text.chars().take(100).collect()
}

fn shown_list(values: &[Value]) -> String {
    let more = if values.len() > 20 { ",…" } else { "" };
    format!("{}{more}", values.iter().take(20).map(plain).collect::<Vec<_>>().join(","))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_type_with_a_secure_part_is_secret() {
        let kind = |value: Value| Type::parse(&value, VALUE_DEPTH_MAX).unwrap();
        let types: Types = [
            ("login", json!({ "type": "object", "properties": { "password": { "type": "securestring" } } })),
            ("node", json!({ "type": "object", "properties": { "next": { "$ref": "#/definitions/node", "nullable": true } } })),
        ]
        .map(|(name, value)| (name.to_owned(), kind(value)))
        .into();
        for (value, expected) in [
            (json!({ "type": "secureObject" }), true),
            (json!({ "type": "object" }), false),
            (json!({ "$ref": "#/definitions/login" }), true),
            (json!({ "$ref": "#/definitions/node" }), false),
            (json!({ "type": "array", "items": { "$ref": "#/definitions/login" } }), true),
            (json!({ "type": "array", "prefixItems": [{ "type": "int" }, { "type": "securestring" }] }), true),
            (json!({ "type": "object", "additionalProperties": { "type": "securestring" } }), true),
        ] {
            assert_eq!(kind(value.clone()).is_secret(&types), expected, "{value}");
        }
    }
}
