//! The section `resources`, read and compiled: an array, or since language version 2.0 an object of symbolic names.

use serde_json::{Map, Value};

use crate::expr::{Known, Place};
use crate::functions::{get, kind_of, member};
use crate::nested;
use crate::node::{Compiler, Node};
use crate::path::{Errors, Path};

/// Members of a resource that are for the deployment and not part of its body.
const HEAD: [&str; 16] = [
    "apiVersion",
    "type",
    "name",
    "condition",
    "copy",
    "dependsOn",
    "existing",
    "scope",
    "resources",
    "comments",
    "metadata",
    "import",
    "extension",
    "asserts",
    "subscriptionId",
    "resourceGroup",
];

/// Deepest nesting of child resources.
const CHILDREN_DEPTH_MAX: usize = 5;

/// A resource as the template writes it.
#[derive(Debug)]
pub(crate) struct ResourceNode {
    pub(crate) path: String,
    pub(crate) symbolic: Option<String>,
    /// The resource it is written in, as an index; always smaller than its own.
    pub(crate) parent: Option<usize>,
    /// Full type.
    pub(crate) kind: String,
    pub(crate) name: Node,
    pub(crate) api_version: Option<Node>,
    pub(crate) condition: Option<Node>,
    pub(crate) existing: bool,
    pub(crate) scope: Option<Node>,
    pub(crate) subscription: Option<Node>,
    pub(crate) group: Option<Node>,
    pub(crate) depends_on: Vec<Node>,
    pub(crate) copy: Option<ResourceLoop>,
    pub(crate) body: Node,
    /// The template of a nested deployment, which is no part of `body`.
    pub(crate) nested: Option<nested::Nested>,
}

/// `copy` of a resource.
#[derive(Debug)]
pub(crate) struct ResourceLoop {
    pub(crate) name: String,
    pub(crate) count: Node,
    /// How many at once, in serial mode.
    pub(crate) batch: Option<usize>,
}

/// Reads the section.
pub(crate) fn read(template: &Value, known: &Known<'_>, errors: &Errors) -> Vec<ResourceNode> {
    let mut reader = Reader { known, errors, nodes: Vec::new(), is_symbolic: false };
    if let Some(section) = member(template, "resources").filter(|section| !section.is_null()) {
        reader.is_symbolic = section.is_object();
        reader.section(section, &Path::root("resources"), None, CHILDREN_DEPTH_MAX);
    }
    reader.nodes
}

struct Reader<'r> {
    known: &'r Known<'r>,
    errors: &'r Errors,
    nodes: Vec<ResourceNode>,
    is_symbolic: bool,
}

