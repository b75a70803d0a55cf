//! Whom a process runs as: `user[:group]` of the image, looked up in the image's own files.

use std::fs;

use crate::sys::Ids;

/// A resolved user and their home.
#[derive(Clone, Debug, Default)]
pub(crate) struct User {
    pub(crate) ids: Ids,
    pub(crate) home: Option<String>,
}

/// Resolves `text` in this system's files.
pub(crate) fn resolve(text: &str) -> Result<User, String> {
    // a file that is not there has no users
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    resolve_in(text.trim(), &read("/etc/passwd"), &read("/etc/group"))
}

fn lines(text: &str, fields: usize) -> impl Iterator<Item = Vec<&str>> {
    text.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(move |parts| parts.len() >= fields)
}

fn resolve_in(text: &str, passwd: &str, group: &str) -> Result<User, String> {
    let (name, group_name) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
    let name = if name.is_empty() { "0" } else { name };
    let number = name.parse::<u32>().ok();
    let found =
        lines(passwd, 6).find(|parts| parts[0] == name || (number.is_some() && parts[2].parse::<u32>().ok() == number));
    let mut user = User::default();
    match (&found, number) {
        (Some(parts), _) => {
            let wrong = |_| format!("the image's /etc/passwd gives no number for user `{name}`");
            user.ids.uid = parts[2].parse().map_err(wrong)?;
            user.ids.gid = parts[3].parse().unwrap_or(0);
            user.home = Some(parts[5].to_owned()).filter(|home| home.starts_with('/'));
        }
        (None, Some(uid)) => user.ids.uid = uid,
        (None, None) => {
            return Err(format!("user `{name}` is not in the image's /etc/passwd; name one that is, or use a number"));
        }
    }
    if let Some(group_name) = group_name {
        let by_name = lines(group, 3).find(|parts| parts[0] == group_name).and_then(|parts| parts[2].parse().ok());
        let gid = by_name.or_else(|| group_name.parse().ok());
        user.ids.gid = gid.ok_or_else(|| {
            format!("group `{group_name}` is not in the image's /etc/group; name one that is, or use a number")
        })?;
    } else if let Some(parts) = &found {
        let (login, own) = (parts[0], user.ids.gid);
        user.ids.groups = lines(group, 4)
            .filter(|group| group[3].split(',').any(|member| member == login))
            .filter_map(|group| group[2].parse().ok())
            .filter(|gid| *gid != own)
            .collect();
    }
    Ok(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found() {
        let passwd = "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\nbad:x:y:1::/:/bin/sh\n";
        let group = "root:x:0:\nweb:x:34:\nlog:x:5:web,root\n";
        let show = |text: &str| match resolve_in(text, passwd, group) {
            Ok(User { ids, home }) => format!("{}:{} {:?} {}", ids.uid, ids.gid, ids.groups, home.unwrap_or_default()),
            Err(error) => error,
        };
        for (text, expected) in [
            ("", "0:0 [5] /root"),
            ("web", "33:34 [5] /srv"),
            ("33", "33:34 [5] /srv"),
            ("web:log", "33:5 [] /srv"),
            ("1000", "1000:0 [] "),
            ("1000:7", "1000:7 [] "),
            ("bad", "the image's /etc/passwd gives no number for user `bad`"),
            ("no", "user `no` is not in the image's /etc/passwd; name one that is, or use a number"),
            ("web:no", "group `no` is not in the image's /etc/group; name one that is, or use a number"),
        ] {
            assert_eq!(show(text), expected, "{text}");
        }
    }
}
