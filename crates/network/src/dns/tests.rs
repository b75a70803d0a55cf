//! The server over real sockets on the loopback, with real and with missing resolvers behind it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio_util::sync::CancellationToken;

use super::{CONNECTIONS_PER_CLIENT_MAX, DnsConfig, DnsServer, Lookup, app_label};

/// Longest wait for anything that must come; the machine may be busy with other tests.
const DEADLINE: Duration = Duration::from_secs(60);

const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 64, 0, 1);

/// A server that knows the app `web` of `dev.localhost`, and asks `resolver`.
async fn server(folder: &Path, resolver: &str, shutdown: &CancellationToken) -> SocketAddr {
    let resolv_conf = folder.join("resolv.conf");
    std::fs::write(&resolv_conf, resolver).unwrap();
    let lookup: Lookup = Arc::new(|client, name| {
        assert!(client.is_loopback());
        (app_label(name, "dev.localhost") == Some("web")).then_some(GATEWAY)
    });
    let config = DnsConfig {
        listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        subnet: Some("10.64.0.0/20".parse().unwrap()),
        resolv_conf,
        ..DnsConfig::new(GATEWAY, lookup)
    };
    let server = DnsServer::bind(config).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.run(shutdown.clone()));
    address
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(name).unwrap(), kind));
    message
}

async fn ask_raw(server: SocketAddr, raw: &[u8]) -> Option<Message> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(raw, server).await.unwrap();
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(Duration::from_secs(60), socket.recv(&mut buffer)).await.ok()?;
    Message::from_vec(&buffer[..received.unwrap()]).ok()
}

/// Code, whether authoritative, and the addresses of the answer.
async fn ask(server: SocketAddr, name: &str, kind: RecordType) -> (ResponseCode, bool, Vec<Ipv4Addr>) {
    let answer = ask_raw(server, &query(name, kind).to_vec().unwrap()).await.expect("no answer within 60 s");
    assert_eq!(answer.metadata.id, 4711);
    read(&answer)
}

fn read(answer: &Message) -> (ResponseCode, bool, Vec<Ipv4Addr>) {
    let addresses = answer.answers.iter().filter_map(|r| if let RData::A(a) = r.data { Some(a.0) } else { None });
    (answer.metadata.response_code, answer.metadata.authoritative, addresses.collect())
}

/// A resolver that answers everything with 192.0.2.7, after a wrong answer that must be seen through.
async fn resolver() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let question = asked.queries[0].clone();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.add_answer(Record::from_rdata(question.name().clone(), 60, RData::A(A::new(192, 0, 2, 7))));
            let mut forged = answer.clone();
            forged.add_query(Question::query(Name::from_ascii("other.example.").unwrap(), RecordType::A));
            socket.send_to(&forged.to_vec().unwrap(), from).await.unwrap();
            answer.add_query(question);
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    address
}

#[test]
fn the_forms_of_an_app_name() {
    for (name, app) in [
        ("web", Some("web")),
        ("web.dev.localhost", Some("web")),
        ("web.internal.dev.localhost", Some("web")),
        ("dev.localhost", None),
        ("internal.dev.localhost", Some("internal")),
        ("a.b.dev.localhost", None),
        ("web.prod.localhost", None),
        ("webdev.localhost", None),
        ("", None),
    ] {
        assert_eq!(app_label(name, "dev.localhost"), app, "{name}");
    }
}

#[tokio::test]
async fn app_names_are_answered_here_and_other_local_names_do_not_exist() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    // Nobody answers there: what must not leave the machine would show as SERVFAIL or REFUSED.
    let server = server(folder.path(), "", &shutdown).await;
    let ours = (ResponseCode::NoError, true, vec![GATEWAY]);
    for name in ["web.", "Web.DEV.localhost.", "web.internal.dev.localhost."] {
        assert_eq!(ask(server, name, RecordType::A).await, ours, "{name}");
    }
    assert_eq!(ask(server, "web.", RecordType::AAAA).await, (ResponseCode::NoError, true, vec![]));
    for name in ["db.dev.localhost.", "localhost.", "7.0.64.10.in-addr.arpa."] {
        assert_eq!(ask(server, name, RecordType::A).await.0, ResponseCode::NXDomain, "{name}");
    }
    assert_eq!(ask(server, "db.", RecordType::A).await.0, ResponseCode::Refused);
    shutdown.cancel();
}

