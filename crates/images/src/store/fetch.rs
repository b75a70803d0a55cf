//! The run behind [`ImageStore::ensure`]: resolve, fetch, verify, unpack.
//!
//! One path for every source: a blob that is here is taken from here, anything else from the registry if there is one.

use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::sync::watch;

use super::{ImageStore, Inner, PullPhase, PullPolicy, PullProgress, PullResult, UNREACHABLE_FOR, lock};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{Descriptor, Image, ImageConfig, Manifest, choose_platform, parse_config};
use crate::index::ImageSource;
use crate::layers::LayerRecord;
use crate::pull::{Credentials, Remote, blocking};
use crate::reference::{ImageRef, OWN_REGISTRY, Version};
use crate::sample::{self, SAMPLE_IMAGE};

/// What an image consists of, once its manifest and configuration are known.
struct Parts {
    manifest_digest: Digest,
    config: ImageConfig,
    layers: Vec<(Descriptor, Digest)>,
}

impl ImageStore {
    pub(super) async fn fetch(
        &self,
        reference: &ImageRef,
        credentials: Option<&Credentials>,
        policy: PullPolicy,
        progress: &watch::Sender<PullProgress>,
    ) -> PullResult {
        let _active = self.active().await;
        let remote = self.remote(reference, credentials);
        let (digest, is_new) = self.resolve(reference, remote.as_ref(), policy).await?;
        if let Some(image) = self.0.live(reference, &digest) {
            return Ok(image);
        }
        let parts = self.parts(reference, &digest, remote.as_ref()).await?;
        let missing = parts.layers.iter().filter(|(_, diff_id)| self.0.layers.get(diff_id).is_none());
        let total_bytes = missing.filter(|(b, _)| self.0.blobs.size(&b.digest).is_none()).map(|(b, _)| b.size).sum();
        progress.send_modify(|progress| {
            progress.phase = PullPhase::Fetching;
            progress.layers_total = parts.layers.len();
            progress.total_bytes = total_bytes;
        });
        let fetches = parts.layers.clone().into_iter().map(|(blob, diff_id)| {
            let remote = remote.as_ref();
            async move {
                let record = self.layer(&blob, &diff_id, remote, progress).await?;
                progress.send_modify(|progress| progress.layers_done += 1);
                Ok::<_, ImageError>(record)
            }
        });
        // The store's own permits decide how many really run.
        let records: Vec<LayerRecord> = futures_util::stream::iter(fetches).buffered(16).try_collect().await?;
        if is_new {
            let (store, names, digest) = (self.clone(), vec![reference.to_string()], digest.clone());
            blocking(move || lock(&store.0.index).put(&names, &digest, ImageSource::Pulled)).await?;
        }
        Ok(self.0.hold(self.0.assemble(reference, digest, parts, &records)))
    }

    /// Finds the digest that the name means now, and whether a registry said so just now.
    async fn resolve(
        &self,
        reference: &ImageRef,
        remote: Option<&Remote>,
        policy: PullPolicy,
    ) -> Result<(Digest, bool), ImageError> {
        if let Version::Digest(digest) = &reference.version {
            // Only what was once pulled whole is named; anything else is fetched below, piece by piece.
            let is_new = remote.is_some() && self.entry(reference).is_none();
            return Ok((digest.clone(), is_new));
        }
        if reference.to_string() == SAMPLE_IMAGE {
            let store = self.clone();
            return Ok((blocking(move || store.install_sample()).await?, false));
        }
        let known = self.entry(reference);
        let Some(remote) = remote else {
            let not_found = || ImageError::NotFound { reference: reference.to_string(), registry: OWN_REGISTRY.into() };
            return Ok((known.ok_or_else(not_found)?.digest, false));
        };
        if let Some(entry) = &known
            && (entry.source != ImageSource::Pulled || policy == PullPolicy::IfNotPresent)
        {
            return Ok((entry.digest.clone(), false));
        }
        let has_fallback = known.is_some() || sample::stands_in_for(reference);
        let answer = match self.recently_unreachable(reference).filter(|_| has_fallback) {
            Some(error) => Err(error),
            None => self.resolve_remotely(reference, remote).await,
        };
        match (answer, known) {
            (Ok(digest), _) => Ok((digest, true)),
            (Err(error), Some(entry)) if error.is_transient() => {
                tracing::warn!(image = %reference, %error, "registry not reached, the local image is used");
                Ok((entry.digest, false))
            }
            (Err(error), _) if sample::stands_in_for(reference) => {
                tracing::warn!(image = %reference, %error, "image not pulled, the built-in sample is used");
                let store = self.clone();
                Ok((blocking(move || store.install_sample()).await?, false))
            }
            (Err(error), _) => Err(error),
        }
    }

