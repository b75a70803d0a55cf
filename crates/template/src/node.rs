//! JSON with expressions, compiled once and evaluated often.
//!
//! A part without expressions stays a plain value. Objects may have property loops (`copy` as an array) and keys that are
//! expressions.

use serde_json::{Map, Value};

use crate::eval::{CopyFrame, Env, Val};
use crate::expr::{self, Expr, Known, Place};
use crate::functions::{kind_of, member};
use crate::meter::{Fault, check_depth};
use crate::path::{Errors, Path};
use crate::template::COPY_COUNT_MAX;

/// An expression with its text, without brackets.
#[derive(Clone, Debug)]
pub(crate) struct Compiled {
    pub(crate) expr: Expr,
    pub(crate) source: String,
}

/// A compiled value.
#[derive(Clone, Debug)]
pub(crate) enum Node {
    /// No expression within.
    Literal(Value),
    Expression(Box<Compiled>),
    List(Vec<Node>),
    Object(Box<ObjectNode>),
    /// A loop that makes an array.
    Loop(Box<PropertyLoop>),
}

/// An object with expressions.
#[derive(Clone, Debug, Default)]
pub(crate) struct ObjectNode {
    pub(crate) members: Vec<(Key, Node)>,
    loops: Vec<PropertyLoop>,
}

/// A key of an object.
#[derive(Clone, Debug)]
pub(crate) enum Key {
    Plain(String),
    Expression(Compiled),
}

/// `{"name", "count", "input"}` in the array `copy` of an object: makes an array `name`.
#[derive(Clone, Debug)]
pub(crate) struct PropertyLoop {
    /// Where it stands, in the array `copy`.
    index: usize,
    name: String,
    count: Node,
    input: Node,
}

/// Why a value was not made; what is wrong has been reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Halt {
    Pending,
    Failed,
}

/// Compiles the values of one section of a template.
pub(crate) struct Compiler<'c> {
    pub(crate) place: Place,
    pub(crate) known: Known<'c>,
    pub(crate) errors: &'c Errors,
}

impl Compiler<'_> {
    /// The compiled value; mistakes are reported and replaced by null.
    pub(crate) fn compile(&self, value: &Value, path: &Path<'_>) -> Node {
        match value {
            Value::String(text) => self.text(text, path),
            Value::Array(items) => {
                let nodes: Vec<Node> =
                    items.iter().enumerate().map(|(index, item)| self.compile(item, &path.index(index))).collect();
                list(nodes)
            }
            Value::Object(map) => self.object(map, path),
            plain => Node::Literal(plain.clone()),
        }
    }

    fn text(&self, text: &str, path: &Path<'_>) -> Node {
        match expr::expression_of(text) {
            None => Node::Literal(expr::unescape(text).into()),
            Some(source) => match self.expression(source) {
                Ok(compiled) => Node::Expression(Box::new(compiled)),
                Err(message) => {
                    self.errors.invalid(path, message);
                    Node::Literal(Value::Null)
                }
            },
        }
    }

    fn expression(&self, source: &str) -> Result<Compiled, String> {
        Ok(Compiled { expr: expr::parse(source, self.place, &self.known)?, source: source.to_owned() })
    }

    fn object(&self, map: &Map<String, Value>, path: &Path<'_>) -> Node {
        let mut object = ObjectNode::default();
        for (key, value) in map {
            let at = path.key(key);
            if let Some(loops) = property_loops(key, value) {
                object.loops = loops.iter().enumerate().map(|(i, one)| self.property_loop(i, one, path)).collect();
                continue;
            }
            let node = self.compile(value, &at);
            let key = match expr::expression_of(key) {
                None => Key::Plain(expr::unescape(key).to_owned()),
                Some(source) => match self.expression(source) {
                    Ok(compiled) => Key::Expression(compiled),
                    Err(message) => {
                        self.errors.invalid(&at, message);
                        continue;
                    }
                },
            };
            object.members.push((key, node));
        }
        let is_plain = object.loops.is_empty()
            && object.members.iter().all(|(key, node)| matches!((key, node), (Key::Plain(_), Node::Literal(_))));
        if !is_plain {
            return Node::Object(Box::new(object));
        }
        let plain = object.members.into_iter().filter_map(|member| match member {
            (Key::Plain(key), Node::Literal(value)) => Some((key, value)),
            _ => None,
        });
        Node::Literal(Value::Object(plain.collect()))
    }

    /// A loop of a section's `copy`, as the array that it makes; `path` is the section's.
    pub(crate) fn compile_loop(&self, index: usize, value: &Value, path: &Path<'_>) -> Node {
        Node::Loop(Box::new(self.property_loop(index, value, path)))
    }

    fn property_loop(&self, index: usize, value: &Value, path: &Path<'_>) -> PropertyLoop {
        let copy = path.key("copy");
        let path = copy.index(index);
        let part = |name: &str| member(value, name).unwrap_or(&Value::Null);
        PropertyLoop {
            index,
            name: part("name").as_str().unwrap_or_default().to_owned(),
            count: self.compile(part("count"), &path.key("count")),
            input: self.compile(part("input"), &path.key("input")),
        }
    }
}

