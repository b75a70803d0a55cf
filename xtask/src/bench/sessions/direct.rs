//! Requests to a session from inside its own network: what the container itself takes.

use std::{
    fs::{self, File},
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};

/// A session's network.
pub(super) struct Direct {
    network: PathBuf,
}

impl Direct {
    /// The network of the only session of the server on this data directory.
    pub(super) fn find(data: &Path) -> anyhow::Result<Self> {
        let own = fs::read_link("/proc/self/ns/net")?;
        let data = data.to_str().context("the data directory is not UTF-8")?;
        for entry in fs::read_dir("/proc")?.flatten() {
            let folder = entry.path();
            // its helper was told where the data is
            let is_its = || {
                let status = fs::read_to_string(folder.join("status")).ok()?;
                let parent = status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim();
                Some(fs::read_to_string(format!("/proc/{parent}/cmdline")).ok()?.contains(data))
            };
            let is_other = fs::read_link(folder.join("ns/net")).is_ok_and(|network| network != own);
            let is_sample = fs::read_to_string(folder.join("comm")).is_ok_and(|name| name.trim() == "sample");
            if is_other && is_sample && is_its() == Some(true) {
                return Ok(Self { network: folder.join("ns/net") });
            }
        }
        anyhow::bail!("no process of a session was found")
    }

    /// How long each of `count` requests takes, over one connection.
    pub(super) fn requests(&self, count: usize) -> anyhow::Result<Vec<Duration>> {
        let network = File::open(&self.network)?;
        // the thread ends with its namespace
        let connected = std::thread::spawn(move || -> anyhow::Result<TcpStream> {
            nix::sched::setns(&network, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(TcpStream::connect(("127.0.0.1", 80))?)
        });
        let mut stream =
            connected.join().map_err(|_| anyhow::anyhow!("the thread in the session's network panicked"))??;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut took = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: session\r\n\r\n")?;
            answer(&mut reader)?;
            took.push(begun.elapsed());
        }
        Ok(took)
    }
}

fn answer(reader: &mut BufReader<TcpStream>) -> anyhow::Result<()> {
    let mut length = 0;
    let mut line = String::new();
    for number in 0.. {
        line.clear();
        reader.read_line(&mut line)?;
        if number == 0 {
            ensure!(line.starts_with("HTTP/1.1 200"), "the session answered `{}`", line.trim());
        }
        if line.trim().is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(())
}
