//! The sample image that is part of this program, so that a machine without a registry can run something.
//!
//! Its executable is built from `sample/main.rs` by the build script; everything around it is written here, the same bytes
//! on every machine, so the image has one digest per version of the program.

use serde_json::json;

use crate::blobs::Blobs;
use crate::digest::Digest;
use crate::error::ImageError;
use crate::image::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, host_platform};
use crate::reference::ImageRef;

/// The sample image's own name.
pub const SAMPLE_IMAGE: &str = "cove.local/sample:latest";
/// Azure's quick start image; the sample stands in for it when it cannot be pulled.
pub const QUICKSTART_IMAGE: &str = "mcr.microsoft.com/k8se/quickstart:latest";
/// Azure's hello-world image; the sample stands in for it when it cannot be pulled.
pub const HELLO_WORLD_IMAGE: &str = "mcr.microsoft.com/azuredocs/containerapps-helloworld:latest";

static EXECUTABLE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/sample"));

/// Whether the sample may stand in for this image.
pub(crate) fn stands_in_for(reference: &ImageRef) -> bool {
    let name = reference.to_string();
    name == QUICKSTART_IMAGE || name == HELLO_WORLD_IMAGE
}

/// Writes the sample image's blobs and returns its manifest's digest.
pub(crate) fn install(blobs: &Blobs) -> Result<Digest, ImageError> {
    let layer = layer();
    let layer_digest = blobs.put(&layer)?;
    let platform = host_platform();
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": "1000:1000",
            "ExposedPorts": { "80/tcp": {} },
            "Env": ["PATH=/"],
            "Entrypoint": ["/sample"],
            "WorkingDir": "/",
        },
        "rootfs": { "type": "layers", "diff_ids": [layer_digest] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "comment": "Cove sample application" }],
    });
    let config = config.to_string().into_bytes();
    let config_digest = blobs.put(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len() },
        "layers": [{ "mediaType": OCI_LAYER, "digest": layer_digest, "size": layer.len() }],
    });
    blobs.put(manifest.to_string().as_bytes())
}

/// The image's one layer: the executable, two users, and a directory that everyone may write.
fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, path, content).expect("writing to memory cannot fail and the paths are short");
    };
    add("etc/", tar::EntryType::Directory, 0o755, b"");
    let users = b"root:x:0:0:root:/:/sample\napp:x:1000:1000:app:/:/sample\n";
    add("etc/passwd", tar::EntryType::Regular, 0o644, users);
    add("etc/group", tar::EntryType::Regular, 0o644, b"root:x:0:\napp:x:1000:\n");
    add("tmp/", tar::EntryType::Directory, 0o1777, b"");
    add("sample", tar::EntryType::Regular, 0o755, EXECUTABLE);
    tar.into_inner().expect("writing to memory cannot fail")
}

#[cfg(test)]
mod tests;
