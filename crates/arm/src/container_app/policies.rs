//! Policies of the way in: who may call, from which origins, how clients stay, which host names of the user's own lead here.
//!
//! What is read here the ingress enforces; that a certificate exists and that a host name is free is for the caller to
//! check, who knows the environment.
//!
//! **Invariant:** a policy that guards the app is either read completely or refused, never half kept.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use cove_model::{
    AccessLog, ClientCertificateMode, CorsPolicy, CustomDomain, IngressPolicies, IpRestriction, PortMapping,
    ProxyProtocol, RequestLimits, ResourceId,
};

use super::ingress::port;
use crate::{ArmError, Errors, node::Node};

/// Most custom domains of an app.
const DOMAINS_MAX: usize = 100;
/// Most entries of `ipSecurityRestrictions`.
const RESTRICTIONS_MAX: usize = 200;
/// Most additional ports of an app, as Azure's.
const PORTS_MAX: usize = 5;
/// Most entries of a list of the CORS policy.
const CORS_MAX: usize = 100;
/// Longest time limit of a request: a day.
const SECONDS_MAX: i64 = 86_400;

/// Reads the policies below `configuration.ingress`.
pub(super) fn read(ingress: &Node<'_>, errors: &mut Errors) -> IngressPolicies {
    let client_certificate = match ingress.get("clientCertificateMode").text() {
        Some("accept") => ClientCertificateMode::Accept,
        Some("require") => ClientCertificateMode::Require,
        _ => ClientCertificateMode::Ignore,
    };
    IngressPolicies {
        ip_restrictions: ip_restrictions(&ingress.get("ipSecurityRestrictions"), errors),
        cors: cors(&ingress.get("corsPolicy"), errors),
        is_sticky: ingress.get("stickySessions").get("affinity").text() == Some("sticky"),
        client_certificate,
        proxy_protocol: match ingress.get("coveProxyProtocol").text() {
            Some("v1") => Some(ProxyProtocol::V1),
            Some("v2") => Some(ProxyProtocol::V2),
            _ => None,
        },
        limits: limits(ingress, errors),
        access_log: access_log(ingress),
        ..IngressPolicies::default()
    }
}

/// Which requests get a row of the access log, if the app says it.
fn access_log(ingress: &Node<'_>) -> Option<AccessLog> {
    match ingress.get("coveAccessLog").text()? {
        "all" => Some(AccessLog::All),
        "errors" => Some(AccessLog::Errors),
        "off" => Some(AccessLog::Off),
        _ => None,
    }
}

/// Limits of requests that the app sets itself; what it leaves open is its environment's and the server's to say.
fn limits(ingress: &Node<'_>, errors: &mut Errors) -> RequestLimits {
    let mut number = |name: &str, most: i64| {
        let node = ingress.get(name);
        let number = node.int()?;
        if !(1..=most).contains(&number) {
            errors.invalid(&node.path, format!("The value {number} is not valid; expected 1 to {most}."));
        }
        u64::try_from(number).ok()
    };
    let mut seconds = |name: &str| number(name, SECONDS_MAX).and_then(|number| u32::try_from(number).ok());
    RequestLimits {
        request_timeout_secs: seconds("coveRequestTimeoutSeconds"),
        idle_timeout_secs: seconds("coveIdleTimeoutSeconds"),
        body_bytes_max: number("coveRequestBodyMaxBytes", i64::MAX),
        ..RequestLimits::default()
    }
}

fn ip_restrictions(node: &Node<'_>, errors: &mut Errors) -> Vec<IpRestriction> {
    let items = node.items();
    if items.len() > RESTRICTIONS_MAX {
        let message = format!("{} restrictions are too many; an app may have {RESTRICTIONS_MAX}.", items.len());
        errors.invalid(&node.path, message);
    }
    let mut names = BTreeSet::new();
    let mut all: Vec<IpRestriction> = Vec::new();
    for item in items.iter().take(RESTRICTIONS_MAX) {
        let name = item.get("name").text().unwrap_or("").trim();
        if name.is_empty() {
            errors.invalid(&item.get("name").path, "An IP restriction needs a name.");
        } else if !names.insert(name.to_ascii_lowercase()) {
            errors.invalid(&item.get("name").path, format!("The IP restriction '{name}' is given twice."));
        }
        let is_allow = match item.get("action").text() {
            Some(action) => action == "Allow",
            None => {
                errors.invalid(&item.get("action").path, "An IP restriction needs an action: Allow or Deny.");
                continue;
            }
        };
        let range = item.get("ipAddressRange");
        let text = range.text().unwrap_or("").trim();
        match cidr(text) {
            Some(range) => all.push(IpRestriction { name: name.to_owned(), is_allow, range }),
            None => {
                let shown: String = text.chars().take(80).collect();
                let message =
                    format!("The IP address range '{shown}' is not valid; expected CIDR such as '10.0.0.0/8'.");
                errors.invalid(&range.path, message);
            }
        }
    }
    if all.iter().any(|one| one.is_allow) && all.iter().any(|one| !one.is_allow) {
        errors.invalid(&node.path, "IP restrictions must be all Allow or all Deny; these are mixed.");
    }
    all
}

