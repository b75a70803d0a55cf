//! Replicas that run to their end: exits are told, nothing is started again, every line of the logs is there.

use std::{sync::Arc, time::Duration};

use cove_model::{Container, ReplicaObservation, ReplicaPhase};
use cove_runtime::{ReplicaSpec, RestartPolicy, Runtime};

use crate::{
    fixture::{Host, container, spec},
    shell_image::{self, SHELL_IMAGE},
};

fn shell(name: &str, script: &str) -> Container {
    let mut shell = container(name, &[]);
    shell.image = SHELL_IMAGE.to_owned();
    shell.command = ["sh", "-c", script].map(str::to_owned).to_vec();
    shell
}

fn once(name: &str, containers: Vec<Container>) -> ReplicaSpec {
    ReplicaSpec { restart: RestartPolicy::Never, target_port: None, ..spec(name, containers) }
}

/// Exit codes of the containers that ended, in their order.
fn codes(seen: &ReplicaObservation) -> Vec<i32> {
    seen.containers.iter().filter_map(|container| Some(container.last_exit.as_ref()?.code)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_not_started_again_ends_with_its_last_container() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let count = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; printf last";
    let order = once("job-1", vec![shell("main", count), shell("side", "echo side; exit 7")]);
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(codes(&seen), [0, 7]);
    assert_eq!(seen.containers[1].last_exit.as_ref().unwrap().reason, "Error");
    assert!(seen.containers.iter().all(|container| container.restarts == 0), "{seen:?}");
    let lines = host.log(&name, "main");
    let wanted = (1..=20_000).map(|number| format!("line {number}")).chain(["last".to_owned()]);
    assert!(lines.into_iter().eq(wanted), "every line, in order, to the last byte");
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_container_that_fails_ends_it_all() {
    let host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let mut order = once("job-2", vec![shell("main", "echo never")]);
    Arc::make_mut(&mut order.template).init_containers = vec![shell("first", "echo began; exit 4")];
    let name = order.name.clone();
    let seen = host.run(order, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(codes(&seen).first(), Some(&4));
    assert_eq!((host.log(&name, "first"), host.log(&name, "main")), (vec!["began".to_owned()], vec![]));
    host.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_end_while_no_driver_is_there_is_told_to_the_next_one() {
    let mut host = Host::new().await;
    shell_image::import(&host.images, host.dir.path()).await;
    let order = once("job-3", vec![shell("main", "echo began; sleep 1; echo over; exit 5")]);
    let name = order.name.clone();
    host.run(order, |seen| seen.phase == ReplicaPhase::Running).await;
    host.forget();
    host.wait_log(&name, "main", "over").await;
    host.open().await;
    let seen = host.wait(&name, |seen| seen.phase == ReplicaPhase::Stopped).await;
    assert_eq!(codes(&seen), [5]);
    host.runtime().stop(&name, Duration::ZERO);
    host.runtime().remove(&name);
    host.finish().await;
}
