//! Images of revisions: fetched once per revision, what a tag meant then is kept for all its replicas.
//!
//! **Invariant:** one fetch per revision at a time, [`LOOKS_MAX`] of all; asking again after a failure tries again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use cove_images::{Credentials, Image, ImageError, ImageRef, PullPolicy, PullProgress};
use cove_model::{EventKind, RevisionKey, SystemEvent};
use cove_runtime::{ImagesState, RegistryLogin};
use futures_util::future::try_join_all;

use super::{Inner, lock};

/// Revisions whose images are looked for at the same time.
pub(super) const LOOKS_MAX: usize = 32;

/// Where a revision's images stand.
#[derive(Debug, Default)]
pub(super) struct RevisionImages {
    pub(super) state: ImagesState,
    /// What each image, as written, stands for.
    pub(super) found: BTreeMap<String, Arc<Image>>,
}

pub(super) fn ensure(inner: &Arc<Inner>, revision: &RevisionKey, images: &[String], logins: &[RegistryLogin]) {
    {
        let mut state = lock(&inner.state);
        let entry = state.images.entry(revision.clone()).or_default();
        match &entry.state {
            ImagesState::Pulling { .. } => return,
            ImagesState::Ready { exposed_ports } if images.iter().all(|image| exposed_ports.contains_key(image)) => {
                return;
            }
            _ => {}
        }
        entry.state = ImagesState::Pulling { percent: 0 };
        inner.board.touch(revision);
    }
    let (inner, revision) = (Arc::clone(inner), revision.clone());
    let (images, logins) = (images.to_vec(), logins.to_vec());
    let stop = inner.stop.clone();
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        let Ok(_turn) = inner.looks.acquire().await else { return };
        let progress: Vec<AtomicU8> = images.iter().map(|_| AtomicU8::new(0)).collect();
        let each = images.iter().zip(&progress).map(|(image, done)| {
            let (inner, revision, progress) = (&inner, &revision, &progress);
            pull(inner, revision, image, &logins, move |percent| {
                done.store(percent, Ordering::Relaxed);
                let sum: usize = progress.iter().map(|one| usize::from(one.load(Ordering::Relaxed))).sum();
                let percent = u8::try_from(sum / progress.len().max(1)).unwrap_or(100);
                set(inner, revision, ImagesState::Pulling { percent });
            })
        });
        match try_join_all(each).await {
            Ok(found) => {
                let exposed_ports = found.iter().map(|(text, image)| (text.clone(), only_port(image))).collect();
                if let Some(entry) = lock(&inner.state).images.get_mut(&revision) {
                    entry.found = found.into_iter().collect();
                }
                set(&inner, &revision, ImagesState::Ready { exposed_ports });
            }
            Err(error) => {
                let state = ImagesState::Failed {
                    reason: reason(&error).to_owned(),
                    message: text(&error),
                    retryable: error.is_transient(),
                };
                set(&inner, &revision, state);
            }
        }
    }));
}

async fn pull(
    inner: &Inner,
    revision: &RevisionKey,
    image: &str,
    logins: &[RegistryLogin],
    percent: impl Fn(u8),
) -> Result<(String, Arc<Image>), ImageError> {
    let reference: ImageRef = image.parse()?;
    let begun = std::time::Instant::now();
    event(inner, revision, EventKind::Normal, "PullingImage", format!("Pulling image \"{image}\""));
    let progress = |progress: PullProgress| {
        let total = progress.total_bytes.max(1);
        percent(u8::try_from(progress.fetched_bytes.min(total) * 100 / total).unwrap_or(100));
    };
    let login = login_for(&reference, logins);
    match inner.images.ensure(&reference, login, PullPolicy::Always, progress).await {
        Ok(found) => {
            percent(100);
            let seconds = begun.elapsed().as_secs_f64();
            let message = format!(
                "Successfully pulled image \"{image}\" in {seconds:.3}s. Image size: {} bytes.",
                found.size_bytes
            );
            event(inner, revision, EventKind::Normal, "PulledImage", message);
            Ok((image.to_owned(), found))
        }
        Err(error) => {
            event(inner, revision, EventKind::Warning, reason(&error), text(&error));
            Err(error)
        }
    }
}

/// The image of a replica: what its revision's images were found to be, else what is here, else fetched.
pub(super) async fn image_for(
    inner: &Inner,
    revision: &RevisionKey,
    image: &str,
    logins: &[RegistryLogin],
) -> Result<Arc<Image>, ImageError> {
    let known = lock(&inner.state).images.get(revision).and_then(|images| images.found.get(image).cloned());
    if let Some(image) = known {
        return Ok(image);
    }
    let reference: ImageRef = image.parse()?;
    inner.images.ensure(&reference, login_for(&reference, logins), PullPolicy::IfNotPresent, |_| {}).await
}

fn login_for(reference: &ImageRef, logins: &[RegistryLogin]) -> Option<Credentials> {
    let is_hub = |server: &str| matches!(server, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let login = logins.iter().find(|login| {
        let server = login.server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
        let server = server.split('/').next().unwrap_or(server);
        server.eq_ignore_ascii_case(&reference.registry) || (is_hub(server) && is_hub(&reference.registry))
    })?;
    Some(Credentials { username: login.username.clone(), password: login.password.clone() })
}

fn only_port(image: &Image) -> Option<u16> {
    let mut ports = image.config.exposed_ports.iter().filter_map(|port| match port.split_once('/') {
        Some((number, "tcp")) => number.parse().ok(),
        Some(_) => None,
        None => port.parse().ok(),
    });
    ports.next().filter(|_| ports.next().is_none())
}

/// ACA's word for it.
pub(super) fn reason(error: &ImageError) -> &'static str {
    match error {
        ImageError::WrongPlatform { .. } => "ImageArchitectureMismatch",
        ImageError::InvalidReference(_) => "InvalidImageName",
        ImageError::LoginRefused { .. } => "ImagePullUnauthorized",
        _ => "ImagePullFailure",
    }
}

pub(super) fn text(error: &ImageError) -> String {
    use std::error::Error as _;
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

fn set(inner: &Inner, revision: &RevisionKey, new: ImagesState) {
    let mut state = lock(&inner.state);
    if let Some(entry) = state.images.get_mut(revision)
        && entry.state != new
    {
        entry.state = new;
        inner.board.touch(revision);
    }
}

fn event(inner: &Inner, revision: &RevisionKey, kind: EventKind, reason: &str, message: String) {
    let event = SystemEvent {
        at: inner.config.clock.now(),
        kind,
        reason: reason.to_owned(),
        message,
        environment: None,
        app: Some(revision.app.to_string()),
        revision: Some(revision.name.to_string()),
        replica: None,
        container: None,
        source: "ContainerAppController".to_owned(),
    };
    if inner.events.try_send(event).is_err() {
        tracing::warn!(revision = %revision, reason, "a system event was dropped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_is_found_by_its_server() {
        let login = |server: &str| RegistryLogin {
            server: server.to_owned(),
            username: "u".to_owned(),
            password: "p".to_owned(),
        };
        let logins = [login("https://index.docker.io/v1/"), login("Reg.example:5000")];
        let found = |image: &str| login_for(&image.parse().unwrap(), &logins).is_some();
        assert!(found("nginx"));
        assert!(found("reg.example:5000/a/b:1"));
        assert!(!found("other.example/a"));
    }
}
