//! The autoscaler's rows in the system log, in Azure's vocabulary.
//!
//! **Invariant:** an event says what happened and why in words a user of `az` can act on; it never holds a secret.

use cove_model::{EventKind, IdleState, ResourceId, RevisionKey, SystemEvent};
use cove_scaling::{Decision, Reading, Reason, Rule, RuleKind, ScaleConfig};
use jiff::Timestamp;

use crate::health::News;

/// Who an event is about.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    pub(crate) revision: RevisionKey,
    pub(crate) environment: ResourceId,
}

impl Subject {
    fn event(&self, at: Timestamp, kind: EventKind, reason: &str, message: String) -> SystemEvent {
        SystemEvent {
            at,
            kind,
            reason: reason.to_owned(),
            message,
            environment: Some(self.environment.as_str().to_owned()),
            app: Some(self.revision.app.as_str().to_owned()),
            revision: Some(self.revision.name.as_str().to_owned()),
            replica: None,
            container: None,
            source: "KEDA".to_owned(),
        }
    }

    /// The rules of a revision began to be read.
    pub(crate) fn started(&self, at: Timestamp, config: &ScaleConfig) -> SystemEvent {
        let rules = config.rules.iter().map(|rule| format!("`{}` ({})", rule.name, kind(rule.kind)));
        let rules = rules.collect::<Vec<_>>().join(", ");
        let rules = if rules.is_empty() { "no scale rule".to_owned() } else { format!("scale rules {rules}") };
        let message = format!(
            "Scaling of `{}` started: {rules}, {} to {} replicas",
            self.revision.name, config.min_replicas, config.max_replicas
        );
        self.event(at, EventKind::Normal, "KEDAScalersStarted", message)
    }

    /// A rule cannot be read any more, or can be read again.
    pub(crate) fn rule_news(&self, at: Timestamp, rule: &Rule, news: News, reading: &Reading) -> SystemEvent {
        let (name, revision) = (&rule.name, &self.revision.name);
        let failed = if rule.kind.is_resource() { "FailedGetResourceMetric" } else { "KEDAScalerFailed" };
        match (news, reading) {
            (News::Fails, Reading::Error { reason }) => {
                let message = format!(
                    "Rule `{name}` of `{revision}` cannot be read: {reason}. The replica count does not fall until it can"
                );
                self.event(at, EventKind::Warning, failed, message)
            }
            (News::Fails | News::Recovered, _) => {
                let message = format!("Rule `{name}` of `{revision}` can be read again");
                self.event(at, EventKind::Normal, "KEDAScalersStarted", message)
            }
        }
    }

    /// At zero nothing would ever start it again.
    pub(crate) fn no_way_to_start(&self, at: Timestamp, config: &ScaleConfig) -> SystemEvent {
        let message = format!(
            "`{}` has neither ingress nor a scale rule and minReplicas 0: it goes to zero after {} s and nothing starts \
             it again; add a rule, enable ingress or set minReplicas to 1",
            self.revision.name,
            config.settings.cooldown_period.as_secs()
        );
        self.event(at, EventKind::Warning, "ScaledObjectCheckFailed", message)
    }

    /// A count changed.
    pub(crate) fn rescaled(&self, decision: &Decision, config: &ScaleConfig, idle: IdleState) -> SystemEvent {
        let (from, to, why) = (decision.current, decision.new, why(decision, config));
        let last = if idle == IdleState::Frozen { "; the last replica is to be frozen" } else { "" };
        let (reason, message) = match (from, to) {
            (0, _) => ("KEDAScaleTargetActivated", format!("Scaled `{}` from 0 to {to}: {why}", self.revision.name)),
            (_, 0) => {
                ("KEDAScaleTargetDeactivated", format!("Scaled `{}` from {from} to 0: {why}{last}", self.revision.name))
            }
            _ => ("SuccessfulRescale", format!("Scaled `{}` from {from} to {to}: {why}", self.revision.name)),
        };
        self.event(decision.at, EventKind::Normal, reason, message)
    }
}

fn why(decision: &Decision, config: &ScaleConfig) -> String {
    let asked = decision.rules.iter().filter(|rule| rule.proposal.is_some() && rule.proposal == decision.want);
    let rules = asked.map(|rule| format!("`{}`", rule.name)).collect::<Vec<_>>().join(", ");
    let want = decision.want.unwrap_or(decision.new);
    match decision.reason {
        Reason::Activated if decision.rules.is_empty() => "a request arrived".to_owned(),
        Reason::Activated => "a scale rule became active".to_owned(),
        Reason::CooldownElapsed => {
            format!("no activity for more than {} s", config.settings.cooldown_period.as_secs())
        }
        Reason::AboveMax => format!("maxReplicas is {}", config.max_replicas),
        Reason::BelowMin => format!("minReplicas is {}", config.min_replicas),
        Reason::ScaleUp => format!("rule {rules} asks for {want}"),
        Reason::ScaleUpLimited => {
            format!("rule {rules} asks for {want}; this step reaches {}", decision.ceiling.unwrap_or(decision.new))
        }
        Reason::ScaleDown => format!(
            "rule {rules} asks for {want}, and nothing asked for more in {} s",
            config.settings.scale_down_window.as_secs()
        ),
        other => other.as_str().to_owned(),
    }
}

fn kind(kind: RuleKind) -> &'static str {
    match kind {
        RuleKind::Http => "http",
        RuleKind::Tcp => "tcp",
        RuleKind::Event => "custom",
        RuleKind::Cpu => "cpu",
        RuleKind::Memory => "memory",
    }
}
