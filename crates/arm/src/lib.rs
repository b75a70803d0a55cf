//! The Azure Resource Manager wire format, to and from the model: JSON in, typed values out, and back.
//!
//! A request goes [`body::parse`] → (for PATCH [`patch::merge`] on the stored document) → `parse_put` of its resource,
//! which normalises names, reports every problem at once, and answers the canonical document that is stored. An answer is
//! `render`ed from that document and a view of what is known at the time.
//!
//! **Invariant:** nothing here does IO, reads a clock or draws a random number; a stored document never holds a secret's
//! value nor a read-only property.

pub mod body;
pub mod container_app;
pub mod environment;
pub mod error;
pub mod group;
pub mod identity_docs;
pub mod list;
mod node;
pub mod operation;
pub mod patch;
pub mod provider;
pub mod replica;
pub mod revision;
pub mod schema;
pub mod secrets;
pub mod system_data;
pub mod workspace;

pub use error::{ArmError, Errors};
pub use system_data::SystemData;
