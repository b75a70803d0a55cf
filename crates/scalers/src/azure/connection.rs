//! Connection strings of Azure: `Name=value` between semicolons, and the names of the clouds.
//!
//! **Invariant:** the last value of a name wins, names match in any case; an error never shows a value.

use crate::source::{OpenError, Trigger};

/// A connection string, split.
#[derive(Clone, Default)]
pub(crate) struct ConnectionString(Vec<(String, String)>);

impl ConnectionString {
    /// Splits `text`.
    ///
    /// # Errors
    /// A part without `=`.
    pub(crate) fn parse(text: &str) -> Result<Self, OpenError> {
        let parts = text.split(';').map(str::trim).filter(|part| !part.is_empty());
        let pair = |part: &str| {
            let (name, value) = part.split_once('=').ok_or_else(|| {
                OpenError::metadata("connection is no connection string; expected Name=value parts between semicolons")
            })?;
            Ok((name.trim().to_ascii_lowercase(), value.trim().to_owned()))
        };
        parts.map(pair).collect::<Result<_, _>>().map(Self)
    }

    /// The value of a name in lower case; `None` when it is missing or empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(known, _)| known == name);
        found.map(|(_, value)| value.as_str()).filter(|value| !value.is_empty())
    }

    /// Whether a name has the value `true`.
    pub(crate) fn is_true(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| value.eq_ignore_ascii_case("true"))
    }
}

/// What a cloud's addresses end in.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Service {
    /// Queues of a storage account.
    Queue,
    /// Blobs of a storage account.
    Blob,
    /// A Service Bus or Event Hubs namespace.
    Bus,
}

/// The ending of addresses by `endpointSuffix`, or by `cloud` (default the public one).
///
/// # Errors
/// An unknown cloud, or a private one without `endpointSuffix`.
pub(crate) fn endpoint_suffix(trigger: &Trigger, service: Service) -> Result<String, OpenError> {
    if let Some(suffix) = trigger.get("endpointSuffix") {
        return Ok(suffix.trim_start_matches('.').to_owned());
    }
    let cloud = trigger.get("cloud").unwrap_or("AzurePublicCloud").to_ascii_lowercase();
    let storage = |suffix: &str| match service {
        Service::Queue => format!("queue.{suffix}"),
        _ => format!("blob.{suffix}"),
    };
    Ok(match (cloud.as_str(), service) {
        ("azurepubliccloud", Service::Bus) => "servicebus.windows.net".to_owned(),
        ("azureusgovernmentcloud", Service::Bus) => "servicebus.usgovcloudapi.net".to_owned(),
        ("azurechinacloud", Service::Bus) => "servicebus.chinacloudapi.cn".to_owned(),
        ("azuregermancloud", Service::Bus) => "servicebus.cloudapi.de".to_owned(),
        ("azurepubliccloud", _) => storage("core.windows.net"),
        ("azureusgovernmentcloud", _) => storage("core.usgovcloudapi.net"),
        ("azurechinacloud", _) => storage("core.chinacloudapi.cn"),
        ("azuregermancloud", _) => storage("core.cloudapi.de"),
        ("private", _) => return Err(OpenError::metadata("cloud Private needs endpointSuffix")),
        _ => {
            return Err(OpenError::metadata(
                "cloud is not known; expected AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud, \
                 AzureGermanCloud or Private",
            ));
        }
    })
}
