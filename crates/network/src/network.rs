//! Opens a network: chooses and remembers its subnet, sets up bridge and packet filter, runs the pool.
//!
//! Opening is idempotent and the only start-up path: whether nothing exists, everything does, or a `kill -9` left a
//! part, the same steps bring it to the same state.
//!
//! **Invariant:** the subnet of a data directory never changes while a namespace of it exists.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use cove_model::EgressRule;
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::error::NetworkError;
use crate::kernel::Kernel;
use crate::layout::{self, Layout, NetnsClass, NetnsId, NetnsLease, check_name, check_subnet, choose_subnet, overlap};
use crate::limits::Limits;
use crate::netns::{self, Uplink};
use crate::nft::{self, Counting, NftError};
use crate::pool::{Pool, PoolStatus};

/// Why no replica is confined on kernels that are rarely seen.
const UNCOUNTED: &str = "the kernel cannot count connections; use one with nf_conncount (CONFIG_NFT_CONNLIMIT)";

/// How to open a network.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Folder that keeps `network.json`, the chosen subnet.
    pub state_dir: PathBuf,
    /// Folder of mount points, default `/run/cove`; it need not survive a reboot.
    pub run_dir: PathBuf,
    /// 1 to 8 characters of a-z and 0-9, unique on this machine; names bridge, veth pairs and nftables table.
    pub name: String,
    /// Subnet of the replicas, prefix /16 to /26; none chooses a free /20 at the first open.
    pub subnet: Option<Ipv4Net>,
    /// Namespaces kept ready, default 16.
    pub pool_size: usize,
    /// TCP ports of the gateway address that replicas may reach, default 80 and 443; DNS (53) always is.
    pub allowed_gateway_ports: Vec<u16>,
}

impl NetworkConfig {
    /// The defaults for a data directory and a name.
    pub fn new(state_dir: impl Into<PathBuf>, name: impl Into<String>) -> Self {
        Self {
            state_dir: state_dir.into(),
            run_dir: PathBuf::from("/run/cove"),
            name: name.into(),
            subnet: None,
            pool_size: 16,
            allowed_gateway_ports: vec![80, 443],
        }
    }
}

/// What this machine lets the network do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Replicas reach the world outside: forwarding and masquerading are on.
    pub nat: bool,
    /// Replicas reach nothing of this machine but the allowed gateway ports.
    pub filter: bool,
    /// The connections of confined and limited replicas are bounded; without it there are no such replicas.
    pub bounds_connections: bool,
    /// What is missing and what to do about it, for people.
    pub warnings: Vec<String>,
}

/// What [`Network::adopt`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// Namespaces that were in use and still are.
    pub kept: Vec<NetnsLease>,
    /// Ids in use whose namespace or interface is gone; their replicas cannot go on.
    pub missing: Vec<NetnsId>,
    /// Leftovers that are now being removed.
    pub removed: usize,
}

/// One bridge with its pool of network namespaces.
#[derive(Debug)]
pub struct Network {
    layout: Layout,
    config: NetworkConfig,
    capabilities: Capabilities,
    pool: Arc<Pool>,
    limits: Arc<Limits>,
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// Contents of `network.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Remembered {
    subnet: Ipv4Net,
}

/// What the first thread reports once the network stands.
struct Opened {
    layout: Layout,
    capabilities: Capabilities,
    pool: Arc<Pool>,
    remover: thread::JoinHandle<()>,
}

impl Network {
    /// Sets the network up, or takes over what an earlier run left, in the network namespace of the caller.
    ///
    /// Fails when links cannot be changed (no CAP_NET_ADMIN) or no subnet is free. A missing `nft` or a refused
    /// `ip_forward` is no failure: [`Network::capabilities`] says what does not work.
    pub async fn open(config: NetworkConfig) -> Result<Arc<Self>, NetworkError> {
        check_name(&config.name)?;
        let (sender, receiver) = oneshot::channel();
        let thread_config = config.clone();
        let maker = spawn("cove-net-make", move || make_thread(&thread_config, sender))?;
        let opened = receiver.await.map_err(|_ended| NetworkError::Closed)??;
        let Opened { layout, capabilities, pool, remover } = opened;
        for warning in &capabilities.warnings {
            tracing::warn!(network = layout.name, "{warning}");
        }
        tracing::info!(bridge = layout.bridge(), subnet = %layout.subnet, nat = capabilities.nat, "network is open");
        let limits = Arc::new(Limits::new(layout.clone()));
        Ok(Arc::new(Self { limits, layout, config, capabilities, pool, threads: Mutex::new(vec![maker, remover]) }))
    }

