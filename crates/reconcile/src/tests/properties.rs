//! Whatever happens, in whatever order.

use cove_model::{IdleState, ReplicaObservation, ReplicaPhase, Scale};
use jiff::SignedDuration;
use proptest::prelude::*;

use super::world::World;
use crate::{Action, AppMemory};

#[derive(Clone, Debug)]
enum Event {
    Want(u32),
    Deploy {
        image: u8,
        min: u32,
        max: u32,
        frozen: bool,
    },
    Kill(usize),
    Idle(usize),
    Pass(u64),
    ForgetEverything,
    Restart,
    Slots(u32),
    StopApp(bool),
    /// Others wait for memory, or do not any more.
    Crowd(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0_u32..6).prop_map(Event::Want),
        2 => (0_u8..4, 0_u32..3, 1_u32..5, any::<bool>())
            .prop_map(|(image, min, more, frozen)| Event::Deploy { image, min, max: min + more, frozen }),
        2 => (0_usize..8).prop_map(Event::Kill),
        2 => (0_usize..8).prop_map(Event::Idle),
        4 => (0_u64..100_000).prop_map(Event::Pass),
        1 => Just(Event::ForgetEverything),
        1 => Just(Event::Restart),
        1 => (0_u32..3).prop_map(Event::Slots),
        1 => any::<bool>().prop_map(Event::StopApp),
        1 => any::<bool>().prop_map(Event::Crowd),
    ]
}

fn happen(world: &mut World, event: &Event) {
    let newest = world.revisions.last().map(|(revision, _)| revision.name.suffix().to_owned());
    match event {
        Event::Want(count) => {
            for suffix in newest.into_iter().chain(world.serving().map(|name| name.suffix().to_owned())) {
                world.want(&suffix, *count);
            }
        }
        Event::Deploy { image, min, max, frozen } => {
            let suffix = format!("r{}", world.generation);
            let image = ["good", "better", "deaf", "crash"][usize::from(*image)];
            let idle = if *frozen { IdleState::Frozen } else { IdleState::Zero };
            let scale = Scale { min_replicas: *min, max_replicas: *max, idle, ..Scale::default() };
            world.deploy_scaled(&suffix, image, scale);
        }
        Event::Kill(at) => {
            if let Some(replica) = world.replicas.get_mut(*at) {
                replica.phase = ReplicaPhase::Stopped;
                replica.is_ready = false;
            }
        }
        Event::Idle(at) => {
            if let Some(replica) = world.replicas.get(*at) {
                world.open.insert(replica.name.clone(), 0);
            }
        }
        Event::Pass(millis) => world.pass(SignedDuration::from_millis(i64::try_from(*millis).unwrap())),
        Event::ForgetEverything => {
            world.servers += 1;
            world.memory = AppMemory::new(world.servers);
        }
        Event::Restart => {
            if let Some((revision, _)) = world.revisions.last_mut() {
                revision.restart_generation += 1;
            }
        }
        Event::Slots(slots) => world.slots = *slots,
        Event::StopApp(is_stopped) => world.app.is_stopped = *is_stopped,
        Event::Crowd(is_crowded) => world.cannot_freeze = is_crowded.then_some("others wait for memory"),
    }
}

