//! `cove image build-vm-guest`: makes the kernel and the initial file system of sessions' virtual machines, and boots one.
//!
//! The server is not asked: it looks into the same folder when a pool wants machines.

use camino::Utf8PathBuf;
use cove_vm::{
    accel,
    guest::{self, GuestOptions},
};
use serde_json::json;

use crate::{failure::Failure, output::View, session::Globals, text};

/// Options of `cove image build-vm-guest`.
#[derive(Debug, clap::Args)]
pub(crate) struct BuildVmGuestArgs {
    /// Folder that keeps what was made; the server must use the same.
    #[arg(long, default_value = guest::CACHE)]
    cache: Utf8PathBuf,
    /// Make it anew although it is there.
    #[arg(long)]
    force: bool,
}

pub(crate) fn build(args: &BuildVmGuestArgs, globals: &Globals) -> Result<(), Failure> {
    if globals.place.is_dry_run {
        text::note(&format!("Kernel and initial file system would be made in `{}`.", args.cache));
        return Ok(());
    }
    let options = GuestOptions { cache: args.cache.clone(), is_forced: args.force };
    let made = guest::build(&options, &text::note).map_err(|error| Failure::new(error.to_string()))?;
    text::note("starting a machine to see that it boots");
    let (_, probed) = accel::probe(&args.cache).map_err(|error| Failure::new(error.to_string()))?;
    let value = json!({
        "release": made.release,
        "version": made.version,
        "kernel": made.kernel,
        "initramfs": made.initramfs,
        "accelerator": probed.accel.as_str(),
        "bootMilliseconds": probed.boot_ms,
        "withoutKvm": probed.without_kvm,
    });
    globals.output.print(value, View::Plain)
}
