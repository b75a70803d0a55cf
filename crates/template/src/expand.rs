//! From a compiled template to a plan: loops unrolled, names and ids known, dependencies as indices.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::Value;

use crate::error::TemplateError;
use crate::eval::{CopyFrame, Env};
use crate::functions::kind_of;
use crate::graph;
use crate::ids;
use crate::meter::Meter;
use crate::node::{Halt, Node, loop_count};
use crate::path::{Errors, Path};
use crate::plan::{CopyPlace, Inner, Plan, PlannedResource};
use crate::resource::ResourceNode;
use crate::resources::{ResourceTable, relative};
use crate::runtime::{Evaluated, LookupError, Need, Runtime};
use crate::template::{Code, RESOURCES_MAX};

/// Where a planned resource comes from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Index of the resource in the template.
    pub(crate) node: usize,
    /// Turn of its loop, or of the loop of the resource it is written in.
    pub(crate) turn: Option<usize>,
    /// The planned resource it is written in.
    parent: Option<usize>,
    /// The scope it extends.
    scope_at: Option<usize>,
}

/// Knows nothing: an evaluation with it tells what it would ask.
struct Nothing;

impl Runtime for Nothing {
    fn lookup(&self, _: &Need) -> Option<Result<Value, LookupError>> {
        None
    }
}

pub(crate) fn expand(code: &Arc<Code>) -> Result<Plan, Vec<TemplateError>> {
    let errors = Errors::default();
    let mut expander =
        Expander { code, errors: &errors, planned: Vec::new(), origins: Vec::new(), instances: Vec::new() };
    for index in 0..code.resources.len() {
        expander.node(index);
        if expander.planned.len() > RESOURCES_MAX {
            let message =
                format!("the template has more than {RESOURCES_MAX} resources; split it into several deployments");
            errors.invalid(&Path::root("resources"), message);
            return Err(errors.into_vec());
        }
    }
    let Expander { planned, origins, .. } = expander;
    let mut planned = planned;
    report_doubles(&planned, &errors);
    let table = ResourceTable::new(&planned, code.is_symbolic);
    let edges = {
        let linker = Linker { code, errors: &errors, planned: &planned, origins: &origins, table: &table };
        (0..planned.len()).map(|index| linker.edges(index)).collect::<Vec<_>>()
    };
    for (resource, edges) in planned.iter_mut().zip(edges) {
        resource.depends_on = edges.depends_on.into_iter().collect();
        if edges.location.is_some() {
            resource.location = edges.location;
        }
    }
    if let Some(circle) = graph::circle(&planned.iter().map(|one| one.depends_on.as_slice()).collect::<Vec<_>>()) {
        let shown: Vec<&str> =
            circle.iter().chain(circle.first()).take(20).map(|index| label(&planned[*index])).collect();
        errors.push(TemplateError::new(
            "CircularDependency",
            planned[circle[0]].path.clone(),
            format!("circular dependency detected on resource '{}': {}", planned[circle[0]].id, shown.join(" -> ")),
        ));
    }
    if !errors.is_empty() {
        return Err(errors.into_vec());
    }
    Ok(Plan { resources: planned, inner: Arc::new(Inner { code: Arc::clone(code), table, origins }) })
}

fn label(resource: &PlannedResource) -> &str {
    resource.symbolic.as_deref().unwrap_or(&resource.name)
}

fn report_doubles(planned: &[PlannedResource], errors: &Errors) {
    let mut seen: BTreeMap<String, &PlannedResource> = BTreeMap::new();
    for resource in planned.iter().filter(|resource| resource.condition && !resource.existing) {
        if let Some(first) = seen.insert(resource.id.to_lowercase(), resource) {
            errors.invalid(
                &Path::root(&resource.path),
                format!(
                    "the resource '{}' is defined multiple times in the template, also at {}",
                    resource.id, first.path
                ),
            );
        }
    }
}

