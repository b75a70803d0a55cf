//! What the driver decides for a sandboxed replica: whether this host can, which ids and which network it gets, and how it
//! is reached.
//!
//! **Invariant:** no two replicas of this driver have an id of the host in common.
//! **Invariant:** a spec that asks for what this host or this driver lacks is refused; nothing weaker is put in its place.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::File,
    io,
    net::{Ipv4Addr, TcpStream},
    os::fd::OwnedFd,
    sync::Arc,
};

use cove_model::{EgressRule, ReplicaName, VolumeKind};
use cove_network::{
    NetnsLease,
    inside::{self, Inside},
};
use cove_runtime::{Capabilities, DIAL_LIMIT, ReplicaSpec, RuntimeError, SandboxEgress, SandboxTier};
use tokio::time::timeout;

use super::{Inner, OciConfig, Replica, State, exec, lock};
use crate::{
    handlers,
    protocol::{HandlerSpec, MachineOrder, SandboxSpec, ToShim},
    shim::IDS_PER_REPLICA,
};

/// First host id that sandboxed replicas have: above those of users, `subuid` files and systemd's containers.
const FIRST_ID: u32 = 0x7000_0000;

/// Ranges of ids, up to those that systemd keeps for files of foreign machines.
const RANGES_MAX: u32 = 4000;

/// Says why a spec cannot be taken, if it cannot.
pub(super) fn check(capabilities: &Capabilities, spec: &ReplicaSpec) -> Result<(), RuntimeError> {
    let Some(sandbox) = &spec.sandbox else { return Ok(()) };
    let refused = |text: String| Err(RuntimeError::Unsupported(text));
    if !capabilities.sandbox_tiers.contains(&sandbox.tier) {
        return refused(match &sandbox.tier {
            SandboxTier::Hardened => "it cannot keep untrusted code in; see `cove doctor`".to_owned(),
            SandboxTier::Vm => "it has no isolation `vm`; see `cove doctor`".to_owned(),
            SandboxTier::Handler(name) => format!("it has no OCI runtime `{name}` that works; see `cove doctor`"),
        });
    }
    let is_inner = |kind: &VolumeKind| matches!(kind, VolumeKind::EmptyDir | VolumeKind::Secret(_));
    if let Some(volume) = spec.template.volumes.iter().find(|volume| !is_inner(&volume.kind)) {
        return refused(format!("volume `{}` is of this machine, which a sandboxed replica never sees", volume.name));
    }
    let containers = spec.template.init_containers.len() + spec.template.containers.len();
    if sandbox.tier == SandboxTier::Vm && containers != 1 {
        return refused(format!("a machine has one container and no init container, the template has {containers}"));
    }
    if sandbox.egress == SandboxEgress::Internet && !capabilities.egress {
        return refused("its replicas reach no internet; see `cove doctor`".to_owned());
    }
    Ok(())
}

/// A range of ids that no other replica has.
pub(super) fn choose_ids(state: &State) -> Option<u32> {
    let used: BTreeSet<u32> = state.replicas.values().filter_map(|replica| replica.first_id).collect();
    let range = |number: u32| FIRST_ID + (number % RANGES_MAX) * IDS_PER_REPLICA;
    let begin: u32 = rand::random::<u16>().into();
    (begin..begin + RANGES_MAX).map(range).find(|first| !used.contains(first))
}

/// The OCI runtimes of this machine that can be used; what they add is noted.
pub(super) async fn find_handlers(
    config: &OciConfig,
    capabilities: &mut Capabilities,
) -> BTreeMap<String, HandlerSpec> {
    let Some(configured) = config.handlers.clone() else { return BTreeMap::new() };
    if !capabilities.sandbox_tiers.contains(&SandboxTier::Hardened) {
        // they stand on the same ids, layers and limits
        return BTreeMap::new();
    }
    let memory = config.dir.join("handlers.json");
    let names: Vec<String> = configured.keys().cloned().collect();
    let found = tokio::task::spawn_blocking(move || handlers::find(&configured, Some(&memory))).await;
    let mut usable = BTreeMap::new();
    for handler in found.unwrap_or_default() {
        match (handler.usable(), &handler.found) {
            (Some(spec), _) => {
                capabilities.sandbox_tiers.push(SandboxTier::Handler(handler.name.clone()));
                usable.insert(handler.name.clone(), spec.clone());
            }
            (None, Err(error)) if names.contains(&handler.name) => {
                let name = &handler.name;
                capabilities.warnings.push(format!("the OCI runtime `{name}` cannot be used for sessions: {error}"));
            }
            _ => {}
        }
    }
    usable
}

