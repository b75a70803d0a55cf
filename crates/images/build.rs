//! Builds the sample application (`sample/main.rs` and beside it) as one static executable for the store to embed.
//!
//! Compiled here and not as a workspace member, because it is data for this crate: it needs other flags than everything
//! else (static, small, abort on panic) and must exist before the crate is compiled.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=sample");
    let variable = |name: &str| env::var(name).unwrap_or_else(|error| panic!("cargo sets {name}: {error}"));
    let out = PathBuf::from(variable("OUT_DIR")).join("sample");
    // Set by cargo when another linker is configured for this target.
    let linker = env::var("RUSTC_LINKER").map(|linker| format!("-Clinker={linker}"));
    let status = Command::new(variable("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "sample", "--target", &variable("TARGET")])
        .args(["-C", "target-feature=+crt-static", "-C", "opt-level=s", "-C", "panic=abort", "-C", "strip=symbols"])
        .args(["-C", "codegen-units=1", "-C", "lto=fat", "-C", "relocation-model=static"])
        .args(linker)
        .arg("-o")
        .arg(&out)
        .arg("sample/main.rs")
        .status()
        .expect("cargo names a rustc that can be started");
    assert!(
        status.success(),
        "sample/main.rs did not compile; a static executable needs the C library's archive (libc6-dev)"
    );
}
