//! `cargo xtask tidy`: the part of the house style that a machine can hold.
//!
//! Sizes and headers of files, the layer rule between crates, purity of the core, words that must not be committed, a page
//! for every error code and every reason, a row for every setting. Everything is read as text: no build is needed, and it takes less than a second.
//!
//! **Invariant:** exit code 0 only when nothing was found; a warning is printed and does not fail.

mod codes;
mod layers;
mod reasons;
mod settings;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, ensure};

/// Options of `cargo xtask tidy`.
#[derive(Debug, clap::Args)]
pub(crate) struct TidyArgs {
    /// Also print a table of crates: files, lines of code, share of comments, longest file.
    #[arg(long)]
    table: bool,
}

/// What was found, in the order it was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    errors: Vec<String>,
    warnings: Vec<String>,
}

impl Findings {
    pub(crate) fn error(&mut self, place: impl AsRef<Path>, what: impl std::fmt::Display) {
        self.errors.push(format!("{}: {what}", place.as_ref().display()));
    }

    pub(crate) fn warn(&mut self, place: impl AsRef<Path>, what: impl std::fmt::Display) {
        self.warnings.push(format!("{}: {what}", place.as_ref().display()));
    }

    #[cfg(test)]
    pub(crate) fn to_text(&self) -> String {
        let lines = self.errors.iter().map(|e| format!("error: {e}\n"));
        lines.chain(self.warnings.iter().map(|w| format!("warning: {w}\n"))).collect()
    }
}

/// One file of the repository.
#[derive(Debug)]
pub(crate) struct File {
    /// Relative to the repository.
    pub(crate) path: PathBuf,
    pub(crate) text: String,
}

/// Checks everything and prints what is wrong.
#[expect(clippy::print_stdout, reason = "the report is the command's output")]
pub(crate) fn run(args: &TidyArgs) -> anyhow::Result<ExitCode> {
    let files = files(&crate::root())?;
    let mut found = Findings::default();
    let manifests: BTreeMap<&Path, &str> = files
        .iter()
        .filter(|file| file.path.ends_with("Cargo.toml"))
        .map(|file| (file.path.as_path(), file.text.as_str()))
        .collect();
    layers::check(
        &manifests,
        &|path| files.iter().find(|file| file.path == path).map(|file| file.text.as_str()),
        &mut found,
    )?;
    for file in &files {
        source::check(file, &mut found);
    }
    codes::check(&files, &mut found);
    reasons::check(&files, &mut found);
    settings::check(&files, &mut found);
    if args.table {
        print!("{}", source::table(&files));
    }
    for warning in &found.warnings {
        println!("warning: {warning}");
    }
    for error in &found.errors {
        println!("error: {error}");
    }
    println!("tidy: {} files, {} errors, {} warnings", files.len(), found.errors.len(), found.warnings.len());
    Ok(if found.errors.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The text files that git knows or would take: a new file is checked before it is committed.
fn files(root: &Path) -> anyhow::Result<Vec<File>> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output()
        .context("failed to run `git ls-files`; tidy needs git and a checkout")?;
    ensure!(listed.status.success(), "`git ls-files` failed: {}", String::from_utf8_lossy(&listed.stderr).trim());
    let mut files = Vec::new();
    for name in String::from_utf8_lossy(&listed.stdout).split('\0').filter(|name| !name.is_empty()) {
        // deleted but not committed, or not text: nothing to say about it
        if let Ok(text) = std::fs::read_to_string(root.join(name)) {
            files.push(File { path: PathBuf::from(name), text });
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files.dedup_by(|a, b| a.path == b.path);
    Ok(files)
}
