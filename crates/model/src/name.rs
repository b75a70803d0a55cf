//! Names that exist only when they are valid: revisions and replicas.
//!
//! A revision is `<app>--<suffix>`, a replica `<revision>-<hash>`; both end up in host names, cgroup and directory
//! names, so nothing but lower-case letters, digits and dashes gets in.

use std::{fmt, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::ResourceId;

/// Why a text is not a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a valid {what} name: {rule}")]
pub struct InvalidName {
    /// What was to be named: `container app`, `revision`, …
    pub what: &'static str,
    /// The refused text.
    pub text: String,
    /// The rule in words.
    pub rule: &'static str,
}

/// Container app names: 2 to 32 of `a-z0-9-`, first a letter, last no dash, no `--` (Azure: "Container Apps naming rules").
pub const APP_NAME_RULE: &str = "use 2 to 32 lower case letters, digits and `-`, start with a letter, end with a letter or digit, and do not use `--`";

/// Checks a container app (or job) name.
///
/// # Errors
/// [`InvalidName`] with [`APP_NAME_RULE`].
pub fn check_app_name(text: &str) -> Result<(), InvalidName> {
    let chars_ok = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let shape_ok = text.starts_with(|c: char| c.is_ascii_lowercase()) && !text.ends_with('-') && !text.contains("--");
    if (2..=32).contains(&text.len()) && chars_ok && shape_ok {
        return Ok(());
    }
    Err(InvalidName { what: "container app", text: text.to_owned(), rule: APP_NAME_RULE })
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $what:literal, $max:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks and keeps a name.
            ///
            /// # Errors
            /// [`InvalidName`] when it is empty, too long, or has other characters than `a-z0-9-`.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                let valid = (1..=$max).contains(&text.len())
                    && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                    && !text.starts_with('-')
                    && !text.ends_with('-');
                if valid {
                    return Ok(Self(text.into()));
                }
                Err(InvalidName {
                    what: $what,
                    text: text.to_owned(),
                    rule: concat!("use 1 to ", $max, " lower case letters, digits and `-`, with a letter or digit at both ends"),
                })
            }

            /// The text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
    };
}

name_type!(
    /// `<app>--<suffix>`, unique within its app; across apps use [`RevisionKey`]. At most 64 characters.
    RevisionName,
    "revision",
    64
);
name_type!(
    /// `<revision>-<hash>`; never used twice. At most 80 characters.
    ReplicaName,
    "replica",
    80
);

impl RevisionName {
    /// The name of an app's revision with a suffix.
    ///
    /// # Errors
    /// [`InvalidName`] when the suffix has other characters than `a-z0-9-` or the whole is too long.
    pub fn of(app: &str, suffix: &str) -> Result<Self, InvalidName> {
        Self::new(format!("{app}--{suffix}"))
    }

    /// The app part, before `--`.
    #[must_use]
    pub fn app(&self) -> &str {
        self.0.split_once("--").map_or(&*self.0, |(app, _)| app)
    }

    /// The suffix, behind `--`.
    #[must_use]
    pub fn suffix(&self) -> &str {
        self.0.split_once("--").map_or("", |(_, suffix)| suffix)
    }
}

/// A revision on this server: two apps of the same name in two resource groups may both have a `web--v1`.
/// What boards, drivers and services key revisions by.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RevisionKey {
    /// The app.
    pub app: ResourceId,
    /// The revision of that app.
    pub name: RevisionName,
}

impl fmt::Display for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name.fmt(f)
    }
}

impl fmt::Debug for RevisionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.app.group_name(), self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_not_checked() {
        let revision = RevisionName::of("web", "abc123").unwrap();
        assert_eq!((revision.app(), revision.suffix()), ("web", "abc123"));
        assert!(RevisionName::of("web", "Bad_1").is_err());
        assert!(ReplicaName::new("").is_err());
        for bad in ["a", "Web", "1web", "web-", "we--b", "w_b", &"a".repeat(33)] {
            assert!(check_app_name(bad).is_err(), "{bad}");
        }
        assert!(check_app_name("my-app2").is_ok());
    }
}
