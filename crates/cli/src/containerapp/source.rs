//! `--source DIR`: a Dockerfile built by a builder that is installed, and taken over into the server's own images.
//!
//! **Invariant:** the archive between builder and server is deleted, also when something fails.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use serde_json::json;

use crate::{failure::Failure, file, session::Session, text};

/// A program that builds Dockerfiles, and how it is asked for an archive.
struct Builder {
    program: &'static str,
    /// Arguments that tell whether it works; a client without its daemon does not.
    probe: &'static [&'static str],
    /// Commands in order.
    commands: fn(build: &Build) -> Vec<Vec<String>>,
}

/// What is built.
struct Build<'a> {
    folder: &'a Path,
    dockerfile: &'a Path,
    tag: &'a str,
    archive: &'a Path,
}

const BUILDERS: [Builder; 4] = [
    Builder { program: "buildah", probe: &["info"], commands: buildah },
    Builder { program: "podman", probe: &["info"], commands: podman },
    Builder { program: "buildctl", probe: &["debug", "workers"], commands: buildctl },
    Builder { program: "docker", probe: &["info"], commands: docker },
];

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn buildah(build: &Build) -> Vec<Vec<String>> {
    let (folder, file) = (build.folder.display().to_string(), build.dockerfile.display().to_string());
    let archive = format!("docker-archive:{}:{}", build.archive.display(), build.tag);
    vec![
        words(&["build", "--layers", "--tag", build.tag, "--file", &file, &folder]),
        words(&["push", "--quiet", build.tag, &archive]),
    ]
}

fn podman(build: &Build) -> Vec<Vec<String>> {
    let (folder, file) = (build.folder.display().to_string(), build.dockerfile.display().to_string());
    let archive = build.archive.display().to_string();
    vec![
        words(&["build", "--tag", build.tag, "--file", &file, &folder]),
        words(&["save", "--quiet", "--format", "docker-archive", "--output", &archive, build.tag]),
    ]
}

fn buildctl(build: &Build) -> Vec<Vec<String>> {
    let context = format!("context={}", build.folder.display());
    let folder = build.dockerfile.parent().unwrap_or(build.folder);
    let name = build.dockerfile.file_name().map_or_else(Default::default, |name| name.to_string_lossy());
    let output = format!("type=docker,name={},dest={}", build.tag, build.archive.display());
    vec![words(&[
        "build",
        "--frontend",
        "dockerfile.v0",
        "--local",
        &context,
        "--local",
        &format!("dockerfile={}", folder.display()),
        "--opt",
        &format!("filename={name}"),
        "--output",
        &output,
    ])]
}

fn docker(build: &Build) -> Vec<Vec<String>> {
    let (folder, file) = (build.folder.display().to_string(), build.dockerfile.display().to_string());
    let archive = build.archive.display().to_string();
    vec![
        words(&["build", "--tag", build.tag, "--file", &file, &folder]),
        words(&["save", "--output", &archive, build.tag]),
    ]
}

/// Ports that a Dockerfile exposes, in its order.
pub(super) fn exposed(dockerfile: &str) -> Vec<u16> {
    let lines = dockerfile.lines().map(str::trim).filter(|line| !line.starts_with('#'));
    let exposes = lines.filter_map(|line| {
        let (word, ports) = line.split_once(char::is_whitespace)?;
        word.eq_ignore_ascii_case("EXPOSE").then_some(ports)
    });
    exposes.flat_map(str::split_whitespace).filter_map(|port| port.split('/').next()?.parse().ok()).collect()
}

/// An image made from a folder.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Built {
    /// Its name on the server.
    pub(super) image: String,
    /// The port of its Dockerfile, where there is one.
    pub(super) port: Option<u16>,
}

/// Builds the Dockerfile of a folder and gives the image to the server as `cove.local/NAME:TIME`.
pub(super) async fn build(
    session: &Session,
    name: &str,
    folder: &Path,
    dockerfile: Option<&str>,
) -> Result<Built, Failure> {
    let dockerfile = folder.join(dockerfile.unwrap_or("Dockerfile"));
    if !dockerfile.is_file() {
        return Err(Failure::new(format!("there is no `{}`", dockerfile.display()))
            .hint("write a Dockerfile, or name an image with --image; buildpacks are not used here"));
    }
    let port = exposed(&file::text(&dockerfile)?).first().copied();
    let image = format!("cove.local/{name}:{}", jiff::Timestamp::now().strftime("%Y%m%d%H%M%S"));
    if session.client.is_dry_run() {
        text::note(&format!("`{}` would be built as {image}.", dockerfile.display()));
        return Ok(Built { image, port });
    }
    let builder = builder()?;
    let archive = Archive(std::env::temp_dir().join(format!("cove-build-{}.tar", uuid::Uuid::new_v4().simple())));
    let build = Build { folder, dockerfile: &dockerfile, tag: &image, archive: &archive.0 };
    for arguments in (builder.commands)(&build) {
        text::note(&format!("{} {}", builder.program, arguments.join(" ")));
        let status = Command::new(builder.program)
            .args(&arguments)
            .stdin(Stdio::null())
            // stdout is for data
            .stdout(std::io::stderr())
            .status()
            .map_err(|error| Failure::new(format!("failed to start `{}`: {error}", builder.program)))?;
        if !status.success() {
            return Err(Failure::new(format!("`{} {}` failed: {status}", builder.program, arguments[0])));
        }
    }
    let body = json!({ "path": archive.0, "name": image });
    session.client.post("/cove/v1/images/import", Some(&body)).await?;
    text::note(&format!("The image is {image}."));
    Ok(Built { image, port })
}

/// The first builder that works.
fn builder() -> Result<&'static Builder, Failure> {
    let works = |builder: &&Builder| {
        let mut command = Command::new(builder.program);
        command.args(builder.probe).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    BUILDERS.iter().find(works).ok_or_else(|| {
        let names = BUILDERS.map(|builder| builder.program).join(", ");
        Failure::new(format!("no program that builds Dockerfiles works here: {names}"))
            .hint("install one: apt-get install -y buildah")
    })
}

struct Archive(PathBuf);

impl Drop for Archive {
    fn drop(&mut self) {
        let _absent = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exposed_ports_are_found() {
        let file = "FROM scratch\n# EXPOSE 1\nexpose 8080/tcp 9090\n  EXPOSE $PORT\nEXPOSE 53/udp\n";
        assert_eq!(exposed(file), [8080, 9090, 53]);
        assert!(exposed("FROM scratch\nRUN echo EXPOSE 80\n").is_empty());
    }

    #[test]
    fn every_builder_is_told_folder_tag_and_archive() {
        let build = Build {
            folder: Path::new("/src"),
            dockerfile: Path::new("/src/Dockerfile"),
            tag: "cove.local/web:1",
            archive: Path::new("/tmp/a.tar"),
        };
        for builder in BUILDERS {
            let all: String = (builder.commands)(&build).concat().join(" ");
            for part in ["/src", "cove.local/web:1", "/tmp/a.tar", "Dockerfile"] {
                assert!(all.contains(part), "{}: {all}", builder.program);
            }
        }
    }
}
