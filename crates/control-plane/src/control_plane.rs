//! What all handlers share: store, key, streams, limits.

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use cove_base::Clock;
use cove_model::RevisionKey;
use cove_store::{Store, StoreError};
use ring::rand::{SecureRandom, SystemRandom};
use sha2::{Digest, Sha256};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    answer::Refusal,
    artifacts::Artifacts,
    config::Config,
    deployments::Runs,
    environment::Issue,
    route::Table,
    session_console::PulledPercent,
    streams::{Extensions, LogStreams},
    token::TokenKey,
};

/// Requests that are worked on at once; one more is answered 429.
const REQUESTS_MAX: usize = 1024;
/// Streams that are open at once; one more is answered 429.
const STREAMS_MAX: usize = 512;
/// Name of the store's setting that keeps the key of tokens.
const KEY_SETTING: &str = "control_plane.token_key";

/// The API of one server; cheap to clone.
#[derive(Clone)]
pub struct ControlPlane {
    inner: Arc<Inner>,
    stage: Arc<Stage>,
}

/// The place of an execution that waits for room, from 1; `None` when it does not wait. Must not block.
pub type PlaceInLine = Arc<dyn Fn(&RevisionKey) -> Option<u32> + Send + Sync>;

/// Where writes go: the store, or a copy of it on which a template is tried out.
struct Stage {
    store: Store,
    structure: Mutex<()>,
    runs: Runs,
    is_rehearsal: bool,
}

struct Inner {
    config: Config,
    clock: Clock,
    streams: Arc<dyn LogStreams>,
    extensions: Arc<dyn Extensions>,
    token_key: TokenKey,
    verification_id: String,
    table: Table,
    requests: Arc<Semaphore>,
    open_streams: Arc<Semaphore>,
    shutdown: CancellationToken,
    issue: OnceLock<Issue>,
    orders_outside: OnceLock<()>,
    line: OnceLock<PlaceInLine>,
    artifacts: OnceLock<Arc<dyn Artifacts>>,
    pulled: OnceLock<PulledPercent>,
}

impl fmt::Debug for ControlPlane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ControlPlane").field("config", &self.inner.config).finish_non_exhaustive()
    }
}

/// Why the API cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error("failed to load or keep the key of tokens")]
    Store(#[from] StoreError),
    /// The key in the store is damaged.
    #[error(
        "the key of tokens in the store is damaged; remove `control_plane.token_key` from `sealed_settings`, then all log in again"
    )]
    Key,
    /// The system gave no random bytes.
    #[error("the system gave no random bytes")]
    Random,
}