    /// A namespace of one's own: at once from the pool, else made now. Give it back with [`Network::release`].
    pub async fn acquire(&self) -> Result<NetnsLease, NetworkError> {
        self.pool.acquire(NetnsClass::App).await
    }

    /// A namespace of one's own for code that nobody vouches for: see [`NetnsClass::Confined`]. It is made now. Give it
    /// back with [`Network::release`]. Where the packet filter is missing, or cannot count, it is refused, as nothing would confine it.
    pub async fn acquire_confined(&self) -> Result<NetnsLease, NetworkError> {
        self.check_confines()?;
        self.pool.acquire(NetnsClass::Confined).await
    }

    /// A namespace of one's own for code that may reach what `rules` name and nothing else: see [`NetnsClass::Limited`].
    /// It is made now. Give it back with [`Network::release`]. Where the packet filter is missing it is refused.
    pub async fn acquire_limited(&self, rules: &[EgressRule]) -> Result<NetnsLease, NetworkError> {
        self.check_confines()?;
        let lease = self.pool.acquire(NetnsClass::Limited).await?;
        match self.limits.set(lease.id, rules).await {
            Ok(()) => Ok(lease),
            Err(error) => {
                self.release(lease.id);
                Err(error)
            }
        }
    }

    /// Fails where nothing would keep a replica in, or its connections from filling the table of the whole machine.
    fn check_confines(&self) -> Result<(), NetworkError> {
        let reason = match (self.capabilities.filter, self.capabilities.bounds_connections) {
            (true, true) => return Ok(()),
            (true, false) => UNCOUNTED,
            (false, _) => "it is not there; install the package `nftables`",
        };
        Err(NetworkError::PacketFilter { reason: reason.to_owned() })
    }

    /// Sets the rules of a namespace of an earlier run that is limited and was adopted; until then it reaches nothing.
    pub async fn limit(&self, id: NetnsId, rules: &[EgressRule]) -> Result<(), NetworkError> {
        self.limits.set(id, rules).await
    }

