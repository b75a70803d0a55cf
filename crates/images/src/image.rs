//! What an image says about itself: manifest, index, configuration.
//!
//! Read leniently (unknown fields and media types are passed over) and judged strictly on what running it needs.

use std::collections::BTreeMap;

use camino::Utf8PathBuf;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::ImageError;
use crate::reference::ImageRef;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Most layers of one image; overlayfs itself stops at 500.
const LAYERS_MAX: usize = 256;

/// An image whose layers are unpacked on this machine.
///
/// As long as somebody holds it, garbage collection leaves its blobs and layers alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The full name that was asked for.
    pub reference: ImageRef,
    /// What the name resolved to: pin with [`ImageRef::with_digest`]. The digest of the index for a multi-platform image.
    pub digest: Digest,
    /// The digest of this platform's manifest; the same as `digest` for a single-platform image.
    pub manifest_digest: Digest,
    /// How to run it.
    pub config: ImageConfig,
    /// Lower directories, **topmost first**, as the `lowerdir` option of overlayfs wants them. No directory occurs twice.
    pub layers: Vec<Utf8PathBuf>,
    /// Bytes of all unpacked files.
    pub size_bytes: u64,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ImageConfig {
    /// `NAME=value`, in order.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// The program and its first arguments; empty if the image names none.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Further arguments, which the app's `args` replace.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; empty for root.
    #[serde(deserialize_with = "null_is_default")]
    pub user: String,
    /// Absolute directory to start in; empty for `/`.
    #[serde(deserialize_with = "null_is_default")]
    pub working_dir: String,
    /// `port/protocol` such as `80/tcp`.
    #[serde(deserialize_with = "keys")]
    pub exposed_ports: Vec<String>,
    /// Signal that asks it to stop, such as `SIGQUIT`; none for SIGTERM.
    pub stop_signal: Option<String>,
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

fn keys<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Vec<String>, D::Error> {
    let map: Option<BTreeMap<String, serde::de::IgnoredAny>> = Option::deserialize(d)?;
    Ok(map.unwrap_or_default().into_keys().collect())
}

/// A pointer to a blob.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) annotations: BTreeMap<String, String>,
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.to_owned(), digest, size, platform: None, annotations: BTreeMap::new() }
    }
}

/// What kind of machine something is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)
    }
}

/// This machine, in the words of images (those of the Go language).
pub(crate) fn host_platform() -> Platform {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    };
    Platform { architecture: architecture.into(), os: "linux".into(), variant: None }
}

/// A manifest of either kind.
#[derive(Debug)]
pub(crate) enum Manifest {
    Image { config: Descriptor, layers: Vec<Descriptor> },
    Index(Vec<Descriptor>),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<Descriptor>>,
}

impl Manifest {
    /// Parses a manifest and tells its media type, which older ones do not write down.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<(Self, String), ImageError> {
        let raw: RawManifest = serde_json::from_slice(bytes)
            .map_err(|error| ImageError::invalid(what, format!("its manifest cannot be read: {error}")))?;
        if raw.schema_version != 2 {
            return Err(ImageError::invalid(what, "its manifest is of version 1, which no tool writes since 2017"));
        }
        match (raw.config, raw.layers, raw.manifests) {
            (None, _, Some(manifests)) => {
                Ok((Self::Index(manifests), raw.media_type.unwrap_or_else(|| OCI_INDEX.to_owned())))
            }
            (Some(config), Some(layers), None) => {
                let kind = raw.media_type.unwrap_or_else(|| OCI_MANIFEST.to_owned());
                Ok((Self::Image { config, layers }, kind))
            }
            _ => Err(ImageError::invalid(what, "its manifest has neither a configuration with layers nor a list")),
        }
    }
}

/// Chooses the manifest for this machine from an index.
pub(crate) fn choose_platform<'a>(
    manifests: &'a [Descriptor],
    reference: &ImageRef,
) -> Result<&'a Descriptor, ImageError> {
    let host = host_platform();
    let fits = |platform: &Platform| platform.os == host.os && platform.architecture == host.architecture;
    if let Some(found) = manifests.iter().find(|entry| entry.platform.as_ref().is_some_and(fits)) {
        return Ok(found);
    }
    // Written by tools that leave the platform out when there is only one.
    if let [only] = manifests
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let platforms = manifests.iter().filter_map(|entry| entry.platform.as_ref());
    let mut found: Vec<_> = platforms.filter(|platform| platform.os != "unknown").map(Platform::to_string).collect();
    found.dedup();
    let found = if found.is_empty() { "no platform at all".to_owned() } else { found.join(", ") };
    Err(ImageError::WrongPlatform { reference: reference.to_string(), found, host: host.to_string() })
}

/// The configuration blob.
#[derive(Debug, Deserialize)]
struct RawConfig {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<ImageConfig>,
    rootfs: RawRoot,
}

#[derive(Debug, Deserialize)]
struct RawRoot {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Vec<Digest>,
}

/// Parses a configuration blob; gives how to run the image, and its layers' uncompressed digests, bottom first.
pub(crate) fn parse_config(
    bytes: &[u8],
    layers: usize,
    reference: &ImageRef,
) -> Result<(ImageConfig, Vec<Digest>), ImageError> {
    let what = || format!("image `{reference}`");
    let raw: RawConfig = serde_json::from_slice(bytes)
        .map_err(|error| ImageError::invalid(what(), format!("its configuration cannot be read: {error}")))?;
    let host = host_platform();
    let found = Platform { architecture: raw.architecture, os: raw.os, variant: None };
    let differs = |found: &str, host: &str| !found.is_empty() && found != host;
    if differs(&found.os, &host.os) || differs(&found.architecture, &host.architecture) {
        let (found, host) = (found.to_string(), host.to_string());
        return Err(ImageError::WrongPlatform { reference: reference.to_string(), found, host });
    }
    let diff_ids = raw.rootfs.diff_ids;
    if diff_ids.len() != layers {
        let reason = format!("its manifest lists {layers} layers, its configuration {}", diff_ids.len());
        return Err(ImageError::invalid(what(), reason));
    }
    if layers == 0 {
        return Err(ImageError::invalid(what(), "it has no layers, so nothing to run"));
    }
    if layers > LAYERS_MAX {
        return Err(ImageError::invalid(
            what(),
            format!("it has {layers} layers; at most {LAYERS_MAX} can be stacked"),
        ));
    }
    Ok((raw.config.unwrap_or_default(), diff_ids))
}

/// The uncompressed digests a configuration names, without any judgement; empty if it is no configuration.
pub(crate) fn diff_ids(bytes: &[u8]) -> Vec<Digest> {
    serde_json::from_slice::<RawConfig>(bytes).map(|raw| raw.rootfs.diff_ids).unwrap_or_default()
}
