//! Files of a session: upload, list, show, fetch, delete, in both generations' shapes.
//!
//! An upload is a form whose part `file` goes to the session as it comes, so its size costs no memory here. Names are
//! checked by the session's server as well, which alone can follow folders safely; here what cannot be a name is refused
//! before a session is allocated.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use axum::{body::Body, response::Response};
use futures_util::{StreamExt as _, TryStreamExt as _};
use http::{HeaderValue, Method, Request, StatusCode, header};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::{Value, json};

use super::{Call, DRAINED_MAX, answered, guest::Question, outcome::first, written, wrong_method};
use crate::{
    answer::Refused,
    form::Form,
    forward::mark,
    service::{Service, parameter},
};

/// Bytes of one uploaded file, as Azure's limit.
const FILE_MAX: u64 = 128 << 20;
/// Bytes of a form around its file. What is longer than both is not even read to its end.
const FORM_MAX: u64 = FILE_MAX + (16 << 20);
/// Bytes of a name with its folders.
const NAME_MAX: usize = 4096;
/// Most that is listed.
const LISTED_MAX: usize = 10_000;
/// Longest upload.
const UPLOAD_LIMIT: Duration = Duration::from_secs(600);

/// A file or folder, as the session says it.
#[derive(Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    kind: String,
    #[serde(rename = "contentType", default)]
    content_type: Option<String>,
    #[serde(rename = "sizeInBytes")]
    size: u64,
    #[serde(rename = "lastModifiedAt")]
    modified_at: jiff::Timestamp,
}

#[derive(Deserialize)]
struct Entries {
    #[serde(deserialize_with = "first::<_, _, LISTED_MAX>")]
    value: Vec<Entry>,
}

impl Entry {
    fn is_usable(&self) -> bool {
        self.name.len() <= 1024 && matches!(self.kind.as_str(), "file" | "directory" | "other")
    }

    fn shown(&self, is_newer: bool) -> Value {
        if is_newer {
            let media = self.content_type.as_ref().filter(|kind| kind.len() <= 100);
            return json!({
                "name": self.name,
                "type": self.kind,
                "contentType": media,
                "sizeInBytes": self.size,
                "lastModifiedAt": self.modified_at.to_string(),
            });
        }
        json!({ "properties": {
            "filename": self.name,
            "size": self.size,
            "lastModifiedTime": self.modified_at.to_string(),
        }})
    }
}

/// Answers `files…`; `path` is what stands behind it.
pub(super) async fn answer(
    service: &Arc<Service>,
    call: &Call,
    method: Method,
    path: &[&str],
    request: Request<Body>,
) -> Result<Response, Refused> {
    match (method, path) {
        (Method::GET, []) => list(service, call).await,
        (Method::POST, []) => upload(service, call, true, request).await,
        (Method::POST, ["upload"]) => upload(service, call, false, request).await,
        // a folder is named by the query, so these words are no folders of either generation
        (Method::GET, [name @ .., "content"]) if !name.is_empty() && (call.is_newer || name[0] != "content") => {
            fetch(service, call, &name_of(call, name)?).await
        }
        (Method::GET, ["content", name @ ..]) if !name.is_empty() => fetch(service, call, &name_of(call, name)?).await,
        (Method::GET, name) => show(service, call, &name_of(call, name)?).await,
        (Method::DELETE, ["content", name @ ..]) if !call.is_newer && !name.is_empty() => {
            delete(service, call, &name_of(call, name)?).await
        }
        (Method::DELETE, name) if !name.is_empty() => delete(service, call, &name_of(call, name)?).await,
        _ => Err(wrong_method()),
    }
}

fn invalid_name() -> Refused {
    let words = "A file name has parts of at most 255 bytes between slashes, none of them `.` or `..`, and no control characters.";
    Refused::new(400, "InvalidFileName", words)
}

fn checked(name: String) -> Result<String, Refused> {
    let is_part = |part: &str| !matches!(part, "." | "..") && part.len() <= 255;
    let is_good = name.len() <= NAME_MAX && !name.contains(char::is_control) && name.split('/').all(is_part);
    if is_good { Ok(name) } else { Err(invalid_name()) }
}

/// The folder that the query names; empty for the session's own.
fn folder(call: &Call) -> Result<String, Refused> {
    checked(parameter(&call.query, "path")?.unwrap_or_default())
}

fn name_of(call: &Call, parts: &[&str]) -> Result<String, Refused> {
    // a slash that was written as %2F is part of the path like any other
    join(&folder(call)?, &parts.join("/"))
}

fn join(folder: &str, name: &str) -> Result<String, Refused> {
    let name = checked(name.to_owned())?;
    if name.trim_matches('/').is_empty() {
        return Err(invalid_name());
    }
    Ok(if folder.is_empty() { name } else { format!("{}/{name}", folder.trim_end_matches('/')) })
}

async fn list(service: &Arc<Service>, call: &Call) -> Result<Response, Refused> {
    let folder = folder(call)?;
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let (found, room): (Entries, _) = service.ask(&lease, Question::file(Method::GET, "/files", &folder)).await?;
    let usable = found.value.iter().filter(|entry| entry.is_usable());
    let value: Vec<Value> = usable.map(|entry| entry.shown(call.is_newer)).collect();
    Ok(answered(200, (written(&json!({ "value": value })), room), &lease, call.begun, sent))
}