struct Expander<'e> {
    code: &'e Code,
    errors: &'e Errors,
    planned: Vec<PlannedResource>,
    origins: Vec<Origin>,
    /// Per node of the template: the planned resources that it became, by turn.
    instances: Vec<Vec<(Option<usize>, usize)>>,
}

impl Expander<'_> {
    /// Plans all turns of one resource of the template.
    fn node(&mut self, index: usize) {
        let node = &self.code.resources[index];
        self.instances.push(Vec::new());
        let meter = Meter::new(&self.code.names.total);
        let env = Env::new(&self.code.names, &meter);
        let root = Path::root(&node.path);
        let turns: Vec<(Option<usize>, Option<usize>)> = match (&node.copy, node.parent) {
            (Some(copy), _) => match loop_count(&copy.count, &env, &root.key("copy.count"), self.errors) {
                Ok(count) => (0..count).map(|turn| (Some(turn), None)).collect(),
                Err(_) => return,
            },
            (None, Some(parent)) => self.instances[parent].iter().map(|(turn, at)| (*turn, Some(*at))).collect(),
            (None, None) => vec![(None, None)],
        };
        let count = turns.len();
        for (turn, parent) in turns {
            if self.planned.len() > RESOURCES_MAX {
                return;
            }
            let frame = turn.map(|index| frame(self.code, node, index));
            let env = Env { copy: frame.as_ref(), ..env };
            let Ok((planned, scope_at)) = self.plan(node, turn, count, parent, &env) else { continue };
            self.instances[index].push((turn, self.planned.len()));
            self.planned.push(planned);
            self.origins.push(Origin { node: index, turn, parent, scope_at });
        }
    }

    fn plan(
        &self,
        node: &ResourceNode,
        turn: Option<usize>,
        count: usize,
        parent: Option<usize>,
        env: &Env<'_>,
    ) -> Result<(PlannedResource, Option<usize>), Halt> {
        let place = place(node, turn);
        let root = Path::root(&place);
        let text = |node: &Node, key: &str| self.text(node, env, &root.key(key));
        let own = text(&node.name, "name");
        let condition = self.condition(node, env, &root);
        let api_version = node.api_version.as_ref().map_or(Ok(String::new()), |version| text(version, "apiVersion"));
        let (own, condition, api_version) = (own?, condition?, api_version?);
        let name = match parent {
            Some(parent) if !own.contains('/') => format!("{}/{own}", self.planned[parent].name),
            _ => own,
        };
        let (base, scope_at) = self.base(node, parent, env, &root)?;
        let id = self.id(node, &base, &name, &root)?;
        let copy =
            node.copy.as_ref().zip(turn).map(|(copy, index)| CopyPlace { name: copy.name.clone(), index, count });
        let symbolic = node.symbolic.as_ref().map(|symbol| match &copy {
            Some(place) => format!("{symbol}[{}]", place.index),
            None => symbol.clone(),
        });
        let planned = PlannedResource {
            path: place.clone(),
            symbolic,
            copy,
            id,
            kind: node.kind.clone(),
            name,
            api_version,
            location: None,
            condition,
            existing: node.existing,
            depends_on: Vec::new(),
        };
        Ok((planned, scope_at))
    }

    fn text(&self, node: &Node, env: &Env<'_>, path: &Path<'_>) -> Result<String, Halt> {
        match node.value(env, path, self.errors)? {
            Value::String(text) if !text.is_empty() => Ok(text),
            other => {
                let given = if other.is_string() { "an empty string" } else { kind_of(&other) };
                self.errors.invalid(path, format!("a string is expected; {given} is given"));
                Err(Halt::Failed)
            }
        }
    }

    fn condition(&self, node: &ResourceNode, env: &Env<'_>, root: &Path<'_>) -> Result<bool, Halt> {
        let Some(condition) = &node.condition else { return Ok(true) };
        let path = root.key("condition");
        match condition.value(env, &path, self.errors)? {
            Value::Bool(holds) => Ok(holds),
            other => {
                self.errors.invalid(&path, format!("the condition must be a boolean, not {}", kind_of(&other)));
                Err(Halt::Failed)
            }
        }
    }

    /// The id that `/providers/…` follows, and which planned resource it belongs to.
    fn base(
        &self,
        node: &ResourceNode,
        parent: Option<usize>,
        env: &Env<'_>,
        root: &Path<'_>,
    ) -> Result<(String, Option<usize>), Halt> {
        let scope = &self.code.names.scope;
        if let Some(extended) = &node.scope {
            let path = root.key("scope");
            let text = self.text(extended, env, &path)?;
            let id = if text.starts_with('/') {
                text.trim_end_matches('/').to_owned()
            } else if let Some(found) = self.planned.iter().find(|one| one.symbolic.as_deref() == Some(text.as_str())) {
                found.id.clone()
            } else if let Some(path) = relative(&text) {
                format!("{}{path}", scope.id())
            } else {
                self.errors.invalid(&path, format!("'{text}' is not a scope; write a resource id"));
                return Err(Halt::Failed);
            };
            let at = self.planned.iter().position(|one| one.id.eq_ignore_ascii_case(&id));
            return Ok((id, at));
        }
        if let Some(parent) = parent {
            let id = &self.planned[parent].id;
            let at = id.to_ascii_lowercase().rfind("/providers/").unwrap_or(id.len());
            return Ok((id[..at].to_owned(), None));
        }
        let part =
            |part: &Option<Node>, key: &str| part.as_ref().map(|node| self.text(node, env, &root.key(key))).transpose();
        let (subscription, group) = (part(&node.subscription, "subscriptionId")?, part(&node.group, "resourceGroup")?);
        let owner = subscription.as_deref().unwrap_or(&scope.subscription);
        let base = match (group, &subscription) {
            (Some(group), _) => format!("/subscriptions/{owner}/resourceGroups/{group}"),
            (None, Some(subscription)) => format!("/subscriptions/{subscription}"),
            (None, None) => scope.id(),
        };
        Ok((base, None))
    }

    fn id(&self, node: &ResourceNode, base: &str, name: &str, root: &Path<'_>) -> Result<String, Halt> {
        if node.kind.eq_ignore_ascii_case("Microsoft.Resources/resourceGroups") {
            let end = base.to_ascii_lowercase().find("/resourcegroups/").unwrap_or(base.len());
            return Ok(format!("{}/resourceGroups/{name}", &base[..end]));
        }
        ids::provider_path(&node.kind, &[name]).map(|path| format!("{base}{path}")).map_err(|_| {
            let (types, names) = (node.kind.split('/').count() - 1, name.split('/').count());
            self.errors.invalid(
                &root.key("name"),
                format!(
                    "the type '{}' has {types} segments and the name '{name}' {names}; a nested resource type must have \
                     as many segments as its name",
                    node.kind
                ),
            );
            Halt::Failed
        })
    }
}

