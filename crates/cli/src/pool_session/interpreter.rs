//! `cove session code-interpreter`: code and files of interpreters, with the words of az's `containerapp` extension.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use futures_util::StreamExt as _;
use reqwest::Method;
use serde_json::json;

use super::{SessionRef, tools};
use crate::{client::encode, failure::Failure, file, output::View, session::Session};

/// What an answer may take besides the code's own time: a session that is made, others' code before it.
const AROUND_SECONDS: u64 = 300;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum CodeInterpreterCommand {
    /// Run code in the interpreter of an identifier's session, whose variables stay; a new identifier gets a session.
    Execute {
        #[command(flatten)]
        session: SessionRef,
        #[command(flatten)]
        place: Place,
        /// Code, or `@FILE`; of pools of kind Shell a command.
        #[arg(long)]
        code: String,
        /// Seconds after which it is interrupted, 1 to 220 [default: 60].
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=220))]
        timeout_in_seconds: Option<u32>,
    },
    /// Put a file into the session of an identifier.
    UploadFile {
        #[command(flatten)]
        session: SessionRef,
        #[command(flatten)]
        place: Place,
        /// A file here.
        #[arg(long)]
        filepath: PathBuf,
        /// Folder in the session [default: /mnt/data].
        #[arg(long)]
        path: Option<String>,
    },
    /// List the files of a folder.
    ListFiles {
        #[command(flatten)]
        session: SessionRef,
        #[command(flatten)]
        place: Place,
        /// Folder in the session [default: /mnt/data].
        #[arg(long)]
        path: Option<String>,
    },
    /// Show the size and the time of a file.
    ShowFileMetadata(FileArgs),
    /// Print a file.
    ShowFileContent(FileArgs),
    /// Delete a file.
    DeleteFile {
        #[command(flatten)]
        file: FileArgs,
        /// Do not ask.
        #[arg(short, long)]
        yes: bool,
    },
}

/// A file of a session.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct FileArgs {
    #[command(flatten)]
    session: SessionRef,
    #[command(flatten)]
    place: Place,
    /// Its name.
    #[arg(long)]
    filename: String,
    /// Folder in the session [default: /mnt/data].
    #[arg(long)]
    path: Option<String>,
}

/// What only az needs.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Place {
    /// Location of the pool; any: sessions are where the server is.
    #[arg(long, value_name = "LOCATION")]
    session_pool_location: Option<String>,
}

impl FileArgs {
    fn url(&self, session: &Session, rest: &str) -> String {
        let folder = self.path.as_ref().map(|path| format!("?path={}", encode(path))).unwrap_or_default();
        self.session.path(session, &format!("files/{}{rest}{folder}", encode(&self.filename)))
    }
}

pub(super) async fn run(session: &Session, command: CodeInterpreterCommand) -> Result<(), Failure> {
    let client = &session.client;
    match command {
        CodeInterpreterCommand::Execute { session: one, code, timeout_in_seconds, place: _ } => {
            let code = match code.strip_prefix('@') {
                Some(path) => file::text(Path::new(path))?,
                None => code,
            };
            let mut body = json!({ "codeInputType": "inline", "executionType": "synchronous", "code": code });
            if let Some(seconds) = timeout_in_seconds {
                body["timeoutInSeconds"] = json!(seconds);
            }
            // its own time, and that for its turn and for a session to be made
            let limit = Duration::from_secs(u64::from(timeout_in_seconds.unwrap_or(60)) + AROUND_SECONDS);
            match client.post_within(&one.path(session, "executions"), &body, limit).await? {
                Some(ran) => session.print(ran, View::Plain),
                None => Ok(()),
            }
        }
        CodeInterpreterCommand::UploadFile { session: one, filepath, path, place: _ } => {
            tools::upload_file(session, &one, &filepath, path.as_deref()).await
        }
        CodeInterpreterCommand::ListFiles { session: one, path, place: _ } => {
            let folder = path.map(|path| format!("?path={}", encode(&path))).unwrap_or_default();
            session.print(client.get(&one.path(session, &format!("files{folder}"))).await?, View::Plain)
        }
        CodeInterpreterCommand::ShowFileMetadata(file) => {
            session.print(client.get(&file.url(session, "")).await?, View::Plain)
        }
        CodeInterpreterCommand::ShowFileContent(file) => {
            let mut pieces = client.stream(&file.url(session, "/content")).await?.bytes_stream();
            let mut out = std::io::stdout().lock();
            while let Some(piece) = pieces.next().await {
                out.write_all(&piece.map_err(|error| Failure::new(format!("the file broke off: {error}")))?)?;
            }
            Ok(out.flush()?)
        }
        CodeInterpreterCommand::DeleteFile { file, yes } => {
            session.confirm(&format!("Delete `{}` of the session?", file.filename), yes)?;
            client.text(Method::DELETE, &file.url(session, ""), None).await.map(drop)
        }
    }
}
