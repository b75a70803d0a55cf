//! `bench jobs`: how soon an execution of a trivial job speaks, how many a second end, how many starts a second are accepted.
//!
//! The job's command prints one line and ends. `crun run` does the same with the same executable as its root file system,
//! in the same rounds. Every figure is the median over the rounds, so that a disturbed round does not count.
//!
//! **Invariant:** an execution that is lost, ends badly or runs twice makes the command fail.

mod baseline;
mod client;

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Outcome, Samples, machine, stats::ms};
use crate::cove::{Address, Cove, Options};
use baseline::Baseline;
use client::{Accepted, Job, Started, start_many};

/// What the sample is told: to print a line and to end.
const VARIABLES: [(&str, &str); 1] = [("SAMPLE_EXIT", "0")];
/// The line that it prints then.
const LINE: &str = "sample: exits at once with 0, as SAMPLE_EXIT asks";
/// Replicas of 0.25 cores and 0.5 GiB that there is room for.
const ROOM: usize = 50;
/// Room for [`ROOM`] replicas; what they ask for is a ceiling.
const CONFIG: &str = "[api]\nretry_after = 0\n\
    [capacity]\ncores = 13\ncpu_overcommit = 1\nmemory = \"25GiB\"\nmemory_overcommit = 1\n";
/// Longest wait for a place in the line.
const PLACE_LIMIT: Duration = Duration::from_secs(10);
/// Executions of one job at most: the history keeps 100 that ended well.
const PER_JOB: usize = 100;

/// How much to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct JobsArgs {
    /// Rounds; every figure is the median over them.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Executions per round that are started one after the other, and again with the first line awaited.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..))]
    single: u16,
    /// Executions per round that run 50 at once.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=100))]
    many: u16,
    /// Starts that are sent at once, after the rounds.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u16).range(1..))]
    starts: u16,
    /// Clients that send them, each the next one when it has its answer.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    clients: u16,
}

/// What one round gave.
#[derive(Debug)]
struct Round {
    /// Start to line, as the log stream gave it.
    seen: Samples,
    /// Start to line, as the line's own time says.
    written: Samples,
    crun_line: Samples,
    /// Per second.
    serial: f64,
    crun_serial: f64,
    many: f64,
    crun_many: f64,
    /// Replicas of one execution per second.
    wide: f64,
}

/// What a thousand starts at once gave.
#[derive(Debug)]
struct Burst {
    accepted: Accepted,
    /// The last place in the line that the API told.
    place: u64,
    /// From the first start to the last end.
    until_ended: Duration,
    problems: Vec<String>,
}

pub(crate) async fn run(binary: PathBuf, args: &JobsArgs) -> anyhow::Result<Outcome> {
    let machine = machine();
    let cove = Cove::start(Options { binary, config: CONFIG.to_owned(), arguments: Vec::new() }).await?;
    match measure(&cove, args).await {
        Ok((rounds, burst)) => {
            cove.close().await?;
            Ok(report(&machine, args, &rounds, &burst))
        }
        Err(error) => Err(error.context(format!("the server's log ends with\n{}", cove.log_tail()))),
    }
}

async fn measure(cove: &Cove, args: &JobsArgs) -> anyhow::Result<(Vec<Round>, Burst)> {
    cove.create_environment().await?;
    let address = cove.address();
    let single = Job::create(cove, "single", 1, 1).await?;
    // the image is unpacked, the pool of networks filled
    for _ in 0..5 {
        single.start(&address).await?.until_ended(&address, 1).await?;
    }
    let crun = Baseline::new(&cove.data_dir())?;
    tokio::task::block_in_place(|| crun.run(5, 1))?;
    let many = Job::create(cove, "many", 1, 1).await?;
    let width = u32::from(args.many);
    let wide = Job::create(cove, "wide", width, u32::try_from(ROOM)?.min(width)).await?;
    let mut rounds = Vec::new();
    for number in 0..args.rounds {
        let round = Measured { address: &address, crun: &crun, args };
        rounds.push(round.measure(number % 2 == 1, &single, &many, &wide).await?);
    }
    let mut jobs = Vec::new();
    for number in 0..usize::from(args.starts).div_ceil(PER_JOB) {
        jobs.push(Job::create(cove, &format!("burst-{number}"), 1, 1).await?);
    }
    let burst = burst(&address, &jobs, args).await?;
    Ok((rounds, burst))
}

