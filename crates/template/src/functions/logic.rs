//! Logical functions and comparisons; `if`, `and`, `or` and `coalesce` evaluate only what they need.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::args::{Args, kind_of};
use crate::eval::{Env, Val};
use crate::expr::Expr;
use crate::meter::Fault;

fn truth(value: &Value, function: &str, argument: &str) -> Result<bool, Fault> {
    value.as_bool().ok_or_else(|| {
        Fault::new(format!(
            "unable to evaluate template language function '{function}': the argument '{argument}' must be a boolean; {} is given",
            kind_of(value)
        ))
    })
}

pub(super) fn if_<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let condition = truth(env.eval(&args[0])?.as_ref(), "if", "condition")?;
    env.eval(&args[if condition { 1 } else { 2 }])
}

fn until<'v>(env: &Env<'v>, args: &'v [Expr], name: &str, end: bool) -> Result<Val<'v>, Fault> {
    for arg in args {
        if truth(env.eval(arg)?.as_ref(), name, "operand")? == end {
            return Ok(Cow::Owned(Value::Bool(end)));
        }
    }
    Ok(Cow::Owned(Value::Bool(!end)))
}

pub(super) fn and<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    until(env, args, "and", false)
}

pub(super) fn or<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    until(env, args, "or", true)
}

pub(super) fn coalesce<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    for arg in args {
        let value = env.eval(arg)?;
        if !value.is_null() {
            return Ok(value);
        }
    }
    Ok(Cow::Owned(Value::Null))
}

pub(super) fn not(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Bool(!args.boolean(0)?))
}

pub(super) fn true_(_: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Bool(true))
}

pub(super) fn false_(_: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Bool(false))
}

pub(super) fn null(_: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Null)
}

pub(super) fn equals(args: Args<'_, '_>) -> Result<Value, Fault> {
    let (a, b) = (args.get(0), args.get(1));
    args.env.meter.step(crate::meter::shallow(a) / 32)?;
    let same = match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64() && (a.is_f64() || b.is_f64() || a == b),
        (a, b) => a == b,
    };
    Ok(Value::Bool(same))
}

fn order(args: &Args<'_, '_>) -> Result<Ordering, Fault> {
    match (args.get(0), args.get(1)) {
        (Value::Number(a), Value::Number(b)) => match (a.as_i64(), b.as_i64()) {
            (Some(a), Some(b)) => Ok(a.cmp(&b)),
            _ => Ok(a.as_f64().partial_cmp(&b.as_f64()).unwrap_or(Ordering::Equal)),
        },
        (Value::String(a), Value::String(b)) => Ok(a.cmp(b)),
        (Value::Number(_), _) => Err(args.wrong(1, "a number as the first is")),
        (Value::String(_), _) => Err(args.wrong(1, "a string as the first is")),
        _ => Err(args.wrong(0, "a number or a string")),
    }
}

pub(super) fn less(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Bool(order(&args)?.is_lt()))
}

pub(super) fn less_or_equals(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Bool(order(&args)?.is_le()))
}

pub(super) fn greater(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Bool(order(&args)?.is_gt()))
}

pub(super) fn greater_or_equals(args: Args<'_, '_>) -> Result<Value, Fault> {
    Ok(Value::Bool(order(&args)?.is_ge()))
}

pub(super) fn bool_(args: Args<'_, '_>) -> Result<Value, Fault> {
    match args.get(0) {
        value @ Value::Bool(_) => Ok(value.clone()),
        Value::Number(number) if number.is_i64() => Ok(Value::Bool(number.as_i64() != Some(0))),
        Value::String(text) if text.eq_ignore_ascii_case("true") || text == "1" => Ok(Value::Bool(true)),
        Value::String(text) if text.eq_ignore_ascii_case("false") || text == "0" => Ok(Value::Bool(false)),
        _ => Err(args.wrong(0, "`true`, `false` or an integer")),
    }
}
