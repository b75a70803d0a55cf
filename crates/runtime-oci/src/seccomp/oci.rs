//! The filter of sandboxed containers as OCI configurations say it, for runtimes that install it themselves.
//!
//! **Invariant:** it allows, refuses and answers the same calls as the compiled one; only notices of `listen` are not in it.

use nix::libc;
use serde_json::{Value, json};

use super::{AF_NETLINK, AF_UNIX, CLONE_NAMESPACES, PERSONALITIES, SOCKET_KINDS, inet_sockets, sandboxed, table};

/// Calls that are allowed by their arguments, below.
const BY_ARGUMENTS: [libc::c_long; 5] =
    [libc::SYS_clone, libc::SYS_clone3, libc::SYS_socket, libc::SYS_socketpair, libc::SYS_personality];

fn name(call: &table::Call) -> &'static str {
    call.0.trim_start_matches("SYS_")
}

/// `linux.seccomp` of a configuration; of a program that runs as root some calls are answered as done.
pub(crate) fn profile(is_root: bool) -> Value {
    let answered: Vec<_> = table::answered(is_root).map(|call| name(&call)).collect();
    let is_plain = |call: &table::Call| !BY_ARGUMENTS.contains(&call.1) && !answered.contains(&name(call));
    let plain: Vec<_> = sandboxed().filter(is_plain).map(|call| name(&call)).collect();
    let equal = |index: u8, value: u64| json!({ "index": index, "value": value, "op": "SCMP_CMP_EQ" });
    let masked = |index: u8, mask: u64, value: u64| json!({ "index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ" });
    let allow = |name: &str, args: Vec<Value>| json!({ "names": [name], "action": "SCMP_ACT_ALLOW", "args": args });
    let mut calls = vec![
        json!({ "names": plain, "action": "SCMP_ACT_ALLOW" }),
        json!({ "names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": libc::ENOSYS }),
        allow("clone", vec![masked(0, CLONE_NAMESPACES, 0)]),
        allow("socket", vec![equal(0, AF_NETLINK), equal(2, 0)]),
    ];
    calls.push(allow("socketpair", vec![equal(0, AF_UNIX)]));
    calls.extend(SOCKET_KINDS.map(|kind| allow("socket", vec![equal(0, AF_UNIX), masked(1, 0xf, kind)])));
    calls.extend(inet_sockets().map(|(family, kind, protocol)| {
        allow("socket", vec![equal(0, family), masked(1, 0xf, kind), equal(2, protocol)])
    }));
    calls.extend(PERSONALITIES.map(|value| allow("personality", vec![equal(0, value)])));
    calls.push(json!({ "names": answered, "action": "SCMP_ACT_ERRNO", "errnoRet": 0 }));
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": libc::EPERM,
        "architectures": [architecture()],
        "syscalls": calls,
    })
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "aarch64" => "SCMP_ARCH_AARCH64",
        "riscv64" => "SCMP_ARCH_RISCV64",
        _ => "SCMP_ARCH_X86_64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls_answered(profile: &Value) -> Vec<String> {
        let of = profile["syscalls"].as_array().unwrap().iter().find(|calls| calls["errnoRet"] == 0).unwrap();
        of["names"].as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn what_a_sandbox_denies_is_not_in_it() {
        for is_root in [false, true] {
            let text = profile(is_root).to_string();
            for denied in table::SANDBOX_DENIED {
                assert!(!text.contains(&format!("\"{}\"", name(denied))), "{denied:?}");
            }
            assert!(text.contains("\"openat\"") && !text.contains("\"mount\"") && !text.contains("SYS_"));
            let answered = calls_answered(&profile(is_root));
            assert!(answered.contains(&"sync".to_owned()), "{answered:?}");
            assert_eq!(answered.contains(&"setuid".to_owned()), is_root, "{answered:?}");
        }
    }
}
