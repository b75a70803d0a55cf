//! Lets replicas reach the exposed TCP ports of apps at the gateway: the packet filter follows the route table.
//!
//! **Invariant:** a port of this machine that no app exposes stays shut to replicas.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use cove_base::Backoff;
use cove_network::Network;
use cove_traffic::RouteTable;
use tokio::sync::watch;

/// Follows the route table; ends when the controller does.
pub(crate) async fn follow(mut routes: watch::Receiver<Arc<RouteTable>>, network: Arc<Network>) {
    let mut open: BTreeSet<u16> = BTreeSet::new();
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));
    loop {
        let wanted: BTreeSet<u16> = routes.borrow_and_update().tcp.keys().map(|(port, _)| *port).collect();
        if wanted != open {
            match network.open_gateway_ports(&wanted).await {
                Ok(()) => {
                    open = wanted;
                    backoff.reset();
                }
                Err(error) => {
                    tracing::warn!(%error, "exposed TCP ports are not reached from replicas yet; it is tried again");
                    tokio::time::sleep(backoff.next_wait()).await;
                    continue;
                }
            }
        }
        if routes.changed().await.is_err() {
            return;
        }
    }
}
