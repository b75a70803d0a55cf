//! QEMU's command line of a session's machine, from values alone.
//!
//! The machine is `microvm`: no PCI, no graphics, no keyboard, no disk controller; a serial port for the agent, one read-only
//! disk, and a network card when a port is to be reached. It boots the kernel itself, and the emulation is small, which is
//! what a hostile guest can attack. What stands around QEMU (namespaces, no capabilities, system calls) is the sandbox's.
//!
//! **Invariant:** only what stands here is in the machine: no defaults, no user's configuration, nothing writable.
//! **Invariant:** without egress the emulated network leads to no address but the forwarded ports of the guest.

use camino::Utf8PathBuf;

/// The program.
pub const QEMU: &str = "qemu-system-x86_64";

/// Memory of the process beside the guest's own: QEMU itself, its threads' stacks, and the code that emulation made
/// ([`TCG_CODE_BYTES`]). A container that holds a machine gets the guest's memory and this.
pub const OVERHEAD_BYTES: u64 = 192 << 20;

/// Bytes of translated code that software emulation keeps at most.
pub const TCG_CODE_BYTES: u64 = 64 << 20;

/// Smallest memory that a guest boots with.
pub const MEMORY_BYTES_MIN: u64 = 128 << 20;

/// Address of the guest in the emulated network, and of what forwards beyond it.
pub const GUEST_ADDRESS: [u8; 4] = [10, 0, 2, 15];
/// Gateway of the emulated network.
pub const GATEWAY_ADDRESS: [u8; 4] = [10, 0, 2, 2];
/// Resolver of the emulated network; asks what QEMU's `/etc/resolv.conf` names.
pub const RESOLVER_ADDRESS: [u8; 4] = [10, 0, 2, 3];

/// What runs the guest's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Accel {
    /// Software: everywhere, slower.
    Tcg,
    /// The processor: `/dev/kvm` must be open to QEMU.
    Kvm,
}

impl Accel {
    /// QEMU's word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcg => "tcg",
            Self::Kvm => "kvm",
        }
    }
}

/// The guest's way out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    /// Forwarded ports lead in, nothing leads out.
    #[default]
    Closed,
    /// QEMU connects on the guest's behalf, from the network namespace that it runs in.
    Open,
}

/// What the guest's memory is.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Backing {
    /// Memory of the process.
    #[default]
    Anonymous,
    /// Memory of the process that has a name among its descriptors (`/proc/PID/fd`, a link to `/memfd:`): a machine of
    /// which a snapshot may be taken. [`crate::monitor::memory_of`] finds it.
    Shared,
    /// A file, written through: as `Shared`, for a machine whose memory may lie on a disk.
    Saved(Utf8PathBuf),
    /// A file, copied page by page when it is written to: a machine that goes on from a snapshot.
    Copied(Utf8PathBuf),
}

/// A machine. Paths are as QEMU sees them, descriptors are open in QEMU's process.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MachineSpec {
    /// The program, [`QEMU`] or its path.
    pub qemu: String,
    /// What runs the code.
    pub accel: Accel,
    /// Ticks of the processor's time stamp counter in a millisecond ([`crate::accel::tsc_khz`]); needed with [`Accel::Tcg`]:
    /// the machine has no other clock that is sure to be read in time, and a guest that does not know its rate stands still.
    pub tsc_khz: Option<u32>,
    /// The kernel (uncompressed ELF).
    pub kernel: Utf8PathBuf,
    /// The initial file system with the agent.
    pub initramfs: Utf8PathBuf,
    /// EROFS of the image; `None` for a machine that only shows that it boots.
    pub disk: Option<Utf8PathBuf>,
    /// The guest's memory, bytes; at least [`MEMORY_BYTES_MIN`].
    pub memory_bytes: u64,
    /// What that memory is.
    pub backing: Backing,
    /// Processors, 1 or more.
    pub cpus: u8,
    /// A connected stream socket to the holder of the [`crate::Link`].
    pub agent_fd: i32,
    /// A connected stream socket for QEMU's monitor; needed for snapshots.
    pub monitor_fd: Option<i32>,
    /// The way out.
    pub network: Network,
    /// Ports of 127.0.0.1 in QEMU's network namespace that lead to the same port of the guest.
    pub ports: Vec<u16>,
    /// It does not boot but goes on from a snapshot: with [`Backing::Copied`], a monitor, and all else as it was.
    pub is_restored: bool,
    /// The kernel's messages on standard output: for looking at a guest that does not boot.
    pub is_verbose: bool,
}

