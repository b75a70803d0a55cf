//! Outputs: what a deployment answers when all its resources are there.

use serde_json::{Map, Value, json};

use crate::error::TemplateError;
use crate::eval::{CopyFrame, Env};
use crate::functions::{kind_of, member};
use crate::meter::VALUE_DEPTH_MAX;
use crate::node::{Compiler, Halt, Node, loop_count};
use crate::path::{Errors, Path};
use crate::types::{Type, Types};

/// An output as the template declares it.
#[derive(Debug)]
pub(crate) struct Output {
    name: String,
    path: String,
    kind: Type,
    condition: Option<Node>,
    value: Node,
    /// Count of the loop of which `value` is one turn.
    count: Option<Node>,
}

/// Reads the section.
pub(crate) fn read(section: Option<&Map<String, Value>>, compiler: &Compiler<'_>, types: &Types) -> Vec<Output> {
    let one = |(name, value): (&String, &Value)| {
        let path = format!("outputs.{name}");
        let at = Path::root(&path);
        let kind = Type::parse(value, VALUE_DEPTH_MAX).and_then(|kind| kind.resolve(types).map(|_| ()).map(|()| kind));
        let kind = kind.unwrap_or_else(|message| {
            compiler.errors.invalid(&at, message);
            Type::default()
        });
        let compile = |value: &Value, key: &str| compiler.compile(value, &at.key(key));
        let copy = member(value, "copy");
        let count = copy.and_then(|copy| member(copy, "count")).map(|count| compile(count, "copy.count"));
        let body = match copy {
            Some(copy) => member(copy, "input").map(|input| compile(input, "copy.input")),
            None => member(value, "value").map(|value| compile(value, "value")),
        };
        if body.is_none() || copy.is_some() && count.is_none() {
            compiler.errors.invalid(&at, "an output needs a `value`, or a `copy` with `count` and `input`");
        }
        let condition = member(value, "condition").map(|condition| compile(condition, "condition"));
        Output {
            name: name.clone(),
            path: path.clone(),
            kind,
            condition,
            value: body.unwrap_or(Node::Literal(Value::Null)),
            count,
        }
    };
    section.into_iter().flatten().map(one).collect()
}

/// Evaluates the outputs: `{name: {"type", "value"}}`.
pub(crate) fn evaluate(outputs: &[Output], env: &Env<'_>, errors: &Errors) -> Result<Value, Halt> {
    let mut map = Map::new();
    let mut halted = None;
    for output in outputs {
        match output.evaluate(env, errors) {
            Ok(Some(value)) => {
                let types = &env.names.types;
                let kind = output.kind.name(types);
                let shown = if output.kind.is_secret(types) {
                    json!({"type": kind})
                } else {
                    json!({"type": kind, "value": value})
                };
                map.insert(output.name.clone(), shown);
            }
            Ok(None) => {}
            Err(halt) if halted != Some(Halt::Failed) => halted = Some(halt),
            Err(_) => {}
        }
    }
    halted.map_or(Ok(Value::Object(map)), Err)
}

impl Output {
    fn evaluate(&self, env: &Env<'_>, errors: &Errors) -> Result<Option<Value>, Halt> {
        let at = Path::root(&self.path);
        if let Some(condition) = &self.condition {
            let holds = condition.value(env, &at.key("condition"), errors)?;
            match holds {
                Value::Bool(true) => {}
                Value::Bool(false) => return Ok(None),
                other => {
                    errors.invalid(
                        &at.key("condition"),
                        format!("the condition must be a boolean, not {}", kind_of(&other)),
                    );
                    return Err(Halt::Failed);
                }
            }
        }
        let value = match &self.count {
            None => self.value.kept(env, &at.key("value"), errors)?,
            Some(count) => {
                let count = loop_count(count, env, &at.key("copy.count"), errors)?;
                let mut items = Vec::with_capacity(count);
                for index in 0..count {
                    let frame = CopyFrame { name: &self.name, index, is_outer: true, outer: None };
                    let env = Env { copy: Some(&frame), ..*env };
                    items.push(self.value.kept(&env, &at.key("copy.input"), errors)?);
                }
                Value::Array(items)
            }
        };
        self.kind.check(&env.names.types, &value).map_err(|message| {
            errors.push(TemplateError::new(
                "InvalidTemplate",
                at.to_string(),
                format!("the value of the output '{}' {message}", self.name),
            ));
            Halt::Failed
        })?;
        Ok(Some(value))
    }
}
