//! Manifests and lists of the embedded registry.
//!
//! A manifest is a blob with names: its tags, and always `repository@digest`, so that one pushed without a tag (a
//! platform of an index) is found, and stays until it is deleted.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, header};
use serde_json::json;

use super::{Query, Registry, RegistryError, ascii, content_length, next_piece};
use crate::blobs::JSON_MAX;
use crate::digest::Digest;
use crate::image::Manifest;
use crate::index::ImageSource;
use crate::pull::blocking;
use crate::reference::{ImageRef, OWN_REGISTRY, Version};
use crate::sample::SAMPLE_IMAGE;

/// Most entries of one page of a list.
const PAGE_MAX: usize = 1000;

impl Registry {
    pub(super) async fn get_manifest(&self, name: &ImageRef) -> Result<Response, RegistryError> {
        if name.to_string() == SAMPLE_IMAGE {
            let store = self.store.clone();
            blocking(move || store.install_sample()).await?;
        }
        let unknown = || RegistryError::ManifestUnknown(version(name));
        let digest = match (self.store.entry(name), &name.version) {
            (Some(entry), _) => entry.digest,
            (None, Version::Digest(digest)) if self.is_below(name, digest) => digest.clone(),
            (None, _) => return Err(unknown()),
        };
        let bytes = self.store.0.blobs.read_json(&digest)?.ok_or_else(unknown)?;
        let (_, media_type) = Manifest::parse(&bytes, &digest.to_string())?;
        let kind = http::HeaderValue::from_str(&media_type)
            .map_err(|_| RegistryError::ManifestInvalid("its media type is not text".into()))?;
        let answer = Response::builder()
            .header(header::CONTENT_TYPE, kind)
            .header(header::CONTENT_LENGTH, bytes.len())
            .header(header::ETAG, ascii(format!("\"{digest}\"")))
            .header("docker-content-digest", ascii(digest.as_str()));
        Ok(answer.body(Body::from(bytes)).expect("all header values are valid"))
    }

    /// Whether the digest is a part of something that this repository names, such as one platform of an imported index.
    fn is_below(&self, name: &ImageRef, digest: &Digest) -> bool {
        let prefix = format!("{}/{}:", name.registry, name.repository);
        let roots: Vec<_> = self.store.index().starting_with(&prefix).map(|(_, entry)| entry.digest.clone()).collect();
        self.store.0.reachable(&roots).0.contains(digest)
    }

    pub(super) async fn put_manifest(
        &self,
        name: &ImageRef,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<Response, RegistryError> {
        let too_large = || RegistryError::SizeInvalid(format!("a manifest may have {JSON_MAX} bytes"));
        if content_length(headers).is_some_and(|length| length > JSON_MAX) {
            return Err(too_large());
        }
        let mut bytes = Vec::new();
        while let Some(piece) = next_piece(&mut body, self.config.idle_max).await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > JSON_MAX {
                return Err(too_large());
            }
        }
        let digest = Digest::of(&bytes);
        if let Some(expected) = name.digest()
            && *expected != digest
        {
            return Err(RegistryError::DigestInvalid(format!("the manifest's digest is {digest}, not {expected}")));
        }
        let parsed = Manifest::parse(&bytes, "the manifest");
        let (manifest, _) = parsed.map_err(|error| RegistryError::ManifestInvalid(error.to_string()))?;
        let _active = self.store.active().await;
        self.check_children(&manifest)?;
        let location = format!("/v2/{}/manifests/{digest}", name.repository);
        let (store, name, stored) = (self.store.clone(), name.clone(), digest.clone());
        blocking(move || {
            store.0.blobs.put(&bytes)?;
            let names = [name.to_string(), name.with_digest(&stored).to_string()];
            store.index().put(&names, &stored, ImageSource::Pushed)?;
            tracing::info!(image = %name, digest = %stored, "image pushed");
            Ok(())
        })
        .await?;
        let headers = [("location", location), ("docker-content-digest", digest.to_string())];
        Ok((StatusCode::CREATED, headers).into_response())
    }

