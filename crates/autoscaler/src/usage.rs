//! What cpu and memory rules read: use of each replica since the last look, and what that proposes.
//!
//! The kernel counts processor time from a replica's start; a rate needs two looks, so a replica's first sample comes one
//! step after it was first seen, as with Kubernetes' metrics server.
//!
//! **Invariant:** what is remembered of a replica is forgotten when it is not seen any more.

use std::collections::BTreeMap;

use cove_model::{ReplicaName, ScaleRule, ScaleRuleKind};
use cove_scaling::resource::{ReplicaPhase, ReplicaSample, ResourceTarget, propose};
use cove_scaling::source::quantity;
use cove_scaling::{Reading, RuleKind, ScaleSettings};
use jiff::{SignedDuration, Timestamp};

use crate::sources::ReplicaUsage;

/// Looks at the replicas of one revision.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    seen: BTreeMap<ReplicaName, Seen>,
}

#[derive(Clone, Copy, Debug)]
struct Seen {
    at: Timestamp,
    cpu_us_total: Option<u64>,
    cpu_taken_at: Timestamp,
    is_ready: Option<bool>,
    ready_since: Option<Timestamp>,
}

/// A replica, what was seen of it, and its processor use since the look before (thousandths of a core, over that time).
type Looked = (ReplicaUsage, Seen, Option<(u64, SignedDuration)>);

/// One look: each replica with its use since the look before.
#[derive(Debug)]
pub(crate) struct Look {
    replicas: Vec<Looked>,
    at: Timestamp,
}

impl Meter {
    /// Takes a look.
    pub(crate) fn look(&mut self, usage: Vec<ReplicaUsage>, now: Timestamp) -> Look {
        let before = std::mem::take(&mut self.seen);
        let mut replicas = Vec::with_capacity(usage.len());
        for replica in usage {
            let last = before.get(&replica.name);
            let ready_since = match last {
                Some(last) if last.is_ready == replica.is_ready => last.ready_since,
                Some(_) => Some(now),
                None => replica.ready_at.filter(|_| replica.is_ready == Some(true)).or(replica.started_at),
            };
            let cpu_taken_at = replica.cpu_taken_at.unwrap_or(now);
            let (cpu_us_total, is_ready) = (replica.cpu_us_total, replica.is_ready);
            let seen = Seen { at: now, cpu_us_total, cpu_taken_at, is_ready, ready_since };
            let rate = last.and_then(|last| {
                let span = now.duration_since(last.at);
                let counted = cpu_taken_at.duration_since(last.cpu_taken_at);
                let span_us = u64::try_from(counted.as_micros()).ok().filter(|span_us| *span_us > 0)?;
                let used_us = replica.cpu_us_total?.checked_sub(last.cpu_us_total?)?;
                // microseconds of processor per microsecond of time, in thousandths
                Some((used_us.saturating_mul(1000) / span_us, span))
            });
            self.seen.insert(replica.name.clone(), seen);
            replicas.push((replica, seen, rate));
        }
        Look { replicas, at: now }
    }
}

impl Look {
    /// The reading of a cpu or memory rule.
    pub(crate) fn reading(&self, settings: &ScaleSettings, kind: RuleKind, rule: &ScaleRule, current: u32) -> Reading {
        let target = match target(kind, rule) {
            Ok(target) => target,
            Err(reason) => return Reading::error(reason),
        };
        let samples: Vec<_> = self.replicas.iter().map(|replica| self.sample(settings, kind, replica)).collect();
        match propose(settings, kind, target, current, self.at, &samples) {
            Ok(count) => Reading::Replicas { count },
            Err(reason) => Reading::error(reason.to_string()),
        }
    }

    /// Whether a replica runs: then a rule without a sample has no excuse.
    pub(crate) fn any_runs(&self) -> bool {
        self.replicas.iter().any(|(replica, ..)| replica.phase == ReplicaPhase::Running && !replica.is_leaving)
    }

    fn sample(&self, settings: &ScaleSettings, kind: RuleKind, (replica, seen, rate): &Looked) -> ReplicaSample {
        let (request, usage) = if kind == RuleKind::Cpu {
            (u64::from(replica.cpu_request.0), rate.map(|(milli, _)| milli))
        } else {
            (replica.memory_request.0, replica.memory_bytes)
        };
        ReplicaSample {
            phase: replica.phase,
            deleting: replica.is_leaving,
            started_at: replica.started_at,
            ready: replica.is_ready,
            ready_since: seen.ready_since,
            request,
            usage,
            sampled_at: self.at,
            window: rate.map_or(settings.resource_sampling, |(_, span)| span),
        }
    }
}

/// What the rule asks for: percent of the request unless its `type` is `AverageValue`.
fn target(kind: RuleKind, rule: &ScaleRule) -> Result<ResourceTarget, String> {
    let ScaleRuleKind::Custom { metadata, .. } = &rule.kind else {
        return Err("it is no cpu or memory rule".to_owned());
    };
    let value = metadata.get("value").map_or("", |value| value.trim());
    match metadata.get("type").map_or("Utilization", |kind| kind.trim()) {
        "" | "Utilization" => match value.parse::<u64>() {
            Ok(percent) if percent >= 1 => Ok(ResourceTarget::Utilization { percent }),
            _ => Err(format!("value is `{value}`; expected a whole percentage of at least 1")),
        },
        "AverageValue" => {
            let amount = quantity(value).filter(|amount| *amount > 0.0);
            let amount = amount.map(|amount| if kind == RuleKind::Cpu { amount * 1000.0 } else { amount });
            let value = amount.map(|amount| cove_scaling::milli(amount).div_ceil(1000)).filter(|value| *value >= 1);
            let example = if kind == RuleKind::Cpu { "500m" } else { "200Mi" };
            value
                .map(|value| ResourceTarget::AverageValue { value })
                .ok_or_else(|| format!("value is not an amount above 0, such as `{example}`"))
        }
        other => Err(format!("type is `{other}`; expected Utilization or AverageValue")),
    }
}

#[cfg(test)]
mod tests;