#[tokio::test]
async fn other_names_come_from_the_resolvers_of_the_machine() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let resolvers = format!("nameserver 127.0.0.1:1\nnameserver {}\n", resolver().await);
    let server = server(folder.path(), &resolvers, &shutdown).await;
    let answer = ask(server, "example.com.", RecordType::A).await;
    assert_eq!(answer, (ResponseCode::NoError, false, vec![Ipv4Addr::new(192, 0, 2, 7)]));
    shutdown.cancel();
}

#[tokio::test]
async fn silence_behind_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let silent = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let resolvers = format!("nameserver {0}\nnameserver {0}\n", silent.local_addr().unwrap());
    let server = server(folder.path(), &resolvers, &shutdown).await;
    assert_eq!(ask(server, "example.com.", RecordType::A).await.0, ResponseCode::ServFail);
    shutdown.cancel();
}

#[tokio::test]
async fn tcp_answers_several_queries_on_a_connection() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let server = server(folder.path(), "", &shutdown).await;
    let mut stream = TcpStream::connect(server).await.unwrap();
    for (name, code) in [("web.", ResponseCode::NoError), ("db.localhost.", ResponseCode::NXDomain)] {
        stream.write_all(&super::message::framed(&query(name, RecordType::A).to_vec().unwrap())).await.unwrap();
        let mut answer = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut answer).await.unwrap();
        assert_eq!(read(&Message::from_vec(&answer).unwrap()).0, code, "{name}");
    }
    shutdown.cancel();
}

/// A connection to `server` from the loopback address of number `client`.
async fn connect_as(client: u8, server: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((Ipv4Addr::new(127, 0, 0, client), 0).into()).unwrap();
    socket.connect(server).await.unwrap()
}

/// The answer to a question on a connection; none when it was closed.
async fn ask_on(stream: &mut TcpStream) -> Option<Message> {
    let asked = async {
        stream.write_all(&super::message::framed(&query("web.", RecordType::A).to_vec().unwrap())).await?;
        let mut answer = vec![0; usize::from(stream.read_u16().await?)];
        stream.read_exact(&mut answer).await.map(|_| answer)
    };
    let answer = tokio::time::timeout(DEADLINE, asked).await.expect("neither an answer nor an end");
    answer.ok().map(|answer| Message::from_vec(&answer).unwrap())
}

#[tokio::test]
async fn a_client_that_holds_connections_leaves_the_others_theirs() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let server = server(folder.path(), "", &shutdown).await;
    let mut held = Vec::new();
    for number in 1..=CONNECTIONS_PER_CLIENT_MAX {
        let mut stream = connect_as(2, server).await;
        assert!(ask_on(&mut stream).await.is_some(), "connection {number}");
        held.push(stream);
    }
    assert!(ask_on(&mut connect_as(2, server).await).await.is_none(), "one too many is closed");
    assert!(ask_on(&mut connect_as(3, server).await).await.is_some(), "another client's is not");
    held.pop();
    let again = async { while ask_on(&mut connect_as(2, server).await).await.is_none() {} };
    tokio::time::timeout(DEADLINE, again).await.expect("a place that was given back is free");
    shutdown.cancel();
}

#[tokio::test]
async fn a_connection_ends_however_busy_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let resolv_conf = folder.path().join("resolv.conf");
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let config = DnsConfig { listen, resolv_conf, ..DnsConfig::new(GATEWAY, Arc::new(|_, _| Some(GATEWAY))) };
    let config = DnsConfig { connection_lifetime: Duration::from_millis(300), ..config };
    let server = DnsServer::bind(config).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.run(shutdown.clone()));
    let mut stream = connect_as(1, address).await;
    let busy = async { while ask_on(&mut stream).await.is_some() {} };
    tokio::time::timeout(DEADLINE, busy).await.expect("it is closed in the end");
    assert!(ask_on(&mut connect_as(1, address).await).await.is_some(), "and another one is opened");
    shutdown.cancel();
}

#[tokio::test]
async fn what_is_no_query_gets_an_error_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let server = server(folder.path(), "", &shutdown).await;
    let mut cut = query("web.", RecordType::A).to_vec().unwrap();
    cut.truncate(15);
    assert_eq!(ask_raw(server, &cut).await.unwrap().metadata.response_code, ResponseCode::FormErr);
    let mut none = query("web.", RecordType::A);
    none.queries.clear();
    let none = none.to_vec().unwrap();
    assert_eq!(ask_raw(server, &none).await.unwrap().metadata.response_code, ResponseCode::FormErr);
    let mut notify = query("web.", RecordType::A);
    notify.metadata.op_code = OpCode::Notify;
    let notify = notify.to_vec().unwrap();
    assert_eq!(ask_raw(server, &notify).await.unwrap().metadata.response_code, ResponseCode::NotImp);
    // Neither a short datagram nor an answer is answered: the next query is the first that is.
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    socket.send_to(b"x", server).await.unwrap();
    socket.send_to(&Message::response(1, OpCode::Query).to_vec().unwrap(), server).await.unwrap();
    socket.send_to(&query("web.", RecordType::A).to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).await.unwrap();
    assert_eq!(Message::from_vec(&buffer[..length]).unwrap().metadata.id, 4711);
    shutdown.cancel();
}

