//! Worlds of jobs from a seed: a few schedules near a change of the clocks, crashes and set clocks from the start.

use std::collections::BTreeMap;

use cove_model::{Counts, JOB_KIND, Job, JobSchedule, JobTrigger, MissedRuns, Overlap, ResourceId, Scale, Template};
use cove_reconcile::{Images, JobSettings};
use cove_scaling::schedule::{Policy, Schedule};
use jiff::{Timestamp, tz::TimeZone};

use super::{JobMutation, JobSim, JobStats, JobWorld, What};
use crate::random::Random;

const EXPRESSIONS: [&str; 9] = [
    "* * * * *",
    "*/5 * * * *",
    "*/10 * * * *",
    "*/30 * * * * *",
    "7,37 * * * *",
    "*/20 1-3 * * *",
    "30 2 * * *",
    "@every 90s",
    "@hourly",
];
/// As strings of their rules: a zone database is not the same on every machine.
const ZONES: [&str; 4] =
    ["UTC0", "CET-1CEST,M3.5.0,M10.5.0/3", "EST5EDT,M3.2.0,M11.1.0", "LHST-10:30LHDT-11,M10.1.0,M4.1.0"];
/// Evenings before a change in one of the zones, and one before none.
const STARTS: [&str; 5] = [
    "2026-03-28T18:00:00Z",
    "2026-10-24T18:00:00Z",
    "2026-03-07T22:00:00Z",
    "2026-10-31T22:00:00Z",
    "2026-06-01T00:00:00Z",
];

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    let last = u64::try_from(from.len()).unwrap_or(1) - 1;
    from[usize::try_from(random.between(0, last)).unwrap_or(0)]
}

fn small(random: &mut Random, most: u64) -> u32 {
    u32::try_from(random.between(1, most)).unwrap_or(1)
}

pub(super) fn world(seed: u64) -> JobSim {
    let mut random = Random::new(seed);
    let offset: Timestamp = pick(&mut random, &STARTS).parse().expect("each of them is a time");
    let jobs = (0..random.between(2, 4)).map(|number| job(&mut random, number, offset)).collect();
    let mut sim = JobSim {
        now_ms: 0,
        offset,
        heap: Default::default(),
        number: 0,
        jobs,
        epoch: 0,
        is_up: false,
        random,
        mutation: JobMutation::None,
        settings: JobSettings::default(),
        images: Images::Ready { exposed_ports: BTreeMap::new() },
        stats: JobStats::default(),
        violations: Vec::new(),
    };
    sim.restart();
    let crash = sim.soon(3 * 3_600_000);
    sim.push(crash, What::Crash);
    if sim.random.chance(0.7) {
        let jump = sim.soon(6 * 3_600_000);
        sim.push(jump, What::Jump);
    }
    sim
}

fn job(random: &mut Random, number: u64, made_at: Timestamp) -> JobWorld {
    let cron = pick(random, &EXPRESSIONS);
    let zone = TimeZone::posix(pick(random, &ZONES)).expect("each of them is a zone");
    let counts = Counts { parallelism: small(random, 3), completions: small(random, 4) };
    let schedule = JobSchedule {
        cron: cron.to_owned(),
        time_zone: None,
        overlap: pick(random, &[Overlap::Allow, Overlap::Allow, Overlap::Forbid, Overlap::Replace]),
        missed: pick(random, &[MissedRuns::Last, MissedRuns::Skip, MissedRuns::All]),
        starting_deadline_secs: if random.chance(0.2) { Some(200) } else { None },
        counts,
    };
    let resource = |kind: &str, name: &str| ResourceId::resource("sim", "sim", kind, name).expect("plain names");
    let policy = Policy::from(&schedule);
    let job = Job {
        id: resource(JOB_KIND, &format!("job{number}")),
        environment: resource("Microsoft.App/managedEnvironments", "env"),
        workload_profile: None,
        template: Template {
            init_containers: Vec::new(),
            containers: Vec::new(),
            volumes: Vec::new(),
            scale: Scale::default(),
            termination_grace_period_secs: 30,
        },
        trigger: JobTrigger::Schedule(schedule),
        replica_timeout_secs: 30 * small(random, 20),
        replica_retry_limit: small(random, 4) - 1,
        registries: Vec::new(),
        is_suspended: false,
        priority: 0,
    };
    JobWorld {
        job,
        schedule: Schedule::parse(cron, zone).expect("each of them is an expression"),
        policy,
        saved: made_at,
        settled: made_at,
        executions: BTreeMap::new(),
        causes: BTreeMap::new(),
        ever: Default::default(),
        memory: BTreeMap::new(),
        replicas: BTreeMap::new(),
        begun: Default::default(),
        calm: None,
        furthest: made_at,
        number: 0,
    }
}
