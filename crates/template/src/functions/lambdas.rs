//! Functions that take a `lambda`: `map`, `filter`, `reduce`, `sort`, ….

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::args::kind_of;
use crate::eval::{Env, LambdaFrame, Val};
use crate::expr::{Callee, Expr};
use crate::meter::{Fault, check_depth};

fn fault(function: &str, what: impl std::fmt::Display) -> Fault {
    Fault::new(format!("unable to evaluate template language function '{function}': {what}"))
}

/// `lambda('a', 'b', body)` taken apart.
struct Lambda<'v> {
    names: Vec<&'v str>,
    body: &'v Expr,
}

impl<'v> Lambda<'v> {
    fn of(expr: &'v Expr, function: &str, least: usize, most: usize) -> Result<Self, Fault> {
        let expected = || {
            let names = ["'item'", "'a', 'b'", "'a', 'b', 'index'"][least.clamp(1, 3) - 1];
            fault(function, format!("the function must be written here, as lambda({names}, …)"))
        };
        let Expr::Call { callee: Callee::Builtin(lambda), args } = expr else { return Err(expected()) };
        let Some((body, names)) = args.split_last().filter(|_| lambda.name == "lambda") else { return Err(expected()) };
        let names: Option<Vec<&str>> = names.iter().map(Expr::as_text).collect();
        let names = names.filter(|names| (least..=most).contains(&names.len())).ok_or_else(expected)?;
        Ok(Self { names, body })
    }

    /// The body's value for these arguments; arguments that the lambda does not name are left out.
    fn apply(&self, env: &Env<'v>, values: &[&Value]) -> Result<Value, Fault> {
        fn frames(env: &Env<'_>, names: &[&str], values: &[&Value], body: &Expr) -> Result<Value, Fault> {
            let ([name, names @ ..], [value, values @ ..]) = (names, values) else {
                let value = env.eval(body)?;
                return env.own(value);
            };
            let frame = LambdaFrame { name, value, outer: env.lambda };
            frames(&Env { lambda: Some(&frame), ..*env }, names, values, body)
        }
        env.meter.step(1)?;
        frames(env, &self.names, values, self.body)
    }

    fn holds(&self, env: &Env<'v>, values: &[&Value], function: &str) -> Result<bool, Fault> {
        let value = self.apply(env, values)?;
        let wrong = || fault(function, format!("the lambda must give a boolean; {} is given", kind_of(&value)));
        value.as_bool().ok_or_else(wrong)
    }

    fn key(&self, env: &Env<'v>, value: &Value, function: &str) -> Result<String, Fault> {
        match self.apply(env, &[value])? {
            Value::String(key) => Ok(key),
            other => Err(fault(function, format!("the lambda must give a string; {} is given", kind_of(&other)))),
        }
    }
}

fn items<'a>(value: &'a Value, function: &str) -> Result<&'a Vec<Value>, Fault> {
    let wrong = || fault(function, format!("the argument 'inputArray' must be an array; {} is given", kind_of(value)));
    value.as_array().ok_or_else(wrong)
}

fn copy(env: &Env<'_>, value: &Value) -> Result<Value, Fault> {
    env.meter.copy(value)?;
    env.meter.item("")?;
    Ok(value.clone())
}

pub(super) fn lambda<'v>(_: &Env<'v>, _: &'v [Expr]) -> Result<Val<'v>, Fault> {
    Err(fault("lambda", "it can only be an argument of map, filter, reduce, sort, toObject, mapValues or groupBy"))
}

pub(super) fn lambda_variables<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let name = env.eval(&args[0])?;
    let wanted =
        name.as_str().ok_or_else(|| fault("lambdaVariables", "the argument 'variableName' must be a string"))?;
    let mut frame = env.lambda;
    while let Some(LambdaFrame { name, value, outer }) = frame {
        if name.eq_ignore_ascii_case(wanted) {
            return Ok(Cow::Borrowed(value));
        }
        frame = *outer;
    }
    Err(fault("lambdaVariables", format!("no lambda around it has a variable '{wanted}'")))
}

pub(super) fn filter<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let list = env.eval(&args[0])?;
    let lambda = Lambda::of(&args[1], "filter", 1, 2)?;
    let mut kept = Vec::new();
    for (index, item) in items(&list, "filter")?.iter().enumerate() {
        if lambda.holds(env, &[item, &index.into()], "filter")? {
            kept.push(copy(env, item)?);
        }
    }
    Ok(Cow::Owned(Value::Array(kept)))
}

