//! The scalers a custom rule may name, and the metadata keys each of them reads.
//!
//! The table is text beside this file, so that it can be compared with KEDA's schema line by line.
//!
//! **Invariant:** every line of the table can be parsed; a test reads all of them.

/// The table.
const TABLE: &str = include_str!("catalogue.txt");

/// One key of a scaler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key<'a> {
    pub(super) name: &'a str,
    pub(super) required: bool,
    /// Also read from the environment variable that `<name>FromEnv` names.
    pub(super) from_env: bool,
    /// Also an `auth` parameter.
    pub(super) from_auth: bool,
    /// Not metadata at all.
    pub(super) auth_only: bool,
    /// The values allowed, separated by `|`; empty = any.
    pub(super) allowed: &'a str,
}

/// The keys of a scaler; `None` when there is no such scaler.
pub(super) fn keys_of(scaler: &str) -> Option<impl Iterator<Item = Key<'static>>> {
    let lines = TABLE.lines().filter(|line| !line.starts_with('#'));
    let (_, keys) = lines.filter_map(|line| line.split_once(": ")).find(|(name, _)| *name == scaler)?;
    Some(keys.split(' ').map(parse))
}

fn parse(text: &str) -> Key<'_> {
    let (text, allowed) = text.split_once('=').unwrap_or((text, ""));
    let (text, sources) = text.split_once('/').unwrap_or((text, ""));
    let (name, required) = text.strip_suffix('!').map_or((text, false), |name| (name, true));
    Key {
        name,
        required,
        from_env: sources.contains('e'),
        from_auth: sources.contains(['a', 'A']),
        auth_only: sources.contains('A'),
        allowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_scaler_with_keys() {
        let lines: Vec<_> = TABLE.lines().filter(|line| !line.starts_with('#')).collect();
        assert!(lines.len() > 50 && lines.is_sorted_by_key(|line| line.split(':').next()));
        for line in lines {
            let (scaler, _) = line.split_once(": ").unwrap();
            for key in keys_of(scaler).unwrap() {
                assert!(!key.name.is_empty() && !key.name.contains(['/', '=', '!', '|']), "{line}");
            }
        }
    }

    #[test]
    fn marks_are_read() {
        assert_eq!(
            parse("password!/ea=x|y"),
            Key { name: "password", required: true, from_env: true, from_auth: true, auth_only: false, allowed: "x|y" }
        );
        assert!(parse("cert/A").auth_only);
    }
}
