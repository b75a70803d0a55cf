//! The program `cove`: a helper process when its first argument says so, the command line otherwise.
//!
//! **Invariant:** the helper runs before any thread exists; it forks.

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args_os().skip(1).map(|arg| arg.to_string_lossy().into_owned()).collect();
    if let Some(code) = cove_runtime_oci::shim::main(&args) {
        return code;
    }
    cove_cli::main()
}
