//! The planner against small worlds.

mod cases;
mod frozen;
mod labels;
mod properties;
mod world;
