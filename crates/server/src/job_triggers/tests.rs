//! The store as triggers see it, on real files.

use cove_model::{Counts, JobTrigger, Scale, Template};
use cove_store::{Expect, PutResource, SecretsChange};

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn job() -> Job {
    let resource = |kind: &str, name: &str| ResourceId::resource("s", "rg", kind, name).unwrap();
    Job {
        id: resource(JOB_KIND, "nightly"),
        environment: resource("Microsoft.App/managedEnvironments", "env"),
        workload_profile: None,
        template: Template {
            init_containers: vec![],
            containers: vec![],
            volumes: vec![],
            scale: Scale::default(),
            termination_grace_period_secs: 30,
        },
        trigger: JobTrigger::Manual(Counts::default()),
        replica_timeout_secs: 60,
        replica_retry_limit: 0,
        registries: vec![],
        is_suspended: false,
        priority: 0,
    }
}

async fn put(store: &Store, job: &Job) {
    let put = PutResource {
        id: job.id.clone(),
        doc: json!({}),
        spec: Some(serde_json::to_value(job).unwrap()),
        secrets: SecretsChange::Keep,
        provisioning: Provisioning::Succeeded,
        operation: None,
        revision: None,
        expect: Expect::Absent,
        now: NOW,
    };
    store.put(put).await.unwrap();
}

fn ticks(job: &Job, seconds: &[i64], replaces: bool) -> StartRequest {
    let tick = |second: &i64| ExecutionCause::Tick(Timestamp::from_second(*second).unwrap());
    StartRequest { job: Arc::new(job.clone()), causes: seconds.iter().map(tick).collect(), replaces, now: NOW }
}

#[tokio::test]
async fn a_tick_that_is_asked_for_again_replaces_the_others_but_not_itself() {
    let (dir, job) = (tempfile::tempdir().unwrap(), job());
    let store = Store::open(dir.path()).unwrap();
    let port = Stored { store: store.clone(), clock: Clock::real() };
    assert!(matches!(port.start(ticks(&job, &[0], false)).await, Err(StartError::Gone)));
    put(&store, &job).await;
    let first = port.start(ticks(&job, &[60, 120], false)).await.unwrap();
    assert_eq!((first.len(), port.open(&job.id).await.unwrap().running), (2, 2));
    assert!(first.iter().all(|name| name.as_str().starts_with("nightly-") && name.as_str().len() == 15));

    let second = port.start(ticks(&job, &[180], true)).await.unwrap();
    // As after a crash before it was settled.
    assert!(port.start(ticks(&job, &[180], true)).await.unwrap().is_empty());
    let open = store.open_executions(&job.id).unwrap();
    let going_on: Vec<_> =
        open.iter().filter(|one| one.stop_requested_at.is_none()).map(|one| one.name.clone()).collect();
    assert_eq!((open.len(), going_on), (3, second));
}

#[tokio::test]
async fn what_is_settled_is_kept_and_jobs_are_listed_until_they_go() {
    let (dir, job) = (tempfile::tempdir().unwrap(), job());
    let store = Store::open(dir.path()).unwrap();
    let port = Stored { store: store.clone(), clock: Clock::real() };
    put(&store, &job).await;
    assert_eq!(port.state(&job.id).await.unwrap(), None);
    let state = JobState { schedule: "@hourly UTC".into(), settled: NOW, is_suspended: false };
    port.save(&job.id, state.clone()).await.unwrap();
    assert_eq!(port.state(&job.id).await.unwrap(), Some(state));

    let jobs = Board::default();
    let mut changes = jobs.subscribe();
    let following = tokio::spawn(follow(store.clone(), Clock::real(), jobs.clone()));
    assert!(changes.next().await.contains(&job.id));
    assert_eq!(jobs.get(&job.id).map(|listed| listed.job), Some(Arc::new(job.clone())));
    store.remove(job.id.clone(), NOW).await.unwrap();
    assert!(changes.next().await.contains(&job.id));
    assert_eq!(jobs.get(&job.id), None);
    following.abort();
}
