//! Whatever happens, in whatever order: every execution ends once, with the right status.

use cove_model::ExecutionStatus;
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Event {
    Run(usize),
    Exit(usize, bool),
    Kill(usize),
    Pass(i64),
    Room(u32),
    Stop,
    /// The server ends and begins anew.
    Crash(Crash),
    Images(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0_usize..4).prop_map(Event::Run),
        6 => (0_usize..4, prop::bool::weighted(0.7)).prop_map(|(at, ok)| Event::Exit(at, ok)),
        1 => (0_usize..4).prop_map(Event::Kill),
        2 => (0_i64..70).prop_map(Event::Pass),
        1 => (0_u32..5).prop_map(Event::Room),
        1 => prop::bool::weighted(0.1).prop_filter_map("mostly not", |stop| stop.then_some(Event::Stop)),
        3 => prop_oneof![Just(Crash::BeforeWrite), (0_usize..4).prop_map(Crash::AfterSteps)].prop_map(Event::Crash),
        1 => any::<bool>().prop_map(Event::Images),
    ]
}

fn check(world: &World) {
    let stored = &world.stored;
    assert!(world.live() <= usize::try_from(stored.counts.parallelism).unwrap(), "parallelism");
    assert!(world.starts.values().all(|starts| *starts == 1), "a name was started twice: {:?}", world.starts);
    assert!(stored.succeeded <= stored.counts.completions, "too many successes");
    assert!(stored.failed <= stored.replica_retry_limit + stored.counts.parallelism, "too many runs");
    let done: Vec<_> =
        stored.replicas.iter().filter(|replica| replica.reason.as_deref() == Some("Completed")).collect();
    let indexes: BTreeSet<_> = done.iter().map(|replica| replica.index).collect();
    assert_eq!((indexes.len(), done.len()), (done.len(), usize::try_from(stored.succeeded).unwrap()));
    let failed = stored.replicas.iter().filter(|replica| is_failed(replica)).count();
    assert_eq!(failed, usize::try_from(stored.failed).unwrap());
    match stored.status {
        ExecutionStatus::Succeeded => assert_eq!(stored.succeeded, stored.counts.completions),
        ExecutionStatus::Failed => assert!(stored.failed > stored.replica_retry_limit),
        ExecutionStatus::Stopped => assert!(stored.stop_requested_at.is_some()),
        _ => return,
    }
    assert!(stored.ended_at.is_some() && stored.replicas.iter().all(|replica| replica.ended_at.is_some()));
    assert_eq!(world.live(), 0, "something is left");
}

fn happen(world: &mut World, event: &Event) {
    match event {
        Event::Run(at) => world.run(*at),
        Event::Exit(at, ok) => world.exit(*at, i32::from(!ok)),
        Event::Kill(at) => world.exit(*at, 137),
        Event::Pass(seconds) => world.pass(*seconds),
        Event::Room(room) => world.room = *room,
        Event::Stop => world.stored.stop_requested_at = world.stored.stop_requested_at.or(Some(world.now)),
        Event::Crash(crash) => world.plan(*crash),
        Event::Images(here) => {
            let ready = Images::Ready { exposed_ports: BTreeMap::new() };
            world.images = if *here { ready } else { Images::Unknown };
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn every_execution_ends_once_with_the_right_status(
        parallelism in 1_u32..4,
        completions in 1_u32..6,
        retries in 0_u32..4,
        events in prop::collection::vec(event(), 0..60),
    ) {
        let mut world = World::new(execution(parallelism, completions, retries));
        for event in &events {
            // a stop comes from outside and only while the execution has not ended
            if matches!(event, Event::Stop) && world.stored.status.is_final() {
                continue;
            }
            happen(&mut world, event);
            check(&world);
            world.plan(Crash::Never);
            check(&world);
        }
        // from here on all goes well
        world.room = 1000;
        for _ in 0..200 {
            if world.stored.status.is_final() {
                break;
            }
            world.images = Images::Ready { exposed_ports: BTreeMap::new() };
            world.run(0);
            world.exit(0, 0);
            world.plan(Crash::Never);
            check(&world);
            if let Some(at) = world.wake_at.filter(|at| *at > world.now && world.live() == 0) {
                world.now = at;
            }
        }
        prop_assert!(world.stored.status.is_final(), "it never ends: {:#?}", world.stored);
        let end = world.stored.clone();
        world.plan(Crash::Never);
        prop_assert_eq!(&world.stored, &end);
        prop_assert!(world.replicas.is_empty());
    }
}
