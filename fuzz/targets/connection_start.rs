//! The begin of a connection and what follows an upgrade: PROXY headers, HTTP versions, WebSocket frames, certificates.
#![no_main]

use cove_ingress::fuzzing::connection_start;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| connection_start(bytes));
