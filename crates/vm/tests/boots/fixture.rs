//! A guest, an image of busybox, and a machine that is asked things.

use std::{
    fs,
    os::unix::fs::symlink,
    time::{Duration, SystemTime},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_vm::{
    Accel, LinkEvent, MachineSpec,
    accel::{bare, tsc_khz},
    disk::Disks,
    guest::{self, Guest, GuestOptions},
    local::Local,
    machine::QEMU,
    wire::{PROGRAM, Process, Run, Stream, Terminal},
};

/// Longest wait for anything: machines are slow where many tests run.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);

pub(crate) struct Fixture {
    _folder: tempfile::TempDir,
    pub(crate) root: Utf8PathBuf,
    pub(crate) guest: Guest,
    pub(crate) qemu: Utf8PathBuf,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        let cache = std::env::var("COVE_VM_CACHE").map_or_else(|_| guest::CACHE.into(), Utf8PathBuf::from);
        let options = GuestOptions { cache, is_forced: false };
        let guest = guest::build(&options, &|line| println!("{line}")).expect("a guest is made here");
        let qemu = guest::program(QEMU).expect("QEMU is needed: apt-get install -y qemu-system-x86");
        Self { _folder: folder, root, guest, qemu }
    }

    /// A disk with busybox, two users and a page.
    pub(crate) fn busybox(&self) -> Utf8PathBuf {
        let layer = self.root.join("layers/busybox/fs");
        for name in ["bin", "etc", "www", "home/web"] {
            fs::create_dir_all(layer.join(name)).unwrap();
        }
        fs::copy("/bin/busybox", layer.join("bin/busybox")).expect("busybox is needed: apt-get install busybox-static");
        let programs =
            "sh cat echo id date dd df head httpd kill ls md5sum mount ps sleep stty tail touch tty wc wget yes";
        for program in programs.split(' ') {
            symlink("busybox", layer.join("bin").join(program)).unwrap();
        }
        fs::write(layer.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:1000:1000::/home/web:/bin/sh\n").unwrap();
        fs::write(layer.join("etc/group"), "root:x:0:\nweb:x:1000:\nlog:x:7:web\n").unwrap();
        fs::write(layer.join("www/page"), "it is served\n").unwrap();
        self.disk(&[layer], "busybox")
    }

    pub(crate) fn disk(&self, layers: &[Utf8PathBuf], name: &str) -> Utf8PathBuf {
        let at = self.root.join(format!("{name}.erofs"));
        Disks::open(self.root.join("disks"), u64::MAX).unwrap().link(layers, &at).unwrap();
        at
    }

    pub(crate) fn spec(&self, disk: &Utf8Path, ports: &[u16], memory_bytes: u64) -> MachineSpec {
        MachineSpec {
            disk: Some(disk.to_owned()),
            ports: ports.to_vec(),
            memory_bytes,
            ..bare(&self.guest, &self.qemu, Accel::Tcg, tsc_khz())
        }
    }
}

pub(crate) fn unix_ns() -> u64 {
    u64::try_from(SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos()).unwrap()
}

pub(crate) fn shell(script: &str) -> Process {
    Process { args: vec!["/bin/sh".into(), "-c".into(), script.into()], ..Process::default() }
}

pub(crate) fn run(process: Process, ports: &[u16]) -> Run {
    Run {
        process: Process { env: vec!["PATH=/bin".into(), "COLOUR=blue".into()], user: "web".into(), ..process },
        hostname: "session-1".into(),
        hosts: "127.0.0.1 localhost\n".into(),
        resolv_conf: "nameserver 10.0.2.3\n".into(),
        disk_bytes: 8 << 20,
        clock_unix_ns: unix_ns(),
        entropy: cove_vm::wire::Bytes((0..64).collect()),
        ports: ports.to_vec(),
        tasks_max: 100,
        ..Run::default()
    }
}

/// What a command said and how it ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Said {
    pub(crate) out: String,
    pub(crate) err: String,
    pub(crate) code: i32,
}

/// Runs a command to its end, with this standard input.
pub(crate) fn ask(machine: &mut Local, process: Process, terminal: Option<Terminal>, mut input: &[u8]) -> Said {
    let id = machine.link.exec(process, terminal).expect("few commands run");
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let taken = machine.link.stdin(id, input);
        input = &input[taken..];
        if input.is_empty() && terminal.is_none() {
            machine.link.stdin_end(id);
        }
        match machine.next(LIMIT).unwrap() {
            LinkEvent::Output { id: from, stream, bytes } => {
                machine.link.taken(from, stream, bytes.len());
                if from == id {
                    (if stream == Stream::Out { &mut out } else { &mut err }).extend(bytes);
                }
            }
            LinkEvent::Exited { id: ended, code } if ended == id => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return Said { out: text(out), err: text(err), code };
            }
            LinkEvent::Failed { id: failed, reason } if failed == id => {
                return Said { out: String::new(), err: reason, code: -1 };
            }
            LinkEvent::Exited { id: PROGRAM, code } => panic!("the program ended with {code}"),
            _ => {}
        }
    }
}

/// Runs a script as `user` (as the program's when empty) and gives what it said, which must end well.
pub(crate) fn sh(machine: &mut Local, user: &str, script: &str) -> String {
    let said = ask(machine, Process { user: user.into(), ..shell(script) }, None, b"");
    assert_eq!((said.code, said.err.as_str()), (0, ""), "{script}: {}", said.out);
    said.out
}
