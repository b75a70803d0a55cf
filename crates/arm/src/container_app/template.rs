//! The revision's template: containers, resources, environment, volumes.

use std::collections::BTreeSet;

use cove_model::{
    ArtifactsVolume, Bytes, Container, EnvValue, EnvVar, MilliCpu, Resources, StorageVolume, Template, Volume,
    VolumeKind, VolumeMount, WorkloadProfileKind,
};

use super::{
    check::{Scope, is_dns_label, range},
    probes, scale,
};
use crate::{ArmError, Errors, node::Node};

/// Most containers, init containers included.
const CONTAINERS_MAX: usize = 20;
/// Most variables of a container.
const ENV_MAX: usize = 1000;
/// Longest mount options of a volume.
const MOUNT_OPTIONS_LENGTH_MAX: usize = 500;
/// Size of an execution's artifacts: 1 MiB to 1 TiB.
const ARTIFACTS_BYTES: std::ops::RangeInclusive<u64> = Bytes::MIB..=1024 * Bytes::GIB;
/// Most executions whose artifacts are kept: the history of one outcome.
const ARTIFACTS_KEPT_MAX: u32 = 100;
/// Longest image reference.
const IMAGE_LENGTH_MAX: usize = 512;
/// CPU of a container that does not say, in thousandths of a core: Azure's default.
const CPU_DEFAULT: MilliCpu = MilliCpu(500);
/// Most CPU of a replica in the Consumption profile, in thousandths of a core.
const CPU_TOTAL_MAX: u32 = 4000;

