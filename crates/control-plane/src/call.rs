//! One request as handlers see it: named segments, query, body, caller.

use bytes::Bytes;
use cove_arm::{ArmError, body};
use cove_model::ResourceId;
use http::{HeaderMap, header::AsHeaderName};
use serde_json::Value;

use crate::{auth::Caller, precondition::Precondition};

/// A request that was let in.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    /// Named segments of the path, in the client's case.
    pub(crate) names: Vec<(String, String)>,
    /// Query, decoded, in order.
    pub(crate) query: Vec<(String, String)>,
    /// Headers.
    pub(crate) headers: HeaderMap,
    /// Body, at most [`crate::front::BODY_MAX`] bytes.
    pub(crate) body: Bytes,
    /// Origin of the request, such as `https://localhost:8443`: where all links lead.
    pub(crate) origin: String,
    /// Path as it came.
    pub(crate) path: String,
    /// `x-ms-request-id` of the answer.
    pub(crate) request_id: String,
    /// Who calls.
    pub(crate) caller: Caller,
    /// The connection, for handlers that change its protocol.
    pub(crate) upgrade: Option<hyper::upgrade::OnUpgrade>,
    /// Whether this server asks itself, for a deployment.
    pub(crate) is_own: bool,
}

impl Call {
    /// A named segment of the path; empty when the pattern has none of that name.
    pub(crate) fn name(&self, name: &str) -> &str {
        self.names.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// The first value of a query parameter; its name in any case.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// The api-version, for links; checked before the handler runs.
    pub(crate) fn api_version(&self) -> &str {
        self.query("api-version").unwrap_or("2025-07-01")
    }

    /// A header as text.
    pub(crate) fn header(&self, name: impl AsHeaderName) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// What `If-Match` and `If-None-Match` ask.
    pub(crate) fn precondition(&self) -> Precondition {
        Precondition::of(self.header(http::header::IF_MATCH), self.header(http::header::IF_NONE_MATCH))
    }

    /// The body, which must be a JSON object.
    pub(crate) fn object(&self) -> Result<Value, ArmError> {
        body::parse_object(&self.body, body::DEPTH_MAX)
    }

    /// The resource group of the path.
    pub(crate) fn group_id(&self) -> Result<ResourceId, ArmError> {
        let id = ResourceId::group(self.name("subscription"), self.name("group"));
        id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
    }

    /// The subscription of the path.
    pub(crate) fn subscription_id(&self) -> Result<ResourceId, ArmError> {
        let id = ResourceId::parse(&format!("/subscriptions/{}", self.name("subscription")));
        id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
    }

    /// The resource of a kind in the path's group: `id("Microsoft.App/containerApps", "app")`.
    pub(crate) fn id(&self, kind: &str, segment: &str) -> Result<ResourceId, ArmError> {
        let id = ResourceId::resource(self.name("subscription"), self.name("group"), kind, self.name(segment));
        id.map_err(|error| ArmError::new(400, "InvalidResourceId", error.to_string()))
    }
}
