//! Log streams.

use std::time::Duration;

use cove_model::{ReplicaName, ReplicaObservation, ReplicaPhase, ResourceId};
use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tower::ServiceExt;

use super::harness::{NOW, RG, WEB, World, app_body};
use crate::Config;

fn stream(replica: &str, query: &str) -> String {
    format!("{RG}/containerApps/web/revisions/web--v1/replicas/{replica}/containers/web/logstream?{query}")
}

async fn world() -> World {
    with_app(World::with_environment().await).await
}

pub(super) async fn with_app(world: World) -> World {
    world.put(WEB, app_body("nginx", "v1")).await;
    let id = ResourceId::parse(WEB).unwrap();
    let key = world.store.revision(&id, "web--v1").unwrap().unwrap().revision.key();
    let replica = ReplicaObservation {
        name: ReplicaName::new("web--v1-a").unwrap(),
        revision: key.clone(),
        restart_generation: 0,
        phase: ReplicaPhase::Running,
        is_ready: true,
        address: None,
        containers: vec![],
        created_at: NOW.parse().unwrap(),
        started_at: None,
        ready_at: None,
    };
    world.store.set_replicas(key, vec![replica]).await.unwrap();
    world
}

#[tokio::test]
async fn every_line_is_json_or_text() {
    let world = world().await;
    let json_lines = world.get(&stream("web--v1-a", "follow=false&output=json")).await;
    let lines: Vec<Value> = json_lines.text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines[0], json!({"TimeStamp": NOW, "Log": "hello"}));
    assert_eq!(lines.len(), 2);
    let text = world.get(&stream("web--v1-a", "output=TEXT&tailLines=300")).await;
    assert_eq!(text.text, format!("{NOW}  hello\n{NOW}  a \"quoted\" line\n"));
    assert_eq!(text.header("content-type"), "text/plain; charset=utf-8");
    let tails: Vec<u32> = world.console.lock().unwrap().iter().map(|query| query.tail).collect();
    assert_eq!(tails, [20, 300]);
}

#[tokio::test]
async fn wrong_questions_are_refused() {
    let world = world().await;
    for (path, status, code) in [
        (stream("web--v1-a", "tailLines=301"), 400, "InvalidParameterValue"),
        (stream("web--v1-a", "tailLines=-1"), 400, "InvalidParameterValue"),
        (stream("web--v1-a", "follow=maybe"), 400, "InvalidParameterValue"),
        (stream("web--v1-a", "output=xml"), 400, "InvalidParameterValue"),
        (stream("Not_A_Name", "follow=true"), 404, "ContainerAppReplicaNotFound"),
        (stream("web--v1-a", "").replace("containers/web/", "containers/x/"), 404, "ContainerNotFound"),
        (stream("web--v1-a", "").replace("web--v1/", "web--v9/"), 404, "ContainerAppRevisionNotFound"),
        (stream("web--v1-a", "command=sh").replace("logstream", "exec"), 426, "UpgradeRequired"),
        (stream("web--v1-a", "command='sh").replace("logstream", "exec"), 400, "InvalidParameterValue"),
        (stream("web--v1-a", "tty=maybe").replace("logstream", "exec"), 400, "InvalidParameterValue"),
        (stream("web--v1-none", "command=sh").replace("logstream", "exec"), 404, "ContainerAppReplicaNotFound"),
        (stream("web--v1-a", "").replace("containers/web/logstream", "debug"), 426, "UpgradeRequired"),
    ] {
        let refused = world.get(&path).await;
        assert_eq!((refused.status, refused.code()), (status, code.into()), "{path}");
    }
}

#[tokio::test]
async fn the_past_of_a_replica_that_is_gone_ends() {
    let world = world().await;
    let answered =
        tokio::time::timeout(Duration::from_secs(60), world.get(&stream("web--v1-gone", "follow=true"))).await;
    assert_eq!(answered.unwrap().text.lines().count(), 2);
    assert!(!world.console.lock().unwrap()[0].follow);
}

#[tokio::test]
async fn a_followed_stream_beats_and_ends_with_the_server() {
    let config = Config { heartbeat: Duration::from_millis(20), ..Config::default() };
    let world = with_app(World::with_environment_and(config).await).await;
    let request =
        Request::get(stream("web--v1-a", "follow=true")).header("host", "localhost").body(axum::body::Body::empty());
    let mut body = world.router.clone().oneshot(request.unwrap()).await.unwrap().into_body();
    let mut chunks = Vec::new();
    for _ in 0..4 {
        let frame = body.frame().await.unwrap().unwrap();
        chunks.push(String::from_utf8(frame.into_data().unwrap().to_vec()).unwrap());
    }
    assert_eq!(chunks[2..], ["\n", "\n"], "an empty line after each silence");
    world.shutdown.cancel();
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn a_followed_stream_ends_after_its_replica() {
    let config = Config { heartbeat: Duration::from_millis(20), ..Config::default() };
    let world = with_app(World::with_environment_and(config).await).await;
    let id = ResourceId::parse(WEB).unwrap();
    let key = world.store.revision(&id, "web--v1").unwrap().unwrap().revision.key();
    let path = stream("web--v1-a", "follow=true");
    let followed = world.get(&path);
    let gone = world.store.set_replicas(key, vec![]);
    let both = async { futures_util::join!(followed, gone) };
    let (answered, written) = tokio::time::timeout(Duration::from_secs(60), both).await.unwrap();
    written.unwrap();
    assert!(answered.text.starts_with("{\"TimeStamp\""));
}

#[tokio::test]
async fn system_events_are_json_of_one_line() {
    let world = world().await;
    for path in [
        format!("{RG}/containerApps/web/eventstream?follow=false"),
        format!("{RG}/managedEnvironments/env/eventstream?tailLines=5"),
    ] {
        let answered = world.get(&path).await;
        let event: Value = serde_json::from_str(answered.text.trim_end()).unwrap();
        assert_eq!((&event["Reason"], &event["Type"]), (&json!("RevisionReady"), &json!("Normal")), "{path}");
    }
}

#[tokio::test]
async fn streams_are_bounded() {
    let world = world().await;
    let all = u32::try_from(world.plane.open_streams().available_permits()).unwrap();
    let _taken = world.plane.open_streams().acquire_many(all).await.unwrap();
    assert_eq!(world.get(&stream("web--v1-a", "")).await.code(), "TooManyRequests");
}
