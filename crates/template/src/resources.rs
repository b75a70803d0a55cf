//! The resources of a plan by every name that a template may call them: id, name, symbolic name, loop.

use std::collections::BTreeMap;

use crate::ids;
use crate::plan::PlannedResource;
use crate::scope::Scope;

/// Indices of resources by their names, in lower case.
#[derive(Debug, Default)]
pub(crate) struct ResourceTable {
    all: Vec<Target>,
    by_id: BTreeMap<String, Vec<usize>>,
    by_name: BTreeMap<String, Vec<usize>>,
    /// Children by the last part of their name, as they call each other.
    by_last: BTreeMap<String, Vec<usize>>,
    by_symbol: BTreeMap<String, Vec<usize>>,
    by_loop: BTreeMap<String, Vec<usize>>,
    is_symbolic: bool,
}

/// A resource that an expression names.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) id: String,
    pub(crate) api_version: Option<String>,
}

impl ResourceTable {
    pub(crate) fn new(resources: &[PlannedResource], is_symbolic: bool) -> Self {
        let mut table = Self { is_symbolic, ..Self::default() };
        for (index, resource) in resources.iter().enumerate() {
            let version = Some(resource.api_version.clone()).filter(|version| !version.is_empty());
            table.all.push(Target { id: resource.id.clone(), api_version: version });
            let mut put = |map: fn(&mut Self) -> &mut BTreeMap<String, Vec<usize>>, key: &str| {
                map(&mut table).entry(key.to_lowercase()).or_default().push(index);
            };
            put(|table| &mut table.by_id, &resource.id);
            put(|table| &mut table.by_name, &resource.name);
            put(|table| &mut table.by_name, &format!("{}/{}", resource.kind, resource.name));
            if let Some((_, last)) = resource.name.rsplit_once('/') {
                put(|table| &mut table.by_last, last);
            }
            if let Some(copy) = &resource.copy {
                put(|table| &mut table.by_loop, &copy.name);
            }
            if let Some(symbolic) = &resource.symbolic {
                put(|table| &mut table.by_symbol, symbolic);
                if resource.copy.is_some()
                    && let Some((name, _)) = symbolic.split_once('[')
                {
                    put(|table| &mut table.by_symbol, name);
                }
            }
        }
        table
    }

    /// Indices that an entry of `dependsOn` means; empty when nothing has that name.
    pub(crate) fn named(&self, name: &str) -> Vec<usize> {
        let lower = name.to_lowercase();
        let first = if self.is_symbolic { &self.by_symbol } else { &self.by_loop };
        let maps = [first, &self.by_id, &self.by_name, &self.by_loop, &self.by_last];
        maps.into_iter().find_map(|map| map.get(&lower)).cloned().unwrap_or_default()
    }

    /// Indices of the resource with this id.
    pub(crate) fn with_id(&self, id: &str) -> &[usize] {
        self.by_id.get(&id.to_lowercase()).map_or(&[], Vec::as_slice)
    }

    /// The resource that the first argument of `reference` or `list*` means.
    pub(crate) fn target(&self, name: &str, scope: &Scope) -> Result<Target, String> {
        let lower = name.to_lowercase();
        let found = if self.is_symbolic { self.by_symbol.get(&lower) } else { None };
        match found.map(Vec::as_slice) {
            Some([one]) => return Ok(self.all[*one].clone()),
            Some(_) => {
                return Err(format!(
                    "'{name}' is a loop; name one of its resources as '{name}[0]', or use references()"
                ));
            }
            None => {}
        }
        if name.starts_with('/') {
            let known = self.with_id(name).first().and_then(|index| self.all[*index].api_version.clone());
            return Ok(Target { id: name.to_owned(), api_version: known });
        }
        match self.by_name.get(&lower).map(Vec::as_slice) {
            Some([one]) => Ok(self.all[*one].clone()),
            Some(_) => Err(format!("'{name}' is the name of several resources; write resourceId(type, name)")),
            // a type and a name without a scope: within the deployment's
            None => match relative(name) {
                Some(path) => Ok(Target { id: format!("{}{path}", scope.id()), api_version: None }),
                None => Err(format!(
                    "the resource '{name}' is not defined in the template; write resourceId(type, name) for one outside"
                )),
            },
        }
    }

    /// All resources of a loop.
    pub(crate) fn loop_targets(&self, name: &str) -> Result<Vec<Target>, String> {
        let lower = name.to_lowercase();
        let found = self.by_symbol.get(&lower).or_else(|| self.by_loop.get(&lower));
        let found = found.ok_or_else(|| format!("no copy loop '{name}' is defined in the template"))?;
        Ok(found.iter().map(|index| self.all[*index].clone()).collect())
    }
}

/// `/providers/…` of `Microsoft.App/containerApps/web`.
pub(crate) fn relative(name: &str) -> Option<String> {
    let mut parts = name.split('/');
    let namespace = parts.next()?;
    let rest: Vec<&str> = parts.collect();
    if !namespace.contains('.') || rest.len() < 2 || !rest.len().is_multiple_of(2) {
        return None;
    }
    let kind: Vec<&str> = std::iter::once(namespace).chain(rest.iter().step_by(2).copied()).collect();
    let names: Vec<&str> = rest.iter().skip(1).step_by(2).copied().collect();
    ids::provider_path(&kind.join("/"), &names).ok()
}
