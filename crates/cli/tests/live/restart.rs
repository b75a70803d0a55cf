//! New servers take over under load: keep-alive, WebSocket, a held request; nothing is refused or lost.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on ends")]

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::Child,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::{IMAGE, LIMIT, Server, until};

const HOST: &str = "web.cove.localhost";

/// What one client saw.
#[derive(Debug, Default)]
struct Seen {
    answered: usize,
    lost: Vec<String>,
}

/// Reads one answer; says whether the connection ends behind it.
fn answer(reader: &mut BufReader<TcpStream>) -> Result<(u16, bool), String> {
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        match reader.read_line(&mut line) {
            Ok(0) => return Err("the connection ended instead of an answer".into()),
            Ok(_) if line == "\r\n" => break,
            Ok(_) => head.push(line.trim_end().to_ascii_lowercase()),
            Err(error) => return Err(error.to_string()),
        }
    }
    let field = |name: &str| head.iter().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let status = head.first().and_then(|line| line.split(' ').nth(1)?.parse().ok()).ok_or("no status")?;
    let length: usize = field("content-length:").and_then(|length| length.parse().ok()).ok_or("no length")?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).map_err(|error| error.to_string())?;
    Ok((status, field("connection:") == Some("close")))
}

fn connect(address: SocketAddr) -> Result<BufReader<TcpStream>, String> {
    let stream = TcpStream::connect(address).map_err(|error| format!("refused: {error}"))?;
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    Ok(BufReader::new(stream))
}

/// Asks over kept connections until it is told to stop.
fn keep_asking(address: SocketAddr, stop: &AtomicBool, total: &AtomicUsize) -> Seen {
    let mut seen = Seen::default();
    let mut connection = None;
    while !stop.load(Ordering::Relaxed) {
        let asked = connection.take().map_or_else(|| connect(address), Ok).and_then(|mut reader| {
            let request = format!("GET /healthz HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
            reader.get_mut().write_all(request.as_bytes()).map_err(|error| error.to_string())?;
            let (status, is_last) = answer(&mut reader)?;
            if status != 200 {
                return Err(format!("status {status}"));
            }
            connection = (!is_last).then_some(reader);
            Ok(())
        });
        match asked {
            Ok(()) => seen.answered += 1,
            Err(error) => seen.lost.push(error),
        }
        total.fetch_add(1, Ordering::Relaxed);
    }
    seen
}

/// A WebSocket that says something now and then and is told the same.
struct Socket(TcpStream);

impl Socket {
    fn open(address: SocketAddr) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        write!(
            stream,
            "GET /ws HTTP/1.1\r\nhost: {HOST}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
             sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
        Self(stream)
    }

    fn echo(&mut self, text: &[u8]) {
        let length = u8::try_from(text.len()).unwrap();
        // masked with zeros
        self.0.write_all(&[&[0x81, 0x80 | length, 0, 0, 0, 0][..], text].concat()).unwrap();
        let mut frame = vec![0; 2 + text.len()];
        self.0.read_exact(&mut frame).unwrap();
        assert_eq!(frame, [&[0x81, length][..], text].concat());
    }
}

/// Waits for the end of a process.
fn ended(mut child: Child) -> Option<i32> {
    let since = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        assert!(since.elapsed() < LIMIT, "the old server does not end");
        thread::park_timeout(Duration::from_millis(20));
    }
}

#[test]
fn three_new_servers_take_over_and_no_request_is_lost() {
    let mut server = Server::start();
    for app in ["web", "sleepy"] {
        server.ok(&format!("containerapp up -n {app} --image {IMAGE} --ingress external --target-port 80"));
    }
    server.ok("scale zero sleepy");
    until("the other app is at zero", || {
        server.ok("containerapp replica list -g cove -n sleepy --query length(@) -o tsv") == "0\n"
    });
    let address = server.http();
    let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (stop, total) = (Arc::clone(&stop), Arc::clone(&total));
            thread::spawn(move || keep_asking(address, &stop, &total))
        })
        .collect();
    let mut old = Vec::new();
    let mut first: Option<Socket> = None;
    for round in 0..3 {
        let before = total.load(Ordering::Relaxed);
        until("requests flow", || total.load(Ordering::Relaxed) > before + 20);
        let mut socket = Socket::open(address);
        socket.echo(b"before");
        first.get_or_insert_with(|| Socket::open(address)).echo(b"through all of them");
        // asked of whoever decides at that moment: before, between or after
        let held = thread::spawn(move || {
            let mut reader = connect(address)?;
            let request = b"GET /healthz HTTP/1.1\r\nhost: sleepy.cove.localhost\r\n\r\n";
            reader.get_mut().write_all(request).map_err(|error| error.to_string())?;
            answer(&mut reader)
        });
        old.push(server.take_over());
        socket.echo(b"through the old server");
        let (status, _) = held.join().unwrap().expect("the held request is answered");
        assert_eq!(status, 200, "round {round}");
        let before = total.load(Ordering::Relaxed);
        until("requests still flow", || total.load(Ordering::Relaxed) > before + 20);
        server.ok("containerapp list --query length(@)");
        server.ok("scale zero sleepy");
        until("the other app is at zero again", || {
            server.ok("containerapp replica list -g cove -n sleepy --query length(@) -o tsv") == "0\n"
        });
    }
    stop.store(true, Ordering::Relaxed);
    let seen: Vec<Seen> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let lost: Vec<&String> = seen.iter().flat_map(|seen| &seen.lost).collect();
    let answered: usize = seen.iter().map(|seen| seen.answered).sum();
    println!("{answered} answered over three new servers");
    assert!(lost.is_empty(), "of {answered}: {lost:?}\n{}", server.log());
    // nothing is open any more: they do not wait for the end of the grace period
    drop(first);
    for child in old {
        assert_eq!(ended(child), Some(0));
    }
}

#[test]
fn a_new_server_that_fails_leaves_the_old_one_to_serve_on() {
    let mut server = Server::start();
    server.ok(&format!("containerapp up -n web --image {IMAGE} --ingress external --target-port 80"));
    let address = server.http();
    let (stop, total) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let client = thread::spawn({
        let (stop, total) = (Arc::clone(&stop), Arc::clone(&total));
        move || keep_asking(address, &stop, &total)
    });
    let before = total.load(Ordering::Relaxed);
    until("requests flow", || total.load(Ordering::Relaxed) > before + 20);
    // a file that is read only when the services are made
    let failed = server.fail_to_take_over("[scalers]\nca_certificates = [\"/does/not/exist.pem\"]\n");
    assert_eq!(failed.status, Some(1), "{}", failed.stderr);
    assert!(failed.stderr.contains("/does/not/exist.pem"), "{}", failed.stderr);
    until("the old process starts anew", || server.log().contains("starting anew in this process"));
    until("its API answers", || server.run("containerapp list --query length(@)").status == Some(0));
    server.ok("containerapp update -g cove -n web --set-env-vars COLOUR=red");
    until("a change is in force", || server.get(HOST, "/env").1.contains("COLOUR=red\n"));
    assert_eq!(ended(server.take_over()), Some(0));
    until("requests still flow", || total.load(Ordering::Relaxed) > before + 40);
    stop.store(true, Ordering::Relaxed);
    let seen = client.join().unwrap();
    assert!(seen.lost.is_empty(), "of {}: {:?}\n{}", seen.answered, seen.lost, server.log());
}
