//! Real machines in software emulation: what is claimed of the guest, shown in as few boots as that takes.
//!
//! Needs root, QEMU, erofs-utils, busybox, and package sources for the kernel (or a guest that was made before, in the
//! folder that `COVE_VM_CACHE` names).

#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "tests fail by panicking, and say how long things took")]

#[path = "boots/fixture.rs"]
mod fixture;

use std::{
    fs::File,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use cove_testing::free_port;
use cove_vm::{
    Backing, LinkEvent, OVERHEAD_BYTES,
    local::{Local, LocalError},
    monitor::{Monitor, copy_memory, memory_of},
    wire::{PROGRAM, Process, Stream, Terminal, WINDOW_BYTES},
};
use fixture::{Fixture, LIMIT, Said, ask, run, sh, shell, unix_ns};

const MEMORY: u64 = 192 << 20;

fn get(port: u16, path: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// One machine, and copies of it: a boot costs more than all that is asked of it.
#[test]
fn a_machine_runs_a_program_and_is_copied() {
    let fixture = Fixture::new();
    let port = free_port();
    let mut spec = fixture.spec(&fixture.busybox(), &[port], MEMORY);
    spec.backing = Backing::Shared;
    let mut machine = Local::boot(&spec, LIMIT, 2).unwrap();
    println!("up after {} ms", machine.age().as_millis());

    the_program_is_ready_when_it_listens(&mut machine, port);
    commands_run_as_told(&mut machine);
    terminals_are_real(&mut machine);
    a_flood_waits_and_orders_pass(&mut machine);
    limits_hold(&mut machine);
    nothing_leads_out(&mut machine);
    copies_go_on(&fixture, &spec, &mut machine, port);

    machine.link.signal(PROGRAM, 15);
    let end = machine.until(LIMIT, |event| matches!(event, LinkEvent::Exited { .. })).unwrap();
    assert_eq!(end, LinkEvent::Exited { id: PROGRAM, code: 143 });
}

fn the_program_is_ready_when_it_listens(machine: &mut Local, port: u16) {
    let script = format!("echo to out; echo to err >&2; exec httpd -f -p {port} -h /www");
    machine.link.run(run(shell(&script), &[port]));
    let mut output = [String::new(), String::new()];
    loop {
        match machine.next(LIMIT).unwrap() {
            LinkEvent::Output { id: PROGRAM, stream, bytes } => {
                output[usize::from(stream == Stream::Err)] += &String::from_utf8(bytes).unwrap();
            }
            LinkEvent::Started { id } => assert_eq!(id, PROGRAM),
            LinkEvent::Listening { port: told } => {
                assert_eq!(told, port);
                break;
            }
            other => panic!("{other:?}"),
        }
    }
    println!("listens after {} ms", machine.age().as_millis());
    assert_eq!(output, ["to out\n", "to err\n"]);
    assert!(get(port, "/page").ends_with("it is served\n"));
    println!("answered after {} ms", machine.age().as_millis());
    let of_program = machine.link.stdin(PROGRAM, b"x");
    assert_eq!(of_program, 0, "the program has no standard input");
}

/// It may be five seconds off, beside what lies between question and answer.
fn the_clock_is_right(machine: &mut Local) {
    let now_s = || unix_ns() / 1_000_000_000;
    let asked_s = now_s();
    let told_s: u64 = sh(machine, "", "date +%s").trim().parse().unwrap();
    let heard_s = now_s();
    assert!((asked_s - 5..=heard_s + 5).contains(&told_s), "the clock says {told_s}, not {asked_s} to {heard_s}");
}

fn commands_run_as_told(machine: &mut Local) {
    the_clock_is_right(machine);
    assert_eq!(
        sh(machine, "", "id -u; id -g; id -G; echo $HOME $COLOUR; pwd"),
        "1000\n1000\n1000 7\n/home/web blue\n/\n"
    );
    assert_eq!(
        sh(machine, "root", "id -u; cat /etc/hosts; cat /proc/sys/kernel/hostname"),
        "0\n127.0.0.1 localhost\nsession-1\n"
    );
    assert_eq!(sh(machine, "0:7", "id -g; cd /; touch /new && ls -d /new"), "7\n/new\n");
    let cwd = Process { cwd: "/home/web/made".into(), env: vec!["PATH=/bin".into()], ..shell("pwd; echo $COLOUR") };
    assert_eq!(ask(machine, cwd, None, b""), Said { out: "/home/web/made\n\n".into(), err: String::new(), code: 0 });
    assert_eq!(ask(machine, shell("exit 7"), None, b"").code, 7);
    assert_eq!(ask(machine, shell("kill -9 $$"), None, b"").code, 137);
    let missing = Process { args: vec!["/no/such".into()], ..Process::default() };
    let said = ask(machine, missing, None, b"");
    assert!(said.code == -1 && said.err.contains("`/no/such` could not be started"), "{said:?}");
    let nobody = ask(machine, Process { user: "nobody".into(), ..shell("id") }, None, b"");
    assert!(nobody.err.contains("is not in the image's /etc/passwd"), "{nobody:?}");
    // more than all windows, both ways
    let text: String = (0..60_000).map(|line| format!("{line}\n")).collect();
    assert!(text.len() > 4 * WINDOW_BYTES);
    let back = ask(machine, shell("cat; echo over >&2"), None, text.as_bytes());
    assert!(back.out == text, "{} bytes came back of {}", back.out.len(), text.len());
    assert_eq!(back.err, "over\n");
}

fn terminals_are_real(machine: &mut Local) {
    let terminal = Some(Terminal { columns: 91, rows: 23 });
    let said = ask(machine, shell("stty size; tty; read line; echo \"<$line>\""), terminal, b"typed\n");
    assert_eq!(said.out.replace("\r\n", "\n").replace("typed\n", ""), "23 91\n/dev/pts/0\n<typed>\n");
}

fn a_flood_waits_and_orders_pass(machine: &mut Local) {
    let flood = machine.link.exec(shell("exec yes"), None).unwrap();
    let mut came = 0;
    while came < WINDOW_BYTES {
        if let LinkEvent::Output { id, bytes, .. } = machine.next(LIMIT).unwrap() {
            assert_eq!(id, flood);
            came += bytes.len();
        }
    }
    // nothing is given back: an order passes, and no byte comes before its answer
    machine.link.ping(1);
    assert_eq!(machine.next(LIMIT).unwrap(), LinkEvent::Pong { token: 1 });
    machine.link.taken(flood, Stream::Out, came);
    machine.until(LIMIT, |event| matches!(event, LinkEvent::Output { .. })).unwrap();
    machine.link.signal(flood, 9);
    let end = machine.until(LIMIT, |event| matches!(event, LinkEvent::Exited { .. })).unwrap();
    assert_eq!(end, LinkEvent::Exited { id: flood, code: 137 });
}

fn limits_hold(machine: &mut Local) {
    let full = ask(machine, shell("dd if=/dev/zero of=/tmp/file bs=1024k count=20 2>&1; exit 3"), None, b"");
    assert!(full.code == 3 && full.out.contains("No space left"), "{full:?}");
    // a shell ends where it cannot fork; the last line ends its whole group
    let bomb = "(for i in $(busybox seq 200); do sleep 300 & done) 2>&1; kill -9 0";
    let many = ask(machine, shell(bomb), None, b"");
    assert!(many.code == 137 && many.out.contains("can't fork"), "{many:?}");
    sh(machine, "", "busybox rm /tmp/file");
    // memory: the kernel ends who took it, and the program goes on
    let id = machine.link.exec(shell("exec tail /dev/zero"), None).unwrap();
    machine.until(LIMIT, |event| matches!(event, LinkEvent::Note { text } if text.contains("out of memory"))).unwrap();
    let end = machine.until(LIMIT, |event| matches!(event, LinkEvent::Exited { .. })).unwrap();
    assert_eq!(end, LinkEvent::Exited { id, code: 137 });
    let status = std::fs::read_to_string(format!("/proc/{}/status", machine.pid())).unwrap();
    let kib = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    // the guest's memory, full by now, is a shared file; the rest is QEMU's own
    let (own, shared) = (kib("RssAnon"), kib("RssFile") + kib("RssShmem"));
    println!("memory: {} MiB of QEMU's own, {} MiB of files", own >> 10, shared >> 10);
    assert!(own << 10 < OVERHEAD_BYTES, "{own} KiB are more than is said");
}

fn nothing_leads_out(machine: &mut Local) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let port = listener.local_addr().unwrap().port();
    for address in ["10.0.2.2", "127.0.0.1", "10.0.2.3", "192.0.2.1"] {
        let said = ask(machine, shell(&format!("wget -T 2 -q -O - http://{address}:{port}/")), None, b"");
        assert_ne!(said.code, 0, "{address}: {said:?}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "nobody came");
    let mounts = sh(machine, "root", "cat /proc/mounts");
    assert!(mounts.lines().any(|line| line.starts_with("root / overlay")), "{mounts}");
    let raw = ask(
        machine,
        Process { user: "root".into(), ..shell("echo 1 > /sys/kernel/mm/x; ls /dev/vda /dev/mem") },
        None,
        b"",
    );
    assert_ne!(raw.code, 0, "{raw:?}");
}

fn copies_go_on(fixture: &Fixture, spec: &cove_vm::MachineSpec, machine: &mut Local, port: u16) {
    sh(machine, "", "echo before > /tmp/note");
    machine.link.quiesce();
    machine.until(LIMIT, |event| *event == LinkEvent::Quiet).unwrap();
    let mut monitor = Monitor::open(machine.take_monitor().unwrap(), LIMIT).unwrap();
    let begun = Instant::now();
    let state_path = fixture.root.join("state");
    monitor.save(&File::create(&state_path).unwrap()).unwrap();
    let saved = begun.elapsed();
    let copy = fixture.root.join("snapshot");
    let bytes = copy_memory(&memory_of(machine.pid()).unwrap(), &File::create(&copy).unwrap()).unwrap();
    monitor.go_on().unwrap();
    machine.link.resume(unix_ns(), vec![1; 32], "session-1".into(), String::new());
    println!(
        "saved in {} ms, {} MiB copied in {} ms more",
        saved.as_millis(),
        bytes >> 20,
        (begun.elapsed() - saved).as_millis()
    );
    assert_eq!(sh(machine, "", "echo after > /tmp/note; cat /tmp/note"), "after\n");

    let copied = |number: u8| {
        let forwarded = free_port();
        let spec = cove_vm::MachineSpec { backing: Backing::Copied(copy.clone()), is_restored: true, ..spec.clone() };
        // the port of the guest stays; where it is reached is this machine's
        let forward = format!("tcp:127.0.0.1:{}-", forwarded);
        let argv_port = format!("tcp:127.0.0.1:{port}-");
        let mut copy = Local::start_with(&spec, |word| word.replace(&argv_port, &forward)).unwrap();
        let mut monitor = Monitor::open(copy.take_monitor().unwrap(), LIMIT).unwrap();
        monitor.restore(&File::open(&state_path).unwrap()).unwrap();
        copy.link.resume(unix_ns(), vec![number; 32], format!("copy-{number}"), format!("127.0.0.1 copy-{number}\n"));
        // what was told of the machine is told of its copy
        assert_eq!(copy.next(LIMIT).unwrap(), LinkEvent::Started { id: PROGRAM });
        assert_eq!(copy.next(LIMIT).unwrap(), LinkEvent::Listening { port });
        println!("copy {number} answers after {} ms", copy.age().as_millis());
        assert!(get(forwarded, "/page").ends_with("it is served\n"));
        println!("copy {number} served after {} ms", copy.age().as_millis());
        copy
    };
    let (mut one, mut two) = (copied(1), copied(2));
    let draw = "head -c 16 /dev/urandom | md5sum; cat /proc/sys/kernel/random/uuid";
    let drawn = [sh(&mut one, "", draw), sh(&mut two, "", draw), sh(machine, "", draw)];
    assert!(drawn[0] != drawn[1] && drawn[1] != drawn[2] && drawn[0] != drawn[2], "{drawn:?}");
    assert_eq!(
        sh(&mut one, "", "cat /tmp/note; echo one > /tmp/note; cat /proc/sys/kernel/hostname"),
        "before\ncopy-1\n"
    );
    let names = "cat /tmp/note /proc/sys/kernel/hostname /etc/hosts";
    assert_eq!(sh(&mut two, "", names), "before\ncopy-2\n127.0.0.1 copy-2\n");
    assert_eq!(sh(machine, "", "cat /tmp/note"), "after\n");
    the_clock_is_right(&mut two);
}

#[test]
fn a_boot_that_takes_too_long_is_ended_and_tried_again() {
    let fixture = Fixture::new();
    let spec = cove_vm::accel::bare(&fixture.guest, &fixture.qemu, cove_vm::Accel::Tcg, cove_vm::accel::tsc_khz());
    let begun = Instant::now();
    let error = Local::boot(&spec, Duration::from_millis(200), 3).unwrap_err();
    assert!(matches!(error, LocalError::Silent { .. }), "{error}");
    assert!(begun.elapsed() >= Duration::from_millis(600), "three tries");
    let wrong = cove_vm::MachineSpec { kernel: "/no/such/kernel".into(), ..spec };
    let error = Local::boot(&wrong, LIMIT, 1).unwrap_err();
    assert!(error.to_string().contains("/no/such/kernel"), "{error}");
}
