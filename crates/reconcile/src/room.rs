//! How much more the machine and an app's workload profile can take.
//!
//! A replica is admitted when what its containers ask for fits into every pool it draws from: the machine, and its
//! profile when that has nodes. What does not fit waits, and its revision says what is short.
//!
//! **Invariant:** what runs already is never ended for want of room; only starts are held back.

use cove_model::{Bytes, MilliCpu, Template};

/// CPU and memory together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Thousandths of cores.
    pub cpu: MilliCpu,
    /// Memory.
    pub memory: Bytes,
}

/// Something that replicas draw from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    /// In words that end a sentence: `this machine`, `workload profile 'big' (D4, 2 nodes)`.
    pub name: String,
    /// What it has.
    pub total: Amount,
    /// What is taken; may exceed `total` when it was made smaller.
    pub used: Amount,
}

/// Everything that one app's replicas draw from; without pools there is no limit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// The machine first.
    pub pools: Vec<Pool>,
}

impl Amount {
    /// What one replica of a template asks for.
    #[must_use]
    pub fn of(template: &Template) -> Self {
        template.containers.iter().fold(Self::default(), |sum, container| {
            sum.plus(Self { cpu: container.resources.cpu, memory: container.resources.memory }, 1)
        })
    }

    /// Not more than another, in both.
    #[must_use]
    pub fn fits_into(self, other: Self) -> bool {
        self.cpu <= other.cpu && self.memory <= other.memory
    }

    /// Itself and `count` times another.
    #[must_use]
    pub fn plus(self, other: Self, count: u32) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_add(other.cpu.0.saturating_mul(count))),
            memory: Bytes(self.memory.0.saturating_add(other.memory.0.saturating_mul(u64::from(count)))),
        }
    }

    /// Itself without another.
    #[must_use]
    pub fn minus(self, other: Self) -> Self {
        Self {
            cpu: MilliCpu(self.cpu.0.saturating_sub(other.cpu.0)),
            memory: Bytes(self.memory.0.saturating_sub(other.memory.0)),
        }
    }
}

impl Pool {
    fn free(&self) -> Amount {
        self.total.minus(self.used)
    }

    /// How many replicas of this size still fit.
    pub(crate) fn fits(&self, need: Amount) -> u32 {
        let free = self.free();
        let by_cpu = free.cpu.0.checked_div(need.cpu.0).unwrap_or(u32::MAX);
        let by_memory = free.memory.0.checked_div(need.memory.0).unwrap_or(u64::MAX);
        by_cpu.min(u32::try_from(by_memory).unwrap_or(u32::MAX))
    }
}

impl Room {
    /// How many more replicas of this size can be started.
    #[must_use]
    pub fn fits(&self, need: Amount) -> u32 {
        self.pools.iter().map(|pool| pool.fits(need)).min().unwrap_or(u32::MAX)
    }

    /// Gives room away.
    pub(crate) fn take(&mut self, need: Amount, count: u32) {
        for pool in &mut self.pools {
            pool.used = pool.used.plus(need, count);
        }
    }

    /// Not one more fits, because of memory.
    pub(crate) fn lacks_memory(&self, need: Amount) -> bool {
        self.pools.iter().any(|pool| pool.free().memory < need.memory)
    }

    /// What is short when not one more fits, in words.
    #[must_use]
    pub fn shortage(&self, need: Amount) -> Option<String> {
        let pool = self.pools.iter().find(|pool| pool.fits(need) == 0)?;
        let (free, total) = (pool.free(), pool.total);
        let is_ever = need.fits_into(total);
        let hint = if is_ever {
            "it starts when others end; lower `cpu` or `memory`, or raise the limit"
        } else {
            "it cannot start here; lower `cpu` or `memory`, or raise the limit"
        };
        Some(format!(
            "a replica asks for {} cores and {}, but of {} cores and {} of {} only {} cores and {} are free: {hint}",
            need.cpu,
            need.memory.to_quantity(),
            total.cpu,
            total.memory.to_quantity(),
            pool.name,
            free.cpu,
            free.memory.to_quantity(),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn amount(milli: u32, gib: u64) -> Amount {
        Amount { cpu: MilliCpu(milli), memory: Bytes(gib * GIB) }
    }

    fn room(machine: (Amount, Amount), profile: Option<(Amount, Amount)>) -> Room {
        let pool = |name: &str, (total, used): (Amount, Amount)| Pool { name: name.to_owned(), total, used };
        let mut pools = vec![pool("this machine", machine)];
        pools.extend(profile.map(|profile| pool("workload profile 'big' (D4, 1 node)", profile)));
        Room { pools }
    }

    #[test]
    fn the_scarcest_pool_decides() {
        let none = Amount::default();
        for (room, need, fits) in [
            (Room::default(), amount(4000, 8), u32::MAX),
            (room((amount(8000, 64), none), None), amount(500, 1), 16),
            (room((amount(8000, 4), none), None), amount(500, 1), 4),
            (room((amount(8000, 64), amount(7800, 0)), None), amount(500, 1), 0),
            (room((amount(8000, 64), none), Some((amount(4000, 16), amount(2000, 4)))), amount(500, 1), 4),
            (room((amount(8000, 64), amount(9000, 0)), None), amount(500, 1), 0),
        ] {
            assert_eq!(room.fits(need), fits, "{room:?}");
            assert_eq!(room.shortage(need).is_some(), fits == 0);
        }
    }

    #[test]
    fn a_shortage_says_what_is_short() {
        let room = room((amount(2000, 4), amount(1500, 1)), None);
        expect_test::expect![[
            "a replica asks for 1 cores and 2Gi, but of 2 cores and 4Gi of this machine only 0.5 cores and 3Gi are free: it starts when others end; lower `cpu` or `memory`, or raise the limit"
        ]]
        .assert_eq(&room.shortage(amount(1000, 2)).unwrap());
        assert!(room.shortage(amount(8000, 2)).unwrap().contains("it cannot start here"));
    }

    #[test]
    fn what_is_given_away_is_gone() {
        let mut room = room((amount(2000, 4), Amount::default()), None);
        room.take(amount(500, 1), 3);
        assert_eq!(room.fits(amount(500, 1)), 1);
    }
}
