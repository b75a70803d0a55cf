//! Files of a sandbox: read, write, list, stat, make, move, remove, each by a small shell script that runs in the sandbox.
//!
//! So a file is what the sandbox's own programs see, with their rights, in any image that has a shell and Debian's `coreutils`
//! and `findutils`. A relative path begins at `/mnt/data` in built-in kinds and at the image's working directory in others.
//!
//! **Invariant:** a file is written whole or not at all: it is moved to its place when all of it has come.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use cove_model::SessionContainer;
use cove_runtime::{ExecError, ExecRequest, ExecSession};
use futures_util::{Stream, StreamExt as _, TryStreamExt as _, stream};
use http::{HeaderValue, Method, Request, header};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, timeout, timeout_at};

use super::{E2b, Sandbox, api, connect, not_built};
use crate::{Lease, answer::Refused, form::Form, service::Service};

/// What scripts begin with: `$1` is where relative paths begin, `$2` the path.
const PATH: &str = r#"export LC_ALL=C; b=${1:-$PWD}; full() { case "$1" in /*) p=$1;; '~'|'~/'*) p=$b${1#'~'};; *) p=$b/$1;; esac; }; full "$2"; "#;
/// Ends of scripts that mean something.
const NOT_FOUND: i32 = 44;
const WRONG_KIND: i32 = 45;
const DENIED: i32 = 46;
const EXISTS: i32 = 47;
/// Longest script that moves no contents.
const SHORT: Duration = Duration::from_secs(60);
/// Longest transfer of a file.
const TRANSFER: Duration = Duration::from_secs(600);
/// Bytes that scripts may say.
const SAID_MAX: usize = 8 << 20;
const COMPLAINT_MAX: usize = 4 << 10;
/// Files of one upload.
const FILES_MAX: usize = 100;
/// Bytes of a path.
const PATH_MAX: usize = 4096;
/// An entry as `find` prints it.
const ENTRY: &str = r"%y\0%s\0%m\0%M\0%u\0%g\0%T@\0%l\0%p\0";
const ENTRY_FIELDS: usize = 9;
/// Entries of one listing; one is shown with some hundred bytes, however short it was printed.
const ENTRIES_MAX: usize = 10_000;

/// What a script said and how it ended.
struct Said {
    stdout: Vec<u8>,
    stderr: String,
    code: i32,
}

impl Service {
    /// `GET files?path=` and `POST files[?path=]`.
    pub(super) async fn e2b_files(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        sandbox: &Sandbox,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let query = request.uri().query().unwrap_or_default().to_owned();
        let path = crate::service::parameter(&query.replace('+', "%20"), "path")?;
        let lease = self.lease_of(sandbox).await?;
        if request.method() == Method::GET {
            return self.read_file(e2b, lease, &checked(path.as_deref().unwrap_or_default())?).await;
        }
        // a task of its own: what a client left half written is removed when the client is gone too
        let (service, e2b) = (Arc::clone(self), Arc::clone(e2b));
        let writing = tokio::spawn(async move {
            // each file has its limit; this one is for what comes between files
            timeout(TRANSFER + SHORT, service.write_files(&e2b, &lease, path, request)).await.map_err(|_| late())?
        });
        writing
            .await
            .map_err(|error| Refused::new(500, "InternalServerError", format!("The upload ended: {error}.")))?
    }

    async fn read_file(&self, e2b: &E2b, lease: Lease, path: &str) -> Result<Response, Refused> {
        let script = format!(
            r#"[ -e "$p" ] || exit {NOT_FOUND}; [ -d "$p" ] && exit {WRONG_KIND}; [ -r "$p" ] || exit {DENIED}; exec cat "$p""#
        );
        let mut session = self.script(e2b, &lease, &script, &[path]).await?;
        let idle = self.limits.idle_timeout;
        let (mut first, mut complaint) = (None, Vec::new());
        while first.is_none() {
            match timeout(idle, session.output.recv()).await.map_err(|_| silent(idle))? {
                Some((1, bytes)) => first = Some(bytes),
                Some((_, bytes)) => keep(&mut complaint, &bytes, COMPLAINT_MAX),
                None => {
                    let code = ended(session).await?;
                    check(&Said { stdout: Vec::new(), stderr: text(&complaint), code }, path)?;
                    return Ok(Response::new(Body::empty()));
                }
            }
        }
        let begun = stream::iter(first.map(|bytes| Ok(Bytes::from(bytes))));
        let body = Body::from_stream(begun.chain(rest_of(session, lease, idle)));
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        Ok(response)
    }

