//! The mover against a loop with timers, a fake driver and a real monitor.

use cove_model::{ContainerObservation, ResourceId, RevisionName};
use cove_monitor::MonitorConfig;
use cove_runtime::fake::FakeRuntime;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::virtual_clock::{ClockKind, open};

fn key(name: &str) -> RevisionKey {
    RevisionKey {
        app: ResourceId::resource("s", "rg", "Microsoft.App/containerApps", "web").unwrap(),
        name: RevisionName::new(name).unwrap(),
    }
}

struct Bench {
    dir: tempfile::TempDir,
    clock: Clock,
    mover: Mover,
    desired: Board<RevisionKey, DesiredCount>,
    _monitoring: tokio_util::sync::DropGuard,
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let start = Some("2026-03-02T00:00:00Z".parse().unwrap());
    let (clock, kept) = open(ClockKind::Virtual { start }, dir.path()).unwrap();
    let config =
        MonitorConfig { dir: dir.path().join("logs"), source_dir: dir.path().join("console"), retention_days: 1 };
    let (monitor, service) = Monitor::open(config).unwrap();
    let stop = CancellationToken::new();
    tokio::spawn(service.run(stop.clone()));
    let desired = Board::default();
    let parts = Parts {
        desired: desired.clone(),
        endpoints: Board::default(),
        scaled: Board::default(),
        jobs: Board::default(),
        drained: Board::default(),
        runtime: Arc::new(FakeRuntime::default()),
        monitor,
    };
    let mover = Mover::new(clock.clone(), kept, parts);
    Bench { dir, clock, mover, desired, _monitoring: stop.drop_guard() }
}

/// A loop that counts every 15 s, and takes several turns of the executor for it.
fn count_every_15_s(bench: &Bench) {
    let (clock, desired) = (bench.clock.clone(), bench.desired.clone());
    let mut worker = clock.worker("counter");
    tokio::spawn(async move {
        let begun = clock.now();
        for round in 1..=1_000_u32 {
            let at = begun + SignedDuration::from_secs(15 * i64::from(round));
            worker.wait(clock.sleep_until(at)).await;
            for _ in 0..20 {
                tokio::task::yield_now().await;
            }
            assert_eq!(clock.now(), at, "no instant is passed before its work is done");
            desired.set(key("web--v1"), DesiredCount { replicas: round, reason: "counted".to_owned() });
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_instant_is_visited_and_kept() {
    let bench = bench();
    count_every_15_s(&bench);
    let moved = bench.mover.advance(SignedDuration::from_mins(5)).await.unwrap();
    assert!(moved.is_done && moved.unsettled.is_empty());
    assert_eq!((moved.steps, moved.changes.len()), (20, 20));
    let last = moved.changes.back().unwrap();
    assert_eq!((last.at.to_string().as_str(), last.from, last.to), ("2026-03-02T00:05:00Z", 19, 20));
    let moved = bench.mover.advance(SignedDuration::from_secs(10)).await.unwrap();
    assert_eq!((moved.steps, moved.changes.len()), (1, 0));
    let (again, _) = open(ClockKind::Virtual { start: None }, bench.dir.path()).unwrap();
    assert_eq!(again.now(), bench.clock.now());
    let back = bench.mover.advance_to("2026-03-02T00:00:00Z".parse().unwrap()).await.unwrap_err();
    assert_eq!(
        back.to_string(),
        "it is 2026-03-02T00:05:10Z already and time does not go back; give a later time than that"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_moves_it_at_a_time_and_waits_for_what_is_under_way() {
    let bench = Arc::new(bench());
    let busy = bench.clock.busy("a read");
    let first = tokio::spawn({
        let bench = Arc::clone(&bench);
        async move {
            loop {
                match bench.mover.advance(SignedDuration::from_secs(5)).await {
                    // a look at the lock, below, takes it for a moment
                    Err(MoveError::Moving) => tokio::task::yield_now().await,
                    moved => return moved,
                }
            }
        }
    });
    let state = bench.mover.state.as_ref().unwrap();
    let begun = async {
        while state.try_lock().is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), begun).await.unwrap();
    let refused = bench.mover.advance(SignedDuration::ZERO).await;
    assert!(matches!(refused, Err(MoveError::Moving)));
    assert_eq!(bench.clock.now(), "2026-03-02T00:00:00Z".parse().unwrap(), "not before the read is over");
    drop(busy);
    assert!(first.await.unwrap().unwrap().is_done);
}

#[tokio::test]
async fn the_machines_clock_is_not_moved() {
    let bench = bench();
    let real = Mover::new(Clock::real(), None, bench.mover.parts);
    assert!(matches!(real.advance(SignedDuration::ZERO).await, Err(MoveError::Real)));
    assert_eq!(real.show()["virtual"], false);
}

#[test]
fn replicas_on_the_way_are_those_that_will_get_somewhere_by_themselves() {
    let at = Timestamp::UNIX_EPOCH;
    let container = |state| ContainerObservation {
        name: "main".to_owned(),
        is_init: false,
        state,
        is_ready: false,
        is_started: true,
        restarts: 0,
        last_exit: None,
    };
    let replica = |phase, is_ready, ready_at, state| ReplicaObservation {
        name: ReplicaName::new("web--v1-a-b").unwrap(),
        revision: key("web--v1"),
        restart_generation: 0,
        phase,
        is_ready,
        address: None,
        containers: vec![container(state)],
        created_at: at,
        started_at: None,
        ready_at,
    };
    let running = || ContainerState::Running { since: at };
    let waiting = |until| ContainerState::Waiting { reason: String::new(), until };
    for (what, expected, replica) in [
        ("being made", true, replica(ReplicaPhase::Preparing, false, None, waiting(None))),
        ("a slot", false, replica(ReplicaPhase::Prepared, false, None, waiting(None))),
        ("starting", true, replica(ReplicaPhase::Running, false, None, running())),
        ("ready", false, replica(ReplicaPhase::Running, true, Some(at), running())),
        ("failing its readiness probe", false, replica(ReplicaPhase::Running, false, Some(at), running())),
        ("between two tries", false, replica(ReplicaPhase::Running, false, None, waiting(Some(at)))),
        ("ending", true, replica(ReplicaPhase::Stopping, false, Some(at), running())),
        ("frozen", false, replica(ReplicaPhase::Frozen, false, Some(at), running())),
        ("failed", false, replica(ReplicaPhase::Failed, false, None, ContainerState::Terminated)),
    ] {
        assert_eq!(on_the_way(&replica).is_some(), expected, "{what}");
    }
}
