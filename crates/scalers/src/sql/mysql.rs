//! MySQL and MariaDB: `connectionString` in the form of Go's driver, or `host`, `port`, `username`, `password`, `dbName`.
//!
//! `tls=true` checks the certificate, `skip-verify` does not, `preferred` encrypts when the server can.
//!
//! **Invariant:** a server never gets a local file, whatever it asks for: there is no handler for it.

use std::fmt;
use std::time::Duration;

use mysql_async::prelude::Queryable as _;
use mysql_async::{Conn, Opts, OptsBuilder, Row, SslOpts, Value};

use super::{Cell, Database, Failure, Ground, ROWS_MAX, dsn};
use crate::dial::{Address, Peer};
use crate::keys;
use crate::source::{Context, OpenError, ReadError, Trigger};

/// MySQL's usual port.
const PORT: u16 = 3306;
/// After which an idle connection is probed, so that one whose server is gone ends.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes of a packet that are accepted.
const PACKET_MAX: usize = 16 << 20;
/// Seconds after which the driver takes an idle connection for dead; servers close theirs after 8 hours.
const IDLE_MAX_SECONDS: usize = 28_800;

/// Whether the connection is encrypted.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Encryption {
    Never,
    IfOffered,
    Unchecked,
    Checked,
}

/// One database as one user.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct MySql {
    address: Address,
    /// The same, once the environment has looked the name up.
    peer: Option<Peer>,
    user: Option<String>,
    password: Option<String>,
    database: Option<String>,
    encryption: Encryption,
}

impl fmt::Display for MySql {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MySQL {}", self.address)
    }
}

impl MySql {
    /// Reads the metadata.
    ///
    /// # Errors
    /// What is missing or wrong.
    pub(super) fn of(trigger: &Trigger) -> Result<Self, OpenError> {
        let raw = |key: &str| trigger.parameters.get(key).filter(|value| !value.is_empty()).cloned();
        let dsn = match trigger.get("connectionString") {
            Some(text) => dsn::mysql(text)?,
            None => {
                let missing =
                    |_| OpenError::metadata("no server: give connectionString, or host, port, username and dbName");
                let host = keys::required(trigger, "host").map_err(missing)?;
                let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
                dsn::MySqlDsn {
                    user: raw("username"),
                    password: raw("password"),
                    address: trigger.get("port").map_or_else(|| host.clone(), |port| format!("{host}:{port}")),
                    database: raw("dbName"),
                    tls: None,
                }
            }
        };
        let encryption = match dsn.tls.as_deref() {
            None | Some("false") => Encryption::Never,
            Some("true") => Encryption::Checked,
            Some("skip-verify") => Encryption::Unchecked,
            Some("preferred") => Encryption::IfOffered,
            Some(other) => {
                return Err(OpenError::metadata(format!(
                    "tls is `{other}`; expected true, false, skip-verify or preferred"
                )));
            }
        };
        let address = Address::parse(&dsn.address, Some(PORT))?;
        let (user, password, database) = (dsn.user, dsn.password, dsn.database);
        Ok(Self { address, peer: None, user, password, database, encryption })
    }

    /// With the name looked up in the rule's environment.
    pub(super) fn seen_from(mut self, context: &Context) -> Self {
        self.peer = Some(Peer::new(self.address.clone(), context));
        self
    }

    fn options(&self, ground: &Ground, encryption: Encryption) -> Opts {
        let at = self.peer.as_ref().and_then(Peer::at);
        let tls = match encryption {
            Encryption::Never => None,
            Encryption::IfOffered | Encryption::Unchecked => {
                Some(SslOpts::default().with_danger_accept_invalid_certs(true).with_danger_skip_domain_validation(true))
            }
            Encryption::Checked => {
                let roots = ground.roots.store_certificates();
                let roots = roots.iter().map(|root| root.to_vec().into()).collect();
                Some(SslOpts::default().with_root_certs(roots))
            }
        };
        OptsBuilder::default()
            .ip_or_hostname(&self.address.host)
            .resolved_ips(at.map(|ip| vec![ip]))
            .tcp_port(self.address.port)
            .user(self.user.clone())
            .pass(self.password.clone())
            .db_name(self.database.clone())
            .prefer_socket(false)
            .tcp_keepalive(Some(KEEPALIVE))
            .stmt_cache_size(0)
            .max_allowed_packet(Some(PACKET_MAX))
            .wait_timeout(Some(IDLE_MAX_SECONDS))
            .ssl_opts(tls)
            .into()
    }
}

impl Database for MySql {
    type Client = Conn;

    async fn connect(&self, ground: &Ground) -> Result<Conn, ReadError> {
        let first = match Conn::new(self.options(ground, self.encryption)).await {
            Err(error) if self.encryption == Encryption::IfOffered && error.is_fatal() => {
                Conn::new(self.options(ground, Encryption::Never)).await
            }
            first => first,
        };
        first.map_err(|error| ReadError::new(format!("{self}: {}", reason(&error))))
    }

    fn is_closed(_client: &Conn) -> bool {
        // The driver finds out when it is used; the rule reads again at the next poll.
        false
    }

    async fn first_cell(client: &mut Conn, query: &str) -> Result<Cell, Failure> {
        let mut result = client.query_iter(query).await.map_err(|error| failure(&error))?;
        let (mut first, mut rows) = (None, 0);
        while let Some(row) = result.next().await.map_err(|error| failure(&error))? {
            rows += 1;
            if first.is_none() {
                first = Some(text_of(row));
            }
            if rows > ROWS_MAX {
                return Ok(Cell { text: first.transpose()?, is_whole: false });
            }
        }
        // Further statements of the same query, which nobody asked about.
        result.drop_result().await.map_err(|error| failure(&error))?;
        Ok(Cell { text: first.transpose()?, is_whole: true })
    }

    async fn cancel(self, client: Conn, ground: Ground) {
        let id = client.id();
        if let Ok(mut other) = self.connect(&ground).await {
            // It may have ended by itself; then there is nothing to kill.
            let _ = other.query_drop(format!("KILL QUERY {id}")).await;
            let _ = other.disconnect().await;
        }
        drop(client);
    }
}

fn text_of(mut row: Row) -> Result<String, Failure> {
    let refused = |what: &str| Failure::Refused(format!("the query gave {what}"));
    match row.take::<Value, _>(0) {
        Some(Value::Bytes(bytes)) => String::from_utf8(bytes).map_err(|_| refused("bytes that are no text")),
        Some(Value::NULL) => Err(refused("NULL")),
        Some(Value::Int(number)) => Ok(number.to_string()),
        Some(Value::UInt(number)) => Ok(number.to_string()),
        Some(Value::Float(number)) => Ok(number.to_string()),
        Some(Value::Double(number)) => Ok(number.to_string()),
        Some(Value::Date(..) | Value::Time(..)) => Err(refused("a time")),
        None => Err(refused("no column")),
    }
}

fn reason(error: &mysql_async::Error) -> String {
    match error {
        mysql_async::Error::Server(said) => keys::short(&said.message),
        mysql_async::Error::Io(error) => keys::short(&error.to_string()),
        other => keys::short(&other.to_string()),
    }
}

fn failure(error: &mysql_async::Error) -> Failure {
    if error.is_fatal() { Failure::Broken(reason(error)) } else { Failure::Refused(reason(error)) }
}
