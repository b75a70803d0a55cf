//! Azure's own sources: storage queues, blobs, Service Bus.
//!
//! All three are HTTPS calls; who asks is shown by a key that signs each call, by a shared access signature, or by a token
//! of the app's identity.
//!
//! **Invariant:** an address of the rule's connection string is used as it stands, so that an emulator or a double on this
//! machine is reached like the cloud.

mod blob;
pub(crate) mod connection;
mod queue;
pub(crate) mod servicebus;
pub(crate) mod storage;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use crate::http::Http;
use crate::source::{Context, OpenError, Source, Trigger};

/// The source of a rule on Azure; `None` when its type is none of these.
///
/// # Errors
/// Metadata that it cannot use.
pub(crate) fn open(http: &Http, trigger: &Trigger, context: &Context) -> Option<Result<Arc<dyn Source>, OpenError>> {
    fn shared<S: Source + 'static>(source: Result<S, OpenError>) -> Result<Arc<dyn Source>, OpenError> {
        source.map(|source| Arc::new(source) as Arc<dyn Source>)
    }
    Some(match trigger.scaler.as_str() {
        "azure-blob" => shared(blob::open(http, trigger, context)),
        "azure-queue" => shared(queue::open(http, trigger, context)),
        "azure-servicebus" => shared(servicebus::open(http, trigger, context)),
        _ => return None,
    })
}
