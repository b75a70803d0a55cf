//! The ingress on loopback, with real sockets on both sides.

mod drain;
mod hold;
mod protocols;
mod proxying;
mod routing;
mod websocket;
mod world;
