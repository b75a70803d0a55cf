//! The functions of the language: one table, from which documentation, argument counts and messages come.

mod args;
mod arrays;
mod cidr;
mod convert;
mod dates;
mod format;
mod lambdas;
mod logic;
mod numbers;
mod objects;
mod references;
mod scopes;
mod strings;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::eval::{Env, Val};
use crate::expr::Expr;
use crate::meter::Fault;

pub(crate) use args::{Args, kind_of};
pub(crate) use references::member;

/// How the table names the family of `listKeys`, `listSecrets`, ….
pub(crate) const LIST: &str = "list*";

/// A function of the language.
#[derive(Debug)]
pub(crate) struct Function {
    /// As Azure writes it.
    pub(crate) name: &'static str,
    /// Heading in the documentation.
    pub(crate) group: &'static str,
    /// `name(argument: type, optional?: type, many...: type): type`; the count of arguments is read from it.
    pub(crate) signature: &'static str,
    /// One line.
    pub(crate) about: &'static str,
    pub(crate) availability: Availability,
    pub(crate) run: Run,
}

/// Where a function may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Availability {
    Everywhere,
    /// `newGuid`, `utcNow`.
    ParameterDefaults,
    /// Everywhere but in parameter defaults and user functions.
    NotInDefaults,
    /// Asks the running platform.
    Runtime,
}

/// Runs a function on evaluated arguments.
pub(crate) type Plain = fn(Args<'_, '_>) -> Result<Value, Fault>;
/// Runs a function that evaluates its arguments itself.
pub(crate) type Lazy = for<'v> fn(&Env<'v>, &'v [Expr]) -> Result<Val<'v>, Fault>;

/// What runs a function.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Run {
    Plain(Plain),
    Lazy(Lazy),
}

impl Function {
    /// The arguments of the signature.
    fn parameters(&self) -> impl Iterator<Item = &'static str> {
        let inner = self.signature.split_once('(').map_or("", |(_, rest)| rest);
        let inner = inner.rsplit_once("):").map_or(inner, |(inner, _)| inner);
        inner.split(", ").filter(|part| !part.is_empty())
    }

    /// Name of the argument at `index`.
    pub(crate) fn parameter(&self, index: usize) -> &'static str {
        let name = |part: &'static str| part.split(':').next().unwrap_or(part).trim_end_matches(['?', '.']);
        self.parameters().nth(index).or_else(|| self.parameters().last()).map_or("", name)
    }

    /// Least and largest count of arguments.
    pub(crate) fn arity(&self) -> (usize, usize) {
        let least = self.parameters().filter(|part| !part.contains("?:") && !part.contains("...:")).count();
        let is_open = self.parameters().any(|part| part.contains("...:"));
        (least, if is_open { usize::MAX } else { self.parameters().count() })
    }
}

static BY_NAME: LazyLock<BTreeMap<String, &'static Function>> =
    LazyLock::new(|| table::FUNCTIONS.iter().map(|function| (function.name.to_lowercase(), function)).collect());

/// The function of a lower-case name; every unknown `list…` is the family [`LIST`].
pub(crate) fn find(lower: &str) -> Option<&'static Function> {
    BY_NAME.get(lower).copied().or_else(|| (lower.len() > 4 && lower.starts_with("list")).then(list))
}

/// The family `list*`.
pub(crate) fn list() -> &'static Function {
    BY_NAME[LIST]
}

/// A function whose name differs little from an unknown one.
pub(crate) fn nearest(lower: &str) -> Option<&'static str> {
    BY_NAME
        .iter()
        .map(|(name, function)| (distance(lower, name), function.name))
        .min()
        .filter(|(distance, name)| *distance <= 2 && name.len() > 3)
        .map(|(_, name)| name)
}

/// Letters to change, add or leave out; long words are not compared.
fn distance(a: &str, b: &str) -> usize {
    if a.len() > 40 {
        return usize::MAX;
    }
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut before = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let change = before + usize::from(x != *y);
            before = row[j + 1];
            row[j + 1] = change.min(before + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// A member without regard to case, the exact name first.
pub(crate) fn get<'m>(map: &'m Map<String, Value>, name: &str) -> Option<&'m Value> {
    map.get(name).or_else(|| {
        map.iter().find(|(key, _)| key.len() == name.len() && key.to_lowercase() == name.to_lowercase()).map(|(_, v)| v)
    })
}

/// The documentation of all functions, in Markdown: the text of `docs/template-functions.md`.
#[must_use]
pub fn function_documentation() -> String {
    use std::fmt::Write as _;
    let mut text = String::from(table::PREFACE);
    let mut group = "";
    for function in table::FUNCTIONS {
        if function.group != group {
            group = function.group;
            let _ = write!(text, "\n## {group}\n\n| function | what it gives |\n|---|---|\n");
        }
        let place = match function.availability {
            Availability::Everywhere => "",
            Availability::ParameterDefaults => " *Only in a parameter's `defaultValue`.*",
            Availability::NotInDefaults => " *Not in parameter defaults and user functions.*",
            Availability::Runtime => " *Only in the properties of a resource and in outputs.*",
        };
        let _ = writeln!(text, "| `{}` | {}{place} |", function.signature.replace('|', "\\|"), function.about);
    }
    text.push_str(table::ABSENT);
    text
}