/// The network with its host bits cleared, `10.1.2.3/8` → `10.0.0.0/8`; an address alone is a network of one.
fn cidr(text: &str) -> Option<String> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) if bits.bytes().all(|b| b.is_ascii_digit()) => (address, Some(bits.parse::<u32>().ok()?)),
        Some(_) => return None,
        None => (text, None),
    };
    match address.parse().ok()? {
        IpAddr::V4(address) => {
            let bits = bits.unwrap_or(32);
            let mask = u32::MAX.checked_shl(32_u32.checked_sub(bits)?).unwrap_or(0);
            Some(format!("{}/{bits}", Ipv4Addr::from(u32::from(address) & mask)))
        }
        IpAddr::V6(address) => {
            let bits = bits.unwrap_or(128);
            let mask = u128::MAX.checked_shl(128_u32.checked_sub(bits)?).unwrap_or(0);
            Some(format!("{}/{bits}", Ipv6Addr::from(u128::from(address) & mask)))
        }
    }
}

fn cors(node: &Node<'_>, errors: &mut Errors) -> Option<CorsPolicy> {
    if !node.exists() {
        return None;
    }
    let policy = CorsPolicy {
        allowed_origins: origins(&node.get("allowedOrigins"), errors),
        allowed_methods: tokens(&node.get("allowedMethods"), "method", errors),
        allowed_headers: tokens(&node.get("allowedHeaders"), "header", errors),
        expose_headers: tokens(&node.get("exposeHeaders"), "header", errors),
        max_age_secs: max_age(&node.get("maxAge"), errors),
        allow_credentials: node.get("allowCredentials").flag().unwrap_or(false),
    };
    if policy == CorsPolicy::default() {
        return None;
    }
    if policy.allowed_origins.is_empty() {
        errors
            .invalid(&node.get("allowedOrigins").path, "A CORS policy needs allowedOrigins; '*' allows every origin.");
    }
    Some(policy)
}

fn max_age(node: &Node<'_>, errors: &mut Errors) -> Option<u32> {
    let number = node.int()?;
    let seconds = u32::try_from(number).ok();
    if seconds.is_none() {
        errors.invalid(&node.path, format!("maxAge is {number}; expected seconds, 0 or more."));
    }
    seconds
}

fn few<'a>(node: &Node<'a>, errors: &mut Errors) -> Vec<Node<'a>> {
    let mut items = node.items();
    if items.len() > CORS_MAX {
        errors.invalid(&node.path, format!("{} entries are too many; at most {CORS_MAX}.", items.len()));
        items.truncate(CORS_MAX);
    }
    items
}

fn origins(node: &Node<'_>, errors: &mut Errors) -> Vec<String> {
    let mut all = Vec::new();
    for item in few(node, errors) {
        let text = item.text().unwrap_or("").trim();
        let host =
            text.split_once("://").filter(|(scheme, _)| matches!(*scheme, "http" | "https")).map(|(_, host)| host);
        let is_host =
            |host: &str| !host.is_empty() && !host.contains(|c: char| c == '/' || c.is_whitespace() || c.is_control());
        if text == "*" || host.is_some_and(is_host) {
            all.push(text.to_owned());
        } else {
            let shown: String = text.chars().take(80).collect();
            let message = format!("The origin '{shown}' is not valid; expected '*' or such as 'https://example.com'.");
            errors.invalid(&item.path, message);
        }
    }
    all
}

/// Methods or names of headers: tokens of HTTP, or `*`.
fn tokens(node: &Node<'_>, what: &str, errors: &mut Errors) -> Vec<String> {
    let mut all = Vec::new();
    for item in few(node, errors) {
        let text = item.text().unwrap_or("").trim();
        let is_token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
        if !text.is_empty() && text.chars().all(is_token) {
            all.push(text.to_owned());
        } else {
            let shown: String = text.chars().take(80).collect();
            errors.invalid(&item.path, format!("'{shown}' is not the name of a {what}."));
        }
    }
    all
}

/// Reads `customDomains`; the certificates must belong to the app's environment.
pub(super) fn custom_domains(node: &Node<'_>, environment: &ResourceId, errors: &mut Errors) -> Vec<CustomDomain> {
    let items = node.items();
    if items.len() > DOMAINS_MAX {
        let message = format!("{} custom domains are too many; an app may have {DOMAINS_MAX}.", items.len());
        errors.invalid(&node.path, message);
    }
    let mut names = BTreeSet::new();
    let mut all = Vec::new();
    for item in items.iter().take(DOMAINS_MAX) {
        let name_node = item.get("name");
        let text = name_node.text().unwrap_or("");
        let name = text.trim().to_ascii_lowercase();
        if !is_host_name(&name) {
            let shown: String = text.chars().take(80).collect();
            let message =
                format!("The custom domain '{shown}' is not valid; expected a host name such as 'www.example.com'.");
            errors.push(ArmError::new(400, "InvalidCustomHostName", message).at(&name_node.path));
        } else if !names.insert(name.clone()) {
            errors.invalid(&name_node.path, format!("The custom domain '{name}' is given twice."));
        }
        let certificate = certificate(item, &name, environment, errors);
        all.push(CustomDomain { name, certificate });
    }
    all
}

