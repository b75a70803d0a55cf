//! `cove demo`: a temporary server and an app that wakes from zero, scales out under load, goes back to zero and wakes again.
//!
//! What happens is what happens under `cove serve`; only the autoscaler looks more often, so that it takes less than a minute.
//!
//! **Invariant:** exit code 0 only if all of it was seen. **Invariant:** it leaves nothing behind, whatever happened.

mod load;
mod stage;
mod story;

use std::time::Instant;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::{failure::Failure, output::columns::span, text};
use stage::Stage;

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// Leave the server running until ^C, and say how to use it.
    #[arg(long)]
    keep: bool,
    /// Requests per second of the load; 10 are one replica's share.
    #[arg(long, default_value_t = 45, value_name = "RATE", value_parser = clap::value_parser!(u32).range(11..=2000))]
    load: u32,
}

/// What is seen, written as it happens.
#[derive(Debug)]
struct Timeline {
    since: Instant,
}

impl Timeline {
    fn say(&self, what: &str, text: &str) {
        text::out(&format!("{:>7.2} s  {what:<11}  {text}\n", self.since.elapsed().as_secs_f64()));
    }

    /// A further line on the same matter.
    fn more(&self, text: &str) {
        text::out(&format!("{:24}{text}\n", ""));
    }
}

pub(crate) fn run(args: &DemoArgs) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let done = runtime.block_on(show(args));
    runtime.shutdown_background();
    done
}

async fn show(args: &DemoArgs) -> Result<(), Failure> {
    let timeline = Timeline { since: Instant::now() };
    // from here on ^C clears away before it ends
    let mut interrupts = Interrupts::new()?;
    let stage = Stage::build(&timeline).await?;
    let shown = tokio::select! {
        shown = story::tell(&stage, &timeline, args.load) => shown,
        () = interrupts.next() => Err(Failure::new("the demo was interrupted")),
    };
    if shown.is_ok() && args.keep {
        stage.describe();
        interrupts.next().await;
    }
    let log = stage.log_end();
    let cleared = stage.clear(&timeline).await;
    match shown {
        Ok(()) => {
            cleared?;
            let took = i64::try_from(timeline.since.elapsed().as_secs()).unwrap_or(i64::MAX);
            text::out(&format!(
                "\nAll of it happened, in {}. The same platform for your own apps: cove serve\n",
                span(took)
            ));
            Ok(())
        }
        Err(failure) => {
            if !log.is_empty() {
                text::err(&format!("\nThe end of the server's log:\n{log}"));
            }
            if let Err(other) = cleared {
                text::err(&format!("error: {}", other.text));
            }
            Err(failure)
        }
    }
}

/// The user's and the system's wish to stop, from now on.
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupts {
    fn new() -> std::io::Result<Self> {
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// Ends when one came.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
