//! Links: to operations, with the headers that carry them, and to the next page of a list.
//!
//! Clients send their token only to the origin they asked, so every link is made from the request's own origin.

use axum::response::Response;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use cove_model::ResourceId;
use cove_store::ResourceRow;

use crate::{
    answer::{Refusal, with_header},
    call::Call,
    control_plane::ControlPlane,
};

/// Which family of operations a link belongs to; clients recognise the name in the URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    /// `containerappOperation…`.
    App,
    /// `managedEnvironmentOperation…`.
    Environment,
    /// `containerappsjobOperation…`.
    Job,
    /// `sessionPoolOperation…`.
    SessionPool,
}

impl Family {
    fn word(self) -> &'static str {
        match self {
            Self::App => "containerappOperation",
            Self::Environment => "managedEnvironmentOperation",
            Self::Job => "containerappsjobOperation",
            Self::SessionPool => "sessionPoolOperation",
        }
    }
}

fn link(plane: &ControlPlane, call: &Call, family: Family, kind: &str, operation: &str) -> String {
    format!(
        "{}/subscriptions/{}/providers/Microsoft.App/locations/local/{}{kind}/{operation}?api-version={}",
        call.origin,
        plane.config().subscription,
        family.word(),
        encode(call.api_version()),
    )
}

/// Adds `Azure-AsyncOperation` and `Retry-After`.
pub(crate) fn with_status(
    plane: &ControlPlane,
    call: &Call,
    family: Family,
    operation: &str,
    response: Response,
) -> Response {
    let url = format!("{}&azureAsyncOperation=true", link(plane, call, family, "Statuses", operation));
    with_retry_after(plane, with_header(response, "azure-asyncoperation", &url))
}

/// Adds `Location` and `Retry-After`.
pub(crate) fn with_location(
    plane: &ControlPlane,
    call: &Call,
    family: Family,
    operation: &str,
    response: Response,
) -> Response {
    let url = link(plane, call, family, "Results", operation);
    with_retry_after(plane, with_header(response, "location", &url))
}

/// Adds the `Location` of a group's deletion.
pub(crate) fn with_group_location(plane: &ControlPlane, call: &Call, operation: &str, response: Response) -> Response {
    let url = format!(
        "{}/subscriptions/{}/operationresults/{operation}?api-version={}",
        call.origin,
        plane.config().subscription,
        encode(call.api_version())
    );
    with_retry_after(plane, with_header(response, "location", &url))
}

/// Adds `Retry-After`.
pub(crate) fn with_retry_after(plane: &ControlPlane, response: Response) -> Response {
    with_header(response, "retry-after", &plane.config().retry_after_secs.to_string())
}

pub(crate) fn encode(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string().replace("%2D", "-")
}

/// Items of one page of a list.
const PAGE_MAX: usize = 50;

/// The page of a kind's resources below `scope` that a request asks for, and the link to the next one: what is not on the
/// page is not read.
///
/// # Errors
/// When the store cannot be read.
pub(crate) fn read_page(
    plane: &ControlPlane,
    call: &Call,
    kind: &str,
    scope: Option<&ResourceId>,
) -> Result<(Vec<ResourceRow>, Option<String>), Refusal> {
    let after = after(call);
    let mut rows = plane.store().resources_page(kind, scope, after.as_deref(), PAGE_MAX + 1)?;
    let is_last = rows.len() <= PAGE_MAX;
    rows.truncate(PAGE_MAX);
    let next = rows.last().filter(|_| !is_last).map(|last| link_after(call, last));
    Ok((rows, next))
}

/// The key after which the page begins.
fn after(call: &Call) -> Option<String> {
    let token = call.query("$skiptoken").and_then(|token| BASE64.decode(token).ok());
    token.and_then(|bytes| String::from_utf8(bytes).ok())
}

fn link_after(call: &Call, last: &ResourceRow) -> String {
    let token = BASE64.encode(last.id.key());
    let version = encode(call.api_version());
    format!("{}{}?api-version={version}&$skiptoken={token}", call.origin, call.path)
}

/// The page of `rows` (by id, as the store gives them) that a request asks for, and the link to the next one.
///
/// The token is the last id of the page before, so that writes between two pages neither repeat nor hide the others.
pub(crate) fn page<'a>(call: &Call, rows: &'a [ResourceRow]) -> (&'a [ResourceRow], Option<String>) {
    let start = after(call).map_or(0, |after| rows.partition_point(|row| row.id.key() <= after.as_str()));
    let rest = &rows[start..];
    let Some((page, _)) = rest.split_at_checked(PAGE_MAX).filter(|(_, later)| !later.is_empty()) else {
        return (rest, None);
    };
    (page, page.last().map(|last| link_after(call, last)))
}