    /// The rules of limited namespaces, for the DNS server.
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits)
    }

    /// Gives a namespace back; it is destroyed in the background. Unknown ids are left alone.
    pub fn release(&self, id: NetnsId) {
        self.limits.forget(id);
        self.pool.release(id);
    }

    /// After a restart: keeps the namespaces `in_use`, removes all others an earlier run left.
    ///
    /// Until this is called everything found at open stays as it is. Namespaces of this run are not concerned.
    pub fn adopt(&self, in_use: &BTreeSet<NetnsId>) -> Adopted {
        let (kept, missing, removed) = self.pool.adopt(in_use);
        Adopted { kept: kept.into_iter().map(|id| self.layout.lease(id)).collect(), missing, removed }
    }

    /// What works on this machine.
    pub fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// The subnet of all replicas.
    pub fn subnet(&self) -> Ipv4Net {
        self.layout.subnet
    }

    /// The host's address on the bridge: for the ingress and the DNS server to listen on.
    pub fn gateway(&self) -> Ipv4Addr {
        self.layout.gateway()
    }

    /// Name of the bridge.
    pub fn bridge(&self) -> String {
        self.layout.bridge()
    }

    /// Leaves replicas these TCP ports of the gateway address besides those of the configuration; replaces what was
    /// opened so before. Connections that stand go on.
    ///
    /// # Errors
    /// [`NetworkError::PacketFilter`] when `nft` refuses; without a packet filter everything is open already.
    pub async fn open_gateway_ports(&self, ports: &BTreeSet<u16>) -> Result<(), NetworkError> {
        if !self.capabilities.filter {
            return Ok(());
        }
        let all: Vec<u16> = self.config.allowed_gateway_ports.iter().chain(ports).copied().collect();
        let changed = nft::apply(&nft::reopening(&self.layout.name, &all)).await;
        changed.map_err(|error| NetworkError::PacketFilter { reason: error.to_string() })
    }

    /// How full the pool is.
    pub fn status(&self) -> PoolStatus {
        self.pool.status()
    }

    /// Waits until the pool is as `wanted`, say filled; the caller sets the limit.
    pub async fn wait_for(&self, wanted: impl Fn(PoolStatus) -> bool) {
        self.pool.wait_for(wanted).await;
    }

    /// Removes the unused namespaces and ends the threads; what is leased stays for the next open to adopt.
    pub async fn close(&self) {
        self.pool.close(true);
        self.join().await;
    }

    /// Removes everything, also what is leased: namespaces, bridge, packet filter, remembered subnet.
    pub async fn purge(&self) -> Result<(), NetworkError> {
        self.pool.close(false);
        self.join().await;
        let config = self.config.clone();
        tokio::task::spawn_blocking(move || Self::purge_leftovers(&config)).await.unwrap_or(Err(NetworkError::Closed))
    }

    /// [`Network::purge`] without an open network, for a server that is not running. Blocks the caller.
    pub fn purge_leftovers(config: &NetworkConfig) -> Result<(), NetworkError> {
        let config = config.clone();
        let thread = spawn("cove-net-purge", move || remove_all(&config))?;
        thread.join().unwrap_or(Err(NetworkError::Closed))
    }

    async fn join(&self) {
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || threads.into_iter().for_each(|t| drop(t.join())));
        let _ = joined.await;
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.pool.close(false);
    }
}

/// A thread born in the caller's network namespace, which is where its netlink socket will be.
fn spawn<T: Send + 'static>(
    name: &str,
    body: impl FnOnce() -> T + Send + 'static,
) -> Result<thread::JoinHandle<T>, NetworkError> {
    thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(NetworkError::kernel(format!("start the thread `{name}`")))
}

/// Opens the network, reports, and goes on to make namespaces.
fn make_thread(config: &NetworkConfig, report: oneshot::Sender<Result<Opened, NetworkError>>) {
    let start = || {
        let kernel = Kernel::new()?;
        let (layout, uplink, capabilities, pool) = set_up(&kernel, config)?;
        let pool = Arc::new(pool);
        // The other thread has its own socket: the two never wait for each other in user space.
        let remover = Kernel::new()?;
        let (remove_pool, remove_layout) = (Arc::clone(&pool), layout.clone());
        let remover = spawn("cove-net-remove", move || remove_pool.remove_loop(&remover, &remove_layout, uplink))?;
        let opened = Opened { layout: layout.clone(), capabilities, pool: Arc::clone(&pool), remover };
        Ok((kernel, layout, uplink, pool, opened))
    };
    match start() {
        Ok((kernel, layout, uplink, pool, opened)) => {
            if report.send(Ok(opened)).is_err() {
                pool.close(false);
            }
            pool.make_loop(&kernel, &layout, uplink);
        }
        Err(error) => drop(report.send(Err(error))),
    }
}

fn set_up(kernel: &Kernel, config: &NetworkConfig) -> Result<(Layout, Uplink, Capabilities, Pool), NetworkError> {
    fs::create_dir_all(&config.state_dir).map_err(NetworkError::state(&config.state_dir))?;
    let (layout, bridge_index) = settle_subnet(kernel, config)?;
    netns::prepare_dir(&layout.netns_dir)?;
    let uplink = Uplink { bridge_index, mtu: kernel.uplink_mtu()? };
    let capabilities = open_ways_out(kernel, &layout, &config.allowed_gateway_ports);
    let found = take_stock(kernel, &layout, uplink)?;
    let pool = Pool::new(config.pool_size, &layout, found);
    Ok((layout, uplink, capabilities, pool))
}