    async fn write_files(
        &self,
        e2b: &E2b,
        lease: &Lease,
        path: Option<String>,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        if request.headers().contains_key(header::CONTENT_ENCODING) {
            return Err(not_built("Compressed uploads are not built; send the file as it is"));
        }
        let kind =
            request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let limit = (self.limits.body_bytes_max, Instant::now() + TRANSFER);
        let mut written = Vec::new();
        if let Ok(boundary) = multer::parse_boundary(kind) {
            let mut form = Form::new(request.into_body(), boundary, limit.0);
            while let Some(field) = form.next_field().await.map_err(|error| no_form(&error))? {
                if written.len() >= FILES_MAX {
                    return Err(invalid(format!("An upload has at most {FILES_MAX} files.")));
                }
                // the path of the query names the only file; of several each has its own
                let name = path.clone().or_else(|| field.file_name().map(str::to_owned)).unwrap_or_default();
                let pieces = field.map_err(|error| no_form(&error));
                written.push(self.write_file(e2b, lease, &checked(&name)?, pieces, limit).await?);
            }
        } else {
            let pieces = request.into_body().into_data_stream();
            let pieces = pieces.map_err(|_| invalid("The upload was cut off.".to_owned()));
            let name = checked(path.as_deref().unwrap_or_default())?;
            written.push(self.write_file(e2b, lease, &name, pieces, limit).await?);
        }
        if written.is_empty() {
            return Err(invalid("The upload has no file.".to_owned()));
        }
        Ok(axum::Json(written).into_response())
    }

    async fn write_file(
        &self,
        e2b: &E2b,
        lease: &Lease,
        path: &str,
        pieces: impl Stream<Item = Result<Bytes, Refused>>,
        (bytes_max, deadline): (u64, Instant),
    ) -> Result<Value, Refused> {
        let part = format!(".cove-{}", uuid::Uuid::new_v4().simple());
        let into = format!(
            r#"[ -d "$p" ] && exit {WRONG_KIND}; d=${{p%/*}}; d=${{d:-/}}; mkdir -p "$d" && exec cat > "$d/$3""#
        );
        let ExecSession { stdin, output, exit, .. } = self.script(e2b, lease, &into, &[path, &part]).await?;
        let both = async { tokio::join!(feed(stdin, pieces, bytes_max), hear(output, exit)) };
        let taken = match timeout_at(deadline, both).await {
            Ok((fed, said)) => fed.and_then(|()| check(&said?, path)),
            Err(_) => Err(late()),
        };
        if let Err(refused) = taken {
            let away = r#"d=${p%/*}; rm -f "${d:-/}/$3""#;
            drop(self.said(e2b, lease, away, &[path, &part]).await);
            return Err(refused);
        }
        let moved = r#"d=${p%/*}; mv -f "${d:-/}/$3" "$p" && printf %s "$p""#;
        let said = self.said(e2b, lease, moved, &[path, &part]).await?;
        check(&said, path)?;
        let full = text(&said.stdout);
        let name = full.rsplit('/').next().unwrap_or_default();
        Ok(json!({ "name": name, "type": "file", "path": full }))
    }

    /// The calls of `filesystem.Filesystem`.
    pub(super) async fn e2b_filesystem(
        self: &Arc<Self>,
        e2b: &Arc<E2b>,
        sandbox: &Sandbox,
        path: &str,
        request: Request<Body>,
    ) -> Result<Response, Refused> {
        let name = path.rsplit('/').next().unwrap_or_default().to_owned();
        let answered = async {
            let asked = api::body(request).await?;
            let lease = self.lease_of(sandbox).await?;
            self.call(e2b, &lease, &name, &asked).await
        };
        Ok(connect::unary(answered.await))
    }

