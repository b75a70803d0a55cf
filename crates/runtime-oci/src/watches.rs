//! What sandboxed programs may take of the kernel's notices of changed files (inotify).
//!
//! The kernel counts them to whoever made a program's user namespace too, and that is the machine's root. Without a bound
//! of its own one program takes all that root may have, 128 objects on most machines, and no program of root, this server
//! among them, gets another one.

use std::fs;

/// Objects that tell, and files that they watch, of each user in a sandbox.
pub(crate) const OF_A_USER_MAX: [(&str, u32); 2] = [("instances", 32), ("watches", 8192)];

/// Room for those of this many sandboxes.
const SANDBOXES: u32 = 2048;

/// Has the machine's root get what all sandboxes may take, and more; never lowers what is set.
pub fn make_room_for_watches() {
    for (what, of_one) in OF_A_USER_MAX {
        let path = format!("/proc/sys/fs/inotify/max_user_{what}");
        let wanted = of_one * SANDBOXES;
        let known = fs::read_to_string(&path).ok().and_then(|text| text.trim().parse::<u32>().ok());
        if known.is_some_and(|known| known < wanted)
            && let Err(error) = fs::write(&path, wanted.to_string())
        {
            tracing::warn!(path, wanted, %error, "many sessions may together take all notices of changed files");
        }
    }
}
