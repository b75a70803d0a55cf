//! Authentication in front of an app, from the store to its route.

use cove_store::{PutResource, SecretsChange};
use serde_json::json;

use super::{Bench, app_id, put as put_resource, template};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configuration_guards_every_host_of_its_app_until_it_is_gone() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    let client_secret = |host: &str| {
        let route = bench.routes.borrow().app(host)?.clone();
        let auth = route.policies.auth.as_ref()?;
        Some(auth.providers[0].client_secret.as_ref().map(|secret| secret.reveal().to_owned()).unwrap_or_default())
    };
    bench.until("it has a route", || bench.routes.borrow().app("web.env.localhost").is_some()).await;
    assert_eq!(client_secret("web.env.localhost"), None);

    let id = app_id().child("authConfigs", "current").unwrap();
    let doc = json!({ "properties": { "platform": { "enabled": true }, "identityProviders": { "google": {
        "registration": { "clientId": "id", "clientSecretSettingName": "pw" } } } } });
    let config = PutResource { doc, ..put_resource(id.clone(), bench.clock.now()) };
    bench.store.put(config).await.unwrap();
    let hosts = ["web.env.localhost", "web.internal.env.localhost", "web--v1.env.localhost"];
    let all = |wanted: Option<&str>| hosts.iter().all(|host| client_secret(host).as_deref() == wanted);
    bench.until("all hosts are guarded, still without a secret", || all(Some(""))).await;

    let row = bench.store.resource(&app_id()).unwrap().unwrap();
    let secrets = SecretsChange::Replace([("pw".to_owned(), Some("hush".to_owned()))].into());
    let app = PutResource { spec: row.spec, secrets, ..put_resource(app_id(), bench.clock.now()) };
    bench.store.put(app).await.unwrap();
    bench.until("the secret is there", || all(Some("hush"))).await;

    bench.store.remove(id, bench.clock.now()).await.unwrap();
    bench.until("nobody is asked any more", || all(None)).await;
}
