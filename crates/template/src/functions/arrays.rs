//! Functions on arrays, and those that take arrays, strings and objects alike.

use serde_json::Value;

use super::args::Args;
use super::convert::scalar_text;
use super::{get, objects};
use crate::meter::Fault;

pub(super) fn array(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    match args.take(0)? {
        list @ Value::Array(_) => Ok(list),
        other => Ok(Value::Array(vec![other])),
    }
}

pub(super) fn create_array(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    (0..args.len()).map(|index| args.take(index)).collect::<Result<_, _>>().map(Value::Array)
}

pub(super) fn concat(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    if args.get(0).is_array() {
        let mut all = Vec::new();
        for index in 0..args.len() {
            match args.take(index)? {
                Value::Array(mut items) => {
                    args.env.meter.step(items.len())?;
                    all.append(&mut items);
                }
                _ => return Err(args.wrong_taken(index, "an array as the first is")),
            }
        }
        return Ok(Value::Array(all));
    }
    let mut text = String::new();
    for (index, value) in args.iter().enumerate() {
        text.push_str(&scalar_text(value).ok_or_else(|| args.wrong(index, "a string, a number or a boolean"))?);
        args.env.meter.step(1 + text.len() / 4096)?;
    }
    Ok(Value::String(text))
}

pub(super) fn contains(args: Args<'_, '_>) -> Result<Value, Fault> {
    let found = match args.get(0) {
        Value::Array(items) => {
            args.env.meter.step(items.len())?;
            items.contains(args.get(1))
        }
        Value::Object(map) => {
            args.env.meter.step(map.len())?;
            get(map, args.text(1)?).is_some()
        }
        Value::String(text) => {
            let part = scalar_text(args.get(1)).ok_or_else(|| args.wrong(1, "a string"))?;
            args.env.meter.step(text.len() / 64)?;
            text.contains(part.as_ref())
        }
        _ => return Err(args.wrong(0, "an array, an object or a string")),
    };
    Ok(Value::Bool(found))
}

pub(super) fn empty(args: Args<'_, '_>) -> Result<Value, Fault> {
    let is_empty = match args.get(0) {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => return Err(args.wrong(0, "an array, an object or a string")),
    };
    Ok(Value::Bool(is_empty))
}

pub(super) fn length(args: Args<'_, '_>) -> Result<Value, Fault> {
    let length = match args.get(0) {
        Value::Array(items) => items.len(),
        Value::Object(map) => map.len(),
        // ARM counts UTF-16 units, as .NET does
        Value::String(text) => {
            args.env.meter.step(text.len() / 64)?;
            text.encode_utf16().count()
        }
        _ => return Err(args.wrong(0, "an array, an object or a string")),
    };
    Ok(Value::from(length))
}

fn end_of(
    args: &Args<'_, '_>,
    pick: fn(&[Value]) -> Option<&Value>,
    letter: fn(&str) -> Option<char>,
) -> Result<Value, Fault> {
    match args.get(0) {
        Value::Array(items) => match pick(items) {
            Some(item) => {
                args.env.meter.copy(item)?;
                Ok(item.clone())
            }
            None => Ok(Value::Null),
        },
        Value::String(text) => Ok(letter(text).map(String::from).unwrap_or_default().into()),
        _ => Err(args.wrong(0, "an array or a string")),
    }
}

pub(super) fn first(args: Args<'_, '_>) -> Result<Value, Fault> {
    end_of(&args, <[Value]>::first, |text| text.chars().next())
}

pub(super) fn last(args: Args<'_, '_>) -> Result<Value, Fault> {
    end_of(&args, <[Value]>::last, |text| text.chars().next_back())
}

/// Index in characters of the match at byte `at`.
fn index_in(text: &str, at: Option<usize>) -> Value {
    at.map_or_else(|| Value::from(-1), |at| Value::from(text[..at].chars().count()))
}

