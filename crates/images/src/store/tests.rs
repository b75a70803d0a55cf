//! The store with real files: the built-in image, imports, layers, garbage collection.

use std::io::Write as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use camino::Utf8PathBuf;
use expect_test::expect;
use serde_json::json;
use xattr::FileExt as _;

use super::*;
use crate::image::host_platform;
use crate::sample::{QUICKSTART_IMAGE, SAMPLE_IMAGE};

/// A store in a directory of its own, removed with it.
struct World {
    dir: tempfile::TempDir,
    store: ImageStore,
}

impl World {
    fn new() -> Self {
        Self::with(StoreConfig { gc_grace: Duration::ZERO, ..StoreConfig::default() })
    }

    fn with(config: StoreConfig) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = ImageStore::open(&path(&dir).join("images"), config).unwrap();
        Self { dir, store }
    }

    fn path(&self) -> Utf8PathBuf {
        path(&self.dir)
    }

    fn files_in(&self, below: &str) -> usize {
        fs::read_dir(self.path().join("images").join(below)).unwrap().count()
    }

    async fn ensure(&self, name: &str) -> Result<Arc<Image>, ImageError> {
        self.store.ensure(&name.parse()?, None, PullPolicy::Always, |_| {}).await
    }

    /// Imports an OCI layout whose image has these layers (tars, bottom first).
    async fn import_layers(&self, name: &str, layers: &[Vec<u8>]) -> Result<Vec<ImageRef>, ImageError> {
        let layout = self.path().join(format!("layout-{}", uuid::Uuid::new_v4().simple()));
        write_layout(&layout, name, layers, &host_platform().architecture);
        self.store.import(&layout, None).await
    }
}

fn path(dir: &tempfile::TempDir) -> Utf8PathBuf {
    Utf8PathBuf::from_path_buf(dir.path().to_owned()).unwrap()
}

fn write_layout(layout: &Utf8Path, name: &str, layers: &[Vec<u8>], architecture: &str) {
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        json!({ "mediaType": "application/octet-stream", "digest": digest, "size": bytes.len() })
    };
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer)).collect();
    let config = json!({ "architecture": architecture, "os": "linux", "config": { "Cmd": ["/run"], "Env": null },
        "rootfs": { "type": "layers", "diff_ids": diff_ids } });
    let descriptors: Vec<_> = layers.iter().map(|layer| blob(layer)).collect();
    let manifest = json!({ "schemaVersion": 2, "config": blob(config.to_string().as_bytes()), "layers": descriptors });
    let mut entry = blob(manifest.to_string().as_bytes());
    entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
    let index = json!({ "schemaVersion": 2, "manifests": [entry] });
    fs::write(layout.join("index.json"), index.to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Writes a tar by a list of `path kind content`; unlike the library's builder it allows any path.
fn tar(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, kind, content) in entries {
        let mut header = tar::Header::new_ustar();
        let is_link = matches!(kind, tar::EntryType::Link | tar::EntryType::Symlink);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(if *kind == tar::EntryType::Directory { 0o750 } else { 0o4755 });
        header.set_uid(1000);
        header.set_gid(100);
        header.set_mtime(1_000_000);
        header.set_size(if is_link { 0 } else { content.len() as u64 });
        if is_link {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
        }
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        if !is_link {
            out.extend_from_slice(content.as_bytes());
            out.resize(out.len().next_multiple_of(512), 0);
        }
    }
    out.resize(out.len() + 1024, 0);
    out
}

const DIR: tar::EntryType = tar::EntryType::Directory;
const FILE: tar::EntryType = tar::EntryType::Regular;
const HARD: tar::EntryType = tar::EntryType::Link;
const SOFT: tar::EntryType = tar::EntryType::Symlink;

/// A listing of a directory tree: kind, mode, owner, name.
fn tree(dir: &Utf8Path) -> String {
    fn walk(dir: &Path, root: &Path, lines: &mut Vec<String>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            let kind = meta.file_type();
            let (word, more) = if kind.is_dir() {
                let opaque = fs::File::open(&path).unwrap().get_xattr("trusted.overlay.opaque").unwrap();
                ("dir ", if opaque.is_some() { " (opaque)".into() } else { String::new() })
            } else if kind.is_symlink() {
                ("link", format!(" -> {}", fs::read_link(&path).unwrap().display()))
            } else if kind.is_char_device() {
                ("char", format!(" {}", meta.rdev()))
            } else {
                ("file", format!(" x{} {:?}", meta.nlink(), fs::read_to_string(&path).unwrap()))
            };
            let (mode, owner) = (meta.permissions().mode() & 0o7777, format!("{}:{}", meta.uid(), meta.gid()));
            let name = path.strip_prefix(root).unwrap().display().to_string();
            lines.push(format!("{name} {word} {mode:o} {owner}{more}\n"));
            if kind.is_dir() {
                walk(&path, root, lines);
            }
        }
    }
    let mut lines = Vec::new();
    walk(dir.as_std_path(), dir.as_std_path(), &mut lines);
    lines.sort();
    lines.concat()
}

