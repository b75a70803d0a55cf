//! Executions from their row to their end, whatever happens to the server in between.

use cove_model::{Counts, Execution, ExecutionCause, ExecutionStatus, Job, JobTrigger, execution_name};
use cove_store::Inserted;

use super::*;

fn job_id() -> ResourceId {
    ResourceId::resource("s", "g", "Microsoft.App/jobs", "nightly").unwrap()
}

fn execution(suffix: &str, counts: Counts, retry_limit: u32) -> Execution {
    Execution {
        job: job_id(),
        name: execution_name("nightly", suffix).unwrap(),
        cause: ExecutionCause::Manual(suffix.into()),
        environment: environment_id(),
        workload_profile: None,
        template: Arc::new(template("sample")),
        counts,
        replica_timeout_secs: 60,
        replica_retry_limit: retry_limit,
        priority: 0,
        status: ExecutionStatus::Processing,
        reason: None,
        message: None,
        created_at: Timestamp::UNIX_EPOCH,
        started_at: None,
        ended_at: None,
        succeeded: 0,
        failed: 0,
        replicas: vec![],
        stop_requested_at: None,
    }
}

impl Bench {
    async fn put_job(&self) {
        let job = Job {
            id: job_id(),
            environment: environment_id(),
            workload_profile: None,
            template: template("sample"),
            trigger: JobTrigger::Manual(Counts::default()),
            replica_timeout_secs: 60,
            replica_retry_limit: 0,
            registries: vec![],
            is_suspended: false,
            priority: 0,
        };
        let put = PutResource { spec: Some(serde_json::to_value(job).unwrap()), ..put(job_id(), self.clock.now()) };
        self.store.put(put).await.unwrap();
    }

    async fn begin(&self, execution: &Execution) {
        assert_eq!(self.store.insert_execution(execution.clone()).await.unwrap(), Inserted::New);
    }

    fn row(&self, execution: &Execution) -> Execution {
        self.store.execution(&execution.key()).unwrap().unwrap()
    }

    async fn status_of(&self, execution: &Execution, status: ExecutionStatus) -> Execution {
        self.until("the execution gets there", || self.row(execution).status == status).await;
        self.row(execution)
    }

    /// Names of the replicas of executions that run now.
    fn running(&self) -> Vec<ReplicaName> {
        let world = self.fake.world();
        let runs = |replica: &&(cove_runtime::ReplicaSpec, cove_model::ReplicaObservation)| {
            replica.1.phase == ReplicaPhase::Running
        };
        world.replicas.values().filter(runs).map(|replica| replica.1.name.clone()).collect()
    }
}

#[tokio::test]
async fn an_execution_runs_to_its_end_and_nothing_is_left() {
    let mut bench = Bench::new().await;
    bench.put_job().await;
    bench
        .until("the job is settled", || {
            bench.store.resource(&job_id()).unwrap().unwrap().provisioning == Provisioning::Succeeded
        })
        .await;
    let one = execution("aaaaaaa", Counts { parallelism: 2, completions: 3 }, 0);
    bench.begin(&one).await;
    let row = bench.status_of(&one, ExecutionStatus::Running).await;
    assert_eq!(row.replicas.len(), 2);
    bench.until("two run", || bench.running().len() == 2).await;
    let (spec, _) = bench.fake.world().replicas.values().next().unwrap().clone();
    assert_eq!(spec.platform_env["CONTAINER_APP_JOB_EXECUTION_NAME"], "nightly-aaaaaaa");
    assert_eq!(spec.platform_env["CONTAINER_APP_JOB_NAME"], "nightly");
    assert_eq!((spec.restart, spec.target_port), (cove_runtime::RestartPolicy::Never, None));
    for _ in 0..3 {
        bench.until("one runs", || !bench.running().is_empty()).await;
        bench.fake.exit(&bench.running()[0], 0);
    }
    let row = bench.status_of(&one, ExecutionStatus::Succeeded).await;
    let mut indexes: Vec<u32> = row.replicas.iter().map(|replica| replica.index).collect();
    indexes.sort_unstable();
    assert_eq!((indexes, row.succeeded, row.failed), (vec![0, 1, 2], 3, 0));
    bench.until("the driver forgot them", || bench.fake.world().replicas.is_empty()).await;
    let mut told = Vec::new();
    while let Ok(event) = bench.events.try_recv() {
        told.push((event.reason, event.revision));
    }
    assert_eq!(told, [("ExecutionSucceeded".to_owned(), Some("nightly-aaaaaaa".to_owned()))]);
}

