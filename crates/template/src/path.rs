//! Places in a template, kept as a chain on the stack and written out only for a complaint; and the list of complaints.

use std::cell::RefCell;
use std::fmt;

use crate::error::{ERRORS_MAX, TemplateError};
use crate::meter::Fault;

/// A place: a step from another one.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path<'p> {
    outer: Option<&'p Path<'p>>,
    step: Step<'p>,
}

#[derive(Clone, Copy, Debug)]
enum Step<'p> {
    Key(&'p str),
    Index(usize),
}

impl<'p> Path<'p> {
    /// A path that begins with `text`, which may hold several steps.
    pub(crate) fn root(text: &'p str) -> Self {
        Self { outer: None, step: Step::Key(text) }
    }

    pub(crate) fn key(&'p self, key: &'p str) -> Self {
        Self { outer: Some(self), step: Step::Key(key) }
    }

    pub(crate) fn index(&'p self, index: usize) -> Self {
        Self { outer: Some(self), step: Step::Index(index) }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(outer) = self.outer {
            outer.fmt(f)?;
        }
        match self.step {
            Step::Index(index) => write!(f, "[{index}]"),
            Step::Key("") => Ok(()),
            Step::Key(key) if self.outer.is_some_and(|outer| !outer.is_empty()) => write!(f, ".{key}"),
            Step::Key(key) => f.write_str(key),
        }
    }
}

impl Path<'_> {
    fn is_empty(&self) -> bool {
        matches!(self.step, Step::Key("")) && self.outer.is_none_or(Path::is_empty)
    }
}

/// Complaints so far.
#[derive(Debug, Default)]
pub(crate) struct Errors(RefCell<Vec<TemplateError>>);

impl Errors {
    pub(crate) fn push(&self, error: TemplateError) {
        let mut errors = self.0.borrow_mut();
        if errors.len() < ERRORS_MAX && !errors.contains(&error) {
            errors.push(error);
        }
    }

    /// A mistake in the template itself.
    pub(crate) fn invalid(&self, path: &Path<'_>, message: impl Into<String>) {
        self.push(TemplateError::invalid(path.to_string(), message));
    }

    /// An expression that failed.
    pub(crate) fn fault(&self, path: &Path<'_>, fault: Fault) {
        match fault {
            Fault::Failed(message) => self.invalid(path, message),
            Fault::Refused { code, message } => self.push(TemplateError::new(code, path.to_string(), message)),
            Fault::Pending | Fault::Reported => {}
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    pub(crate) fn into_vec(self) -> Vec<TemplateError> {
        self.0.into_inner()
    }
}
