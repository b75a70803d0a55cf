//! What happens during the storm: deploys in a row, a scale-in and a restart of the server between them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::StormArgs;
use super::loads::{Apps, Loads, put, template};
use crate::bench::Samples;
use crate::cove::{App, Cove, versioned};

/// Longest that a change may take.
const CHANGE_LIMIT: Duration = Duration::from_secs(120);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Times slower than planned, for an app that is to scale in.
const SLOWER: f64 = 20.0;
/// Replicas from which it scales in.
const REPLICAS_OUT: usize = 3;

/// How long each change took.
#[derive(Debug)]
pub(super) struct Changes {
    pub(super) deploys: Samples,
    pub(super) scale_ins: Samples,
    pub(super) restarts: Samples,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Deploy(u32),
    ScaleIn(u32),
    Restart(u32),
}

/// All changes, the fewer of them spread evenly between the many.
fn order(args: &StormArgs) -> Vec<Change> {
    let place = |number: u32, of: u32, kind: u8| (u64::from(2 * number - 1) * 1_000_000 / u64::from(2 * of), kind);
    let mut all: Vec<((u64, u8), Change)> = Vec::new();
    all.extend((1..=args.deploys).map(|number| (place(number, args.deploys, 0), Change::Deploy(number))));
    all.extend((1..=args.scale_ins).map(|number| (place(number, args.scale_ins, 1), Change::ScaleIn(number))));
    all.extend((1..=args.restarts).map(|number| (place(number, args.restarts, 2), Change::Restart(number))));
    all.sort_by_key(|(place, _)| *place);
    all.into_iter().map(|(_, change)| change).collect()
}

/// Makes them one after the other.
pub(super) async fn make(cove: &mut Cove, args: &StormArgs, apps: &Apps, loads: &Loads) -> anyhow::Result<Changes> {
    let (mut deploys, mut scale_ins, mut restarts) = (Vec::new(), Vec::new(), Vec::new());
    for change in order(args) {
        let before = Instant::now();
        match change {
            Change::Deploy(number) => {
                let marks = loads.mark(&format!("deploy {number}"));
                deploy(cove, apps, number).await.with_context(|| format!("deploy {number} failed"))?;
                deploys.push(before.elapsed());
                loads.end_mark(&marks);
            }
            Change::ScaleIn(number) => {
                until_replicas(cove, &apps.scaled, |count| count >= REPLICAS_OUT)
                    .await
                    .with_context(|| format!("scale-in {number}: the app did not scale out"))?;
                let (marks, slowed) = (loads.mark(&format!("scale-in {number}")), Instant::now());
                loads.slow_scaled(SLOWER);
                let scaled = until_replicas(cove, &apps.scaled, |count| count == 1).await;
                loads.slow_scaled(1.0);
                scaled.with_context(|| format!("scale-in {number}: the app did not scale in"))?;
                scale_ins.push(slowed.elapsed());
                loads.end_mark(&marks);
            }
            Change::Restart(number) => {
                let marks = loads.mark(&format!("restart {number}"));
                let restarted = if args.cold_restarts { cove.restart().await } else { cove.take_over().await };
                restarted.with_context(|| format!("restart {number} failed"))?;
                restarts.push(before.elapsed());
                loads.end_mark(&marks);
            }
        }
    }
    Ok(Changes::new(deploys, scale_ins, restarts))
}

/// A new revision of one of the two apps in turn; done when it is in charge.
async fn deploy(cove: &Cove, apps: &Apps, number: u32) -> anyhow::Result<()> {
    let (app, name, transport) = match number % 2 {
        0 => (&apps.rpc, "rpc", "http2"),
        _ => (&apps.web, "web", "auto"),
    };
    let before = cove.ask("GET", &versioned(&app.id), None).await?;
    let before = before["properties"]["latestReadyRevisionName"].clone();
    put(cove, name, transport, template(number)).await?;
    let deadline = Instant::now() + CHANGE_LIMIT;
    loop {
        let shown = cove.ask("GET", &versioned(&app.id), None).await?;
        let ready = &shown["properties"]["latestReadyRevisionName"];
        if *ready != before && *ready == shown["properties"]["latestRevisionName"] {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the new revision was not ready in time: {shown}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn until_replicas(cove: &Cove, app: &App, wanted: impl Fn(usize) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + CHANGE_LIMIT;
    loop {
        let count = cove.replicas(app).await?.len();
        if wanted(count) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "there are {count} replicas");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_and_scale_ins_are_spread_between_deploys() {
        let args = |deploys, scale_ins, restarts| StormArgs {
            requests: 1,
            deploys,
            scale_ins,
            restarts,
            cold_restarts: false,
            rps: 100,
            svg: None,
        };
        let shown: Vec<String> = order(&args(4, 2, 1)).iter().map(|change| format!("{change:?}")).collect();
        assert_eq!(shown.join(" "), "Deploy(1) ScaleIn(1) Deploy(2) Restart(1) Deploy(3) ScaleIn(2) Deploy(4)");
        assert_eq!(order(&args(200, 20, 3)).len(), 223);
        assert!(order(&args(0, 0, 0)).is_empty());
    }
}
