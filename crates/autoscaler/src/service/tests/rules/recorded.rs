//! A live hour, recorded on disk, read back and decided again: decision by decision the same.

use cove_scaling::simulate::{Recorded, replay, state_before};

use super::*;
use crate::recording::{RecordingConfig, RecordingQuery, recording};

/// Length of the queue, or a failure, at a step of 15 s.
fn queue_at(step: u32) -> Says {
    match step {
        20..60 => Says::Length(f64::from((step - 20) * 3)),
        66..72 => Says::Fails("connection refused"),
        72..76 => Says::Length(f64::NAN),
        76..90 => Says::Length(31.0),
        150..160 => Says::Length(1e9),
        160..163 => Says::Fails("no such queue"),
        _ => Says::Length(0.0),
    }
}

#[tokio::test]
async fn a_recorded_hour_is_decided_again_to_the_number() {
    let dir = tempfile::tempdir().unwrap();
    let sources = Sources::new(Says::Length(0.0));
    let mut bench = start(&sources);
    let (recorder, kept, sender) = recording(dir.path().to_owned(), RecordingConfig::default(), bench.clock.clone());
    let stop = CancellationToken::new();
    let recording = tokio::spawn(recorder.run(stop.clone()));
    let http = ScaleRule { name: "h".into(), kind: ScaleRuleKind::Http { concurrent_requests: 10 } };
    let both = Scale { max_replicas: 12, rules: vec![http.clone(), list_rule("q")], ..Scale::default() };
    let only = Scale { rules: vec![http], cooldown_period_secs: 60, ..Scale::default() };
    bench.list(vec![worker("worker--v1"), revision("both--v1", both), revision("web--v1", only)]).await;

    for step in 0..240u32 {
        sources.say(queue_at(step));
        for name in ["both--v1", "web--v1"] {
            let arrived = match step {
                30..44 => u64::from(step) * 40,
                100..110 => 3,
                _ => 0,
            };
            bench.load(name, |load| {
                load.arrivals_total += arrived;
                load.open = arrived.min(7);
            });
            if arrived > 0 {
                bench.handle.activate(&key(name));
            }
        }
        if step == 200 {
            bench.handle.end_cooldown(&key("both--v1"));
        }
        bench.forward(15).await;
    }
    let mut taken: BTreeMap<RevisionKey, Vec<cove_scaling::Decision>> = BTreeMap::new();
    while let Ok(decision) = bench.decisions.try_recv() {
        taken.entry(decision.revision.clone()).or_default().push(decision.record.decision.clone());
        sender.send(decision).await.unwrap();
    }

    let mut highest = 0;
    for (revision, taken) in taken {
        let query = RecordingQuery {
            app: revision.app.clone(),
            revision: Some(revision.name.clone()),
            from: Timestamp::UNIX_EPOCH,
            to: Timestamp::MAX,
            decisions_max: usize::MAX,
            newest: true,
        };
        let read = kept.read(query).await.unwrap().remove(0);
        let config = Arc::clone(&read.decisions[0].config);
        let read: Vec<_> = read.decisions.into_iter().map(|record| record.decision).collect();
        assert_eq!(read, taken, "{revision} is read as it was taken");
        // from its beginning, and from its middle with what came before it
        for from in [0, read.len() / 3, read.len() / 2] {
            let state = state_before(&read[..from], &config, &read[from]);
            let again = replay(&config, state, &Recorded::of(&read)[from..]);
            for (again, taken) in again.decisions.iter().zip(&read[from..]) {
                assert_eq!(again, taken, "{revision} from decision {from}");
            }
            assert_eq!(again.decisions.len(), read.len() - from, "{revision} from decision {from}");
        }
        highest = highest.max(read.iter().map(|decision| decision.new).max().unwrap_or(0));
        assert!(read.iter().any(|decision| decision.new == 0), "{revision} was at zero");
    }
    assert_eq!(highest, 20, "the worker reached its maximum");
    stop.cancel();
    tokio::time::timeout(LIMIT, recording).await.unwrap().unwrap();
    bench.stop().await.unwrap();
}
