//! An app whose last replica is frozen: what it takes of the machine, what is told, and who goes first.

use cove_model::{IdleState, Probe, ProbeAction, ProbeKind};

use super::*;

fn frozen_template() -> Template {
    let mut template = template("sample");
    template.scale.idle = IdleState::Frozen;
    template
}

impl Bench {
    /// Brings `v1` up and lets it become idle.
    async fn idle(&mut self) {
        self.drain().await;
        self.drained().await;
    }

    async fn drain(&mut self) {
        self.until("it serves", || self.ready("v1") == 1).await;
        self.want("v1", 0);
        self.advance(SignedDuration::from_secs(30)).await;
        self.until("it drains", || self.endpoints.get(&key("v1")).unwrap().draining.len() == 1).await;
    }

    async fn drained(&mut self) {
        let name = self.endpoints.get(&key("v1")).unwrap().draining[0].clone();
        self.drained.set(name, 0);
        self.advance(SignedDuration::from_secs(1)).await;
    }

    /// The controller has heard of an app, and of all that was written before it.
    async fn told_of(&mut self, app: &ResourceId) {
        while self.events.recv().await.unwrap().app != Some(app.to_string()) {}
    }

    async fn told(&mut self, reason: &str) -> String {
        loop {
            let event = self.events.recv().await.unwrap();
            if event.reason == reason {
                return event.message;
            }
        }
    }
}

#[tokio::test]
async fn the_last_replica_is_frozen_and_thawed_by_a_wanted_count() {
    let mut bench = Bench::new().await;
    bench.put("v1", frozen_template()).await;
    bench.idle().await;
    bench.until("it is frozen", || bench.fake.count("web--v1", ReplicaPhase::Frozen) == 1).await;
    bench.until("that is written", || bench.status("v1").frozen == 1).await;
    assert_eq!((bench.status("v1").replicas, bench.handle.existing(&key("v1"))), (0, Some(0)));
    assert!(bench.told("ReplicaFreezing").await.contains("its last request has ended"));

    bench.fake.world().log.clear();
    bench.want("v1", 1);
    bench.until("it serves again", || bench.ready("v1") == 1).await;
    assert!(bench.fake.world().log.iter().all(|line| !line.starts_with("start")), "nothing was started");
    assert!(bench.told("ReplicaThawing").await.contains("the wanted number"));
}

#[tokio::test]
async fn one_that_cannot_be_frozen_ends() {
    let mut bench = Bench::new().await;
    bench.fake.world().has_no_slots = true;
    bench.fake.world().cannot_freeze = true;
    bench.put("v1", frozen_template()).await;
    bench.drain().await;
    // nothing else is to be seen to after the refusal: what was written is read again before
    bench.clock.rested().await;
    let other = ResourceId::resource("s", "g", "Microsoft.App/containerApps", "other").unwrap();
    bench.put_app(ContainerApp { id: other.clone(), ..app(template("sample")) }, None).await;
    bench.told_of(&other).await;
    bench.drained().await;
    bench.until("it ends", || bench.fake.world().log.contains(&"stop web--v1".to_owned())).await;
}

#[tokio::test]
async fn an_app_with_a_probe_is_told_why_it_goes_to_zero() {
    let mut bench = Bench::new().await;
    let mut asked = frozen_template();
    asked.containers[0].probes.push(Probe {
        kind: ProbeKind::Liveness,
        action: ProbeAction::Tcp { port: 8080 },
        initial_delay_secs: 0,
        period_secs: 10,
        timeout_secs: 1,
        success_threshold: 1,
        failure_threshold: 3,
    });
    bench.put("v1", asked).await;
    bench.idle().await;
    bench.until("it ends", || bench.fake.world().log.contains(&"stop web--v1".to_owned())).await;
    let told = bench.told("ReplicaFreezeNotPossible").await;
    assert!(told.contains("has a liveness probe") && told.ends_with("It scales to zero instead"), "{told}");
}

#[tokio::test]
async fn a_frozen_replica_gives_its_memory_to_an_app_that_waits_for_it() {
    // memory for one replica, CPU for many
    let capacity = Amount { cpu: MilliCpu(4000), memory: Bytes(1 << 29) };
    let mut bench = Bench::on_a_machine_with(capacity).await;
    bench.put("v1", frozen_template()).await;
    bench.idle().await;
    bench.until("it is frozen", || bench.fake.count("web--v1", ReplicaPhase::Frozen) == 1).await;

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
    assert_eq!(bench.fake.count("web--v1", ReplicaPhase::Frozen), 0);
    assert_eq!(bench.fake.count("other--v1", ReplicaPhase::Running), 1);
}
