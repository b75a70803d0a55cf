//! An interpreter's image as an OCI layout in the cache: the system's layer, the server's, the configuration.
//!
//! The system's layer is written once; the rest is small and written whenever the image is asked for, so a new version of the
//! server needs no new system.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read, Write as _},
};

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{
    GUEST, INTERPRETER_PORT, Interpreter, InterpreterError,
    build::{BuiltInterpreter, io as failed},
};
use crate::{
    digest::{Digest, HashingReader},
    image::{Descriptor, OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, host_platform},
};

/// What is known of the system's layer, beside it.
pub(super) const SYSTEM: &str = "system.json";
/// Largest system in bytes.
const SYSTEM_MAX: u64 = 8 << 30;
/// Level of compression: most of the gain for little time.
const LEVEL: i32 = 6;

#[derive(Serialize, Deserialize)]
struct System {
    diff_id: Digest,
    digest: Digest,
    size: u64,
    unpacked_bytes: u64,
}

/// Compresses a system's tar into the layout in `home` and notes what it is.
pub(super) fn keep_system(tar: impl Read, home: &Utf8Path) -> Result<(), InterpreterError> {
    let blobs = home.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(failed("create", &blobs))?;
    let path = blobs.join("system");
    let mut reader = HashingReader::new(tar, SYSTEM_MAX);
    let compress = |reader: &mut HashingReader<_>| -> io::Result<()> {
        let mut encoder = zstd::stream::write::Encoder::new(File::create(&path)?, LEVEL)?;
        io::copy(reader, &mut encoder)?;
        encoder.finish()?.sync_all()
    };
    compress(&mut reader).map_err(failed("write", &path))?;
    let (diff_id, unpacked_bytes) = reader.finish().map_err(failed("write", &path))?;
    let file = File::open(&path).map_err(failed("read", &path))?;
    let (digest, size) =
        HashingReader::new(BufReader::new(file), SYSTEM_MAX).finish().map_err(failed("read", &path))?;
    let named = blobs.join(digest.hex());
    fs::rename(&path, &named).map_err(failed("write", &named))?;
    let system = System { diff_id, digest, size, unpacked_bytes };
    let text = serde_json::to_vec(&system).expect("plain fields have a JSON form");
    let path = home.join(SYSTEM);
    fs::write(&path, text).map_err(failed("write", &path))
}

/// Writes what is beside the system, and tells what the whole is.
pub(super) fn write(
    kind: Interpreter,
    home: &Utf8Path,
    is_from_cache: bool,
) -> Result<BuiltInterpreter, InterpreterError> {
    let path = home.join(SYSTEM);
    let text = fs::read(&path).map_err(failed("read", &path))?;
    let damaged = |error: serde_json::Error| failed("read", &path)(error.into());
    let system: System = serde_json::from_slice(&text).map_err(damaged)?;
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        let path = home.join("blobs/sha256").join(digest.hex());
        replace(&path, bytes).map_err(failed("write", &path)).map(|()| digest)
    };
    let guest = guest_layer();
    let guest_digest = put(&guest)?;
    let config = configuration(kind, &system.diff_id, &guest_digest);
    let config_digest = put(&config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": Descriptor::new(OCI_CONFIG, config_digest, config.len() as u64),
        "layers": [
            Descriptor::new(&format!("{OCI_LAYER}+zstd"), system.digest, system.size),
            Descriptor::new(OCI_LAYER, guest_digest, guest.len() as u64),
        ],
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = put(&manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [Descriptor::new(OCI_MANIFEST, digest.clone(), manifest.len() as u64)],
    });
    for (name, text) in
        [("index.json", index.to_string()), ("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#.to_owned())]
    {
        let path = home.join(name);
        replace(&path, text.as_bytes()).map_err(failed("write", &path))?;
    }
    Ok(BuiltInterpreter {
        layout: home.to_owned(),
        digest,
        size_bytes: system.size + guest.len() as u64,
        unpacked_bytes: system.unpacked_bytes + guest.len() as u64,
        is_from_cache,
    })
}

/// Another process may read or write the same at the same time.
fn replace(path: &Utf8Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(uuid::Uuid::new_v4().simple().to_string());
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    drop(file);
    fs::rename(&temporary, path)
}

/// The server's files, the same bytes on every machine.
fn guest_layer() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in GUEST {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, format!("opt/cove/{name}"), content)
            .expect("writing to memory cannot fail and the paths are short");
    }
    tar.into_inner().expect("writing to memory cannot fail")
}

fn configuration(kind: Interpreter, system: &Digest, guest: &Digest) -> Vec<u8> {
    let platform = host_platform();
    let port = format!("{INTERPRETER_PORT}/tcp");
    let config = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "User": "1000:1000",
            "ExposedPorts": { port: {} },
            "Env": [
                "PATH=/usr/local/bin:/usr/bin:/bin",
                "HOME=/mnt/data",
                "LANG=C.UTF-8",
                "PYTHONDONTWRITEBYTECODE=1",
                "MPLCONFIGDIR=/tmp/matplotlib",
                "IPYTHONDIR=/tmp/ipython",
            ],
            "Entrypoint": ["/usr/bin/python3", "/opt/cove/serve.py", kind.as_str()],
            "WorkingDir": "/mnt/data",
            "Labels": { "dev.cove.interpreter": kind.recipe() },
        },
        "rootfs": { "type": "layers", "diff_ids": [system, guest] },
        "history": [
            { "created": "1970-01-01T00:00:00Z", "comment": "packages" },
            { "created": "1970-01-01T00:00:00Z", "comment": "Cove interpreter" },
        ],
    });
    config.to_string().into_bytes()
}
