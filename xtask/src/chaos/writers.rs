//! Clients that make, change and delete apps, and remember what they were promised.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::cove::{Address, app_body, app_id, sample_template, versioned};

/// Apps per writer.
const NAMES: u32 = 3;
/// Time between two changes of one writer, in milliseconds.
const PAUSE_MS: (u64, u64) = (30, 200);
/// Longest until a writer has ended.
const END_LIMIT: Duration = Duration::from_secs(120);

/// What may be true of each app, and how the changes went.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// Every version that may be there; `None` stands for no app. One entry: certain.
    apps: BTreeMap<String, Vec<Option<u32>>>,
    pub(super) acknowledged: u32,
    pub(super) unanswered: u32,
}

impl Known {
    /// How many apps are certain, and how many are not.
    pub(super) fn count(&self) -> (usize, usize) {
        let certain = self.apps.values().filter(|versions| versions.len() == 1).count();
        (certain, self.apps.len() - certain)
    }

    /// An app that is there must be one that may be there.
    pub(super) fn check_present(&self, name: &str, version: &str) -> anyhow::Result<()> {
        let versions = self.apps.get(name).with_context(|| format!("`{name}` was never asked for"))?;
        let is_known = versions.iter().flatten().any(|known| known.to_string() == version);
        ensure!(is_known, "`{name}` has version {version}; acknowledged was {versions:?}");
        Ok(())
    }

    /// An app that must be there is.
    pub(super) fn check_absent(&self, present: &[&str]) -> anyhow::Result<()> {
        let lost =
            self.apps.iter().find(|(name, versions)| !versions.contains(&None) && !present.contains(&name.as_str()));
        ensure!(lost.is_none(), "an acknowledged app is gone: {lost:?}");
        Ok(())
    }
}

/// Clients at work.
pub(super) struct Writers {
    stop: watch::Sender<bool>,
    all: JoinSet<Known>,
}

impl Writers {
    pub(super) fn start(count: u32, address: watch::Receiver<Address>, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let mut all = JoinSet::new();
        for number in 0..count {
            let random = StdRng::seed_from_u64(seed.wrapping_add(u64::from(number)));
            all.spawn(write(number, address.clone(), random, stopped.clone()));
        }
        Self { stop, all }
    }

    pub(super) async fn finish(mut self) -> anyhow::Result<Known> {
        self.stop.send_replace(true);
        let mut known = Known::default();
        while let Some(one) =
            tokio::time::timeout(END_LIMIT, self.all.join_next()).await.context("a writer did not end")?
        {
            let one = one.context("a writer panicked")?;
            known.apps.extend(one.apps);
            known.acknowledged += one.acknowledged;
            known.unanswered += one.unanswered;
        }
        Ok(known)
    }
}

async fn write(
    number: u32,
    address: watch::Receiver<Address>,
    mut random: StdRng,
    stop: watch::Receiver<bool>,
) -> Known {
    let mut known = Known::default();
    let mut version = 0;
    while !*stop.borrow() {
        tokio::time::sleep(Duration::from_millis(random.random_range(PAUSE_MS.0..PAUSE_MS.1))).await;
        let name = format!("chaos-{number}-{}", random.random_range(0..NAMES));
        let before = known.apps.get(&name).cloned().unwrap_or_else(|| vec![None]);
        let is_delete = !before.contains(&None) && random.random_range(0..10) < 3;
        version += 1;
        let to = (!is_delete).then_some(version);
        // never across an await: the address may change meanwhile
        let server = address.borrow().clone();
        let id = versioned(&app_id(&name));
        let answer = match to {
            Some(version) => {
                let body = app_body(sample_template(1, 1, &[("VERSION", &version.to_string())]));
                server.call("PUT", &id, Some(&body)).await
            }
            None => server.call("DELETE", &id, None).await,
        };
        match answer {
            Ok((status, _)) if status < 300 => {
                known.acknowledged += 1;
                known.apps.insert(name, vec![to]);
            }
            // refused: nothing was changed
            Ok((400..500, _)) => {}
            Ok(_) | Err(_) => {
                known.unanswered += 1;
                let versions = known.apps.entry(name).or_insert(before);
                if !versions.contains(&to) {
                    versions.push(to);
                }
            }
        }
    }
    known
}
