//! Makes replicas: image, network, helper, folder, order.
//!
//! **Invariant:** at most `prepares_max` at a time; those whose start was asked go before slots, else first come first served.
//! **Invariant:** `replica.json` is on disk before a helper knows of the replica, so the next driver finds it.

use std::{
    collections::BTreeMap,
    fs::{self, DirBuilder},
    io,
    os::{fd::AsRawFd, unix::fs::DirBuilderExt as _},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use camino::Utf8Path;
use cove_images::Image;
use cove_model::{Container, EnvValue, EventKind, ReplicaName, Template, VolumeKind};
use cove_network::{files, inside::Inside};
use cove_runtime::{
    ReplicaSpec, RuntimeError,
    logs::{LogContainer, LogMeta, META_FILE},
};
use jiff::Timestamp;
use tokio::time::timeout;

use super::{
    Inner, Replica, State,
    adopt::{REPLICA_FILE, Remembered},
    helpers::{self, Helper},
    images, link, lock,
    machine::{self, Ordered},
    memory,
    sandbox::{self, Net},
    snapshot, templates,
};
use crate::{
    CA_FILE,
    cgroup::Weight,
    executions::ExecutionPart,
    protocol::{
        ContainerSpec, MESSAGE_FDS_MAX, MachineOrder, SPEC_FILE, ShimSpec, ToShim, VolumeSpec, write_atomically,
    },
    shares::{self, OpenShare},
};

/// Longest wait for a network namespace.
const NETWORK_LIMIT: Duration = Duration::from_secs(30);

/// Longest time a helper may take to make all containers of a replica.
const MAKE_LIMIT: Duration = Duration::from_secs(120);

/// Longest wait until what is being made is made when another driver takes over.
const CLOSE_LIMIT: Duration = Duration::from_secs(10);

/// Most volumes on storages of one replica: their mounts go to the helper in one message, with its network.
const SHARES_MAX: usize = MESSAGE_FDS_MAX - 1;

/// Names [`CA_FILE`] to programs.
const CA_VARIABLE: &str = "COVE_CA_FILE=";

const PATH_DEFAULT: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Why a replica could not be made: ACA's reason and words.
type Failure = (String, String);

pub(super) fn order(inner: &Arc<Inner>, spec: ReplicaSpec) -> Result<(), RuntimeError> {
    {
        let mut state = lock(&inner.state);
        if state.replicas.contains_key(&spec.name) {
            return Ok(());
        }
        let live = state.replicas.values().filter(|replica| replica.ended.is_none()).count();
        if live >= inner.config.replicas_max {
            return Err(RuntimeError::Full { limit: inner.config.replicas_max as u64, what: "replicas" });
        }
        let (name, revision) = (spec.name.clone(), spec.revision.clone());
        state.replicas.insert(name.clone(), Replica::new(Arc::new(spec), Timestamp::now()));
        state.revisions.entry(revision.clone()).or_default().insert(name.clone());
        state.queue_slots.push_back(name);
        inner.publish(&state, &revision);
    }
    pump(inner);
    Ok(())
}

/// Begins as many as may run at once.
fn pump(inner: &Arc<Inner>) {
    if inner.stop.is_cancelled() || inner.is_closing.load(Ordering::Acquire) {
        return;
    }
    let mut state = lock(&inner.state);
    while state.preparing < inner.config.prepares_max {
        let Some(name) = next(&mut state) else { return };
        state.preparing += 1;
        let inner = Arc::clone(inner);
        tokio::spawn(async move {
            make(&inner, &name).await;
            lock(&inner.state).preparing -= 1;
            inner.prepared.notify_one();
            pump(&inner);
        });
    }
}

/// Begins nothing more, and waits until what was begun is made or has failed.
pub(super) async fn close(inner: &Arc<Inner>) {
    inner.is_closing.store(true, Ordering::Release);
    let done = async {
        while lock(&inner.state).preparing > 0 {
            inner.prepared.notified().await;
        }
    };
    if timeout(CLOSE_LIMIT, done).await.is_err() {
        tracing::warn!("a replica is still being made; the next server may make it anew");
    }
    inner.stop.cancel();
}

fn next(state: &mut State) -> Option<ReplicaName> {
    loop {
        let name = state.queue_wanted.pop_front().or_else(|| state.queue_slots.pop_front())?;
        if state.replicas.get(&name).is_some_and(|replica| replica.stop.is_none() && replica.ended.is_none()) {
            return Some(name);
        }
    }
}

/// Ends a replica that was stopped before anything of it was made.
pub(super) fn abandon_queued(inner: &Arc<Inner>, name: &ReplicaName) {
    let was_queued = {
        let mut state = lock(&inner.state);
        let before = state.queue_slots.len() + state.queue_wanted.len();
        state.queue_slots.retain(|queued| queued != name);
        state.queue_wanted.retain(|queued| queued != name);
        before != state.queue_slots.len() + state.queue_wanted.len()
    };
    if was_queued || templates::abandon(inner, name) {
        link::end(inner, name, None);
    }
}

/// Puts replicas in line once more, those first whose start was asked.
pub(super) fn queue_again(inner: &Arc<Inner>, names: Vec<ReplicaName>) {
    {
        let mut state = lock(&inner.state);
        for name in names {
            let is_asked = state.replicas.get(&name).is_some_and(|replica| replica.asked_at.is_some());
            if is_asked {
                state.queue_wanted.push_back(name);
            } else {
                state.queue_slots.push_back(name);
            }
        }
    }
    pump(inner);
}

async fn make(inner: &Arc<Inner>, name: &ReplicaName) {
    let Some((spec, prepared)) =
        inner.update(name, |replica| (Arc::clone(&replica.spec), Arc::clone(&replica.prepared)))
    else {
        return;
    };
    let assigned = assign(inner, &spec).await;
    match assigned {
        // it is in line for a template, and is put in line here again
        Ok(Assigned::Later) => return,
        Ok(Assigned::Now) => {
            // Another may begin when this one's helper is done, or takes too long.
            if timeout(MAKE_LIMIT, prepared.notified()).await.is_err() {
                let limit = MAKE_LIMIT.as_secs();
                link::give_up(inner, name, format!("its containers were not made within {limit} s"));
            }
        }
        Err(Some((reason, message))) => {
            inner.event(&spec, None, EventKind::Warning, &reason, message.clone());
            link::end(inner, name, Some((reason, message)));
        }
        Err(None) => link::end(inner, name, None),
    }
    // Only now: making the next helper must not take time from the replica that somebody waits for.
    helpers::refill(inner);
}

/// What became of an assignment.
enum Assigned {
    /// A helper is at it.
    Now,
    /// It waits until another machine was saved.
    Later,
}

/// `Err(None)`: it was stopped meanwhile.
async fn assign(inner: &Arc<Inner>, spec: &Arc<ReplicaSpec>) -> Result<Assigned, Option<Failure>> {
    let failed = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| Some(("ContainerCreateFailed".to_owned(), format!("{what}: {error}")))
    };
    let found = find_images(inner, spec).await?;
    let ordered = machine::order(inner, spec, &found).await.map_err(Some)?;
    let Ordered::Now(machine) = ordered else { return Ok(Assigned::Later) };
    let net = match timeout(NETWORK_LIMIT, Net::acquire(inner, spec)).await {
        Ok(Ok(net)) => net,
        Ok(Err(error)) => return Err(Some(("NetworkNotReady".to_owned(), error))),
        Err(_) => {
            let limit = NETWORK_LIMIT.as_secs();
            return Err(Some(("NetworkNotReady".to_owned(), format!("no network was free within {limit} s"))));
        }
    };
    let network_at = Timestamp::now();
    // From here on whoever ends the replica also gives the network back.
    let stopped = inner.update(&spec.name, |replica| {
        replica.netns = net.lease.as_ref().map(|lease| lease.id);
        replica.address = net.lease.as_ref().map(|lease| lease.address);
        replica.held = found.values().cloned().collect();
        replica.stop.is_some()
    });
    if stopped != Some(false) {
        return Err(None);
    }
    let shares = open_shares(inner, spec).await?;
    let helper = inner.helpers.take().await.map_err(failed("no helper process could be made"))?;
    let first_id = take_ids(inner, spec)?;
    let shim_spec =
        shim_spec(inner, spec, (&net, (first_id, machine)), &helper, &found, &shares, network_at).map_err(Some)?;
    let created_at = inner.update(&spec.name, |replica| {
        replica.cgroup = Some(helper.cgroup.clone());
        replica.created_at
    });
    let dir = inner.replica_dir(&spec.name);
    let remembered = Remembered {
        spec: Arc::clone(spec),
        created_at: created_at.unwrap_or(network_at),
        netns: net.lease.as_ref().map(|lease| lease.id),
        address: net.lease.as_ref().map(|lease| lease.address),
        first_id,
        cgroup: helper.cgroup.clone(),
    };
    let log_meta = log_meta(spec, remembered.created_at);
    let written = {
        let dir = dir.clone();
        tokio::task::spawn_blocking(move || write_folder(&dir, &shim_spec, &remembered, &log_meta)).await
    };
    written.map_err(io::Error::other).and_then(|result| result).map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull => {
            Some(("ContainerCreateFailed".to_owned(), "the disk is full: free space in the data directory".to_owned()))
        }
        _ => failed("failed to write the replica's folder")(error),
    })?;
    if spec.sandbox.as_ref().is_some_and(|sandbox| sandbox.is_ahead) {
        let weighed = inner.cgroups.weigh(&helper.cgroup, Weight::Least);
        weighed.map_err(failed("its share of the processor could not be set"))?;
    }
    let shares = shares.values().map(|share| share.tree.as_raw_fd());
    let fds: Vec<_> = std::iter::once(net.namespace.as_raw_fd()).chain(shares).collect();
    helper.conn.send(&ToShim::Assign { dir }, &fds).map_err(failed("the helper process is gone"))?;
    if spec.sandbox.is_some() {
        let namespace = Arc::new(Inside::new(net.namespace));
        inner.update(&spec.name, |replica| replica.namespace = Some(namespace));
    }
    link::connected(inner, &spec.name, helper.conn);
    Ok(Assigned::Now)
}

