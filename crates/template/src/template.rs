//! A template read and checked: its parameters have values, its expressions are compiled.

use serde_json::Value;

use crate::error::TemplateError;
use crate::plan::Plan;
use crate::scope::Scope;

/// Most resources of a template after expansion, ARM's limit.
pub const RESOURCES_MAX: usize = 800;
/// Most parameters, ARM's limit.
pub const PARAMETERS_MAX: usize = 256;
/// Most variables, ARM's limit.
pub const VARIABLES_MAX: usize = 512;
/// Most outputs, ARM's limit.
pub const OUTPUTS_MAX: usize = 64;
/// Longest expression, in characters, ARM's limit.
pub const EXPRESSION_LEN_MAX: usize = 24_576;
/// Most turns of one copy loop, ARM's limit.
pub const COPY_COUNT_MAX: usize = 800;

/// A checked template with its parameters, ready to be expanded.
#[derive(Clone, Debug)]
pub struct Template {
    parameters: Vec<Parameter>,
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

impl Template {
    /// Reads a template and the parameters of the request (`{"name": {"value": …}}`).
    ///
    /// # Errors
    /// All mistakes that can be found before anything runs.
    pub fn parse(template: &Value, parameters: &Value, scope: Scope) -> Result<Self, Vec<TemplateError>> {
        let _ = (template, parameters, scope);
        Err(vec![TemplateError::new("NotImplemented", "", "the template language is being built")])
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
            let mut entry = serde_json::Map::new();
            entry.insert("type".into(), parameter.kind.into());
            if let Some(value) = parameter.value.as_ref().filter(|_| !parameter.secure) {
                entry.insert("value".into(), value.clone());
            }
            (parameter.name.clone(), Value::Object(entry))
        };
        Value::Object(self.parameters.iter().map(entry).collect())
    }

    /// Evaluates names, conditions and loops, and orders the resources.
    ///
    /// # Errors
    /// All mistakes found: names, unknown dependencies, doubles, too many resources, `CircularDependency`.
    pub fn expand(&self) -> Result<Plan, Vec<TemplateError>> {
        Err(vec![TemplateError::new("NotImplemented", "", "the template language is being built")])
    }

    /// `properties.templateHash`: the same for templates that differ in layout or order of members only.
    #[must_use]
    pub fn hash(template: &Value) -> String {
        use sha2::Digest as _;
        let digest = sha2::Sha256::digest(template.to_string().as_bytes());
        u64::from_be_bytes(digest[..8].try_into().expect("a digest has 32 bytes")).to_string()
    }
}
