//! Names and numbers of one network: which interface, address, MAC and path belong to which replica.
//!
//! Everything about a namespace follows from its id, so the kernel's own state is enough after a restart:
//! the file name gives the id, the id gives host number, address, MAC and veth name.
//!
//! **Invariant:** pure; nothing here asks the kernel.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::error::NetworkError;

/// First two bytes of every MAC we give out (locally administered); the other four are the IPv4 address.
pub const MAC_PREFIX: [u8; 2] = [0x02, 0xc0];

/// Interface name of a replica inside its namespace.
pub(crate) const INSIDE: &str = "eth0";

/// Host number of the gateway, the first address.
pub(crate) const GATEWAY_HOST: u16 = 1;

/// A hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The MAC that belongs to `address`.
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([MAC_PREFIX[0], MAC_PREFIX[1], a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Name of one namespace: host number in the subnet, and a random part so that an id is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NetnsId {
    /// Host number within the subnet, 2 or more.
    pub(crate) host: u16,
    pub(crate) nonce: u32,
}

impl fmt::Display for NetnsId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}-{:08x}", self.host, self.nonce)
    }
}

/// The text is not the id of a network namespace.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a network namespace id like `001a-5f0c9e21`")]
pub struct ParseNetnsIdError(String);

impl FromStr for NetnsId {
    type Err = ParseNetnsIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (host, nonce) = text.split_once('-')?;
            let id = Self { host: u16::from_str_radix(host, 16).ok()?, nonce: u32::from_str_radix(nonce, 16).ok()? };
            (id.to_string() == text && id.host > GATEWAY_HOST).then_some(id)
        };
        parse().ok_or_else(|| ParseNetnsIdError(text.to_owned()))
    }
}

impl TryFrom<String> for NetnsId {
    type Error = ParseNetnsIdError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NetnsId> for String {
    fn from(id: NetnsId) -> Self {
        id.to_string()
    }
}

/// What the replica of a namespace may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetnsClass {
    /// The gateway's open ports, names of its environment, and everything outside.
    App,
    /// The internet and a resolver that knows of the internet only: never this machine, its neighbours, link-local or
    /// private addresses.
    Confined,
    /// What its own rules name, and nothing else; nothing at all while it has none. See `Network::acquire_limited`.
    Limited,
}

/// A ready network namespace; whoever holds the id gives it back with `Network::release`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetnsLease {
    /// Name of the namespace; remember it with the replica to adopt it after a restart.
    pub id: NetnsId,
    /// Where the namespace is bind-mounted; open it for `setns`, or put it into the OCI config.
    pub path: PathBuf,
    /// Address of `eth0` inside.
    pub address: Ipv4Addr,
    /// Hardware address of `eth0` inside.
    pub mac: Mac,
    /// Address of the host on the bridge: default route, DNS server, ingress.
    pub gateway: Ipv4Addr,
}

/// All names of one network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// 1 to 8 characters of a-z and 0-9, unique on the machine.
    pub(crate) name: String,
    pub(crate) subnet: Ipv4Net,
    /// Folder of this network's namespaces.
    pub(crate) netns_dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(name: &str, subnet: Ipv4Net, run_dir: &Path) -> Self {
        Self { name: name.to_owned(), subnet, netns_dir: netns_dir(run_dir, name) }
    }

    pub(crate) fn bridge(&self) -> String {
        bridge_name(&self.name)
    }

    /// Address of host number `host`.
    pub(crate) fn address(&self, host: u16) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.subnet.network()) + u32::from(host))
    }

    pub(crate) fn gateway(&self) -> Ipv4Addr {
        self.address(GATEWAY_HOST)
    }

    /// The last quarter of the subnet: whoever has an address in it is confined.
    ///
    /// An address decides, so the packet filter needs no change for a replica and knows of all after a restart.
    pub(crate) fn confined(&self) -> Ipv4Net {
        confined(self.subnet)
    }

    /// The last quarter of those: whoever has an address in it is limited.
    pub(crate) fn limited(&self) -> Ipv4Net {
        limited(self.subnet)
    }

    /// First and last host number of a class.
    pub(crate) fn hosts(&self, class: NetnsClass) -> (u16, u16) {
        let network = u32::from(self.subnet.network());
        let first = |net: Ipv4Net| u16::try_from(u32::from(net.network()) - network).unwrap_or(u16::MAX);
        let (confined, limited) = (first(self.confined()), first(self.limited()));
        match class {
            NetnsClass::App => (GATEWAY_HOST + 1, confined - 1),
            NetnsClass::Confined => (confined, limited - 1),
            NetnsClass::Limited => (limited, self.host_last()),
        }
    }

    /// Host end of the veth pair of host number `host`: at most 13 characters.
    pub(crate) fn veth(&self, host: u16) -> String {
        format!("{}{host:04x}", veth_prefix(&self.name))
    }

    pub(crate) fn path(&self, id: NetnsId) -> PathBuf {
        self.netns_dir.join(id.to_string())
    }

    pub(crate) fn lease(&self, id: NetnsId) -> NetnsLease {
        let address = self.address(id.host);
        NetnsLease { id, path: self.path(id), address, mac: Mac::of(address), gateway: self.gateway() }
    }

    /// Last host number; the one after it is the broadcast address.
    pub(crate) fn host_last(&self) -> u16 {
        let hosts = u32::from(self.subnet.broadcast()) - u32::from(self.subnet.network()) - 1;
        u16::try_from(hosts).unwrap_or(u16::MAX)
    }
}

/// The last quarter of a subnet: all that is confined, limited or not.
pub(crate) fn confined(subnet: Ipv4Net) -> Ipv4Net {
    last_part(subnet, 2)
}

