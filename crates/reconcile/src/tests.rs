//! The planner against small worlds.

mod cases;
mod labels;
mod properties;
mod world;
