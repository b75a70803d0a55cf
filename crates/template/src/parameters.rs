//! Parameters: what the template declares against what the request gives.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::error::TemplateError;
use crate::functions::{get, kind_of, member};
use crate::meter::VALUE_DEPTH_MAX;
use crate::node::Compiler;
use crate::path::{Errors, Path};
use crate::program::{Names, Slot};
use crate::template::Parameter;
use crate::types::{Type, Types};

/// A parameter as the template declares it.
#[derive(Debug)]
pub(crate) struct Declared {
    name: String,
    kind: Type,
    default: Option<Value>,
    /// The declaration is good; a bad one was reported.
    is_valid: bool,
}

/// Reads the section.
pub(crate) fn declare(section: &Map<String, Value>, types: &Types, errors: &Errors) -> Vec<Declared> {
    let root = Path::root("parameters");
    let one = |(name, value): (&String, &Value)| {
        let kind = Type::parse(value, VALUE_DEPTH_MAX).and_then(|kind| kind.resolve(types).map(|_| ()).map(|()| kind));
        let is_valid = kind.is_ok();
        let kind = kind.unwrap_or_else(|message| {
            errors.invalid(&root.key(name), message);
            Type::default()
        });
        Declared { name: name.clone(), kind, default: member(value, "defaultValue").cloned(), is_valid }
    };
    section.iter().map(one).collect()
}

/// The values given, defaults to be evaluated, and a complaint for each that is neither.
pub(crate) fn slots(
    declared: &[Declared],
    given: &Value,
    compiler: &Compiler<'_>,
    types: &Types,
) -> BTreeMap<String, Slot> {
    let none = Map::new();
    let errors = compiler.errors;
    let given = match given {
        Value::Null => &none,
        Value::Object(map) => map,
        other => {
            let message =
                format!("the parameters must be an object of {{name: {{\"value\": …}}}}, not {}", kind_of(other));
            errors.invalid(&Path::root("parameters"), message);
            &none
        }
    };
    for name in given.keys().filter(|name| !declared.iter().any(|one| one.name.to_lowercase() == name.to_lowercase())) {
        let known: Vec<&str> = declared.iter().map(|one| one.name.as_str()).collect();
        errors.invalid(
            &Path::root("parameters").key(name),
            format!(
                "the template parameter '{name}' is not valid; it is not present in the template. The only supported \
                 parameters for this template are '{}'",
                known.join(", ")
            ),
        );
    }
    let slot = |one: &Declared| {
        let slot = match value_of(one, given, errors) {
            Ok(Some(value)) => Slot::given(&one.name, value),
            Ok(None) => missing(one, compiler, types),
            Err(()) => Slot::failed(&one.name),
        };
        (one.name.to_lowercase(), slot)
    };
    declared.iter().map(slot).collect()
}

/// The value in the request; an error was reported.
fn value_of(declared: &Declared, given: &Map<String, Value>, errors: &Errors) -> Result<Option<Value>, ()> {
    let root = Path::root("parameters");
    let path = root.key(&declared.name);
    let Some(entry) = get(given, &declared.name) else { return Ok(None) };
    if let Some(value) = member(entry, "value") {
        return Ok(Some(value.clone()));
    }
    if member(entry, "reference").is_some() {
        errors.push(TemplateError::new(
            "NotImplemented",
            path.to_string(),
            format!(
                "the parameter '{}' refers to a key vault, which deployments do not read here; give its value",
                declared.name
            ),
        ));
        return Err(());
    }
    if entry.as_object().is_some_and(Map::is_empty) {
        return Ok(None);
    }
    errors.invalid(&path, format!("the parameter '{}' must be written as {{\"value\": …}}", declared.name));
    Err(())
}

fn missing(declared: &Declared, compiler: &Compiler<'_>, types: &Types) -> Slot {
    let name = &declared.name;
    if let Some(default) = &declared.default {
        let path = format!("parameters.{name}.defaultValue");
        return Slot::compiled(name, path, compiler, |path| compiler.compile(default, path));
    }
    if declared.kind.is_nullable(types) {
        return Slot::given(name, Value::Null);
    }
    if declared.is_valid {
        compiler.errors.invalid(
            &Path::root("parameters").key(name),
            format!("the value for the template parameter '{name}' is not provided, and it has no default"),
        );
    }
    Slot::failed(name)
}

/// Checks every value against its type.
pub(crate) fn check(declared: &[Declared], names: &Names, errors: &Errors) {
    for one in declared.iter().filter(|one| one.is_valid) {
        let Some(value) = names.parameters.get(&one.name.to_lowercase()).and_then(Slot::value) else { continue };
        if let Err(message) = one.kind.check(&names.types, value) {
            errors.invalid(
                &Path::root("parameters").key(&one.name),
                format!("the provided value for the template parameter '{}' {message}", one.name),
            );
        }
    }
}

/// The parameters as the deployment knows them.
pub(crate) fn values(declared: &[Declared], names: &Names) -> Vec<Parameter> {
    let one = |one: &Declared| Parameter {
        name: one.name.clone(),
        kind: one.kind.name(&names.types),
        secure: one.kind.is_secret(&names.types),
        value: names.parameters.get(&one.name.to_lowercase()).and_then(Slot::value).filter(|v| !v.is_null()).cloned(),
    };
    declared.iter().map(one).collect()
}
