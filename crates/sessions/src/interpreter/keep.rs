//! Executions of the newer generation, kept for a while so that they can be asked for again.
//!
//! **Invariant:** of a session at most [`SESSION_MAX`] with [`SESSION_BYTES_MAX`] bytes are kept, its oldest finished ones go
//! first; so no session pushes out what another one did. **Invariant:** over all sessions at most [`KEPT_MAX`] with
//! [`BYTES_MAX`] bytes are kept; beyond that the session goes without that keeps most. One that runs stays. They are in
//! memory: after a restart of the server they are not known any more.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cove_model::{ResourceId, SessionIdentifier};
use indexmap::IndexMap;

const SESSION_MAX: usize = 50;
/// Room for the longest outcome there is of code that keeps to the rules: 8 MiB of a plot, twice.
const SESSION_BYTES_MAX: usize = 32 << 20;
const KEPT_MAX: usize = 10_000;
const BYTES_MAX: usize = 256 << 20;
const KEPT_FOR: Duration = Duration::from_secs(3600);
/// How often those are dropped whose time is over; nobody finds them until then.
const SWEPT_EVERY: Duration = Duration::from_secs(60);
/// What an execution takes beside the text that is shown of it: ids, places in maps.
const ENTRY_BYTES: usize = 512;

/// What is known of executions.
#[derive(Debug, Default)]
pub(crate) struct Executions(Mutex<All>);

/// Whose executions they are: the pool's key and the identifier.
type Whose = (String, SessionIdentifier);

#[derive(Debug, Default)]
struct All {
    sessions: HashMap<Whose, Session>,
    /// Whose an execution is that runs.
    running: HashMap<String, Whose>,
    size: Size,
    swept_at: Option<Instant>,
}

/// Executions of one session by id, the oldest first.
#[derive(Debug, Default)]
struct Session {
    kept: IndexMap<String, Kept>,
    size: Size,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Size {
    count: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Kept {
    since: Instant,
    shown: Bytes,
    is_running: bool,
}

impl Executions {
    /// Notes one that begins; false when too many run, of this session or of all.
    pub(super) fn begin(&self, id: &str, pool: &ResourceId, identifier: &SessionIdentifier, shown: Bytes) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.forget_old();
        let whose = whose(pool, identifier);
        all.make_room_in(&whose, SESSION_MAX - 1);
        all.make_room(KEPT_MAX - 1);
        let count = all.sessions.get(&whose).map_or(0, |session| session.size.count);
        if count >= SESSION_MAX || all.size.count >= KEPT_MAX {
            return false;
        }
        all.running.insert(id.to_owned(), whose.clone());
        all.put(&whose, id, Kept { since: Instant::now(), shown, is_running: true });
        true
    }

    /// Notes how one ended.
    pub(super) fn end(&self, id: &str, shown: Bytes) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(whose) = all.running.remove(id) else { return };
        all.put(&whose, id, Kept { since: Instant::now(), shown, is_running: false });
        all.make_room_in(&whose, SESSION_MAX);
        all.make_room(KEPT_MAX);
    }

    /// One of this session.
    pub(super) fn find(&self, id: &str, pool: &ResourceId, identifier: &SessionIdentifier) -> Option<Bytes> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let one = all.sessions.get(&whose(pool, identifier))?.kept.get(id)?;
        one.is_fresh().then(|| one.shown.clone())
    }
}

fn whose(pool: &ResourceId, identifier: &SessionIdentifier) -> Whose {
    (pool.key().to_owned(), identifier.clone())
}

impl Kept {
    fn is_fresh(&self) -> bool {
        self.is_running || self.since.elapsed() < KEPT_FOR
    }

    fn bytes(&self) -> usize {
        self.shown.len() + ENTRY_BYTES
    }
}

impl Size {
    fn add(&mut self, bytes: usize) {
        self.count += 1;
        self.bytes += bytes;
    }

    fn remove(&mut self, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
    }

    fn is_within(self, count_max: usize, bytes_max: usize) -> bool {
        self.count <= count_max && self.bytes <= bytes_max
    }
}

impl All {
    /// Keeps one in its place, or as the newest of its session.
    fn put(&mut self, whose: &Whose, id: &str, kept: Kept) {
        let bytes = kept.bytes();
        let session = self.sessions.entry(whose.clone()).or_default();
        if let Some(before) = session.kept.insert(id.to_owned(), kept) {
            session.size.remove(before.bytes());
            self.size.remove(before.bytes());
        }
        session.size.add(bytes);
        self.size.add(bytes);
    }

    fn forget_old(&mut self) {
        if self.swept_at.is_some_and(|at| at.elapsed() < SWEPT_EVERY) {
            return;
        }
        self.swept_at = Some(Instant::now());
        let size = &mut self.size;
        self.sessions.retain(|_, session| {
            session.kept.retain(|_, one| {
                let stays = one.is_fresh();
                if !stays {
                    session.size.remove(one.bytes());
                    size.remove(one.bytes());
                }
                stays
            });
            !session.kept.is_empty()
        });
    }

    /// Lets the oldest finished ones of a session go until it is within its limits.
    fn make_room_in(&mut self, whose: &Whose, count_max: usize) {
        while let Some(session) = self.sessions.get(whose)
            && !session.size.is_within(count_max, SESSION_BYTES_MAX)
            && self.drop_oldest(&whose.clone())
        {}
    }

