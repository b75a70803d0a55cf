//! A template expanded: the resources in detail, what waits for what, and their bodies on demand.
//!
//! **Invariant:** `depends_on` has no cycle and only indices of this plan; a plan has at most [`crate::RESOURCES_MAX`] resources.

use std::cell::RefCell;
use std::sync::Arc;

use serde_json::Value;

use crate::error::TemplateError;
use crate::eval::{CopyFrame, Env, World};
use crate::expand::{self, Origin};
use crate::meter::Meter;
use crate::node::Halt;
use crate::outputs;
use crate::path::{Errors, Path};
use crate::resources::ResourceTable;
use crate::runtime::{Evaluated, Runtime};
use crate::template::Code;

/// An expanded template.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Resources in the order of the template, copies in the order of their index.
    pub resources: Vec<PlannedResource>,
    pub(crate) inner: Arc<Inner>,
}

/// One resource of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedResource {
    /// Place in the template: `resources[2]`, `resources.web`, `resources.web[0]` in a loop.
    pub path: String,
    /// Symbolic name of language version 2.0, `web`, with its index in a loop, `web[0]`.
    pub symbolic: Option<String>,
    /// The loop it comes from.
    pub copy: Option<CopyPlace>,
    /// Full resource id.
    pub id: String,
    /// Full type, `Microsoft.App/containerApps`.
    pub kind: String,
    /// Full name, `vault/secret` for a child.
    pub name: String,
    /// Api version; empty for an existing resource that needs none.
    pub api_version: String,
    /// `location` where it is known before anything runs; the body has it in any case.
    pub location: Option<String>,
    /// False: the resource is skipped.
    pub condition: bool,
    /// Only read, never written.
    pub existing: bool,
    /// Resources that must be done before, as indices into [`Plan::resources`]; sorted, without doubles. Skipped and existing
    /// ones may be among them: they count as done.
    pub depends_on: Vec<usize>,
}

/// Place in a copy loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyPlace {
    /// Name of the loop.
    pub name: String,
    /// From 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
}

impl PlannedResource {
    /// Whether this is a nested deployment; its body is what a `PUT` of a deployment takes.
    #[must_use]
    pub fn is_deployment(&self) -> bool {
        self.kind.eq_ignore_ascii_case("Microsoft.Resources/deployments")
    }
}

impl Plan {
    /// The body to `PUT` for a resource: `location`, `tags`, `properties`, …; for a nested deployment with its template, in
    /// which outer-scope expressions are already replaced.
    ///
    /// An index beyond the plan gives an empty body.
    ///
    /// # Errors
    /// All expressions of the body that fail, with their paths; an answer of `runtime` that is an error is one of them.
    pub fn evaluate_body(&self, index: usize, runtime: &dyn Runtime) -> Result<Evaluated, Vec<TemplateError>> {
        let Some(origin) = self.inner.origins.get(index) else { return Ok(Evaluated::Ready(Value::Null)) };
        self.evaluation(runtime, false).body(*origin)
    }

    /// As [`Plan::evaluate_body`], for a preview: an expression whose need is not answered, or answered with an error, stays
    /// in the body as its source text, as `what-if` shows it.
    ///
    /// # Errors
    /// Expressions that fail for other reasons.
    pub fn preview_body(&self, index: usize, runtime: &dyn Runtime) -> Result<Value, Vec<TemplateError>> {
        let Some(origin) = self.inner.origins.get(index) else { return Ok(Value::Null) };
        match self.evaluation(runtime, true).body(*origin)? {
            Evaluated::Ready(body) => Ok(body),
            // a preview keeps the text of what it cannot know
            Evaluated::Needs(_) => Ok(Value::Null),
        }
    }

    /// The outputs: an object of `{name: {"type", "value"}}`; a secure one has no `value`.
    ///
    /// # Errors
    /// All outputs that fail, with their paths, code `DeploymentOutputEvaluationFailed`.
    pub fn evaluate_outputs(&self, runtime: &dyn Runtime) -> Result<Evaluated, Vec<TemplateError>> {
        let outputs = |env: &Env<'_>, errors: &Errors| outputs::evaluate(&self.inner.code.outputs, env, errors);
        self.evaluation(runtime, false).run(None, outputs).map_err(|errors| {
            let code = "DeploymentOutputEvaluationFailed";
            errors.into_iter().map(|error| TemplateError::new(code, error.path, error.message)).collect()
        })
    }

    fn evaluation<'p>(&'p self, runtime: &'p dyn Runtime, is_preview: bool) -> Evaluation<'p> {
        Evaluation { code: &self.inner.code, table: &self.inner.table, runtime, is_preview }
    }
}

/// What evaluates a plan's parts.
#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) code: Arc<Code>,
    pub(crate) table: ResourceTable,
    pub(crate) origins: Vec<Origin>,
}

/// Evaluates with a runtime.
pub(crate) struct Evaluation<'e> {
    pub(crate) code: &'e Code,
    pub(crate) table: &'e ResourceTable,
    pub(crate) runtime: &'e dyn Runtime,
    pub(crate) is_preview: bool,
}

impl Evaluation<'_> {
    /// The body of a resource.
    pub(crate) fn body(&self, origin: Origin) -> Result<Evaluated, Vec<TemplateError>> {
        let node = &self.code.resources[origin.node];
        let frame = origin.turn.map(|turn| expand::frame(self.code, node, turn));
        self.run(frame.as_ref(), |env, errors| {
            let place = expand::place(node, origin.turn);
            let root = Path::root(&place);
            let body = node.body.kept(env, &root, errors);
            let Some(nested) = &node.nested else { return body };
            let path = root.key("properties");
            let template = nested.template(env, &path.key("template"), errors);
            let (mut body, template) = (body?, template?);
            if let Some(map) = body.as_object_mut() {
                let properties = map.entry("properties").or_insert_with(|| Value::Object(serde_json::Map::new()));
                if let Some(properties) = properties.as_object_mut() {
                    properties.insert("template".into(), template);
                }
            }
            Ok(body)
        })
    }

    /// `location` alone, when it can be known.
    pub(crate) fn location(&self, origin: Origin) -> Option<String> {
        let node = &self.code.resources[origin.node];
        let location = node.body.member("location")?;
        let frame = origin.turn.map(|turn| expand::frame(self.code, node, turn));
        let value = self.run(frame.as_ref(), |env, errors| location.value(env, &Path::root(&node.path), errors));
        match value {
            Ok(Evaluated::Ready(Value::String(location))) => Some(location),
            _ => None,
        }
    }

    /// Runs an evaluation with a fresh meter and gathers what it lacks or what is wrong.
    fn run(
        &self,
        frame: Option<&CopyFrame<'_>>,
        evaluate: impl FnOnce(&Env<'_>, &Errors) -> Result<Value, Halt>,
    ) -> Result<Evaluated, Vec<TemplateError>> {
        let (errors, needs) = (Errors::default(), RefCell::new(Vec::new()));
        let meter = Meter::new(&self.code.names.total);
        let world = World { runtime: self.runtime, resources: self.table, needs: &needs, is_preview: self.is_preview };
        let env = Env { copy: frame, world: Some(&world), ..Env::new(&self.code.names, &meter) };
        let value = evaluate(&env, &errors);
        match value {
            Ok(value) if errors.is_empty() => Ok(Evaluated::Ready(value)),
            Err(Halt::Pending) if errors.is_empty() => Ok(Evaluated::Needs(needs.into_inner())),
            _ => Err(errors.into_vec()),
        }
    }
}
