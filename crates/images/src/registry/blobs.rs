//! Blobs of the embedded registry: reading with ranges, uploads whole or in pieces.
//!
//! An upload is a temporary file with a running hash in this process. It ends with the process, with a cancel, or when it
//! rests too long; the client then begins again, as the protocol asks.

use std::collections::HashMap;
use std::io::{Seek as _, SeekFrom};
use std::sync::Mutex;
use std::time::Instant;

use axum::body::Body;
use axum::response::Response;
use http::{HeaderMap, Method, StatusCode, header};
use tokio::io::AsyncReadExt as _;
use tokio_util::io::ReaderStream;
use uuid::Uuid;

use super::{Query, Registry, RegistryError, ascii, content_length, next_piece, parsed};
use crate::blobs::BlobWriter;
use crate::digest::Digest;
use crate::pull::{blocking, write};
use crate::store::lock;

/// Bytes gathered before they are handed to the thread that writes files.
const WRITE_BYTES: usize = 512 * 1024;
/// An upload may rest this many times the time one piece may take.
const REST_FACTOR: u32 = 10;

/// The open uploads.
#[derive(Debug, Default)]
pub(super) struct Uploads(Mutex<HashMap<Uuid, Upload>>);

#[derive(Debug)]
struct Upload {
    repository: String,
    used_at: Instant,
    /// Taken out while a request writes to it, so a second one at the same time is refused.
    writer: Option<BlobWriter>,
}

/// A writer taken out of an upload; forgets the upload when it is not put back, because the client went away.
struct Taken<'a> {
    uploads: &'a Uploads,
    id: Uuid,
    writer: Option<BlobWriter>,
}

impl Taken<'_> {
    fn put_back(mut self) {
        if let Some(upload) = lock(&self.uploads.0).get_mut(&self.id) {
            upload.writer = self.writer.take();
            upload.used_at = Instant::now();
        }
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut uploads = lock(&self.uploads.0);
        if uploads.get(&self.id).is_some_and(|upload| upload.writer.is_none()) {
            uploads.remove(&self.id);
        }
    }
}

impl Registry {
    pub(super) async fn get_blob(
        &self,
        digest: &Digest,
        method: &Method,
        headers: &HeaderMap,
    ) -> Result<Response, RegistryError> {
        let blobs = &self.store.0.blobs;
        let size = blobs.size(digest).ok_or_else(|| RegistryError::BlobUnknown(digest.clone()))?;
        // A client that finds a blob here will not push it: it must stay until the manifest comes.
        blobs.touch(digest);
        let mut answer = Response::builder()
            .header(header::CONTENT_TYPE, "application/octet-stream")
            .header(header::ACCEPT_RANGES, "bytes")
            .header(header::ETAG, ascii(format!("\"{digest}\"")))
            .header("docker-content-digest", ascii(digest.as_str()));
        let range = headers.get(header::RANGE).and_then(|value| value.to_str().ok()).and_then(|text| range(text, size));
        let (start, length) = match range {
            None => (0, size),
            Some(Err(())) => return Err(RegistryError::RangeInvalid { size }),
            Some(Ok((first, last))) => {
                answer = answer
                    .status(StatusCode::PARTIAL_CONTENT)
                    .header(header::CONTENT_RANGE, ascii(format!("bytes {first}-{last}/{size}")));
                (first, last + 1 - first)
            }
        };
        answer = answer.header(header::CONTENT_LENGTH, length);
        let body = if method == Method::HEAD {
            Body::empty()
        } else {
            let (blobs, digest) = (blobs.clone(), digest.clone());
            let file = blocking(move || {
                let mut file = blobs.open_blob(&digest)?;
                let path = blobs.path(&digest);
                file.seek(SeekFrom::Start(start)).map_err(|error| crate::ImageError::io("read", &path, error))?;
                Ok(file)
            });
            let file = tokio::fs::File::from_std(file.await?).take(length);
            Body::from_stream(ReaderStream::with_capacity(file, 128 * 1024))
        };
        Ok(answer.body(body).expect("all header values are valid"))
    }

