//! Changes of an app while it is loaded: each is made through the API, marked in the picture, and waited for.
//!
//! **Invariant:** every wait has a limit; a change that does not happen is a failure.

use std::time::{Duration, Instant};

use cove_load::Controls;
use reqwest::Method;
use serde_json::{Value, json};

use crate::{
    client::{Wait, encode},
    failure::Failure,
    session::Session,
};

/// Longest until a new revision serves or replicas were replaced.
const CHANGE_LIMIT: Duration = Duration::from_secs(180);
/// Longest until an app has scaled in: its window alone is five minutes by default.
const SCALE_LIMIT: Duration = Duration::from_secs(900);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How much slower the load is while the app is to scale in.
const SLOWER: f64 = 20.0;

/// What is done to the app.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// A new revision of the same template, with another suffix.
    Deploy,
    /// The load drops to a twentieth once the app has two replicas or more, until it has fewer.
    ScaleIn,
    /// All replicas of the latest revision are replaced.
    Restart,
}

impl Change {
    /// Reads the two words of `--during`.
    pub(super) fn parse(words: &[String]) -> Result<(Self, String), Failure> {
        let (what, app) = match words {
            [what, app] => (what.as_str(), app.clone()),
            _ => ("", String::new()),
        };
        let change = match what {
            "deploy" => Self::Deploy,
            "scale-in" => Self::ScaleIn,
            "restart" => Self::Restart,
            _ => {
                return Err(Failure::usage(format!(
                    "`--during {what}`: write deploy, scale-in or restart, and an app"
                )));
            }
        };
        Ok((change, app))
    }

    fn name(self) -> &'static str {
        match self {
            Self::Deploy => "deploy",
            Self::ScaleIn => "scale-in",
            Self::Restart => "restart",
        }
    }
}

/// Changes the app so many times, each after a pause.
pub(super) async fn change(
    session: &Session,
    change: Change,
    app: &str,
    (times, every): (u32, Duration),
    controls: &Controls,
) -> Result<(), Failure> {
    for number in 1..=times {
        tokio::time::sleep(every).await;
        if change == Change::ScaleIn {
            until(session, app, "does not scale out", |replicas| replicas.len() > 1, SCALE_LIMIT).await?;
        }
        let mark = controls.mark(&format!("{} {number}", change.name()));
        match change {
            Change::Deploy => deploy(session, app, number).await?,
            Change::ScaleIn => {
                let before = replicas(session, app).await?.len();
                controls.slow_down(SLOWER);
                until(session, app, "does not scale in", |replicas| replicas.len() < before, SCALE_LIMIT).await?;
            }
            Change::Restart => restart(session, app).await?,
        }
        controls.end_mark(mark);
        controls.slow_down(1.0);
    }
    Ok(())
}

async fn deploy(session: &Session, app: &str, number: u32) -> Result<(), Failure> {
    let client = &session.client;
    let mut template = client.get(app).await?["properties"]["template"].take();
    // unique without asking what there was: the second in which it was made, and a number
    let second = jiff::Timestamp::now().as_second();
    template["revisionSuffix"] = format!("load{second:x}-{number}").into();
    let patch = json!({ "properties": { "template": template } });
    client.write(Method::PATCH, app, Some(&patch), Wait::Done).await?;
    let deadline = Instant::now() + CHANGE_LIMIT;
    loop {
        let shown = client.get(app).await?;
        let properties = &shown["properties"];
        if properties["latestReadyRevisionName"] == properties["latestRevisionName"] {
            return Ok(());
        }
        if Instant::now() > deadline {
            let revision = properties["latestRevisionName"].as_str().unwrap_or_default();
            return Err(Failure::new(format!(
                "the revision `{revision}` was not ready within {} s",
                CHANGE_LIMIT.as_secs()
            )));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn restart(session: &Session, app: &str) -> Result<(), Failure> {
    let before = replicas(session, app).await?;
    let revision = latest(session, app).await?;
    session.client.post(&format!("{app}/revisions/{}/restart", encode(&revision)), None).await?;
    let is_new = |now: &[String]| !now.is_empty() && now.iter().all(|replica| !before.contains(replica));
    until(session, app, "did not get new replicas", is_new, CHANGE_LIMIT).await
}

/// Looks at the replicas of the latest revision until they are as wanted.
async fn until(
    session: &Session,
    app: &str,
    what: &str,
    is_so: impl Fn(&[String]) -> bool,
    limit: Duration,
) -> Result<(), Failure> {
    let deadline = Instant::now() + limit;
    loop {
        let names = replicas(session, app).await?;
        if is_so(&names) {
            return Ok(());
        }
        if Instant::now() > deadline {
            let name = app.rsplit('/').next().unwrap_or(app);
            let text = format!("`{name}` {what}: it has {} replicas after {} s", names.len(), limit.as_secs());
            return Err(Failure::new(text));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn latest(session: &Session, app: &str) -> Result<String, Failure> {
    let shown = session.client.get(app).await?;
    let name = shown["properties"]["latestRevisionName"].as_str().filter(|name| !name.is_empty());
    name.map(str::to_owned).ok_or_else(|| Failure::not_found("the app has no revision yet"))
}

/// Names of the latest revision's replicas.
async fn replicas(session: &Session, app: &str) -> Result<Vec<String>, Failure> {
    let revision = latest(session, app).await?;
    let listed = session.client.list(&format!("{app}/revisions/{}/replicas", encode(&revision))).await?;
    let all = listed.as_array().map_or(&[][..], Vec::as_slice);
    Ok(all.iter().filter_map(|replica: &Value| replica["name"].as_str().map(str::to_owned)).collect())
}
