//! `azure-blob`: how many blobs lie in a container, below a prefix or of a pattern.
//!
//! **Invariant:** every page of the list is counted; a list that does not end is cut by the read deadline and by
//! [`PAGES_MAX`].

use cove_scaling::source::Answer;
use regex::Regex;
use serde_json::Value;

use super::connection::Service;
use super::storage::Account;
use crate::http::{Http, flag, place, required, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::xml;

/// Blobs of one page; a page stays below the size that is read of an answer.
const PAGE: &str = "2000";
/// Pages that are read: 2,000,000 blobs.
const PAGES_MAX: usize = 1000;

/// One container, and what counts in it.
#[derive(Debug)]
pub(crate) struct Blobs {
    account: Account,
    container: String,
    prefix: Option<String>,
    /// Names with it after the prefix are below a folder and do not count; `None` = all count.
    delimiter: Option<String>,
    /// Which names count, whole or after the prefix.
    pattern: Option<Regex>,
}

/// Reads the metadata of an `azure-blob` rule.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<Blobs, OpenError> {
    let container = required(trigger, "blobContainerName")?.to_owned();
    let delimiter = trigger.get("blobDelimiter").unwrap_or("/").to_owned();
    let delimiter = if flag(trigger, "recursive", false)? { None } else { Some(delimiter) };
    // The prefix is a folder: the delimiter follows it, as KEDA has it.
    let prefix =
        trigger.get("blobPrefix").map(|prefix| format!("{prefix}{}", delimiter.as_deref().unwrap_or_default()));
    let pattern = trigger.get("globPattern").map(glob).transpose()?;
    let client = http.client(&tls(trigger)?, context)?;
    let account = Account::of(client, trigger, context, Service::Blob, ("connection", "accountName"))?;
    Ok(Blobs { account, container, prefix, delimiter, pattern })
}

impl Source for Blobs {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let mut count = 0u64;
            let mut marker = String::new();
            for _ in 0..PAGES_MAX {
                let page = self.page(&marker).await?;
                count += self.count(&page);
                marker = xml::child(&page, "NextMarker").map(xml::text).unwrap_or_default().to_owned();
                if marker.is_empty() {
                    #[expect(clippy::cast_precision_loss, reason = "at most 2,000,000")]
                    return Ok(Answer::Number(count as f64));
                }
            }
            Err(ReadError::new(format!("container `{}` has more than 2000000 blobs", self.container)))
        })
    }
}

impl Blobs {
    async fn page(&self, marker: &str) -> Result<Value, ReadError> {
        let mut url = self.account.url(&[&self.container]);
        url.query_pairs_mut()
            .append_pair("restype", "container")
            .append_pair("comp", "list")
            .append_pair("maxresults", PAGE);
        if let Some(prefix) = &self.prefix {
            url.query_pairs_mut().append_pair("prefix", prefix);
        }
        if let (Some(delimiter), None) = (&self.delimiter, &self.pattern) {
            url.query_pairs_mut().append_pair("delimiter", delimiter);
        }
        if !marker.is_empty() {
            url.query_pairs_mut().append_pair("marker", marker);
        }
        let place = place(&url);
        let reply = self.account.get(url, &format!("container `{}`", self.container)).await?;
        let tree = xml::read(&reply.text(), &place)?;
        let page = xml::child(&tree, "EnumerationResults").cloned();
        page.ok_or_else(|| ReadError::new(format!("{place} gave no list of blobs")))
    }

    fn count(&self, page: &Value) -> u64 {
        let blobs = xml::children(page, "Blobs").flat_map(|blobs| xml::children(blobs, "Blob"));
        blobs.filter(|blob| self.counts(xml::child(blob, "Name").map(xml::text).unwrap_or_default())).count() as u64
    }

    fn counts(&self, name: &str) -> bool {
        let Some(pattern) = &self.pattern else { return true };
        let prefix = self.prefix.as_deref().unwrap_or_default().trim_start_matches('/');
        let tail = name.strip_prefix(prefix).unwrap_or(name).trim_start_matches('/');
        pattern.is_match(name) || pattern.is_match(tail)
    }
}

/// A pattern of file names: `*` and `**` any text, `?` one character, `[abc]`, `[!abc]`, `{one,two}`.
fn glob(pattern: &str) -> Result<Regex, OpenError> {
    let wrong =
        || OpenError::metadata(format!("globPattern `{pattern}` cannot be read; expected such as reports/*.csv"));
    let mut regex = String::from("(?s)^");
    let mut characters = pattern.chars().peekable();
    let mut open = 0u32;
    while let Some(character) = characters.next() {
        match character {
            '*' => regex.push_str(".*"),
            '?' => regex.push('.'),
            '[' => {
                regex.push('[');
                if characters.next_if_eq(&'!').is_some() {
                    regex.push('^');
                }
                loop {
                    match characters.next().ok_or_else(wrong)? {
                        ']' => break,
                        '-' => regex.push('-'),
                        other => regex.push_str(&regex::escape(&other.to_string())),
                    }
                }
                regex.push(']');
            }
            '{' => {
                open += 1;
                regex.push_str("(?:");
            }
            '}' if open > 0 => {
                open -= 1;
                regex.push(')');
            }
            ',' if open > 0 => regex.push('|'),
            '\\' => regex.push_str(&regex::escape(&characters.next().ok_or_else(wrong)?.to_string())),
            other => regex.push_str(&regex::escape(&other.to_string())),
        }
    }
    regex.push('$');
    Regex::new(&regex).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        let matches = |pattern: &str, name: &str| glob(pattern).unwrap().is_match(name);
        assert!(matches("*.csv", "a/b.csv"), "`*` takes folders too, as in KEDA");
        assert!(matches("in/**/x?", "in/a/b/x1"));
        assert!(matches("[a-c]{1,2}.[!x]", "b2.y"));
        assert!(matches(r"a\*", "a*"));
        assert!(!matches("*.csv", "a.csv.gz"));
        assert!(!matches("[!a]b", "ab"));
        assert!(!matches("a.c", "abc"));
        assert!(glob("[a").is_err());
        assert!(glob("{a").is_err());
    }
}
