//! Every error code has a page in `docs/errors`, and every page a code.
//!
//! A code is a string literal in camel case that stands where a code is given: the second argument of an error's
//! constructor, the first of `conflict(` or `…_error(`, a field `code:`, or anything in a `let code = …;`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{File, Findings};

/// Crates whose errors reach users of the API.
const SPEAKING: [&str; 5] =
    ["crates/arm/src", "crates/control-plane/src", "crates/reconcile/src", "crates/server/src", "crates/sessions/src"];
const PAGES: &str = "docs/errors";
/// Where scale rules are checked.
const RULES: [&str; 2] = ["crates/scaling/src/validate.rs", "crates/scaling/src/validate"];
/// Pages that are about no single code.
const INDEX: &str = "README";

pub(super) fn check(files: &[File], found: &mut Findings) {
    let mut codes: BTreeMap<&str, &Path> = BTreeMap::new();
    for file in files.iter().filter(|file| speaks(&file.path)) {
        for code in codes_in(&file.text) {
            codes.entry(code).or_insert(&file.path);
        }
    }
    let pages: BTreeSet<&str> = files
        .iter()
        .filter(|file| file.path.starts_with(PAGES))
        .filter_map(|file| file.path.file_stem()?.to_str())
        .filter(|page| *page != INDEX)
        .collect();
    for (code, path) in codes.iter().filter(|(code, _)| !pages.contains(*code)) {
        found.error(path, format!("error code `{code}` has no page `{PAGES}/{code}.md`"));
    }
    // codes of scale rules are variants of an enum, which jobs give out under their own names
    let rules: Vec<&File> =
        files.iter().filter(|file| RULES.iter().any(|place| file.path.starts_with(place))).collect();
    let is_of_rules = |page: &str| rules.iter().any(|file| file.text.contains(&format!("ErrorCode::{page}")));
    for page in pages.iter().filter(|page| !codes.contains_key(*page) && !is_of_rules(page)) {
        found.error(PathBuf::from(PAGES).join(format!("{page}.md")), "no code uses this error code");
    }
}

fn speaks(path: &Path) -> bool {
    let is_test = path.iter().any(|part| part == "tests" || part == "tests.rs");
    !is_test && path.extension().is_some_and(|e| e == "rs") && SPEAKING.iter().any(|folder| path.starts_with(folder))
}

/// The codes in a file, its tests left out.
fn codes_in(text: &str) -> BTreeSet<&str> {
    let text = text.split("#[cfg(test)]").next().unwrap_or_default();
    let mut codes = BTreeSet::new();
    let mut from = 0;
    while let Some(open) = text[from..].find('"').map(|at| from + at) {
        let Some(close) = text[open + 1..].find('"').map(|at| open + 1 + at) else { break };
        let literal = &text[open + 1..close];
        if is_code(literal) && stands_as_code(text[..open].trim_end()) {
            codes.insert(literal);
        }
        // a quote inside a literal only makes the next literals look like text between them: step to the next quote
        from = if is_code(literal) { close + 1 } else { open + 1 };
    }
    codes
}

/// `ResourceNotFound`: letters and digits, two capitals or more, the first letter is one.
fn is_code(literal: &str) -> bool {
    let capitals = literal.bytes().filter(u8::is_ascii_uppercase).count();
    literal.starts_with(|first: char| first.is_ascii_uppercase())
        && capitals >= 1
        && literal.len() > 7
        && literal.bytes().all(|byte| byte.is_ascii_alphanumeric())
        && literal.bytes().any(|byte| byte.is_ascii_lowercase())
}

/// Whether what stands before a literal makes it an error code.
fn stands_as_code(before: &str) -> bool {
    if ["conflict(", "_error(", "code:"].iter().any(|end| before.ends_with(end)) {
        return true;
    }
    // `new(400,` and `Failed(StatusCode::NOT_FOUND,`
    if let Some(call) = before.strip_suffix(',') {
        let argument = call.trim_end_matches(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        let given = &call[argument.len()..];
        let is_status = given.starts_with("StatusCode::")
            || given == "status"
            || (given.len() == 3 && given.bytes().all(|b| b.is_ascii_digit()));
        if is_status && argument.trim_end().ends_with('(') {
            return true;
        }
    }
    let statement = before.rfind(';').map_or(before, |at| &before[at + 1..]);
    statement.contains("let code =")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_found_where_codes_stand() {
        let text = r#"
            ArmError::new(400, "PlainCode", "Message Text");
            Self::new(
                404,
                "WrappedCode",
                "words",
            );
            ArmError::conflict("ConflictCode", format!("x \"InnerWord\" {y}"));
            rule_error("RuleCode", "NotThisOne");
            let code = if low { "LowCode1" } else { "HighCode" };
            Failed(StatusCode::BAD_REQUEST, "ExtensionCode", message.into());
            Outcome { code: "FieldCode" };
            state("InProgress");
            #[cfg(test)]
            mod tests { ArmError::new(400, "TestOnly", ""); }
        "#;
        let codes: Vec<&str> = codes_in(text).into_iter().collect();
        let expected = "ConflictCode ExtensionCode FieldCode HighCode LowCode1 PlainCode RuleCode WrappedCode";
        assert_eq!(codes.join(" "), expected);
    }
}
