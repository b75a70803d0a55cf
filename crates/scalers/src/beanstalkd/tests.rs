//! Tests of `beanstalkd`: jobs of a tube, against a real beanstalkd.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::rig::{self, Server, Silent, read, read_source, scalers, trigger, until, wrong};

async fn beanstalkd() -> Server {
    Server::start("beanstalkd", |_, port| vec!["-l".into(), "127.0.0.1".into(), "-p".into(), port.to_string()]).await
}

/// Sends commands and waits until `answers` lines came.
fn tell(stream: &mut TcpStream, commands: &str, answers: usize) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    stream.write_all(commands.as_bytes()).unwrap();
    let (mut text, mut part) = (String::new(), [0; 4096]);
    while text.matches("\r\n").count() < answers {
        let count = stream.read(&mut part).unwrap();
        assert!(count > 0, "closed after {text}");
        text.push_str(&String::from_utf8_lossy(&part[..count]));
    }
    text
}

#[tokio::test]
async fn jobs_of_a_tube() {
    let mut server = beanstalkd().await;
    let scalers = scalers();
    let port = server.port();
    let rule = |rest: &str| format!("server=inside:{port}\nvalue=2\n{rest}");
    assert_eq!(read(&scalers, "beanstalkd", &rule("tube=mail")).await, "0 idle");
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let fill = "use mail\r\nput 0 0 60 1\r\na\r\nput 0 0 60 1\r\nb\r\nput 0 60 60 1\r\nc\r\nwatch mail\r\nreserve\r\n";
    tell(&mut stream, fill, 7);
    for (rest, expected) in [
        ("tube=mail", "2 active"),
        ("tube=mail\nincludeDelayed=true", "3 active"),
        ("tube=mail\nactivationValue=2", "2 idle"),
        ("tube=other", "0 idle"),
    ] {
        assert_eq!(read(&scalers, "beanstalkd", &rule(rest)).await, expected, "{rest}");
    }
    server.stop();
    let gone = read(&scalers, "beanstalkd", &rule("tube=mail")).await;
    assert!(gone.contains("cannot connect to inside") || gone.contains("closed the connection"), "{gone}");
    server.restart().await;
    until("the rule reads again", || async { read(&scalers, "beanstalkd", &rule("tube=mail")).await == "0 idle" })
        .await;
}

#[tokio::test]
async fn hosts_that_hang_or_speak_something_else() {
    let scalers = scalers();
    let silent = Silent::start();
    let metadata = format!("server={}\ntube=mail\nvalue=2", silent.address());
    let (rule, source) = (trigger("beanstalkd", &metadata), rig::open(&scalers, "beanstalkd", &metadata));
    assert_eq!(read_source(&source, &rule, Duration::from_millis(200)).await, "late");
    let redis = Server::start("redis-server", |_, port| vec!["--port".into(), port.to_string()]).await;
    let outcome = read(&scalers, "beanstalkd", &format!("server={}\ntube=mail\nvalue=2", redis.address())).await;
    assert_eq!(outcome, format!("failed: {}: the server closed the connection", redis.address()));
}

#[test]
fn metadata_that_is_wrong() {
    assert_eq!(wrong("beanstalkd", "tube=a"), "server is missing");
    assert_eq!(wrong("beanstalkd", "server=a:1"), "tube is missing");
    let name = "tube is no name that beanstalkd allows: letters, digits, -+/;.$_()";
    assert_eq!(wrong("beanstalkd", "server=a:1\ntube=a b"), name);
    assert_eq!(
        wrong("beanstalkd", "server=a:1\ntube=a\nincludeDelayed=x"),
        "includeDelayed is `x`; expected true or false"
    );
}
