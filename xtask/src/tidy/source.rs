//! What every source file must be like: a header, a size, no forbidden words.
//!
//! The words are put together from halves here, so that this file does not find itself.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::{File, Findings};

/// Lines of code above which a file is remarked.
const LINES_WARNED: usize = 500;
/// Lines of code above which a file is refused.
const LINES_MAX: usize = 800;
/// A file whose header holds this line is a table and may be long.
const TABLE_MARK: &str = "//! tidy: table";

/// Words that no Rust file may hold, each with what is right instead.
const RUST_WORDS: [(&str, &str); 6] = [
    (concat!("TO", "DO"), "open an issue instead"),
    (concat!("FIX", "ME"), "open an issue instead"),
    (concat!("todo", "!("), "build it or answer `NotImplemented`"),
    (concat!("unimple", "mented!("), "build it or answer `NotImplemented`"),
    (concat!("#[ig", "nore"), "a test that cannot run here must not exist"),
    (concat!("#[al", "low("), "write `#[expect(lint, reason = \"…\")]`"),
];

/// Lines of a Rust file by kind.
#[derive(Clone, Copy, Debug, Default)]
struct Count {
    code: usize,
    comment: usize,
}

fn count(text: &str) -> Count {
    let mut count = Count::default();
    for line in text.lines().map(str::trim_start).filter(|line| !line.is_empty()) {
        if line.starts_with("//") {
            count.comment += 1;
        } else {
            count.code += 1;
        }
    }
    count
}

/// Checks one file of any kind.
pub(super) fn check(file: &File, found: &mut Findings) {
    let checkout = crate::root();
    if let Some(path) = checkout.to_str().filter(|path| path.len() > 1 && file.text.contains(*path)) {
        found.error(&file.path, format!("names `{path}`, which exists on one machine only"));
    }
    if file.path.extension().is_some_and(|extension| extension == "rs") {
        check_rust(file, found);
    }
}

fn check_rust(file: &File, found: &mut Findings) {
    let path = &file.path;
    if path.file_name().is_some_and(|name| name == "mod.rs") {
        found.error(path, "`mod.rs`; write `foo.rs` beside the folder `foo`");
    }
    let mut lines = file.text.lines().skip_while(|line| line.starts_with("#!["));
    if !lines.next().is_some_and(|line| line.starts_with("//! ")) {
        found.error(path, "does not begin with `//!`: what it decides or owns, and why");
    }
    let code = count(&file.text).code;
    let is_table = file.text.lines().any(|line| line == TABLE_MARK);
    if code > LINES_MAX && !is_table {
        found.error(path, format!("{code} lines of code; more than {LINES_MAX} are refused"));
    } else if code > LINES_WARNED && !is_table {
        found.warn(path, format!("{code} lines of code; {LINES_WARNED} are usual"));
    }
    for (number, line) in file.text.lines().enumerate() {
        for (word, instead) in RUST_WORDS.iter().filter(|(word, _)| line.contains(word)) {
            found.error(path, format!("line {}: `{word}`; {instead}", number + 1));
        }
    }
}

/// Files, lines and comments per crate, so that drift is seen.
pub(super) fn table(files: &[File]) -> String {
    #[derive(Default)]
    struct Row<'a> {
        files: usize,
        count: Count,
        longest: (usize, &'a str),
    }
    let mut rows: BTreeMap<&str, Row<'_>> = BTreeMap::new();
    for file in files.iter().filter(|file| file.path.extension().is_some_and(|extension| extension == "rs")) {
        let counted = count(&file.text);
        for name in [crate_of(&file.path), "all"] {
            let row = rows.entry(name).or_default();
            row.files += 1;
            row.count.code += counted.code;
            row.count.comment += counted.comment;
            row.longest = row.longest.max((counted.code, file.path.to_str().unwrap_or_default()));
        }
    }
    let mut text = format!("{:<14} {:>5} {:>6} {:>8}  longest file\n", "crate", "files", "code", "comments");
    let all = rows.remove("all");
    for (name, row) in rows.iter().map(|(name, row)| (*name, row)).chain(all.iter().map(|row| ("all", row))) {
        let share = row.count.comment * 100 / (row.count.code + row.count.comment).max(1);
        let (lines, path) = row.longest;
        let _ = writeln!(text, "{name:<14} {:>5} {:>6} {share:>7}%  {lines} {path}", row.files, row.count.code);
    }
    text
}

fn crate_of(path: &Path) -> &str {
    let mut parts = path.iter().filter_map(|part| part.to_str());
    match parts.next() {
        Some("crates") => parts.next().unwrap_or("crates"),
        Some(first) => first,
        None => "",
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use expect_test::{Expect, expect};

    use super::*;

    fn check_text(path: &str, text: String, expected: &Expect) {
        let mut found = Findings::default();
        check(&File { path: PathBuf::from(path), text }, &mut found);
        expected.assert_eq(&found.to_text());
    }

    #[test]
    fn a_good_file_is_not_mentioned() {
        check_text("crates/a/src/lib.rs", "//! Owns nothing.\n\nfn f() {}\n".into(), &expect![""]);
    }

    #[test]
    fn headers_names_and_words() {
        let mut found = Findings::default();
        let text = RUST_WORDS.map(|(word, _)| word).join("\n");
        check(&File { path: PathBuf::from("crates/a/src/b/mod.rs"), text }, &mut found);
        // the name, the header, every word
        assert_eq!(found.errors.len(), 2 + RUST_WORDS.len(), "{}", found.to_text());
        let mut found = Findings::default();
        let text = format!("see {}/x", crate::root().display());
        check(&File { path: PathBuf::from("a.md"), text }, &mut found);
        assert_eq!(found.errors.len(), 1, "{}", found.to_text());
    }

    #[test]
    fn comments_and_blank_lines_are_no_code() {
        let long = |lines: usize| format!("//! A file.\n{}", "\n// said\nlet a = 1;\n".repeat(lines));
        check_text("a.rs", long(500), &expect![""]);
        check_text(
            "a.rs",
            long(501),
            &expect![[r#"
            warning: a.rs: 501 lines of code; 500 are usual
        "#]],
        );
        check_text(
            "a.rs",
            long(801),
            &expect![[r#"
            error: a.rs: 801 lines of code; more than 800 are refused
        "#]],
        );
        check_text("a.rs", format!("//! Rows.\n{TABLE_MARK}\n{}", "x,\n".repeat(900)), &expect![""]);
    }
}
