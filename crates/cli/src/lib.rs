//! The one binary, `cove`: the platform (`serve`), a demonstration, and az's nouns and verbs as a client of the API.
//!
//! Data goes to stdout, everything else to stderr. Exit codes: 0 done, 1 failed, 2 not understood, 3 not found.
//!
//! **Invariant:** az's verbs know the server only through its HTTP API.

use std::{path::PathBuf, process::ExitCode};

use clap::{CommandFactory as _, Parser as _};

mod az;
mod client;
mod clock;
mod containerapp;
mod demo;
mod deployment;
mod doctor;
mod examples;
mod export;
mod failure;
mod file;
mod group;
mod identity;
mod ingress;
mod interpreter;
mod load;
mod output;
mod pairs;
mod place;
mod platform;
mod pool_session;
mod progress;
mod purge;
mod resource;
mod role;
mod scale;
mod secrets;
mod serve;
mod session;
mod text;
mod vm_guest;
mod wakes;
mod words;

use failure::Failure;
use output::{Format, Output};
use place::{DataDir, Place};
use session::Globals;

/// Azure Container Apps on your own machine.
#[derive(Debug, clap::Parser)]
// as az: of a flag given twice the last one counts
#[command(name = "cove", version, max_term_width = 100, arg_required_else_help = true, args_override_self = true)]
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
    /// json, jsonc, table, tsv, yaml, yamlc or none [default: table on a terminal, json otherwise].
    #[arg(
        short,
        long,
        global = true,
        value_enum,
        ignore_case = true,
        hide_possible_values = true,
        value_name = "FORMAT"
    )]
    output: Option<Format>,
    /// JMESPath over the result.
    #[arg(long, global = true, value_name = "JMESPATH")]
    query: Option<String>,
    /// Subscription [default: the server's].
    #[arg(long, global = true, value_name = "ID", hide = true)]
    subscription: Option<String>,
    /// Print results and errors only.
    #[arg(long, global = true, hide = true)]
    only_show_errors: bool,
    /// Print the requests that would change something as JSON, and send none of them.
    #[arg(long, global = true)]
    dry_run: bool,
    /// Tell every request on stderr.
    #[arg(long, visible_alias = "debug", global = true)]
    verbose: bool,
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
    /// Session pools: sandboxes for untrusted code, ready before they are asked for.
    #[command(subcommand)]
    Sessionpool(Box<containerapp::sessionpool::SessionpoolCommand>),
    /// Sessions of a session pool.
    #[command(subcommand)]
    Session(pool_session::PoolSessionCommand),
    /// Jobs, their executions, logs and artifacts: short for `containerapp job`.
    #[command(subcommand)]
    Job(Box<containerapp::JobCommand>),
    /// Templates: deploy, validate, what-if.
    #[command(subcommand)]
    Deployment(deployment::DeploymentCommand),
    /// User-assigned identities.
    #[command(subcommand)]
    Identity(identity::IdentityCommand),
    /// Roles and who has them.
    #[command(subcommand)]
    Role(role::RoleCommand),
    /// Resources of every type.
    #[command(subcommand)]
    Resource(resource::ResourceCommand),
    /// Any request to the API: cove rest --method get --url /subscriptions
    Rest(resource::RestArgs),
    /// Subscription and tenant.
    #[command(subcommand)]
    Account(resource::AccountCommand),
    /// Print an app as a template or as YAML that makes it again.
    Export(export::ExportArgs),
    /// Print a completion script: cove completion bash > /etc/bash_completion.d/cove
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Show all of it in a minute: a temporary server, an app that wakes, scales out and goes back to zero.
    Demo(demo::DemoArgs),
    /// Say what this machine can do and what is missing.
    Doctor {
        /// Print which of Azure's operations a server of this build does, and what to do instead of the others.
        #[arg(long, conflicts_with = "config")]
        coverage: bool,
        /// Configuration file of the server (TOML), for the programs and folders that it names.
        #[arg(long, value_name = "FILE")]
        config: Option<PathBuf>,
    },
    /// End all replicas of a data directory and delete it.
    Purge(purge::PurgeArgs),
    /// Send requests and say what became of each: percentiles, statuses, lost ones; alone or while an app changes.
    Load(Box<load::LoadArgs>),
    /// Say why an app has as many replicas as it has.
    #[command(subcommand)]
    Scale(scale::ScaleCommand),
    /// Show wakes from zero, phase by phase.
    Wakes(wakes::WakesArgs),
    /// What came in and how fast it was answered.
    #[command(subcommand)]
    Ingress(ingress::IngressCommand),
    /// Container images on this server.
    #[command(subcommand)]
    Image(platform::ImageCommand),
    /// The key of the secrets at rest.
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// The platform's clock.
    #[command(subcommand)]
    Clock(clock::ClockCommand),
    /// Show where the server is reached.
    Endpoints,
    /// Run the real `az` against this server: cove az -- containerapp list
    Az(az::AzArgs),
    /// Print the exports that point `az` at this server: eval "$(cove az-env)"
    AzEnv,
}

