//! The log files of one replica: which file comes next, where we are, lines put together from their parts.

use std::{
    collections::BTreeMap,
    fs::File,
    io::{BufRead, BufReader, ErrorKind, Seek, SeekFrom},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use cove_runtime::logs::{LogMeta, META_FILE, file_name, parse_cri_line};
use serde::{Deserialize, Serialize};

use crate::{
    MonitorError,
    rows::{ConsoleRow, Place},
};

/// Longest line that is kept whole; the rest of a longer one becomes a line of its own.
const LINE_BYTES_MAX: usize = 256 * 1024;
/// Bytes of its output that are kept of each container of a session: its code is nobody's friend and may print for ever.
const SESSION_BYTES_MAX: u64 = 16 << 20;
/// What each of its lines weighs besides: a row and its place in the indexes, also for an empty one.
const ROW_BYTES: u64 = 256;
/// Where the places are kept, in the replica's own directory: it goes with it.
const PLACES: &str = ".ingested.json";

/// One replica's directory.
#[derive(Debug)]
pub(crate) struct Replica {
    path: PathBuf,
    meta: Option<LogMeta>,
    /// Per container: committed place.
    places: BTreeMap<String, SavedPlace>,
    /// Per container: place after the rows that were handed out last.
    pending: BTreeMap<String, SavedPlace>,
    kept: BTreeMap<String, SavedPlace>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct SavedPlace {
    file: u64,
    offset: u64,
    /// Of its first file.
    #[serde(default)]
    rows: u64,
}

const FIRST: SavedPlace = SavedPlace::begin_of(1);

impl SavedPlace {
    const fn begin_of(file: u64) -> Self {
        Self { file, offset: 0, rows: 0 }
    }
}

impl Replica {
    pub(crate) fn new(path: PathBuf) -> Self {
        let places: BTreeMap<String, SavedPlace> = std::fs::read(path.join(PLACES))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default();
        Self { path, meta: None, kept: places.clone(), places, pending: BTreeMap::new() }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it is of this app and, where one is named, is this replica; no while that is not known.
    pub(crate) fn is_of(&self, app: &str, replica: Option<&str>) -> bool {
        let is_it = |meta: &LogMeta| {
            meta.app.eq_ignore_ascii_case(app) && replica.is_none_or(|replica| meta.replica == replica)
        };
        self.meta.as_ref().is_some_and(is_it)
    }

    /// Up to about `rows_max` further lines; empty when there is nothing new. Must be followed by [`Self::commit`] once
    /// they are written, or by another read, which gives the same lines again.
    pub(crate) fn read(&mut self, rows_max: usize) -> Result<Vec<ConsoleRow>, MonitorError> {
        self.pending.clear();
        if self.meta.is_none() {
            let Ok(bytes) = std::fs::read(self.path.join(META_FILE)) else { return Ok(Vec::new()) };
            self.meta = serde_json::from_slice(&bytes).ok();
        }
        let Some(meta) = self.meta.clone() else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        for container in meta.containers.iter().map(|container| &container.name) {
            let mut place = self.places.get(container).copied().unwrap_or(FIRST);
            while rows.len() < rows_max {
                let Some((file, number, is_active)) = self.open(container, place.file)? else { break };
                if number != place.file {
                    tracing::warn!(replica = %meta.replica, container, "log files were removed before they were copied");
                    place = SavedPlace::begin_of(number);
                }
                let before = place.offset;
                place = read_lines(file, &meta, container, place, rows_max, &mut rows)?;
                if is_active {
                    break;
                }
                if place.offset == before || rows.len() < rows_max {
                    place = SavedPlace::begin_of(place.file + 1);
                }
            }
            if self.places.get(container) != Some(&place) {
                self.pending.insert(container.clone(), place);
            }
        }
        if rows.is_empty() {
            self.commit();
        }
        Ok(rows)
    }

    /// The rows of the last read are written.
    pub(crate) fn commit(&mut self) {
        self.places.append(&mut self.pending);
    }

    /// Writes the places down, so that a restart does not read everything again.
    pub(crate) fn keep_place(&mut self) -> Result<(), MonitorError> {
        if self.kept == self.places || !self.path.exists() {
            return Ok(());
        }
        let text = serde_json::to_vec(&self.places).unwrap_or_default();
        let temporary = self.path.join(".ingested.json.tmp");
        std::fs::write(&temporary, text).and_then(|()| std::fs::rename(&temporary, self.path.join(PLACES))).map_err(
            |source| MonitorError::Io { what: format!("keep the place in `{}`", self.path.display()), source },
        )?;
        self.kept = self.places.clone();
        Ok(())
    }

    /// File number `number` of a container, or the next that is there, its number, and whether it is still appended
    /// to. The driver may rotate at any moment, so the open file is compared with what the name means afterwards.
    fn open(&self, container: &str, number: u64) -> Result<Option<(File, u64, bool)>, MonitorError> {
        let active = file_name(container);
        let active_path = self.path.join(&active);
        for _attempt in 0..8 {
            let rotated = self.rotated(&active)?;
            if let Some(next) = rotated.iter().find(|rotated| **rotated >= number) {
                match open_if_there(&self.path.join(format!("{active}.{next}")))? {
                    Some(file) => return Ok(Some((file, *next, false))),
                    None => continue,
                }
            }
            let Some(file) = open_if_there(&active_path)? else { return Ok(None) };
            let is_same =
                std::fs::metadata(&active_path).is_ok_and(|now| file.metadata().is_ok_and(|m| m.ino() == now.ino()));
            if is_same && self.rotated(&active)? == rotated {
                let newest = rotated.last().map_or(1, |newest| newest + 1);
                return Ok(Some((file, newest.max(number), true)));
            }
        }
        Ok(None)
    }

    /// Numbers of the files that were put aside, oldest first.
    fn rotated(&self, active: &str) -> Result<Vec<u64>, MonitorError> {
        let entries = std::fs::read_dir(&self.path)
            .map_err(|source| MonitorError::Io { what: format!("list `{}`", self.path.display()), source })?;
        let mut numbers: Vec<u64> = entries
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix(active)?.strip_prefix('.')?.parse().ok())
            .collect();
        numbers.sort_unstable();
        Ok(numbers)
    }
}

fn open_if_there(path: &Path) -> Result<Option<File>, MonitorError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(MonitorError::Io { what: format!("open `{}`", path.display()), source }),
    }
}