/// Reads `properties.template`.
pub(crate) fn read(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Template {
    let volumes = volumes(&node.get("volumes"), scope, errors);
    let volume_names: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
    let mut names = BTreeSet::new();
    let mut read_list = |list: &str, errors: &mut Errors| -> Vec<Container> {
        let items = node.get(list).items();
        items.iter().map(|item| container(item, &volume_names, &mut names, scope, errors)).collect()
    };
    let init_containers = read_list("initContainers", errors);
    let containers = read_list("containers", errors);
    let list = node.get("containers");
    if containers.is_empty() {
        invalid(&list, "At least one container is required.", errors);
    }
    if containers.len() + init_containers.len() > CONTAINERS_MAX {
        invalid(&list, &format!("A replica may have {CONTAINERS_MAX} containers, init containers included."), errors);
    }
    if scope.is_consumption {
        check_total(&containers, &list, errors);
    }
    for (container, item) in init_containers.iter().zip(node.get("initContainers").items()) {
        if !container.probes.is_empty() {
            invalid(&item.get("probes"), "An init container cannot have probes: it runs to its end.", errors);
        }
        if scope.is_consumption {
            check_pair(container.resources, &item.get("resources"), errors);
        }
    }
    Template {
        init_containers,
        containers,
        volumes,
        scale: scale::read(&node.get("scale"), scope, errors),
        termination_grace_period_secs: range(&node.get("terminationGracePeriodSeconds"), 0..=600, 30, errors),
    }
}

/// Notes a problem with Azure's code for containers.
pub(super) fn invalid(node: &Node<'_>, message: &str, errors: &mut Errors) {
    errors.push(ArmError::new(400, "InvalidParameterValueInContainerTemplate", message).at(&node.path));
}

fn container(
    node: &Node<'_>,
    volumes: &BTreeSet<&str>,
    names: &mut BTreeSet<String>,
    scope: &Scope<'_>,
    errors: &mut Errors,
) -> Container {
    let name_node = node.get("name");
    let name = name_node.text().unwrap_or("");
    if !is_dns_label(name, 63) {
        let shown: String = name.chars().take(80).collect();
        let rule = "use 1 to 63 lower case letters, digits and '-', with a letter or digit at both ends";
        invalid(&name_node, &format!("The container name '{shown}' is not valid: {rule}."), errors);
    } else if !names.insert(name.to_owned()) {
        invalid(&name_node, &format!("The container name '{name}' is used twice."), errors);
    }
    check_image(&node.get("image"), errors);
    check_kind(node, errors);
    Container {
        name: name.to_owned(),
        image: node.get("image").text().unwrap_or("").trim().to_owned(),
        command: texts(&node.get("command"), errors),
        args: texts(&node.get("args"), errors),
        env: env(&node.get("env"), scope, errors),
        resources: resources(&node.get("resources"), errors),
        probes: probes::read(&node.get("probes"), errors),
        volume_mounts: mounts(&node.get("volumeMounts"), volumes, errors),
    }
}

fn check_image(node: &Node<'_>, errors: &mut Errors) {
    let image = node.text().unwrap_or("").trim();
    if image.is_empty() {
        invalid(node, "An image is required, such as 'registry.example.com/name:tag'.", errors);
    } else if image.len() > IMAGE_LENGTH_MAX {
        invalid(node, &format!("The image reference is longer than {IMAGE_LENGTH_MAX} characters."), errors);
    } else if image.contains(|c: char| c.is_whitespace() || c.is_control()) {
        invalid(node, "The image reference holds white space; expected 'registry/name:tag'.", errors);
    } else if image.contains("://") {
        invalid(node, &format!("The image '{image}' is a URL; leave the scheme out."), errors);
    }
}

fn check_kind(node: &Node<'_>, errors: &mut Errors) {
    let kind = node.get("imageType");
    if kind.text().is_some_and(|text| !text.eq_ignore_ascii_case("ContainerImage")) || node.get("sourceBuild").exists()
    {
        errors.push(ArmError::not_implemented(&kind.path, "Building from source", "build the image and name it"));
    }
}

fn texts(node: &Node<'_>, errors: &mut Errors) -> Vec<String> {
    let items = node.items();
    if items.iter().any(|item| item.text().is_some_and(|text| text.contains('\0'))) {
        invalid(node, "A NUL character cannot be passed to a process.", errors);
    }
    items.iter().filter_map(|item| item.text().map(str::to_owned)).collect()
}

fn env(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<EnvVar> {
    let items = node.items();
    if items.len() > ENV_MAX {
        invalid(node, &format!("{} variables are too many; a container may have {ENV_MAX}.", items.len()), errors);
    }
    let mut all = Vec::new();
    for item in items.iter().take(ENV_MAX) {
        let name_node = item.get("name");
        let name = name_node.text().unwrap_or("");
        let letters = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
        if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) || !name.chars().all(letters) {
            let shown: String = name.chars().take(80).collect();
            let rule = "use letters, digits, '_', '-' and '.', and do not start with a digit";
            invalid(&name_node, &format!("The environment variable name '{shown}' is not valid: {rule}."), errors);
        }
        let (value, secret) = (item.get("value"), item.get("secretRef"));
        let text = value.text().unwrap_or("");
        if text.contains('\0') {
            invalid(&value, "A NUL character cannot be passed to a process.", errors);
        }
        if secret.exists() && !text.is_empty() {
            invalid(item, &format!("The variable '{name}' has both value and secretRef; give one."), errors);
        }
        scope.check_secret_ref(&secret, errors);
        let value = match secret.text() {
            Some(secret) => EnvValue::SecretRef(secret.to_owned()),
            None => EnvValue::Plain(text.to_owned()),
        };
        all.push(EnvVar { name: name.to_owned(), value });
    }
    all
}

/// CPU and memory; who gives one gets the other at 2 GiB per core, who gives none gets 0.5 cores and 1 GiB.
fn resources(node: &Node<'_>, errors: &mut Errors) -> Resources {
    let (cpu_node, memory_node) = (node.get("cpu"), node.get("memory"));
    let gpu = node.get("gpu");
    if gpu.number().is_some_and(|count| !(0.0..=64.0).contains(&count)) {
        invalid(&gpu, "The number of GPUs is not valid; expected 0 to 64.", errors);
    }
    let cpu = cpu_node.number().map(|cores| {
        MilliCpu::from_cores(cores).filter(|cpu| cpu.0 > 0).unwrap_or_else(|| {
            invalid(&cpu_node, &format!("'{cores}' cores is not valid; expected a number such as 0.25."), errors);
            CPU_DEFAULT
        })
    });
    let memory = memory_node.text().map(|text| {
        Bytes::parse_quantity(text).filter(|bytes| bytes.0 > 0).unwrap_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            invalid(&memory_node, &format!("'{shown}' is not an amount of memory; expected such as '0.5Gi'."), errors);
            memory_for(CPU_DEFAULT)
        })
    });
    let cpu = cpu.or_else(|| memory.map(cpu_for)).unwrap_or(CPU_DEFAULT);
    let memory = memory.unwrap_or_else(|| memory_for(cpu));
    Resources { cpu, memory, ephemeral_storage: ephemeral_storage(cpu) }
}

