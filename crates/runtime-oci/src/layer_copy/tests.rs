//! Upper directories as overlays leave them, copied and laid over each other.

use std::{
    fs,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use camino::Utf8Path;
use nix::unistd::{chown, mkfifo};

use super::*;

const FIRST: u32 = 1 << 20;

fn open(path: &Path) -> OwnedFd {
    open_folder(Utf8Path::from_path(path).unwrap()).unwrap()
}

fn whiteout(path: &Path) {
    nix::sys::stat::mknod(path, SFlag::S_IFCHR, Mode::empty(), 0).unwrap();
}

/// Host ids of ids inside.
fn own(path: &Path, uid: u32) {
    nix::unistd::fchownat(
        nix::fcntl::AT_FDCWD,
        path,
        Some(Uid::from_raw(FIRST + uid)),
        Some(Gid::from_raw(FIRST + uid)),
        AtFlags::AT_SYMLINK_NOFOLLOW,
    )
    .unwrap();
}

/// The tree as lines: kind, mode, owner, name, content.
fn shown(root: &Path) -> String {
    let mut lines = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let data = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let what = if data.is_dir() {
                todo.push(path.clone());
                let is_opaque = File::open(&path).unwrap().get_xattr(OPAQUE).unwrap().is_some();
                if is_opaque { "opaque folder".to_owned() } else { "folder".to_owned() }
            } else if data.is_symlink() {
                format!("link to {}", fs::read_link(&path).unwrap().display())
            } else if data.file_type().is_char_device() {
                "removed".to_owned()
            } else if data.file_type().is_fifo() {
                "pipe".to_owned()
            } else {
                format!("`{}`", fs::read_to_string(&path).unwrap())
            };
            lines.push(format!("{name}: {what} {:o} {}:{}", data.mode() & 0o7777, data.uid(), data.gid()));
        }
    }
    lines.sort();
    lines.join("\n")
}

fn copy(base: Option<&Path>, upper: &Path, to: &Path, bytes_max: u64) -> Done<SnapshotFacts> {
    fs::create_dir(to).unwrap();
    let mut copy = LayerCopy::new(FIRST, bytes_max);
    if let Some(base) = base {
        copy.begin_with(&open(base), &open(to))?;
    }
    copy.lay_over(&open(upper), &open(to))?;
    Ok(copy.facts())
}

#[test]
fn what_was_written_and_removed_is_kept_with_the_ids_of_inside() {
    let dir = tempfile::tempdir().unwrap();
    let (upper, one, two, next) =
        (dir.path().join("upper"), dir.path().join("one"), dir.path().join("two"), dir.path().join("next"));
    fs::create_dir_all(upper.join("data/deep")).unwrap();
    fs::write(upper.join("data/file"), "first").unwrap();
    fs::set_permissions(upper.join("data/file"), fs::Permissions::from_mode(0o640)).unwrap();
    symlink("/etc/passwd", upper.join("data/link")).unwrap();
    mkfifo(&upper.join("pipe"), Mode::from_bits_truncate(0o600)).unwrap();
    fs::set_permissions(upper.join("pipe"), fs::Permissions::from_mode(0o622)).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).unwrap();
    whiteout(&upper.join("gone"));
    fs::create_dir(upper.join("fresh")).unwrap();
    File::open(upper.join("fresh")).unwrap().set_xattr(OPAQUE, b"y").unwrap();
    for name in ["data", "data/deep", "data/file", "data/link", "pipe", "fresh"] {
        own(&upper.join(name), 1000);
    }
    chown(&upper, Some(Uid::from_raw(FIRST)), Some(Gid::from_raw(FIRST))).unwrap();
    let facts = copy(None, &upper, &one, 1 << 20).unwrap();
    assert_eq!((facts.bytes, facts.files), (5, 8));
    expect_test::expect![[r"
        data/deep: folder 755 1000:1000
        data/file: `first` 640 1000:1000
        data/link: link to /etc/passwd 777 1000:1000
        data: folder 755 1000:1000
        fresh: opaque folder 755 1000:1000
        gone: removed 0 0:0
        pipe: pipe 622 1000:1000"]]
    .assert_eq(&shown(&one));

    // another replica began with it: it removed, replaced and added
    fs::create_dir_all(next.join("data")).unwrap();
    fs::write(next.join("data/file"), "second").unwrap();
    whiteout(&next.join("data/deep"));
    fs::create_dir(next.join("data/link")).unwrap();
    fs::write(next.join("gone"), "back").unwrap();
    fs::create_dir(next.join("pipe")).unwrap();
    copy(Some(&one), &next, &two, 1 << 20).unwrap();
    expect_test::expect![[r"
        data/deep: removed 0 0:0
        data/file: `second` 644 65534:65534
        data/link: opaque folder 755 65534:65534
        data: folder 755 65534:65534
        fresh: opaque folder 755 1000:1000
        gone: `back` 644 65534:65534
        pipe: opaque folder 755 65534:65534"]]
    .assert_eq(&shown(&two));
    assert_eq!(fs::read_to_string(one.join("data/file")).unwrap(), "first", "the first one is as it was");
    remove_tree(Utf8Path::from_path(&one).unwrap()).unwrap();
    assert!(!one.exists() && fs::read_to_string("/etc/passwd").is_ok());
}

#[test]
fn limits_hold_and_holes_stay_holes() {
    let dir = tempfile::tempdir().unwrap();
    let upper = dir.path().join("upper");
    fs::create_dir(&upper).unwrap();
    let sparse = File::create(upper.join("sparse")).unwrap();
    sparse.set_len(1 << 36).unwrap();
    sparse.write_all_at(b"here", 1 << 35).unwrap();
    let facts = copy(None, &upper, &dir.path().join("whole"), 1 << 20).unwrap();
    assert!(facts.bytes <= 1 << 16, "{facts:?}");
    let made = File::open(dir.path().join("whole/sparse")).unwrap();
    let mut text = [0; 4];
    made.read_exact_at(&mut text, 1 << 35).unwrap();
    assert_eq!((made.metadata().unwrap().len(), &text), (1 << 36, b"here"));

    fs::write(upper.join("large"), vec![7; 2 << 20]).unwrap();
    let error = copy(None, &upper, &dir.path().join("cut"), 1 << 20).unwrap_err();
    assert!(matches!(error, CopyError::NoRoom(_)), "{error}");
    fs::remove_file(upper.join("large")).unwrap();

    let mut deep = upper.clone();
    for _ in 0..=DEPTH_MAX {
        deep.push("d");
        fs::create_dir(&deep).unwrap();
    }
    let error = copy(None, &upper, &dir.path().join("deep"), 1 << 20).unwrap_err();
    assert!(error.to_string().contains("128 deep"), "{error}");
}
