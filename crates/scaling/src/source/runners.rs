//! `github-runner` and `azure-pipelines`: jobs that wait for a runner like ours.
//!
//! **Invariant:** a job that our runners cannot take never counts.

use super::params::Params;
use super::{Metric, Unreadable, float};

/// Labels that every self-hosted GitHub runner has.
const DEFAULT_LABELS: [&str; 3] = ["self-hosted", "linux", "x64"];

/// Metadata of a `github-runner` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct GithubRunner {
    /// Jobs per runner, default 1.
    pub target: f64,
    /// Labels of our runners besides the default ones.
    pub labels: Vec<String>,
    /// Our runners lack the default labels, default no.
    pub no_default_labels: bool,
    /// A job without labels needs a runner without labels, default no.
    pub match_unlabeled: bool,
}

/// A job of a workflow run.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GithubJob {
    /// `queued`, `in_progress`, …
    pub status: String,
    /// Labels that its runner must have.
    pub labels: Vec<String>,
}

impl GithubRunner {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        Self {
            target: params.target("targetWorkflowQueueLength", Some(1.0)),
            labels: params.list("labels"),
            no_default_labels: params.flag("noDefaultLabels", false),
            match_unlabeled: params.flag("matchUnlabeledJobsWithUnlabeledRunners", false),
        }
    }

    /// Queued jobs that our runners can take; active from the target on.
    pub fn measure(&self, jobs: &[GithubJob]) -> Result<Metric, Unreadable> {
        let waiting = jobs.iter().filter(|job| job.status == "queued" && self.can_take(job)).count();
        let value = float(u64::try_from(waiting).unwrap_or(u64::MAX));
        Ok(Metric { value, active: value >= self.target })
    }

    fn can_take(&self, job: &GithubJob) -> bool {
        if self.match_unlabeled && job.labels.is_empty() {
            return self.labels.is_empty();
        }
        let default = if self.no_default_labels { &[][..] } else { &DEFAULT_LABELS[..] };
        job.labels.iter().all(|wanted| {
            let mut ours = self.labels.iter().map(String::as_str).chain(default.iter().copied());
            ours.any(|label| label.eq_ignore_ascii_case(wanted))
        })
    }
}

/// Metadata of an `azure-pipelines` rule.
#[derive(Clone, Debug, PartialEq)]
pub struct AzurePipelines {
    /// Jobs per agent, default 1.
    pub target: f64,
    /// The jobs must exceed this, default 0.
    pub activation: f64,
    /// Count jobs that match this agent.
    pub parent: Option<String>,
    /// Count jobs whose demands are met by these.
    pub demands: Vec<String>,
    /// How demands are compared.
    pub match_demands: DemandMatch,
    /// Compare demands without regard to case, default no.
    pub case_insensitive: bool,
}

/// How a job's demands and the rule's compare.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DemandMatch {
    /// All of the job's are among the rule's.
    #[default]
    Subset,
    /// Both are the same (`requireAllDemands`).
    Same,
    /// All of the rule's are among the job's (`requireAllDemandsAndIgnoreOthers`).
    Superset,
}

/// A job request of an agent pool.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PipelineJob {
    /// Whether it has a result: then it is over.
    pub is_finished: bool,
    /// What its agent must have.
    pub demands: Vec<String>,
    /// Names of agents that match.
    pub matched_agents: Vec<String>,
}

impl AzurePipelines {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        let same = params.flag("requireAllDemands", false);
        let superset = params.flag("requireAllDemandsAndIgnoreOthers", false);
        if params.text("poolName").is_none() && params.text("poolID").is_none() {
            params.wrong("give either poolName or poolID");
        }
        Self {
            target: params.target("targetPipelinesQueueLength", Some(1.0)),
            activation: params.activation("activationTargetPipelinesQueueLength"),
            parent: params.text("parent"),
            demands: params.list("demands"),
            match_demands: match (same, superset) {
                (true, _) => DemandMatch::Same,
                (false, true) => DemandMatch::Superset,
                (false, false) => DemandMatch::Subset,
            },
            case_insensitive: params.flag("caseInsensitiveDemandsProcessing", false),
        }
    }

    /// Unfinished jobs that our agents can take.
    pub fn measure(&self, jobs: &[PipelineJob]) -> Result<Metric, Unreadable> {
        let waiting = jobs.iter().filter(|job| !job.is_finished && self.can_take(job)).count();
        let value = float(u64::try_from(waiting).unwrap_or(u64::MAX));
        Ok(Metric { value, active: value > self.activation })
    }

    fn can_take(&self, job: &PipelineJob) -> bool {
        if let Some(parent) = &self.parent {
            return job.matched_agents.contains(parent);
        }
        if self.demands.is_empty() {
            return true;
        }
        // The agent's version is demanded by every job and says nothing about the pool.
        let named = |demand: &&String| !demand.starts_with("Agent.Version");
        let theirs: Vec<&String> = job.demands.iter().filter(named).collect();
        let ours: Vec<&String> = self.demands.iter().filter(named).collect();
        let same = |a: &str, b: &str| if self.case_insensitive { a.eq_ignore_ascii_case(b) } else { a == b };
        let met = theirs.iter().filter(|demand| ours.iter().any(|our| same(our, demand))).count();
        match self.match_demands {
            DemandMatch::Subset => met == theirs.len(),
            DemandMatch::Same => met == theirs.len() && met == ours.len(),
            DemandMatch::Superset => met == ours.len(),
        }
    }
}