/// Two GiB per core, to the nearest byte.
fn memory_for(cpu: MilliCpu) -> Bytes {
    Bytes((u64::from(cpu.0) * 2 * Bytes::GIB + 500) / 1000)
}

/// A core per two GiB, rounded up to a thousandth.
fn cpu_for(memory: Bytes) -> MilliCpu {
    let milli = (u128::from(memory.0) * 500).div_ceil(u128::from(Bytes::GIB));
    MilliCpu(u32::try_from(milli).unwrap_or(u32::MAX))
}

/// ACA's table of ephemeral storage by cores: up to 0.25 → 1 GiB, 0.5 → 2, 1 → 4, more → 8.
fn ephemeral_storage(cpu: MilliCpu) -> Bytes {
    Bytes(match cpu.0 {
        0..=250 => Bytes::GIB,
        251..=500 => 2 * Bytes::GIB,
        501..=1000 => 4 * Bytes::GIB,
        _ => 8 * Bytes::GIB,
    })
}

/// Checks what a replica asks for against the type of its workload profile: the table of Consumption, or the size of a node.
///
/// [`super::parse_put`] does this for apps without a profile; what a named profile stands for, the caller knows.
///
/// # Errors
/// 400 `ContainerAppInvalidResourceTotal`.
pub fn check_resources(template: &Template, profile: &str, kind: &WorkloadProfileKind) -> Result<(), ArmError> {
    let mut errors = Errors::new();
    let cpu: u64 = template.containers.iter().map(|container| u64::from(container.resources.cpu.0)).sum();
    let memory = template.containers.iter().fold(0_u64, |sum, c| sum.saturating_add(c.resources.memory.0));
    let inits = template.init_containers.iter();
    let inits = inits.map(|container| (u64::from(container.resources.cpu.0), container.resources.memory.0));
    for (cpu, memory) in std::iter::once((cpu, memory)).chain(inits) {
        if kind.name == "Consumption" {
            if !is_on_table(cpu, memory) {
                errors.push(off_table(cpu, memory).at(CONTAINERS));
            }
        } else if cpu > u64::from(kind.cpu().0) || memory > kind.memory().0 {
            let message = format!(
                "The total requested CPU and memory resources for this application (CPU: {}, memory: {}) is invalid. A replica in the workload profile '{profile}' of type {} may have at most {} cores and {} GiB.",
                cores(cpu),
                Bytes(memory).to_quantity(),
                kind.name,
                kind.cores,
                kind.memory_gib
            );
            errors.push(ArmError::new(400, "ContainerAppInvalidResourceTotal", message).at(CONTAINERS));
        }
    }
    errors.into_result()
}

/// Where the sum of resources is told.
const CONTAINERS: &str = "properties.template.containers";

fn cores(cpu_milli: u64) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "shown to a person")]
    let cores = cpu_milli as f64 / 1000.0;
    cores
}

/// The Consumption table is about the sum over a replica's containers.
fn check_total(containers: &[Container], node: &Node<'_>, errors: &mut Errors) {
    let cpu: u64 = containers.iter().map(|container| u64::from(container.resources.cpu.0)).sum();
    let memory = containers.iter().fold(0_u64, |sum, container| sum.saturating_add(container.resources.memory.0));
    if !containers.is_empty() && !is_on_table(cpu, memory) {
        push_total(cpu, memory, node, errors);
    }
}

fn check_pair(resources: Resources, node: &Node<'_>, errors: &mut Errors) {
    let cpu = u64::from(resources.cpu.0);
    if !is_on_table(cpu, resources.memory.0) {
        push_total(cpu, resources.memory.0, node, errors);
    }
}

