//! Commands that read the whole app, edit it and put it back, as az does.

use reqwest::Method;
use serde_json::{Value, json};

use crate::{client::Wait, failure::Failure, session::Session};

/// Puts the values of secrets where the app has only names.
pub(super) async fn fill_secrets(session: &Session, path: &str, app: &mut Value) -> Result<(), Failure> {
    // a secret without a value keeps the one it has; a request that is only shown needs none
    if app.pointer("/properties/configuration/secrets").is_none() || session.client.is_dry_run() {
        return Ok(());
    }
    let answer = session.client.post(&format!("{path}/listSecrets"), None).await?;
    app["properties"]["configuration"]["secrets"] = answer["value"].clone();
    Ok(())
}

/// Reads the app with its secrets, lets `edit` change it, puts it back.
pub(super) async fn edit(
    session: &Session,
    path: &str,
    no_wait: bool,
    edit: impl FnOnce(&mut Value) -> Result<(), Failure>,
) -> Result<Value, Failure> {
    let mut app = session.client.get(path).await?;
    fill_secrets(session, path, &mut app).await?;
    edit(&mut app)?;
    session.client.write(Method::PUT, path, Some(&app), Wait::unless(no_wait)).await
}

/// Changes the configuration by a merge patch.
pub(super) async fn patch_configuration(session: &Session, path: &str, configuration: Value) -> Result<Value, Failure> {
    let body = json!({ "properties": { "configuration": configuration } });
    session.client.write(Method::PATCH, path, Some(&body), Wait::Done).await
}

/// The ingress of an app that has one.
pub(super) fn ingress(app: &Value) -> Result<&Value, Failure> {
    let ingress = &app["properties"]["configuration"]["ingress"];
    if ingress.is_object() {
        return Ok(ingress);
    }
    Err(Failure::new("the app has no ingress")
        .hint("cove containerapp ingress enable --type external --target-port PORT"))
}
