//! Library of `cove serve`: reads configuration, opens the stores, wires the services, drains.
//!
//! Services know nothing of each other. Here they get each other's boards, channels and closures; this is the only crate
//! that depends on all of them.
//!
//! **Invariant:** stopping the server stops no replica. **Invariant:** nothing is reached from outside loopback unless
//! clients are configured.

mod acme;
mod api_listener;
mod auth;
mod certificates;
pub mod config;
mod directory;
mod ejections;
mod execution_folders;
mod explain;
mod extensions;
mod handover;
mod http_logs;
mod ingress_metrics;
mod job_triggers;
#[cfg(test)]
mod kinds;
mod logs;
mod metrics;
mod mirrors;
mod ports;
mod reach;
mod registry_login;
mod resilience_metrics;
mod rules;
mod run;
mod serve;
mod sessions;
mod sockets;
mod tcp_ports;
mod tls;
mod virtual_clock;
mod wakes;

pub use config::Config;
pub use cove_control_plane::coverage;
pub use handover::Visitor;
pub use run::run_until_signal;
pub use serve::{Endpoints, Options, Server, network_config};
pub use virtual_clock::ClockKind;

/// Installs what all programs of this workspace need once per process: the TLS provider.
pub fn install_crypto() {
    // a second call finds it installed already
    let _already = rustls::crypto::ring::default_provider().install_default();
}
