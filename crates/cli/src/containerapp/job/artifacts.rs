//! `containerapp job artifacts`: what an execution left behind, listed and fetched.
//!
//! **Invariant:** what the server lists lands below the target and nowhere else, whatever its name; nothing that is there is
//! overwritten.

use std::{
    fs,
    io::Write as _,
    path::{Component, Path, PathBuf},
};

use futures_util::StreamExt as _;
use serde_json::Value;

use super::{super::AppRef, KIND, logs};
use crate::{client::encode, failure::Failure, output::View, session::Session, text};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ArtifactsCommand {
    /// List files of an execution.
    List(ExecutionArgs),
    /// Fetch files of an execution into a directory here.
    Download {
        #[command(flatten)]
        execution: ExecutionArgs,
        /// Paths as they are listed, of files or directories [default: all].
        paths: Vec<String>,
        /// Directory, made where it is missing.
        #[arg(short, long, default_value = ".", value_name = "DIR")]
        target: PathBuf,
    },
}

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct ExecutionArgs {
    #[command(flatten)]
    job: AppRef,
    /// Execution [default: the newest].
    #[arg(long)]
    execution: Option<String>,
}

pub(super) async fn run(session: &Session, command: ArtifactsCommand) -> Result<(), Failure> {
    match command {
        ArtifactsCommand::List(args) => {
            let listed = session.client.list(&path(session, &args).await?).await?;
            session.print(listed, View::Artifacts)
        }
        ArtifactsCommand::Download { execution, paths, target } => {
            let base = path(session, &execution).await?;
            let listed = session.client.list(&base).await?;
            let names = chosen(&listed, &paths)?;
            for name in &names {
                fetch(session, &base, name, &target).await?;
            }
            text::note(&format!("{} files", names.len()));
            Ok(())
        }
    }
}

async fn path(session: &Session, args: &ExecutionArgs) -> Result<String, Failure> {
    let name = logs::execution(session, &args.job, args.execution.as_deref()).await?;
    Ok(format!("{}/executions/{}/artifacts", args.job.path_of(session, KIND), encode(&name)))
}

/// The listed files that are one of these paths or below one; all for no path.
fn chosen<'a>(listed: &'a Value, paths: &[String]) -> Result<Vec<&'a str>, Failure> {
    let all: Vec<&str> = listed.as_array().into_iter().flatten().filter_map(|file| file["name"].as_str()).collect();
    let is_below = |name: &str, path: &str| {
        let path = path.trim_matches('/');
        name == path || name.strip_prefix(path).is_some_and(|rest| rest.starts_with('/'))
    };
    if let Some(path) = paths.iter().find(|path| !all.iter().any(|name| is_below(name, path))) {
        return Err(Failure::new(format!("the execution has no artifact `{path}`")).hint("see job artifacts list"));
    }
    Ok(all.into_iter().filter(|name| paths.is_empty() || paths.iter().any(|path| is_below(name, path))).collect())
}

/// Where a file goes; a name that leads out of the target is refused.
fn place(target: &Path, name: &str) -> Result<PathBuf, Failure> {
    let is_plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if name.is_empty() || !is_plain {
        return Err(Failure::new(format!("`{name}` is no name below the target")));
    }
    Ok(target.join(name))
}

async fn fetch(session: &Session, base: &str, name: &str, target: &Path) -> Result<(), Failure> {
    let to = place(target, name)?;
    let encoded: Vec<String> = name.split('/').map(encode).collect();
    let response = session.client.stream(&format!("{base}/{}", encoded.join("/"))).await?;
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    let failed = |error: std::io::Error| Failure::new(format!("`{}`: {error}", to.display()));
    let mut file = fs::OpenOptions::new().write(true).create_new(true).open(&to).map_err(failed)?;
    let mut pieces = response.bytes_stream();
    while let Some(piece) = pieces.next().await {
        let written = match piece {
            Ok(piece) => file.write_all(&piece),
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let Err(error) = written {
            // a part is not taken for the whole
            let _gone = fs::remove_file(&to);
            return Err(failed(error));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn files_and_directories_are_chosen() {
        let listed = json!([{ "name": "a" }, { "name": "out/b" }, { "name": "out/c" }, { "name": "outer" }]);
        let names = |paths: &[&str]| {
            let paths: Vec<String> = paths.iter().map(|path| (*path).to_owned()).collect();
            chosen(&listed, &paths).map(|names| names.join(" ")).map_err(|failure| failure.text)
        };
        assert_eq!(names(&[]).unwrap(), "a out/b out/c outer");
        assert_eq!(names(&["out/"]).unwrap(), "out/b out/c");
        assert_eq!(names(&["a", "out/c"]).unwrap(), "a out/c");
        assert!(names(&["o"]).is_err());
    }

    #[test]
    fn files_stay_below_the_target() {
        let target = Path::new("/t");
        assert_eq!(place(target, "out/b").unwrap(), Path::new("/t/out/b"));
        for name in ["", "/etc/passwd", "../x", "a/../../x", "./a"] {
            assert!(place(target, name).is_err(), "{name}");
        }
    }
}