/// Decides the subnet and gives it to the bridge, one network of this machine at a time.
fn settle_subnet(kernel: &Kernel, config: &NetworkConfig) -> Result<(Layout, u32), NetworkError> {
    fs::create_dir_all(&config.run_dir).map_err(NetworkError::state(&config.run_dir))?;
    let lock_path = config.run_dir.join("subnet.lock");
    let lock = fs::File::create(&lock_path).map_err(NetworkError::state(&lock_path))?;
    lock.lock().map_err(NetworkError::state(&lock_path))?;
    let bridge = kernel.link(&layout::bridge_name(&config.name))?;
    let standing = match &bridge {
        Some(link) => kernel.addresses(Some(link.index))?.first().map(|(_, net)| check_subnet(*net)).transpose()?,
        None => None,
    };
    if let (Some(standing), Some(asked)) = (standing, config.subnet)
        && standing != asked.trunc()
    {
        tracing::warn!(%standing, %asked, "the subnet cannot change while the bridge exists; purge the network first");
    }
    let taken = kernel.ranges_in_use(bridge.map(|link| link.index))?;
    let file = state_file(&config.state_dir);
    let subnet = match (config.subnet, standing, recall(&file)?) {
        (_, Some(standing), _) => standing,
        (Some(asked), None, _) => {
            let subnet = check_subnet(asked)?;
            if let Some(taken) = taken.into_iter().find(|taken| overlap(*taken, subnet)) {
                return Err(NetworkError::SubnetTaken { subnet, taken });
            }
            subnet
        }
        (None, None, Some(known)) if !taken.iter().any(|taken| overlap(*taken, known)) => known,
        (None, None, _) => {
            let start = config.name.bytes().fold(5381_u32, |hash, byte| hash.wrapping_mul(33) ^ u32::from(byte));
            let mut taken = taken;
            taken.extend(name_servers().into_iter().map(Ipv4Net::from));
            choose_subnet(start, &taken).ok_or(NetworkError::NoFreeSubnet)?
        }
    };
    let layout = Layout::new(&config.name, subnet, &config.run_dir);
    let index = kernel.ensure_bridge(&layout)?;
    remember(&file, &Remembered { subnet })?;
    Ok((layout, index))
}

/// Installs the packet filter, then turns forwarding on; says what could not be done.
fn open_ways_out(kernel: &Kernel, layout: &Layout, ports: &[u16]) -> Capabilities {
    let mut capabilities = Capabilities::default();
    let apply = |counting| kernel.wait_io(async { Ok(nft::apply(&nft::ruleset(layout, ports, counting)).await) });
    let applied = match apply(Counting::On) {
        Ok(Err(NftError::Refused(reason))) => {
            let uncounted = apply(Counting::Off);
            if matches!(uncounted, Ok(Ok(()))) {
                capabilities.warnings.push(format!("sessions get no egress: {UNCOUNTED} ({reason})"));
            }
            uncounted
        }
        applied => {
            capabilities.bounds_connections = matches!(applied, Ok(Ok(())));
            applied
        }
    };
    match applied {
        Ok(Ok(())) => capabilities.filter = true,
        Ok(Err(error)) => capabilities.warnings.push(format!(
            "replicas cannot reach the outside, and nothing keeps them from this machine's own ports: {error}"
        )),
        Err(error) => capabilities.warnings.push(format!("failed to run nft: {error}")),
    }
    if !capabilities.filter {
        return capabilities;
    }
    let path = "/proc/sys/net/ipv4/ip_forward";
    let is_on = fs::read_to_string(path).is_ok_and(|text| text.trim() != "0");
    match if is_on { Ok(()) } else { fs::write(path, "1") } {
        Ok(()) => capabilities.nat = true,
        Err(error) => capabilities.warnings.push(format!(
            "replicas cannot reach the outside: failed to write `{path}` ({error}); run `sysctl -w net.ipv4.ip_forward=1`"
        )),
    }
    if let Ok(true) = kernel.wait_io(async { Ok(nft::forward_is_closed().await) }) {
        capabilities.nat = false;
        let bridge = layout.bridge();
        capabilities.warnings.push(format!(
            "replicas cannot reach the outside: another firewall (Docker's?) drops forwarded packets; let it pass \
             `iptables -I FORWARD -i {bridge} -j ACCEPT` and \
             `iptables -I FORWARD -o {bridge} -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT`"
        ));
    }
    capabilities
}

