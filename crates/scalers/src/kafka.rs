//! `kafka` and `apache-kafka`: how far a consumer group is behind, asked of the brokers in their own protocol.
//!
//! A reading is: partitions of the topics and their leaders (`Metadata`), the group's coordinator (`FindCoordinator`), what
//! the group has committed (`OffsetFetch`), the ends of the logs (`ListOffsets`, each leader once). What these come to is
//! `cove_scaling::source::Kafka`'s to say. The protocol is spoken here, since client libraries of Rust either bind a C
//! library or cannot ask for a group's offsets.
//!
//! **Invariant:** a partial answer is no answer: one leader that cannot be asked fails the reading.
//! **Invariant:** `committed_before` is what the last complete reading saw.

mod broker;
mod scram;
mod wire;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cove_scaling::source::{Answer as Reading, KafkaPartition};
use futures_util::future::try_join_all;

use crate::dial::Address;
use crate::keys;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
pub(crate) use broker::Brokers;
use broker::Login;
use wire::{
    API_VERSIONS, Answer, FIND_COORDINATOR, LIST_OFFSETS, METADATA, OFFSET_FETCH, OFFSET_FETCH_OF_GROUPS, Question,
};

/// Port of a bootstrap server without one.
const DEFAULT_PORT: u16 = 9092;
/// `ListOffsets`: the offset behind the newest message.
const LATEST: i64 = -1;
/// `ListOffsets`: asked by a client, not by a broker.
const NO_REPLICA: i32 = -1;
/// `FindCoordinator`: of a group.
const OF_GROUP: i8 = 0;
/// Partitions that `partitionLimitation` may name.
const LIMITATION_MAX: usize = 100_000;

/// Offsets by topic and partition.
type Offsets = BTreeMap<(String, i32), i64>;
/// One of them.
type Offset = ((String, i32), i64);

/// One rule's group.
#[derive(Debug)]
pub(crate) struct Group {
    brokers: Arc<Brokers>,
    context: Context,
    bootstrap: Vec<Address>,
    login: Login,
    group: String,
    /// None = all that the group has committed something of.
    topics: Vec<String>,
    /// None = all.
    partitions: Option<BTreeSet<i32>>,
    /// The bootstrap server that is tried first.
    first: AtomicUsize,
    before: Mutex<Offsets>,
}

/// Opens a rule of `kafka` or `apache-kafka`.
///
/// # Errors
/// Addresses, a login or a limitation that cannot be used.
pub(crate) fn open(brokers: &Arc<Brokers>, trigger: &Trigger, context: &Context) -> Result<Group, OpenError> {
    let servers = keys::list(keys::required(trigger, "bootstrapServers")?);
    let bootstrap: Vec<_> =
        servers.into_iter().map(|text| Address::parse(text, Some(DEFAULT_PORT))).collect::<Result<_, _>>()?;
    if bootstrap.is_empty() {
        return Err(OpenError::metadata("bootstrapServers names no server; expected host:port, with commas between"));
    }
    let topic = trigger.get("topic").unwrap_or_default();
    // Only the newer of the two scalers knows several.
    let topics = if trigger.scaler == "apache-kafka" { keys::list(topic) } else { vec![topic] };
    let topics: Vec<String> = topics.into_iter().filter(|topic| !topic.is_empty()).map(str::to_owned).collect();
    let partitions = trigger.get("partitionLimitation").map(limitation).transpose()?;
    Ok(Group {
        brokers: Arc::clone(brokers),
        context: context.clone(),
        bootstrap,
        login: Login::of(trigger)?,
        group: keys::required(trigger, "consumerGroup")?.to_owned(),
        // Without a topic KEDA ignores the limitation.
        partitions: partitions.filter(|_| !topics.is_empty()),
        topics,
        first: AtomicUsize::new(0),
        before: Mutex::default(),
    })
}

