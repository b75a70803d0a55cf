//! What waits to be written, and the segment it goes to.
//!
//! **Invariant:** a revision's name and configuration stand in every segment before its decisions, so each segment can be
//! read by itself and the oldest can be deleted.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use cove_model::{ResourceId, RevisionKey};
use cove_scaling::tape::Writer;
use jiff::{SignedDuration, Timestamp};

use super::RecordingConfig;
use super::segment::{self, MAGIC, Segment, TAG_NAME};
use crate::ports::RevisionDecision;

/// A segment is ended at an eighth of the bytes allowed, but not beyond this.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
/// A segment is ended after this long, so that old decisions go in time.
const SEGMENT_SPAN_MAX: SignedDuration = SignedDuration::from_hours(12);
/// Segments kept at most, however small: many starts make many.
const SEGMENTS_MAX: usize = 4096;
/// Revisions without a decision for this long are forgotten by the writer; their next decision names them again.
const QUIET_AFTER: SignedDuration = SignedDuration::from_mins(15);

#[derive(Debug)]
struct Track {
    number: u32,
    tape: Writer,
    seen_at: Timestamp,
}

#[derive(Debug)]
struct Current {
    file: File,
    segment: Segment,
    bytes: u64,
}

#[derive(Debug)]
pub(super) struct Tapes {
    dir: PathBuf,
    config: RecordingConfig,
    tracks: BTreeMap<RevisionKey, Track>,
    next_number: u32,
    batch: Vec<u8>,
    /// The first decision of the batch.
    batch_from: Option<Timestamp>,
    current: Option<Current>,
    /// Ended segments with their sizes, oldest first; `None` before the first write.
    ended: Option<VecDeque<(Segment, u64)>>,
    is_failing: bool,
}

