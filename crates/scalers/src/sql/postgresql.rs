//! PostgreSQL: `connection`, or `host`, `port`, `userName`, `password`, `dbName`, `sslmode`.
//!
//! `sslmode` is libpq's: `prefer` (the default) and `require` encrypt without checking the certificate, `verify-ca` checks
//! who signed it, `verify-full` its name too.
//!
//! **Invariant:** files named in a connection string (`sslcert`, `sslrootcert`) are refused: they would be the server's.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};

use cove_base::{OnCancel, OnError, TaskKind};
use futures_util::StreamExt as _;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_postgres::tls::{ChannelBinding, NoTls, TlsConnect, TlsStream};
use tokio_postgres::{Config, SimpleQueryMessage};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Cell, Database, Failure, Ground, ROWS_MAX, dsn};
use crate::dial::{Address, Peer};
use crate::keys;
use crate::net;
use crate::source::{Context, OpenError, ReadError, Trigger};
use crate::tls::{Roots, TlsOptions, Trust};

/// PostgreSQL's usual port.
const PORT: u16 = 5432;
/// Runs one connection.
const CONNECTION: TaskKind =
    TaskKind { name: "connection to PostgreSQL", on_error: OnError::Log, on_cancel: OnCancel::Abort };
/// Settings of clients that mean nothing here.
const IGNORED: [&str; 6] = [
    "connect_timeout",
    "target_session_attrs",
    "default_query_exec_mode",
    "statement_cache_capacity",
    "gssencmode",
    "krbsrvname",
];

/// Whether the connection is encrypted.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Encryption {
    Never,
    IfOffered,
    Always(TlsOptions),
}

/// One database as one user.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Postgresql {
    addresses: Vec<Address>,
    /// The same in the order of `addresses`, once the environment has looked the names up.
    peers: Vec<Peer>,
    user: String,
    password: Option<String>,
    database: String,
    encryption: Encryption,
    /// Settings of the session.
    options: String,
}

impl fmt::Display for Postgresql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgreSQL {}", self.addresses[0])
    }
}

/// A connection; its task ends with it.
pub(super) struct Client {
    client: tokio_postgres::Client,
    peer: Peer,
    _connection: DropGuard,
}

impl Postgresql {
    /// Reads the metadata.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(super) fn of(trigger: &Trigger) -> Result<Self, OpenError> {
        let mut settings = match trigger.get("connection") {
            Some(connection) => dsn::postgresql(connection)?,
            None => {
                let raw = |key: &str| trigger.parameters.get(key).filter(|value| !value.is_empty()).cloned();
                let mut settings = dsn::Settings::new();
                for (key, value) in [
                    ("host", Some(keys::required(trigger, "host").map_err(|_| no_server())?.to_owned())),
                    ("user", Some(keys::required(trigger, "userName")?.to_owned())),
                    ("dbname", Some(keys::required(trigger, "dbName")?.to_owned())),
                    ("port", trigger.get("port").map(str::to_owned)),
                    ("sslmode", trigger.get("sslmode").map(str::to_owned)),
                    ("password", raw("password")),
                ] {
                    settings.extend(value.map(|value| (key.to_owned(), value)));
                }
                settings
            }
        };
        let addresses = addresses(&settings.remove("host").ok_or_else(no_server)?, settings.remove("port"))?;
        let user = settings.remove("user").ok_or_else(|| OpenError::metadata("connection names no user"))?;
        let database =
            settings.remove("dbname").or_else(|| settings.remove("database")).unwrap_or_else(|| user.clone());
        let encryption = encryption(settings.remove("sslmode").as_deref())?;
        let password = settings.remove("password");
        Ok(Self { addresses, peers: Vec::new(), user, password, database, encryption, options: options(settings)? })
    }

    /// With the names looked up in the rule's environment.
    pub(super) fn seen_from(mut self, context: &Context) -> Self {
        self.peers = self.addresses.iter().map(|address| Peer::new(address.clone(), context)).collect();
        self
    }

    async fn connect_to(&self, peer: &Peer, ground: &Ground) -> Result<Client, ReadError> {
        let stream = peer.tcp().await?;
        let mut config = Config::new();
        config.user(&self.user).dbname(&self.database).application_name("cove").ssl_mode(match self.encryption {
            Encryption::Never => tokio_postgres::config::SslMode::Disable,
            Encryption::IfOffered => tokio_postgres::config::SslMode::Prefer,
            Encryption::Always(_) => tokio_postgres::config::SslMode::Require,
        });
        if let Some(password) = &self.password {
            config.password(password);
        }
        if !self.options.is_empty() {
            config.options(&self.options);
        }
        let tls = match &self.encryption {
            Encryption::Always(options) => options.clone(),
            Encryption::Never | Encryption::IfOffered => TlsOptions { trust: Trust::Nothing, ..TlsOptions::default() },
        };
        let tls = Tls { options: tls, address: peer.address.clone(), roots: ground.roots.clone() };
        let (client, connection) = config
            .connect_raw(stream, tls)
            .await
            .map_err(|error| ReadError::new(format!("PostgreSQL {}: {}", peer.address, reason(&error))))?;
        let ended = CancellationToken::new();
        let end = ended.clone();
        ground.tasks.spawn(CONNECTION, async move {
            tokio::select! {
                () = end.cancelled() => {}
                result = connection => if let Err(error) = result {
                    tracing::debug!(error = %reason(&error), "connection to PostgreSQL ended");
                }
            }
        });
        Ok(Client { client, peer: peer.clone(), _connection: ended.drop_guard() })
    }
}