/// Reads the command line, does what it says; the exit code of the process.
#[must_use]
pub fn main() -> ExitCode {
    let line = words::joined(std::env::args_os());
    if examples::are_asked(&line) {
        let error = examples::added(Cove::command()).try_get_matches_from(&line).err();
        if let Some(error) = error {
            let _closed = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    }
    let cove = match Cove::try_parse_from(line) {
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
    let Global { output, query, subscription, only_show_errors, dry_run, verbose, data_dir } = cove.global;
    text::only_errors(only_show_errors);
    let place = Place { is_dry_run: dry_run, is_verbose: verbose, ..Place::new(data_dir.clone(), subscription) };
    let globals = Globals { place, output: Output { format: output, query } };
    match cove.command {
        Command::Serve(args) => serve::run(*args, &data_dir),
        Command::Group(command) => group::run(command, &globals),
        Command::Containerapp(command) => containerapp::run(command, &globals),
        Command::Sessionpool(command) => {
            containerapp::run(containerapp::ContainerappCommand::Sessionpool(command), &globals)
        }
        Command::Session(command) => pool_session::run(command, &globals),
        Command::Job(command) => containerapp::run(containerapp::ContainerappCommand::Job(command), &globals),
        Command::Deployment(command) => deployment::run(command, &globals),
        Command::Identity(command) => identity::run(command, &globals),
        Command::Role(command) => role::run(command, &globals),
        Command::Resource(command) => resource::resource(command, &globals),
        Command::Rest(args) => resource::rest(&args, &globals),
        Command::Account(command) => resource::account(&command, &globals),
        Command::Export(args) => export::run(&args, &globals),
        Command::Completion { shell } => {
            resource::completion(shell, Cove::command());
            Ok(())
        }
        Command::Demo(args) => demo::run(&args),
        Command::Doctor { coverage: true, .. } => doctor::coverage(&globals.output),
        Command::Doctor { coverage: false, config } => doctor::run(&data_dir, config.as_deref(), &globals.output),
        Command::Purge(args) => purge::run(&args, &data_dir),
        Command::Load(args) => load::run(*args, &globals),
        Command::Scale(command) => scale::run(command, &globals),
        Command::Wakes(args) => wakes::run(args, &globals),
        Command::Ingress(command) => ingress::run(command, &globals),
        Command::Image(command) => platform::image(&command, &globals),
        Command::Secrets(command) => secrets::run(&command, &data_dir, &globals),
        Command::Clock(command) => clock::run(&command, &globals),
        Command::Endpoints => platform::endpoints(&globals),
        Command::Az(args) => az::run(&args, &globals),
        Command::AzEnv => az::print_environment(&globals),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cove::command().debug_assert();
    }
}
