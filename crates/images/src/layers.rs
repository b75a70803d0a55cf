//! Unpacked layers: one directory per uncompressed digest, shared by all images and replicas.
//!
//! `layers/<first 32 digits of the diff id>/fs` is the overlay lower directory (short, because a mount takes at most a page of
//! options), beside it `layer.json` with the whole digest. A layer is unpacked under `tmp/` and renamed when its
//! content has been verified.
//!
//! **Invariant:** nothing writes into a layer after the rename.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::blobs::{TempPath, sync_dir};
use crate::digest::{Digest, HashingReader};
use crate::error::ImageError;
use crate::unpack::unpack;

/// What is known of an unpacked layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct LayerRecord {
    /// Digest of the uncompressed tar.
    pub(crate) diff_id: Digest,
    /// Bytes of all its files.
    pub(crate) size_bytes: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct Layers {
    dir: Utf8PathBuf,
    tmp: Utf8PathBuf,
}

impl Layers {
    pub(crate) fn open(root: &Utf8Path) -> Result<Self, ImageError> {
        let dir = root.join("layers");
        fs::create_dir_all(&dir).map_err(|error| ImageError::io("create", &dir, error))?;
        Ok(Self { dir, tmp: root.join("tmp") })
    }

    fn home(&self, diff_id: &Digest) -> Utf8PathBuf {
        self.dir.join(&diff_id.hex()[..32])
    }

    /// The lower directory of a layer, whether it is there or not.
    pub(crate) fn path(&self, diff_id: &Digest) -> Utf8PathBuf {
        self.home(diff_id).join("fs")
    }

    /// The record of an unpacked layer.
    pub(crate) fn get(&self, diff_id: &Digest) -> Option<LayerRecord> {
        let text = fs::read(self.home(diff_id).join("layer.json")).ok()?;
        serde_json::from_slice::<LayerRecord>(&text).ok().filter(|record| record.diff_id == *diff_id)
    }

    /// Unpacks the possibly compressed tar in `blob` and verifies that it is the layer `diff_id`.
    pub(crate) fn unpack(&self, blob: File, diff_id: &Digest, size_max: u64) -> Result<LayerRecord, ImageError> {
        if let Some(record) = self.get(diff_id) {
            return Ok(record);
        }
        let what = || format!("layer {diff_id}");
        let temp = TempPath::new(&self.tmp);
        let root = temp.path().join("fs");
        fs::create_dir_all(&root).map_err(|error| ImageError::io("create", &root, error))?;
        // Whatever the umask is: this is `/` of a container unless the layer says otherwise.
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755))
            .map_err(|error| ImageError::io("create", &root, error))?;
        let decoder = decompressed(blob).map_err(|error| ImageError::invalid(what(), error))?;
        let mut reader = HashingReader::new(decoder, size_max);
        let size_bytes = unpack(&mut reader, &root, diff_id)?;
        let (actual, _) = reader.finish().map_err(|error| ImageError::invalid(what(), error))?;
        if actual != *diff_id {
            return Err(ImageError::DigestMismatch {
                what: "the uncompressed content of a layer".into(),
                expected: diff_id.clone(),
                actual,
            });
        }
        let record = LayerRecord { diff_id: diff_id.clone(), size_bytes };
        let json = serde_json::to_vec(&record).expect("two plain fields have a JSON form");
        let record_path = temp.path().join("layer.json");
        fs::write(&record_path, json).map_err(|error| ImageError::io("write", &record_path, error))?;
        let directory = File::open(&root).map_err(|error| ImageError::io("open", &root, error))?;
        nix::unistd::syncfs(&directory).map_err(|error| ImageError::io("flush", &root, error.into()))?;
        let home = self.home(diff_id);
        if let Err(error) = fs::rename(temp.path(), &home) {
            // Another may have been faster; anything else in its place is damaged and unused.
            if let Some(record) = self.get(diff_id) {
                return Ok(record);
            }
            if !matches!(error.kind(), io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists) {
                return Err(ImageError::io("create", &home, error));
            }
            self.discard(&home)?;
            fs::rename(temp.path(), &home).map_err(|error| ImageError::io("create", &home, error))?;
        }
        sync_dir(&self.dir)?;
        Ok(record)
    }

    /// All layers with the time they were unpacked.
    pub(crate) fn list(&self) -> Result<Vec<(LayerRecord, fs::Metadata)>, ImageError> {
        let io = |error| ImageError::io("list", &self.dir, error);
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir).map_err(io)? {
            let path = entry.map_err(io)?.path().join("layer.json");
            let record = fs::read(&path).ok().and_then(|text| serde_json::from_slice(&text).ok());
            if let (Some(record), Ok(meta)) = (record, fs::metadata(&path)) {
                found.push((record, meta));
            }
        }
        Ok(found)
    }

    pub(crate) fn remove(&self, diff_id: &Digest) -> Result<(), ImageError> {
        self.discard(&self.home(diff_id))
    }

    /// Moves a layer out of sight in one step, then deletes it.
    fn discard(&self, home: &Utf8Path) -> Result<(), ImageError> {
        let temp = TempPath::new(&self.tmp);
        fs::rename(home, temp.path()).map_err(|error| ImageError::io("remove", home, error))
    }
}

/// Tells compressions by their first bytes: media types are often wrong, and these never are.
pub(crate) fn decompressed(file: File) -> io::Result<Box<dyn Read + Send>> {
    let mut reader = BufReader::with_capacity(256 * 1024, file);
    let start = reader.fill_buf()?;
    if is_gzip(start) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    if is_zstd(start) {
        return Ok(Box::new(zstd::stream::read::Decoder::with_buffer(reader)?));
    }
    Ok(Box::new(reader))
}

pub(crate) fn is_gzip(start: &[u8]) -> bool {
    start.starts_with(&[0x1f, 0x8b])
}

pub(crate) fn is_zstd(start: &[u8]) -> bool {
    start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}
