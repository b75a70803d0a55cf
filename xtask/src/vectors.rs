//! `cargo xtask vectors FILE`: checks the scaling core against a file of expected decisions.
//!
//! **Invariant:** exit code 0 only when every vector passed; one that asks for something not built is named and gives 1.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Context as _;
use cove_scaling::vectors;

/// Runs the vectors of the file at `path` and prints what failed, what is not built, and the counts.
#[expect(clippy::print_stdout, reason = "the report is the command's output")]
pub(crate) fn run(path: &Path) -> anyhow::Result<ExitCode> {
    let json = std::fs::read_to_string(path).with_context(|| format!("failed to read `{}`", path.display()))?;
    let report = vectors::run(&json).with_context(|| format!("failed to run `{}`", path.display()))?;
    println!("{report}");
    let clean = report.passed() == report.results.len();
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
