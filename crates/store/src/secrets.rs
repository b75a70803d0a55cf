//! Secrets at rest: the keys, how values are sealed, and how the key is changed.
//!
//! `secrets.key` in the data directory holds one key; while a rotation is under way it holds the old one and the new one, so
//! that whatever row a `kill -9` left behind can be opened, and the next start ends the rotation. The last line is the key
//! that seals. Each value has a nonce of its own and is bound to its resource and name: a row that is moved does not open.
//!
//! **Invariant:** a key is on disk before anything is sealed with it, and leaves the disk after nothing is.
//! **Invariant:** with sealed values in the database no key is ever made: a lost key is told, not replaced.
//! **Invariant:** no value and no key appears in an error or in a `Debug` text.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::{self, File},
    io::Write,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    digest,
    rand::{SecureRandom, SystemRandom},
};
use rusqlite::{Connection, OptionalExtension, params};

use crate::{SecretsChange, Store, StoreError};

/// Name of the file in the data directory.
const FILE: &str = "secrets.key";
/// Begins each line of the file that holds a key.
const PREFIX: &str = "v1 ";
/// Bytes of a key.
const KEY_LEN: usize = 32;
/// What settings are bound to in place of a resource.
const SETTINGS: &str = "settings";
/// Settings that schema 1 kept in clear.
const CLEAR_SETTINGS: [&str; 1] = ["control_plane.token_key"];
/// Setting that says that the file may still hold clear values of schema 1.
const SCRUB: &str = "store.scrub";
const HEADER: &str =
    "# Opens the secrets in cove.db. Keep it with the database and from everybody else; without it they are lost.\n";

/// The keys of a data directory.
pub(crate) struct Keyring {
    path: PathBuf,
    keys: RwLock<Keys>,
    rotation: tokio::sync::Mutex<()>,
}

/// Keys by their id; the newest seals. Old ones stay in memory, since a reader may hold rows of before a rotation.
#[derive(Default)]
struct Keys {
    by_id: BTreeMap<String, Arc<LessSafeKey>>,
    /// As in the file, the newest last.
    bytes: Vec<[u8; KEY_LEN]>,
}

/// A value as it is stored.
struct Sealed {
    key_id: String,
    bytes: Vec<u8>,
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keyring").field("path", &self.path).finish_non_exhaustive()
    }
}

impl fmt::Debug for SecretsChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Keep => f.write_str("Keep"),
            Self::Replace(values) => f.debug_tuple("Replace").field(&values.keys()).finish(),
        }
    }
}

