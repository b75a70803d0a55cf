//! One case per rule, as text.

use cove_model::{ActiveRevisionsMode, Bytes, MilliCpu, RevisionProvisioning, RevisionRunning, Scale, TrafficWeight};
use expect_test::{Expect, expect};
use jiff::SignedDuration;

use super::world::World;
use crate::{Amount, AppMemory, AppPhase, Images, hosts};

/// Replica names carry no meaning: they become `#1`, `#2`, … in the order of their appearance.
pub(super) fn check(text: &str, expected: &Expect) {
    let mut names: Vec<&str> = Vec::new();
    let is_replica = |word: &&str| word.matches('-').count() >= 4 && word.contains("--");
    let words = text.split([' ', '\n', ':']).filter(is_replica);
    for word in words {
        if !names.contains(&word) {
            names.push(word);
        }
    }
    let mut text = text.to_owned();
    for (index, name) in names.iter().enumerate() {
        text = text.replace(name, &format!("#{}", index + 1));
    }
    expected.assert_eq(&text);
}

fn running(count: u32) -> World {
    let mut world = World::new();
    world.deploy("v1", "sample");
    world.want("v1", count);
    world.settle();
    world.pass(SignedDuration::from_secs(30));
    world.settle();
    world
}

#[test]
fn a_first_revision_is_brought_up_then_scaled_to_zero() {
    let mut world = World::new();
    world.deploy("v1", "sample");
    check(
        &world.settle(),
        &expect![[r#"
            ensure images of web--v1: it is being brought up
            prepare #1 of web--v1: it is being brought up
            start #1: it is being brought up
            succeeded
        "#]],
    );
    world.want("v1", 0);
    assert_eq!(world.settle(), "", "it is fresh");
    world.pass(SignedDuration::from_secs(30));
    check(
        &world.settle(),
        &expect![[r#"
            drain #1: the wanted number of replicas
        "#]],
    );
    let name = world.replicas[0].name.clone();
    world.open.insert(name, 0);
    world.pass(SignedDuration::from_millis(500));
    check(
        &world.settle(),
        &expect![[r#"
            stop #1 within 30 s: its last request has ended
            remove #1: it has ended
        "#]],
    );
    assert_eq!(world.revisions[0].1.running, RevisionRunning::ScaledToZero);
    assert_eq!(world.revisions[0].1.provisioning, RevisionProvisioning::Provisioned);
}

#[test]
fn a_slot_is_made_behind_and_started_on_demand() {
    let mut world = running(0);
    world.pass(SignedDuration::from_secs(31));
    world.settle();
    world.slots = 1;
    check(
        &world.settle(),
        &expect![[r#"
            prepare #1 of web--v1: so that it wakes fast
        "#]],
    );
    world.want("v1", 1);
    check(
        &world.settle(),
        &expect![[r#"
            start #1: the wanted number of replicas
        "#]],
    );
    world.pass(SignedDuration::from_secs(1));
    check(
        &world.settle(),
        &expect![[r#"
            prepare #1 of web--v1: so that it wakes fast
        "#]],
    );
    world.config_hash = 2;
    check(
        &world.settle(),
        &expect![[r#"
            stop #1 within 0 s: it was made with older settings
            prepare #2 of web--v1: so that it wakes fast
            remove #1: it has ended
        "#]],
    );
}

#[test]
fn a_new_revision_takes_over_when_it_is_ready() {
    let mut world = running(3);
    world.deploy("v2", "better");
    check(
        &world.settle(),
        &expect![[r#"
            ensure images of web--v2: it is being brought up
            prepare #1 of web--v2: it is being brought up
            start #1: it is being brought up
            prepare #2 of web--v2: it is being brought up
            start #2: it is being brought up
            prepare #3 of web--v2: it is being brought up
            start #3: it is being brought up
            set active web--v2: a newer revision took over
            succeeded
        "#]],
    );
    assert_eq!(world.serving(), Some(World::name("v2")));
    assert_eq!(world.ready(&World::name("v1")), 3, "for requests on their way");
    world.pass(SignedDuration::from_secs(1));
    world.settle();
    assert_eq!(world.ready(&World::name("v1")), 0);
    world.pass(SignedDuration::from_secs(30));
    world.settle();
    assert_eq!(world.replicas_text(), "v1=0+0 slots 0, v2=3+0 slots 0");
}

#[test]
fn a_revision_that_fails_leaves_the_old_one_in_charge_and_says_why() {
    let mut world = running(2);
    world
        .image_fate
        .insert("gone".into(), Images::Failed { message: "ImagePullFailure: no such tag".into(), retryable: false });
    world.crashing.insert("crash".into());
    world.deploy("v2", "gone");
    check(
        &world.settle(),
        &expect![[r#"
            ensure images of web--v2: it is being brought up
            ContainerAppOperationError: Failed to provision revision 'web--v2' for container app 'web'. Error details: ImagePullFailure: no such tag. The revision before it still serves.
        "#]],
    );
    assert_eq!(world.serving(), Some(World::name("v1")));
    world.deploy("v3", "crash");
    world.settle();
    assert_eq!(
        world.revisions[2].1.message.as_deref(),
        Some("container `main` ended with exit code 127 (Error): no such file")
    );
    assert!(!world.revisions[1].0.is_active, "v2 was superseded");
    assert_eq!((world.serving(), world.ready(&World::name("v1"))), (Some(World::name("v1")), 2));
    world.crashing.clear();
    for replica in &mut world.replicas {
        replica.is_ready = true;
        replica.ready_at = Some(world.now);
    }
    world.settle();
    assert_eq!(world.serving(), Some(World::name("v3")), "it healed after all");
}

#[test]
fn a_port_that_never_opens_fails_at_the_deadline() {
    let mut world = World::new();
    world.deaf.insert("deaf".into());
    world.deploy("v1", "deaf");
    world.settle();
    world.pass(SignedDuration::from_mins(10));
    check(
        &world.settle(),
        &expect![[r#"
            ContainerAppOperationError: Failed to provision revision 'web--v1' for container app 'web'. Error details: no replica became ready within 10 min: container `main` waits: ContainerCreating; check that the app listens on port 80 and that its probes can pass.
        "#]],
    );
    world.deaf.clear();
    world.generation += 1;
    world.phase = AppPhase::InProgress;
    let text = world.settle();
    assert!(text.ends_with("succeeded\n"), "a write of the configuration is another try:\n{text}");
}

#[test]
fn without_a_target_port_the_image_must_expose_one() {
    let mut world = World::new();
    world.app.ingress.as_mut().unwrap().target_port = None;
    world.image_fate.insert("two".into(), Images::Ready { exposed_ports: [("two".to_owned(), None)].into() });
    world.deploy("v1", "sample");
    world.settle();
    assert_eq!(world.last.endpoints[0].1.ready[0].address.port(), 8080);
    world.deploy("v2", "two");
    let text = world.settle();
    assert!(text.contains("set `ingress.targetPort` to the port that the app listens on"), "{text}");
}

#[test]
fn the_least_busy_goes_first_then_the_newest() {
    let mut world = running(1);
    world.pass(SignedDuration::from_secs(1));
    world.want("v1", 3);
    world.settle();
    let names: Vec<_> = world.replicas.iter().map(|replica| replica.name.clone()).collect();
    world.open = [(names[0].clone(), 1), (names[1].clone(), 7), (names[2].clone(), 1)].into();
    world.want("v1", 2);
    world.settle();
    assert_eq!(world.last.endpoints[0].1.draining, [names[2].clone()]);
    world.want("v1", 3);
    check(
        &world.settle(),
        &expect![[r#"
        undrain #1: the wanted number of replicas
    "#]],
    );
}

#[test]
fn a_replica_that_died_is_replaced_later_and_later() {
    let mut world = running(1);
    let mut waits = Vec::new();
    for _ in 0..5 {
        world.replicas[0].phase = cove_model::ReplicaPhase::Stopped;
        let before = world.now;
        for _ in 0..20 {
            world.settle();
            if !world.replicas.is_empty() {
                break;
            }
            world.now = world.last.wake_at.unwrap();
        }
        waits.push(world.now.duration_since(before).as_secs());
    }
    assert_eq!(waits, [0, 1, 2, 4, 8]);
}

#[test]
fn what_ended_while_no_server_was_there_is_replaced_at_once() {
    let mut world = running(8);
    world.memory = AppMemory::new(8);
    for replica in &mut world.replicas {
        replica.phase = cove_model::ReplicaPhase::Failed;
        replica.is_ready = false;
    }
    world.settle();
    assert_eq!(world.ready(&World::name("v1")), 8, "no time has passed");
    assert_eq!(world.revisions[0].1.running, RevisionRunning::Running);
}

#[test]
fn a_restart_replaces_without_a_gap() {
    let mut world = running(2);
    let old: Vec<_> = world.replicas.iter().map(|replica| replica.name.clone()).collect();
    world.revisions[0].0.restart_generation += 1;
    for _ in 0..6 {
        world.round();
        assert!(world.ready(&World::name("v1")) >= 2);
    }
    world.pass(SignedDuration::from_secs(31));
    world.settle();
    assert_eq!(world.replicas_text(), "v1=2+0 slots 0");
    assert!(world.replicas.iter().all(|replica| !old.contains(&replica.name)));
}

#[test]
fn weights_labels_and_hosts_of_several_revisions() {
    let mut world = World::new();
    world.app.active_revisions_mode = ActiveRevisionsMode::Multiple;
    for suffix in ["v1", "v2", "v3"] {
        world.deploy(suffix, "sample");
        world.settle();
    }
    let share = |revision: Option<&str>, weight, label: Option<&str>| TrafficWeight {
        revision: revision.map(str::to_owned),
        weight,
        label: label.map(str::to_owned),
    };
    world.app.ingress.as_mut().unwrap().traffic = vec![
        share(Some("web--v1"), 20, Some("blue")),
        share(None, 60, None),
        share(Some("web--gone"), 20, None),
        share(Some("web--v2"), 0, Some("green")),
    ];
    world.settle();
    let table = hosts(&world.app, "env.localhost", &world.last.traffic);
    let text = |(host, route): (&String, &cove_traffic::AppRoute)| {
        let shares = route.revisions.iter().map(|share| format!(" {}={}", share.revision.name.suffix(), share.weight));
        format!("{host}:{}\n", shares.collect::<String>())
    };
    let shown: String = table.iter().filter(|(host, _)| !host.contains("internal")).map(text).collect();
    expect![[r#"
        web---blue.env.localhost: v1=100
        web---green.env.localhost: v2=100
        web--v1.env.localhost: v1=100
        web--v2.env.localhost: v2=100
        web--v3.env.localhost: v3=100
        web.env.localhost: v1=25 v3=75
    "#]]
    .assert_eq(&shown);
    assert_eq!(table.len(), 12, "and the same with `internal`");
    assert_eq!(world.replicas_text(), "v1=1+0 slots 0, v2=1+0 slots 0, v3=1+0 slots 0");
}

#[test]
fn old_inactive_revisions_are_forgotten() {
    let mut world = World::new();
    world.app.max_inactive_revisions = 1;
    for suffix in ["v1", "v2", "v3"] {
        world.deploy(suffix, "sample");
        world.settle();
        for _ in 0..3 {
            world.pass(SignedDuration::from_secs(31));
            world.settle();
        }
    }
    let names: Vec<_> = world.revisions.iter().map(|(revision, _)| revision.name.suffix().to_owned()).collect();
    assert_eq!(names, ["v2", "v3"]);
}

#[test]
fn a_minimum_holds_whatever_the_autoscaler_says() {
    let mut world = World::new();
    world.deploy_scaled("v1", "sample", Scale { min_replicas: 2, max_replicas: 3, ..Scale::default() });
    world.want("v1", 0);
    world.settle();
    assert_eq!(world.replicas_text(), "v1=2+0 slots 0");
    world.want("v1", 9);
    world.settle();
    assert_eq!(world.replicas_text(), "v1=3+0 slots 0");
    assert_eq!(world.revisions[0].1.running, RevisionRunning::RunningAtMaxScale);
}

#[test]
fn deletion_ends_everything_at_once() {
    let mut world = running(2);
    world.slots = 1;
    world.settle();
    world.phase = AppPhase::Deleting;
    world.round();
    world.round();
    assert!(world.replicas.is_empty());
    assert_eq!(world.round(), "deleted\n");
    assert!(!world.last.traffic.is_routed);
}

/// A machine for two replicas of a quarter core and half a gibibyte.
const SMALL: Amount = Amount { cpu: MilliCpu(500), memory: Bytes(1 << 30) };

#[test]
fn what_does_not_fit_waits_and_says_what_is_short() {
    let mut world = running(1);
    world.capacity = Some(SMALL);
    world.want("v1", 5);
    check(
        &world.settle(),
        &expect![[r#"
            prepare #1 of web--v1: the wanted number of replicas
            start #1: the wanted number of replicas
        "#]],
    );
    let short = world.last.short.first().unwrap();
    assert_eq!((short.revision.suffix(), short.missing), ("v1", 3));
    assert!(short.message.contains("of this machine only 0 cores"), "{}", short.message);
    world.capacity = Some(Amount { cpu: MilliCpu(5000), memory: Bytes(8 << 30) });
    world.settle();
    assert_eq!((world.ready(&World::name("v1")), world.last.short.len()), (5, 0));
}

#[test]
fn a_revision_without_room_fails_after_a_while_and_heals() {
    let mut world = World::new();
    world.capacity = Some(Amount { cpu: MilliCpu(100), memory: Bytes(1 << 30) });
    world.deploy("v1", "sample");
    world.settle();
    assert!(world.replicas.is_empty());
    let status = &world.revisions[0].1;
    assert_eq!(status.provisioning, RevisionProvisioning::Provisioning);
    assert!(status.message.as_ref().unwrap().contains("it cannot start here"), "{status:?}");
    world.pass(world.settings.capacity_patience);
    let text = world.settle();
    assert!(text.contains("ContainerAppOperationError") && text.contains("asks for 0.25 cores"), "{text}");
    world.capacity = Some(SMALL);
    world.settle();
    assert_eq!(world.revisions[0].1.provisioning, RevisionProvisioning::Provisioned);
}

#[test]
fn a_revision_that_is_long_under_way_is_not_looked_at_again_and_again() {
    let mut world = World::new();
    world.deaf.insert("deaf".into());
    world.deploy("v1", "deaf");
    world.settle();
    world.pass(world.settings.capacity_patience + SignedDuration::from_secs(1));
    world.settle();
    assert_eq!(world.revisions[0].1.provisioning, RevisionProvisioning::Provisioning);
    assert!(world.last.wake_at.is_some_and(|at| at > world.now), "{:?}", world.last.wake_at);
}
