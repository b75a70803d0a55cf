//! `Microsoft.Resources/deployments` at a resource group and at the subscription: templates, run.
//!
//! A deployment writes each resource by a request of this server to itself ([`agent`]), so a template can do exactly what
//! its caller could do by hand, with the same checks and the same errors. `validate`, the check before a deployment starts,
//! and `whatIf` run the same code on a rehearsal, a copy of the store that is thrown away ([`rehearse`]): what they say is
//! what would happen, defaults of the server included.
//!
//! A module is a deployment of its own: the outer one writes it and waits for it like for any other resource.
//!
//! **Invariant:** values of secure parameters and outputs are in no document and no answer; the template's text is kept
//! with the secrets.
//! **Invariant:** a deployment that runs is in [`Runs`]; one that the store calls running and that is not there was cut
//! off by a stop of the server, and is ended as failed at the next start.

mod agent;
mod delta;
mod execute;
mod export;
mod operations;
mod place;
mod read;
mod record;
mod rehearse;
mod request;
mod runs;
mod what_if;
mod write;

use http::Method;

pub(crate) use runs::{Runs, recover};

use crate::route::Route;

pub(crate) const KIND: &str = "Microsoft.Resources/deployments";
/// Deployments kept per group and for the subscription, ARM's limit; the oldest ended ones go first.
const HISTORY_MAX: usize = 800;
/// Longest name of a deployment, in characters.
const NAME_MAX: usize = 64;

pub(crate) fn routes() -> Vec<Route> {
    let mut routes = vec![
        Route::arm(Method::POST, "/providers/Microsoft.Resources/calculateTemplateHash", read::template_hash),
        Route::arm(Method::POST, "/subscriptions/{subscription}/resourceGroups/{group}/exportTemplate", export::group),
        Route::arm(
            Method::POST,
            "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Resources/exportTemplate",
            export::group,
        ),
    ];
    for scope in ["/subscriptions/{subscription}/resourceGroups/{group}", "/subscriptions/{subscription}"] {
        let all = format!("{scope}/providers/{KIND}");
        let one = format!("{all}/{{deployment}}");
        routes.extend([
            Route::arm(Method::GET, all.as_str(), read::list),
            Route::arm(Method::GET, one.as_str(), read::get),
            Route::arm(Method::HEAD, one.as_str(), read::head),
            Route::arm(Method::PUT, one.as_str(), write::put),
            Route::arm(Method::DELETE, one.as_str(), write::delete),
            Route::arm(Method::POST, format!("{one}/cancel"), write::cancel),
            Route::arm(Method::POST, format!("{one}/validate"), rehearse::validate),
            Route::arm(Method::POST, format!("{one}/whatIf"), what_if::what_if),
            Route::arm(Method::POST, format!("{one}/exportTemplate"), read::export_template),
            Route::arm(Method::GET, format!("{one}/operationStatuses/{{operation}}"), operations::status),
        ]);
        // clients leave `/providers/Microsoft.Resources` out of these paths, or not
        for one in [one, format!("{scope}/deployments/{{deployment}}")] {
            routes.push(Route::arm(Method::GET, format!("{one}/operations"), operations::list));
            routes.push(Route::arm(Method::GET, format!("{one}/operations/{{operation}}"), operations::get));
        }
    }
    routes
}
