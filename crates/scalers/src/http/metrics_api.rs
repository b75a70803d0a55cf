//! `metrics-api`: a document of any API with a number in it.
//!
//! **Invariant:** a YAML document is read into a tree within the reader's own limits (depth, aliases, size).

use cove_scaling::source::{Answer, Document};

use super::auth::Auth;
use super::{Call, Client, Http, address, place, timeout, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};

/// One document of one API.
#[derive(Debug)]
pub(crate) struct MetricsApi {
    client: Client,
    auth: Auth,
    call: Call,
    is_yaml: bool,
}

/// Reads the metadata of a `metrics-api` rule.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<MetricsApi, OpenError> {
    let mut call = Call::get(address(trigger, "url")?);
    call.timeout = timeout(trigger)?;
    let auth = Auth::of(trigger)?;
    let client = http.client(&tls(trigger)?, context)?;
    Ok(MetricsApi { client, auth, call, is_yaml: trigger.get("format") == Some("yaml") })
}

impl Source for MetricsApi {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let text = self.auth.fetch(&self.client, self.call.clone()).await?.text();
            if !self.is_yaml {
                return Ok(Answer::Document(Document::Text(text)));
            }
            let tree = serde_saphyr::from_str(&text);
            let tree = tree.map_err(|_| ReadError::new(format!("{} gave no YAML", place(&self.call.url))))?;
            Ok(Answer::Document(Document::Tree(tree)))
        })
    }
}
