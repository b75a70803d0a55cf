//! Functions on objects.

use serde_json::{Map, Value, json};

use super::args::Args;
use super::get;
use crate::meter::Fault;

pub(super) fn create_object(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    if !args.len().is_multiple_of(2) {
        return Err(args.fault("keys and values must come in pairs"));
    }
    let mut map = Map::new();
    for index in (0..args.len()).step_by(2) {
        let key = args.text(index)?.to_owned();
        let value = args.take(index + 1)?;
        map.insert(key, value);
    }
    Ok(Value::Object(map))
}

/// Puts `from` into `into`; with `is_deep` objects within objects are merged too.
fn merge(into: &mut Map<String, Value>, from: Map<String, Value>, is_deep: bool) {
    for (key, value) in from {
        let same = if into.contains_key(&key) {
            Some(key.clone())
        } else {
            into.keys().find(|name| name.eq_ignore_ascii_case(&key)).cloned()
        };
        match (same.and_then(|name| into.get_mut(&name)), value) {
            (Some(Value::Object(old)), Value::Object(new)) if is_deep => merge(old, new, true),
            (Some(old), new) => *old = new,
            (None, new) => {
                into.insert(key, new);
            }
        }
    }
}

/// `union` of objects.
pub(super) fn union(args: &mut Args<'_, '_>) -> Result<Value, Fault> {
    let mut all = Map::new();
    for index in 0..args.len() {
        let Value::Object(map) = args.take(index)? else {
            return Err(args.wrong_taken(index, "an object as the first is"));
        };
        charge_keys(args, &all, &map)?;
        merge(&mut all, map, true);
    }
    Ok(Value::Object(all))
}

/// Finding a key without regard to case is a walk over all of them.
fn charge_keys(args: &Args<'_, '_>, all: &Map<String, Value>, new: &Map<String, Value>) -> Result<(), Fault> {
    args.env.meter.step(all.len().saturating_mul(new.len()) / 8 + new.len())
}

pub(super) fn shallow_merge(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    let Value::Array(items) = args.take(0)? else {
        return Err(args.fault("the argument 'inputs' must be an array of objects"));
    };
    let mut all = Map::new();
    for item in items {
        let Value::Object(map) = item else {
            return Err(args.fault("the argument 'inputs' must be an array of objects"));
        };
        charge_keys(&args, &all, &map)?;
        merge(&mut all, map, false);
    }
    Ok(Value::Object(all))
}

/// `intersection` of objects: members that all have with equal values.
pub(super) fn intersection(args: &mut Args<'_, '_>) -> Result<Value, Fault> {
    let Value::Object(mut common) = args.take(0)? else { return Err(args.wrong_taken(0, "an array or an object")) };
    for index in 1..args.len() {
        let other = args.object(index)?;
        args.env.meter.step(common.len() + other.len())?;
        common.retain(|key, value| get(other, key) == Some(value));
    }
    Ok(Value::Object(common))
}

pub(super) fn items(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    args.object(0)?;
    let Value::Object(map) = args.take(0)? else { return Err(args.fault("the argument 'object' must be an object")) };
    args.env.meter.step(map.len())?;
    args.env.meter.bytes(map.len() * 128)?;
    Ok(Value::Array(map.into_iter().map(|(key, value)| json!({"key": key, "value": value})).collect()))
}

pub(super) fn object_keys(args: Args<'_, '_>) -> Result<Value, Fault> {
    let map = args.object(0)?;
    args.env.meter.step(map.len())?;
    args.env.meter.bytes(map.keys().map(String::len).sum())?;
    Ok(Value::Array(map.keys().map(|key| key.as_str().into()).collect()))
}

/// Walks along keys and indices; null as soon as one is not there.
pub(super) fn try_get(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    let mut value = args.take(0)?;
    for index in 1..args.len() {
        value = match (value, args.get(index)) {
            (Value::Object(mut map), Value::String(name)) => {
                let key = if map.contains_key(name) {
                    Some(name.clone())
                } else {
                    map.keys().find(|key| key.to_lowercase() == name.to_lowercase()).cloned()
                };
                key.and_then(|key| map.remove(&key)).unwrap_or(Value::Null)
            }
            (Value::Array(mut items), Value::Number(number)) => {
                let at = number.as_u64().and_then(|at| usize::try_from(at).ok()).filter(|at| *at < items.len());
                at.map_or(Value::Null, |at| items.swap_remove(at))
            }
            (Value::Null, _) => Value::Null,
            (Value::Object(_), _) => return Err(args.wrong(index, "a string, the name of a property")),
            (Value::Array(_), _) => return Err(args.wrong(index, "an integer, an index")),
            _ => return Err(args.fault("only objects and arrays have members")),
        };
    }
    Ok(value)
}