#[tokio::test]
async fn a_stop_and_a_delete_end_what_runs() {
    let bench = Bench::new().await;
    bench.put_job().await;
    let (one, two) = (execution("aaaaaaa", Counts::default(), 0), execution("bbbbbbb", Counts::default(), 0));
    bench.begin(&one).await;
    bench.begin(&two).await;
    bench.until("both run", || bench.running().len() == 2).await;
    bench.store.stop_executions(job_id(), Some(one.name.clone()), bench.clock.now()).await.unwrap();
    let row = bench.status_of(&one, ExecutionStatus::Stopped).await;
    assert_eq!((row.succeeded, row.failed), (0, 0));
    assert_eq!(bench.row(&two).status, ExecutionStatus::Running);
    let operation = NewOperation { id: "delete".into(), kind: "delete".into() };
    bench.store.begin_delete(job_id(), operation, bench.clock.now()).await.unwrap();
    assert_eq!(bench.ended("delete").await, OperationStatus::Succeeded);
    assert!(bench.store.resource(&job_id()).unwrap().is_none() && bench.running().is_empty());
    bench.until("the driver forgot them", || bench.fake.world().replicas.is_empty()).await;
}

#[tokio::test]
async fn a_job_that_is_gone_at_once_leaves_nothing_running() {
    let bench = Bench::new().await;
    bench.put_job().await;
    bench.begin(&execution("aaaaaaa", Counts::default(), 0)).await;
    bench.until("it runs", || bench.running().len() == 1).await;
    bench.store.remove(job_id(), bench.clock.now()).await.unwrap();
    bench.until("nothing is left", || bench.fake.world().replicas.is_empty()).await;
}

#[tokio::test]
async fn what_takes_too_long_or_has_no_image_fails_with_its_reason() {
    let bench = Bench::new().await;
    bench.put_job().await;
    bench.fake.world().missing.insert("nope".into());
    let mut missing = execution("aaaaaaa", Counts::default(), 5);
    missing.template = Arc::new(template("nope"));
    bench.begin(&missing).await;
    let row = bench.status_of(&missing, ExecutionStatus::Failed).await;
    assert_eq!(row.reason.as_deref(), Some("ImagePullFailure"));
    assert_eq!(row.message.as_deref(), Some("ImagePullFailure: image `nope` was not found"));
    let late = execution("bbbbbbb", Counts::default(), 0);
    bench.begin(&late).await;
    bench.status_of(&late, ExecutionStatus::Running).await;
    bench.advance(SignedDuration::from_secs(61)).await;
    let row = bench.status_of(&late, ExecutionStatus::Failed).await;
    assert_eq!((row.reason.as_deref(), row.failed), (Some("DeadlineExceeded"), 1));
}

#[tokio::test]
async fn what_does_not_fit_waits_in_line_and_the_important_goes_first() {
    // room for two replicas of a quarter core
    let bench = Bench::on_a_machine_with(Amount { cpu: MilliCpu(500), memory: Bytes(64 << 30) }).await;
    bench.put_job().await;
    let two = execution("aaaaaaa", Counts { parallelism: 2, completions: 2 }, 0);
    bench.begin(&two).await;
    bench.until("two run", || bench.running().len() == 2).await;
    let first = execution("bbbbbbb", Counts::default(), 0);
    bench.begin(&first).await;
    bench.until("it waits", || bench.handle.place_in_line(&first.key()) == Some(1)).await;
    let mut important = execution("ccccccc", Counts::default(), 0);
    important.priority = 5;
    bench.begin(&important).await;
    bench.until("it is before the other", || bench.handle.place_in_line(&first.key()) == Some(2)).await;
    let row = bench.status_of(&first, ExecutionStatus::Processing).await;
    bench.until("that is said", || bench.row(&first).reason.as_deref() == Some("Queued")).await;
    assert_eq!(row.replicas, []);
    bench.fake.exit(&bench.running()[0], 0);
    bench.status_of(&important, ExecutionStatus::Running).await;
    assert_eq!(bench.row(&first).status, ExecutionStatus::Processing);
    bench.until("the line is shorter", || bench.handle.place_in_line(&first.key()) == Some(1)).await;
    bench.fake.exit(&bench.running()[0], 0);
    bench.status_of(&first, ExecutionStatus::Running).await;
    assert_eq!(bench.handle.place_in_line(&first.key()), None);
}