/// A round about to be measured.
#[derive(Clone, Copy)]
struct Measured<'a> {
    address: &'a Address,
    crun: &'a Baseline,
    args: &'a JobsArgs,
}

impl Measured<'_> {
    /// `crun_first` turns the order, so that neither side always runs on the warmer machine.
    async fn measure(&self, crun_first: bool, single: &Job, many: &Job, wide: &Job) -> anyhow::Result<Round> {
        let (count, at_once) = (usize::from(self.args.single), usize::from(self.args.many));
        let crun = |count, at_once| tokio::task::block_in_place(|| self.crun.run(count, at_once));
        let mut early = if crun_first { Some((crun(count, 1)?, crun(at_once, ROOM)?)) } else { None };
        let (seen, written) = self.first_lines(single, count).await?;
        let begun = Instant::now();
        for _ in 0..count {
            single.start(self.address).await?.until_ended(self.address, 1).await?;
        }
        let serial = per_second(count, begun.elapsed());
        let many = self.at_once(many, at_once).await?;
        let begun = Instant::now();
        wide.start(self.address).await?.until_ended(self.address, at_once).await?;
        let wide = per_second(at_once, begun.elapsed());
        let (alone, together) = match early.take() {
            Some(done) => done,
            None => (crun(count, 1)?, crun(at_once, ROOM)?),
        };
        Ok(Round {
            seen,
            written,
            crun_line: alone.to_line.into_iter().collect(),
            serial,
            crun_serial: per_second(count, alone.whole),
            many,
            crun_many: per_second(at_once, together.whole),
            wide,
        })
    }

    /// Start to first line, one execution after the other.
    async fn first_lines(&self, job: &Job, count: usize) -> anyhow::Result<(Samples, Samples)> {
        let (mut seen, mut written) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let begun = (Instant::now(), Timestamp::now());
            let started = job.start(self.address).await?;
            let line = started.first_line(self.address, begun).await?;
            seen.push(line.seen);
            written.push(line.written);
            started.until_ended(self.address, 1).await?;
        }
        Ok((seen.into_iter().collect(), written.into_iter().collect()))
    }

    /// Executions per second until all have ended that were started at once.
    async fn at_once(&self, job: &Job, count: usize) -> anyhow::Result<f64> {
        let begun = Instant::now();
        let accepted = start_many(self.address, std::slice::from_ref(job), count, self.args.clients.into()).await?;
        ensure!(accepted.failed.is_empty(), "starts failed: {}", accepted.failed.join("; "));
        for started in &accepted.started {
            started.until_ended(self.address, 1).await?;
        }
        Ok(per_second(count, begun.elapsed()))
    }
}

/// Every start at once; then all that were accepted must end well, once.
async fn burst(address: &Address, jobs: &[Job], args: &JobsArgs) -> anyhow::Result<Burst> {
    let count = usize::from(args.starts);
    let begun = Instant::now();
    let accepted = start_many(address, jobs, count, args.clients.into()).await?;
    let last = accepted.started.last().context("no start was accepted")?;
    let place = until_placed(address, last).await?;
    let mut problems = Vec::new();
    for started in &accepted.started {
        if let Err(error) = started.until_ended(address, 1).await {
            problems.push(format!("{error:#}"));
        }
    }
    let until_ended = begun.elapsed();
    for started in &accepted.started {
        let lines = started.count_lines(address).await?;
        if lines != 1 {
            problems.push(format!("`{}` wrote {lines} lines, not one", started.name));
        }
    }
    if place == 0 && count >= 10 * ROOM {
        problems.push("the API told no place in the line, though there is room for few".to_owned());
    }
    Ok(Burst { accepted, place, until_ended, problems })
}

