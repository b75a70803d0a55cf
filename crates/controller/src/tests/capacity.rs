//! What does not fit on the machine waits, and says so.

use super::*;

#[tokio::test]
async fn what_does_not_fit_waits_and_starts_when_others_end() {
    // room for four replicas of a quarter core
    let capacity = Amount { cpu: MilliCpu(1000), memory: Bytes(64 << 30) };
    let mut bench = Bench::on_a_machine_with(capacity).await;
    let mut big = template("sample");
    big.scale.max_replicas = 20;
    let operation = bench.put("v1", big).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded);
    bench.want("v1", 3);
    bench.until("three serve", || bench.ready("v1") == 3).await;

    let other = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "other").unwrap();
    let now = bench.clock.now();
    let revision = Revision {
        name: RevisionName::of("other", "v1").unwrap(),
        app: other.clone(),
        number: 0,
        template: template("sample"),
        ingress: None,
        is_active: true,
        created_at: now,
        activated_at: now,
        restart_generation: 0,
    };
    let revision = NewRevision { revision, doc: serde_json::json!({}) };
    let app = ContainerApp { id: other.clone(), ..app(template("sample")) };
    let operation = bench.put_app(app, Some(revision)).await;
    assert_eq!(bench.ended(&operation).await, OperationStatus::Succeeded);
    bench.want("v1", 9);
    bench.advance(SignedDuration::from_secs(1)).await;
    let mut told = String::new();
    while !told.contains("replicas wait for room") {
        told = bench.events.recv().await.unwrap().message;
    }
    assert!(told.starts_with("6 replicas wait for room: a replica asks for 0.25 cores"), "{told}");
    assert_eq!(bench.fake.count("web--v1", ReplicaPhase::Running), 3);

    let row = bench.store.resource(&other).unwrap().unwrap();
    let operation = cove_store::NewOperation { id: "delete-other".into(), kind: "delete".into() };
    bench.store.begin_delete(row.id, operation, bench.clock.now()).await.unwrap();
    bench.until("the room of the app that went is used", || bench.ready("v1") == 4).await;
}