    pub(super) async fn begin_upload(
        &self,
        repository: &str,
        query: &Query,
        body: Body,
    ) -> Result<Response, RegistryError> {
        if let Some(mount) = &query.mount {
            let digest = parsed(mount)?;
            if self.store.0.blobs.touch(&digest) {
                return Ok(stored(repository, &digest));
            }
        }
        let id = self.open_upload(repository)?;
        if query.digest.is_some() {
            return self.finish_upload(repository, &id.to_string(), query, &HeaderMap::new(), body).await;
        }
        Ok(accepted(repository, id, 0))
    }

    fn open_upload(&self, repository: &str) -> Result<Uuid, RegistryError> {
        let writer = Some(self.store.0.blobs.writer()?);
        let mut uploads = lock(&self.uploads.0);
        let rest_max = self.config.idle_max * REST_FACTOR;
        // One that is being written to has no writer in here, and is never idle.
        uploads.retain(|_, upload| upload.writer.is_none() || upload.used_at.elapsed() < rest_max);
        if uploads.len() >= self.config.uploads_max {
            return Err(RegistryError::TooManyUploads);
        }
        let id = Uuid::new_v4();
        uploads.insert(id, Upload { repository: repository.to_owned(), used_at: Instant::now(), writer });
        Ok(id)
    }

    fn take_upload(&self, repository: &str, id: &str) -> Result<Taken<'_>, RegistryError> {
        let id: Uuid = id.parse().map_err(|_| RegistryError::UploadUnknown)?;
        let mut uploads = lock(&self.uploads.0);
        let upload = uploads.get_mut(&id).filter(|upload| upload.repository == repository);
        let writer = upload.ok_or(RegistryError::UploadUnknown)?.writer.take().ok_or_else(|| {
            RegistryError::UploadInvalid(
                "another request is writing to this upload; send one piece after the other".into(),
            )
        })?;
        Ok(Taken { uploads: &self.uploads, id, writer: Some(writer) })
    }

    pub(super) fn upload_status(&self, repository: &str, id: &str) -> Result<Response, RegistryError> {
        let taken = self.take_upload(repository, id)?;
        let (id, size) = (taken.id, taken.writer.as_ref().map_or(0, BlobWriter::size));
        taken.put_back();
        let mut answer = accepted(repository, id, size);
        *answer.status_mut() = StatusCode::NO_CONTENT;
        Ok(answer)
    }

    pub(super) fn cancel_upload(&self, repository: &str, id: &str) -> Result<Response, RegistryError> {
        drop(self.take_upload(repository, id)?);
        Ok(plain(StatusCode::NO_CONTENT))
    }

    pub(super) async fn continue_upload(
        &self,
        repository: &str,
        id: &str,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, RegistryError> {
        let mut taken = self.take_upload(repository, id)?;
        let result = self.receive(&mut taken, repository, headers, body).await;
        let (id, size) = (taken.id, taken.writer.as_ref().map_or(0, BlobWriter::size));
        if taken.writer.is_some() {
            taken.put_back();
        }
        result.map(|()| accepted(repository, id, size))
    }

    pub(super) async fn finish_upload(
        &self,
        repository: &str,
        id: &str,
        query: &Query,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<Response, RegistryError> {
        let Some(digest) = &query.digest else {
            return Err(RegistryError::DigestInvalid("the query must say `digest=sha256:…`".into()));
        };
        let digest = parsed(digest)?;
        let mut taken = self.take_upload(repository, id)?;
        let received = self.receive(&mut taken, repository, headers, body).await;
        if let Err(error) = received {
            if taken.writer.is_some() {
                taken.put_back();
            }
            return Err(error);
        }
        let Some(writer) = taken.writer.take() else { return Err(RegistryError::UploadUnknown) };
        let expected = digest.clone();
        let staged = blocking(move || writer.finish()).await?;
        if staged.digest != expected {
            let text = format!("the upload's digest is {}, not {expected}; send it again", staged.digest);
            return Err(RegistryError::DigestInvalid(text));
        }
        blocking(move || staged.commit()).await?;
        Ok(stored(repository, &digest))
    }

    /// Writes a request's body to the upload.
    async fn receive(
        &self,
        taken: &mut Taken<'_>,
        repository: &str,
        headers: &HeaderMap,
        mut body: Body,
    ) -> Result<(), RegistryError> {
        let Some(mut writer) = taken.writer.take() else { return Err(RegistryError::UploadUnknown) };
        let size = writer.size();
        if let Some(first) = first_byte(headers)
            && first != size
        {
            taken.writer = Some(writer);
            let location = location(repository, taken.id);
            return Err(RegistryError::UploadOutOfOrder { expected: size, location });
        }
        let too_large = || RegistryError::SizeInvalid(format!("a blob may have {} bytes", self.config.blob_size_max));
        if content_length(headers).is_some_and(|length| size.saturating_add(length) > self.config.blob_size_max) {
            return Err(too_large());
        }
        let mut pending = Vec::with_capacity(WRITE_BYTES);
        let mut received = size;
        let ended = loop {
            match next_piece(&mut body, self.config.idle_max).await {
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
                Ok(Some(piece)) => {
                    received += piece.len() as u64;
                    if received > self.config.blob_size_max {
                        return Err(too_large());
                    }
                    pending.extend_from_slice(&piece);
                    if pending.len() >= WRITE_BYTES {
                        (writer, pending) = write(writer, pending).await?;
                    }
                }
            }
        };
        (writer, _) = write(writer, pending).await?;
        taken.writer = Some(writer);
        ended
    }
}

/// `Content-Range: 0-1023`, as the specification writes it, or `bytes 0-1023/4096`, as HTTP does.
fn first_byte(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get(header::CONTENT_RANGE)?.to_str().ok()?;
    text.trim_start_matches("bytes").trim().split('-').next()?.parse().ok()
}

/// Reads `Range: bytes=…` with one range; none for what we do not offer, which HTTP lets us answer whole.
fn range(text: &str, size: u64) -> Option<Result<(u64, u64), ()>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let last_byte = size.checked_sub(1);
    let parsed = match (first.trim(), last.trim()) {
        ("", count) => (size.saturating_sub(count.parse().ok()?), last_byte?),
        (first, "") => (first.parse().ok()?, last_byte.unwrap_or(0)),
        (first, last) => (first.parse().ok()?, last.parse::<u64>().ok()?.min(last_byte.unwrap_or(0))),
    };
    Some(if parsed.0 <= parsed.1 && parsed.0 < size { Ok(parsed) } else { Err(()) })
}