/// A line whose end has not been seen.
struct Part {
    at: jiff::Timestamp,
    offset: u64,
    text: Vec<u8>,
}

/// Reads whole lines from `place` on; returns the place behind the last line that is complete.
fn read_lines(
    mut file: File,
    meta: &LogMeta,
    container: &str,
    mut place: SavedPlace,
    rows_max: usize,
    rows: &mut Vec<ConsoleRow>,
) -> Result<SavedPlace, MonitorError> {
    let io = |source| MonitorError::Io { what: format!("read the log of `{}`", meta.replica), source };
    file.seek(SeekFrom::Start(place.offset)).map_err(io)?;
    let mut reader = BufReader::with_capacity(64 * 1024, file);
    let mut offset = place.offset;
    let mut parts: BTreeMap<&'static str, Part> = BTreeMap::new();
    let mut bytes = Vec::new();
    let is_session = meta.app.to_ascii_lowercase().contains("/microsoft.app/sessionpools/");
    while rows.len() < rows_max {
        bytes.clear();
        let read = reader.read_until(b'\n', &mut bytes).map_err(io)?;
        if read == 0 || bytes.pop() != Some(b'\n') {
            break;
        }
        let begin = offset;
        offset += read as u64;
        let Some(line) = parse_cri_line(&bytes) else {
            tracing::warn!(replica = %meta.replica, container, offset = begin, "a log line is not in the CRI format");
            continue;
        };
        let stream = line.stream.as_str();
        let part = parts.entry(stream).or_insert_with(|| Part { at: line.at, offset: begin, text: Vec::new() });
        part.text.extend_from_slice(line.text);
        if line.is_partial && part.text.len() < LINE_BYTES_MAX {
            continue;
        }
        if let Some(mut part) = parts.remove(stream) {
            let weighed = |offset: u64, rows: u64| offset + ROW_BYTES * rows;
            if is_session && (place.file > 1 || weighed(offset, place.rows + 1) > SESSION_BYTES_MAX) {
                if place.file > 1 || weighed(part.offset, place.rows) > SESSION_BYTES_MAX {
                    continue;
                }
                part.text = format!("cove: what it printed beyond {} MiB is not kept", SESSION_BYTES_MAX >> 20).into();
            }
            place.rows += 1;
            rows.push(ConsoleRow {
                at: part.at,
                environment: meta.environment.clone(),
                app: meta.app.clone(),
                revision: meta.revision.clone(),
                replica: meta.replica.clone(),
                container: container.to_owned(),
                stream: stream.to_owned(),
                log: String::from_utf8_lossy(&part.text).into_owned(),
                place: Place { file: place.file, offset: part.offset },
            });
        }
    }
    place.offset = parts.values().map(|part| part.offset).min().unwrap_or(offset);
    Ok(place)
}
