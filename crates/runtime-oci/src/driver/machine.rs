//! Machines around replicas: whether this host can, and what a helper is told to make one.
//!
//! **Invariant:** the tier is there only when a machine has really booted here with this guest and this QEMU.
//! **Invariant:** a machine's disk is the image's layers, read-only; nothing of this host is in it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::DirBuilder,
    os::unix::fs::DirBuilderExt as _,
    sync::Arc,
};

use camino::Utf8PathBuf;
use cove_images::Image;
use cove_model::{Container, ProbeAction};
use cove_runtime::{Capabilities, ReplicaSpec, Sandbox, SandboxEgress, SandboxTier};
use cove_vm::{
    Backing, MachineSpec, Network, OVERHEAD_BYTES, accel,
    disk::{CACHE_BYTES_MAX, Disks},
    guest::Guest,
    machine::{MEMORY_BYTES_MIN, RESOLVER_ADDRESS},
};

use super::{
    Inner, OciConfig,
    templates::{self, Choice},
};
use crate::{
    protocol::{MachineOrder, TemplateOrder},
    shim::{DISK_FILE_OF_TEMPLATE, PARTS_DIR},
    vm_root,
};

/// Where what machines are made of is kept.
#[derive(Clone, Debug)]
pub struct MachinesConfig {
    /// Folder of the guest, as `cove image build-vm-guest` fills it.
    pub cache: Utf8PathBuf,
    /// Folder of disks made of images, on the file system of the driver's own folder; made when missing.
    pub disks: Utf8PathBuf,
    /// Bytes of disks that are kept at most, besides those in use. Default [`CACHE_BYTES_MAX`].
    pub disks_bytes_max: u64,
    /// Bytes of saved machines that others begin as copies of, at most; 0: every machine boots. Default 8 GiB.
    pub templates_bytes_max: u64,
}

/// Bytes of saved machines unless said otherwise.
const TEMPLATES_BYTES_MAX: u64 = 8 << 30;

impl MachinesConfig {
    /// The usual guest, and disks in a folder of `dir`.
    #[must_use]
    pub fn new(dir: &camino::Utf8Path) -> Self {
        Self {
            cache: cove_vm::guest::CACHE.into(),
            disks: dir.join("disks"),
            disks_bytes_max: CACHE_BYTES_MAX,
            templates_bytes_max: TEMPLATES_BYTES_MAX,
        }
    }
}

/// What machines are made of.
#[derive(Debug)]
pub(super) struct Machines {
    root: Utf8PathBuf,
    guest: Guest,
    probed: accel::Probed,
    disks: Disks,
}

/// Finds out whether machines can be run, and notes it. Boots one unless that was done before.
pub(super) async fn find(config: &OciConfig, capabilities: &mut Capabilities) -> Option<Arc<Machines>> {
    let wanted = config.machines.clone()?;
    if !capabilities.sandbox_tiers.contains(&SandboxTier::Hardened) {
        // QEMU runs in what keeps sessions in
        return None;
    }
    let root = config.dir.join("qemu");
    let found = tokio::task::spawn_blocking(move || {
        let (guest, probed) = accel::probe(&wanted.cache).map_err(|error| error.to_string())?;
        let root = vm_root::make(&root).map_err(|error| error.to_string())?;
        let disks = Disks::open(wanted.disks, wanted.disks_bytes_max).map_err(|error| error.to_string())?;
        Ok::<_, String>(Machines { root, guest, probed, disks })
    });
    match found.await.map_err(|error| error.to_string()).and_then(|found| found) {
        Ok(machines) => {
            capabilities.sandbox_tiers.push(SandboxTier::Vm);
            tracing::info!(
                accel = machines.probed.accel.as_str(),
                guest = machines.guest.version,
                "sessions may be machines"
            );
            Some(Arc::new(machines))
        }
        Err(error) => {
            // most hosts have none and miss none; `cove doctor` says it too
            tracing::info!(error, "sessions cannot be machines");
            None
        }
    }
}

/// What there is around a replica.
pub(super) enum Ordered {
    /// This machine, or none.
    Now(Option<Box<MachineOrder>>),
    /// One that begins as a copy of another, which is not saved yet.
    Later,
}