/// Host ids of its own for a sandboxed replica.
fn take_ids(inner: &Inner, spec: &ReplicaSpec) -> Result<Option<u32>, Option<Failure>> {
    if spec.sandbox.is_none() {
        return Ok(None);
    }
    let mut state = lock(&inner.state);
    let first_id = sandbox::choose_ids(&state).ok_or_else(|| {
        let text = "no range of user ids is free: end some sessions first".to_owned();
        Some(("ContainerCreateFailed".to_owned(), text))
    })?;
    let replica = state.replicas.get_mut(&spec.name).ok_or(None)?;
    replica.first_id = Some(first_id);
    Ok(Some(first_id))
}

/// The shares of its volumes, by the volumes' names.
async fn open_shares(inner: &Inner, spec: &ReplicaSpec) -> Result<BTreeMap<String, OpenShare>, Option<Failure>> {
    let mut opened = BTreeMap::new();
    for volume in &spec.template.volumes {
        if let Some(part) = part_of(&volume.kind) {
            let failed = |text: String| {
                let text = format!("volume `{}` of the execution: {text}", volume.name);
                Some(("StorageMountFailed".to_owned(), text))
            };
            if opened.len() >= SHARES_MAX {
                return Err(failed(format!("a replica may have {SHARES_MAX} volumes that outlive it")));
            }
            let made = inner.config.executions.open(&spec.revision, part);
            let made = made.map_err(|error| failed(format!("its folder could not be made: {error}")))?;
            opened.insert(volume.name.clone(), made);
        }
        let VolumeKind::Storage(storage) = &volume.kind else { continue };
        let binding = spec.storages.get(&storage.storage.to_ascii_lowercase()).ok_or_else(|| {
            let text = format!(
                "volume `{}` needs storage `{}`, which the environment does not have; set it with `env storage set`",
                volume.name, storage.storage
            );
            Some(("StorageNotFound".to_owned(), text))
        })?;
        let failed = |text: String| {
            let text = format!("volume `{}` (storage `{}`): {text}", volume.name, storage.storage);
            Some(("StorageMountFailed".to_owned(), text))
        };
        if opened.len() >= SHARES_MAX {
            return Err(failed(format!("a replica may have {SHARES_MAX} volumes on storages")));
        }
        let share = shares::open(&inner.config.shares, binding, &storage.options).await.map_err(failed)?;
        if !share.ignored.is_empty() {
            let text = format!(
                "Volume '{}': the mount options '{}' have no effect where the share is on this machine",
                volume.name,
                share.ignored.join(",")
            );
            inner.event(spec, None, EventKind::Warning, "StorageOptionIgnored", text);
        }
        opened.insert(volume.name.clone(), share);
    }
    Ok(opened)
}

