//! Names of replicas: `<revision>-<9>-<5>`, as Kubernetes users know them.
//!
//! **Invariant:** names depend on seed and counter only; of a million names two are equal with a chance of 1 in 10^8.

use cove_model::{ReplicaName, RevisionName};

/// Letters and digits that cannot be read as words or mixed up, as Kubernetes chose them.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The name of the `counter`th replica of a server run.
pub(crate) fn replica_name(revision: &RevisionName, seed: u64, counter: u64) -> ReplicaName {
    let mut bits = mix(seed ^ mix(counter.wrapping_add(1)));
    let mut letters = String::with_capacity(15);
    for index in 0..14 {
        if index == 9 {
            letters.push('-');
        }
        if index == 12 {
            bits = mix(bits ^ counter);
        }
        let letter = usize::try_from(bits % 27).expect("below 27");
        letters.push(char::from(ALPHABET[letter]));
        bits /= 27;
    }
    ReplicaName::new(format!("{revision}-{letters}"))
        .expect("a revision name of at most 64 characters and 16 more of the same alphabet")
}

/// `length` letters that depend on a text and a counter only.
pub(crate) fn letters(text: &str, counter: u64, length: usize) -> String {
    let seed = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut bits = mix(seed ^ mix(counter.wrapping_add(1)));
    (0..length)
        .map(|_| {
            let letter = usize::try_from(bits % 27).expect("below 27");
            bits = mix(bits);
            char::from(ALPHABET[letter])
        })
        .collect()
}

/// SplitMix64's finaliser: one to one, and near counters give far results.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_differ() {
        let revision = RevisionName::of("web", "v1").unwrap();
        let names: BTreeSet<_> = (0..20_000).map(|counter| replica_name(&revision, 7, counter)).collect();
        assert_eq!(names.len(), 20_000);
        assert_eq!(names.first().unwrap().as_str().len(), "web--v1-123456789-12345".len());
    }
}
