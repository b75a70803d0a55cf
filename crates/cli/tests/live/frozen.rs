//! An app whose last replica is frozen keeps what it knows, over idle times and a killed server.

use crate::{IMAGE, Server, until};

/// How many requests the app says it has served.
fn served(server: &Server) -> u64 {
    let (status, page) = server.get("web.cove.localhost", "/");
    assert_eq!(status, 200, "{page}");
    let count = page.split("served<dd>").nth(1).expect("the sample says how many requests it served");
    count.split(|c: char| !c.is_ascii_digit()).next().and_then(|count| count.parse().ok()).expect("a number")
}

fn replica(server: &Server) -> String {
    server.ok("containerapp replica list -g cove -n web --query [].[name,properties.runningState,properties.runningStateDetails] -o tsv")
}

fn freeze(server: &Server) {
    server.ok("scale zero web");
    until("the replica is frozen", || replica(server).contains("Frozen"));
}

#[test]
fn a_frozen_app_wakes_with_what_it_knows() {
    let mut server = Server::start();
    server.ok(&format!("containerapp up -n web --image {IMAGE} --ingress external --target-port 80"));
    let set = server.file("idle.yaml", "properties:\n  template:\n    scale:\n      coveIdle: frozen\n");
    server.ok(&format!("containerapp update -g cove -n web --yaml {set}"));
    let shown = server.ok("containerapp show -g cove -n web --query properties.template.scale.coveIdle -o tsv");
    assert_eq!(shown, "frozen\n");
    let before = served(&server);

    freeze(&server);
    let frozen = replica(&server);
    assert!(frozen.contains("NotRunning"), "{frozen}");
    let name = frozen.split('\t').next().expect("the name").to_owned();
    let revision = server.ok("containerapp revision list -g cove -n web -o yaml");
    assert!(
        revision.contains("runningState: ScaledToZero") && revision.contains("coveFrozenReplicas: 1"),
        "{revision}"
    );
    let woken = served(&server);
    assert!(woken > before, "it was {before}, now it is {woken}: another process answered");
    until("it runs again", || replica(&server).contains("Running"));
    assert!(replica(&server).starts_with(&name), "{}", replica(&server));
    until("the wake is on record", || server.ok("wakes web --query length(@) -o tsv") == "1\n");
    let phases = server.ok("wakes web --query [0].[thawed_us,first_byte_us] -o tsv");
    assert!(phases.split_whitespace().all(|us| us.parse::<u64>().is_ok_and(|us| us > 0)), "{phases}");
    let events = server.ok("containerapp logs show -g cove -n web --type system --tail 300");
    for reason in ["ReplicaFreezing", "ReplicaFrozen", "ReplicaThawing"] {
        assert!(events.contains(reason), "{reason} is not among\n{events}");
    }

    freeze(&server);
    server.kill_and_start();
    until("the new server knows that it is frozen", || replica(&server).contains("Frozen"));
    let kept = served(&server);
    assert!(kept > woken, "it was {woken}, after a restart of the server it is {kept}");
    assert!(replica(&server).starts_with(&name), "{}", replica(&server));
}
