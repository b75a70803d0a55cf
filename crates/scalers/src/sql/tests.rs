//! Tests of `sql`: queries, logins, TLS and what is cancelled, against a real PostgreSQL and MariaDB.

use std::process::Command;
use std::time::Duration;

use futures_util::future::join_all;

use crate::rig::{self, Server, Silent, as_nobody, program, read, read_source, trigger, until, wrong};
use crate::{Roots, Scalers};

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{command:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

/// A PostgreSQL of its own with TLS; the certificate is for `localhost`.
async fn postgresql() -> (Server, Scalers) {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    std::fs::write(dir.path().join("password"), "right").unwrap();
    let mut init = Command::new(program("initdb"));
    init.args(["--username=postgres", "--auth=scram-sha-256", "--no-sync", "--locale=C", "--encoding=UTF8"])
        .arg(format!("--pwfile={}", dir.path().join("password").display()))
        .arg("--pgdata")
        .arg(&data);
    as_nobody(&mut init, dir.path());
    run(&mut init);
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    for (name, text) in [("server.crt", made.cert.pem()), ("server.key", made.signing_key.serialize_pem())] {
        let path = data.join(name);
        std::fs::write(&path, text).unwrap();
        std::os::unix::fs::chown(&path, Some(65534), Some(65534)).unwrap();
        run(Command::new("chmod").arg("600").arg(&path));
    }
    let server = Server::start_in(dir, "postgres", true, |dir, port| {
        let mut args = vec!["-D".into(), dir.join("data").display().to_string()];
        for option in ["listen_addresses=127.0.0.1", "fsync=off", "ssl=on", "max_connections=20"] {
            args.extend(["-c".into(), option.to_owned()]);
        }
        args.extend(["-c".into(), format!("port={port}"), "-k".into(), dir.display().to_string()]);
        args
    })
    .await;
    until("PostgreSQL takes queries", || async { psql(&server, "select 1").is_some() }).await;
    (server, Scalers::new(cove_base::Clock::real()).with_roots(Roots::from_pem(&[made.cert.pem()]).unwrap()))
}

fn psql(server: &Server, statement: &str) -> Option<String> {
    let port = server.port().to_string();
    let output = Command::new(program("psql"))
        .args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres", "-qAtc", statement])
        .env("PGPASSWORD", "right")
        .output()
        .unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn parts(server: &Server, rest: &str) -> String {
    let port = server.port();
    format!("host=inside\nport={port}\nuserName=postgres\npassword=right\ndbName=postgres\ntargetQueryValue=5\n{rest}")
}

#[tokio::test]
async fn postgresql_from_beginning_to_end() {
    let (mut server, scalers) = postgresql().await;
    psql(&server, "create table jobs(n int); insert into jobs select generate_series(1, 7)").unwrap();
    postgresql_values(&server, &scalers).await;
    postgresql_logins(&server, &scalers).await;
    postgresql_slow(&server, &scalers).await;
    // It goes and comes back; a rule that is polled after that notices nothing.
    let metadata = parts(&server, "query=select count(*) from jobs");
    assert_eq!(read(&scalers, "postgresql", &metadata).await, "7 active");
    server.stop();
    let gone = read(&scalers, "postgresql", &metadata).await;
    assert!(gone.contains("cannot connect to inside"), "{gone}");
    server.restart().await;
    until("the rule reads again", || async { read(&scalers, "postgresql", &metadata).await == "7 active" }).await;
    server.stop();
    server.restart().await;
    until("PostgreSQL takes queries", || async { psql(&server, "select 1").is_some() }).await;
    assert_eq!(read(&scalers, "postgresql", &metadata).await, "7 active");
}

async fn postgresql_values(server: &Server, scalers: &Scalers) {
    let place = "PostgreSQL inside:".to_owned() + &server.port().to_string();
    for (query, expected) in [
        ("select count(*) from jobs", "7 active".to_owned()),
        ("select 2.5::numeric", "2.5 active".to_owned()),
        ("select 2.5::float8", "2.5 active".to_owned()),
        ("select ' 3 '::text", "3 active".to_owned()),
        ("select 0", "0 idle".to_owned()),
        ("select -4", "-4 idle".to_owned()),
        ("select n from jobs order by n desc", "7 active".to_owned()),
        ("select generate_series(9, 100000)", "9 active".to_owned()),
        ("select null", format!("failed: {place}: the query gave NULL")),
        ("select n from jobs where n > 100", format!("failed: {place}: the query gave no row")),
        ("select 'many'", format!("failed: {place}: `many` is no number")),
        ("select 'NaN'::float8", "unreadable: the source gave something that is no number".to_owned()),
        ("select", format!("failed: {place}: the query gave no column")),
        ("select count(*) from gone", format!("failed: {place}: relation \"gone\" does not exist")),
        ("selec", format!("failed: {place}: syntax error at or near \"selec\"")),
    ] {
        assert_eq!(read(scalers, "postgresql", &parts(server, &format!("query={query}"))).await, expected, "{query}");
    }
    let idle = parts(server, "query=select 7\nactivationTargetQueryValue=7");
    assert_eq!(read(scalers, "postgresql", &idle).await, "7 idle");
}

async fn postgresql_logins(server: &Server, scalers: &Scalers) {
    let port = server.port();
    for (connection, expected) in [
        (format!("host=127.0.0.1 port={port} user=postgres password=right sslmode=disable"), "1 active".to_owned()),
        (format!("postgresql://postgres:right@127.0.0.1:{port}/postgres?sslmode=require"), "1 active".to_owned()),
        (format!("postgresql://postgres:right@localhost:{port}/postgres?sslmode=verify-full"), "1 active".to_owned()),
        (format!("postgresql://postgres:right@127.0.0.1:{port}/postgres?sslmode=verify-ca"), "1 active".to_owned()),
        (
            format!("postgresql://postgres:wrong@127.0.0.1:{port}/postgres"),
            format!("failed: PostgreSQL 127.0.0.1:{port}: password authentication failed for user \"postgres\""),
        ),
        (
            format!("postgresql://postgres:right@127.0.0.1:{port}/gone"),
            format!("failed: PostgreSQL 127.0.0.1:{port}: database \"gone\" does not exist"),
        ),
        // The first of two servers is not there.
        (
            format!("postgresql://postgres:right@127.0.0.1:{},127.0.0.1:{port}/postgres", rig::free_port()),
            "1 active".into(),
        ),
    ] {
        let metadata = format!("connection={connection}\ntargetQueryValue=5\nquery=select 1");
        assert_eq!(read(scalers, "postgresql", &metadata).await, expected, "{connection}");
    }
    let other_name = format!("postgresql://postgres:right@127.0.0.1:{port}/postgres?sslmode=verify-full");
    let metadata = format!("connection={other_name}\ntargetQueryValue=5\nquery=select 1");
    let refused = read(scalers, "postgresql", &metadata).await;
    assert!(refused.contains("TLS handshake"), "{refused}");
}

async fn postgresql_slow(server: &Server, scalers: &Scalers) {
    let metadata = parts(server, "query=select pg_sleep(600)::text");
    let (rule, source) = (trigger("postgresql", &metadata), rig::open(scalers, "postgresql", &metadata));
    assert_eq!(read_source(&source, &rule, Duration::from_millis(300)).await, "late");
    let running = "select count(*) from pg_stat_activity where query like '%pg_sleep%' and pid <> pg_backend_pid()";
    until("the slow query is cancelled and its connection closed", || async {
        psql(server, running).as_deref() == Some("0")
    })
    .await;
    let many = (0..40).map(|number| {
        let metadata = parts(server, &format!("query=select {number}+1"));
        async move { read(scalers, "postgresql", &metadata).await }
    });
    let readings = join_all(many).await;
    assert!(readings.iter().all(|reading| reading.ends_with("active")), "{readings:?}");
    let ours =
        psql(server, "select count(*) from pg_stat_activity where application_name = 'cove' and datname = 'postgres'");
    let ours: usize = ours.unwrap().parse().unwrap();
    // At most the lanes of each of the logins that the tests before this one made.
    assert!(ours <= 4 + 5, "{ours} connections");
}

/// A MariaDB of its own.
async fn mariadb() -> (Server, Scalers) {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(dir.path().join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    let mut init = Command::new(program("mariadb-install-db"));
    init.args(["--no-defaults", "--auth-root-authentication-method=normal", "--skip-test-db"])
        .arg(format!("--datadir={}", dir.path().join("data").display()));
    as_nobody(&mut init, dir.path());
    run(&mut init);
    let begin = "create database shop;\ncreate user cove@'%' identified by 'p@ss/w:rd';\n\
                 grant all on shop.* to cove@'%';\ncreate table shop.jobs(n int);\n\
                 insert into shop.jobs values (1), (2), (3);\n";
    std::fs::write(dir.path().join("init.sql"), begin).unwrap();
    let server = Server::start_in(dir, "mariadbd", true, |dir, port| {
        let path = |name: &str| dir.join(name).display().to_string();
        vec![
            "--no-defaults".into(),
            format!("--datadir={}", path("data")),
            format!("--socket={}", path("socket")),
            format!("--init-file={}", path("init.sql")),
            format!("--port={port}"),
            "--bind-address=127.0.0.1".into(),
            "--innodb-buffer-pool-size=8M".into(),
            "--skip-name-resolve".into(),
            format!("--ssl-cert={}", path("cert.pem")),
            format!("--ssl-key={}", path("key.pem")),
        ]
    })
    .await;
    (server, Scalers::new(cove_base::Clock::real()).with_roots(Roots::from_pem(&[made.cert.pem()]).unwrap()))
}

#[tokio::test]
async fn mysql_from_beginning_to_end() {
    let (mut server, scalers) = mariadb().await;
    let port = server.port();
    let rule = |query: &str| {
        format!("host=inside\nport={port}\nusername=cove\npassword=p@ss/w:rd\ndbName=shop\nqueryValue=2\nquery={query}")
    };
    let place = format!("failed: MySQL inside:{port}");
    until("MariaDB takes queries", || async { read(&scalers, "mysql", &rule("select 1")).await == "1 active" }).await;
    for (query, expected) in [
        ("select count(*) from jobs", "3 active".to_owned()),
        ("select 2.5", "2.5 active".to_owned()),
        ("select 0", "0 idle".to_owned()),
        ("select n from jobs order by n desc", "3 active".to_owned()),
        ("select seq from seq_9_to_1000", "9 active".to_owned()),
        ("select null", format!("{place}: the query gave NULL")),
        ("select n from jobs where n > 100", format!("{place}: the query gave no row")),
        ("select 'many'", format!("{place}: `many` is no number")),
        ("select count(*) from gone", format!("{place}: Table 'shop.gone' doesn't exist")),
    ] {
        assert_eq!(read(&scalers, "mysql", &rule(query)).await, expected, "{query}");
    }
    mysql_logins(port, &scalers).await;
    // A query that nobody waits for is killed.
    let slow = rule("select sleep(600)");
    let (slow_rule, source) = (trigger("mysql", &slow), rig::open(&scalers, "mysql", &slow));
    assert_eq!(read_source(&source, &slow_rule, Duration::from_millis(300)).await, "late");
    let running = rule(
        "select count(*) from information_schema.processlist where info like '%sleep(600)%' and id <> connection_id()",
    );
    until("the slow query is killed", || async { read(&scalers, "mysql", &running).await == "0 idle" }).await;
    // It goes and comes back; a rule that is polled after that notices nothing.
    let count = rule("select count(*) from jobs");
    server.stop();
    let gone = read(&scalers, "mysql", &count).await;
    assert!(gone.contains("onnection refused"), "{gone}");
    std::fs::write(server.dir().join("init.sql"), "").unwrap();
    server.restart().await;
    until("the rule reads again", || async { read(&scalers, "mysql", &count).await == "3 active" }).await;
}

async fn mysql_logins(port: u16, scalers: &Scalers) {
    for (connection, expected) in [
        (format!("cove:p@ss/w:rd@tcp(127.0.0.1:{port})/shop?parseTime=true"), "1 active".to_owned()),
        (format!("cove:p@ss/w:rd@tcp(127.0.0.1:{port})/shop?tls=preferred"), "1 active".to_owned()),
        (format!("cove:p@ss/w:rd@tcp(127.0.0.1:{port})/shop?tls=skip-verify"), "1 active".to_owned()),
        (format!("cove:p@ss/w:rd@tcp(localhost:{port})/shop?tls=true"), "1 active".to_owned()),
        (
            format!("cove:secret@tcp(127.0.0.1:{port})/shop"),
            format!("failed: MySQL 127.0.0.1:{port}: Access denied for user 'cove'@'127.0.0.1' (using password: YES)"),
        ),
        (
            format!("cove:p@ss/w:rd@tcp(127.0.0.1:{port})/gone"),
            format!("failed: MySQL 127.0.0.1:{port}: Access denied for user 'cove'@'%' to database 'gone'"),
        ),
    ] {
        let metadata = format!("connectionString={connection}\nqueryValue=2\nquery=select 1");
        assert_eq!(read(scalers, "mysql", &metadata).await, expected, "{connection}");
    }
    let tls =
        format!("connectionString=cove:p@ss/w:rd@tcp(127.0.0.1:{port})/shop?tls=true\nqueryValue=2\nquery=select 1");
    let refused = read(scalers, "mysql", &tls).await;
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[tokio::test]
async fn a_host_that_hangs_costs_a_deadline_and_then_nothing() {
    let silent = Silent::start();
    let scalers = rig::scalers_at_rest();
    let port = silent.port();
    for (scaler, metadata) in [
        ("postgresql", format!("connection=host=127.0.0.1 port={port} user=u\ntargetQueryValue=5\nquery=select 1")),
        ("mysql", format!("connectionString=u:p@tcp(127.0.0.1:{port})/d\nqueryValue=5\nquery=select 1")),
    ] {
        let (rule, source) = (trigger(scaler, &metadata), rig::open(&scalers, scaler, &metadata));
        assert_eq!(read_source(&source, &rule, Duration::from_millis(200)).await, "late");
        let again = read_source(&source, &rule, rig::DEADLINE).await;
        assert_eq!(again, "failed: the source did not answer in time");
    }
}

#[test]
fn metadata_that_is_wrong() {
    for (scaler, metadata, expected) in [
        ("postgresql", "connection=host=a user=u", "query is missing"),
        ("postgresql", "query=select 1", "no server: give connection, or host, userName and dbName"),
        ("postgresql", "query=select 1\nhost=a", "userName is missing"),
        ("postgresql", "query=select 1\nconnection=host=a", "connection names no user"),
        (
            "postgresql",
            "query=select 1\nconnection=host=/run user=u",
            "host is a socket in a folder; expected a server's name",
        ),
        (
            "postgresql",
            "query=select 1\nconnection=host=a user=u sslmode=on",
            "sslmode is `on`; expected disable, allow, prefer, require, verify-ca or verify-full",
        ),
        (
            "postgresql",
            "query=select 1\nconnection=host=a user=u sslrootcert=/etc/passwd",
            "connection names a file (sslrootcert); the file would be the server's own",
        ),
        ("mysql", "query=select 1", "no server: give connectionString, or host, port, username and dbName"),
        (
            "mysql",
            "query=select 1\nconnectionString=u:p@tcp(h)/d?tls=x",
            "tls is `x`; expected true, false, skip-verify or preferred",
        ),
    ] {
        assert_eq!(wrong(scaler, metadata), expected);
    }
}
