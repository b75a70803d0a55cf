//! Resource ids as text: put together and taken apart.
//!
//! Templates name resources of any provider, also ones that this platform does not have, so an id here is any well-formed text.

/// `/providers/{namespace}/{type}/{name}/…` of a type and a name per segment.
pub(crate) fn provider_path(kind: &str, names: &[&str]) -> Result<String, String> {
    let mut segments = kind.trim_matches('/').split('/');
    let namespace = segments.next().filter(|namespace| !namespace.is_empty()).unwrap_or_default();
    let types: Vec<&str> = segments.collect();
    if namespace.is_empty() || types.is_empty() || types.iter().any(|part| part.is_empty()) {
        return Err(format!("'{kind}' is not a resource type; write it as 'Microsoft.App/containerApps'"));
    }
    // a single name may hold all segments: 'vault/secret'
    let split: Vec<&str> = names.iter().flat_map(|name| name.split('/')).collect();
    if split.len() != types.len() || split.iter().any(|name| name.is_empty()) {
        return Err(format!("the type '{kind}' needs {} names, {} are given", types.len(), split.len()));
    }
    let mut path = format!("/providers/{namespace}");
    for (kind, name) in types.iter().zip(split) {
        path.push('/');
        path.push_str(kind);
        path.push('/');
        path.push_str(name);
    }
    Ok(path)
}

/// The segment after `key`; empty when the id has none.
pub(crate) fn part<'i>(id: &'i str, key: &str) -> &'i str {
    let mut parts = id.split('/');
    parts.find(|part| part.eq_ignore_ascii_case(key));
    parts.next().unwrap_or_default()
}

/// What comes after the last `/providers/`, in segments.
fn provider(id: &str) -> Vec<&str> {
    let at = id.to_ascii_lowercase().rfind("/providers/").map(|at| at + "/providers/".len());
    at.map_or_else(Vec::new, |at| id[at..].split('/').collect())
}

/// `Microsoft.App/containerApps`.
pub(crate) fn kind(id: &str) -> String {
    let parts = provider(id);
    let types = parts.iter().skip(1).step_by(2).copied();
    parts.first().copied().into_iter().chain(types).collect::<Vec<_>>().join("/")
}

/// The last segment.
pub(crate) fn last_name(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or_default()
}
