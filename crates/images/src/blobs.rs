//! The blobs of all images: files named by the digest of their content.
//!
//! A blob is written under `tmp/` while it is hashed, flushed to disk, and renamed to its name. Two writers of the same blob
//! do no harm: both files are the same.
//!
//! **Invariant:** `blobs/sha256/<hex>` is whole and has this digest.

use std::fs::{self, File};
use std::io::{self, Read, Write};

use camino::{Utf8Path, Utf8PathBuf};
use uuid::Uuid;

use crate::digest::{Digest, Hasher};
use crate::error::ImageError;

/// Largest manifest or configuration that is read into memory, in bytes; registries commonly allow 4 MiB.
pub(crate) const JSON_MAX: u64 = 4 * 1024 * 1024;

/// A path below `tmp/` that is removed when dropped, unless it was renamed away.
#[derive(Debug)]
pub(crate) struct TempPath(Utf8PathBuf);

impl TempPath {
    pub(crate) fn new(tmp_dir: &Utf8Path) -> Self {
        Self(tmp_dir.join(Uuid::new_v4().simple().to_string()))
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        &self.0
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        // Gone already when it was renamed; what cannot be removed now is removed when the store opens again.
        if fs::remove_file(&self.0).is_err_and(|error| error.kind() == io::ErrorKind::IsADirectory) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }
}

/// The blob directory of one store.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    dir: Utf8PathBuf,
    tmp: Utf8PathBuf,
}

impl Blobs {
    /// Uses `dir/blobs/sha256`, which is made when missing, and `dir/tmp`, which exists.
    pub(crate) fn open(root: &Utf8Path) -> Result<Self, ImageError> {
        let dir = root.join("blobs/sha256");
        fs::create_dir_all(&dir).map_err(|error| ImageError::io("create", &dir, error))?;
        Ok(Self { dir, tmp: root.join("tmp") })
    }

    pub(crate) fn path(&self, digest: &Digest) -> Utf8PathBuf {
        self.dir.join(digest.hex())
    }

    /// The size in bytes, if the blob is here.
    pub(crate) fn size(&self, digest: &Digest) -> Option<u64> {
        fs::metadata(self.path(digest)).ok().map(|meta| meta.len())
    }

    /// Marks the blob as just used, so that garbage collection leaves it; false if it is not here.
    pub(crate) fn touch(&self, digest: &Digest) -> bool {
        let now = fs::FileTimes::new().set_modified(std::time::SystemTime::now());
        File::options().append(true).open(self.path(digest)).and_then(|file| file.set_times(now)).is_ok()
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, ImageError> {
        let path = self.path(digest);
        File::open(&path).map_err(|error| ImageError::io("open", &path, error))
    }

    /// Reads a small blob whole; `None` if it is not here.
    pub(crate) fn read_json(&self, digest: &Digest) -> Result<Option<Vec<u8>>, ImageError> {
        let path = self.path(digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ImageError::io("open", &path, error)),
        };
        let mut bytes = Vec::new();
        file.take(JSON_MAX + 1).read_to_end(&mut bytes).map_err(|error| ImageError::io("read", &path, error))?;
        if bytes.len() as u64 > JSON_MAX {
            return Err(ImageError::invalid(format!("blob {digest}"), "it is larger than 4 MiB"));
        }
        Ok(Some(bytes))
    }

    /// Begins a new blob.
    pub(crate) fn writer(&self) -> Result<BlobWriter, ImageError> {
        let temp = TempPath::new(&self.tmp);
        let file = File::create_new(temp.path()).map_err(|error| ImageError::io("create", temp.path(), error))?;
        Ok(BlobWriter { temp, file, hasher: Hasher::default(), size: 0, blobs: self.clone() })
    }

