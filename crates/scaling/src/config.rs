//! What one revision's autoscaler is asked to do: limits, rules, settings.
//!
//! Derived once from `template.scale`; a change of any scale property is a new revision, so nothing here changes later.
//!
//! **Invariant:** rules keep their order; readings, outcomes and failure counts are matched to them by position.

use std::sync::Arc;

use cove_model::{Scale, ScaleRule, ScaleRuleKind};
use serde::{Deserialize, Serialize};

use crate::effective::{EffectiveScale, ScaleDefaults, effective};
use crate::number::milli;
use crate::settings::ScaleSettings;
use crate::source::Scaler;

/// Name of the rule that Azure adds when there is ingress and no rule.
pub const DEFAULT_RULE_NAME: &str = "default-http";

/// Target of the default rule, and of http and tcp rules without one: 10 per second and replica.
pub const DEFAULT_CONCURRENCY: u32 = 10;

/// Limits, rules and settings of one revision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleConfig {
    /// Fewest replicas, 0..=1000.
    pub min_replicas: u32,
    /// Most replicas, 1..=1000.
    pub max_replicas: u32,
    /// The rules, in the order given.
    pub rules: Vec<Rule>,
    /// Timings, windows, steps.
    pub settings: ScaleSettings,
    /// What a failing event source counts as; `None` (Azure) keeps the count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<Fallback>,
}

/// One rule as the decision sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// Unique within the revision.
    pub name: Arc<str>,
    /// Which class of reading it gives.
    pub kind: RuleKind,
    /// Value per replica, in thousandths; 0 counts as 1.
    pub target_milli: u64,
    /// A value must exceed this to keep the revision active, default 0.
    #[serde(default)]
    pub activation: f64,
}

/// The classes of rules that decisions tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RuleKind {
    /// Requests that arrived, per second.
    Http,
    /// Connections that were opened, per second.
    Tcp,
    /// A number from an event source: every custom scaler but cpu and memory, and azure-queue.
    Event,
    /// Processor time of the replicas.
    Cpu,
    /// Memory of the replicas.
    Memory,
}

impl RuleKind {
    /// Http and tcp: measured at the ingress, activated by an arrival.
    pub fn is_load(self) -> bool {
        matches!(self, Self::Http | Self::Tcp)
    }

    /// Cpu and memory: they give a count, and never decide between zero and running beside other rules.
    pub fn is_resource(self) -> bool {
        matches!(self, Self::Cpu | Self::Memory)
    }
}

/// KEDA's fallback for failing event sources. Azure has no field for it; off by default.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fallback {
    /// From failure number `failure_threshold + 1` in a row the rule counts as active.
    pub failure_threshold: u32,
    /// Replicas that it then asks for.
    pub replicas: u32,
    /// How `replicas` meets the current count.
    pub behavior: FallbackBehavior,
}

/// How the fallback's count and the current count combine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum FallbackBehavior {
    /// The fallback's count.
    #[default]
    Static,
    /// The current count.
    CurrentReplicas,
    /// The higher of the two.
    CurrentReplicasIfHigher,
    /// The lower of the two.
    CurrentReplicasIfLower,
}

impl ScaleConfig {
    /// Reads `template.scale` on a server whose only own defaults are these constants.
    pub fn from_scale(scale: &Scale, has_ingress: bool, settings: &ScaleSettings) -> Self {
        let defaults = ScaleDefaults { settings: settings.clone(), ..ScaleDefaults::default() };
        Self::from_effective(scale, has_ingress, &effective(scale, &defaults))
    }

    /// Reads `template.scale` with the constants in force. With ingress and no rule, the default http rule applies.
    pub fn from_effective(scale: &Scale, has_ingress: bool, effective: &EffectiveScale) -> Self {
        let mut rules: Vec<Rule> = scale.rules.iter().map(Rule::from_scale_rule).collect();
        if rules.is_empty() && has_ingress {
            rules.push(Rule::new(DEFAULT_RULE_NAME, RuleKind::Http, f64::from(DEFAULT_CONCURRENCY)));
        }
        Self {
            min_replicas: scale.min_replicas,
            max_replicas: scale.max_replicas,
            rules,
            settings: effective.settings.clone(),
            fallback: effective.fallback,
        }
    }

