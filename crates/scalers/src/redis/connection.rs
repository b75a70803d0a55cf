//! Which Redis server is asked: one, the master that sentinels name, or the node of a cluster that has the key.
//!
//! **Invariant:** sentinels are asked at every read, so the first read after a failover goes to the new master; a cluster's
//! nodes say themselves where a key is, and the rule remembers it.
//! **Invariant:** several addresses are tried in turn, beginning with the one that answered last; one that never answers
//! costs one read.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use cove_base::Tasks;

use super::wire::{Replies, Reply, command};
use crate::dial::{Address, Peer};
use crate::keys;
use crate::pipe::Pipe;
use crate::pool::Pool;
use crate::source::{Context, ReadError};
use crate::tls::{Roots, TlsOptions};

/// How often a cluster may send us on; a healthy one does once.
const REDIRECTS_MAX: usize = 5;

/// The connections to all Redis servers.
#[derive(Debug, Default)]
pub(crate) struct Servers {
    pool: Pool<(Peer, Login), Pipe<Reply>>,
    tasks: Tasks,
    roots: Roots,
}

impl Servers {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { roots, ..Self::default() }
    }
}

/// How to enter a server.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct Login {
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
    pub(super) database: u32,
    pub(super) tls: Option<TlsOptions>,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Login").field("database", &self.database).field("tls", &self.tls).finish_non_exhaustive()
    }
}

/// How the servers belong together.
pub(super) enum Form {
    /// One server, the first address.
    Single,
    /// The addresses are nodes of a cluster.
    Cluster,
    /// The addresses are sentinels.
    Sentinel { master: String, username: Option<String>, password: Option<String> },
}

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Single => "Single",
            Self::Cluster => "Cluster",
            Self::Sentinel { .. } => "Sentinel",
        })
    }
}

/// Where one rule's key is.
#[derive(Debug)]
pub(super) struct Nodes {
    servers: Arc<Servers>,
    context: Context,
    addresses: Vec<Address>,
    login: Login,
    form: Form,
    /// The address that is tried first.
    first: AtomicUsize,
    /// The cluster's node that had the key.
    owner: Mutex<Option<Address>>,
}

impl Nodes {
    pub(super) fn new(
        servers: Arc<Servers>,
        context: Context,
        addresses: Vec<Address>,
        mut login: Login,
        form: Form,
    ) -> Self {
        if matches!(form, Form::Cluster) {
            // A cluster has one database.
            login.database = 0;
        }
        Self { servers, context, addresses, login, form, first: AtomicUsize::new(0), owner: Mutex::new(None) }
    }

    /// Asks whoever has the key. A reply may be an error of Redis.
    ///
    /// # Errors
    /// Nobody could be asked.
    pub(super) async fn ask(&self, words: &[&str]) -> Result<Reply, ReadError> {
        match &self.form {
            Form::Single => self.ask_at(&self.addresses[0], &self.login, command(words), 1).await,
            Form::Cluster => self.ask_cluster(words).await,
            Form::Sentinel { master, username, password } => {
                let login = Login {
                    username: username.clone(),
                    password: password.clone(),
                    database: 0,
                    tls: self.login.tls.clone(),
                };
                let question = command(&["SENTINEL", "get-master-addr-by-name", master]);
                let (_, reply) = self.ask_any(&login, &question).await?;
                let address = master_address(master, &reply)?;
                self.ask_at(&address, &self.login, command(words), 1).await
            }
        }
    }

    async fn ask_cluster(&self, words: &[&str]) -> Result<Reply, ReadError> {
        let question = command(words);
        let owner = self.owner().take();
        let known = match owner {
            Some(owner) => self.ask_at(&owner, &self.login, question.clone(), 1).await.ok().map(|reply| (owner, reply)),
            None => None,
        };
        let (mut asked, mut reply) = match known {
            Some(known) => known,
            None => self.ask_any(&self.login, &question).await?,
        };
        for _ in 0..REDIRECTS_MAX {
            let Some((is_for_good, address)) = redirect(&reply, &asked)? else {
                *self.owner() = Some(asked);
                return Ok(reply);
            };
            reply = if is_for_good {
                self.ask_at(&address, &self.login, question.clone(), 1).await?
            } else {
                // The slot is moving: this one key is asked there, and next time again here.
                let mut both = command(&["ASKING"]);
                both.extend_from_slice(&question);
                return self.ask_at(&address, &self.login, both, 2).await;
            };
            asked = address;
        }
        Err(ReadError::new("the cluster's nodes do not agree about who has the key"))
    }

