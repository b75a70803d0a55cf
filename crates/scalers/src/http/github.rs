//! `github-runner`: jobs of workflow runs that wait for a runner.
//!
//! **Invariant:** while GitHub says that it is asked too often, it is not asked: the last answer stands, and where there is
//! none the read fails with the time of the next one.
//! **Invariant:** with `enableEtags` what did not change is not sent again (304 does not count towards GitHub's limit).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use cove_scaling::source::{Answer, GithubJob};
use http::HeaderValue;
use http::StatusCode;
use http::header::{ACCEPT, ETAG, IF_NONE_MATCH, RETRY_AFTER};
use jiff::Timestamp;
use reqwest::Url;
use serde_json::Value;

use super::auth::Auth;
use super::{Call, Client, Http, Reply, below, flag, parse_address, place, refused, required, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};

/// Repositories per page of a list, GitHub's default.
const PAGE: usize = 30;
/// Pages of repositories that are read.
const PAGES_MAX: usize = 100;
/// Answers that are kept for their etags.
const KEPT_MAX: usize = 1000;

/// The queue of one owner.
#[derive(Debug)]
pub(crate) struct Github {
    client: Client,
    auth: Auth,
    api: Url,
    owner: String,
    /// `orgs` or `users`.
    listed_under: &'static str,
    repos: Vec<String>,
    has_etags: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Etag and answer per address.
    kept: BTreeMap<String, (HeaderValue, Value)>,
    /// The last good answer.
    jobs: Option<Vec<GithubJob>>,
    /// GitHub wants no question before it.
    resting_until: Option<Timestamp>,
}

/// Reads the metadata of a `github-runner` rule.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<Github, OpenError> {
    let api = parse_address("githubApiURL", trigger.get("githubApiURL").unwrap_or("https://api.github.com"))?;
    let listed_under = match required(trigger, "runnerScope")? {
        "org" | "ent" => "orgs",
        "repo" => "users",
        other => return Err(OpenError::metadata(format!("runnerScope is `{other}`; expected org, ent or repo"))),
    };
    if trigger.get("appKey").is_some() || trigger.get("applicationID").is_some() {
        return Err(OpenError::metadata(
            "GitHub apps (applicationID, appKey) are not built; give a personalAccessToken",
        ));
    }
    let mut auth = Auth::default();
    auth.bearer(required(trigger, "personalAccessToken")?)?;
    auth.header("x-github-api-version", "2022-11-28")?;
    let repos = trigger.get("repos").unwrap_or_default().split(',');
    Ok(Github {
        client: http.client(&tls(trigger)?, context)?,
        auth,
        api,
        owner: required(trigger, "owner")?.to_owned(),
        listed_under,
        repos: repos.map(str::trim).filter(|repo| !repo.is_empty()).map(str::to_owned).collect(),
        has_etags: flag(trigger, "enableEtags", false)?,
        state: Mutex::default(),
    })
}

impl Source for Github {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let now = Timestamp::now();
            if let Some(until) = self.resting(now) {
                return self.last(until);
            }
            match self.jobs().await {
                Ok(jobs) => {
                    self.state().jobs = Some(jobs.clone());
                    Ok(Answer::GithubJobs(jobs))
                }
                Err(error) => self.resting(now).map_or(Err(error), |until| self.last(until)),
            }
        })
    }
}

impl Github {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Until when GitHub wants no question.
    fn resting(&self, now: Timestamp) -> Option<Timestamp> {
        self.state().resting_until.filter(|until| now < *until)
    }

    fn last(&self, until: Timestamp) -> Result<Answer, ReadError> {
        let at = place(&self.api);
        let jobs = self.state().jobs.clone();
        jobs.map(Answer::GithubJobs).ok_or_else(|| ReadError::new(format!("{at} is asked too often; again at {until}")))
    }

