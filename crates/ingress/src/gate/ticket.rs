//! What a request holds: a ticket while it is open, a place in line while it waits, a lease while a replica serves it.
//!
//! **Invariant:** each of them ends by being dropped, so that a client that leaves at any point leaves nothing behind.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use tokio::{sync::oneshot, time::Instant};

use super::{Gate, Grant, Replica};
use crate::{answer::Refusal, io::Socket, observe::Seen, resilience::Breaker};

/// A waiting request looks whether its client is still there, and repeats its wish for a replica in case it got lost, this
/// often.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// An open request.
pub(crate) struct Ticket {
    gate: Arc<Gate>,
    accepted_at: Timestamp,
    /// The replica that it would like, as an affinity cookie says it.
    preferred: Option<u64>,
    /// The request, where it is one: a TCP connection is not.
    seen: Option<Arc<Seen>>,
}

impl Ticket {
    pub(super) fn new(gate: Arc<Gate>, accepted_at: Timestamp) -> Self {
        Self { gate, accepted_at, preferred: None, seen: None }
    }

    /// From now on what happens to it is noted.
    pub(crate) fn observed_by(&mut self, seen: &Arc<Seen>) {
        seen.admitted(&self.gate);
        self.seen = Some(Arc::clone(seen));
    }

    /// What is noted of its request.
    pub(crate) fn seen(&self) -> Option<&Arc<Seen>> {
        self.seen.as_ref()
    }

    /// It is sent to this replica, for the first time or again.
    pub(crate) fn tried(&self, replica: &Arc<Replica>) {
        if let Some(seen) = &self.seen {
            seen.tried(replica);
        }
    }

    /// Counts it for another revision instead.
    pub(crate) fn move_to(&mut self, gate: &Arc<Gate>) {
        let mut next = gate.admit(self.accepted_at);
        if let Some(seen) = &self.seen {
            next.observed_by(seen);
        }
        *self = next;
    }

    /// Asks for a certain replica while it takes requests.
    pub(crate) fn prefer(&mut self, replica: Option<u64>) {
        self.preferred = replica;
    }

    /// The revision's gate.
    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// When its head had been read.
    pub(crate) fn accepted_at(&self) -> Timestamp {
        self.accepted_at
    }

    /// Leases a replica, waiting in line if need be; `client` is looked at meanwhile where an end of its stream means that it
    /// left. Cancel-safe: a dropped wait gives its place or its lease back.
    ///
    /// # Errors
    /// A [`Refusal`] when the line is full, the revision cannot run, nothing came until its deadline, or the client left.
    pub(crate) async fn lease(&self, client: Option<&Socket>, deadline: Instant) -> Result<Lease, Refusal> {
        self.lease_beside(client, None, deadline).await
    }

    /// As [`Ticket::lease`], of another replica than `avoid` if there is one.
    ///
    /// # Errors
    /// As [`Ticket::lease`].
    pub(crate) async fn lease_beside(
        &self,
        client: Option<&Socket>,
        avoid: Option<u64>,
        deadline: Instant,
    ) -> Result<Lease, Refusal> {
        match self.gate.lease_or_wait((self.preferred, avoid))? {
            Ok(lease) => Ok(lease),
            // boxed: most requests never wait, and none should carry the room for it
            Err(waiting) => Box::pin(waiting.grant(client, deadline)).await,
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.gate.leave();
    }
}

/// A place in line.
pub(super) struct Waiting {
    gate: Arc<Gate>,
    place: u64,
    receiver: oneshot::Receiver<Grant>,
}

impl Waiting {
    pub(super) fn new(gate: Arc<Gate>, place: u64, receiver: oneshot::Receiver<Grant>) -> Self {
        Self { gate, place, receiver }
    }

    async fn grant(mut self, client: Option<&Socket>, deadline: Instant) -> Result<Lease, Refusal> {
        loop {
            let ask_again_at = (Instant::now() + ASK_AGAIN_AFTER).min(deadline);
            match tokio::time::timeout_at(ask_again_at, &mut self.receiver).await {
                Ok(Ok(grant)) => return grant,
                Ok(Err(_closed)) => return Err(Refusal::Internal),
                Err(_late) if Instant::now() >= deadline => return Err(Refusal::ActivationTimeout),
                // seen here only behind a body that nobody reads yet; without one the connection notices by itself
                Err(_late) if client.is_some_and(Socket::is_closed_by_client) => return Err(Refusal::ClientGone),
                Err(_late) => self.gate.ask_again(),
            }
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.gate.leave_line(self.place);
    }
}

/// The right to send one request to a replica; the replica counts it until this is dropped.
pub(crate) struct Lease {
    gate: Arc<Gate>,
    replica: Arc<Replica>,
    /// It ended a wake from zero then: its times make the wake's record.
    pub(crate) woken_at: Option<Timestamp>,
}

impl Lease {
    pub(super) fn new(gate: Arc<Gate>, replica: Arc<Replica>) -> Self {
        Self { gate, replica, woken_at: None }
    }

    /// Where to send it.
    pub(crate) fn replica(&self) -> &Arc<Replica> {
        &self.replica
    }

    /// The replica answered.
    pub(crate) fn answered(&self) {
        if !self.replica.is_trusted() {
            self.gate.trust(&self.replica);
        }
    }

    /// The replica answered, well or not, or did not: a circuit breaker wants to know.
    pub(crate) fn note(&self, breaker: &Breaker, is_error: bool) {
        self.gate.note(&self.replica, breaker, is_error);
    }

    /// The replica refused the connection; gives the lease back.
    pub(crate) fn refused(self) {
        self.gate.suspend(&self.replica);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.gate.release(&self.replica);
    }
}
