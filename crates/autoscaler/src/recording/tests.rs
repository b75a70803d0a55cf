//! What is kept over a stop, a torn end, a full directory, and how much it takes.

use std::time::Duration;

use cove_scaling::{Hold, Input, Reading, Rule, RuleKind, ScaleConfig, ScaleSettings, ScaleState, decide};

use super::*;

fn app(index: usize) -> ResourceId {
    let text = format!(
        "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/rg/providers/Microsoft.App/containerApps/app{index}"
    );
    ResourceId::parse(&text).unwrap()
}

fn key(index: usize) -> RevisionKey {
    RevisionKey { app: app(index), name: RevisionName::new(format!("app{index}--v1")).unwrap() }
}

fn config() -> Arc<ScaleConfig> {
    Arc::new(ScaleConfig {
        min_replicas: 0,
        max_replicas: 10,
        rules: ["a", "b", "c", "d", "e"].iter().map(|name| Rule::new(name, RuleKind::Event, 5.0)).collect(),
        settings: ScaleSettings::default(),
        fallback: None,
    })
}

/// One decision after the other of one revision.
struct Script {
    config: Arc<ScaleConfig>,
    state: ScaleState,
    key: RevisionKey,
}

impl Script {
    fn new(index: usize) -> Self {
        Self { config: config(), state: ScaleState::default(), key: key(index) }
    }

    fn decide(&mut self, second: i64, value: u32) -> RevisionDecision {
        let now = Timestamp::from_second(second).unwrap();
        let readings: Vec<Reading> =
            self.config.rules.iter().map(|rule| Reading::of_value(rule, f64::from(value))).collect();
        let existing = self.state.current;
        let input = Input { now, readings: &readings, existing, in_flight: 0, hold: Hold::None };
        let decision = decide(&self.config, &self.state, &input);
        self.state.apply(&self.config, &decision);
        let record = Arc::new(DecisionRecord { config: Arc::clone(&self.config), decision });
        RevisionDecision { revision: self.key.clone(), record }
    }
}

fn all(index: usize) -> RecordingQuery {
    RecordingQuery {
        app: app(index),
        revision: None,
        from: Timestamp::UNIX_EPOCH,
        to: Timestamp::MAX,
        decisions_max: usize::MAX,
        newest: true,
    }
}

fn counts(dir: &std::path::Path, query: &RecordingQuery) -> Vec<u32> {
    let found = read::read(dir, query).unwrap();
    assert!(found.len() <= 1);
    found.into_iter().flat_map(|revision| revision.decisions).map(|record| record.decision.new).collect()
}

#[tokio::test]
async fn decisions_are_read_while_they_are_taken_and_after_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = Script::new(1);
    let clock = Clock::virtual_at(Timestamp::from_second(1000).unwrap());
    let mut taken = Vec::new();
    for start in 0..2 {
        let (recorder, recording, sender) = recording(dir.path().to_owned(), RecordingConfig::default(), clock.clone());
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(recorder.run(shutdown.clone()));
        for tick in 0..40 {
            clock.advance(SignedDuration::from_secs(30));
            let decision = script.decide(clock.now().as_second(), if tick % 10 == 0 { 50 } else { 3 });
            taken.push((*decision.record).clone());
            sender.send(decision).await.unwrap();
        }
        let found = recording.read(all(1)).await.unwrap();
        assert_eq!(found[0].decisions, taken, "start {start}");
        assert!(recording.read(all(2)).await.unwrap().is_empty());
        shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(10), running).await.unwrap().unwrap();
        assert_eq!(recording.read(all(1)).await.unwrap()[0].decisions, taken, "the recorder has ended");
    }
    let query = RecordingQuery {
        from: Timestamp::from_second(1300).unwrap(),
        to: Timestamp::from_second(1600).unwrap(),
        decisions_max: 4,
        ..all(1)
    };
    let found = read::read(dir.path(), &query).unwrap();
    assert!(found[0].is_cut);
    let at = |record: &DecisionRecord| record.decision.at.as_second();
    assert_eq!(found[0].decisions.iter().map(at).collect::<Vec<_>>(), [1510, 1540, 1570, 1600]);
}

