//! Images from files: an OCI layout (directory or tar) or a `docker save` archive.
//!
//! A tar is read once, front to back, whatever order its parts come in: every file is hashed into a temporary file, and
//! what the manifests name at the end is kept. So an archive from a pipe needs no second pass, and nothing of it is trusted
//! before its digest was compared.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};

use camino::{Utf8Path, Utf8PathBuf};
use serde::Deserialize;

use crate::blobs::{Blobs, JSON_MAX, StagedBlob};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Descriptor, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::layers::{decompressed, is_gzip, is_zstd};
use crate::reference::ImageRef;

/// Largest file within an archive, in bytes.
const PART_MAX: u64 = 64 << 30;
/// Most files of an archive.
const PARTS_MAX: usize = 10_000;

/// One image found in an archive.
#[derive(Debug)]
pub(crate) struct Imported {
    pub(crate) digest: Digest,
    pub(crate) names: Vec<ImageRef>,
}

/// Imports all images of the archive at `path` into `blobs`.
pub(crate) fn import(blobs: &Blobs, path: &Utf8Path, name: Option<&ImageRef>) -> Result<Vec<Imported>, ImageError> {
    let meta = fs::metadata(path).map_err(|error| ImageError::io("read", path, error))?;
    let mut archive = if meta.is_dir() { Archive::of_directory(blobs, path) } else { Archive::of_tar(blobs, path)? };
    let images = if archive.json("index.json")?.is_some() {
        archive.oci_images()?
    } else if archive.json("manifest.json")?.is_some() {
        archive.docker_images()?
    } else {
        return Err(archive.invalid("it has neither `index.json` nor `manifest.json`"));
    };
    if images.is_empty() {
        return Err(archive.invalid("it lists no image"));
    }
    let stem = path.file_name().unwrap_or("image").split('.').next().unwrap_or("image").to_ascii_lowercase();
    let mut imported: Vec<Imported> = Vec::new();
    for (digest, names) in images {
        let mut parsed = Vec::new();
        for text in &names {
            let full = if text.contains(['/', ':']) { text.clone() } else { format!("{stem}:{text}") };
            parsed.push(full.parse::<ImageRef>().map_err(|error| archive.invalid(error.to_string()))?);
        }
        if parsed.is_empty() {
            let fallback = name.cloned().map_or_else(|| stem.parse::<ImageRef>(), Ok);
            parsed.push(fallback.map_err(|_| archive.invalid("its image has no name; say which name it shall have"))?);
        }
        match imported.iter_mut().find(|image| image.digest == digest) {
            Some(known) => known.names.append(&mut parsed),
            None => imported.push(Imported { digest, names: parsed }),
        }
    }
    imported.iter_mut().for_each(|image| image.names.dedup());
    Ok(imported)
}

/// The parts of an archive: files of a directory, or temporary files that a tar was taken apart into.
struct Archive<'a> {
    blobs: &'a Blobs,
    path: Utf8PathBuf,
    parts: Option<BTreeMap<String, Part>>,
}

