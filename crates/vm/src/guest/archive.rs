//! Archives as the kernel unpacks them into its initial file system (cpio, `newc`).

/// The bytes of an archive: paths without a leading slash, modes, contents. A mode without a kind is a file's.
pub(crate) fn of(files: &[(&str, u32, &[u8])]) -> Vec<u8> {
    const KINDS: u32 = 0o170_000;
    const REGULAR: u32 = 0o100_000;
    let mut out = Vec::new();
    for (number, (path, mode, content)) in (1u32..).zip(files) {
        let mode = if mode & KINDS == 0 { mode | REGULAR } else { *mode };
        entry(&mut out, number, path, mode, content);
    }
    entry(&mut out, 0, "TRAILER!!!", 0, &[]);
    out
}

fn entry(out: &mut Vec<u8>, inode: u32, path: &str, mode: u32, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("files of the guest are small");
    let name = u32::try_from(path.len() + 1).expect("paths are short");
    // owner, group, links, time; then size; four device numbers; length of the name; no checksum
    let numbers = [inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name, 0];
    out.extend_from_slice(b"070701");
    for number in numbers {
        out.extend_from_slice(format!("{number:08X}").as_bytes());
    }
    out.extend_from_slice(path.as_bytes());
    out.push(0);
    pad(out);
    out.extend_from_slice(content);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    while !out.len().is_multiple_of(4) {
        out.push(0);
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        process::{Command, Stdio},
    };

    use super::*;

    #[test]
    fn cpio_reads_it() {
        let archive = of(&[("modules", 0o40_755, &[]), ("modules/a", 0o644, b"content"), ("init", 0o755, b"x")]);
        let mut cpio = Command::new("busybox");
        cpio.args(["cpio", "-itv"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut cpio = cpio.spawn().expect("busybox is there: apt-get install busybox-static");
        cpio.stdin.take().unwrap().write_all(&archive).unwrap();
        let output = cpio.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        let shown: Vec<_> = lines.iter().map(|words| (words[0], words[2], words[words.len() - 1])).collect();
        assert_eq!(
            shown,
            [("drwxr-xr-x", "0", "modules"), ("-rw-r--r--", "7", "modules/a"), ("-rwxr-xr-x", "1", "init")]
        );
    }
}
