//! Reads a DNS query and decides: answer it, forward it as it is, or ignore it.
//!
//! **Invariant:** pure; no sockets and no clock.
//! **Invariant:** what cannot be understood is answered FORMERR when it has a header, else ignored.

use std::net::Ipv4Addr;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use ipnet::IpNet;

use super::DnsConfig;
use super::confined::refusal;
use crate::layout::{NetnsClass, class_of};

/// Seconds that a program may remember where an app is; it is always the gateway, so staleness costs little.
const TTL_SECS: u32 = 5;

/// Largest UDP message we announce to take, which passes every network unfragmented.
const EDNS_PAYLOAD: u16 = 1232;

/// Bytes of a DNS header.
const HEADER_LEN: usize = 12;

/// What to do with a query.
#[derive(Debug)]
pub(super) enum Plan {
    Ignore,
    Answer(Vec<u8>),
    Forward(Box<Query>),
}

/// A query with exactly one question.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) raw: Vec<u8>,
    message: Message,
    asker: NetnsClass,
}

impl Query {
    /// Reads a query, or says what to do with what is none.
    pub(super) fn parse(raw: &[u8]) -> Result<Self, Plan> {
        let Some(&[id_high, id_low, flags, ..]) = raw.get(..HEADER_LEN) else { return Err(Plan::Ignore) };
        if flags & 0x80 != 0 {
            return Err(Plan::Ignore);
        }
        let refuse = |op_code, code| {
            let id = u16::from_be_bytes([id_high, id_low]);
            Err(encode(&Message::error_msg(id, op_code, code)).map_or(Plan::Ignore, Plan::Answer))
        };
        let Ok(message) = Message::from_vec(raw) else { return refuse(OpCode::Query, ResponseCode::FormErr) };
        if message.metadata.op_code != OpCode::Query {
            return refuse(message.metadata.op_code, ResponseCode::NotImp);
        }
        if message.queries.len() != 1 {
            return refuse(OpCode::Query, ResponseCode::FormErr);
        }
        Ok(Self { raw: raw.to_vec(), message, asker: NetnsClass::App })
    }

    /// Whose it is: a limited replica's is answered by its rules and never passed on.
    pub(super) fn asker(&self) -> NetnsClass {
        self.asker
    }

    pub(super) fn question(&self) -> &Question {
        &self.message.queries[0]
    }

    /// Decides who answers.
    pub(super) fn plan(mut self, config: &DnsConfig, client: Ipv4Addr) -> Plan {
        self.asker = config.subnet.map_or(NetnsClass::App, |subnet| class_of(subnet, client));
        let question = self.question();
        match self.asker {
            NetnsClass::Limited => return Plan::Forward(Box::new(self)),
            NetnsClass::Confined => {
                if let Some(code) = refusal(question) {
                    return Plan::Answer(self.error(code));
                }
            }
            NetnsClass::App => {}
        }
        if question.query_class() != DNSClass::IN {
            return Plan::Forward(Box::new(self));
        }
        let name = question.name().to_lowercase().to_ascii();
        let name = name.trim_end_matches('.');
        // whoever is confined hears of the internet only
        let known = if self.asker == NetnsClass::Confined { None } else { (config.lookup)(client, name) };
        let answer = if let Some(address) = known {
            self.address(address)
        } else if is_local(config, name, question) {
            self.error(ResponseCode::NXDomain)
        } else {
            return Plan::Forward(Box::new(self));
        };
        Plan::Answer(answer)
    }

    /// The answer for a name that is ours: its address for A, nothing for other types, which says "no such record".
    fn address(&self, address: Ipv4Addr) -> Vec<u8> {
        let question = self.question();
        let mut answer = self.reply(ResponseCode::NoError);
        answer.metadata.authoritative = true;
        if matches!(question.query_type(), RecordType::A | RecordType::ANY) {
            answer.add_answer(Record::from_rdata(question.name().clone(), TTL_SECS, RData::A(A(address))));
        }
        self.encode_or_fail(&answer)
    }

    /// The answer that a name has these addresses for so long; without any, that it has none.
    pub(super) fn addresses(&self, addresses: &[Ipv4Addr], ttl: Duration) -> Vec<u8> {
        let mut answer = self.reply(ResponseCode::NoError);
        let (name, ttl) = (self.question().name(), u32::try_from(ttl.as_secs()).unwrap_or(TTL_SECS));
        for address in addresses {
            answer.add_answer(Record::from_rdata(name.clone(), ttl, RData::A(A(*address))));
        }
        self.encode_or_fail(&answer)
    }

    /// An answer without records.
    pub(super) fn error(&self, code: ResponseCode) -> Vec<u8> {
        self.encode_or_fail(&self.reply(code))
    }

    fn reply(&self, code: ResponseCode) -> Message {
        let asked = &self.message;
        let mut reply = Message::new(asked.metadata.id, MessageType::Response, OpCode::Query);
        reply.metadata.recursion_desired = asked.metadata.recursion_desired;
        reply.metadata.recursion_available = true;
        reply.metadata.response_code = code;
        reply.add_query(self.question().clone());
        if asked.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(EDNS_PAYLOAD);
            reply.set_edns(edns);
        }
        reply
    }

    /// A message of one question always encodes; if the library disagrees, the raw header says SERVFAIL.
    fn encode_or_fail(&self, message: &Message) -> Vec<u8> {
        encode(message).unwrap_or_else(|| {
            let mut header = self.raw[..HEADER_LEN].to_vec();
            header[2] |= 0x80;
            header[3] = 2;
            header[4..].fill(0);
            header
        })
    }

    /// True when `raw` answers this query: same id, an answer, same question.
    pub(super) fn is_answered_by(&self, raw: &[u8]) -> bool {
        let end = question_end(&self.raw).unwrap_or(HEADER_LEN);
        raw.len() >= end
            && raw[..2] == self.raw[..2]
            && raw[2] & 0x80 != 0
            && raw[HEADER_LEN..end].eq_ignore_ascii_case(&self.raw[HEADER_LEN..end])
    }
}

/// True when a name exists here or nowhere.
fn is_local(config: &DnsConfig, name: &str, question: &Question) -> bool {
    let below =
        |suffix: &String| name.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    if config.local_suffixes.iter().any(below) {
        return true;
    }
    match (config.subnet, question.name().parse_arpa_name()) {
        (Some(subnet), Ok(IpNet::V4(asked))) => subnet.contains(&asked),
        _ => false,
    }
}

/// Length of header and first question; none when it is cut off or compressed.
fn question_end(raw: &[u8]) -> Option<usize> {
    let mut at = HEADER_LEN;
    loop {
        match usize::from(*raw.get(at)?) {
            0 => break,
            length @ 1..=63 => at += length + 1,
            _ => return None,
        }
    }
    (at + 5 <= raw.len()).then_some(at + 5)
}

/// A message as TCP carries it: its length first.
pub(super) fn framed(message: &[u8]) -> Vec<u8> {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&message[..usize::from(length)]);
    framed
}

pub(super) fn encode(message: &Message) -> Option<Vec<u8>> {
    message.to_vec().inspect_err(|error| tracing::warn!(%error, "failed to encode a DNS answer")).ok()
}
