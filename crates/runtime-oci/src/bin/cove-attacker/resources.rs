//! More than its share: processes, threads, memory, disk, files, descriptors, console, processor, kernel objects.
//!
//! Each takes until the kernel says no, within a bound that is well above the limit.

#![expect(unsafe_code, reason = "system calls are tried as they are")]

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    time::{Duration, Instant},
};

use nix::libc;

use crate::{Attempt, Verdict};

/// Processes that a bomb would make; the limit is far below.
const BOMB: usize = 20_000;

/// Bytes that a fill would take; the limit is far below.
const FILL_BYTES: u64 = 8 << 30;

/// Forks until the kernel refuses; the children sleep and end with this process's group.
fn forks() -> Verdict {
    // SAFETY: numbers only.
    unsafe { libc::setpgid(0, 0) };
    let mut count = 0;
    let verdict = loop {
        // SAFETY: this process has one thread; the child only sleeps.
        match unsafe { libc::fork() } {
            // SAFETY: waits for a signal, with the time limit as another end.
            0 => unsafe {
                libc::alarm(10);
                libc::pause();
                libc::_exit(0);
            },
            -1 => break Ok(format!("{count} processes, then {}", io::Error::last_os_error())),
            _ => count += 1,
        }
        if count > BOMB {
            break Err(format!("{count} processes"));
        }
    };
    // SAFETY: ends the group but not this process, which ignores that.
    unsafe {
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::kill(0, libc::SIGTERM);
    }
    verdict
}

fn threads() -> Verdict {
    let mut all = Vec::new();
    loop {
        let begun = std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(|| std::thread::park_timeout(Duration::from_secs(5)));
        match begun {
            Ok(thread) => all.push(thread),
            Err(error) => return Ok(format!("{} threads, then {error}", all.len())),
        }
        if all.len() > BOMB {
            return Err(format!("{} threads", all.len()));
        }
    }
}

/// Ends with this child, or with all of the container.
fn memory() -> Verdict {
    let mut all = Vec::new();
    for _ in 0..FILL_BYTES >> 24 {
        let mut block = Vec::<u8>::new();
        if let Err(error) = block.try_reserve_exact(1 << 24) {
            return Ok(error.to_string());
        }
        block.resize(1 << 24, 1);
        all.push(block);
    }
    Err(format!("{} blocks of 16 MiB", all.len()))
}

fn fills(path: &str) -> Verdict {
    let (block, mut bytes) = (vec![1_u8; 1 << 20], 0_u64);
    let mut file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| error.to_string())?;
    let verdict = loop {
        match file.write(&block) {
            Ok(length) => bytes += length as u64,
            Err(error) => break Ok(format!("{} MiB, then {error}", bytes >> 20)),
        }
        if bytes > FILL_BYTES {
            break Err(format!("{} MiB", bytes >> 20));
        }
    };
    let _ = fs::remove_file(path);
    verdict
}

/// A file that says it is as large as no disk, with a byte at its end.
fn sparse() -> Verdict {
    let path = "/tmp/sparse";
    let file = File::create(path).map_err(|error| error.to_string())?;
    let made = file.set_len(1 << 50);
    // SAFETY: numbers and a descriptor that is open.
    let taken = unsafe { libc::fallocate(std::os::fd::AsRawFd::as_raw_fd(&file), 0, 0, 1 << 40) };
    let error = io::Error::last_os_error();
    let _ = fs::remove_file(path);
    if taken == 0 { Err("a terabyte was set aside".to_owned()) } else { Ok(format!("{}; {error}", made.is_ok())) }
}

fn makes_files() -> Verdict {
    let dir = "/tmp/files";
    fs::create_dir_all(dir).map_err(|error| error.to_string())?;
    let mut count = 0_u32;
    let verdict = loop {
        match File::create(format!("{dir}/{count}")) {
            Ok(_) => count += 1,
            Err(error) => break Ok(format!("{count} files, then {error}")),
        }
        if count > 1 << 20 {
            break Err(format!("{count} files"));
        }
    };
    let _ = fs::remove_dir_all(dir);
    verdict
}

fn opens_files() -> Verdict {
    let mut all = Vec::new();
    loop {
        match File::open("/dev/null") {
            Ok(file) => all.push(file),
            Err(error) => return Ok(format!("{} files, then {error}", all.len())),
        }
        if all.len() > 1 << 20 {
            return Err(format!("{} files", all.len()));
        }
    }
}

/// Writes to the console as fast as it takes it; what it took is the test's to judge.
fn floods(seconds: u64, line: &[u8]) -> Verdict {
    let (begun, mut bytes) = (Instant::now(), 0_u64);
    let mut out = io::stdout();
    while begun.elapsed() < Duration::from_secs(seconds) {
        // a full pipe holds the writer up for a moment at most
        match out.write(line) {
            Ok(length) => bytes += length as u64,
            Err(error) => return Ok(format!("{} KiB, then {error}", bytes >> 10)),
        }
    }
    let limit = 4 * (1 << 20) + (seconds + 2) * (128 << 10) + (1 << 20);
    if bytes > limit { Err(format!("{} KiB", bytes >> 10)) } else { Ok(format!("{} KiB in {seconds} s", bytes >> 10)) }
}

