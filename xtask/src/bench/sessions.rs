//! `bench sessions`: how soon a session answers, warm and cold, in a burst, and what a ready one costs.
//!
//! A session runs the sample. The baseline is the same request over a socket that was opened inside the session's own network, so
//! what is above it is Cove: token, allocation with its commit, thaw, two hops. Baseline and requests take turns in the same
//! rounds. As ComputeSDK defines it, a time runs from the request that makes the sandbox until the first answer of a program in it
//! is read whole.
//!
//! **Invariant:** a request that is not answered 200 by a session of its own makes the command fail.

mod direct;
mod fork;
mod live;
mod pool;
mod ready;
mod report;

use std::{
    collections::BTreeSet,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::ensure;
use futures_util::future::try_join_all;

use super::{Outcome, Samples, machine};
use crate::cove::{Address, Cove, Options};
use direct::Direct;
use live::Live;
use pool::Pool;
use ready::{Ready, Weight};

/// Room for many sessions of 0.25 cores; what they ask for is a ceiling.
const CONFIG: &str =
    "[api]\nretry_after = 0\n[capacity]\ncores = 1000\nmemory = \"1000GiB\"\n[sessions]\nstarts_max = 8\n";

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct SessionsArgs {
    /// Sessions in the ready pool, and in a burst.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(2..=300))]
    ready: u16,
    /// Rounds of everything but the cold starts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Requests to one session per round.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    requests: u16,
    /// Sessions that are made while the request waits.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    cold: u16,
    /// Isolations that are measured, beside `hardened` itself; one that this machine lacks is named and left out.
    #[arg(long, value_delimiter = ',', default_value = "vm,handler:runsc,handler:kata,handler:krun")]
    isolations: Vec<String>,
}

/// What the rounds gave.
#[derive(Debug, Default)]
struct Rounds {
    direct: Vec<Duration>,
    same: Vec<Duration>,
    warm: Vec<Duration>,
    burst: Vec<Duration>,
    bursts_whole: Vec<Duration>,
    live: Vec<Duration>,
    refills_per_s: Vec<f64>,
}

/// One isolation beside `hardened`.
#[derive(Debug)]
struct Tier {
    name: String,
    /// Cold and warm; `None`: this machine lacks it, or it is not for pools like this one.
    figures: Result<(Samples, Samples), String>,
}

/// Everything that was measured.
#[derive(Debug)]
struct Figures {
    rounds: Rounds,
    cold: Samples,
    weight: Weight,
    forks: fork::Forks,
    tiers: Vec<Tier>,
}

pub(crate) async fn run(binary: PathBuf, args: &SessionsArgs) -> anyhow::Result<Outcome> {
    let machine = machine();
    let cove = Cove::start(Options { binary, config: CONFIG.to_owned(), arguments: Vec::new() }).await?;
    match measure(&cove, args).await {
        Ok(figures) => {
            cove.close().await?;
            Ok(report::report(&machine, args, figures))
        }
        Err(error) => Err(error.context(format!("the server's log ends with\n{}", cove.log_tail()))),
    }
}

async fn measure(cove: &Cove, args: &SessionsArgs) -> anyhow::Result<Figures> {
    cove.create_environment().await?;
    let address = cove.address();
    let token = address.token("https://dynamicsessions.io").await?;
    let ready = u32::from(args.ready);
    let single = Pool::create(cove, "single", "hardened", (0, 10), &token).await?;
    single.get(&address, "warm-up").await?;
    single.stop(&address, "warm-up").await?;
    let cold = cold(&single, &address, args.cold).await?;
    single.get(&address, "same").await?;
    let direct = Direct::find(&cove.data_dir())?;

    let before = ready::weigh(cove);
    let pool = Pool::create(cove, "ready", "hardened", (ready, ready.saturating_mul(2).min(600)), &token).await?;
    let watch = Ready::new(cove, args.ready);
    // the one that is asked directly runs too
    watch.until(&pool, &address).await?;
    let weight = ready::weigh(cove).less(&before).of_one(args.ready);
    let mut rounds = Rounds::default();
    for number in 0..args.rounds {
        let count = usize::from(args.requests);
        rounds.direct.extend(tokio::task::block_in_place(|| direct.requests(count))?);
        for _ in 0..count {
            rounds.same.push(single.get(&address, "same").await?.0);
        }
        round(number, (&pool, &single), (&address, &watch), args, &mut rounds).await?;
    }
    pool.delete(cove).await?;
    single.delete(cove).await?;
    let forks = fork::measure(cove, &address, &token).await?;
    let mut tiers = Vec::new();
    for name in args.isolations.iter().filter(|name| *name != "hardened") {
        tiers.push(Tier { name: name.clone(), figures: tier(cove, &address, name, &token).await? });
    }
    Ok(Figures { rounds, cold, weight, forks, tiers })
}

/// Sessions that are made while the request waits, one after the other.
async fn cold(pool: &Pool, address: &Address, count: u16) -> anyhow::Result<Samples> {
    let mut cold = Vec::new();
    for number in 0..count {
        let identifier = format!("cold-{number}");
        cold.push(pool.get(address, &identifier).await?.0);
        pool.stop(address, &identifier).await?;
    }
    Ok(cold.into_iter().collect())
}

/// Half of the ready sessions one after the other, then all at once, then the pool is filled again.
async fn round(
    number: u16,
    (pool, single): (&Pool, &Pool),
    (address, watch): (&Address, &Ready),
    args: &SessionsArgs,
    rounds: &mut Rounds,
) -> anyhow::Result<()> {
    let ready = args.ready;
    let mut guids = BTreeSet::new();
    let warm: Vec<String> = (0..ready / 2).map(|which| format!("warm-{number}-{which}")).collect();
    for identifier in &warm {
        let (took, guid) = pool.get(address, identifier).await?;
        rounds.warm.push(took);
        guids.insert(guid);
    }
    ensure!(guids.len() == warm.len(), "two identifiers were given one session");
    for identifier in &warm {
        pool.stop(address, identifier).await?;
    }
    watch.until(pool, address).await?;

    let all: Vec<String> = (0..ready).map(|which| format!("burst-{number}-{which}")).collect();
    let begun = Instant::now();
    let answers = try_join_all(all.iter().map(|identifier| pool.get(address, identifier))).await?;
    rounds.bursts_whole.push(begun.elapsed());
    let guids: BTreeSet<&String> = answers.iter().map(|(_, guid)| guid).collect();
    ensure!(guids.len() == answers.len(), "two identifiers were given one session");
    rounds.burst.extend(answers.iter().map(|(took, _)| *took));

    // somebody else works with a session while the pool is filled again
    let live = Live::begin(single, address, "same");
    let begun = Instant::now();
    let filled = pool.until_counted(address, ready).await;
    let took = begun.elapsed();
    rounds.live.extend(live.end().await?);
    filled?;
    rounds.refills_per_s.push(f64::from(ready) / took.as_secs_f64());
    for identifier in &all {
        pool.stop(address, identifier).await?;
    }
    watch.until(pool, address).await
}

/// Cold and warm sessions of another isolation, a few.
async fn tier(
    cove: &Cove,
    address: &Address,
    name: &str,
    token: &str,
) -> anyhow::Result<Result<(Samples, Samples), String>> {
    const FEW: u16 = 5;
    let pool = match Pool::create(cove, "other", name, (u32::from(FEW), 2 * u32::from(FEW)), token).await {
        Ok(pool) => pool,
        Err(error) if format!("{error:#}").contains("SessionIsolationUnavailable") => {
            return Ok(Err("this machine lacks it".to_owned()));
        }
        Err(error) => return Err(error),
    };
    pool.until_counted(address, FEW).await?;
    let mut warm = Vec::new();
    for number in 0..FEW {
        warm.push(pool.get(address, &format!("tier-{number}")).await?.0);
    }
    pool.delete(cove).await?;
    let pool = Pool::create(cove, "other-cold", name, (0, 10), token).await?;
    let cold = cold(&pool, address, FEW).await?;
    pool.delete(cove).await?;
    Ok(Ok((cold, warm.into_iter().collect())))
}
