//! Session pools from their row to their last session, whatever happens to the server in between.

use cove_model::{
    AllocateError, SESSION_POOL_KIND, Session, SessionContainer, SessionCounts, SessionEgress, SessionEndReason,
    SessionIdentifier, SessionIsolation, SessionLifecycle, SessionPool, generation_name,
};
use cove_runtime::SandboxEgress;

use super::*;
use crate::SessionLease;

pub(super) fn pool_id() -> ResourceId {
    ResourceId::resource("s", "g", SESSION_POOL_KIND, "pool").unwrap()
}

pub(super) fn identifier(text: &str) -> SessionIdentifier {
    SessionIdentifier::new(text).unwrap()
}

pub(super) fn pool(image: &str, max: u32, ready: u32) -> SessionPool {
    SessionPool {
        id: pool_id(),
        environment: Some(environment_id()),
        workload_profile: None,
        container: SessionContainer::Custom,
        template: Arc::new(template(image)),
        target_port: 80,
        lifecycle: SessionLifecycle::Timed { cooldown_secs: 300 },
        sessions_max: max,
        sessions_ready: ready,
        egress: SessionEgress::Disabled,
        egress_rules: vec![],
        isolation: SessionIsolation::Hardened,
        registries: vec![],
        managed_identities: vec![],
        is_mcp_enabled: false,
        snapshot: None,
        suspend: None,
        generation: generation_name("pool", image).unwrap(),
    }
}

impl Bench {
    pub(super) async fn put_pool(&self, pool: &SessionPool) {
        let put = PutResource { spec: Some(serde_json::to_value(pool).unwrap()), ..put(pool_id(), self.clock.now()) };
        self.store.put(put).await.unwrap();
        self.until("the pool is known", || self.sessions.pool(&pool_id()).is_some()).await;
    }

    fn counts(&self) -> SessionCounts {
        self.sessions.counts(&pool_id()).unwrap_or_default()
    }

    async fn has_ready(&self, count: u32) {
        self.until("sessions are ready", || self.counts().ready == count && self.counts().pending == 0).await;
        self.until("they are frozen", || self.in_phase(ReplicaPhase::Frozen) >= usize::try_from(count).unwrap()).await;
    }

    pub(super) async fn settled(&self, state: Provisioning) {
        let stands = || self.store.resource(&pool_id()).unwrap().map(|row| row.provisioning) == Some(state);
        self.until("the pool is settled", stands).await;
    }

    pub(super) async fn allocate(&self, text: &str) -> Result<SessionLease, AllocateError> {
        self.sessions.allocate(&pool_id(), &identifier(text)).await
    }

    fn in_phase(&self, phase: ReplicaPhase) -> usize {
        self.fake.world().replicas.values().filter(|replica| replica.1.phase == phase).count()
    }

    pub(super) fn rows(&self) -> Vec<Session> {
        self.store.sessions(&pool_id()).unwrap()
    }

    /// Moves the clock from one instant at which something is due to the next, as the server's mover does.
    pub(super) async fn run_for(&self, secs: i64) {
        let target = self.clock.now() + SignedDuration::from_secs(secs);
        loop {
            self.until("everything rests", || self.clock.unrest().is_empty()).await;
            match self.clock.next_due().filter(|due| *due <= target) {
                Some(due) if due > self.clock.now() => drop(self.clock.advance_to(due)),
                Some(_) => tokio::task::yield_now().await,
                None => break,
            }
        }
        self.clock.advance_to(target);
        self.until("everything rests", || self.clock.unrest().is_empty()).await;
    }

    /// The server ends where it is; what it had begun to write is written or not before the next one reads.
    pub(super) async fn die(&self) {
        self.shutdown.cancel();
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        self.store.save_sessions(Vec::new()).await.unwrap();
    }

    async fn nothing_is_left(&self) {
        self.until("the driver forgot them", || self.fake.world().replicas.is_empty()).await;
        self.until("their rows are gone", || self.rows().is_empty()).await;
    }
}