/// The folder of its execution that a volume is.
fn part_of(kind: &VolumeKind) -> Option<ExecutionPart> {
    match kind {
        VolumeKind::ExecutionDir => Some(ExecutionPart::Work),
        VolumeKind::Artifacts(_) => Some(ExecutionPart::Artifacts),
        VolumeKind::EmptyDir | VolumeKind::Secret(_) | VolumeKind::Storage(_) => None,
    }
}

/// Variables that name the places of an execution's folders in a container.
fn folder_variables(template: &Template, container: &Container) -> Vec<(String, String)> {
    let place = |mount: &cove_model::VolumeMount| {
        let volume = template.volumes.iter().find(|volume| volume.name == mount.volume)?;
        let name = match part_of(&volume.kind)? {
            ExecutionPart::Work => "COVE_WORK_DIR",
            ExecutionPart::Artifacts => "COVE_ARTIFACTS_DIR",
        };
        Some((name.to_owned(), mount.path.clone()))
    };
    // of several mounts the first counts
    container.volume_mounts.iter().rev().filter_map(place).collect()
}

async fn find_images(inner: &Inner, spec: &ReplicaSpec) -> Result<BTreeMap<String, Arc<Image>>, Option<Failure>> {
    let mut found = BTreeMap::new();
    for container in containers(&spec.template).map(|(container, _)| container) {
        if !found.contains_key(&container.image) {
            let image = images::image_for(inner, &spec.revision, &container.image, &spec.logins)
                .await
                .map_err(|error| Some((images::reason(&error).to_owned(), images::text(&error))))?;
            found.insert(container.image.clone(), image);
        }
    }
    Ok(found)
}

