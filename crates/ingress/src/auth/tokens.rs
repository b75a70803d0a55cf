//! The token store: what providers gave for each session, kept by the server, sealed.
//!
//! One file per session, written whole and renamed, so that it is there or it is not. Memory holds those that are in use.
//! Azure keeps them in a blob container of the user's; here they never leave the machine.
//!
//! **Invariant:** a session that was ended here is ended everywhere: its cookie is worth nothing without its file.
//! **Invariant:** only so many are kept; beyond that the oldest go, whose users log in again.

use std::{
    collections::HashMap,
    fs, io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::{
    claims::Principal,
    seal::{AuthKey, Sealer, random},
};

/// Sessions that are kept, over all apps.
const SESSIONS_MAX: usize = 50_000;
/// Sessions in memory; beyond that all are forgotten and read again.
const MEMORY_MAX: usize = 10_000;
/// Shortest time between two looks for old sessions.
const SWEEP_REST: Duration = Duration::from_secs(600);
/// Age of a file that nobody can use any more, whatever its app's settings say: a year and the longest refresh.
const AGE_MAX: Duration = Duration::from_secs(2 * 366 * 24 * 3600);

/// What a provider gave for a session.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tokens {
    pub(crate) id_token: Option<String>,
    pub(crate) access_token: Option<String>,
    pub(crate) refresh_token: Option<String>,
    /// End of the access token, in seconds since 1970.
    pub(crate) expires_secs: Option<i64>,
}

/// A session with its tokens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// Key of the app that it belongs to.
    pub(crate) app: String,
    pub(crate) principal: Principal,
    pub(crate) tokens: Tokens,
    /// Until when the session can be used or refreshed, in seconds since 1970.
    pub(crate) kept_until_secs: i64,
}

/// All sessions with tokens.
#[derive(Clone)]
pub(crate) struct TokenStore {
    inner: Arc<Inner>,
}

struct Inner {
    /// `None`: in memory only.
    dir: Option<PathBuf>,
    sealer: Sealer,
    memory: Mutex<HashMap<String, Arc<Record>>>,
    swept_at: Mutex<Option<Instant>>,
}

impl TokenStore {
    /// The store in a directory, which is made when it is first needed.
    pub(crate) fn new(key: &AuthKey, dir: Option<PathBuf>) -> Self {
        let inner = Inner { dir, sealer: Sealer::of_files(key), memory: Mutex::default(), swept_at: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// A name for a new session: nothing that a path could be made of.
    pub(crate) fn new_id() -> String {
        random::<16>().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Keeps a session.
    ///
    /// # Errors
    /// The file cannot be written; the session is not kept then.
    pub(crate) async fn save(&self, id: String, record: Record) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        in_background(move || {
            let record = Arc::new(record);
            if let Some(dir) = &inner.dir {
                write(dir, &id, &inner.sealer.seal_bytes(&*record))?;
            }
            inner.remember(id, record);
            inner.sweep();
            Ok(())
        })
        .await
    }

    /// The session of an app, if it is kept.
    pub(crate) async fn load(&self, id: &str, app: &str) -> Option<Arc<Record>> {
        let known = self.inner.memory().get(id).cloned();
        let record = match known {
            Some(record) => record,
            None => {
                let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
                let read = in_background(move || inner.read(id)).await;
                read.inspect_err(|error| tracing::warn!(%error, "a session's tokens cannot be read")).ok()??
            }
        };
        (record.app == app).then_some(record)
    }

    /// Ends a session.
    pub(crate) async fn remove(&self, id: &str) {
        let (inner, id) = (Arc::clone(&self.inner), id.to_owned());
        let removed = in_background(move || {
            let path = inner.dir.as_ref().filter(|_| is_id(&id)).map(|dir| dir.join(&id));
            let removed = path.map_or(Ok(()), fs::remove_file);
            inner.memory().remove(&id);
            removed
        });
        match removed.await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(%error, "a session that was ended could not be deleted");
            }
            Ok(()) | Err(_) => {}
        }
    }
}

impl Inner {
    fn memory(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Record>>> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, id: String, record: Arc<Record>) {
        let mut memory = self.memory();
        if memory.len() >= MEMORY_MAX && !memory.contains_key(&id) {
            memory.clear();
        }
        memory.insert(id, record);
    }

