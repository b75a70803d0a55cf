//! Answers limited replicas: addresses of their own names, and only after the packet filter lets them there.
//!
//! A question is never passed on: another one is asked, for the addresses of the name in lower case and nothing else, so that a
//! question carries nothing out but the name, which a rule covers.
//!
//! **Invariant:** a name that no rule covers does not exist, and nobody outside hears of it.
//! **Invariant:** an address is told only when the replica may reach it.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};

use super::forward::Upstreams;
use super::message::Query;
use crate::limits::{LEARNED_CEILING, Limits};

/// Aliases that are followed for one name.
const ALIASES_MAX: usize = 16;

/// Addresses of one name that are told.
const ADDRESSES_MAX: usize = 16;

/// The answer to a limited replica's question; never empty.
pub(super) async fn answer(query: &Query, client: Ipv4Addr, limits: Option<&Limits>, upstreams: &Upstreams) -> Vec<u8> {
    let nothing = || query.error(ResponseCode::NXDomain);
    let question = query.question();
    let Some(limits) = limits else { return nothing() };
    let Some(known) = limits.client(client) else { return nothing() };
    let name = question.name().to_lowercase().to_ascii();
    let name = name.trim_end_matches('.');
    let Some(ports) = known.ports_of(name) else { return nothing() };
    if question.query_class() != DNSClass::IN || question.query_type() != RecordType::A {
        // it exists, and has no such record: text records carry answers of any size, other addresses are not reached
        return query.addresses(&[], Duration::ZERO);
    }
    let Some(asked) = fresh(name) else { return nothing() };
    let mut raw = upstreams.ask_udp(&asked).await;
    // the third byte says whether it was cut off
    if raw.get(2).is_some_and(|flags| flags & 0x02 != 0) {
        raw = upstreams.ask_tcp(&asked).await;
    }
    let Ok(told) = Message::from_vec(&raw) else { return query.error(ResponseCode::ServFail) };
    if told.metadata.response_code != ResponseCode::NoError {
        return query.error(told.metadata.response_code);
    }
    let (mut addresses, ttl) = addresses(&told, asked.question().name());
    let before = addresses.len();
    addresses.retain(|address| known.may_hear_of(*address));
    if addresses.len() < before {
        tracing::info!(%client, name, "a name led a limited replica where it may not go");
    }
    addresses.truncate(ADDRESSES_MAX);
    if addresses.is_empty() {
        return query.addresses(&[], Duration::ZERO);
    }
    if !limits.learn(&known, &addresses, &ports, ttl).await {
        return query.error(ResponseCode::ServFail);
    }
    query.addresses(&addresses, ttl.min(LEARNED_CEILING))
}

/// A question of our own for the addresses of a name.
fn fresh(name: &str) -> Option<Query> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(name, RecordType::A));
    Query::parse(&message.to_vec().ok()?).ok()
}

/// The addresses that an answer gives for a name, and for how long: through its aliases in the order in which they lead on.
fn addresses(told: &Message, name: &Name) -> (Vec<Ipv4Addr>, Duration) {
    let (mut at, mut ttl) = (name.clone(), u32::MAX);
    for _ in 0..ALIASES_MAX {
        let mut found = Vec::new();
        let mut next = None;
        for record in told.answers.iter().filter(|record| record.name.eq_ignore_root(&at)) {
            match &record.data {
                RData::A(address) => {
                    found.push(address.0);
                    ttl = ttl.min(record.ttl);
                }
                RData::CNAME(target) => next = Some((target.0.clone(), record.ttl)),
                _ => {}
            }
        }
        match next {
            _ if !found.is_empty() => return (found, Duration::from_secs(ttl.into())),
            Some((target, its_ttl)) => (at, ttl) = (target, ttl.min(its_ttl)),
            None => break,
        }
    }
    (Vec::new(), Duration::ZERO)
}
