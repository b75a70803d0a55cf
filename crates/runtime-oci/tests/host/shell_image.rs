//! An image with a shell, made of this machine's own programs, for what the sample image cannot show.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on must fail here")]

use std::{collections::BTreeSet, path::Path, process::Command};

use camino::Utf8Path;
use cove_images::ImageStore;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// Its name.
pub(crate) const SHELL_IMAGE: &str = "cove.test/shell:latest";

const PROGRAMS: [&str; 5] = ["sh", "cat", "id", "sleep", "ls"];

/// Imports the image; runs as user `app` (1000:1000) in `/work`.
pub(crate) async fn import(store: &ImageStore, dir: &Path) {
    let config = json!({ "User": "app", "WorkingDir": "/srv/dir", "Cmd": ["sh", "-c", "echo image command"], "Env": ["PATH=/bin"] });
    import_layer(store, dir, SHELL_IMAGE, &layer(), config).await;
}

/// Imports an image of one layer.
pub(crate) async fn import_layer(store: &ImageStore, dir: &Path, name: &str, layer: &[u8], config: Value) {
    let diff_id = format!("sha256:{}", hex(layer));
    let config = json!({
        "architecture": if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" },
        "os": "linux",
        "config": config,
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("{}.json", hex(&config));
    let manifest = json!([{ "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"] }]);
    let mut archive = tar::Builder::new(Vec::new());
    add(&mut archive, &config_name, &config, 0o644);
    add(&mut archive, "layer.tar", layer, 0o644);
    add(&mut archive, "manifest.json", &serde_json::to_vec(&manifest).unwrap(), 0o644);
    let path = dir.join("shell.tar");
    std::fs::write(&path, archive.into_inner().unwrap()).unwrap();
    store.import(Utf8Path::from_path(&path).unwrap(), None).await.unwrap();
}

/// What the image holds.
pub(crate) fn layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut libraries = BTreeSet::new();
    for program in PROGRAMS {
        let path = format!("/bin/{program}");
        libraries.extend(libraries_of(&path));
        add(&mut tar, &path[1..], &std::fs::read(&path).unwrap(), 0o755);
    }
    for library in libraries {
        add(&mut tar, &library[1..], &std::fs::read(&library).unwrap(), 0o755);
    }
    add(&mut tar, "etc/passwd", b"root:x:0:0::/root:/bin/sh\napp:x:1000:1000::/home/app:/bin/sh\n", 0o644);
    add(&mut tar, "etc/group", b"root:x:0:\napp:x:1000:\n", 0o644);
    tar.into_inner().unwrap()
}

/// The shared libraries that a program is loaded with.
pub(crate) fn libraries_of(program: &str) -> Vec<String> {
    let output = Command::new("ldd").arg(program).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().filter(|word| word.starts_with('/')).map(str::to_owned).collect()
}

pub(crate) fn add(tar: &mut tar::Builder<Vec<u8>>, path: &str, content: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content).unwrap();
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