/// Invariants that hold after every single plan.
fn check(world: &World, before: &World) {
    let weights: u32 = world.last.traffic.weights.iter().map(|share| share.weight).sum();
    assert!(weights == 100 || world.last.traffic.weights.is_empty(), "traffic-sums-to-100");
    for (key, existing) in &world.last.existing {
        let found = before.revisions.iter().find(|(revision, _)| revision.name == key.name);
        let most = found.map_or(0, |(revision, _)| revision.template.scale.max_replicas);
        assert!(*existing <= most.max(1), "replicas-within-limits: {key} has {existing} of {most}");
    }
    let (was, is) = (before.serving(), world.serving());
    if let (Some(was), Some(is)) = (was, is)
        && was != is
        && before.ready(&was) > 0
        && !world.app.is_stopped
    {
        assert!(world.ready(&is) > 0, "old-revision-serves-until-new-ready: {was} gave way to {is}");
    }
    for (_, endpoints) in &world.last.endpoints {
        for endpoint in &endpoints.ready {
            let seen = before.replicas.iter().find(|seen| seen.name == endpoint.replica).unwrap();
            assert!(
                seen.phase == ReplicaPhase::Running,
                "requests are sent to {}, which is {:?}",
                seen.name,
                seen.phase
            );
        }
    }
    for step in &world.last.steps {
        if let Action::Freeze { replica, .. } = &step.action {
            let was_draining = before.last.endpoints.iter().any(|(_, e)| e.draining.contains(replica));
            assert!(
                was_draining && before.open.get(replica) == Some(&0),
                "{replica} was frozen in the middle of something"
            );
        }
        if let Action::Stop { replica, .. } = &step.action {
            let seen = before.replicas.iter().find(|seen| seen.name == *replica).unwrap();
            let was_draining = before.last.endpoints.iter().any(|(_, e)| e.draining.contains(replica));
            assert!(!seen.is_ready || was_draining, "{replica} was stopped without a drain");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn plans_settle_and_keep_their_promises(events in proptest::collection::vec(event(), 1..40)) {
        let mut world = World::new();
        world.deaf.insert("deaf".into());
        world.crashing.insert("crash".into());
        world.deploy("first", "good");
        for event in &events {
            happen(&mut world, event);
            for _ in 0..30 {
                let before = world.clone();
                world.round();
                check(&world, &before);
                if world.last.steps.is_empty() {
                    break;
                }
            }
            prop_assert!(world.last.steps.is_empty(), "plan-settles: {:?}", world.last.steps);
            for (revision, _) in &world.revisions {
                let is_frozen = |seen: &&ReplicaObservation| seen.revision.name == revision.name && seen.phase == ReplicaPhase::Frozen;
                let frozen = world.replicas.iter().filter(is_frozen).count();
                let most = usize::from(revision.template.scale.idle == IdleState::Frozen && world.cannot_freeze.is_none());
                prop_assert!(frozen <= most, "{} has {frozen} frozen replicas, {most} may be", revision.name);
            }
        }
    }

    #[test]
    fn steps_may_be_done_twice(events in proptest::collection::vec(event(), 1..20)) {
        let mut world = World::new();
        world.deploy("first", "good");
        for event in &events {
            happen(&mut world, event);
            world.round();
            let steps = world.last.steps.clone();
            let once = world.clone();
            steps.iter().for_each(|step| world.apply(&step.action));
            let kept = |world: &World| world.replicas.iter().map(|r| (r.name.clone(), r.phase)).collect::<Vec<_>>();
            let gone: Vec<_> = steps.iter().filter_map(|step| match &step.action {
                Action::Remove { replica } => Some(replica.clone()),
                _ => None,
            }).collect();
            let differs = kept(&world).into_iter().filter(|(name, _)| !gone.contains(name)).collect::<Vec<_>>();
            prop_assert_eq!(differs, kept(&once));
        }
    }

    #[test]
    fn what_is_not_seen_is_never_a_reason_to_stop_what_serves(
        count in 1_u32..6,
        lost in proptest::collection::vec(any::<bool>(), 12),
        forget in any::<bool>(),
        deploy in any::<bool>(),
    ) {
        let mut world = World::new();
        world.deploy("first", "good");
        world.want("first", count);
        world.settle();
        if deploy {
            world.deploy("second", "better");
            world.round();
            world.round();
        }
        let seen: Vec<_> = world.replicas.iter().zip(&lost).filter(|(_, lost)| !**lost).map(|(r, _)| r.clone()).collect();
        let mut memory = if forget { AppMemory::new(5) } else { world.memory.clone() };
        let plan = world.plan_of(&seen, &mut memory);
        for step in &plan.steps {
            prop_assert!(!matches!(step.action, Action::Stop { .. } | Action::Remove { .. } | Action::Drain { .. }), "{step}");
        }
    }
}