impl Database for Postgresql {
    type Client = Client;

    async fn connect(&self, ground: &Ground) -> Result<Client, ReadError> {
        let mut failed = None;
        for peer in &self.peers {
            match self.connect_to(peer, ground).await {
                Ok(client) => return Ok(client),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.unwrap_or_else(|| ReadError::new("no server is given")))
    }

    fn is_closed(client: &Client) -> bool {
        client.client.is_closed()
    }

    async fn first_cell(client: &mut Client, query: &str) -> Result<Cell, Failure> {
        let messages = client.client.simple_query_raw(query).await.map_err(|error| failure(&error))?;
        let mut messages = std::pin::pin!(messages);
        let (mut first, mut rows) = (None, 0);
        while let Some(message) = messages.next().await {
            let SimpleQueryMessage::Row(row) = message.map_err(|error| failure(&error))? else { continue };
            rows += 1;
            if first.is_none() {
                let text = row.try_get(0).map_err(|_| Failure::Refused("the query gave no column".to_owned()))?;
                let null = || Failure::Refused("the query gave NULL".to_owned());
                first = Some(text.map(str::to_owned).ok_or_else(null));
            }
            if rows > ROWS_MAX {
                return Ok(Cell { text: first.transpose()?, is_whole: false });
            }
        }
        Ok(Cell { text: first.transpose()?, is_whole: true })
    }

    async fn cancel(self, client: Client, _ground: Ground) {
        let token = client.client.cancel_token();
        if let Ok(stream) = client.peer.tcp().await {
            // A request to cancel is not answered, and is sent in the clear as libpq does: it holds no secret of the user.
            let _ = token.cancel_query_raw(stream, NoTls).await;
        }
    }
}

fn no_server() -> OpenError {
    OpenError::metadata("no server: give connection, or host, userName and dbName")
}

fn addresses(hosts: &str, ports: Option<String>) -> Result<Vec<Address>, OpenError> {
    let hosts = keys::list(hosts);
    let ports: Vec<String> =
        ports.iter().flat_map(|ports| ports.split(',')).map(|port| port.trim().to_owned()).collect();
    if hosts.is_empty() {
        return Err(no_server());
    }
    let port_of = |index: usize| match ports.as_slice() {
        [one] => Some(one),
        many => many.get(index),
    };
    let mut all = Vec::new();
    for (index, host) in hosts.into_iter().enumerate() {
        if host.starts_with(['/', '@']) {
            return Err(OpenError::metadata("host is a socket in a folder; expected a server's name"));
        }
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let text = match port_of(index) {
            Some(port) if !port.is_empty() => format!("{host}:{port}"),
            _ => host,
        };
        all.push(Address::parse(&text, Some(PORT))?);
    }
    Ok(all)
}

fn encryption(mode: Option<&str>) -> Result<Encryption, OpenError> {
    let with = |trust| Encryption::Always(TlsOptions { trust, ..TlsOptions::default() });
    Ok(match mode {
        Some("disable") => Encryption::Never,
        None | Some("allow" | "prefer") => Encryption::IfOffered,
        Some("require") => with(Trust::Nothing),
        Some("verify-ca") => with(Trust::Chain),
        Some("verify-full") => with(Trust::Full),
        Some(other) => {
            return Err(OpenError::metadata(format!(
                "sslmode is `{other}`; expected disable, allow, prefer, require, verify-ca or verify-full"
            )));
        }
    })
}

/// What is left of a connection string: settings of the session.
fn options(settings: dsn::Settings) -> Result<String, OpenError> {
    let mut options = String::new();
    for (key, value) in settings {
        if matches!(key.as_str(), "sslcert" | "sslkey" | "sslrootcert" | "sslcrl" | "passfile" | "service") {
            return Err(OpenError::metadata(format!(
                "connection names a file ({key}); the file would be the server's own"
            )));
        }
        if key == "options" {
            options = format!("{value} {options}");
        } else if !IGNORED.contains(&key.as_str()) && !key.starts_with("pool_") && key != "application_name" {
            let value = value.replace('\\', "\\\\").replace(' ', "\\ ");
            options.push_str(&format!("-c {key}={value} "));
        }
    }
    Ok(options.trim().to_owned())
}

/// What happened, for people: the server's own words where there are some.
fn reason(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return keys::short(said.message());
    }
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn failure(error: &tokio_postgres::Error) -> Failure {
    // The server ends the connection itself for these: an administrator's command, a crash, a shutdown.
    let is_ending = error.code().is_some_and(|code| code.code().starts_with("57P"));
    if error.as_db_error().is_some() && !is_ending {
        Failure::Refused(reason(error))
    } else {
        Failure::Broken(reason(error))
    }
}

/// TLS once the server agreed to it.
struct Tls {
    options: TlsOptions,
    address: Address,
    roots: Roots,
}

impl TlsConnect<TcpStream> for Tls {
    type Stream = Encrypted;
    type Error = ReadError;
    type Future = Pin<Box<dyn Future<Output = Result<Encrypted, ReadError>> + Send>>;

    fn connect(self, stream: TcpStream) -> Self::Future {
        Box::pin(async move {
            let config = self.options.client_config(&self.roots).map_err(|error| ReadError::new(error.to_string()))?;
            Ok(Encrypted(net::secure(stream, &std::sync::Arc::new(config), &self.address.host).await?))
        })
    }
}

/// A stream that can say how it is bound to its certificate; this one does not.
struct Encrypted(tokio_rustls::client::TlsStream<TcpStream>);

impl TlsStream for Encrypted {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl AsyncRead for Encrypted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Encrypted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
