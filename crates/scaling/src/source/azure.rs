//! Azure's sources: Service Bus, storage queues, Event Hubs.
//!
//! **Invariant:** counts that a service cannot mean (negative, past the ring's end) give 0, never a huge value.

use super::params::Params;
use super::{Metric, Unreadable, float};

/// Messages that a peek of a storage queue shows at most; a full peek says nothing about the length.
pub const PEEK_MAX: u64 = 32;

/// Metadata of an `azure-servicebus` rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServiceBus {
    /// Messages per replica, default 5.
    pub message_count: f64,
    /// The count must exceed this, default 0.
    pub activation: f64,
    /// How several entities of a regular expression combine, default their sum.
    pub operation: Operation,
}

/// How the numbers of several entities become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Operation {
    /// All of them.
    #[default]
    Sum,
    /// The largest.
    Max,
    /// The mean, truncated where counts are whole.
    Avg,
}

/// The words of `operation`.
pub(super) const OPERATIONS: [(&str, Operation); 3] =
    [("sum", Operation::Sum), ("max", Operation::Max), ("avg", Operation::Avg)];

impl ServiceBus {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        if params.flag("useRegex", false) && params.text("queueName").is_none() && params.text("topicName").is_none() {
            params.wrong("useRegex needs a queueName or a topicName");
        }
        Self {
            message_count: params.target("messageCount", Some(5.0)),
            activation: params.activation("activationMessageCount"),
            operation: params.choice("operation", &OPERATIONS),
        }
    }

    /// From `ActiveMessageCount` of each entity that matches.
    pub fn measure(&self, counts: &[u64]) -> Result<Metric, Unreadable> {
        let sum = counts.iter().fold(0u64, |sum, count| sum.saturating_add(*count));
        let value = match self.operation {
            Operation::Sum => sum,
            Operation::Max => counts.iter().copied().max().unwrap_or(0),
            Operation::Avg => sum.checked_div(u64::try_from(counts.len()).unwrap_or(u64::MAX)).unwrap_or(0),
        };
        Ok(Metric::whole(value, float(value) > self.activation))
    }
}

/// Metadata of an `azure-queue` rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StorageQueue {
    /// Messages per replica, default 5.
    pub queue_length: f64,
    /// The count must exceed this, default 0.
    pub activation: f64,
    /// Count only visible messages, where a peek can tell; default no.
    pub visible_only: bool,
}

/// What a storage queue says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageQueueAnswer {
    /// `x-ms-approximate-messages-count`: invisible ones included.
    pub approximate: u64,
    /// Messages that a peek of [`PEEK_MAX`] gave.
    pub peeked: u64,
}

impl StorageQueue {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        Self {
            queue_length: params.target("queueLength", Some(5.0)),
            activation: params.activation("activationQueueLength"),
            visible_only: params.choice("queueLengthStrategy", &[("all", false), ("visibleonly", true)]),
        }
    }

    /// The length by the rule's strategy.
    pub fn measure(&self, answer: StorageQueueAnswer) -> Result<Metric, Unreadable> {
        let by_peek = self.visible_only && answer.peeked < PEEK_MAX;
        let value = if by_peek { answer.peeked } else { answer.approximate };
        Ok(Metric::whole(value, float(value) > self.activation))
    }
}

/// Metadata of an `azure-eventhub` rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EventHub {
    /// Events per replica, default 64.
    pub threshold: u64,
    /// The events must exceed this, default 0.
    pub activation: f64,
    /// A wrapped distance this close to the ring's size is stale partition information; default 10000.
    pub stale_threshold: u64,
}

/// One partition: the hub's sequence numbers and the group's checkpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventHubPartition {
    /// Last enqueued sequence number; -1 = the partition is empty.
    pub last: i64,
    /// First sequence number kept.
    pub beginning: i64,
    /// Checkpointed sequence number; `None` = no checkpoint.
    pub checkpoint: Option<i64>,
}

impl EventHub {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        Self {
            threshold: params.count("unprocessedEventThreshold", 64),
            activation: params.activation("activationUnprocessedEventThreshold"),
            stale_threshold: params.count("stalePartitionInfoThreshold", 10_000),
        }
    }

    /// Events not yet processed, at most `threshold` for each partition.
    pub fn measure(&self, partitions: &[EventHubPartition]) -> Result<Metric, Unreadable> {
        let total = partitions.iter().fold(0u64, |sum, one| sum.saturating_add(self.unprocessed(*one)));
        let number = u64::try_from(partitions.len()).unwrap_or(u64::MAX);
        let threshold = self.threshold.max(1);
        let value = if total / threshold > number { number.saturating_mul(threshold) } else { total };
        Ok(Metric::whole(value, float(total) > self.activation))
    }

    fn unprocessed(&self, partition: EventHubPartition) -> u64 {
        let EventHubPartition { last, beginning, checkpoint } = partition;
        if last < 0 {
            return 0;
        }
        let Some(checkpoint) = checkpoint else {
            // Both 0 is exactly one event; equal otherwise means that all events have expired.
            let some = (beginning, last) == (0, 0) || beginning != last;
            return if some { u64::try_from(last.saturating_sub(beginning)).map_or(0, |d| d + 1) } else { 0 };
        };
        let checkpoint = checkpoint.max(0);
        // Sequence numbers wrap at their end.
        let distance =
            if last >= checkpoint { last - checkpoint } else { (i64::MAX - checkpoint).saturating_add(last) };
        let distance = u64::try_from(distance).unwrap_or(0);
        let stale = i64::MAX.unsigned_abs().saturating_sub(self.stale_threshold);
        if distance > stale { 0 } else { distance }
    }
}
