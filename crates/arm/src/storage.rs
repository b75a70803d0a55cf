//! `managedEnvironments/storages`: file shares that volumes of apps name.

use std::fmt;

use cove_model::{EnvironmentStorage, ResourceId, Share};
use serde_json::Value;

use crate::{
    ArmError, Errors,
    node::Node,
    schema::Schema::{self, Any, Object, Text, TextOrAbsent, Word},
};

/// Names and kinds of a storage's properties.
pub static SCHEMA: Schema = Object(&[(
    "properties",
    &Object(&[
        (
            "azureFile",
            &Object(&[
                ("accountName", &Text),
                ("accountKey", &TextOrAbsent),
                ("accountKeyVaultProperties", &Any),
                ("shareName", &Text),
                ("accessMode", &Word(&["ReadOnly", "ReadWrite"])),
            ]),
        ),
        (
            "nfsAzureFile",
            &Object(&[("server", &Text), ("shareName", &Text), ("accessMode", &Word(&["ReadOnly", "ReadWrite"]))]),
        ),
    ]),
)]);

/// A storage that was read; its `Debug` text has no key.
#[derive(Clone)]
pub struct Parsed {
    /// What the platform acts on.
    pub storage: EnvironmentStorage,
    /// The document, without the account key.
    pub doc: Value,
    /// The account key, when the body has one.
    pub account_key: Option<String>,
}

impl fmt::Debug for Parsed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parsed").field("storage", &self.storage).field("doc", &self.doc).finish_non_exhaustive()
    }
}

/// Reads a document; `old` is the storage that is there already.
///
/// # Errors
/// Every problem at once: a name or share that is not valid, none or two kinds, another share than before.
pub fn parse(
    id: &ResourceId,
    mut doc: Value,
    old: Option<&EnvironmentStorage>,
    mut errors: Errors,
) -> Result<Parsed, ArmError> {
    let name = id.name();
    let is_name = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if !is_name {
        let shown: String = name.chars().take(80).collect();
        let message = format!(
            "The storage name '{shown}' is not valid: use 1 to 63 letters, digits, '-', '_' and '.', beginning with a letter or digit."
        );
        errors.push(ArmError::new(400, "InvalidResourceName", message));
    }
    let storage = {
        let root = Node::root(&doc);
        let properties = root.get("properties");
        let (smb, nfs) = (properties.get("azureFile"), properties.get("nfsAzureFile"));
        let (share, node) = match (smb.exists(), nfs.exists()) {
            (true, false) => (azure_file(&smb, &mut errors), smb),
            (false, true) => (nfs_file(&nfs, &mut errors), nfs),
            (is_both, _) => {
                let what = if is_both { "has both azureFile and nfsAzureFile" } else { "says where no share is" };
                errors.invalid("properties", format!("The storage {what}; give one of azureFile and nfsAzureFile."));
                (Share::AzureFile { account: String::new(), share: String::new() }, properties)
            }
        };
        let mode = node.get("accessMode");
        if node.exists() && !mode.exists() && errors.is_empty() {
            errors.invalid(&mode.path, "accessMode is required; expected ReadOnly or ReadWrite.");
        }
        EnvironmentStorage { id: id.clone(), share, is_read_only: mode.text() == Some("ReadOnly") }
    };
    if let Some(old) = old
        && errors.is_empty()
        && old.share != storage.share
    {
        let message = "Only the account key and the access mode of a storage can be changed; delete the storage and make it anew, or make another one.";
        errors.push(ArmError::conflict("ManagedEnvironmentStorageCannotBeChanged", message).at("properties"));
    }
    errors.into_result()?;
    let azure_file = doc.pointer_mut("/properties/azureFile").and_then(Value::as_object_mut);
    let account_key = azure_file.and_then(|fields| fields.remove("accountKey"));
    let account_key = account_key.and_then(|key| key.as_str().map(str::to_owned));
    Ok(Parsed { storage, doc, account_key })
}

