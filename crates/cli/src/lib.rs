//! The one binary, `cove`: the platform (`serve`), a demonstration, and az's nouns and verbs as a client of the API.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 not understood, 3 not found.
//!
//! **Invariant:** client verbs know the server only through its HTTP API.

use std::process::ExitCode;

use clap::Parser as _;

mod failure;
mod place;
mod serve;
mod text;

/// Azure Container Apps on your own machine.
#[derive(Debug, clap::Parser)]
#[command(name = "cove", version, max_term_width = 100, arg_required_else_help = true)]
struct Cove {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the platform in the foreground: API, ingress, containers.
    Serve(Box<serve::ServeArgs>),
}

/// Reads the command line, does what it says; the exit code of the process.
#[must_use]
pub fn main() -> ExitCode {
    let cove = match Cove::try_parse() {
        Ok(cove) => cove,
        Err(error) => {
            let _closed = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let done = match cove.command {
        Command::Serve(args) => serve::run(*args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
