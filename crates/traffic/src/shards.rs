//! A map by name whose copy is cheap: one change copies a small part of it, the rest is shared.
//!
//! The route table is published as a whole on every change and read by others meanwhile. With ten thousand apps a plain map
//! would be copied for each of them; here a copy costs [`SHARDS`] counters and a change one shard.
//!
//! **Invariant:** two copies share every shard that did not change between them, so a reader finds what changed by pointer.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Parts of a map; with sixty thousand names about a hundred each.
pub const SHARDS: usize = 512;

/// One part of a [`Shards`].
pub type Shard<V> = BTreeMap<Arc<str>, V>;

/// A map from names to values; cheap to clone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shards<V> {
    shards: Vec<Arc<Shard<V>>>,
    len: usize,
}

impl<V> Default for Shards<V> {
    fn default() -> Self {
        let empty = Arc::new(BTreeMap::new());
        Self { shards: vec![empty; SHARDS], len: 0 }
    }
}

impl<V> Shards<V> {
    /// The place of a name's part in [`Self::shards`].
    #[must_use]
    pub fn place(name: &str) -> usize {
        let hash = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        // the high bits of this hash are the better mixed ones
        usize::try_from((hash ^ hash >> 32) % SHARDS as u64).expect("less than SHARDS")
    }

    /// The value of a name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&V> {
        self.shards[Self::place(name)].get(name)
    }

    /// All parts, always [`SHARDS`] of them.
    #[must_use]
    pub fn shards(&self) -> &[Arc<Shard<V>>] {
        &self.shards
    }

    /// Every name and value, in no order that means something.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &V)> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|(name, value)| (&**name, value))
    }

    /// How many names there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// There are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Written as a list of names and values.
impl<V: Serialize> Serialize for Shards<V> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.iter())
    }
}

impl<'de, V: Deserialize<'de> + Clone + PartialEq> Deserialize<'de> for Shards<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = Vec::<(String, V)>::deserialize(deserializer)?;
        let mut shards = Self::default();
        for (name, value) in all {
            shards.insert(&name, value);
        }
        Ok(shards)
    }
}

impl<V: Clone + PartialEq> Shards<V> {
    /// Sets a value; says whether that changed anything.
    pub fn insert(&mut self, name: &str, value: V) -> bool {
        let shard = &mut self.shards[Self::place(name)];
        if shard.get(name) == Some(&value) {
            return false;
        }
        let is_new = Arc::make_mut(shard).insert(Arc::from(name), value).is_none();
        self.len += usize::from(is_new);
        true
    }

    /// Removes a name; gives its value.
    pub fn remove(&mut self, name: &str) -> Option<V> {
        let shard = &mut self.shards[Self::place(name)];
        if !shard.contains_key(name) {
            return None;
        }
        let removed = Arc::make_mut(shard).remove(name);
        self.len -= usize::from(removed.is_some());
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_touches_one_shard() {
        let mut map = Shards::default();
        for number in 0..10_000 {
            assert!(map.insert(&format!("app-{number}.env.localhost"), number));
        }
        let before = map.clone();
        assert!(!map.insert("app-7.env.localhost", 7), "the same value is no change");
        assert!(map.insert("app-7.env.localhost", 8));
        assert_eq!((map.get("app-7.env.localhost"), before.get("app-7.env.localhost")), (Some(&8), Some(&7)));
        let changed = map.shards().iter().zip(before.shards()).filter(|(new, old)| !Arc::ptr_eq(new, old)).count();
        assert_eq!(changed, 1);
        assert_eq!(map.remove("app-7.env.localhost"), Some(8));
        assert_eq!(map.remove("app-7.env.localhost"), None);
        assert_eq!((map.len(), map.iter().count()), (9_999, 9_999));
        let largest = map.shards().iter().map(|shard| shard.len()).max().unwrap();
        assert!(largest < 60, "names spread evenly: {largest}");
    }
}