/// 0.25 to 4 cores in steps of 0.25, with 2 GiB per core; a sum of rounded parts (`0.2Gi` + `0.3Gi`) may be some bytes off.
fn is_on_table(cpu_milli: u64, memory_bytes: u64) -> bool {
    let steps = cpu_milli / 250;
    cpu_milli.is_multiple_of(250)
        && (1..=u64::from(CPU_TOTAL_MAX) / 250).contains(&steps)
        && memory_bytes.abs_diff(steps * (Bytes::GIB / 2)) <= CONTAINERS_MAX as u64
}

fn push_total(cpu_milli: u64, memory_bytes: u64, node: &Node<'_>, errors: &mut Errors) {
    errors.push(off_table(cpu_milli, memory_bytes).at(&node.path));
}

fn off_table(cpu_milli: u64, memory_bytes: u64) -> ArmError {
    let pairs: Vec<String> = (1..=CPU_TOTAL_MAX / 250)
        .map(|step| format!("[cpu: {}, memory: {}Gi]", f64::from(step) / 4.0, f64::from(step) / 2.0))
        .collect();
    let cores = cores(cpu_milli);
    let message = format!(
        "The total requested CPU and memory resources for this application (CPU: {cores}, memory: {}) is invalid. Total CPU and memory for all containers defined in a Container App must add up to one of the following CPU - Memory combinations: {}.",
        Bytes(memory_bytes).to_quantity(),
        pairs.join("; ")
    );
    ArmError::new(400, "ContainerAppInvalidResourceTotal", message)
}

fn volumes(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<Volume> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in node.items() {
        let name_node = item.get("name");
        let name = name_node.text().unwrap_or("");
        if !is_dns_label(name, 63) {
            let shown: String = name.chars().take(80).collect();
            let rule = "use 1 to 63 lower case letters, digits and '-', with a letter or digit at both ends";
            invalid(&name_node, &format!("The volume name '{shown}' is not valid: {rule}."), errors);
        } else if !seen.insert(name) {
            invalid(&name_node, &format!("The volume name '{name}' is used twice."), errors);
        }
        let kind = item.get("storageType");
        let kind = match kind.text() {
            None | Some("EmptyDir") => VolumeKind::EmptyDir,
            Some("Secret") => VolumeKind::Secret(secret_files(&item.get("secrets"), scope, errors)),
            Some(kind @ ("AzureFile" | "NfsAzureFile")) => {
                VolumeKind::Storage(storage(&item, kind == "NfsAzureFile", errors))
            }
            Some("CoveExecutionDir") => VolumeKind::ExecutionDir,
            Some("CoveArtifacts") => VolumeKind::Artifacts(artifacts(&item, errors)),
            Some(other) => {
                let instead = "use 'AzureFile', 'NfsAzureFile', 'EmptyDir' or 'Secret'";
                errors.push(ArmError::not_implemented(&kind.path, &format!("A volume of type '{other}'"), instead));
                VolumeKind::EmptyDir
            }
        };
        all.push(Volume { name: name.to_owned(), kind });
    }
    let is_artifacts = |volume: &&Volume| matches!(volume.kind, VolumeKind::Artifacts(_));
    let is_execution_dir = |volume: &&Volume| volume.kind == VolumeKind::ExecutionDir;
    let counts = [
        ("CoveArtifacts", all.iter().filter(is_artifacts).count()),
        ("CoveExecutionDir", all.iter().filter(is_execution_dir).count()),
    ];
    for (kind, _) in counts.into_iter().filter(|(_, count)| *count > 1) {
        invalid(node, &format!("A job may have one volume of type '{kind}'; mount parts of it by subPath."), errors);
    }
    all
}

/// Notes volumes that only executions of jobs have.
pub(crate) fn refuse_execution_volumes(template: &Node<'_>, errors: &mut Errors) {
    for item in template.get("volumes").items() {
        let kind = item.get("storageType");
        if let Some(word @ ("CoveExecutionDir" | "CoveArtifacts")) = kind.text() {
            let message = format!("A volume of type '{word}' belongs to executions of jobs; use 'EmptyDir' in an app.");
            invalid(&kind, &message, errors);
        }
    }
}