pub(super) fn map<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let list = env.eval(&args[0])?;
    let lambda = Lambda::of(&args[1], "map", 1, 2)?;
    let mut mapped = Vec::new();
    let mut is_pending = false;
    for (index, item) in items(&list, "map")?.iter().enumerate() {
        match lambda.apply(env, &[item, &index.into()]) {
            Ok(value) => {
                env.meter.item("")?;
                mapped.push(value);
            }
            Err(Fault::Pending) => is_pending = true,
            Err(fault) => return Err(fault),
        }
    }
    if is_pending { Err(Fault::Pending) } else { Ok(Cow::Owned(Value::Array(mapped))) }
}

pub(super) fn map_values<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let object = env.eval(&args[0])?;
    let lambda = Lambda::of(&args[1], "mapValues", 1, 1)?;
    let Value::Object(map) = object.as_ref() else {
        return Err(fault(
            "mapValues",
            format!("the argument 'inputObject' must be an object; {} is given", kind_of(&object)),
        ));
    };
    let mapped: Result<Map<_, _>, Fault> =
        map.iter().map(|(key, value)| Ok((key.clone(), lambda.apply(env, &[value])?))).collect();
    Ok(Cow::Owned(Value::Object(mapped?)))
}

pub(super) fn reduce<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let list = env.eval(&args[0])?;
    let lambda = Lambda::of(&args[2], "reduce", 2, 3)?;
    let first = env.eval(&args[1])?;
    let mut sum = env.own(first)?;
    for (index, item) in items(&list, "reduce")?.iter().enumerate() {
        sum = lambda.apply(env, &[&sum, item, &index.into()])?;
        check_depth(&sum)?;
    }
    Ok(Cow::Owned(sum))
}

pub(super) fn sort<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    fn merge_sort(list: Vec<Value>, less: &dyn Fn(&Value, &Value) -> Result<bool, Fault>) -> Result<Vec<Value>, Fault> {
        if list.len() < 2 {
            return Ok(list);
        }
        let mut left = list;
        let right = left.split_off(left.len() / 2);
        let mut left = merge_sort(left, less)?.into_iter().peekable();
        let mut right = merge_sort(right, less)?.into_iter().peekable();
        let mut merged = Vec::with_capacity(left.len() + right.len());
        while let (Some(a), Some(b)) = (left.peek(), right.peek()) {
            // the right one only when it is really less, so that equal ones keep their order
            let next = if less(b, a)? { right.next() } else { left.next() };
            merged.extend(next);
        }
        merged.extend(left.chain(right));
        Ok(merged)
    }
    let list = env.eval(&args[0])?;
    let lambda = Lambda::of(&args[1], "sort", 2, 2)?;
    items(&list, "sort")?;
    let Value::Array(list) = env.own(list)? else { return Err(fault("sort", "an array is expected")) };
    let sorted = merge_sort(list, &|a, b| lambda.holds(env, &[a, b], "sort"))?;
    Ok(Cow::Owned(Value::Array(sorted)))
}

pub(super) fn to_object<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let list = env.eval(&args[0])?;
    let key = Lambda::of(&args[1], "toObject", 1, 1)?;
    let value = args.get(2).map(|arg| Lambda::of(arg, "toObject", 1, 1)).transpose()?;
    let mut map = Map::new();
    for item in items(&list, "toObject")? {
        let key = key.key(env, item, "toObject")?;
        let value = match &value {
            Some(value) => {
                env.meter.item(&key)?;
                value.apply(env, &[item])?
            }
            None => copy(env, item)?,
        };
        map.insert(key, value);
    }
    Ok(Cow::Owned(Value::Object(map)))
}

pub(super) fn group_by<'v>(env: &Env<'v>, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
    let list = env.eval(&args[0])?;
    let key = Lambda::of(&args[1], "groupBy", 1, 1)?;
    let mut groups = Map::new();
    for item in items(&list, "groupBy")? {
        let group = groups.entry(key.key(env, item, "groupBy")?).or_insert_with(|| Value::Array(Vec::new()));
        let item = copy(env, item)?;
        group.as_array_mut().expect("every group is made as an array").push(item);
    }
    Ok(Cow::Owned(Value::Object(groups)))
}