/// `None` for a replica that is to be kept in: it cannot be.
pub(super) fn spec_of(
    inner: &Inner,
    spec: &ReplicaSpec,
    (first_id, machine): (Option<u32>, Option<Box<MachineOrder>>),
) -> Option<SandboxSpec> {
    let sandbox = spec.sandbox.as_ref()?;
    if (sandbox.tier == SandboxTier::Vm) != machine.is_some() {
        return None;
    }
    let handler = match &sandbox.tier {
        SandboxTier::Handler(name) => Some(inner.handlers.get(name)?.clone()),
        SandboxTier::Hardened | SandboxTier::Vm => None,
    };
    Some(SandboxSpec {
        first_id: first_id?,
        pids_max: sandbox.pids_max.clamp(16, 4096),
        disk_bytes: sandbox.disk_bytes.max(1 << 20),
        handler,
        machine,
    })
}

/// The network of a replica.
pub(super) struct Net {
    pub(super) namespace: OwnedFd,
    /// None: a namespace that leads nowhere, and that lives as long as somebody holds it.
    pub(super) lease: Option<NetnsLease>,
}

impl Net {
    /// Its own address, as its `/etc/hosts` has it.
    pub(super) fn address(&self) -> Ipv4Addr {
        self.lease.as_ref().map_or(Ipv4Addr::LOCALHOST, |lease| lease.address)
    }

    /// Takes a network of the kind that a spec asks for; in words why not.
    pub(super) async fn acquire(inner: &Inner, spec: &ReplicaSpec) -> Result<Self, String> {
        let egress = spec.sandbox.as_ref().map(|sandbox| sandbox.egress);
        let lease = match egress {
            Some(SandboxEgress::None) => {
                let made = inside::isolated().await;
                let namespace = made.map_err(|error| format!("failed to make a network namespace: {error}"))?;
                return Ok(Self { namespace, lease: None });
            }
            Some(SandboxEgress::Internet) => match rules_of(spec) {
                [] => inner.network.acquire_confined().await,
                rules => inner.network.acquire_limited(rules).await,
            },
            None => inner.network.acquire().await,
        };
        let lease = lease.map_err(|error| super::prepare::chain(&error))?;
        match File::open(&lease.path) {
            Ok(file) => Ok(Self { namespace: file.into(), lease: Some(lease) }),
            Err(error) => {
                inner.network.release(lease.id);
                Err(format!("failed to open the network namespace: {error}"))
            }
        }
    }
}

/// What a replica with egress may reach; none = all.
fn rules_of(spec: &ReplicaSpec) -> &[EgressRule] {
    spec.sandbox.as_ref().map_or(&[], |sandbox| &sandbox.egress_rules)
}

/// Tells the packet filter the rules of replicas that were adopted; until then they reach nothing.
pub(super) async fn limit_again(inner: &Inner) {
    let limited: Vec<_> = {
        let state = lock(&inner.state);
        let rules = |replica: &super::Replica| Some((replica.netns?, rules_of(&replica.spec).to_vec()));
        state.replicas.values().filter_map(rules).filter(|(_, rules)| !rules.is_empty()).collect()
    };
    for (id, rules) in limited {
        if let Err(error) = inner.network.limit(id, &rules).await {
            tracing::warn!(%id, %error, "an adopted replica reaches nothing: its rules could not be set");
        }
    }
}

/// Connects from inside a replica's network namespace.
pub(super) async fn dial(inner: Arc<Inner>, name: ReplicaName, port: u16) -> io::Result<TcpStream> {
    let connect = async { namespace(&inner, &name, port).await?.dial(port).await };
    timeout(DIAL_LIMIT, connect).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Of a machine only what its agent told of: QEMU takes connections to ports at which nothing listens inside yet.
fn may_listen(replica: &Replica, port: u16) -> bool {
    if replica.spec.sandbox.as_ref().is_none_or(|sandbox| sandbox.tier != SandboxTier::Vm) {
        return true;
    }
    replica.shim.iter().flat_map(|shim| &shim.containers).any(|container| container.listening.contains(&port))
}

async fn namespace(inner: &Inner, name: &ReplicaName, port: u16) -> io::Result<Arc<Inside>> {
    let known = {
        let state = lock(&inner.state);
        let replica = state.replicas.get(name).filter(|replica| replica.ended.is_none());
        let replica = replica.ok_or(io::ErrorKind::NotFound)?;
        if !may_listen(replica, port) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        replica.namespace.clone()
    };
    if let Some(namespace) = known {
        return Ok(namespace);
    }
    let namespace = Arc::new(Inside::new(exec::ask(inner, name, &ToShim::Network).await?));
    let mut state = lock(&inner.state);
    if let Some(replica) = state.replicas.get_mut(name).filter(|replica| replica.ended.is_none()) {
        replica.namespace = Some(Arc::clone(&namespace));
    }
    Ok(namespace)
}
