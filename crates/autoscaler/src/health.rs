//! Whether a rule can be read, as far as people were told.
//!
//! **Invariant:** one event when a rule starts failing and one when it recovers; a rule that flaps is told of once in
//! [`FLAP_REST`].

use jiff::{SignedDuration, Timestamp};

/// A rule that failed, recovered and fails again within this time is not told of again.
pub(crate) const FLAP_REST: SignedDuration = SignedDuration::from_mins(5);

/// Failed readings in a row after which a cpu or memory rule of a revision whose replicas run is told of: until then
/// samples may still come.
const PATIENCE: u32 = 4;

/// What was told of one rule.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Health {
    /// People know that it fails.
    is_told: bool,
    told_at: Option<Timestamp>,
}

/// What is to be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Fails,
    Recovered,
}

impl Health {
    /// A rule that failed before a restart: people know.
    pub(crate) fn known(has_failed: bool) -> Self {
        Self { is_told: has_failed, told_at: None }
    }

    /// Takes the outcome of a reading; `failures` in a row, 0 when it was good.
    pub(crate) fn note(&mut self, now: Timestamp, failures: u32, needs_patience: bool) -> Option<News> {
        if failures == 0 {
            return std::mem::take(&mut self.is_told).then_some(News::Recovered);
        }
        let rests = self.told_at.is_some_and(|at| now.duration_since(at) < FLAP_REST);
        if self.is_told || rests || (needs_patience && failures < PATIENCE) {
            return None;
        }
        *self = Self { is_told: true, told_at: Some(now) };
        Some(News::Fails)
    }

    /// The clock was set back.
    pub(crate) fn clock_set_back(&mut self, now: Timestamp) {
        self.told_at = self.told_at.map(|at| at.min(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_that_flaps_is_told_of_once_in_five_minutes() {
        let mut health = Health::default();
        let mut told = Vec::new();
        for step in 0..40 {
            let failures = u32::from(step % 2 == 0);
            let news = health.note(Timestamp::from_second(30 * step).unwrap(), failures, false);
            told.extend(news.map(|news| (30 * step, news)));
        }
        use News::{Fails, Recovered};
        assert_eq!(
            told,
            [
                (0, Fails),
                (30, Recovered),
                (300, Fails),
                (330, Recovered),
                (600, Fails),
                (630, Recovered),
                (900, Fails),
                (930, Recovered)
            ]
        );
    }

    #[test]
    fn a_failure_from_before_a_restart_is_known_and_its_end_is_told() {
        let mut health = Health::known(true);
        assert_eq!(health.note(Timestamp::UNIX_EPOCH, 7, false), None);
        assert_eq!(health.note(Timestamp::UNIX_EPOCH, 0, false), Some(News::Recovered));
        assert_eq!(health.note(Timestamp::UNIX_EPOCH, 0, false), None);
    }

    #[test]
    fn samples_of_replicas_may_take_a_while() {
        let mut health = Health::default();
        let told: Vec<_> =
            (1..=5).map(|failures| health.note(Timestamp::UNIX_EPOCH, failures, true).is_some()).collect();
        assert_eq!(told, [false, false, false, true, false]);
    }
}