#[tokio::test]
async fn who_waited_long_is_not_passed_any_more() {
    // room for three replicas of a quarter core
    let bench = Bench::on_a_machine_with(Amount { cpu: MilliCpu(750), memory: Bytes(64 << 30) }).await;
    bench.put_job().await;
    let of = |suffix: &str, cpu: u32, created: i64| {
        let mut one = execution(suffix, Counts::default(), 0);
        let mut sized = template("sample");
        sized.containers[0].resources.cpu = MilliCpu(cpu);
        (one.template, one.replica_timeout_secs) = (Arc::new(sized), 3600);
        one.created_at = bench.clock.now() + SignedDuration::from_secs(created);
        one
    };
    bench.begin(&of("aaaaaaa", 250, 0)).await;
    bench.begin(&of("bbbbbbb", 250, 0)).await;
    bench.until("two run", || bench.running().len() == 2).await;
    let big = of("ccccccc", 750, 0);
    bench.begin(&big).await;
    bench.until("it waits", || bench.handle.place_in_line(&big.key()) == Some(1)).await;
    let passing = of("ddddddd", 250, 1);
    bench.begin(&passing).await;
    bench.status_of(&passing, ExecutionStatus::Running).await;
    bench.advance(SignedDuration::from_mins(5)).await;
    let late = of("eeeeeee", 250, 2);
    bench.begin(&late).await;
    bench.until("both wait", || bench.handle.place_in_line(&late.key()) == Some(2)).await;
    // had the late one taken what ends first, the big one would not fit when the others end
    for _ in 0..3 {
        let ended = bench.running().remove(0);
        bench.fake.exit(&ended, 0);
        bench.until("it is gone", || !bench.running().contains(&ended)).await;
    }
    bench.status_of(&big, ExecutionStatus::Running).await;
    assert_eq!(bench.row(&late).replicas, []);
    bench.fake.exit(&bench.running()[0], 0);
    bench.status_of(&late, ExecutionStatus::Running).await;
}

/// Small numbers that follow from one another; the same in every run.
struct Draw(u64);

impl Draw {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[tokio::test]
async fn servers_that_die_at_any_moment_start_nothing_twice_and_forget_nothing() {
    for seed in 0..6 {
        let mut draw = Draw(seed);
        let mut bench = Bench::new().await;
        bench.put_job().await;
        let all: Vec<Execution> = (0..12)
            .map(|number| {
                let counts = Counts {
                    parallelism: 1 + u32::try_from(draw.below(3)).unwrap(),
                    completions: 1 + u32::try_from(draw.below(3)).unwrap(),
                };
                execution(&format!("{number:07}"), counts, u32::try_from(draw.below(3)).unwrap())
            })
            .collect();
        for execution in &all {
            bench.begin(execution).await;
        }
        // the driver of these tests fails when a name is prepared or started twice
        let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
        while all.iter().any(|execution| !bench.row(execution).status.is_final()) {
            assert!(tokio::time::Instant::now() < deadline, "seed {seed}: not in time\n{:#?}", bench.fake.world().log);
            match draw.below(4) {
                0 => bench = bench.restart().await,
                1 => bench.advance(SignedDuration::from_secs(2)).await,
                _ => {}
            }
            for name in bench.running() {
                match draw.below(5) {
                    0 | 1 => bench.fake.exit(&name, 0),
                    2 => bench.fake.exit(&name, 3),
                    _ => {}
                }
            }
            tokio::time::sleep(Duration::from_micros(draw.below(3000))).await;
        }
        for execution in &all {
            let row = bench.row(execution);
            match row.status {
                ExecutionStatus::Succeeded => assert_eq!(row.succeeded, row.counts.completions, "{row:#?}"),
                ExecutionStatus::Failed => assert!(row.failed > row.replica_retry_limit, "{row:#?}"),
                _ => panic!("nobody stopped it: {row:#?}"),
            }
            assert!(row.replicas.iter().all(|replica| replica.ended_at.is_some()), "{row:#?}");
        }
        bench.until("the driver forgot them", || bench.fake.world().replicas.is_empty()).await;
    }
}
