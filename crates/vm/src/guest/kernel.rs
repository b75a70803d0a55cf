//! Debian's kernel package, read: the kernel itself uncompressed, and modules in the order in which they load.
//!
//! The machine boots the uncompressed kernel, which starts a third sooner than the one that unpacks itself. What it needs
//! of a module stands in the module (`depends=`), so no index is made.

use std::{
    collections::BTreeMap,
    fs,
    io::Read,
    path::{Path, PathBuf},
};

/// Longest kernel, uncompressed.
const KERNEL_BYTES_MAX: u64 = 256 << 20;

/// Largest module.
const MODULE_BYTES_MAX: u64 = 16 << 20;

/// The ELF file within a `vmlinuz`.
pub(super) fn uncompressed(image: &[u8]) -> Result<Vec<u8>, String> {
    // the boot protocol's header: sectors of the setup, then place and length of what is compressed
    let number = |at: usize| -> Result<usize, String> {
        let bytes = image.get(at..at + 4).ok_or("the kernel's file is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize)
    };
    if image.get(0x202..0x206) != Some(b"HdrS") {
        return Err("the kernel's file has no boot header".to_owned());
    }
    let setup = match usize::from(image[0x1f1]) {
        0 => 4,
        sectors => sectors,
    };
    let begin = (setup + 1) * 512 + number(0x248)?;
    let payload = image.get(begin..begin + number(0x24c)?).ok_or("the kernel's file is cut off")?;
    let kernel = match payload {
        [0x02, 0x21, 0x4c, 0x18, rest @ ..] => lz4(rest)?,
        [0x1f, 0x8b, ..] => read_all(flate2::read::GzDecoder::new(payload))?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => read_all(zstd::Decoder::new(payload).map_err(|error| error.to_string())?)?,
        _ => return Err("the kernel is compressed in a way that is not known (lz4, gzip and zstd are)".to_owned()),
    };
    if kernel.starts_with(b"\x7fELF") { Ok(kernel) } else { Err("what is compressed is no ELF file".to_owned()) }
}

fn read_all(reader: impl Read) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    let read = reader.take(KERNEL_BYTES_MAX).read_to_end(&mut out);
    // the length of what was compressed follows as four bytes, which zstd takes for a broken frame
    match read {
        Err(_) if out.starts_with(b"\x7fELF") => Ok(out),
        other => other.map(|_| out).map_err(|error| format!("the kernel cannot be unpacked: {error}")),
    }
}

/// The kernel's form of LZ4: blocks, each after its length; the length of all that is uncompressed at the end.
fn lz4(mut input: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::new();
    while let Some((length, rest)) = input.split_at_checked(4) {
        let length = u32::from_le_bytes(length.try_into().expect("four bytes")) as usize;
        let Some((block, rest)) = rest.split_at_checked(length) else { break };
        lz4_block(block, &mut out).ok_or("the kernel's LZ4 is broken")?;
        input = rest;
    }
    match <[u8; 4]>::try_from(input) {
        Ok(length) if u32::from_le_bytes(length) as usize == out.len() => Ok(out),
        _ => Err("the kernel's LZ4 has another length than it says".to_owned()),
    }
}

fn lz4_block(input: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let begin = out.len();
    let mut input = input.iter().copied();
    fn length(nibble: u8, input: &mut impl Iterator<Item = u8>) -> Option<usize> {
        let mut length = usize::from(nibble);
        let mut last = if nibble == 15 { 255 } else { 0 };
        while last == 255 {
            last = input.next()?;
            length += usize::from(last);
        }
        Some(length)
    }
    while let Some(token) = input.next() {
        let literals = length(token >> 4, &mut input)?;
        let before = out.len();
        out.extend(input.by_ref().take(literals));
        if out.len() != before + literals || out.len() as u64 > KERNEL_BYTES_MAX {
            return None;
        }
        let Some(low) = input.next() else { return Some(()) };
        let distance = usize::from(u16::from_le_bytes([low, input.next()?]));
        let matched = length(token & 15, &mut input)? + 4;
        let from = out.len().checked_sub(distance).filter(|from| distance > 0 && *from >= begin)?;
        if (out.len() + matched) as u64 > KERNEL_BYTES_MAX {
            return None;
        }
        // it may reach into what it writes
        for at in from..from + matched {
            out.push(out[at]);
        }
    }
    None
}

/// The modules of these names and all they need, each after what it needs: name and content.
pub(super) fn modules(tree: &Path, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut places = BTreeMap::new();
    find(tree, &mut places)?;
    let mut found = Vec::new();
    for name in wanted {
        add(name, &places, &mut found, 0)?;
    }
    Ok(found)
}