/// Namespaces of an earlier run, each with whether its interface is there; interfaces without namespace go.
fn take_stock(kernel: &Kernel, layout: &Layout, uplink: Uplink) -> Result<BTreeMap<NetnsId, bool>, NetworkError> {
    let mut found = BTreeMap::new();
    for id in netns::list(&layout.netns_dir)? {
        found.insert(id, netns::repair(kernel, layout, uplink, id)?);
    }
    let known: BTreeSet<String> = found.keys().map(|id| layout.veth(id.host)).collect();
    let prefix = layout::veth_prefix(&layout.name);
    let ports = kernel.links()?.into_iter().filter(|link| link.controller == Some(uplink.bridge_index));
    for port in ports.filter(|port| is_ours(&prefix, &port.name) && !known.contains(&port.name)) {
        tracing::info!(interface = port.name, "removing an interface without a network namespace");
        kernel.delete_link(&port.name)?;
    }
    Ok(found)
}

/// Removes every trace of the network that `config` names; the calling thread drives no runtime.
fn remove_all(config: &NetworkConfig) -> Result<(), NetworkError> {
    check_name(&config.name)?;
    let kernel = Kernel::new()?;
    netns::remove_dir(&layout::netns_dir(&config.run_dir, &config.name))?;
    let own_dir = config.run_dir.join(&config.name);
    remove_if_there(fs::remove_dir(&own_dir)).map_err(NetworkError::state(&own_dir))?;
    let prefix = layout::veth_prefix(&config.name);
    let bridge = kernel.link(&layout::bridge_name(&config.name))?.filter(|link| link.is_bridge);
    if let Some(bridge) = bridge {
        let ports = kernel.links()?.into_iter().filter(|link| link.controller == Some(bridge.index));
        for port in ports.filter(|port| is_ours(&prefix, &port.name)) {
            kernel.delete_link(&port.name)?;
        }
        kernel.delete_link(&bridge.name)?;
    }
    match kernel.wait_io(async { Ok(nft::apply(&nft::removal(&config.name)).await) }) {
        Ok(Ok(()) | Err(NftError::Missing)) => {}
        Ok(Err(error)) => tracing::warn!(%error, "failed to remove the packet filter rules"),
        Err(error) => tracing::warn!(%error, "failed to run nft"),
    }
    let file = state_file(&config.state_dir);
    remove_if_there(fs::remove_file(&file)).map_err(NetworkError::state(&file))
}

/// True for names that this network gives to veth pairs.
fn is_ours(prefix: &str, name: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.len() == 4 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
}

fn state_file(state_dir: &Path) -> PathBuf {
    state_dir.join("network.json")
}

fn recall(file: &Path) -> Result<Option<Ipv4Net>, NetworkError> {
    match fs::read(file) {
        Ok(text) => {
            let known: Remembered = serde_json::from_slice(&text)
                .map_err(|source| NetworkError::StateFormat { path: file.to_owned(), source })?;
            check_subnet(known.subnet).map(Some)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(NetworkError::state(file)(error)),
    }
}

/// Writes beside and renames: a crash leaves the old file or the new one.
fn remember(file: &Path, what: &Remembered) -> Result<(), NetworkError> {
    let beside = file.with_extension("json.new");
    let write = || {
        let mut out = fs::File::create(&beside)?;
        serde_json::to_writer(&mut out, what)?;
        out.write_all(b"\n")?;
        out.sync_all()?;
        fs::rename(&beside, file)
    };
    write().map_err(NetworkError::state(file))
}

fn remove_if_there(result: std::io::Result<()>) -> std::io::Result<()> {
    result.or_else(|error| if error.kind() == std::io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// IPv4 name servers of this machine, which a subnet must not hide.
fn name_servers() -> Vec<Ipv4Addr> {
    let text = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    text.lines().filter_map(|line| line.strip_prefix("nameserver")?.trim().parse().ok()).collect()
}