    async fn call(&self, e2b: &E2b, lease: &Lease, name: &str, asked: &Map<String, Value>) -> Result<Value, Refused> {
        let field = |name: &str| checked(asked.get(name).and_then(Value::as_str).unwrap_or_default());
        match name {
            "Stat" => Ok(json!({ "entry": self.stat(e2b, lease, &field("path")?).await? })),
            "ListDir" => {
                let path = field("path")?;
                let depth = asked.get("depth").and_then(Value::as_u64).unwrap_or(1).clamp(1, 64);
                let script = format!(
                    r#"[ -e "$p" ] || exit {NOT_FOUND}; [ -d "$p" ] || exit {WRONG_KIND}; exec find "$p" -mindepth 1 -maxdepth {depth} -printf '{ENTRY}'"#
                );
                let said = self.said(e2b, lease, &script, &[&path]).await?;
                check(&said, &path)?;
                Ok(json!({ "entries": entries(&said.stdout)? }))
            }
            "MakeDir" => {
                let path = field("path")?;
                let script =
                    format!(r#"[ -d "$p" ] && exit {EXISTS}; [ -e "$p" ] && exit {WRONG_KIND}; exec mkdir -p "$p""#);
                check(&self.said(e2b, lease, &script, &[&path]).await?, &path)?;
                Ok(json!({ "entry": self.stat(e2b, lease, &path).await? }))
            }
            "Move" => {
                let (from, to) = (field("source")?, field("destination")?);
                let script = format!(
                    r#"[ -e "$p" ] || [ -L "$p" ] || exit {NOT_FOUND}; f=$p; full "$3"; d=${{p%/*}}; mkdir -p "${{d:-/}}" && exec mv -T "$f" "$p""#
                );
                check(&self.said(e2b, lease, &script, &[&from, &to]).await?, &from)?;
                Ok(json!({ "entry": self.stat(e2b, lease, &to).await? }))
            }
            "Remove" => {
                let path = field("path")?;
                check(&self.said(e2b, lease, r#"exec rm -rf "$p""#, &[&path]).await?, &path)?;
                Ok(json!({}))
            }
            _ => Err(not_built("Watching folders is not built")),
        }
    }

    async fn stat(&self, e2b: &E2b, lease: &Lease, path: &str) -> Result<Value, Refused> {
        let script =
            format!(r#"[ -e "$p" ] || [ -L "$p" ] || exit {NOT_FOUND}; exec find "$p" -maxdepth 0 -printf '{ENTRY}'"#);
        let said = self.said(e2b, lease, &script, &[path]).await?;
        check(&said, path)?;
        entries(&said.stdout)?.into_iter().next().ok_or_else(|| Refused::unreachable("it told nothing of a file"))
    }

    /// Runs a script to its end.
    async fn said(&self, e2b: &E2b, lease: &Lease, script: &str, words: &[&str]) -> Result<Said, Refused> {
        let ExecSession { stdin, output, exit, .. } = self.script(e2b, lease, script, words).await?;
        drop(stdin);
        timeout(SHORT, hear(output, exit)).await.map_err(|_| silent(SHORT))?
    }

    /// Starts a script; `words` are a path and what else it needs.
    async fn script(&self, e2b: &E2b, lease: &Lease, script: &str, words: &[&str]) -> Result<ExecSession, Refused> {
        let home = self.home_of(lease);
        let mut command = vec!["sh".to_owned(), "-c".to_owned(), format!("{PATH}{script}"), "cove".to_owned(), home];
        command.extend(words.iter().map(|&word| word.to_owned()));
        self.exec_in(e2b, lease, command, false).await
    }

    /// Where relative paths begin; empty: where the image's working directory is.
    pub(super) fn home_of(&self, lease: &Lease) -> String {
        let pool = self.ports.pools.pool(&lease.allocation.session.pool);
        let is_custom = pool.is_none_or(|pool| pool.container == SessionContainer::Custom);
        if is_custom { String::new() } else { "/mnt/data".to_owned() }
    }

    /// Runs a command in the session's container.
    pub(super) async fn exec_in(
        &self,
        e2b: &E2b,
        lease: &Lease,
        command: Vec<String>,
        tty: bool,
    ) -> Result<ExecSession, Refused> {
        let session = &lease.allocation.session;
        let details = self.ports.pools.details(&session.pool).ok_or_else(Refused::unknown_pool)?;
        let replica = session.replica.clone();
        let request = ExecRequest { replica, container: details.container, command, tty, is_debug: false };
        (e2b.exec)(request).await.map_err(|error| match error {
            ExecError::NotRunning { .. } => Refused::new(502, "SandboxNotFound", "The sandbox does not run any more."),
            ExecError::Failed(why) => {
                Refused::new(400, "CommandNotStarted", format!("The command could not be started: {why}."))
            }
            ExecError::NotOnThisHost(why) => Refused::new(501, "NotImplemented", format!("{why}.")),
            ExecError::Unsupported => not_built("Commands in sandboxes are not built for this runtime"),
        })
    }
}

fn late() -> Refused {
    Refused::new(408, "UploadTimeout", format!("The upload took longer than {} s.", TRANSFER.as_secs()))
}

/// Passes a file on; ends early, without an error, when the script does not want any more.
async fn feed(
    stdin: tokio::sync::mpsc::Sender<Vec<u8>>,
    pieces: impl Stream<Item = Result<Bytes, Refused>>,
    limit: u64,
) -> Result<(), Refused> {
    let mut pieces = std::pin::pin!(pieces);
    let mut count = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece?;
        count += piece.len() as u64;
        if count > limit {
            return Err(Refused::new(413, "FileTooLarge", format!("An upload has at most {} MiB.", limit >> 20)));
        }
        if stdin.send(piece.to_vec()).await.is_err() {
            break;
        }
    }
    Ok(())
}

/// All that a script says, within limits, and how it ended.
async fn hear(
    mut output: tokio::sync::mpsc::Receiver<(u8, Vec<u8>)>,
    exit: tokio::sync::oneshot::Receiver<i32>,
) -> Result<Said, Refused> {
    let (mut stdout, mut complaint) = (Vec::new(), Vec::new());
    while let Some((stream, bytes)) = output.recv().await {
        if stream == 1 { keep(&mut stdout, &bytes, SAID_MAX) } else { keep(&mut complaint, &bytes, COMPLAINT_MAX) }
    }
    let code = timeout(SHORT, exit).await.map_err(|_| silent(SHORT))?;
    let code = code.map_err(|_| Refused::unreachable("it ended while a command ran"))?;
    Ok(Said { stdout, stderr: text(&complaint), code })
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8], max: usize) {
    let room = max.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

async fn ended(session: ExecSession) -> Result<i32, Refused> {
    let code = timeout(SHORT, session.exit).await.map_err(|_| silent(SHORT))?;
    code.map_err(|_| Refused::unreachable("it ended while a command ran"))
}

/// What follows of a file; a file whose reading failed is cut, not taken for the whole.
fn rest_of(
    session: ExecSession,
    lease: Lease,
    idle: Duration,
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send + 'static {
    let broken = |words: &str| std::io::Error::other(words.to_owned());
    stream::try_unfold(Some((session, lease)), move |state| async move {
        let Some((mut session, lease)) = state else { return Ok(None) };
        loop {
            match timeout(idle, session.output.recv()).await {
                Err(_) => return Err(broken("the sandbox is silent")),
                Ok(Some((1, bytes))) => return Ok(Some((Bytes::from(bytes), Some((session, lease))))),
                Ok(Some(_)) => {}
                Ok(None) => {
                    return match ended(session).await {
                        Ok(0) => Ok(None),
                        _ => Err(broken("the file could not be read to its end")),
                    };
                }
            }
        }
    })
}

/// What the end of a script means.
fn check(said: &Said, path: &str) -> Result<(), Refused> {
    let shown: String = path.chars().filter(|c| !c.is_control()).take(200).collect();
    let (status, code, words) = match said.code {
        0 => return Ok(()),
        NOT_FOUND => (404, "FileNotFound", format!("`{shown}` does not exist.")),
        WRONG_KIND => (
            400,
            "InvalidFileName",
            format!("`{shown}` is a folder where a file is meant, or a file where a folder is."),
        ),
        DENIED => (403, "PermissionDenied", format!("`{shown}` must not be read by the sandbox's user.")),
        EXISTS => (409, "FileExists", format!("`{shown}` is there already.")),
        code => {
            let complaint: String = said.stderr.trim().chars().filter(|c| !c.is_control()).take(300).collect();
            let (status, name) = [
                ("No space left", (507, "SessionDiskFull")),
                ("Permission denied", (403, "PermissionDenied")),
                ("Read-only file system", (403, "PermissionDenied")),
            ]
            .into_iter()
            .find(|(text, _)| complaint.contains(text))
            .map_or((400, "InvalidFileName"), |(_, found)| found);
            (status, name, format!("`{shown}` cannot be used (exit code {code}): {complaint}."))
        }
    };
    Err(Refused::new(status, code, words))
}

/// Entries as `find` printed them, one after the other: what a session prints short would be long if all were split first.
fn entries(stdout: &[u8]) -> Result<Vec<Value>, Refused> {
    let too_many = || Refused::new(413, "TooManyFiles", "The folder has too many entries; list with a smaller depth.");
    if stdout.len() >= SAID_MAX {
        return Err(too_many());
    }
    let mut rest = stdout.split(|byte| *byte == 0).map(text);
    let mut found = Vec::new();
    loop {
        let fields: Vec<String> = rest.by_ref().take(ENTRY_FIELDS).collect();
        if fields.len() < ENTRY_FIELDS {
            return Ok(found);
        }
        if found.len() >= ENTRIES_MAX {
            return Err(too_many());
        }
        found.push(entry(&fields).ok_or_else(|| Refused::unreachable("it told of a file that cannot be"))?);
    }
}

fn entry(fields: &[String]) -> Option<Value> {
    let [kind, size, mode, permissions, owner, group, modified, target, path] = fields else { return None };
    let seconds: f64 = modified.parse().ok()?;
    let modified_at = Timestamp::UNIX_EPOCH.checked_add(Duration::try_from_secs_f64(seconds.max(0.0)).ok()?).ok()?;
    let kind = match kind.as_str() {
        "f" => "FILE_TYPE_FILE",
        "d" => "FILE_TYPE_DIRECTORY",
        "l" => "FILE_TYPE_SYMLINK",
        _ => "FILE_TYPE_UNSPECIFIED",
    };
    let mut shown = json!({
        "name": path.trim_end_matches('/').rsplit('/').next(),
        "type": kind,
        "path": path,
        "size": size.parse::<u64>().ok()?.to_string(),
        "mode": u32::from_str_radix(mode, 8).ok()?,
        "permissions": permissions.get(1..)?,
        "owner": owner,
        "group": group,
        "modifiedTime": modified_at.to_string(),
    });
    if kind == "FILE_TYPE_SYMLINK" {
        shown["symlinkTarget"] = target.as_str().into();
    }
    Some(shown)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn invalid(words: String) -> Refused {
    Refused::new(400, "InvalidUpload", words)
}

fn no_form(error: &multer::Error) -> Refused {
    invalid(format!("The upload is no form (multipart/form-data): {error}."))
}

fn silent(within: Duration) -> Refused {
    Refused::new(504, "SessionTimeout", format!("The sandbox said nothing within {} s.", within.as_secs()))
}

/// A path that can be handed to a program.
fn checked(path: &str) -> Result<String, Refused> {
    if path.is_empty() || path.len() > PATH_MAX || path.contains('\0') {
        let words = format!("`path` is missing, longer than {PATH_MAX} bytes or has a zero byte.");
        return Err(Refused::new(400, "InvalidFileName", words));
    }
    Ok(path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_and_broken_ones_refused() {
        let fields = ["f", "5", "644", "-rw-r--r--", "user", "1000", "1700000000.5000000000", "", "/mnt/data/a\tb\n"];
        let mut printed: Vec<u8> = fields.join("\0").into_bytes();
        printed.push(0);
        let found = entries(&printed).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["path"], "/mnt/data/a\tb\n");
        assert_eq!(found[0]["size"], "5");
        assert_eq!(found[0]["mode"], 0o644);
        assert_eq!(found[0]["permissions"], "rw-r--r--");
        assert_eq!(found[0]["modifiedTime"], "2023-11-14T22:13:20.5Z");
        assert!(entries(b"").unwrap().is_empty());
        assert!(entries(b"f\0x\x00644\0-\0u\0g\x001\0\0/p\0").is_err());
    }

    #[test]
    fn a_listing_has_a_limit() {
        let one = b"f\x001\x00644\0-rw\0u\0g\x001\0\0/p\0";
        assert_eq!(entries(&one.repeat(ENTRIES_MAX)).unwrap().len(), ENTRIES_MAX);
        let cut = [&one.repeat(2)[..], b"f\x001\0"].concat();
        assert_eq!(entries(&cut).unwrap().len(), 2);
        assert_eq!(entries(&one.repeat(ENTRIES_MAX + 1)).unwrap_err().error.status, 413);
    }

    #[test]
    fn ends_of_scripts_mean_something() {
        let said = |code, stderr: &str| Said { stdout: Vec::new(), stderr: stderr.to_owned(), code };
        for (said, status) in [
            (said(NOT_FOUND, ""), 404),
            (said(WRONG_KIND, ""), 400),
            (said(EXISTS, ""), 409),
            (said(1, "cat: write error: No space left on device"), 507),
            (said(1, "mkdir: cannot create directory '/proc/x': Permission denied"), 403),
            (said(127, "sh: find: not found"), 400),
        ] {
            assert_eq!(check(&said, "p").unwrap_err().error.status, status, "{}", said.stderr);
        }
        assert!(check(&said(0, "a warning"), "p").is_ok());
    }
}
