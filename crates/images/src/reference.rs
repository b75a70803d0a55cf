//! Image names as people write them, and the one full form they are stored under.
//!
//! `nginx` means `docker.io/library/nginx:latest`, as every container tool has taught. The embedded registry can be reached
//! under several host names; its images are stored under [`OWN_REGISTRY`] so that all of them name the same image.

use std::fmt;

use oci_client::Reference;

use crate::digest::Digest;

/// Host part under which images of the embedded registry and built-in images are stored.
pub const OWN_REGISTRY: &str = "cove.local";

/// A full image name: registry, repository, and a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    /// Host and optional port, `docker.io` when none was written.
    pub registry: String,
    /// Path below the registry, with `library/` added for the short names of `docker.io`.
    pub repository: String,
    /// What within the repository.
    pub version: Version,
}

/// What an image name points at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Version {
    /// A name that can move; `latest` when none was written.
    Tag(String),
    /// Exactly this content. A tag beside it is dropped: the digest decides.
    Digest(Digest),
}

/// The text cannot be an image name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not an image name: {reason}; write it as `registry/repository:tag` or `registry/repository@sha256:…`"
)]
pub struct InvalidImageRef {
    /// The text given, shortened.
    pub text: String,
    /// What is wrong with it.
    pub reason: String,
}

impl ImageRef {
    /// The same repository at a fixed content, so that it means the same image for ever.
    #[must_use]
    pub fn with_digest(&self, digest: &Digest) -> Self {
        Self { version: Version::Digest(digest.clone()), ..self.clone() }
    }

    /// The digest, if the name is fixed to one.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.version {
            Version::Digest(digest) => Some(digest),
            Version::Tag(_) => None,
        }
    }

    /// Whether the registry is this machine itself, where plain HTTP is no risk.
    pub(crate) fn is_loopback(&self) -> bool {
        let host = match self.registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.registry,
        };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        bare == "localhost"
            || bare.ends_with(".localhost")
            || bare.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
    }

    /// The form that the registry client takes.
    pub(crate) fn to_client(&self) -> Reference {
        let (registry, repository) = (self.registry.clone(), self.repository.clone());
        match &self.version {
            Version::Tag(tag) => Reference::with_tag(registry, repository, tag.clone()),
            Version::Digest(digest) => Reference::with_digest(registry, repository, digest.to_string()),
        }
    }
}

impl std::str::FromStr for ImageRef {
    type Err = InvalidImageRef;

    /// ```
    /// let image: cove_images::ImageRef = "nginx".parse()?;
    /// assert_eq!(image.to_string(), "docker.io/library/nginx:latest");
    /// # Ok::<(), cove_images::InvalidImageRef>(())
    /// ```
    fn from_str(text: &str) -> Result<Self, InvalidImageRef> {
        parse(text).map_err(|reason| InvalidImageRef { text: text.chars().take(200).collect(), reason })
    }
}

/// By hand rather than by the client library's pattern, which costs megabytes and says only "invalid format".
fn parse(text: &str) -> Result<ImageRef, String> {
    if text.is_empty() {
        return Err("it is empty".into());
    }
    if text.contains("://") {
        return Err("it must not begin with a protocol".into());
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest.parse::<Digest>().map_err(|error| error.to_string())?)),
        None => (text, None),
    };
    let (registry, path) = match name.split_once('/') {
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host, path),
        _ => ("docker.io", name),
    };
    let (path, tag) = match path.split_once(':') {
        Some((path, tag)) => (path, tag),
        None => (path, "latest"),
    };
    check_host(registry)?;
    check_tag(tag)?;
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => "docker.io",
        other => other,
    };
    let repository = match registry {
        "docker.io" if !path.contains('/') => format!("library/{path}"),
        _ => path.to_owned(),
    };
    check_repository(&repository)?;
    let version = digest.map_or_else(|| Version::Tag(tag.to_owned()), Version::Digest);
    Ok(ImageRef { registry: registry.to_owned(), repository, version })
}

