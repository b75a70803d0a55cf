//! Which crate may depend on which, and what makes a crate pure.
//!
//! A manifest says its layer in `[package.metadata] layer = "…"`. A dependency may point down or stay within core, adapters
//! and programs; services never see each other, since they meet in the server. Development dependencies follow the same rule. What only tests need (layer `test`) uses
//! nothing of the product, and everyone's tests may use it.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context as _;
use toml::{Table, Value};

use super::Findings;

/// What a pure crate may use besides crates of its own layer: data, text, time as a value.
const PURE_ALLOWED: [&str; 9] =
    ["base64", "indexmap", "jiff", "regex", "serde", "serde_json", "sha2", "thiserror", "uuid"];
/// What the `clippy.toml` of a pure crate must ban.
const PURE_BANS: [&str; 6] = [
    "jiff::Timestamp::now",
    "std::time::SystemTime::now",
    "std::time::Instant::now",
    "std::env::var",
    "uuid::Uuid::new_v4",
    "std::collections::HashMap",
];

/// Layers in the order of dependency.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Core,
    Adapter,
    Service,
    Program,
    Test,
}

impl Layer {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "core" => Some(Self::Core),
            "adapter" => Some(Self::Adapter),
            "service" => Some(Self::Service),
            "program" => Some(Self::Program),
            "test" => Some(Self::Test),
            _ => None,
        }
    }

    fn may_depend_on(self, other: Self, section: &str) -> bool {
        match (self, other) {
            (_, Self::Test) => section == "dev-dependencies",
            (Self::Test, _) => false,
            _ => other < self || (other == self && self != Self::Service),
        }
    }
}

/// Checks all manifests; `read` gives the text of another file of the repository.
pub(super) fn check<'a>(
    manifests: &BTreeMap<&Path, &str>,
    read: &dyn Fn(&Path) -> Option<&'a str>,
    found: &mut Findings,
) -> anyhow::Result<()> {
    let mut crates = Vec::new();
    for (&path, &text) in manifests {
        let manifest: Table = toml::from_str(text).with_context(|| format!("failed to parse `{}`", path.display()))?;
        if manifest.contains_key("package") {
            crates.push((path, manifest));
        }
    }
    let mut layers = BTreeMap::new();
    for (path, manifest) in &crates {
        let Some(name) = at(manifest, &["package", "name"]) else { continue };
        match at(manifest, &["package", "metadata", "layer"]).and_then(Layer::parse) {
            Some(layer) => {
                layers.insert(name, layer);
            }
            // the tools of the repository stand outside the product
            None if path.starts_with("xtask") => {}
            None => found.error(path, "no `[package.metadata] layer`; write core, adapter, service, program or test"),
        }
    }
    for (path, manifest) in &crates {
        if manifest.get("lints").and_then(|lints| lints.get("workspace")) != Some(&Value::Boolean(true)) {
            found.error(path, "no `[lints] workspace = true`");
        }
        let Some(&layer) = at(manifest, &["package", "name"]).and_then(|name| layers.get(name)) else { continue };
        for (section, dependency) in dependencies(manifest) {
            if let Some(&other) = layers.get(dependency)
                && !layer.may_depend_on(other, section)
            {
                found.error(path, format!("`{dependency}` ({other:?}) must not be used by a crate of layer {layer:?}"));
            }
            let is_pure_use = dependency.starts_with("cove-") || PURE_ALLOWED.contains(&dependency);
            if layer == Layer::Core && section == "dependencies" && !is_pure_use {
                found.error(path, format!("`{dependency}` is not on the list of what a pure crate may use"));
            }
        }
        if layer == Layer::Core {
            check_bans(&path.with_file_name("clippy.toml"), read, found);
        }
    }
    Ok(())
}

fn check_bans<'a>(path: &Path, read: &dyn Fn(&Path) -> Option<&'a str>, found: &mut Findings) {
    let Some(text) = read(path) else {
        found.error(path, "missing: a pure crate bans clocks, environment and hash maps in a `clippy.toml` of its own");
        return;
    };
    for ban in PURE_BANS.iter().filter(|ban| !text.contains(*ban)) {
        found.error(path, format!("does not ban `{ban}`"));
    }
}

fn at<'a>(table: &'a Table, keys: &[&str]) -> Option<&'a str> {
    let (first, rest) = keys.split_first()?;
    rest.iter().try_fold(table.get(*first)?, |value, key| value.get(key))?.as_str()
}

fn dependencies(manifest: &Table) -> Vec<(&'static str, &str)> {
    let mut all = Vec::new();
    for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
        let Some(Value::Table(entries)) = manifest.get(section) else { continue };
        all.extend(entries.keys().map(|name| (section, name.as_str())));
    }
    all
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check_manifests(manifests: &[(&str, &str)], expected: &Expect) {
        let texts: Vec<(String, String)> = manifests
            .iter()
            .map(|(name, rest)| {
                let (layer, rest) = rest.split_once('\n').unwrap_or((rest, ""));
                let text = format!("[package]\nname = \"cove-{name}\"\n{layer}\n[lints]\nworkspace = true\n{rest}");
                (format!("crates/{name}/Cargo.toml"), text)
            })
            .collect();
        let map = texts.iter().map(|(path, text)| (Path::new(path.as_str()), text.as_str())).collect();
        let mut found = Findings::default();
        let bans = PURE_BANS.join("\n");
        check(&map, &|path| (!path.starts_with("crates/bare")).then_some(bans.as_str()), &mut found).unwrap();
        expected.assert_eq(&found.to_text());
    }

    #[test]
    fn services_never_see_each_other() {
        check_manifests(
            &[
                (
                    "ingress",
                    "metadata.layer = \"service\"\n[dependencies]\ncove-monitor.workspace = true\ncove-model = {}",
                ),
                ("monitor", "metadata.layer = \"service\"\n[dev-dependencies]\ncove-server = {}"),
                ("model", "metadata.layer = \"core\"\n[dependencies]\ncove-store = {}\ntokio = {}"),
                ("store", "metadata.layer = \"adapter\"\n[dependencies]\ntokio = {}\ncove-model = {}"),
                ("server", "metadata.layer = \"program\"\n[dependencies]\ncove-monitor = {}\ncove-cli = {}"),
                ("cli", "metadata.layer = \"program\""),
                ("bare", "metadata.layer = \"core\""),
                ("lost", ""),
                ("testing", "metadata.layer = \"test\"\n[dependencies]\ncove-model = {}"),
                ("traffic", "metadata.layer = \"core\"\n[dev-dependencies]\ncove-testing = {}"),
                ("scaling", "metadata.layer = \"core\"\n[dependencies]\ncove-testing = {}"),
            ],
            &expect![[r#"
                error: crates/lost/Cargo.toml: no `[package.metadata] layer`; write core, adapter, service, program or test
                error: crates/bare/clippy.toml: missing: a pure crate bans clocks, environment and hash maps in a `clippy.toml` of its own
                error: crates/ingress/Cargo.toml: `cove-monitor` (Service) must not be used by a crate of layer Service
                error: crates/model/Cargo.toml: `cove-store` (Adapter) must not be used by a crate of layer Core
                error: crates/model/Cargo.toml: `tokio` is not on the list of what a pure crate may use
                error: crates/monitor/Cargo.toml: `cove-server` (Program) must not be used by a crate of layer Service
                error: crates/scaling/Cargo.toml: `cove-testing` (Test) must not be used by a crate of layer Core
                error: crates/testing/Cargo.toml: `cove-model` (Core) must not be used by a crate of layer Test
            "#]],
        );
    }
}
