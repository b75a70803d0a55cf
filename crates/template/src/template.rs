//! A template read and checked: its parameters have values, its expressions are compiled.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::TemplateError;
use crate::expand;
use crate::expr::{Known, Place};
use crate::functions::{kind_of, member};
use crate::meter::VALUE_DEPTH_MAX;
use crate::node::{Compiler, property_loops};
use crate::outputs::{self, Output};
use crate::parameters::{self, Declared};
use crate::path::{Errors, Path};
use crate::plan::Plan;
use crate::program::{FunctionParameter, Names, Slot, UserFunction};
use crate::resource::{self, ResourceNode};
use crate::scope::Scope;
use crate::types::{Type, Types};

/// Most resources of a template after expansion, ARM's limit.
pub const RESOURCES_MAX: usize = 800;
/// Most parameters, ARM's limit.
pub const PARAMETERS_MAX: usize = 256;
/// Most variables, ARM's limit.
pub const VARIABLES_MAX: usize = 512;
/// Most outputs, ARM's limit.
pub const OUTPUTS_MAX: usize = 64;
/// Most turns of one copy loop, ARM's limit.
pub const COPY_COUNT_MAX: usize = 800;

/// A checked template with its parameters, ready to be expanded.
#[derive(Clone, Debug)]
pub struct Template {
    parameters: Vec<Parameter>,
    pub(crate) code: Arc<Code>,
}

/// The compiled parts.
#[derive(Debug)]
pub(crate) struct Code {
    pub(crate) names: Names,
    pub(crate) resources: Vec<ResourceNode>,
    pub(crate) outputs: Vec<Output>,
    pub(crate) is_symbolic: bool,
}

/// A parameter of a template with its value.
#[derive(Clone, Debug, PartialEq)]
pub struct Parameter {
    /// As the template writes it.
    pub name: String,
    /// As ARM answers it: `String`, `Int`, `Bool`, `Object`, `Array`, `SecureString`, `SecureObject`.
    pub kind: &'static str,
    /// Whether the value must never be stored or shown.
    pub secure: bool,
    /// Given or default value; `None` for a nullable one without.
    pub value: Option<Value>,
}

/// Sections that a template may have.
const SECTIONS: [&str; 14] = [
    "$schema",
    "contentVersion",
    "apiProfile",
    "languageVersion",
    "definitions",
    "metadata",
    "parameters",
    "variables",
    "functions",
    "resources",
    "outputs",
    "asserts",
    "imports",
    "extensions",
];

impl Template {
    /// Reads a template and the parameters of the request (`{"name": {"value": …}}`).
    ///
    /// # Errors
    /// All mistakes that can be found before anything runs.
    pub fn parse(template: &Value, parameters: &Value, scope: Scope) -> Result<Self, Vec<TemplateError>> {
        let errors = Errors::default();
        let code = read(template, parameters, scope, &errors);
        match code {
            Some((declared, code)) if errors.is_empty() => {
                Ok(Self { parameters: parameters::values(&declared, &code.names), code: Arc::new(code) })
            }
            _ => Err(errors.into_vec()),
        }
    }

    /// The parameters in the order of their names.
    #[must_use]
    pub fn parameters(&self) -> &[Parameter] {
        &self.parameters
    }

    /// `properties.parameters` of the deployment's answer: `{name: {"type", "value"}}`, without values of secure ones.
    #[must_use]
    pub fn echoed_parameters(&self) -> Value {
        let entry = |parameter: &Parameter| {
            let mut entry = Map::new();
            entry.insert("type".into(), parameter.kind.into());
            if let Some(value) = parameter.value.as_ref().filter(|_| !parameter.secure) {
                entry.insert("value".into(), value.clone());
            }
            (parameter.name.clone(), Value::Object(entry))
        };
        Value::Object(self.parameters.iter().map(entry).collect())
    }

    /// Evaluates names, conditions and loops, and orders the resources. Every body is evaluated as far as it can be, so
    /// that what is wrong in it is found before anything runs.
    ///
    /// # Errors
    /// All mistakes found: names, unknown dependencies, doubles, too many resources, `CircularDependency`.
    pub fn expand(&self) -> Result<Plan, Vec<TemplateError>> {
        expand::expand(&self.code)
    }

