//! Commands of the repository, run as `cargo xtask <command>`.
//!
//! Logic that would be shell otherwise: what a machine can check about the sources, and the figures that the README and
//! the changelog give.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

mod bench;
mod chaos;
mod cove;
mod load;
mod process;
mod tidy;
mod vectors;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Commands of the repository")]
enum Command {
    /// Check what the house style leaves to a machine: layers, sizes, headers, error pages, forbidden words.
    Tidy(tidy::TidyArgs),
    /// Measure a release build: wakes from zero, rollouts, an idle server.
    Bench(bench::BenchArgs),
    /// Kill a server again and again under load, and check that nothing was lost, doubled or stopped.
    Chaos(chaos::ChaosArgs),
    /// Check the scaling core against a file of expected decisions.
    Vectors {
        /// The file; its schema is described in its own header.
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Command::parse() {
        Command::Tidy(args) => tidy::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Chaos(args) => chaos::run(&args),
        Command::Vectors { file } => vectors::run(&file),
    };
    done.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The folder of the repository: where this crate's own folder lies.
pub(crate) fn root() -> PathBuf {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    own.parent().map_or_else(|| own.clone(), std::path::Path::to_path_buf)
}
