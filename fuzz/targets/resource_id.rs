//! Resource ids: parsing is stable, case is kept and does not matter, parts are parts of the text.
#![no_main]

use cove_model::ResourceId;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(id) = ResourceId::parse(text) else { return };
    let again = ResourceId::parse(id.as_str()).expect("an id that was printed can be read");
    assert_eq!(id.as_str(), again.as_str());
    assert_eq!(id, ResourceId::parse(&text.to_ascii_uppercase()).expect("case does not matter"));
    let _ = (id.subscription(), id.group_name(), id.kind(), id.key());
    let _ = id.child("revisions", text);
});
