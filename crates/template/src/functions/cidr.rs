//! Networks in CIDR notation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::{Value, json};

use super::args::Args;
use crate::meter::Fault;

/// A network: addresses as numbers, so that both families count alike.
#[derive(Clone, Copy)]
struct Network {
    first: u128,
    prefix: u32,
    bits: u32,
}

impl Network {
    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.trim().split_once('/')?;
        let (number, bits) = match address.parse().ok()? {
            IpAddr::V4(v4) => (u128::from(v4.to_bits()), 32),
            IpAddr::V6(v6) => (v6.to_bits(), 128),
        };
        let prefix = prefix.parse().ok().filter(|prefix| *prefix <= bits)?;
        let network = Self { first: number, prefix, bits };
        Some(Self { first: number & !network.host_mask(), ..network })
    }

    fn host_mask(self) -> u128 {
        let host_bits = self.bits - self.prefix;
        if host_bits == 128 { u128::MAX } else { (1 << host_bits) - 1 }
    }

    fn last(self) -> u128 {
        self.first | self.host_mask()
    }

    fn show(self, number: u128) -> String {
        match u32::try_from(number) {
            Ok(number) if self.bits == 32 => Ipv4Addr::from_bits(number).to_string(),
            _ => Ipv6Addr::from_bits(number).to_string(),
        }
    }
}

fn network(args: &Args<'_, '_>) -> Result<Network, Fault> {
    Network::parse(args.text(0)?).ok_or_else(|| args.wrong(0, "a network as 10.0.0.0/16 or fd00::/48"))
}

pub(super) fn parse_cidr(args: Args<'_, '_>) -> Result<Value, Fault> {
    let network = network(&args)?;
    let all = if network.bits == 32 { u128::from(u32::MAX) } else { u128::MAX };
    // in networks of one or two addresses each can be used
    let inset = u128::from(network.bits == 32 && network.prefix < 31);
    let mut parsed = json!({
        "network": network.show(network.first),
        "netmask": network.show(all & !network.host_mask()),
        "firstUsable": network.show(network.first + inset),
        "lastUsable": network.show(network.last() - inset),
        "cidr": network.prefix,
    });
    if network.bits == 32 {
        parsed["broadcast"] = network.show(network.last()).into();
    }
    Ok(parsed)
}

pub(super) fn cidr_subnet(args: Args<'_, '_>) -> Result<Value, Fault> {
    let network = network(&args)?;
    let prefix =
        args.size(1, usize::try_from(network.prefix).unwrap_or(0), usize::try_from(network.bits).unwrap_or(0))?;
    let prefix = u32::try_from(prefix).unwrap_or(network.bits);
    let index = u128::try_from(args.integer(2)?).map_err(|_| args.wrong(2, "0 or more"))?;
    let more = prefix - network.prefix;
    if more < 128 && index >= 1 << more {
        return Err(
            args.fault(format!("the network has {} subnets of /{prefix}; index {index} is beyond", 1_u128 << more))
        );
    }
    let step = network.bits - prefix;
    let first = if step == 128 { network.first } else { network.first + (index << step) };
    Ok(format!("{}/{prefix}", network.show(first)).into())
}

pub(super) fn cidr_host(args: Args<'_, '_>) -> Result<Value, Fault> {
    let network = network(&args)?;
    let index = u128::try_from(args.integer(1)?).map_err(|_| args.wrong(1, "0 or more"))?;
    // index 0 is the first address that a host may have
    let inset = u128::from(network.bits == 32 && network.prefix < 31 || network.bits == 128 && network.prefix < 127);
    let number = network.first.checked_add(inset).and_then(|first| first.checked_add(index));
    let last = network.last() - u128::from(network.bits == 32 && network.prefix < 31);
    let number = number.filter(|number| *number <= last);
    let number = number.ok_or_else(|| args.fault(format!("the network has no host with index {index}")))?;
    Ok(network.show(number).into())
}