    /// The fewest replicas a running revision has: `min_replicas`, or 1.
    pub fn running_min(&self) -> u32 {
        self.min_replicas.max(1)
    }

    /// Whether a request or connection activates the revision at zero: only where it has an http or tcp rule.
    pub fn activates_on_request(&self) -> bool {
        self.rules.iter().any(|rule| rule.kind.is_load())
    }

    /// Whether cpu and memory are all the rules there are; such a revision never reaches zero.
    pub fn resource_rules_only(&self) -> bool {
        !self.rules.is_empty() && self.rules.iter().all(|rule| rule.kind.is_resource())
    }

    /// Whether a revision at zero can be left alone until a request activates it: ticks would change nothing.
    pub fn sleeps_at_zero(&self) -> bool {
        self.min_replicas == 0 && self.rules.iter().all(|rule| rule.kind.is_load())
    }
}

impl Rule {
    /// A rule with activation 0. `target` is the value per replica.
    pub fn new(name: &str, kind: RuleKind, target: f64) -> Self {
        Self { name: name.into(), kind, target_milli: milli(target), activation: 0.0 }
    }

    /// Reads one rule of the template.
    ///
    /// The target of an event rule is in its scaler's metadata; where the scaler's server says it (external), or the
    /// metadata cannot be read without its environment, it is 1 until then.
    pub fn from_scale_rule(rule: &ScaleRule) -> Self {
        match &rule.kind {
            ScaleRuleKind::Http { concurrent_requests } => {
                Self::new(&rule.name, RuleKind::Http, f64::from(*concurrent_requests))
            }
            ScaleRuleKind::Tcp { concurrent_connections } => {
                Self::new(&rule.name, RuleKind::Tcp, f64::from(*concurrent_connections))
            }
            ScaleRuleKind::AzureQueue { queue_length, .. } => {
                Self::new(&rule.name, RuleKind::Event, f64::from(*queue_length))
            }
            ScaleRuleKind::Custom { scaler, metadata, .. } => {
                let kind = match scaler.as_str() {
                    "cpu" => RuleKind::Cpu,
                    "memory" => RuleKind::Memory,
                    _ => RuleKind::Event,
                };
                let resource = metadata.get("value").filter(|_| kind.is_resource()).and_then(|v| v.trim().parse().ok());
                let event = || Scaler::parse(scaler, &|key| metadata.get(key).cloned()).ok().flatten()?.target();
                Self::new(&rule.name, kind, resource.or_else(event).unwrap_or(1.0))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn ingress_without_a_rule_gets_the_default_rule() {
        let scale = Scale { cooldown_period_secs: 60, ..Scale::default() };
        let config = ScaleConfig::from_scale(&scale, true, &ScaleSettings::default());
        assert_eq!(config.rules, [Rule::new("default-http", RuleKind::Http, 10.0)]);
        assert_eq!(config.settings.cooldown_period, SignedDuration::from_secs(60));
        assert!(config.sleeps_at_zero() && config.activates_on_request());

        let without = ScaleConfig::from_scale(&scale, false, &ScaleSettings::default());
        assert!(without.rules.is_empty() && without.sleeps_at_zero() && !without.activates_on_request());
    }

    #[test]
    fn custom_cpu_is_a_resource_rule() {
        let kind = ScaleRuleKind::Custom {
            scaler: "cpu".into(),
            metadata: [("value".to_owned(), " 50 ".to_owned())].into_iter().collect(),
            auth: Vec::new(),
            identity: None,
        };
        let scale = Scale { rules: vec![ScaleRule { name: "c".into(), kind }], ..Scale::default() };
        let config = ScaleConfig::from_scale(&scale, true, &ScaleSettings::default());
        assert_eq!(config.rules, [Rule::new("c", RuleKind::Cpu, 50.0)]);
        assert!(config.resource_rules_only() && !config.sleeps_at_zero());
    }
}