    /// `properties.templateHash`: the same for templates that differ in layout or order of members only.
    #[must_use]
    pub fn hash(template: &Value) -> String {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(template.to_string().as_bytes());
        u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes")).to_string()
    }
}

/// A section that must be an object, when it is there.
fn section<'v>(template: &'v Value, name: &str, most: usize, errors: &Errors) -> Option<&'v Map<String, Value>> {
    let value = member(template, name).filter(|value| !value.is_null())?;
    let Some(map) = value.as_object() else {
        errors.invalid(&Path::root(name), format!("`{name}` must be an object, not {}", kind_of(value)));
        return None;
    };
    if map.len() > most {
        errors.invalid(&Path::root(name), format!("the template has {} {name}; at most {most} are allowed", map.len()));
        return None;
    }
    Some(map)
}

fn read(template: &Value, parameters: &Value, scope: Scope, errors: &Errors) -> Option<(Vec<Declared>, Code)> {
    let Some(map) = template.as_object() else {
        errors.invalid(&Path::root(""), format!("the template must be an object, not {}", kind_of(template)));
        return None;
    };
    check_head(map, &scope, errors);
    let empty = Map::new();
    let head: Map<String, Value> = ["$schema", "contentVersion", "metadata"]
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), member(template, name)?.clone())))
        .collect();
    let mut names = Names::new(scope, Value::Object(head));
    let parameter_section = section(template, "parameters", PARAMETERS_MAX, errors).unwrap_or(&empty);
    let variable_section = section(template, "variables", VARIABLES_MAX, errors).unwrap_or(&empty);
    let lower = |map: &Map<String, Value>| -> BTreeSet<String> { map.keys().map(|name| name.to_lowercase()).collect() };
    let parameter_names = lower(parameter_section);
    let mut variable_names = lower(variable_section);
    for one in variable_section.iter().filter_map(|(key, value)| property_loops(key, value)).flatten() {
        variable_names.extend(member(one, "name").and_then(Value::as_str).map(str::to_lowercase));
    }
    names.types = types(template, errors);
    let signatures = function_signatures(template);
    let known = Known { parameters: &parameter_names, variables: &variable_names, functions: &signatures };
    names.functions = functions(template, &known, &names.types, errors);

    let compiler = |place: Place| Compiler { place, known, errors };
    let declared = parameters::declare(parameter_section, &names.types, errors);
    names.parameters = parameters::slots(&declared, parameters, &compiler(Place::ParameterDefault), &names.types);
    names.settle(&names.parameters, "parameters", errors);
    parameters::check(&declared, &names, errors);
    names.variables = variables(variable_section, &compiler(Place::Variable));
    names.settle(&names.variables, "variables", errors);

    let is_symbolic = member(template, "resources").is_some_and(Value::is_object);
    let resources = resource::read(template, &known, errors);
    let outputs =
        outputs::read(section(template, "outputs", OUTPUTS_MAX, errors), &compiler(Place::Body), &names.types);
    Some((declared, Code { names, resources, outputs, is_symbolic }))
}

/// Checks `$schema`, `contentVersion` and that no section is misspelt.
fn check_head(map: &Map<String, Value>, scope: &Scope, errors: &Errors) {
    for name in map.keys().filter(|name| !SECTIONS.iter().any(|known| known.eq_ignore_ascii_case(name))) {
        errors.invalid(
            &Path::root(name),
            format!("could not find member '{name}' on object of type 'Template'; known are {}", SECTIONS.join(", ")),
        );
    }
    let all = Value::Object(map.clone());
    for name in ["$schema", "contentVersion", "resources"] {
        if member(&all, name).is_none_or(Value::is_null) {
            errors.invalid(&Path::root(""), format!("required property '{name}' not found in the template"));
        }
    }
    let schema = member(&all, "$schema").and_then(Value::as_str).unwrap_or_default();
    let file = schema.trim_end_matches('#').rsplit('/').next().unwrap_or_default().to_lowercase();
    let is_wrong = match file.as_str() {
        "subscriptiondeploymenttemplate.json" => scope.group.is_some(),
        "managementgroupdeploymenttemplate.json" | "tenantdeploymenttemplate.json" => true,
        _ => false,
    };
    if is_wrong {
        let here = if scope.group.is_some() { "a resource group" } else { "a subscription" };
        errors.invalid(&Path::root("$schema"), format!("the schema '{schema}' is not for a deployment to {here}"));
    }
}

