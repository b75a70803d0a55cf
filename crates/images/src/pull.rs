//! Speaks to registries: manifests and blobs over the OCI distribution protocol.
//!
//! `oci-client` knows tokens and the registries' quirks; this module gives it limits and turns its answers into
//! [`ImageError`]. One client lives for one pull, because the library keeps the first login it sees for a host.
//!
//! **Invariant:** nothing that a registry sends is trusted before its digest has been compared.

use std::fmt;
use std::time::Duration;

use futures_util::StreamExt as _;
use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{DigestError, OciDistributionError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};
use tokio::sync::OnceCell;
use tokio::time::timeout;

use crate::blobs::{BlobWriter, Blobs, JSON_MAX, StagedBlob};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::reference::ImageRef;
use crate::store::StoreConfig;

/// How often a blob is tried before its error counts.
const BLOB_ATTEMPTS: u32 = 3;
/// Pause before the second attempt; doubles after each.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// Bytes gathered before they are handed to the thread that writes files.
const WRITE_BYTES: usize = 512 * 1024;

/// A login for a registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Credentials {
    /// User name, or the name of a token.
    pub username: String,
    /// Password or token; never logged.
    pub password: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).field("password", &"…").finish()
    }
}

/// One repository of one registry, connected when first needed.
pub(crate) struct Remote {
    reference: ImageRef,
    auth: RegistryAuth,
    is_insecure: bool,
    config: StoreConfig,
    client: OnceCell<Client>,
}

impl Remote {
    pub(crate) fn new(reference: &ImageRef, credentials: Option<&Credentials>, config: &StoreConfig) -> Self {
        let auth = credentials.map_or(RegistryAuth::Anonymous, |login| {
            RegistryAuth::Basic(login.username.clone(), login.password.clone())
        });
        let is_insecure = reference.is_loopback() || config.insecure_registries.contains(&reference.registry);
        Self { reference: reference.clone(), auth, is_insecure, config: config.clone(), client: OnceCell::new() }
    }

