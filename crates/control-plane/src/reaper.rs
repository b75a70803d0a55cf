//! Deletes what is inside deleted groups, and ends what a `kill -9` left half done.
//!
//! Level-triggered: whatever changes, groups that are being deleted are looked at again as a whole. The controller takes the apps down and removes them; once none is left, environments, workspaces and the group itself go.
//!
//! **Invariant:** an environment is never removed while an app lives in it.

use cove_model::ResourceId;
use cove_store::{NewOperation, Provisioning, StoreError};

use crate::{
    apps,
    control_plane::{ControlPlane, new_id},
    environments, jobs, session_pools,
};

impl ControlPlane {
    /// Deletes the content of deleted groups until the shutdown token given to [`ControlPlane::new`] is cancelled.
    ///
    /// # Errors
    /// When the store fails for good.
    pub async fn run(self) -> Result<(), StoreError> {
        let shutdown = self.shutdown().clone();
        let mut changes = self.store().changes();
        end_half_done(&self).await?;
        crate::deployments::recover(&self).await?;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return Ok(()),
                _ = changes.next() => sweep(&self).await?,
            }
        }
    }
}

/// Writes of environments are two transactions; the second may be missing after a `kill -9`.
async fn end_half_done(plane: &ControlPlane) -> Result<(), StoreError> {
    let _structure = plane.structure().await;
    let now = plane.clock().now();
    for kind in crate::environment::POLLED {
        for row in plane.store().resources(kind, None)? {
            if row.provisioning == Provisioning::Deleting {
                plane.store().remove(row.id, now).await?;
            }
        }
    }
    for row in plane.store().resources(environments::KIND, None)? {
        if row.provisioning == Provisioning::Deleting {
            let is_free = apps::in_environment(plane, &row.id).is_ok_and(|apps| apps.is_empty())
                && jobs::in_environment(plane, &row.id).is_ok_and(|jobs| jobs.is_empty())
                && session_pools::in_environment(plane, &row.id)?.is_empty();
            if is_free {
                plane.store().remove(row.id, now).await?;
            }
        } else {
            plane.store().finish(row.id, row.generation, None, now).await?;
        }
    }
    Ok(())
}

/// Looks at every group that is being deleted; an app of another group may have been the last in its environment.
async fn sweep(plane: &ControlPlane) -> Result<(), StoreError> {
    for group in plane.store().resources("resourcegroups", None)? {
        if group.provisioning == Provisioning::Deleting {
            sweep_group(plane, &group.id).await?;
        }
    }
    Ok(())
}

/// Takes a group that is being deleted one step further; does nothing to any other group.
///
/// # Errors
/// When the store fails.
pub(crate) async fn sweep_group(plane: &ControlPlane, group: &ResourceId) -> Result<(), StoreError> {
    let is_deleting = |row: &cove_store::ResourceRow| row.provisioning == Provisioning::Deleting;
    if !plane.store().resource(group)?.as_ref().is_some_and(is_deleting) {
        return Ok(());
    }
    let _structure = plane.structure().await;
    if !plane.store().resource(group)?.as_ref().is_some_and(is_deleting) {
        return Ok(());
    }
    let now = plane.clock().now();
    let rows = plane.store().resources_below(group)?;
    let kinds = [apps::KIND, jobs::KIND, session_pools::KIND];
    let runs = |row: &cove_store::ResourceRow| kinds.iter().any(|kind| row.kind.eq_ignore_ascii_case(kind));
    let (apps, others): (Vec<_>, Vec<_>) = rows.into_iter().partition(runs);
    for app in apps.iter().filter(|app| !is_deleting(app)) {
        let operation = NewOperation { id: new_id(), kind: "delete".into() };
        match plane.store().begin_delete(app.id.clone(), operation, now).await {
            Ok(()) | Err(StoreError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if !apps.is_empty() {
        return Ok(());
    }
    let mut is_empty = true;
    // what hangs on another resource goes and stays with it
    for row in others.into_iter().filter(|row| row.id.parent().is_none()) {
        if row.kind.eq_ignore_ascii_case(environments::KIND) && lives_in(plane, &row.id)? {
            // an app of another group lives in it: that keeps the environment, and so the group
            is_empty = false;
            continue;
        }
        plane.store().remove(row.id, now).await?;
    }
    if is_empty {
        plane.store().remove(group.clone(), now).await?;
    }
    Ok(())
}

fn lives_in(plane: &ControlPlane, environment: &ResourceId) -> Result<bool, StoreError> {
    for row in plane.store().resources(apps::KIND, None)? {
        if apps::model(&row).is_ok_and(|app| app.environment == *environment) {
            return Ok(true);
        }
    }
    for row in plane.store().resources(jobs::KIND, None)? {
        if jobs::model(&row).is_ok_and(|job| job.environment == *environment) {
            return Ok(true);
        }
    }
    Ok(!session_pools::in_environment(plane, environment)?.is_empty())
}
