//! Forks: from the request until all new sessions are ready and the first of them has answered.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use super::pool::Pool;
use crate::{
    bench::Samples,
    cove::{Address, Cove},
};

/// New sessions of each fork.
const EACH: [u16; 2] = [1, 10];
/// Forks of each size.
const ROUNDS: u16 = 10;

/// How long forks into so many sessions took.
#[derive(Debug)]
pub(super) struct Forks(pub(super) Vec<(u16, Samples)>);

/// Forks a session of the sample again and again.
pub(super) async fn measure(cove: &Cove, address: &Address, token: &str) -> anyhow::Result<Forks> {
    let pool = Pool::create(cove, "forked", "hardened", (0, 20), token).await?;
    pool.get(address, "fork-source").await?;
    let mut all = Vec::new();
    for count in EACH {
        let mut took: Vec<Duration> = Vec::new();
        for _ in 0..ROUNDS {
            let begun = Instant::now();
            let made = pool.fork(address, "fork-source", count).await?;
            ensure!(made.len() == usize::from(count), "a fork of {count} made {}", made.len());
            pool.get(address, made.first().context("a fork made nothing")?).await?;
            took.push(begun.elapsed());
            for identifier in &made {
                pool.stop(address, identifier).await?;
            }
        }
        all.push((count, took.into_iter().collect()));
    }
    pool.delete(cove).await?;
    Ok(Forks(all))
}
