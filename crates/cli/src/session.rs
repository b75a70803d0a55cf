//! What every client command has: the server it talks to and the way it prints.

use std::future::Future;

use serde_json::Value;

use crate::{
    client::Client,
    failure::Failure,
    output::{Output, View},
    place::Place,
};

/// Flags that every command takes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Globals {
    pub(crate) place: Place,
    pub(crate) output: Output,
}

/// A logged-in client and the output flags.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) output: Output,
}

impl Session {
    pub(crate) async fn open(globals: &Globals) -> Result<Self, Failure> {
        Ok(Self { client: Client::connect(&globals.place).await?, output: globals.output.clone() })
    }

    /// Asks for consent; with `--dry-run` there is nothing to consent to.
    pub(crate) fn confirm(&self, question: &str, yes: bool) -> Result<(), Failure> {
        confirm(question, yes || self.client.is_dry_run())
    }

    /// Prints a result; with `--dry-run` there is none.
    pub(crate) fn print(&self, value: Value, view: View) -> Result<(), Failure> {
        if self.client.has_shown() {
            return Ok(());
        }
        self.output.print(value, view)
    }
}

/// Runs a client command on a runtime of its own.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let done = runtime.block_on(work);
    // name look-ups and writes to a closed pipe may still hang in the background; nobody waits for them
    runtime.shutdown_background();
    done
}

/// `-g`, with az's variable for a default.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct GroupArg {
    /// Resource group.
    #[arg(short = 'g', long = "resource-group", env = "AZURE_DEFAULTS_GROUP", hide_env = true)]
    pub(crate) group: String,
}

/// Asks for consent on a terminal; without one `--yes` is needed.
pub(crate) fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    use std::io::{BufRead as _, IsTerminal as _, Write as _};
    if yes {
        return Ok(());
    }
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::usage(format!("{question} cannot be asked without a terminal")).hint("add --yes"));
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question} (y/n): ").and_then(|()| stderr.flush())?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(Failure::new("nothing was done")) }
}
