//! Functions on strings.

use serde_json::Value;

use super::args::Args;
use super::convert::scalar_text;
use crate::meter::Fault;

/// Longest that `padLeft` and an alignment of `format` make a string.
pub(super) const WIDTH_MAX: usize = 10_000;

pub(super) fn to_lower(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(args.text(0)?.to_lowercase().into())
}

pub(super) fn to_upper(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(args.text(0)?.to_uppercase().into())
}

pub(super) fn trim(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(args.text(0)?.trim().into())
}

pub(super) fn starts_with(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(args.text(0)?.to_lowercase().starts_with(&args.text(1)?.to_lowercase()).into())
}

pub(super) fn ends_with(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(args.text(0)?.to_lowercase().ends_with(&args.text(1)?.to_lowercase()).into())
}

pub(super) fn replace(args: Args<'_, '_>) -> Result<Value, Fault> {
    let (text, old, new) = (args.text(0)?, args.text(1)?, args.text(2)?);
    if old.is_empty() {
        return Err(args.fault("the argument 'oldString' must not be empty"));
    }
    args.env.meter.step(text.len() / 64)?;
    // what the answer will take, before it is made
    args.env.meter.bytes(text.len() + text.matches(old).count().saturating_mul(new.len()))?;
    Ok(text.replace(old, new).into())
}

pub(super) fn pad_left(args: Args<'_, '_>) -> Result<Value, Fault> {
    let text = scalar_text(args.get(0)).ok_or_else(|| args.wrong(0, "a string or an integer"))?;
    let width = args.size(1, 0, WIDTH_MAX)?;
    let mut pad = ' ';
    if args.len() > 2 {
        let mut letters = args.text(2)?.chars();
        pad = match (letters.next(), letters.next()) {
            (Some(letter), None) => letter,
            _ => return Err(args.fault("the argument 'paddingCharacter' must be one character")),
        };
    }
    let missing = width.saturating_sub(text.chars().count());
    let mut padded: String = std::iter::repeat_n(pad, missing).collect();
    padded.push_str(&text);
    Ok(padded.into())
}

pub(super) fn substring(args: Args<'_, '_>) -> Result<Value, Fault> {
    let text = args.text(0)?;
    args.env.meter.step(text.len() / 64)?;
    let total = text.chars().count();
    let start = args.size(1, 0, total)?;
    let length = if args.len() > 2 { args.size(2, 0, total - start)? } else { total - start };
    Ok(text.chars().skip(start).take(length).collect::<String>().into())
}

pub(super) fn split(args: Args<'_, '_>) -> Result<Value, Fault> {
    let text = args.text(0)?;
    let delimiters: Vec<&str> = match args.get(1) {
        Value::String(one) => vec![one],
        Value::Array(many) => many
            .iter()
            .map(|one| one.as_str().ok_or_else(|| args.wrong(1, "a string or an array of strings")))
            .collect::<Result<_, _>>()?,
        _ => return Err(args.wrong(1, "a string or an array of strings")),
    };
    let delimiters: Vec<&str> = delimiters.into_iter().filter(|delimiter| !delimiter.is_empty()).collect();
    args.env.meter.step(text.len().saturating_mul(delimiters.len()) / 64)?;
    let mut parts = Vec::new();
    let mut rest = text;
    let next = |rest: &str| {
        let hits = delimiters.iter().filter_map(|delimiter| Some((rest.find(delimiter)?, delimiter.len())));
        hits.min_by_key(|(at, len)| (*at, usize::MAX - len))
    };
    while let Some((at, len)) = next(rest) {
        args.env.meter.step(1 + delimiters.len().saturating_mul(at) / 64)?;
        args.env.meter.bytes(64 + at)?;
        parts.push(rest[..at].into());
        rest = &rest[at + len..];
    }
    parts.push(rest.into());
    Ok(Value::Array(parts))
}

pub(super) fn join(args: Args<'_, '_>) -> Result<Value, Fault> {
    let (items, delimiter) = (args.list(0)?, args.text(1)?);
    let mut text = String::new();
    for (index, item) in items.iter().enumerate() {
        let item = scalar_text(item).ok_or_else(|| args.wrong(0, "an array of strings, numbers or booleans"))?;
        args.env.meter.step(1)?;
        args.env.meter.bytes(item.len() + delimiter.len())?;
        if index > 0 {
            text.push_str(delimiter);
        }
        text.push_str(&item);
    }
    Ok(text.into())
}

/// `format('{0} of {1:N2}', …)` as .NET's composite formatting does it.
pub(super) fn format(args: Args<'_, '_>) -> Result<Value, Fault> {
    let values: Vec<&Value> = args.iter().skip(1).collect();
    let text = super::format::compose(args.text(0)?, &values, args.env.meter, |fault| args.fault(fault))?;
    Ok(text.into())
}

pub(super) fn string(mut args: Args<'_, '_>) -> Result<Value, Fault> {
    if args.get(0).is_string() {
        return args.take(0);
    }
    let value = args.get(0);
    args.env.meter.copy(value)?;
    Ok(scalar_text(value).map_or_else(|| value.to_string(), std::borrow::Cow::into_owned).into())
}

pub(super) fn fail(args: Args<'_, '_>) -> Result<Value, Fault> {
    Err(Fault::new(args.text(0)?.to_owned()))
}
