//! `containerapp cp`: files and directories into a container and out of it.
//!
//! **Invariant:** what a container sends is unpacked beside its target and nowhere else, whatever names and links it holds.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use futures_util::StreamExt as _;
use tokio::sync::mpsc;

use super::AppRef;
use crate::{
    client::{Client, encode},
    failure::Failure,
    session::{GroupArg, Session},
    text,
};

/// Pieces of a stream that wait for their reader.
const PIECES_MAX: usize = 16;
/// Bytes of a tar header; byte 156 is the kind.
const HEADER_BYTES: usize = 512;

#[derive(Clone, Debug, clap::Args)]
#[command(
    after_help = "Examples: cove containerapp cp -g MyRG ./conf web:/etc/app\n          cove containerapp cp -g MyRG web:/var/log/app ./logs"
)]
pub(crate) struct CpArgs {
    #[command(flatten)]
    group: GroupArg,
    /// Replica [default: the newest that is ready].
    #[arg(long)]
    replica: Option<String>,
    /// Container [default: the first].
    #[arg(long)]
    container: Option<String>,
    /// A path here, or APP:PATH.
    source: String,
    /// A path here, or APP:PATH.
    target: String,
}

/// `APP:PATH`; a path here that holds a colon is written `./a:b`.
fn remote(text: &str) -> Option<(&str, &str)> {
    let (app, path) = text.split_once(':')?;
    let is_app = !app.is_empty() && app.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    (is_app && !path.is_empty()).then_some((app, path))
}

pub(crate) async fn run(session: &Session, args: CpArgs) -> Result<(), Failure> {
    match (remote(&args.source), remote(&args.target)) {
        (Some((app, path)), None) => download(session, &url(session, &args, app, path), Path::new(&args.target)).await,
        (None, Some((app, path))) => {
            let address = |path: &str| url(session, &args, app, path);
            upload(session, Path::new(&args.source), address, path).await
        }
        _ => Err(Failure::usage("one of SOURCE and TARGET must be APP:PATH")
            .hint("cove containerapp cp ./conf web:/etc/app")),
    }
}

fn url(session: &Session, args: &CpArgs, app: &str, path: &str) -> String {
    let app = AppRef { name: app.to_owned(), group: args.group.clone() }.path(session);
    let given = |name: &str, value: &Option<String>| {
        value.as_deref().map(|value| format!("&{name}={}", encode(value))).unwrap_or_default()
    };
    let (replica, container) = (given("replica", &args.replica), given("container", &args.container));
    format!("/cove/v1/files?app={}&path={}{replica}{container}", encode(&app), encode(path))
}

/// Unpacks what an address gives at a path here.
pub(crate) async fn download(session: &Session, address: &str, target: &Path) -> Result<(), Failure> {
    let response = session.client.stream(address).await?;
    let pieces = response.bytes_stream().map(|piece| piece.map_err(io::Error::other)).boxed();
    unpack(pieces, target.to_owned()).await
}

/// Into the path if that is a directory, else as the path; `address` gives the URL of a path.
pub(crate) async fn upload(
    session: &Session,
    source: &Path,
    address: impl Fn(&str) -> String,
    path: &str,
) -> Result<(), Failure> {
    let source = source.to_owned();
    let data =
        fs::symlink_metadata(&source).map_err(|error| Failure::new(format!("`{}`: {error}", source.display())))?;
    let own_name = fs::canonicalize(&source)?.file_name().map(|name| name.to_string_lossy().into_owned());
    let own_name = own_name.unwrap_or_else(|| "root".to_owned());
    let (dir, name) = if path.ends_with('/') || is_directory(session, &address(path)).await? {
        (path, own_name)
    } else {
        let (dir, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("/", path));
        (if dir.is_empty() { "/" } else { dir }, name.to_owned())
    };
    let (sender, receiver) = mpsc::channel::<io::Result<Vec<u8>>>(PIECES_MAX);
    let packing = tokio::task::spawn_blocking(move || {
        let mut tar = tar::Builder::new(io::BufWriter::with_capacity(64 * 1024, Pieces(sender)));
        tar.follow_symlinks(false);
        if data.is_dir() { tar.append_dir_all(&name, &source) } else { tar.append_path_with_name(&source, &name) }?;
        tar.into_inner()?.into_inner().map(drop).map_err(io::IntoInnerError::into_error)
    });
    let pieces =
        futures_util::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) });
    let sent = session.client.upload(&address(dir), reqwest::Body::wrap_stream(pieces)).await;
    // what went wrong here is closer to the cause than the broken upload
    match packing.await.map_err(io::Error::other).and_then(|packed| packed) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(error.into()),
        _ => {}
    }
    let done = sent?;
    text::note(&format!("{} files, {} bytes", done["files"], done["bytes"]));
    Ok(())
}

