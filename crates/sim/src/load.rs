//! Load curves: when the next request of an app arrives.

use crate::random::Random;

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: u64 = 24 * HOUR_MS;

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Curve {
    /// None.
    Silent,
    /// A steady mean rate per second.
    Flat(f64),
    /// Follows the day: nearly nothing at night, this rate per second at noon.
    Diurnal(f64),
    /// This rate per second for one minute in every two hours.
    Burst(f64),
    /// This many requests at once, every full hour, together with every other app of this curve.
    Herd(u32),
}

/// A candidate for the next arrival; some are thinned out when they come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Next {
    pub(crate) at_ms: u64,
    /// Requests that arrive then.
    pub(crate) count: u32,
}

impl Curve {
    /// The next arrival after `now_ms`; a count of 0 means: look again then.
    pub(crate) fn next(self, now_ms: u64, random: &mut Random) -> Option<Next> {
        match self {
            Self::Silent => None,
            Self::Flat(rate) => {
                (rate > 0.0).then(|| Next { at_ms: now_ms + random.exponential(1000.0 / rate), count: 1 })
            }
            Self::Diurnal(most) => {
                if most <= 0.0 {
                    return None;
                }
                let at_ms = now_ms + random.exponential(1000.0 / most);
                let count = u32::from(random.chance(share_of_day(at_ms)));
                Some(Next { at_ms, count })
            }
            Self::Burst(rate) => {
                let period = 2 * HOUR_MS;
                let into = now_ms % period;
                if into >= 60_000 || rate <= 0.0 {
                    return Some(Next { at_ms: now_ms - into + period, count: 1 });
                }
                Some(Next { at_ms: now_ms + random.exponential(1000.0 / rate), count: 1 })
            }
            Self::Herd(count) => Some(Next { at_ms: now_ms - now_ms % HOUR_MS + HOUR_MS, count }),
        }
    }
}

/// A hat over the day: 0 before 6 and after 22 o'clock, 1 at 14.
fn share_of_day(at_ms: u64) -> f64 {
    let minute = u32::try_from(at_ms % DAY_MS / 60_000).expect("minutes of a day");
    let hour = f64::from(minute) / 60.0;
    (1.0 - (hour - 14.0).abs() / 8.0).max(0.0)
}
