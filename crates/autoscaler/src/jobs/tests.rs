//! The triggers on a clock moved by hand, with executions that the test ends and a queue that it fills.

use std::sync::atomic::{AtomicBool, Ordering};

use cove_model::{
    Counts, JobEvent, JobScale, JobSchedule, Overlap, Scale, ScaleRule, ScaleRuleKind, Template, execution_name,
};
use cove_scalers::{ReadError, ReadFuture, Source};
use cove_scaling::source::Answer;
use expect_test::expect;

use super::*;
use tokio::sync::watch;

/// Waits until `done`. It sleeps in between: what runs on a blocking thread needs the processor too.
async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !done() {
        assert!(std::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}

/// What a store and an engine would do, in memory; it outlives the triggers.
#[derive(Debug, Default)]
struct Kept {
    executions: Vec<(String, bool)>,
    causes: BTreeSet<String>,
    state: Option<JobState>,
    log: String,
    fails: u32,
}

#[derive(Debug, Default)]
struct World {
    kept: Mutex<Kept>,
    /// The queue; `None` = it does not answer.
    queue: Mutex<Option<f64>>,
}

impl World {
    fn take_log(&self) -> String {
        std::mem::take(&mut lock(&self.kept).log)
    }

    /// The oldest executions end.
    fn end(&self, number: usize) {
        lock(&self.kept).executions.iter_mut().filter(|(_, ended)| !ended).take(number).for_each(|one| one.1 = true);
    }
}

#[derive(Debug)]
struct Port(Arc<World>);

impl Executions for Port {
    fn open(&self, _: &ResourceId) -> BoxFuture<'_, Result<OpenCount, BoxError>> {
        let running = lock(&self.0.kept).executions.iter().filter(|(_, ended)| !ended).count();
        Box::pin(async move { Ok(OpenCount { running: u32::try_from(running).unwrap(), pending: 0 }) })
    }

    fn start(&self, request: StartRequest) -> BoxFuture<'_, Result<Vec<RevisionName>, StartError>> {
        let mut kept = lock(&self.0.kept);
        if kept.fails > 0 {
            kept.fails -= 1;
            return Box::pin(async { Err(StartError::Failed("the disk is full".into())) });
        }
        if request.replaces {
            kept.executions.iter_mut().for_each(|one| one.1 = true);
            kept.log += "stopped what ran\n";
        }
        let mut names = Vec::new();
        for cause in request.causes {
            if kept.causes.insert(cause.key()) {
                let name = execution_name("nightly", &format!("{:07}", kept.causes.len())).unwrap();
                kept.executions.push((name.to_string(), false));
                kept.log += &match cause {
                    ExecutionCause::Tick(tick) => format!("tick {tick}\n"),
                    ExecutionCause::Event { polled_at, number } => format!("event {number} of {polled_at}\n"),
                    ExecutionCause::Manual(_) => unreachable!("nobody asked"),
                };
                names.push(name);
            }
        }
        Box::pin(async { Ok(names) })
    }

    fn state(&self, _: &ResourceId) -> BoxFuture<'_, Result<Option<JobState>, BoxError>> {
        let state = lock(&self.0.kept).state.clone();
        Box::pin(async { Ok(state) })
    }

    fn save(&self, _: &ResourceId, state: JobState) -> BoxFuture<'_, Result<(), BoxError>> {
        lock(&self.0.kept).state = Some(state);
        Box::pin(async { Ok(()) })
    }
}

#[derive(Debug)]
struct Queue(Arc<World>);

impl Source for Queue {
    fn read(&self) -> ReadFuture<'_> {
        let length = *lock(&self.0.queue);
        Box::pin(async move { length.map(Answer::Number).ok_or_else(|| ReadError::new("connection refused")) })
    }
}

