//! The helper program alone: what `cove shim-zygote` is, for this crate's tests and for the benchmark.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    cove_runtime_oci::shim::main(&args).unwrap_or(ExitCode::FAILURE)
}
