//! A program that tries to get out of its container, one named attempt per request: for the hostile suite alone.
//!
//! `cove-attacker` listens on port 80. A request is one line, the name of an attempt with what it is told; the answer is one
//! line, `contained` or `escaped` and why. Each attempt is made by a child, which the kernel may well end.
//!
//! **Invariant:** an attempt counts as contained only when it failed for the right reason; a mistake in it is an escape.

#![expect(unsafe_code, reason = "system calls are tried as they are")]

mod calls;
mod files;
mod network;
mod resources;

use std::{
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
};

use nix::libc;

/// How an attempt ended.
pub(crate) type Verdict = Result<String, String>;

/// An attempt; it is told what the test knows of the outside.
pub(crate) type Attempt = (&'static str, fn(&str) -> Verdict);

/// Longest time of an attempt, seconds.
const LIMIT_SECS: u32 = 20;

fn all() -> impl Iterator<Item = &'static Attempt> {
    let network = network::ALL.iter().chain(network::OUTWARD);
    calls::ALL.iter().chain(files::ALL).chain(network).chain(resources::ALL)
}

fn main() -> std::io::Result<()> {
    let listener = TcpListener::bind("0.0.0.0:80")?;
    // SAFETY: no handler is installed; children are not waited for. It means to outlive whoever made it, and to hear no
    // request to end.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_IGN);
        libc::signal(libc::SIGTERM, libc::SIG_IGN);
        libc::prctl(libc::PR_SET_PDEATHSIG, 0);
    }
    for stream in listener.incoming() {
        let stream = stream?;
        // SAFETY: this process has one thread.
        match unsafe { libc::fork() } {
            0 => {
                drop(listener);
                // SAFETY: sets a timer that ends this child.
                unsafe { libc::alarm(LIMIT_SECS) };
                let _ = answer(&stream);
                // SAFETY: ends this copy without running what belongs to its parent.
                unsafe { libc::_exit(0) }
            }
            -1 => drop(writeln!(&stream, "busy")),
            _ => {}
        }
    }
    Ok(())
}

fn answer(stream: &TcpStream) -> std::io::Result<()> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let line = line.trim();
    let (name, told) = line.split_once(' ').unwrap_or((line, ""));
    let mut stream = stream;
    if name == "list" {
        let names: Vec<_> = all().map(|(name, _)| *name).collect();
        return writeln!(stream, "{}", names.join(" "));
    }
    match all().find(|(known, _)| *known == name).map(|(_, attempt)| attempt(told)) {
        Some(Ok(why)) => writeln!(stream, "contained {why}"),
        Some(Err(why)) => writeln!(stream, "escaped {why}"),
        None => writeln!(stream, "unknown"),
    }
}

/// A call that the kernel must refuse: not permitted, or not there.
pub(crate) fn refused(result: libc::c_long) -> Verdict {
    refused_as(result, &[libc::EPERM, libc::EACCES, libc::ENOSYS])
}

/// A call that must fail with one of these errors.
pub(crate) fn refused_as(result: libc::c_long, errors: &[i32]) -> Verdict {
    let error = std::io::Error::last_os_error();
    match error.raw_os_error() {
        _ if result != -1 => Err(format!("the call succeeded: {result}")),
        Some(code) if errors.contains(&code) => Ok(error.to_string()),
        _ => Err(format!("it failed for another reason: {error}")),
    }
}

/// The same for what the standard library does.
pub(crate) fn refused_io<T>(result: std::io::Result<T>, errors: &[i32]) -> Verdict {
    match result {
        Ok(_) => Err("it succeeded".to_owned()),
        Err(error) if error.raw_os_error().is_some_and(|code| errors.contains(&code)) => Ok(error.to_string()),
        Err(error) => Err(format!("it failed for another reason: {error}")),
    }
}
