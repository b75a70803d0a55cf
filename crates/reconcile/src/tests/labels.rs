//! Labels mode, as text.

use cove_model::{ActiveRevisionsMode, TrafficWeight};
use expect_test::expect;
use jiff::SignedDuration;

use super::world::World;
use crate::AppMemory;

/// Points labels to revisions: `blue=v1:100`.
fn label(world: &mut World, labels: &[(&str, &str, u32)]) {
    let weight = |(label, suffix, weight): &(&str, &str, u32)| TrafficWeight {
        revision: Some(World::name(suffix).to_string()),
        weight: *weight,
        label: Some((*label).to_owned()),
    };
    world.app.ingress.as_mut().unwrap().traffic = labels.iter().map(weight).collect();
}

/// What each label and the app itself lead to, and which revisions are active.
fn show(world: &World) -> String {
    let labels = world.last.traffic.labels.iter().map(|(label, name)| format!("{label}={}", name.suffix()));
    let shares = world.last.traffic.weights.iter();
    let shares = shares.map(|share| format!("{}:{}", share.revision.name.suffix(), share.weight));
    let active = world.revisions.iter().filter(|(revision, _)| revision.is_active);
    let active = active.map(|(revision, _)| revision.name.suffix().to_owned());
    let join = |parts: Vec<String>| parts.join(" ");
    format!("{}; app {}; active {}", join(labels.collect()), join(shares.collect()), join(active.collect()))
}

fn labelled() -> World {
    let mut world = World::new();
    world.app.active_revisions_mode = ActiveRevisionsMode::Labels;
    world.deploy("v1", "sample");
    label(&mut world, &[("blue", "v1", 100)]);
    world.settle();
    world
}

#[test]
fn a_label_moves_when_its_new_revision_is_ready() {
    let mut world = labelled();
    expect!["blue=v1; app v1:100; active v1"].assert_eq(&show(&world));
    world.deploy("v2", "sample");
    label(&mut world, &[("blue", "v2", 100)]);
    world.round();
    expect!["blue=v1; app v1:100; active v1 v2"].assert_eq(&show(&world));
    world.settle();
    expect!["blue=v2; app v2:100; active v2"].assert_eq(&show(&world));
    world.pass(SignedDuration::from_secs(60));
    world.settle();
    world.pass(SignedDuration::from_secs(60));
    world.settle();
    expect!["v1=0+0 slots 0, v2=1+0 slots 0"].assert_eq(&world.replicas_text());
}

#[test]
fn a_new_revision_that_fails_leaves_the_label_where_it_was() {
    let mut world = labelled();
    world.crashing.insert("bad".into());
    world.deploy("v2", "bad");
    label(&mut world, &[("blue", "v2", 100)]);
    let text = world.settle();
    assert!(text.contains("ContainerAppOperationError"), "{text}");
    expect!["blue=v1; app v1:100; active v1 v2"].assert_eq(&show(&world));
    // nor when nobody remembers who served
    world.memory = AppMemory::new(2);
    world.settle();
    expect!["blue=v1; app v1:100; active v1 v2"].assert_eq(&show(&world));
}

#[test]
fn only_labelled_revisions_are_active() {
    let mut world = labelled();
    world.deploy("v2", "sample");
    label(&mut world, &[("blue", "v1", 80), ("green", "v2", 20)]);
    world.settle();
    expect!["blue=v1 green=v2; app v1:80 v2:20; active v1 v2"].assert_eq(&show(&world));
    // swapped, then one taken away, then given back to what became inactive
    label(&mut world, &[("blue", "v2", 80), ("green", "v1", 20)]);
    world.settle();
    expect!["blue=v2 green=v1; app v2:80 v1:20; active v1 v2"].assert_eq(&show(&world));
    label(&mut world, &[("blue", "v2", 100)]);
    world.settle();
    expect!["blue=v2; app v2:100; active v2"].assert_eq(&show(&world));
    label(&mut world, &[("blue", "v2", 50), ("green", "v1", 50)]);
    world.settle();
    expect!["blue=v2 green=v1; app v2:50 v1:50; active v1 v2"].assert_eq(&show(&world));
}