/// The loops, when a member is a property loop: an array `copy` of objects with `name`, `count` and `input`.
pub(crate) fn property_loops<'v>(key: &str, value: &'v Value) -> Option<&'v Vec<Value>> {
    let loops = value.as_array().filter(|_| key.eq_ignore_ascii_case("copy"))?;
    let is_loop = |one: &Value| {
        member(one, "name").is_some_and(Value::is_string)
            && member(one, "count").is_some()
            && member(one, "input").is_some()
    };
    (!loops.is_empty() && loops.iter().all(is_loop)).then_some(loops)
}

fn list(nodes: Vec<Node>) -> Node {
    if !nodes.iter().all(|node| matches!(node, Node::Literal(_))) {
        return Node::List(nodes);
    }
    let literals = nodes.into_iter().filter_map(|node| match node {
        Node::Literal(value) => Some(value),
        _ => None,
    });
    Node::Literal(Value::Array(literals.collect()))
}

impl Compiled {
    /// The value; in a preview an expression that cannot be known yet stays as its text.
    pub(crate) fn value<'v>(&'v self, env: &Env<'v>) -> Result<Val<'v>, Fault> {
        match env.eval(&self.expr) {
            Err(Fault::Pending | Fault::Refused { .. }) if env.world.is_some_and(|world| world.is_preview) => {
                Ok(Val::Owned(format!("[{}]", self.source).into()))
            }
            result => result,
        }
    }
}

impl Node {
    /// Calls `visit` for each expression within.
    pub(crate) fn visit<'n>(&'n self, visit: &mut dyn FnMut(&'n Compiled)) {
        match self {
            Self::Literal(_) => {}
            Self::Expression(compiled) => visit(compiled),
            Self::List(nodes) => nodes.iter().for_each(|node| node.visit(visit)),
            Self::Object(object) => {
                for (key, node) in &object.members {
                    if let Key::Expression(compiled) = key {
                        visit(compiled);
                    }
                    node.visit(visit);
                }
                object.loops.iter().for_each(|one| one.visit(visit));
            }
            Self::Loop(one) => one.visit(visit),
        }
    }

    /// A member of an object that is not an expression itself.
    pub(crate) fn member(&self, name: &str) -> Option<&Self> {
        let Self::Object(object) = self else { return None };
        let has_name = |key: &Key| matches!(key, Key::Plain(key) if key.eq_ignore_ascii_case(name));
        object.members.iter().find(|(key, _)| has_name(key)).map(|(_, node)| node)
    }

    /// Evaluates everything, reports every failure with its place, and goes on after one.
    pub(crate) fn value(&self, env: &Env<'_>, path: &Path<'_>, errors: &Errors) -> Result<Value, Halt> {
        let halt = |fault: Fault| {
            let halt = if fault == Fault::Pending { Halt::Pending } else { Halt::Failed };
            errors.fault(path, fault);
            halt
        };
        match self {
            Self::Literal(value) => {
                env.meter.copy(value).map_err(halt)?;
                Ok(value.clone())
            }
            Self::Expression(compiled) => compiled.value(env).and_then(|value| env.own(value)).map_err(halt),
            Self::List(nodes) => {
                let env = env.deeper().map_err(halt)?;
                let mut made = Made::default();
                for (index, node) in nodes.iter().enumerate() {
                    env.meter.item("").map_err(halt)?;
                    made.push(node.value(&env, &path.index(index), errors));
                }
                made.finish().map(Value::Array)
            }
            Self::Object(object) => {
                let env = env.deeper().map_err(halt)?;
                object.value(&env, path, errors)
            }
            Self::Loop(one) => one.value(env, path, errors),
        }
    }

    /// Evaluates to a value that is kept: not too deep.
    pub(crate) fn kept(&self, env: &Env<'_>, path: &Path<'_>, errors: &Errors) -> Result<Value, Halt> {
        let value = self.value(env, path, errors)?;
        check_depth(&value).map_err(|fault| {
            errors.fault(path, fault);
            Halt::Failed
        })?;
        Ok(value)
    }

