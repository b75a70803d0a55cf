//! Tenants, subscriptions, locations.

use cove_arm::{identity_docs, list, provider};
use http::Method;
use serde_json::json;

use crate::{
    answer::{self, Answer},
    call::Call,
    control_plane::ControlPlane,
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::GET, "/tenants", tenants),
        Route::arm(Method::GET, "/subscriptions", subscriptions),
        Route::arm(Method::GET, "/subscriptions/{subscription}", subscription),
        Route::arm(Method::GET, "/subscriptions/{subscription}/locations", locations),
        Route::arm(
            Method::POST,
            "/subscriptions/{subscription}/providers/Microsoft.App/getCustomDomainVerificationId",
            verification_id,
        ),
    ]
}

async fn tenants(plane: ControlPlane, _: Call) -> Answer {
    let tenant = identity_docs::tenant(&plane.config().tenant);
    Ok(answer::json(200, &list::render(vec![tenant], None)))
}

async fn subscriptions(plane: ControlPlane, _: Call) -> Answer {
    let config = plane.config();
    let subscription = identity_docs::subscription(&config.subscription, &config.tenant);
    Ok(answer::json(200, &list::render(vec![subscription], None)))
}

async fn subscription(plane: ControlPlane, _: Call) -> Answer {
    let config = plane.config();
    Ok(answer::json(200, &identity_docs::subscription(&config.subscription, &config.tenant)))
}

async fn locations(plane: ControlPlane, _: Call) -> Answer {
    Ok(answer::json(200, &list::render(provider::locations(&plane.config().subscription), None)))
}

/// Azure answers a bare JSON string.
async fn verification_id(plane: ControlPlane, _: Call) -> Answer {
    Ok(answer::json(200, &json!(plane.verification_id())))
}