enum Part {
    File(StagedBlob),
    /// Legacy `docker save` writes a layer that occurs twice as a link.
    Link(String),
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerEntry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl<'a> Archive<'a> {
    fn of_directory(blobs: &'a Blobs, path: &Utf8Path) -> Self {
        Self { blobs, path: path.to_owned(), parts: None }
    }

    fn of_tar(blobs: &'a Blobs, path: &Utf8Path) -> Result<Self, ImageError> {
        let invalid =
            |error: io::Error| ImageError::InvalidArchive { path: path.to_owned(), reason: error.to_string() };
        let file = File::open(path).map_err(|error| ImageError::io("open", path, error))?;
        let mut tar = tar::Archive::new(decompressed(file).map_err(invalid)?);
        let mut parts = BTreeMap::new();
        for entry in tar.entries().map_err(invalid)? {
            let mut entry = entry.map_err(invalid)?;
            let name = normalised(&String::from_utf8_lossy(&entry.path_bytes()));
            let part = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => {
                    Part::File(blobs.stage(&mut entry, PART_MAX, &format!("`{name}` in `{path}`"))?)
                }
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name_bytes().unwrap_or_default();
                    let target = String::from_utf8_lossy(&target).into_owned();
                    let is_relative = entry.header().entry_type() == tar::EntryType::Symlink;
                    let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                    Part::Link(normalised(&if is_relative { format!("{above}/{target}") } else { target }))
                }
                _ => continue,
            };
            parts.insert(name, part);
            if parts.len() > PARTS_MAX {
                return Err(invalid(io::Error::other(format!("it has more than {PARTS_MAX} files"))));
            }
        }
        Ok(Self { blobs, path: path.to_owned(), parts: Some(parts) })
    }

    fn invalid(&self, reason: impl Into<String>) -> ImageError {
        ImageError::InvalidArchive { path: self.path.clone(), reason: reason.into() }
    }

    /// Follows links within the archive to the name of a file.
    fn resolved(&self, name: &str) -> String {
        let mut name = normalised(name);
        for _ in 0..8 {
            match self.parts.as_ref().and_then(|parts| parts.get(&name)) {
                Some(Part::Link(target)) => name.clone_from(target),
                _ => break,
            }
        }
        name
    }

    /// Reads a small file of the archive.
    fn json(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let name = self.resolved(name);
        let Some(parts) = &self.parts else {
            let path = self.path.join(&name);
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(ImageError::io("open", &path, error)),
            };
            let mut bytes = Vec::new();
            file.take(JSON_MAX + 1).read_to_end(&mut bytes).map_err(|error| ImageError::io("read", &path, error))?;
            if bytes.len() as u64 > JSON_MAX {
                return Err(self.invalid(format!("`{name}` is larger than 4 MiB")));
            }
            return Ok(Some(bytes));
        };
        match parts.get(&name) {
            Some(Part::File(staged)) => staged.read_json().map(Some),
            _ => Ok(None),
        }
    }

    /// Takes a file of the archive as a blob that is not committed yet.
    fn take(&mut self, name: &str) -> Result<Option<StagedBlob>, ImageError> {
        let name = self.resolved(name);
        match &mut self.parts {
            Some(parts) => match parts.remove(&name) {
                Some(Part::File(staged)) => Ok(Some(staged)),
                _ => Ok(None),
            },
            None => {
                let path = self.path.join(&name);
                match File::open(&path) {
                    Ok(file) => self.blobs.stage(file, PART_MAX, &format!("`{path}`")).map(Some),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Err(error) => Err(ImageError::io("open", &path, error)),
                }
            }
        }
    }

    /// Stores the blob `digest` of an OCI layout; false if the archive does not have it.
    fn store(&mut self, digest: &Digest) -> Result<bool, ImageError> {
        if self.blobs.touch(digest) {
            return Ok(true);
        }
        let name = format!("blobs/sha256/{}", digest.hex());
        let Some(staged) = self.take(&name)? else { return Ok(false) };
        let path = &self.path;
        staged.expect(digest, || format!("`{name}` in `{path}`"))?.commit()?;
        Ok(true)
    }

    fn oci_images(&mut self) -> Result<Vec<(Digest, Vec<String>)>, ImageError> {
        let bytes = self.json("index.json")?.unwrap_or_default();
        let what = format!("`{}`", self.path);
        let (Manifest::Index(entries), _) = Manifest::parse(&bytes, &what)? else {
            return Err(self.invalid("its `index.json` is no list of images"));
        };
        let mut images = Vec::new();
        for entry in entries {
            self.store_tree(&entry.digest, &what)?;
            let annotation = |key: &str| entry.annotations.get(key).cloned();
            let name =
                annotation("io.containerd.image.name").or_else(|| annotation("org.opencontainers.image.ref.name"));
            images.push((entry.digest, name.into_iter().collect()));
        }
        Ok(images)
    }

    /// Stores a manifest and what it names; of an index, those platforms that the archive holds.
    fn store_tree(&mut self, digest: &Digest, what: &str) -> Result<(), ImageError> {
        let missing = |archive: &Self, digest: &Digest| archive.invalid(format!("blob {digest} is missing in it"));
        if !self.store(digest)? {
            return Err(missing(self, digest));
        }
        let bytes = self.blobs.read_json(digest)?.unwrap_or_default();
        match Manifest::parse(&bytes, what)?.0 {
            Manifest::Image { config, layers } => {
                for blob in std::iter::once(&config).chain(&layers) {
                    if !self.store(&blob.digest)? {
                        return Err(missing(self, &blob.digest));
                    }
                }
                Ok(())
            }
            Manifest::Index(entries) => {
                let mut found = 0;
                for entry in entries {
                    let nested = self.store(&entry.digest)?;
                    if nested {
                        let bytes = self.blobs.read_json(&entry.digest)?.unwrap_or_default();
                        if let (Manifest::Image { config, layers }, _) = Manifest::parse(&bytes, what)? {
                            let mut is_whole = true;
                            for blob in std::iter::once(&config).chain(&layers) {
                                is_whole &= self.store(&blob.digest)?;
                            }
                            found += usize::from(is_whole);
                        }
                    }
                }
                if found == 0 { Err(self.invalid("its index names only images that it does not hold")) } else { Ok(()) }
            }
        }
    }

    fn docker_images(&mut self) -> Result<Vec<(Digest, Vec<String>)>, ImageError> {
        let bytes = self.json("manifest.json")?.unwrap_or_default();
        let entries: Vec<DockerEntry> = serde_json::from_slice(&bytes)
            .map_err(|error| self.invalid(format!("its `manifest.json` cannot be read: {error}")))?;
        let mut images = Vec::new();
        // A layer that several images share is in the archive once.
        let mut taken: BTreeMap<String, (Digest, u64, &'static str)> = BTreeMap::new();
        for entry in entries {
            let config = self.docker_part(&entry.config, &mut taken)?;
            let mut layers = Vec::new();
            for name in &entry.layers {
                let (digest, size, suffix) = self.docker_part(name, &mut taken)?;
                layers.push(Descriptor::new(&format!("{OCI_LAYER}{suffix}"), digest, size));
            }
            let manifest = serde_json::json!({
                "schemaVersion": 2,
                "mediaType": OCI_MANIFEST,
                "config": Descriptor::new(OCI_CONFIG, config.0, config.1),
                "layers": layers,
            });
            let digest = self.blobs.put(manifest.to_string().as_bytes())?;
            images.push((digest, entry.repo_tags.unwrap_or_default()));
        }
        Ok(images)
    }

    fn docker_part(
        &mut self,
        name: &str,
        taken: &mut BTreeMap<String, (Digest, u64, &'static str)>,
    ) -> Result<(Digest, u64, &'static str), ImageError> {
        let resolved = self.resolved(name);
        if let Some(known) = taken.get(&resolved) {
            return Ok(known.clone());
        }
        let staged = self.take(name)?.ok_or_else(|| self.invalid(format!("`{name}` is missing in it")))?;
        let first = staged.first_bytes()?;
        let suffix = if is_gzip(&first) {
            "+gzip"
        } else if is_zstd(&first) {
            "+zstd"
        } else {
            ""
        };
        let part = (staged.digest.clone(), staged.size, suffix);
        staged.commit()?;
        taken.insert(resolved, part.clone());
        Ok(part)
    }
}

/// A path within an archive without `.`, `..` and doubled slashes; it is only ever used as a key.
fn normalised(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}
