//! `cove-sim SCRIPT…`, `--seed N`, `--seeds N [FROM]`, `--day N`, `--jobs N [COUNT]`, `--sessions N [COUNT]`, `--scaling N` (a
//! table of quality), or a prompt.

use std::{
    io::{BufRead, Write},
    process::ExitCode,
    time::Instant,
};

use anyhow::Context as _;
use cove_sim::{JobSim, Script, SessionSim, Sim, Size, generate};

/// How long the small worlds of `--seeds` run.
const SMALL_MS: u64 = 3_600_000;
/// Lines of the log that a single seed shows at its end.
const LOG_SHOWN: usize = 60;
/// A day.
const DAY_MS: u64 = 24 * 3_600_000;

fn main() -> anyhow::Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<u64>().with_context(|| format!("`{word}` is not a whole number"));
    match words.as_slice() {
        [] => prompt(),
        ["--seed", seed] => Ok(seeds(number(seed)?, 1, Size::Small)),
        ["--seeds", count] => Ok(seeds(0, number(count)?, Size::Small)),
        ["--seeds", count, from] => Ok(seeds(number(from)?, number(count)?, Size::Small)),
        ["--day", seed] => Ok(seeds(number(seed)?, 1, Size::Day)),
        ["--jobs", seed] => Ok(jobs(number(seed)?, 1)),
        ["--jobs", seed, count] => Ok(jobs(number(seed)?, number(count)?)),
        ["--sessions", seed] => Ok(sessions(number(seed)?, 1)),
        ["--sessions", seed, count] => Ok(sessions(number(seed)?, number(count)?)),
        ["--scaling", seed] => scaling(number(seed)?),
        scripts => run(scripts),
    }
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
#[expect(clippy::disallowed_methods, reason = "how long the run took is for people; no world sees it")]
fn seeds(from: u64, count: u64, size: Size) -> ExitCode {
    let begun = Instant::now();
    let mut failed = 0;
    let mut events = 0;
    for seed in from..from + count {
        let sim = run_seed(seed, size, count == 1);
        events += sim.stats().events;
        if let Some(violation) = sim.violations().first() {
            failed += 1;
            let option = if size == Size::Day { "--day" } else { "--seed" };
            println!("{violation}\n  replay: cargo run -p cove-sim -- {option} {seed}");
        }
        if count == 1 {
            let log = sim.log();
            println!("{}", log[log.len().saturating_sub(LOG_SHOWN)..].join("\n"));
            println!("{}{:#?}", sim.show(), sim.stats());
        }
    }
    println!("{count} worlds, {events} events, {failed} failed, {:.1} s", begun.elapsed().as_secs_f64());
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn jobs(from: u64, count: u64) -> ExitCode {
    let mut failed = 0;
    for seed in from..from.saturating_add(count) {
        let mut sim = JobSim::new(seed);
        sim.advance(DAY_MS);
        if let Some(violation) = sim.violations().first() {
            failed += 1;
            println!("{violation}\n  replay: cargo run -p cove-sim -- --jobs {seed}");
        }
        if count == 1 {
            println!("{:#?}", sim.stats());
        }
    }
    println!("{count} worlds of jobs, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the report is the program's output")]
fn sessions(from: u64, count: u64) -> ExitCode {
    let mut failed = 0;
    for seed in from..from.saturating_add(count) {
        let mut sim = SessionSim::new(seed);
        sim.advance(DAY_MS / 12);
        sim.settle();
        if let Some(violation) = sim.violations().first() {
            failed += 1;
            println!("{violation}\n  replay: cargo run -p cove-sim -- --sessions {seed}");
        }
        if count == 1 {
            println!("{:#?}", sim.stats());
        }
    }
    println!("{count} worlds of sessions, {failed} failed");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[expect(clippy::print_stdout, reason = "the table is the program's output")]
fn scaling(seed: u64) -> anyhow::Result<ExitCode> {
    print!("{}", cove_sim::quality_table(seed));
    Ok(ExitCode::SUCCESS)
}

fn run_seed(seed: u64, size: Size, with_log: bool) -> Sim {
    let mut sim = generate(seed, size);
    if with_log && size == Size::Small {
        sim = sim.with_log();
    }
    sim.advance(if size == Size::Day { DAY_MS } else { SMALL_MS });
    sim
}

#[expect(clippy::print_stdout, reason = "the scripts' output is the program's")]
fn run(scripts: &[&str]) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for path in scripts {
        let text = std::fs::read_to_string(path).with_context(|| format!("failed to read `{path}`"))?;
        let shown = Script::run(&text).with_context(|| format!("failed to run `{path}`"))?;
        print!("{shown}");
        if shown.contains("VIOLATED") {
            code = ExitCode::FAILURE;
        }
    }
    Ok(code)
}

#[expect(clippy::print_stdout, reason = "a prompt")]
fn prompt() -> anyhow::Result<ExitCode> {
    let mut script = Script::default();
    print!("> ");
    std::io::stdout().flush()?;
    for line in std::io::stdin().lock().lines() {
        match script.line(&line?) {
            Ok(shown) => print!("{shown}> "),
            Err(error) => print!("{error}\n> "),
        }
        std::io::stdout().flush()?;
    }
    Ok(ExitCode::SUCCESS)
}
