//! Contents of the three network files every replica gets.
//!
//! Always written: without its own name in `/etc/hosts`, a program that looks itself up waits seconds for DNS.
//!
//! **Invariant:** pure; the runtime writes the files.

use std::fmt::Write as _;
use std::net::Ipv4Addr;

/// `/etc/hostname` of a replica.
pub fn hostname(name: &str) -> String {
    format!("{name}\n")
}

/// `/etc/hosts` of a replica called `name`.
pub fn hosts(name: &str, address: Ipv4Addr) -> String {
    format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{address}\t{name}\n")
}

/// `/etc/resolv.conf` of a replica: the DNS server on the gateway, and where short names are completed.
///
/// `search` holds the domains of the environment, at most six, as resolvers take no more.
pub fn resolv_conf(gateway: Ipv4Addr, search: &[&str]) -> String {
    let mut text = format!("nameserver {gateway}\n");
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search[..search.len().min(6)].join(" "));
    }
    // An answer comes from the gateway within two seconds, so one repeat is enough.
    text.push_str("options timeout:3 attempts:2\n");
    text
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn files_of_a_replica() {
        let address = Ipv4Addr::new(10, 64, 0, 7);
        let gateway = Ipv4Addr::new(10, 64, 0, 1);
        let all = [
            hostname("web-0"),
            hosts("web-0", address),
            resolv_conf(gateway, &["dev.localhost", "internal.dev.localhost"]),
        ];
        expect![[r#"
            web-0
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            10.64.0.7	web-0
            nameserver 10.64.0.1
            search dev.localhost internal.dev.localhost
            options timeout:3 attempts:2
        "#]]
        .assert_eq(&all.concat());
    }
}
