//! Resiliency policies and limits of requests, from the store to an app's route.

use cove_model::{Environment, RequestLimits, Resiliency, TryTimeouts};
use cove_store::PutResource;

use super::{Bench, app_id, environment_id, put as put_resource, template};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_app_and_its_environment_say_of_calls_reaches_every_host() {
    let mut bench = Bench::new().await;
    let operation = bench.put("v1", template("sample")).await;
    bench.ended(&operation).await;
    let policies = |host: &str| Some(bench.routes.borrow().app(host)?.policies.clone());
    bench.until("it has a route", || policies("web.env.localhost").is_some()).await;
    let hosts = ["web.env.localhost", "web.internal.env.localhost", "web--v1.env.localhost"];
    let timeouts = |host: &str| policies(host).and_then(|policies| policies.resiliency.timeouts);

    let id = app_id().child("resiliencyPolicies", "policy").unwrap();
    let wanted = TryTimeouts { response_secs: 7, connect_secs: 2 };
    let policy = Resiliency { timeouts: Some(wanted), ..Resiliency::default() };
    let put = PutResource {
        spec: Some(serde_json::to_value(policy).unwrap()),
        ..put_resource(id.clone(), bench.clock.now())
    };
    bench.store.put(put).await.unwrap();
    bench.until("the policy is there", || hosts.iter().all(|host| timeouts(host) == Some(wanted))).await;
    bench.store.remove(id, bench.clock.now()).await.unwrap();
    bench.until("the policy is gone", || hosts.iter().all(|host| timeouts(host).is_none())).await;

    let row = bench.store.resource(&environment_id()).unwrap().unwrap();
    let mut environment: Environment = serde_json::from_value(row.spec.unwrap()).unwrap();
    environment.limits = RequestLimits { header_fields_max: Some(50), ..RequestLimits::default() };
    let put = PutResource {
        spec: Some(serde_json::to_value(environment).unwrap()),
        ..put_resource(environment_id(), bench.clock.now())
    };
    bench.store.put(put).await.unwrap();
    let fields = |host: &str| policies(host).and_then(|policies| policies.limits.header_fields_max);
    bench.until("the limit is there", || hosts.iter().all(|host| fields(host) == Some(50))).await;
}
