//! Workload profile types: what hardware a profile stands for, as Azure's list of supported types gives it.
//!
//! On one machine a profile is an admission class: it says how much one replica may ask and how much all replicas of the
//! profile may have together. The hardware itself is the machine's.

use crate::{Bytes, MilliCpu, WorkloadProfile};

/// A type of workload profile.
/// Source: learn.microsoft.com/azure/container-apps/workload-profiles-overview.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkloadProfileKind {
    /// Azure's name: `D4`.
    pub name: &'static str,
    /// Group in `list-supported`: `GeneralPurpose`, `MemoryOptimized`, `GPU-NC-A100`, …
    pub category: &'static str,
    /// `displayName` in `list-supported`.
    pub display_name: &'static str,
    /// Cores of one node; the most that one replica may ask.
    pub cores: u32,
    /// Memory of one node in GiB; the most that one replica may ask.
    pub memory_gib: u32,
    /// GPUs of one node.
    pub gpus: u32,
    /// Has nodes of its own, with a least and a greatest number; otherwise replicas share what the platform has.
    pub is_dedicated: bool,
}

const fn kind(
    name: &'static str,
    (category, display_name): (&'static str, &'static str),
    (cores, memory_gib, gpus): (u32, u32, u32),
    is_dedicated: bool,
) -> WorkloadProfileKind {
    WorkloadProfileKind { name, category, display_name, cores, memory_gib, gpus, is_dedicated }
}

const GENERAL: &str = "GeneralPurpose";
const MEMORY: &str = "MemoryOptimized";

/// Every type, in the order of `list-supported`.
pub const WORKLOAD_PROFILE_KINDS: &[WorkloadProfileKind] = &[
    kind("Consumption", ("Consumption", "Consumption"), (4, 8, 0), false),
    kind("D4", (GENERAL, "Dedicated-D4"), (4, 16, 0), true),
    kind("D8", (GENERAL, "Dedicated-D8"), (8, 32, 0), true),
    kind("D16", (GENERAL, "Dedicated-D16"), (16, 64, 0), true),
    kind("D32", (GENERAL, "Dedicated-D32"), (32, 128, 0), true),
    kind("E4", (MEMORY, "Dedicated-E4"), (4, 32, 0), true),
    kind("E8", (MEMORY, "Dedicated-E8"), (8, 64, 0), true),
    kind("E16", (MEMORY, "Dedicated-E16"), (16, 128, 0), true),
    kind("E32", (MEMORY, "Dedicated-E32"), (32, 256, 0), true),
    kind("NC24-A100", ("GPU-NC-A100", "Dedicated-NC24-A100"), (24, 220, 1), true),
    kind("NC48-A100", ("GPU-NC-A100", "Dedicated-NC48-A100"), (48, 440, 2), true),
    kind("NC96-A100", ("GPU-NC-A100", "Dedicated-NC96-A100"), (96, 880, 4), true),
    kind("Consumption-GPU-NC24-A100", ("Consumption-GPU", "Consumption-GPU-NC24-A100"), (24, 220, 1), false),
    kind("Consumption-GPU-NC8as-T4", ("Consumption-GPU", "Consumption-GPU-NC8as-T4"), (8, 56, 1), false),
];

/// Names that users know from elsewhere.
const ALIASES: &[(&str, &str)] = &[("GPU-A100", "NC24-A100")];

impl WorkloadProfileKind {
    /// The type of this name, any case, aliases too (`GPU-A100` is `NC24-A100`).
    #[must_use]
    pub fn find(name: &str) -> Option<&'static Self> {
        let alias = ALIASES.iter().find(|(alias, _)| alias.eq_ignore_ascii_case(name));
        let name = alias.map_or(name, |(_, name)| name);
        WORKLOAD_PROFILE_KINDS.iter().find(|kind| kind.name.eq_ignore_ascii_case(name))
    }

    /// The most CPU that one replica may ask.
    #[must_use]
    pub fn cpu(&self) -> MilliCpu {
        MilliCpu(self.cores.saturating_mul(1000))
    }

    /// The most memory that one replica may ask.
    #[must_use]
    pub fn memory(&self) -> Bytes {
        Bytes(u64::from(self.memory_gib) << 30)
    }
}

impl WorkloadProfile {
    /// What all replicas of this profile may have together: its greatest number of nodes; `None` when it has no nodes.
    #[must_use]
    pub fn limit(&self) -> Option<(MilliCpu, Bytes)> {
        let kind = WorkloadProfileKind::find(&self.kind).filter(|kind| kind.is_dedicated)?;
        let nodes = self.max_nodes;
        let memory = kind.memory().0.saturating_mul(u64::from(nodes));
        Some((MilliCpu(kind.cpu().0.saturating_mul(nodes)), Bytes(memory)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_no_case_and_an_alias() {
        for (asked, found) in [
            ("d4", Some("D4")),
            ("CONSUMPTION-GPU-NC24-A100", Some("Consumption-GPU-NC24-A100")),
            ("GPU-A100", Some("NC24-A100")),
            ("D5", None),
        ] {
            assert_eq!(WorkloadProfileKind::find(asked).map(|kind| kind.name), found, "{asked}");
        }
    }

    #[test]
    fn nodes_make_the_limit() {
        let profile = |kind: &str, max_nodes| WorkloadProfile {
            name: "p".to_owned(),
            kind: kind.to_owned(),
            min_nodes: 0,
            max_nodes,
        };
        assert_eq!(profile("D4", 2).limit(), Some((MilliCpu(8000), Bytes(32 << 30))));
        assert_eq!(profile("D4", 0).limit(), Some((MilliCpu(0), Bytes(0))));
        assert_eq!(profile("Consumption", 9).limit(), None);
    }
}
