//! The embedded registry: OCI distribution over the same blobs that containers run from.
//!
//! What is pushed needs no second copy and no pull: the manifest's name goes into the store's index, and
//! [`ImageStore::ensure`] finds it under every host name of this registry. The tools `docker`, `skopeo` and `oci-client`
//! are the measure, see the tests.
//!
//! A blob is content, not property: whoever may read one repository can read any blob whose digest he knows. For
//! repositories with different readers, check more than the repository in the [`AuthorizationCheck`].
//!
//! **Invariant:** a manifest is named only when what it needs is here, so a name never leads to half an image.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde_json::json;

use crate::digest::Digest;
use crate::error::ImageError;
use crate::reference::{ImageRef, OWN_REGISTRY, Version, check_repository, check_tag};
use crate::store::ImageStore;

mod blobs;
mod manifests;

use blobs::Uploads;

/// What a request wants to do with a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read manifests, blobs and lists.
    Pull,
    /// Write blobs and manifests.
    Push,
    /// Remove tags and manifests.
    Delete,
}

/// Decides by the `Authorization` header, the repository (empty for the ping and the catalog) and the access wanted.
pub type AuthorizationCheck = Arc<dyn Fn(Option<&str>, &str, Access) -> bool + Send + Sync>;

/// Limits of the embedded registry.
#[derive(Clone)]
pub struct RegistryConfig {
    /// Largest blob in bytes. Default 16 GiB; more is answered 413.
    pub blob_size_max: u64,
    /// Uploads open at once. Default 256; more is answered 429.
    pub uploads_max: usize,
    /// How long an upload may rest between two requests, or a request between two pieces. Default 60 s for a piece, ten
    /// times that between requests.
    pub idle_max: Duration,
    /// Who may do what; everybody everything if none.
    pub authorize: Option<AuthorizationCheck>,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self { blob_size_max: 16 << 30, uploads_max: 256, idle_max: Duration::from_secs(60), authorize: None }
    }
}

impl fmt::Debug for RegistryConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegistryConfig")
            .field("blob_size_max", &self.blob_size_max)
            .field("uploads_max", &self.uploads_max)
            .field("idle_max", &self.idle_max)
            .field("authorize", &self.authorize.is_some())
            .finish()
    }
}

/// What every handler works with.
struct Registry {
    store: ImageStore,
    config: RegistryConfig,
    uploads: Uploads,
}

impl ImageStore {
    /// The registry's routes, all below `/v2/`. Tell the store its host names with [`ImageStore::add_registry_host`].
    pub fn registry(&self, config: RegistryConfig) -> Router {
        let registry = Registry { store: self.clone(), uploads: Uploads::default(), config };
        Router::new()
            .route("/v2", any(dispatch))
            .route("/v2/", any(dispatch))
            .route("/v2/{*rest}", any(dispatch))
            .with_state(Arc::new(registry))
    }
}