impl MachineSpec {
    /// Program and arguments.
    #[must_use]
    pub fn argv(&self) -> Vec<String> {
        let mut line = Line(vec![self.qemu.clone()]);
        line.words("-nodefaults -no-user-config -no-reboot -display none");
        line.words("-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
        self.board(&mut line);
        self.boot(&mut line);
        line.pair("-chardev", format!("socket,id=agent,fd={}", self.agent_fd));
        line.words("-device virtio-serial-device,max_ports=2");
        line.pair("-device", format!("virtserialport,chardev=agent,name={}", crate::wire::PORT_NAME));
        if let Some(disk) = &self.disk {
            let file = escape(disk.as_str());
            line.pair("-blockdev", format!("driver=file,node-name=file,filename={file},read-only=on,locking=off"));
            line.words("-blockdev driver=raw,node-name=root,file=file,read-only=on");
            line.words("-device virtio-blk-device,drive=root");
        }
        if !self.ports.is_empty() || self.network == Network::Open {
            line.pair("-netdev", self.netdev());
            line.words("-device virtio-net-device,netdev=net");
        }
        if let Some(fd) = self.monitor_fd {
            line.pair("-chardev", format!("socket,id=monitor,fd={fd}"));
            line.words("-mon chardev=monitor,mode=control");
        }
        if self.is_restored {
            // the monitor says from where: what the stream lacks must be said before it is read
            line.words("-incoming defer");
        }
        line.0
    }

    fn board(&self, line: &mut Line) {
        let memory = self.memory_bytes;
        line.words("-machine microvm,memory-backend=ram,dump-guest-core=off");
        match self.accel {
            Accel::Tcg => line.pair("-accel", format!("tcg,thread=multi,tb-size={}", TCG_CODE_BYTES >> 20)),
            Accel::Kvm => line.words("-accel kvm"),
        }
        line.pair("-cpu", if self.accel == Accel::Tcg { "max" } else { "host" }.to_owned());
        line.pair("-smp", format!("{}", self.cpus.max(1)));
        line.pair("-m", format!("{}k", memory >> 10));
        let size = (memory >> 10) << 10;
        line.pair(
            "-object",
            match &self.backing {
                Backing::Anonymous => format!("memory-backend-ram,id=ram,size={size}"),
                Backing::Shared => format!("memory-backend-memfd,id=ram,size={size},share=on"),
                Backing::Saved(path) => {
                    format!("memory-backend-file,id=ram,size={size},mem-path={},share=on", escape(path.as_str()))
                }
                Backing::Copied(path) => {
                    format!("memory-backend-file,id=ram,size={size},mem-path={},share=off", escape(path.as_str()))
                }
            },
        );
    }

    fn boot(&self, line: &mut Line) {
        line.pair("-kernel", self.kernel.to_string());
        line.pair("-initrd", self.initramfs.to_string());
        let mut words = "reboot=t panic=-1 random.trust_cpu=on cgroup_no_v1=all mitigations=off".to_owned();
        if let (Accel::Tcg, Some(khz)) = (self.accel, self.tsc_khz) {
            words.push_str(&format!(" tsc_early_khz={khz}"));
        }
        if self.is_verbose {
            words.push_str(" console=ttyS0");
            line.words("-serial stdio");
        } else {
            words.push_str(" quiet loglevel=0 8250.nr_uarts=0");
        }
        line.pair("-append", words);
    }

    fn netdev(&self) -> String {
        let restrict = if self.network == Network::Closed { "on" } else { "off" };
        let mut text = format!("user,id=net,ipv6=off,restrict={restrict}");
        let guest = GUEST_ADDRESS.map(|part| part.to_string()).join(".");
        for port in &self.ports {
            text.push_str(&format!(",hostfwd=tcp:127.0.0.1:{port}-{guest}:{port}"));
        }
        text
    }
}

/// A command line that is being written.
struct Line(Vec<String>);

impl Line {
    fn words(&mut self, text: &str) {
        self.0.extend(text.split(' ').map(str::to_owned));
    }

