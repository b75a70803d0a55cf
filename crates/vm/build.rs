//! Builds the guest's agent (`src/bin/cove-vm-agent` and the wire format) as one static executable for the crate to embed.
//!
//! Compiled here and not taken from cargo's own build of that program, because it is data for this crate: it needs other
//! flags (static, small, abort on panic) and must exist before the crate is compiled. Cargo's build of it serves lints and
//! unit tests. Machines are x86-64; elsewhere the embedded agent is empty and the tier is not there.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=src/bin/cove-vm-agent");
    println!("cargo::rerun-if-changed=src/wire.rs");
    let variable = |name: &str| env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"));
    let out = PathBuf::from(variable("OUT_DIR")).join("agent");
    if variable("CARGO_CFG_TARGET_ARCH") != "x86_64" || variable("CARGO_CFG_TARGET_OS") != "linux" {
        fs::write(&out, []).expect("cargo makes OUT_DIR");
        return;
    }
    // Set by cargo when another linker is configured for this target.
    let linker = env::var("RUSTC_LINKER").map(|linker| format!("-Clinker={linker}"));
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "cove_vm_agent", "--target", &variable("TARGET")])
        .args(["-C", "target-feature=+crt-static", "-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"])
        .args(["-C", "codegen-units=1", "-C", "lto=fat", "-C", "relocation-model=static", "--cap-lints", "allow"])
        .args(linker)
        .arg("-o")
        .arg(&out)
        .arg("src/bin/cove-vm-agent/main.rs")
        .status()
        .expect("cargo names a rustc that can be started");
    assert!(
        status.success(),
        "the agent did not compile; a static executable needs the C library's archive (libc6-dev)"
    );
}
