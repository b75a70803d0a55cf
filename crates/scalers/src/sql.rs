//! `postgresql` and `mysql`: the number in the first column of the first row of a query.
//!
//! Rules with the same server, user, password and database share [`LANES`] connections: queries of many rules on few
//! connections, and one slow query does not hold up the others.
//!
//! **Invariant:** a query whose reader gave up is cancelled on the server, and its connection is not used again.
//! **Invariant:** a connection goes back only after the whole answer was read.

mod dsn;
mod mysql;
mod postgresql;
#[cfg(test)]
mod tests;

use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cove_base::{OnCancel, OnError, TaskKind, Tasks};
use cove_scaling::source::{Answer, number_of};
use tokio::sync::Semaphore;

use crate::keys;
use crate::pool::Pool;
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::tls::Roots;
use mysql::MySql;
use postgresql::Postgresql;

/// Connections to one database.
const LANES: usize = 4;
/// Rows after the first that are read and thrown away; with more of them the connection is.
const ROWS_MAX: usize = 100;
/// Within which a query that nobody waits for must be cancelled.
const CANCEL_MAX: Duration = Duration::from_secs(5);
/// Ends queries that nobody waits for.
const CANCEL: TaskKind =
    TaskKind { name: "cancel a query of a scale rule", on_error: OnError::Log, on_cancel: OnCancel::Abort };

/// The connections to all databases.
#[derive(Debug, Default)]
pub(crate) struct Databases {
    postgresql: Pool<Postgresql, Arc<Desk<Postgresql>>>,
    mysql: Pool<MySql, Arc<Desk<MySql>>>,
    ground: Ground,
}

impl Databases {
    pub(crate) fn new(roots: Roots) -> Self {
        Self { ground: Ground { tasks: Tasks::default(), roots }, ..Self::default() }
    }
}

/// What every connection needs.
#[derive(Clone, Debug, Default)]
struct Ground {
    tasks: Tasks,
    roots: Roots,
}

/// Why there is no number.
#[derive(Debug)]
enum Failure {
    /// The server understood and refused; the connection is fine.
    Refused(String),
    /// The connection is of no use any more.
    Broken(String),
    /// There was none to be had.
    Unreachable(ReadError),
}

/// What a query gave.
#[derive(Debug)]
struct Cell {
    /// The first column of the first row; `None` = there is no row.
    text: Option<String>,
    /// The whole answer was read.
    is_whole: bool,
}

/// A kind of database; the value is also the key of its shared connections.
trait Database: Clone + Eq + Hash + fmt::Display + Send + Sync + 'static {
    type Client: Send + 'static;

    fn connect(&self, ground: &Ground) -> impl Future<Output = Result<Self::Client, ReadError>> + Send;

    fn is_closed(client: &Self::Client) -> bool;

    fn first_cell(client: &mut Self::Client, query: &str) -> impl Future<Output = Result<Cell, Failure>> + Send;

    /// Ends the query that runs on `client`, which is dropped.
    fn cancel(self, client: Self::Client, ground: Ground) -> impl Future<Output = ()> + Send;
}

/// The connections to one database that nobody uses just now.
struct Desk<D: Database> {
    idle: Mutex<Vec<D::Client>>,
    lanes: Semaphore,
}

impl<D: Database> fmt::Debug for Desk<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("lanes", &self.lanes.available_permits()).finish_non_exhaustive()
    }
}

impl<D: Database> Desk<D> {
    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<D::Client>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A query that runs; dropped before its end, it is cancelled.
struct Running<D: Database> {
    database: D,
    ground: Ground,
    client: Option<D::Client>,
}

impl<D: Database> Drop for Running<D> {
    fn drop(&mut self) {
        if let Some(client) = self.client.take() {
            let cancel = self.database.clone().cancel(client, self.ground.clone());
            self.ground.tasks.spawn(CANCEL, async move {
                if tokio::time::timeout(CANCEL_MAX, cancel).await.is_err() {
                    tracing::debug!("a query of a scale rule could not be cancelled");
                }
            });
        }
    }
}

/// One rule's query.
struct Query<D: Database> {
    databases: Arc<Databases>,
    pool: fn(&Databases) -> &Pool<D, Arc<Desk<D>>>,
    /// The database as the environment's names stand now.
    database: Box<dyn Fn() -> D + Send + Sync>,
    query: String,
}

impl<D: Database> fmt::Debug for Query<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Query").field("database", &(self.database)().to_string()).finish_non_exhaustive()
    }
}

