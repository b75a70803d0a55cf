//! Runs a server until it is told to end, or until another one has taken over.
//!
//! **Invariant:** when a new server ends before it serves, this process starts one anew: apps are not left without.

use anyhow::{Context, bail};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinHandle,
};

use crate::serve::{Endpoints, Options, Server};

/// What ended a server.
enum End {
    Signal,
    Failed,
}

/// SIGTERM and SIGINT.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Runs a server until SIGTERM or SIGINT, then drains; a second signal ends at once. When another server takes over, it
/// returns once all that was open here is finished.
///
/// # Errors
/// When it cannot start, or an essential part failed while it ran.
pub async fn run_until_signal(mut options: Options, ready: impl FnOnce(&Endpoints)) -> anyhow::Result<()> {
    let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut signals = Signals { terminate, interrupt };
    let mut server = Server::start(options.clone()).await?;
    ready(server.endpoints());
    options.take_over = true;
    loop {
        let ended = server.ended();
        let visitor = tokio::select! {
            () = ended.cancelled() => return stop(server, &mut signals, End::Failed).await,
            () = signals.next() => return stop(server, &mut signals, End::Signal).await,
            visitor = server.visitor() => visitor,
        };
        let (abandoned, was_abandoned) = mpsc::channel(1);
        let abandoned = move || {
            let _told_already = abandoned.try_send(());
        };
        let leaving = tokio::spawn(server.hand_over(visitor, abandoned));
        match leave(leaving, was_abandoned, &mut signals, &options).await? {
            // what is open in the part that leaves goes on beside it
            Some(next) => server = next,
            None => return Ok(()),
        }
    }
}

/// Waits until what was open is finished; gives a server of this process when the new one was none.
async fn leave(
    mut leaving: JoinHandle<()>,
    mut was_abandoned: mpsc::Receiver<()>,
    signals: &mut Signals,
    options: &Options,
) -> anyhow::Result<Option<Server>> {
    let mut signals_seen = 0;
    loop {
        tokio::select! {
            left = &mut leaving => return left.context("the hand-over failed").map(|()| None),
            Some(()) = was_abandoned.recv() => {
                tracing::warn!("starting anew in this process");
                match Server::start(options.clone()).await {
                    Ok(next) => return Ok(Some(next)),
                    // what runs is served on; the next server that asks is given the state
                    Err(error) => tracing::error!(error = format!("{error:#}"), "failed to start anew; start another server"),
                }
            }
            () = signals.next() => {
                signals_seen += 1;
                if signals_seen > 1 {
                    tracing::warn!("ended at once by a second signal");
                    return Ok(None);
                }
                tracing::info!("another server takes over; open connections are finished, a second signal ends at once");
            }
        }
    }
}

async fn stop(server: Server, signals: &mut Signals, why: End) -> anyhow::Result<()> {
    tracing::info!("draining; a second signal ends at once");
    tokio::select! {
        () = server.shutdown() => {}
        () = signals.next() => tracing::warn!("ended at once by a second signal"),
    }
    if matches!(why, End::Failed) {
        bail!("an essential part of the server failed; its log says which");
    }
    Ok(())
}
