//! What limited replicas may reach: a chain of packet filter rules for each, and addresses that its names were answered with.
//!
//! An address of the limited part of the subnet reaches nothing by itself, so a replica whose rules are not set (yet, or again
//! after a restart) reaches nothing. Ranges stand in its chain; addresses of names are put into sets of its own before it hears
//! of them, and leave them by themselves. Connections that stand go on when their address has left: the first packet leaves the
//! replica's mark on them.
//!
//! **Invariant:** what is no internet (private, shared and link-local ranges, metadata) is reached only where a range of the
//! rules lies within it; a name never leads there otherwise.
//! **Invariant:** chains and sets are named after the namespace's id, which is used once: nothing is left to the next replica
//! with that address.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cove_model::{EgressHost, EgressRule};
use ipnet::Ipv4Net;

use crate::error::NetworkError;
use crate::kernel::Kernel;
use crate::layout::{Layout, NetnsId};
use crate::nft::{self, LIMITED, NO_INTERNET, REJECT};

/// Addresses of names that one replica may reach at a time, counted once per port; names that lead to more fail.
pub const LEARNED_MAX: usize = 256;

/// An address of a name is reached at least for this long, however short the answer's own time is.
pub const LEARNED_FLOOR: Duration = Duration::from_secs(60);

/// And is asked for again after this at the latest.
pub const LEARNED_CEILING: Duration = Duration::from_secs(3600);

/// What a name's addresses are reached at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ports {
    All,
    These(Vec<u16>),
}

/// The rules of all limited replicas.
#[derive(Debug)]
pub struct Limits {
    layout: Layout,
    clients: Mutex<HashMap<Ipv4Addr, Arc<Client>>>,
}

/// One limited replica.
#[derive(Debug)]
pub(crate) struct Client {
    id: NetnsId,
    rules: Vec<EgressRule>,
    /// Until when an address is in a set; port 0 stands for all. Held while `nft` runs: one run at a time for each replica.
    learned: tokio::sync::Mutex<HashMap<(Ipv4Addr, u16), Instant>>,
}

impl Limits {
    pub(crate) fn new(layout: Layout) -> Self {
        Self { layout, clients: Mutex::default() }
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Ipv4Addr, Arc<Client>>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the rules of a namespace that has none yet.
    pub(crate) async fn set(&self, id: NetnsId, rules: &[EgressRule]) -> Result<(), NetworkError> {
        let text = setting(&self.layout, id, rules);
        nft::apply(&text).await.map_err(|error| NetworkError::PacketFilter { reason: error.to_string() })?;
        let client = Client { id, rules: rules.to_vec(), learned: tokio::sync::Mutex::default() };
        self.clients().insert(self.layout.address(id.host), Arc::new(client));
        Ok(())
    }

    /// It is told of no name any more; its chain goes with its namespace.
    pub(crate) fn forget(&self, id: NetnsId) {
        let address = self.layout.address(id.host);
        let mut clients = self.clients();
        if clients.get(&address).is_some_and(|client| client.id == id) {
            clients.remove(&address);
        }
    }

    pub(crate) fn client(&self, address: Ipv4Addr) -> Option<Arc<Client>> {
        self.clients().get(&address).cloned()
    }

    /// Lets a replica reach addresses that one of its names was answered with; false when it may not reach that many.
    pub(crate) async fn learn(&self, client: &Client, addresses: &[Ipv4Addr], ports: &Ports, ttl: Duration) -> bool {
        let kept = ttl.clamp(LEARNED_FLOOR, LEARNED_CEILING);
        let mut learned = client.learned.lock().await;
        let now = Instant::now();
        learned.retain(|_, until| *until > now);
        let (any, ports) = match ports {
            Ports::All => (true, &[0][..]),
            Ports::These(ports) => (false, ports.as_slice()),
        };
        let wanted = addresses.iter().flat_map(|address| ports.iter().map(move |port| (*address, *port)));
        let news: Vec<_> = wanted.filter(|key| learned.get(key).is_none_or(|until| *until < now + kept)).collect();
        if news.is_empty() {
            return true;
        }
        let added = news.iter().filter(|key| !learned.contains_key(key)).count();
        if learned.len() + added > LEARNED_MAX {
            tracing::debug!(id = %client.id, "a limited replica asks for names of too many addresses");
            return false;
        }
        // twice as long, so that an answer which is asked for again and again costs one run of `nft` in that time
        let text = learning(&self.layout, client.id, &news, any, kept * 2);
        if let Err(error) = nft::apply(&text).await {
            tracing::debug!(id = %client.id, %error, "an address of a name could not be opened");
            return false;
        }
        learned.extend(news.into_iter().map(|key| (key, now + kept * 2)));
        true
    }
}

impl Client {
    /// At which ports the addresses of a name may be reached; `None`: it is none of its names.
    pub(crate) fn ports_of(&self, name: &str) -> Option<Ports> {
        let mut rules = self.rules.iter().filter(|rule| rule.host.covers_name(name)).peekable();
        rules.peek()?;
        let mut ports = Vec::new();
        for rule in rules {
            if rule.ports.is_empty() {
                return Some(Ports::All);
            }
            ports.extend(&rule.ports);
        }
        ports.sort_unstable();
        ports.dedup();
        Some(Ports::These(ports))
    }