#[tokio::test]
async fn an_identifier_gets_a_ready_session_and_keeps_it() {
    let bench = Bench::new().await;
    bench.put_pool(&pool("one", 10, 2)).await;
    bench.settled(Provisioning::Succeeded).await;
    bench.has_ready(2).await;
    let (spec, _) = bench.fake.world().replicas.values().next().unwrap().clone();
    assert_eq!(spec.sandbox.unwrap().egress, SandboxEgress::None);
    assert!(spec.platform_env.is_empty());

    let first = bench.allocate("user-1").await.unwrap();
    assert!(first.allocation().is_new);
    let row = bench.rows().into_iter().find(Session::is_allocated).unwrap();
    assert_eq!(row.replica, first.allocation().session.replica, "it was on disk before it was given away");
    let runs = bench.fake.world().replicas[&row.replica].1.phase;
    assert_eq!(runs, ReplicaPhase::Running, "beside it, the next ready one may be on its way");
    let again = bench.allocate("user-1").await.unwrap();
    assert_eq!((again.allocation().is_new, &again.allocation().session.guid), (false, &row.guid));
    let other = bench.allocate("user-2").await.unwrap();
    assert_ne!(other.allocation().session.replica, row.replica);
    bench.has_ready(2).await;
    assert_eq!(bench.counts(), SessionCounts { ready: 2, executing: 2, pending: 0 });

    // many at once with one new identifier are one session
    let all = futures_util::future::join_all((0..20).map(|_| bench.allocate("user-3"))).await;
    let all: Vec<_> = all.into_iter().map(|lease| lease.unwrap()).collect();
    assert!(all.iter().all(|lease| lease.allocation().session == all[0].allocation().session));
    assert_eq!(bench.sessions.list(&pool_id()).len(), 3);
    assert!(bench.sessions.stop(&pool_id(), &identifier("user-3")).await);
    assert!(!bench.sessions.stop(&pool_id(), &identifier("user-3")).await);
    assert!(bench.sessions.find(&pool_id(), &identifier("user-3")).is_none());
    let fresh = bench.allocate("user-3").await.unwrap();
    assert_ne!(fresh.allocation().session.guid, all[0].allocation().session.guid);
}

#[tokio::test]
async fn a_full_pool_says_so_until_one_has_cooled_down_to_the_second() {
    let bench = Bench::new().await;
    bench.put_pool(&pool("one", 2, 1)).await;
    let first = bench.allocate("user-1").await.unwrap();
    drop(bench.allocate("user-2").await.unwrap());
    assert_eq!(bench.allocate("user-3").await.unwrap_err(), AllocateError::PoolFull { max: 2 });
    bench.run_for(299).await;
    assert!(bench.sessions.find(&pool_id(), &identifier("user-2")).is_some());
    bench.run_for(1).await;
    assert!(bench.sessions.find(&pool_id(), &identifier("user-2")).is_none(), "its time was over");
    assert!(bench.sessions.find(&pool_id(), &identifier("user-1")).is_some(), "its request is open");
    drop(bench.allocate("user-3").await.unwrap());
    bench.run_for(100).await;
    drop(first);
    bench.run_for(299).await;
    assert!(bench.sessions.find(&pool_id(), &identifier("user-1")).is_some());
    bench.run_for(1).await;
    assert_eq!(bench.sessions.list(&pool_id()), []);
    bench.until("only ready ones are left", || bench.rows().iter().all(|row| row.identifier.is_none())).await;
}

#[tokio::test]
async fn a_new_generation_is_for_new_sessions_only() {
    let bench = Bench::new().await;
    bench.put_pool(&pool("one", 10, 2)).await;
    let old = bench.allocate("user-1").await.unwrap();
    bench.has_ready(2).await;
    bench.put_pool(&pool("two", 10, 2)).await;
    bench.settled(Provisioning::Succeeded).await;
    let of = |generation: &str| {
        let name = generation_name("pool", generation).unwrap();
        bench.rows().iter().filter(|row| row.generation == name && row.ended.is_none()).count()
    };
    bench.until("the old ready ones are replaced", || of("one") == 1 && of("two") == 2).await;
    let again = bench.allocate("user-1").await.unwrap();
    assert_eq!(again.allocation().session.replica, old.allocation().session.replica);
    let new = bench.allocate("user-2").await.unwrap();
    assert_eq!(new.allocation().session.generation, generation_name("pool", "two").unwrap());
}