#[tokio::test]
async fn the_sample_image_needs_nothing_from_outside() {
    let world = World::new();
    let seen = Mutex::new(Vec::new());
    let name = SAMPLE_IMAGE.parse().unwrap();
    let image =
        world.store.ensure(&name, None, PullPolicy::Always, |now| seen.lock().unwrap().push(now)).await.unwrap();
    assert_eq!(image.config.entrypoint, ["/sample"]);
    assert_eq!(
        (image.config.user.as_str(), image.config.exposed_ports.as_slice()),
        ("1000:1000", &["80/tcp".to_owned()][..])
    );
    let [layer] = image.layers.as_slice() else { panic!("{:?}", image.layers) };
    assert_eq!(fs::metadata(layer.join("sample")).unwrap().permissions().mode() & 0o7777, 0o755);
    assert_eq!(fs::metadata(layer.join("tmp")).unwrap().permissions().mode() & 0o7777, 0o1777);
    assert_eq!(fs::metadata(layer).unwrap().permissions().mode() & 0o7777, 0o755);
    assert!(seen.lock().unwrap().iter().any(|now| now.layers_total == 1));
    // The same content for ever, by its digest.
    let pinned = name.with_digest(&image.digest);
    assert_eq!(world.ensure(&pinned.to_string()).await.unwrap().layers, image.layers);
    assert_eq!(world.store.get(&name).unwrap(), image);
    // And after a restart.
    let again = ImageStore::open(&world.path().join("images"), StoreConfig::default()).unwrap();
    assert_eq!(*again.get(&name).unwrap(), *image);
}

