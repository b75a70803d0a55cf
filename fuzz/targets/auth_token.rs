//! Tokens, cookies, addresses and answers of logins.
#![no_main]

use cove_ingress::fuzzing::auth_token;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| auth_token(bytes));
