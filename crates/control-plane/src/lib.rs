//! Serves the Azure Resource Manager API: authenticates, validates, writes desired state, answers async operations.
//!
//! Everything a request asks for is written to `cove-store` and becomes real elsewhere: the controller reads the change
//! feed, works, and ends the operation that the client polls. So the API stays fast and honest while reconcile lags.
//!
//! One table of routes, put together from one file per resource type, is matched without regard to case, doubled or
//! trailing slashes, as Azure does. Each request runs in a task of its own: a client that goes away does not stop a
//! half-done write, and a panic ends one request only.
//!
//! **Invariant:** no answer claims that work is done which the controller has not reported as done.
//! **Invariant:** every answer that is an error has ARM's envelope; every answer has `x-ms-request-id`.

mod answer;
mod app_actions;
mod app_events;
mod app_questions;
mod app_refs;
mod app_secrets;
mod app_write;
mod apps;
mod artifacts;
mod auth;
mod auth_configs;
mod authorization;
mod call;
mod config;
mod control_plane;
mod coverage;
mod crud;
mod custom_hosts;
mod deployments;
mod environment;
mod environments;
mod exec;
mod executions;
mod front;
mod generic;
mod graph;
mod groups;
mod identities;
mod job_actions;
mod job_write;
mod jobs;
mod label_history;
mod links;
mod locations;
mod login;
mod networks;
mod not_built;
mod operations;
mod precondition;
mod providers;
mod reaper;
mod registries;
mod replicas;
mod resiliency;
mod revisions;
mod route;
mod session_console;
mod session_pool_keys;
mod session_pool_snapshots;
mod session_pool_write;
mod session_pools;
mod session_tokens;
mod storages;
mod streams;
mod subscriptions;
mod token;
mod websocket;
mod words;
mod workspaces;

#[cfg(test)]
mod tests;

pub use artifacts::{ARTIFACT_DEPTH_MAX, Artifact, ArtifactList, Artifacts};
pub use config::{Auth, Client, Config, Sessions};
pub use control_plane::{ControlPlane, PlaceInLine, StartError};
pub use coverage::coverage;
pub use environment::{Issue, Issued, OrderError, Ordered};
pub use front::{identity_router, router};
pub use session_console::{PulledPercent, SessionConsole};
pub use session_tokens::{SESSIONS_AUDIENCE, SessionTokenError};
pub use streams::{ConsoleQuery, Extensions, LogLine, LogStreams, SystemQuery};