async fn show(service: &Arc<Service>, call: &Call, name: &str) -> Result<Response, Refused> {
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let (found, room): (Entry, _) = service.ask(&lease, Question::file(Method::GET, "/file", name)).await?;
    usable(&found)?;
    Ok(answered(200, (written(&found.shown(call.is_newer)), room), &lease, call.begun, sent))
}

fn usable(entry: &Entry) -> Result<(), Refused> {
    if entry.is_usable() { Ok(()) } else { Err(Refused::unreachable("it told of a file that cannot be")) }
}

async fn fetch(service: &Arc<Service>, call: &Call, name: &str) -> Result<Response, Refused> {
    let lease = call.lease(service).await?;
    let (sent, guid) = (Instant::now(), lease.allocation.session.guid.clone());
    let (body, length) = service.fetch(lease, Question::file(Method::GET, "/content", name)).await?;
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    // never a page or a script at the address of the API, whatever the file is
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(length) = length {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    mark(headers, &guid, sent.elapsed(), call.begun);
    Ok(response)
}

async fn delete(service: &Arc<Service>, call: &Call, name: &str) -> Result<Response, Refused> {
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let (IgnoredAny, _room) = service.ask(&lease, Question::file(Method::DELETE, "/file", name)).await?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    mark(response.headers_mut(), &lease.allocation.session.guid, sent.elapsed(), call.begun);
    Ok(response)
}

fn too_large() -> Refused {
    Refused::new(413, "FileTooLarge", format!("A file has at most {} MiB ({FILE_MAX} bytes).", FILE_MAX >> 20))
}

fn no_form(why: impl std::fmt::Display) -> Refused {
    let words = format!("The upload must be a form (multipart/form-data) whose part `file` is the file: {why}.");
    Refused::new(400, "InvalidUpload", words)
}

/// Takes a form and passes its file on.
async fn upload(
    service: &Arc<Service>,
    call: &Call,
    is_newer: bool,
    request: Request<Body>,
) -> Result<Response, Refused> {
    let folder = folder(call)?;
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let boundary = multer::parse_boundary(kind).map_err(no_form)?;
    let length = request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if length.is_some_and(|length: u64| length > FORM_MAX) {
        return Err(too_large());
    }
    let mut form = Form::new(request.into_body(), boundary, FORM_MAX);
    let uploaded = tokio::time::timeout(UPLOAD_LIMIT, pass_on(service, call, (&folder, is_newer), &mut form)).await;
    let uploaded = uploaded.unwrap_or_else(|_| {
        Err(Refused::new(408, "UploadTimeout", format!("The upload took longer than {} s.", UPLOAD_LIMIT.as_secs())))
    });
    if uploaded.is_err() {
        // a client that is cut off while it sends may never read why: what is left is read, within limits
        let _ = tokio::time::timeout(Duration::from_secs(30), form.pass_over(DRAINED_MAX)).await;
    }
    uploaded
}

async fn pass_on(
    service: &Arc<Service>,
    call: &Call,
    (folder, is_newer): (&str, bool),
    form: &mut Form,
) -> Result<Response, Refused> {
    let field = loop {
        let Some(field) = form.next_field().await.map_err(no_form)? else {
            return Err(no_form("there is no such part"));
        };
        if field.name() == Some("file") {
            break field;
        }
    };
    let name = join(folder, field.file_name().ok_or_else(|| no_form("it has no file name"))?)?;
    let lease = call.lease(service).await?;
    let sent = Instant::now();
    let is_too_large = Arc::new(AtomicBool::new(false));
    let (flag, mut count) = (Arc::clone(&is_too_large), 0);
    let counted = field.map_err(std::io::Error::other).map(move |piece| {
        let piece = piece?;
        count += piece.len() as u64;
        if count > FILE_MAX {
            flag.store(true, Ordering::Release);
            return Err(std::io::Error::other("the file is too large"));
        }
        Ok(piece)
    });
    let question = Question {
        method: Method::PUT,
        route: "/file",
        path: Some(name),
        body: Body::from_stream(counted),
        within: UPLOAD_LIMIT,
    };
    let stored: Result<(Entry, _), Refused> = service.ask(&lease, question).await;
    if is_too_large.load(Ordering::Acquire) {
        return Err(too_large());
    }
    let (stored, room) = stored?;
    usable(&stored)?;
    let shown = stored.shown(is_newer);
    let shown = if is_newer { shown } else { json!({ "value": [shown] }) };
    Ok(answered(200, (written(&shown), room), &lease, call.begun, sent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_folder() {
        for good in ["a.txt", "a/b/c", "/mnt/data/a", "ä ö", "...", "a..b"] {
            assert!(join("", good).is_ok(), "{good}");
        }
        let long = "x".repeat(256);
        for bad in ["", "/", "..", "a/../b", "./a", "a\0b", "a\nb", &long, &"a/".repeat(2100)] {
            assert!(join("", bad).is_err(), "{bad}");
        }
        assert_eq!(join("/mnt/data/", "a").unwrap(), "/mnt/data/a");
    }
}