impl Tapes {
    pub(super) fn new(dir: PathBuf, config: RecordingConfig) -> Self {
        Self {
            dir,
            config,
            tracks: BTreeMap::new(),
            next_number: 0,
            batch: Vec::new(),
            batch_from: None,
            current: None,
            ended: None,
            is_failing: false,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn config(&self) -> &RecordingConfig {
        &self.config
    }

    pub(super) fn push(&mut self, decision: &RevisionDecision) {
        if self.config.keep <= SignedDuration::ZERO || self.config.disk_max_bytes == 0 {
            return;
        }
        let at = decision.record.decision.at;
        self.batch_from.get_or_insert(at);
        let batch = &mut self.batch;
        let track = self.tracks.entry(decision.revision.clone()).or_insert_with(|| {
            let number = self.next_number;
            self.next_number += 1;
            let name = format!("{}\0{}", decision.revision.app, decision.revision.name);
            segment::put_entry(batch, number, TAG_NAME, name.as_bytes());
            Track { number, tape: Writer::default(), seen_at: at }
        });
        track.seen_at = at;
        let number = track.number;
        track.tape.push(&decision.record, &mut |entry| {
            let (tag, bytes) = segment::tag(entry);
            segment::put_entry(batch, number, tag, bytes);
        });
    }

    pub(super) fn has_runs(&self) -> bool {
        self.tracks.values().any(|track| track.tape.run_since().is_some())
    }

    /// Ends the runs of which `is_due` says so: the app, and since when the run is open.
    pub(super) fn end_runs(&mut self, is_due: impl Fn(&ResourceId, Timestamp) -> bool) {
        for (key, track) in &mut self.tracks {
            if track.tape.run_since().is_some_and(|since| is_due(&key.app, since)) {
                end_run(&mut self.batch, track);
            }
        }
    }

    /// Writes the batch. What cannot be written is lost, and said once.
    pub(super) fn write(&mut self, now: Timestamp) {
        let result = self.try_write(now);
        match result {
            Ok(()) if self.is_failing => {
                self.is_failing = false;
                tracing::info!("decisions are recorded again");
            }
            Ok(()) => {}
            Err(error) => {
                if !self.is_failing {
                    tracing::warn!(%error, dir = %self.dir.display(), "decisions cannot be recorded; they are lost until this is repaired");
                }
                self.is_failing = true;
                self.begin_anew();
                self.ended = None;
            }
        }
    }

    fn try_write(&mut self, now: Timestamp) -> io::Result<()> {
        if !self.batch.is_empty() {
            let bytes = segment::framed(&self.batch);
            let first_at = self.batch_from.unwrap_or(now);
            let current = self.current(first_at)?;
            current.file.write_all(&bytes)?;
            current.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            self.batch.clear();
            self.batch.shrink_to(1 << 20);
            self.batch_from = None;
        }
        if self.is_current_full(now) {
            self.end_segment()?;
        }
        self.tracks
            .retain(|_, track| track.tape.run_since().is_some() || now.duration_since(track.seen_at) < QUIET_AFTER);
        self.forget(now)
    }

    fn current(&mut self, first_at: Timestamp) -> io::Result<&mut Current> {
        if self.current.is_none() {
            std::fs::create_dir_all(&self.dir)?;
            let ended = self.ended()?;
            let number = ended.back().map_or(0, |(segment, _)| segment.number + 1);
            let segment = Segment::new(&self.dir, number, first_at.as_millisecond());
            let mut file = OpenOptions::new().append(true).create_new(true).open(&segment.path)?;
            file.write_all(MAGIC)?;
            self.current = Some(Current { file, segment, bytes: 8 });
        }
        self.current.as_mut().ok_or_else(|| io::Error::other("no segment"))
    }

    fn ended(&mut self) -> io::Result<&mut VecDeque<(Segment, u64)>> {
        if self.ended.is_none() {
            let size = |segment: Segment| {
                let bytes = std::fs::metadata(&segment.path).map_or(0, |metadata| metadata.len());
                (segment, bytes)
            };
            self.ended = Some(segment::list(&self.dir)?.into_iter().map(size).collect());
        }
        self.ended.as_mut().ok_or_else(|| io::Error::other("no segments"))
    }

    fn is_current_full(&self, now: Timestamp) -> bool {
        let bytes_max = SEGMENT_BYTES_MAX.min(self.config.disk_max_bytes / 8);
        let span_ms = i64::try_from(SEGMENT_SPAN_MAX.min(self.config.keep).as_millis()).unwrap_or(i64::MAX);
        self.current.as_ref().is_some_and(|current| {
            let open_ms = now.as_millisecond().saturating_sub(current.segment.first_ms);
            current.bytes >= bytes_max || !(0..span_ms).contains(&open_ms)
        })
    }

    /// Runs that are open belong to this segment; the next one names its revisions again.
    fn end_segment(&mut self) -> io::Result<()> {
        for track in self.tracks.values_mut() {
            end_run(&mut self.batch, track);
        }
        if let Some(mut current) = self.current.take() {
            if !self.batch.is_empty() {
                let bytes = segment::framed(&self.batch);
                current.file.write_all(&bytes)?;
                current.bytes += u64::try_from(bytes.len()).unwrap_or(u64::MAX);
            }
            current.file.sync_data()?;
            self.ended()?.push_back((current.segment, current.bytes));
        }
        self.begin_anew();
        Ok(())
    }

    fn begin_anew(&mut self) {
        if let Some(current) = self.current.take()
            && let Some(ended) = &mut self.ended
        {
            ended.push_back((current.segment, current.bytes));
        }
        self.tracks.clear();
        self.next_number = 0;
        self.batch = Vec::new();
        self.batch_from = None;
    }

    /// Deletes segments whose successor is older than what is kept, and the oldest while there are too many bytes.
    fn forget(&mut self, now: Timestamp) -> io::Result<()> {
        let keep_ms = i64::try_from(self.config.keep.as_millis()).unwrap_or(i64::MAX);
        let oldest_ms = now.as_millisecond().saturating_sub(keep_ms);
        let current = self.current.as_ref().map(|current| (current.segment.first_ms, current.bytes));
        let bytes_max = self.config.disk_max_bytes;
        let Some(ended) = &mut self.ended else { return Ok(()) };
        let mut bytes = ended.iter().map(|(_, bytes)| *bytes).sum::<u64>() + current.map_or(0, |(_, bytes)| bytes);
        while let Some((segment, size)) = ended.front() {
            let next_ms = ended.get(1).map(|(next, _)| next.first_ms).or_else(|| current.map(|(first_ms, _)| first_ms));
            let is_old = next_ms.is_some_and(|next_ms| next_ms < oldest_ms);
            if !is_old && bytes <= bytes_max && ended.len() < SEGMENTS_MAX {
                break;
            }
            match std::fs::remove_file(&segment.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => bytes = bytes.saturating_sub(*size),
            }
            ended.pop_front();
        }
        Ok(())
    }
}

fn end_run(batch: &mut Vec<u8>, track: &mut Track) {
    let number = track.number;
    track.tape.end_run(&mut |entry| {
        let (tag, bytes) = segment::tag(entry);
        segment::put_entry(batch, number, tag, bytes);
    });
}
