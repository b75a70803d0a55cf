//! Snapshots as session pools name them: which ones a pool may begin its sessions with, and who uses those of a pool.

use std::collections::BTreeMap;

use cove_arm::ArmError;
use cove_model::{ResourceId, SnapshotId};
use cove_store::{Provisioning, StoreError};

use crate::{answer::Refusal, control_plane::ControlPlane, session_pools};

/// Snapshots with a name that a pool may begin with: its own by name, those of other pools of its group as `pool/name`.
pub(crate) fn usable(plane: &ControlPlane, pool: &ResourceId) -> Result<BTreeMap<String, SnapshotId>, StoreError> {
    let mut usable = BTreeMap::new();
    for kept in plane.store().session_snapshots_beside(pool)? {
        let Some(name) = kept.name() else { continue };
        if kept.pool == *pool {
            usable.insert(name.to_owned(), kept.id.clone());
        }
        usable.insert(format!("{}/{name}", kept.pool.name()), kept.id);
    }
    Ok(usable)
}

/// A pool cannot go while another one begins its sessions with a snapshot of it.
pub(crate) fn check_unused(plane: &ControlPlane, pool: &ResourceId) -> Result<(), Refusal> {
    let own: Vec<SnapshotId> = plane.store().session_snapshots(pool)?.into_iter().map(|kept| kept.id).collect();
    if own.is_empty() {
        return Ok(());
    }
    for other in plane.store().session_pools_beside(pool)? {
        let Some(row) = plane.store().resource(&other)? else { continue };
        let used = session_pools::model(&row)?.snapshot;
        if other != *pool
            && row.provisioning != Provisioning::Deleting
            && used.is_some_and(|used| own.contains(&used.id))
        {
            let message = format!(
                "Session pool '{}' begins its sessions with a snapshot of session pool '{}'; change its coveSnapshot or delete it first.",
                other.name(),
                pool.name()
            );
            return Err(ArmError::conflict("SessionSnapshotInUse", message).into());
        }
    }
    Ok(())
}
