//! The arguments of a call, taken by type; every complaint names the function, the argument and what was expected.
//!
//! **Invariant:** a complaint says of which kind a value is, never the value: it may be a secret.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::Function;
use crate::eval::{Env, Val};
use crate::meter::Fault;

/// Evaluated arguments of one call.
pub(crate) struct Args<'a, 'v> {
    function: &'static Function,
    /// As called, which differs from the table's for `list*`.
    pub(crate) name: &'a str,
    values: Vec<Val<'v>>,
    pub(crate) env: &'a Env<'v>,
}

/// What a value is, in words.
pub(crate) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a number with a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

impl<'a, 'v> Args<'a, 'v> {
    pub(crate) fn new(function: &'static Function, name: &'a str, values: Vec<Val<'v>>, env: &'a Env<'v>) -> Self {
        Self { function, name, values, env }
    }

    pub(crate) fn len(&self) -> usize {
        self.values.len()
    }

    /// The argument, which the signature says is there.
    pub(crate) fn get(&self, index: usize) -> &Value {
        &self.values[index]
    }

    pub(crate) fn optional(&self, index: usize) -> Option<&Value> {
        self.values.get(index).map(Cow::as_ref)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Value> {
        self.values.iter().map(Cow::as_ref)
    }

    /// The argument as one's own; each can be taken once.
    pub(crate) fn take(&mut self, index: usize) -> Result<Value, Fault> {
        let value = std::mem::replace(&mut self.values[index], Cow::Owned(Value::Null));
        self.env.own(value)
    }

    /// A complaint about the call as a whole.
    pub(crate) fn fault(&self, what: impl std::fmt::Display) -> Fault {
        Fault::new(format!("unable to evaluate template language function '{}': {what}", self.name))
    }

    /// A complaint about an argument: `expected` completes "must be …".
    pub(crate) fn wrong(&self, index: usize, expected: impl std::fmt::Display) -> Fault {
        let given = self.optional(index).map_or("nothing", kind_of);
        self.fault(format!("the argument '{}' must be {expected}; {given} is given", self.function.parameter(index)))
    }

    /// As [`Args::wrong`], for an argument that has been taken.
    pub(crate) fn wrong_taken(&self, index: usize, expected: impl std::fmt::Display) -> Fault {
        self.fault(format!("the argument '{}' must be {expected}", self.function.parameter(index)))
    }

    pub(crate) fn text(&self, index: usize) -> Result<&str, Fault> {
        self.get(index).as_str().ok_or_else(|| self.wrong(index, "a string"))
    }

    pub(crate) fn integer(&self, index: usize) -> Result<i64, Fault> {
        self.get(index).as_i64().ok_or_else(|| self.wrong(index, "an integer"))
    }

    /// An integer of `least` to `most`.
    pub(crate) fn size(&self, index: usize, least: usize, most: usize) -> Result<usize, Fault> {
        let number = self.integer(index)?;
        usize::try_from(number).ok().filter(|number| (least..=most).contains(number)).ok_or_else(|| {
            let name = self.function.parameter(index);
            self.fault(format!("the argument '{name}' must be from {least} to {most}; {number} is given"))
        })
    }

    pub(crate) fn boolean(&self, index: usize) -> Result<bool, Fault> {
        self.get(index).as_bool().ok_or_else(|| self.wrong(index, "a boolean"))
    }

    pub(crate) fn list(&self, index: usize) -> Result<&Vec<Value>, Fault> {
        self.get(index).as_array().ok_or_else(|| self.wrong(index, "an array"))
    }

    pub(crate) fn object(&self, index: usize) -> Result<&Map<String, Value>, Fault> {
        self.get(index).as_object().ok_or_else(|| self.wrong(index, "an object"))
    }
}