/// The last sixteenth of a subnet.
pub(crate) fn limited(subnet: Ipv4Net) -> Ipv4Net {
    last_part(subnet, 4)
}

/// What the replica of an address may reach.
pub(crate) fn class_of(subnet: Ipv4Net, address: Ipv4Addr) -> NetnsClass {
    match (limited(subnet).contains(&address), confined(subnet).contains(&address)) {
        (true, _) => NetnsClass::Limited,
        (false, true) => NetnsClass::Confined,
        (false, false) => NetnsClass::App,
    }
}

fn last_part(subnet: Ipv4Net, bits: u8) -> Ipv4Net {
    let prefix = (subnet.prefix_len() + bits).min(32);
    Ipv4Net::new(subnet.broadcast(), prefix).map_or(subnet, |net| net.trunc())
}

/// Bridge of the network `name`: at most 10 characters.
pub(crate) fn bridge_name(name: &str) -> String {
    format!("cv{name}")
}

/// What the host ends of all veth pairs of the network `name` begin with; four hexadecimal digits follow.
pub(crate) fn veth_prefix(name: &str) -> String {
    format!("v{name}")
}

pub(crate) fn netns_dir(run_dir: &Path, name: &str) -> PathBuf {
    run_dir.join(name).join("netns")
}

pub(crate) fn check_name(name: &str) -> Result<(), NetworkError> {
    let fits = (1..=8).contains(&name.len());
    if fits && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()) {
        return Ok(());
    }
    Err(NetworkError::InvalidName { name: name.to_owned() })
}

pub(crate) fn check_subnet(subnet: Ipv4Net) -> Result<Ipv4Net, NetworkError> {
    if (16..=26).contains(&subnet.prefix_len()) && subnet.network().is_private() && subnet.broadcast().is_private() {
        return Ok(subnet.trunc());
    }
    Err(NetworkError::InvalidSubnet { subnet })
}

/// Returns a free /20: `start` (any number) spreads networks apart, `taken` are ranges the machine already uses.
pub(crate) fn choose_subnet(start: u32, taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    let ranges =
        [Ipv4Net::new_assert(Ipv4Addr::new(10, 64, 0, 0), 10), Ipv4Net::new_assert(Ipv4Addr::new(172, 16, 0, 0), 12)];
    ranges.into_iter().find_map(|range| {
        let count = 1_u32 << (20 - range.prefix_len());
        (0..count).find_map(|step| {
            let number = start.wrapping_add(step) % count;
            let network = Ipv4Addr::from(u32::from(range.network()) + (number << 12));
            let candidate = Ipv4Net::new(network, 20).ok()?;
            (!taken.iter().any(|used| overlap(*used, candidate))).then_some(candidate)
        })
    })
}

pub(crate) fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn names_follow_from_the_id() {
        let layout = Layout::new("a1b2c3d4", net("10.70.16.0/20"), Path::new("/run/cove"));
        let id: NetnsId = "0102-0000beef".parse().unwrap();
        let lease = layout.lease(id);
        assert_eq!(lease.address, Ipv4Addr::new(10, 70, 17, 2));
        assert_eq!(lease.gateway, Ipv4Addr::new(10, 70, 16, 1));
        assert_eq!(lease.mac.to_string(), "02:c0:0a:46:11:02");
        assert_eq!(lease.path, Path::new("/run/cove/a1b2c3d4/netns/0102-0000beef"));
        assert_eq!(layout.veth(id.host), "va1b2c3d40102");
        assert!(layout.veth(u16::MAX).len() <= 15 && layout.bridge().len() <= 15);
        assert_eq!(layout.host_last(), 4094);
        assert_eq!(layout.confined(), net("10.70.28.0/22"));
        assert_eq!(layout.hosts(NetnsClass::App), (2, 3071));
        assert_eq!(layout.hosts(NetnsClass::Confined), (3072, 3839));
        assert_eq!(layout.hosts(NetnsClass::Limited), (3840, 4094));
    }

    #[test]
    fn ids_round_trip_and_refuse_everything_else() {
        for bad in ["", "1-2", "0001-00000000", "0102-0000BEEF", "../x-00000000", "0102-0000beef0"] {
            assert!(bad.parse::<NetnsId>().is_err(), "{bad}");
        }
        let id = NetnsId { host: 2, nonce: u32::MAX };
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!(serde_json::to_string(&id).unwrap(), "\"0002-ffffffff\"");
    }

    #[test]
    fn a_subnet_is_chosen_beside_what_is_taken() {
        assert_eq!(choose_subnet(0, &[]), Some(net("10.64.0.0/20")));
        assert_eq!(choose_subnet(0, &[net("10.64.0.5/32"), net("10.64.16.0/22")]), Some(net("10.64.32.0/20")));
        assert_eq!(choose_subnet(1024 + 3, &[net("10.64.32.0/20")]), Some(net("10.64.48.0/20")));
        assert_eq!(choose_subnet(1, &[net("10.0.0.0/8")]), Some(net("172.16.16.0/20")));
        assert_eq!(choose_subnet(1, &[net("10.0.0.0/8"), net("172.16.0.0/12")]), None);
    }

    #[test]
    fn bad_names_and_subnets_are_refused() {
        for bad in ["", "ABC", "a-b", "a b", "123456789", "é"] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
        assert!(check_name("3fa90c").is_ok());
        for bad in ["8.8.0.0/20", "10.0.0.0/8", "10.0.0.0/30", "172.31.0.0/15"] {
            assert!(check_subnet(net(bad)).is_err(), "{bad}");
        }
        assert_eq!(check_subnet(net("192.168.7.9/24")).unwrap(), net("192.168.7.0/24"));
    }
}
