//! That the rules which are accepted are the rules which are read: the catalogue of `scaling` and the modules of
//! `scalers` know nothing of each other, and this crate sees both.

use std::collections::BTreeSet;

use cove_scalers::Scalers;
use cove_scaling::validate;

#[test]
fn every_rule_that_is_accepted_is_read_and_the_other_way_round() {
    // The autoscaler measures these two itself.
    let own = ["cpu", "memory"];
    let read: BTreeSet<&str> = Scalers::KINDS.iter().copied().chain(own).collect();
    let accepted: BTreeSet<&str> = validate::scalers().collect();
    let unread: Vec<_> = accepted.difference(&read).collect();
    let refused: Vec<_> = read.difference(&accepted).collect();
    assert!(unread.is_empty(), "in crates/scaling/src/validate/catalogue.txt, but no module reads them: {unread:?}");
    assert!(
        refused.is_empty(),
        "read, but refused: take the `?` off in the catalogue and make their pages: {refused:?}"
    );
    assert!(Scalers::KINDS.is_sorted());
}