/// The place in the line of an execution that was just started; 0 when it runs before it has one.
async fn until_placed(address: &Address, started: &Started) -> anyhow::Result<u64> {
    let deadline = Instant::now() + PLACE_LIMIT;
    loop {
        let shown = started.show(address).await?;
        if let Some(place) = place(&shown) {
            return Ok(place);
        }
        let has_run = shown["properties"]["detailedStatus"]["replicas"].as_array().is_some_and(|some| !some.is_empty());
        if has_run || Instant::now() > deadline {
            return Ok(0);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The place in the line that the API tells of an execution.
fn place(shown: &Value) -> Option<u64> {
    let words = shown["properties"]["message"].as_str()?.strip_prefix("place ")?;
    words.split(' ').next()?.parse().ok()
}

fn per_second(count: usize, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64().max(1e-9)
}

/// The middle value; the lower of two.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

fn report(machine: &str, args: &JobsArgs, rounds: &[Round], burst: &Burst) -> Outcome {
    let mut text = format!("bench jobs on {machine}\n\n");
    let _ = writeln!(
        text,
        "The job prints one line and ends; `crun run` runs the same executable. Medians of {} rounds.\n\
         seen:     the start is sent until a client that follows the log has the line.\n\
         written:  the start is sent until the container has written it.\n\
         crun:     `crun run` is started until its line is read; a run is over when crun has ended.\n",
        rounds.len()
    );
    let mut json = json!({"machine": machine, "rounds": rounds.len()});
    let mut line = |what: &str, key: &str, pick: fn(&Round) -> &Samples| {
        let at = |percent| median(rounds.iter().map(|round| ms(pick(round).percentile(percent))));
        let (p50, p95) = (at(50), at(95));
        let _ = writeln!(text, "{what:<44} p50 {p50:7.2}  p95 {p95:7.2} ms");
        json[key] = json!({"p50_ms": p50, "p95_ms": p95});
        p50
    };
    let n = args.single;
    let seen = line(&format!("start to first line, seen (n = {n} a round):"), "seen", |round| &round.seen);
    let written = line("start to first line, written:", "written", |round| &round.written);
    let crun = line("crun run to first line:", "crun_line", |round| &round.crun_line);
    let _ = writeln!(text, "{:<44} seen {:.2}, written {:.2} times crun's\n", "ratio:", seen / crun, written / crun);
    let mut rate = |what: &str, key: &str, own: fn(&Round) -> f64, crun: fn(&Round) -> f64| {
        let (own, crun) = (median(rounds.iter().map(own)), median(rounds.iter().map(crun)));
        let _ = writeln!(text, "{what:<44} {own:7.1} /s   crun {crun:7.1} /s   ratio {:.2}", own / crun);
        json[key] = json!({"cove": own, "crun": crun, "ratio": own / crun});
    };
    rate("executions, one after the other:", "serial_per_second", |r| r.serial, |r| r.crun_serial);
    rate(&format!("executions, {ROOM} at once:"), "many_per_second", |r| r.many, |r| r.crun_many);
    rate(&format!("replicas of one execution, {ROOM} at once:"), "wide_per_second", |r| r.wide, |r| r.crun_many);
    let accepted = &burst.accepted;
    let started = accepted.started.len();
    let answers: Samples = accepted.answers.iter().copied().collect();
    let rate = per_second(started, accepted.whole);
    let _ = writeln!(
        text,
        "\n{} starts at once by {} clients:\n\
         accepted/s {rate:.1}: {started} in {:.2} s, {} failed; each {answers}\n\
         the last one's place in the line was {}; all had ended after {:.1} s ({:.1} /s), each once with one line",
        args.starts,
        args.clients,
        accepted.whole.as_secs_f64(),
        accepted.failed.len(),
        burst.place,
        burst.until_ended.as_secs_f64(),
        per_second(started, burst.until_ended),
    );
    for problem in accepted.failed.iter().chain(&burst.problems).take(10) {
        let _ = writeln!(text, "  failed: {problem}");
    }
    json["starts"] = json!({
        "accepted": started, "failed": accepted.failed.len(), "accepted_per_second": rate, "answer": answers.to_json(),
        "place": burst.place, "until_ended_seconds": burst.until_ended.as_secs_f64(), "problems": burst.problems.len(),
    });
    Outcome { text, json, is_clean: accepted.failed.is_empty() && burst.problems.is_empty() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_place() {
        assert_eq!(median([3.0, 1.0, 2.0].into_iter()), 2.0);
        assert_eq!(median([4.0, 1.0].into_iter()), 1.0);
        let shown = |text: &str| json!({"properties": {"message": text}});
        assert_eq!(place(&shown("place 17 in the line: no room")), Some(17));
        assert_eq!(place(&shown("others wait")), None);
    }
}
