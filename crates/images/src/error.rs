//! What can go wrong with an image, in the words a person gets to read.
//!
//! Each variant says what is wrong and what would be right. Cloneable, because everybody who waited for the same pull gets
//! the same answer.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};

use crate::digest::{Digest, InvalidDigest};
use crate::interpreter::Interpreter;
use crate::reference::{InvalidImageRef, OWN_REGISTRY};

/// Why an image is not usable on this machine.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImageError {
    /// The name cannot be an image name.
    #[error(transparent)]
    InvalidReference(#[from] InvalidImageRef),
    /// The registry answered, and has no such image.
    #[error("image `{reference}` was not found in registry `{registry}`; {}", remedy(reference, registry))]
    NotFound {
        /// The image asked for.
        reference: String,
        /// Who was asked.
        registry: String,
    },
    /// The registry refused the login, or wants one.
    #[error("registry `{registry}` refused {} for image `{reference}`: {message}; {}",
        if *.with_login { "the login given" } else { "access without a login" },
        if *.with_login { "check user name and password, and that this user may pull the image" }
        else { "add the registry's server, user name and password to the app" })]
    LoginRefused {
        /// The image asked for.
        reference: String,
        /// Who refused.
        registry: String,
        /// Whether a login was sent.
        with_login: bool,
        /// The registry's own words.
        message: String,
    },
    /// Nothing answered under the registry's name.
    #[error(
        "registry `{registry}` cannot be reached: {message}; check its name and this machine's network, or import the image from a file"
    )]
    Unreachable {
        /// Who was asked.
        registry: String,
        /// What the connection said.
        message: String,
    },
    /// The registry asks for patience.
    #[error("registry `{registry}` allows no more pulls for now: {message}; wait, or use a login with a higher limit")]
    RateLimited {
        /// Who was asked.
        registry: String,
        /// The registry's own words.
        message: String,
    },
    /// The registry answered with an error, or with something that is none of its protocol.
    #[error("registry `{registry}` answered with an error: {message}")]
    Registry {
        /// Who was asked.
        registry: String,
        /// What it said.
        message: String,
    },
    /// The registry was too slow.
    #[error("{what} took longer than {} s", .limit.as_secs())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        limit: Duration,
    },
    /// The image is for another kind of machine.
    #[error(
        "image `{reference}` is for {found}, but this machine is {host}; build it for {host} (`--platform {host}`)"
    )]
    WrongPlatform {
        /// The image asked for.
        reference: String,
        /// What the image is for, such as `linux/arm64`; several separated by comma.
        found: String,
        /// What this machine is.
        host: String,
    },
    /// The bytes are not the ones their name promises.
    #[error("{what} is damaged: its digest should be {expected} but is {actual}; push or fetch the image again")]
    DigestMismatch {
        /// Which part.
        what: String,
        /// What was promised.
        expected: Digest,
        /// What came.
        actual: Digest,
    },
    /// A manifest, configuration or layer that does not follow the image format.
    #[error("{what} is not a usable image: {reason}")]
    InvalidImage {
        /// Which image or part.
        what: String,
        /// Why not.
        reason: String,
    },
    /// A layer tries to write outside its own directory, or is otherwise not safe to unpack.
    #[error("layer {layer} cannot be unpacked safely: entry `{entry}` {reason}")]
    UnsafeLayer {
        /// The layer's uncompressed digest.
        layer: Digest,
        /// The entry's name as the layer writes it.
        entry: String,
        /// Why not.
        reason: String,
    },
    /// The file is no image archive.
    #[error(
        "`{path}` is not an image archive: {reason}; give an OCI layout (directory or tar) or the output of `docker save`"
    )]
    InvalidArchive {
        /// The file given.
        path: Utf8PathBuf,
        /// Why not.
        reason: String,
    },
    /// No space left.
    #[error(
        "the disk that holds `{path}` is full; free some space, or remove images that are not used (`cove image prune`)"
    )]
    DiskFull {
        /// The path that was written.
        path: Utf8PathBuf,
    },
    /// The file system failed.
    #[error("failed to {action} `{path}`")]
    Io {
        /// What was tried, a verb.
        action: &'static str,
        /// On what.
        path: Utf8PathBuf,
        /// The kernel's answer.
        source: Arc<io::Error>,
    },
}

/// What to do about an image that is not there.
fn remedy(reference: &str, registry: &str) -> String {
    let own = Interpreter::ALL.into_iter().find(|kind| kind.image() == reference);
    match own {
        Some(kind) => format!("build it: `cove image build-interpreter {}`", kind.as_str()),
        None if registry == OWN_REGISTRY => "push or import it first".to_owned(),
        None => "check its name and tag, or give a login if it is private".to_owned(),
    }
}

impl ImageError {
    /// Wraps an IO error; a full disk becomes its own variant.
    pub(crate) fn io(action: &'static str, path: &Utf8Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path: path.to_owned() },
            _ => Self::Io { action, path: path.to_owned(), source: Arc::new(source) },
        }
    }

    pub(crate) fn invalid(what: impl Into<String>, reason: impl ToString) -> Self {
        Self::InvalidImage { what: what.into(), reason: reason.to_string() }
    }

    /// Whether the same request may succeed a little later without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. }
            | Self::RateLimited { .. }
            | Self::Registry { .. }
            | Self::TimedOut { .. }
            | Self::DiskFull { .. }
            | Self::Io { .. } => true,
            Self::InvalidReference(_)
            | Self::NotFound { .. }
            | Self::LoginRefused { .. }
            | Self::WrongPlatform { .. }
            | Self::DigestMismatch { .. }
            | Self::InvalidImage { .. }
            | Self::UnsafeLayer { .. }
            | Self::InvalidArchive { .. } => false,
        }
    }
}

impl From<InvalidDigest> for ImageError {
    fn from(error: InvalidDigest) -> Self {
        Self::invalid("digest", error)
    }
}
