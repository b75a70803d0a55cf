//! Heads of requests: target, host, header fields, and what of them reaches an app.
#![no_main]

use cove_ingress::fuzzing::request_head;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| request_head(bytes));
