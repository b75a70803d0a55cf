//! What surrounds a deployment: everything that the scope functions answer, given as values.
//!
//! **Invariant:** the clock and randomness enter the language only here, as `now` and `seed`.

use jiff::Timestamp;
use serde_json::Value;

/// The scope a template is deployed to and what `resourceGroup()`, `subscription()`, `deployment()`, … answer.
#[derive(Clone, Debug)]
pub struct Scope {
    /// Tenant id, a GUID.
    pub tenant: String,
    /// Subscription id, a GUID.
    pub subscription: String,
    /// Display name of the subscription.
    pub subscription_name: String,
    /// The resource group of a deployment at group scope; `None` for one at subscription scope.
    pub group: Option<Group>,
    /// Name of the deployment.
    pub deployment: String,
    /// `location` of the deployment; subscription scope has one, group scope usually none.
    pub location: Option<String>,
    /// `utcNow()` answers it, whole seconds.
    pub now: Timestamp,
    /// `newGuid()` derives from it; give fresh random bytes per deployment.
    pub seed: [u8; 16],
    /// `deployer()`: an object with `objectId`, `tenantId`, `userPrincipalName`.
    pub deployer: Value,
    /// `environment()`: the cloud's endpoints and suffixes.
    pub environment: Value,
}

/// A resource group as `resourceGroup()` answers it.
#[derive(Clone, Debug)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Where it is, `eastus`.
    pub location: String,
    /// Its tags, an object.
    pub tags: Value,
}

impl Scope {
    /// `/subscriptions/{id}` or `/subscriptions/{id}/resourceGroups/{name}`.
    #[must_use]
    pub fn id(&self) -> String {
        match &self.group {
            Some(group) => format!("/subscriptions/{}/resourceGroups/{}", self.subscription, group.name),
            None => format!("/subscriptions/{}", self.subscription),
        }
    }
}
