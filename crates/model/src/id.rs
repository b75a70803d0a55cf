//! Azure resource ids: `/subscriptions/{id}/resourceGroups/{name}/providers/{namespace}/{type}/{name}/…`.
//!
//! Resources of a subscription (`/subscriptions/{id}/providers/…`) and extensions of any resource
//! (`…/providers/{namespace}/{type}/{name}` behind its id) are ids too.
//!
//! Azure compares them without regard to case and gives them back in the case of their creation; so do we.

use std::{cmp::Ordering, fmt, hash, sync::Arc};

use serde::{Deserialize, Serialize};

/// A resource id that was parsed; equality, order and hash ignore case, display keeps it.
#[derive(Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ResourceId {
    text: Arc<str>,
    key: Arc<str>,
}

/// Why a text is not a resource id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{text}` is not a resource id; expected /subscriptions/{{id}}[/resourceGroups/{{name}}[/providers/{{namespace}}/{{type}}/{{name}}…]]"
)]
pub struct InvalidResourceId {
    /// The refused text.
    pub text: String,
}

impl ResourceId {
    /// Parses an id; doubled and trailing slashes are forgiven.
    ///
    /// # Errors
    /// [`InvalidResourceId`] when it does not have the shape of an id.
    pub fn parse(text: &str) -> Result<Self, InvalidResourceId> {
        let invalid = || InvalidResourceId { text: text.chars().take(512).collect() };
        let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty()).collect();
        let is = |index: usize, word: &str| parts.get(index).is_some_and(|part| part.eq_ignore_ascii_case(word));
        let shape = text.starts_with('/')
            && text.len() <= 2048
            && is(0, "subscriptions")
            && match parts.len() {
                2 => true,
                4 => is(2, "resourcegroups"),
                n if n >= 6 && n % 2 == 0 && is(2, "providers") => true,
                n if n >= 8 && n % 2 == 0 => is(2, "resourcegroups") && is(4, "providers"),
                _ => false,
            };
        if !shape {
            return Err(invalid());
        }
        let mut text = String::new();
        for (index, part) in parts.iter().enumerate() {
            text.push('/');
            text.push_str(match index {
                0 => "subscriptions",
                2 if parts[2].eq_ignore_ascii_case("providers") => "providers",
                2 => "resourceGroups",
                4 if !parts[2].eq_ignore_ascii_case("providers") => "providers",
                _ => part,
            });
        }
        let key = text.to_ascii_lowercase();
        Ok(Self { text: text.into(), key: key.into() })
    }

    /// The id of a resource group.
    ///
    /// # Errors
    /// [`InvalidResourceId`] when a part contains a slash or is empty.
    pub fn group(subscription: &str, group: &str) -> Result<Self, InvalidResourceId> {
        Self::parse(&format!("/subscriptions/{subscription}/resourceGroups/{group}"))
    }

    /// The id of a resource in a group: `kind` is `Microsoft.App/containerApps`.
    ///
    /// # Errors
    /// [`InvalidResourceId`] when a part is empty.
    pub fn resource(subscription: &str, group: &str, kind: &str, name: &str) -> Result<Self, InvalidResourceId> {
        Self::parse(&format!("/subscriptions/{subscription}/resourceGroups/{group}/providers/{kind}/{name}"))
    }

    /// A child of this resource: `child("revisions", "web--1")`.
    ///
    /// # Errors
    /// [`InvalidResourceId`] when this is not a resource or a part is empty.
    pub fn child(&self, kind: &str, name: &str) -> Result<Self, InvalidResourceId> {
        Self::parse(&format!("{}/{kind}/{name}", self.text))
    }

    /// The id as it was first written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The id in lower case: what equality means.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    fn part(&self, index: usize) -> &str {
        self.text.split('/').filter(|part| !part.is_empty()).nth(index).unwrap_or("")
    }

    /// The subscription's id.
    #[must_use]
    pub fn subscription(&self) -> &str {
        self.part(1)
    }

    /// The resource group's name, empty for a subscription and what belongs to it directly.
    #[must_use]
    pub fn group_name(&self) -> &str {
        if self.part(2) == "resourceGroups" { self.part(3) } else { "" }
    }

    /// An extension of this resource, group or subscription: `extension("Microsoft.Authorization/roleAssignments", guid)`.
    ///
    /// # Errors
    /// [`InvalidResourceId`] when a part is empty.
    pub fn extension(&self, kind: &str, name: &str) -> Result<Self, InvalidResourceId> {
        Self::parse(&format!("{}/providers/{kind}/{name}", self.text))
    }

    /// What this resource belongs to, a group, subscription or, for an extension, a resource.
    #[must_use]
    pub fn scope(&self) -> Option<Self> {
        Self::parse(&self.text[..self.provider()?]).ok()
    }

    /// `Microsoft.App/containerApps/revisions`: namespace and types without names; empty for groups and subscriptions. Of an
    /// extension it is the extension's own kind.
    #[must_use]
    pub fn kind(&self) -> String {
        let Some(at) = self.provider() else { return String::new() };
        let mut parts = self.text[at + "/providers/".len()..].split('/');
        let Some(namespace) = parts.next() else { return String::new() };
        let mut kind = namespace.to_owned();
        while let Some(kind_part) = parts.next() {
            kind.push('/');
            kind.push_str(kind_part);
            parts.next();
        }
        kind
    }

    /// Where the last `/providers/` stands that is not the name of something.
    fn provider(&self) -> Option<usize> {
        let (mut found, mut at, mut is_pair_start, mut is_namespace) = (None, 0, true, false);
        for part in self.key.split('/').skip(1) {
            if is_namespace {
                is_namespace = false;
            } else if is_pair_start && part == "providers" {
                found = Some(at);
                is_namespace = true;
            } else {
                is_pair_start = !is_pair_start;
            }
            at += 1 + part.len();
        }
        found
    }

    /// The last name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or("")
    }

    /// The resource this is a child of; `None` for a top-level resource, a group and a subscription.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        let parts: Vec<&str> = self.text.split('/').filter(|part| !part.is_empty()).collect();
        if parts.len() < 8 || self.kind().split('/').count() < 3 {
            return None;
        }
        Self::parse(&format!("/{}", parts[..parts.len() - 2].join("/"))).ok()
    }
}

