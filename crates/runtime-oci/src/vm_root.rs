//! What QEMU finds around it in its container: its program, the libraries that this names, and its firmware. Nothing else of
//! this machine.
//!
//! Made once per version of the program in a folder of its own, so that every machine's root is one more mount of it, and
//! all share one copy in memory.
//!
//! **Invariant:** a folder is complete or not there: it is made beside and renamed.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::Command,
};

use camino::{Utf8Path, Utf8PathBuf};

/// The program.
const PROGRAM: &str = "/usr/bin/qemu-system-x86_64";

/// Part of the program that Debian keeps apart: software emulation.
const MODULES: [&str; 1] = ["/usr/lib/x86_64-linux-gnu/qemu/accel-tcg-x86_64.so"];

/// Where the firmware is.
const FIRMWARE_DIR: &str = "/usr/share/qemu";

/// Firmware of the machines that we make, as far as it is there.
const FIRMWARE: [&str; 6] =
    ["bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin", "linuxboot.bin", "kvmvapic.bin", "efi-virtio.rom"];

/// Where the program is, as a machine's order names it.
pub(crate) const QEMU: &str = PROGRAM;

/// The lower directory of a machine's root, below `dir`; made when it is missing. Blocks for a moment.
pub(crate) fn make(dir: &Utf8Path) -> io::Result<Utf8PathBuf> {
    let program = fs::metadata(PROGRAM).map_err(|_| {
        io::Error::new(io::ErrorKind::NotFound, format!("{PROGRAM} is missing: `apt-get install qemu-system-x86`"))
    })?;
    let stamp = format!("qemu-{:x}-{:x}-{:x}", program.len(), program.mtime(), program.ino());
    let made = dir.join(&stamp).join("fs");
    if made.exists() {
        return Ok(made);
    }
    fs::create_dir_all(dir)?;
    for old in dir.read_dir_utf8()?.flatten() {
        // of another version, or never finished; running machines keep what they have mounted
        if old.file_name() != stamp {
            let _ = fs::remove_dir_all(old.path());
        }
    }
    let half = dir.join(format!("{stamp}.{}", std::process::id()));
    let root = half.join("fs");
    for folder in ["proc", "dev", "sys", "etc", "tmp", "machine"] {
        make_dir(&root, Utf8Path::new(folder))?;
    }
    let firmware = FIRMWARE.iter().map(|name| format!("{FIRMWARE_DIR}/{name}")).filter(|path| Path::new(path).exists());
    let modules = MODULES.iter().map(|path| (*path).to_owned()).filter(|path| Path::new(path).exists());
    let mut files: BTreeSet<String> = modules.chain([PROGRAM.to_owned()]).collect();
    for program in files.clone() {
        files.extend(libraries_of(&program)?);
    }
    for file in files.into_iter().chain(firmware) {
        copy(Utf8Path::new(&file), &root)?;
    }
    fs::rename(&half, dir.join(&stamp))?;
    Ok(made)
}

/// Absolute paths of what the loader takes along.
fn libraries_of(program: &str) -> io::Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).env("LC_ALL", "C").output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(io::Error::other(format!("the libraries of {program} are not known: {said}")));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text
        .split_whitespace()
        .filter(|word| word.starts_with('/') && !word.ends_with(':'))
        .map(str::to_owned)
        .collect())
}

/// Copies a file, links followed, to the same place below `root`.
fn copy(file: &Utf8Path, root: &Utf8Path) -> io::Result<()> {
    let inner = file.strip_prefix("/").map_err(io::Error::other)?;
    if let Some(parent) = inner.parent() {
        make_dir(root, parent)?;
    }
    let to = root.join(inner);
    fs::copy(file, &to)?;
    fs::set_permissions(&to, Permissions::from_mode(0o755))
}

/// A folder with all above it that anybody may pass, whatever this process' mask.
fn make_dir(root: &Utf8Path, inner: &Utf8Path) -> io::Result<()> {
    let path = root.join(inner);
    fs::create_dir_all(&path)?;
    for above in path.ancestors().take_while(|above| above.starts_with(root)) {
        fs::set_permissions(above, Permissions::from_mode(0o755))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn qemu_runs_on_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let dir = Utf8Path::from_path(dir.path()).unwrap();
        let root = make(dir).expect("`apt-get install qemu-system-x86`: the test needs it");
        assert_eq!(make(dir).unwrap(), root, "made once");
        let output = Command::new("chroot").args([root.as_str(), PROGRAM, "--version"]).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).contains("QEMU emulator"), "{output:?}");
        assert!(root.join("usr/share/qemu/bios-microvm.bin").exists());
        assert!(!root.join("usr/bin/env").exists());
    }
}
