//! Which session an identifier gets.
//!
//! **Invariant:** a session that has ended, or is of an older generation, is never given away.

use cove_model::{AllocateError, ReplicaName, ReplicaPhase, Session, SessionIdentifier, SnapshotError, SnapshotId};
use jiff::Timestamp;

use super::{PoolMemory, PoolView};

/// The session of an identifier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allocated {
    /// It has one already.
    Known(ReplicaName),
    /// It gets this one, which waited or is being made; to be stored.
    Given(Box<Session>),
    /// It gets a new one; to be stored.
    New(Box<Session>),
}

/// Chooses the session of an identifier: its own, else the oldest one that is ready, else one that is being made, else a new
/// one. `guid` draws a GUID.
///
/// # Errors
/// [`AllocateError::PoolFull`], [`AllocateError::UnknownPool`] for a pool that is being deleted.
pub fn allocate(
    view: &PoolView<'_>,
    memory: &mut PoolMemory,
    identifier: &SessionIdentifier,
    guid: &mut dyn FnMut() -> String,
    now: Timestamp,
) -> Result<Allocated, AllocateError> {
    if view.is_deleted {
        return Err(AllocateError::UnknownPool);
    }
    let pool = view.pool;
    let living = || view.sessions.iter().map(|known| known.session).filter(|session| session.ended.is_none());
    if let Some(known) = living().find(|session| session.identifier.as_ref() == Some(identifier)) {
        return Ok(Allocated::Known(known.replica.clone()));
    }
    let allocated = living().filter(|session| session.identifier.is_some()).count();
    if allocated >= usize::try_from(pool.sessions_max).unwrap_or(usize::MAX) {
        return Err(AllocateError::PoolFull { max: pool.sessions_max });
    }
    let give = |mut session: Session| {
        session.identifier = Some(identifier.clone());
        session.allocated_at = Some(now);
        session.last_accessed_at = Some(now);
        Box::new(session)
    };
    if let Some((snapshot, _)) = view.suspended.get(identifier) {
        let mut session = give(new_session(view, memory, guid, now));
        session.snapshot = Some(snapshot.clone());
        return Ok(Allocated::New(session));
    }
    let free = living().filter(|session| session.identifier.is_none() && session.generation == pool.generation);
    let best = free.min_by_key(|session| (rank(view, session), session.created_at, session.replica.clone()));
    if let Some(session) = best {
        memory.note_given(now);
        return Ok(Allocated::Given(give(session.clone())));
    }
    Ok(Allocated::New(give(new_session(view, memory, guid, now))))
}

/// New sessions for identifiers that have none, which begin with a snapshot: all, or none.
///
/// # Errors
/// [`SnapshotError::UnknownPool`] for a pool that is being deleted, [`SnapshotError::Taken`], or
/// [`AllocateError::PoolFull`] in it when there is not room for all.
pub fn fork_sessions(
    view: &PoolView<'_>,
    memory: &mut PoolMemory,
    (snapshot, identifiers): (&SnapshotId, &[SessionIdentifier]),
    guid: &mut dyn FnMut() -> String,
    now: Timestamp,
) -> Result<Vec<Session>, SnapshotError> {
    if view.is_deleted {
        return Err(SnapshotError::UnknownPool);
    }
    let living = || view.sessions.iter().map(|known| known.session).filter(|session| session.ended.is_none());
    let is_taken = |identifier: &SessionIdentifier| {
        view.suspended.contains_key(identifier)
            || living().any(|session| session.identifier.as_ref() == Some(identifier))
    };
    if identifiers.iter().any(is_taken) {
        return Err(SnapshotError::Taken("one of the identifiers has a session already; choose others".to_owned()));
    }
    let allocated = living().filter(|session| session.identifier.is_some()).count();
    let max = view.pool.sessions_max;
    if allocated + identifiers.len() > usize::try_from(max).unwrap_or(usize::MAX) {
        return Err(AllocateError::PoolFull { max }.into());
    }
    let begin = |identifier: &SessionIdentifier| Session {
        snapshot: Some(snapshot.clone()),
        identifier: Some(identifier.clone()),
        allocated_at: Some(now),
        last_accessed_at: Some(now),
        ..new_session(view, memory, guid, now)
    };
    Ok(identifiers.iter().map(begin).collect())
}

/// Lower is sooner able to answer.
fn rank(view: &PoolView<'_>, session: &Session) -> u8 {
    match view.seen(&session.replica) {
        Some(seen) if seen.is_ready || seen.phase == ReplicaPhase::Frozen => 0,
        Some(seen) if seen.phase == ReplicaPhase::Running => 1,
        Some(_) => 2,
        None => 3,
    }
}

/// A session of the pool's generation that belongs to nobody.
pub(super) fn new_session(
    view: &PoolView<'_>,
    memory: &mut PoolMemory,
    guid: &mut dyn FnMut() -> String,
    now: Timestamp,
) -> Session {
    let mut replica = memory.new_name(&view.pool.generation);
    while view.knows(&replica) || view.replicas.contains_key(&replica) {
        replica = memory.new_name(&view.pool.generation);
    }
    Session {
        pool: view.pool.id.clone(),
        generation: view.pool.generation.clone(),
        replica,
        guid: guid(),
        target_port: view.pool.target_port,
        snapshot: view.pool.snapshot.as_ref().map(|known| known.id.clone()),
        identifier: None,
        created_at: now,
        allocated_at: None,
        last_accessed_at: None,
        ended: None,
    }
}
