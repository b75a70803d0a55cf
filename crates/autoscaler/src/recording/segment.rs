//! The files of a recording: names, batches, entries.
//!
//! A segment is `<number>-<milliseconds of its first decision>.scale`: a magic word, then batches, each with its length and
//! checksum. A batch holds entries: the revision's number in this segment, a tag, a length, bytes.
//!
//! **Invariant:** a batch is read whole or not at all; what follows a damaged one in its segment is not read.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use cove_scaling::tape::Entry;

pub(super) const MAGIC: &[u8; 8] = b"COVESCA1";
/// Longest batch; a longer one is damage.
pub(super) const BATCH_BYTES_MAX: usize = 64 << 20;

pub(super) const TAG_NAME: u8 = 0;
const TAG_CONFIG: u8 = 1;
const TAG_ONE: u8 = 2;
const TAG_RUN: u8 = 3;

/// One file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) number: u64,
    /// Milliseconds since 1970 of its first decision.
    pub(super) first_ms: i64,
    pub(super) path: PathBuf,
}

impl Segment {
    pub(super) fn new(dir: &Path, number: u64, first_ms: i64) -> Self {
        Self { number, first_ms, path: dir.join(format!("{number:08}-{first_ms}.scale")) }
    }
}

/// The segments of a directory in their order; other files are left alone.
pub(super) fn list(dir: &Path) -> io::Result<Vec<Segment>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let parts = path.file_name().and_then(|name| name.to_str()).and_then(|name| {
            let (number, first) = name.strip_suffix(".scale")?.split_once('-')?;
            Some((number.parse().ok()?, first.parse().ok()?))
        });
        if let Some((number, first_ms)) = parts {
            found.push(Segment { number, first_ms, path });
        }
    }
    found.sort_unstable();
    Ok(found)
}

pub(super) fn tag(entry: Entry<'_>) -> (u8, &[u8]) {
    match entry {
        Entry::Config(bytes) => (TAG_CONFIG, bytes),
        Entry::One(bytes) => (TAG_ONE, bytes),
        Entry::Run(bytes) => (TAG_RUN, bytes),
    }
}

pub(super) fn entry(tag: u8, bytes: &[u8]) -> Option<Entry<'_>> {
    match tag {
        TAG_CONFIG => Some(Entry::Config(bytes)),
        TAG_ONE => Some(Entry::One(bytes)),
        TAG_RUN => Some(Entry::Run(bytes)),
        _ => None,
    }
}

pub(super) fn put_entry(batch: &mut Vec<u8>, revision: u32, tag: u8, bytes: &[u8]) {
    put_number(batch, revision);
    batch.push(tag);
    put_number(batch, u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    batch.extend_from_slice(bytes);
}

/// The next entry of a batch: revision, tag, bytes; `None` at its end, or where it is not one.
pub(super) fn take_entry<'a>(batch: &mut &'a [u8]) -> Option<(u32, u8, &'a [u8])> {
    let revision = take_number(batch)?;
    let (&tag, rest) = batch.split_first()?;
    *batch = rest;
    let length = usize::try_from(take_number(batch)?).ok()?;
    let (bytes, rest) = batch.split_at_checked(length)?;
    *batch = rest;
    Some((revision, tag, bytes))
}

fn put_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).unwrap_or(0) | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number & 0x7f).unwrap_or(0));
}

fn take_number(bytes: &mut &[u8]) -> Option<u32> {
    let mut number = 0u64;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return u32::try_from(number).ok();
        }
    }
    None
}

/// A batch as it stands in the file.
pub(super) fn framed(batch: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(batch.len() + 8);
    bytes.extend_from_slice(&u32::try_from(batch.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(batch).to_le_bytes());
    bytes.extend_from_slice(batch);
    bytes
}

/// Reads a segment batch by batch until its end or a damaged place.
pub(super) struct Batches {
    file: io::BufReader<File>,
    batch: Vec<u8>,
}

impl Batches {
    /// `None` where the file is no segment, or gone: the oldest are deleted at any time.
    pub(super) fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut file = io::BufReader::with_capacity(256 << 10, file);
        let mut magic = [0; MAGIC.len()];
        let is_segment = file.read_exact(&mut magic).is_ok() && magic == *MAGIC;
        Ok(is_segment.then(|| Self { file, batch: Vec::new() }))
    }

    pub(super) fn next(&mut self) -> Option<&[u8]> {
        let mut head = [0; 8];
        self.file.read_exact(&mut head).ok()?;
        let number = |at: usize| head[at..at + 4].try_into().map(u32::from_le_bytes).ok();
        let length = usize::try_from(number(0)?).ok().filter(|length| *length <= BATCH_BYTES_MAX)?;
        self.batch.resize(length, 0);
        self.file.read_exact(&mut self.batch).ok()?;
        (crc32fast::hash(&self.batch) == number(4)?).then_some(&self.batch)
    }
}