impl Keyring {
    /// The keys of a data directory; makes the first one when `db` has nothing sealed yet.
    ///
    /// # Errors
    /// When the file is missing, readable by others, damaged, or not the one that sealed the database.
    pub(crate) fn open(dir: &Path, db: &Connection) -> Result<Self, StoreError> {
        let path = dir.join(FILE);
        let needed = key_ids(db)?;
        let shown = || path.display().to_string();
        let keys = match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && needed.is_empty() => {
                let mut keys = Keys::default();
                keys.add(new_key()?)?;
                write_file(&path, &keys.bytes)?;
                keys
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(StoreError::SecretsKeyMissing { path: shown() });
            }
            Err(source) => return Err(StoreError::Io { what: format!("read `{}`", shown()), source }),
            Ok(metadata) => {
                let mode = metadata.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(StoreError::SecretsKeyReadable { path: shown(), mode });
                }
                read_file(&path)?
            }
        };
        if let Some(unknown) = needed.iter().find(|id| !keys.by_id.contains_key(*id)) {
            return Err(StoreError::SecretsKeyOther { path: shown(), key_id: unknown.clone() });
        }
        Ok(Self { path, keys: RwLock::new(keys), rotation: tokio::sync::Mutex::default() })
    }

    fn seal(&self, owner: &str, name: &str, value: &str) -> Result<Sealed, StoreError> {
        let (key_id, key) = self.newest()?;
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| StoreError::NoRandom)?;
        let mut text = value.as_bytes().to_vec();
        let sealed = key.seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(bound_to(owner, name)),
            &mut text,
        );
        sealed.map_err(|_| StoreError::SecretDamaged { owner: owner.to_owned(), name: name.to_owned() })?;
        let mut bytes = nonce.to_vec();
        bytes.append(&mut text);
        Ok(Sealed { key_id, bytes })
    }

    fn open_value(&self, owner: &str, name: &str, sealed: &Sealed) -> Result<String, StoreError> {
        let damaged = || StoreError::SecretDamaged { owner: owner.to_owned(), name: name.to_owned() };
        let key = {
            let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
            keys.by_id.get(&sealed.key_id).cloned()
        };
        let key = key.ok_or_else(damaged)?;
        let (nonce, text) = sealed.bytes.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| damaged())?;
        let mut text = text.to_vec();
        let clear = key.open_in_place(nonce, Aad::from(bound_to(owner, name)), &mut text).map_err(|_| damaged())?;
        String::from_utf8(clear.to_vec()).map_err(|_| damaged())
    }

    fn newest(&self) -> Result<(String, Arc<LessSafeKey>), StoreError> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        let newest = keys.bytes.last().map(key_id).and_then(|id| Some((id.clone(), Arc::clone(keys.by_id.get(&id)?))));
        newest.ok_or_else(|| StoreError::SecretsKeyMissing { path: self.path.display().to_string() })
    }

    /// Puts a new key on disk beside the old one; from now on it seals.
    fn add_key(&self) -> Result<(), StoreError> {
        let new = new_key()?;
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let mut bytes = keys.bytes.clone();
        bytes.push(new);
        write_file(&self.path, &bytes)?;
        keys.add(new)
    }

    /// Takes every key but the newest off the disk; nothing may be sealed with them any more.
    fn forget_old(&self) -> Result<(), StoreError> {
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        let newest: Vec<_> = keys.bytes.last().copied().into_iter().collect();
        write_file(&self.path, &newest)?;
        keys.bytes = newest;
        Ok(())
    }

    fn is_rotating(&self) -> bool {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).bytes.len() > 1
    }
}

impl Keys {
    fn add(&mut self, bytes: [u8; KEY_LEN]) -> Result<(), StoreError> {
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(|_| StoreError::NoRandom)?;
        self.by_id.insert(key_id(&bytes), Arc::new(LessSafeKey::new(key)));
        self.bytes.push(bytes);
        Ok(())
    }
}

fn new_key() -> Result<[u8; KEY_LEN], StoreError> {
    let mut key = [0; KEY_LEN];
    SystemRandom::new().fill(&mut key).map_err(|_| StoreError::NoRandom)?;
    Ok(key)
}

