//! What runs machines here: shown by booting one, since a `/dev/kvm` that exists may still not work.
//!
//! On hosts whose own machine has no nested virtualization a guest of KVM may hang without a word, so the probe has a limit;
//! the answer is kept in the guest's cache until the machine restarts or QEMU or the guest change.
//!
//! In software the guest reads the processor's own time stamp counter. Its rate is measured here and told to the guest:
//! what the guest would measure itself on a busy machine fails, and then its clock never ticks.
//!
//! **Invariant:** what is not shown is not there: a machine whose agent did not answer counts as none.

use std::{
    fs,
    io::ErrorKind,
    time::{Duration, Instant},
};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::{
    Accel, Backing, MachineSpec, Network,
    guest::{self, Guest, GuestError},
    local::Local,
    machine::{MEMORY_BYTES_MIN, QEMU},
};

/// Longest boot of a probe with KVM: it takes a fraction of a second where it works.
const KVM_LIMIT: Duration = Duration::from_secs(5);

/// Longest boot of a probe in software, which takes 1.5 s on a quiet machine; tried twice.
const TCG_LIMIT: Duration = Duration::from_secs(60);

/// Name of the file in the cache with the answer.
const ANSWER_FILE: &str = "probe.json";

/// What this machine can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probed {
    /// What runs the code of guests.
    pub accel: Accel,
    /// How long the probe's machine took to its agent.
    pub boot_ms: u64,
    /// Rate of the processor's time stamp counter, for [`MachineSpec::tsc_khz`].
    pub tsc_khz: Option<u32>,
    /// Why KVM is not used, if it is not.
    pub without_kvm: Option<String>,
    /// The program.
    pub qemu: Utf8PathBuf,
    /// What the answer holds for.
    key: String,
}

/// Why machines cannot be run here.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// QEMU is not installed.
    #[error("`{QEMU}` was not found; install it: apt-get install -y qemu-system-x86")]
    NoQemu,
    /// There is no guest.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// A machine did not boot.
    #[error("a virtual machine did not boot here: {0}")]
    Boot(String),
}

/// The guest of `cache` and what runs it; boots a machine unless the answer is known. Blocks, at most two minutes.
///
/// # Errors
/// [`ProbeError`], which names the command that would help.
pub fn probe(cache: &Utf8Path) -> Result<(Guest, Probed), ProbeError> {
    let qemu = guest::program(QEMU).ok_or(ProbeError::NoQemu)?;
    let guest = guest::find(cache)?;
    let key = key(&qemu, &guest);
    let file = cache.join(ANSWER_FILE);
    if let Ok(text) = fs::read_to_string(&file)
        && let Ok(probed) = serde_json::from_str::<Probed>(&text)
        && probed.key == key
    {
        return Ok((guest, probed));
    }
    let tsc_khz = tsc_khz();
    let boot = |accel, limit, tries| {
        let booted = Local::boot(&bare(&guest, &qemu, accel, tsc_khz), limit, tries).map_err(|error| error.to_string());
        booted.map(|machine| u64::try_from(machine.age().as_millis()).unwrap_or(u64::MAX))
    };
    let with_kvm = match fs::File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => boot(Accel::Kvm, KVM_LIMIT, 1),
        Err(error) if error.kind() == ErrorKind::NotFound => Err("there is no /dev/kvm".to_owned()),
        Err(error) => Err(format!("/dev/kvm: {error}")),
    };
    let (accel, boot_ms, without_kvm) = match with_kvm {
        Ok(boot_ms) => (Accel::Kvm, boot_ms, None),
        Err(reason) => (Accel::Tcg, boot(Accel::Tcg, TCG_LIMIT, 2).map_err(ProbeError::Boot)?, Some(reason)),
    };
    let probed = Probed { accel, boot_ms, tsc_khz, without_kvm, qemu, key };
    let text = serde_json::to_vec_pretty(&probed).expect("an answer is JSON");
    guest::write_whole(&file, &text)?;
    Ok((guest, probed))
}

fn key(qemu: &Utf8Path, guest: &Guest) -> String {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let meta = fs::metadata(qemu).ok();
    let changed = meta.as_ref().and_then(|meta| meta.modified().ok());
    let size = meta.map_or(0, |meta| meta.len());
    guest::hex(format!("{boot} {qemu} {size} {changed:?} {}", guest.version).as_bytes())
}

/// A machine that boots to its agent and no further.
#[must_use]
pub fn bare(guest: &Guest, qemu: &Utf8Path, accel: Accel, tsc_khz: Option<u32>) -> MachineSpec {
    MachineSpec {
        qemu: qemu.to_string(),
        accel,
        tsc_khz,
        kernel: guest.kernel.clone(),
        initramfs: guest.initramfs.clone(),
        disk: None,
        memory_bytes: MEMORY_BYTES_MIN,
        backing: Backing::Anonymous,
        cpus: 1,
        agent_fd: 0,
        monitor_fd: None,
        network: Network::Closed,
        ports: Vec::new(),
        is_restored: false,
        is_verbose: false,
    }
}

/// How long the counter is compared with the clock: what is misread at both ends is then less than a second a day.
const TSC_TIME: Duration = Duration::from_millis(100);

/// Ticks of this processor's time stamp counter in a millisecond, measured; `None` on other processors.
#[must_use]
pub fn tsc_khz() -> Option<u32> {
    let (from, ticks_before) = tsc_now()?;
    let mut to = tsc_now()?;
    while to.0.duration_since(from) < TSC_TIME {
        std::thread::yield_now();
        to = tsc_now()?;
    }
    let ticks = u128::from(to.1.checked_sub(ticks_before)?);
    u32::try_from(ticks * 1_000_000 / to.0.duration_since(from).as_nanos()).ok()
}

/// The clock and the counter at the same time: the best of some tries, since others run between the two.
#[cfg(target_arch = "x86_64")]
#[expect(unsafe_code, reason = "the counter is an instruction")]
fn tsc_now() -> Option<(Instant, u64)> {
    let tries = (0..16).map(|_| {
        let before = Instant::now();
        // SAFETY: every x86-64 processor has it, and it changes nothing.
        let ticks = unsafe { core::arch::x86_64::_rdtsc() };
        (before.elapsed(), before, ticks)
    });
    tries.min_by_key(|(took, ..)| *took).map(|(took, before, ticks)| (before + took / 2, ticks))
}

#[cfg(not(target_arch = "x86_64"))]
fn tsc_now() -> Option<(Instant, u64)> {
    None
}
