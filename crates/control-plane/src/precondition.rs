//! `If-Match` and `If-None-Match`.

use cove_arm::ArmError;
use cove_store::ResourceRow;

/// What a request wants to be true before it writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Precondition {
    if_match: Option<String>,
    if_none_match: Option<String>,
}

impl Precondition {
    pub(crate) fn of(if_match: Option<&str>, if_none_match: Option<&str>) -> Self {
        Self { if_match: if_match.map(str::to_owned), if_none_match: if_none_match.map(str::to_owned) }
    }

    /// Checks it against what is stored.
    ///
    /// # Errors
    /// 412 `PreconditionFailed`.
    pub(crate) fn check(&self, id: &str, stored: Option<&ResourceRow>) -> Result<(), ArmError> {
        let etag = stored.map(|row| row.etag.as_str());
        let match_holds = self.if_match.as_deref().is_none_or(|wanted| names(wanted, etag));
        let none_match_holds = self.if_none_match.as_deref().is_none_or(|refused| !names(refused, etag));
        if match_holds && none_match_holds { Ok(()) } else { Err(ArmError::precondition_failed(id)) }
    }
}

/// Whether a list of etags, or `*`, names the present one.
fn names(list: &str, etag: Option<&str>) -> bool {
    let Some(etag) = etag else { return false };
    let bare = etag.trim_matches('"');
    list.trim() == "*"
        || list.split(',').map(|item| item.trim().trim_start_matches("W/").trim_matches('"')).any(|item| item == bare)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_stars_and_weak_tags_name_an_etag() {
        assert!(names("*", Some("\"a\"")) && names("\"b\", W/\"a\"", Some("\"a\"")) && names("a", Some("\"a\"")));
        assert!(!names("*", None) && !names("\"b\"", Some("\"a\"")));
    }
}
