//! Connections to brokers: one per address, TLS settings and login, shared by all rules.
//!
//! **Invariant:** a connection is handed out after its login: who asks on it is who the rule says.

use std::fmt;

use bytes::BytesMut;
use cove_base::Tasks;

use super::scram::{Hash, Hello};
use super::wire::{self, Answer, Api, Question, SASL_AUTHENTICATE, SASL_HANDSHAKE};
use crate::dial::{Address, Peer};
use crate::keys;
use crate::pipe::Pipe;
use crate::pool::Pool;
use crate::source::{Context, OpenError, ReadError, Trigger};
use crate::tls::{Roots, TlsOptions};

type Connection = Pipe<BytesMut>;

/// The connections to all brokers.
#[derive(Debug, Default)]
pub(crate) struct Brokers {
    pool: Pool<(Peer, Login), Connection>,
    tasks: Tasks,
    roots: Roots,
}

/// How to enter a cluster.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Login {
    tls: Option<TlsOptions>,
    sasl: Option<Sasl>,
}

/// Who asks.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Sasl {
    mechanism: Mechanism,
    username: String,
    password: String,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Mechanism {
    Plain,
    Scram(Hash),
}

impl Mechanism {
    fn name(self) -> &'static str {
        match self {
            Self::Plain => "PLAIN",
            Self::Scram(Hash::Sha256) => "SCRAM-SHA-256",
            Self::Scram(Hash::Sha512) => "SCRAM-SHA-512",
        }
    }
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mechanism = self.sasl.as_ref().map(|sasl| sasl.mechanism.name());
        f.debug_struct("Login").field("tls", &self.tls).field("sasl", &mechanism).finish_non_exhaustive()
    }
}

impl Login {
    /// Reads `tls`, `ca`, `cert`, `key`, `keyPassword`, `unsafeSsl`, `sasl`, `username`, `password`.
    ///
    /// # Errors
    /// A word that is not known, a way to log in that is not built, a login without its password.
    pub(super) fn of(trigger: &Trigger) -> Result<Self, OpenError> {
        let tls = if keys::tls_switch(trigger, "tls")? { Some(keys::tls(trigger)?) } else { None };
        let mechanism = match trigger.get("sasl") {
            None | Some("none") => return Ok(Self { tls, sasl: None }),
            Some("plaintext") => Mechanism::Plain,
            Some("scram_sha256") => Mechanism::Scram(Hash::Sha256),
            Some("scram_sha512") => Mechanism::Scram(Hash::Sha512),
            Some(other) => {
                let known = "none, plaintext, scram_sha256, scram_sha512";
                return Err(OpenError::metadata(format!("sasl is `{other}`; Cove can log in by {known}")));
            }
        };
        let [username, password] = ["username", "password"].map(|key| keys::required(trigger, key).map(str::to_owned));
        Ok(Self { tls, sasl: Some(Sasl { mechanism, username: username?, password: password? }) })
    }
}

impl Brokers {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, ..Self::default() }
    }

    /// Asks one broker over the shared connection and reads its answer.
    ///
    /// # Errors
    /// The broker cannot be reached, or `read` makes no sense of what it says.
    pub(super) async fn ask<T>(
        &self,
        context: &Context,
        address: &Address,
        login: &Login,
        api: Api,
        question: Question,
        read: impl FnOnce(&mut Answer<'_>) -> Result<T, ReadError>,
    ) -> Result<T, ReadError> {
        let key = (Peer::new(address.clone(), context), login.clone());
        let connect = || self.connect(&key.0, login);
        let mut connection = self.pool.get(&key, connect).await?;
        if connection.is_stale() {
            self.pool.forget_if(&key, |other| other.is(&connection)).await;
            connection = self.pool.get(&key, connect).await?;
        }
        let asked = exchange(&connection, api, question, read).await;
        if connection.is_stale() {
            self.pool.forget_if(&key, |other| other.is(&connection)).await;
        }
        asked.map_err(|error| ReadError::new(format!("{address}: {error}")))
    }

    async fn connect(&self, peer: &Peer, login: &Login) -> Result<Connection, ReadError> {
        let wire = peer.connect(login.tls.as_ref(), &self.roots).await?;
        let connection = Pipe::open(&self.tasks, wire, wire::frames());
        if let Some(sasl) = &login.sasl {
            let entered = sasl.enter(&connection).await;
            entered.map_err(|error| ReadError::new(format!("{}: {error}", peer.address)))?;
        }
        Ok(connection)
    }
}

async fn exchange<T>(
    connection: &Connection,
    api: Api,
    question: Question,
    read: impl FnOnce(&mut Answer<'_>) -> Result<T, ReadError>,
) -> Result<T, ReadError> {
    let frames = connection.ask(question.finish(), 1).await?;
    let frame = frames.first().ok_or_else(|| ReadError::new(format!("{}: no answer", api.name)))?;
    read(&mut Answer::new(api, frame)?)
}

impl Sasl {
    async fn enter(&self, connection: &Connection) -> Result<(), ReadError> {
        let name = self.mechanism.name();
        let mut question = Question::new(SASL_HANDSHAKE);
        question.text(name);
        exchange(connection, SASL_HANDSHAKE, question, |answer| {
            let error = answer.error()?;
            let known = answer.list(Answer::text)?.join(", ");
            match error {
                None => Ok(()),
                Some(code) => Err(ReadError::new(format!("no login by {name}: {code}; the broker offers {known}"))),
            }
        })
        .await?;
        match self.mechanism {
            Mechanism::Plain => {
                let message = format!("\0{}\0{}", self.username, self.password);
                authenticate(connection, message.as_bytes()).await.map(drop)
            }
            Mechanism::Scram(hash) => {
                let hello = Hello::new(hash, &self.username)?;
                let first = authenticate(connection, hello.message().as_bytes()).await?;
                let proof = hello.prove(&self.password, &first)?;
                proof.check(&authenticate(connection, proof.message.as_bytes()).await?)
            }
        }
    }
}

/// One step of a login.
async fn authenticate(connection: &Connection, message: &[u8]) -> Result<String, ReadError> {
    let mut question = Question::new(SASL_AUTHENTICATE);
    question.bytes(message);
    exchange(connection, SASL_AUTHENTICATE, question, |answer| {
        let error = answer.error()?;
        let said = answer.text()?;
        match error {
            None => Ok(String::from_utf8_lossy(answer.bytes()?).into_owned()),
            Some(code) if said.is_empty() => Err(ReadError::new(format!("the broker refuses the login: {code}"))),
            Some(_) => Err(ReadError::new(format!("the broker refuses the login: {}", keys::short(&said)))),
        }
    })
    .await
}
