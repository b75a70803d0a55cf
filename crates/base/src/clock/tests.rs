//! A virtual clock: who sleeps, who works, and what time it was.

use super::*;

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

async fn quiet(clock: &Clock) {
    let settled = async {
        while !clock.unrest().is_empty() {
            clock.rested().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
}

#[tokio::test]
async fn a_virtual_clock_moves_only_by_hand() {
    let clock = Clock::virtual_at(Timestamp::UNIX_EPOCH);
    let sleeper = tokio::spawn(clock.sleep(Duration::from_secs(300)));
    clock.advance(SignedDuration::from_secs(299));
    tokio::task::yield_now().await;
    assert!(!sleeper.is_finished());
    clock.advance(SignedDuration::from_secs(1));
    sleeper.await.unwrap();
    assert_eq!(clock.now(), at(300));
    assert_eq!(clock.advance_to(at(5)), Some(at(300)), "time does not go back");
    assert_eq!(Clock::real().advance_to(at(5)), None);
}

#[tokio::test]
async fn it_knows_the_next_instant_and_who_has_not_woken() {
    let clock = Clock::virtual_at(at(0));
    assert_eq!(clock.next_due(), None);
    let near = tokio::spawn(clock.sleep_until(at(10)));
    let far = tokio::spawn(clock.sleep_until(at(20)));
    while clock.next_due() != Some(at(10)) {
        tokio::task::yield_now().await;
    }
    assert!(clock.unrest().is_empty());
    clock.advance_to(at(15));
    assert_eq!(clock.unrest(), ["a sleeper that is to wake"]);
    quiet(&clock).await;
    assert!(near.await.is_ok());
    assert_eq!(clock.next_due(), Some(at(20)));
    far.abort();
    assert!(far.await.is_err());
    assert_eq!(clock.next_due(), None, "who gives up is forgotten");
}

#[tokio::test]
async fn a_loop_is_at_work_until_it_waits_again() {
    let clock = Clock::virtual_at(at(0));
    let (told, mut tells) = tokio::sync::mpsc::channel::<u32>(1);
    let (answers, mut answered) = tokio::sync::mpsc::channel(8);
    let mut worker = clock.worker("a loop");
    assert_eq!(clock.unrest(), ["a loop"], "made at work");
    let sleeps = clock.clone();
    let running = tokio::spawn(async move {
        let mut next = at(10);
        loop {
            let wait = async {
                tokio::select! { told = tells.recv() => Some(told), () = sleeps.sleep_until(next) => None }
            };
            match worker.wait(wait).await {
                Some(None) => return,
                Some(Some(number)) => answers.send(i64::from(number)).await.unwrap(),
                None => {
                    // several turns of the executor, as a plan of many steps
                    for _ in 0..10 {
                        tokio::task::yield_now().await;
                    }
                    answers.send(next.as_second()).await.unwrap();
                    next += SignedDuration::from_secs(10);
                }
            }
        }
    });
    quiet(&clock).await;
    while let Some(due) = clock.next_due().filter(|due| *due <= at(50)) {
        clock.advance_to(due);
        quiet(&clock).await;
        assert_eq!(answered.try_recv(), Ok(due.as_second()), "done when quiet");
    }
    told.send(7).await.unwrap();
    assert_eq!(answered.recv().await, Some(7));
    drop(told);
    running.await.unwrap();
    assert!(clock.unrest().is_empty());
}

#[test]
fn what_is_under_way_is_unrest() {
    let clock = Clock::virtual_at(at(0));
    let (read, probe) = (clock.busy("a read"), clock.busy("a probe"));
    let again = clock.busy("a read");
    assert_eq!(clock.unrest(), ["a probe", "a read"]);
    drop(read);
    drop(probe);
    assert_eq!(clock.unrest(), ["a read"]);
    drop(again);
    assert!(clock.unrest().is_empty());
    let _nothing = Clock::real().busy("a read");
}

#[test]
fn stamps_of_the_machine_are_translated() {
    let clock = Clock::virtual_at(at(1000));
    let before = Timestamp::now();
    // the machine's clock ticks in between
    while Timestamp::now() <= before {
        std::thread::yield_now();
    }
    clock.advance_to(at(2000));
    assert_eq!(clock.at_machine_time(before), at(1000));
    assert_eq!(clock.at_machine_time(Timestamp::now()), at(2000));
    assert_eq!(clock.at_machine_time(at(0)), at(1000));
    assert_eq!(Clock::real().at_machine_time(before), before);
}
