//! Forks, templates and suspended sessions, whatever happens to the server in between.

use cove_model::{AllocateError, PoolSnapshot, Session, SessionLifecycle, SnapshotError, SuspendRule};

use super::{
    sessions::{identifier, pool, pool_id},
    *,
};

impl Bench {
    fn snapshots(&self) -> usize {
        self.fake.world().snapshots.len()
    }

    async fn no_snapshot_is_left(&self) {
        self.until("no snapshot is left", || self.snapshots() == 0).await;
    }

    async fn suspended(&self, count: usize) {
        let all = || self.store.session_snapshots(&pool_id()).unwrap();
        self.until("sessions are suspended", || {
            all().iter().filter(|kept| kept.suspended().is_some()).count() == count
        })
        .await;
    }
}

#[tokio::test]
async fn forks_begin_with_the_files_and_their_snapshot_goes_with_the_last_of_them() {
    let bench = Bench::new().await;
    bench.put_pool(&pool("one", 5, 1)).await;
    bench.settled(Provisioning::Succeeded).await;
    drop(bench.allocate("source").await.unwrap());
    let targets = [identifier("fork-1"), identifier("fork-2")];
    let made = bench.sessions.fork(&pool_id(), &identifier("source"), &targets, true).await.unwrap();
    assert_eq!((made.len(), bench.snapshots()), (2, 1));
    let snapshot = made[0].snapshot.clone().unwrap();
    assert!(made.iter().all(|session| session.snapshot.as_ref() == Some(&snapshot)));
    let of = |name: &str| {
        bench.rows().into_iter().find(|row| row.identifier == Some(identifier(name)) && row.is_allocated())
    };
    assert_eq!(of("fork-1").unwrap().snapshot, Some(snapshot), "it is on disk before it is told");

    let again = bench.sessions.fork(&pool_id(), &identifier("source"), &[identifier("fork-1")], true).await;
    assert!(matches!(again, Err(SnapshotError::Taken(_))), "{again:?}");
    let many: Vec<_> = (0..3).map(|number| identifier(&format!("more-{number}"))).collect();
    let full = bench.sessions.fork(&pool_id(), &identifier("source"), &many, true).await;
    assert_eq!(full, Err(AllocateError::PoolFull { max: 5 }.into()));
    let nobody = bench.sessions.fork(&pool_id(), &identifier("nobody"), &[identifier("fork-3")], true).await;
    assert_eq!(nobody, Err(SnapshotError::UnknownSession));
    bench.until("what nobody needs is gone", || bench.snapshots() == 1).await;

    assert!(bench.sessions.stop(&pool_id(), &identifier("fork-1")).await);
    bench.until("its row is gone", || of("fork-1").is_none()).await;
    assert_eq!(bench.snapshots(), 1, "the other one stands on it");
    assert!(bench.sessions.stop(&pool_id(), &identifier("fork-2")).await);
    bench.no_snapshot_is_left().await;
}

#[tokio::test]
async fn a_template_is_kept_until_it_is_deleted_and_not_while_a_pool_uses_it() {
    let mut bench = Bench::new().await;
    bench.put_pool(&pool("one", 5, 0)).await;
    drop(bench.allocate("source").await.unwrap());
    let kept = bench.sessions.keep(&pool_id(), &identifier("source"), "base").await.unwrap();
    assert_eq!(bench.store.session_snapshots(&pool_id()).unwrap(), std::slice::from_ref(&kept));
    let again = bench.sessions.keep(&pool_id(), &identifier("source"), "base").await;
    assert!(matches!(again, Err(SnapshotError::Taken(_))), "{again:?}");

    let mut using = pool("two", 5, 1);
    using.snapshot = Some(PoolSnapshot { name: "base".to_owned(), id: kept.id.clone() });
    bench.put_pool(&using).await;
    bench.settled(Provisioning::Succeeded).await;
    let lease = bench.allocate("user-1").await.unwrap();
    assert_eq!(lease.allocation().session.snapshot, Some(kept.id.clone()));
    drop(lease);
    let used = bench.sessions.delete_snapshot(&pool_id(), "base").await;
    assert_eq!(used, Err(SnapshotError::InUse("pool".to_owned())));
    bench.die().await;
    bench.generation += 1;
    bench = bench.restart().await;
    bench.until("it is known again", || bench.sessions.snapshots(&pool_id()) == [kept.clone()]).await;
    assert_eq!(bench.snapshots(), 1);

    bench.put_pool(&pool("three", 5, 0)).await;
    bench.settled(Provisioning::Succeeded).await;
    bench.until("the pool uses it no more", || bench.rows().iter().all(|row| row.is_allocated())).await;
    bench.sessions.delete_snapshot(&pool_id(), "base").await.unwrap();
    assert_eq!(bench.sessions.delete_snapshot(&pool_id(), "base").await, Err(SnapshotError::UnknownSnapshot));
    assert_eq!(bench.store.session_snapshots(&pool_id()).unwrap(), []);
    assert_eq!(bench.snapshots(), 1, "a session stands on it");
    assert!(bench.sessions.stop(&pool_id(), &identifier("user-1")).await);
    bench.no_snapshot_is_left().await;
}