#[tokio::test]
async fn a_layer_becomes_a_lower_directory() {
    let world = World::new();
    let lower = tar(&[
        ("./", DIR, ""),
        ("etc/", DIR, ""),
        ("etc/motd", FILE, "hello"),
        ("usr/lib/", DIR, ""),
        ("lib", SOFT, "usr/lib"),
        ("lib/through", FILE, "a link"),
        ("absolute", SOFT, "/etc/passwd"),
        ("etc/motd2", HARD, "etc/motd"),
        ("etc/motd3", HARD, "/./etc/motd2"),
        ("twice", FILE, "first"),
        ("twice", FILE, "second"),
    ]);
    let upper = tar(&[
        ("etc/.wh.motd", FILE, ""),
        ("fresh/", DIR, ""),
        ("fresh/.wh..wh..opq", FILE, ""),
        ("fresh/new", FILE, "x"),
        (".wh.gone", FILE, ""),
        ("gone/", DIR, ""),
        (".wh..wh.aufs", FILE, ""),
    ]);
    let names = world.import_layers("demo/app:1", &[lower.clone(), upper, lower]).await.unwrap();
    assert_eq!(names[0].to_string(), "docker.io/demo/app:1");
    let image = world.ensure("demo/app:1").await.unwrap();
    // The third layer is the first again: stacked once, on top.
    assert_eq!(image.layers.len(), 2);
    expect![[r#"
        absolute link 777 1000:100 -> /etc/passwd
        etc dir  750 1000:100
        etc/motd file 4755 1000:100 x3 "hello"
        etc/motd2 file 4755 1000:100 x3 "hello"
        etc/motd3 file 4755 1000:100 x3 "hello"
        lib link 777 1000:100 -> usr/lib
        twice file 4755 1000:100 x1 "second"
        usr dir  755 0:0
        usr/lib dir  750 1000:100
        usr/lib/through file 4755 1000:100 x1 "a link"
    "#]]
    .assert_eq(&tree(&image.layers[0]));
    expect![[r#"
        etc dir  755 0:0
        etc/motd char 0 0:0 0
        fresh dir  750 1000:100 (opaque)
        fresh/new file 4755 1000:100 x1 "x"
        gone dir  750 1000:100 (opaque)
    "#]]
    .assert_eq(&tree(&image.layers[1]));
    assert_eq!(fs::metadata(image.layers[0].join("etc")).unwrap().mtime(), 1_000_000);
    assert_eq!(image.config.cmd, ["/run"]);
}

#[tokio::test]
async fn layers_stack_as_the_image_means_it() {
    let world = World::new();
    let lower = tar(&[("a/", DIR, ""), ("a/old", FILE, ""), ("b/", DIR, ""), ("b/old", FILE, ""), ("c", FILE, "")]);
    let upper = tar(&[
        ("a/", DIR, ""),
        ("a/.wh.old", FILE, ""),
        ("a/new", FILE, ""),
        ("b/", DIR, ""),
        ("b/.wh..wh..opq", FILE, ""),
        ("b/new", FILE, ""),
        (".wh.c", FILE, ""),
        ("c/", DIR, ""),
    ]);
    world.import_layers("stack:1", &[lower, upper]).await.unwrap();
    let image = world.ensure("stack:1").await.unwrap();
    let options = format!("lowerdir={}:{}", image.layers[0], image.layers[1]);
    let merged = Mounted::new(world.path().join("merged"), "overlay", &options);
    expect![[r#"
        a dir  750 1000:100
        a/new file 4755 1000:100 x1 ""
        b dir  750 1000:100
        b/new file 4755 1000:100 x1 ""
        c dir  750 1000:100
    "#]]
    .assert_eq(&tree(&merged.0));
}

#[tokio::test]
async fn a_layer_cannot_write_outside() {
    let world = World::new();
    let outside = world.path().join("outside");
    fs::create_dir(&outside).unwrap();
    let attacks: [&[(&str, tar::EntryType, &str)]; 8] = [
        &[("../../../../outside/a", FILE, "x")],
        &[("a/../../outside", FILE, "x")],
        &[("up", SOFT, "../../../../outside"), ("up/a", FILE, "x")],
        &[("abs", SOFT, outside.as_str()), ("abs/a", FILE, "x")],
        &[("file", FILE, ""), ("file/a", FILE, "x")],
        &[("hard", HARD, "../../../images.json")],
        &[("hard", HARD, "not/there")],
        &[(".wh...", FILE, "")],
    ];
    let mut table = String::new();
    for (number, attack) in attacks.into_iter().enumerate() {
        let name = format!("attack:{number}");
        world.import_layers(&name, &[tar(attack)]).await.unwrap();
        let error = world.ensure(&name).await.unwrap_err().to_string();
        let cut = error.find("entry").unwrap_or(0);
        table.push_str(&format!("{}\n", &error[cut..]));
    }
    expect![[r#"
        entry `../../../../outside/a` names a directory above with `..`
        entry `a/../../outside` names a directory above with `..`
        entry `up/a` lies below a symbolic link to nowhere
        entry `abs/a` lies below a symbolic link to nowhere
        entry `file/a` lies below something that is no directory
        entry `hard` names a directory above with `..`
        entry `hard` is a hard link to `not/there`, which is not in the layer before it
        entry `.wh...` hides nothing that has a name
    "#]]
    .assert_eq(&table);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // An absolute link is followed within the layer, if it can be.
    let inside = tar(&[("d/", DIR, ""), ("abs", SOFT, "/d"), ("abs/a", FILE, "x")]);
    world.import_layers("inside:1", &[inside]).await.unwrap();
    assert_eq!(fs::read_to_string(world.ensure("inside:1").await.unwrap().layers[0].join("d/a")).unwrap(), "x");
    assert_eq!(world.files_in("tmp"), 0);
}

#[tokio::test]
async fn bad_images_say_what_is_wrong() {
    let world = World::new();
    let mut table = String::new();
    let mut note = |error: ImageError| {
        let text = error.to_string().replace(world.path().as_str(), "DIR");
        let short = text.split(' ').map(|word| if word.starts_with("sha256:") { "sha256:…" } else { word });
        table.push_str(&format!("{}\n", short.collect::<Vec<_>>().join(" ")));
    };
    // Another machine's image.
    let layout = world.path().join("foreign");
    write_layout(&layout, "foreign:1", &[tar(&[])], "s390x");
    world.store.import(&layout, None).await.unwrap();
    note(world.ensure("foreign:1").await.unwrap_err());
    // Another content under the layer's name.
    let layout = world.path().join("damaged");
    let layer = tar(&[("a", FILE, "x")]);
    write_layout(&layout, "damaged:1", std::slice::from_ref(&layer), &host_platform().architecture);
    fs::write(layout.join("blobs/sha256").join(Digest::of(&layer).hex()), b"other").unwrap();
    note(world.store.import(&layout, None).await.unwrap_err());
    // A layer cut short.
    world.import_layers("cut:1", &[layer[..600].to_vec()]).await.unwrap();
    note(world.ensure("cut:1").await.unwrap_err());
    // No archive at all.
    let file = world.path().join("file.tar");
    fs::write(&file, b"hello").unwrap();
    note(world.store.import(&file, None).await.unwrap_err());
    note(world.store.import(&world.path().join("foreign/blobs"), None).await.unwrap_err());
    note(world.store.import(&world.path().join("absent"), None).await.unwrap_err());
    // Names.
    note(world.ensure("cove.local/nothing:1").await.unwrap_err());
    note(world.ensure("Bad Name").await.unwrap_err());
    expect![[r#"
        image `docker.io/library/foreign:1` is for linux/s390x, but this machine is linux/amd64; build it for linux/amd64 (`--platform linux/amd64`)
        `blobs/sha256/f6845e7edd09885af463375c28eb660e1ba7bebf0b6321ccfd9bea483df9c462` in `DIR/damaged` is damaged: its digest should be sha256:… but is sha256:… push or fetch the image again
        layer sha256:… is not a usable image: unexpected EOF during skip
        `DIR/file.tar` is not an image archive: failed to read entire block; give an OCI layout (directory or tar) or the output of `docker save`
        `DIR/foreign/blobs` is not an image archive: it has neither `index.json` nor `manifest.json`; give an OCI layout (directory or tar) or the output of `docker save`
        failed to read `DIR/absent`
        image `cove.local/nothing:1` was not found in registry `cove.local`; push or import it first
        `Bad Name` is not an image name: the repository must be in lower case; write it as `registry/repository:tag` or `registry/repository@sha256:…`
    "#]].assert_eq(&table);
    assert_eq!(world.files_in("tmp"), 0);
}

#[tokio::test]
async fn the_sample_stands_in_for_the_quick_start() {
    // Nothing listens on the discard port of loopback, so the answer is immediate and the network is not used.
    let world = World::new();
    let error = world.ensure("127.0.0.1:9/some/app:1").await.unwrap_err();
    assert!(matches!(error, ImageError::Unreachable { .. }), "{error}");
    let quickstart: ImageRef = QUICKSTART_IMAGE.parse().unwrap();
    lock(&world.store.0.unreachable).insert(quickstart.registry.clone(), (Instant::now(), error));
    let image = world.ensure(QUICKSTART_IMAGE).await.unwrap();
    assert_eq!(image.config.entrypoint, ["/sample"]);
    assert_eq!(image.reference, quickstart);
    let pinned = quickstart.with_digest(&image.digest);
    assert_eq!(world.ensure(&pinned.to_string()).await.unwrap().layers, image.layers);
}

/// A mounted file system; unmounted when dropped.
struct Mounted(Utf8PathBuf);

impl Mounted {
    fn new(at: Utf8PathBuf, kind: &str, options: &str) -> Self {
        fs::create_dir(&at).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("none"), at.as_str(), Some(kind), flags, Some(options)).unwrap();
        Self(at)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(self.0.as_str(), nix::mount::MntFlags::MNT_DETACH);
    }
}

#[tokio::test]
async fn a_full_disk_is_told_and_survived() {
    let world = World::new();
    let disk = Mounted::new(world.path().join("disk"), "tmpfs", "size=1m");
    let store = ImageStore::open(&disk.0, StoreConfig::default()).unwrap();
    let sample = SAMPLE_IMAGE.parse().unwrap();
    let error = store.ensure(&sample, None, PullPolicy::Always, |_| {}).await.unwrap_err();
    assert!(matches!(error, ImageError::DiskFull { .. }), "{error}");
    // What it wrote is gone again, so smaller things still fit.
    assert_eq!(fs::read_dir(disk.0.join("tmp")).unwrap().count(), 0);
    let layout = world.path().join("small");
    write_layout(&layout, "small:1", &[tar(&[("a", FILE, "x")])], &host_platform().architecture);
    store.import(&layout, None).await.unwrap();
    store.ensure(&"small:1".parse().unwrap(), None, PullPolicy::Always, |_| {}).await.unwrap();
}

#[tokio::test]
async fn what_a_killed_process_left_is_cleared() {
    let world = World::new();
    let image = world.ensure(SAMPLE_IMAGE).await.unwrap();
    let images = world.path().join("images");
    fs::create_dir_all(images.join("tmp/half/fs/etc")).unwrap();
    fs::write(images.join("tmp/blob"), b"half").unwrap();
    // A layer directory without its record was never finished.
    let home = image.layers[0].parent().unwrap();
    fs::remove_file(home.join("layer.json")).unwrap();
    let again = ImageStore::open(&images, StoreConfig::default()).unwrap();
    assert_eq!(world.files_in("tmp"), 0);
    assert!(again.get(&image.reference).is_none());
    again.ensure(&image.reference, None, PullPolicy::Always, |_| {}).await.unwrap();
    assert!(image.layers[0].join("sample").exists() && home.join("layer.json").exists());
}

#[tokio::test]
async fn a_damaged_blob_is_found_before_it_is_run() {
    let world = World::new();
    let layer = tar(&[("a", FILE, "x")]);
    world.import_layers("app:1", std::slice::from_ref(&layer)).await.unwrap();
    let blob = world.path().join("images/blobs/sha256").join(Digest::of(&layer).hex());
    let mut file = fs::File::options().append(true).open(&blob).unwrap();
    file.write_all(b"more").unwrap();
    let error = world.ensure("app:1").await.unwrap_err();
    assert!(matches!(error, ImageError::DigestMismatch { .. }), "{error}");
    // It is gone, so importing again mends it.
    assert!(!blob.exists());
    world.import_layers("app:1", &[layer]).await.unwrap();
    world.ensure("app:1").await.unwrap();
}

#[tokio::test]
async fn garbage_collection_takes_only_what_nobody_wants() {
    let world = World::new();
    let (shared, own) = (tar(&[("shared", FILE, "x")]), tar(&[("own", FILE, "y")]));
    world.import_layers("kept:1", std::slice::from_ref(&shared)).await.unwrap();
    world.import_layers("gone:1", &[shared, own]).await.unwrap();
    world.ensure("kept:1").await.unwrap();
    let held = world.ensure("gone:1").await.unwrap();
    assert!(world.store.remove(&"gone:1".parse().unwrap()).unwrap());
    assert!(!world.store.remove(&"gone:1".parse().unwrap()).unwrap());
    // Held, so all of it stays.
    assert_eq!(world.store.gc(&[]).unwrap(), GcReport::default());
    let own_layer = held.layers[0].clone();
    drop(held);
    let report = world.store.gc(&[]).unwrap();
    assert_eq!((report.layers, report.blobs), (1, 3));
    assert!(!own_layer.exists());
    assert!(world.ensure("kept:1").await.unwrap().layers[0].join("shared").exists());
    // Pulled names go unless they are kept.
    let digest = world.store.entry(&"kept:1".parse().unwrap()).unwrap().digest;
    world.store.index().put(&["example.com/a:1".into()], &digest, ImageSource::Pulled).unwrap();
    assert_eq!(world.store.gc(&[digest]).unwrap().names, Vec::<String>::new());
    assert_eq!(world.store.gc(&[]).unwrap().names, ["example.com/a:1"]);
    // Pushed digests too, when nothing else wants them; a tag stays.
    let digest = world.store.entry(&"kept:1".parse().unwrap()).unwrap().digest;
    let pushed = ["cove.local/a:1".to_owned(), format!("cove.local/a@{digest}")];
    world.store.index().put(&pushed, &digest, ImageSource::Pushed).unwrap();
    assert_eq!(world.store.gc(&[]).unwrap().names, [pushed[1].clone()]);
    // Not while something is being fetched.
    let _active = world.store.active().await;
    assert!(world.store.gc(&[]).unwrap().postponed);
}

#[tokio::test]
async fn a_mirror_stands_for_its_registry() {
    let mirrors = Mirrors::new(|registry| (registry == "mine.azurecr.io").then(|| OWN_REGISTRY.to_owned()));
    let world = World::with(StoreConfig { mirrors, ..StoreConfig::default() });
    let layer = tar(&[("hello", tar::EntryType::Regular, "hi")]);
    world.import_layers("cove.local/team/app:v1", &[layer]).await.unwrap();
    let image = world.ensure("mine.azurecr.io/team/app:v1").await.unwrap();
    assert_eq!(image.digest, world.ensure("cove.local/team/app:v1").await.unwrap().digest);
    let error = world.ensure("mine.azurecr.io/team/none:v1").await.unwrap_err();
    assert!(error.to_string().contains("team/none"), "{error}");
}