    /// Stores bytes that are at hand and returns their digest.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        if !self.touch(&digest) {
            let mut writer = self.writer()?;
            writer.write(bytes)?;
            writer.finish()?.commit()?;
        }
        Ok(digest)
    }

    /// Copies `reader`, at most `limit` bytes, into a blob that is not committed yet.
    pub(crate) fn stage(&self, mut reader: impl Read, limit: u64, what: &str) -> Result<StagedBlob, ImageError> {
        let mut writer = self.writer()?;
        let mut buffer = vec![0; 128 * 1024];
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => return writer.finish(),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(ImageError::invalid(what, format!("it cannot be read: {error}"))),
            };
            writer.write(&buffer[..count])?;
            if writer.size > limit {
                return Err(ImageError::invalid(what, format!("it is larger than {limit} bytes")));
            }
        }
    }

    /// All blobs with the time they were last used.
    pub(crate) fn list(&self) -> Result<Vec<(Digest, fs::Metadata)>, ImageError> {
        let io = |error| ImageError::io("list", &self.dir, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let entry = entry.map_err(io)?;
            let digest = entry.file_name().to_str().and_then(|hex| format!("sha256:{hex}").parse().ok());
            if let (Some(digest), Ok(meta)) = (digest, entry.metadata()) {
                found.push((digest, meta));
            }
        }
        Ok(found)
    }

    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        fs::remove_file(&path).map_err(|error| ImageError::io("remove", &path, error))
    }
}

/// A blob that is being written.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    temp: TempPath,
    file: File,
    hasher: Hasher,
    size: u64,
    blobs: Blobs,
}

impl BlobWriter {
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        self.file.write_all(bytes).map_err(|error| ImageError::io("write", self.temp.path(), error))?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        Ok(())
    }

    /// Flushes to disk; the digest is known then.
    pub(crate) fn finish(self) -> Result<StagedBlob, ImageError> {
        self.file.sync_all().map_err(|error| ImageError::io("flush", self.temp.path(), error))?;
        Ok(StagedBlob { temp: self.temp, digest: self.hasher.finish(), size: self.size, blobs: self.blobs })
    }
}

/// A blob that is whole on disk but not yet visible.
#[derive(Debug)]
pub(crate) struct StagedBlob {
    temp: TempPath,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    blobs: Blobs,
}

impl StagedBlob {
    /// Fails unless the content has the digest that was promised.
    pub(crate) fn expect(self, expected: &Digest, what: impl FnOnce() -> String) -> Result<Self, ImageError> {
        if self.digest == *expected {
            return Ok(self);
        }
        Err(ImageError::DigestMismatch { what: what(), expected: expected.clone(), actual: self.digest })
    }

    /// Reads the staged content, at most 4 MiB.
    pub(crate) fn read_json(&self) -> Result<Vec<u8>, ImageError> {
        if self.size > JSON_MAX {
            return Err(ImageError::invalid(format!("blob {}", self.digest), "it is larger than 4 MiB"));
        }
        fs::read(self.temp.path()).map_err(|error| ImageError::io("read", self.temp.path(), error))
    }

    /// The first bytes, to recognise a compression.
    pub(crate) fn first_bytes(&self) -> Result<[u8; 4], ImageError> {
        let mut first = [0; 4];
        let read = File::open(self.temp.path()).and_then(|file| file.take(4).read(&mut first));
        read.map_err(|error| ImageError::io("read", self.temp.path(), error))?;
        Ok(first)
    }

    /// Makes the blob visible under its digest.
    pub(crate) fn commit(self) -> Result<Digest, ImageError> {
        let path = self.blobs.path(&self.digest);
        fs::rename(self.temp.path(), &path).map_err(|error| ImageError::io("create", &path, error))?;
        sync_dir(&self.blobs.dir)?;
        Ok(self.digest)
    }
}

/// Flushes a directory, so that a rename in it survives a power cut.
pub(crate) fn sync_dir(dir: &Utf8Path) -> Result<(), ImageError> {
    File::open(dir).and_then(|file| file.sync_all()).map_err(|error| ImageError::io("flush", dir, error))
}
