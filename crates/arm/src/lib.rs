//! The Azure Resource Manager wire format, to and from the model: JSON in, typed values out, and back.
//!
//! A request goes [`body::parse`] → (for PATCH [`patch::merge`] on the stored document) → `parse_put` of its resource,
//! which normalises names, reports every problem at once, and answers the canonical document that is stored. An answer is
//! `render`ed from that document and a view of what is known at the time.
//!
//! ```
//! use std::collections::BTreeSet;
//! use cove_arm::{body, container_app::{parse_put, PutContext}};
//!
//! let id = cove_model::ResourceId::resource("s", "rg", "Microsoft.App/containerApps", "web").unwrap();
//! let body = br#"{"location": "local", "properties": {"environmentId":
//!     "/subscriptions/s/resourceGroups/rg/providers/Microsoft.App/managedEnvironments/env",
//!     "template": {"containers": [{"name": "web", "image": "nginx"}], "scale": {"minReplicas": 3, "maxReplicas": 2}}}}"#;
//! let body = body::parse_object(body, body::DEPTH_MAX).unwrap();
//! let error = parse_put(&body, &PutContext { id: &id, known_secrets: &BTreeSet::new() }).unwrap_err();
//! assert_eq!((error.status, error.target.as_deref()), (400, Some("properties.template.scale")));
//! ```
//!
//! **Invariant:** nothing here does IO, reads a clock or draws a random number; a stored document never holds a secret's
//! value nor a read-only property.

pub mod auth_config;
pub mod body;
pub mod container_app;
pub mod environment;
pub mod error;
pub mod group;
pub mod identity_docs;
pub mod job;
pub mod list;
pub mod network;
mod node;
pub mod operation;
pub mod patch;
pub mod provider;
pub mod registry;
pub mod replica;
pub mod resiliency;
pub mod revision;
pub mod role;
pub mod schema;
pub mod secrets;
pub mod session_pool;
pub mod storage;
pub mod system_data;
pub mod user_identity;
pub mod workspace;

pub use error::{ArmError, Errors};
pub use system_data::SystemData;