/// Why a request was refused, in the terms of the distribution specification.
#[derive(Debug, thiserror::Error)]
enum RegistryError {
    #[error("a login is needed for this")]
    Unauthorized,
    #[error("blob {0} is not in this registry")]
    BlobUnknown(Digest),
    #[error("{0}")]
    UploadInvalid(String),
    #[error("this upload is not known; it ended, or was idle too long: begin a new one")]
    UploadUnknown,
    #[error("the piece must begin at byte {expected}")]
    UploadOutOfOrder { expected: u64, location: String },
    #[error("{0}")]
    DigestInvalid(String),
    #[error("the manifest names blob {0}, which was not pushed before it")]
    ManifestBlobUnknown(Digest),
    #[error("{0}")]
    ManifestInvalid(String),
    #[error("manifest `{0}` is not in this repository")]
    ManifestUnknown(String),
    #[error("{0}")]
    NameInvalid(String),
    #[error("repository `{0}` is not in this registry")]
    NameUnknown(String),
    #[error("{0}")]
    SizeInvalid(String),
    #[error("the range is outside of the blob's {size} bytes")]
    RangeInvalid { size: u64 },
    #[error("there is nothing under this path; everything is below `/v2/`")]
    NoSuchPath,
    #[error("this registry does not offer that")]
    Unsupported,
    #[error("too many uploads are open; finish some first")]
    TooManyUploads,
    #[error("failed to use the image store")]
    Store(#[source] ImageError),
}

impl From<ImageError> for RegistryError {
    fn from(error: ImageError) -> Self {
        Self::Store(error)
    }
}

impl RegistryError {
    /// Status and error code of the wire.
    fn status(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "UNAUTHORIZED"),
            Self::BlobUnknown(_) => (StatusCode::NOT_FOUND, "BLOB_UNKNOWN"),
            Self::UploadInvalid(_) => (StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID"),
            Self::UploadUnknown => (StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN"),
            Self::UploadOutOfOrder { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "BLOB_UPLOAD_INVALID"),
            Self::DigestInvalid(_) => (StatusCode::BAD_REQUEST, "DIGEST_INVALID"),
            Self::ManifestBlobUnknown(_) => (StatusCode::BAD_REQUEST, "MANIFEST_BLOB_UNKNOWN"),
            Self::ManifestInvalid(_) => (StatusCode::BAD_REQUEST, "MANIFEST_INVALID"),
            Self::ManifestUnknown(_) => (StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN"),
            Self::NameInvalid(_) => (StatusCode::BAD_REQUEST, "NAME_INVALID"),
            Self::NameUnknown(_) => (StatusCode::NOT_FOUND, "NAME_UNKNOWN"),
            Self::SizeInvalid(_) => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
            Self::RangeInvalid { .. } => (StatusCode::RANGE_NOT_SATISFIABLE, "UNSUPPORTED"),
            Self::NoSuchPath => (StatusCode::NOT_FOUND, "NOT_FOUND"),
            Self::Unsupported => (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED"),
            Self::TooManyUploads => (StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS"),
            Self::Store(ImageError::DiskFull { .. }) => (StatusCode::INSUFFICIENT_STORAGE, "UNKNOWN"),
            Self::Store(_) => (StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN"),
        }
    }
}

impl IntoResponse for RegistryError {
    fn into_response(self) -> Response {
        let (status, code) = self.status();
        let message = match &self {
            Self::Store(error @ ImageError::DiskFull { .. }) => error.to_string(),
            Self::Store(error) => {
                tracing::error!(error = error as &dyn std::error::Error, "embedded registry failed");
                self.to_string()
            }
            _ => self.to_string(),
        };
        let body = json!({ "errors": [{ "code": code, "message": message, "detail": null }] });
        let mut answer = (status, axum::Json(body)).into_response();
        let headers = answer.headers_mut();
        match self {
            Self::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"cove\""));
            }
            Self::UploadOutOfOrder { expected, location } => {
                headers.insert(header::RANGE, ascii(blobs::received(expected)));
                headers.insert(header::LOCATION, ascii(location));
            }
            Self::RangeInvalid { size } => {
                headers.insert(header::CONTENT_RANGE, ascii(format!("bytes */{size}")));
            }
            _ => {}
        }
        answer
    }
}

/// A header value of text that we composed from checked names and numbers.
fn ascii(text: impl AsRef<str>) -> HeaderValue {
    HeaderValue::from_str(text.as_ref()).expect("names, digests and numbers are printable ASCII")
}

/// What a path below `/v2/` names. A repository has slashes itself, so the path is read from its end.
#[derive(Debug, PartialEq, Eq)]
enum Target<'a> {
    Ping,
    Catalog,
    Tags,
    Manifest(&'a str),
    Blob(&'a str),
    NewUpload,
    Upload(&'a str),
}

fn target(path: &str) -> Option<(&str, Target<'_>)> {
    let rest = path.strip_prefix("/v2").map(|rest| rest.trim_start_matches('/'))?;
    if rest.is_empty() {
        return Some(("", Target::Ping));
    }
    if rest == "_catalog" {
        return Some(("", Target::Catalog));
    }
    if let Some(repository) = rest.strip_suffix("/tags/list") {
        return Some((repository, Target::Tags));
    }
    if let Some(repository) = rest.strip_suffix("/blobs/uploads").or_else(|| rest.strip_suffix("/blobs/uploads/")) {
        return Some((repository, Target::NewUpload));
    }
    let (before, last) = rest.rsplit_once('/')?;
    if let Some(repository) = before.strip_suffix("/blobs/uploads") {
        return Some((repository, Target::Upload(last)));
    }
    if let Some(repository) = before.strip_suffix("/manifests") {
        return Some((repository, Target::Manifest(last)));
    }
    before.strip_suffix("/blobs").map(|repository| (repository, Target::Blob(last)))
}

async fn dispatch(State(registry): State<Arc<Registry>>, request: Request) -> Response {
    let mut answer = registry.answer(request).await.unwrap_or_else(RegistryError::into_response);
    let version = HeaderValue::from_static("registry/2.0");
    answer.headers_mut().insert("docker-distribution-api-version", version);
    answer
}

impl Registry {
    async fn answer(&self, request: Request) -> Result<Response, RegistryError> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        let Some((repository, target)) = target(&path) else { return Err(RegistryError::NoSuchPath) };
        let access = match parts.method {
            Method::GET | Method::HEAD => Access::Pull,
            Method::DELETE => Access::Delete,
            _ => Access::Push,
        };
        let authorization = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if self.config.authorize.as_ref().is_some_and(|check| !check(authorization, repository, access)) {
            return Err(RegistryError::Unauthorized);
        }
        if !matches!(target, Target::Ping | Target::Catalog) {
            check_repository(repository).map_err(RegistryError::NameInvalid)?;
        }
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let (method, headers) = (&parts.method, &parts.headers);
        match (target, method.as_str()) {
            (Target::Ping, "GET" | "HEAD") => Ok(axum::Json(json!({})).into_response()),
            (Target::Catalog, "GET") => self.catalog(&query),
            (Target::Tags, "GET") => self.tags(repository, &query),
            (Target::Manifest(version), "GET" | "HEAD") => self.get_manifest(&named(repository, version)?).await,
            (Target::Manifest(version), "PUT") => self.put_manifest(&named(repository, version)?, headers, body).await,
            (Target::Manifest(version), "DELETE") => self.delete_manifest(&named(repository, version)?).await,
            (Target::Blob(digest), "GET" | "HEAD") => self.get_blob(&parsed(digest)?, method, headers).await,
            (Target::NewUpload, "POST") => self.begin_upload(repository, &query, body).await,
            (Target::Upload(id), "GET") => self.upload_status(repository, id),
            (Target::Upload(id), "PATCH") => self.continue_upload(repository, id, headers, body).await,
            (Target::Upload(id), "PUT") => self.finish_upload(repository, id, &query, headers, body).await,
            (Target::Upload(id), "DELETE") => self.cancel_upload(repository, id),
            _ => Err(RegistryError::Unsupported),
        }
    }
}

/// The full name of `version` (tag or digest) in a repository of this registry.
fn named(repository: &str, version: &str) -> Result<ImageRef, RegistryError> {
    let version = if version.contains(':') {
        Version::Digest(parsed(version)?)
    } else {
        check_tag(version).map_err(RegistryError::ManifestInvalid)?;
        Version::Tag(version.to_owned())
    };
    Ok(ImageRef { registry: OWN_REGISTRY.to_owned(), repository: repository.to_owned(), version })
}

fn parsed(digest: &str) -> Result<Digest, RegistryError> {
    digest.parse().map_err(|error| RegistryError::DigestInvalid(format!("{error}")))
}

/// The few query parameters of the protocol; values are digests, names and numbers, percent-encoded by some clients.
#[derive(Debug, Default)]
struct Query {
    digest: Option<String>,
    mount: Option<String>,
    n: Option<usize>,
    last: Option<String>,
}

impl Query {
    fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for pair in text.split('&') {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.replace("%3A", ":").replace("%3a", ":").replace("%2F", "/").replace("%2f", "/");
            match key {
                "digest" => query.digest = Some(value),
                "mount" => query.mount = Some(value),
                "n" => query.n = value.parse().ok(),
                "last" => query.last = Some(value),
                _ => {}
            }
        }
        query
    }
}

/// Reads a body piece by piece; each piece must come within the idle time.
async fn next_piece(body: &mut Body, idle_max: Duration) -> Result<Option<bytes::Bytes>, RegistryError> {
    use http_body_util::BodyExt as _;
    loop {
        let frame = match tokio::time::timeout(idle_max, body.frame()).await {
            Ok(None) => return Ok(None),
            Ok(Some(Ok(frame))) => frame,
            Ok(Some(Err(error))) => return Err(RegistryError::UploadInvalid(format!("the body broke off: {error}"))),
            Err(_) => {
                let waited = idle_max.as_secs();
                return Err(RegistryError::UploadInvalid(format!("no data came for {waited} s")));
            }
        };
        // Trailers say nothing here.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

#[cfg(test)]
mod tests;
