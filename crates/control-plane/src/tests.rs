//! The API over a real store: requests in, transcripts out.
//!
//! Nothing runs here, so nothing ends the operations of apps but the test itself, in the controller's place.

mod access;
mod app_parts;
mod apps;
mod certificate_orders;
mod children;
mod deployments;
mod environments;
mod exec;
mod front;
mod groups;
mod harness;
mod identities;
mod jobs;
mod login;
mod registries;
mod secrets;
mod session_pools;
mod session_tokens;
mod streams;