/// Runs on as many processors as it finds; the quota is the group's.
fn spins() -> Verdict {
    let wall = Duration::from_secs(2);
    let begun = Instant::now();
    let spin = move || while begun.elapsed() < wall {};
    let all: Vec<_> = (0..4).filter_map(|_| std::thread::Builder::new().spawn(spin).ok()).collect();
    for thread in all {
        let _ = thread.join();
    }
    let mut used = no_usage();
    // SAFETY: the kernel fills the structure that the call is defined for.
    unsafe { libc::getrusage(libc::RUSAGE_SELF, &raw mut used) };
    let spent = used.ru_utime.tv_sec * 1000 + used.ru_utime.tv_usec / 1000;
    let share = format!("{spent} ms of processor in {} ms", begun.elapsed().as_millis());
    // half a processor, and some leeway for how the kernel counts
    if spent > 1600 { Err(share) } else { Ok(share) }
}

fn no_usage() -> libc::rusage {
    // SAFETY: all zeros are valid for this plain kernel structure.
    unsafe { std::mem::zeroed() }
}

/// Shared memory of the old kind outlives its maker, but not its namespace; what is touched counts.
fn shared_memory() -> Verdict {
    let mut all = Vec::new();
    let verdict = loop {
        // SAFETY: numbers only.
        let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 1 << 24, 0o600 | libc::IPC_CREAT) };
        if id < 0 {
            break Ok(format!("{} segments, then {}", all.len(), io::Error::last_os_error()));
        }
        all.push(id);
        if all.len() > 5000 {
            break Err(format!("{} segments", all.len()));
        }
    };
    for id in all {
        // SAFETY: numbers and no structure.
        unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    }
    verdict
}

fn locks_memory() -> Verdict {
    let block = vec![1_u8; 64 << 20];
    // SAFETY: the block outlives the call.
    let result = unsafe { libc::mlock(block.as_ptr().cast(), block.len()) };
    crate::refused_as(result.into(), &[libc::ENOMEM, libc::EPERM, libc::EAGAIN])
}

fn pipes() -> Verdict {
    let mut all = Vec::new();
    loop {
        match io::pipe() {
            Ok(pipe) => all.push(pipe),
            Err(error) => return Ok(format!("{} pipes, then {error}", all.len())),
        }
        if all.len() > 1 << 20 {
            return Err(format!("{} pipes", all.len()));
        }
    }
}

/// Calls what the platform is told of, over and over.
fn listens() -> Verdict {
    let begun = Instant::now();
    let mut count = 0_u32;
    while begun.elapsed() < Duration::from_secs(2) {
        if std::net::TcpListener::bind("127.0.0.1:0").is_ok() {
            count += 1;
        }
    }
    Ok(format!("{count} times; the platform is told of a few"))
}

/// Takes what the kernel counts to the machine's root, until there is none: the machine has 128 or more.
fn watches() -> Verdict {
    let mut count = 0_u32;
    loop {
        // SAFETY: numbers only.
        if unsafe { libc::inotify_init1(0) } < 0 {
            let said = format!("{count} watchers, then {}", io::Error::last_os_error());
            return if count <= 64 { Ok(said) } else { Err(said) };
        }
        count += 1;
        if count > 1 << 20 {
            return Err(format!("{count} watchers"));
        }
    }
}

/// Signals that wait for ever, counted to the machine's root too.
fn queues_signals() -> Verdict {
    // SAFETY: blocks a signal of this process, and sends it to itself.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGRTMIN());
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        for count in 0..1_u32 << 20 {
            let value = libc::sigval { sival_ptr: std::ptr::null_mut() };
            if libc::sigqueue(libc::getpid(), libc::SIGRTMIN(), value) != 0 {
                let said = format!("{count} signals, then {}", io::Error::last_os_error());
                return if count <= 1024 { Ok(said) } else { Err(said) };
            }
        }
    }
    Err("a million signals wait".to_owned())
}

pub(super) const ALL: &[Attempt] = &[
    ("fork-bomb", |_| forks()),
    ("thread-bomb", |_| threads()),
    ("disk-fill-root", |_| fills("/fill")),
    ("disk-fill-tmp", |_| fills("/tmp/fill")),
    ("disk-fill-devices", |_| fills("/dev/fill")),
    ("shared-memory-fill", |_| fills("/dev/shm/fill")),
    ("sparse-file", |_| sparse()),
    ("file-bomb", |_| makes_files()),
    ("descriptor-bomb", |_| opens_files()),
    ("pipe-bomb", |_| pipes()),
    ("watch-bomb", |_| watches()),
    ("signal-queue", |_| queues_signals()),
    ("console-flood", |_| floods(4, &[b'x'; 4096])),
    ("console-endless-lines", |_| floods(3, b"y\n")),
    ("processor-hog", |_| spins()),
    ("old-shared-memory", |_| shared_memory()),
    ("lock-memory", |_| locks_memory()),
    ("listen-flood", |_| listens()),
    ("memory-bomb", |_| memory()),
];