impl fmt::Display for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ResourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl PartialEq for ResourceId {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for ResourceId {}

impl PartialOrd for ResourceId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ResourceId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key)
    }
}

impl hash::Hash for ResourceId {
    fn hash<H: hash::Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl TryFrom<String> for ResourceId {
    type Error = InvalidResourceId;
    fn try_from(text: String) -> Result<Self, InvalidResourceId> {
        Self::parse(&text)
    }
}

impl From<ResourceId> for String {
    fn from(id: ResourceId) -> Self {
        id.text.as_ref().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_compare_without_case_and_keep_it() {
        let a = ResourceId::parse("/subscriptions/S/resourcegroups/MyRG/providers/Microsoft.App/containerApps/Web/")
            .unwrap();
        let b = ResourceId::parse("//subscriptions/s/resourceGroups/myrg/providers/microsoft.app/containerapps/web")
            .unwrap();
        assert_eq!(a, b);
        assert_eq!(a.as_str(), "/subscriptions/S/resourceGroups/MyRG/providers/Microsoft.App/containerApps/Web");
        assert_eq!((a.subscription(), a.group_name(), a.name()), ("S", "MyRG", "Web"));
        assert_eq!(a.kind(), "Microsoft.App/containerApps");
        let child = a.child("revisions", "web--1").unwrap();
        assert_eq!(child.kind(), "Microsoft.App/containerApps/revisions");
        assert_eq!(child.parent(), Some(a));
    }

    #[test]
    fn subscriptions_and_extensions_have_ids() {
        let kind = "microsoft.Authorization/roleAssignments";
        let app = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "web").unwrap();
        for scope in [ResourceId::parse("/subscriptions/s").unwrap(), ResourceId::group("s", "g").unwrap(), app] {
            let id = scope.extension(kind, "n").unwrap();
            assert_eq!((id.kind().as_str(), id.name(), id.scope(), id.parent()), (kind, "n", Some(scope), None));
        }
        let named = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "providers").unwrap();
        assert_eq!(named.child("revisions", "r").unwrap().kind(), "Microsoft.App/containerApps/revisions");
        let deployment = ResourceId::parse("/Subscriptions/s/Providers/Microsoft.Resources/deployments/d").unwrap();
        assert_eq!(deployment.as_str(), "/subscriptions/s/providers/Microsoft.Resources/deployments/d");
        assert_eq!((deployment.group_name(), deployment.subscription()), ("", "s"));
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for bad in [
            "",
            "/",
            "subscriptions/s",
            "/subscriptions",
            "/subscriptions/s/x/y",
            "/subscriptions/s/resourceGroups/g/providers/N/t",
        ] {
            assert!(ResourceId::parse(bad).is_err(), "{bad}");
        }
    }
}