async fn is_directory(session: &Session, address: &str) -> Result<bool, Failure> {
    match session.client.stream(address).await {
        Ok(response) => {
            let header = Client::first_bytes(response, HEADER_BYTES).await?;
            Ok(header.get(156) == Some(&b'5'))
        }
        // no such path; without a replica the upload says so
        Err(failure) if failure.is_not_found() => Ok(false),
        Err(failure) => Err(failure),
    }
}

/// A writer whose pieces go to an async reader.
struct Pieces(mpsc::Sender<io::Result<Vec<u8>>>);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        self.0.blocking_send(Ok(bytes.to_vec())).map_err(gone)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A reader of pieces from an async writer.
struct Arrived {
    pieces: mpsc::Receiver<io::Result<Vec<u8>>>,
    rest: io::Cursor<Vec<u8>>,
}

impl Read for Arrived {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.rest.read(buffer)? {
                0 => match self.pieces.blocking_recv() {
                    Some(piece) => self.rest = io::Cursor::new(piece?),
                    None => return Ok(0),
                },
                length => return Ok(length),
            }
        }
    }
}

async fn unpack<B: AsRef<[u8]>>(
    mut stream: futures_util::stream::BoxStream<'_, io::Result<B>>,
    target: PathBuf,
) -> Result<(), Failure> {
    let (sender, pieces) = mpsc::channel(PIECES_MAX);
    let unpacking =
        tokio::task::spawn_blocking(move || place(Arrived { pieces, rest: io::Cursor::default() }, &target));
    while let Some(piece) = stream.next().await {
        if sender.send(piece.map(|piece| piece.as_ref().to_vec())).await.is_err() {
            break;
        }
    }
    drop(sender);
    Ok(unpacking.await.map_err(io::Error::other)??)
}

/// Unpacks beside the target, then moves the one entry into a target that is a directory, else to the target itself.
fn place(reader: impl Read, target: &Path) -> io::Result<()> {
    let is_dir = target.is_dir();
    let beside =
        if is_dir { target } else { target.parent().filter(|p| *p != Path::new("")).unwrap_or_else(|| Path::new(".")) };
    let work = beside.join(format!(".cove-cp-{}", std::process::id()));
    fs::create_dir(&work)?;
    let result = place_from(reader, &work, target, is_dir);
    let removed = fs::remove_dir_all(&work);
    result.and(removed)
}

fn place_from(reader: impl Read, work: &Path, target: &Path, is_dir: bool) -> io::Result<()> {
    let mut archive = tar::Archive::new(reader);
    // owners of a container mean nothing here
    archive.set_preserve_ownerships(false);
    // never through a link, never out of `work`
    archive.unpack(work)?;
    for entry in fs::read_dir(work)? {
        let entry = entry?;
        let to = if is_dir { target.join(entry.file_name()) } else { target.to_owned() };
        fs::rename(entry.path(), &to).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists => {
                io::Error::new(error.kind(), format!("`{}` is there already; remove it first", to.display()))
            }
            _ => error,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_path_names_an_app() {
        assert_eq!(remote("web:/etc/app"), Some(("web", "/etc/app")));
        for local in ["./a:b", "/a:b", "a", ":x", "web:"] {
            assert_eq!(remote(local), None, "{local}");
        }
    }

    #[test]
    fn what_comes_lands_at_its_target_only() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(1);
        header.set_mode(0o644);
        tar.append_data(&mut header, "app/log", &b"x"[..]).unwrap();
        let tar = tar.into_inner().unwrap();
        place(&tar[..], &dir.path().join("new")).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("new/log")).unwrap(), "x");
        place(&tar[..], dir.path()).unwrap();
        assert_eq!(fs::read_to_string(dir.path().join("app/log")).unwrap(), "x");
        assert!(place(&tar[..], dir.path()).unwrap_err().to_string().contains("is there already"));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
    }
}