/// All containers, init containers first.
pub(super) fn containers(template: &Template) -> impl Iterator<Item = (&Container, bool)> {
    let init = template.init_containers.iter().map(|container| (container, true));
    init.chain(template.containers.iter().map(|container| (container, false)))
}

fn shim_spec(
    inner: &Inner,
    spec: &ReplicaSpec,
    (net, kept_in): (&Net, (Option<u32>, Option<Box<MachineOrder>>)),
    helper: &Helper,
    found: &BTreeMap<String, Arc<Image>>,
    shares: &BTreeMap<String, OpenShare>,
    network_at: Timestamp,
) -> Result<ShimSpec, Failure> {
    let mut all = Vec::new();
    for (container, is_init) in containers(&spec.template) {
        let Some(image) = found.get(&container.image) else { continue };
        let mut made = container_spec(spec, container, is_init, image)?;
        made.snapshot = snapshot::layer_of(inner, spec, container, is_init)?;
        made.memory = memory::order_of(inner, spec, is_init);
        if kept_in.1.is_some() && inner.templates.are_on() {
            // what begins as a copy could not be told its own; the machine's name is right
            let own = format!("HOSTNAME={}", spec.name);
            made.env.retain(|entry| *entry != own);
        }
        let is_set = made.env.iter().any(|entry| entry.starts_with(CA_VARIABLE));
        if inner.config.ca_certificate.is_some() && !is_set {
            made.env.push(format!("{CA_VARIABLE}{CA_FILE}"));
        }
        all.push(made);
    }
    let mut volumes = BTreeMap::new();
    for volume in &spec.template.volumes {
        volumes.insert(volume.name.clone(), volume_spec(spec, &volume.name, &volume.kind, shares)?);
    }
    let sandbox = sandbox::spec_of(inner, spec, kept_in);
    if spec.sandbox.is_some() && sandbox.is_none() {
        // never anything weaker
        let text = "what is to keep it in is not there any more; see `cove doctor`".to_owned();
        return Err(("ContainerCreateFailed".to_owned(), text));
    }
    Ok(ShimSpec {
        replica: spec.name.to_string(),
        cgroup: helper.cgroup.clone(),
        log_dir: inner.config.log_dir.join(spec.name.as_str()),
        hosts: files::hosts(spec.name.as_str(), net.address()),
        resolv_conf: match (&net.lease, &spec.sandbox) {
            (Some(lease), None) => files::resolv_conf(lease.gateway, &[&spec.environment_domain]),
            (Some(lease), Some(_)) => files::resolv_conf(lease.gateway, &[]),
            (None, _) => "# no name is resolved: this container reaches no network\n".to_owned(),
        },
        sandbox,
        ca_certificate: inner.config.ca_certificate.clone(),
        containers: all,
        volumes,
        restart: spec.restart,
        created_at: network_at,
        network_at,
    })
}