/// Reads where the database is and what is asked.
///
/// # Errors
/// Metadata that cannot be used.
pub(crate) fn open(
    databases: &Arc<Databases>,
    trigger: &Trigger,
    context: &Context,
) -> Result<Arc<dyn Source>, OpenError> {
    let query = keys::required(trigger, "query")?.to_owned();
    let (databases, context) = (Arc::clone(databases), context.clone());
    if trigger.scaler == "mysql" {
        let database = MySql::of(trigger)?;
        let database = Box::new(move || database.clone().seen_from(&context));
        return Ok(Arc::new(Query::<MySql> { databases, pool: |all| &all.mysql, database, query }));
    }
    let database = Postgresql::of(trigger)?;
    let database = Box::new(move || database.clone().seen_from(&context));
    Ok(Arc::new(Query::<Postgresql> { databases, pool: |all| &all.postgresql, database, query }))
}

impl<D: Database> Query<D> {
    async fn answer(&self) -> Result<Answer, ReadError> {
        let database = (self.database)();
        let (pool, ground) = ((self.pool)(&self.databases), &self.databases.ground);
        let connect = || async {
            let client = database.connect(ground).await?;
            Ok(Arc::new(Desk { idle: Mutex::new(vec![client]), lanes: Semaphore::new(LANES) }))
        };
        let desk = pool.get(&database, connect).await?;
        let outcome = self.ask(&database, &desk, ground).await;
        let text = match outcome {
            Ok(cell) => cell.text,
            Err(Failure::Refused(reason)) => return Err(ReadError::new(format!("{database}: {reason}"))),
            Err(Failure::Unreachable(error)) => {
                pool.forget_if(&database, |other| Arc::ptr_eq(other, &desk)).await;
                return Err(error);
            }
            Err(Failure::Broken(reason)) => {
                pool.forget_if(&database, |other| Arc::ptr_eq(other, &desk)).await;
                return Err(ReadError::new(format!("{database}: {reason}")));
            }
        };
        let text = text.ok_or_else(|| ReadError::new(format!("{database}: the query gave no row")))?;
        let number = number_of(&text).map_err(|error| ReadError::new(format!("{database}: {error}")))?;
        Ok(Answer::Number(number))
    }

    async fn ask(&self, database: &D, desk: &Desk<D>, ground: &Ground) -> Result<Cell, Failure> {
        let _lane = desk.lanes.acquire().await.map_err(|_| Failure::Broken("the database was closed".into()))?;
        let idle = {
            let mut idle = desk.idle();
            idle.retain(|client| !D::is_closed(client));
            idle.pop()
        };
        if let Some(client) = idle {
            match self.ask_on(client, database, desk, ground).await {
                // It had been idle for a while, and its server may have been restarted meanwhile.
                Err(Failure::Broken(_)) => desk.idle().clear(),
                outcome => return outcome,
            }
        }
        let client = database.connect(ground).await.map_err(Failure::Unreachable)?;
        self.ask_on(client, database, desk, ground).await
    }

    async fn ask_on(&self, client: D::Client, database: &D, desk: &Desk<D>, ground: &Ground) -> Result<Cell, Failure> {
        let mut running = Running { database: database.clone(), ground: ground.clone(), client: Some(client) };
        let outcome = match running.client.as_mut() {
            Some(client) => D::first_cell(client, &self.query).await,
            None => Err(Failure::Broken("there is no connection".into())),
        };
        // An answer of many rows is still coming: `running` cancels it.
        let still_comes = matches!(&outcome, Ok(cell) if !cell.is_whole);
        let is_reusable = matches!(&outcome, Ok(_) | Err(Failure::Refused(_)));
        if !still_comes
            && let Some(client) = running.client.take()
            && is_reusable
        {
            desk.idle().push(client);
        }
        outcome
    }
}

impl<D: Database> Source for Query<D> {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(self.answer())
    }
}
