//! What sessions took, from the rows that say so to the sums of those that are not kept any more.

use cove_model::{Container, Resources, SESSION_POOL_KIND, Scale, SessionEndReason, SessionEnded, Template};

use super::*;
use crate::{Expect, Provisioning, PutResource, SecretsChange, SessionChange};

fn pool() -> ResourceId {
    ResourceId::resource("s", "g", SESSION_POOL_KIND, "pool").unwrap()
}

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

/// A pool whose sessions ask for half a processor and a gibibyte.
async fn put_pool(store: &Store) {
    let container = Container {
        name: "main".to_owned(),
        image: "image".to_owned(),
        command: vec![],
        args: vec![],
        env: vec![],
        resources: Resources { cpu: MilliCpu(500), memory: Bytes(1 << 30), ephemeral_storage: Bytes(2 << 30) },
        probes: vec![],
        volume_mounts: vec![],
    };
    let template = Template {
        init_containers: vec![],
        containers: vec![container],
        volumes: vec![],
        scale: Scale::default(),
        termination_grace_period_secs: 30,
    };
    let spec = serde_json::json!({
        "id": pool(), "environment": null, "container": "Custom", "target_port": 80, "template": template,
        "lifecycle": { "Timed": { "cooldown_secs": 300 } }, "sessions_max": 10, "sessions_ready": 1,
        "egress": "Disabled", "isolation": "Hardened", "registries": [], "generation": "pool--abc1234",
    });
    let parsed: Result<SessionPool, _> = serde_json::from_value(spec.clone());
    parsed.expect("the pool as it is stored");
    let put = PutResource {
        id: pool(),
        doc: serde_json::json!({}),
        spec: Some(spec),
        secrets: SecretsChange::Keep,
        expect: Expect::Anything,
        operation: None,
        revision: None,
        provisioning: Provisioning::Succeeded,
        now: at(0),
    };
    store.put(put).await.unwrap();
}

fn session(name: &str, created: i64) -> Session {
    let session = serde_json::json!({
        "pool": pool(), "generation": "pool--abc1234", "replica": format!("pool--abc1234-{name}"),
        "guid": format!("guid-{name}"), "target_port": 80, "created_at": at(created),
    });
    serde_json::from_value(session).unwrap()
}

async fn save(store: &Store, session: &Session) {
    store.save_sessions(vec![SessionChange::Save(Box::new(session.clone()))]).await.unwrap();
}

/// Made at 0, ready at 2, allocated at 12, ended at 112.
async fn live_through(store: &Store, name: &str, identifier: &str) -> Session {
    let mut one = session(name, 0);
    save(store, &one).await;
    let note = SessionNote { replica: one.replica.clone(), ready_at: Some(at(2)), cpu_us: Some(1_000_000) };
    store.note_session_uses(vec![note]).await.unwrap();
    one.identifier = Some(SessionIdentifier::new(identifier).unwrap());
    one.allocated_at = Some(at(12));
    save(store, &one).await;
    one.ended = Some(SessionEnded { at: at(112), reason: SessionEndReason::CooledDown, message: None });
    save(store, &one).await;
    one
}

#[tokio::test]
async fn what_a_session_took_is_in_its_own_rows_and_outlives_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put_pool(&store).await;
    let one = live_through(&store, "one", "user-1").await;
    store.save_sessions(vec![SessionChange::Forget(one.replica.clone())]).await.unwrap();
    // the last look at its processor time comes when it is gone; less than before means nothing
    for cpu in [2_500_000, 3] {
        let note = SessionNote { replica: one.replica.clone(), ready_at: Some(at(99)), cpu_us: Some(cpu) };
        store.note_session_uses(vec![note]).await.unwrap();
    }
    drop(store);

    let store = Store::open(dir.path()).unwrap();
    let uses = store.session_uses(&pool(), 10).unwrap();
    let [found] = &uses[..] else { panic!("{uses:?}") };
    assert_eq!((found.ready_ms(at(500)), found.allocated_ms(at(500)), found.cpu_us), (10_000, 100_000, 2_500_000));
    assert_eq!((found.core_us(at(500)), found.memory_kib_ms(at(500))), (50_000_000, 110_000 << 20));
    assert_eq!((found.reason.as_deref(), found.guid.as_str()), (Some("CooledDown"), "guid-one"));
    let newest = |identifier: &str| {
        store.newest_session_of(&pool(), &SessionIdentifier::new(identifier).unwrap()).unwrap().map(|found| found.guid)
    };
    assert_eq!((newest("user-1"), newest("user-2")), (Some("guid-one".to_owned()), None));
    assert_eq!(store.session_by_guid(&pool(), "guid-one").unwrap().as_ref(), Some(found));
    assert_eq!(store.open_session_uses().unwrap(), []);
    store.remove(pool(), at(200)).await.unwrap();
    assert_eq!(store.session_uses(&pool(), 10).unwrap().len(), 1, "a deleted pool's use is still known");
}

#[tokio::test]
async fn sums_stay_the_same_when_sessions_are_not_kept_one_by_one_any_more() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    put_pool(&store).await;
    for name in ["one", "two", "three"] {
        live_through(&store, name, &format!("user-{name}")).await;
    }
    let mut open = session("open", 50);
    open.identifier = Some(SessionIdentifier::new("user-open").unwrap());
    open.allocated_at = Some(at(60));
    save(&store, &open).await;
    let now = at(160);
    let before = store.session_use_sum(&pool(), now).unwrap();
    assert_eq!(
        before,
        SessionUseSum {
            sessions: 4,
            allocated: 4,
            ready_ms: 30_000,
            allocated_ms: 400_000,
            cpu_us: 3_000_000,
            core_us: 200_000_000,
            memory_kib_ms: 430_000 << 20,
        }
    );
    assert_eq!(store.sum_up(at(112), 100).await.unwrap(), 0, "none ended before that");
    assert_eq!(store.sum_up(at(0), 3).await.unwrap(), 0, "not more than may be kept");
    assert_eq!(store.sum_up(at(113), 100).await.unwrap(), 3);
    assert_eq!(store.session_use_sum(&pool(), now).unwrap(), before);
    assert_eq!(store.session_uses(&pool(), 10).unwrap().len(), 1, "the open one stays");
    live_through(&store, "four", "user-four").await;
    assert_eq!(store.sum_up(at(0), 0).await.unwrap(), 1, "more than may be kept");
    assert_eq!(store.session_use_sum(&pool(), now).unwrap().sessions, 5);
}
