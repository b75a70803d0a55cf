//! `cove secrets rotate`: a new key for the secrets at rest, by the running server or, when none runs, on the files.
//!
//! **Invariant:** the key and the values are never printed.

use cove_store::{Store, StoreError};
use serde_json::json;

use crate::{
    failure::Failure,
    output::View,
    place::DataDir,
    session::{Globals, Session, block_on},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum SecretsCommand {
    /// Make a new key and seal every secret with it; safe to interrupt.
    ///
    /// Example: cove secrets rotate
    Rotate,
}

pub(crate) fn run(command: &SecretsCommand, data_dir: &DataDir, globals: &Globals) -> Result<(), Failure> {
    let SecretsCommand::Rotate = command;
    let dir = data_dir.path();
    let is_online = globals.place.is_dry_run || globals.place.endpoint.is_some() || !dir.join("cove.db").exists();
    let offline = if is_online { None } else { Some(Store::open(&dir)) };
    match offline {
        Some(Ok(store)) => {
            let count = block_on(async {
                store.rotate_secrets().await.map_err(|error| Failure::from(anyhow::Error::new(error)))
            })?;
            globals.output.print(json!({ "rotated": count }), View::Plain)
        }
        Some(Err(StoreError::InUse { .. })) | None => block_on(async {
            let session = Session::open(globals).await?;
            let answer = session.client.post("/cove/v1/secrets/rotate", None).await?;
            session.print(answer, View::Plain)
        }),
        Some(Err(error)) => Err(anyhow::Error::new(error).into()),
    }
}
