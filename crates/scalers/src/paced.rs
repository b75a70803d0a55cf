//! A source beside a virtual clock: what it shares with others rests by that clock (see [`crate::pool`]).

use std::sync::Arc;

use cove_base::Clock;
use tokio::sync::watch;

use crate::{
    pool::paced,
    source::{ReadFuture, Source},
};

/// A source, and the clock of its reads.
#[derive(Debug)]
pub(crate) struct Paced {
    source: Arc<dyn Source>,
    clock: Clock,
}

impl Paced {
    pub(crate) fn new(source: Arc<dyn Source>, clock: Clock) -> Self {
        Self { source, clock }
    }
}

impl Source for Paced {
    fn read(&self) -> ReadFuture<'_> {
        Box::pin(paced(self.clock.clone(), self.source.read()))
    }

    fn pushes(&self) -> Option<watch::Receiver<u64>> {
        self.source.pushes()
    }
}
