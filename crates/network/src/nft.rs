//! The packet filter of one network: one table, installed in one atomic `nft` run.
//!
//! It masquerades what replicas send outside, keeps others from reaching replicas through this machine as a router,
//! and leaves replicas nothing of this machine but the named ports of the gateway address.
//!
//! **Invariant:** the table `cove_<name>` is the only one touched.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::layout::Layout;

/// Longest run of `nft`.
const RUN_TIMEOUT: Duration = Duration::from_secs(10);

/// Answers of the link-local range are credentials of the machine itself on every cloud; Azure's host of the machine answers at
/// one more address, which looks like the internet.
const METADATA: &str = "169.254.0.0/16, 168.63.129.16/32";

/// What is no internet: this network, private ranges (RFC 1918), shared (CGNAT), loopback, Azure's host of the machine, link-local,
/// protocol assignments, benchmarks, multicast, reserved and broadcast.
pub(crate) const NO_INTERNET: &str = "0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16, \
    172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3";

/// The map from addresses of limited replicas to the chains of their rules.
pub(crate) const LIMITED: &str = "limited";

/// Says no at once, so that nobody waits for what will not come.
pub(crate) const REJECT: &str = "reject with icmpx type admin-prohibited";

/// Connections that one confined or limited replica may have at a time.
///
/// The kernel tracks the connections of the whole machine in one table, and drops what it has no place for, whoever sends it.
/// Connections that ended and are remembered for a while do not count: the kernel gives their places away when it needs them.
pub(crate) const CONNECTIONS_MAX: u32 = 2048;

/// New connections of one such replica in a second, after [`CONNECTIONS_MAX`] at once: bounds what ended ones leave behind, and the
/// work of counting.
pub(crate) const CONNECTIONS_PER_SECOND: u32 = 500;

/// Addresses that are counted at most: those of the confined part of the largest subnet, so that none goes uncounted.
const COUNTED_MAX: u32 = 1 << 14;

/// Whether the connections of confined and limited replicas are counted; without it they must not be let out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Counting {
    On,
    /// For kernels that cannot: everybody else still gets a network.
    Off,
}

/// Why the rules could not be installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NftError {
    #[error("the program `nft` was not found; install the package `nftables`")]
    Missing,
    #[error("failed to run `nft`")]
    Run(#[from] io::Error),
    #[error("`nft` refused the rules: {0}; the kernel needs nf_tables with NAT and connection tracking")]
    Refused(String),
}

pub(crate) fn table(name: &str) -> String {
    format!("inet cove_{name}")
}

/// Replaces the table of `layout`; `ports` of the gateway stay open to replicas (TCP), with 53 (UDP and TCP).
///
/// What is counted is the first packet of a connection, which the kernel has not confirmed yet: a refused one leaves no trace.
pub(crate) fn ruleset(layout: &Layout, ports: &[u16], counting: Counting) -> String {
    let Layout { name, subnet, .. } = layout;
    let (table, bridge, gateway) = (table(name), layout.bridge(), layout.gateway());
    let (open, confined, limited) = (open(ports), layout.confined(), layout.limited());
    let counted = counted(layout, counting);
    let is_first = "ct state new ct status & confirmed == 0";
    let mut text = removal(name);
    let _ = write!(
        text,
        r#"table {table} {{
  set open_tcp {{
    type inet_service
    elements = {{ {open} }}
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr {subnet} oifname != "{bridge}" masquerade
  }}
  map {LIMITED} {{
    type ipv4_addr : verdict
  }}
{counted}  chain limits {{
    ip saddr vmap @{LIMITED}
    {REJECT}
  }}
  chain forward {{
    type filter hook forward priority 0; policy accept;
    iifname "{bridge}" oifname "{bridge}" drop
    iifname "{bridge}" ip saddr != {subnet} drop
    iifname "{bridge}" ip saddr {confined} {is_first} jump counted
    iifname "{bridge}" ip saddr {limited} goto limits
    iifname "{bridge}" ip daddr {{ {METADATA} }} drop
    iifname "{bridge}" meta nfproto ipv6 drop
    iifname "{bridge}" ip saddr {confined} ip daddr {{ {NO_INTERNET} }} drop
    oifname "{bridge}" ct state established,related accept
    oifname "{bridge}" drop
  }}
  chain input {{
    type filter hook input priority 0; policy accept;
    iifname != "{bridge}" return
    ip saddr {confined} {is_first} jump counted
    ip saddr {confined} ip daddr {gateway} udp dport 53 accept
    ip saddr {confined} ip daddr {gateway} tcp dport 53 accept
    ip saddr {confined} drop
    ct state established,related accept
    ip saddr {subnet} ip daddr {gateway} udp dport 53 accept
    ip saddr {subnet} ip daddr {gateway} tcp dport @open_tcp accept
    ip saddr {subnet} ip daddr {gateway} icmp type echo-request accept
    drop
  }}
}}
"#
    );
    text
}