    /// An image needs its configuration and all layers; an index may list platforms that were not pushed, but not only those.
    fn check_children(&self, manifest: &Manifest) -> Result<(), RegistryError> {
        let blobs = &self.store.0.blobs;
        let unknown = |digest: &Digest| Err(RegistryError::ManifestBlobUnknown(digest.clone()));
        match manifest {
            Manifest::Image { config, layers } => {
                let is_elsewhere = |kind: &str| kind.contains("nondistributable") || kind.contains("foreign");
                let needed = layers.iter().filter(|layer| !is_elsewhere(&layer.media_type));
                for blob in std::iter::once(config).chain(needed) {
                    if !blobs.touch(&blob.digest) {
                        return unknown(&blob.digest);
                    }
                }
                Ok(())
            }
            Manifest::Index(entries) => match entries.first() {
                Some(first) if !entries.iter().any(|entry| blobs.touch(&entry.digest)) => unknown(&first.digest),
                _ => Ok(()),
            },
        }
    }

    /// Removes a tag, or a digest with all its tags in this repository; the content goes with garbage collection.
    pub(super) async fn delete_manifest(&self, name: &ImageRef) -> Result<Response, RegistryError> {
        let (store, name_then) = (self.store.clone(), name.clone());
        let removed = blocking(move || {
            let full = name_then.to_string();
            let tags = format!("{}/{}:", name_then.registry, name_then.repository);
            store.index().retain(|known, entry| {
                let is_tag_of_it = known.starts_with(&tags) && name_then.digest() == Some(&entry.digest);
                known != full && !is_tag_of_it
            })
        });
        if removed.await?.is_empty() {
            return Err(RegistryError::ManifestUnknown(version(name)));
        }
        Ok(StatusCode::ACCEPTED.into_response())
    }

    pub(super) fn tags(&self, repository: &str, query: &Query) -> Result<Response, RegistryError> {
        let prefix = format!("{OWN_REGISTRY}/{repository}:");
        let digests = format!("{OWN_REGISTRY}/{repository}@");
        let (tags, is_known): (Vec<String>, bool) = {
            let index = self.store.index();
            let tags = index.starting_with(&prefix).map(|(name, _)| name[prefix.len()..].to_owned()).collect();
            (tags, index.starting_with(&digests).next().is_some())
        };
        if tags.is_empty() && !is_known {
            return Err(RegistryError::NameUnknown(repository.to_owned()));
        }
        let (page, next) = page(tags, query);
        let body = json!({ "name": repository, "tags": page });
        Ok(with_next(body, next.map(|link| format!("/v2/{repository}/tags/list?{link}"))))
    }

    pub(super) fn catalog(&self, query: &Query) -> Result<Response, RegistryError> {
        let prefix = format!("{OWN_REGISTRY}/");
        let mut repositories: Vec<String> = {
            let index = self.store.index();
            let names = index.starting_with(&prefix).map(|(name, _)| &name[prefix.len()..]);
            names.filter_map(|name| name.split([':', '@']).next().map(str::to_owned)).collect()
        };
        repositories.sort();
        repositories.dedup();
        let (page, next) = page(repositories, query);
        Ok(with_next(json!({ "repositories": page }), next.map(|link| format!("/v2/_catalog?{link}"))))
    }
}

fn version(name: &ImageRef) -> String {
    match &name.version {
        Version::Tag(tag) => tag.clone(),
        Version::Digest(digest) => digest.to_string(),
    }
}

/// Cuts a sorted list to the page asked for and tells the query of the next one.
fn page(all: Vec<String>, query: &Query) -> (Vec<String>, Option<String>) {
    let size = query.n.unwrap_or(PAGE_MAX).min(PAGE_MAX);
    let after = |name: &String| query.last.as_ref().is_none_or(|last| name > last);
    let mut rest: Vec<String> = all.into_iter().filter(after).collect();
    let has_more = rest.len() > size;
    rest.truncate(size);
    let next = rest.last().filter(|_| has_more).map(|last| format!("n={size}&last={last}"));
    (rest, next)
}

fn with_next(body: serde_json::Value, next: Option<String>) -> Response {
    let mut answer = axum::Json(body).into_response();
    if let Some(next) = next {
        answer.headers_mut().insert(header::LINK, ascii(format!("<{next}>; rel=\"next\"")));
    }
    answer
}
