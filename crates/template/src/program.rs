//! What names in expressions mean: parameters, variables, user functions, types, the scope.
//!
//! Variables and parameters are evaluated once, before anything else. They may refer to each other in any order; the order
//! of evaluation follows the references, so that long chains need no deep stack.
//!
//! **Invariant:** after [`Names::settle`] every slot has a value or its failure has been reported.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde_json::Value;

use crate::eval::Env;
use crate::expr::Callee;
use crate::meter::{Fault, Meter, Total};
use crate::node::{Compiler, Node};
use crate::path::{Errors, Path};
use crate::scope::Scope;
use crate::types::{Type, Types};

/// Everything that expressions can name.
#[derive(Debug)]
pub(crate) struct Names {
    pub(crate) scope: Scope,
    pub(crate) parameters: BTreeMap<String, Slot>,
    pub(crate) variables: BTreeMap<String, Slot>,
    pub(crate) functions: BTreeMap<String, UserFunction>,
    pub(crate) types: Types,
    /// `$schema`, `contentVersion` and metadata, which `deployment()` shows.
    pub(crate) head: Value,
    pub(crate) total: Total,
    guids: AtomicU64,
}

/// A parameter or variable.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) name: String,
    /// Where its expression stands.
    path: String,
    /// The expression; `None` when the value was given.
    node: Option<Node>,
    value: OnceLock<Value>,
    /// Being evaluated, or failed: either way there will be no value for who asks now.
    is_busy: AtomicBool,
    has_failed: AtomicBool,
}

/// A function of the template.
#[derive(Debug)]
pub(crate) struct UserFunction {
    /// `namespace.name`.
    pub(crate) name: String,
    pub(crate) parameters: Vec<FunctionParameter>,
    pub(crate) output: Node,
    pub(crate) kind: Type,
}

/// A parameter of a user function.
#[derive(Debug)]
pub(crate) struct FunctionParameter {
    pub(crate) name: String,
    pub(crate) kind: Type,
}

impl Slot {
    /// With a value.
    pub(crate) fn given(name: &str, value: Value) -> Self {
        let slot = Self::of(name, String::new(), None);
        let _ = slot.value.set(value);
        slot
    }

    /// With an expression; one that does not compile was reported and is marked as failed.
    pub(crate) fn compiled(
        name: &str,
        path: String,
        compiler: &Compiler<'_>,
        compile: impl FnOnce(&Path<'_>) -> Node,
    ) -> Self {
        let before = compiler.errors.len();
        let node = compile(&Path::root(&path));
        let slot = Self::of(name, path, Some(node));
        slot.has_failed.store(compiler.errors.len() > before, Ordering::Relaxed);
        slot
    }

    /// Without a value, which has been reported.
    pub(crate) fn failed(name: &str) -> Self {
        let slot = Self::of(name, String::new(), None);
        slot.has_failed.store(true, Ordering::Relaxed);
        slot
    }

    fn of(name: &str, path: String, node: Option<Node>) -> Self {
        Self {
            name: name.to_owned(),
            path,
            node,
            value: OnceLock::new(),
            is_busy: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        }
    }

    pub(crate) fn value(&self) -> Option<&Value> {
        self.value.get()
    }

    /// The value, evaluated now when it has not been.
    fn ensure<'v>(&'v self, env: &Env<'v>, errors: &Errors) -> Result<&'v Value, Fault> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let Some(node) = self.node.as_ref().filter(|_| !self.has_failed.load(Ordering::Relaxed)) else {
            return Err(Fault::Reported);
        };
        if self.is_busy.swap(true, Ordering::Relaxed) {
            return Err(Fault::new(format!("'{}' refers to itself, directly or through others", self.name)));
        }
        let inner = Env { arguments: None, lambda: None, copy: None, world: None, ..env.deeper()? };
        let value = node.kept(&inner, &Path::root(&self.path), errors);
        self.is_busy.store(false, Ordering::Relaxed);
        match value {
            Ok(value) => Ok(self.value.get_or_init(|| value)),
            Err(_) => {
                self.has_failed.store(true, Ordering::Relaxed);
                Err(Fault::Reported)
            }
        }
    }
}

impl Names {
    pub(crate) fn new(scope: Scope, head: Value) -> Self {
        Self {
            scope,
            parameters: BTreeMap::new(),
            variables: BTreeMap::new(),
            functions: BTreeMap::new(),
            types: Types::new(),
            head,
            total: Total::default(),
            guids: AtomicU64::new(0),
        }
    }

