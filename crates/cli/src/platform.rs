//! Small commands that only Cove has: images, addresses.

use std::path::PathBuf;

use serde_json::json;

use crate::{
    failure::Failure,
    output::View,
    session::{Globals, Session, block_on},
};

#[derive(Debug, clap::Subcommand)]
pub(crate) enum ImageCommand {
    /// Take images from an OCI layout or a `docker save` archive.
    Import {
        /// The file or folder.
        file: PathBuf,
        /// Name to give the image instead of the archive's.
        #[arg(short, long)]
        name: Option<String>,
    },
    /// Build the image of one of Cove's interpreters, which session pools of code use, from Debian and PyPI packages.
    BuildInterpreter(crate::interpreter::BuildInterpreterArgs),
    /// Make what virtual machines of sessions boot: Debian's kernel and a small initial file system.
    BuildVmGuest(crate::vm_guest::BuildVmGuestArgs),
    /// List the images on this server.
    List,
}

pub(crate) fn image(command: &ImageCommand, globals: &Globals) -> Result<(), Failure> {
    if let ImageCommand::BuildInterpreter(args) = command {
        return crate::interpreter::build(args, globals);
    }
    if let ImageCommand::BuildVmGuest(args) = command {
        return crate::vm_guest::build(args, globals);
    }
    block_on(async {
        let session = Session::open(globals).await?;
        match command {
            ImageCommand::Import { file, name } => {
                // the server reads the file: it needs the whole path
                let path = std::fs::canonicalize(file)
                    .map_err(|error| Failure::new(format!("failed to read `{}`: {error}", file.display())))?;
                let body = json!({ "path": path, "name": name });
                let mut answer = session.client.post("/cove/v1/images/import", Some(&body)).await?;
                session.print(answer["value"].take(), View::Plain)
            }
            ImageCommand::BuildInterpreter(_) | ImageCommand::BuildVmGuest(_) => Ok(()),
            ImageCommand::List => {
                let mut answer = session.client.get("/cove/v1/images").await?;
                session.print(answer["value"].take(), View::Images)
            }
        }
    })
}

/// Where the server is reached.
pub(crate) fn endpoints(globals: &Globals) -> Result<(), Failure> {
    let found = globals.place.find()?;
    let mut value = json!({ "api": found.api, "ca": found.ca });
    if !found.http.is_empty() {
        value["http"] = found.http.into();
        value["https"] = found.https.into();
    }
    globals.output.print(value, View::Plain)
}
