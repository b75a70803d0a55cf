//! Reads the decisions of an app out of the segments.
//!
//! **Invariant:** entries of other revisions are stepped over, not decoded; memory is bounded by what is asked for.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use cove_model::{ResourceId, RevisionKey, RevisionName};
use cove_scaling::tape::Reader;
use cove_scaling::{DecisionRecord, ScaleConfig};

use super::segment::{self, Batches, Segment, TAG_NAME};
use super::{RecordedRevision, RecordingError, RecordingQuery};

/// How much later than its segment's successor a decision of a segment may be: a run waits a minute.
const OVERLAP_MS: i64 = 5 * 60_000;

#[derive(Default)]
struct Found {
    decisions: VecDeque<DecisionRecord>,
    is_cut: bool,
}

pub(super) fn read(dir: &Path, query: &RecordingQuery) -> Result<Vec<RecordedRevision>, RecordingError> {
    let segments = match segment::list(dir) {
        Ok(segments) => segments,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(RecordingError::Io { what: "list", path: dir.to_owned(), source }),
    };
    let mut found: BTreeMap<RevisionKey, Found> = BTreeMap::new();
    for (index, segment) in segments.iter().enumerate() {
        if may_hold(segment, segments.get(index + 1), query) {
            read_segment(segment, query, &mut found)?;
        }
    }
    let mut revisions = Vec::with_capacity(found.len());
    for (revision, found) in found {
        let mut decisions: Vec<DecisionRecord> = found.decisions.into();
        share_configs(&mut decisions);
        revisions.push(RecordedRevision { revision, decisions, is_cut: found.is_cut });
    }
    Ok(revisions)
}

fn may_hold(segment: &Segment, next: Option<&Segment>, query: &RecordingQuery) -> bool {
    let (from_ms, to_ms) = (query.from.as_millisecond(), query.to.as_millisecond());
    let Some(next) = next else { return true };
    // a clock that was set back leaves segments whose end is not known
    let is_known = next.first_ms >= segment.first_ms;
    !is_known
        || (segment.first_ms <= to_ms.saturating_add(OVERLAP_MS) && next.first_ms.saturating_add(OVERLAP_MS) >= from_ms)
}

fn read_segment(
    segment: &Segment,
    query: &RecordingQuery,
    found: &mut BTreeMap<RevisionKey, Found>,
) -> Result<(), RecordingError> {
    let opened = Batches::open(&segment.path);
    let opened = opened.map_err(|source| RecordingError::Io { what: "read", path: segment.path.clone(), source })?;
    let Some(mut batches) = opened else { return Ok(()) };
    let mut wanted: BTreeMap<u32, (RevisionKey, Reader)> = BTreeMap::new();
    while let Some(mut batch) = batches.next() {
        while let Some((number, tag, bytes)) = segment::take_entry(&mut batch) {
            if tag == TAG_NAME {
                match key_of(bytes).filter(|key| is_wanted(key, query)) {
                    Some(key) => wanted.insert(number, (key, Reader::default())),
                    None => wanted.remove(&number),
                };
                continue;
            }
            let Some((key, reader)) = wanted.get_mut(&number) else { continue };
            let Some(entry) = segment::entry(tag, bytes) else { continue };
            let mut give = |record: DecisionRecord| {
                if (query.from..=query.to).contains(&record.decision.at) {
                    keep(found.entry(key.clone()).or_default(), record, query);
                }
            };
            if let Err(error) = reader.take(entry, &mut give) {
                tracing::warn!(%error, segment = %segment.path.display(), revision = %key, "recorded decisions cannot be read");
                wanted.remove(&number);
            }
        }
    }
    Ok(())
}

fn keep(found: &mut Found, record: DecisionRecord, query: &RecordingQuery) {
    if found.decisions.len() >= query.decisions_max.max(1) {
        found.is_cut = true;
        if !query.newest {
            return;
        }
        found.decisions.pop_front();
    }
    found.decisions.push_back(record);
}

fn key_of(bytes: &[u8]) -> Option<RevisionKey> {
    let (app, name) = std::str::from_utf8(bytes).ok()?.split_once('\0')?;
    Some(RevisionKey { app: ResourceId::parse(app).ok()?, name: RevisionName::new(name).ok()? })
}

fn is_wanted(key: &RevisionKey, query: &RecordingQuery) -> bool {
    key.app == query.app && query.revision.as_ref().is_none_or(|name| *name == key.name)
}

/// Each segment has its own copy of the same configuration.
fn share_configs(decisions: &mut [DecisionRecord]) {
    let mut last: Option<Arc<ScaleConfig>> = None;
    for record in decisions {
        match &last {
            Some(config) if !Arc::ptr_eq(config, &record.config) && **config == *record.config => {
                record.config = Arc::clone(config);
            }
            _ => last = Some(Arc::clone(&record.config)),
        }
    }
}