fn certificate(item: &Node<'_>, name: &str, environment: &ResourceId, errors: &mut Errors) -> Option<ResourceId> {
    let (binding, node) = (item.get("bindingType"), item.get("certificateId"));
    let Some(text) = node.text() else {
        match binding.text() {
            Some("SniEnabled") => {
                let message = format!("The custom domain '{name}' with bindingType SniEnabled needs a certificateId.");
                errors.invalid(&node.path, message);
            }
            Some("Auto") => {
                let instead =
                    "make a certificate of the environment, give its certificateId and bindingType 'SniEnabled'";
                errors.push(ArmError::not_implemented(
                    &binding.path,
                    "Binding a certificate by itself ('Auto')",
                    instead,
                ));
            }
            _ => {}
        }
        return None;
    };
    let id = ResourceId::parse(text).ok().filter(|id| {
        ["Microsoft.App/managedEnvironments/certificates", "Microsoft.App/managedEnvironments/managedCertificates"]
            .iter()
            .any(|kind| id.kind().eq_ignore_ascii_case(kind))
    });
    match id {
        Some(id) if id.parent().as_ref() == Some(environment) => (binding.text() != Some("Disabled")).then_some(id),
        Some(id) => {
            let message = format!("The certificate '{id}' belongs to another environment than the app.");
            errors.push(ArmError::new(400, "CertificateMustBeInSameEnvironment", message).at(&node.path));
            None
        }
        None => {
            let shown: String = text.chars().take(200).collect();
            let message =
                format!("'{shown}' is not the id of a certificate; expected {environment}/certificates/NAME.");
            errors.push(ArmError::new(400, "InvalidCertificateId", message).at(&node.path));
            None
        }
    }
}

/// A DNS name of at least two labels, in lower case, without wildcards.
pub(super) fn is_host_name(name: &str) -> bool {
    let is_label = |label: &str| super::check::is_dns_label(label, 63);
    name.len() <= 253 && name.contains('.') && name.split('.').all(is_label) && name.parse::<Ipv4Addr>().is_err()
}

/// Reads `additionalPortMappings`.
pub(super) fn additional_ports(node: &Node<'_>, errors: &mut Errors) -> Vec<PortMapping> {
    let items = node.items();
    if items.len() > PORTS_MAX {
        let message = format!("{} additional ports are too many; an app may have {PORTS_MAX}.", items.len());
        errors.invalid(&node.path, message);
    }
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in items.iter().take(PORTS_MAX) {
        let (target, exposed) = (item.get("targetPort"), item.get("exposedPort"));
        let Some(target_port) = port(&target, errors) else {
            errors.invalid(&target.path, "An additional port needs a targetPort from 1 to 65535.");
            continue;
        };
        let exposed_port = port(&exposed, errors).unwrap_or(target_port);
        check_exposed(exposed_port, &exposed, errors);
        if !seen.insert(exposed_port) {
            errors.invalid(&exposed.path, format!("The port {exposed_port} is exposed twice."));
        }
        all.push(PortMapping { external: item.get("external").flag().unwrap_or(false), target_port, exposed_port });
    }
    all
}

/// Ports that the ingress itself needs cannot be an app's.
pub(super) fn check_exposed(port: u16, node: &Node<'_>, errors: &mut Errors) {
    if matches!(port, 80 | 443 | 36985) {
        let message = format!("The port {port} cannot be exposed: 80 and 443 are for HTTP, 36985 is reserved.");
        errors.push(ArmError::new(400, "InvalidExposedPort", message).at(&node.path));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_lose_their_host_bits() {
        for (text, expected) in [
            ("10.1.2.3/8", Some("10.0.0.0/8")),
            ("192.168.1.1", Some("192.168.1.1/32")),
            ("1.2.3.4/0", Some("0.0.0.0/0")),
            ("fe80::1/64", Some("fe80::/64")),
            ("::1", Some("::1/128")),
            ("10.0.0.0/33", None),
            ("10.0.0/8", None),
            ("10.0.0.0/+8", None),
            ("", None),
        ] {
            assert_eq!(cidr(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn host_names_have_two_labels() {
        assert!(is_host_name("www.example.com") && is_host_name("a.localhost"));
        assert!(!is_host_name("localhost") && !is_host_name("*.example.com") && !is_host_name("1.2.3.4"));
    }
}
