//! What a pool says of snapshots: `coveSnapshot`, `coveSuspend`.

use cove_model::{PoolSnapshot, SUSPENDED_KEEP_SECS, SessionLifecycle, SuspendRule};

use super::PoolContext;
use crate::{ArmError, Errors, container_app::check::range, node::Node};

/// Shortest idle time after which a session is suspended, in seconds.
const IDLE_MIN: u32 = 10;
/// How long a suspended session is kept, in seconds: up to 30 days.
const KEEP: std::ops::RangeInclusive<u32> = 60..=2_592_000;
/// Longest text that is shown of a name that is wrong.
const SHOWN_LENGTH_MAX: usize = 130;

/// What its sessions begin with.
pub(super) fn snapshot(node: &Node<'_>, context: &PoolContext<'_>, errors: &mut Errors) -> Option<PoolSnapshot> {
    let name = node.text().filter(|name| !name.is_empty())?;
    if let Some(id) = context.snapshots.get(name) {
        return Some(PoolSnapshot { name: name.to_owned(), id: id.clone() });
    }
    let shown: String = name.chars().take(SHOWN_LENGTH_MAX).collect();
    let message = format!(
        "There is no snapshot '{shown}' that sessions could begin with; give the name of one of this pool, or 'pool/name' for one of another pool of the resource group."
    );
    errors.push(ArmError::new(400, "SessionSnapshotNotFound", message).at(&node.path));
    None
}

/// When idle sessions are suspended.
pub(super) fn suspend(properties: &Node<'_>, lifecycle: SessionLifecycle, errors: &mut Errors) -> Option<SuspendRule> {
    let node = properties.get("coveSuspend");
    if !node.exists() {
        return None;
    }
    let SessionLifecycle::Timed { cooldown_secs } = lifecycle else {
        let message =
            "coveSuspend means nothing with lifecycleType 'OnContainerExit': such sessions have no cool-down.";
        errors.invalid(&node.path, message);
        return None;
    };
    let idle = node.get("afterIdleSeconds");
    Some(SuspendRule {
        after_idle_secs: range(&idle, IDLE_MIN..=cooldown_secs.max(IDLE_MIN), cooldown_secs, errors),
        keep_secs: range(&node.get("keepSeconds"), KEEP, SUSPENDED_KEEP_SECS, errors),
    })
}
