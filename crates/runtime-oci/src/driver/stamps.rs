//! Stamps of observations on a virtual clock.
//!
//! Helpers are processes of their own and stamp what they see by the machine's clock; the durations of a wake are made of
//! those. The rest of the platform knows one time only, so what is published carries the platform's.

use cove_base::Clock;
use cove_model::{ContainerState, ReplicaObservation};
use jiff::Timestamp;

/// Puts the platform's time in place of the machine's. The end of a back-off stays as far away as it is: containers are
/// started again in real time.
pub(super) fn translate(replica: &mut ReplicaObservation, clock: &Clock) {
    let to = |at: &mut Timestamp| *at = clock.at_machine_time(*at);
    to(&mut replica.created_at);
    replica.started_at.iter_mut().for_each(to);
    replica.ready_at.iter_mut().for_each(to);
    for container in &mut replica.containers {
        match &mut container.state {
            ContainerState::Running { since } => to(since),
            ContainerState::Waiting { .. } | ContainerState::Terminated => {}
        }
        container.last_exit.iter_mut().for_each(|exit| to(&mut exit.at));
    }
}

#[cfg(test)]
mod tests {
    use cove_model::{ReplicaName, ReplicaPhase, ResourceId, RevisionKey, RevisionName};
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn observations_carry_the_platforms_time() {
        let start = Timestamp::from_second(1_000_000).unwrap();
        let clock = Clock::virtual_at(start);
        let machine = Timestamp::now();
        let mut replica = ReplicaObservation {
            name: ReplicaName::new("web--v1-a-b").unwrap(),
            revision: RevisionKey {
                app: ResourceId::resource("s", "rg", "Microsoft.App/containerApps", "web").unwrap(),
                name: RevisionName::new("web--v1").unwrap(),
            },
            restart_generation: 0,
            phase: ReplicaPhase::Running,
            is_ready: true,
            address: None,
            containers: Vec::new(),
            created_at: machine,
            started_at: Some(machine),
            ready_at: None,
        };
        translate(&mut replica, &clock);
        assert_eq!((replica.created_at, replica.started_at, replica.ready_at), (start, Some(start), None));
        clock.advance(SignedDuration::from_hours(5));
        replica.ready_at = Some(Timestamp::now() + SignedDuration::from_secs(1));
        translate(&mut replica, &clock);
        assert_eq!(replica.ready_at, Some(clock.now()));
    }
}
