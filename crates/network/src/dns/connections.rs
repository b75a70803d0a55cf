//! The open TCP connections of the DNS server, and who has how many.
//!
//! **Invariant:** a client's connections never keep another's from being accepted, nor do those of many clients together.

use std::collections::HashMap;
use std::net::Ipv4Addr;

use tokio::task::{AbortHandle, JoinSet};

use super::{CONNECTIONS_MAX, CONNECTIONS_PER_CLIENT_MAX};

/// Ended with this.
#[derive(Debug, Default)]
pub(super) struct Connections {
    tasks: JoinSet<()>,
    /// The oldest first.
    open: Vec<(Ipv4Addr, AbortHandle)>,
}

impl Connections {
    /// Serves a connection of `client`, unless it has too many; then `serve` is dropped and the connection with it.
    pub(super) fn add(&mut self, client: Ipv4Addr, serve: impl Future<Output = ()> + Send + 'static) {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(_, task)| !task.is_finished());
        if self.open.iter().filter(|(other, _)| *other == client).count() >= CONNECTIONS_PER_CLIENT_MAX {
            tracing::debug!(%client, "a replica has too many DNS connections");
            return;
        }
        if self.open.len() >= CONNECTIONS_MAX {
            self.end_one();
        }
        self.open.push((client, self.tasks.spawn(serve)));
    }

    /// Ends the oldest connection of the client with most.
    fn end_one(&mut self) {
        let mut counts: HashMap<Ipv4Addr, usize> = HashMap::new();
        self.open.iter().for_each(|(client, _)| *counts.entry(*client).or_default() += 1);
        let most = counts.values().copied().max();
        if let Some(at) = self.open.iter().position(|(client, _)| counts.get(client).copied() == most) {
            let (_, task) = self.open.remove(at);
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn clients(connections: &Connections) -> Vec<u32> {
        connections.open.iter().map(|(client, _)| u32::from(*client)).collect()
    }

    #[tokio::test]
    async fn one_client_has_its_share_and_all_together_leave_a_place_for_one_more() {
        let mut connections = Connections::default();
        let greedy = u32::try_from(CONNECTIONS_MAX / CONNECTIONS_PER_CLIENT_MAX).unwrap();
        for client in 1..=greedy {
            for _ in 0..CONNECTIONS_PER_CLIENT_MAX + 4 {
                connections.add(client.into(), std::future::pending());
            }
            assert_eq!(connections.open.len(), usize::try_from(client).unwrap() * CONNECTIONS_PER_CLIENT_MAX);
        }
        for modest in [100, 101, 102, 100] {
            connections.add(modest.into(), std::future::pending());
        }
        assert_eq!(connections.open.len(), CONNECTIONS_MAX);
        let left = clients(&connections);
        for client in 1..=4 {
            let count = left.iter().filter(|other| **other == client).count();
            assert_eq!(count, CONNECTIONS_PER_CLIENT_MAX - 1, "each of those with most gave one");
        }
        assert_eq!(left[CONNECTIONS_MAX - 4..], [100, 101, 102, 100]);
    }

    #[tokio::test]
    async fn a_connection_that_ended_counts_no_more() {
        let mut connections = Connections::default();
        for _ in 0..CONNECTIONS_PER_CLIENT_MAX {
            connections.add(Ipv4Addr::LOCALHOST, std::future::ready(()));
        }
        while connections.open.iter().any(|(_, task)| !task.is_finished()) {
            tokio::task::yield_now().await;
        }
        connections.add(Ipv4Addr::LOCALHOST, std::future::pending());
        assert_eq!(connections.open.len(), 1);
    }
}
