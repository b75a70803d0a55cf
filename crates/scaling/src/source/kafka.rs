//! `kafka` and `apache-kafka`: lag of a consumer group over the partitions of its topics.
//!
//! More consumers than partitions would idle, so the total is bounded unless the rule allows it.
//!
//! **Invariant:** a bound lowers the value, never the activity: a lag that nobody moves still keeps a replica.

use super::params::Params;
use super::{Metric, Unreadable};

/// Metadata of a Kafka rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kafka {
    /// Messages per replica, default 10.
    pub lag_threshold: u64,
    /// The lag must exceed this, default 0.
    pub activation: f64,
    /// Where a group starts that has committed nothing; default latest.
    pub reset: OffsetReset,
    /// More consumers than partitions are fine, default no.
    pub allow_idle_consumers: bool,
    /// A partition whose committed offset has not moved counts 0 (but is active), default no.
    pub exclude_persistent_lag: bool,
    /// A group that has committed nothing counts 0, default no.
    pub zero_on_invalid_offset: bool,
    /// Only partitions with lag count towards the bound, default no.
    pub limit_to_partitions_with_lag: bool,
    /// Only counts that divide the partitions evenly, default no.
    pub even_distribution: bool,
}

/// `offsetResetPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OffsetReset {
    /// New messages only: nothing committed counts as a lag of 1, so that a consumer starts and commits.
    #[default]
    Latest,
    /// The whole log.
    Earliest,
}

/// One partition as the broker describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KafkaPartition {
    /// End of the log; `None` when the answer lacked it, which counts as no lag.
    pub end: Option<i64>,
    /// The group's committed offset; `None` = nothing committed.
    pub committed: Option<i64>,
    /// The committed offset of the read before this one.
    pub committed_before: Option<i64>,
}

impl Kafka {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        let flags = ["allowIdleConsumers", "excludePersistentLag", "scaleToZeroOnInvalidOffset"];
        let [idle, persistent, invalid] = flags.map(|key| params.flag(key, false));
        let limit = params.flag("limitToPartitionsWithLag", false);
        let even = params.flag("ensureEvenDistributionOfPartitions", false);
        if limit && idle {
            params.wrong("give either allowIdleConsumers or limitToPartitionsWithLag");
        }
        if even && idle {
            params.wrong("give either allowIdleConsumers or ensureEvenDistributionOfPartitions");
        }
        for (given, key) in [(limit, "limitToPartitionsWithLag"), (even, "ensureEvenDistributionOfPartitions")] {
            if given && params.text("topic").is_none() {
                params.wrong(format!("{key} needs a topic"));
            }
        }
        let words = [("latest", OffsetReset::Latest), ("earliest", OffsetReset::Earliest)];
        Self {
            lag_threshold: params.count("lagThreshold", 10),
            activation: params.activation("activationLagThreshold"),
            reset: params.choice("offsetResetPolicy", &words),
            allow_idle_consumers: idle,
            exclude_persistent_lag: persistent,
            zero_on_invalid_offset: invalid,
            limit_to_partitions_with_lag: limit,
            even_distribution: even,
        }
    }

    /// The bounded lag of all partitions.
    pub fn measure(&self, partitions: &[KafkaPartition]) -> Result<Metric, Unreadable> {
        let (mut total, mut with_persistent, mut lagging) = (0u64, 0u64, 0u64);
        for partition in partitions {
            let (counted, lag) = self.lag(*partition);
            total = total.saturating_add(counted);
            with_persistent = with_persistent.saturating_add(lag);
            lagging += u64::from(counted > 0);
        }
        let number = u64::try_from(partitions.len()).unwrap_or(u64::MAX);
        let threshold = self.lag_threshold.max(1);
        let value = if self.even_distribution {
            next_even(total, number, threshold)
        } else if !self.allow_idle_consumers || self.limit_to_partitions_with_lag {
            let bound = if self.limit_to_partitions_with_lag { lagging } else { number };
            if total / threshold > bound { bound.saturating_mul(threshold) } else { total }
        } else {
            total
        };
        Ok(Metric::whole(value, super::float(with_persistent) > self.activation))
    }

    /// The lag that counts, and the lag there is.
    fn lag(&self, partition: KafkaPartition) -> (u64, u64) {
        let Some(committed) = partition.committed.filter(|offset| *offset >= 0) else {
            let lag = match self.reset {
                _ if self.zero_on_invalid_offset => 0,
                OffsetReset::Latest => 1,
                OffsetReset::Earliest => partition.end.map_or(0, whole),
            };
            return (lag, lag);
        };
        let lag = partition.end.map_or(0, |end| whole(end.saturating_sub(committed)));
        let stuck = self.exclude_persistent_lag && partition.committed_before == Some(committed);
        (if stuck { 0 } else { lag }, lag)
    }
}

/// `f * threshold` with the smallest divisor `f` of the partitions that covers the lag.
fn next_even(total: u64, partitions: u64, threshold: u64) -> u64 {
    let covers = |factor: &u64| partitions.is_multiple_of(*factor) && factor.saturating_mul(threshold) >= total;
    let factor = (1..=partitions.min(100_000)).find(covers).unwrap_or(partitions);
    factor.saturating_mul(threshold)
}

fn whole(lag: i64) -> u64 {
    u64::try_from(lag).unwrap_or(0)
}
