//! Executions that wait for room: who goes first, and when nobody may pass any more.
//!
//! What does not fit lets smaller ones behind it pass, so that no room lies idle. Whoever has waited longer than the line's
//! patience goes before its priority's others, and while it does not fit, those behind it get nothing of a pool that is
//! short for it: what ends there is kept until it fits.
//!
//! **Invariant:** of one priority, whoever has waited for the patience gets room after those that came before it, unless
//! something else than executions takes it.
//! **Invariant:** nothing is kept for one that would not fit even if all executions ended: it would hold up the others for
//! nothing.

use std::collections::BTreeSet;

use cove_model::Execution;
use jiff::{SignedDuration, Timestamp};

use crate::room::{Amount, Pool};

/// One in the line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting<K> {
    /// Which.
    pub key: K,
    /// Higher ones go first.
    pub priority: i32,
    /// Replicas of executions that its resource group has now.
    pub running: u32,
    /// When it was asked for.
    pub created_at: Timestamp,
    /// When it got room the last time, or was asked for.
    pub since: Timestamp,
}

impl<K> Waiting<K> {
    /// One in the line of a group that has `running` replicas.
    pub fn of(key: K, execution: &Execution, running: u32) -> Self {
        let moved =
            execution.replicas.iter().flat_map(|replica| [replica.started_at, replica.ended_at]).flatten().max();
        Self {
            key,
            priority: execution.priority,
            running,
            created_at: execution.created_at,
            since: moved.unwrap_or(execution.created_at).max(execution.created_at),
        }
    }

    /// It has waited so long that nobody may pass it.
    #[must_use]
    pub fn is_old(&self, patience: SignedDuration, now: Timestamp) -> bool {
        now.duration_since(self.since) >= patience
    }
}

/// Puts the line in order: higher priorities, then who has waited longer than `patience`, then groups that run less, then age.
pub fn sort_line<K: Ord>(line: &mut [Waiting<K>], patience: SignedDuration, now: Timestamp) {
    line.sort_by(|one, other| {
        let place = |waiting: &Waiting<K>| {
            let is_old = waiting.is_old(patience, now);
            // among the old only age counts
            (-i64::from(waiting.priority), !is_old, if is_old { 0 } else { waiting.running }, waiting.created_at)
        };
        place(one).cmp(&place(other)).then_with(|| one.key.cmp(&other.key))
    });
}

/// A pool that one in the line draws from.
#[derive(Clone, Debug)]
pub struct Drawn<P> {
    /// Which.
    pub id: P,
    /// As it is now.
    pub pool: Pool,
    /// What executions take of it.
    pub by_executions: Amount,
}

/// What is kept for those who waited long, while the line is gone through in its order.
#[derive(Clone, Debug)]
pub struct Kept<P> {
    pools: BTreeSet<P>,
}

impl<P> Default for Kept<P> {
    fn default() -> Self {
        Self { pools: BTreeSet::new() }
    }
}

