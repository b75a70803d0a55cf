//! The planner against small worlds.

mod cases;
mod properties;
mod world;
