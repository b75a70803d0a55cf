//! What must hold of every parser on a request's path, whatever bytes it gets: the targets in `fuzz/` look for bytes that
//! break it, and a test here goes through the seeds in `fuzz/corpus`, so that what was found once stays repaired.
//!
//! The first byte of an input chooses the parser, so that seeds can be read and mixed.
//!
//! **Invariant:** nothing here is part of the crate as it is used; it is there for tests and with the feature `fuzzing`.

mod head;
mod start;

pub use self::{head::request_head, start::connection_start};
pub use crate::auth::fuzzing::auth_token;

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Each seed as it is, cut at every place, and with every byte changed once.
    fn check(target: &str, run: impl Fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
        let mut count = 0;
        for file in fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let seed = fs::read(file.unwrap().path()).unwrap();
            run(&seed);
            for at in 0..seed.len().min(400) {
                run(&seed[..at]);
                let mut changed = seed.clone();
                changed[at] ^= 1 << (at % 8);
                run(&changed);
            }
            count += 1;
        }
        assert!(count > 5, "there are seeds in {}", folder.display());
    }

    #[test]
    fn the_begin_of_a_connection() {
        check("connection_start", connection_start);
    }

    #[test]
    fn the_head_of_a_request() {
        check("request_head", request_head);
    }

    #[test]
    fn tokens_and_cookies_of_logins() {
        check("auth_token", auth_token);
    }
}