impl<P: Ord> Kept<P> {
    /// The next in line may take of all of these pools.
    pub fn is_open<'a>(&self, pools: impl IntoIterator<Item = &'a P>) -> bool
    where
        P: 'a,
    {
        pools.into_iter().all(|pool| !self.pools.contains(pool))
    }

    /// One that waited long still does not fit: what is short for it is kept from those behind it.
    pub fn keep(&mut self, need: Amount, drawn: Vec<Drawn<P>>) {
        let others = |drawn: &Drawn<P>| drawn.pool.used.minus(drawn.by_executions);
        let may_fit = drawn.iter().all(|drawn| need.fits_into(drawn.pool.total.minus(others(drawn))));
        if may_fit {
            let short = drawn.into_iter().filter(|drawn| drawn.pool.fits(need) == 0);
            self.pools.extend(short.map(|drawn| drawn.id));
        }
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{Bytes, MilliCpu};

    use super::*;

    const PATIENCE: SignedDuration = SignedDuration::from_mins(5);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    fn cores(count: u32) -> Amount {
        Amount { cpu: MilliCpu(count * 1000), memory: Bytes(0) }
    }

    fn waiting(key: &'static str, (priority, running): (i32, u32), created: i64) -> Waiting<&'static str> {
        Waiting { key, priority, running, created_at: at(created), since: at(created) }
    }

    #[test]
    fn the_order() {
        let mut line = vec![
            waiting("new", (0, 0), 400),
            waiting("newer", (0, 0), 410),
            waiting("of a busy group", (0, 7), 300),
            waiting("old, of a busy group", (0, 9), 20),
            waiting("older, of a busy group", (0, 9), 10),
            waiting("important", (5, 9), 420),
            waiting("unimportant and old", (-1, 0), 0),
        ];
        sort_line(&mut line, PATIENCE, at(420));
        let order: Vec<_> = line.iter().map(|waiting| waiting.key).collect();
        expect_test::expect![[r#"
            [
                "important",
                "older, of a busy group",
                "old, of a busy group",
                "new",
                "newer",
                "of a busy group",
                "unimportant and old",
            ]
        "#]]
        .assert_debug_eq(&order);
    }

    #[test]
    fn what_is_kept_and_for_whom() {
        let pool = |total, used| Pool { name: "it".to_owned(), total: cores(total), used: cores(used) };
        let drawn = |id, total, used, by| Drawn { id, pool: pool(total, used), by_executions: cores(by) };
        // need, machine (total, used, of that by executions), profile alike; what is kept then
        for (need, machine, profile, kept) in [
            (4, (8, 6, 6), None, vec!["machine"]),
            (4, (8, 4, 4), None, vec![]),
            // apps take more than would leave room for it
            (4, (8, 6, 1), None, vec![]),
            (4, (8, 6, 2), None, vec!["machine"]),
            (9, (8, 8, 8), None, vec![]),
            (4, (16, 4, 4), Some((4, 1, 1)), vec!["profile"]),
            (4, (16, 15, 15), Some((4, 4, 4)), vec!["machine", "profile"]),
            (4, (16, 4, 4), Some((4, 4, 3)), vec![]),
        ] {
            let mut all = Kept::default();
            let pools = [("machine", Some(machine)), ("profile", profile)];
            let pools = pools.into_iter().filter_map(|(id, pool)| Some((id, pool?)));
            all.keep(cores(need), pools.map(|(id, (total, used, by))| drawn(id, total, used, by)).collect());
            let is_kept = |id: &&str| !all.is_open([id]);
            let found: Vec<_> = ["machine", "profile"].into_iter().filter(is_kept).collect();
            assert_eq!(found, kept, "{need} cores of {machine:?}, {profile:?}");
        }
    }

    /// Runs a machine of 8 cores for an hour: small executions without end, and a big one; how long the big one waits.
    fn wait_of_the_big_one(patience: SignedDuration) -> Option<i64> {
        let mut line = Vec::new();
        let mut running: Vec<(i64, u32)> = Vec::new();
        for second in 0..3600 {
            running.retain(|(end, _)| *end > second);
            if second == 30 {
                line.push((waiting("big", (0, 0), second), ("big", 6, 10)));
            }
            // one each second that takes a core for 20 s: always more than fit
            line.push((waiting("small", (0, 0), second), ("small", 1, 20)));
            let mut order: Vec<_> = line.iter().map(|(waiting, _)| waiting.clone()).collect();
            sort_line(&mut order, patience, at(second));
            let mut kept = Kept::default();
            for next in order {
                let place = line.iter().position(|(waiting, _)| *waiting == next).unwrap();
                let (_, (name, need, length)) = line[place];
                let used = running.iter().fold(cores(0), |sum, (_, of)| sum.plus(cores(*of), 1));
                let pool = Pool { name: String::new(), total: cores(8), used };
                if kept.is_open([&()]) && pool.fits(cores(need)) > 0 {
                    if name == "big" {
                        return Some(second - 30);
                    }
                    running.push((second + length, need));
                    line.remove(place);
                } else if next.is_old(patience, at(second)) {
                    kept.keep(cores(need), vec![Drawn { id: (), pool: pool.clone(), by_executions: used }]);
                }
            }
            line.truncate(64);
        }
        None
    }

    #[test]
    fn a_big_one_starts_though_small_ones_never_end() {
        assert_eq!(wait_of_the_big_one(SignedDuration::MAX), None, "without an end of patience it waits for ever");
        for minutes in [0, 1, 5, 30] {
            let patience = SignedDuration::from_mins(minutes);
            let wait = wait_of_the_big_one(patience).expect("it starts");
            // those before it, eight at a time, and those that run
            assert!(wait <= patience.as_secs() + 4 * 20, "{minutes} min: {wait} s");
        }
    }
}
