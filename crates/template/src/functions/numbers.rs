//! Numeric functions: 64-bit integers; what does not fit is an error.

use serde_json::{Number, Value};

use super::args::Args;
use crate::meter::Fault;

/// Most items that `range` makes, ARM's limit.
pub(super) const RANGE_MAX: usize = 10_000;

fn arithmetic(args: &Args<'_, '_>, run: fn(i64, i64) -> Option<i64>) -> Result<Value, Fault> {
    let (a, b) = (args.integer(0)?, args.integer(1)?);
    run(a, b).map(Value::from).ok_or_else(|| args.fault("the result does not fit into a 64-bit integer"))
}

pub(super) fn add(args: Args<'_, '_>) -> Result<Value, Fault> {
    arithmetic(&args, i64::checked_add)
}

pub(super) fn sub(args: Args<'_, '_>) -> Result<Value, Fault> {
    arithmetic(&args, i64::checked_sub)
}

pub(super) fn mul(args: Args<'_, '_>) -> Result<Value, Fault> {
    arithmetic(&args, i64::checked_mul)
}

pub(super) fn div(args: Args<'_, '_>) -> Result<Value, Fault> {
    not_by_zero(&args)?;
    arithmetic(&args, i64::checked_div)
}

pub(super) fn mod_(args: Args<'_, '_>) -> Result<Value, Fault> {
    not_by_zero(&args)?;
    arithmetic(&args, |a, b| Some(a.checked_rem(b).unwrap_or(0)))
}

fn not_by_zero(args: &Args<'_, '_>) -> Result<(), Fault> {
    if args.integer(1)? == 0 { Err(args.fault("division by zero")) } else { Ok(()) }
}

/// All operands: integers as arguments, or one array of them.
fn operands(args: &Args<'_, '_>) -> Result<Vec<i64>, Fault> {
    if let (Some(Value::Array(items)), 1) = (args.optional(0), args.len()) {
        args.env.meter.step(items.len())?;
        let numbers: Option<Vec<i64>> = items.iter().map(Value::as_i64).collect();
        return numbers.filter(|numbers| !numbers.is_empty()).ok_or_else(|| args.wrong(0, "integers, at least one"));
    }
    (0..args.len()).map(|index| args.integer(index)).collect()
}

pub(super) fn min(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(operands(&args)?.into_iter().min().map_or(Value::Null, Value::from))
}

pub(super) fn max(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(operands(&args)?.into_iter().max().map_or(Value::Null, Value::from))
}

pub(super) fn int(args: Args<'_, '_>) -> Result<Value, Fault> {
    match args.get(0) {
        Value::Number(number) if !number.is_f64() => args.integer(0).map(Value::from),
        #[expect(clippy::cast_possible_truncation, reason = "the range is checked; a fraction is dropped as in Azure")]
        Value::Number(number) => {
            let float = number.as_f64().unwrap_or_default();
            if float.abs() < 9.2e18 { Ok(Value::from(float as i64)) } else { Err(args.wrong(0, "a 64-bit integer")) }
        }
        Value::String(text) => {
            text.trim().parse::<i64>().map(Value::from).map_err(|_| args.wrong(0, "the digits of a 64-bit integer"))
        }
        _ => Err(args.wrong(0, "an integer or a string of digits")),
    }
}

pub(super) fn float(args: Args<'_, '_>) -> Result<Value, Fault> {
    let number = match args.get(0) {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    number.and_then(Number::from_f64).map(Value::Number).ok_or_else(|| args.wrong(0, "a number or a string of digits"))
}

pub(super) fn range(args: Args<'_, '_>) -> Result<Value, Fault> {
    let start = args.integer(0)?;
    let count = args.size(1, 0, RANGE_MAX)?;
    args.env.meter.step(count)?;
    let end = i64::try_from(count).ok().and_then(|count| start.checked_add(count));
    let end = end.filter(|end| *end <= i64::from(i32::MAX) + 1);
    let end = end.ok_or_else(|| args.fault(format!("the sum of start and count must be at most {}", i32::MAX)))?;
    Ok(Value::Array((start..end).map(Value::from).collect()))
}