/// What the helper is told of the machine around a replica.
pub(super) async fn order(
    inner: &Arc<Inner>,
    spec: &ReplicaSpec,
    images: &BTreeMap<String, Arc<Image>>,
) -> Result<Ordered, (String, String)> {
    let Some(sandbox) = spec.sandbox.as_ref().filter(|sandbox| sandbox.tier == SandboxTier::Vm) else {
        return Ok(Ordered::Now(None));
    };
    let failed = |text: String| ("ContainerCreateFailed".to_owned(), text);
    let machines =
        inner.machines.clone().ok_or_else(|| failed("machines cannot be run here; see `cove doctor`".into()))?;
    let [container] = &spec.template.containers[..] else {
        return Err(failed("a machine has one container".to_owned()));
    };
    let image = images.get(&container.image).ok_or_else(|| failed("its image is gone".to_owned()))?;
    let mut order = order_of(&machines, spec, sandbox, container);
    let disk = inner.replica_dir(&spec.name).join("disk.erofs");
    order.parts.push((disk.clone(), "disk".to_owned()));
    order.template = match templates::choose(inner, spec, image, &order) {
        Choice::Boot => None,
        Choice::Order(template) => Some(template),
        Choice::Wait => return Ok(Ordered::Later),
    };
    let saved = match &order.template {
        Some(TemplateOrder::Restore { dir }) => Some(dir.join(DISK_FILE_OF_TEMPLATE)),
        _ => None,
    };
    let (dir, layers) = (inner.replica_dir(&spec.name), image.layers.clone());
    let made = tokio::task::spawn_blocking(move || {
        DirBuilder::new().recursive(true).mode(0o711).create(&dir).map_err(|error| error.to_string())?;
        // the very disk that the saved machine has open, though another of the same image may be there by now
        if let Some(saved) = saved
            && std::fs::hard_link(&saved, &disk).is_ok()
        {
            return Ok(true);
        }
        machines.disks.link(&layers, &disk).map(|()| false).map_err(|error| error.to_string())
    });
    let made = made.await.map_err(|error| failed(error.to_string()))?;
    let is_saved = made.map_err(|error| failed(format!("failed to make the machine's disk: {error}")))?;
    // a template that was dropped in this very moment
    order.template = order.template.filter(|template| is_saved || !matches!(template, TemplateOrder::Restore { .. }));
    Ok(Ordered::Now(Some(Box::new(order))))
}

/// The machine, without its disk.
fn order_of(machines: &Machines, spec: &ReplicaSpec, sandbox: &Sandbox, container: &Container) -> MachineOrder {
    let memory_bytes = container.resources.memory.0.max(MEMORY_BYTES_MIN);
    let probed = container.probes.iter().map(|probe| match &probe.action {
        ProbeAction::Tcp { port } | ProbeAction::HttpGet { port, .. } => *port,
    });
    let ports: BTreeSet<u16> = spec.target_port.into_iter().chain(probed).collect();
    let has_egress = sandbox.egress != SandboxEgress::None;
    let inside = |name: &str| Utf8PathBuf::from(PARTS_DIR).join(name);
    MachineOrder {
        spec: MachineSpec {
            qemu: vm_root::QEMU.to_owned(),
            accel: machines.probed.accel,
            kernel: inside("kernel"),
            initramfs: inside("initramfs"),
            disk: Some(inside("disk")),
            memory_bytes,
            backing: Backing::Anonymous,
            cpus: u8::try_from(container.resources.cpu.0.div_ceil(1000)).unwrap_or(u8::MAX).clamp(1, 8),
            agent_fd: 0,
            monitor_fd: None,
            network: if has_egress { Network::Open } else { Network::Closed },
            ports: ports.into_iter().collect(),
            is_restored: false,
            tsc_khz: machines.probed.tsc_khz,
            is_verbose: false,
        },
        layers: vec![machines.root.clone()],
        parts: vec![
            (machines.guest.kernel.clone(), "kernel".to_owned()),
            (machines.guest.initramfs.clone(), "initramfs".to_owned()),
        ],
        container_bytes: memory_bytes + OVERHEAD_BYTES,
        disk_bytes: sandbox.disk_bytes.clamp(1 << 20, memory_bytes / 2),
        tasks_max: sandbox.pids_max.clamp(16, 4096),
        resolv_conf: has_egress.then(|| {
            let resolver = RESOLVER_ADDRESS.map(|part| part.to_string()).join(".");
            format!("nameserver {resolver}\n")
        }),
        template: None,
    }
}
