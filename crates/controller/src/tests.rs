//! The controller against a fake driver and a real store.