/// `1-4,8`: numbers and ranges.
fn limitation(text: &str) -> Result<BTreeSet<i32>, OpenError> {
    let wrong = || OpenError::metadata(format!("partitionLimitation is `{text}`; expected partitions such as 0-3,7"));
    let mut all = BTreeSet::new();
    for part in keys::list(text) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let parse = |text: &str| text.trim().parse::<i32>().ok().filter(|number| *number >= 0).ok_or_else(wrong);
        let (first, last) = (parse(first)?, parse(last)?);
        let count = usize::try_from(i64::from(last) - i64::from(first)).map_err(|_| wrong())?;
        if count >= LIMITATION_MAX {
            return Err(wrong());
        }
        all.extend(first..=last);
    }
    Ok(all)
}

impl Source for Group {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async { self.partitions().await.map(Reading::Kafka) })
    }
}

/// A partition and who leads it.
#[derive(Debug)]
struct Led {
    topic: String,
    partition: i32,
    leader: Address,
}

impl Group {
    async fn partitions(&self) -> Result<Vec<KafkaPartition>, ReadError> {
        let (led, committed) = if self.topics.is_empty() {
            let committed = self.committed_at_all(&self.coordinator().await?).await?;
            let topics: BTreeSet<&String> = committed.keys().map(|(topic, _)| topic).collect();
            if topics.is_empty() {
                // A group that has committed nothing reads no topic yet.
                return Ok(Vec::new());
            }
            (self.led(&topics.into_iter().cloned().collect::<Vec<_>>()).await?, committed)
        } else {
            let (led, coordinator) = tokio::try_join!(self.led(&self.topics), self.coordinator())?;
            let committed = self.committed(&coordinator, &by_topic(led.iter())).await?;
            (led, committed)
        };
        let ends = self.ends(&led).await?;
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        let partitions = led.into_iter().map(|one| {
            let key = (one.topic, one.partition);
            KafkaPartition {
                end: ends.get(&key).copied(),
                committed: committed.get(&key).copied().filter(|offset| *offset >= 0),
                committed_before: before.get(&key).copied(),
            }
        });
        let partitions = partitions.collect();
        *before = committed.into_iter().filter(|(_, offset)| *offset >= 0).collect();
        Ok(partitions)
    }

    /// Asks the bootstrap servers in turn until one answers.
    async fn ask_any<T>(
        &self,
        api: wire::Api,
        question: impl Fn() -> Question,
        read: impl Fn(&mut Answer<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let count = self.bootstrap.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut error = ReadError::new("no bootstrap server is given");
        for turn in 0..count {
            let index = (first + turn) % count;
            // If this one hangs until the caller gives up, the next reading begins behind it.
            self.first.store((index + 1) % count, Ordering::Relaxed);
            let address = &self.bootstrap[index];
            match self.brokers.ask(&self.context, address, &self.login, api, question(), &read).await {
                Ok(answer) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok(answer);
                }
                Err(failed) => error = failed,
            }
        }
        Err(error)
    }

    /// The partitions of `topics` that count, with their leaders.
    async fn led(&self, topics: &[String]) -> Result<Vec<Led>, ReadError> {
        let question = || {
            let mut question = Question::new(METADATA);
            question.length(topics.len());
            topics.iter().for_each(|topic| question.text(topic));
            // Creates no topic.
            question.int8(0);
            question
        };
        // Outside of `ask_any`, since a topic that is missing on one server is missing on all.
        let (brokers, described) = self.ask_any(METADATA, question, metadata).await?;
        let mut led = Vec::new();
        for topic in described {
            if let Some(code) = topic.error {
                return Err(ReadError::new(format!("topic `{}`: {code}", topic.name)));
            }
            let counts = |partition: &i32| self.partitions.as_ref().is_none_or(|some| some.contains(partition));
            let before = led.len();
            for (partition, leader) in topic.partitions.into_iter().filter(|(partition, _)| counts(partition)) {
                let leader = brokers.get(&leader).cloned().ok_or_else(|| {
                    ReadError::new(format!("partition {partition} of topic `{}` has no leader", topic.name))
                })?;
                led.push(Led { topic: topic.name.clone(), partition, leader });
            }
            if led.len() == before {
                let text = format!("topic `{}` has no partition that partitionLimitation names", topic.name);
                return Err(ReadError::new(text));
            }
        }
        Ok(led)
    }

