//! One case each.

use cove_model::ExecutionStatus;

use super::*;

fn after(world: &World) -> (ExecutionStatus, Option<&str>, u32, u32) {
    let stored = &world.stored;
    (stored.status, stored.reason.as_deref(), stored.succeeded, stored.failed)
}

#[test]
fn one_replica_runs_and_the_execution_has_succeeded() {
    let mut world = World::new(execution(1, 1, 0));
    world.images = Images::Unknown;
    world.settle();
    world.images = Images::Ready { exposed_ports: BTreeMap::new() };
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Processing, None, 0, 0));
    world.run(0);
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Running, None, 0, 0));
    world.pass(5);
    world.exit(0, 0);
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Succeeded, None, 1, 0));
    assert_eq!(world.stored.ended_at, Some(world.now));
    assert!(world.replicas.is_empty());
    let name = world.stored.replicas[0].name.clone();
    let told = world.told.join("\n").replace(name.as_str(), "REPLICA");
    expect_test::expect![[r#"
        get images: they are needed
        start REPLICA (index 0): it is to run
        remove REPLICA: it has ended
        ExecutionSucceeded: Execution 'job-abc1234' has succeeded"#]]
    .assert_eq(&told);
}

#[test]
fn retries_are_counted_per_execution() {
    let mut world = World::new(execution(2, 2, 1));
    world.settle();
    assert_eq!(world.live(), 2);
    world.run(0);
    world.run(0);
    world.settle();
    world.exit(0, 3);
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Degraded, None, 0, 1));
    assert_eq!(world.live(), 2, "the first retry follows at once");
    world.run(0);
    world.settle();
    world.exit(0, 4);
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Degraded, None, 0, 2), "the other run is being stopped");
    world.exit(0, 143);
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Failed, Some(BACKOFF_LIMIT_EXCEEDED), 0, 2));
    let message = world.stored.message.as_deref().unwrap();
    assert!(message.starts_with("2 failed runs are more than the retry limit of 1; the last, 'job-abc1234-"));
    assert!(message.ends_with("ended with exit code 4 (Error)"), "{message}");
}

#[test]
fn a_failed_index_waits_longer_each_time() {
    let mut world = World::new(execution(1, 1, 9));
    let mut waits = Vec::new();
    for _ in 0..5 {
        world.settle();
        if let Some(at) = world.wake_at.filter(|_| world.live() == 0) {
            waits.push(at.duration_since(world.now).as_secs());
            world.now = at;
            world.settle();
        } else {
            waits.push(0);
        }
        assert_eq!(world.live(), 1);
        world.run(0);
        world.exit(0, 1);
    }
    assert_eq!(waits, [0, 0, 1, 2, 4]);
    assert!(world.stored.replicas.iter().all(|replica| replica.index == 0));
}

#[test]
fn a_run_that_takes_too_long_has_failed_even_if_it_ends_well() {
    let mut world = World::new(execution(1, 1, 0));
    world.settle();
    world.run(0);
    world.settle();
    assert_eq!(world.wake_at, Some(later(world.now, SignedDuration::from_secs(60))));
    world.pass(60);
    world.settle();
    assert!(
        world.told.iter().any(|text| text.ends_with("it ran longer than its `replicaTimeout`")),
        "{:?}",
        world.told
    );
    assert_eq!(after(&world).0, ExecutionStatus::Running, "it still ends");
    world.exit(0, 0);
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Failed, Some(DEADLINE_EXCEEDED), 0, 1));
}

#[test]
fn a_stop_ends_what_runs_and_nothing_is_started_any_more() {
    let mut world = World::new(execution(3, 5, 0));
    world.room = 2;
    world.settle();
    world.run(0);
    world.settle();
    world.stored.stop_requested_at = Some(world.now);
    world.settle();
    assert!(world.replicas.values().all(|seen| seen.phase == ReplicaPhase::Stopping));
    world.exit(0, 143);
    world.exit(0, 0);
    world.room = 1000;
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Stopped, Some(STOPPED), 0, 0));
    assert_eq!(world.starts.len(), 2);
}

#[test]
fn a_stop_before_anything_was_started_ends_it_at_once() {
    let mut world = World::new(execution(1, 1, 0));
    world.room = 0;
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Processing, Some(QUEUED), 0, 0));
    assert_eq!(world.stored.message.as_deref(), Some("the machine is full"));
    world.stored.stop_requested_at = Some(world.now);
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Stopped, Some(STOPPED), 0, 0));
}

#[test]
fn images_that_cannot_be_had_fail_it_after_a_while() {
    for (retryable, limit) in [(false, 0), (true, 300)] {
        let mut world = World::new(execution(1, 1, 3));
        let start = world.now;
        while !world.stored.status.is_final() {
            world.images = Images::Failed { message: "no such tag".into(), retryable };
            world.plan(Crash::Never);
            world.now = world.wake_at.unwrap_or(world.now);
        }
        assert_eq!(after(&world), (ExecutionStatus::Failed, Some(IMAGE_PULL_FAILURE), 0, 0));
        assert_eq!(world.stored.message.as_deref(), Some("no such tag"));
        assert_eq!(world.now.duration_since(start).as_secs(), limit);
    }
}

#[test]
fn what_is_gone_after_its_start_was_lost_and_is_run_again() {
    let mut world = World::new(execution(1, 1, 1));
    world.settle();
    world.run(0);
    world.settle();
    world.replicas.clear();
    world.settle();
    assert_eq!((world.stored.failed, world.live()), (1, 1));
    assert_eq!(world.stored.replicas[0].reason.as_deref(), Some("Lost"));
    assert_eq!(world.stored.replicas[0].exit_code, None);
}

#[test]
fn a_replica_whose_maker_was_killed_is_made_anew_and_counts_as_no_run() {
    let mut world = World::new(execution(1, 1, 0));
    for number in 0..9 {
        world.settle();
        assert_eq!(after(&world), (ExecutionStatus::Processing, None, 0, 0), "{number}");
        assert_eq!((world.starts.len(), world.live()), (number + 1, 1));
        world.fail("ContainerTerminated");
    }
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Failed, Some(BACKOFF_LIMIT_EXCEEDED), 0, 1), "not for ever");

    let mut world = World::new(execution(1, 1, 0));
    world.settle();
    world.fail("SecretNotFound");
    world.settle();
    assert_eq!(after(&world), (ExecutionStatus::Failed, Some(BACKOFF_LIMIT_EXCEEDED), 0, 1));
}
