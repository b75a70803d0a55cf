//! Looks for the TXT record by which a domain's owner proves it (DNS-01, RFC 8555, 8.4).
//!
//! **Invariant:** only an answer of the resolver that was asked, to the question that was asked, counts.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::Context;
use hickory_proto::{
    op::{Message, MessageType, OpCode, Query},
    rr::{Name, RData, RecordType},
};
use tokio::net::UdpSocket;

/// Longest wait for one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Where the machine's resolvers stand.
const RESOLVERS_FILE: &str = "/etc/resolv.conf";

/// The resolver to ask: the given one, or the machine's first.
///
/// # Errors
/// When the machine has none.
pub(super) fn resolver(given: Option<SocketAddr>) -> anyhow::Result<SocketAddr> {
    if let Some(given) = given {
        return Ok(given);
    }
    let text = std::fs::read_to_string(RESOLVERS_FILE).with_context(|| format!("failed to read `{RESOLVERS_FILE}`"))?;
    first_of(&text).with_context(|| format!("`{RESOLVERS_FILE}` names no resolver; set `acme.resolver`"))
}

fn first_of(text: &str) -> Option<SocketAddr> {
    let addresses = text.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    addresses.map(|address: IpAddr| SocketAddr::new(address, 53)).next()
}

/// Whether the domain has the record already; a resolver that does not answer or knows no such name says no.
///
/// # Errors
/// A subject that is no name, or no socket.
pub(super) async fn is_there(resolver: SocketAddr, subject: &str, value: &str) -> anyhow::Result<bool> {
    let name = Name::from_ascii(format!("_acme-challenge.{subject}.")).context("the subject is no domain name")?;
    let id: u16 = rand::random();
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), RecordType::TXT));
    let any: IpAddr = if resolver.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await.context("no socket for a DNS query")?;
    socket.connect(resolver).await.context("the resolver cannot be reached")?;
    let asked = async {
        socket.send(&message.to_vec().map_err(std::io::Error::other)?).await?;
        let mut buffer = vec![0; 4096];
        loop {
            let length = socket.recv(&mut buffer).await?;
            if let Some(values) = answer(&buffer[..length], id, &name) {
                return Ok::<_, std::io::Error>(values);
            }
        }
    };
    match tokio::time::timeout(ANSWER_LIMIT, asked).await {
        Ok(Ok(values)) => Ok(values.iter().any(|seen| seen == value)),
        Ok(Err(error)) => {
            tracing::debug!(%resolver, %error, "a resolver could not be asked");
            Ok(false)
        }
        Err(_late) => Ok(false),
    }
}

/// The TXT values of an answer to the question; `None` when it is none.
fn answer(raw: &[u8], id: u16, name: &Name) -> Option<Vec<String>> {
    let message = Message::from_vec(raw).ok()?;
    let is_ours = message.metadata.id == id && message.queries.first().is_some_and(|query| query.name() == name);
    if !is_ours || message.metadata.message_type != MessageType::Response {
        return None;
    }
    let text = |data: &RData| match data {
        RData::TXT(text) => Some(text.txt_data.iter().map(|part| String::from_utf8_lossy(part)).collect::<String>()),
        _ => None,
    };
    Some(message.answers.iter().filter_map(|record| text(&record.data)).collect())
}

#[cfg(test)]
mod tests {
    use hickory_proto::rr::{Record, rdata::TXT};

    use super::*;

    /// Answers one question with `values`, a forged answer before it.
    async fn resolver_with(values: &'static [&'static str]) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            let (length, client) = socket.recv_from(&mut buffer).await.unwrap();
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            for id in [asked.metadata.id.wrapping_add(1), asked.metadata.id] {
                let mut answer = Message::response(id, OpCode::Query);
                let question = asked.queries[0].clone();
                let said = if id == asked.metadata.id { values } else { &["forged"] };
                for value in said {
                    let data = RData::TXT(TXT::new(vec![(*value).to_owned()]));
                    answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
                }
                answer.add_query(question);
                socket.send_to(&answer.to_vec().unwrap(), client).await.unwrap();
            }
        });
        address
    }

    #[tokio::test]
    async fn a_record_is_found_among_others() {
        for (values, expected) in [(&["v=spf1", "token"][..], true), (&["other"], false), (&[], false)] {
            let resolver = resolver_with(values).await;
            assert_eq!(is_there(resolver, "shop.example", "token").await.unwrap(), expected, "{values:?}");
        }
        assert!(!is_there(resolver_with(&["x"]).await, "shop.example", "forged").await.unwrap());
    }

    #[test]
    fn the_first_resolver_of_the_machine_is_asked() {
        let text = "# a\nsearch example\nnameserver fe80::1%eth0\nnameserver 192.0.2.1\nnameserver 192.0.2.2\n";
        assert_eq!(first_of(text), Some("192.0.2.1:53".parse().unwrap()));
        assert_eq!(first_of("search example\n"), None);
    }
}