impl ControlPlane {
    /// The API on a store; makes the key of tokens when there is none. `shutdown` ends open streams.
    ///
    /// # Errors
    /// When the key can neither be loaded nor made.
    pub async fn new(
        config: Config,
        store: Store,
        clock: Clock,
        streams: Arc<dyn LogStreams>,
        extensions: Arc<dyn Extensions>,
        shutdown: CancellationToken,
    ) -> Result<Self, StartError> {
        let secret = load_or_make_key(&store).await?;
        let mut hash = Sha256::new();
        hash.update(b"domain verification");
        hash.update(&secret);
        hash.update(config.subscription.as_bytes());
        let verification_id = hex_upper(&hash.finalize());
        let inner = Inner {
            config,
            clock,
            streams,
            extensions,
            token_key: TokenKey::new(&secret),
            verification_id,
            table: Table::new(crate::front::routes()),
            requests: Arc::new(Semaphore::new(REQUESTS_MAX)),
            open_streams: Arc::new(Semaphore::new(STREAMS_MAX)),
            shutdown,
            issue: OnceLock::new(),
            orders_outside: OnceLock::new(),
            line: OnceLock::new(),
            artifacts: OnceLock::new(),
            pulled: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner), stage: Stage::new(store, false) })
    }

    /// The same API on a copy of the store: nothing that is done with it is done for real, and no controller sees it.
    ///
    /// # Errors
    /// When the copy cannot be made.
    pub(crate) async fn rehearsal(&self) -> Result<Self, Refusal> {
        let store = self.store().clone();
        let copy = tokio::task::spawn_blocking(move || store.rehearsal()).await;
        let copy = copy.map_err(|error| Refusal::Broken(format!("the copy of the store ended early: {error}")))??;
        Ok(Self { inner: Arc::clone(&self.inner), stage: Stage::new(copy, true) })
    }

    /// Whether this is a rehearsal.
    pub(crate) fn is_rehearsal(&self) -> bool {
        self.stage.is_rehearsal
    }

    /// Deployments that run now.
    pub(crate) fn runs(&self) -> &Runs {
        &self.stage.runs
    }

    /// Gives the API a certificate authority for managed certificates; without one they are answered 501. Later ones do
    /// not count.
    pub fn set_authority(&self, issue: Issue) {
        let _there_already = self.inner.issue.set(issue);
    }

    /// Gives the API who knows the places of executions that wait for room. Later ones do not count.
    pub fn set_line(&self, line: PlaceInLine) {
        let _there_already = self.inner.line.set(line);
    }

    /// The place of an execution that waits for room, from 1.
    pub(crate) fn place_in_line(&self, execution: &RevisionKey) -> Option<u32> {
        self.inner.line.get().and_then(|line| line(execution))
    }

    /// Gives the API who has the artifacts of executions; without it there are none. Later ones do not count.
    pub fn set_artifacts(&self, artifacts: Arc<dyn Artifacts>) {
        let _there_already = self.inner.artifacts.set(artifacts);
    }

    pub(crate) fn pulled(&self) -> &OnceLock<PulledPercent> {
        &self.inner.pulled
    }

    pub(crate) fn artifacts(&self) -> Option<Arc<dyn Artifacts>> {
        self.inner.artifacts.get().cloned()
    }

    /// From now on managed certificates are ordered at an authority outside, by whoever calls this.
    pub fn order_certificates_outside(&self) {
        let _already = self.inner.orders_outside.set(());
    }

    pub(crate) fn orders_outside(&self) -> bool {
        self.inner.orders_outside.get().is_some()
    }

    pub(crate) fn issue(&self) -> Option<&Issue> {
        self.inner.issue.get()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn store(&self) -> &Store {
        &self.stage.store
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.inner.clock
    }

    pub(crate) fn streams(&self) -> &dyn LogStreams {
        self.inner.streams.as_ref()
    }

    pub(crate) fn extensions(&self) -> &dyn Extensions {
        self.inner.extensions.as_ref()
    }

    pub(crate) fn token_key(&self) -> &TokenKey {
        &self.inner.token_key
    }

    /// What a domain's owner publishes to prove that it is theirs.
    pub(crate) fn verification_id(&self) -> &str {
        &self.inner.verification_id
    }

    pub(crate) fn table(&self) -> &Table {
        &self.inner.table
    }

    /// Held while something is made or taken away that others refer to: groups, environments, names of apps. Updates do
    /// not need it.
    pub(crate) async fn structure(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.stage.structure.lock().await
    }

    pub(crate) fn requests(&self) -> &Arc<Semaphore> {
        &self.inner.requests
    }

    pub(crate) fn open_streams(&self) -> &Arc<Semaphore> {
        &self.inner.open_streams
    }

    pub(crate) fn shutdown(&self) -> &CancellationToken {
        &self.inner.shutdown
    }
}

impl Stage {
    fn new(store: Store, is_rehearsal: bool) -> Arc<Self> {
        Arc::new(Self { store, structure: Mutex::new(()), runs: Runs::default(), is_rehearsal })
    }
}

/// A GUID for an operation.
pub(crate) fn new_id() -> String {
    uuid::Uuid::new_v4().to_string()
}

/// Random lower-case letters and digits.
pub(crate) fn random_word(length: usize) -> Result<String, Refusal> {
    const LETTERS: &[u8; 32] = b"abcdefghijkmnopqrstuvwxyz0123456";
    let mut bytes = vec![0; length];
    SystemRandom::new().fill(&mut bytes).map_err(|_| Refusal::Broken("no random bytes".into()))?;
    Ok(bytes.iter().map(|byte| char::from(LETTERS[usize::from(byte % 32)])).collect())
}

async fn load_or_make_key(store: &Store) -> Result<Vec<u8>, StartError> {
    if let Some(text) = store.sealed_setting(KEY_SETTING)? {
        let key = BASE64.decode(text).map_err(|_| StartError::Key)?;
        return if key.len() == 32 { Ok(key) } else { Err(StartError::Key) };
    }
    let mut key = vec![0; 32];
    SystemRandom::new().fill(&mut key).map_err(|_| StartError::Random)?;
    store.set_sealed_setting(KEY_SETTING.to_owned(), BASE64.encode(&key)).await?;
    Ok(key)
}

fn hex_upper(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02X}")).collect()
}
