//! `rabbitmq`: length or rates of a queue, or of all queues that match.
//!
//! **Invariant:** a rate that only the management API knows is never read over AMQP; such metadata is an error.

use super::azure::{OPERATIONS, Operation};
use super::params::Params;
use super::{Metric, Unreadable, float};

/// Metadata of a `rabbitmq` rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RabbitMq {
    /// What is measured; default the queue's length.
    pub mode: RabbitMode,
    /// Per replica; default 20 messages.
    pub value: f64,
    /// The value must exceed this, default 0.
    pub activation: f64,
    /// Count ready messages only, default ready and unacknowledged.
    pub exclude_unacknowledged: bool,
    /// How several queues combine, default their sum.
    pub operation: Operation,
}

/// `mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RabbitMode {
    /// Messages in the queue.
    #[default]
    QueueLength,
    /// Published per second; a backlog is active too.
    MessageRate,
    /// Delivered or got per second.
    DeliverGetRate,
    /// Published for each one delivered.
    PublishedToDeliveredRatio,
    /// Seconds until the queue is empty at today's rates.
    ExpectedQueueConsumptionTime,
}

/// One queue as the management API (or a passive declare) describes it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RabbitQueue {
    /// Ready and unacknowledged; over AMQP only ready ones are known.
    pub messages: u64,
    /// Ready ones.
    pub ready: u64,
    /// Published, per second.
    pub publish_rate: f64,
    /// Delivered or got, per second.
    pub deliver_get_rate: f64,
}

const MODES: [(&str, RabbitMode); 6] = [
    ("Unknown", RabbitMode::QueueLength),
    ("QueueLength", RabbitMode::QueueLength),
    ("MessageRate", RabbitMode::MessageRate),
    ("DeliverGetRate", RabbitMode::DeliverGetRate),
    ("PublishedToDeliveredRatio", RabbitMode::PublishedToDeliveredRatio),
    ("ExpectedQueueConsumptionTime", RabbitMode::ExpectedQueueConsumptionTime),
];

impl RabbitMq {
    pub(super) fn parse(params: &mut Params<'_>) -> Self {
        let mode = params.choice("mode", &MODES);
        let named = params.text("mode").is_some_and(|mode| mode != "Unknown");
        let has_length = params.text("queueLength").is_some();
        if has_length && (named || params.text("value").is_some()) {
            params.wrong("queueLength is the old form of mode QueueLength with a value; give one of the two");
        }
        if named && !has_length && params.text("value").is_none() {
            params.wrong("a mode needs a value");
        }
        let amqp = params.text("protocol").is_some_and(|protocol| protocol == "amqp");
        let use_regex = params.flag("useRegex", false);
        let exclude_unacknowledged = params.flag("excludeUnacknowledged", false);
        for (needs, what) in [
            (mode != RabbitMode::QueueLength, "a mode other than QueueLength"),
            (use_regex, "useRegex"),
            (exclude_unacknowledged, "excludeUnacknowledged"),
        ] {
            if amqp && needs {
                params.wrong(format!("{what} needs protocol http"));
            }
        }
        let key = if has_length { "queueLength" } else { "value" };
        Self {
            mode,
            value: params.target(key, Some(20.0)),
            activation: params.activation("activationValue"),
            exclude_unacknowledged,
            operation: params.choice("operation", &OPERATIONS),
        }
    }

    /// From the queue, or from all that match.
    pub fn measure(&self, queues: &[RabbitQueue]) -> Result<Metric, Unreadable> {
        let queue = combine(self.operation, queues);
        let count = if self.exclude_unacknowledged { queue.ready } else { queue.messages };
        let messages = float(count);
        let (published, delivered, activation) = (queue.publish_rate, queue.deliver_get_rate, self.activation);
        let (value, active) = match self.mode {
            RabbitMode::QueueLength => (messages, messages > activation),
            RabbitMode::MessageRate => (published, published > activation || messages > activation),
            RabbitMode::DeliverGetRate => (delivered, delivered > activation),
            RabbitMode::PublishedToDeliveredRatio => {
                let unread = published > 0.0 && delivered <= 0.0;
                let ratio = if unread {
                    activation
                } else if published > 0.0 {
                    published / delivered
                } else {
                    0.0
                };
                (ratio, ratio > activation || unread)
            }
            RabbitMode::ExpectedQueueConsumptionTime => {
                let unread = delivered <= 0.0 && messages > 0.0;
                let time = if messages <= 0.0 {
                    0.0
                } else if unread {
                    activation
                } else {
                    (published - delivered + messages) / delivered
                };
                (time, time > activation || unread)
            }
        };
        Ok(Metric { value, active })
    }
}

fn combine(operation: Operation, queues: &[RabbitQueue]) -> RabbitQueue {
    let fold = |join: fn(RabbitQueue, &RabbitQueue) -> RabbitQueue| queues.iter().fold(RabbitQueue::default(), join);
    let sum = || {
        fold(|sum, one| RabbitQueue {
            messages: sum.messages.saturating_add(one.messages),
            ready: sum.ready.saturating_add(one.ready),
            publish_rate: sum.publish_rate + one.publish_rate,
            deliver_get_rate: sum.deliver_get_rate + one.deliver_get_rate,
        })
    };
    match operation {
        Operation::Sum => sum(),
        Operation::Max => fold(|most, one| RabbitQueue {
            messages: most.messages.max(one.messages),
            ready: most.ready.max(one.ready),
            publish_rate: most.publish_rate.max(one.publish_rate),
            deliver_get_rate: most.deliver_get_rate.max(one.deliver_get_rate),
        }),
        Operation::Avg => {
            let number = u64::try_from(queues.len()).unwrap_or(u64::MAX).max(1);
            let sum = sum();
            RabbitQueue {
                messages: sum.messages / number,
                ready: sum.ready / number,
                publish_rate: sum.publish_rate / float(number),
                deliver_get_rate: sum.deliver_get_rate / float(number),
            }
        }
    }
}