struct Bench {
    clock: Clock,
    jobs: Board<ResourceId, TriggeredJob>,
    events: mpsc::Receiver<SystemEvent>,
    handle: JobHandle,
    shutdown: CancellationToken,
    running: tokio::task::JoinHandle<()>,
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn id() -> ResourceId {
    ResourceId::resource("s", "rg", cove_model::JOB_KIND, "nightly").unwrap()
}

fn job(trigger: JobTrigger) -> Job {
    Job {
        id: id(),
        environment: ResourceId::resource("s", "rg", "Microsoft.App/managedEnvironments", "env").unwrap(),
        workload_profile: None,
        template: Template {
            init_containers: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            scale: Scale::default(),
            termination_grace_period_secs: 30,
        },
        trigger,
        replica_timeout_secs: 1800,
        replica_retry_limit: 0,
        registries: Vec::new(),
        is_suspended: false,
        priority: 0,
    }
}

fn scheduled(cron: &str, overlap: Overlap) -> Job {
    job(JobTrigger::Schedule(JobSchedule {
        cron: cron.into(),
        time_zone: None,
        overlap,
        missed: Default::default(),
        starting_deadline_secs: None,
        counts: Counts::default(),
    }))
}

fn evented(max_executions: u32) -> Job {
    let kind = ScaleRuleKind::Custom {
        scaler: "redis".into(),
        metadata: [("listName", "jobs"), ("listLength", "1"), ("address", "redis:6379")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into_iter()
            .collect(),
        auth: Vec::new(),
        identity: None,
    };
    let rules = vec![ScaleRule { name: "jobs".into(), kind }];
    let scale = JobScale { max_executions, rules, ..JobScale::default() };
    job(JobTrigger::Event(JobEvent { counts: Counts::default(), scale }))
}

impl Bench {
    fn start(world: &Arc<World>, now: &str) -> Self {
        let (clock, jobs) = (Clock::virtual_at(at(now)), Board::default());
        let (sender, events) = mpsc::channel(1000);
        let queue = Arc::clone(world);
        let deps = JobDeps {
            clock: clock.clone(),
            jobs: jobs.clone(),
            executions: Arc::new(Port(Arc::clone(world))),
            rules: RuleSources::of_open(Arc::new(move |_, _| Ok(Arc::new(Queue(Arc::clone(&queue)))))),
            read_deadline: SignedDuration::from_secs(60),
            decisions_kept: 4,
            events: sender,
        };
        let service = JobService::new(deps);
        let (handle, shutdown) = (service.handle(), CancellationToken::new());
        let running = tokio::spawn(service.run(shutdown.clone()));
        Self { clock, jobs, events, handle, shutdown, running }
    }

    async fn set(&self, job: Job) {
        let changed_at = self.clock.now();
        self.jobs.set(id(), TriggeredJob { job: Arc::new(job), changed_at });
        self.rest().await;
    }

    async fn rest(&self) {
        until("all is at rest", || self.jobs.is_read() && self.clock.unrest().is_empty()).await;
    }

    /// Moves the clock from one instant that somebody waits for to the next, as `cove clock advance` does.
    async fn advance(&self, by: SignedDuration) {
        let to = self.clock.now() + by;
        while let Some(due) = self.clock.next_due().filter(|due| *due <= to) {
            self.clock.advance_to(due);
            self.rest().await;
        }
        self.clock.advance_to(to);
        self.rest().await;
    }

    fn events(&mut self) -> String {
        let mut text = String::new();
        while let Ok(event) = self.events.try_recv() {
            text += &format!("{:?} {}: {}\n", event.kind, event.reason, event.message);
        }
        text
    }

    fn explained(&self) -> String {
        let triggers = self.handle.triggers_of(&id()).unwrap();
        let line = |decision: &JobDecision| format!("{} x{} {}\n", decision.since, decision.times, decision.words);
        let lines: String = triggers.decisions.iter().map(line).collect();
        format!("{lines}next {:?}\n", triggers.next_at)
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(std::time::Duration::from_secs(60), self.running).await.unwrap().unwrap();
    }
}

const MINUTE: SignedDuration = SignedDuration::from_mins(1);

#[tokio::test]
async fn a_tick_starts_one_execution_over_restarts() {
    let world = Arc::new(World::default());
    let mut bench = Bench::start(&world, "2026-05-01T10:00:30Z");
    bench.set(scheduled("*/10 * * * *", Overlap::Allow)).await;
    bench.advance(25 * MINUTE).await;
    expect![[r#"
        tick 2026-05-01T10:10:00Z
        tick 2026-05-01T10:20:00Z
    "#]]
    .assert_eq(&world.take_log());
    expect![[r#"
        2026-05-01T10:10:00Z x1 started the tick of 2026-05-01T10:10:00Z
        2026-05-01T10:20:00Z x1 started the tick of 2026-05-01T10:20:00Z
        next Some(2026-05-01T10:30:00Z)
    "#]]
    .assert_eq(&bench.explained());
    assert_eq!(bench.events(), "");
    bench.stop().await;

    // Down over three ticks; then down between a start and its note.
    let mut bench = Bench::start(&world, "2026-05-01T11:02:00Z");
    bench.set(scheduled("*/10 * * * *", Overlap::Allow)).await;
    expect![[r#"
        tick 2026-05-01T11:00:00Z
        Warning MissSchedule: Job `nightly` left out 3 ticks until 2026-05-01T10:50:00Z: the server did not run, or its clock was set forward
    "#]].assert_eq(&(world.take_log() + &bench.events()));
    bench.stop().await;
    if let Some(state) = &mut lock(&world.kept).state {
        state.settled = at("2026-05-01T10:50:00Z");
    }
    let bench = Bench::start(&world, "2026-05-01T11:02:05Z");
    bench.set(scheduled("*/10 * * * *", Overlap::Allow)).await;
    assert_eq!(world.take_log(), "", "its cause is known");
    bench.stop().await;
}

#[tokio::test]
async fn overlap_suspension_and_a_changed_expression() {
    let world = Arc::new(World::default());
    let mut bench = Bench::start(&world, "2026-05-01T10:00:00Z");
    bench.set(scheduled("* * * * *", Overlap::Forbid)).await;
    bench.advance(3 * MINUTE).await;
    world.end(1);
    bench.advance(MINUTE).await;
    expect![[r#"
        tick 2026-05-01T10:01:00Z
        tick 2026-05-01T10:04:00Z
        Warning JobAlreadyActive: Job `nightly` left out 1 tick until 2026-05-01T10:02:00Z: an execution was still running
        Warning JobAlreadyActive: Job `nightly` left out 1 tick until 2026-05-01T10:03:00Z: an execution was still running
    "#]].assert_eq(&(world.take_log() + &bench.events()));

    bench.set(scheduled("* * * * *", Overlap::Replace)).await;
    bench.advance(MINUTE).await;
    expect![[r#"
        stopped what ran
        tick 2026-05-01T10:05:00Z
    "#]]
    .assert_eq(&(world.take_log() + &bench.events()));

    let suspended = Job { is_suspended: true, ..scheduled("* * * * *", Overlap::Allow) };
    bench.set(suspended).await;
    bench.advance(10 * MINUTE).await;
    assert_eq!(bench.handle.triggers_of(&id()).unwrap().next_at, None);
    bench.set(scheduled("* * * * *", Overlap::Allow)).await;
    assert_eq!(world.take_log() + &bench.events(), "", "what passed is not made up for");
    bench.advance(MINUTE).await;
    expect![[r#"
        tick 2026-05-01T10:16:00Z
    "#]]
    .assert_eq(&world.take_log());

    // The new expression had a tick a minute ago.
    bench.set(scheduled("15,25 * * * *", Overlap::Allow)).await;
    bench.advance(10 * MINUTE).await;
    expect![[r#"
        tick 2026-05-01T10:25:00Z
    "#]]
    .assert_eq(&world.take_log());
    bench.jobs.remove(&id());
    bench.rest().await;
    assert!(bench.handle.triggers_of(&id()).is_none());
    bench.advance(60 * MINUTE).await;
    assert_eq!(world.take_log(), "");
    bench.stop().await;
}

#[tokio::test]
async fn a_start_that_fails_is_tried_again() {
    let world = Arc::new(World::default());
    lock(&world.kept).fails = 3;
    let bench = Bench::start(&world, "2026-05-01T10:00:30Z");
    bench.set(scheduled("@hourly", Overlap::Allow)).await;
    bench.advance(61 * MINUTE).await;
    assert_eq!(world.take_log(), "tick 2026-05-01T11:00:00Z\n");
    bench.stop().await;
}

#[tokio::test]
async fn polls_start_what_waits_within_the_limit() {
    let world = Arc::new(World::default());
    *lock(&world.queue) = Some(0.0);
    let mut bench = Bench::start(&world, "2026-05-01T10:00:00Z");
    bench.set(evented(4)).await;
    bench.advance(2 * MINUTE).await;
    *lock(&world.queue) = Some(7.0);
    bench.advance(MINUTE).await;
    world.end(3);
    *lock(&world.queue) = None;
    bench.advance(MINUTE).await;
    *lock(&world.queue) = Some(2.0);
    bench.advance(MINUTE).await;
    expect![[r#"
        event 0 of 2026-05-01T10:02:30Z
        event 1 of 2026-05-01T10:02:30Z
        event 2 of 2026-05-01T10:02:30Z
        event 3 of 2026-05-01T10:02:30Z
        event 0 of 2026-05-01T10:04:30Z
    "#]]
    .assert_eq(&world.take_log());
    expect![[r#"
        2026-05-01T10:03:00Z x1 started none: 7 waiting, 4 running, cap 4
        2026-05-01T10:03:30Z x2 started none: no rule could be read, 1 running, cap 4
        2026-05-01T10:04:30Z x1 started 1: 2 waiting, 1 running, cap 4
        2026-05-01T10:05:00Z x1 started none: 2 waiting, 2 running, cap 4
        next Some(2026-05-01T10:05:30Z)
    "#]]
    .assert_eq(&bench.explained());
    expect![[r#"
        Normal KEDAScalersStarted: Rules `jobs` of job `nightly` are read every 30 s, 0 to 4 executions
        Normal KEDAJobsCreated: Job `nightly` started 4: 7 waiting, 0 running, cap 4; executions `nightly-0000001`, `nightly-0000002`, `nightly-0000003`, `nightly-0000004`
        Warning KEDAScalerFailed: Rule `jobs` of job `nightly` cannot be read: connection refused. It starts no executions until it can
        Normal KEDAScalersStarted: Rule `jobs` of job `nightly` can be read again
        Normal KEDAJobsCreated: Job `nightly` started 1: 2 waiting, 1 running, cap 4; executions `nightly-0000005`
    "#]].assert_eq(&bench.events());

    // A change is followed at once, also when time stands still.
    world.end(4);
    bench.set(evented(3)).await;
    bench.set(evented(2)).await;
    world.end(4);
    bench.set(evented(1)).await;
    expect![[r#"
        event 0 of 2026-05-01T10:05:00Z
        event 1 of 2026-05-01T10:05:00Z
        event 2 of 2026-05-01T10:05:00Z
    "#]]
    .assert_eq(&world.take_log());
    let suspended = Job { is_suspended: true, ..evented(4) };
    bench.set(suspended).await;
    *lock(&world.queue) = Some(100.0);
    bench.advance(5 * MINUTE).await;
    assert_eq!(world.take_log(), "");
    bench.stop().await;
}

#[tokio::test]
async fn a_push_is_followed_at_once() {
    /// A source that says when there is something.
    #[derive(Debug)]
    struct Pushing(watch::Sender<u64>, Arc<AtomicBool>);

    impl Source for Pushing {
        fn read(&self) -> ReadFuture<'_> {
            let length = f64::from(u8::from(self.1.load(Ordering::Relaxed)));
            Box::pin(async move { Ok(Answer::Number(length)) })
        }

        fn pushes(&self) -> Option<watch::Receiver<u64>> {
            Some(self.0.subscribe())
        }
    }

    let world = Arc::new(World::default());
    let (sender, has_message) = (watch::Sender::new(0), Arc::new(AtomicBool::new(false)));
    let (opened, length) = (sender.clone(), Arc::clone(&has_message));
    let (events, _kept) = mpsc::channel(100);
    let (clock, jobs) = (Clock::virtual_at(at("2026-05-01T10:00:00Z")), Board::default());
    let service = JobService::new(JobDeps {
        clock: clock.clone(),
        jobs: jobs.clone(),
        executions: Arc::new(Port(Arc::clone(&world))),
        rules: RuleSources::of_open(Arc::new(move |_, _| Ok(Arc::new(Pushing(opened.clone(), Arc::clone(&length)))))),
        read_deadline: SignedDuration::from_secs(60),
        decisions_kept: 4,
        events,
    });
    let shutdown = CancellationToken::new();
    let running = tokio::spawn(service.run(shutdown.clone()));
    jobs.set(id(), TriggeredJob { job: Arc::new(evented(4)), changed_at: clock.now() });
    until("it listens", || sender.receiver_count() > 0 && clock.unrest().is_empty()).await;
    assert_eq!(world.take_log(), "");
    has_message.store(true, Ordering::Relaxed);
    sender.send_modify(|number| *number += 1);
    until("the push was followed", || !lock(&world.kept).executions.is_empty()).await;
    shutdown.cancel();
    running.await.unwrap();
}
