//! What confined replicas may ask the resolvers of this machine, and what of the answers they hear.
//!
//! Those resolvers may know of the networks around the machine too. A confined replica reaches nothing there, and is to learn
//! little of it: neither whole zones, nor names of addresses, nor addresses of names. Texts and aliases of such zones do pass.
//!
//! **Invariant:** pure; an answer that cannot be read is not passed on.

use std::net::{Ipv4Addr, Ipv6Addr};

use hickory_proto::op::{Message, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::svcb::{IpHint, SVCB, SvcParamValue};
use hickory_proto::rr::{DNSClass, Name, RData, Record};
use ipnet::Ipv4Net;

use super::message::{Query, encode};
use crate::limits::{is_internet, is_within_no_internet};

/// Types that are no type of records, but ask for whole zones (AXFR, IXFR) or for all that a resolver remembers (ANY).
const QUESTION_TYPES: std::ops::RangeInclusive<u16> = 128..=255;

/// Why a question is not passed on; none when it is.
pub(super) fn refusal(question: &Question) -> Option<ResponseCode> {
    if question.query_class() != DNSClass::IN || QUESTION_TYPES.contains(&u16::from(question.query_type())) {
        return Some(ResponseCode::Refused);
    }
    is_reverse_of_no_internet(question.name()).then_some(ResponseCode::NXDomain)
}

/// The answer without addresses that are none of the internet; as it is, to the byte, when it has none.
pub(super) fn cleaned(query: &Query, raw: Vec<u8>) -> Vec<u8> {
    let Ok(mut message) = Message::from_vec(&raw) else { return query.error(ResponseCode::ServFail) };
    let sections = |message: &Message| message.answers.len() + message.authorities.len() + message.additionals.len();
    let before = sections(&message);
    for section in [&mut message.answers, &mut message.authorities, &mut message.additionals] {
        section.retain(may_be_heard);
    }
    if sections(&message) == before {
        return raw;
    }
    encode(&message).unwrap_or_else(|| query.error(ResponseCode::ServFail))
}

fn may_be_heard(record: &Record) -> bool {
    match &record.data {
        RData::A(address) => is_internet(address.0),
        RData::AAAA(address) => is_internet_v6(address.0),
        RData::SVCB(service) => hints_are_internet(service),
        RData::HTTPS(service) => hints_are_internet(&service.0),
        _ => true,
    }
}

fn hints_are_internet(service: &SVCB) -> bool {
    service.svc_params.iter().all(|(_, value)| match value {
        SvcParamValue::Ipv4Hint(IpHint(hints)) => hints.iter().all(|hint| is_internet(hint.0)),
        SvcParamValue::Ipv6Hint(IpHint(hints)) => hints.iter().all(|hint| is_internet_v6(hint.0)),
        _ => true,
    })
}

/// All of the internet lies in 2000::/3; private, link-local and mapped addresses do not.
fn is_internet_v6(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xe000 == 0x2000
}

/// A name of, or below, `in-addr.arpa` or `ip6.arpa` that stands for addresses which are none of the internet.
fn is_reverse_of_no_internet(name: &Name) -> bool {
    let name = name.to_lowercase();
    let labels: Vec<&[u8]> = name.iter().rev().collect();
    match labels.as_slice() {
        [b"arpa", b"in-addr", rest @ ..] => reverse_range(rest).is_some_and(is_within_no_internet),
        [b"arpa", b"ip6", [digit], ..] => !matches!(digit, b'2' | b'3'),
        _ => false,
    }
}

/// The range whose octets these labels begin with; what follows (services, shared ranges) lies within it.
fn reverse_range(labels: &[&[u8]]) -> Option<Ipv4Net> {
    let read = |label: &&[u8]| std::str::from_utf8(label).ok()?.parse::<u8>().ok();
    let known: Vec<u8> = labels.iter().take(4).map_while(read).collect();
    let mut octets = [0; 4];
    octets[..known.len()].copy_from_slice(&known);
    Ipv4Net::new(Ipv4Addr::from(octets), u8::try_from(known.len() * 8).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::RecordType;

    use super::*;

    #[test]
    fn whole_zones_and_names_of_private_addresses_are_refused() {
        let refused = Some(ResponseCode::Refused);
        let missing = Some(ResponseCode::NXDomain);
        for (name, kind, class, expected) in [
            ("example.com.", RecordType::A, DNSClass::IN, None),
            ("example.com.", RecordType::TXT, DNSClass::IN, None),
            ("example.com.", RecordType::ANY, DNSClass::IN, refused),
            ("example.com.", RecordType::AXFR, DNSClass::IN, refused),
            ("example.com.", RecordType::IXFR, DNSClass::IN, refused),
            ("example.com.", RecordType::Unknown(254), DNSClass::IN, refused),
            ("version.bind.", RecordType::TXT, DNSClass::CH, refused),
            ("example.com.", RecordType::A, DNSClass::ANY, refused),
            ("4.3.2.10.in-addr.arpa.", RecordType::PTR, DNSClass::IN, missing),
            ("10.IN-ADDR.arpa.", RecordType::SOA, DNSClass::IN, missing),
            ("168.192.in-addr.arpa.", RecordType::NS, DNSClass::IN, missing),
            ("b._dns-sd._udp.0.1.168.192.in-addr.arpa.", RecordType::PTR, DNSClass::IN, missing),
            ("0-25.1.168.192.in-addr.arpa.", RecordType::NS, DNSClass::IN, missing),
            ("16.129.63.168.in-addr.arpa.", RecordType::PTR, DNSClass::IN, missing),
            ("254.169.254.169.in-addr.arpa.", RecordType::PTR, DNSClass::IN, missing),
            ("1.0.0.d.f.ip6.arpa.", RecordType::PTR, DNSClass::IN, missing),
            ("4.4.8.8.in-addr.arpa.", RecordType::PTR, DNSClass::IN, None),
            ("172.in-addr.arpa.", RecordType::NS, DNSClass::IN, None),
            ("in-addr.arpa.", RecordType::NS, DNSClass::IN, None),
            ("8.8.8.8.0.6.8.4.1.0.0.2.ip6.arpa.", RecordType::PTR, DNSClass::IN, None),
        ] {
            let mut question = Question::query(Name::from_ascii(name).unwrap(), kind);
            question.set_query_class(class);
            assert_eq!(refusal(&question), expected, "{name} {kind} {class}");
        }
    }
}
