//! Into a session: commands, a shell, files; what it printed, and what it took.
//!
//! Files of interpreters go through their own file API, so that they are where code finds them; files of anything else, and
//! paths that begin with a slash, go through the container's root, as `containerapp cp` does.
//!
//! **Invariant:** what a session sends is written to the target and nowhere else.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

use futures_util::StreamExt as _;
use serde_json::Value;

use super::{PoolRef, SessionRef};
use crate::{
    client::encode,
    containerapp::{
        cp, exec,
        logs::{self, Kind, StreamArgs},
    },
    failure::Failure,
    output::View,
    session::Session,
    text,
};

/// Options of `session logs`.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    pool: PoolRef,
    /// Of the newest session of this identifier, also one that has ended [default: of all sessions].
    #[arg(short, long, conflicts_with = "session")]
    identifier: Option<String>,
    /// Of the session of this GUID (`x-ms-session-guid`, `sessionId`).
    #[arg(long, value_name = "GUID")]
    session: Option<String>,
    #[command(flatten)]
    stream: StreamArgs,
    /// Output of sessions, or events of the pool and its sessions.
    #[arg(short = 't', long = "type", value_enum, default_value_t = Type::Console)]
    kind: Type,
    /// Print rows of the table AppEnvSessionConsoleLogs_CL as JSON.
    #[arg(long)]
    rows: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Type {
    Console,
    System,
}

/// A command's words as one line that a shell splits into the same words.
fn quoted(words: &[String]) -> String {
    let quote = |word: &String| format!("'{}'", word.replace('\'', "'\\''"));
    words.iter().map(quote).collect::<Vec<_>>().join(" ")
}

/// Runs a command; without words a shell.
pub(super) async fn run(session: &Session, one: &SessionRef, words: &[String]) -> Result<(), Failure> {
    let line = quoted(words);
    exec::talk(session, &one.path(session, ".management/exec"), Some(line.as_str()).filter(|line| !line.is_empty()))
        .await
}

pub(super) async fn logs(session: &Session, args: &LogsArgs) -> Result<(), Failure> {
    if args.kind == Type::System {
        if args.identifier.is_some() || args.session.is_some() {
            return Err(Failure::usage("events are of a pool").hint("leave --identifier and --session out"));
        }
        let path = args.pool.path(session, ".management/eventstream", None);
        return logs::print(session, &path, &args.stream, Kind::System).await;
    }
    let rest = match &args.session {
        Some(guid) => format!(".management/logstream?session={}", encode(guid)),
        None => ".management/logstream".to_owned(),
    };
    let path = args.pool.path(session, &rest, args.identifier.as_deref());
    let kind = if args.rows { Kind::Row } else { Kind::Console };
    logs::print(session, &path, &args.stream, kind).await
}

pub(super) async fn usage(session: &Session, pool: &PoolRef, limit: u32) -> Result<(), Failure> {
    let id = session.client.resource(&pool.group.group, "sessionPools", &pool.name);
    let path = format!("/cove/v1/sessions/usage?pool={}&limit={limit}", encode(&id));
    session.print(session.client.get(&path).await?, View::Plain)
}

/// Whether the pool's sessions have the file API of interpreters.
async fn is_interpreter(session: &Session, pool: &PoolRef) -> Result<bool, Failure> {
    let pool = session.client.get(&pool.path(session, ".management/metadata", None)).await?;
    Ok(pool["containerType"].as_str().is_some_and(|kind| kind != "CustomContainer"))
}

fn tar_path<'a>(session: &'a Session, one: &'a SessionRef) -> impl Fn(&str) -> String + 'a {
    move |path| one.path(session, &format!(".management/files?path={}", encode(path)))
}

pub(super) async fn upload(
    session: &Session,
    one: &SessionRef,
    source: &Path,
    target: Option<&str>,
) -> Result<(), Failure> {
    let is_own_path = target.is_some_and(|target| target.starts_with('/'));
    if is_own_path || !is_interpreter(session, &one.pool).await? {
        let target = target.ok_or_else(|| {
            Failure::usage("where should it go in the session?").hint("add a path, such as /tmp/, as the last word")
        })?;
        return cp::upload(session, source, tar_path(session, one), target).await;
    }
    upload_file(session, one, source, target).await
}

/// To an interpreter, into a folder of it.
pub(super) async fn upload_file(
    session: &Session,
    one: &SessionRef,
    source: &Path,
    target: Option<&str>,
) -> Result<(), Failure> {
    let name = source.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.ok_or_else(|| Failure::usage(format!("`{}` has no file name", source.display())))?;
    let bytes = fs::read(source).map_err(|error| Failure::new(format!("`{}`: {error}", source.display())))?;
    let folder = target.map(|target| format!("?path={}", encode(target))).unwrap_or_default();
    let path = one.path(session, &format!("files{folder}"));
    let made: Value = session.client.post_file(&path, &name, bytes).await?;
    session.print(made, View::Plain)
}

pub(super) async fn download(
    session: &Session,
    one: &SessionRef,
    source: &str,
    target: Option<&Path>,
) -> Result<(), Failure> {
    let name = source.trim_end_matches('/').rsplit('/').next().unwrap_or(source);
    let here = PathBuf::from(".");
    let target = target.unwrap_or(&here);
    if source.starts_with('/') || !is_interpreter(session, &one.pool).await? {
        return cp::download(session, &tar_path(session, one)(source), target).await;
    }
    if matches!(name, "" | "." | "..") {
        return Err(Failure::usage(format!("`{source}` names no file")));
    }
    let encoded: Vec<String> = source.split('/').map(encode).collect();
    let path = one.path(session, &format!("files/{}/content", encoded.join("/")));
    let target = if target.is_dir() { target.join(name) } else { target.to_owned() };
    let mut pieces = session.client.stream(&path).await?.bytes_stream();
    let mut file =
        fs::File::create(&target).map_err(|error| Failure::new(format!("`{}`: {error}", target.display())))?;
    let mut bytes = 0_u64;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(|error| Failure::new(format!("the file broke off: {error}")))?;
        file.write_all(&piece)?;
        bytes += piece.len() as u64;
    }
    text::note(&format!("`{}`: {bytes} bytes", target.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stay_words() {
        let words = ["sh", "-c", "echo 'a b' \"$HOME\"", ""].map(str::to_owned);
        assert_eq!(quoted(&words), r#"'sh' '-c' 'echo '\''a b'\'' "$HOME"' ''"#);
        assert_eq!(quoted(&[]), "");
    }
}