    async fn resolve_remotely(&self, reference: &ImageRef, remote: &Remote) -> Result<Digest, ImageError> {
        match remote.manifest(None).await {
            Ok((bytes, digest)) => {
                lock(&self.0.unreachable).remove(&reference.registry);
                let store = self.clone();
                blocking(move || store.0.blobs.put(&bytes)).await?;
                Ok(digest)
            }
            Err(error) => {
                if matches!(error, ImageError::Unreachable { .. } | ImageError::TimedOut { .. }) {
                    let mut unreachable = lock(&self.0.unreachable);
                    unreachable.retain(|_, (since, _)| since.elapsed() < UNREACHABLE_FOR);
                    unreachable.insert(reference.registry.clone(), (Instant::now(), error.clone()));
                }
                Err(error)
            }
        }
    }

    fn recently_unreachable(&self, reference: &ImageRef) -> Option<ImageError> {
        let unreachable = lock(&self.0.unreachable);
        let (since, error) = unreachable.get(&reference.registry)?;
        (since.elapsed() < UNREACHABLE_FOR).then(|| error.clone())
    }

    /// Reads or fetches the manifest and the configuration.
    async fn parts(&self, reference: &ImageRef, digest: &Digest, remote: Option<&Remote>) -> Result<Parts, ImageError> {
        let what = format!("image `{reference}`");
        let mut manifest_digest = digest.clone();
        let mut bytes = self.manifest(reference, digest, remote).await?;
        let (config, layers) = loop {
            match Manifest::parse(&bytes, &what)?.0 {
                Manifest::Image { config, layers } => break (config, layers),
                Manifest::Index(_) if manifest_digest != *digest => {
                    return Err(ImageError::invalid(what, "its index lists another index for this platform"));
                }
                Manifest::Index(manifests) => {
                    manifest_digest = choose_platform(&manifests, reference)?.digest.clone();
                    bytes = self.manifest(reference, &manifest_digest, remote).await?;
                }
            }
        };
        let config_bytes = match (self.0.blobs.read_json(&config.digest)?, remote) {
            (Some(bytes), _) => bytes,
            (None, Some(remote)) => remote.json_blob(&config, &self.0.blobs).await?,
            (None, None) => return Err(missing(&what, &config.digest)),
        };
        let (config, diff_ids) = parse_config(&config_bytes, layers.len(), reference)?;
        Ok(Parts { manifest_digest, config, layers: layers.into_iter().zip(diff_ids).collect() })
    }

    async fn manifest(
        &self,
        reference: &ImageRef,
        digest: &Digest,
        remote: Option<&Remote>,
    ) -> Result<Vec<u8>, ImageError> {
        if let Some(bytes) = self.0.blobs.read_json(digest)? {
            return Ok(bytes);
        }
        let Some(remote) = remote else {
            return Err(ImageError::NotFound { reference: reference.to_string(), registry: OWN_REGISTRY.into() });
        };
        let (bytes, _) = remote.manifest(Some(digest)).await?;
        let store = self.clone();
        blocking(move || store.0.blobs.put(&bytes).map(|_| bytes)).await
    }