#[tokio::test]
async fn an_idle_session_is_suspended_to_the_second_and_comes_back_whole() {
    let mut bench = Bench::new().await;
    let mut timed = pool("one", 5, 0);
    timed.suspend = Some(SuspendRule { after_idle_secs: 60, keep_secs: 1000 });
    bench.put_pool(&timed).await;
    let first = bench.allocate("user-1").await.unwrap().allocation().session.clone();
    bench.run_for(59).await;
    assert!(bench.sessions.find(&pool_id(), &identifier("user-1")).is_some());
    bench.run_for(1).await;
    bench.suspended(1).await;
    bench.until("it has ended", || bench.rows().iter().all(|row| row.ended.is_some())).await;

    bench.die().await;
    bench.generation += 1;
    bench = bench.restart().await;
    bench.until("the pool is known", || bench.sessions.pool(&pool_id()).is_some()).await;
    let again = bench.allocate("user-1").await.unwrap().allocation().session.clone();
    assert_ne!(again.guid, first.guid);
    assert!(again.snapshot.is_some());
    bench.suspended(0).await;
    assert_eq!(bench.snapshots(), 1, "its files stand on it");

    // suspended again and not asked for: given up to the second
    bench.run_for(60).await;
    bench.suspended(1).await;
    bench.until("only the newer one is there", || bench.snapshots() == 1).await;
    bench.run_for(999).await;
    bench.suspended(1).await;
    bench.run_for(1).await;
    bench.suspended(0).await;
    bench.no_snapshot_is_left().await;
}

#[tokio::test]
async fn suspending_waits_for_no_request_and_a_full_disk_is_told() {
    let bench = Bench::new().await;
    bench.put_pool(&pool("one", 5, 0)).await;
    let lease = bench.allocate("user-1").await.unwrap();
    let busy = bench.sessions.suspend(&pool_id(), &identifier("user-1")).await;
    assert!(matches!(busy, Err(SnapshotError::Busy(_))), "{busy:?}");
    drop(lease);
    bench.fake.world().is_disk_full = true;
    let full = bench.sessions.suspend(&pool_id(), &identifier("user-1")).await;
    assert!(matches!(full, Err(SnapshotError::NoRoom(_))), "{full:?}");
    let same = bench.allocate("user-1").await.unwrap();
    assert!(!same.allocation().is_new, "it goes on");
    drop(same);
    bench.fake.world().is_disk_full = false;
    let kept = bench.sessions.suspend(&pool_id(), &identifier("user-1")).await.unwrap();
    assert_eq!(bench.sessions.suspend(&pool_id(), &identifier("user-1")).await, Ok(kept), "it is what was asked for");
    assert!(bench.sessions.stop(&pool_id(), &identifier("user-1")).await, "it is given up");
    bench.no_snapshot_is_left().await;
    assert!(!bench.sessions.stop(&pool_id(), &identifier("user-1")).await);
}

#[tokio::test]
async fn kills_at_any_point_leave_no_half() {
    let mut bench = Bench::new().await;
    let mut timed = pool("one", 9, 0);
    timed.lifecycle = SessionLifecycle::Timed { cooldown_secs: 3600 };
    bench.put_pool(&timed).await;
    let source = bench.allocate("source").await.unwrap().allocation().session.clone();
    for round in 0..12_u64 {
        let limit = std::time::Duration::from_micros(150 * round);
        let (fork, name) = ([identifier(&format!("fork-{round}"))], format!("kept-{round}"));
        if round % 2 == 0 {
            drop(
                tokio::time::timeout(limit, bench.sessions.fork(&pool_id(), &identifier("source"), &fork, true)).await,
            );
        } else {
            drop(tokio::time::timeout(limit, bench.sessions.keep(&pool_id(), &identifier("source"), &name)).await);
        }
        bench.die().await;
        bench.generation += 1;
        bench = bench.restart().await;
        bench.until("the pool is known", || bench.sessions.pool(&pool_id()).is_some()).await;
        let same = bench.allocate("source").await.unwrap();
        assert_eq!(same.allocation().session.guid, source.guid, "the source goes on");
        drop(same);
        bench
            .until("every snapshot has a row that names it", || {
                let mut named: Vec<_> =
                    bench.store.session_snapshots(&pool_id()).unwrap().into_iter().map(|kept| kept.id).collect();
                named.extend(bench.rows().into_iter().filter_map(|row: Session| row.snapshot));
                let there = bench.fake.world().snapshots.keys().cloned().collect::<Vec<_>>();
                there.iter().all(|id| named.contains(id)) && named.iter().all(|id| there.contains(id))
            })
            .await;
    }
    bench
        .store
        .begin_delete(pool_id(), NewOperation { id: "del".into(), kind: "delete".into() }, bench.clock.now())
        .await
        .unwrap();
    bench.until("the pool is gone", || bench.store.resource(&pool_id()).unwrap().is_none()).await;
    bench.no_snapshot_is_left().await;
}

#[tokio::test]
async fn what_cannot_be_suspended_cools_down_to_the_second() {
    let bench = Bench::new().await;
    let mut timed = pool("one", 5, 0);
    timed.suspend = Some(SuspendRule { after_idle_secs: 60, keep_secs: 1000 });
    bench.put_pool(&timed).await;
    drop(bench.allocate("user-1").await.unwrap());
    bench.fake.world().is_disk_full = true;
    bench.run_for(299).await;
    assert!(bench.sessions.find(&pool_id(), &identifier("user-1")).is_some());
    bench.run_for(1).await;
    bench.until("it has cooled down", || bench.sessions.list(&pool_id()).is_empty()).await;
    bench.suspended(0).await;
}
