//! Which image names are known here, and what each stands for.
//!
//! One JSON file, written whole, flushed and renamed at each change: some hundred names at most, changed some times a day,
//! readable by an operator.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::blobs::{TempPath, sync_dir};
use crate::digest::Digest;
use crate::error::ImageError;

/// Where an image name came from; decides whether a registry may change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ImageSource {
    /// Pulled from a registry, which stays in charge of the name.
    Pulled,
    /// Imported from a file; the local image is meant until it is removed.
    Imported,
    /// Pushed to the embedded registry.
    Pushed,
    /// Part of this program.
    BuiltIn,
}

/// What a name stands for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct IndexEntry {
    pub(crate) digest: Digest,
    pub(crate) source: ImageSource,
    pub(crate) updated_at: Timestamp,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct IndexFile {
    version: u32,
    names: BTreeMap<String, IndexEntry>,
}

#[derive(Debug)]
pub(crate) struct Index {
    path: Utf8PathBuf,
    tmp: Utf8PathBuf,
    file: IndexFile,
}

impl Index {
    pub(crate) fn open(root: &Utf8Path) -> Result<Self, ImageError> {
        let path = root.join("images.json");
        let file = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ImageError::invalid(format!("index `{path}`"), format!("it is damaged: {error}")))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => IndexFile { version: 1, ..IndexFile::default() },
            Err(error) => return Err(ImageError::io("read", &path, error)),
        };
        if file.version != 1 {
            let reason = format!("it has version {}, written by a newer program", file.version);
            return Err(ImageError::invalid(format!("index `{path}`"), reason));
        }
        Ok(Self { path, tmp: root.join("tmp"), file })
    }

    pub(crate) fn get(&self, name: &str) -> Option<&IndexEntry> {
        self.file.names.get(name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&String, &IndexEntry)> {
        self.file.names.iter()
    }

    /// Names that begin with `prefix`, in order.
    pub(crate) fn starting_with<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a String, &'a IndexEntry)> {
        self.file.names.range(prefix.to_owned()..).take_while(move |(name, _)| name.starts_with(prefix))
    }

    /// Sets names, durably, or none of them.
    pub(crate) fn put(&mut self, names: &[String], digest: &Digest, source: ImageSource) -> Result<(), ImageError> {
        let is_new =
            |name: &String| self.get(name).is_none_or(|known| known.digest != *digest || known.source != source);
        if !names.iter().any(is_new) {
            return Ok(());
        }
        let entry = IndexEntry { digest: digest.clone(), source, updated_at: Timestamp::now() };
        self.change(|all| all.extend(names.iter().map(|name| (name.clone(), entry.clone()))))
    }

    /// Removes the names for which `keep` is false.
    pub(crate) fn retain(
        &mut self,
        mut keep: impl FnMut(&str, &IndexEntry) -> bool,
    ) -> Result<Vec<String>, ImageError> {
        let removed: Vec<String> =
            self.file.names.iter().filter(|(name, entry)| !keep(name, entry)).map(|(name, _)| name.clone()).collect();
        if !removed.is_empty() {
            self.change(|all| removed.iter().for_each(|name| drop(all.remove(name))))?;
        }
        Ok(removed)
    }

    /// Changes a copy, writes it, and only then takes it over.
    fn change(&mut self, change: impl FnOnce(&mut BTreeMap<String, IndexEntry>)) -> Result<(), ImageError> {
        let mut names = self.file.names.clone();
        change(&mut names);
        let next = IndexFile { version: 1, names };
        let temp = TempPath::new(&self.tmp);
        let json = serde_json::to_vec_pretty(&next).expect("a map of plain fields has a JSON form");
        File::create_new(temp.path())
            .and_then(|mut file| file.write_all(&json).and_then(|()| file.sync_all()))
            .map_err(|error| ImageError::io("write", temp.path(), error))?;
        fs::rename(temp.path(), &self.path).map_err(|error| ImageError::io("write", &self.path, error))?;
        sync_dir(self.path.parent().unwrap_or_else(|| Utf8Path::new("/")))?;
        self.file = next;
        Ok(())
    }
}