    /// The broker that keeps the group's offsets.
    async fn coordinator(&self) -> Result<Address, ReadError> {
        let question = || {
            let mut question = Question::new(FIND_COORDINATOR);
            question.text(&self.group);
            question.int8(OF_GROUP);
            question
        };
        let read = |answer: &mut Answer<'_>| {
            let _throttled = answer.int32()?;
            let error = answer.error()?;
            let _said = answer.text()?;
            let _node = answer.int32()?;
            let address = address(answer)?;
            match error {
                None => Ok(address),
                Some(code) => Err(ReadError::new(format!("group `{}` has no coordinator: {code}", self.group))),
            }
        };
        self.ask_any(FIND_COORDINATOR, question, read).await
    }

    /// What the group has committed of these partitions. Negative = nothing.
    async fn committed(&self, coordinator: &Address, topics: &BTreeMap<&str, Vec<i32>>) -> Result<Offsets, ReadError> {
        let mut question = Question::new(OFFSET_FETCH);
        question.text(&self.group);
        question.length(topics.len());
        for (topic, partitions) in topics {
            question.text(topic);
            question.length(partitions.len());
            partitions.iter().for_each(|partition| question.int32(*partition));
        }
        self.fetched(coordinator, question).await
    }

    /// What it has committed of any topic.
    async fn committed_at_all(&self, coordinator: &Address) -> Result<Offsets, ReadError> {
        let newest = |answer: &mut Answer<'_>| {
            let _error = answer.error()?;
            let ranges = answer.list(|answer| Ok((answer.int16()?, answer.int16()?, answer.int16()?)))?;
            Ok(ranges.into_iter().find(|(key, _, _)| *key == OFFSET_FETCH.key).map_or(0, |(_, _, last)| last))
        };
        let question = Question::new(API_VERSIONS);
        let newest = self.brokers.ask(&self.context, coordinator, &self.login, API_VERSIONS, question, newest).await?;
        if newest < OFFSET_FETCH_OF_GROUPS.version {
            let mut question = Question::new(OFFSET_FETCH);
            question.text(&self.group);
            question.all();
            return self.fetched(coordinator, question).await;
        }
        let mut question = Question::compact(OFFSET_FETCH_OF_GROUPS);
        // One group, all its topics.
        question.compact_length(1 + 1);
        question.compact_text(&self.group);
        question.compact_length(0);
        question.no_tags();
        // Also offsets of transactions that are not over.
        question.int8(0);
        question.no_tags();
        let read = |answer: &mut Answer<'_>| {
            answer.tags()?;
            let _throttled = answer.int32()?;
            let groups = answer.compact_list(|answer| self.group_offsets(answer))?;
            Ok(groups.into_iter().flatten().collect())
        };
        self.brokers.ask(&self.context, coordinator, &self.login, OFFSET_FETCH_OF_GROUPS, question, read).await
    }

    async fn fetched(&self, coordinator: &Address, question: Question) -> Result<Offsets, ReadError> {
        let read = |answer: &mut Answer<'_>| {
            let offsets = offsets(answer, |answer| {
                let offset = answer.int64()?;
                let _metadata = answer.text()?;
                answer.error()?.map_or(Ok(offset), |code| Err(self.no_offsets(code)))
            })?;
            answer.error()?.map_or(Ok(offsets), |code| Err(self.no_offsets(code)))
        };
        self.brokers.ask(&self.context, coordinator, &self.login, OFFSET_FETCH, question, read).await
    }

    /// One group of an answer in the compact form.
    fn group_offsets(&self, answer: &mut Answer<'_>) -> Result<Vec<Offset>, ReadError> {
        let _group = answer.compact_text()?;
        let topics = answer.compact_list(|answer| {
            let topic = answer.compact_text()?;
            let partitions = answer.compact_list(|answer| {
                let (partition, offset) = (answer.int32()?, answer.int64()?);
                let _epoch = answer.int32()?;
                let _metadata = answer.compact_text()?;
                let error = answer.error()?;
                answer.tags()?;
                match error {
                    None => Ok(((topic.clone(), partition), offset)),
                    Some(code) => Err(self.no_offsets(code)),
                }
            })?;
            answer.tags()?;
            Ok(partitions)
        })?;
        if let Some(code) = answer.error()? {
            return Err(self.no_offsets(code));
        }
        answer.tags()?;
        Ok(topics.into_iter().flatten().collect())
    }

    fn no_offsets(&self, code: wire::Code) -> ReadError {
        ReadError::new(format!("offsets of group `{}`: {code}", self.group))
    }

    /// The ends of the partitions, each leader asked once.
    async fn ends(&self, led: &[Led]) -> Result<Offsets, ReadError> {
        let leaders: BTreeSet<&Address> = led.iter().map(|one| &one.leader).collect();
        let asked = leaders.into_iter().map(|leader| self.ends_at(leader, led));
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }

    async fn ends_at(&self, leader: &Address, led: &[Led]) -> Result<Offsets, ReadError> {
        let topics = by_topic(led.iter().filter(|one| one.leader == *leader));
        let mut question = Question::new(LIST_OFFSETS);
        question.int32(NO_REPLICA);
        question.length(topics.len());
        for (topic, partitions) in topics {
            question.text(topic);
            question.length(partitions.len());
            for partition in partitions {
                question.int32(partition);
                question.int64(LATEST);
            }
        }
        let read = |answer: &mut Answer<'_>| {
            offsets(answer, |answer| {
                let error = answer.error()?;
                let _timestamp = answer.int64()?;
                let offset = answer.int64()?;
                error.map_or(Ok(offset), |code| Err(ReadError::new(format!("ends of the log: {code}"))))
            })
        };
        self.brokers.ask(&self.context, leader, &self.login, LIST_OFFSETS, question, read).await
    }
}