fn find(folder: &Path, places: &mut BTreeMap<String, PathBuf>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for entry in fs::read_dir(folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().map_err(failed)?.is_dir() {
            find(&entry.path(), places)?;
        } else if let Some(module) = name.split_once(".ko").map(|(module, _)| module) {
            places.insert(module.replace('-', "_"), entry.path());
        }
    }
    Ok(())
}

fn add(
    name: &str,
    places: &BTreeMap<String, PathBuf>,
    found: &mut Vec<(String, Vec<u8>)>,
    depth: usize,
) -> Result<(), String> {
    if found.iter().any(|(known, _)| known == name) {
        return Ok(());
    }
    let path = places.get(name).ok_or_else(|| format!("it has no module `{name}`"))?;
    if depth > 32 {
        return Err(format!("module `{name}` needs itself"));
    }
    let failed = |error: std::io::Error| format!("{}: {error}", path.display());
    let mut content = Vec::new();
    fs::File::open(path).map_err(failed)?.take(MODULE_BYTES_MAX).read_to_end(&mut content).map_err(failed)?;
    if !content.starts_with(b"\x7fELF") {
        return Err(format!("module `{name}` is compressed, which is not supported"));
    }
    for needed in needs(&content) {
        add(&needed, places, found, depth + 1)?;
    }
    found.push((name.to_owned(), content));
    Ok(())
}

/// What a module says that it needs.
fn needs(module: &[u8]) -> Vec<String> {
    const WORD: &[u8] = b"\0depends=";
    let Some(at) = module.windows(WORD.len()).position(|bytes| bytes == WORD) else { return Vec::new() };
    let text = module[at + WORD.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let text = String::from_utf8_lossy(text);
    text.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A `vmlinuz` as far as it is read.
    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 1024];
        image[0x1f1] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn kernels_are_unpacked() {
        let elf = [&b"\x7fELF"[..], &[b'a'; 40], b"bcd"].concat();
        // five literals, then the last of them 39 times more, then the rest
        let block = [&[0x5f, 0x7f, b'E', b'L', b'F', b'a', 1, 0, 20, 0x30][..], b"bcd"].concat();
        let lz4 = [&[0x02, 0x21, 0x4c, 0x18, 13, 0, 0, 0][..], &block, &47u32.to_le_bytes()].concat();
        assert_eq!(uncompressed(&image(&lz4)), Ok(elf.clone()));
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut gzip, &elf).unwrap();
        assert_eq!(uncompressed(&image(&gzip.finish().unwrap())), Ok(elf.clone()));
        let mut zstd = zstd::encode_all(&elf[..], 1).unwrap();
        zstd.extend(47u32.to_le_bytes());
        assert_eq!(uncompressed(&image(&zstd)), Ok(elf));
    }

    #[test]
    fn broken_kernels_are_errors() {
        for (image, expected) in [
            (vec![], "the kernel's file has no boot header"),
            (image(b"what"), "the kernel is compressed in a way that is not known (lz4, gzip and zstd are)"),
            (image(&[0x02, 0x21, 0x4c, 0x18, 1, 0, 0, 0, 0xf0]), "the kernel's LZ4 is broken"),
            (image(&[0x02, 0x21, 0x4c, 0x18, 4, 0, 0, 0, 0x10, b'a', 9, 0]), "the kernel's LZ4 is broken"),
            (image(&[0x02, 0x21, 0x4c, 0x18, 9]), "the kernel's LZ4 has another length than it says"),
        ] {
            assert_eq!(uncompressed(&image), Err(expected.to_owned()));
        }
    }

    #[test]
    fn modules_come_after_what_they_need() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, needs: &str| {
            let place = folder.path().join("kernel").join(name);
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(place, format!("\x7fELF\0license=GPL\0depends={needs}\0name=x\0")).unwrap();
        };
        write("net/virtio-net.ko", "virtio,net-failover");
        write("net/net_failover.ko", "failover");
        write("core/failover.ko", "");
        write("virtio.ko", "");
        write("broken.ko", "missing");
        let order = |wanted: &[&str]| {
            modules(folder.path(), wanted).map(|found| found.into_iter().map(|(name, _)| name).collect::<Vec<_>>())
        };
        assert_eq!(order(&["virtio_net", "virtio"]).unwrap(), ["virtio", "failover", "net_failover", "virtio_net"]);
        assert_eq!(order(&["broken"]), Err("it has no module `missing`".to_owned()));
    }
}