/// Tells keys apart and says nothing about them.
fn key_id(bytes: &[u8; KEY_LEN]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(b"cove secrets key id\0");
    context.update(bytes);
    context.finish().as_ref()[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What a sealed value belongs to; neither part holds a NUL.
fn bound_to(owner: &str, name: &str) -> Vec<u8> {
    format!("cove secret v1\0{owner}\0{name}").into_bytes()
}

fn read_file(path: &Path) -> Result<Keys, StoreError> {
    let text = fs::read_to_string(path)
        .map_err(|source| StoreError::Io { what: format!("read `{}`", path.display()), source })?;
    let damaged = || StoreError::SecretsKeyDamaged { path: path.display().to_string() };
    let mut keys = Keys::default();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let bytes = line.strip_prefix(PREFIX).and_then(|text| BASE64.decode(text.trim()).ok());
        let bytes = bytes.and_then(|bytes| <[u8; KEY_LEN]>::try_from(bytes).ok()).ok_or_else(damaged)?;
        keys.add(bytes)?;
    }
    if keys.bytes.is_empty() { Err(damaged()) } else { Ok(keys) }
}

/// Replaces the file in one step.
fn write_file(path: &Path, keys: &[[u8; KEY_LEN]]) -> Result<(), StoreError> {
    let mut text = HEADER.to_owned();
    for key in keys {
        text.push_str(PREFIX);
        text.push_str(&BASE64.encode(key));
        text.push('\n');
    }
    let new = path.with_extension("key.tmp");
    let replace = || -> std::io::Result<()> {
        match fs::remove_file(&new) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(path.parent().unwrap_or_else(|| Path::new(".")))?.sync_all()
    };
    replace().map_err(|source| StoreError::Io { what: format!("write `{}`", path.display()), source })
}

/// Ids of the keys that the database needs; none before schema 2.
fn key_ids(db: &Connection) -> Result<BTreeSet<String>, StoreError> {
    let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if version < 2 {
        return Ok(BTreeSet::new());
    }
    let mut query = db.prepare("SELECT key_id FROM sealed_secrets UNION SELECT key_id FROM sealed_settings")?;
    let ids = query.query_map([], |row| row.get(0))?;
    Ok(ids.collect::<Result<_, _>>()?)
}

/// Schema 2's second half: seals what schema 1 kept in clear.
pub(crate) fn seal_clear_values(db: &Connection, keyring: &Keyring) -> Result<(), StoreError> {
    let mut query = db.prepare("SELECT key, name, value FROM secrets")?;
    let rows = query.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let rows: Vec<(String, String, String)> = rows.collect::<Result<_, _>>()?;
    for (key, name, value) in rows {
        write(db, keyring, &key, &name, &value)?;
    }
    for name in CLEAR_SETTINGS {
        let clear: Option<String> =
            db.query_row("SELECT value FROM settings WHERE name = ?1", [name], |row| row.get(0)).optional()?;
        if let Some(clear) = clear {
            write_setting(db, keyring, name, &clear)?;
            db.execute("DELETE FROM settings WHERE name = ?1", [name])?;
        }
    }
    drop(query);
    db.execute_batch("DROP TABLE secrets")?;
    db.execute("INSERT INTO settings (name, value) VALUES (?1, 'pending')", [SCRUB])?;
    Ok(())
}

/// Ends at a start what a `kill -9` may have left: clear values in free pages, a rotation half done.
pub(crate) fn repair(db: &Connection, keyring: &Keyring) -> Result<(), StoreError> {
    let is_pending = db.query_row("SELECT 1 FROM settings WHERE name = ?1", [SCRUB], |_| Ok(())).optional()?.is_some();
    if is_pending {
        // the rebuilt file replaces the old one when the log is emptied
        db.execute_batch("VACUUM")?;
        db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        db.execute("DELETE FROM settings WHERE name = ?1", [SCRUB])?;
    }
    if keyring.is_rotating() {
        db.execute_batch("BEGIN IMMEDIATE")?;
        let resealed = reseal(db, keyring).inspect_err(|_| {
            let _nothing_written = db.execute_batch("ROLLBACK");
        });
        match resealed {
            Ok(_) => {
                db.execute_batch("COMMIT")?;
                keyring.forget_old()?;
            }
            // one value must not keep everything down: its reader says so, and both keys stay until a rotation succeeds
            Err(StoreError::SecretDamaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Seals everything with the newest key; gives the number of values.
fn reseal(db: &Connection, keyring: &Keyring) -> Result<usize, StoreError> {
    let (newest, _) = keyring.newest()?;
    let mut query = db.prepare("SELECT key, name, key_id, sealed FROM sealed_secrets WHERE key_id <> ?1")?;
    let rows = query.query_map([&newest], |row| {
        Ok((row.get(0)?, row.get(1)?, Sealed { key_id: row.get(2)?, bytes: row.get(3)? }))
    })?;
    let rows: Vec<(String, String, Sealed)> = rows.collect::<Result<_, _>>()?;
    for (key, name, sealed) in &rows {
        write(db, keyring, key, name, &keyring.open_value(key, name, sealed)?)?;
    }
    let mut query = db.prepare("SELECT name, key_id, sealed FROM sealed_settings WHERE key_id <> ?1")?;
    let settings =
        query.query_map([&newest], |row| Ok((row.get(0)?, Sealed { key_id: row.get(1)?, bytes: row.get(2)? })))?;
    let settings: Vec<(String, Sealed)> = settings.collect::<Result<_, _>>()?;
    for (name, sealed) in &settings {
        write_setting(db, keyring, name, &keyring.open_value(SETTINGS, name, sealed)?)?;
    }
    Ok(rows.len() + settings.len())
}

/// Seals and writes one secret of a resource.
pub(crate) fn write(db: &Connection, keyring: &Keyring, key: &str, name: &str, value: &str) -> Result<(), StoreError> {
    let sealed = keyring.seal(key, name, value)?;
    db.execute(
        "INSERT OR REPLACE INTO sealed_secrets (key, name, key_id, sealed) VALUES (?1, ?2, ?3, ?4)",
        params![key, name, sealed.key_id, sealed.bytes],
    )?;
    Ok(())
}

fn write_setting(db: &Connection, keyring: &Keyring, name: &str, value: &str) -> Result<(), StoreError> {
    let sealed = keyring.seal(SETTINGS, name, value)?;
    db.execute(
        "INSERT OR REPLACE INTO sealed_settings (name, key_id, sealed) VALUES (?1, ?2, ?3)",
        params![name, sealed.key_id, sealed.bytes],
    )?;
    Ok(())
}

/// Values of a resource's secrets.
pub(crate) fn read(db: &Connection, keyring: &Keyring, key: &str) -> Result<BTreeMap<String, String>, StoreError> {
    let mut query = db.prepare_cached("SELECT name, key_id, sealed FROM sealed_secrets WHERE key = ?1")?;
    let rows = query.query_map([key], |row| Ok((row.get(0)?, Sealed { key_id: row.get(1)?, bytes: row.get(2)? })))?;
    let rows: Vec<(String, Sealed)> = rows.collect::<Result<_, _>>()?;
    rows.into_iter()
        .map(|(name, sealed)| {
            let value = keyring.open_value(key, &name, &sealed)?;
            Ok((name, value))
        })
        .collect()
}

impl Store {
    /// Names of a resource's secrets; opens none of them.
    ///
    /// # Errors
    /// When the database cannot be read.
    pub fn secret_names(&self, id: &cove_model::ResourceId) -> Result<BTreeSet<String>, StoreError> {
        self.read(|db| {
            let mut query = db.prepare_cached("SELECT name FROM sealed_secrets WHERE key = ?1")?;
            let names = query.query_map([id.key()], |row| row.get(0))?;
            Ok(names.collect::<Result<_, _>>()?)
        })
    }

    /// A named value of the server itself that nobody may read in the file.
    ///
    /// # Errors
    /// When the database cannot be read or the value was tampered with.
    pub fn sealed_setting(&self, name: &str) -> Result<Option<String>, StoreError> {
        let sealed = self.read(|db| {
            let query = "SELECT key_id, sealed FROM sealed_settings WHERE name = ?1";
            Ok(db.query_row(query, [name], |row| Ok(Sealed { key_id: row.get(0)?, bytes: row.get(1)? })).optional()?)
        })?;
        sealed.map(|sealed| self.keyring().open_value(SETTINGS, name, &sealed)).transpose()
    }

    /// Seals and sets a named value of the server itself.
    ///
    /// # Errors
    /// When the database cannot be written.
    pub async fn set_sealed_setting(&self, name: String, value: String) -> Result<(), StoreError> {
        let keyring = Arc::clone(self.keyring());
        self.write(move |tx| write_setting(tx.db, &keyring, &name, &value)).await
    }

    /// Makes a new key, seals everything with it and drops the old one; gives the number of values. A `kill -9` at any
    /// point loses nothing: the next [`Store::open`] ends what was begun.
    ///
    /// # Errors
    /// When the key file or the database cannot be written; the old key stays then.
    pub async fn rotate_secrets(&self) -> Result<usize, StoreError> {
        let keyring = Arc::clone(self.keyring());
        let _one_at_a_time = keyring.rotation.lock().await;
        in_thread(&keyring, Keyring::add_key).await?;
        let count = self
            .write({
                let keyring = Arc::clone(&keyring);
                move |tx| reseal(tx.db, &keyring)
            })
            .await?;
        in_thread(&keyring, Keyring::forget_old).await?;
        Ok(count)
    }
}

/// File work of a rotation, off the threads of requests.
async fn in_thread(keyring: &Arc<Keyring>, work: fn(&Keyring) -> Result<(), StoreError>) -> Result<(), StoreError> {
    let keyring = Arc::clone(keyring);
    tokio::task::spawn_blocking(move || work(&keyring)).await.map_err(|_| StoreError::Closed)?
}

#[cfg(test)]
mod tests;