    /// Evaluates where a single fault is wanted: within a user function.
    pub(crate) fn evaluate<'v>(&'v self, env: &Env<'v>) -> Result<Val<'v>, Fault> {
        match self {
            Self::Literal(value) => Ok(Val::Borrowed(value)),
            Self::Expression(compiled) => compiled.value(env),
            node => {
                let errors = Errors::default();
                match node.value(env, &Path::root("output"), &errors) {
                    Ok(value) => Ok(Val::Owned(value)),
                    Err(Halt::Pending) => Err(Fault::Pending),
                    Err(Halt::Failed) => {
                        let first = errors.into_vec().into_iter().next();
                        Err(first.map_or(Fault::Reported, |error| Fault::new(error.message)))
                    }
                }
            }
        }
    }
}

/// Values made so far, or why not all of them.
#[derive(Default)]
struct Made {
    values: Vec<Value>,
    halt: Option<Halt>,
}

impl Made {
    fn push(&mut self, value: Result<Value, Halt>) {
        match value {
            Ok(value) => self.values.push(value),
            Err(halt) => self.stop(halt),
        }
    }

    /// A failure outweighs a wait.
    fn stop(&mut self, halt: Halt) {
        if self.halt != Some(Halt::Failed) {
            self.halt = Some(halt);
        }
    }

    fn finish(self) -> Result<Vec<Value>, Halt> {
        self.halt.map_or(Ok(self.values), Err)
    }
}

impl ObjectNode {
    fn value(&self, env: &Env<'_>, path: &Path<'_>, errors: &Errors) -> Result<Value, Halt> {
        let mut map = Map::new();
        let mut made = Made::default();
        for (key, node) in &self.members {
            let name = match key {
                Key::Plain(name) => Ok(name.clone()),
                Key::Expression(compiled) => key_text(compiled, env, path, errors),
            };
            let shown = match key {
                Key::Plain(name) => name.as_str(),
                Key::Expression(compiled) => compiled.source.as_str(),
            };
            let value = node.value(env, &path.key(shown), errors);
            match (name, value) {
                (Ok(name), Ok(value)) => {
                    if let Err(fault) = env.meter.item(&name) {
                        errors.fault(path, fault);
                        return Err(Halt::Failed);
                    }
                    map.insert(name, value);
                }
                (Err(halt), _) | (_, Err(halt)) => made.stop(halt),
            }
        }
        for one in &self.loops {
            match one.value(env, path, errors) {
                Ok(value) => {
                    map.insert(one.name.clone(), value);
                }
                Err(halt) => made.stop(halt),
            }
        }
        made.finish().map(|_| Value::Object(map))
    }
}

fn key_text(compiled: &Compiled, env: &Env<'_>, path: &Path<'_>, errors: &Errors) -> Result<String, Halt> {
    match compiled.value(env) {
        Ok(value) => match value.as_ref() {
            Value::String(text) => Ok(text.clone()),
            other => {
                errors.invalid(
                    &path.key(&compiled.source),
                    format!("the name of a property must be a string, not {}", kind_of(other)),
                );
                Err(Halt::Failed)
            }
        },
        Err(Fault::Pending) => Err(Halt::Pending),
        Err(fault) => {
            errors.fault(&path.key(&compiled.source), fault);
            Err(Halt::Failed)
        }
    }
}

/// Evaluates the count of a loop, 0 to 800.
pub(crate) fn loop_count(node: &Node, env: &Env<'_>, path: &Path<'_>, errors: &Errors) -> Result<usize, Halt> {
    let count = node.value(env, path, errors)?;
    let number = count.as_i64().and_then(|count| usize::try_from(count).ok()).filter(|count| *count <= COPY_COUNT_MAX);
    number.ok_or_else(|| {
        let given = count.as_i64().map_or_else(|| kind_of(&count).to_owned(), |count| count.to_string());
        errors.invalid(path, format!("the copy count must be an integer from 0 to {COPY_COUNT_MAX}; {given} is given"));
        Halt::Failed
    })
}

impl PropertyLoop {
    fn visit<'n>(&'n self, visit: &mut dyn FnMut(&'n Compiled)) {
        self.count.visit(visit);
        self.input.visit(visit);
    }

    fn value(&self, env: &Env<'_>, path: &Path<'_>, errors: &Errors) -> Result<Value, Halt> {
        let (copy, at) = (path.key("copy"), self.index);
        let at = copy.index(at);
        let count = loop_count(&self.count, env, &at.key("count"), errors)?;
        let mut made = Made::default();
        for index in 0..count {
            let frame = CopyFrame { name: &self.name, index, is_outer: false, outer: env.copy };
            let env = Env { copy: Some(&frame), ..*env };
            if let Err(fault) = env.meter.item("") {
                errors.fault(path, fault);
                return Err(Halt::Failed);
            }
            made.push(self.input.value(&env, &at.key("input"), errors));
        }
        made.finish().map(Value::Array)
    }
}
