//! Tries out what replica networking needs of this machine, for `cove doctor`.
//!
//! Every part is tried for real in a network namespace of a throw-away thread, not guessed from version numbers.
//!
//! **Invariant:** leaves nothing behind and changes nothing of the host.

use std::fs;
use std::io;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rtnetlink::{LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkVeth};

use crate::error::NetworkError;
use crate::kernel::Kernel;
use crate::layout::Layout;
use crate::nft;

/// Answer about one need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    /// What was tried, a few words.
    pub name: &'static str,
    /// Whether it works.
    pub ok: bool,
    /// What was found.
    pub detail: String,
    /// What to do about it; empty when it works.
    pub remedy: &'static str,
}

/// Tries everything; blocks for a moment.
pub fn probe() -> Vec<Probe> {
    let tried =
        thread::Builder::new().name("cove-net-probe".to_owned()).spawn(in_scratch).map(thread::JoinHandle::join);
    let mut probes = vec![capabilities()];
    match tried {
        Ok(Ok(tried)) => probes.extend(tried),
        Ok(Err(_panic)) => probes.push(Probe::failed("network namespaces", "the probe ended early", "report this")),
        Err(error) => probes.push(Probe::failed("network namespaces", &error.to_string(), "allow more threads")),
    }
    probes.push(forwarding());
    probes
}

impl Probe {
    fn passed(name: &'static str, detail: impl Into<String>) -> Self {
        Self { name, ok: true, detail: detail.into(), remedy: "" }
    }

    fn failed(name: &'static str, detail: &str, remedy: &'static str) -> Self {
        Self { name, ok: false, detail: detail.to_owned(), remedy }
    }

    fn of(name: &'static str, result: Result<(), String>, remedy: &'static str) -> Self {
        match result {
            Ok(()) => Self::passed(name, "works"),
            Err(detail) => Self::failed(name, &detail, remedy),
        }
    }
}

/// CAP_NET_ADMIN and CAP_SYS_ADMIN, by bit number in the effective set.
fn capabilities() -> Probe {
    const NEEDED: [(u32, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    let name = "privileges";
    let status = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> = NEEDED.iter().filter(|(bit, _)| effective >> bit & 1 == 0).map(|(_, name)| *name).collect();
    if missing.is_empty() {
        Probe::passed(name, "CAP_NET_ADMIN and CAP_SYS_ADMIN are there")
    } else {
        Probe::failed(name, &format!("{} missing", missing.join(" and ")), "run the server as root")
    }
}

/// The parts that can be tried in a namespace of their own.
fn in_scratch() -> Vec<Probe> {
    let kernel_part = "use a kernel with CONFIG_NET_NS, CONFIG_VETH and CONFIG_BRIDGE, as distributions ship";
    let namespace = unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string());
    let mut probes = vec![Probe::of("network namespaces", namespace, "run as root on a kernel with CONFIG_NET_NS")];
    if !probes[0].ok {
        return probes;
    }
    let kernel = match Kernel::new() {
        Ok(kernel) => kernel,
        Err(error) => {
            probes.push(Probe::of("netlink", Err(explain(&error)), kernel_part));
            return probes;
        }
    };
    let bridge = LinkMessageBuilder::<LinkBridge>::new("probe0").build();
    let bridge = kernel.wait("create a bridge", kernel.handle().link().add(bridge).execute());
    probes.push(Probe::of("bridge", bridge.map_err(|error| explain(&error)), kernel_part));
    let pair = LinkVeth::new("probe1", "probe2").build();
    let pair = kernel.wait("create a veth pair", kernel.handle().link().add(pair).execute());
    probes.push(Probe::of("veth", pair.map_err(|error| explain(&error)), kernel_part));
    probes.push(Probe::of("isolated bridge ports", isolate(&kernel), "use Linux 4.18 or later"));
    let install =
        "install the package `nftables` and use a kernel with nf_tables, NAT, connection tracking and nf_conncount";
    probes.push(Probe::of("nftables", rules(&kernel), install));
    probes
}

fn isolate(kernel: &Kernel) -> Result<(), String> {
    let find = |name: &str| match kernel.link(name) {
        Ok(Some(link)) => Ok(link.index),
        Ok(None) => Err("needs bridge and veth".to_owned()),
        Err(error) => Err(explain(&error)),
    };
    let (bridge, port) = (find("probe0")?, find("probe1")?);
    let set = async {
        let join = rtnetlink::LinkUnspec::new_with_index(port).controller(bridge).build();
        kernel.handle().link().change(join).execute().await?;
        kernel.handle().link().set_port(LinkBridgePort::new(port).isolated(true).build()).execute().await
    };
    kernel.wait("isolate a bridge port", set).map_err(|error| explain(&error))
}

fn rules(kernel: &Kernel) -> Result<(), String> {
    let subnet = ipnet::Ipv4Net::new_assert(std::net::Ipv4Addr::new(10, 64, 0, 0), 20);
    let layout = Layout::new("probe", subnet, "/run/cove".as_ref());
    let applied: io::Result<_> =
        kernel.wait_io(async { Ok(nft::apply(&nft::ruleset(&layout, &[80], nft::Counting::On)).await) });
    applied.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

fn forwarding() -> Probe {
    let name = "IPv4 forwarding";
    let path = "/proc/sys/net/ipv4/ip_forward";
    match fs::read_to_string(path).map(|text| text.trim().to_owned()) {
        Ok(value) if value != "0" => Probe::passed(name, "is on"),
        Ok(_) if nix::unistd::access(path, nix::unistd::AccessFlags::W_OK).is_ok() => {
            Probe::passed(name, "is off; the server turns it on")
        }
        Ok(_) => Probe::failed(name, "is off and cannot be turned on", "run `sysctl -w net.ipv4.ip_forward=1`"),
        Err(error) => Probe::failed(name, &error.to_string(), "mount /proc with /proc/sys"),
    }
}

fn explain(error: &NetworkError) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |cause| format!("{error}: {cause}"))
}