fn artifacts(node: &Node<'_>, errors: &mut Errors) -> ArtifactsVolume {
    let default = ArtifactsVolume::default();
    let size = node.get("coveMaxSize");
    let max_bytes = size.text().map(|text| {
        let known = Bytes::parse_quantity(text).filter(|bytes| ARTIFACTS_BYTES.contains(&bytes.0));
        known.unwrap_or_else(|| {
            let shown: String = text.chars().take(40).collect();
            invalid(&size, &format!("'{shown}' is not a size of artifacts; expected '1Mi' to '1024Gi'."), errors);
            default.max_bytes
        })
    });
    let kept = range(&node.get("coveKeepExecutions"), 1..=ARTIFACTS_KEPT_MAX, default.keep_executions, errors);
    ArtifactsVolume { keep_executions: kept, max_bytes: max_bytes.unwrap_or(default.max_bytes) }
}

fn storage(node: &Node<'_>, is_nfs: bool, errors: &mut Errors) -> StorageVolume {
    let (name, options) = (node.get("storageName"), node.get("mountOptions"));
    let text = name.text().unwrap_or("");
    if text.is_empty() {
        invalid(&name, "A volume on a storage needs storageName, one of the environment's storages.", errors);
    }
    let given = options.text().unwrap_or("");
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, ',' | '=' | '_' | '-' | '.' | ' ');
    if given.len() > MOUNT_OPTIONS_LENGTH_MAX || !given.chars().all(is_plain) {
        let shown: String = given.chars().take(80).collect();
        let rule = "expected options such as 'uid=1000,gid=1000,dir_mode=0770'";
        invalid(&options, &format!("The mount options '{shown}' are not valid: {rule}."), errors);
    }
    StorageVolume { storage: text.to_owned(), is_nfs, options: given.to_owned() }
}

fn secret_files(node: &Node<'_>, scope: &Scope<'_>, errors: &mut Errors) -> Vec<(String, String)> {
    let mut all = Vec::new();
    for item in node.items() {
        let secret = item.get("secretRef");
        scope.check_secret_ref(&secret, errors);
        let Some(name) = secret.text().filter(|name| !name.is_empty()) else {
            invalid(&secret, "A file of a secret volume needs a secretRef.", errors);
            continue;
        };
        let path = item.get("path").text().unwrap_or(name);
        check_relative(path, &item.get("path"), errors);
        all.push((name.to_owned(), path.to_owned()));
    }
    all
}

fn mounts(node: &Node<'_>, volumes: &BTreeSet<&str>, errors: &mut Errors) -> Vec<VolumeMount> {
    let mut seen = BTreeSet::new();
    let mut all = Vec::new();
    for item in node.items() {
        let (volume, path, sub_path) = (item.get("volumeName"), item.get("mountPath"), item.get("subPath"));
        let name = volume.text().unwrap_or("");
        if !volumes.contains(name) {
            invalid(&volume, &format!("The volume '{name}' does not exist; add it to template.volumes."), errors);
        }
        let text = path.text().unwrap_or("");
        let is_inside =
            text.starts_with('/') && !text.contains([':', '\0']) && !text.split('/').any(|part| part == "..");
        if !is_inside || text.trim_end_matches('/').is_empty() {
            invalid(
                &path,
                &format!("The mount path '{text}' is not valid; expected an absolute path such as '/data'."),
                errors,
            );
        } else if !seen.insert(text.trim_end_matches('/')) {
            invalid(&path, &format!("Two volumes are mounted at '{text}'."), errors);
        }
        if let Some(text) = sub_path.text() {
            check_relative(text, &sub_path, errors);
        }
        all.push(VolumeMount {
            volume: name.to_owned(),
            path: text.to_owned(),
            sub_path: sub_path.text().map(str::to_owned),
        });
    }
    all
}

fn check_relative(path: &str, node: &Node<'_>, errors: &mut Errors) {
    if path.is_empty() || path.starts_with('/') || path.contains('\0') || path.split('/').any(|part| part == "..") {
        invalid(node, &format!("The path '{path}' is not valid; expected a relative path without '..'."), errors);
    }
}
