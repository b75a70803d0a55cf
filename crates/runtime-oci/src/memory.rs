//! What the memory of a container is kept in, and what CRIU is told: images of its processes, made on one sandbox and brought
//! back in another.
//!
//! The two sandboxes differ: other host ids, another network, another host name, other pipes for the output. What of that the
//! images hold is written anew ([`localize`]): the map of ids, the name, and the filter, whose notices nobody would answer.
//! What stands outside of a container (nodes of /dev, files of the platform, the root) is told to CRIU both times.
//!
//! CRIU runs in the network namespace of the sandbox: that belongs to no user namespace of a sandbox, and CRIU refuses
//! namespaces whose owner it would not make.
//!
//! **Invariant:** a folder with [`FACTS_FILE`] is whole.

use std::{
    ffi::OsString,
    fs::{self, Permissions},
    io,
    os::unix::fs::PermissionsExt as _,
    process::{Command, Stdio},
    time::Duration,
};

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};

use crate::{protocol::write_atomically, shim::IDS_PER_REPLICA, wait::wait};

/// Folder of the images, in a replica's folder while they are made and in its snapshot afterwards.
pub(crate) const MEMORY_DIR: &str = "memory";

/// What is known of the images, beside them.
pub(crate) const FACTS_FILE: &str = "cove.json";

/// Where CRIU says what it cannot do.
pub(crate) const LOG_FILE: &str = "criu.log";

/// Where CRIU says which process it has made.
pub(crate) const PID_FILE: &str = "pid";

/// What CRIU has found out about the kernel, which it keeps in /run where that is in memory. Inside of a control group that
/// shuts devices it cannot find it out again.
pub(crate) const KERNEL_FILE: &str = "criu.kdat";

/// Folder below a replica's stage that CRIU has as its /run.
pub(crate) const RUN_DIR: &str = "criu";

/// Folders of programs: CRIU itself, and `tar`, which it needs.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Longest time that CRIU may take to look at this machine.
const CHECK_LIMIT: Duration = Duration::from_secs(20);

/// Largest files that are deleted and still open, as CRIU takes it.
const GHOST_LIMIT: &str = "32M";

/// Of an image; folders around it are closed.
const FILE_MODE: u32 = 0o644;

/// Most bytes of a log that are read.
const LOG_BYTES_MAX: u64 = 256 << 10;

/// What goes with images of a container's processes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemoryFacts {
    /// The layers of its image: programs are mapped from there.
    pub(crate) layers: Vec<Utf8PathBuf>,
    /// Numbers of the pipes that are its output and its errors.
    pub(crate) outputs: [u64; 2],
    /// Where something from outside is mounted inside, and what.
    pub(crate) mounts: Vec<(String, Outside)>,
}

/// What is mounted into a container from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outside {
    /// A path below /dev of this machine, beginning with `/`.
    Device(String),
    /// A path below the stage of its replica, beginning with `/`.
    Stage(String),
}

/// What stands outside among the mounts of a process, as `/proc/<pid>/mountinfo` has them.
pub(crate) fn outside_mounts(mountinfo: &str) -> Result<Vec<(String, Outside)>, String> {
    let mut all = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut fields = left.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else { continue };
        if root == "/" || right.starts_with("proc ") {
            continue;
        }
        let is_odd = [root, point].iter().any(|path| path.contains(['\\', ':', '[', ']']) || path.contains(".."));
        let source = match point {
            _ if is_odd => None,
            _ if point.starts_with("/dev/") || point.starts_with("/proc/") => Some(Outside::Device(root.to_owned())),
            _ if point.starts_with("/etc/") => Some(Outside::Stage(root.to_owned())),
            _ => None,
        };
        let source = source.ok_or_else(|| format!("`{point}` is mounted from outside"))?;
        all.push((point.to_owned(), source));
    }
    Ok(all)
}

/// Lets everybody read images who gets at their folder: CRIU reads some of them as nobody, from inside.
pub(crate) fn open_up(dir: &Utf8Path) -> io::Result<()> {
    for entry in dir.read_dir_utf8()? {
        fs::set_permissions(entry?.path(), Permissions::from_mode(FILE_MODE))?;
    }
    fs::set_permissions(dir, Permissions::from_mode(0o755))
}

