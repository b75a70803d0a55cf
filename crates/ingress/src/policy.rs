//! Rules of one app's way in, made ready for requests: who may call, cross-origin answers, stickiness, client certificates.
//!
//! **Invariant:** a rule that cannot be read shuts the app; it never lets somebody in.

use std::{net::IpAddr, sync::Arc};

use cove_model::{AccessLog, ClientCertificateMode, IngressPolicies};
use ipnet::IpNet;

use crate::{auth::Auth, cors::Cors, limits::Limits, resilience::Resilience};

/// Rules of one app, read once per route.
#[derive(Debug, Default)]
pub(crate) struct Policy {
    /// A client stays at its replica.
    pub(crate) is_sticky: bool,
    /// What is asked of clients at the TLS handshake.
    pub(crate) client_certificate: ClientCertificateMode,
    /// Cross-origin rules.
    pub(crate) cors: Option<Cors>,
    /// What is done about failures.
    pub(crate) resilience: Resilience,
    /// How long and how large requests may be.
    pub(crate) limits: Limits,
    /// Which requests get a row of the access log, if the app says it.
    pub(crate) access_log: Option<AccessLog>,
    /// Calls from inside say which app calls.
    pub(crate) names_callers: bool,
    /// Who must log in.
    pub(crate) auth: Option<Arc<Auth>>,
    allowed: Vec<IpNet>,
    denied: Vec<IpNet>,
    has_allowed: bool,
    is_shut: bool,
}

impl Policy {
    pub(crate) fn new(policies: &IngressPolicies) -> Self {
        let mut policy = Self {
            is_sticky: policies.is_sticky,
            client_certificate: policies.client_certificate,
            cors: policies.cors.as_ref().map(Cors::new),
            resilience: Resilience::new(&policies.resiliency),
            limits: Limits::new(policies.limits),
            access_log: policies.access_log,
            names_callers: policies.names_callers,
            auth: policies.auth.as_ref().map(|policy| Arc::new(Auth::new(policy))),
            ..Self::default()
        };
        for rule in &policies.ip_restrictions {
            policy.has_allowed |= rule.is_allow;
            // a lone address is a network of one
            let net = rule.range.parse::<IpNet>().or_else(|_| rule.range.parse::<IpAddr>().map(IpNet::from));
            match net {
                Ok(net) if rule.is_allow => policy.allowed.push(net),
                Ok(net) => policy.denied.push(net),
                Err(_) => {
                    tracing::error!(rule = rule.name, range = rule.range, "an IP rule cannot be read; the app is shut");
                    policy.is_shut = true;
                }
            }
        }
        policy
    }

    /// Whether a client with this address may call.
    pub(crate) fn lets_in(&self, client: IpAddr) -> bool {
        let is_in = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&client));
        !self.is_shut && (!self.has_allowed || is_in(&self.allowed)) && !is_in(&self.denied)
    }

    /// Whether clients are asked for a certificate.
    pub(crate) fn asks_certificate(&self) -> bool {
        self.client_certificate != ClientCertificateMode::Ignore
    }
}

#[cfg(test)]
mod tests {
    use cove_model::IpRestriction;

    use super::*;

    fn policy(rules: &[(bool, &str)]) -> Policy {
        let rule = |(is_allow, range): &(bool, &str)| IpRestriction {
            name: "rule".into(),
            is_allow: *is_allow,
            range: (*range).to_owned(),
        };
        let ip_restrictions = rules.iter().map(rule).collect();
        Policy::new(&IngressPolicies { ip_restrictions, ..IngressPolicies::default() })
    }

    #[test]
    fn allow_rules_admit_only_theirs_and_deny_rules_refuse_only_theirs() {
        let (allow, deny) = (true, false);
        for (rules, client, expected) in [
            (&[][..], "1.2.3.4", true),
            (&[(allow, "10.0.0.0/8")], "10.1.1.1", true),
            (&[(allow, "10.0.0.0/8")], "11.1.1.1", false),
            (&[(allow, "10.0.0.0/8"), (allow, "2001:db8::/32")], "2001:db8::1", true),
            (&[(allow, "10.0.0.0/8")], "::1", false),
            (&[(allow, "10.0.0.7")], "10.0.0.7", true),
            (&[(deny, "10.0.0.0/8")], "10.1.1.1", false),
            (&[(deny, "10.0.0.0/8")], "11.1.1.1", true),
            (&[(allow, "10.0.0.0/8"), (deny, "10.1.0.0/16")], "10.1.1.1", false),
            (&[(deny, "not a range")], "11.1.1.1", false),
            (&[(allow, "not a range")], "11.1.1.1", false),
        ] {
            assert_eq!(policy(rules).lets_in(client.parse().unwrap()), expected, "{rules:?} {client}");
        }
    }
}
