//! One rule of a revision: its newest reading, who reads it, and what people know of it.

use std::sync::Arc;

use cove_scaling::Reading;
use jiff::Timestamp;

use crate::health::{Health, News};
use crate::reader::Reader;

#[derive(Debug)]
pub(super) struct RuleState {
    pub(super) reading: Reading,
    /// Asks its source; `None` for rules that are not event rules.
    pub(super) reader: Option<Arc<Reader>>,
    pub(super) health: Health,
    /// It was read since the last decision.
    pub(super) is_fresh: bool,
    /// Nothing is wrong when it cannot be read: there is nothing to read yet.
    pub(super) has_excuse: bool,
    was_read: bool,
}

impl RuleState {
    pub(super) fn new(reader: Option<Arc<Reader>>, failures: Option<&u32>) -> Self {
        Self {
            reading: Reading::error("not read yet"),
            reader,
            health: Health::known(failures.is_some_and(|failures| *failures > 0)),
            is_fresh: false,
            has_excuse: true,
            was_read: false,
        }
    }

    pub(super) fn is_read_by(&self, reader: &Arc<Reader>) -> bool {
        self.reader.as_ref().is_some_and(|own| Arc::ptr_eq(own, reader))
    }

    pub(super) fn take(&mut self, reading: Reading, has_excuse: bool) {
        self.reading = reading;
        self.is_fresh = true;
        self.has_excuse = has_excuse;
        self.was_read = true;
    }

    pub(super) fn is_unread(&self) -> bool {
        !self.was_read
    }

    /// What is to be told after a decision.
    pub(super) fn news(
        &mut self,
        at: Timestamp,
        failures: u32,
        needs_patience: bool,
        is_excused: bool,
    ) -> Option<News> {
        let is_fresh = std::mem::take(&mut self.is_fresh);
        if !is_fresh || (is_excused && failures > 0) {
            return None;
        }
        self.health.note(at, failures, needs_patience)
    }
}