/// Where a turn of a resource stands: `resources.web[1]`; a loop in an array of resources has no name for its turns.
pub(crate) fn place(node: &ResourceNode, turn: Option<usize>) -> String {
    match turn.filter(|_| node.symbolic.is_some() && node.copy.is_some()) {
        Some(turn) => format!("{}[{turn}]", node.path),
        None => node.path.clone(),
    }
}

/// The frame of a turn: of the resource's own loop, or of that of the resource it is written in.
pub(crate) fn frame<'c>(code: &'c Code, node: &'c ResourceNode, index: usize) -> CopyFrame<'c> {
    let mut owner = node;
    while let (None, Some(parent)) = (&owner.copy, owner.parent) {
        owner = &code.resources[parent];
    }
    CopyFrame { name: owner.copy.as_ref().map_or("", |copy| &copy.name), index, is_outer: true, outer: None }
}

/// What a resource waits for, and its location.
#[derive(Default)]
struct Edges {
    depends_on: BTreeSet<usize>,
    location: Option<String>,
}

struct Linker<'l> {
    code: &'l Code,
    errors: &'l Errors,
    planned: &'l [PlannedResource],
    origins: &'l [Origin],
    table: &'l ResourceTable,
}

impl Linker<'_> {
    fn edges(&self, index: usize) -> Edges {
        let origin = self.origins[index];
        let node = &self.code.resources[origin.node];
        let mut edges = Edges::default();
        self.explicit(index, node, &mut edges);
        edges.depends_on.extend(origin.parent);
        edges.depends_on.extend(origin.scope_at);
        edges.depends_on.remove(&index);
        self.batches(index, node, &mut edges);
        if self.planned[index].condition && !node.existing {
            self.implied(index, &mut edges);
        }
        edges
    }

    /// `dependsOn`.
    fn explicit(&self, index: usize, node: &ResourceNode, edges: &mut Edges) {
        let meter = Meter::new(&self.code.names.total);
        let frame = self.origins[index].turn.map(|turn| frame(self.code, node, turn));
        let env = Env { copy: frame.as_ref(), ..Env::new(&self.code.names, &meter) };
        let root = Path::root(&self.planned[index].path);
        let root = root.key("dependsOn");
        for (at, entry) in node.depends_on.iter().enumerate() {
            let path = root.index(at);
            let Ok(value) = entry.value(&env, &path, self.errors) else { continue };
            let names = match value {
                Value::Array(items) => items,
                one => vec![one],
            };
            for name in names {
                let Some(name) = name.as_str() else {
                    self.errors.invalid(&path, format!("`dependsOn` must hold strings, not {}", kind_of(&name)));
                    continue;
                };
                let found = self.table.named(name);
                // a loop of no turns has no resources, and that is no mistake
                let is_empty_loop = || {
                    self.code.resources.iter().any(|node| {
                        let loop_name = node.copy.as_ref().map(|copy| copy.name.as_str());
                        loop_name.is_some() && [loop_name, node.symbolic.as_deref()].contains(&Some(name))
                    })
                };
                if found.is_empty() && !is_empty_loop() {
                    self.errors.invalid(&path, format!("the resource '{name}' is not defined in the template"));
                } else if found.contains(&index) {
                    self.errors.push(TemplateError::new(
                        "CircularDependency",
                        path.to_string(),
                        format!("the resource '{}' depends on itself", self.planned[index].id),
                    ));
                }
                edges.depends_on.extend(found.into_iter().filter(|other| *other != index));
            }
        }
    }

    /// A turn of a serial loop waits for the batch before its own.
    fn batches(&self, index: usize, node: &ResourceNode, edges: &mut Edges) {
        let (Some(size), Some(turn)) = (node.copy.as_ref().and_then(|copy| copy.batch), self.origins[index].turn)
        else {
            return;
        };
        let Some(before) = (turn / size).checked_sub(1) else { return };
        let first = index - turn;
        edges.depends_on.extend((first + before * size..first + (before + 1) * size).filter(|other| *other < index));
    }

    /// What the body refers to.
    fn implied(&self, index: usize, edges: &mut Edges) {
        let world =
            crate::plan::Evaluation { code: self.code, table: self.table, runtime: &Nothing, is_preview: false };
        match world.body(self.origins[index]) {
            Err(errors) => errors.into_iter().for_each(|error| self.errors.push(error)),
            Ok(Evaluated::Ready(body)) => {
                edges.location = body.get("location").and_then(Value::as_str).map(str::to_owned);
            }
            Ok(Evaluated::Needs(needs)) => {
                for need in needs {
                    let is_reference = matches!(need, Need::Reference { .. });
                    for other in self.table.with_id(need.id()) {
                        if *other != index {
                            edges.depends_on.insert(*other);
                        } else if is_reference {
                            self.errors.push(TemplateError::new(
                                "CircularDependency",
                                self.planned[index].path.clone(),
                                format!("the resource '{}' refers to itself", need.id()),
                            ));
                        }
                    }
                }
                edges.location = world.location(self.origins[index]);
            }
        }
    }
}
