//! OCI images on this machine: pull, import, embedded registry, layers unpacked once.
//!
//! One [`ImageStore`] owns one directory. Whatever way an image comes in (pulled from a registry, imported from a file,
//! pushed to the embedded registry, built into the program) it ends as the same verified blobs, and [`ImageStore::ensure`]
//! turns those into unpacked layer directories that every replica shares as overlay lower directories.
//!
//! **Invariant:** a blob or layer that is visible under its final name is whole and verified; everything else lives under
//! `tmp/` and is removed when the store is opened.

mod blobs;
mod digest;
mod error;
mod image;
mod import;
mod index;
mod interpreter;
mod layers;
mod mirrors;
mod pull;
mod reference;
mod registry;
mod sample;
mod store;
mod unpack;

pub use digest::{Digest, InvalidDigest};
pub use error::ImageError;
pub use image::{Image, ImageConfig};
pub use index::ImageSource;
pub use interpreter::{
    BuildOptions, BuiltInterpreter, INTERPRETER_PORT, Interpreter, InterpreterError, build_interpreter,
};
pub use mirrors::Mirrors;
pub use pull::Credentials;
pub use reference::{ImageRef, InvalidImageRef, OWN_REGISTRY, Version};
pub use registry::{Access, AuthorizationCheck, RegistryConfig};
pub use sample::{HELLO_WORLD_IMAGE, QUICKSTART_IMAGE, SAMPLE_IMAGE};
pub use store::{GcReport, ImageStore, ListedImage, PullPhase, PullPolicy, PullProgress, StoreConfig};