    /// Makes one layer ready; whoever wants the same one waits here for the first.
    async fn layer(
        &self,
        blob: &Descriptor,
        diff_id: &Digest,
        remote: Option<&Remote>,
        progress: &watch::Sender<PullProgress>,
    ) -> Result<LayerRecord, ImageError> {
        if let Some(record) = self.0.layers.get(diff_id) {
            return Ok(record);
        }
        let layer_lock = self.0.layer_lock(diff_id);
        let _mine = layer_lock.lock().await;
        if let Some(record) = self.0.layers.get(diff_id) {
            return Ok(record);
        }
        if !self.0.blobs.touch(&blob.digest) {
            let Some(remote) = remote else { return Err(missing(&format!("layer {diff_id}"), &blob.digest)) };
            let _permit = self.0.fetches.acquire().await.expect("this semaphore is never closed");
            let count = |bytes: i64| {
                progress.send_modify(|now| now.fetched_bytes = now.fetched_bytes.saturating_add_signed(bytes));
            };
            let staged = remote.blob(blob, &self.0.blobs, &count).await?;
            blocking(move || staged.commit()).await?;
        }
        let _permit = self.0.unpacks.acquire().await.expect("this semaphore is never closed");
        let (store, blob_digest, diff_id) = (self.clone(), blob.digest.clone(), diff_id.clone());
        blocking(move || {
            let file = store.0.blobs.open_blob(&blob_digest)?;
            let unpacked = store.0.layers.unpack(file, &diff_id, store.0.config.layer_size_max);
            if matches!(unpacked, Err(ImageError::DigestMismatch { .. } | ImageError::InvalidImage { .. })) {
                store.0.forget_damaged(&blob_digest);
            }
            unpacked
        })
        .await
    }
}

fn missing(what: &str, digest: &Digest) -> ImageError {
    ImageError::invalid(what, format!("blob {digest} is not on this machine; import or push the image again"))
}

impl Inner {
    fn layer_lock(&self, diff_id: &Digest) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = lock(&self.layer_locks);
        locks.retain(|_, known| known.strong_count() > 0);
        if let Some(known) = locks.get(diff_id).and_then(std::sync::Weak::upgrade) {
            return known;
        }
        let fresh = Arc::new(tokio::sync::Mutex::new(()));
        locks.insert(diff_id.clone(), Arc::downgrade(&fresh));
        fresh
    }

    /// Removes a blob whose bytes changed on disk after it was verified, so that the next attempt fetches it again.
    fn forget_damaged(&self, digest: &Digest) {
        let hashed =
            self.blobs.open_blob(digest).ok().map(|file| crate::digest::HashingReader::new(file, u64::MAX).finish());
        if let Some(Ok((actual, _))) = hashed
            && actual != *digest
        {
            tracing::warn!(blob = %digest, "blob damaged on disk, removed");
            let _ = self.blobs.remove(digest);
        }
    }

    /// The image from what is here alone, if all its layers are unpacked.
    pub(super) fn load_unpacked(&self, reference: &ImageRef, digest: &Digest) -> Option<Arc<Image>> {
        let read = |digest: &Digest| self.blobs.read_json(digest).ok().flatten();
        let mut manifest_digest = digest.clone();
        let mut manifest = Manifest::parse(&read(digest)?, "image").ok()?.0;
        if let Manifest::Index(manifests) = &manifest {
            manifest_digest = choose_platform(manifests, reference).ok()?.digest.clone();
            manifest = Manifest::parse(&read(&manifest_digest)?, "image").ok()?.0;
        }
        let Manifest::Image { config, layers } = manifest else { return None };
        let (config, diff_ids) = parse_config(&read(&config.digest)?, layers.len(), reference).ok()?;
        let records = diff_ids.iter().map(|diff_id| self.layers.get(diff_id)).collect::<Option<Vec<_>>>()?;
        let parts = Parts { manifest_digest, config, layers: layers.into_iter().zip(diff_ids).collect() };
        Some(self.hold(self.assemble(reference, digest.clone(), parts, &records)))
    }

    fn assemble(&self, reference: &ImageRef, digest: Digest, parts: Parts, records: &[LayerRecord]) -> Image {
        let mut layers = Vec::with_capacity(records.len());
        for record in records.iter().rev() {
            let path = self.layers.path(&record.diff_id);
            // overlayfs refuses a directory twice; only the topmost can be seen anyway.
            if !layers.contains(&path) {
                layers.push(path);
            }
        }
        Image {
            reference: reference.clone(),
            digest,
            manifest_digest: parts.manifest_digest,
            config: parts.config,
            layers,
            size_bytes: records.iter().map(|record| record.size_bytes).sum(),
        }
    }
}
