//! Writes a container's output to its log file.
//!
//! **Invariant:** every byte the container wrote is in the file before its exit is reported, up to the limit of the drain.
//! **Invariant:** a full disk costs log lines, never the container: a failed write is counted and told once it works again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
};

use camino::{Utf8Path, Utf8PathBuf};
use cove_runtime::logs::{
    CriLine, FILE_BYTES_MAX, FILES_KEPT_MAX, LINE_BYTES_MAX, LogStream, file_name, write_cri_line,
};
use jiff::Timestamp;

/// The log file of one container; both of its outputs.
#[derive(Debug)]
pub(crate) struct LogWriter {
    path: Utf8PathBuf,
    file: Option<File>,
    bytes: u64,
    bytes_max: u64,
    pending: [Vec<u8>; 2],
    /// The next line of a stream starts inside a line that was cut.
    lost_lines: u64,
    out: Vec<u8>,
}

impl LogWriter {
    /// The writer of `container`; goes on with the file that is there.
    pub(crate) fn new(dir: &Utf8Path, container: &str) -> Self {
        Self::with_limit(dir, container, FILE_BYTES_MAX)
    }

    fn with_limit(dir: &Utf8Path, container: &str, bytes_max: u64) -> Self {
        let path = dir.join(file_name(container));
        Self { path, file: None, bytes: 0, bytes_max, pending: Default::default(), lost_lines: 0, out: Vec::new() }
    }

    /// Takes what was read from a stream; gives how many bytes of whole lines it made of it: each has a head.
    pub(crate) fn take(&mut self, stream: LogStream, bytes: &[u8], now: Timestamp) -> usize {
        let mut made = 0;
        let mut pending = std::mem::take(&mut self.pending[index(stream)]);
        for (number, piece) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if number > 0 {
                made += self.line(stream, &pending, false, now);
                pending.clear();
            }
            let mut piece = piece;
            while pending.len() + piece.len() > LINE_BYTES_MAX {
                let (head, tail) = piece.split_at(LINE_BYTES_MAX - pending.len());
                pending.extend_from_slice(head);
                made += self.line(stream, &pending, true, now);
                pending.clear();
                piece = tail;
            }
            pending.extend_from_slice(piece);
        }
        self.pending[index(stream)] = pending;
        self.flush();
        made
    }

    /// Writes what is left of a stream's last line; call it when the stream has ended.
    pub(crate) fn end(&mut self, stream: LogStream, now: Timestamp) {
        let pending = std::mem::take(&mut self.pending[index(stream)]);
        if !pending.is_empty() {
            self.line(stream, &pending, false, now);
        }
        self.flush();
    }

    /// Writes a line of the platform itself.
    pub(crate) fn note(&mut self, text: &str, now: Timestamp) {
        self.line(LogStream::Stderr, text.as_bytes(), false, now);
        self.flush();
    }

    fn line(&mut self, stream: LogStream, text: &[u8], is_partial: bool, at: Timestamp) -> usize {
        let before = self.out.len();
        write_cri_line(&CriLine { at, stream, is_partial, text }, &mut self.out);
        let made = self.out.len() - before;
        if self.out.len() >= 256 * 1024 {
            self.flush();
        }
        made
    }

    /// Whole lines only, by one write as long as the disk is not full.
    fn flush(&mut self) {
        if self.out.is_empty() {
            return;
        }
        let out = std::mem::take(&mut self.out);
        let lines = out.iter().filter(|byte| **byte == b'\n').count() as u64;
        if let Err(_error) = self.write(&out) {
            self.lost_lines += lines;
            self.file = None;
        } else if self.lost_lines > 0 {
            let text = format!("cove: {} log lines were lost because they could not be written", self.lost_lines);
            self.lost_lines = 0;
            self.note(&text, Timestamp::now());
        }
        let mut out = out;
        out.clear();
        if self.out.is_empty() {
            self.out = out;
        }
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.bytes > 0 && self.bytes + bytes.len() as u64 > self.bytes_max {
            self.rotate()?;
        }
        if self.file.is_none() {
            let file = OpenOptions::new().append(true).create(true).open(&self.path)?;
            self.bytes = file.metadata()?.len();
            self.file = Some(file);
        }
        if let Some(file) = &mut self.file {
            file.write_all(bytes)?;
        }
        self.bytes += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbers = numbers(&self.path)?;
        let next = numbers.last().map_or(1, |number| number + 1);
        fs::rename(&self.path, format!("{}.{next}", self.path))?;
        self.file = None;
        self.bytes = 0;
        let keep_from = numbers.len().saturating_sub(FILES_KEPT_MAX - 1);
        for number in &numbers[..keep_from] {
            let _ = fs::remove_file(format!("{}.{number}", self.path));
        }
        Ok(())
    }
}

fn index(stream: LogStream) -> usize {
    match stream {
        LogStream::Stdout => 0,
        LogStream::Stderr => 1,
    }
}

/// Numbers of the renamed files, ascending.
fn numbers(path: &Utf8Path) -> io::Result<Vec<u64>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{name}.");
    let mut numbers: Vec<u64> = dir
        .read_dir_utf8()?
        .flatten()
        .filter_map(|entry| entry.file_name().strip_prefix(&prefix)?.parse().ok())
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use cove_runtime::logs::parse_cri_line;

    use super::*;

    fn read(path: &Utf8Path) -> Vec<(LogStream, bool, usize)> {
        let text = fs::read(path).unwrap();
        text.split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| parse_cri_line(line).unwrap())
            .map(|line| (line.stream, line.is_partial, line.text.len()))
            .collect()
    }

    #[test]
    fn lines_are_joined_cut_and_ended() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let mut log = LogWriter::new(dir, "web");
        let now = Timestamp::UNIX_EPOCH;
        log.take(LogStream::Stdout, b"ab", now);
        log.take(LogStream::Stderr, b"x\n\n", now);
        log.take(LogStream::Stdout, b"c\nlast", now);
        log.take(LogStream::Stderr, &vec![b'y'; LINE_BYTES_MAX + 3], now);
        log.end(LogStream::Stdout, now);
        log.end(LogStream::Stderr, now);
        use LogStream::{Stderr, Stdout};
        assert_eq!(
            read(&dir.join("web.log")),
            [
                (Stderr, false, 1),
                (Stderr, false, 0),
                (Stdout, false, 3),
                (Stderr, true, LINE_BYTES_MAX),
                (Stdout, false, 4),
                (Stderr, false, 3)
            ]
        );
    }

    #[test]
    fn files_are_renamed_in_order_and_old_ones_removed() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let mut log = LogWriter::with_limit(dir, "web", 200);
        for number in 0..100 {
            log.take(LogStream::Stdout, format!("line {number}\n").as_bytes(), Timestamp::UNIX_EPOCH);
        }
        let path = dir.join("web.log");
        let numbers = numbers(&path).unwrap();
        assert_eq!(numbers.len(), FILES_KEPT_MAX);
        let all: String = numbers
            .iter()
            .map(|number| format!("{path}.{number}"))
            .chain([path.to_string()])
            .map(|path| fs::read_to_string(path).unwrap())
            .collect();
        let first = all.lines().next().unwrap().rsplit(' ').next().unwrap().parse::<usize>().unwrap();
        assert_eq!(all.lines().count(), 100 - first, "nothing is missing in between");
        assert!(all.ends_with("line 99\n"));
    }
}
