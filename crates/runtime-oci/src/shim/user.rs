//! Whom a container runs as: `user[:group]` of the image, looked up in the image's own files.
//!
//! **Invariant:** the files are opened with the container's root as the root, so a link in the image leads nowhere else.

use std::{fs::File, io::Read as _, path::Path};

use cove_base::open_confined;
use nix::{
    errno::Errno,
    fcntl::{OFlag, OpenHow, ResolveFlag, open},
    sys::stat::Mode,
};

/// Most bytes read of a user or group file.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// A resolved user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
    /// Home directory, if the files say.
    pub(crate) home: Option<String>,
}

/// Resolves `text` in the root file system at `root`.
pub(crate) fn resolve(text: &str, root: &Path) -> Result<User, String> {
    resolve_in(text, &read(root, "etc/passwd")?, &read(root, "etc/group")?)
}

/// The text of a file, empty where there is none.
fn read(root: &Path, path: &str) -> Result<String, String> {
    let opened = open(root, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).and_then(|root| {
        // an image may have a pipe there, which nobody writes
        let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        open_confined(&root, path, OpenHow::new().flags(flags).resolve(ResolveFlag::RESOLVE_IN_ROOT))
    });
    let mut text = String::new();
    match opened {
        // what is not text has no users
        Ok(file) => drop(File::from(file).take(FILE_BYTES_MAX).read_to_string(&mut text)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => {}
        Err(error) => return Err(format!("the image's /{path} cannot be opened: {error}")),
    }
    Ok(text)
}

fn resolve_in(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let text = text.trim();
    let (name, group_name) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group)),
        None => (text, None),
    };
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let entry = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| {
        fields.len() >= 6 && (fields[0] == name || (number.is_some() && fields[2].parse().ok() == number))
    });
    let mut user = match (&entry, number) {
        (Some(fields), _) => User {
            uid: fields[2].parse().map_err(|_| format!("the image's /etc/passwd gives no number for user `{name}`"))?,
            gid: fields[3].parse().unwrap_or(0),
            additional_gids: Vec::new(),
            home: Some(fields[5].to_owned()).filter(|home| home.starts_with('/')),
        },
        (None, Some(uid)) => User { uid, ..User::default() },
        (None, None) => {
            return Err(format!(
                "user `{name}` is not in the image's /etc/passwd; name one that is, or use a number in the image"
            ));
        }
    };
    let groups = || group.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4);
    if let Some(group_name) = group_name {
        let number = group_name.parse().ok();
        let found = groups().find(|fields| fields[0] == group_name).and_then(|fields| fields[2].parse().ok());
        user.gid = found.or(number).ok_or_else(|| {
            format!("group `{group_name}` is not in the image's /etc/group; name one that is, or use a number")
        })?;
    } else if let Some(fields) = &entry {
        user.additional_gids = groups()
            .filter(|group| group[3].split(',').any(|member| member == fields[0]))
            .filter_map(|group| group[2].parse().ok())
            .filter(|gid| *gid != user.gid)
            .collect();
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_looked_up() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\nbroken\n";
        let group = "app:x:1001:\nextra:x:2000:other,app\n";
        let check = |text: &str| resolve_in(text, passwd, group).map(|u| (u.uid, u.gid, u.additional_gids));
        assert_eq!(check(""), Ok((0, 0, vec![])));
        assert_eq!(check("app"), Ok((1000, 1001, vec![2000])));
        assert_eq!(check("1000"), Ok((1000, 1001, vec![2000])));
        assert_eq!(check("77"), Ok((77, 0, vec![])));
        assert_eq!(check("app:extra"), Ok((1000, 2000, vec![])));
        assert_eq!(check("5:6"), Ok((5, 6, vec![])));
        assert!(check("nobody").unwrap_err().contains("/etc/passwd"));
        assert!(check("app:none").unwrap_err().contains("/etc/group"));
    }

    #[test]
    fn a_link_does_not_lead_out_of_the_image() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("etc/passwd")).unwrap();
        assert!(resolve("root", root.path()).is_err());
    }

    #[test]
    fn what_is_no_file_of_users_has_none() {
        let root = tempfile::tempdir().unwrap();
        let etc = root.path().join("etc");
        std::fs::create_dir_all(etc.join("group")).unwrap();
        nix::unistd::mkfifo(&etc.join("passwd"), Mode::S_IRWXU).unwrap();
        assert_eq!(resolve("7", root.path()).map(|user| (user.uid, user.gid)), Ok((7, 0)));
        std::fs::remove_file(etc.join("passwd")).unwrap();
        std::fs::write(root.path().join("users"), "app:x:1000:1001::/home/app:/bin/sh\n").unwrap();
        std::os::unix::fs::symlink("../etc/../users", etc.join("passwd")).unwrap();
        assert_eq!(resolve("app", root.path()).map(|user| user.uid), Ok(1000), "a link may go up inside");
    }
}