fn azure_file(node: &Node<'_>, errors: &mut Errors) -> Share {
    let (account, share) = (node.get("accountName"), node.get("shareName"));
    let is_account = |text: &str| text.len() <= 63 && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    check(&account, is_account, "a storage account's name: lower case letters and digits", errors);
    let is_share = |text: &str| {
        text.len() <= 63 && !text.starts_with('-') && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    check(&share, is_share, "a share's name: lower case letters, digits and '-'", errors);
    let vault = node.get("accountKeyVaultProperties");
    if vault.exists() {
        errors.push(ArmError::not_implemented(&vault.path, "An account key from Key Vault", "give accountKey"));
    }
    let text = |node: &Node<'_>| node.text().unwrap_or("").to_owned();
    Share::AzureFile { account: text(&account), share: text(&share) }
}

fn nfs_file(node: &Node<'_>, errors: &mut Errors) -> Share {
    let (server, share) = (node.get("server"), node.get("shareName"));
    let is_server = |text: &str| {
        text.len() <= 253
            && !text.starts_with(['.', '-'])
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.'))
    };
    check(&server, is_server, "a host name, such as 'account.file.core.windows.net'", errors);
    let is_share = |text: &str| {
        text.len() <= 255
            && text.trim_matches('/').split('/').all(|part| {
                !part.is_empty()
                    && !part.starts_with('.')
                    && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'$'))
            })
    };
    check(&share, is_share, "an exported path, such as '/account/share'", errors);
    let text = |node: &Node<'_>| node.text().unwrap_or("").to_owned();
    Share::NfsAzureFile { server: text(&server), share: text(&share) }
}

fn check(node: &Node<'_>, is_valid: impl Fn(&str) -> bool, expected: &str, errors: &mut Errors) {
    let text = node.text().unwrap_or("");
    if text.is_empty() {
        errors.invalid(&node.path, format!("A value is required; expected {expected}."));
    } else if !is_valid(text) {
        let shown: String = text.chars().take(80).collect();
        errors.invalid(&node.path, format!("'{shown}' is not valid; expected {expected}."));
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema::{Nulls, normalise};

    fn read(name: &str, body: Value, old: Option<&EnvironmentStorage>) -> Result<Parsed, ArmError> {
        let environment = ResourceId::resource("s", "g", "Microsoft.App/managedEnvironments", "env").unwrap();
        let mut errors = Errors::new();
        let doc = normalise(&body, &SCHEMA, Nulls::Drop, &mut errors);
        parse(&environment.child("storages", name).unwrap(), doc, old, errors)
    }

    fn smb(share: &str, mode: &str) -> Value {
        json!({ "properties": { "azureFile": {
            "accountName": "acct", "accountKey": "secret==", "shareName": share, "accessMode": mode, "x": 1,
        } } })
    }

    #[test]
    fn the_key_is_taken_out_and_the_rest_stays() {
        let parsed = read("files", smb("data", "readonly"), None).unwrap();
        assert!(parsed.storage.is_read_only);
        assert_eq!(parsed.account_key.as_deref(), Some("secret=="));
        let file = json!({ "accountName": "acct", "shareName": "data", "accessMode": "ReadOnly", "x": 1 });
        assert_eq!(parsed.doc, json!({ "properties": { "azureFile": file } }));
        let again = read("files", smb("data", "ReadWrite"), Some(&parsed.storage)).unwrap();
        assert!(!again.storage.is_read_only);
        let other = read("files", smb("other", "ReadWrite"), Some(&parsed.storage)).unwrap_err();
        assert_eq!((other.status, other.code.as_str()), (409, "ManagedEnvironmentStorageCannotBeChanged"));
    }

    #[test]
    fn nfs_has_a_server_and_a_path() {
        let nfs = |server: &str, share: &str| json!({ "properties": { "nfsAzureFile": { "server": server, "shareName": share, "accessMode": "ReadWrite" } } });
        let parsed = read("n", nfs("a.file.core.windows.net", "/a/b"), None).unwrap();
        assert!(matches!(parsed.storage.share, Share::NfsAzureFile { .. }));
        for (server, share) in [("", "/a"), ("a/b", "/a"), ("..", "/a"), ("a", "/a/../b"), ("a", "/"), ("a", "/a//b")] {
            assert!(read("n", nfs(server, share), None).is_err(), "{server} {share}");
        }
    }

    #[test]
    fn every_problem_is_told_at_once() {
        let body = json!({ "properties": { "azureFile": { "accountName": "../x", "accessMode": "Sometimes" } } });
        let error = read("-n", body, None).unwrap_err();
        let targets: Vec<_> = error.details.iter().map(|error| error.target.clone().unwrap_or_default()).collect();
        let file = |name: &str| format!("properties.azureFile.{name}");
        assert_eq!(targets, [file("accessMode"), String::new(), file("accountName"), file("shareName")]);
        for body in [json!({}), json!({ "properties": { "azureFile": {}, "nfsAzureFile": {} } })] {
            assert!(read("n", body, None).is_err());
        }
        let vault = json!({ "properties": { "azureFile": {
            "accountName": "a", "shareName": "b", "accessMode": "ReadOnly",
            "accountKeyVaultProperties": { "keyVaultUrl": "https://v" },
        } } });
        assert_eq!(read("n", vault, None).unwrap_err().status, 501);
    }
}
