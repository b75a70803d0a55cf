//! What every service needs and no policy: [`Board`], [`Clock`], [`Tasks`], [`Rare`], [`Backoff`], configuration units,
//! [`open_confined`].
//!
//! The list is closed: a new entry needs a second user and a reason here.
//!
//! **Invariant:** nothing here knows what an app or a replica is.

mod backoff;
mod board;
mod clock;
mod confined;
mod rare;
mod tasks;
mod text_units;

pub use backoff::Backoff;
pub use board::{Board, Changes};
pub use clock::{Busy, Clock, Worker};
pub use confined::open_confined;
pub use rare::Rare;
pub use tasks::{OnCancel, OnError, TaskKind, Tasks};
pub use text_units::{parse_duration, parse_size};