#[tokio::test]
async fn the_next_server_goes_on_with_every_session() {
    let mut bench = Bench::new().await;
    bench.put_pool(&pool("one", 10, 2)).await;
    let guid = bench.allocate("user-1").await.unwrap().allocation().session.guid.clone();
    bench.has_ready(2).await;
    bench.run_for(200).await;
    bench.die().await;
    bench.generation += 1;
    bench = bench.restart().await;
    bench.until("it is adopted", || bench.sessions.find(&pool_id(), &identifier("user-1")).is_some()).await;
    bench.run_for(299).await;
    let found = bench.sessions.find(&pool_id(), &identifier("user-1")).expect("its time began anew with this server");
    assert_eq!(found.session.guid, guid);
    bench.run_for(1).await;
    assert!(bench.sessions.find(&pool_id(), &identifier("user-1")).is_none());

    // killed at any point of an allocation
    for round in 0..20 {
        let text = format!("user-{round}-new");
        let half = tokio::time::timeout(Duration::from_micros(200 * round), bench.allocate(&text)).await;
        drop(half);
        bench.die().await;
        // every server names its replicas from a seed of its own
        bench.generation += 1;
        bench = bench.restart().await;
        bench.until("the pool is known", || bench.sessions.pool(&pool_id()).is_some()).await;
        let lease = bench.allocate(&text).await.unwrap();
        let of = bench.rows().into_iter().filter(|row| row.is_allocated() && row.identifier == Some(identifier(&text)));
        assert_eq!(of.count(), 1);
        drop(lease);
        assert!(bench.sessions.stop(&pool_id(), &identifier(&text)).await);
    }
    bench.has_ready(2).await;
    bench.until("nothing but the ready ones is left", || bench.rows().len() == 2).await;
    bench.until("nor in the driver", || bench.fake.world().replicas.len() == 2).await;
}

#[tokio::test]
async fn one_that_was_let_go_on_before_its_row_was_written_belongs_to_nobody_after_a_kill() {
    let mut bench = Bench::new().await;
    bench.put_pool(&pool("one", 10, 2)).await;
    bench.has_ready(2).await;
    let before = bench.rows();
    bench.die().await;
    // the order to the driver went out, the row did not
    bench.fake.thaw(&before[0].replica).unwrap();
    assert_eq!(bench.in_phase(ReplicaPhase::Running), 1);
    bench.generation += 1;
    bench = bench.restart().await;
    bench.has_ready(2).await;
    assert_eq!(bench.rows(), before, "nobody's, and as ready as before");
    assert_eq!(bench.sessions.list(&pool_id()), []);
    let first = bench.allocate("user-1").await.unwrap();
    assert!(before.iter().any(|row| row.replica == first.allocation().session.replica));
}

#[tokio::test]
async fn sessions_end_with_their_container_and_their_pool() {
    let bench = Bench::new().await;
    let mut timed = pool("one", 10, 0);
    bench.put_pool(&timed).await;
    bench.settled(Provisioning::Succeeded).await;
    let first = bench.allocate("user-1").await.unwrap();
    bench.fake.exit(&first.allocation().session.replica, 3);
    bench.until("it has ended", || bench.sessions.find(&pool_id(), &identifier("user-1")).is_none()).await;
    let second = bench.allocate("user-1").await.unwrap();
    assert_ne!(second.allocation().session.replica, first.allocation().session.replica);

    timed.lifecycle = SessionLifecycle::OnContainerExit { max_alive_secs: 1000 };
    bench.put_pool(&timed).await;
    bench.settled(Provisioning::Succeeded).await;
    bench.run_for(999).await;
    assert!(bench.sessions.find(&pool_id(), &identifier("user-1")).is_some());
    bench.run_for(1).await;
    bench.until("its time is over, request or not", || bench.sessions.list(&pool_id()).is_empty()).await;

    let third = bench.allocate("user-3").await.unwrap();
    drop(third);
    bench
        .store
        .begin_delete(pool_id(), NewOperation { id: "del".into(), kind: "delete".into() }, bench.clock.now())
        .await
        .unwrap();
    bench.until("the pool is gone", || bench.store.resource(&pool_id()).unwrap().is_none()).await;
    bench.nothing_is_left().await;
    assert_eq!(bench.allocate("user-3").await.unwrap_err(), AllocateError::UnknownPool);
}

