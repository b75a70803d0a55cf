//! `azure-pipelines`: job requests of an agent pool.
//!
//! **Invariant:** the pool's number is looked up by its name once, and again after a failure.

use std::sync::{Mutex, PoisonError};

use cove_scaling::source::{Answer, PipelineJob};
use reqwest::Url;
use serde_json::Value;

use super::auth::Auth;
use super::{Call, Client, Http, address, below, flag, place, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};

/// Azure DevOps, as an audience of tokens.
const AUDIENCE: &str = "499b84ac-1321-427f-aa17-267ca6975798";

/// The queue of one pool.
#[derive(Debug)]
pub(crate) struct Pipelines {
    client: Client,
    auth: Auth,
    organization: Url,
    pool: Pool,
    /// Name and value of the query that bounds the list.
    bound: Option<(&'static str, String)>,
    known: Mutex<Option<u64>>,
}

#[derive(Debug)]
enum Pool {
    Id(u64),
    Name(String),
}

/// Reads the metadata of an `azure-pipelines` rule.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<Pipelines, OpenError> {
    let mut auth = Auth::default();
    match trigger.get("personalAccessToken") {
        Some(token) => auth.basic("", token)?,
        None if trigger.identity.is_some() => auth.identity(trigger, context, AUDIENCE),
        None => return Err(OpenError::metadata("personalAccessToken is missing; give it, or an identity")),
    }
    let pool = match (trigger.get("poolName"), trigger.get("poolID")) {
        (Some(name), _) => Pool::Name(name.to_owned()),
        (None, Some(id)) => Pool::Id(id.parse().map_err(|_| OpenError::metadata("poolID must be a whole number"))?),
        (None, None) => return Err(OpenError::metadata("give either poolName or poolID")),
    };
    let jobs = trigger.get("jobsToFetch");
    if jobs.is_some_and(|jobs| jobs.parse::<u64>().is_err()) {
        return Err(OpenError::metadata("jobsToFetch must be a whole number"));
    }
    // `$top` changes what an answer says of matched agents, so that it is left out where a parent is looked for.
    let bound = if flag(trigger, "fetchUnfinishedJobsOnly", false)? {
        Some(("completedRequestCount", "0".to_owned()))
    } else if trigger.get("parent").is_some() {
        None
    } else {
        Some(("$top", jobs.unwrap_or("250").to_owned()))
    };
    Ok(Pipelines {
        client: http.client(&tls(trigger)?, context)?,
        auth,
        organization: address(trigger, "organizationURL")?,
        pool,
        bound,
        known: Mutex::new(None),
    })
}

impl Source for Pipelines {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let pool = self.pool_id().await?;
            let mut url = self.below(&["pools", &pool.to_string(), "jobrequests"]);
            if let Some((name, value)) = &self.bound {
                url.query_pairs_mut().append_pair(name, value);
            }
            let answer = self.get(url).await;
            if answer.is_err() {
                *self.known.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            Ok(Answer::PipelineJobs(values(&answer?).map(job).collect()))
        })
    }
}

impl Pipelines {
    async fn pool_id(&self) -> Result<u64, ReadError> {
        let name = match &self.pool {
            Pool::Id(id) => return Ok(*id),
            Pool::Name(name) => name,
        };
        let known = *self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = known {
            return Ok(id);
        }
        let mut url = self.below(&["pools"]);
        url.query_pairs_mut().append_pair("poolName", name);
        let answer = self.get(url).await?;
        let ids: Vec<u64> = values(&answer).filter_map(|pool| pool.get("id")?.as_u64()).collect();
        let [id] = ids[..] else {
            let at = place(&self.organization);
            return Err(ReadError::new(format!(
                "{at} has {} agent pools of the name `{name}`; expected one",
                ids.len()
            )));
        };
        *self.known.lock().unwrap_or_else(PoisonError::into_inner) = Some(id);
        Ok(id)
    }

    fn below(&self, segments: &[&str]) -> Url {
        below(&below(&self.organization, &["_apis", "distributedtask"]), segments)
    }

    async fn get(&self, url: Url) -> Result<Value, ReadError> {
        let at = place(&url);
        self.auth.fetch(&self.client, Call::get(url)).await?.json(&at)
    }
}

fn values(answer: &Value) -> impl Iterator<Item = &Value> {
    answer.get("value").and_then(Value::as_array).into_iter().flatten()
}

fn job(value: &Value) -> PipelineJob {
    let texts = |key: &str, inner: fn(&Value) -> Option<&str>| {
        let items = value.get(key).and_then(Value::as_array).into_iter().flatten();
        items.filter_map(inner).map(str::to_owned).collect()
    };
    PipelineJob {
        is_finished: value.get("result").is_some_and(|result| !result.is_null()),
        demands: texts("demands", Value::as_str),
        matched_agents: texts("matchedAgents", |agent| agent.get("name")?.as_str()),
    }
}
