//! Tests of the container app wire format.