impl Reader<'_> {
    fn compiler(&self, place: Place) -> Compiler<'_> {
        Compiler { place, known: *self.known, errors: self.errors }
    }

    fn section(&mut self, section: &Value, path: &Path<'_>, parent: Option<usize>, depth: usize) {
        if depth == 0 {
            return self
                .errors
                .invalid(path, format!("child resources are nested deeper than {CHILDREN_DEPTH_MAX} levels"));
        }
        match section {
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    self.resource(item, &path.index(index), None, parent, depth);
                }
            }
            Value::Object(map) => {
                for (name, item) in map {
                    self.resource(item, &path.key(name), Some(name), parent, depth);
                }
            }
            other => {
                self.errors.invalid(path, format!("`resources` must be an array or an object, not {}", kind_of(other)))
            }
        }
    }

    fn resource(
        &mut self,
        value: &Value,
        path: &Path<'_>,
        symbolic: Option<&str>,
        parent: Option<usize>,
        depth: usize,
    ) {
        let Some(map) = value.as_object() else {
            return self.errors.invalid(path, format!("a resource must be an object, not {}", kind_of(value)));
        };
        let Some(kind) = self.kind(map, path, parent) else { return };
        let head = self.compiler(Place::Head);
        let part =
            |name: &str| get(map, name).filter(|v| !v.is_null()).map(|value| head.compile(value, &path.key(name)));
        let name = part("name").unwrap_or_else(|| {
            self.errors.invalid(path, "the resource has no `name`");
            Node::Literal("-".into())
        });
        let existing = matches!(get(map, "existing"), Some(Value::Bool(true)));
        let api_version = part("apiVersion");
        if api_version.is_none() && !existing {
            self.errors.invalid(path, format!("the resource of type '{kind}' has no `apiVersion`"));
        }
        let copy = self.copy(map, path);
        if copy.is_some() && parent.is_some() {
            self.errors
                .invalid(&path.key("copy"), "a loop cannot be within another resource; move it to the top level");
        }
        let is_deployment = kind.eq_ignore_ascii_case("Microsoft.Resources/deployments");
        let nested = if is_deployment && !existing {
            nested::read(value, path, self.known, self.is_symbolic, self.errors)
        } else {
            None
        };
        let node = ResourceNode {
            path: path.to_string(),
            symbolic: symbolic.map(str::to_owned),
            parent,
            name,
            api_version,
            condition: part("condition"),
            existing,
            scope: part("scope"),
            subscription: part("subscriptionId"),
            group: part("resourceGroup"),
            depends_on: self.depends_on(map, path),
            copy,
            body: self.body(map, path, is_deployment),
            nested,
            kind,
        };
        let index = self.nodes.len();
        self.nodes.push(node);
        if let Some(children) = get(map, "resources").filter(|children| !children.is_null() && !is_deployment) {
            self.section(children, &path.key("resources"), Some(index), depth - 1);
        }
    }

    /// The full type.
    fn kind(&self, map: &Map<String, Value>, path: &Path<'_>, parent: Option<usize>) -> Option<String> {
        let kind = get(map, "type").and_then(Value::as_str).unwrap_or_default();
        let parent = parent.map(|parent| self.nodes[parent].kind.as_str());
        let is_full = kind.split('/').next().is_some_and(|namespace| namespace.contains('.')) && kind.contains('/');
        match parent {
            Some(parent) if !kind.is_empty() && !is_full => Some(format!("{parent}/{kind}")),
            _ if is_full => Some(kind.to_owned()),
            _ => {
                let given = if kind.is_empty() { "no `type`".to_owned() } else { format!("the type '{kind}'") };
                self.errors
                    .invalid(path, format!("the resource has {given}; write it as 'Microsoft.App/containerApps'"));
                None
            }
        }
    }

    fn depends_on(&self, map: &Map<String, Value>, path: &Path<'_>) -> Vec<Node> {
        let at = path.key("dependsOn");
        let compiler = self.compiler(Place::Head);
        match get(map, "dependsOn") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(items)) => {
                items.iter().enumerate().map(|(index, item)| compiler.compile(item, &at.index(index))).collect()
            }
            // one expression that gives the whole array, or one name
            Some(one @ Value::String(_)) => vec![compiler.compile(one, &at)],
            Some(other) => {
                self.errors.invalid(&at, format!("`dependsOn` must be an array of strings, not {}", kind_of(other)));
                Vec::new()
            }
        }
    }

    fn copy(&self, map: &Map<String, Value>, path: &Path<'_>) -> Option<ResourceLoop> {
        let copy = get(map, "copy").filter(|copy| !copy.is_null())?;
        let at = path.key("copy");
        let (Some(name), Some(count)) = (member(copy, "name").and_then(Value::as_str), member(copy, "count")) else {
            self.errors.invalid(&at, "`copy` of a resource must have `name` and `count`");
            return None;
        };
        let mode = member(copy, "mode").map_or(Some("parallel"), Value::as_str).unwrap_or_default();
        let size = member(copy, "batchSize");
        let batch = match mode.to_ascii_lowercase().as_str() {
            "parallel" => None,
            "serial" => {
                Some(size.map_or(Some(1), Value::as_u64).and_then(|size| usize::try_from(size).ok()).unwrap_or(0))
            }
            _ => {
                self.errors.invalid(&at.key("mode"), "the mode must be 'parallel' or 'serial'");
                None
            }
        };
        if batch == Some(0) {
            self.errors.invalid(&at.key("batchSize"), "the batch size must be an integer of at least 1");
        }
        let count = self.compiler(Place::Head).compile(count, &at.key("count"));
        Some(ResourceLoop { name: name.to_owned(), count, batch: batch.filter(|size| *size > 0) })
    }

    fn body(&self, map: &Map<String, Value>, path: &Path<'_>, is_deployment: bool) -> Node {
        let is_head = |name: &str| HEAD.iter().any(|head| head.eq_ignore_ascii_case(name));
        let mut body: Map<String, Value> =
            map.iter().filter(|(name, _)| !is_head(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
        if is_deployment {
            let properties = body.iter_mut().find(|(name, _)| name.eq_ignore_ascii_case("properties"));
            if let Some((_, Value::Object(properties))) = properties {
                properties.retain(|name, _| !name.eq_ignore_ascii_case("template"));
            }
        }
        self.compiler(Place::Body).compile(&Value::Object(body), path)
    }
}