    /// Whether a name may lead to this address: one of the internet, or one that a range names.
    pub(crate) fn may_hear_of(&self, address: Ipv4Addr) -> bool {
        let is_named = |rule: &EgressRule| range(&rule.host).is_some_and(|net| net.contains(&address));
        if is_internet(address) {
            return true;
        }
        self.rules.iter().filter(|rule| range(&rule.host).is_some_and(is_within_no_internet)).any(is_named)
    }
}

fn range(host: &EgressHost) -> Option<Ipv4Net> {
    match host {
        EgressHost::Range { address, prefix } => Ipv4Net::new(*address, *prefix).ok(),
        EgressHost::Name(_) | EgressHost::Below(_) => None,
    }
}

fn no_internet() -> impl Iterator<Item = Ipv4Net> {
    NO_INTERNET.split(',').filter_map(|net| net.trim().parse().ok())
}

/// The address is none of this machine's surroundings.
pub(crate) fn is_internet(address: Ipv4Addr) -> bool {
    no_internet().all(|net| !net.contains(&address))
}

/// Whoever writes such a range means what is no internet.
pub(crate) fn is_within_no_internet(range: Ipv4Net) -> bool {
    no_internet().any(|net| net.contains(&range))
}

/// The names of a namespace's chain and sets begin with this.
fn stem(id: NetnsId) -> String {
    format!("s{:04x}{:08x}", id.host, id.nonce)
}

/// What marks its connections; never 0, which connections of others have.
fn mark(id: NetnsId) -> u32 {
    id.nonce | 1
}

/// Makes the chain and the sets of a namespace, and has packets of its address go there.
fn setting(layout: &Layout, id: NetnsId, rules: &[EgressRule]) -> String {
    let (table, stem, mark) = (nft::table(&layout.name), stem(id), mark(id));
    let address = layout.address(id.host);
    let take = format!("ct mark set {mark:#x} accept");
    let mut text = String::new();
    let _ = write!(
        text,
        "add chain {table} {stem}\n\
         flush chain {table} {stem}\n\
         add set {table} {stem}_any {{ type ipv4_addr; flags timeout; size {LEARNED_MAX}; }}\n\
         add set {table} {stem}_port {{ type ipv4_addr . inet_service; flags timeout; size {LEARNED_MAX}; }}\n\
         add rule {table} {stem} ct state established ct mark {mark:#x} accept\n"
    );
    let ranges = |is_named: bool| {
        let of_kind = move |(net, _): &(Ipv4Net, &EgressRule)| is_within_no_internet(*net) == is_named;
        rules.iter().filter_map(|rule| Some((range(&rule.host)?, rule))).filter(of_kind)
    };
    let add_ranges = |text: &mut String, is_named| {
        for (net, rule) in ranges(is_named) {
            let ports = if rule.ports.is_empty() {
                String::new()
            } else {
                let ports: Vec<_> = rule.ports.iter().map(u16::to_string).collect();
                format!("th dport {{ {} }} ", ports.join(", "))
            };
            let _ = writeln!(text, "add rule {table} {stem} meta l4proto {{ tcp, udp }} ip daddr {net} {ports}{take}");
        }
    };
    add_ranges(&mut text, true);
    let _ = writeln!(text, "add rule {table} {stem} ip daddr {{ {NO_INTERNET} }} {REJECT}");
    add_ranges(&mut text, false);
    let _ = write!(
        text,
        "add rule {table} {stem} meta l4proto {{ tcp, udp }} ip daddr @{stem}_any {take}\n\
         add rule {table} {stem} meta l4proto {{ tcp, udp }} ip daddr . th dport @{stem}_port {take}\n\
         add rule {table} {stem} {REJECT}\n\
         add element {table} {LIMITED} {{ {address} : jump {stem} }}\n"
    );
    text
}

/// Puts addresses into a namespace's sets, or makes them stay longer.
fn learning(layout: &Layout, id: NetnsId, keys: &[(Ipv4Addr, u16)], any: bool, kept: Duration) -> String {
    let (table, stem, kept) = (nft::table(&layout.name), stem(id), kept.as_secs());
    let set = if any { format!("{stem}_any") } else { format!("{stem}_port") };
    let key = |(address, port): &(Ipv4Addr, u16)| {
        if any { address.to_string() } else { format!("{address} . {port}") }
    };
    let plain: Vec<_> = keys.iter().map(key).collect();
    let timed: Vec<_> = plain.iter().map(|key| format!("{key} timeout {kept}s")).collect();
    let (plain, timed) = (plain.join(", "), timed.join(", "));
    // the time of one that is there is not changed by adding it again
    format!(
        "add element {table} {set} {{ {timed} }}\ndelete element {table} {set} {{ {plain} }}\nadd element {table} {set} {{ {timed} }}\n"
    )
}

/// Removes what a namespace that is gone had, also when that is nothing.
fn removing(layout: &Layout, id: NetnsId) -> String {
    let (table, stem, address) = (nft::table(&layout.name), stem(id), layout.address(id.host));
    format!(
        "add chain {table} {stem}\n\
         add set {table} {stem}_any {{ type ipv4_addr; flags timeout; size {LEARNED_MAX}; }}\n\
         add set {table} {stem}_port {{ type ipv4_addr . inet_service; flags timeout; size {LEARNED_MAX}; }}\n\
         add element {table} {LIMITED} {{ {address} : jump {stem} }}\n\
         delete element {table} {LIMITED} {{ {address} }}\n\
         flush chain {table} {stem}\n\
         delete chain {table} {stem}\n\
         delete set {table} {stem}_any\n\
         delete set {table} {stem}_port\n"
    )
}

/// Removes the chain and the sets of a namespace that is gone; its host number is still taken.
pub(crate) fn remove(kernel: &Kernel, layout: &Layout, id: NetnsId) {
    let text = removing(layout, id);
    match kernel.wait_io(async { Ok(nft::apply(&text).await) }) {
        Ok(Ok(())) => {}
        // without them it reaches nothing; the next open begins with a fresh table
        Ok(Err(error)) => tracing::debug!(%id, %error, "failed to remove the rules of a replica"),
        Err(error) => tracing::debug!(%id, %error, "failed to run nft"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect;

    use super::*;

    fn rule(host: &str, ports: &[u16]) -> EgressRule {
        EgressRule { host: EgressHost::new(host).unwrap(), ports: ports.to_vec() }
    }

    fn client(rules: Vec<EgressRule>) -> Client {
        Client { id: NetnsId { host: 3840, nonce: 0xbeef }, rules, learned: tokio::sync::Mutex::default() }
    }

    #[test]
    fn private_ranges_need_a_rule_that_lies_within_them() {
        let layout = Layout::new("3fa90c", "10.70.16.0/20".parse().unwrap(), Path::new("/run/cove"));
        let rules = [rule("0.0.0.0/0", &[443]), rule("10.1.0.0/16", &[]), rule("pypi.org", &[])];
        expect![[r#"
            add chain inet cove_3fa90c s0f000000beee
            flush chain inet cove_3fa90c s0f000000beee
            add set inet cove_3fa90c s0f000000beee_any { type ipv4_addr; flags timeout; size 256; }
            add set inet cove_3fa90c s0f000000beee_port { type ipv4_addr . inet_service; flags timeout; size 256; }
            add rule inet cove_3fa90c s0f000000beee ct state established ct mark 0xbeef accept
            add rule inet cove_3fa90c s0f000000beee meta l4proto { tcp, udp } ip daddr 10.1.0.0/16 ct mark set 0xbeef accept
            add rule inet cove_3fa90c s0f000000beee ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3 } reject with icmpx type admin-prohibited
            add rule inet cove_3fa90c s0f000000beee meta l4proto { tcp, udp } ip daddr 0.0.0.0/0 th dport { 443 } ct mark set 0xbeef accept
            add rule inet cove_3fa90c s0f000000beee meta l4proto { tcp, udp } ip daddr @s0f000000beee_any ct mark set 0xbeef accept
            add rule inet cove_3fa90c s0f000000beee meta l4proto { tcp, udp } ip daddr . th dport @s0f000000beee_port ct mark set 0xbeef accept
            add rule inet cove_3fa90c s0f000000beee reject with icmpx type admin-prohibited
            add element inet cove_3fa90c limited { 10.70.31.0 : jump s0f000000beee }
        "#]]
        .assert_eq(&setting(&layout, NetnsId { host: 3840, nonce: 0xbeee }, &rules));
    }

    #[test]
    fn a_name_leads_to_the_internet_or_to_what_a_range_names() {
        let all = client(vec![rule("0.0.0.0/0", &[]), rule("10.1.0.0/16", &[443])]);
        for (address, may) in [
            ([93, 184, 215, 14], true),
            ([10, 1, 2, 3], true),
            ([10, 2, 2, 3], false),
            ([169, 254, 169, 254], false),
            ([168, 63, 129, 16], false),
            ([168, 63, 129, 17], true),
            ([127, 0, 0, 1], false),
            ([100, 64, 0, 1], false),
            ([0, 0, 0, 0], false),
            ([255, 255, 255, 255], false),
        ] {
            assert_eq!(all.may_hear_of(address.into()), may, "{address:?}");
        }
    }

    #[test]
    fn rules_of_one_name_add_up() {
        let own =
            client(vec![rule("a.org", &[443]), rule("*.org", &[80, 443]), rule("b.org", &[]), rule("1.2.3.4", &[])]);
        assert_eq!(own.ports_of("a.org"), Some(Ports::These(vec![80, 443])));
        assert_eq!(own.ports_of("b.org"), Some(Ports::All));
        assert_eq!(own.ports_of("c.org"), Some(Ports::These(vec![80, 443])));
        assert_eq!(own.ports_of("org"), None);
        assert_eq!(own.ports_of("1.2.3.4"), None);
    }
}
