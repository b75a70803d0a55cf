//! The scalers a custom rule may name, and the metadata keys each of them reads.
//!
//! The table is text beside this file, so that it can be compared with KEDA's schema line by line.
//!
//! **Invariant:** every line of the table can be parsed; a test reads all of them.
//! **Invariant:** a scaler is in the table exactly when Cove reads it; `server` has the test, since it sees both sides.

/// The table.
const TABLE: &str = include_str!("catalogue.txt");

/// One key of a scaler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key<'a> {
    /// As KEDA spells it.
    pub name: &'a str,
    /// Whether a rule without it is wrong.
    pub required: bool,
    /// Whether metadata may hold the value itself.
    pub in_metadata: bool,
    /// Whether `<name>FromEnv` may name an environment variable of the first container that holds it.
    pub from_env: bool,
    /// Whether an `auth` entry may name a secret that holds it.
    pub from_auth: bool,
    /// Whether anything here reads it; KEDA has some keys that do nothing here.
    pub has_effect: bool,
    /// The values allowed, separated by `|`; empty = any.
    pub allowed: &'a str,
    /// What holds when it is not given; empty = nothing.
    pub default: &'a str,
}

/// The scalers that a custom rule may name, sorted.
pub fn scalers() -> impl Iterator<Item = &'static str> {
    lines().map(|(scaler, _)| scaler)
}

/// The keys of a scaler; `None` when there is no such scaler.
pub fn keys_of(scaler: &str) -> Option<impl Iterator<Item = Key<'static>>> {
    let (_, keys) = lines().find(|(name, _)| *name == scaler)?;
    Some(keys.split(' ').map(parse))
}

/// Scalers that the table has for later: nothing reads them yet, and a rule that names one is refused.
#[cfg(test)]
pub(super) fn later() -> impl Iterator<Item = &'static str> {
    TABLE.lines().filter_map(|line| line.strip_prefix('?')?.split_once(": ")).map(|(scaler, _)| scaler)
}

fn lines() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.lines().filter(|line| !line.starts_with(['#', '?'])).filter_map(|line| line.split_once(": "))
}

fn parse(text: &str) -> Key<'_> {
    let (text, has_effect) = text.strip_prefix('-').map_or((text, true), |text| (text, false));
    let (text, default) = text.split_once('~').unwrap_or((text, ""));
    let (text, allowed) = text.split_once('=').unwrap_or((text, ""));
    let (text, sources) = text.split_once('/').unwrap_or((text, ""));
    let (name, required) = text.strip_suffix('!').map_or((text, false), |name| (name, true));
    Key {
        name,
        required,
        in_metadata: !sources.contains(['A', 'E']),
        from_env: sources.contains(['e', 'E']),
        from_auth: sources.contains(['a', 'A']),
        has_effect,
        allowed,
        default,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_a_scaler_with_keys() {
        assert!(scalers().count() > 20 && scalers().is_sorted());
        for scaler in scalers() {
            let mut seen = std::collections::BTreeSet::new();
            for key in keys_of(scaler).unwrap() {
                assert!(
                    !key.name.is_empty() && !key.name.contains(['/', '=', '!', '|', '~', '-']),
                    "{scaler}: {key:?}"
                );
                assert!(seen.insert(key.name), "{scaler}: {} is there twice", key.name);
                assert!(key.in_metadata || key.from_env || key.from_auth, "{scaler}: {key:?}");
                assert!(
                    key.allowed.is_empty()
                        || key.default.is_empty()
                        || key.allowed.split('|').any(|a| a == key.default)
                );
            }
        }
    }

    #[test]
    fn marks_are_read() {
        let key = Key {
            name: "password",
            required: true,
            in_metadata: true,
            from_env: true,
            from_auth: true,
            has_effect: true,
            allowed: "x|y",
            default: "",
        };
        assert_eq!(parse("password!/ea=x|y"), key);
        let key = Key { required: false, in_metadata: false, allowed: "", default: "https://a", ..key };
        assert_eq!(parse("password/Ea~https://a"), key);
        assert_eq!(parse("-password/A"), Key { from_env: false, has_effect: false, default: "", ..key });
    }
}