    fn read(&self, id: String) -> io::Result<Option<Arc<Record>>> {
        let Some(dir) = self.dir.as_ref().filter(|_| is_id(&id)) else { return Ok(None) };
        let bytes = match fs::read(dir.join(&id)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        // sealed with a key that was lost: nobody can use it, its user logs in again
        let Some(record) = self.sealer.open_bytes::<Record>(&bytes) else { return Ok(None) };
        let record = Arc::new(record);
        self.remember(id, Arc::clone(&record));
        Ok(Some(record))
    }

    /// Deletes what is old, and the oldest when there are too many.
    fn sweep(&self) {
        let Some(dir) = &self.dir else { return };
        let mut swept_at = self.swept_at.lock().unwrap_or_else(PoisonError::into_inner);
        if swept_at.is_some_and(|at| at.elapsed() < SWEEP_REST) {
            return;
        }
        *swept_at = Some(Instant::now());
        drop(swept_at);
        let Ok(entries) = fs::read_dir(dir) else { return };
        let mut files: Vec<(SystemTime, PathBuf)> = entries
            .filter_map(|entry| {
                let entry = entry.ok()?;
                Some((entry.metadata().ok()?.modified().ok()?, entry.path()))
            })
            .collect();
        files.sort();
        let now = SystemTime::now();
        let surplus = files.len().saturating_sub(SESSIONS_MAX);
        for (index, (changed, path)) in files.iter().enumerate() {
            let is_ended = || {
                let record = fs::read(path).ok().and_then(|bytes| self.sealer.open_bytes::<Record>(&bytes));
                record.is_none_or(|it| it.kept_until_secs < jiff::Timestamp::now().as_second())
            };
            let is_old = now.duration_since(*changed).is_ok_and(|age| age > AGE_MAX);
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            // another name is that of a file that is being written, or was when the power went
            if index < surplus || is_old || is_id(name) && is_ended() {
                let _gone_already = fs::remove_file(path);
                self.memory().remove(name);
            }
        }
    }
}

fn is_id(id: &str) -> bool {
    id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The file is there as a whole or not at all; it is no loss when a power cut takes it: its user logs in again.
fn write(dir: &Path, id: &str, bytes: &[u8]) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    let temporary = dir.join(format!("{id}.new"));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
    io::Write::write_all(&mut file, bytes)?;
    fs::rename(&temporary, dir.join(id))
}

async fn in_background<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(app: &str, access: &str) -> Record {
        let principal = Principal {
            provider: "own".into(),
            id: "alice".into(),
            name: "Alice".into(),
            name_type: "name".into(),
            claims: Vec::new(),
        };
        let tokens = Tokens { access_token: Some(access.into()), ..Tokens::default() };
        Record { app: app.into(), principal, tokens, kept_until_secs: i64::MAX }
    }

    #[tokio::test]
    async fn a_session_outlives_the_server_and_ends_everywhere() {
        let dir = std::env::temp_dir().join(format!("cove-tokens-{}", TokenStore::new_id()));
        let key = AuthKey::random();
        let first = TokenStore::new(&key, Some(dir.clone()));
        let id = TokenStore::new_id();
        first.save(id.clone(), record("web", "very-secret")).await.unwrap();
        let on_disk = fs::read(dir.join(&id)).unwrap();
        assert!(!on_disk.windows(6).any(|part| part == b"secret"), "tokens are sealed at rest");
        let second = TokenStore::new(&key, Some(dir.clone()));
        assert_eq!(*second.load(&id, "web").await.unwrap(), record("web", "very-secret"));
        assert!(second.load(&id, "api").await.is_none(), "a session belongs to its app");
        assert!(second.load("../../etc/passwd", "web").await.is_none());
        let stranger = TokenStore::new(&AuthKey::random(), Some(dir.clone()));
        assert!(stranger.load(&id, "web").await.is_none(), "another key opens nothing");
        second.remove(&id).await;
        assert!(second.load(&id, "web").await.is_none());
        assert!(TokenStore::new(&key, Some(dir.clone())).load(&id, "web").await.is_none());
        fs::remove_dir_all(&dir).unwrap();
    }

    #[tokio::test]
    async fn what_has_ended_is_swept_away() {
        let dir = std::env::temp_dir().join(format!("cove-tokens-{}", TokenStore::new_id()));
        let store = TokenStore::new(&AuthKey::random(), Some(dir.clone()));
        let (old, new) = (TokenStore::new_id(), TokenStore::new_id());
        let ended = Record { kept_until_secs: 1, ..record("web", "a") };
        store.save(old.clone(), ended).await.unwrap();
        *store.inner.swept_at.lock().unwrap() = None;
        store.save(new.clone(), record("web", "b")).await.unwrap();
        assert!(!dir.join(&old).exists() && dir.join(&new).exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