    /// Asks the addresses in turn until one answers.
    async fn ask_any(&self, login: &Login, question: &[u8]) -> Result<(Address, Reply), ReadError> {
        let count = self.addresses.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut error = None;
        for turn in 0..count {
            let index = (first + turn) % count;
            // If this one hangs until the caller gives up, the next read begins behind it.
            self.first.store((index + 1) % count, Ordering::Relaxed);
            let address = &self.addresses[index];
            match self.ask_at(address, login, question.to_vec(), 1).await {
                Ok(reply) => {
                    self.first.store(index, Ordering::Relaxed);
                    return Ok((address.clone(), reply));
                }
                Err(failed) => error = Some(failed),
            }
        }
        Err(error.unwrap_or_else(|| ReadError::new("no address is given")))
    }

    /// Asks one server over the shared connection; the last of `count` replies.
    async fn ask_at(
        &self,
        address: &Address,
        login: &Login,
        question: Vec<u8>,
        count: usize,
    ) -> Result<Reply, ReadError> {
        let servers = &self.servers;
        let key = (Peer::new(address.clone(), &self.context), login.clone());
        let connect = || connect(servers, &key.0, login);
        let mut pipe = servers.pool.get(&key, connect).await?;
        if pipe.is_stale() {
            servers.pool.forget_if(&key, |other| other.is(&pipe)).await;
            pipe = servers.pool.get(&key, connect).await?;
        }
        let asked = pipe.ask(question, count).await;
        if asked.is_err() {
            servers.pool.forget_if(&key, |other| other.is(&pipe)).await;
        }
        let mut replies = asked.map_err(|error| ReadError::new(format!("{address}: {error}")))?;
        replies.pop().ok_or_else(|| ReadError::new(format!("{address} gave no reply")))
    }

    fn owner(&self) -> std::sync::MutexGuard<'_, Option<Address>> {
        self.owner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn connect(servers: &Servers, peer: &Peer, login: &Login) -> Result<Pipe<Reply>, ReadError> {
    let address = &peer.address;
    let wire = peer.connect(login.tls.as_ref(), &servers.roots).await?;
    let pipe = Pipe::open(&servers.tasks, wire, Replies);
    let mut steps = Vec::new();
    match (&login.username, &login.password) {
        (Some(username), Some(password)) => steps.push(("login", command(&["AUTH", username, password]))),
        (None, Some(password)) => steps.push(("login", command(&["AUTH", password]))),
        (_, None) => {}
    }
    if login.database > 0 {
        steps.push(("choice of the database", command(&["SELECT", &login.database.to_string()])));
    }
    for (step, question) in steps {
        let replies = pipe.ask(question, 1).await.map_err(|error| ReadError::new(format!("{address}: {error}")))?;
        if let Some(Reply::Error(text)) = replies.first() {
            return Err(ReadError::new(format!("{address} refused the {step}: {}", keys::short(text))));
        }
    }
    Ok(pipe)
}

fn master_address(master: &str, reply: &Reply) -> Result<Address, ReadError> {
    match reply {
        Reply::Array(parts) => match parts.as_slice() {
            [Reply::Text(host), Reply::Text(port)] => {
                let port = port.parse().map_err(|_| ReadError::new("the sentinel names a port that is no number"))?;
                Ok(Address { host: host.clone(), port })
            }
            _ => Err(ReadError::new("the sentinel's answer is no address")),
        },
        Reply::Null => Err(ReadError::new(format!("the sentinels know no master `{master}`"))),
        Reply::Error(text) => Err(ReadError::new(format!("the sentinel says: {}", keys::short(text)))),
        _ => Err(ReadError::new("the sentinel's answer is no address")),
    }
}

/// Whether a node sends us on: for good (`MOVED`) or this once (`ASK`), and where.
fn redirect(reply: &Reply, asked: &Address) -> Result<Option<(bool, Address)>, ReadError> {
    let Reply::Error(text) = reply else { return Ok(None) };
    let mut words = text.split(' ');
    let is_for_good = match words.next() {
        Some("MOVED") => true,
        Some("ASK") => false,
        _ => return Ok(None),
    };
    let wrong = || ReadError::new(format!("the cluster sends us to nowhere: {}", keys::short(text)));
    let (host, port) = words.nth(1).and_then(|to| to.rsplit_once(':')).ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    // An empty host is the one that was asked.
    let host = if host.is_empty() { asked.host.clone() } else { host.trim_matches(['[', ']']).to_owned() };
    Ok(Some((is_for_good, Address { host, port })))
}