#[test]
fn a_torn_end_is_left_out_and_the_next_start_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut script = Script::new(1);
    let mut tapes = Tapes::new(dir.path().to_owned(), RecordingConfig::default());
    for batch in 0..3 {
        for tick in 0..4 {
            tapes.push(&script.decide(batch * 100 + tick * 15, 50));
        }
        tapes.end_runs(|_, _| true);
        tapes.write(Timestamp::from_second(batch * 100 + 60).unwrap());
    }
    assert_eq!(counts(dir.path(), &all(1)).len(), 12);
    let path = segment::list(dir.path()).unwrap().remove(0).path;
    let bytes = std::fs::read(&path).unwrap();
    for cut in [bytes.len() - 1, bytes.len() - 9] {
        std::fs::write(&path, &bytes[..cut]).unwrap();
        assert_eq!(counts(dir.path(), &all(1)).len(), 8, "the last batch is torn at {cut}");
    }
    let mut flipped = bytes;
    let last = flipped.len() - 3;
    flipped[last] ^= 0x10;
    std::fs::write(&path, flipped).unwrap();
    assert_eq!(counts(dir.path(), &all(1)).len(), 8, "a flipped bit");

    let mut tapes = Tapes::new(dir.path().to_owned(), RecordingConfig::default());
    tapes.push(&script.decide(400, 50));
    tapes.write(Timestamp::from_second(400).unwrap());
    assert_eq!(counts(dir.path(), &all(1)).len(), 9);
    std::fs::write(dir.path().join("00000009-500.scale"), b"not a segment").unwrap();
    assert_eq!(counts(dir.path(), &all(1)).len(), 9);
}

#[test]
fn the_oldest_go_first_by_time_and_by_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = |dir: &std::path::Path| -> u64 {
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
    };
    let limits = RecordingConfig { disk_max_bytes: 64 << 10, ..RecordingConfig::default() };
    let mut tapes = Tapes::new(dir.path().to_owned(), limits);
    let mut script = Script::new(1);
    for tick in 0i64..20_000 {
        tapes.push(&script.decide(tick * 30, u32::try_from(tick * 37 % 91).unwrap()));
        if tick % 20 == 0 {
            tapes.write(Timestamp::from_second(tick * 30).unwrap());
        }
    }
    tapes.write(Timestamp::from_second(600_000).unwrap());
    assert!(bytes(dir.path()) <= 64 << 10, "{}", bytes(dir.path()));
    let found = read::read(dir.path(), &all(1)).unwrap();
    let first = &found[0].decisions[0];
    assert!(first.decision.at.as_second() > 400_000, "{}", first.decision.at);
    assert_eq!(found[0].decisions.last().unwrap().decision.at.as_second(), 19_999 * 30);

    // the segment that was open over eight quiet days goes a week after its successor began
    let mut script = Script::new(2);
    for step in 0..20 {
        let second = 600_000 + 8 * 86_400 + step * 14 * 3600;
        tapes.push(&script.decide(second, 1));
        tapes.write(Timestamp::from_second(second).unwrap());
    }
    assert!(read::read(dir.path(), &all(1)).unwrap().is_empty());
    assert_eq!(counts(dir.path(), &all(2)).len(), 14, "a week of them and one segment");
}

#[test]
fn a_week_of_two_thousand_idle_apps_fits() {
    let dir = tempfile::tempdir().unwrap();
    let mut tapes = Tapes::new(dir.path().to_owned(), RecordingConfig::default());
    let mut scripts: Vec<Script> = (0..200).map(Script::new).collect();
    // one hour of a tenth of them; the minute's runs are ended as the recorder does
    for tick in 0..120 {
        let now = Timestamp::from_second(tick * 30).unwrap();
        for script in &mut scripts {
            tapes.push(&script.decide(tick * 30, 1));
        }
        tapes.end_runs(|_, since| now.duration_since(since) >= RUN_OPEN_MAX);
        tapes.write(now);
    }
    let bytes: u64 = segment::list(dir.path()).unwrap().iter().map(|s| std::fs::metadata(&s.path).unwrap().len()).sum();
    let week = bytes * 10 * 24 * 7;
    assert!(week < 512 << 20, "{} bytes an hour, {} MiB a week", bytes * 10, week >> 20);
    assert_eq!(counts(dir.path(), &all(7)).len() % 2, 0, "pairs of a run of a minute are on disk");
}

#[test]
fn a_full_or_missing_disk_loses_decisions_and_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "in the way").unwrap();
    let mut tapes = Tapes::new(file.clone(), RecordingConfig::default());
    let mut script = Script::new(1);
    tapes.push(&script.decide(0, 1));
    tapes.write(Timestamp::from_second(0).unwrap());
    std::fs::remove_file(&file).unwrap();
    tapes.push(&script.decide(30, 1));
    tapes.write(Timestamp::from_second(30).unwrap());
    assert_eq!(counts(&file, &all(1)).len(), 1);
}