/// What counts the connections of confined and limited replicas.
///
/// Their questions to the resolver are short and many, so those are not tracked at all.
fn counted(layout: &Layout, counting: Counting) -> String {
    let (bridge, gateway, confined) = (layout.bridge(), layout.gateway(), layout.confined());
    let count = match counting {
        Counting::On => format!("add @connections {{ ip saddr ct count over {CONNECTIONS_MAX} }} {REJECT}"),
        Counting::Off => REJECT.to_owned(),
    };
    format!(
        r#"  set rates {{
    type ipv4_addr
    flags dynamic, timeout
    timeout 1m
    size {COUNTED_MAX}
  }}
  set connections {{
    type ipv4_addr
    flags dynamic
    size {COUNTED_MAX}
  }}
  chain counted {{
    update @rates {{ ip saddr limit rate over {CONNECTIONS_PER_SECOND}/second burst {CONNECTIONS_MAX} packets }} {REJECT}
    {count}
  }}
  chain questions {{
    type filter hook prerouting priority -300; policy accept;
    iifname "{bridge}" ip saddr {confined} ip daddr {gateway} udp dport 53 notrack
  }}
  chain answers {{
    type filter hook output priority -300; policy accept;
    oifname "{bridge}" ip daddr {confined} ip saddr {gateway} udp sport 53 notrack
  }}
"#
    )
}

/// The elements of the set of open ports: the named ones and DNS.
fn open(ports: &[u16]) -> String {
    let mut open: Vec<u16> = ports.iter().copied().chain([53]).collect();
    open.sort_unstable();
    open.dedup();
    open.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// Changes the open ports of the network `name`, nothing else.
pub(crate) fn reopening(name: &str, ports: &[u16]) -> String {
    let table = table(name);
    format!("flush set {table} open_tcp\nadd element {table} open_tcp {{ {} }}\n", open(ports))
}

/// Removes the table of the network `name`, also when there is none.
pub(crate) fn removal(name: &str) -> String {
    let table = table(name);
    format!("add table {table}\ndelete table {table}\n")
}

/// Runs `nft -f -` with `script`, all or nothing.
pub(crate) async fn apply(script: &str) -> Result<(), NftError> {
    let output = run(&["-f", "-"], script).await?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(NftError::Refused(text.lines().next().unwrap_or("no reason given").trim().to_owned()))
}

/// True when the forward chain that `iptables` manages drops by default and does not know us.
///
/// A packet must pass every table, so an `accept` of ours does not help then. Its rules are not ours to change.
pub(crate) async fn forward_is_closed() -> bool {
    match run(&["list", "chain", "ip", "filter", "FORWARD"], "").await {
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout);
            text.contains("policy drop") && !text.contains("iifname \"cv")
        }
        Err(_no_nft) => false,
    }
}

