//! The planner against small worlds.