/// A resolver that knows a network of its own: what it answers with depends on the name.
async fn knowing_resolver() -> SocketAddr {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = socket.local_addr().unwrap();
    tokio::spawn(async move {
        let mut buffer = [0; 4096];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            let asked = Message::from_vec(&buffer[..length]).unwrap();
            let question = asked.queries[0].clone();
            let mut answer = Message::response(asked.metadata.id, OpCode::Query);
            answer.add_query(question.clone());
            let addresses: &[&str] = match question.name().to_ascii().as_str() {
                "mixed.corp." => &["10.1.2.3", "93.184.215.14", "fd00::1", "2001:db8::1", "168.63.129.16"],
                "db.corp." => &["192.168.7.1"],
                _ => &["93.184.215.14"],
            };
            for address in addresses {
                let data = match address.parse::<IpAddr>().unwrap() {
                    IpAddr::V4(address) => RData::A(A(address)),
                    IpAddr::V6(address) => RData::AAAA(AAAA(address)),
                };
                answer.add_answer(Record::from_rdata(question.name().clone(), 60, data));
            }
            socket.send_to(&answer.to_vec().unwrap(), from).await.unwrap();
        }
    });
    address
}

/// What a client at a loopback address hears: the code and the addresses, also of IPv6.
async fn ask_as(client: Ipv4Addr, server: SocketAddr, message: &Message) -> (ResponseCode, Vec<String>) {
    let socket = UdpSocket::bind((client, 0)).await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(DEADLINE, socket.recv(&mut buffer)).await.expect("no answer");
    let answer = Message::from_vec(&buffer[..received.unwrap()]).unwrap();
    let addresses = answer.answers.iter().map(|record| record.data.to_string());
    (answer.metadata.response_code, addresses.collect())
}

#[tokio::test]
async fn a_confined_replica_hears_of_the_internet_only() {
    let folder = tempfile::tempdir().unwrap();
    let shutdown = CancellationToken::new();
    let resolv_conf = folder.path().join("resolv.conf");
    std::fs::write(&resolv_conf, format!("nameserver {}\n", knowing_resolver().await)).unwrap();
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let subnet = Some("127.0.0.0/24".parse().unwrap());
    let config = DnsConfig { listen, subnet, resolv_conf, ..DnsConfig::new(GATEWAY, Arc::new(|_, _| None)) };
    let server = DnsServer::bind(config).await.unwrap();
    let address = server.local_addr().unwrap();
    tokio::spawn(server.run(shutdown.clone()));
    let (app, confined) = (Ipv4Addr::new(127, 0, 0, 2), Ipv4Addr::new(127, 0, 0, 200));
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    let public = "93.184.215.14";
    let all = ["10.1.2.3", public, "fd00::1", "2001:db8::1", "168.63.129.16"];
    let ok = ResponseCode::NoError;
    for (message, to_app, to_confined) in [
        (query("example.com.", RecordType::A), &[public][..], (ok, &[public][..])),
        (query("mixed.corp.", RecordType::A), &all, (ok, &[public, "2001:db8::1"])),
        (query("db.corp.", RecordType::A), &["192.168.7.1"], (ok, &[])),
        (query("example.com.", RecordType::ANY), &[public], (ResponseCode::Refused, &[])),
        (query("example.com.", RecordType::AXFR), &[public], (ResponseCode::Refused, &[])),
        (query("1.7.168.192.in-addr.arpa.", RecordType::PTR), &[public], (ResponseCode::NXDomain, &[])),
        (query("4.4.8.8.in-addr.arpa.", RecordType::PTR), &[public], (ok, &[public])),
        (chaos, &[public], (ResponseCode::Refused, &[])),
    ] {
        let asked = message.queries[0].to_string();
        let (code, heard) = ask_as(app, address, &message).await;
        assert_eq!((code, heard), (ok, to_app.iter().map(ToString::to_string).collect()), "an app asks {asked}");
        let (code, heard) = ask_as(confined, address, &message).await;
        let expected = to_confined.1.iter().map(ToString::to_string).collect();
        assert_eq!((code, heard), (to_confined.0, expected), "a confined one asks {asked}");
    }
    shutdown.cancel();
}
