//! How far a consumer group has come: checkpoints, which each family of clients writes into blobs in its own way.
//!
//! **Invariant:** no blob is no checkpoint; a blob that cannot be read fails the reading.

use serde_json::Value;

use crate::azure::storage::Account;
use crate::http::place;
use crate::source::{OpenError, ReadError, Trigger};

/// Container of the clients inside Azure Functions.
const FUNCTIONS_CONTAINER: &str = "azure-webjobs-eventhub";

/// Who writes the checkpoints (`checkpointStrategy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Strategy {
    /// Azure Functions.
    Functions,
    /// Today's SDKs: the number is in the blob's metadata.
    Metadata,
    /// Go's older SDK.
    Go,
    /// Dapr.
    Dapr,
    /// Older event processor hosts: a document per partition below the group.
    Host,
}

/// The checkpoints of one group on one hub.
#[derive(Debug)]
pub(super) struct Checkpoints {
    account: Account,
    strategy: Strategy,
    container: String,
    namespace: String,
    hub: String,
    group: String,
}

impl Checkpoints {
    /// From the rule's metadata; `namespace` is the host of the hub.
    ///
    /// # Errors
    /// A strategy that needs `blobContainer` has none.
    pub(super) fn new(account: Account, trigger: &Trigger, namespace: &str, hub: &str) -> Result<Self, OpenError> {
        let container = trigger.get("blobContainer");
        // Other words are as good as none, as in KEDA.
        let strategy = match (trigger.get("checkpointStrategy"), container) {
            (Some("goSdk"), _) => Strategy::Go,
            (Some("blobMetadata"), _) => Strategy::Metadata,
            (Some("dapr"), _) => Strategy::Dapr,
            (Some("azureFunction"), _) | (_, None) => Strategy::Functions,
            (_, Some(_)) => Strategy::Host,
        };
        let container = match (strategy, container) {
            (Strategy::Functions, _) => FUNCTIONS_CONTAINER,
            (_, Some(container)) => container,
            (_, None) => return Err(OpenError::metadata("blobContainer is missing; the checkpointStrategy needs it")),
        };
        Ok(Self {
            account,
            strategy,
            container: container.to_owned(),
            namespace: namespace.to_owned(),
            hub: hub.to_owned(),
            group: trigger.get("consumerGroup").unwrap_or("$Default").to_owned(),
        })
    }

    /// The sequence number that the group has come to in a partition.
    ///
    /// # Errors
    /// The account cannot be read, or the blob is no checkpoint.
    pub(super) async fn of(&self, partition: &str) -> Result<Option<i64>, ReadError> {
        let path = self.path(partition);
        let url = self.account.url(&path.iter().map(String::as_str).collect::<Vec<_>>());
        let place = place(&url);
        let Some(blob) = self.account.find(url).await? else { return Ok(None) };
        let number = match self.strategy {
            Strategy::Metadata => {
                let text = blob.headers.get("x-ms-meta-sequencenumber").and_then(|value| value.to_str().ok());
                text.map_or(Some(0), |text| text.trim().parse().ok())
            }
            Strategy::Go | Strategy::Dapr => number_of(&blob.json(&place)?["checkpoint"], &["sequenceNumber"]),
            Strategy::Functions | Strategy::Host => {
                number_of(&blob.json(&place)?, &["SequenceNumber", "sequence_number"])
            }
        };
        number.map(Some).ok_or_else(|| ReadError::new(format!("{place}: the checkpoint has no sequence number")))
    }

    /// Container and name of a partition's blob.
    fn path(&self, partition: &str) -> Vec<String> {
        let Self { container, namespace, hub, group, .. } = self;
        let path: &[&str] = match self.strategy {
            Strategy::Functions => &[container, namespace, hub, group, partition],
            Strategy::Metadata => &[container, namespace, hub, &group.to_lowercase(), "checkpoint", partition],
            Strategy::Go => &[container, partition],
            Strategy::Dapr => &[container, &format!("dapr-{hub}-{group}-{partition}")],
            Strategy::Host => &[container, group, partition],
        };
        path.iter().map(|part| (*part).to_owned()).collect()
    }
}

/// The first of the fields that is there; none is 0, as for clients that have not begun.
fn number_of(document: &Value, names: &[&str]) -> Option<i64> {
    match names.iter().find_map(|name| document.get(name)) {
        None | Some(Value::Null) => document.is_object().then_some(0),
        Some(Value::String(text)) => text.trim().parse().ok(),
        Some(number) => number.as_i64(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_of_checkpoints() {
        let names = ["SequenceNumber", "sequence_number"];
        for (document, expected) in [
            (json!({"SequenceNumber": 7, "Offset": "1"}), Some(7)),
            (json!({"sequence_number": 8}), Some(8)),
            (json!({"SequenceNumber": "9"}), Some(9)),
            (json!({"Offset": "1"}), Some(0)),
            (json!({"SequenceNumber": null}), Some(0)),
            (json!({"SequenceNumber": 1.5}), None),
            (json!({"SequenceNumber": "x"}), None),
            (json!([]), None),
        ] {
            assert_eq!(number_of(&document, &names), expected, "{document}");
        }
    }
}
