//! Mistakes in templates, as a deployment tells them: an ARM code, a sentence, the place in the template.
//!
//! **Invariant:** the message never holds the value of a secure parameter.

use std::borrow::Cow;

/// Most mistakes that one call reports; more say nothing new.
pub(crate) const ERRORS_MAX: usize = 100;

/// One mistake in a template or its parameters.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TemplateError {
    /// ARM's code: `InvalidTemplate`, `CircularDependency`, `DeploymentOutputEvaluationFailed`, `NotImplemented`, or the code
    /// that a `reference` was answered with.
    pub code: Cow<'static, str>,
    /// What is wrong and what would be right.
    pub message: String,
    /// Where in the template: `resources[2].properties.template.containers[0].image`, `resources.web.name`,
    /// `parameters.count`; empty for the template as a whole. A path below `parameters` of the request is written the same way.
    pub path: String,
}

impl TemplateError {
    pub(crate) fn new(code: impl Into<Cow<'static, str>>, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code: code.into(), message: message.into(), path: path.into() }
    }

    pub(crate) fn invalid(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new("InvalidTemplate", path, message)
    }
}