    async fn jobs(&self) -> Result<Vec<GithubJob>, ReadError> {
        let repos = if self.repos.is_empty() { self.all_repos().await? } else { self.repos.clone() };
        let mut jobs = Vec::new();
        let mut seen = BTreeSet::new();
        for repo in &repos {
            for status in ["queued", "in_progress"] {
                let mut url = below(&self.api, &["repos", &self.owner, repo, "actions", "runs"]);
                url.query_pairs_mut().append_pair("status", status).append_pair("per_page", "100");
                // A repository that is gone has no runs.
                let Some(runs) = self.get(url).await? else { continue };
                for run in list(&runs, "workflow_runs").filter_map(|run| run.get("id")?.as_u64()) {
                    if seen.insert((repo, run)) {
                        let id = run.to_string();
                        let mut url = below(&self.api, &["repos", &self.owner, repo, "actions", "runs", &id, "jobs"]);
                        url.query_pairs_mut().append_pair("per_page", "100");
                        let found = self.get(url).await?.unwrap_or_default();
                        jobs.extend(list(&found, "jobs").map(job));
                    }
                }
            }
        }
        Ok(jobs)
    }

    async fn all_repos(&self) -> Result<Vec<String>, ReadError> {
        let mut names = Vec::new();
        for page in 1..=PAGES_MAX {
            let mut url = below(&self.api, &[self.listed_under, &self.owner, "repos"]);
            url.query_pairs_mut().append_pair("page", &page.to_string());
            let at = place(&url);
            let answer = self.get(url).await?;
            let answer = answer.ok_or_else(|| ReadError::new(format!("{at}: there is no owner `{}`", self.owner)))?;
            let found = answer.as_array().map(Vec::as_slice).unwrap_or_default();
            names.extend(found.iter().filter_map(|repo| repo.get("name")?.as_str()).map(str::to_owned));
            if found.len() < PAGE {
                break;
            }
        }
        Ok(names)
    }

    /// The answer; `None` where there is no such thing.
    async fn get(&self, url: Url) -> Result<Option<Value>, ReadError> {
        let at = place(&url);
        let key = url.to_string();
        let mut call = Call::get(url);
        call.headers.insert(ACCEPT, HeaderValue::from_static("application/vnd.github.v3+json"));
        let kept = if self.has_etags { self.state().kept.get(&key).cloned() } else { None };
        if let Some((etag, _)) = &kept {
            call.headers.insert(IF_NONE_MATCH, etag.clone());
        }
        let reply = self.auth.send(&self.client, call).await?;
        self.note_limits(&reply);
        match (reply.status, kept) {
            (StatusCode::NOT_MODIFIED, Some((_, value))) => Ok(Some(value)),
            (StatusCode::NOT_FOUND, _) => Ok(None),
            (status, _) if status.is_success() => {
                let value = reply.json(&at)?;
                if let (true, Some(etag)) = (self.has_etags, reply.headers.get(ETAG)) {
                    let mut state = self.state();
                    if state.kept.len() >= KEPT_MAX {
                        state.kept.clear();
                    }
                    state.kept.insert(key, (etag.clone(), value.clone()));
                }
                Ok(Some(value))
            }
            (status, _) => Err(refused(&at, status)),
        }
    }

    fn note_limits(&self, reply: &Reply) {
        let number = |name: &str| reply.headers.get(name)?.to_str().ok()?.trim().parse::<i64>().ok();
        let after = number(RETRY_AFTER.as_str()).map(|seconds| Timestamp::now().as_second().saturating_add(seconds));
        let spent = number("x-ratelimit-remaining") == Some(0);
        let reset = if spent { number("x-ratelimit-reset") } else { None };
        let until = after.or(reset).and_then(|second| Timestamp::from_second(second).ok());
        self.state().resting_until = until.filter(|_| spent || !reply.status.is_success());
    }
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn job(value: &Value) -> GithubJob {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    GithubJob {
        status: value.get("status").map(text).unwrap_or_default(),
        labels: list(value, "labels").map(text).collect(),
    }
}
