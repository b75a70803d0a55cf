//! Nested deployments: a template within a template.
//!
//! With inner scope the nested template is a deployment of its own and is passed on as it is. With outer scope its
//! expressions mean the names of the template around it: they are replaced by their values here, save for what only can be
//! known while it runs (`reference`, `list*`, its own loops), of which the known parts are replaced.
//!
//! **Invariant:** what leaves this module needs no parameter, variable or function of the outer template.

use serde_json::{Map, Value};

use crate::eval::Env;
use crate::expr::{self, Callee, Expr, Known, Place};
use crate::functions::{Availability, member};
use crate::meter::Fault;
use crate::node::{Compiler, Halt};
use crate::path::{Errors, Path};

/// The template of a nested deployment.
#[derive(Debug)]
pub(crate) enum Nested {
    /// Inner scope: as written.
    Inner(Value),
    /// Outer scope: to be rewritten.
    Outer(Box<Outer>),
}

/// A nested template in outer scope, compiled.
#[derive(Debug)]
pub(crate) enum Outer {
    Plain(Value),
    Text(Expr),
    List(Vec<Outer>),
    /// Members, and whether a loop of the nested template is on the object.
    Object(Vec<(OuterKey, Outer)>, bool),
}

/// A key of an object.
#[derive(Debug)]
pub(crate) enum OuterKey {
    Plain(String),
    Text(Expr),
}

/// Reads `properties.template` of a nested deployment.
pub(crate) fn read(
    resource: &Value,
    path: &Path<'_>,
    known: &Known<'_>,
    is_symbolic: bool,
    errors: &Errors,
) -> Option<Nested> {
    let properties = member(resource, "properties")?;
    let template = member(properties, "template").filter(|template| !template.is_null())?;
    let at = path.key("properties");
    let at = at.key("template");
    if is_inner(properties, is_symbolic) {
        return Some(Nested::Inner(template.clone()));
    }
    let compiler = Compiler { place: Place::Body, known: *known, errors };
    Some(Nested::Outer(Box::new(outer(template, &compiler, &at, true))))
}

fn is_inner(properties: &Value, is_symbolic: bool) -> bool {
    let scope = member(properties, "expressionEvaluationOptions").and_then(|options| member(options, "scope"));
    match scope.and_then(Value::as_str) {
        Some(scope) if scope.eq_ignore_ascii_case("inner") => true,
        Some(scope) if scope.eq_ignore_ascii_case("outer") => false,
        // language version 2.0 has inner scope where nothing is said
        _ => is_symbolic,
    }
}

fn outer(value: &Value, compiler: &Compiler<'_>, path: &Path<'_>, is_root: bool) -> Outer {
    let parse = |text: &str, path: &Path<'_>| match expr::parse(text, compiler.place, &compiler.known) {
        Ok(expr) => expr,
        Err(message) => {
            compiler.errors.invalid(path, message);
            Expr::Literal(Value::Null)
        }
    };
    match value {
        Value::String(text) => match expr::expression_of(text) {
            Some(source) => Outer::Text(parse(source, path)),
            // an escape stays one, since the result is read as a template again
            None => Outer::Plain(text.as_str().into()),
        },
        Value::Array(items) => Outer::List(
            items.iter().enumerate().map(|(i, item)| outer(item, compiler, &path.index(i), false)).collect(),
        ),
        Value::Object(map) => {
            let own_template = deeper_inner(map);
            let mut members = Vec::new();
            for (key, value) in map {
                // names of the nested template mean nothing in outer scope
                if is_root && ["variables", "functions"].iter().any(|name| name.eq_ignore_ascii_case(key)) {
                    continue;
                }
                let at = path.key(key);
                let node = if own_template && key.eq_ignore_ascii_case("template") {
                    Outer::Plain(value.clone())
                } else {
                    outer(value, compiler, &at, false)
                };
                let key = match expr::expression_of(key) {
                    Some(source) => OuterKey::Text(parse(source, &at)),
                    None => OuterKey::Plain(key.clone()),
                };
                members.push((key, node));
            }
            Outer::Object(members, map.keys().any(|key| key.eq_ignore_ascii_case("copy")))
        }
        plain => Outer::Plain(plain.clone()),
    }
}

/// Whether an object is the `properties` of a deployment with inner scope: its template is its own.
fn deeper_inner(map: &Map<String, Value>) -> bool {
    let has = |name: &str| map.keys().any(|key| key.eq_ignore_ascii_case(name));
    has("template") && has("mode") && {
        let scope = map.iter().find(|(key, _)| key.eq_ignore_ascii_case("expressionEvaluationOptions"));
        let scope = scope.and_then(|(_, options)| member(options, "scope")).and_then(Value::as_str);
        scope.is_some_and(|scope| scope.eq_ignore_ascii_case("inner"))
    }
}

impl Nested {
    /// The template to deploy.
    pub(crate) fn template(&self, env: &Env<'_>, path: &Path<'_>, errors: &Errors) -> Result<Value, Halt> {
        match self {
            Self::Inner(template) => match env.meter.copy(template) {
                Ok(()) => Ok(template.clone()),
                Err(fault) => {
                    errors.fault(path, fault);
                    Err(Halt::Failed)
                }
            },
            Self::Outer(outer) => outer.rewrite(env, path, errors, false),
        }
    }
}

