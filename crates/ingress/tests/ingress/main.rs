//! The ingress on loopback, with real sockets on both sides.

#![expect(clippy::unwrap_used, reason = "a test stops at the first surprise")]

mod drain;
mod hold;
mod protocols;
mod proxying;
mod routing;
mod websocket;
mod world;