/// Takes along what is known of the kernel, where it is.
pub(crate) fn copy_kernel_file(from: &Utf8Path, to: &Utf8Path) -> io::Result<()> {
    match fs::copy(from.join(KERNEL_FILE), to.join(KERNEL_FILE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// CRIU, with nothing of this process but what it is given.
pub(crate) fn command(program: &Utf8Path) -> Command {
    let mut command = Command::new(program.as_str());
    command.env_clear().env("PATH", PATH).env("HOME", "/").env("LC_ALL", "C").current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

fn both(verb: &str, dir: &Utf8Path, work: &Utf8Path) -> Vec<OsString> {
    // sockets: those with the outside are closed in what is brought back
    let fixed = ["-o", LOG_FILE, "-v1", "--manage-cgroups=ignore", "--tcp-close", "--file-locks", "--ext-unix-sk"];
    [verb, "-D", dir.as_str(), "-W", work.as_str()].into_iter().chain(fixed).map(OsString::from).collect()
}

/// What CRIU is told to keep the memory of a process and all below it in `dir`, and to let them go on.
pub(crate) fn dump_arguments(pid: i32, dir: &Utf8Path, freezer: &str, facts: &MemoryFacts) -> Vec<OsString> {
    let mut all = both("dump", dir, dir);
    let more = ["--leave-running", "--skip-in-flight", "--ghost-limit", GHOST_LIMIT, "--freeze-cgroup", freezer];
    all.extend(more.map(OsString::from));
    all.extend(
        ["-t".to_owned(), pid.to_string(), "--external".to_owned(), "mnt[/]:root".to_owned()].map(OsString::from),
    );
    let pipes = facts.outputs.iter().map(|inode| format!("pipe:[{inode}]"));
    let mounts = facts.mounts.iter().map(|(point, _)| format!("mnt[{point}]:{point}"));
    for external in pipes.chain(mounts) {
        all.extend(["--external".into(), external.into()]);
    }
    all
}

/// What CRIU is told to bring processes back as children of its own parent, with the root, the stage and the outputs (by
/// their numbers) of another sandbox. What it has to say it writes into `work`.
pub(crate) fn restore_arguments(
    (dir, work): (&Utf8Path, &Utf8Path),
    (root, stage): (&Utf8Path, &Utf8Path),
    outputs: [i32; 2],
    facts: &MemoryFacts,
) -> Vec<OsString> {
    let mut all = both("restore", dir, work);
    let pid = work.join(PID_FILE);
    let more = ["--restore-detached", "--restore-sibling", "--pidfile", pid.as_str(), "--root", root.as_str()];
    all.extend(more.map(OsString::from));
    for (point, source) in &facts.mounts {
        let source = match source {
            Outside::Device(path) => format!("/dev{path}"),
            Outside::Stage(path) => format!("{stage}{path}"),
        };
        all.extend(["--external".into(), format!("mnt[{point}]:{source}").into()]);
    }
    for (fd, inode) in outputs.iter().zip(facts.outputs) {
        all.extend(["--inherit-fd".into(), format!("fd[{fd}]:pipe:[{inode}]").into()]);
    }
    all
}

/// Writes those images anew that are to be others for another sandbox, into a folder that is there; their names.
pub(crate) fn localize(
    images: &Utf8Path,
    into: &Utf8Path,
    (first_id, host_name): (u32, &str),
) -> io::Result<Vec<String>> {
    let mut all = Vec::new();
    for entry in images.read_dir_utf8()? {
        let entry = entry?;
        let name = entry.file_name();
        let written = if name.starts_with("userns-") {
            image_of(&fs::read(entry.path())?, &id_maps(first_id))?
        } else if name.starts_with("utsns-") {
            image_of(&fs::read(entry.path())?, &names(host_name))?
        } else if name == "seccomp.img" {
            without_notices(fs::read(entry.path())?)
        } else {
            continue;
        };
        write_atomically(&into.join(name), &written)?;
        fs::set_permissions(into.join(name), Permissions::from_mode(FILE_MODE))?;
        all.push(name.to_owned());
    }
    Ok(all)
}

/// An image with one message: the eight bytes that say what it is, the length, the message.
fn image_of(old: &[u8], message: &[u8]) -> io::Result<Vec<u8>> {
    let head = old.get(..8).ok_or_else(|| io::Error::other("an image of CRIU is too short"))?;
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    Ok([head, &length.to_le_bytes(), message].concat())
}

fn number(mut value: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        if value == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A field of bytes of a message of Protocol Buffers.
fn field(index: u8, bytes: &[u8]) -> Vec<u8> {
    [&[index << 3 | 2][..], &number(u32::try_from(bytes.len()).unwrap_or(u32::MAX)), bytes].concat()
}

/// `userns_entry`: both maps have one range, of (inside, outside, count).
fn id_maps(first_id: u32) -> Vec<u8> {
    let range = [(1_u8, 0), (2, first_id), (3, IDS_PER_REPLICA)];
    let range: Vec<u8> = range.iter().flat_map(|(index, value)| [vec![index << 3], number(*value)].concat()).collect();
    [field(1, &range), field(2, &range)].concat()
}

/// `utsns_entry`: the host's name and the domain's.
fn names(host_name: &str) -> Vec<u8> {
    [field(1, host_name.as_bytes()), field(2, b"(none)")].concat()
}

/// Filters whose notices are allowed calls: nobody holds the other end of those any more.
fn without_notices(mut image: Vec<u8>) -> Vec<u8> {
    // `ret` with a constant: code, two jumps, SECCOMP_RET_USER_NOTIF; and the same with SECCOMP_RET_ALLOW
    const NOTICE: [u8; 8] = [6, 0, 0, 0, 0, 0, 0xc0, 0x7f];
    const ALLOWED: [u8; 8] = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
    let mut at = 0;
    while let Some(found) = image.get(at..at + NOTICE.len()) {
        if found == NOTICE {
            image[at..at + NOTICE.len()].copy_from_slice(&ALLOWED);
            at += NOTICE.len();
        } else {
            at += 1;
        }
    }
    image
}

/// Why CRIU did not do it, in its own words.
pub(crate) fn why_not(dir: &Utf8Path, code: i32) -> String {
    use io::Read as _;
    let mut text = Vec::new();
    if let Ok(file) = fs::File::open(dir.join(LOG_FILE)) {
        // what cannot be read has no words
        let _ = file.take(LOG_BYTES_MAX).read_to_end(&mut text);
    }
    let text = String::from_utf8_lossy(&text);
    match first_errors(&text) {
        Some(words) => format!("CRIU says: {words}"),
        None => format!("CRIU ended with code {code} and does not say why"),
    }
}

/// The first errors: one of them is the cause of those that follow.
fn first_errors(log: &str) -> Option<String> {
    let errors = log.lines().filter(|line| line.contains("Error (") && !line.contains("rlimit: Can't setup"));
    let words = errors.map(|line| line.split_once("): ").map_or(line, |(_, words)| words).trim());
    let words: Vec<&str> = words.filter(|words| !words.is_empty()).take(3).collect();
    (!words.is_empty()).then(|| words.join("; ").chars().take(300).collect())
}

/// Bytes of the files of a folder.
pub(crate) fn bytes_of(dir: &Utf8Path) -> io::Result<u64> {
    let mut sum = 0;
    for entry in dir.read_dir_utf8()? {
        sum += entry?.metadata()?.len();
    }
    Ok(sum)
}

/// The program, if this machine has it: a path, or a name on the path of programs.
pub(crate) fn find(program: &str) -> Result<Utf8PathBuf, String> {
    let is_program = |path: &Utf8PathBuf| path.is_file();
    let found = if program.contains('/') {
        Some(Utf8PathBuf::from(program)).filter(is_program)
    } else {
        let own = std::env::var("PATH").unwrap_or_default();
        let folders: Vec<_> = own.split(':').chain(PATH.split(':')).filter(|folder| folder.starts_with('/')).collect();
        folders.into_iter().map(|folder| Utf8Path::new(folder).join(program)).find(is_program)
    };
    found.ok_or_else(|| format!("CRIU is not installed: there is no program `{program}`"))
}

/// Whether CRIU and this machine's kernel get along; its version. Blocks for a moment.
pub(crate) fn check(program: &Utf8Path) -> Result<String, String> {
    let run = |argument: &str| -> io::Result<Option<(bool, String)>> {
        let (output, theirs) = io::pipe()?;
        let mut command = command(program);
        command.arg(argument).stdout(theirs.try_clone()?).stderr(theirs);
        let child = command.spawn()?;
        // its end of the pipe
        drop(command);
        let ended = wait(child, CHECK_LIMIT)?;
        let mut text = Vec::new();
        if ended.is_some() {
            io::Read::read_to_end(&mut io::Read::take(output, LOG_BYTES_MAX), &mut text)?;
        }
        Ok(ended.map(|status| (status.success(), String::from_utf8_lossy(&text).into_owned())))
    };
    let told = |argument| match run(argument) {
        Ok(Some((is_ok, text))) => Ok((is_ok, text)),
        Ok(None) => Err(format!("`{program} {argument}` takes longer than {} s", CHECK_LIMIT.as_secs())),
        Err(error) => Err(format!("`{program} {argument}` cannot be run: {error}")),
    };
    let (_, text) = told("--version")?;
    let Some(version) = text.lines().find_map(|line| line.strip_prefix("Version: ")) else {
        return Err(format!("`{program}` is not CRIU: its `--version` names none"));
    };
    let version = version.trim().to_owned();
    match told("check")? {
        (true, _) => Ok(version),
        (false, text) => {
            let words = first_errors(&text).unwrap_or_else(|| "it does not say why".to_owned());
            Err(format!("CRIU {version} does not get along with this kernel: {words}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "179 159 0:43 / / rw - overlay overlay rw\n\
        180 179 0:49 / /proc rw - proc proc rw\n\
        160 180 0:49 /bus /proc/bus ro - proc proc rw\n\
        184 179 0:40 /etc/hosts /etc/hosts ro - tmpfs tmpfs rw\n\
        188 181 0:6 /null /dev/null rw - devtmpfs devtmpfs rw\n\
        164 180 0:53 / /proc/acpi ro - tmpfs tmpfs ro\n\
        165 180 0:6 /null /proc/keys rw - devtmpfs devtmpfs rw\n";

    #[test]
    fn what_is_mounted_from_outside_is_told_and_nothing_else() {
        let found = outside_mounts(MOUNTS).unwrap();
        let device = |path: &str| Outside::Device(path.to_owned());
        let expected = vec![
            ("/etc/hosts".to_owned(), Outside::Stage("/etc/hosts".to_owned())),
            ("/dev/null".to_owned(), device("/null")),
            ("/proc/keys".to_owned(), device("/null")),
        ];
        assert_eq!(found, expected);
        for odd in ["1 2 0:6 /x /mnt/data rw - ext4 /dev/x rw", "1 2 0:6 /../x /etc/hosts rw - tmpfs tmpfs rw"] {
            assert!(outside_mounts(odd).unwrap_err().contains("from outside"));
        }
    }

    #[test]
    fn images_are_written_anew_for_another_sandbox() {
        // as CRIU 4.2 wrote it for ids from 1961164800 on
        let mut old = vec![0x19, 0x43, 0x56, 0x54, 0x06, 0x49, 0x47, 0x55, 0x1c, 0, 0, 0];
        let range = [0x0c, 0x08, 0, 0x10, 0x80, 0x80, 0x94, 0xa7, 0x07, 0x18, 0x80, 0x80, 0x04];
        old.extend([&[0x0a], &range[..], &[0x12], &range[..]].concat());
        assert_eq!(image_of(&old, &id_maps(1_961_164_800)).unwrap(), old);
        assert_ne!(image_of(&old, &id_maps(65_536)).unwrap(), old);
        assert!(image_of(&old[..4], &[]).is_err());
        assert_eq!(names("ab"), [&[0x0a, 2][..], b"ab", &[0x12, 6], b"(none)"].concat());
        let filter = [1, 2, 6, 0, 0, 0, 0, 0, 0xc0, 0x7f, 6, 0, 0, 0, 1, 0, 5, 0];
        let allowed = [1, 2, 6, 0, 0, 0, 0, 0, 0xff, 0x7f, 6, 0, 0, 0, 1, 0, 5, 0];
        assert_eq!(without_notices(filter.to_vec()), allowed);
    }

    #[test]
    fn the_first_errors_of_a_log_are_told() {
        let log = "(00.03) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: no\n\
            (00.2) Warn  (criu/x.c:1): Error nothing\n(00.20) Error (criu/sk-inet.c:185): inet: In-flight connection\n\
            (00.21) Error (criu/cr-dump.c:1975): Dumping FAILED.\n";
        assert_eq!(first_errors(log).as_deref(), Some("inet: In-flight connection; Dumping FAILED."));
        assert_eq!(first_errors("all is well"), None);
    }

    #[test]
    fn a_program_that_is_not_there_is_told() {
        assert!(find("no-such-criu").unwrap_err().contains("not installed"));
        assert!(find("sh").unwrap().as_str().ends_with("/sh"));
        let wrong = check(&find("true").unwrap()).unwrap_err();
        assert!(wrong.contains("is not CRIU"), "{wrong}");
        let dir = tempfile::tempdir().unwrap();
        let old = Utf8Path::from_path(dir.path()).unwrap().join("old");
        let says = "#!/bin/sh\n[ $1 = --version ] && { echo 'Version: 3.17'; exit; }\n\
            echo '(00.01) Error (criu/x.c:1): no such call'; exit 1\n";
        std::fs::write(&old, says).unwrap();
        std::fs::set_permissions(&old, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let wrong = check(&old).unwrap_err();
        assert_eq!(wrong, "CRIU 3.17 does not get along with this kernel: no such call");
    }
}