fn volume_spec(
    spec: &ReplicaSpec,
    name: &str,
    kind: &VolumeKind,
    shares: &BTreeMap<String, OpenShare>,
) -> Result<VolumeSpec, Failure> {
    let invalid = |message: String| ("InvalidVolume".to_owned(), message);
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(invalid(format!("`{name}` is not a volume name: use letters, digits and `-`")));
    }
    match kind {
        VolumeKind::EmptyDir => Ok(VolumeSpec::EmptyDir),
        VolumeKind::Secret(items) if items.is_empty() => Ok(VolumeSpec::Files(spec.secrets.clone())),
        VolumeKind::Secret(items) => {
            let mut files = BTreeMap::new();
            for (secret, path) in items {
                if !is_inner_path(path) {
                    return Err(invalid(format!("`{path}` must be a relative path without `..` in volume `{name}`")));
                }
                files.insert(path.clone(), secret_value(spec, secret)?);
            }
            Ok(VolumeSpec::Files(files))
        }
        VolumeKind::ExecutionDir | VolumeKind::Artifacts(_) => Ok(VolumeSpec::Share { is_read_only: false }),
        VolumeKind::Storage(_) => {
            let is_read_only = shares.get(name).is_none_or(|share| share.is_read_only);
            Ok(VolumeSpec::Share { is_read_only })
        }
    }
}

fn is_inner_path(path: &str) -> bool {
    !path.is_empty() && !path.starts_with('/') && !path.split('/').any(|part| part == "..")
}

fn secret_value(spec: &ReplicaSpec, name: &str) -> Result<String, Failure> {
    spec.secrets.get(name).cloned().ok_or_else(|| {
        (
            "SecretNotFound".to_owned(),
            format!("secret `{name}` is not among the app's secrets; add it or change its name"),
        )
    })
}