    fn pair(&mut self, option: &str, value: String) {
        self.0.push(option.to_owned());
        self.0.push(value);
    }
}

/// A comma ends a value unless it is doubled.
fn escape(value: &str) -> String {
    value.replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn spec() -> MachineSpec {
        MachineSpec {
            qemu: QEMU.to_owned(),
            accel: Accel::Tcg,
            tsc_khz: Some(2_596_440),
            kernel: "/guest/vmlinux".into(),
            initramfs: "/guest/initramfs".into(),
            disk: Some("/disks/a,b.erofs".into()),
            memory_bytes: (512 << 20) + 5,
            backing: Backing::Anonymous,
            cpus: 1,
            agent_fd: 3,
            monitor_fd: None,
            network: Network::Closed,
            ports: vec![80],
            is_restored: false,
            is_verbose: false,
        }
    }

    fn check(spec: &MachineSpec, expected: &Expect) {
        let text = spec.argv().join(" ").replace(" -", "\n-");
        expected.assert_eq(&text);
    }

    #[test]
    fn closed_machine() {
        check(
            &spec(),
            &expect![[r#"
            qemu-system-x86_64
            -nodefaults
            -no-user-config
            -no-reboot
            -display none
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -machine microvm,memory-backend=ram,dump-guest-core=off
            -accel tcg,thread=multi,tb-size=64
            -cpu max
            -smp 1
            -m 524288k
            -object memory-backend-ram,id=ram,size=536870912
            -kernel /guest/vmlinux
            -initrd /guest/initramfs
            -append reboot=t panic=-1 random.trust_cpu=on cgroup_no_v1=all mitigations=off tsc_early_khz=2596440 quiet loglevel=0 8250.nr_uarts=0
            -chardev socket,id=agent,fd=3
            -device virtio-serial-device,max_ports=2
            -device virtserialport,chardev=agent,name=cove.agent
            -blockdev driver=file,node-name=file,filename=/disks/a,,b.erofs,read-only=on,locking=off
            -blockdev driver=raw,node-name=root,file=file,read-only=on
            -device virtio-blk-device,drive=root
            -netdev user,id=net,ipv6=off,restrict=on,hostfwd=tcp:127.0.0.1:80-10.0.2.15:80
            -device virtio-net-device,netdev=net"#]],
        );
    }

    #[test]
    fn open_machine_that_goes_on_from_a_snapshot() {
        let spec = MachineSpec {
            accel: Accel::Kvm,
            backing: Backing::Copied("/snapshot/ram".into()),
            monitor_fd: Some(4),
            is_restored: true,
            network: Network::Open,
            ports: vec![],
            disk: None,
            is_verbose: true,
            cpus: 2,
            ..spec()
        };
        check(
            &spec,
            &expect![[r#"
            qemu-system-x86_64
            -nodefaults
            -no-user-config
            -no-reboot
            -display none
            -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
            -machine microvm,memory-backend=ram,dump-guest-core=off
            -accel kvm
            -cpu host
            -smp 2
            -m 524288k
            -object memory-backend-file,id=ram,size=536870912,mem-path=/snapshot/ram,share=off
            -kernel /guest/vmlinux
            -initrd /guest/initramfs
            -serial stdio
            -append reboot=t panic=-1 random.trust_cpu=on cgroup_no_v1=all mitigations=off console=ttyS0
            -chardev socket,id=agent,fd=3
            -device virtio-serial-device,max_ports=2
            -device virtserialport,chardev=agent,name=cove.agent
            -netdev user,id=net,ipv6=off,restrict=off
            -device virtio-net-device,netdev=net
            -chardev socket,id=monitor,fd=4
            -mon chardev=monitor,mode=control
            -incoming defer"#]],
        );
    }
}
