//! Resource providers, as `az` asks for them before almost every command.

use cove_arm::{ArmError, list, provider};
use http::Method;

use crate::{
    answer::{self, Answer},
    call::Call,
    control_plane::ControlPlane,
    route::Route,
};

pub(crate) fn routes() -> Vec<Route> {
    vec![
        Route::arm(Method::GET, "/subscriptions/{subscription}/providers", all),
        Route::arm(Method::GET, "/subscriptions/{subscription}/providers/{namespace}", one),
        Route::arm(Method::POST, "/subscriptions/{subscription}/providers/{namespace}/register", one),
    ]
}

async fn all(plane: ControlPlane, _: Call) -> Answer {
    Ok(answer::json(200, &list::render(provider::all(&plane.config().subscription), None)))
}

/// A namespace is served or it is not: registering one changes nothing.
async fn one(plane: ControlPlane, call: Call) -> Answer {
    let namespace = call.name("namespace");
    let document = provider::registered(&plane.config().subscription, namespace).ok_or_else(|| {
        let shown: String = namespace.chars().take(100).collect();
        ArmError::new(404, "InvalidResourceNamespace", format!("The resource namespace '{shown}' is invalid."))
    })?;
    Ok(answer::json(200, &document))
}