/// Kubernetes' rule: `command` replaces the entrypoint and drops the image's arguments; `args` replaces the arguments.
fn command_line(container: &Container, entrypoint: &[String], cmd: &[String]) -> Vec<String> {
    let (program, arguments) = match (container.command.is_empty(), container.args.is_empty()) {
        (true, true) => (entrypoint, cmd),
        (true, false) => (entrypoint, &container.args[..]),
        (false, _) => (&container.command[..], &container.args[..]),
    };
    program.iter().chain(arguments).cloned().collect()
}

fn container_spec(
    spec: &ReplicaSpec,
    container: &Container,
    is_init: bool,
    image: &Image,
) -> Result<ContainerSpec, Failure> {
    let cannot_run =
        |message: String| ("ContainerCannotRun".to_owned(), format!("container `{}`: {message}", container.name));
    let args = command_line(container, &image.config.entrypoint, &image.config.cmd);
    if args.is_empty() {
        return Err(cannot_run(format!("image `{}` names no program to run; set `command`", container.image)));
    }
    let mut env: BTreeMap<String, String> = BTreeMap::new();
    let image_env = image.config.env.iter().filter_map(|entry| entry.split_once('='));
    env.extend(image_env.map(|(name, value)| (name.to_owned(), value.to_owned())));
    env.insert("HOSTNAME".to_owned(), spec.name.to_string());
    env.extend(spec.platform_env.clone());
    env.extend(folder_variables(&spec.template, container));
    for variable in &container.env {
        let value = match &variable.value {
            EnvValue::Plain(value) => value.clone(),
            EnvValue::SecretRef(name) => secret_value(spec, name)?,
        };
        env.insert(variable.name.clone(), value);
    }
    let mut env: Vec<String> = env.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(PATH_DEFAULT.to_owned());
    }
    let mut mounts = Vec::new();
    for mount in &container.volume_mounts {
        let sub_path = mount.sub_path.clone().filter(|path| !path.is_empty());
        if !mount.path.starts_with('/') || sub_path.as_deref().is_some_and(|path| !is_inner_path(path)) {
            return Err(cannot_run(format!(
                "volume `{}` must be mounted at an absolute path without `..`",
                mount.volume
            )));
        }
        if !spec.template.volumes.iter().any(|volume| volume.name == mount.volume) {
            return Err(cannot_run(format!("volume `{}` is not among the template's volumes", mount.volume)));
        }
        mounts.push((mount.volume.clone(), mount.path.clone(), sub_path));
    }
    let cwd =
        Some(image.config.working_dir.clone()).filter(|dir| dir.starts_with('/')).unwrap_or_else(|| "/".to_owned());
    Ok(ContainerSpec {
        name: container.name.clone(),
        is_init,
        layers: image.layers.clone(),
        snapshot: None,
        memory: None,
        args,
        env,
        cwd,
        user: image.config.user.clone(),
        stop_signal: image.config.stop_signal.clone(),
        cpu_milli: container.resources.cpu.0,
        memory_bytes: container.resources.memory.0,
        mounts,
    })
}

fn log_meta(spec: &ReplicaSpec, created_at: Timestamp) -> LogMeta {
    let containers = containers(&spec.template)
        .map(|(container, is_init)| LogContainer {
            name: container.name.clone(),
            image: container.image.clone(),
            is_init,
        })
        .collect();
    LogMeta {
        app: spec.revision.app.to_string(),
        environment: spec.environment.to_string(),
        revision: spec.revision.name.to_string(),
        replica: spec.name.to_string(),
        containers,
        created_at,
    }
}

fn write_folder(dir: &Utf8Path, spec: &ShimSpec, remembered: &Remembered, meta: &LogMeta) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o711).create(dir)?;
    fs::create_dir_all(&spec.log_dir)?;
    write_atomically(&spec.log_dir.join(META_FILE), &serde_json::to_vec(meta)?)?;
    write_atomically(&dir.join(SPEC_FILE), &serde_json::to_vec(spec)?)?;
    write_atomically(&dir.join(REPLICA_FILE), &serde_json::to_vec(remembered)?)
}

pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
