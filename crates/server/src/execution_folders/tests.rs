//! Folders against a store on real files.

use cove_model::{Counts, ExecutionCause, ExecutionStatus, Job, JobTrigger, Scale, Template, Volume};
use cove_store::{Expect, Provisioning, PutResource, SecretsChange};
use jiff::Timestamp;

use super::*;

const NOW: Timestamp = Timestamp::UNIX_EPOCH;

fn job(keep_executions: u32, max_bytes: u64) -> Job {
    let resource = |kind: &str, name: &str| ResourceId::resource("s", "rg", kind, name).unwrap();
    let artifacts = ArtifactsVolume { keep_executions, max_bytes: Bytes(max_bytes) };
    Job {
        id: resource(JOB_KIND, "train"),
        environment: resource("Microsoft.App/managedEnvironments", "env"),
        workload_profile: None,
        template: Template {
            init_containers: vec![],
            containers: vec![],
            volumes: vec![
                Volume { name: "work".to_owned(), kind: VolumeKind::ExecutionDir },
                Volume { name: "out".to_owned(), kind: VolumeKind::Artifacts(artifacts) },
            ],
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

struct Bench {
    _dir: tempfile::TempDir,
    store: Store,
    job: Job,
    dirs: ExecutionDirs,
    keeper: Keeper,
}

impl Bench {
    async fn new(keep_executions: u32, max_bytes: u64) -> Self {
        let (dir, job) = (tempfile::tempdir().unwrap(), job(keep_executions, max_bytes));
        let store = Store::open(dir.path()).unwrap();
        let put = PutResource {
            id: job.id.clone(),
            doc: serde_json::json!({}),
            spec: Some(serde_json::to_value(&job).unwrap()),
            secrets: SecretsChange::Keep,
            provisioning: Provisioning::Succeeded,
            operation: None,
            revision: None,
            expect: Expect::Absent,
            now: NOW,
        };
        store.put(put).await.unwrap();
        let dirs = ExecutionDirs::new(Utf8Path::from_path(dir.path()).unwrap());
        let keeper = Keeper::new(dirs.clone(), store.clone());
        Self { _dir: dir, store, job, dirs, keeper }
    }

    /// An execution with a file of this size in each of its folders.
    async fn begin(&self, number: usize, bytes: usize) -> Execution {
        let name = RevisionName::new(format!("train-{number:07}")).unwrap();
        let execution = self.job.execution(name, ExecutionCause::Manual(number.to_string()), None, NOW);
        self.store.insert_execution(execution.clone()).await.unwrap();
        for part in [ExecutionPart::Work, ExecutionPart::Artifacts] {
            let path = self.dirs.path(&execution.key(), part);
            fs::create_dir_all(&path).unwrap();
            fs::write(path.join("file"), vec![1; bytes]).unwrap();
        }
        execution
    }

    async fn end(&self, execution: &Execution) {
        let ended = Execution { status: ExecutionStatus::Succeeded, ended_at: Some(NOW), ..execution.clone() };
        self.store.save_executions(vec![ended]).await.unwrap();
    }

    fn has(&self, execution: &Execution) -> (bool, bool) {
        let there = |part| self.dirs.path(&execution.key(), part).exists();
        (there(ExecutionPart::Work), there(ExecutionPart::Artifacts))
    }
}

#[tokio::test]
async fn artifacts_of_the_newest_that_ended_are_kept() {
    let mut bench = Bench::new(2, Bytes::GIB).await;
    let mut all = Vec::new();
    for number in 0..4 {
        all.push(bench.begin(number, 1).await);
    }
    assert!(bench.keeper.look().unwrap().is_empty());
    for one in &all[..3] {
        bench.end(one).await;
    }
    assert!(bench.keeper.look().unwrap().is_empty());
    let there: Vec<_> = all.iter().map(|one| bench.has(one)).collect();
    assert_eq!(there, [(true, false), (true, true), (true, true), (true, true)], "the first's are gone");
    bench.end(&all[3]).await;
    // and as the next server sees it
    bench.keeper = Keeper::new(bench.dirs.clone(), bench.store.clone());
    bench.keeper.look().unwrap();
    let there: Vec<_> = all.iter().map(|one| bench.has(one)).collect();
    assert_eq!(there, [(true, false), (true, false), (true, true), (true, true)]);
}

#[tokio::test]
async fn folders_go_with_the_history_and_with_the_job() {
    let mut bench = Bench::new(100, Bytes::GIB).await;
    let open = bench.begin(1000, 1).await;
    let mut all = Vec::new();
    for number in 0..=cove_model::EXECUTION_HISTORY_MAX {
        let one = bench.begin(number, 1).await;
        bench.end(&one).await;
        all.push(one);
    }
    let stray = bench.dirs.root().join("nobodys-0000");
    fs::create_dir_all(stray.join("x/work")).unwrap();
    bench.keeper.look().unwrap();
    assert_eq!(
        (bench.has(&all[0]), bench.has(&all[1]), bench.has(&open)),
        ((false, false), (true, true), (true, true))
    );
    assert!(!stray.exists());
    bench.store.remove(bench.job.id.clone(), NOW).await.unwrap();
    bench.keeper.look().unwrap();
    assert_eq!(names_in(bench.dirs.root()), Vec::<String>::new());
}

#[test]
fn a_job_of_the_same_name_keeps_what_it_has_begun() {
    let dir = tempfile::tempdir().unwrap();
    let path = Utf8Path::from_path(dir.path()).unwrap().join("train-00");
    fs::create_dir_all(path.join("old/work")).unwrap();
    let there = names_in(&path);
    fs::create_dir_all(path.join("new/work")).unwrap();
    clear(&path, &there);
    assert_eq!(names_in(&path), ["new"]);
    clear(&path, &names_in(&path));
    assert!(!path.exists());
}

#[tokio::test]
async fn what_is_too_large_is_told_once() {
    let mut bench = Bench::new(10, Bytes::MIB).await;
    let (small, large) = (bench.begin(0, 1000).await, bench.begin(1, 3 << 20).await);
    let found = bench.keeper.look().unwrap();
    assert_eq!(found.iter().map(|one| &one.execution.name).collect::<Vec<_>>(), [&large.name]);
    let event = found[0].event(&Clock::real());
    assert!(event.message.contains("1Mi (1048576 bytes)"), "{}", event.message);
    assert!(bench.keeper.look().unwrap().is_empty());
    // one that was too quick to be measured while it ran
    let quick = bench.begin(2, 2 << 20).await;
    for one in [&small, &large, &quick] {
        bench.end(one).await;
    }
    let found = bench.keeper.look().unwrap();
    assert_eq!(found.iter().map(|one| &one.execution.name).collect::<Vec<_>>(), [&quick.name]);
    assert_eq!(bench.has(&large), (true, true), "what it wrote is kept");
}