impl Outer {
    /// `in_loop`: within a loop of the nested template, whose `copyIndex()` is not known yet.
    fn rewrite(&self, env: &Env<'_>, path: &Path<'_>, errors: &Errors, in_loop: bool) -> Result<Value, Halt> {
        let fail = |fault: Fault| {
            errors.fault(path, fault);
            Halt::Failed
        };
        match self {
            Self::Plain(value) => {
                env.meter.copy(value).map_err(fail)?;
                Ok(value.clone())
            }
            Self::Text(expr) => text(expr, env, in_loop).map_err(fail),
            Self::List(items) => {
                let env = env.deeper().map_err(fail)?;
                let each = items.iter().enumerate();
                let made: Vec<_> = each.map(|(i, item)| item.rewrite(&env, &path.index(i), errors, in_loop)).collect();
                made.into_iter().collect::<Result<_, _>>().map(Value::Array)
            }
            Self::Object(members, has_loop) => {
                let env = env.deeper().map_err(fail)?;
                let in_loop = in_loop || *has_loop;
                let mut map = Map::new();
                let mut failed = false;
                for (key, node) in members {
                    let name = match key {
                        OuterKey::Plain(name) => name.clone(),
                        OuterKey::Text(expr) => match text(expr, &env, in_loop).map_err(fail)? {
                            Value::String(name) => name,
                            _ => return Err(fail(Fault::new("the name of a property must be a string"))),
                        },
                    };
                    match node.rewrite(&env, &path.key(&name), errors, in_loop) {
                        Ok(value) => drop(map.insert(name, value)),
                        Err(_) => failed = true,
                    }
                }
                if failed { Err(Halt::Failed) } else { Ok(Value::Object(map)) }
            }
        }
    }
}

/// The value of an expression, escaped so that it is not read as one again; or what remains of it.
fn text(expr: &Expr, env: &Env<'_>, in_loop: bool) -> Result<Value, Fault> {
    if !is_deferred(expr, in_loop) {
        let value = env.eval(expr)?;
        return env.own(value).map(escaped);
    }
    let mut text = String::from("[");
    write(expr, env, in_loop, &mut text)?;
    text.push(']');
    env.meter.bytes(text.len())?;
    Ok(text.into())
}

fn escaped(value: Value) -> Value {
    match value {
        Value::String(text) if text.starts_with('[') => format!("[{text}").into(),
        Value::Array(items) => Value::Array(items.into_iter().map(escaped).collect()),
        Value::Object(map) => Value::Object(map.into_iter().map(|(key, value)| (key, escaped(value))).collect()),
        other => other,
    }
}

/// Whether something within cannot be known before the nested deployment runs.
fn is_deferred(expr: &Expr, in_loop: bool) -> bool {
    let mut deferred = false;
    expr.visit_calls(&mut |callee, _| {
        deferred |= match callee {
            Callee::List(_) => true,
            Callee::Builtin(function) => {
                function.availability == Availability::Runtime
                    || function.name == "lambdaVariables"
                    || in_loop && function.name == "copyIndex"
            }
            Callee::User(_) => false,
        };
    });
    deferred
}

/// Writes an expression with its known parts replaced by their values.
fn write(expr: &Expr, env: &Env<'_>, in_loop: bool, text: &mut String) -> Result<(), Fault> {
    if !is_deferred(expr, in_loop) {
        let value = env.eval(expr)?;
        match value.as_ref() {
            Value::String(value) => quote(value, text),
            Value::Number(number) if number.is_i64() => text.push_str(&number.to_string()),
            value => {
                text.push_str("json(");
                quote(&value.to_string(), text);
                text.push(')');
            }
        }
        return Ok(());
    }
    match expr {
        Expr::Literal(_) => Ok(()),
        Expr::Call { callee, args } => {
            let (name, is_lambda) = match callee {
                Callee::Builtin(function) => (function.name, function.name == "lambda"),
                Callee::List(name) => (name.as_str(), false),
                Callee::User(name) => {
                    return Err(Fault::new(format!(
                        "the function '{name}' of the outer template cannot take what is only known while the nested one runs"
                    )));
                }
            };
            text.push_str(name);
            text.push('(');
            for (index, arg) in args.iter().enumerate() {
                if index > 0 {
                    text.push_str(", ");
                }
                match arg.as_text().filter(|_| is_lambda && index + 1 < args.len()) {
                    Some(variable) => quote(variable, text),
                    None => write(arg, env, in_loop, text)?,
                }
            }
            text.push(')');
            Ok(())
        }
        Expr::Access { base, keys } => {
            write(base, env, in_loop, text)?;
            for key in keys {
                text.push('[');
                write(key, env, in_loop, text)?;
                text.push(']');
            }
            Ok(())
        }
    }
}

fn quote(value: &str, text: &mut String) {
    text.push('\'');
    text.push_str(&value.replace('\'', "''"));
    text.push('\'');
}