fn by_topic<'a>(led: impl Iterator<Item = &'a Led>) -> BTreeMap<&'a str, Vec<i32>> {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for one in led {
        topics.entry(&one.topic).or_default().push(one.partition);
    }
    topics
}

/// Topics of partitions of one number each.
fn offsets(
    answer: &mut Answer<'_>,
    one: impl Fn(&mut Answer<'_>) -> Result<i64, ReadError>,
) -> Result<Offsets, ReadError> {
    let topics = answer.list(|answer| {
        let topic = answer.text()?;
        answer.list(|answer| {
            let partition = answer.int32()?;
            let offset = one(answer).map_err(|e| ReadError::new(format!("partition {partition} of `{topic}`: {e}")))?;
            Ok(((topic.clone(), partition), offset))
        })
    })?;
    Ok(topics.into_iter().flatten().collect())
}

/// A topic as `Metadata` describes it.
struct Described {
    error: Option<wire::Code>,
    name: String,
    /// Number and leader.
    partitions: Vec<(i32, i32)>,
}

fn metadata(answer: &mut Answer<'_>) -> Result<(BTreeMap<i32, Address>, Vec<Described>), ReadError> {
    let _throttled = answer.int32()?;
    let brokers = answer.list(|answer| {
        let node = answer.int32()?;
        let address = address(answer)?;
        let _rack = answer.text()?;
        Ok((node, address))
    })?;
    let _cluster = answer.text()?;
    let _controller = answer.int32()?;
    let topics = answer.list(|answer| {
        let error = answer.error()?;
        let name = answer.text()?;
        let _is_internal = answer.flag()?;
        let partitions = answer.list(|answer| {
            let _error = answer.error()?;
            let partition = answer.int32()?;
            let leader = answer.int32()?;
            let _replicas = answer.list(Answer::int32)?;
            let _in_sync = answer.list(Answer::int32)?;
            Ok((partition, leader))
        })?;
        Ok(Described { error, name, partitions })
    })?;
    Ok((brokers.into_iter().collect(), topics))
}

/// A broker's host and port.
fn address(answer: &mut Answer<'_>) -> Result<Address, ReadError> {
    let host = answer.text()?;
    let port = answer.int32()?;
    // None with an error beside it; whoever uses it reads the error first.
    Ok(Address { host, port: u16::try_from(port).unwrap_or(0) })
}

#[cfg(test)]
mod tests;