fn types(template: &Value, errors: &Errors) -> Types {
    let mut types = Types::new();
    for (name, value) in section(template, "definitions", usize::MAX, errors).into_iter().flatten() {
        match Type::parse(value, VALUE_DEPTH_MAX) {
            Ok(kind) => {
                types.insert(name.clone(), kind);
            }
            Err(message) => errors.invalid(&Path::root("definitions").key(name), message),
        }
    }
    types
}

/// Each function of the template: namespace, name, definition, place.
fn function_members(template: &Value) -> impl Iterator<Item = (String, &Value, usize, &String)> {
    let spaces = member(template, "functions").and_then(Value::as_array).into_iter().flatten().enumerate();
    spaces.flat_map(|(index, space)| {
        let namespace = member(space, "namespace").and_then(Value::as_str).unwrap_or_default();
        let members = member(space, "members").and_then(Value::as_object).into_iter().flatten();
        members.map(move |(name, value)| (format!("{namespace}.{name}"), value, index, name))
    })
}

fn function_signatures(template: &Value) -> BTreeMap<String, usize> {
    let count = |value| member(value, "parameters").and_then(Value::as_array).map_or(0, Vec::len);
    function_members(template).map(|(name, value, ..)| (name.to_lowercase(), count(value))).collect()
}

fn functions(template: &Value, known: &Known<'_>, types: &Types, errors: &Errors) -> BTreeMap<String, UserFunction> {
    let root = Path::root("functions");
    let mut functions = BTreeMap::new();
    for (name, value, index, short) in function_members(template) {
        let (at, members) = (root.index(index), "members");
        let at = at.key(members);
        let at = at.key(short);
        let mut parameters = Vec::new();
        let list = member(value, "parameters").and_then(Value::as_array);
        for parameter in list.into_iter().flatten() {
            let name = member(parameter, "name").and_then(Value::as_str).unwrap_or_default().to_owned();
            match Type::parse(parameter, VALUE_DEPTH_MAX)
                .and_then(|kind| kind.resolve(types).map(|_| ()).map(|()| kind))
            {
                Ok(kind) => parameters.push(FunctionParameter { name, kind }),
                Err(message) => errors.invalid(&at.key("parameters"), format!("parameter '{name}': {message}")),
            }
        }
        let own: BTreeSet<String> = parameters.iter().map(|parameter| parameter.name.to_lowercase()).collect();
        let none = BTreeSet::new();
        let known = Known { parameters: &own, variables: &none, functions: known.functions };
        let compiler = Compiler { place: Place::UserFunction, known, errors };
        let output = member(value, "output");
        let kind =
            output.map_or_else(|| Err("`output` is missing".to_owned()), |output| Type::parse(output, VALUE_DEPTH_MAX));
        let kind = kind.unwrap_or_else(|message| {
            errors.invalid(&at.key("output"), message);
            Type::default()
        });
        let body = output.and_then(|output| member(output, "value")).unwrap_or(&Value::Null);
        let (at, key) = (at.key("output"), "value");
        let output = compiler.compile(body, &at.key(key));
        functions.insert(name.to_lowercase(), UserFunction { name, parameters, output, kind });
    }
    functions
}

/// Variables, those of the loops in the section's `copy` among them.
fn variables(section: &Map<String, Value>, compiler: &Compiler<'_>) -> BTreeMap<String, Slot> {
    let mut slots = BTreeMap::new();
    for (name, value) in section {
        let Some(loops) = property_loops(name, value) else {
            let slot =
                Slot::compiled(name, format!("variables.{name}"), compiler, |path| compiler.compile(value, path));
            slots.insert(name.to_lowercase(), slot);
            continue;
        };
        for (index, one) in loops.iter().enumerate() {
            let name = member(one, "name").and_then(Value::as_str).unwrap_or_default();
            let compile = |path: &Path<'_>| compiler.compile_loop(index, one, path);
            slots.insert(name.to_lowercase(), Slot::compiled(name, "variables".into(), compiler, compile));
        }
    }
    slots
}