    /// A number that no `newGuid()` of this deployment had.
    pub(crate) fn next_guid(&self) -> u64 {
        self.guids.fetch_add(1, Ordering::Relaxed)
    }

    /// A parameter's value.
    pub(crate) fn parameter<'v>(&'v self, name: &str, env: &Env<'v>) -> Result<&'v Value, Fault> {
        Self::look_up(&self.parameters, "parameter", name, env)
    }

    /// A variable's value.
    pub(crate) fn variable<'v>(&'v self, name: &str, env: &Env<'v>) -> Result<&'v Value, Fault> {
        Self::look_up(&self.variables, "variable", name, env)
    }

    fn look_up<'v>(
        slots: &'v BTreeMap<String, Slot>,
        what: &str,
        name: &str,
        env: &Env<'v>,
    ) -> Result<&'v Value, Fault> {
        let slot = slots.get(&name.to_lowercase());
        let slot = slot.ok_or_else(|| Fault::new(format!("the template {what} '{name}' is not found")))?;
        let errors = Errors::default();
        slot.ensure(env, &errors).map_err(|fault| match errors.into_vec().into_iter().next() {
            // a name that is put together, which the order of evaluation did not see
            Some(error) => Fault::new(error.message),
            None => fault,
        })
    }

    /// Evaluates all slots of one kind, each after those it refers to.
    pub(crate) fn settle(&self, slots: &BTreeMap<String, Slot>, function: &str, errors: &Errors) {
        let order = order(slots, function, errors);
        for name in order {
            let meter = Meter::new(&self.total);
            // a failure is reported within, or marks what it depends on
            let env = Env::new(self, &meter);
            if let Err(Fault::Failed(message)) = slots[&name].ensure(&env, errors) {
                errors.invalid(&Path::root(&slots[&name].path), message);
            }
        }
    }
}

/// The slots in an order in which each comes after those it names; members of a circle are reported and marked.
fn order(slots: &BTreeMap<String, Slot>, function: &str, errors: &Errors) -> Vec<String> {
    let mut waits: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let mut waited: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, slot) in slots {
        let mut names = BTreeSet::new();
        if let Some(node) = &slot.node {
            node.visit(&mut |compiled| {
                compiled.expr.visit_calls(&mut |callee, args| {
                    if matches!(callee, Callee::Builtin(called) if called.name == function)
                        && let Some(name) = args.first().and_then(|arg| arg.as_text())
                    {
                        names.insert(name.to_lowercase());
                    }
                })
            });
        }
        for other in &names {
            waited.entry(other.clone()).or_default().push(name);
        }
        waits.insert(name, names);
    }
    let mut ready: Vec<&str> = waits.iter().filter(|(_, names)| names.is_empty()).map(|(name, _)| *name).collect();
    let mut order = Vec::new();
    while let Some(name) = ready.pop() {
        order.push(name.to_owned());
        waits.remove(name);
        for waiter in waited.get(name).into_iter().flatten() {
            if let Some(names) = waits.get_mut(waiter) {
                names.remove(name);
                if names.is_empty() {
                    ready.push(waiter);
                }
            }
        }
    }
    report_circles(slots, &waits, errors);
    order
}

fn report_circles(slots: &BTreeMap<String, Slot>, waits: &BTreeMap<&str, BTreeSet<String>>, errors: &Errors) {
    let mut seen: BTreeSet<&str> = BTreeSet::new();
    for start in waits.keys() {
        let mut trail: Vec<&str> = vec![start];
        while let Some((next, _)) = trail
            .last()
            .and_then(|last| waits.get(last))
            .and_then(|names| names.iter().find_map(|name| waits.get_key_value(name.as_str())))
        {
            if let Some(at) = trail.iter().position(|name| name == next) {
                let circle = &trail[at..];
                if !circle.iter().any(|name| seen.contains(name)) {
                    let shown: Vec<&str> =
                        circle.iter().chain(circle.first()).take(20).map(|name| slots[*name].name.as_str()).collect();
                    errors.push(crate::TemplateError::new(
                        "CircularDependency",
                        slots[circle[0]].path.clone(),
                        format!("circular reference: {}", shown.join(" -> ")),
                    ));
                }
                seen.extend(circle);
                break;
            }
            if seen.contains(next) {
                break;
            }
            trail.push(next);
        }
        seen.extend(trail);
    }
    for name in waits.keys() {
        slots[*name].has_failed.store(true, Ordering::Relaxed);
    }
}