    /// Lets finished ones go until all are within the limits: of the session that keeps most bytes, or most where they are many.
    fn make_room(&mut self, count_max: usize) {
        while !self.size.is_within(count_max, BYTES_MAX) {
            let are_many = self.size.count > count_max;
            let finished = self.sessions.iter().filter(|(_, session)| session.kept.values().any(|one| !one.is_running));
            let most =
                finished.max_by_key(|(_, session)| if are_many { session.size.count } else { session.size.bytes });
            let Some(whose) = most.map(|(whose, _)| whose.clone()) else { return };
            self.drop_oldest(&whose);
        }
    }

    /// Lets the oldest finished one of a session go; false when it has none.
    fn drop_oldest(&mut self, whose: &Whose) -> bool {
        let Some(session) = self.sessions.get_mut(whose) else { return false };
        let Some(at) = session.kept.values().position(|one| !one.is_running) else { return false };
        let Some((_, gone)) = session.kept.shift_remove_index(at) else { return false };
        session.size.remove(gone.bytes());
        self.size.remove(gone.bytes());
        if session.kept.is_empty() {
            self.sessions.remove(whose);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> ResourceId {
        ResourceId::resource("s", "g", cove_model::SESSION_POOL_KIND, "pool").unwrap()
    }

    fn session(name: &str) -> SessionIdentifier {
        SessionIdentifier::new(format!("session-{name}")).unwrap()
    }

    fn of(bytes: usize) -> Bytes {
        Bytes::from(vec![b'x'; bytes])
    }

    /// Begins one and ends it with so many bytes.
    fn run(executions: &Executions, id: &str, whose: &SessionIdentifier, bytes: usize) {
        assert!(executions.begin(id, &pool(), whose, of(1)), "{id}");
        executions.end(id, of(bytes));
    }

    fn check_sums(executions: &Executions) {
        let all = executions.0.lock().unwrap();
        let mut sum = Size::default();
        for session in all.sessions.values() {
            let mut own = Size::default();
            session.kept.values().for_each(|one| own.add(one.bytes()));
            assert_eq!(own, session.size);
            sum.count += own.count;
            sum.bytes += own.bytes;
        }
        assert_eq!(sum, all.size);
    }

    #[test]
    fn of_a_session_the_oldest_finished_go_first_and_running_ones_stay() {
        let (executions, pool, mine, other) = (Executions::default(), pool(), session("mine"), session("other"));
        for number in 0..SESSION_MAX {
            assert!(executions.begin(&number.to_string(), &pool, &mine, of(1)));
        }
        assert!(!executions.begin("more", &pool, &mine, of(1)));
        assert!(executions.begin("others", &pool, &other, of(1)), "another session has room of its own");
        executions.end("5", of(10));
        assert_eq!(executions.find("5", &pool, &other), None);
        assert_eq!(executions.find("5", &pool, &mine), Some(of(10)));
        assert!(executions.begin("more", &pool, &mine, of(1)));
        assert_eq!(executions.find("5", &pool, &mine), None);
        executions.end("6", of(SESSION_BYTES_MAX - 60 * ENTRY_BYTES));
        assert!(executions.find("6", &pool, &mine).is_some());
        executions.end("7", of(20 * ENTRY_BYTES));
        assert_eq!(
            (executions.find("6", &pool, &mine), executions.find("7", &pool, &mine).map(|it| it.len())),
            (None, Some(20 * ENTRY_BYTES))
        );
        check_sums(&executions);
    }

    #[test]
    fn a_session_that_keeps_much_pushes_out_its_own() {
        let (executions, pool, mine, other) = (Executions::default(), pool(), session("mine"), session("other"));
        run(&executions, "others", &other, 10);
        for number in 0..3 * SESSION_MAX {
            run(&executions, &number.to_string(), &mine, SESSION_BYTES_MAX / 4);
        }
        assert!(executions.find("others", &pool, &other).is_some());
        assert_eq!(executions.0.lock().unwrap().sessions[&whose(&pool, &mine)].size.count, 3);
        check_sums(&executions);
    }

    #[test]
    fn over_all_the_session_that_keeps_most_goes_without() {
        let (executions, pool, small) = (Executions::default(), pool(), session("small"));
        run(&executions, "first", &small, 10);
        let large: Vec<_> = (0..9).map(|number| session(&number.to_string())).collect();
        for (number, one) in large.iter().enumerate() {
            run(&executions, &format!("{number}-a"), one, SESSION_BYTES_MAX - (2 << 20) + number);
        }
        assert!(executions.find("first", &pool, &small).is_some());
        let kept = |number: usize| executions.find(&format!("{number}-a"), &pool, &large[number]).is_some();
        assert_eq!((0..9).filter(|number| kept(*number)).count(), 8);
        check_sums(&executions);
    }

    #[test]
    fn the_number_over_all_has_a_limit() {
        let (executions, pool) = (Executions::default(), pool());
        for number in 0..KEPT_MAX {
            let id = number.to_string();
            assert!(executions.begin(&id, &pool, &session(&format!("{}", number / 40)), of(1)));
        }
        assert!(!executions.begin("more", &pool, &session("more"), of(1)), "all of them run");
        executions.end("77", of(1));
        assert!(executions.begin("more", &pool, &session("more"), of(1)));
        assert_eq!(executions.find("77", &pool, &session("1")), None);
        check_sums(&executions);
    }
}
