//! A template expanded: the resources in detail, what waits for what, and their bodies on demand.
//!
//! **Invariant:** `depends_on` has no cycle and only indices of this plan; a plan has at most [`crate::RESOURCES_MAX`] resources.

use serde_json::Value;

use crate::error::TemplateError;
use crate::runtime::{Evaluated, Runtime};

/// An expanded template.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Resources in the order of the template, copies in the order of their index.
    pub resources: Vec<PlannedResource>,
}

/// One resource of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedResource {
    /// Place in the template: `resources[2]` or `resources.web`.
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
    /// # Errors
    /// All expressions of the body that fail, with their paths; an answer of `runtime` that is an error is one of them.
    pub fn evaluate_body(&self, index: usize, runtime: &dyn Runtime) -> Result<Evaluated, Vec<TemplateError>> {
        let _ = (index, runtime);
        Err(vec![TemplateError::new("NotImplemented", "", "expansion is being built")])
    }

    /// As [`Plan::evaluate_body`], for a preview: an expression whose need is not answered, or answered with an error, stays
    /// in the body as its source text, as `what-if` shows it.
    ///
    /// # Errors
    /// Expressions that fail for other reasons.
    pub fn preview_body(&self, index: usize, runtime: &dyn Runtime) -> Result<Value, Vec<TemplateError>> {
        let _ = (index, runtime);
        Err(vec![TemplateError::new("NotImplemented", "", "expansion is being built")])
    }

    /// The outputs: an object of `{name: {"type", "value"}}`; a secure one has no `value`.
    ///
    /// # Errors
    /// All outputs that fail, with their paths, code `DeploymentOutputEvaluationFailed`.
    pub fn evaluate_outputs(&self, runtime: &dyn Runtime) -> Result<Evaluated, Vec<TemplateError>> {
        let _ = runtime;
        Err(vec![TemplateError::new("NotImplemented", "", "expansion is being built")])
    }
}