fn check_host(host: &str) -> Result<(), String> {
    let (bare, port) = match host.rsplit_once(':') {
        Some((bare, port)) if !port.ends_with(']') => (bare, Some(port)),
        _ => (host, None),
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err()) {
        return Err(format!("the port of registry `{host}` must be a number up to 65535"));
    }
    let inner = bare.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let is_ipv6 = inner.is_some_and(|ip| ip.parse::<std::net::Ipv6Addr>().is_ok());
    let is_name = bare.len() <= 253
        && bare.split('.').all(|label| {
            !label.is_empty()
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
                && !label.starts_with('-')
                && !label.ends_with('-')
        });
    if is_ipv6 || is_name { Ok(()) } else { Err(format!("`{host}` is not a host name")) }
}

/// Checks a tag: at most 128 letters, digits, `_`, `.`, `-`, not beginning with the last two.
pub(crate) fn check_tag(tag: &str) -> Result<(), String> {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let good = (1..=128).contains(&tag.len())
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
        && tag.bytes().next().is_some_and(is_word);
    if good { Ok(()) } else { Err(format!("`{tag}` is not a tag (up to 128 letters, digits, `_`, `.`, `-`)")) }
}

/// Checks a repository path: parts of lower-case letters and digits joined by `.`, `_`, `__` or dashes, at most 255 bytes.
pub(crate) fn check_repository(path: &str) -> Result<(), String> {
    if path.len() > 255 {
        return Err("the repository is longer than 255 characters".into());
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be in lower case".into());
    }
    let is_alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let is_part = |part: &str| {
        let joins = part.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).filter(|join| !join.is_empty());
        part.bytes().next().is_some_and(is_alphanumeric)
            && part.bytes().next_back().is_some_and(is_alphanumeric)
            && joins.into_iter().all(|join| matches!(join, "." | "_" | "__") || join.bytes().all(|b| b == b'-'))
    };
    match path.split('/').find(|part| !is_part(part)) {
        None => Ok(()),
        Some(part) => {
            Err(format!("`{part}` is not part of a repository name (lower-case letters, digits, `.`, `_`, `-`)"))
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.registry, self.repository),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.registry, self.repository),
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = Digest::of(b"");
        let mut table = String::new();
        for name in [
            "nginx",
            "nginx:1.25",
            "grafana/grafana",
            "docker.io/nginx",
            "localhost/app",
            "localhost:5000/team/app:v1",
            "mcr.microsoft.com/k8se/quickstart:latest",
            &format!("nginx@{digest}"),
            &format!("nginx:1@{digest}"),
            "",
            "Nginx",
            "nginx:",
            "a b",
            "https://example.com/app",
            "nginx@sha256:12",
        ] {
            match name.parse::<ImageRef>() {
                Ok(image) => table.push_str(&format!("{name} -> {image}\n")),
                Err(error) => table.push_str(&format!("{name} -> {}\n", error.reason)),
            }
        }
        expect![[r#"
            nginx -> docker.io/library/nginx:latest
            nginx:1.25 -> docker.io/library/nginx:1.25
            grafana/grafana -> docker.io/grafana/grafana:latest
            docker.io/nginx -> docker.io/library/nginx:latest
            localhost/app -> localhost/app:latest
            localhost:5000/team/app:v1 -> localhost:5000/team/app:v1
            mcr.microsoft.com/k8se/quickstart:latest -> mcr.microsoft.com/k8se/quickstart:latest
            nginx@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 -> docker.io/library/nginx@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
            nginx:1@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 -> docker.io/library/nginx@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855
             -> it is empty
            Nginx -> the repository must be in lower case
            nginx: -> `` is not a tag (up to 128 letters, digits, `_`, `.`, `-`)
            a b -> `a b` is not part of a repository name (lower-case letters, digits, `.`, `_`, `-`)
            https://example.com/app -> it must not begin with a protocol
            nginx@sha256:12 -> `sha256:12` is not a digest of the form `sha256:<64 lower-case hexadecimal digits>`
        "#]].assert_eq(&table);
    }

    #[test]
    fn loopback_registries_are_recognised() {
        let is_loopback = |name: &str| name.parse::<ImageRef>().unwrap().is_loopback();
        assert!(is_loopback("localhost:5000/a") && is_loopback("127.0.0.1:5000/a") && is_loopback("127.8.0.1/a"));
        assert!(!is_loopback("nginx") && !is_loopback("192.168.1.4:5000/a") && !is_loopback("localhost.example.com/a"));
    }
}
