//! Registries whose images are found at another host: a mirror, or the embedded registry in the place of a cloud's.
//!
//! **Invariant:** a login is sent to the registry that it is for, never to a mirror of it.

use std::{fmt, sync::Arc};

/// Says where the images of a registry are, if not there; asked whenever a name is used, so that answers may change.
#[derive(Clone, Default)]
pub struct Mirrors(Option<Arc<Find>>);

type Find = dyn Fn(&str) -> Option<String> + Send + Sync;

impl Mirrors {
    /// Mirrors that `find` knows: from `host` or `host:port` to another.
    pub fn new(find: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(find)))
    }

    pub(crate) fn of(&self, registry: &str) -> Option<String> {
        self.0.as_ref().and_then(|find| find(registry))
    }
}

impl fmt::Debug for Mirrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Mirrors").field(&self.0.is_some()).finish()
    }
}
