//! Vectors of cpu and memory proposals, jobs, executions and validation.
//!
//! **Invariant:** a field that is not understood makes the vector unsupported; none is skipped.

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Unsupported;
use super::decisions::{at, duration};
use crate::job::{Execution, JobConfig, JobReading, JobStrategy, MultipleScalers, executions_to_start};
use crate::resource::{ReplicaPhase, ReplicaSample, ResourceTarget, propose};
use crate::validate::Surroundings;
use crate::{RuleKind, ScaleSettings};

/// A cpu or memory proposal.
pub(super) fn resource(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Given {
        resource: String,
        #[serde(rename = "type")]
        target_kind: String,
        target: u64,
        current: u32,
        now: f64,
        pods: Vec<Pod>,
    }
    let given: Given = serde_json::from_value(given)?;
    let kind = match given.resource.as_str() {
        "cpu" => RuleKind::Cpu,
        "memory" => RuleKind::Memory,
        other => return Err(Unsupported::new(format!("the resource `{other}`"))),
    };
    let target = match given.target_kind.as_str() {
        "Utilization" => ResourceTarget::Utilization { percent: given.target },
        "AverageValue" => ResourceTarget::AverageValue { value: given.target },
        other => return Err(Unsupported::new(format!("the resource target type `{other}`"))),
    };
    let replicas = given.pods.iter().map(Pod::as_sample).collect::<Result<Vec<_>, _>>()?;
    Ok(match propose(&ScaleSettings::default(), kind, target, given.current, at(given.now)?, &replicas) {
        Ok(replicas) => json!({ "replicas": replicas }),
        Err(error) => json!({ "error": error.to_string() }),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Pod {
    #[serde(rename = "name")]
    _name: String,
    phase: String,
    #[serde(default)]
    deleting: bool,
    start: Option<f64>,
    ready: Option<bool>,
    ready_since: Option<f64>,
    request: u64,
    usage: Option<u64>,
    #[serde(default)]
    sample_at: f64,
    #[serde(default)]
    window: f64,
}

impl Pod {
    fn as_sample(&self) -> Result<ReplicaSample, Unsupported> {
        let phase = match self.phase.as_str() {
            "Pending" => ReplicaPhase::Pending,
            "Running" => ReplicaPhase::Running,
            "Failed" | "Succeeded" => ReplicaPhase::Terminated,
            other => return Err(Unsupported::new(format!("the replica phase `{other}`"))),
        };
        Ok(ReplicaSample {
            phase,
            deleting: self.deleting,
            started_at: self.start.map(at).transpose()?,
            ready: self.ready,
            ready_since: self.ready_since.map(at).transpose()?,
            request: self.request,
            usage: self.usage,
            sampled_at: at(self.sample_at)?,
            window: duration(self.window)?,
        })
    }
}

/// Executions to start at one poll.
pub(super) fn job(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Given {
        #[serde(default)]
        min_executions: u32,
        #[serde(default = "hundred")]
        max_executions: u32,
        #[serde(default)]
        running: u32,
        #[serde(default)]
        pending: u32,
        strategy: Option<String>,
        #[serde(default)]
        multiple_scalers_calculation: MultipleScalers,
        #[serde(default)]
        custom_scaling_queue_length_deduction: i64,
        custom_scaling_running_job_percentage: Option<Value>,
        rules: Vec<JobRule>,
    }
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct JobRule {
        value: Option<f64>,
        target: Option<f64>,
        #[serde(default)]
        activation: f64,
        #[serde(default)]
        error: bool,
    }
    fn hundred() -> u32 {
        100
    }
    let given: Given = serde_json::from_value(given)?;
    let share = given.custom_scaling_running_job_percentage.as_ref().and_then(|share| match share {
        Value::String(text) => text.trim().parse().ok(),
        number => number.as_f64(),
    });
    let strategy = match given.strategy.as_deref() {
        None | Some("default") => JobStrategy::Default,
        Some("accurate") => JobStrategy::Accurate,
        Some("eager") => JobStrategy::Eager,
        Some("custom") => {
            JobStrategy::Custom { deduction: given.custom_scaling_queue_length_deduction, running_share: share }
        }
        Some(other) => return Err(Unsupported::new(format!("the job strategy `{other}`"))),
    };
    let readings: Vec<JobReading> = given
        .rules
        .iter()
        .filter(|rule| !rule.error)
        .filter_map(|rule| {
            let value = rule.value?;
            Some(JobReading { value, target: rule.target.unwrap_or(1.0), active: value > rule.activation })
        })
        .collect();
    let config = JobConfig {
        min_executions: given.min_executions,
        max_executions: given.max_executions,
        strategy,
        calculation: given.multiple_scalers_calculation,
    };
    Ok(json!({ "create": executions_to_start(&config, &readings, given.running, given.pending) }))
}

/// Where an execution stands.
pub(super) fn execution(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Given {
        parallelism: Option<u32>,
        replica_completion_count: Option<u32>,
        #[serde(default)]
        replica_retry_limit: u32,
        #[serde(default)]
        succeeded: u32,
        #[serde(default)]
        failed: u32,
        #[serde(default)]
        stopped: bool,
    }
    let given: Given = serde_json::from_value(given)?;
    let execution = Execution {
        parallelism: given.parallelism.unwrap_or(1),
        replica_completion_count: given.replica_completion_count.unwrap_or(1),
        replica_retry_limit: given.replica_retry_limit,
        succeeded: given.succeeded,
        failed: given.failed,
        stopped: given.stopped,
    };
    let (status, run) = execution.status();
    Ok(json!({ "status": status, "run": run }))
}

/// What is wrong with scale properties.
pub(super) fn validate(given: Value) -> Result<Value, Unsupported> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase", deny_unknown_fields)]
    struct Given {
        kind: Option<String>,
        #[serde(default)]
        ingress: bool,
        revisions_mode: Option<String>,
        #[serde(default)]
        dapr_actors: bool,
        #[serde(default)]
        secrets: BTreeSet<String>,
        #[serde(default)]
        scale: Value,
    }
    let given: Given = serde_json::from_value(given)?;
    let is_job = match given.kind.as_deref() {
        None | Some("app") => false,
        Some("job") => true,
        Some(other) => return Err(Unsupported::new(format!("validation of a `{other}`"))),
    };
    let multiple_revisions = given.revisions_mode.is_some_and(|mode| !mode.eq_ignore_ascii_case("single"));
    let around = Surroundings {
        is_job,
        has_ingress: given.ingress,
        multiple_revisions,
        dapr_actors: given.dapr_actors,
        secrets: given.secrets,
    };
    let found = crate::validate::validate(&given.scale, &around);
    let errors: BTreeSet<String> = found.errors.iter().map(|finding| format!("{:?}", finding.code)).collect();
    let warnings: BTreeSet<String> = found.warnings.iter().map(|finding| format!("{:?}", finding.code)).collect();
    let mut effective = json!({ "rules": found.rules });
    if let Some((min, max)) = found.limits {
        effective["minReplicas"] = min.into();
        effective["maxReplicas"] = max.into();
    }
    Ok(json!({ "ok": errors.is_empty(), "errors": errors, "warnings": warnings, "effective": effective }))
}
