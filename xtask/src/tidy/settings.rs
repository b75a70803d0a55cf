//! Every setting of `cove.toml` has a row in the page of limits and units.
//!
//! A section is a struct whose documentation begins with `` `[name]` ``; each of its public fields is a setting.

use std::path::Path;

use super::{File, Findings};

const SOURCE: &str = "crates/server/src/config.rs";
const PAGE: &str = "docs/units.md";

pub(super) fn check(files: &[File], found: &mut Findings) {
    let text = |path: &str| files.iter().find(|file| file.path == Path::new(path)).map(|file| file.text.as_str());
    let (Some(source), Some(page)) = (text(SOURCE), text(PAGE)) else {
        found.error(PAGE, format!("missing, or `{SOURCE}` is"));
        return;
    };
    for setting in settings(source).iter().filter(|setting| !page.contains(&format!("`{setting}`"))) {
        found.error(PAGE, format!("has no row for the setting `{setting}`"));
    }
}

fn settings(source: &str) -> Vec<String> {
    let mut all = Vec::new();
    let (mut announced, mut section) = (None, None);
    for line in source.lines() {
        if let Some(name) = line.strip_prefix("/// `[").and_then(|rest| rest.split(']').next()) {
            announced = Some(name);
        } else if line.starts_with("pub struct ") {
            section = announced.take();
        } else if line == "}" {
            section = None;
        } else if let (Some(section), Some(field)) = (section, line.strip_prefix("    pub ")) {
            all.extend(field.split(':').next().map(|field| format!("{section}.{field}")));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_sections_are_settings() {
        let source = "/// Everything.\npub struct Config {\n    /// `[api]`\n    pub api: A,\n}\n\n/// `[api]`: the API.\n\
            #[derive(Debug)]\npub struct A {\n    /// Where.\n    pub bind: B,\n    pub names: Vec<C>,\n}\n\
            pub struct B {\n    pub no: u8,\n}\n";
        assert_eq!(settings(source), ["api.bind", "api.names"]);
    }
}
