//! Evaluates expressions: a walk over the tree that borrows what it can and counts what it makes.
//!
//! **Invariant:** recursion is bounded by `EVAL_DEPTH_MAX`, whatever the template's functions call.

use std::borrow::Cow;
use std::cell::RefCell;

use serde_json::Value;

use crate::expr::{Callee, Expr};
use crate::functions::{self, Args, Run};
use crate::meter::{EVAL_DEPTH_MAX, Fault, Meter, shallow};
use crate::program::{Names, UserFunction};
use crate::resources::ResourceTable;
use crate::runtime::{Need, Runtime};

/// A value, borrowed from the template where possible.
pub(crate) type Val<'v> = Cow<'v, Value>;

/// What an expression can see.
#[derive(Clone, Copy)]
pub(crate) struct Env<'v> {
    pub(crate) names: &'v Names,
    pub(crate) meter: &'v Meter<'v>,
    /// Arguments of the user function that is being evaluated: then the template's parameters are out of sight.
    pub(crate) arguments: Option<&'v [(String, Value)]>,
    pub(crate) lambda: Option<&'v LambdaFrame<'v>>,
    pub(crate) copy: Option<&'v CopyFrame<'v>>,
    pub(crate) world: Option<&'v World<'v>>,
    pub(crate) depth: u16,
}

/// A variable of a lambda.
#[derive(Debug)]
pub(crate) struct LambdaFrame<'v> {
    pub(crate) name: &'v str,
    pub(crate) value: &'v Value,
    pub(crate) outer: Option<&'v LambdaFrame<'v>>,
}

/// A turn of a copy loop.
#[derive(Debug)]
pub(crate) struct CopyFrame<'v> {
    pub(crate) name: &'v str,
    pub(crate) index: usize,
    /// A loop over a resource, variable or output, which `copyIndex()` without a name means.
    pub(crate) is_outer: bool,
    pub(crate) outer: Option<&'v CopyFrame<'v>>,
}

/// What runs: answers, and the resources of the plan.
pub(crate) struct World<'v> {
    pub(crate) runtime: &'v dyn Runtime,
    pub(crate) resources: &'v ResourceTable,
    /// Needs that had no answer.
    pub(crate) needs: &'v RefCell<Vec<Need>>,
    /// Leave expressions that cannot be known yet as their text.
    pub(crate) is_preview: bool,
}

impl World<'_> {
    /// The answer to a need.
    pub(crate) fn answer(&self, need: Need) -> Result<Value, Fault> {
        match self.runtime.lookup(&need) {
            Some(Ok(value)) => Ok(value),
            Some(Err(error)) => Err(Fault::Refused { code: error.code, message: error.message }),
            None => {
                let mut needs = self.needs.borrow_mut();
                if !needs.contains(&need) {
                    needs.push(need);
                }
                Err(Fault::Pending)
            }
        }
    }
}

impl<'v> Env<'v> {
    pub(crate) fn new(names: &'v Names, meter: &'v Meter<'v>) -> Self {
        Self { names, meter, arguments: None, lambda: None, copy: None, world: None, depth: 0 }
    }

    /// The same, one level deeper.
    pub(crate) fn deeper(&self) -> Result<Self, Fault> {
        if self.depth == EVAL_DEPTH_MAX {
            return Err(Fault::new(format!("evaluation is nested deeper than {EVAL_DEPTH_MAX} levels")));
        }
        Ok(Self { depth: self.depth + 1, ..*self })
    }

    /// A value of one's own; a copy is counted.
    pub(crate) fn own(&self, value: Val<'_>) -> Result<Value, Fault> {
        if let Cow::Borrowed(value) = &value {
            self.meter.copy(value)?;
        }
        Ok(value.into_owned())
    }

