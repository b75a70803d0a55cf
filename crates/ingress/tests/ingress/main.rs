//! The ingress on loopback, with real sockets on both sides.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod access;
mod auth;
mod drain;
mod hold;
mod hostile;
mod http2;
mod idle;
mod interim;
mod paths;
mod policies;
mod protocols;
mod proxying;
mod replaced;
mod resilience;
mod routing;
mod split;
mod stress;
mod tcp;
mod tls;
mod unread;
mod websocket;
mod world;
