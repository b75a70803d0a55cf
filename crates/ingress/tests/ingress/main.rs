//! The ingress on loopback, with real sockets on both sides.

mod hold;
mod routing;
mod world;
