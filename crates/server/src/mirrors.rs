//! Where images of a registry are: the configured mirrors, and the registries that users made through the API.
//!
//! A `Microsoft.ContainerRegistry/registries` resource is a name for the embedded registry, so images of its login server
//! `<name>.azurecr.io` are those that were pushed here. A configured mirror of that host wins.

use std::collections::BTreeMap;

use cove_images::{Mirrors, OWN_REGISTRY};
use cove_store::Store;

/// What Azure's registries are called.
const LOGIN_SUFFIX: &str = ".azurecr.io";
const KIND: &str = "Microsoft.ContainerRegistry/registries";

/// The mirrors of a server.
pub(crate) fn of(configured: &BTreeMap<String, String>, store: Store) -> Mirrors {
    let configured: BTreeMap<String, String> =
        configured.iter().map(|(from, to)| (from.to_ascii_lowercase(), to.clone())).collect();
    Mirrors::new(move |registry| {
        let registry = registry.to_ascii_lowercase();
        if let Some(mirror) = configured.get(&registry) {
            return Some(mirror.clone());
        }
        let name = registry.strip_suffix(LOGIN_SUFFIX)?;
        let found = store.ids_named(KIND, name);
        let found = found.inspect_err(|error| tracing::error!(%error, registry, "failed to look a registry up"));
        found.is_ok_and(|ids| !ids.is_empty()).then(|| OWN_REGISTRY.to_owned())
    })
}

/// Says what is wrong with a configured mirror.
pub(crate) fn check(from: &str, to: &str) -> Result<(), String> {
    for host in [from, to] {
        let name = format!("{host}/image");
        let is_host = !host.contains('/') && (host.contains(['.', ':']) || host == "localhost");
        let parsed = name.parse::<cove_images::ImageRef>();
        if !is_host || parsed.is_err() {
            return Err(format!(
                "`{host}` in `registries.mirrors` is not a registry such as `example.azurecr.io` or `localhost:5000`"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_are_hosts() {
        assert!(check("my.azurecr.io", "cove.local").is_ok() && check("docker.io", "localhost:5000").is_ok());
        for bad in ["", "docker", "https://docker.io", "a b.c", "docker.io/library"] {
            assert!(check(bad, "cove.local").is_err(), "{bad}");
        }
    }
}