#[tokio::test]
async fn a_pool_that_cannot_work_says_why() {
    let bench = Bench::new().await;
    bench.fake.world().missing.insert("gone".to_owned());
    bench.put_pool(&pool("gone", 10, 1)).await;
    bench.settled(Provisioning::Failed).await;
    let row = bench.store.resource(&pool_id()).unwrap().unwrap();
    assert_eq!(row.failure.unwrap().code, "ImagePullFailure");

    bench.fake.world().deaf.insert("deaf".to_owned());
    bench.put_pool(&pool("deaf", 10, 1)).await;
    let is_tried = || bench.fake.world().log.iter().any(|line| line.starts_with("start"));
    bench.until("the new image is tried, before time passes", is_tried).await;
    bench.run_for(500).await;
    bench.settled(Provisioning::Failed).await;
    let failure = bench.store.resource(&pool_id()).unwrap().unwrap().failure.unwrap();
    assert_eq!(failure.code, "SessionStartFailed", "{}", failure.message);
    assert!(failure.message.contains("port 80"), "{}", failure.message);
    let starts = bench.fake.world().log.iter().filter(|line| line.starts_with("start")).count();
    assert!(starts <= 5, "it is not tried over and over: {starts}");

    bench.put_pool(&pool("good", 10, 1)).await;
    bench.settled(Provisioning::Succeeded).await;
}

#[tokio::test]
async fn a_pool_whose_image_comes_later_works_without_being_written_again() {
    let bench = Bench::new().await;
    bench.fake.world().missing.insert("late".to_owned());
    bench.put_pool(&pool("late", 10, 1)).await;
    bench.settled(Provisioning::Failed).await;
    let generation = bench.store.resource(&pool_id()).unwrap().unwrap().generation;
    bench.run_for(3600).await;
    bench.settled(Provisioning::Failed).await;
    bench.fake.world().missing.remove("late");
    // the longest time between two tries
    bench.run_for(121).await;
    bench.settled(Provisioning::Succeeded).await;
    let row = bench.store.resource(&pool_id()).unwrap().unwrap();
    assert_eq!((row.generation, row.failure), (generation, None));
    bench.has_ready(1).await;
}

#[tokio::test]
async fn the_last_use_of_a_session_is_written_before_it_is_forgotten() {
    let bench = Bench::new().await;
    bench.fake.world().cpu_us = Some(5_000_000);
    bench.put_pool(&pool("one", 10, 1)).await;
    bench.has_ready(1).await;
    bench.run_for(10).await;
    let guid = bench.allocate("user-1").await.unwrap().allocation().session.guid.clone();
    bench.run_for(30).await;
    assert!(bench.sessions.stop(&pool_id(), &identifier("user-1")).await);
    bench.until("its row is gone", || bench.rows().iter().all(|row| row.guid != guid)).await;
    let one = bench.store.session_by_guid(&pool_id(), &guid).unwrap().unwrap();
    let now = bench.clock.now();
    assert_eq!((one.cpu_us, one.allocated_ms(now)), (5_000_000, 30_000));
    assert_eq!(one.reason.as_deref(), Some("Stopped"));
    let newest = bench.store.newest_session_of(&pool_id(), &identifier("user-1")).unwrap();
    assert_eq!(newest.map(|newest| newest.guid), Some(guid));
}

/// The acceptance criterion of an hour: what begins ends, to the second.
#[tokio::test]
async fn a_thousand_sessions_over_an_hour_leave_nothing() {
    let mut bench = Bench::new().await;
    bench.put_pool(&pool("one", 200, 4)).await;
    bench.has_ready(4).await;
    for number in 0..1000 {
        drop(bench.allocate(&format!("user-{number}")).await.unwrap());
        // an hour in all: 3,600 s
        bench.run_for(if number % 5 < 2 { 3 } else { 4 }).await;
    }
    bench.run_for(300).await;
    bench.has_ready(4).await;
    bench.until("four rows are left", || bench.rows().len() == 4).await;
    bench.until("four replicas are left", || bench.fake.world().replicas.len() == 4).await;
    assert_eq!(bench.fake.world().replicas.values().filter(|r| r.1.phase == ReplicaPhase::Frozen).count(), 4);
    let mut begun = std::collections::HashMap::new();
    let mut ended = 0;
    while let Ok(event) = bench.events.try_recv() {
        let Some(replica) = event.replica else { continue };
        match event.reason.as_str() {
            "SessionAllocated" => assert_eq!(begun.insert(replica, event.at), None, "a session is given away once"),
            "SessionEnded" => {
                let lived = event.at.duration_since(begun[&replica]);
                assert_eq!(lived, SignedDuration::from_secs(300), "{}", event.message);
                assert!(event.message.contains(SessionEndReason::CooledDown.as_str()));
                ended += 1;
            }
            _ => {}
        }
    }
    assert_eq!((begun.len(), ended), (1000, 1000));
}
