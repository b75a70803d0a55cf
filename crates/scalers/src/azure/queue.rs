//! `azure-queue`: how many messages a storage queue holds.
//!
//! **Invariant:** with `visibleonly` the queue is peeked, and asked for its length only when the peek is full.

use cove_scaling::source::{Answer, PEEK_MAX, StorageQueueAnswer};

use super::connection::Service;
use super::storage::Account;
use crate::http::{Http, place, required, tls};
use crate::source::{Context, OpenError, ReadError, ReadFuture, Source, Trigger};
use crate::xml;

/// One queue.
#[derive(Debug)]
pub(crate) struct Queue {
    account: Account,
    name: String,
    is_visible_only: bool,
}

/// Reads the metadata of an `azure-queue` rule.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Result<Queue, OpenError> {
    let name = required(trigger, "queueName")?.to_owned();
    let client = http.client(&tls(trigger)?, context)?;
    let account = Account::of(client, trigger, context, Service::Queue, ("connection", "accountName"))?;
    Ok(Queue { account, name, is_visible_only: trigger.get("queueLengthStrategy") == Some("visibleonly") })
}

impl Source for Queue {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(async {
            let peeked = if self.is_visible_only { self.peek().await? } else { PEEK_MAX };
            let approximate = if peeked < PEEK_MAX { peeked } else { self.length().await? };
            Ok(Answer::StorageQueue(StorageQueueAnswer { approximate, peeked }))
        })
    }
}

impl Queue {
    async fn length(&self) -> Result<u64, ReadError> {
        let mut url = self.account.url(&[&self.name]);
        url.query_pairs_mut().append_pair("comp", "metadata");
        let place = place(&url);
        let reply = self.account.get(url, &format!("queue `{}`", self.name)).await?;
        let count = reply.headers.get("x-ms-approximate-messages-count").and_then(|count| count.to_str().ok());
        let count = count.and_then(|count| count.trim().parse::<i64>().ok());
        let count = count.ok_or_else(|| ReadError::new(format!("{place} gave no x-ms-approximate-messages-count")))?;
        Ok(u64::try_from(count).unwrap_or(0))
    }

    async fn peek(&self) -> Result<u64, ReadError> {
        let mut url = self.account.url(&[&self.name, "messages"]);
        url.query_pairs_mut().append_pair("peekonly", "true").append_pair("numofmessages", &PEEK_MAX.to_string());
        let place = place(&url);
        let reply = self.account.get(url, &format!("queue `{}`", self.name)).await?;
        let tree = xml::read(&reply.text(), &place)?;
        let list = xml::child(&tree, "QueueMessagesList");
        let list = list.ok_or_else(|| ReadError::new(format!("{place} gave no list of messages")))?;
        Ok(xml::children(list, "QueueMessage").count() as u64)
    }
}