fn find_index(args: &Args<'_, '_>, is_last: bool) -> Result<Value, Fault> {
    match args.get(0) {
        Value::Array(items) => {
            args.env.meter.step(items.len())?;
            let wanted = args.get(1);
            let at = if is_last {
                items.iter().rposition(|item| item == wanted)
            } else {
                items.iter().position(|item| item == wanted)
            };
            Ok(at.map_or_else(|| Value::from(-1), Value::from))
        }
        Value::String(text) => {
            args.env.meter.step(text.len() / 16)?;
            let (text, part) = (text.to_lowercase(), args.text(1)?.to_lowercase());
            Ok(index_in(&text, if is_last { text.rfind(&part) } else { text.find(&part) }))
        }
        _ => Err(args.wrong(0, "an array or a string")),
    }
}

pub(super) fn index_of(args: Args<'_, '_>) -> Result<Value, Fault> {
    find_index(&args, false)
}

pub(super) fn last_index_of(args: Args<'_, '_>) -> Result<Value, Fault> {
    find_index(&args, true)
}

/// How many to take or skip: below zero counts as zero.
fn count(args: &Args<'_, '_>) -> Result<usize, Fault> {
    Ok(usize::try_from(args.integer(1)?.max(0)).unwrap_or(usize::MAX))
}

pub(super) fn skip(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    let count = count(&args)?;
    match args.take(0)? {
        Value::Array(items) => Ok(Value::Array(items.into_iter().skip(count).collect())),
        Value::String(text) => Ok(text.chars().skip(count).collect::<String>().into()),
        _ => Err(args.wrong_taken(0, "an array or a string")),
    }
}

pub(super) fn take(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    let count = count(&args)?;
    match args.take(0)? {
        Value::Array(mut items) => {
            items.truncate(count);
            Ok(Value::Array(items))
        }
        Value::String(text) => Ok(text.chars().take(count).collect::<String>().into()),
        _ => Err(args.wrong_taken(0, "an array or a string")),
    }
}

/// Refuses to compare each with each when that is too much.
fn charge_pairs(args: &Args<'_, '_>, a: usize, b: usize) -> Result<(), Fault> {
    args.env.meter.step(a.saturating_mul(b) / 4 + a + b)
}

pub(super) fn union(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    if !args.get(0).is_array() {
        return objects::union(&mut args);
    }
    let mut all: Vec<Value> = Vec::new();
    for index in 0..args.len() {
        let Value::Array(items) = args.take(index)? else {
            return Err(args.wrong_taken(index, "an array as the first is"));
        };
        for item in items {
            charge_pairs(&args, all.len(), 1)?;
            if !all.contains(&item) {
                all.push(item);
            }
        }
    }
    Ok(Value::Array(all))
}

pub(super) fn intersection(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    if !args.get(0).is_array() {
        return objects::intersection(&mut args);
    }
    let Value::Array(items) = args.take(0)? else { return Err(args.wrong_taken(0, "an array")) };
    let mut common: Vec<Value> = Vec::new();
    for item in items {
        charge_pairs(&args, common.len(), 1)?;
        if !common.contains(&item) {
            common.push(item);
        }
    }
    for index in 1..args.len() {
        let other = args.list(index)?;
        charge_pairs(&args, common.len(), other.len())?;
        common.retain(|item| other.contains(item));
    }
    Ok(Value::Array(common))
}

pub(super) fn flatten(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    let Value::Array(items) = args.take(0)? else { return Err(args.wrong_taken(0, "an array of arrays")) };
    let mut all = Vec::new();
    for item in items {
        let Value::Array(mut inner) = item else { return Err(args.wrong_taken(0, "an array of arrays")) };
        args.env.meter.step(inner.len())?;
        all.append(&mut inner);
    }
    Ok(Value::Array(all))
}

/// The item that `back` counts from the end, 1 is the last.
fn from_end(args: &Args<'_, '_>) -> Result<Option<Value>, Fault> {
    let items = args.list(0)?;
    let back = usize::try_from(args.integer(1)?).ok().filter(|back| *back > 0);
    let item = back.and_then(|back| items.len().checked_sub(back)).and_then(|at| items.get(at));
    let Some(item) = item else { return Ok(None) };
    args.env.meter.copy(item)?;
    Ok(Some(item.clone()))
}

pub(super) fn index_from_end(args: Args<'_, '_>) -> Result<Value, Fault> {
    let len = args.list(0)?.len();
    from_end(&args)?.ok_or_else(|| args.fault(format!("the argument 'index' must be from 1 to {len}")))
}

pub(super) fn try_index_from_end(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(from_end(&args)?.unwrap_or(Value::Null))
}
