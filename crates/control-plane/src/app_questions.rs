//! What clients ask of an app besides the app itself: diagnostics' view of it, and private endpoints that it does not have.

use cove_arm::{ArmError, list};
use http::Method;

use crate::{
    answer::{self, Answer},
    apps::{self, APP},
    call::Call,
    control_plane::ControlPlane,
    revisions,
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    let properties = format!("{APP}/detectorProperties");
    vec![
        Route::arm(Method::GET, format!("{properties}/rootApi"), apps::get),
        Route::arm(Method::GET, format!("{properties}/revisionsApi/revisions"), revisions::list_all),
        Route::arm(Method::GET, format!("{properties}/revisionsApi/revisions/{{revision}}"), revisions::get),
        Route::arm(Method::GET, format!("{APP}/privateEndpointConnections"), nothing),
        Route::arm(Method::GET, format!("{APP}/privateEndpointConnections/{{connection}}"), no_connection),
        Route::arm(Method::GET, format!("{APP}/privateLinkResources"), nothing),
        Route::arm(Method::GET, format!("{APP}/privateLinkResources/{{resource}}"), no_link),
    ]
}

/// There is no virtual network, so nothing is linked to it.
async fn nothing(plane: ControlPlane, call: Call) -> Answer {
    apps::require(&plane, &call)?;
    Ok(answer::json(200, &list::render(Vec::new(), None)))
}

async fn no_connection(plane: ControlPlane, call: Call) -> Answer {
    not_found(&plane, &call, "privateEndpointConnections", "connection")
}

async fn no_link(plane: ControlPlane, call: Call) -> Answer {
    not_found(&plane, &call, "privateLinkResources", "resource")
}

fn not_found(plane: &ControlPlane, call: &Call, kind: &str, segment: &str) -> Answer {
    let app = apps::require(plane, call)?;
    let name: String = call.name(segment).chars().take(100).collect();
    let kind = format!("Microsoft.App/containerApps/{kind}");
    Err(ArmError::resource_not_found(&kind, &name, app.id.group_name()).into())
}