    /// Evaluates an expression.
    pub(crate) fn eval(&self, expr: &'v Expr) -> Result<Val<'v>, Fault> {
        self.meter.step(1)?;
        match expr {
            Expr::Literal(value) => Ok(Cow::Borrowed(value)),
            Expr::Call { callee, args } => self.deeper()?.call(callee, args),
            Expr::Access { base, keys } => self.deeper()?.access(base, keys),
        }
    }

    fn access(&self, base: &'v Expr, keys: &'v [Expr]) -> Result<Val<'v>, Fault> {
        let mut value = self.eval(base)?;
        for key in keys {
            let key = self.eval(key)?;
            value = match value {
                Cow::Borrowed(value) => Cow::Borrowed(member(value, &key)?),
                Cow::Owned(value) => {
                    let inner = member(&value, &key)?;
                    self.meter.copy(inner)?;
                    Cow::Owned(inner.clone())
                }
            };
        }
        Ok(value)
    }

    fn call(&self, callee: &'v Callee, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
        let (function, name) = match callee {
            Callee::User(name) => return self.call_user(name, args),
            Callee::Builtin(function) => (*function, function.name),
            Callee::List(name) => (functions::list(), name.as_str()),
        };
        match function.run {
            Run::Lazy(run) => run(self, args),
            Run::Plain(run) => {
                let values = self.arguments(args)?;
                let value = run(Args::new(function, name, values, self))?;
                self.meter.bytes(shallow(&value))?;
                Ok(Cow::Owned(value))
            }
        }
    }

    /// All arguments; when some wait for an answer the others are evaluated all the same, so that their needs are known.
    fn arguments(&self, args: &'v [Expr]) -> Result<Vec<Val<'v>>, Fault> {
        let mut values = Vec::with_capacity(args.len());
        let mut pending = false;
        for arg in args {
            match self.eval(arg) {
                Ok(value) => values.push(value),
                Err(Fault::Pending) => pending = true,
                Err(fault) => return Err(fault),
            }
        }
        if pending { Err(Fault::Pending) } else { Ok(values) }
    }

    fn call_user(&self, name: &str, args: &'v [Expr]) -> Result<Val<'v>, Fault> {
        let function: &'v UserFunction = self
            .names
            .functions
            .get(name)
            .ok_or_else(|| Fault::new(format!("the template function '{name}' is not valid")))?;
        let mut arguments = Vec::with_capacity(args.len());
        for (parameter, value) in function.parameters.iter().zip(self.arguments(args)?) {
            let value = self.own(value)?;
            parameter.kind.check(&self.names.types, &value).map_err(|error| {
                Fault::new(format!("the argument '{}' of function '{}' {error}", parameter.name, function.name))
            })?;
            arguments.push((parameter.name.to_lowercase(), value));
        }
        let inner = Env { arguments: Some(&arguments), lambda: None, copy: None, ..*self };
        let value = function.output.evaluate(&inner).and_then(|value| inner.own(value))?;
        function
            .kind
            .check(&self.names.types, &value)
            .map_err(|error| Fault::new(format!("the result of function '{}' {error}", function.name)))?;
        Ok(Cow::Owned(value))
    }
}

/// A member of an object, without regard to case, or an item of a list.
fn member<'a>(value: &'a Value, key: &Value) -> Result<&'a Value, Fault> {
    match (value, key) {
        (Value::Object(map), Value::String(name)) => functions::get(map, name).ok_or_else(|| {
            let names: Vec<&str> = map.keys().take(20).map(String::as_str).collect();
            let more = if map.len() > names.len() { ", …" } else { "" };
            Fault::new(format!(
                "the language expression property '{name}' doesn't exist, available properties are '{}{more}'",
                names.join(", ")
            ))
        }),
        (Value::Array(items), Value::Number(index)) => {
            let item = index.as_u64().and_then(|index| items.get(usize::try_from(index).ok()?));
            item.ok_or_else(|| {
                Fault::new(format!(
                    "the language expression property array index '{index}' is out of bounds; the array has {} items",
                    items.len()
                ))
            })
        }
        (value, key) => Err(Fault::new(format!(
            "the language expression property cannot be read: {} has no member for {}",
            functions::kind_of(value),
            functions::kind_of(key)
        ))),
    }
}