async fn run(arguments: &[&str], input: &str) -> Result<std::process::Output, NftError> {
    let program = find().ok_or(NftError::Missing)?;
    let run = async {
        let mut child = tokio::process::Command::new(program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    Ok(tokio::time::timeout(RUN_TIMEOUT, run).await.map_err(io::Error::from)??)
}

/// Where `nft` is: in `PATH`, or where distributions put programs of the administrator.
pub(crate) fn find() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    places.map(|folder| folder.join("nft")).find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use expect_test::expect;

    use super::*;

    fn layout() -> Layout {
        Layout::new("3fa90c", "10.70.16.0/20".parse().unwrap(), Path::new("/run/cove"))
    }

    #[test]
    fn the_rules_leave_replicas_only_the_named_ports() {
        expect![[r#"
            add table inet cove_3fa90c
            delete table inet cove_3fa90c
            table inet cove_3fa90c {
              set open_tcp {
                type inet_service
                elements = { 53, 80, 443 }
              }
              chain postrouting {
                type nat hook postrouting priority 100; policy accept;
                ip saddr 10.70.16.0/20 oifname != "cv3fa90c" masquerade
              }
              map limited {
                type ipv4_addr : verdict
              }
              set rates {
                type ipv4_addr
                flags dynamic, timeout
                timeout 1m
                size 16384
              }
              set connections {
                type ipv4_addr
                flags dynamic
                size 16384
              }
              chain counted {
                update @rates { ip saddr limit rate over 500/second burst 2048 packets } reject with icmpx type admin-prohibited
                add @connections { ip saddr ct count over 2048 } reject with icmpx type admin-prohibited
              }
              chain questions {
                type filter hook prerouting priority -300; policy accept;
                iifname "cv3fa90c" ip saddr 10.70.28.0/22 ip daddr 10.70.16.1 udp dport 53 notrack
              }
              chain answers {
                type filter hook output priority -300; policy accept;
                oifname "cv3fa90c" ip daddr 10.70.28.0/22 ip saddr 10.70.16.1 udp sport 53 notrack
              }
              chain limits {
                ip saddr vmap @limited
                reject with icmpx type admin-prohibited
              }
              chain forward {
                type filter hook forward priority 0; policy accept;
                iifname "cv3fa90c" oifname "cv3fa90c" drop
                iifname "cv3fa90c" ip saddr != 10.70.16.0/20 drop
                iifname "cv3fa90c" ip saddr 10.70.28.0/22 ct state new ct status & confirmed == 0 jump counted
                iifname "cv3fa90c" ip saddr 10.70.31.0/24 goto limits
                iifname "cv3fa90c" ip daddr { 169.254.0.0/16, 168.63.129.16/32 } drop
                iifname "cv3fa90c" meta nfproto ipv6 drop
                iifname "cv3fa90c" ip saddr 10.70.28.0/22 ip daddr { 0.0.0.0/8, 10.0.0.0/8, 100.64.0.0/10, 127.0.0.0/8, 168.63.129.16/32, 169.254.0.0/16, 172.16.0.0/12, 192.0.0.0/24, 192.168.0.0/16, 198.18.0.0/15, 224.0.0.0/3 } drop
                oifname "cv3fa90c" ct state established,related accept
                oifname "cv3fa90c" drop
              }
              chain input {
                type filter hook input priority 0; policy accept;
                iifname != "cv3fa90c" return
                ip saddr 10.70.28.0/22 ct state new ct status & confirmed == 0 jump counted
                ip saddr 10.70.28.0/22 ip daddr 10.70.16.1 udp dport 53 accept
                ip saddr 10.70.28.0/22 ip daddr 10.70.16.1 tcp dport 53 accept
                ip saddr 10.70.28.0/22 drop
                ct state established,related accept
                ip saddr 10.70.16.0/20 ip daddr 10.70.16.1 udp dport 53 accept
                ip saddr 10.70.16.0/20 ip daddr 10.70.16.1 tcp dport @open_tcp accept
                ip saddr 10.70.16.0/20 ip daddr 10.70.16.1 icmp type echo-request accept
                drop
              }
            }
        "#]]
        .assert_eq(&ruleset(&layout(), &[443, 80, 53], Counting::On));
    }
}
