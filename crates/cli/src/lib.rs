//! The one binary, `cove`: the platform (`serve`), a demonstration, and az's nouns and verbs as a client of the API.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 not understood, 3 not found.
//!
//! **Invariant:** az's verbs know the server only through its HTTP API.

use std::process::ExitCode;

use clap::Parser as _;

mod client;
mod containerapp;
mod failure;
mod group;
mod output;
mod pairs;
mod place;
mod progress;
mod serve;
mod session;
mod text;

use failure::Failure;
use output::{Format, Output};
use place::{DataDir, Place};
use session::Globals;

/// Azure Container Apps on your own machine.
#[derive(Debug, clap::Parser)]
#[command(name = "cove", version, max_term_width = 100, arg_required_else_help = true, propagate_version = true)]
struct Cove {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    global: Global,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Everywhere")]
struct Global {
    /// How results are written [default: table on a terminal, json otherwise].
    #[arg(short, long, global = true, value_enum, ignore_case = true)]
    output: Option<Format>,
    /// JMESPath over the result.
    #[arg(long, global = true, value_name = "JMESPATH")]
    query: Option<String>,
    /// Subscription [default: the server's].
    #[arg(long, global = true, value_name = "ID", hide = true)]
    subscription: Option<String>,
    #[command(flatten)]
    data_dir: DataDir,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Run the platform in the foreground: API, ingress, containers.
    Serve(Box<serve::ServeArgs>),
    /// Resource groups.
    #[command(subcommand)]
    Group(group::GroupCommand),
    /// Container apps, their environments, revisions, replicas and logs.
    #[command(subcommand)]
    Containerapp(containerapp::ContainerappCommand),
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
    match run(cove) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(cove: Cove) -> Result<(), Failure> {
    let Global { output, query, subscription, data_dir } = cove.global;
    let globals = Globals {
        place: Place::new(data_dir.clone(), subscription),
        output: Output { format: output, query },
    };
    match cove.command {
        Command::Serve(args) => serve::run(*args, &data_dir),
        Command::Group(command) => group::run(command, &globals),
        Command::Containerapp(command) => containerapp::run(command, &globals),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Cove::command().debug_assert();
    }
}