/// The bytes received so far as the protocol writes them; nothing at all is `0-0` by custom.
pub(super) fn received(size: u64) -> String {
    format!("0-{}", size.saturating_sub(1))
}

fn location(repository: &str, id: Uuid) -> String {
    format!("/v2/{repository}/blobs/uploads/{id}")
}

fn plain(status: StatusCode) -> Response {
    let mut answer = Response::new(Body::empty());
    *answer.status_mut() = status;
    answer
}

fn accepted(repository: &str, id: Uuid, size: u64) -> Response {
    let mut answer = plain(StatusCode::ACCEPTED);
    let headers = answer.headers_mut();
    headers.insert(header::LOCATION, ascii(location(repository, id)));
    headers.insert(header::RANGE, ascii(received(size)));
    headers.insert("docker-upload-uuid", ascii(id.to_string()));
    answer
}

fn stored(repository: &str, digest: &Digest) -> Response {
    let mut answer = plain(StatusCode::CREATED);
    let headers = answer.headers_mut();
    headers.insert(header::LOCATION, ascii(format!("/v2/{repository}/blobs/{digest}")));
    headers.insert("docker-content-digest", ascii(digest.as_str()));
    answer
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn ranges_are_read_as_http_writes_them() {
        let mut table = String::new();
        for text in
            ["bytes=0-3", "bytes=4-", "bytes=-2", "bytes=8-100", "bytes=10-", "bytes=3-2", "bytes=-", "items=0-1"]
        {
            table.push_str(&format!("{text} {:?}\n", range(text, 10)));
        }
        table.push_str(&format!("empty {:?}\n", range("bytes=0-", 0)));
        expect![[r#"
            bytes=0-3 Some(Ok((0, 3)))
            bytes=4- Some(Ok((4, 9)))
            bytes=-2 Some(Ok((8, 9)))
            bytes=8-100 Some(Ok((8, 9)))
            bytes=10- Some(Err(()))
            bytes=3-2 Some(Err(()))
            bytes=- None
            items=0-1 None
            empty Some(Err(()))
        "#]]
        .assert_eq(&table);
    }
}
