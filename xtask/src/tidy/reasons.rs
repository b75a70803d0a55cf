//! Every reason that the ingress gives in `x-cove-reason`, and every way an answer can end, has a page in `docs/reasons` and a
//! line in its index; every page has a reason.
//!
//! A reason is a string literal of lower-case words joined by dashes that stands behind a status (`StatusCode::NOT_FOUND, "…"`)
//! or behind the header's name in the ingress, or is a word of the endings.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{File, Findings};

const SPEAKING: &str = "crates/ingress/src";
const ENDINGS: &str = "crates/traffic/src/access.rs";
const PAGES: &str = "docs/reasons";
const INDEX: &str = "README";
/// The ending of a request about which there is nothing to say.
const COMPLETE: &str = "complete";

pub(super) fn check(files: &[File], found: &mut Findings) {
    let mut reasons: BTreeMap<&str, &Path> = BTreeMap::new();
    for file in files.iter().filter(|file| file.path.extension().is_some_and(|e| e == "rs")) {
        let is_ending = file.path == Path::new(ENDINGS);
        if file.path.starts_with(SPEAKING) || is_ending {
            for reason in reasons_in(&file.text, is_ending).into_iter().filter(|reason| is_told(reason)) {
                reasons.entry(reason).or_insert(&file.path);
            }
        }
    }
    let pages = files.iter().filter(|file| file.path.starts_with(PAGES));
    let names: BTreeSet<&str> = pages.filter_map(|file| file.path.file_stem()?.to_str()).collect();
    let index = files.iter().find(|file| file.path == Path::new(PAGES).join(format!("{INDEX}.md")));
    for (reason, path) in &reasons {
        if !names.contains(reason) {
            found.error(path, format!("reason `{reason}` has no page `{PAGES}/{reason}.md`"));
        } else if index.is_none_or(|index| !index.text.contains(&format!("({reason}.md)"))) {
            found.error(PathBuf::from(PAGES).join("README.md"), format!("reason `{reason}` has no line"));
        }
    }
    for page in names.iter().filter(|page| **page != INDEX && !reasons.contains_key(*page)) {
        found.error(PathBuf::from(PAGES).join(format!("{page}.md")), "nothing gives this reason");
    }
}

/// The reasons in a file, its tests left out.
fn reasons_in(text: &str, is_ending: bool) -> BTreeSet<&str> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut parts = text.split('"');
    let mut before = parts.next().unwrap_or_default();
    let mut reasons = BTreeSet::new();
    for part in parts {
        if is_reason(part) && stands_as_reason(before.trim_end(), is_ending) {
            reasons.insert(part);
        }
        before = part;
    }
    reasons
}

fn is_reason(literal: &str) -> bool {
    literal.len() > 2 && literal.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Whether what stands before a literal makes it a reason.
fn stands_as_reason(before: &str, is_ending: bool) -> bool {
    if is_ending {
        return before.ends_with("=>") && before.contains("Self::");
    }
    if before.ends_with("REASON_HEADER, HeaderValue::from_static(") {
        return true;
    }
    let Some(call) = before.strip_suffix(',') else { return false };
    let argument = call.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':');
    call[argument.len()..].starts_with("StatusCode::")
}

/// What [`check`] leaves out of the endings.
fn is_told(reason: &str) -> bool {
    reason != COMPLETE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_found_where_reasons_stand() {
        let text = r#"
            Self::UnknownHost => (StatusCode::NOT_FOUND, "unknown-host"),
            headers().insert(REASON_HEADER, HeaderValue::from_static("insecure-not-allowed"));
            headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
            #[error("not-this")]
            #[cfg(test)]
            mod tests { (StatusCode::NOT_FOUND, "only-in-tests") }
        "#;
        assert_eq!(reasons_in(text, false).into_iter().collect::<Vec<_>>(), ["insecure-not-allowed", "unknown-host"]);
        let endings = r#"Self::Complete => "complete", Self::AppCut => "app-cut","#;
        assert_eq!(
            reasons_in(endings, true).into_iter().filter(|reason| is_told(reason)).collect::<Vec<_>>(),
            ["app-cut"]
        );
    }
}
