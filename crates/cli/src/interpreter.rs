//! `cove image build-interpreter`: makes the image of one of Cove's interpreters here and gives it to the server.
//!
//! The packages are fetched by this process, with this machine's configuration of apt and pip; the server only reads the
//! result. What the server has already is not given to it again.

use std::io::IsTerminal as _;

use camino::Utf8PathBuf;
use cove_images::{BuildOptions, BuiltInterpreter, Interpreter};
use serde_json::{Value, json};

use crate::{
    failure::Failure,
    output::View,
    session::{Globals, Session, block_on},
    text,
};

/// Folder that keeps what was made.
const DEFAULT_CACHE: &str = "/var/cache/cove/interpreters";

/// Options of `cove image build-interpreter`.
#[derive(Debug, clap::Args)]
pub(crate) struct BuildInterpreterArgs {
    /// Which: `python`, `node` or `shell`.
    #[arg(value_parser = interpreter)]
    kind: Interpreter,
    /// A further name for the image, beside the one that session pools use.
    #[arg(long)]
    tag: Option<String>,
    /// Folder that keeps what was made, so that the same is not made twice.
    #[arg(long, default_value = DEFAULT_CACHE)]
    cache: Utf8PathBuf,
    /// Debian mirror to use instead of this machine's own sources.
    #[arg(long)]
    mirror: Option<String>,
    /// Make it anew, with the packages' versions of today.
    #[arg(long)]
    force: bool,
}

fn interpreter(text: &str) -> Result<Interpreter, String> {
    Interpreter::from_word(text).ok_or_else(|| "expected python, node or shell".to_owned())
}

/// Makes an image and gives it to the server under the name that pools use, and another one.
async fn make(
    session: &Session,
    kind: Interpreter,
    options: BuildOptions,
    (listed, tag): (&Value, Option<String>),
) -> Result<BuiltInterpreter, Failure> {
    let made = tokio::task::spawn_blocking(move || cove_images::build_interpreter(kind, &options, &text::note));
    let built = made.await.map_err(|error| Failure::new(error.to_string()))?;
    let built = built.map_err(|error| Failure::new(error.to_string()))?;
    for name in [Some(kind.image()), tag].iter().flatten() {
        let mut all = listed["value"].as_array().into_iter().flatten();
        if !all.any(|image| image["name"] == **name && image["digest"] == built.digest.as_str()) {
            let body = json!({ "path": built.layout, "name": name });
            session.client.post("/cove/v1/images/import", Some(&body)).await?;
        }
    }
    Ok(built)
}

/// Sees to it that the server has the image of a pool's kind before the pool is made: builds it when that is asked for, with
/// `--build-image` or on a terminal, else says how. Nothing is fetched unasked.
pub(crate) async fn ensure(session: &Session, container_type: &str, is_asked: bool) -> Result<(), Failure> {
    let kind = match container_type.to_ascii_lowercase().as_str() {
        "pythonlts" => Interpreter::Python,
        "nodelts" => Interpreter::Node,
        "shell" => Interpreter::Shell,
        _ => return Ok(()),
    };
    if session.client.is_dry_run() {
        return Ok(());
    }
    let listed = session.client.get("/cove/v1/images").await?;
    if listed["value"].as_array().into_iter().flatten().any(|image| image["name"] == kind.image()) {
        return Ok(());
    }
    let has_person = std::io::stdin().is_terminal() && text::stderr_is_terminal();
    let question = format!("The image {} is not on this server. Build it now? It takes some minutes.", kind.image());
    if is_asked || has_person && crate::session::confirm(&question, false).is_ok() {
        let cache = DEFAULT_CACHE.into();
        make(session, kind, BuildOptions { cache, mirror: None, is_forced: false }, (&listed, None)).await?;
        return Ok(());
    }
    text::note(&format!(
        "The image {} is not on this server: the pool waits for it. Build it with: cove image build-interpreter {}",
        kind.image(),
        kind.as_str()
    ));
    Ok(())
}

pub(crate) fn build(args: &BuildInterpreterArgs, globals: &Globals) -> Result<(), Failure> {
    block_on(async {
        let session = Session::open(globals).await?;
        let listed = session.client.get("/cove/v1/images").await?;
        let BuildInterpreterArgs { kind, cache, mirror, force, .. } = args;
        if session.client.is_dry_run() {
            text::note(&format!("{} would be built in `{cache}` and given to the server.", kind.image()));
            return Ok(());
        }
        let options = BuildOptions { cache: cache.clone(), mirror: mirror.clone(), is_forced: *force };
        let built = make(&session, *kind, options, (&listed, args.tag.clone())).await?;
        let value = json!({
            "image": kind.image(),
            "digest": built.digest.as_str(),
            "sizeInBytes": built.size_bytes,
            "unpackedBytes": built.unpacked_bytes,
            "fromCache": built.is_from_cache,
        });
        session.print(value, View::Plain)
    })
}
