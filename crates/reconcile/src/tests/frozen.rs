//! The last replica of an idle revision is frozen where its template asks for it, and thawed by the next request.

use cove_model::{Bytes, IdleState, MilliCpu, Probe, ProbeAction, ProbeKind, ReplicaPhase, RevisionRunning, Scale};
use expect_test::expect;
use jiff::SignedDuration;

use super::{cases::check, world::World};
use crate::{Amount, AppMemory, needs_life};

fn running(count: u32) -> World {
    let mut world = World::new();
    world.deploy_scaled("v1", "sample", Scale { idle: IdleState::Frozen, ..Scale::default() });
    world.want("v1", count);
    world.settle();
    world.pass(SignedDuration::from_secs(30));
    world.settle();
    world
}

/// Nothing is wanted any more, and nothing is open.
fn idle(world: &mut World) -> String {
    world.want("v1", 0);
    let mut text = world.settle();
    for replica in &world.replicas {
        world.open.insert(replica.name.clone(), 0);
    }
    world.pass(SignedDuration::from_millis(500));
    text.push_str(&world.settle());
    text
}

fn frozen(world: &World) -> usize {
    world.replicas.iter().filter(|seen| seen.phase == ReplicaPhase::Frozen).count()
}

#[test]
fn the_last_replica_is_frozen_and_thawed() {
    let mut world = running(1);
    check(
        &idle(&mut world),
        &expect![[r#"
            drain #1: the wanted number of replicas
            freeze #1: its last request has ended, and it is to wake warm
        "#]],
    );
    let status = &world.revisions[0].1;
    assert_eq!((status.running, status.replicas, status.frozen), (RevisionRunning::ScaledToZero, 0, 1));
    assert_eq!(world.ready(&World::name("v1")), 0);
    assert_eq!(world.last.existing[0].1, 0, "the autoscaler takes it for zero");
    assert_eq!(world.last.frozen[0].1, 1);
    world.want("v1", 1);
    check(
        &world.settle(),
        &expect![[r#"
            thaw #1: the wanted number of replicas
        "#]],
    );
    assert_eq!(world.ready(&World::name("v1")), 1);
    check(
        &idle(&mut world),
        &expect![[r#"
            drain #1: the wanted number of replicas
            freeze #1: its last request has ended, and it is to wake warm
        "#]],
    );
}

#[test]
fn of_several_replicas_one_is_frozen() {
    let mut world = running(3);
    idle(&mut world);
    assert_eq!((frozen(&world), world.replicas.len()), (1, 1));
    world.want("v1", 2);
    check(
        &world.settle(),
        &expect![[r#"
            thaw #1: the wanted number of replicas
            prepare #2 of web--v1: the wanted number of replicas
            start #2: the wanted number of replicas
        "#]],
    );
}

#[test]
fn a_server_that_comes_back_knows_it() {
    let mut world = running(1);
    idle(&mut world);
    world.memory = AppMemory::new(2);
    assert_eq!(world.settle(), "");
    world.want("v1", 1);
    check(
        &world.settle(),
        &expect![[r#"
            thaw #1: the wanted number of replicas
        "#]],
    );
}

#[test]
fn a_request_that_comes_while_it_is_frozen_undoes_it() {
    let mut world = running(1);
    world.want("v1", 0);
    world.settle();
    let name = world.replicas[0].name.clone();
    world.open.insert(name, 0);
    world.pass(SignedDuration::from_millis(500));
    // ordered, and not seen yet
    let before = world.replicas.clone();
    world.round();
    world.replicas = before;
    world.want("v1", 1);
    check(
        &world.settle(),
        &expect![[r#"
            undrain #1: the wanted number of replicas
            thaw #1: the wanted number of replicas
        "#]],
    );
    // what was ordered first is seen for a moment
    world.replicas[0].phase = ReplicaPhase::Frozen;
    world.replicas[0].is_ready = false;
    assert_eq!(world.settle(), "");
    world.replicas[0].phase = ReplicaPhase::Running;
    world.replicas[0].is_ready = true;
    assert_eq!(world.settle(), "");
    assert_eq!(world.ready(&World::name("v1")), 1);
}

#[test]
fn one_that_died_frozen_is_replaced() {
    let mut world = running(1);
    idle(&mut world);
    world.replicas[0].phase = ReplicaPhase::Stopped;
    world.want("v1", 1);
    check(
        &world.settle(),
        &expect![[r#"
            remove #1: it has ended
            prepare #2 of web--v1: the wanted number of replicas
            start #2: the wanted number of replicas
        "#]],
    );
}

#[test]
fn one_that_cannot_be_frozen_is_ended() {
    let mut world = running(1);
    world.want("v1", 0);
    world.settle();
    let name = world.replicas[0].name.clone();
    world.open.insert(name.clone(), 0);
    world.pass(SignedDuration::from_millis(500));
    let before = world.replicas.clone();
    world.round();
    world.replicas = before;
    let mut refused = world.clone();
    refused.memory.freeze_refused(&World::name("v1"), &name);
    let ended = expect![[r#"
        stop #1 within 30 s: its last request has ended
        remove #1: it has ended
    "#]];
    check(&refused.settle(), &ended);
    // or nothing is seen of it
    assert_eq!(world.settle(), "");
    world.pass(SignedDuration::from_secs(25));
    assert_eq!(world.settle(), "");
    world.pass(SignedDuration::from_secs(36));
    assert!(world.settle().starts_with("stop "));
}

#[test]
fn it_goes_when_others_wait_for_memory_or_its_settings_change() {
    for change in [
        |world: &mut World| world.cannot_freeze = Some("others wait for memory"),
        |world: &mut World| world.config_hash = 2,
        |world: &mut World| world.revisions[0].0.restart_generation = 1,
        |world: &mut World| world.app.is_stopped = true,
    ] {
        let mut world = running(1);
        idle(&mut world);
        assert_eq!(frozen(&world), 1);
        change(&mut world);
        world.settle();
        assert!(world.replicas.is_empty(), "{:?}", world.replicas);
    }
}

#[test]
fn it_holds_memory_and_no_cpu() {
    let one = Amount { cpu: MilliCpu(250), memory: Bytes(1 << 29) };
    let mut world = running(1);
    world.capacity = Some(one);
    idle(&mut world);
    world.want("v1", 2);
    world.settle();
    assert_eq!(world.replicas.iter().filter(|seen| seen.is_ready).count(), 1);
    assert_eq!(world.last.short[0].missing, 1);
}

#[test]
fn who_is_asked_whether_it_lives_is_not_frozen() {
    let mut world = running(1);
    let probe = |kind| Probe {
        kind,
        action: ProbeAction::Tcp { port: 80 },
        initial_delay_secs: 0,
        period_secs: 10,
        timeout_secs: 1,
        success_threshold: 1,
        failure_threshold: 3,
    };
    let template = |world: &World| world.revisions[0].0.template.clone();
    assert_eq!(needs_life(&world.app, &template(&world)), None);
    world.revisions[0].0.template.containers[0].probes = vec![probe(ProbeKind::Startup)];
    assert_eq!(needs_life(&world.app, &template(&world)), None);
    world.revisions[0].0.template.containers[0].probes.push(probe(ProbeKind::Liveness));
    expect!["container 'main' has a liveness probe, which a frozen container cannot answer"]
        .assert_eq(&needs_life(&world.app, &template(&world)).unwrap().to_string());
    idle(&mut world);
    assert!(world.replicas.is_empty());
    world.app.ingress = None;
    expect!["the app has no ingress, so no request would wake it"]
        .assert_eq(&needs_life(&world.app, &template(&world)).unwrap().to_string());
}
