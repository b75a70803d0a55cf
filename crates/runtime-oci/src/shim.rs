//! The helper processes: `cove shim-zygote` and, forked from it, one helper per replica.
//!
//! The zygote is one single-threaded process with the seccomp filter compiled and a clean mount namespace. It forks
//! helpers on the driver's demand (no program start, memory shared copy-on-write). A helper waits until it is assigned a
//! replica, makes its containers through libcontainer, keeps their logs, restarts and ends them. It is a session of its
//! own and lives on when driver and zygote are gone.
//!
//! **Invariant:** everything in here is single-threaded: libcontainer forks its caller.
//! **Invariant:** a container cannot outlive its helper: the kernel kills it when the helper ends.

mod budget;
mod bundle;
mod carrier;
mod container;
mod exec;
mod freeze;
mod guest_exec;
mod handler;
mod helper;
mod log;
mod machine;
mod machines;
mod memory;
mod sandbox;
mod supervisor;
mod template;
mod user;
mod user_ns;
mod zygote;

use std::process::ExitCode;

pub(crate) use machine::PARTS_DIR;
pub(crate) use sandbox::{IDS_PER_REPLICA, shifted, user_namespace};
pub(crate) use template::{DISK_FILE as DISK_FILE_OF_TEMPLATE, STATE_FILE as STATE_FILE_OF_TEMPLATE};
pub(crate) use zygote::CGROUP_ROOT;
pub use zygote::ZYGOTE_COMMAND;

/// Runs a helper process if `args` (without the program's name) say so; the first thing in `main`, before any thread
/// exists. `None` when the arguments are somebody else's.
///
/// ```no_run
/// fn main() -> std::process::ExitCode {
///     let args: Vec<String> = std::env::args().skip(1).collect();
///     if let Some(code) = cove_runtime_oci::shim::main(&args) {
///         return code;
///     }
///     // The program proper.
///     std::process::ExitCode::SUCCESS
/// }
/// ```
#[must_use]
pub fn main(args: &[String]) -> Option<ExitCode> {
    if args.first().map(String::as_str) != Some(ZYGOTE_COMMAND) {
        return None;
    }
    Some(match zygote::run(&args[1..]) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            use std::io::Write as _;
            let _ = writeln!(std::io::stderr(), "cove {ZYGOTE_COMMAND}: {error}");
            ExitCode::FAILURE
        }
    })
}