    /// Fetches the manifest that the reference, or `digest` in its place, names.
    pub(crate) async fn manifest(&self, digest: Option<&Digest>) -> Result<(Vec<u8>, Digest), ImageError> {
        let reference = digest.map_or_else(|| self.reference.clone(), |digest| self.reference.with_digest(digest));
        let limit = self.config.resolve_timeout;
        let fetch = async {
            let client = self.client().await?;
            let accepted = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];
            let answer = client.pull_manifest_raw(&reference.to_client(), &self.auth, &accepted).await;
            answer.map_err(|error| self.error(error))
        };
        let (bytes, _) = timeout(limit, fetch).await.map_err(|_| self.timed_out("the manifest", limit))??;
        let actual = Digest::of(&bytes);
        if let Some(expected) = reference.digest()
            && *expected != actual
        {
            let what = format!("the manifest of `{}`", self.reference);
            return Err(ImageError::DigestMismatch { what, expected: expected.clone(), actual });
        }
        Ok((bytes.to_vec(), actual))
    }

    /// Fetches a configuration, which is small.
    pub(crate) async fn json_blob(&self, blob: &Descriptor, blobs: &Blobs) -> Result<Vec<u8>, ImageError> {
        if blob.size > JSON_MAX {
            return Err(ImageError::invalid(format!("image `{}`", self.reference), "its configuration exceeds 4 MiB"));
        }
        let staged = self.blob(blob, blobs, &|_| {}).await?;
        let bytes = staged.read_json()?;
        staged.commit()?;
        Ok(bytes)
    }

    /// Fetches a blob into a file and verifies it; `progress` is told the bytes of each piece.
    pub(crate) async fn blob(
        &self,
        blob: &Descriptor,
        blobs: &Blobs,
        progress: &(dyn Fn(i64) + Send + Sync),
    ) -> Result<StagedBlob, ImageError> {
        let mut pause = RETRY_PAUSE;
        let mut attempt = 1;
        loop {
            let limit = self.config.blob_timeout;
            let counted = std::sync::atomic::AtomicI64::new(0);
            let count = |bytes: i64| {
                counted.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                progress(bytes);
            };
            let result = match timeout(limit, self.blob_once(blob, blobs, &count)).await {
                Ok(result) => result,
                Err(_) => Err(self.timed_out(&format!("layer {}", blob.digest), limit)),
            };
            match result {
                Err(ImageError::Unreachable { .. } | ImageError::Registry { .. }) if attempt < BLOB_ATTEMPTS => {
                    progress(-counted.into_inner());
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    async fn blob_once(
        &self,
        blob: &Descriptor,
        blobs: &Blobs,
        progress: &(dyn Fn(i64) + Send + Sync),
    ) -> Result<StagedBlob, ImageError> {
        let client = self.client().await?;
        let descriptor = OciDescriptor {
            digest: blob.digest.to_string(),
            size: i64::try_from(blob.size).unwrap_or(i64::MAX),
            media_type: blob.media_type.clone(),
            ..OciDescriptor::default()
        };
        let opened = client.pull_blob_stream(&self.reference.to_client(), &descriptor).await;
        let mut stream = opened.map_err(|error| self.error(error))?.stream;
        let mut writer = blobs.writer()?;
        let mut pending = Vec::with_capacity(WRITE_BYTES);
        let mut seen = 0_u64;
        while let Some(piece) = stream.next().await {
            let piece = match piece {
                Ok(piece) => piece,
                Err(error) if is_digest_error(&error) => break,
                Err(error) => {
                    return Err(ImageError::Unreachable {
                        registry: self.reference.registry.clone(),
                        message: format!("the transfer broke off: {}", chain(&error)),
                    });
                }
            };
            seen += piece.len() as u64;
            if seen > blob.size {
                let reason = format!("the registry sends more than the {} bytes announced", blob.size);
                return Err(ImageError::invalid(format!("layer {}", blob.digest), reason));
            }
            progress(i64::try_from(piece.len()).unwrap_or(i64::MAX));
            pending.extend_from_slice(&piece);
            if pending.len() >= WRITE_BYTES {
                (writer, pending) = write(writer, pending).await?;
            }
        }
        (writer, _) = write(writer, pending).await?;
        let staged = blocking(move || writer.finish()).await?;
        staged.expect(&blob.digest, || format!("layer {} of `{}`", blob.digest, self.reference))
    }

    /// Connects: finds out whether an insecure registry speaks TLS, and logs in.
    async fn client(&self) -> Result<&Client, ImageError> {
        self.client
            .get_or_try_init(|| async {
                let secure = self.connect(ClientProtocol::Https).await;
                match secure {
                    Err(ImageError::Unreachable { .. }) if self.is_insecure => self.connect(ClientProtocol::Http).await,
                    other => other,
                }
            })
            .await
    }

    async fn connect(&self, protocol: ClientProtocol) -> Result<Client, ImageError> {
        // The first provider set in a process stays; ours is the same as everywhere in the program.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(ClientConfig {
            protocol,
            accept_invalid_certificates: self.is_insecure,
            connect_timeout: Some(self.config.connect_timeout),
            read_timeout: Some(self.config.read_timeout),
            user_agent: concat!("cove/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(|error| self.error(error))?;
        // Asked for here, because later the library would hide why a login failed.
        let reference = self.reference.to_client();
        let login = client.auth(&reference, &self.auth, RegistryOperation::Pull);
        let limit = self.config.resolve_timeout;
        let answer = timeout(limit, login).await.map_err(|_| self.timed_out("the login", limit))?;
        answer.map_err(|error| self.error(error))?;
        Ok(client)
    }

    fn timed_out(&self, what: &str, limit: Duration) -> ImageError {
        let what = format!("fetching {what} of `{}` from `{}`", self.reference, self.reference.registry);
        ImageError::TimedOut { what, limit }
    }

    fn error(&self, error: OciDistributionError) -> ImageError {
        use OciDistributionError as E;
        let registry = self.reference.registry.clone();
        let reference = self.reference.to_string();
        let with_login = self.auth != RegistryAuth::Anonymous;
        let refused = |message: String| ImageError::LoginRefused {
            reference: reference.clone(),
            registry: registry.clone(),
            with_login,
            message: shortened(&message),
        };
        match error {
            E::AuthenticationFailure(message) => refused(message),
            E::UnauthorizedError { .. } => refused("not authorized".into()),
            E::DigestError(DigestError::VerificationError { expected, actual }) => {
                match (expected.parse(), actual.parse()) {
                    (Ok(expected), Ok(actual)) => {
                        let what = format!("the manifest of `{reference}`");
                        ImageError::DigestMismatch { what, expected, actual }
                    }
                    _ => ImageError::Registry { registry, message: "it names a digest that is not SHA-256".into() },
                }
            }
            E::ImageManifestNotFoundError(_) => ImageError::NotFound { reference, registry },
            E::ServerError { code: 404, .. } => ImageError::NotFound { reference, registry },
            E::ServerError { code: 401 | 403, message, .. } => refused(message),
            E::ServerError { code: 429, message, .. } => {
                ImageError::RateLimited { registry, message: shortened(&message) }
            }
            E::RegistryError { envelope, .. } => {
                let is_about = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
                let message = shortened(&envelope.to_string());
                use OciErrorCode as C;
                if is_about(&[C::ManifestUnknown, C::NameUnknown, C::NotFound, C::BlobUnknown, C::NameInvalid]) {
                    ImageError::NotFound { reference, registry }
                } else if is_about(&[C::Unauthorized, C::Denied]) {
                    refused(message)
                } else if is_about(&[C::Toomanyrequests]) {
                    ImageError::RateLimited { registry, message }
                } else {
                    ImageError::Registry { registry, message }
                }
            }
            E::RequestError(error) if error.is_timeout() && !error.is_connect() => ImageError::TimedOut {
                what: format!("an answer of registry `{registry}`"),
                limit: self.config.read_timeout,
            },
            E::RequestError(error) => ImageError::Unreachable { registry, message: chain(&error) },
            other => ImageError::Registry { registry, message: shortened(&chain(&other)) },
        }
    }
}

/// The library compares digests at the end of a stream; we do it again on the file and name both digests.
fn is_digest_error(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<DigestError>())
}

pub(crate) async fn write(mut writer: BlobWriter, mut bytes: Vec<u8>) -> Result<(BlobWriter, Vec<u8>), ImageError> {
    blocking(move || {
        writer.write(&bytes)?;
        bytes.clear();
        Ok((writer, bytes))
    })
    .await
}

/// Runs file work on the threads meant for it.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // Cancelled: the whole process is ending, and with it the caller.
            Err(_) => std::future::pending().await,
        },
    }
}

/// An error with its causes, which is where HTTP clients keep what a person wants to know.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// Registries answer with whole web pages at times.
fn shortened(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() { "no reason given".into() } else { line.chars().take(300).collect() }
}
